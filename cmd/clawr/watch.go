package main

import (
	"github.com/402claw/clawr"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/facilitator/onchain"
)

// watch follows the chain for n's book, and for mirror, which may be nil.
func (n *node) watch(chain *onchain.Node, assets []clawr.Asset, mirror *facilitator.Mirror) *facilitator.Watcher {
	return &facilitator.Watcher{Network: assets[0].Network, Assets: assets, Chain: chain, Book: n.db, Cursors: n.db, Mirror: mirror,
		Log: n.log, Failpoint: failpoint(), Now: clock()}
}

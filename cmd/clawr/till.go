package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
)

// till is what takes vouchers on n; nil where others settle, who would have to
// be trusted with what only the chain says.
func (n *node) till(ctx context.Context) (*dispatch.Till, error) {
	if n.settler == nil {
		return nil, nil
	}
	key, err := authorizer(ctx, n.db)
	if err != nil {
		return nil, err
	}
	n.settler.Authorizer = key
	return &dispatch.Till{Channels: n.db, Holds: n.db, Receivers: n.db, Vault: n.settler, Authorizer: key}, nil
}

// authorizer is the key that answers for claims and refunds of channels. It is
// the database's own, and not the one that pays gas: channels name it for good,
// while that one may change. The oldest stays in use, because a channel that
// names another cannot be claimed.
func authorizer(ctx context.Context, db *store.DB) (*chain.Key, error) {
	list, err := db.Secrets(ctx, "receiver-authorizer")
	if err != nil {
		return nil, err
	}
	key, err := chain.ParseKey("0x" + hex.EncodeToString(list[len(list)-1].Value))
	if err != nil {
		return nil, fmt.Errorf("the receiver-authorizer's key: %w", err)
	}
	return key, nil
}

// till is n's channels as the control plane sees them.
type till struct{ n *node }

func (t till) Channels(ctx context.Context, payer string, limit int) ([]ledger.Channel, error) {
	return t.n.db.Channels(ctx, payer, limit)
}

// Claim claims whatever is due, whether or not it has to be claimed now.
func (t till) Claim(ctx context.Context) (int, error) {
	if t.n.dispatch == nil || t.n.dispatch.Till == nil {
		return 0, &clawr.Error{Code: clawr.CodeFacilitatorDown, Status: http.StatusServiceUnavailable, Message: "nobody here settles", Fix: "run it while clawr serve or clawr dev has the data directory; it claims by itself, too"}
	}
	return t.n.dispatch.Claim(ctx, true)
}

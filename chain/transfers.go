package chain

import (
	"context"
	"math"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
)

// Moved is a transfer of a token as the chain's log has it.
type Moved struct {
	Tx          string // lower-case hash
	BlockNumber int64
	LogIndex    int64
	From        common.Address
	Amount      int64 // atomic units; -1 if it is more than fits
}

// Transfers lists what an address received of a token in the blocks from a
// number on, in the chain's order, up to the block whose number it gives: the
// head at the beginning of the search.
func (c *Client) Transfers(ctx context.Context, asset, to common.Address, from int64) (list []Moved, upTo int64, err error) {
	head, err := c.Head(ctx)
	if err != nil {
		return nil, 0, err
	}
	span := int64(firstSpan)
	for from = max(from, 0); from <= head.Number; {
		end := min(from+span-1, head.Number)
		var logs []wireLog
		err := c.Ask(ctx, &logs, "eth_getLogs", map[string]any{
			"fromBlock": hexutil.EncodeUint64(uint64(from)), "toBlock": hexutil.EncodeUint64(uint64(end)), "address": asset,
			"topics": []any{topicTransfer, nil, wordAddress(to)}})
		if span > lastSpan && refused(err) {
			span = max(span/8, lastSpan) // the provider limits the range
			continue
		}
		if err != nil {
			return nil, 0, err
		}
		for _, l := range logs {
			m, ok := l.moved(asset, to)
			if ok {
				list = append(list, m)
			}
		}
		from = end + 1
	}
	return list, head.Number, nil
}

// moved is l as a transfer of asset to an address; false for what cannot be
// one, whatever the node was asked for.
func (l *wireLog) moved(asset, to common.Address) (Moved, bool) {
	if l.Removed || l.Tx == nil || l.Number == nil || l.Index == nil || l.Address == nil || *l.Address != asset || len(l.Topics) != 3 ||
		l.Topics[0] != common.HexToHash(topicTransfer) || l.Topics[2] != wordAddress(to) || *l.Number > math.MaxInt64 || *l.Index > math.MaxInt64 {
		return Moved{}, false
	}
	return Moved{Tx: strings.ToLower(l.Tx.Hex()), BlockNumber: int64(*l.Number), LogIndex: int64(*l.Index), From: common.BytesToAddress(l.Topics[1][:]), Amount: amount(l.Data)}, true
}

// Received is an authorization that paid an address, as one transaction's logs
// show it.
type Received struct {
	Payer    common.Address
	Nonce    common.Hash
	Amount   int64
	LogIndex int64 // of the Transfer
}

// Received lists the authorizations of a token that paid an address in r.
func (r *Receipt) Received(asset, to common.Address) []Received {
	logs := tokenLogs(r.Logs, asset)
	var list []Received
	for i, p := range pair(logs) {
		if p >= 0 && logs[p].to == to && logs[p].amount > 0 {
			list = append(list, Received{Payer: logs[i].who, Nonce: logs[i].nonce, Amount: logs[p].amount, LogIndex: logs[p].index})
		}
	}
	return list
}

// Since is the number of the last block before a moment, 0 if there is none.
func (c *Client) Since(ctx context.Context, moment time.Time) (int64, error) {
	head, err := c.Head(ctx)
	if err != nil {
		return 0, err
	}
	from, to := int64(0), head.Number
	for from < to {
		mid := from + (to-from+1)/2
		b, err := c.BlockAt(ctx, mid)
		if err != nil {
			return 0, err
		}
		if b.Time.Before(moment) {
			from = mid
		} else {
			to = mid - 1
		}
	}
	return from, nil
}

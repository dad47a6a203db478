package devchain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/eth/filters"
	"github.com/ethereum/go-ethereum/rpc"
)

const (
	maxLogs      = 10_000    // logs in an answer
	maxLogBlocks = 1_000_000 // blocks that a query may span
)

// GetLogs implements eth_getLogs. It reads the bloom filter of every header
// in the range; there is no index.
func (a *ethAPI) GetLogs(ctx context.Context, q filters.FilterCriteria) ([]*types.Log, error) {
	out := []*types.Log{}
	if q.BlockHash != nil {
		h := a.c.bc.GetHeaderByHash(*q.BlockHash)
		if h == nil || !a.c.visible(h.Number.Uint64()) {
			return nil, errors.New("unknown block")
		}
		return a.match(out, h, &q)
	}
	from, to := a.bound(q.FromBlock), a.bound(q.ToBlock)
	if from == nil || to == nil {
		return out, nil
	}
	first, last := from.Number.Uint64(), to.Number.Uint64()
	if last >= first && last-first >= maxLogBlocks {
		return nil, fmt.Errorf("query exceeds max block range %d", maxLogBlocks)
	}
	for n := first; n <= last; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		h := a.c.bc.GetHeaderByNumber(n)
		if h == nil {
			break
		}
		var err error
		if out, err = a.match(out, h, &q); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// bound resolves one end of a range; an end beyond the head is the head.
func (a *ethAPI) bound(n *big.Int) *types.Header {
	head := a.header(rpc.LatestBlockNumber)
	if n == nil || !n.IsInt64() || n.Int64() > head.Number.Int64() {
		return head
	}
	return a.header(rpc.BlockNumber(n.Int64()))
}

func (a *ethAPI) match(out []*types.Log, h *types.Header, q *filters.FilterCriteria) ([]*types.Log, error) {
	if !maybe(h.Bloom, q.Addresses, q.Topics) {
		return out, nil
	}
	for _, r := range a.c.bc.GetReceiptsByHash(h.Hash()) {
		for _, l := range r.Logs {
			if !matches(l, q.Addresses, q.Topics) {
				continue
			}
			if len(out) == maxLogs {
				return nil, fmt.Errorf("query returned more than %d results", maxLogs)
			}
			out = append(out, l)
		}
	}
	return out, nil
}

// maybe is false if the block certainly has no such log.
func maybe(b types.Bloom, addresses []common.Address, topics [][]common.Hash) bool {
	if len(addresses) > 0 && !slices.ContainsFunc(addresses, func(a common.Address) bool { return b.Test(a[:]) }) {
		return false
	}
	for _, any := range topics {
		if len(any) > 0 && !slices.ContainsFunc(any, func(t common.Hash) bool { return b.Test(t[:]) }) {
			return false
		}
	}
	return true
}

func matches(l *types.Log, addresses []common.Address, topics [][]common.Hash) bool {
	if len(addresses) > 0 && !slices.Contains(addresses, l.Address) || len(topics) > len(l.Topics) {
		return false
	}
	for i, any := range topics {
		if len(any) > 0 && !slices.Contains(any, l.Topics[i]) {
			return false
		}
	}
	return true
}

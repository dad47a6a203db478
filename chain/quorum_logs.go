package chain

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

// Blocks reads the canonical blocks from one number to another, as far as
// enough providers have them and agree on everything that the tokens did in them.
func (q *Quorum) Blocks(ctx context.Context, from, to int64, assets []common.Address) ([]BlockLogs, error) {
	want := int(min(to-from+1, MaxBlocks))
	var agreed []BlockLogs
	all := ask(ctx, q, func(ctx context.Context, c *Client) ([]BlockLogs, error) { return c.Blocks(ctx, from, to, assets) },
		func(all []said[[]BlockLogs]) bool {
			if last := all[len(all)-1]; last.err == nil {
				if more := q.prefix(all, last.value); len(more) > len(agreed) {
					agreed = more
				}
			}
			return len(agreed) == want
		})
	if len(agreed) > 0 {
		return agreed, nil
	}
	empty := 0
	for _, a := range all {
		if a.err == nil && len(a.value) == 0 {
			empty++
		}
	}
	if empty >= q.Need() {
		return nil, nil
	}
	return nil, disagreement(q, fmt.Sprintf("block %d", from), all)
}

// prefix is the part of list that enough providers have given alike.
func (q *Quorum) prefix(all []said[[]BlockLogs], list []BlockLogs) []BlockLogs {
	for i := range list {
		votes := 0
		for _, a := range all {
			if a.err == nil && i < len(a.value) && logsKey(a.value[i]) == logsKey(list[i]) {
				votes++
			}
		}
		if votes < q.Need() {
			return list[:i]
		}
	}
	return list
}

func logsKey(b BlockLogs) [32]byte {
	return sha256.Sum256(fmt.Append(nil, blockKey(b.Block), b.Uses, b.Moves))
}

// Range reads finalized blocks. Providers cut ranges where they like, so
// several of them are asked block by block.
func (q *Quorum) Range(ctx context.Context, from, to int64, assets []common.Address) (list []BlockLogs, reached int64, err error) {
	if len(q.members) == 1 {
		c, err := q.members[0].dial(ctx, q.Network)
		if err != nil {
			return nil, from - 1, err
		}
		return c.Range(ctx, from, to, assets)
	}
	list, err = q.Blocks(ctx, from, to, assets)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("there is no block %d, and it is finalized", from)
	}
	return list, from + int64(len(list)) - 1, err
}

// Search looks for a use of t's authorization, by whomever, in the blocks since
// a moment. Any provider may name the transaction; enough of them must say the
// same of it. Unused means that nobody knows of any.
func (q *Quorum) Search(ctx context.Context, t Transfer, since time.Time) (*Receipt, Finding, error) {
	all := patiently(ctx, q, func(ctx context.Context, c *Client) ([]common.Hash, error) { return c.usesSince(ctx, t, since) },
		func(all []said[[]common.Hash]) bool {
			for i := range all {
				if len(all[i].value) == 0 {
					return false
				}
			}
			return true
		})
	var seen []common.Hash
	answered := 0
	for _, a := range all {
		if a.err != nil {
			continue
		}
		answered++
		for _, tx := range a.value {
			if slices.Contains(seen, tx) {
				continue
			}
			seen = append(seen, tx)
			r, err := q.Receipt(ctx, tx)
			if err != nil {
				return nil, Finding{}, err
			}
			if r == nil {
				continue
			}
			if f := r.Find(t); f.Use != Unused {
				return r, f, nil
			}
		}
	}
	if answered < q.Need() {
		return nil, Finding{}, disagreement(q, "the uses of "+t.Nonce.Hex(), all)
	}
	return nil, Finding{}, nil
}

// usesSince lists the transactions that used the payer's nonce in the blocks
// since a moment. Which block that was it finds by halving.
func (c *Client) usesSince(ctx context.Context, t Transfer, since time.Time) ([]common.Hash, error) {
	head, err := c.Head(ctx)
	if err != nil {
		return nil, err
	}
	from, to := int64(0), head.Number
	for from < to {
		mid := from + (to-from+1)/2
		b, err := c.BlockAt(ctx, mid)
		if err != nil {
			return nil, err
		}
		if b.Time.Before(since) {
			from = mid
		} else {
			to = mid - 1
		}
	}
	span := int64(firstSpan)
	var all []common.Hash
	for from <= head.Number {
		until := min(from+span-1, head.Number)
		txs, err := c.uses(ctx, t, from, until)
		if span > lastSpan && refused(err) {
			span = max(span/8, lastSpan) // the provider limits the range
			continue
		}
		if err != nil {
			return nil, err
		}
		all, from = append(all, txs...), until+1
	}
	return all, nil
}

// errBehind is the error of a provider that has not seen what is finalized.
var errBehind = errors.New("the node lags behind the finalized block")

// authorizationSince is AuthorizationState of a node that has the block floor.
// The head is asked for first: what is read afterwards is not older.
func (c *Client) authorizationSince(ctx context.Context, asset, payer common.Address, nonce common.Hash, floor int64) (bool, error) {
	if floor == 0 {
		return c.AuthorizationState(ctx, asset, payer, nonce)
	}
	var head *wireBlock
	var out hexutil.Bytes
	calls := []rpc.BatchElem{
		{Method: "eth_getBlockByNumber", Args: []any{"latest", false}, Result: &head},
		{Method: "eth_call", Args: []any{callObject{To: &asset, Input: pack(selAuthorizationState, wordAddress(payer), nonce)}, "latest"}, Result: &out},
	}
	if err := c.batch(ctx, calls); err != nil {
		return false, err
	}
	for i := range calls {
		if calls[i].Error != nil {
			return false, calls[i].Error
		}
	}
	b, err := head.block()
	switch {
	case err != nil:
		return false, err
	case b == nil || b.Number < floor:
		return false, errBehind
	case len(out) < 32:
		return false, noToken(c.Network(), asset, "it has no authorizationState (EIP-3009)")
	}
	return word(out[:32]) != word{}, nil
}

package sim

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
)

// node is the only node that the seller asks. It is slow, silent, down, and
// behind: never by so much as to contradict what it calls finalized.
type node struct {
	*chain
	calls  sync.Map // name → *atomic.Int64
	honest atomic.Bool
	wrong  *counts
}

var errNode = errors.New("the node does not answer")

// call is the height that this call sees, or how it fails.
func (n *node) call(ctx context.Context, name string) (int64, error) {
	v, _ := n.calls.LoadOrStore(name, new(atomic.Int64))
	r := n.dice.at("node", name, v.(*atomic.Int64).Add(1))
	lag := int64(0)
	if !n.honest.Load() {
		switch p := r.IntN(100); {
		case p < 4:
			n.wrong.add("node down")
			return 0, errNode
		case p < 6:
			n.wrong.add("node silent")
			if err := sleep(ctx, 90*time.Second); err != nil {
				return 0, err
			}
		case p < 14:
			n.wrong.add("node slow")
			if err := sleep(ctx, time.Duration(r.IntN(5000))*time.Millisecond); err != nil {
				return 0, err
			}
		case p < 24:
			n.wrong.add("stale head")
			lag = 1 + r.Int64N(deepest-1)
		}
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return max(0, n.list[len(n.list)-1].Number-lag), nil
}

// sleep waits, as long as ctx lets it.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *node) block(number int64) facilitator.Block {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.list[min(number, int64(len(n.list)-1))].Block
}

func (n *node) Head(ctx context.Context) (facilitator.Block, error) {
	h, err := n.call(ctx, "head")
	if err != nil {
		return facilitator.Block{}, err
	}
	return n.block(h), nil
}

func (n *node) Finalized(ctx context.Context) (facilitator.Block, error) {
	h, err := n.call(ctx, "finalized")
	if err != nil {
		return facilitator.Block{}, err
	}
	return n.block(max(0, h-finality)), nil
}

func (n *node) Used(ctx context.Context, t facilitator.Transfer, at *facilitator.Block) (bool, error) {
	h, err := n.call(ctx, "used"+t.Nonce.Hex())
	if err != nil {
		return false, err
	}
	if at != nil {
		if at.Number > h {
			return false, errNode
		}
		h = at.Number
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	b, _, _ := n.canonical(key{t.Payer, t.Nonce}, h)
	return b != nil, nil
}

func (n *node) Find(ctx context.Context, t facilitator.Transfer, _ time.Time) (facilitator.Finding, error) {
	h, err := n.call(ctx, "find"+t.Nonce.Hex())
	if err != nil {
		return facilitator.Finding{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	b, x, i := n.canonical(key{t.Payer, t.Nonce}, h)
	if b == nil {
		return facilitator.Finding{}, nil
	}
	return finding(b, x, i, t), nil
}

func finding(b *block, x *tx, i int, t facilitator.Transfer) facilitator.Finding {
	f := facilitator.Finding{Use: facilitator.Elsewhere, Time: b.Time, Evidence: ledger.Evidence{Tx: x.hash, BlockNumber: b.Number, BlockHash: b.Hash.Hex()}}
	switch {
	case x.cancel:
		f.Use = facilitator.Cancelled
	case x.t.PayTo == t.PayTo && x.t.Amount == t.Amount:
		f.Use, f.LogIndex = facilitator.Paid, int64(2*i+1)
	}
	return f
}

func (n *node) Receipt(ctx context.Context, hash string, ts []facilitator.Transfer) (*facilitator.Receipt, error) {
	h, err := n.call(ctx, "receipt"+hash)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.list {
		b := &n.list[i]
		for j, x := range b.txs {
			if x.hash != hash || b.Number > h {
				continue
			}
			r := &facilitator.Receipt{Tx: hash, BlockNumber: b.Number, BlockHash: b.Hash.Hex(), Time: b.Time, OK: true}
			for _, t := range ts {
				f := facilitator.Finding{Time: b.Time}
				if x.key() == (key{t.Payer, t.Nonce}) {
					f = finding(b, x, j, t)
				}
				r.Found = append(r.Found, f)
			}
			return r, nil
		}
	}
	return nil, nil
}

func (n *node) At(ctx context.Context, number int64) (*facilitator.Block, error) {
	h, err := n.call(ctx, "at")
	if err != nil || number > h {
		return nil, err
	}
	b := n.block(number)
	return &b, nil
}

func (n *node) Blocks(ctx context.Context, from, to int64, _ []common.Address) ([]facilitator.Seen, error) {
	h, err := n.call(ctx, "blocks")
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []facilitator.Seen
	for number := from; number <= min(to, h, int64(len(n.list)-1)) && len(out) < 50; number++ {
		out = append(out, seen(&n.list[number]))
	}
	return out, nil
}

func (n *node) Range(ctx context.Context, from, to int64, assets []common.Address) ([]facilitator.Seen, int64, error) {
	list, err := n.Blocks(ctx, from, to, assets)
	if err != nil || len(list) == 0 {
		return nil, from - 1, err
	}
	return list, list[len(list)-1].Number, nil
}

func seen(b *block) facilitator.Seen {
	s := facilitator.Seen{Block: b.Block}
	for i, x := range b.txs {
		u := facilitator.Used{Asset: x.t.Asset, Payer: x.t.Payer, Nonce: x.t.Nonce, Use: facilitator.Cancelled, Tx: x.hash, LogIndex: int64(2 * i)}
		if !x.cancel {
			u.Use, u.PayTo, u.Amount, u.LogIndex = facilitator.Paid, x.t.PayTo, x.t.Amount, int64(2*i+1)
			s.Moves = append(s.Moves, facilitator.Move{Asset: x.t.Asset, From: x.t.Payer, To: x.t.PayTo, Amount: x.t.Amount})
		}
		s.Uses = append(s.Uses, u)
	}
	return s
}

var (
	_ facilitator.Witness  = (*node)(nil)
	_ facilitator.Follower = (*node)(nil)
)

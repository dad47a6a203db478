package onchain

import (
	"context"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/facilitator"
)

// quorum is whom to believe: the providers that were given, or the one.
func (n *Node) quorum() *chain.Quorum {
	if n.Quorum != nil {
		return n.Quorum
	}
	return chain.Alone(n.Client)
}

// At is the canonical block with a number, nil if there is none yet.
func (n *Node) At(ctx context.Context, number int64) (*facilitator.Block, error) {
	b, err := n.quorum().Canonical(ctx, number)
	if b == nil || err != nil {
		return nil, err
	}
	out := blockOf(*b)
	return &out, nil
}

// Blocks are the canonical blocks from one number on, as many up to the other
// as one call gives.
func (n *Node) Blocks(ctx context.Context, from, to int64, assets []common.Address) ([]facilitator.Seen, error) {
	list, err := n.quorum().Blocks(ctx, from, to, assets)
	return seen(list), err
}

// Range are the finalized blocks up to the number reached in which the tokens
// did something.
func (n *Node) Range(ctx context.Context, from, to int64, assets []common.Address) ([]facilitator.Seen, int64, error) {
	list, reached, err := n.quorum().Range(ctx, from, to, assets)
	return seen(list), reached, err
}

// Account is what the chain says of a payer at a block, as enough providers say.
func (n *Node) Account(ctx context.Context, asset, payer common.Address, nonce common.Hash, at facilitator.Block) (facilitator.Account, error) {
	a, err := n.quorum().Account(ctx, asset, payer, nonce, chain.Block{Number: at.Number, Hash: at.Hash})
	return facilitator.Account(a), err
}

func blockOf(b chain.Block) facilitator.Block {
	return facilitator.Block{Number: b.Number, Hash: b.Hash, Parent: b.Parent, Time: b.Time}
}

func seen(list []chain.BlockLogs) []facilitator.Seen {
	out := make([]facilitator.Seen, len(list))
	for i, b := range list {
		out[i] = facilitator.Seen{Block: blockOf(b.Block)}
		for _, u := range b.Uses {
			out[i].Uses = append(out[i].Uses, facilitator.Used{Asset: u.Asset, Payer: u.Payer, Nonce: u.Nonce, Use: use(u.Use), PayTo: u.PayTo, Amount: u.Amount,
				Tx: lower(u.Tx), LogIndex: u.LogIndex})
		}
		for _, m := range b.Moves {
			out[i].Moves = append(out[i].Moves, facilitator.Move(m))
		}
	}
	return out
}

var (
	_ facilitator.Follower = (*Node)(nil)
	_ facilitator.Peeker   = (*Node)(nil)
)

package chain

import (
	"context"
	"fmt"
	"math/big"
	"slices"

	"github.com/ethereum/go-ethereum/common"
)

// What is read of accounts and channels, and what is offered for gas, as enough
// providers say.

// alike asks until enough providers have answered alike, by the key of their
// answers, and gives those answers.
func alike[T any](ctx context.Context, q *Quorum, what string, question func(context.Context, *Client) (T, error), key func(T) string) ([]T, error) {
	var same []T
	all := ask(ctx, q, question, func(all []said[T]) bool {
		last := all[len(all)-1]
		if last.err != nil {
			return false
		}
		same = same[:0]
		for _, a := range all {
			if a.err == nil && key(a.value) == key(last.value) {
				same = append(same, a.value)
			}
		}
		return len(same) >= q.Need()
	})
	if len(same) < q.Need() {
		return nil, disagreement(q, what, all)
	}
	return same, nil
}

// Account is Client.Account, as enough providers read it. Not all give logs of
// so many blocks, so that Past is what enough of them name, and perhaps nothing.
func (q *Quorum) Account(ctx context.Context, asset, who common.Address, nonce common.Hash, at Block) (Account, error) {
	same, err := alike(ctx, q, "the account "+who.Hex(), func(ctx context.Context, c *Client) (Account, error) {
		return c.Account(ctx, asset, who, nonce, at)
	}, func(a Account) string { return fmt.Sprint(a.Contract, a.Balance, a.Used) })
	if err != nil {
		return Account{}, err
	}
	votes := map[common.Hash]int{}
	for _, a := range same {
		slices.SortFunc(a.Past, common.Hash.Cmp)
		for _, n := range slices.Compact(a.Past) {
			votes[n]++
		}
	}
	out := same[0]
	out.Past = nil
	for n, v := range votes {
		if v >= q.Need() {
			out.Past = append(out.Past, n)
		}
	}
	return out, nil
}

// NeedFunds is Client.NeedFunds, as enough providers say.
func (q *Quorum) NeedFunds(ctx context.Context, who common.Address, wei *big.Int) error {
	enough, err := agree(ctx, q, "the ether of "+who.Hex(), func(ctx context.Context, c *Client) (bool, error) {
		have, err := c.Balance(ctx, who)
		return err == nil && have.Cmp(wei) >= 0, err
	}, func(enough bool) string { return fmt.Sprint(enough) })
	if err == nil && !enough {
		err = unfunded(q.Network, who, nil)
	}
	return err
}

// Fees is the offer in the middle of what enough providers make, of two the
// lower: never more than one of the honest would offer. What is too little is
// raised when blocks pass it by.
func (q *Quorum) Fees(ctx context.Context) (Fees, error) {
	offers := func(all []said[Fees]) (list []Fees) {
		for _, a := range all {
			if a.err == nil {
				list = append(list, a.value)
			}
		}
		slices.SortFunc(list, func(a, b Fees) int { return a.Max.Cmp(b.Max) })
		return list
	}
	all := patiently(ctx, q, func(ctx context.Context, c *Client) (Fees, error) { return c.Fees(ctx) }, func(all []said[Fees]) bool {
		list := offers(all)
		return len(list) == len(q.members) || list[len(list)-1].Max.Cmp(list[0].Bump().Max) <= 0
	})
	list := offers(all)
	if len(list) < q.Need() {
		return Fees{}, disagreement(q, "the fees", all)
	}
	return list[(len(list)-1)/2], nil
}

// ChannelStates is Client.ChannelStates, as enough providers read it.
func (q *Quorum) ChannelStates(ctx context.Context, ids ...common.Hash) ([]ChannelState, error) {
	return agree(ctx, q, "the channels", func(ctx context.Context, c *Client) ([]ChannelState, error) { return c.ChannelStates(ctx, ids...) },
		func(list []ChannelState) string { return fmt.Sprint(list) })
}

// Claimed is Client.Claimed, as enough providers read it.
func (q *Quorum) Claimed(ctx context.Context, receiver, token common.Address) (claimed, settled int64, err error) {
	got, err := agree(ctx, q, "what is claimed for "+receiver.Hex(), func(ctx context.Context, c *Client) (got [2]int64, err error) {
		got[0], got[1], err = c.Claimed(ctx, receiver, token)
		return got, err
	}, func(got [2]int64) string { return fmt.Sprint(got) })
	return got[0], got[1], err
}

// Foretell is Client.Foretell, as enough providers foretell it: whether the call
// would go through, with the most gas that any of them has seen it take.
func (q *Quorum) Foretell(ctx context.Context, from common.Address, call Call) (gas uint64, reverts string, err error) {
	type fate struct {
		gas     uint64
		reverts string
	}
	same, err := alike(ctx, q, "what a call would do", func(ctx context.Context, c *Client) (f fate, err error) {
		f.gas, f.reverts, err = c.Foretell(ctx, from, call)
		return f, err
	}, func(f fate) string { return fmt.Sprint(f.reverts != "") })
	for _, f := range same {
		gas, reverts = max(gas, f.gas), f.reverts
	}
	return gas, reverts, err
}

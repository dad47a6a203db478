package chain

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
)

// ProbeAll is Client.ProbeAll as enough providers foretell it, each transfer by
// itself: whether it would go through, and not in which words it would fail.
// What they do not agree on is an error of its own probe: one who lies, or whose
// head is another, holds up neither the others nor refuses anybody's payment.
func (q *Quorum) ProbeAll(ctx context.Context, from common.Address, ts []Transfer, gas uint64) ([]Probe, error) {
	question := func(ctx context.Context, c *Client) ([]Probe, error) {
		ps, err := c.ProbeAll(ctx, from, ts, gas)
		if err == nil && len(ps) != len(ts) {
			err = fmt.Errorf("%d probes of %d transfers", len(ps), len(ts))
		}
		return ps, err
	}
	all := patiently(ctx, q, question, func(all []said[[]Probe]) bool {
		for i := range ts {
			if _, ok := q.foretold(all, i); !ok {
				return false
			}
		}
		return true
	})
	answered := 0
	for _, a := range all {
		if a.err == nil {
			answered++
		}
	}
	if answered < q.Need() {
		return nil, disagreement(q, "what payments would do", all)
	}
	out := make([]Probe, len(ts))
	for i := range ts {
		p, ok := q.foretold(all, i)
		if !ok {
			p = Probe{Err: disagreement(q, "what the payment with nonce "+ts[i].Nonce.Hex()+" would do", all)}
		}
		out[i] = p
	}
	return out, nil
}

// foretold is what enough providers say of one transfer, with the most gas that
// any of them has seen it take.
func (q *Quorum) foretold(all []said[[]Probe], i int) (Probe, bool) {
	key := func(p Probe) string { return fmt.Sprint(p.Contract, p.Used, p.Rejection != nil, p.Err != nil) }
	votes := map[string][]Probe{}
	for _, a := range all {
		if a.err == nil {
			k := key(a.value[i])
			votes[k] = append(votes[k], a.value[i])
		}
	}
	for _, ps := range votes {
		if len(ps) >= q.Need() {
			p := ps[0]
			for _, other := range ps {
				p.Gas = max(p.Gas, other.Gas)
			}
			return p, true
		}
	}
	return Probe{}, false
}

// HasCode reports whether an account has code at the head, as enough providers
// say: one that delegates by EIP-7702 has.
func (q *Quorum) HasCode(ctx context.Context, who common.Address) (bool, error) {
	return agree(ctx, q, "the code of "+who.Hex(), func(ctx context.Context, c *Client) (bool, error) {
		code, err := c.Code(ctx, who)
		return len(code) > 0, err
	}, func(code bool) string { return fmt.Sprint(code) })
}

// IsValidSignature is Client.IsValidSignature, as enough providers answer it.
func (q *Quorum) IsValidSignature(ctx context.Context, who common.Address, digest common.Hash, signature []byte, gas uint64) (bool, error) {
	return agree(ctx, q, "a signature of "+who.Hex(), func(ctx context.Context, c *Client) (bool, error) {
		return c.IsValidSignature(ctx, who, digest, signature, gas)
	}, func(ok bool) string { return fmt.Sprint(ok) })
}

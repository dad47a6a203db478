package chain

import (
	"context"
	"errors"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

// Probe is everything that a payment's verification asks a node.
type Probe struct {
	Contract  bool       // the payer has code
	Used      bool       // the nonce was used or cancelled
	Rejection *Rejection // what Simulate says; nil if the transfer would go through
	Gas       uint64     // that the transfer took, as far as it is known
	Err       error      // of ProbeAll: the asset is no EIP-3009 token
}

// Probe asks for all of it in one round trip, and in a second one for the
// reason of a rejection. A token that does not revert on a used nonce is
// caught by its authorizationState.
func (c *Client) Probe(ctx context.Context, from common.Address, t Transfer, gas uint64) (Probe, error) {
	var code, state, out hexutil.Bytes
	calls := []rpc.BatchElem{
		{Method: "eth_getCode", Result: &code, Args: []any{t.Payer, "latest"}},
		{Method: "eth_call", Result: &state, Args: []any{callObject{To: &t.Asset, Gas: hexutil.Uint64(gas), Input: pack(selAuthorizationState, wordAddress(t.Payer), t.Nonce)}, "latest"}},
		{Method: "eth_call", Result: &out, Args: []any{callObject{From: &from, To: &t.Asset, Gas: hexutil.Uint64(gas), Input: t.Calldata()}, "latest"}},
	}
	if err := c.batch(ctx, calls); err != nil {
		return Probe{}, err
	}
	if calls[0].Error != nil {
		return Probe{}, calls[0].Error
	}
	p := Probe{Contract: len(code) > 0}
	switch {
	case calls[1].Error == nil && len(state) >= 32:
		p.Used = new(big.Int).SetBytes(state[:32]).Sign() != 0
	case calls[1].Error == nil || rejected(calls[1].Error) != nil:
		return Probe{}, noToken(c.Network(), t.Asset, "it has no authorizationState (EIP-3009)")
	default:
		return Probe{}, calls[1].Error
	}
	if calls[2].Error == nil {
		return p, nil
	}
	if p.Rejection = rejected(calls[2].Error); p.Rejection == nil {
		return Probe{}, calls[2].Error // the node's own trouble, not the token's
	}
	switch {
	case p.Used:
		p.Rejection.Reason = NonceUsed
	case p.Rejection.Reason == Reverted:
		c.diagnose(ctx, t, p.Rejection)
	}
	return p, nil
}

// rejected is what the EVM says in err; nil if err is of another kind.
func rejected(err error) *Rejection {
	var answered rpc.Error
	if !errors.As(err, &answered) {
		return nil
	}
	return reject(answered)
}

// selIsValidSignature is isValidSignature(bytes32,bytes) of ERC-1271, and its yes.
const selIsValidSignature = 0x1626ba7e

// IsValidSignature asks a contract whether it takes a signature (ERC-1271).
// Only the magic value, alone in one word, is a yes: a revert, a shorter
// answer, a longer one, or "true" is none.
func (c *Client) IsValidSignature(ctx context.Context, who common.Address, digest common.Hash, signature []byte, gas uint64) (bool, error) {
	data := padded(pack(selIsValidSignature, digest, wordInt(2*32), wordInt(int64(len(signature)))), signature)
	var out hexutil.Bytes
	err := c.Ask(ctx, &out, "eth_call", callObject{To: &who, Gas: hexutil.Uint64(gas), Input: data}, "latest")
	if err != nil {
		if rejected(err) != nil {
			return false, nil
		}
		return false, err
	}
	want := word{0x16, 0x26, 0xba, 0x7e}
	return len(out) == 32 && word(out) == want, nil
}

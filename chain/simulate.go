package chain

import (
	"context"
	"errors"
	"math/big"
	"strings"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

// Reason is why a transfer would not go through.
type Reason int

// The reasons of a Rejection.
const (
	Reverted  Reason = iota // for a reason of the token's own, such as the signature
	NonceUsed               // the authorization was used or cancelled
	Balance                 // the payer has too little
	OutOfGas                // it needs more than it was given
)

func (r Reason) String() string {
	return [...]string{"reverted", "nonce used", "balance", "out of gas"}[r]
}

// Rejection is what the chain holds against a transfer.
type Rejection struct {
	Reason  Reason
	Message string // the token's words, at most 200 bytes of them
	Data    []byte // what the token returned
}

// Simulate carries a transfer out at the head without a transaction, as sent
// by from, with at most gas. It is nil if the transfer went through. To learn
// the reason of a rejection it makes a second round trip.
func (c *Client) Simulate(ctx context.Context, from common.Address, t Transfer, gas uint64) (*Rejection, error) {
	var out hexutil.Bytes
	err := c.Ask(ctx, &out, "eth_call", callObject{From: &from, To: &t.Asset, Gas: hexutil.Uint64(gas), Input: t.Calldata()}, "latest")
	var answered rpc.Error
	if err == nil || !errors.As(err, &answered) {
		return nil, err
	}
	r := reject(answered)
	if r == nil {
		return nil, err // the node's own trouble, not the token's
	}
	if r.Reason == Reverted {
		c.diagnose(ctx, t, r)
	}
	return r, nil
}

// reject reads the error of a call; nil if it does not come from the EVM.
func reject(answered rpc.Error) *Rejection {
	said := strings.ToLower(answered.Error())
	r := &Rejection{Message: clip(answered.Error()), Data: revertData(answered)}
	switch {
	case strings.Contains(said, "out of gas") || strings.Contains(said, "outofgas") || strings.Contains(said, "gas required exceeds") ||
		strings.Contains(said, "intrinsic gas too low"):
		r.Reason = OutOfGas
	case answered.ErrorCode() == 3 || strings.Contains(said, "revert") || strings.Contains(said, "invalid opcode") || len(r.Data) > 0:
		if why, err := abi.UnpackRevert(r.Data); err == nil {
			r.Message = clip(why)
		}
	default:
		return nil
	}
	return r
}

func revertData(answered rpc.Error) []byte {
	var with rpc.DataError
	if !errors.As(answered, &with) {
		return nil
	}
	s, _ := with.ErrorData().(string)
	b, err := hexutil.Decode(s)
	if err != nil || len(b) > 4096 {
		return nil
	}
	return b
}

// clip keeps a stranger's words short and on one line.
func clip(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "")
	}
	return s
}

// diagnose asks for the two usual reasons. If the node does not answer the
// rejection stays without one.
func (c *Client) diagnose(ctx context.Context, t Transfer, r *Rejection) {
	var state, balance hexutil.Bytes
	calls := []rpc.BatchElem{
		{Method: "eth_call", Result: &state, Args: []any{callObject{To: &t.Asset, Input: pack(selAuthorizationState, wordAddress(t.Payer), t.Nonce)}, "latest"}},
		{Method: "eth_call", Result: &balance, Args: []any{callObject{To: &t.Asset, Input: pack(selBalanceOf, wordAddress(t.Payer))}, "latest"}},
	}
	if c.batch(ctx, calls) != nil {
		return
	}
	switch {
	case len(state) >= 32 && new(big.Int).SetBytes(state[:32]).Sign() != 0:
		r.Reason = NonceUsed
	case len(balance) >= 32 && new(big.Int).SetBytes(balance[:32]).Cmp(big.NewInt(t.Amount)) < 0:
		r.Reason = Balance
	}
}

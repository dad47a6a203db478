package chain

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

// The contracts of x402's batch settlement, at the same address on every chain
// that has them.
const (
	ChannelsAddress  = "0x4020074e9df2ce1dee5a9c1b5c3f541d02a10003"
	CollectorAddress = "0x4020806089470a89826cb9fb1f4059150b550004" // of deposits by EIP-3009
)

// Function selectors of the channels. The tests hold them against the ABI of
// the compiled contract. A channel's state is read, and not put together from
// events: the specification leaves the names of most of those open.
const (
	selDeposit            = 0x140f1e75 // deposit(ChannelConfig,uint128,address,bytes)
	selClaim              = 0xe43ce1f2 // claimWithSignature(VoucherClaim[],bytes)
	selSettle             = 0x9db32a8f // settle(address,address)
	selRefund             = 0xb77433e9 // refundWithSignature(ChannelConfig,uint128,uint256,bytes)
	selInitiateWithdraw   = 0xcf5cf3dc // initiateWithdraw(ChannelConfig,uint128)
	selFinalizeWithdraw   = 0xe88377b1 // finalizeWithdraw(ChannelConfig)
	selChannels           = 0x7a7ebd7b // channels(bytes32)
	selPendingWithdrawals = 0xb7f06ebe // pendingWithdrawals(bytes32)
	selRefundNonce        = 0xf0dc792e // refundNonce(bytes32)
	selReceivers          = 0x21ff6389 // receivers(address,address)
	selChannelsMulticall  = 0xac9650d8 // multicall(bytes[])
)

// ChannelConfig is what a channel is, in the contract's order.
type ChannelConfig struct {
	Payer, PayerAuthorizer       common.Address
	Receiver, ReceiverAuthorizer common.Address
	Token                        common.Address
	WithdrawDelay                uint64 // seconds
	Salt                         common.Hash
}

func (c *ChannelConfig) words() []word {
	return []word{wordAddress(c.Payer), wordAddress(c.PayerAuthorizer), wordAddress(c.Receiver), wordAddress(c.ReceiverAuthorizer),
		wordAddress(c.Token), wordInt(int64(c.WithdrawDelay)), c.Salt}
}

// ChannelDeposit is an EIP-3009 authorization that puts Amount into a channel.
type ChannelDeposit struct {
	Config      ChannelConfig
	Amount      int64       // atomic units
	ValidAfter  common.Hash // uint256, as the payer signed it
	ValidBefore common.Hash
	Salt        common.Hash
	Signature   []byte
}

// Calldata is the call of the channels that carries the deposit out.
func (d ChannelDeposit) Calldata() []byte {
	data := []byte{}
	for _, w := range []word{d.ValidAfter, d.ValidBefore, d.Salt, wordInt(4 * 32), wordInt(int64(len(d.Signature)))} {
		data = append(data, w[:]...)
	}
	data = padded(data, d.Signature)
	args := append(d.Config.words(), wordInt(d.Amount), wordAddress(common.HexToAddress(CollectorAddress)), wordInt(10*32), wordInt(int64(len(data))))
	return padded(pack(selDeposit, args...), data)
}

// ChannelClaim brings a channel's total up to Total, by a voucher for Max.
type ChannelClaim struct {
	Config    ChannelConfig
	Max       int64
	Total     int64
	Signature []byte // the voucher's
}

// ClaimCalldata is the call that carries claims of many channels out, with the
// signature of their common receiverAuthorizer.
func ClaimCalldata(claims []ChannelClaim, authorization []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, selClaim)
	put := func(w word) { out = append(out, w[:]...) }
	size := 32 * (1 + len(claims)) // the array: its length and offsets
	for i := range claims {
		size += claimWords*32 + (len(claims[i].Signature)+31)/32*32
	}
	put(wordInt(2 * 32))
	put(wordInt(int64(2*32 + size)))
	put(wordInt(int64(len(claims))))
	at := 32 * len(claims) // offsets are counted from the first offset on
	for i := range claims {
		put(wordInt(int64(at)))
		at += claimWords*32 + (len(claims[i].Signature)+31)/32*32
	}
	for i := range claims {
		c := &claims[i]
		for _, w := range c.Config.words() {
			put(w)
		}
		put(wordInt(c.Max))
		put(wordInt(10 * 32)) // of the signature, from the claim's start
		put(wordInt(c.Total))
		put(wordInt(int64(len(c.Signature))))
		out = padded(out, c.Signature)
	}
	put(wordInt(int64(len(authorization))))
	return padded(out, authorization)
}

// claimWords is a claim without its signature: voucher, offset, total, length.
const claimWords = 8 + 1 + 1 + 1

// SettleCalldata is the call that sends a receiver what was claimed for it.
func SettleCalldata(receiver, token common.Address) []byte {
	return pack(selSettle, wordAddress(receiver), wordAddress(token))
}

// RefundCalldata is the call that gives up to amount of a channel back, by the
// receiverAuthorizer's signature for the channel's refund nonce.
func RefundCalldata(c ChannelConfig, amount int64, nonce uint64, authorization []byte) []byte {
	args := append(c.words(), wordInt(amount), wordInt(int64(nonce)), wordInt(10*32), wordInt(int64(len(authorization))))
	return padded(pack(selRefund, args...), authorization)
}

// WithdrawCalldata is the payer's call that starts to take amount out of a
// channel, and FinalizeCalldata the one that does it when the delay is over.
func WithdrawCalldata(c ChannelConfig, amount int64) []byte {
	return pack(selInitiateWithdraw, append(c.words(), wordInt(amount))...)
}

// FinalizeCalldata ends a withdrawal that WithdrawCalldata began.
func FinalizeCalldata(c ChannelConfig) []byte { return pack(selFinalizeWithdraw, c.words()...) }

// ChannelsMulticall is one call of the channels that makes all of calls, or none.
func ChannelsMulticall(calls ...[]byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, selChannelsMulticall)
	put := func(n int) { w := wordInt(int64(n)); out = append(out, w[:]...) }
	put(32)
	put(len(calls))
	at := 32 * len(calls)
	for _, c := range calls {
		put(at)
		at += 32 + (len(c)+31)/32*32
	}
	for _, c := range calls {
		put(len(c))
		out = padded(out, c)
	}
	return out
}

// ChannelState is what the chain says of a channel. Amounts are atomic units;
// those that do not fit into 63 bits are an error.
type ChannelState struct {
	Balance      int64 // deposited, less what was refunded and withdrawn
	TotalClaimed int64
	Withdrawal   int64 // amount of a withdrawal that has begun; 0: none
	WithdrawAt   int64 // unix seconds at which it began; 0: none has
	RefundNonce  uint64
}

// ChannelStates reads channels in one round trip, all at the same block unless
// the node moves on between; a channel that nobody funded is zero.
func (c *Client) ChannelStates(ctx context.Context, ids ...common.Hash) ([]ChannelState, error) {
	selectors := []uint32{selChannels, selPendingWithdrawals, selRefundNonce}
	words := []int{2, 2, 1}
	to := common.HexToAddress(ChannelsAddress)
	calls := make([]rpc.BatchElem, 0, 3*len(ids))
	for _, id := range ids {
		for _, sel := range selectors {
			calls = append(calls, rpc.BatchElem{Method: "eth_call", Result: new(hexutil.Bytes),
				Args: []any{map[string]any{"to": to, "data": hexutil.Bytes(pack(sel, id))}, "latest"}})
		}
	}
	if err := c.batch(ctx, calls); err != nil {
		return nil, err
	}
	out := make([]ChannelState, len(ids))
	for i := range ids {
		s := &out[i]
		var nonce int64
		fields := [][]*int64{{&s.Balance, &s.TotalClaimed}, {&s.Withdrawal, &s.WithdrawAt}, {&nonce}}
		for j := range selectors {
			call := calls[3*i+j]
			answer := *call.Result.(*hexutil.Bytes)
			if call.Error != nil {
				return nil, c.explain(ctx, "eth_call", call.Error)
			}
			if len(answer) < 32*words[j] {
				return nil, fmt.Errorf("the node at %s answers %d bytes for the channel %s: there are no channels on this chain", c.url, len(answer), ids[i])
			}
			for k, to := range fields[j] {
				if *to = amount(answer[32*k : 32*k+32]); *to < 0 {
					return nil, fmt.Errorf("the channel %s holds more than 63 bits", ids[i])
				}
			}
		}
		s.RefundNonce = uint64(nonce)
	}
	return out, nil
}

// Claimed is what was claimed for a receiver in a token, and what of it was
// sent to it, ever.
func (c *Client) Claimed(ctx context.Context, receiver, token common.Address) (claimed, settled int64, err error) {
	answer, err := c.View(ctx, common.HexToAddress(ChannelsAddress), pack(selReceivers, wordAddress(receiver), wordAddress(token)))
	if err != nil {
		return 0, 0, err
	}
	if len(answer) < 64 {
		return 0, 0, fmt.Errorf("the node at %s knows no channels", c.url)
	}
	claimed, settled = amount(answer[:32]), amount(answer[32:64])
	if claimed < 0 || settled < 0 {
		return 0, 0, fmt.Errorf("%s has claimed more than 63 bits", receiver)
	}
	return claimed, settled, nil
}

// Foretell is the gas that a call needs now, or the words with which the chain
// would revert it.
func (c *Client) Foretell(ctx context.Context, from common.Address, call Call) (gas uint64, reverts string, err error) {
	gas, err = c.EstimateGas(ctx, from, call)
	if answered, ok := errors.AsType[rpc.Error](err); ok {
		if r := reject(answered); r != nil {
			return 0, r.Message, nil
		}
	}
	return gas, "", err
}

package onchain

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// ChannelStates reads channels at the head, as enough providers say.
func (n *Node) ChannelStates(ctx context.Context, ids ...common.Hash) ([]facilitator.ChannelState, error) {
	list, err := n.quorum().ChannelStates(ctx, ids...)
	out := make([]facilitator.ChannelState, len(list))
	for i := range list {
		out[i] = facilitator.ChannelState(list[i])
	}
	return out, err
}

// Claimed is what was claimed for a receiver, and what of it was sent.
func (n *Node) Claimed(ctx context.Context, receiver, token common.Address) (claimed, settled int64, err error) {
	return n.quorum().Claimed(ctx, receiver, token)
}

// Foretell says what a transaction for p would cost, or how it would fail. A
// refund's claims are carried out with it.
func (n *Node) Foretell(ctx context.Context, p *x402.ChannelPayload) (uint64, string, error) {
	return n.quorum().Foretell(ctx, n.Key.Address(), channelCall(p))
}

// SignChannel makes the transaction that does what p asks for.
func (n *Node) SignChannel(ctx context.Context, nonce int64, gas uint64, p *x402.ChannelPayload) (ledger.Tx, string, error) {
	fees, err := n.quorum().Fees(ctx)
	if err != nil {
		return ledger.Tx{}, "", err
	}
	call := channelCall(p)
	call.Gas = gas
	tx, err := chain.Sign(n.Key, n.Client.ChainID(), uint64(nonce), fees, call)
	if err != nil {
		return ledger.Tx{}, "", err
	}
	sum := sha256.Sum256(call.Data)
	return attempt(tx, 1, fees), hex.EncodeToString(sum[:]), nil
}

// channelCall is the call of the channels that p asks for.
func channelCall(p *x402.ChannelPayload) chain.Call {
	to := common.HexToAddress(chain.ChannelsAddress)
	call := chain.Call{To: &to}
	config := chain.ChannelConfig(p.Config)
	switch p.Kind {
	case x402.ChannelDeposit:
		d := p.Deposit
		call.Data = chain.ChannelDeposit{Config: config, Amount: d.Amount, ValidAfter: common.Hash(d.ValidAfter), ValidBefore: common.Hash(d.ValidBefore),
			Salt: d.Salt, Signature: d.Signature}.Calldata()
	case x402.ChannelClaim:
		call.Data = claims(p)
	case x402.ChannelSettle:
		call.Data = chain.SettleCalldata(p.Receiver, p.Token)
	case x402.ChannelRefund:
		call.Data = chain.RefundCalldata(config, p.Amount, p.RefundNonce, p.RefundAuthorization)
		if len(p.Claims) > 0 {
			call.Data = chain.ChannelsMulticall(claims(p), call.Data)
		}
	}
	return call
}

func claims(p *x402.ChannelPayload) []byte {
	list := make([]chain.ChannelClaim, len(p.Claims))
	for i := range p.Claims {
		c := &p.Claims[i]
		list[i] = chain.ChannelClaim{Config: chain.ChannelConfig(c.Config), Max: c.Voucher.MaxClaimable, Total: c.Total, Signature: c.Voucher.Signature}
	}
	return chain.ClaimCalldata(list, p.ClaimAuthorization)
}

var _ facilitator.Channels = (*Node)(nil)

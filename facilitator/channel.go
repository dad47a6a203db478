package facilitator

import (
	"context"
	"fmt"
	"strconv"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// Authorizer is the key that answers for claims and refunds of channels that
// name it: a facilitator's own, where sellers leave that to it.
type Authorizer interface {
	Address() common.Address
	// SignHash signs a digest: r, s and v, which is 27 or 28.
	SignHash(digest []byte) ([]byte, error)
}

// channel is a payment by batch-settlement that has been read: its channel is
// what its id says, and for what the requirements ask.
type channel struct {
	*x402.ChannelPayload
	d     x402.Domain  // of channels on this chain
	token x402.Domain  // of the asset
	hold  *ledger.Hold // in which a refund is signed; nil: whoever asks answers for what is charged
}

// readChannel checks everything about p that needs no chain, in the SDK's
// order. Its errors are refusals.
func (f *Facilitator) readChannel(p *x402.PaymentPayload, r *x402.Requirements) (*channel, error) {
	if r.Scheme != x402.SchemeChannel || p.Accepted.Scheme != x402.SchemeChannel {
		return nil, refuse(x402.ReasonChannelScheme, "the scheme is not batch-settlement")
	}
	if r.Network != f.Network || p.Accepted.Network != f.Network {
		return nil, refuse(x402.ReasonChannelNetwork, "only payments on "+f.Network+" are settled here")
	}
	id, _ := x402.ChainID(f.Network)
	c := &channel{d: x402.ChannelDomain(id)}
	var err error
	if c.ChannelPayload, err = x402.ParseChannel(p.Payload, c.d); err != nil {
		return c, err
	}
	switch c.Kind {
	case x402.ChannelClaim:
		for i := range c.Claims {
			if err := f.allowed(c.Claims[i].Config.Token, c.Claims[i].Config.Receiver); err != nil {
				return c, err
			}
		}
		return c, nil
	case x402.ChannelSettle:
		return c, f.allowed(c.Token, c.Receiver)
	}
	if err := c.Matches(r); err != nil {
		return c, err
	}
	if err := f.allowed(c.Config.Token, c.Config.Receiver); err != nil {
		return c, err
	}
	asset := f.asset(x402.Lower(c.Config.Token))
	c.token = x402.NewDomain(asset.Name, asset.Version, id, c.Config.Token)
	return c, nil
}

// allowed refuses tokens and payees that are not settled here.
func (f *Facilitator) allowed(token, receiver common.Address) error {
	if f.asset(x402.Lower(token)) == nil {
		return refuse(ReasonAsset, "the asset is not one that is settled here")
	}
	if to := x402.Lower(receiver); f.AllowPayTo != nil && !f.AllowPayTo(to) {
		return refuse(ReasonPayTo, "payments to "+to+" are not settled here")
	}
	return nil
}

// VerifyChannel reports whether a payment by batch-settlement would be good
// now, with the channel as the chain has it in Extra. It is free of effects.
func (f *Facilitator) VerifyChannel(ctx context.Context, p *x402.PaymentPayload, r x402.Requirements) (x402.VerifyResponse, error) {
	c, err := f.readChannel(p, &r)
	var state ChannelState
	if err == nil {
		state, err = f.judgeChannel(ctx, c)
	}
	if e, ok := refusal(err); ok {
		v := x402.VerifyResponse{InvalidReason: e.Code, InvalidMessage: e.Message}
		if c != nil && c.ChannelPayload != nil && c.Config.Payer != (common.Address{}) {
			v.Payer = c.Config.Payer.Hex()
		}
		return v, nil
	}
	if err != nil {
		return x402.VerifyResponse{}, err
	}
	return x402.VerifyResponse{IsValid: true, Payer: c.Config.Payer.Hex(), Extra: state.object(c.Voucher.Channel)}, nil
}

// object is a channel's state as the protocol shows it.
func (s ChannelState) object(id common.Hash) x402.Object {
	text := func(n int64) []byte { return strconv.AppendQuote(nil, strconv.FormatInt(n, 10)) }
	return x402.Object{
		{Name: "channelId", Value: strconv.AppendQuote(nil, id.Hex())},
		{Name: "balance", Value: text(s.Balance)},
		{Name: "totalClaimed", Value: text(s.TotalClaimed)},
		{Name: "withdrawRequestedAt", Value: strconv.AppendInt(nil, s.WithdrawAt, 10)},
		{Name: "refundNonce", Value: text(int64(s.RefundNonce))},
	}
}

// judgeChannel checks a buyer's payload against the chain: the signatures, and
// that the channel holds what the voucher allows.
func (f *Facilitator) judgeChannel(ctx context.Context, c *channel) (ChannelState, error) {
	switch c.Kind {
	case x402.ChannelDeposit, x402.ChannelVoucher, x402.ChannelRefund:
	default:
		return ChannelState{}, refuse(x402.ReasonChannelPayload, "only deposits, vouchers and refunds are verified")
	}
	if err := f.voucherSigned(ctx, c); err != nil {
		return ChannelState{}, err
	}
	node := f.channels()
	if node == nil {
		return ChannelState{}, down("nobody knows channels here", nil)
	}
	states, err := node.ChannelStates(ctx, c.Voucher.Channel)
	if err != nil {
		return ChannelState{}, down("the chain cannot be asked just now", err)
	}
	s := states[0]
	room := s.Balance
	if c.Kind == x402.ChannelDeposit {
		if err := f.depositSigned(ctx, c); err != nil {
			return s, err
		}
		room += c.Deposit.Amount
	}
	below := c.Voucher.MaxClaimable <= s.TotalClaimed
	if c.Kind == x402.ChannelRefund {
		below = c.Voucher.MaxClaimable < s.TotalClaimed
	}
	switch {
	case room == 0:
		return s, refuse(x402.ReasonChannelNotFound, "nothing was deposited in the channel")
	case c.Voucher.MaxClaimable > room || room < 0:
		return s, refuse(x402.ReasonCumulativeBalance, fmt.Sprintf("the voucher allows %d, the channel holds %d", c.Voucher.MaxClaimable, room))
	case below:
		return s, refuse(x402.ReasonCumulativeBelow, fmt.Sprintf("the voucher allows %d, of which %d are claimed", c.Voucher.MaxClaimable, s.TotalClaimed))
	case c.Kind != x402.ChannelDeposit:
		return s, nil
	}
	_, refused, err := node.Foretell(ctx, c.ChannelPayload)
	switch {
	case err != nil:
		return s, down("the chain cannot be asked just now", err)
	case refused != "":
		return s, refuse(x402.ReasonDepositSimulation, "the deposit would fail: "+refused)
	}
	return s, nil
}

// voucherSigned applies the contract's rule: a payerAuthorizer's key signs, and
// else the payer: by its key if it has no code, and if it has, also where it has
// both (EIP-7702), by what the code says and never by the key. What its code
// will say when the voucher is claimed nobody knows, which is why clawr's own
// servers want a key to be named.
func (f *Facilitator) voucherSigned(ctx context.Context, c *channel) error {
	no := refuse(x402.ReasonVoucherSignature, "the voucher is not signed by the channel's payer")
	signed := c.Voucher.SignedBy(c.Config.VoucherSigner(), c.d)
	switch {
	case c.Config.PayerAuthorizer != (common.Address{}) && signed:
		return nil
	case c.Config.PayerAuthorizer != (common.Address{}):
		return no
	case signed:
		switch code, err := f.Chain.HasCode(ctx, c.Config.Payer); {
		case err != nil:
			return down("the chain cannot be asked just now", err)
		case !code:
			return nil
		}
	}
	ok, err := f.Chain.ValidSignature(ctx, c.Config.Payer, c.Voucher.Digest(c.d), c.Voucher.Signature, f.gas(true))
	if err != nil {
		return down("the chain cannot be asked just now", err)
	}
	if !ok {
		return no
	}
	return nil
}

// ChannelState is what the chain says of a channel now.
func (f *Facilitator) ChannelState(ctx context.Context, id common.Hash) (ChannelState, error) {
	node := f.channels()
	if node == nil {
		return ChannelState{}, down("nobody knows channels here", nil)
	}
	states, err := node.ChannelStates(ctx, id)
	if err != nil {
		return ChannelState{}, down("the chain cannot be asked just now", err)
	}
	return states[0], nil
}

// ReadChannel is what the chain says of a channel now, as a book keeps it.
func (f *Facilitator) ReadChannel(ctx context.Context, id common.Hash) (ledger.Channel, error) {
	asked := f.now()
	s, err := f.ChannelState(ctx, id)
	return ledger.Channel{ID: id.Hex(), Balance: s.Balance, Claimed: s.TotalClaimed, Withdrawal: s.Withdrawal, WithdrawAt: s.WithdrawAt,
		RefundNonce: s.RefundNonce, Synced: asked.UTC()}, err
}

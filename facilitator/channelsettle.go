package facilitator

import (
	"context"
	"strconv"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// SettleChannel does on the chain what a payload of batch-settlement asks for:
// deposit, claim, settle or refund. Asking twice is asking once: a deposit's
// authorization is used once, a claim that is claimed and a settle of nothing
// change nothing, and a refund is signed for one nonce. What is not known is
// answered with settlement_pending. An error says that nothing was submitted.
func (f *Facilitator) SettleChannel(ctx context.Context, p *x402.PaymentPayload, r x402.Requirements) (x402.SettleResponse, error) {
	return f.RefundChannel(ctx, p, r, nil)
}

// RefundChannel is SettleChannel for a server whose book is this one's: a refund
// is signed only while hold is there, or else what it gives back may be sold
// already. Once it is signed, hold is of another epoch.
func (f *Facilitator) RefundChannel(ctx context.Context, p *x402.PaymentPayload, r x402.Requirements, hold *ledger.Hold) (x402.SettleResponse, error) {
	c, err := f.readChannel(p, &r)
	if err == nil {
		switch c.Kind {
		case x402.ChannelDeposit:
			return f.deposit(ctx, c)
		case x402.ChannelClaim:
			return f.claim(ctx, c)
		case x402.ChannelSettle:
			return f.sweep(ctx, c)
		case x402.ChannelRefund:
			c.hold = hold
			return f.refund(ctx, c)
		}
		err = refuse(x402.ReasonChannelPayload, "a voucher is not settled: claim it")
	}
	if c != nil && c.ChannelPayload != nil && c.Kind == x402.ChannelDeposit { // it may have been allowed when it came first
		switch end, asked := f.Deposited(ctx, c.ChannelPayload); {
		case asked != nil:
			return x402.SettleResponse{}, asked
		case end != nil:
			return *end, nil
		}
	}
	return f.channelRefused(c, err)
}

// channelRefused answers for a refusal; any other error is handed on.
func (f *Facilitator) channelRefused(c *channel, err error) (x402.SettleResponse, error) {
	e, ok := refusal(err)
	if !ok {
		return x402.SettleResponse{}, err
	}
	out := x402.SettleResponse{ErrorReason: e.Code, ErrorMessage: e.Message, Network: f.Network}
	if c != nil && c.ChannelPayload != nil {
		out.Payer = c.payer()
	}
	return out, nil
}

func (c *channel) payer() string {
	switch c.Kind {
	case x402.ChannelDeposit, x402.ChannelRefund, x402.ChannelVoucher:
		return c.Config.Payer.Hex()
	}
	return ""
}

// carried answers for a transaction that was made, or refused.
func (f *Facilitator) carried(c *channel, receipt *Receipt, tx string, err error, foreseen, failed clawr.Code) (out x402.SettleResponse, done bool, _ error) {
	if e, ok := refusedBy(err, foreseen); ok {
		out, err = f.channelRefused(c, e)
		return out, true, err
	}
	if err != nil {
		return out, true, err
	}
	out = x402.SettleResponse{Payer: c.payer(), Transaction: tx, Network: f.Network}
	switch {
	case receipt == nil:
		out.ErrorReason, out.ErrorMessage = x402.ReasonPending, "the transaction is in no block yet"
		return out, true, nil
	case !receipt.OK:
		out.ErrorReason, out.ErrorMessage = failed, "the transaction was reverted"
		return out, true, nil
	}
	out.Success = true
	return out, false, nil
}

// withState adds the channel as it is afterwards.
func (f *Facilitator) withState(ctx context.Context, c *channel, out x402.SettleResponse) x402.SettleResponse {
	if s, err := f.ChannelState(ctx, c.Voucher.Channel); err == nil {
		out.Extra = x402.Object{{Name: "channelState", Value: s.object(c.Voucher.Channel).JSON()}}
	}
	return out
}

// authorize signs what a payload lacks, if our own key is the one that its
// channels name.
func (f *Facilitator) authorize(c *channel) error {
	sign := func(digest [32]byte) ([]byte, error) { return f.Authorizer.SignHash(digest[:]) }
	var err error
	for _, claim := range c.Claims {
		if claim.Config.ReceiverAuthorizer != c.Claims[0].Config.ReceiverAuthorizer {
			return refuse(x402.ReasonAuthorizerAddress, "the claims have different receiverAuthorizers")
		}
	}
	if len(c.Claims) > 0 && c.ClaimAuthorization == nil {
		if f.Authorizer == nil || f.Authorizer.Address() != c.Claims[0].Config.ReceiverAuthorizer {
			return refuse(x402.ReasonAuthorizerMissing, "the claims are not signed, and their receiverAuthorizer is not this facilitator's")
		}
		if c.ClaimAuthorization, err = sign(x402.ClaimDigest(c.d, c.Claims)); err != nil {
			return err
		}
	}
	if c.Kind == x402.ChannelRefund && c.RefundAuthorization == nil {
		if f.Authorizer == nil || f.Authorizer.Address() != c.Config.ReceiverAuthorizer {
			return refuse(x402.ReasonAuthorizerMissing, "the refund is not signed, and its receiverAuthorizer is not this facilitator's")
		}
		if c.RefundAuthorization, err = sign(x402.RefundDigest(c.d, c.Voucher.Channel, c.RefundNonce, c.Amount)); err != nil {
			return err
		}
	}
	return nil
}

func (f *Facilitator) claim(ctx context.Context, c *channel) (x402.SettleResponse, error) {
	if err := f.authorize(c); err != nil {
		return f.channelRefused(c, err)
	}
	receipt, tx, err := f.call(ctx, c)
	out, _, err := f.carried(c, receipt, tx, err, x402.ReasonClaimSimulation, x402.ReasonClaimTransaction)
	return out, err
}

// sweep sends a receiver what was claimed for it.
func (f *Facilitator) sweep(ctx context.Context, c *channel) (x402.SettleResponse, error) {
	node := f.channels()
	if node == nil {
		return x402.SettleResponse{}, down("nobody knows channels here", nil)
	}
	claimed, settled, err := node.Claimed(ctx, c.Receiver, c.Token)
	switch {
	case err != nil:
		return x402.SettleResponse{}, down("the chain cannot be asked just now", err)
	case claimed == settled:
		return f.channelRefused(c, refuse(x402.ReasonNothingToSettle, "nothing is claimed that was not sent"))
	}
	receipt, tx, err := f.call(ctx, c)
	out, done, err := f.carried(c, receipt, tx, err, x402.ReasonChannelSettle, x402.ReasonChannelSettle)
	if done || err != nil {
		return out, err
	}
	// What was claimed meanwhile went with it.
	_, after, err := node.Claimed(ctx, c.Receiver, c.Token)
	if err != nil {
		after = claimed
	}
	out.Amount = strconv.FormatInt(after-settled, 10)
	return out, nil
}

func (f *Facilitator) refund(ctx context.Context, c *channel) (x402.SettleResponse, error) {
	if !c.Completed {
		return f.channelRefused(c, refuse(x402.ReasonRefundPayload, "the refund has no amount, refundNonce and claims: its server adds them"))
	}
	for i := range c.Claims {
		if c.Claims[i].Voucher.Channel != c.Voucher.Channel {
			return f.channelRefused(c, refuse(x402.ReasonRefundPayload, "the refund claims from another channel"))
		}
	}
	before, err := f.ChannelState(ctx, c.Voucher.Channel)
	if err != nil {
		return x402.SettleResponse{}, err
	}
	if err := f.authorize(c); err != nil {
		return f.channelRefused(c, err)
	}
	receipt, tx, err := f.call(ctx, c)
	out, done, err := f.carried(c, receipt, tx, err, x402.ReasonRefundSimulation, x402.ReasonRefundTransaction)
	if done || err != nil {
		return out, err
	}
	given := c.Amount
	after, err := f.ChannelState(ctx, c.Voucher.Channel)
	if err == nil && after.Balance <= before.Balance {
		given = min(given, before.Balance-after.Balance)
	}
	out.Amount = strconv.FormatInt(given, 10)
	return f.withState(ctx, c, out), nil
}

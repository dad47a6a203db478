package facilitator

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// deposit makes a deposit, or finds out what became of it. Once it was signed
// for, by whatever process, its authorization is public, and may be carried out
// by anybody while it lasts: from then on it is refused by proof alone.
func (f *Facilitator) deposit(ctx context.Context, c *channel) (x402.SettleResponse, error) {
	unlock, err := f.keys.lock(ctx, c.key(f.Network))
	if err != nil {
		return f.depositPending(c, "", "the deposit is being made"), nil
	}
	defer unlock()
	opened, err := f.Book.Settlement(ctx, c.key(f.Network))
	if err != nil {
		return x402.SettleResponse{}, down("the book does not answer", err)
	}
	found, err := f.deposited(ctx, c, opened)
	switch {
	case err != nil && opened != nil:
		return f.depositPending(c, "", "the chain cannot be asked just now"), nil
	case err != nil:
		return x402.SettleResponse{}, down("the chain cannot be asked just now", err)
	case found.Use == Paid:
		return f.withState(ctx, c, f.depositMade(c, found.Tx)), nil
	case (found.Use == Elsewhere || found.Use == Cancelled) && opened == nil:
		return f.channelRefused(c, refuse(x402.ReasonDepositTransaction, "the deposit's authorization was used for something else, or cancelled"))
	}
	out, err := f.makeDeposit(ctx, c, opened == nil)
	if err == nil && out.Success {
		out.Amount = strconv.FormatInt(c.Deposit.Amount, 10)
		return f.withState(ctx, c, out), nil
	}
	if err == nil && out.ErrorReason == x402.ReasonPending {
		return out, nil
	}
	// It may have been made meanwhile, by a transaction of an earlier process or
	// of a stranger: then that is why it is refused.
	switch end, asked := f.Deposited(ctx, c.ChannelPayload); {
	case asked != nil:
		return f.depositPending(c, out.Transaction, "the chain cannot be asked just now"), nil
	case end != nil && end.Success:
		return f.withState(ctx, c, *end), nil
	case end != nil:
		return *end, nil
	case err == nil && opened == nil:
		if found, asked := f.deposited(ctx, c, nil); asked == nil && found.Use == Paid {
			return f.withState(ctx, c, f.depositMade(c, found.Tx)), nil
		} else if asked != nil {
			return x402.SettleResponse{}, down("the chain cannot be asked just now", asked)
		}
	}
	return out, err
}

// makeDeposit makes a deposit that was not made when it was last looked for.
// The first signature for it is remembered: that it was ever given is what
// Deposited goes by.
func (f *Facilitator) makeDeposit(ctx context.Context, c *channel, first bool) (x402.SettleResponse, error) {
	// Some nodes judge by what waits for a block, too.
	fl, err := f.underWay(ctx, c.ChannelPayload)
	if err != nil {
		return x402.SettleResponse{}, down("the book does not answer", err)
	}
	var receipt *Receipt
	var tx string
	if fl != nil {
		receipt, tx, err = f.through(ctx, fl)
	} else {
		if _, err := f.judgeChannel(ctx, c); err != nil {
			return f.channelRefused(c, err)
		}
		var note []item
		if first {
			note = []item{f.depositNote(c)}
		}
		receipt, tx, err = f.call(ctx, c, note...)
	}
	out, _, err := f.carried(c, receipt, tx, err, x402.ReasonDepositSimulation, x402.ReasonDepositTransaction)
	return out, err
}

// depositNote is the row by which the book remembers that a deposit was signed
// for. No batch carries it: what became of it the channel says.
func (f *Facilitator) depositNote(c *channel) item {
	t := c.transfer()
	return item{opened: true, apart: true, Settlement: ledger.Settlement{ID: laterID("stl_", f.now()), Key: c.key(f.Network), PayTo: x402.Lower(t.PayTo),
		Amount: t.Amount, ValidBefore: t.ValidBefore, Payload: c.ChannelPayload.JSON(), RequestedBy: "self", Created: f.now()}}
}

// Deposited is how a deposit stands that was signed for, by whatever process:
// made, or settlement_pending while it may be made yet. nil: it was never signed
// for, or there is proof that it was not made and never will be. It submits
// nothing. An error says that the book could not be asked.
func (f *Facilitator) Deposited(ctx context.Context, p *x402.ChannelPayload) (*x402.SettleResponse, error) {
	c := &channel{ChannelPayload: p}
	opened, err := f.Book.Settlement(ctx, c.key(f.Network))
	if err != nil {
		return nil, down("the book does not answer", err)
	}
	if opened == nil {
		return nil, nil
	}
	out := f.depositPending(c, "", "the deposit may be made yet")
	v, err := look(ctx, f.Chain, c.transfer(), opened.Created)
	switch {
	case err != nil:
		f.log().WarnContext(ctx, "a deposit's end is not known", "payer", c.Config.Payer, "channel", c.Voucher.Channel, "err", err)
	case v.use == Paid:
		out = f.depositMade(c, v.Tx)
	case v.proof != "":
		return nil, nil
	}
	return &out, nil
}

func (f *Facilitator) depositMade(c *channel, tx string) x402.SettleResponse {
	return x402.SettleResponse{Success: true, Payer: c.payer(), Transaction: tx, Network: f.Network, Amount: strconv.FormatInt(c.Deposit.Amount, 10)}
}

func (f *Facilitator) depositPending(c *channel, tx, why string) x402.SettleResponse {
	return x402.SettleResponse{ErrorReason: x402.ReasonPending, ErrorMessage: why, Payer: c.payer(), Transaction: tx, Network: f.Network}
}

// deposited looks for a deposit that was made already, by whomever: its
// authorization is used, and moved the money to the collector. opened is its
// row, if it has one.
func (f *Facilitator) deposited(ctx context.Context, c *channel, opened *ledger.Settlement) (Finding, error) {
	t := c.transfer()
	used, err := f.Chain.Used(ctx, t, nil)
	if err != nil || !used {
		return Finding{}, err
	}
	since := f.now().Add(-depositAge)
	if opened != nil && opened.Created.Before(since) {
		since = opened.Created.Add(-time.Minute)
	}
	return f.Chain.Find(ctx, t, since)
}

// depositAge is how far back a deposit is looked for: a signature lasts an hour.
const depositAge = 2 * time.Hour

// depositSigned checks window and signature of a deposit.
func (f *Facilitator) depositSigned(ctx context.Context, c *channel) error {
	now, err := f.clock.fresh(ctx, f.Chain, f.now())
	if err != nil {
		return down("the chain cannot be asked just now", err)
	}
	slack := int64(x402.MinSlack / time.Second)
	if until, _ := c.Deposit.ValidBefore.Int64(); until < now.Unix()+slack {
		return refuse(x402.ReasonDepositValidBefore, fmt.Sprintf("the deposit's authorization ends in %d s, it must last %d s", until-now.Unix(), slack))
	}
	if after, _ := c.Deposit.ValidAfter.Int64(); after > now.Unix() {
		return refuse(x402.ReasonDepositValidAfter, "the deposit's authorization is not valid yet")
	}
	digest := c.Deposit.Digest(c.token, c.Config.Payer, c.Voucher.Channel)
	if who, ok := x402.Recover(digest, c.Deposit.Signature); ok && who == c.Config.Payer {
		return nil
	}
	ok, err := f.Chain.ValidSignature(ctx, c.Config.Payer, digest, c.Deposit.Signature, f.gas(true))
	if err != nil {
		return down("the chain cannot be asked just now", err)
	}
	if !ok {
		return refuse(x402.ReasonDepositSignature, "the deposit is not signed by the payer")
	}
	return nil
}

// transfer is the deposit as the token shows it.
func (c *channel) transfer() Transfer {
	after, _ := c.Deposit.ValidAfter.Int64()
	before, _ := c.Deposit.ValidBefore.Int64()
	return Transfer{Asset: c.Config.Token, Payer: c.Config.Payer, PayTo: x402.CollectorAddress, Amount: c.Deposit.Amount,
		ValidAfter: after, ValidBefore: before, Nonce: c.Deposit.Nonce(c.Voucher.Channel), Signature: c.Deposit.Signature}
}

func (c *channel) key(network string) ledger.Key {
	return ledger.Key{Network: network, Asset: x402.Lower(c.Config.Token), Payer: x402.Lower(c.Config.Payer), Nonce: c.Deposit.Nonce(c.Voucher.Channel).Hex()}
}

package dispatch

import (
	"context"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// funded gives the channel of p as it is, after a deposit that p brings. nil
// without an error means that c was answered.
func (d *Dispatcher) funded(ctx context.Context, c *call, p *payment, terms x402.Requirements) (*ledger.Channel, error) {
	ch := c.kept
	deposit := p.channel.Kind == x402.ChannelDeposit
	switch {
	case deposit:
		out, err := d.Till.Vault.SettleChannel(ctx, p.ForFacilitator(&terms), terms)
		switch {
		case err != nil:
			return nil, unavailable(err)
		case out.ErrorReason == x402.ReasonPending:
			return nil, d.pending(c, &ledger.Payment{Key: p.key, Money: ledger.Signed}, out.Transaction)
		case !out.Success:
			return nil, d.refuse(c, out.ErrorReason, "the deposit was not made; nothing was charged")
		}
		c.deposit = &out
		d.reached("deposit.after")
	case !d.asked(ch):
		return ch, nil
	}
	ch, err := d.sync(ctx, p)
	if err != nil {
		return nil, unavailable(err)
	}
	return ch, nil
}

// undecided is what is said to a deposit instead of a 402, which asks for
// another: while the one that came may be made yet, it is pending. nil: it was
// never submitted, or it is made, or proof says that it never will be.
func (d *Dispatcher) undecided(c *call) error {
	if c.brings == nil || c.deposit != nil {
		return nil
	}
	ctx, cancel := d.detached(c)
	defer cancel()
	out, err := d.Till.Vault.Deposited(ctx, c.brings.channel)
	switch {
	case err != nil:
		return unavailable(err)
	case out == nil || out.Success:
		return nil
	}
	return d.pending(c, &ledger.Payment{Key: c.brings.key, Money: ledger.Signed}, out.Transaction)
}

// begun reports whether p's deposit was submitted. Then it was taken by its
// quote, which holds until p has its answer.
func (d *Dispatcher) begun(ctx context.Context, p *payment) bool {
	if p.channel == nil || p.channel.Kind != x402.ChannelDeposit || p.forged {
		return false
	}
	out, err := d.Till.Vault.Deposited(ctx, p.channel)
	return err == nil && out != nil
}

package dispatch_test

import (
	"context"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

func (c *canal) refund(charged int64) request {
	p := c.payload(charged)
	p.Kind = x402.ChannelRefund
	return c.with(p)
}

// A process that died between the hold and the signature made no refund: the
// channel sells again in less than a minute, and not only when the time is over
// that a withdrawal takes.
func TestARefundThatWasNotSignedLetsItsChannelGo(t *testing.T) {
	for _, point := range []string{"hold.after", "refund.build"} {
		t.Run(point, func(t *testing.T) {
			c := newCanal(t)
			c.send(c.deposit(10*price, price)).is(200, "")
			c.die(point, c.refund(price))
			q := c.voucher(2 * price)
			c.send(q).is(503, x402.ReasonChannelBusy) // another node may be about to sign
			c.pass(10 * time.Second)
			c.send(q).is(503, x402.ReasonChannelBusy)
			c.pass(20 * time.Second)
			c.send(q).is(503, x402.ReasonChannelBusy) // and lets go
			c.send(q).is(200, "")
			if ch := c.charged(2 * price); ch.Reserved != 0 || ch.Balance != 10*price {
				t.Errorf("%+v", ch)
			}
		})
	}
}

// A process that was paused between the hold and the signature, for longer than
// another waits for it, signs nothing when it goes on: its hold was ended, and
// what it wanted to give back is sold.
func TestARefundIsSignedOnlyInItsHold(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(10*price, price)).is(200, "")
	paused, resume := make(chan struct{}), make(chan struct{})
	c.at("refund.build", func() { close(paused); <-resume })
	refund := c.refund(price)
	done := make(chan *answer)
	go func() { done <- c.send(refund) }()
	<-paused
	c.d.Till = &dispatch.Till{Channels: c.db, Holds: c.db, Vault: c.fac, Authorizer: c.d.Till.Authorizer} // another process
	q := c.voucher(2 * price)
	c.send(q).is(503, x402.ReasonChannelBusy)
	c.pass(30 * time.Second)
	c.send(q).is(503, x402.ReasonChannelBusy)
	c.send(q).is(200, "")
	close(resume)
	(<-done).is(503, clawr.CodeFacilitatorDown)
	if ch := c.charged(2 * price); ch.Reserved != 0 || ch.Forfeited != 0 {
		t.Errorf("%+v", ch)
	}
	if s := c.state(c.id()); s.Balance != 10*price || c.units(address(c.buyer)) != 1_000_000-10*price {
		t.Errorf("%+v, and the buyer has %d", s, c.units(address(c.buyer)))
	}
	c.terms = c.offered()
	c.send(c.refund(2*price)).is(200, "") // with the voucher that was sold meanwhile
	if got := c.units(address(c.buyer)); got != 1_000_000-2*price {
		t.Errorf("the buyer has %d", got)
	}
}

// What is signed and in no block yet may be made at any time, however long that
// takes: nothing is sold for it.
func TestARefundOnItsWayHoldsItsChannel(t *testing.T) {
	c := newCanal(t)
	c.hurried()
	c.served(c.deposit(10*price, price))
	gate := make(chan struct{})
	c.Cleanup(func() {
		select {
		case <-gate:
		default:
			close(gate)
		}
	})
	signed := make(chan struct{})
	c.at("refund.broadcast.before", func() { close(signed); <-gate })
	refund := c.refund(price)
	for end := time.Now().Add(time.Minute); ; {
		if a := c.send(refund); a.Code != 503 || time.Now().After(end) {
			t.Fatalf("%d %s", a.Code, a.Body)
		}
		select {
		case <-signed:
		default:
			continue
		}
		break
	}
	for range 5 {
		c.pass(time.Minute)
		c.terms = c.offered()
		c.hurried()
		c.send(c.voucher(2*price)).is(503, x402.ReasonChannelBusy)
	}
	close(gate)
	for end := time.Now().Add(time.Minute); c.units(address(c.buyer)) != 1_000_000-price; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the refund was not made")
		}
	}
	q := c.voucher(2 * price)
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if a := c.send(q); a.Code != 503 {
			a.is(402, x402.ReasonCumulativeBalance)
			break
		}
		if time.Now().After(end) {
			t.Fatal("the channel is busy for ever")
		}
	}
	if ch := c.charged(price); ch.Reserved != 0 || ch.Forfeited != 0 {
		t.Errorf("%+v", ch)
	}
}

// lagging is a vault whose node is behind for a while.
type lagging struct {
	dispatch.Vault
	old *ledger.Channel
}

func (v *lagging) ReadChannel(ctx context.Context, id common.Hash) (ledger.Channel, error) {
	now, err := v.Vault.ReadChannel(ctx, id)
	if v.old == nil || err != nil {
		return now, err
	}
	then := *v.old
	then.Synced = now.Synced
	return then, nil
}

// A node that is behind the block of the refund says what was before it. It is
// not believed at once.
func TestARefundThatANodeHasNotSeenIsNotSold(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(10*price, price)).is(200, "")
	before, err := c.fac.ReadChannel(t.Context(), c.id())
	c.ok(err)
	c.die("refund.mined.after", c.refund(price))
	v := &lagging{c.fac, &before}
	c.d.Till.Vault = v
	q := c.voucher(2 * price)
	for range 4 {
		c.send(q).is(503, x402.ReasonChannelBusy)
		c.pass(5 * time.Second)
	}
	v.old = nil
	c.send(q).is(503, x402.ReasonChannelBusy) // which hears of it
	c.send(q).is(402, x402.ReasonCumulativeBalance)
	if ch := c.charged(price); ch.Reserved != 0 || ch.Forfeited != 0 || ch.Balance != price {
		t.Errorf("%+v", ch)
	}
}

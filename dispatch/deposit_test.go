package dispatch_test

import (
	"encoding/json"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// hurried waits for no block longer than 3 s. The deadline is in the terms.
func (c *canal) hurried() {
	c.d.Deadline, c.terms.MaxTimeoutSeconds = 3*time.Second, 63
}

// stuck sends q, whose deposit is signed, and reaches no node until release is
// called: it is pending.
func (c *canal) stuck(q request) (release func()) {
	c.Helper()
	gate := make(chan struct{})
	var signed atomic.Bool
	release = func() {
		if gate != nil {
			close(gate)
			gate = nil
		}
	}
	closed := gate
	c.Cleanup(func() { release() })
	c.at("deposit.broadcast.before", func() { signed.Store(true); <-closed })
	for end := time.Now().Add(time.Minute); ; {
		a := c.send(q)
		if a.Code != 503 || time.Now().After(end) {
			c.Fatalf("%d %s", a.Code, a.Body)
		}
		if signed.Load() && clawr.Code(a.error()) == clawr.CodeSettlementPending {
			return release
		}
	}
}

// schemes sells metals by these from now on.
func (c *canal) schemes(names ...string) {
	c.Helper()
	all, err := c.db.Tenants(c.Context())
	c.ok(err)
	for _, metals := range all {
		if metals.Slug == "metals" {
			metals.Schemes = names
			c.deploy(metals)
		}
	}
}

// A deposit that was submitted may be made at any time. Whatever has become of
// its quote, its API or its voucher meanwhile, nobody is asked for another: the
// answer is a 503 until it is made, and then what it bought.
func TestADepositOnItsWayIsNeverAnswered402(t *testing.T) {
	c := newCanal(t)
	c.hurried()
	q := c.deposit(10*price, price)
	release := c.stuck(q)
	pending := func(why string, q request) {
		t.Helper()
		a := c.send(q)
		if a.Code != 503 || clawr.Code(a.error()) != clawr.CodeSettlementPending {
			t.Errorf("%s: %d %s, want a 503 that says settlement_pending", why, a.Code, a.Body)
		}
	}
	c.schemes("exact")
	pending("an API that takes no vouchers any more", q)
	c.schemes("exact", "batch-settlement")
	sent, err := x402.ParsePayment(q.pay)
	c.ok(err)
	p, err := x402.ParseChannel(sent.Payload, c.domain)
	c.ok(err)
	p.Voucher.Signature[10] ^= 1
	pending("with a voucher that is not signed", c.with(p))
	c.pass(2 * time.Minute) // the quote is over
	pending("an expired quote", q)
	release()
	c.served(q)
	c.charged(price)
	if s := c.state(c.id()); s.Balance != 10*price || c.units(address(c.buyer)) != 1_000_000-10*price {
		t.Errorf("%+v, and the buyer has %d", s, c.units(address(c.buyer)))
	}
	// The quote is honoured for what it was given for, and for nothing else.
	c.send(c.voucher(2*price)).is(402, x402.ReasonQuoteExpired)
}

// A top-up whose voucher was overtaken is not asked for again while it may be
// made; afterwards its balance is in the correction.
func TestATopUpOnItsWayIsNotAskedForAgain(t *testing.T) {
	c := newCanal(t)
	c.hurried()
	c.served(c.deposit(2*price, price))
	q := c.deposit(5*price, 2*price)
	release := c.stuck(q)
	c.send(c.voucher(2*price)).is(200, "")
	moved := q
	moved.path = "/t/metals/v1/records?metal=tin" // the voucher has bought something else
	c.send(moved).is(409, clawr.CodeBoundElsewhere)
	c.terms = c.offered() // nor has its sender the quote that fetches the answer
	c.hurried()
	sent, err := x402.ParsePayment(q.pay)
	c.ok(err)
	p, err := x402.ParseChannel(sent.Payload, c.domain)
	c.ok(err)
	overtaken := c.with(p)
	c.send(overtaken).is(503, clawr.CodeSettlementPending)
	release()
	for end := time.Now().Add(time.Minute); c.state(c.id()).Balance != 7*price && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
	}
	a := c.send(overtaken).is(402, x402.ReasonCumulativeMismatch)
	var state struct{ ChargedCumulativeAmount string }
	c.ok(json.Unmarshal(a.required().Accepts[1].Extra.Rest.Find("channelState"), &state))
	if state.ChargedCumulativeAmount != "2000" {
		t.Errorf("the channel is said to be at %+v", state)
	}
}

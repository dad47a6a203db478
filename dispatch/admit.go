package dispatch

import (
	"errors"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/meter"
)

// The budgets that are the dispatcher's own and no tenant's.
var (
	// replayRate is per authorization: replays count against no quota, but they
	// are not a way to make the node work for nothing either.
	replayRate = clawr.Rate{Requests: 120, WindowSeconds: 60, Burst: 60}
	// missRate is per caller and tenant: a record that does not exist is not
	// charged, and must not become a free way to map the keys.
	missRate = clawr.Rate{Requests: 20, WindowSeconds: 60, Burst: 20}
	// contractRate is per client address: a signature that is no key's costs a
	// question to the chain, and everybody can make one up.
	contractRate = clawr.Rate{Requests: 60, WindowSeconds: 60, Burst: 60}
)

// admit takes the request from the rates of its caller and its tenant, and
// says in its headers what is left.
func (d *Dispatcher) admit(c *call) error {
	if !c.e.limited {
		return nil
	}
	var got meter.Decision
	if d.Rates != nil {
		got = d.Rates.Admit(c.in.Context(), &c.e.Tenant, c.addr, c.start)
	} else {
		got = d.Limiter.Admit(&c.e.Tenant, c.addr, c.start)
	}
	got.Headers(c.w.Header().Set)
	return got.Err()
}

// windows are the quotas and caps that a call of c takes from, and the same as
// the book counts them.
func (c *call) windows(e *entry, caller string, price clawr.Amount) ([]meter.Window, []ledger.Counter) {
	if !e.limited {
		return nil, nil
	}
	ws := meter.Counters(&e.Tenant, caller, price, c.units, c.start)
	var counters []ledger.Counter
	for _, w := range ws {
		counters = append(counters, ledger.Counter{Scope: w.Scope, Window: w.Start.Unix(), Cost: w.Cost, Cap: w.Cap, Code: w.Code})
	}
	return ws, counters
}

// takeQuota counts a free call against its caller's quota.
func (d *Dispatcher) takeQuota(c *call) error {
	c.ev.Caller = d.callers.hash(d.Salt, addrCaller, c.addr)
	ws, want := c.windows(c.e, c.ev.Caller, 0)
	if len(want) == 0 {
		return nil
	}
	got, err := d.Quotas.Take(c.in.Context(), want)
	if err != nil {
		return c.exceeded(ws, err)
	}
	c.left(ws, got)
	return nil
}

// left says in headers what is left of quotas and caps.
func (c *call) left(ws []meter.Window, got []ledger.Counter) {
	for _, w := range ws {
		for _, g := range got {
			if g.Scope == w.Scope && g.Window == w.Start.Unix() {
				w.Headers(g.Used, c.start, c.w.Header().Set)
			}
		}
	}
}

// exceeded turns a refused counter into what the caller is told; other errors
// stay what they are.
func (c *call) exceeded(ws []meter.Window, err error) error {
	x, ok := errors.AsType[*ledger.Exceeded](err)
	if !ok {
		return err
	}
	c.left(ws, []ledger.Counter{x.Counter})
	for _, w := range ws {
		if w.Scope == x.Counter.Scope {
			return w.Err(x.Counter.Used, c.start)
		}
	}
	return &clawr.Error{Code: x.Counter.Code, Message: "a limit of this API is reached; nothing was charged", Fix: "try again later"}
}

package dispatch

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

// How often what others left open is looked at, how long it is theirs, how
// long a payment rests that did not come to its end, and how long a
// reservation that nobody works on is kept for its buyer to come back for.
const (
	recoverEvery  = 3 * time.Second
	theirs        = 5 * time.Second
	rest          = 15 * time.Second
	abandoned     = 2 * time.Minute
	recoverBatch  = 256
	recoverAtOnce = 16
	owed          = 10 * time.Minute // the same, once it is paid (settle_first): then a refund is due
)

// Run brings payments to their end that no call is bringing there: after a
// crash, after a hang-up, after a facilitator's silence. It runs until ctx
// ends.
func (d *Dispatcher) Run(ctx context.Context) error {
	tick := time.NewTicker(recoverEvery)
	defer tick.Stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	if d.Payments != nil {
		wg.Go(func() { d.drain(ctx) })
	}
	if d.Till != nil {
		wg.Go(func() { d.collect(ctx) })
	}
	resting := resting{}
	since, settled := time.Now(), d.backlog.settled.Load()
	for {
		d.look(ctx, since, settled)
		since, settled = time.Now(), d.backlog.settled.Load()
		if d.Payments != nil {
			if err := d.recover(ctx, resting); err != nil && ctx.Err() == nil {
				d.Log.WarnContext(ctx, "recovery", "err", err)
			}
		}
		if n, err := d.Charged.Owe(ctx, owed); err != nil && ctx.Err() == nil {
			d.Log.WarnContext(ctx, "janitor", "err", err)
		} else if n > 0 {
			d.Log.ErrorContext(ctx, "paid and never delivered: refunds are due", "count", n)
		}
		if n, err := d.Recovery.Janitor(ctx, abandoned); err != nil && ctx.Err() == nil {
			d.Log.WarnContext(ctx, "janitor", "err", err)
		} else if n > 0 {
			d.Log.InfoContext(ctx, "released abandoned reservations", "count", n)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// resting is when payments that did not come to their end are tried again. The
// oldest are always listed first: without it a few hundred that nothing can be
// done about would keep all later ones waiting.
type resting map[string]time.Time

// recover settles what is answered but not settled, a few at a time.
func (d *Dispatcher) recover(ctx context.Context, resting resting) error {
	open, err := d.Recovery.OpenPayments(ctx, recoverBatch+len(resting))
	if err != nil {
		return err
	}
	now := d.now()
	maps.DeleteFunc(resting, func(_ string, until time.Time) bool { return now.After(until) })
	var wg sync.WaitGroup
	room := make(chan struct{}, recoverAtOnce)
	for _, p := range open {
		// What moved a moment ago has a call at work on it, here or on another node.
		if _, rests := resting[p.ID]; rests || d.flights.has(p.Key) || now.Sub(p.Updated) < theirs || queued(&p) {
			continue
		}
		resting[p.ID] = now.Add(rest)
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			d.settleOpen(ctx, p)
		})
	}
	wg.Wait()
	return nil
}

// queued reports whether p is the queue's to settle.
func queued(p *ledger.Payment) bool { return p.Policy == ledger.Async && p.Money == ledger.Held }

// settleOpen asks once more what became of p. The facilitator moves the row;
// only what was never submitted is released here.
func (d *Dispatcher) settleOpen(ctx context.Context, p ledger.Payment) {
	ctx, cancel := context.WithTimeout(ctx, d.deadline())
	defer cancel()
	defer d.flights.begin(p.Key)()
	out, err := d.Payments.Settle(ctx, p)
	d.reached("settle.after")
	if queued(&p) {
		d.backlog.failing.Store(err != nil && ctx.Err() == nil)
	}
	if err == nil && out.State == ledger.Settled {
		d.backlog.settled.Add(1)
	}
	if err != nil {
		if ctx.Err() == nil {
			d.Log.WarnContext(ctx, "open payment not settled", "payment", p.ID, "err", err)
		}
		return
	}
	if out.State != ledger.NotCharged || p.Money != ledger.Held {
		return
	}
	now, reason := d.now(), reasonFor(out.Reason)
	var ev usage.Event // what was settled first has no answer: its call has the event
	if p.Work == ledger.Done {
		// What becomes of the event that the answer was stored with.
		ev = usage.Event{Time: now, RequestID: d.newID("req_"), TenantID: p.TenantID, PaymentID: p.ID, Endpoint: p.Route,
			Status: http.StatusPaymentRequired, Lifecycle: usage.SettleFailed, Error: string(reason)}
		d.forNothing(p.Payer, now)
	}
	if err := d.Book.Release(ctx, p.ID, p.Epoch, reason, ev); err != nil && !errors.Is(err, ledger.ErrFenced) {
		d.Log.ErrorContext(ctx, "not released", "payment", p.ID, "err", err)
	}
}

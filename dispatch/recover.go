package dispatch

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

// How often what others left open is looked at, and how long a reservation
// that nobody works on is kept for its buyer to come back for.
const (
	recoverEvery = 3 * time.Second
	abandoned    = 2 * time.Minute
	recoverBatch = 256
)

// Run brings payments to their end that no call is bringing there: after a
// crash, after a hang-up, after a facilitator's silence. It runs until ctx
// ends.
func (d *Dispatcher) Run(ctx context.Context) error {
	tick := time.NewTicker(recoverEvery)
	defer tick.Stop()
	for {
		if d.Payments != nil {
			if err := d.recover(ctx); err != nil && ctx.Err() == nil {
				d.Log.WarnContext(ctx, "recovery", "err", err)
			}
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

// recover settles what is answered but not settled, a few at a time.
func (d *Dispatcher) recover(ctx context.Context) error {
	open, err := d.Recovery.OpenPayments(ctx, recoverBatch)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	room := make(chan struct{}, 16)
	for _, p := range open {
		if d.flights.has(p.Key) {
			continue
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			d.settleOpen(ctx, p)
		})
	}
	wg.Wait()
	return nil
}

// settleOpen asks once more what became of p. The facilitator moves the row;
// only what was never submitted is released here.
func (d *Dispatcher) settleOpen(ctx context.Context, p ledger.Payment) {
	ctx, cancel := context.WithTimeout(ctx, d.deadline())
	defer cancel()
	end := d.flights.begin(p.Key)
	defer end()
	out, err := d.Payments.Settle(ctx, p)
	if err != nil {
		if ctx.Err() == nil {
			d.Log.WarnContext(ctx, "open payment not settled", "payment", p.ID, "err", err)
		}
		return
	}
	if out.State != ledger.NotCharged || p.Money != ledger.Held {
		return
	}
	ev := usage.Event{Time: d.now(), RequestID: newRequestID(), TenantID: p.TenantID, PaymentID: p.ID, Endpoint: p.Route,
		Status: http.StatusPaymentRequired, Lifecycle: usage.SettleFailed, Error: string(out.Reason)}
	if err := d.Book.Release(ctx, p.ID, p.Epoch, out.Reason, ev); err != nil && !errors.Is(err, ledger.ErrFenced) {
		d.Log.ErrorContext(ctx, "not released", "payment", p.ID, "err", err)
	}
}

// has reports whether a call works on key right now.
func (f *flights) has(key ledger.Key) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m[key] != nil
}

package dispatch_test

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

// crash sends q and has its process die at a point of the call: nothing of the
// call happens after it, and nothing that was in memory is left.
func (w *world) crash(point string, q request) {
	w.Helper()
	died, ended := make(chan struct{}), make(chan struct{})
	w.at(point, func() { close(died); runtime.Goexit() })
	go func() {
		defer close(ended)
		w.send(q)
	}()
	// The facilitator's points are reached by goroutines of its own: whoever
	// waits for those waits for ever.
	part, _, _ := strings.Cut(point, ".")
	if slices.Contains([]string{"preflight", "batch", "t3", "broadcast", "mined", "bump"}, part) {
		select {
		case <-died:
		case <-ended:
		}
	} else {
		<-ended
	}
	select {
	case <-died:
	default:
		w.Fatalf("%s was not reached", point)
	}
	w.restart()
}

// restart begins a new process on the same data directory.
func (w *world) restart() {
	w.Helper()
	w.d = w.dispatcher("node-after")
	w.reload()
	w.ok(w.db.VoidLeases(w.Context()))
}

// countable is how many of the events of q's payment count as calls, and what
// they bill.
func (w *world) countable(q request) (n int, billed clawr.Amount) {
	w.Helper()
	for _, e := range w.events() {
		if row := w.row(q); row != nil && e.PaymentID == row.ID {
			if e.Countable {
				n++
			}
			billed += e.Billed
		}
	}
	return n, billed
}

// insist sends q until it is not pending any more: on a busy machine the
// deadline of a request may pass before the settlement is booked.
func (w *world) insist(q request) *answer {
	w.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if a := w.send(q); a.Code != 503 || !strings.Contains(a.Body.String(), string(clawr.CodeSettlementPending)) || time.Now().After(end) {
			return a
		}
	}
}

func TestACrashAtEveryPointIsMendedByTheResend(t *testing.T) {
	for _, c := range []struct {
		point     string
		transfers int // at the crash
		runs      int // in the end
	}{
		{"verify.after", 0, 1}, {"t1.after", 0, 1}, {"worker.before", 0, 1}, {"worker.after", 0, 2}, {"t2.after", 0, 1}, {"settle.after", 1, 1}, {"respond.before", 1, 1},
	} {
		t.Run(c.point, func(t *testing.T) {
			w := newWorld(t)
			q := w.payment(request{})
			w.crash(c.point, q)
			if n := len(w.till.transfers()); n != c.transfers {
				t.Errorf("%d transfers at the crash, want %d", n, c.transfers)
			}
			a := w.insist(q).is(200, "")
			if !strings.Contains(a.Body.String(), "asked") || !a.receipt().Success {
				t.Errorf("%v %s", a.Header(), a.Body)
			}
			w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
			w.sold(1, c.runs)
			w.state(q, ledger.Done, ledger.Mined)
			if n, billed := w.countable(q); n != 1 || billed != price {
				t.Errorf("%d events count, %s is billed: %+v", n, billed, w.events())
			}
		})
	}
}

func TestACrashAtEveryPointIsMendedWithoutAResend(t *testing.T) {
	for point, c := range map[string]struct {
		money   ledger.Money
		resend  int
		charged int
	}{
		"t1.after":       {ledger.Released, 402, 0},
		"worker.after":   {ledger.Released, 402, 0},
		"t2.after":       {ledger.Mined, 200, 1},
		"settle.after":   {ledger.Mined, 200, 1},
		"respond.before": {ledger.Mined, 200, 1},
	} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			w.deploy(clawr.Tenant{Slug: "capped", Manifest: clawr.Manifest{Price: price, X402: true, Spend: clawr.Caps{Daily: price}}})
			q := w.payment(request{path: "/t/capped/v1/records"})
			w.crash(point, q)
			w.round(w.d)
			if c.charged == 0 {
				w.state(q, ledger.Running, ledger.Held) // its buyer may still come back for it
				w.pass(2 * time.Minute)
				w.round(w.d)
			}
			row := w.row(q)
			if row.Money != c.money {
				t.Errorf("the payment is %s, want %s", row.Money, c.money)
			}
			if used, err := w.db.Counters(t.Context(), row.Counters[0].Scope); err != nil || used[0].Used != int64(c.charged)*price {
				t.Errorf("counters %+v, %v", used, err)
			}
			if a := w.send(q); a.Code != c.resend {
				t.Errorf("resent: %d %s", a.Code, a.Body)
			}
			w.sold(c.charged, w.shop.total())
			if n, billed := w.countable(q); n != c.charged || billed != clawr.Amount(c.charged*price) {
				t.Errorf("%d events count, %s is billed", n, billed)
			}
		})
	}
}

// An owner that was away for longer than its lease comes back and finds that
// somebody else has its work: it must not end it, and not say how it ended.
func TestAFencedOwnerSaysNothingFinal(t *testing.T) {
	engines(t, func(t *testing.T, w *world) {
		for name, fails := range map[string]bool{"with an answer": false, "with an error": true} {
			other := w.dispatcher("node-2")
			w.reload(other)
			ran, moved := w.shop.total(), len(w.till.transfers())
			if fails {
				w.shop.once(func(http.ResponseWriter, *http.Request) error { return errors.New("no luck") })
			}
			away, back := make(chan struct{}), make(chan struct{})
			w.at("worker.after", func() { close(away); <-back })
			q := w.payment(request{})
			var owner *answer
			var wg sync.WaitGroup
			wg.Go(func() { owner = w.send(q) })
			<-away
			w.pass(20 * time.Second)
			again := q
			again.node = other
			w.send(again).is(200, "")
			close(back)
			wg.Wait()
			owner.is(503, clawr.CodeSettlementPending).has("PAYMENT-REQUIRED", "")
			if r := owner.receipt(); r.ErrorReason != clawr.CodeSettlementPending {
				t.Errorf("%s: PAYMENT-RESPONSE %+v", name, r)
			}
			w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
			if row := w.state(q, ledger.Done, ledger.Mined); row.Epoch != 2 || row.Owner != "node-2" {
				t.Errorf("%s: epoch %d, owner %s", name, row.Epoch, row.Owner)
			}
			if n := len(w.till.transfers()) - moved; n != 1 || w.shop.total()-ran != 2 {
				t.Errorf("%s: %d transfers, %d runs", name, n, w.shop.total()-ran)
			}
			if n, billed := w.countable(q); n != 1 || billed != price {
				t.Errorf("%s: %d events count, %s is billed", name, n, billed)
			}
		}
	})
}

func TestOneOfManyTakesOver(t *testing.T) {
	engines(t, func(t *testing.T, w *world) {
		other := w.dispatcher("node-2")
		w.reload(other)
		q := w.payment(request{})
		w.crash("t1.after", q)
		w.pass(20 * time.Second) // a lease that nobody voids
		qs := make([]request, 10)
		for i := range qs {
			if qs[i] = q; i%2 == 1 {
				qs[i].node = other
			}
		}
		for _, a := range w.atOnce(qs...) {
			a.is(200, "")
		}
		w.sold(1, 1)
		if n, billed := w.countable(q); n != 1 || billed != price {
			t.Errorf("%d events count, %s is billed", n, billed)
		}
	})
}

// sluggish is Workers that take their time to open one.
type sluggish struct {
	dispatch.Workers
	take func()
}

func (s sluggish) Open(ctx context.Context, t *clawr.Tenant) (dispatch.Worker, error) {
	s.take()
	return s.Workers.Open(ctx, t)
}

// A lease may end when a resend has waited for it nearly until its deadline. Work
// that was begun then would be cut short and the payment given up for it: the
// next resend has all of the time.
func TestNobodyTakesOverWithoutTheTimeToWork(t *testing.T) {
	w := newWorld(t)
	q := w.payment(request{})
	w.crash("t1.after", q)
	w.pass(20 * time.Second) // a lease that nobody voids
	w.d.Deadline = 10 * time.Second
	w.d.Workers = sluggish{w.shop, func() { w.pass(8 * time.Second) }}
	w.shop.once(func(_ http.ResponseWriter, r *http.Request) error {
		<-r.Context().Done()
		return r.Context().Err()
	})
	w.send(q).is(503, clawr.CodeSettlementPending)
	w.state(q, ledger.Running, ledger.Held)
	w.shop.once(nil)
	w.send(q).is(200, "")
	w.sold(1, 1)
}

func TestAResendWaitsForTheWork(t *testing.T) {
	w := newWorld(t)
	other := w.dispatcher("node-2")
	w.reload(other)
	for name, node := range map[string]string{"here": "", "on another node": "node-2"} {
		release := make(chan struct{})
		w.shop.once(func(rw http.ResponseWriter, _ *http.Request) error {
			<-release
			_, err := rw.Write([]byte("asked"))
			return err
		})
		working := make(chan struct{})
		w.at("worker.before", func() { close(working) })
		w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction}}, other)
		q := w.payment(request{path: "/t/fn/v1/records?" + name[:2]})
		again := q
		if node != "" {
			again.node = other
		}
		var first, second *answer
		var wg sync.WaitGroup
		wg.Go(func() { first = w.send(q) })
		<-working
		wg.Go(func() { second = w.send(again) })
		time.Sleep(150 * time.Millisecond)
		close(release)
		wg.Wait()
		first.is(200, "").has("X-Clawr-Replayed", "")
		second.is(200, "").has("X-Clawr-Replayed", "true")
	}
	w.sold(2, 2)
}

func TestAResendDoesNotWaitForEver(t *testing.T) {
	w := newWorld(t)
	other := w.dispatcher("node-2")
	other.Deadline = 200 * time.Millisecond
	w.reload(other)
	release, working := make(chan struct{}), make(chan struct{})
	w.shop.once(func(rw http.ResponseWriter, _ *http.Request) error {
		<-release
		_, err := rw.Write([]byte("asked"))
		return err
	})
	w.at("worker.before", func() { close(working) })
	w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction}}, other)
	q := w.payment(request{path: "/t/fn/v1/records"})
	var first *answer
	var wg sync.WaitGroup
	wg.Go(func() { first = w.send(q) })
	<-working
	again := q
	again.node = other
	a := w.send(again).is(503, clawr.CodeSettlementPending).has("Retry-After", "1", "PAYMENT-REQUIRED", "")
	if r := a.receipt(); r.Success || r.ErrorReason != clawr.CodeSettlementPending || r.Transaction != "" {
		t.Errorf("PAYMENT-RESPONSE %+v", r)
	}
	if e := w.event(a); e.Lifecycle != usage.Unsettled || e.Countable || e.Status != 503 {
		t.Errorf("event %+v", e)
	}
	close(release)
	wg.Wait()
	first.is(200, "")
}

// What may not be done twice is not taken over; its buyer gets it back.
func TestAPostIsNotDoneTwice(t *testing.T) {
	w := newWorld(t)
	w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction}})
	q := w.payment(request{method: "POST", path: "/t/fn/v1/run", body: "x"})
	w.crash("worker.after", q)
	w.d.Deadline = 300 * time.Millisecond
	w.send(q).is(503, clawr.CodeSettlementPending)
	w.state(q, ledger.Running, ledger.Held)
	w.pass(3 * time.Minute)
	w.round(w.d)
	w.state(q, ledger.Failed, ledger.Released)
	w.send(q).is(402, "lease_expired").required()
	w.sold(0, 1)
}

// The recovery leaves alone what a call is at work on.
func TestTheRecoveryLeavesCallsAlone(t *testing.T) {
	w := newWorld(t)
	other := w.dispatcher("node-2")
	w.reload(other)
	settles := func() int { w.till.mu.Lock(); defer w.till.mu.Unlock(); return w.till.settles }
	waiting, release := make(chan struct{}), make(chan struct{})
	w.at("t2.after", func() { close(waiting); <-release })
	q := w.payment(request{})
	var wg sync.WaitGroup
	wg.Go(func() { w.send(q) })
	<-waiting
	w.ahead.Add(-18) // round lets 20 s pass: on another node, 2 s after T2
	w.round(other)
	if settles() != 0 {
		t.Error("another node settled what a call is settling")
	}
	w.round(w.d) // and here at any time
	if settles() != 0 {
		t.Error("the recovery settled what a call is settling")
	}
	close(release)
	wg.Wait()
	w.state(q, ledger.Done, ledger.Mined)
	w.sold(1, 1)
}

func TestATakeOverIsShedWhenThereIsNoRoom(t *testing.T) {
	w := newWorld(t)
	q := w.payment(request{})
	w.crash("t1.after", q)
	w.d.MaxFlight = 1
	var a *answer
	w.at("t1.after", func() { a = w.send(q) })
	w.send(w.payment(request{path: "/t/acme/v1/records?n=2"})).is(200, "")
	a.is(503, clawr.CodeOverloaded).has("PAYMENT-REQUIRED", "")
	w.state(q, ledger.Running, ledger.Held)
	w.send(q).is(200, "")
	w.sold(2, 2)
}

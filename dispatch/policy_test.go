package dispatch_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// running runs d's recovery and queue until the test ends.
func (w *world) running(d *dispatch.Dispatcher) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := d.Run(ctx); err != nil {
			w.Errorf("run: %v", err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-ended })
	w.Cleanup(stop)
	return stop
}

// until waits for something that is on its way.
func (w *world) until(what string, ok func() bool) {
	w.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("%s does not happen", what)
		}
	}
}

func (w *world) exposure(payer string) ledger.Exposed {
	w.Helper()
	e, err := w.db.ExposureOf(context.WithoutCancel(w.Context()), usdc.Network, usdc.Address, payTo, payer)
	w.ok(err)
	return e
}

func (w *world) refund(q request) *ledger.Refund {
	w.Helper()
	r, err := w.db.Refund(context.WithoutCancel(w.Context()), w.row(q).ID)
	w.ok(err)
	return r
}

func TestAsyncAnswersBeforeItSettles(t *testing.T) {
	engines(t, func(t *testing.T, w *world) {
		w.policies()
		before := time.Now().Unix()
		if s := w.get("/t/async/v1/records").is(402, clawr.CodeMissingPayment).required().Accepts[0].MaxTimeoutSeconds; s < 3600 {
			t.Errorf("asked to sign for %d s", s)
		}
		q := w.payment(request{path: "/t/async/v1/records"})
		a := w.send(q).is(200, "")
		if r := a.receipt(); !r.Success || r.Transaction != "" || r.Network != usdc.Network {
			t.Errorf("PAYMENT-RESPONSE %+v", r)
		}
		row := w.state(q, ledger.Done, ledger.Held)
		if row.Policy != ledger.Async || row.ValidBefore < before+3600 {
			t.Errorf("row %+v", row)
		}
		if e := w.event(a); e.Lifecycle != usage.Success || !e.Billable || e.Billed != price {
			t.Errorf("event %+v", e)
		}
		if e := w.exposure(row.Payer); e.Held != price {
			t.Errorf("exposure %+v", e)
		}
		again := w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
		if again.Body.String() != a.Body.String() || again.receipt().Transaction != "" {
			t.Errorf("a resend got %s, %+v", again.Body, again.receipt())
		}
		w.sold(0, 1)
		w.running(w.d)
		w.until("the settlement", func() bool { return w.row(q).Money == ledger.Mined })
		if e := w.exposure(row.Payer); e.Held != 0 || e.BadDebt != 0 {
			t.Errorf("exposure %+v", e)
		}
		if r := w.send(q).is(200, "").receipt(); r.Transaction == "" {
			t.Errorf("PAYMENT-RESPONSE %+v", r)
		}
		w.sold(1, 1)
		if n, billed := w.countable(q); n != 1 || billed != price {
			t.Errorf("%d events count, %s is billed", n, billed)
		}
	})
}

// What is delivered while the queue runs is settled without a tick's delay,
// and what an earlier process left, however much, too.
func TestTheQueueDrains(t *testing.T) {
	w := newWorld(t)
	w.policies()
	k := key(t)
	var qs []request
	for range 300 {
		qs = append(qs, request{path: "/t/async/v1/records", pay: w.signed(k, w.get("/t/async/v1/records").required()).Header()})
		w.send(qs[len(qs)-1]).is(200, "")
	}
	w.restart()
	w.d.Exposure = rich
	w.running(w.d)
	w.until("the settlement of 300", func() bool { return len(w.till.transfers()) == 300 })
	for range 5 {
		q := w.payment(request{path: "/t/async/v1/records"})
		w.send(q).is(200, "")
		w.until("the settlement", func() bool { return w.row(q).Money == ledger.Mined })
	}
	w.sold(305, 305)
	if e := w.exposure("*"); e.Held != 0 {
		t.Errorf("exposure %+v", e)
	}
}

func TestNewPayersPayBeforeTheAnswer(t *testing.T) {
	w := newWorld(t)
	w.policies()
	w.d.Exposure = ledger.Exposure{Payer: 10 * price, Total: 2 * price}
	k := key(t)
	pay := func(k string) request { return request{path: "/t/async/v1/records", pay: k} }
	next := func() request { return pay(w.signed(k, w.get("/t/async/v1/records").required()).Header()) }
	for range 10 { // 10 of volume are 1 of credit
		q := next()
		if r := w.send(q).is(200, "").receipt(); r.Transaction == "" {
			t.Fatalf("a new payer got credit: %+v", r)
		}
		row := w.state(q, ledger.Done, ledger.Mined)
		w.ok(w.db.Final(t.Context(), row.Key, row.BlockHash))
	}
	for i := range 3 {
		r := w.send(next()).is(200, "").receipt()
		if credit := r.Transaction == ""; credit != (i < 1) {
			t.Errorf("call %d on credit: %v (%+v)", i, credit, w.exposure("*"))
		}
	}
}

// A payer whose account is empty when the money is wanted costs what he was
// trusted with, and no more.
func TestAnEmptiedAccountIsADebtAndEndsTheCredit(t *testing.T) {
	w := newWorld(t)
	w.policies()
	w.d.Exposure = ledger.Exposure{Payer: 3 * price, Credit: 3 * price, Total: 100 * price}
	k := key(t)
	next := func() request {
		return request{path: "/t/async/v1/records", pay: w.signed(k, w.get("/t/async/v1/records").required()).Header()}
	}
	var owing []request
	for range 3 {
		q := next()
		w.send(q).is(200, "")
		owing = append(owing, q)
	}
	w.till.mu.Lock()
	w.till.balance[address(k)] = 0
	w.till.mu.Unlock()
	stop := w.running(w.d)
	w.until("the refusals", func() bool { return w.exposure(address(k)).BadDebt == 3*price })
	stop()
	for _, q := range owing {
		w.state(q, ledger.Done, ledger.Released)
		w.send(q).is(200, "").has("X-Clawr-Replayed", "true") // it was delivered once
		if n, billed := w.countable(q); billed != 0 || n > 1 {
			t.Errorf("%d events count, %s is billed", n, billed)
		}
	}
	w.till.mu.Lock()
	w.till.balance[address(k)] = 1 << 40
	w.till.mu.Unlock()
	// He let us work for nothing three times: now the money comes first.
	q := next()
	if r := w.send(q).is(200, "").receipt(); r.Transaction == "" {
		t.Errorf("credit again: %+v", r)
	}
	if row := w.row(q); row.Policy != ledger.SettleFirst {
		t.Errorf("sold under %s", row.Policy)
	}
	w.pass(2 * time.Hour)
	q = next()
	w.send(q).is(200, "")
	if row := w.row(q); row.Policy != ledger.SettleBeforeResponse {
		t.Errorf("later, sold under %s", row.Policy)
	}
}

func TestAShortAuthorizationIsNotQueued(t *testing.T) {
	w := newWorld(t)
	w.policies()
	q := w.forge(request{path: "/t/async/v1/records"}, func(f *forged) { f.auth.ValidBefore = x402.Uint(uint64(w.now().Unix() + 600)) })
	if r := w.send(q).is(200, "").receipt(); r.Transaction == "" {
		t.Errorf("queued for ten minutes of life: %+v", r)
	}
}

func TestSettleFirstWorksForPaidMoney(t *testing.T) {
	engines(t, func(t *testing.T, w *world) {
		w.policies()
		q := w.payment(request{path: "/t/first/v1/records"})
		w.at("worker.before", func() { w.state(q, ledger.Running, ledger.Mined) })
		a := w.send(q).is(200, "")
		if r := a.receipt(); !r.Success || r.Transaction == "" {
			t.Errorf("PAYMENT-RESPONSE %+v", r)
		}
		w.state(q, ledger.Done, ledger.Mined)
		w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
		w.sold(1, 1)
		if n, billed := w.countable(q); n != 1 || billed != price {
			t.Errorf("%d events count, %s is billed", n, billed)
		}
	})
}

func TestPaidWorkThatFailsIsOwed(t *testing.T) {
	for name, fail := range map[string]func(http.ResponseWriter, *http.Request) error{
		"an error": func(http.ResponseWriter, *http.Request) error { return errors.New("no luck") },
		"a panic":  func(http.ResponseWriter, *http.Request) error { panic("no luck") },
		"a status": func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(500); return nil },
		"no time":  func(_ http.ResponseWriter, r *http.Request) error { <-r.Context().Done(); return r.Context().Err() },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policies()
			w.d.Deadline = time.Second
			q := w.payment(request{path: "/t/first/v1/records"})
			w.shop.once(fail)
			a := w.send(q).is(502, clawr.CodeRefundDue).has("PAYMENT-REQUIRED", "", "Retry-After", "")
			if b := a.Body.String(); !strings.Contains(b, "refund") || !strings.Contains(b, w.row(q).ID) || strings.Contains(b, "not charged") || strings.Contains(b, `"same_payment"`) {
				t.Errorf("told %s", b)
			}
			if r := a.receipt(); !r.Success || r.Transaction == "" {
				t.Errorf("PAYMENT-RESPONSE %+v", r)
			}
			w.state(q, ledger.Failed, ledger.Mined)
			if r := w.refund(q); r == nil || r.Amount != price || r.State != "due" {
				t.Errorf("refund %+v", r)
			}
			if e := w.event(a); e.Lifecycle != usage.Failure || e.Billed != 0 || e.Status != 502 || e.PaymentID == "" {
				t.Errorf("event %+v", e)
			}
			w.send(q).is(502, clawr.CodeRefundDue)
			w.sold(1, w.shop.total())
		})
	}
}

// Work that a slow settlement left no time for has not failed: nothing is owed,
// and the resend gets the answer.
func TestASlowSettlementDoesNotFailTheWork(t *testing.T) {
	w := newWorld(t)
	w.policies()
	w.d.Deadline = time.Second
	q := w.payment(request{path: "/t/first/v1/records"})
	w.at("worker.before", func() { time.Sleep(w.d.Deadline) })
	w.shop.once(func(_ http.ResponseWriter, r *http.Request) error { <-r.Context().Done(); return r.Context().Err() })
	w.send(q).is(503, clawr.CodeSettlementPending).has("PAYMENT-REQUIRED", "", "Retry-After", "*")
	if r := w.refund(q); r != nil {
		t.Fatalf("owed: %+v", r)
	}
	w.d.Deadline = 30 * time.Second
	w.send(q).is(200, "")
	w.state(q, ledger.Done, ledger.Mined)
	if len(w.till.transfers()) != 1 {
		t.Errorf("%d transfers", len(w.till.transfers()))
	}
}

// Whatever point a process dies at, the buyer who comes back has paid once and
// gets what he paid for.
func TestACrashAtEveryPointOfSettleFirst(t *testing.T) {
	for _, c := range []struct {
		point     string
		transfers int // at the crash
		runs      int // in the end
	}{
		{"verify.after", 0, 1}, {"t1.after", 0, 1}, {"settle.after", 1, 1}, {"worker.before", 1, 1}, {"worker.after", 1, 2}, {"t2.after", 1, 1}, {"respond.before", 1, 1},
	} {
		t.Run(c.point, func(t *testing.T) {
			w := newWorld(t)
			w.policies()
			q := w.payment(request{path: "/t/first/v1/records"})
			w.crash(c.point, q)
			if n := len(w.till.transfers()); n != c.transfers {
				t.Errorf("%d transfers at the crash, want %d", n, c.transfers)
			}
			w.send(q).is(200, "")
			w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
			w.sold(1, c.runs)
			w.state(q, ledger.Done, ledger.Mined)
			if n, billed := w.countable(q); n != 1 || billed != price {
				t.Errorf("%d events count, %s is billed: %+v", n, billed, w.events())
			}
		})
	}
}

func TestACrashAtEveryPointOfAsync(t *testing.T) {
	for _, c := range []struct {
		point string
		runs  int // in the end
	}{{"verify.after", 1}, {"t1.after", 1}, {"worker.before", 1}, {"worker.after", 2}, {"t2.after", 1}, {"respond.before", 1}} {
		t.Run(c.point, func(t *testing.T) {
			w := newWorld(t)
			w.policies()
			q := w.payment(request{path: "/t/async/v1/records"})
			w.crash(c.point, q)
			w.d.Exposure = rich
			w.send(q).is(200, "")
			w.running(w.d)
			w.until("the settlement", func() bool { return w.row(q).Money == ledger.Mined })
			w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
			w.sold(1, c.runs)
			if e := w.exposure(w.row(q).Payer); e.Held != 0 || e.BadDebt != 0 {
				t.Errorf("exposure %+v", e)
			}
			if n, billed := w.countable(q); n != 1 || billed != price {
				t.Errorf("%d events count, %s is billed: %+v", n, billed, w.events())
			}
		})
	}
}

// What was paid and not begun by its dead owner is owed once its buyer has not
// come back for long; a POST that was begun is owed at once.
func TestPaidWorkThatIsAbandonedIsOwed(t *testing.T) {
	w := newWorld(t)
	w.policies()
	q := w.payment(request{path: "/t/first/v1/records"})
	w.crash("worker.before", q)
	w.pass(5 * time.Minute)
	w.round(w.d)
	w.state(q, ledger.Running, ledger.Mined)
	w.pass(10 * time.Minute)
	w.round(w.d)
	w.state(q, ledger.Failed, ledger.Mined)
	w.send(q).is(502, clawr.CodeRefundDue)
	if w.refund(q) == nil {
		t.Error("nothing is owed")
	}
	w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction, Settle: "settle_first"}})
	q = w.payment(request{method: "POST", path: "/t/fn/v1/run", body: "x"})
	w.crash("worker.after", q)
	w.send(q).is(502, clawr.CodeRefundDue)
	w.state(q, ledger.Failed, ledger.Mined)
	if w.refund(q) == nil {
		t.Error("nothing is owed for the POST")
	}
	// One that was not begun is begun.
	q = w.payment(request{method: "POST", path: "/t/fn/v1/run", body: "y"})
	w.crash("settle.after", q)
	w.send(q).is(200, "")
}

// settle_first and a settlement that does not come to its end: the work has
// not begun, and the same header gets it later.
func TestSettleFirstWaitsForItsSettlement(t *testing.T) {
	for name, c := range map[string]struct {
		out    outcome
		resend int
	}{"in no block": {(*till).broadcast, 200}, "reply lost": {(*till).lost, 200}, "not submitted": {(*till).down, 200}, "no money": {(*till).refuse, 402}, "dead": {(*till).dead, 402}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.policies()
			w.till.next(c.out)
			q := w.payment(request{path: "/t/first/v1/records"})
			a := w.send(q)
			want := map[int]int{200: 503, 402: 402}[c.resend]
			if a.Code != want || w.shop.total() != 0 {
				t.Fatalf("%d %s, %d runs", a.Code, a.Body, w.shop.total())
			}
			if want == 503 && a.Header().Get("PAYMENT-REQUIRED") != "" {
				t.Error("asked for another payment")
			}
			if a := w.send(q); a.Code != c.resend {
				t.Errorf("resent: %d %s", a.Code, a.Body)
			}
			if c.resend == 200 {
				w.sold(1, 1)
			} else {
				w.sold(0, 0)
			}
			if n, billed := w.countable(q); c.resend == 200 && (n != 1 || billed != price) || c.resend == 402 && billed != 0 {
				t.Errorf("%d events count, %s is billed", n, billed)
			}
		})
	}
}

// A lease lasts 15 s after its owner was last heard of, however long the work.
func TestALeaseLivesAsLongAsItsOwner(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.d.Deadline = time.Minute
		other := w.dispatcher("node-2")
		other.Deadline = 2 * time.Second
		w.reload(other)
		release, working := make(chan struct{}), make(chan struct{})
		w.shop.once(func(rw http.ResponseWriter, _ *http.Request) error {
			close(working)
			<-release
			_, err := rw.Write([]byte("asked"))
			return err
		})
		q := w.payment(request{})
		var first *answer
		var wg sync.WaitGroup
		wg.Go(func() { first = w.send(q) })
		<-working
		again := q
		again.node = other
		for range 3 {
			time.Sleep(10 * time.Second)
			w.send(again).is(503, clawr.CodeSettlementPending)
		}
		if row := w.row(q); row.Epoch != 1 || row.Owner != "node-1" {
			t.Errorf("taken over from a living owner: %+v", row)
		}
		close(release)
		wg.Wait()
		first.is(200, "")
		w.sold(1, 1)
	})
}

// An owner that was away for longer than its lease finds every write fenced,
// at whatever point it was away, and says nothing final; whoever took the work
// over brings it to its end, once.
func TestAPausedOwnerIsFencedOnEveryWrite(t *testing.T) {
	engines(t, func(t *testing.T, w *world) {
		w.policies()
		other := w.dispatcher("node-2")
		other.Exposure = rich
		w.reload(other)
		serial := 0
		for policy, points := range map[ledger.Policy][]string{
			ledger.SettleBeforeResponse: {"t1.after", "worker.before", "worker.after"},
			ledger.Async:                {"t1.after", "worker.before", "worker.after"},
			ledger.SettleFirst:          {"t1.after", "settle.after", "worker.before", "worker.after"},
		} {
			for _, point := range points {
				for _, fails := range []bool{false, true} {
					serial++
					name := string(policy) + " away at " + point
					q := w.payment(request{path: pathOf(policy) + "&n=" + string(rune('a'+serial))})
					moved := len(w.till.transfers())
					away, back := make(chan struct{}), make(chan struct{})
					w.at(point, func() { close(away); <-back })
					var owner *answer
					var wg sync.WaitGroup
					wg.Go(func() { owner = w.send(q) })
					<-away
					w.pass(20 * time.Second)
					again := q
					again.node = other
					w.send(again).is(200, "")
					if fails {
						w.shop.once(func(http.ResponseWriter, *http.Request) error { return errors.New("no luck") })
					}
					close(back)
					wg.Wait()
					w.shop.once(nil)
					if owner.Code != 503 || owner.error() != string(clawr.CodeSettlementPending) || owner.Header().Get("PAYMENT-REQUIRED") != "" {
						t.Errorf("%s: the owner said %d %s", name, owner.Code, owner.Body)
					}
					if row := w.row(q); row.Epoch != 2 || row.Owner != "node-2" || row.Work != ledger.Done {
						t.Errorf("%s: %s of %s, epoch %d", name, row.Work, row.Owner, row.Epoch)
					}
					if w.refund(q) != nil {
						t.Errorf("%s: a refund is due for what was delivered", name)
					}
					w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
					if n := len(w.till.transfers()) - moved; n != 1 && policy != ledger.Async {
						t.Errorf("%s: %d transfers", name, n)
					}
					if n, billed := w.countable(q); n != 1 || billed != price {
						t.Errorf("%s: %d events count, %s is billed", name, n, billed)
					}
				}
			}
		}
	})
}

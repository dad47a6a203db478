package dispatch_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// round is one turn of a dispatcher's recovery, ten seconds later.
func (w *world) round(d *dispatch.Dispatcher) {
	w.Helper()
	w.pass(20 * time.Second) // longer than a call is left alone, and than a payment rests
	ctx, cancel := context.WithCancel(w.Context())
	defer cancel()
	end := &ending{DB: w.db, end: cancel}
	was := d.Recovery
	d.Recovery = end
	defer func() { d.Recovery = was }()
	w.ok(d.Run(ctx))
}

// ending is a Recovery that stops after one round.
type ending struct {
	*store.DB
	end func()
}

func (e *ending) Janitor(ctx context.Context, grace time.Duration) (int, error) {
	n, err := e.DB.Janitor(ctx, grace)
	e.end()
	return n, err
}

// Whatever a settlement comes to, and whoever asks about it next, the buyer or
// the recovery: no 402 while the authorization may be charged, nothing given
// away before it is, and one event in the end.
func TestSettlementsEndForTheResendAndForTheRecovery(t *testing.T) {
	type step = outcome
	for name, c := range map[string]struct {
		first, then step // then: of the resend or the recovery
		status      int  // of the first answer
		tx          bool // … which names a transaction
		money       ledger.Money
		end         ledger.Money
		last        int // status of the last resend
		lifecycle   usage.Lifecycle
	}{
		"settled at once":               {(*till).pay, nil, 200, true, ledger.Mined, ledger.Mined, 200, usage.Success},
		"in a block later":              {(*till).broadcast, (*till).pay, 503, true, ledger.Signed, ledger.Mined, 200, usage.Success},
		"charged, the reply lost":       {(*till).lost, (*till).pay, 503, false, ledger.Signed, ledger.Mined, 200, usage.Success},
		"elsewhere, and settled":        {(*till).unknown, (*till).lostElsewhere, 503, false, ledger.Signed, ledger.Mined, 200, usage.Success},
		"not submitted, then settled":   {(*till).down, (*till).pay, 503, false, ledger.Held, ledger.Mined, 200, usage.Success},
		"not submitted, then refused":   {(*till).down, (*till).refuse, 503, false, ledger.Held, ledger.Released, 402, usage.SettleFailed},
		"refused at once":               {(*till).refuse, nil, 402, false, ledger.Released, ledger.Released, 402, usage.SettleFailed},
		"in no block, then dead":        {(*till).broadcast, (*till).dead2, 503, true, ledger.Signed, ledger.Dead, 402, usage.SettleFailed},
		"dead at once":                  {(*till).dead, nil, 402, false, ledger.Dead, ledger.Dead, 402, usage.SettleFailed},
		"in no block for a long time":   {(*till).broadcast, (*till).broadcast, 503, true, ledger.Signed, ledger.Signed, 503, usage.Unsettled},
		"not submitted for a long time": {(*till).down, (*till).down, 503, false, ledger.Held, ledger.Held, 503, usage.Unsettled},
		"consumed by somebody else":     {(*till).withheld, (*till).withheld, 503, false, ledger.Held, ledger.Held, 503, usage.Unsettled},
		"unknown for a long time":       {(*till).unknown, (*till).unknown, 503, false, ledger.Signed, ledger.Signed, 503, usage.Unsettled},
	} {
		for _, by := range []string{"resend", "recovery"} {
			t.Run(name+", by the "+by, func(t *testing.T) {
				w := newWorld(t)
				w.deploy(clawr.Tenant{Slug: "capped", Manifest: clawr.Manifest{Price: price, X402: true, Spend: clawr.Caps{Daily: 10 * price}, Usage: clawr.Quota{Daily: 10}}})
				w.till.next(c.first)
				q := w.payment(request{path: "/t/capped/v1/records"})
				first := w.send(q)
				if first.Code != c.status {
					t.Fatalf("first answer: %d %s, want %d", first.Code, first.Body, c.status)
				}
				if c.status == 503 {
					first.is(503, clawr.CodeSettlementPending).has("PAYMENT-REQUIRED", "", "Retry-After", "2")
					if r := first.receipt(); r.Success || r.ErrorReason != clawr.CodeSettlementPending || (r.Transaction != "") != c.tx || r.Network != usdc.Network || r.Payer != w.row(q).Payer {
						t.Errorf("PAYMENT-RESPONSE %+v", r)
					}
				}
				if first.Code != 200 && strings.Contains(first.Body.String(), "asked") {
					t.Errorf("given away: %s", first.Body)
				}
				w.state(q, ledger.Done, c.money)
				if c.then != nil {
					w.till.next(c.then)
				}
				if by == "recovery" {
					w.round(w.d)
					w.state(q, ledger.Done, c.end)
				}
				w.till.next(c.then) // the recovery has used one, or there was none
				last := w.send(q)
				if last.Code != c.last || c.last == 200 && !strings.Contains(last.Body.String(), "asked") {
					t.Fatalf("last answer: %d %s, want %d", last.Code, last.Body, c.last)
				}
				row := w.state(q, ledger.Done, c.end)
				switch c.last {
				case 200:
					last.has("X-Clawr-Replayed", "true")
					if r := last.receipt(); !r.Success || r.Transaction != row.Tx || r.Transaction == "" {
						t.Errorf("PAYMENT-RESPONSE %+v", r)
					}
				case 402:
					last.required()
				}
				w.checkPayment(q, first, c.lifecycle)
			})
		}
	}
}

// lostElsewhere: somebody else's facilitator has settled it by now.
func (t *till) lostElsewhere(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	if _, ok := t.chain[p.Key]; !ok {
		e := ledger.Evidence{Tx: "0x" + random(32), BlockNumber: 7, BlockHash: "0x" + random(32)}
		t.chain[p.Key], t.moved = e, append(t.moved, p.Key)
	}
	return t.pay(ctx, p)
}

// withheld: the chain shows the authorization, and we never submitted it.
func (t *till) withheld(context.Context, ledger.Payment) (ledger.Outcome, error) {
	return ledger.Outcome{State: ledger.Unknown, Reason: x402.ReasonNonceUsed}, nil
}

// dead2: what was submitted has expired unused.
func (t *till) dead2(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	if err := t.book.Dead(ctx, p.Key, "expired unused"); err != nil {
		return ledger.Outcome{State: ledger.Unknown}, nil
	}
	return ledger.Outcome{State: ledger.NotCharged, Reason: x402.ReasonValidBefore}, nil
}

// checkPayment checks what a payment has left behind: one run, at most one
// transfer, one event that counts, and counters that fit.
func (w *world) checkPayment(q request, first *answer, lifecycle usage.Lifecycle) {
	w.Helper()
	charged := 0
	if lifecycle == usage.Success {
		charged = 1
	}
	w.sold(charged, 1)
	e := w.event(first)
	if e.Lifecycle != lifecycle || e.Billable != (charged == 1) || e.Billed != clawr.Amount(charged*price) {
		w.Errorf("the payment's event is %+v, want %s", e, lifecycle)
	}
	id, billed := w.row(q).ID, clawr.Amount(0)
	for _, e := range w.events() {
		billed += e.Billed
		if e.PaymentID == id && e.RequestID != first.Header().Get("X-Request-Id") && (e.Countable || e.Billable) {
			w.Errorf("a resend counts: %+v", e)
		}
	}
	if billed != clawr.Amount(charged*price) {
		w.Errorf("%s was billed in all", billed)
	}
	for _, c := range w.row(q).Counters {
		got, err := w.db.Counters(context.WithoutCancel(w.Context()), c.Scope)
		w.ok(err)
		want := c.Cost
		if lifecycle == usage.SettleFailed {
			want = 0 // given back
		}
		if len(got) != 1 || got[0].Used != want {
			w.Errorf("counter %s is %+v, want %d used", c.Scope, got, want)
		}
	}
}

// A client that goes away takes nothing with it: once T1 has claimed its
// payment, the call comes to the same end.
func TestAHangUpChangesNothingAfterT1(t *testing.T) {
	for _, point := range []string{"verify.after", "t1.after", "worker.before", "worker.after", "t2.after", "settle.after", "respond.before"} {
		t.Run(point, func(t *testing.T) {
			w := newWorld(t)
			ctx, hangUp := context.WithCancel(t.Context())
			w.at(point, hangUp)
			q := w.payment(request{})
			q.ctx = ctx
			w.send(q)
			if ctx.Err() == nil {
				t.Fatal("the point was not reached")
			}
			w.state(q, ledger.Done, ledger.Mined)
			w.sold(1, 1)
			q.ctx = nil
			w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
			w.sold(1, 1)
		})
	}
	t.Run("before T1", func(t *testing.T) {
		w := newWorld(t)
		ctx, hangUp := context.WithCancel(t.Context())
		w.till.judge = func(*x402.PaymentPayload) (x402.VerifyResponse, error, bool) {
			hangUp()
			return x402.VerifyResponse{}, ctx.Err(), true
		}
		q := w.payment(request{})
		q.ctx = ctx
		w.send(q)
		w.untouched()
	})
	t.Run("a worker that heeds its context", func(t *testing.T) {
		w := newWorld(t)
		ctx, hangUp := context.WithCancel(t.Context())
		w.shop.once(func(rw http.ResponseWriter, r *http.Request) error {
			hangUp()
			if err := r.Context().Err(); err != nil {
				return err
			}
			_, err := rw.Write([]byte("goods"))
			return err
		})
		q := w.payment(request{})
		q.ctx = ctx
		w.send(q)
		w.state(q, ledger.Done, ledger.Mined)
	})
	t.Run("over a real connection", func(t *testing.T) {
		w := newWorld(t)
		server := httptest.NewServer(w.d)
		defer server.Close()
		ctx, hangUp := context.WithCancel(t.Context())
		settled := make(chan struct{})
		w.at("worker.before", func() { hangUp(); time.Sleep(50 * time.Millisecond) })
		w.at("settle.after", func() { close(settled) })
		q := w.payment(request{host: "acme.example.com", path: "/v1/records"})
		r, err := http.NewRequestWithContext(ctx, "GET", server.URL+"/v1/records", nil)
		w.ok(err)
		r.Host = "acme.example.com"
		r.Header.Set("PAYMENT-SIGNATURE", q.pay)
		if _, err := server.Client().Do(r); err == nil {
			t.Error("the client did not hang up")
		}
		<-settled
		w.state(q, ledger.Done, ledger.Mined)
	})
}

// A few hundred payments about which nothing can be done must not keep the
// others from being recovered.
func TestRecoveryDoesNotStarve(t *testing.T) {
	w := newWorld(t)
	stuck := func(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
		return ledger.Outcome{State: ledger.Unknown}, nil
	}
	const hopeless = 270 // more than one round looks at
	var hope request
	func() {
		var wg sync.WaitGroup
		defer wg.Wait()
		room := make(chan struct{}, 8)
		for range hopeless {
			w.till.next(func(_ *till, ctx context.Context, p ledger.Payment) (ledger.Outcome, error) { return stuck(ctx, p) })
		}
		for range hopeless {
			room <- struct{}{}
			wg.Go(func() {
				defer func() { <-room }()
				w.send(w.payment(request{})).is(503, clawr.CodeSettlementPending)
			})
		}
	}()
	w.pass(5 * time.Second) // the last to expire
	w.till.next((*till).down)
	hope = w.payment(request{})
	w.send(hope).is(503, clawr.CodeSettlementPending)
	w.till.mu.Lock()
	w.till.script = nil
	w.till.mu.Unlock()
	last := w.row(hope).Key
	w.d.Payments = only{w.till, last}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	w.pass(10 * time.Second)
	go func() {
		for ctx.Err() == nil && w.row(hope).Money != ledger.Mined {
			time.Sleep(20 * time.Millisecond)
		}
		cancel()
	}()
	w.ok(w.d.Run(ctx))
	w.state(hope, ledger.Done, ledger.Mined)
}

// only settles one payment and knows nothing of the others.
type only struct {
	*till
	key ledger.Key
}

func (o only) Settle(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	if p.Key != o.key {
		return ledger.Outcome{State: ledger.Unknown}, nil
	}
	return o.till.Settle(ctx, p)
}

// failing is a book that fails once, at one of its steps.
type failing struct {
	bookOf
	at string
}

func (f *failing) fails(at string) error {
	if f.at != at {
		return nil
	}
	f.at = ""
	return errors.New("the disk is full")
}

func (f *failing) Find(ctx context.Context, k ledger.Key) (*ledger.Payment, error) {
	if err := f.fails("find"); err != nil {
		return nil, err
	}
	return f.bookOf.Find(ctx, k)
}

func (f *failing) Answer(ctx context.Context, id string) (*ledger.Answer, error) {
	if err := f.fails("answer"); err != nil {
		return nil, err
	}
	return f.bookOf.Answer(ctx, id)
}

func (f *failing) Reserve(ctx context.Context, p ledger.Payment, owner string, lease time.Duration) (ledger.Payment, error) {
	if err := f.fails("reserve"); err != nil {
		return ledger.Payment{}, err
	}
	out, err := f.bookOf.Reserve(ctx, p, owner, lease)
	if lost := f.fails("reserved"); lost != nil { // it was committed, and the connection broke
		return ledger.Payment{}, lost
	}
	return out, err
}

func (f *failing) Done(ctx context.Context, id string, epoch int64, a ledger.Answer, ev usage.Event) error {
	if err := f.fails("done"); err != nil {
		return err
	}
	if err := f.bookOf.Done(ctx, id, epoch, a, ev); err != nil {
		return err
	}
	return f.fails("was done")
}

func (f *failing) Release(ctx context.Context, id string, epoch int64, why clawr.Code, ev usage.Event) error {
	if err := f.fails("release"); err != nil {
		return err
	}
	return f.bookOf.Release(ctx, id, epoch, why, ev)
}

// A book that fails at a step is no reason to say anything that may turn out
// wrong: neither that it was charged nor that it was not, and never 402.
func TestABookThatFails(t *testing.T) {
	for at, c := range map[string]struct {
		code    clawr.Code
		prepare func(w *world)
		sent    bool // before, and it went well
		runs    int  // in the end
		resend  int
	}{
		"find":     {code: clawr.CodeFacilitatorDown, runs: 1, resend: 200},
		"reserve":  {code: clawr.CodeFacilitatorDown, runs: 1, resend: 200},
		"reserved": {code: clawr.CodeFacilitatorDown, runs: 1, resend: 200},
		"done":     {code: clawr.CodeSettlementPending, runs: 2, resend: 200},
		"was done": {code: clawr.CodeSettlementPending, runs: 1, resend: 200},
		"release": {code: clawr.CodeSettlementPending, runs: 2, resend: 200,
			prepare: func(w *world) {
				w.shop.once(func(http.ResponseWriter, *http.Request) error { return errors.New("no luck") })
			}},
		"release, after a refused settlement": {code: clawr.CodeSettlementPending, runs: 1, resend: 402, prepare: func(w *world) { w.till.next((*till).refuse, (*till).refuse) }},
		"answer":                              {code: clawr.CodeSettlementPending, sent: true, runs: 1, resend: 200},
		"find, of a known":                    {code: clawr.CodeFacilitatorDown, sent: true, runs: 1, resend: 200},
	} {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			q := w.payment(request{})
			if c.sent {
				w.send(q).is(200, "")
			}
			if c.prepare != nil {
				c.prepare(w)
			}
			step, _, _ := strings.Cut(at, ",")
			w.d.Book = &failing{w.db, step}
			a := w.send(q).is(503, c.code).has("Retry-After", "2", "PAYMENT-REQUIRED", "")
			if b := a.Body.String(); !strings.Contains(b, `"retry":"same_payment"`) || strings.Contains(b, "disk") || strings.Contains(b, "asked") || step != "reserve" && step != "reserved" && strings.Contains(b, "not charged") {
				t.Errorf("told %s", b)
			}
			if c.code == clawr.CodeSettlementPending && a.receipt().ErrorReason != clawr.CodeSettlementPending {
				t.Errorf("PAYMENT-RESPONSE %+v", a.receipt())
			}
			if e := w.event(a); e.Billable || e.Billed != 0 {
				t.Errorf("event %+v", e)
			}
			w.pass(15 * time.Second) // the lease
			if last := w.send(q); last.Code != c.resend {
				t.Errorf("resent: %d %s", last.Code, last.Body)
			}
			charged := map[int]int{200: 1}[c.resend]
			w.sold(charged, c.runs)
			if n, billed := w.countable(q); n != charged || billed != clawr.Amount(charged*price) {
				t.Errorf("%d events count, %s is billed: %+v", n, billed, w.events())
			}
		})
	}
}

package dispatch_test

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// bubble runs a test in a world whose time stands still until everybody waits
// for it. The clock of the world is that of the bubble.
func bubble(t *testing.T, test func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		test(t, w)
	})
}

func TestMustPass23WindowsAndClockSkew(t *testing.T) {
	// A payment must outlive the deadline (3 s), 10 s for settling and 2 s of
	// difference between the clocks.
	const need = 15
	for _, c := range []struct {
		name          string
		after, before int64         // seconds from now; before 0: what a client signs
		head          time.Duration // by which the chain's clock is ahead
		late          time.Duration // between signing and sending
		want          clawr.Code    // "": sold
	}{
		{name: "just enough", before: need},
		{name: "a second short", before: need - 1, want: x402.ReasonValidBefore},
		{name: "inside the SDK's margin", before: 6, want: x402.ReasonValidBefore},
		{name: "over", before: -1, want: x402.ReasonValidBefore},
		{name: "over for long", before: -1 << 20, want: x402.ReasonValidBefore},
		{name: "without end", before: 1 << 62},
		{name: "valid from now", after: 0, before: 60},
		{name: "valid from the next second", after: 1, before: 60, want: x402.ReasonValidAfter},
		{name: "the chain is ahead, and it is enough", before: need + 8, head: 8 * time.Second},
		{name: "the chain is ahead, and it is not", before: need + 7, head: 8 * time.Second, want: x402.ReasonValidBefore},
		{name: "the chain is behind", before: need, head: -time.Hour},
		{name: "the chain is behind, and does not help", before: need - 1, head: -time.Hour, want: x402.ReasonValidBefore},
		{name: "sent late", late: 63*time.Second - need*time.Second},
		{name: "sent too late", late: 63*time.Second - need*time.Second + time.Second, want: x402.ReasonValidBefore},
		{name: "sent when the quote is over", late: 63 * time.Second, want: x402.ReasonQuoteExpired},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				time.Sleep(300 * time.Millisecond) // not on a whole second
				w.till.head = w.now().Add(c.head)
				q := w.forge(request{}, func(f *forged) {
					now := w.now().Unix()
					f.auth.ValidAfter = x402.Uint(uint64(now + c.after))
					if c.before != 0 {
						f.auth.ValidBefore = x402.Uint(uint64(now + c.before))
					}
				})
				time.Sleep(c.late)
				if a := w.send(q); c.want == "" {
					a.is(200, "")
				} else {
					a.is(402, c.want)
					w.untouched()
				}
			})
		})
	}
}

func TestAClientIsAskedToSignForLongEnough(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.d.Deadline = 0 // 30 s
		r := w.get("").required().Accepts[0]
		if r.MaxTimeoutSeconds != 90 {
			t.Errorf("maxTimeoutSeconds %d, want the deadline of 30 s and a minute", r.MaxTimeoutSeconds)
		}
	})
}

func TestAQuoteIsHonouredUntilTheSecondItEnds(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		long := func(f *forged) { f.auth.ValidBefore = x402.Uint(uint64(w.now().Unix() + 3600)) }
		in, out := w.forge(request{}, long), w.forge(request{}, long)
		w.deploy(clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Content: "new", Price: 2 * price, X402: true}})
		time.Sleep(63*time.Second - time.Nanosecond)
		w.send(in).is(200, "")
		time.Sleep(time.Nanosecond)
		w.send(out).is(402, x402.ReasonQuoteExpired)
		w.sold(1, 1)
	})
}

// Where the time of a route goes: two thirds for the work, the rest for the
// settlement, and then the caller is told to come back.
func TestDeadlines(t *testing.T) {
	took := func(w *world, q request) (*answer, time.Duration) {
		start := time.Now()
		a := w.send(q)
		return a, time.Since(start)
	}
	t.Run("work", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			q := w.payment(request{})
			w.shop.once(func(_ http.ResponseWriter, r *http.Request) error { <-r.Context().Done(); return r.Context().Err() })
			a, d := took(w, q)
			a.is(504, clawr.CodeWorkerTimeout)
			if d != 2*time.Second {
				t.Errorf("the work had %s, want two thirds of 3 s", d)
			}
			w.state(q, ledger.Failed, ledger.Released)
		})
	})
	t.Run("work that heeds nothing", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			q := w.payment(request{})
			w.shop.once(func(http.ResponseWriter, *http.Request) error { time.Sleep(time.Minute); return nil })
			a, d := took(w, q)
			a.is(504, clawr.CodeWorkerTimeout)
			if d != 2100*time.Millisecond {
				t.Errorf("it was waited for %s", d)
			}
			w.state(q, ledger.Failed, ledger.Released)
			time.Sleep(time.Minute)
		})
	})
	t.Run("settlement", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			q := w.payment(request{})
			w.shop.once(func(rw http.ResponseWriter, _ *http.Request) error {
				time.Sleep(1900 * time.Millisecond)
				_, err := rw.Write([]byte("x"))
				return err
			})
			w.till.next(func(t *till, ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
				out, err := t.broadcast(ctx, p)
				<-ctx.Done()
				return out, err
			})
			a, d := took(w, q)
			a.is(503, clawr.CodeSettlementPending).has("Retry-After", "2")
			if d != 3*time.Second || a.receipt().Transaction == "" {
				t.Errorf("after %s: %+v", d, a.receipt())
			}
		})
	})
	t.Run("a resend while it is settled", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			q := w.payment(request{})
			w.till.next(func(t *till, ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
				out, err := t.broadcast(ctx, p)
				<-ctx.Done()
				return out, err
			})
			go w.send(q)
			time.Sleep(time.Second)
			a, d := took(w, q)
			a.is(200, "").has("X-Clawr-Replayed", "true") // as soon as the first gave up, it is settled for the second
			if d != 2*time.Second || w.till.settles != 2 {
				t.Errorf("after %s, %d settlements", d, w.till.settles)
			}
			synctest.Wait()
		})
	})
	t.Run("a body that trickles", func(t *testing.T) {
		bubble(t, func(t *testing.T, w *world) {
			w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction}})
			q := w.payment(request{method: "POST", path: "/t/fn/v1/run", body: "x"})
			r := q.http()
			r.Body = slow{5 * time.Second}
			rec := &answer{t: t, q: q}
			rec.ResponseRecorder = w.record(r)
			if rec.Code == 200 || len(w.till.transfers()) > 0 {
				t.Errorf("%d after its deadline: %s", rec.Code, rec.Body)
			}
			w.untouched()
		})
	})
}

// Waiting costs a look into the book now and then, and no more.
func TestWaitingDoesNotSpin(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		other := w.dispatcher("node-2")
		w.reload(other)
		book := &counting{bookOf: w.d.Book}
		w.d.Book, other.Book = book, book
		q := w.payment(request{})
		w.shop.once(func(rw http.ResponseWriter, r *http.Request) error { <-r.Context().Done(); return r.Context().Err() })
		go w.send(q)
		time.Sleep(time.Millisecond)
		// In this order: the node that does not work on it goes on asking.
		for _, test := range []struct {
			name string
			node *dispatch.Dispatcher
			most int
		}{{"the same node", nil, 3}, {"another node", other, 25}} {
			book.finds.Store(0)
			q.node = test.node
			go w.send(q)
			time.Sleep(950 * time.Millisecond)
			if n := book.finds.Load(); n > int64(test.most) {
				t.Errorf("%s: %d looks in 0.95 s", test.name, n)
			}
		}
		time.Sleep(time.Minute)
	})
	// The lease of a POST is over, nobody may take it over: still no spinning.
	bubble(t, func(t *testing.T, w *world) {
		w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction}})
		q := w.payment(request{method: "POST", path: "/t/fn/v1/run", body: "x"})
		w.crash("worker.after", q)
		book := &counting{bookOf: w.d.Book}
		w.d.Book = book
		w.send(q).is(503, clawr.CodeSettlementPending)
		if n := book.finds.Load(); n > 35 {
			t.Errorf("%d looks in 3 s", n)
		}
	})
}

type counting struct {
	bookOf
	finds atomic.Int64
}

func (c *counting) Find(ctx context.Context, k ledger.Key) (*ledger.Payment, error) {
	c.finds.Add(1)
	return c.bookOf.Find(ctx, k)
}

type slow struct{ after time.Duration }

func (s slow) Read([]byte) (int, error) { time.Sleep(s.after); return 0, fmt.Errorf("slow") }
func (slow) Close() error               { return nil }

// A clock that is not the runtime's decides what is valid; how long to wait is
// the runtime's affair.
func TestAnInjectedClockDoesNotEndCalls(t *testing.T) {
	w := newWorld(t)
	w.pass(-48 * time.Hour)
	w.send(w.payment(request{})).is(200, "")
	w.pass(96 * time.Hour)
	w.send(w.payment(request{})).is(200, "")
}

func TestTheRecoveryAndItsRests(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.till.next((*till).broadcast)
		q := w.payment(request{})
		w.send(q).is(503, clawr.CodeSettlementPending)
		var at []time.Duration
		start := time.Now()
		again := func(t *till, ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
			at = append(at, time.Since(start))
			return t.broadcast(ctx, p)
		}
		w.till.next(again, again, func(t *till, ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
			at = append(at, time.Since(start))
			return t.pay(ctx, p)
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.d.Run(ctx) }()
		time.Sleep(2 * time.Minute)
		cancel()
		w.ok(<-done)
		w.state(q, ledger.Done, ledger.Mined)
		if len(at) != 3 || at[0] > 10*time.Second || at[1]-at[0] < 15*time.Second || at[1]-at[0] > 20*time.Second {
			t.Errorf("tried after %v", at)
		}
		w.sold(1, 1)
	})
}

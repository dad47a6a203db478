package dispatch_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
)

// standing is a facilitator whose settlements stand still until goes is closed.
type standing struct {
	*till
	goes chan struct{}
}

func (s *standing) Settle(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	select {
	case <-s.goes:
		return s.till.Settle(ctx, p)
	case <-ctx.Done():
		return ledger.Outcome{}, ctx.Err()
	}
}

// deep is a book whose queue is as deep as a test says.
type deep struct {
	*store.DB
	depth, expiry int64
}

func (d *deep) Backlog(ctx context.Context) (ledger.Backlog, error) {
	b, err := d.DB.Backlog(ctx)
	b.Depth += d.depth
	if d.expiry > 0 {
		b.Expiry, b.Head = d.expiry, time.Unix(d.expiry, 0).Add(-time.Hour)
	}
	return b, err
}

// When nothing is settled any more, so many calls wait as would be settled in
// half of a deadline. The next is answered 503 before anything is reserved or
// worked for, and is sold when those are through.
func TestAJammedSellerTurnsCallsAwayBeforeTheReservation(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.policies()
		w.d.Deadline = 2 * time.Second // at 200 a second, half of it is 200 calls
		still := &standing{w.till, make(chan struct{})}
		w.d.Payments = still
		const full = 201
		var qs []request
		for range full {
			qs = append(qs, w.payment(request{}))
		}
		late := map[string]request{"before": w.payment(request{}), "first": w.payment(request{path: pathOf(ledger.SettleFirst)})}
		answers := make([]*answer, full)
		var calls sync.WaitGroup
		for i, q := range qs {
			calls.Go(func() { answers[i] = w.send(q) })
		}
		synctest.Wait()
		if n := w.shop.total(); n != full {
			t.Fatalf("%d calls wait for their settlement, want %d", n, full)
		}
		for name, q := range late {
			a := w.send(q).is(503, clawr.CodeOverloaded).has("PAYMENT-REQUIRED", "", "Retry-After", "*")
			if row := w.row(q); row != nil || !strings.Contains(a.Body.String(), "nothing was charged") {
				t.Errorf("%s: told %s, with %+v in the book", name, a.Body, row)
			}
		}
		if n := w.shop.total(); n != full {
			t.Errorf("%d runs, want %d", n, full)
		}
		close(still.goes)
		calls.Wait()
		for _, a := range answers {
			a.is(200, "")
		}
		for _, q := range late {
			w.send(q).is(200, "")
		}
		w.sold(full+len(late), full+len(late))
	})
}

// Credit ends while the queue is too deep for the time that its first payment
// has, and comes back with the room.
func TestAQueueThatDoesNotDrainGivesNoCredit(t *testing.T) {
	w := newWorld(t)
	w.policies()
	book := &deep{DB: w.db}
	w.d.Queue = book
	for _, c := range []struct {
		name  string
		depth int64
		first time.Duration // until the first one expires; 0: there is none
		want  ledger.Policy
	}{
		{"empty", 0, 0, ledger.Async},
		{"deep", 200*1800 + 1000, 0, ledger.SettleBeforeResponse},
		{"not as deep", 200 * 1700, time.Hour, ledger.Async},
		{"not as deep, and in a hurry", 200 * 1700, time.Minute, ledger.SettleBeforeResponse},
		{"in a hurry", 200 * 10, time.Minute, ledger.Async},
	} {
		book.depth, book.expiry = c.depth, 0
		if c.first > 0 {
			book.expiry = w.now().Add(20*time.Second + c.first).Unix() // a round lets 20 s pass
		}
		w.round(w.d)
		q := w.payment(request{path: pathOf(ledger.Async)})
		r := w.send(q).is(200, "").receipt()
		if row := w.row(q); row.Policy != c.want || (r.Transaction == "") != (c.want == ledger.Async) {
			t.Errorf("%s: sold under %s with transaction %q, want %s", c.name, row.Policy, r.Transaction, c.want)
		}
	}
}

// Somebody is called once the first delivered payment has waited for more than
// five minutes: once, and again when it happens again.
func TestAnOldHeadOfTheQueueRaisesTheAlarmOnce(t *testing.T) {
	w := newWorld(t)
	w.policies()
	down := func(*till, context.Context, ledger.Payment) (ledger.Outcome, error) {
		return ledger.Outcome{}, errors.New("nothing moves")
	}
	stuck := &scripted{till: w.till, do: down}
	w.d.Payments = stuck
	alarms := func(when string, want int) {
		t.Helper()
		w.round(w.d)
		if got := strings.Count(w.log.String(), "payments are delivered and not settled"); got != want {
			t.Fatalf("%s: %d alarms, want %d\n%s", when, got, want, w.log)
		}
	}
	deliver := func() request {
		q := w.payment(request{path: pathOf(ledger.Async)})
		w.send(q).is(200, "")
		w.state(q, ledger.Done, ledger.Held)
		return q
	}
	alarms("nothing waits", 0)
	first := deliver()
	alarms("20 s", 0)
	w.pass(3 * time.Minute)
	alarms("less than five minutes", 0)
	w.pass(2 * time.Minute)
	alarms("more than five minutes", 1)
	if log := w.log.String(); !strings.Contains(log, `"level":"ERROR","msg":"payments are delivered and not settled","oldest":"6m`) || !strings.Contains(log, `"waiting":1,"expires"`) {
		t.Errorf("logged %s", log)
	}
	alarms("still", 1)
	stuck.set((*till).pay)
	stop := w.running(w.d)
	w.until("the settlement", func() bool { return w.row(first).Money == ledger.Mined })
	stop()
	alarms("settled", 1)
	stuck.set(down)
	deliver()
	alarms("another, 20 s", 1)
	w.pass(5 * time.Minute)
	alarms("another, more than five minutes", 2)
}

// scripted settles in one way until it is told another.
type scripted struct {
	*till
	mu sync.Mutex
	do outcome
}

func (s *scripted) set(do outcome) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.do = do
}

func (s *scripted) Settle(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	s.mu.Lock()
	do := s.do
	s.mu.Unlock()
	s.till.next(do)
	return s.till.Settle(ctx, p)
}

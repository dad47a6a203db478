package storetest

import (
	"errors"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// quota is a counter of which n are wanted.
func quota(scope string, n, limit int64) ledger.Counter {
	return ledger.Counter{Scope: scope, Window: 7, Cost: n, Cap: limit, Code: clawr.CodeQuotaExceeded}
}

func (f *fixture) usedOf(scope string) int64 {
	f.Helper()
	list, err := f.Counters(f.ctx(), scope)
	f.ok(err)
	if len(list) != 1 {
		f.Fatalf("%d windows of %s", len(list), scope)
	}
	return list[0].Used
}

// leasesAreDebited takes batches, gives some back, loses one, and looks at the
// counter after each: it never holds less than what may be spent.
func leasesAreDebited(f *fixture) {
	const limit = 100
	take := func(want int64, nodes int64, old ...ledger.Lease) ledger.Lease {
		f.Helper()
		got, err := f.Lease(f.ctx(), []ledger.Counter{quota("q", want, limit)}, nodes, time.Minute, old...)
		f.ok(err)
		return got[0]
	}
	a := take(8, 2)
	if a.Granted != 8 || a.Left != 8 || a.Used != 8 || a.ID == "" || !a.Expires.After(time.Now()) {
		f.Errorf("a lease of 8 is %+v", a)
	}
	b := take(1000, 2) // a half of a half of what is left
	if b.Granted != 23 || f.usedOf("q") != 31 {
		f.Errorf("two nodes are granted %d of the 92 that are left, and %d are used", b.Granted, f.usedOf("q"))
	}
	if one := take(1, 2); one.Granted != 1 || one.ID != "" || f.usedOf("q") != 32 {
		f.Errorf("one is a lease of its own: %+v", one)
	}
	b.Left = 3
	for range 2 { // again gives nothing again
		f.ok(f.ReturnLeases(f.ctx(), []ledger.Lease{b}))
		if used := f.usedOf("q"); used != 29 {
			f.Errorf("3 given back of 32 leave %d", used)
		}
	}
	// What is left of a goes back, and the new one is taken, together.
	a.Left = 5
	c := take(4, 2, a)
	if c.Granted != 4 || f.usedOf("q") != 28 {
		f.Errorf("5 back and 4 taken of 29 are %d", f.usedOf("q"))
	}
	lie := c
	lie.Left = 5
	f.ok(f.ReturnLeases(f.ctx(), []ledger.Lease{lie}))
	if f.usedOf("q") != 28 {
		f.Errorf("more was given back than was granted: %d are used", f.usedOf("q"))
	}
	// Two counters, one of them full: nothing of either, and old ones stay.
	_, err := f.Take(f.ctx(), []ledger.Counter{quota("full", 3, 3)})
	f.ok(err)
	_, err = f.Lease(f.ctx(), []ledger.Counter{quota("q", 2, limit), quota("full", 2, 3)}, 1, time.Minute, c)
	if full, ok := errors.AsType[*ledger.Exceeded](err); !ok || full.Counter.Scope != "full" || full.Counter.Used != 3 {
		f.Errorf("a lease of a full counter: %v", err)
	}
	if f.usedOf("q") != 28 {
		f.Errorf("a refused lease changed its other counter to %d", f.usedOf("q"))
	}
	// What nobody returns in time is spent.
	d, err := f.Lease(f.ctx(), []ledger.Counter{quota("q", 10, limit)}, 1, -2*time.Minute)
	f.ok(err)
	f.ok(f.Beat(f.ctx()))
	f.ok(f.ReturnLeases(f.ctx(), d))
	if f.usedOf("q") != 38 {
		f.Errorf("a lease that was swept away gave something back: %d are used, want 38", f.usedOf("q"))
	}
	f.ok(f.ReturnLeases(f.ctx(), []ledger.Lease{c}))
	if f.usedOf("q") != 34 {
		f.Errorf("a lease that lives was swept away: %d are used, want 34", f.usedOf("q"))
	}
}

// leasesHoldTheCap has many nodes take batches of two counters at once, in
// orders of their own, and give some back: what they hold together is what is
// used, and never beyond the cap; and all of it can be had.
func leasesHoldTheCap(f *fixture) {
	const nodes, limit = 8, 200
	var held atomic.Int64
	atOnce(nodes, func(i int) {
		ask := []ledger.Counter{quota("a", int64(i+1), limit), quota("b", int64(i+1), limit)}
		if i%2 == 0 {
			ask[0], ask[1] = ask[1], ask[0]
		}
		var old []ledger.Lease
		for round := range 60 {
			got, err := f.Lease(f.ctx(), ask, nodes, time.Minute, old...)
			if _, full := errors.AsType[*ledger.Exceeded](err); full {
				break
			}
			if err != nil {
				f.Error(err)
				return
			}
			for _, l := range old {
				held.Add(-l.Left)
			}
			old = nil
			for _, l := range got {
				if l.Used > limit || l.Granted < 1 || l.Granted > int64(i+1) {
					f.Errorf("granted %d, %d used of %d", l.Granted, l.Used, limit)
				}
				held.Add(l.Granted)
				if round%3 == 0 && l.ID != "" {
					l.Left = l.Granted / 2
					old = append(old, l)
				}
			}
		}
	})
	if a, b := f.usedOf("a"), f.usedOf("b"); a > limit || b > limit || a+b != held.Load() {
		f.Errorf("%d and %d are used of %d, and %d held", a, b, limit, held.Load())
	}
	for range limit {
		if _, err := f.Lease(f.ctx(), []ledger.Counter{quota("a", 50, limit)}, nodes, time.Minute); err != nil {
			break
		}
	}
	if a := f.usedOf("a"); a != limit {
		f.Errorf("only %d of %d can be had", a, limit)
	}
}

// sharedBuckets has many nodes take from one rate bucket at one instant: its
// burst comes through and no more; then what time brings back.
func sharedBuckets(f *fixture) {
	const burst, cell = 20, 50 * time.Millisecond
	now := time.Unix(1_800_000_000, 123_456_789)
	var through atomic.Int64
	spend := func(at time.Time, n int64) (time.Time, bool) {
		full, ok, err := f.Spend(f.ctx(), "caller/t/c", at, time.Duration(n)*cell, burst*cell)
		if err != nil {
			f.Error(err)
		}
		return full, ok
	}
	atOnce(8, func(i int) {
		for range 10 {
			n := int64(i%2 + 1)
			if full, ok := spend(now, n); ok {
				through.Add(n)
			} else if !full.After(now.Add((burst - 2) * cell)) {
				f.Errorf("refused, and full in %s", full.Sub(now))
			}
		}
	})
	if through.Load() != burst {
		f.Errorf("%d of a burst of %d came through on 8 nodes", through.Load(), burst)
	}
	if full, ok := spend(now.Add(cell-1), 1); ok || !full.Equal(now.Add(burst*cell)) {
		f.Errorf("a nanosecond too early: %v, full at %s", ok, full)
	}
	if full, ok := spend(now.Add(cell), 1); !ok || !full.Equal(now.Add((burst+1)*cell)) {
		f.Errorf("one came back and is refused: %v, full at %s", ok, full)
	}
	later := now.Add(time.Hour)
	if full, ok := spend(later, burst+1); ok || full.After(later) {
		f.Errorf("more than a burst was let through: %v, full at %s", ok, full)
	}
	if full, ok := spend(later, burst); !ok || !full.Equal(later.Add(burst*cell)) {
		f.Errorf("a bucket that was full again: %v, full at %s", ok, full)
	}
	f.ok(f.Beat(f.ctx())) // later is in the future of the book's clock, and stays
	if _, ok := spend(later, 1); ok {
		f.Error("a bucket that is not full was forgotten")
	}
}

// nodesAreCounted has a node come and go.
func nodesAreCounted(f *fixture) {
	if f.Nodes() != 1 {
		f.Errorf("a node that knows of no other counts %d", f.Nodes())
	}
	for range 2 {
		f.ok(f.Beat(f.ctx()))
		if f.Nodes() != 1 {
			f.Errorf("one node counts %d", f.Nodes())
		}
	}
}

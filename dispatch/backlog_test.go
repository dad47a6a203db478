package dispatch

import (
	"math"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr/ledger"
)

// A payment is delivered on credit only if the queue, at the pace that was
// seen, would be through in half of the time that the first to expire has, or
// this one if it has less.
func TestTheQueueMustDrainInHalfOfTheSlack(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, c := range []struct {
		name  string
		depth int64
		rate  float64       // a second; 0: not seen yet
		first time.Duration // until the first of the queue expires; 0: there is none
		left  time.Duration // of this payment
		want  bool
	}{
		{"empty", 0, 0, 0, time.Hour, true},
		{"unseen, just through", 200 * 1800, 0, 0, time.Hour, true},
		{"unseen, one too many", 200*1800 + 1, 0, 0, time.Hour, false},
		{"just through", 50 * 1800, 50, time.Hour, time.Hour, true},
		{"one too many", 50*1800 + 1, 50, time.Hour, time.Hour, false},
		{"the first expires sooner", 50 * 30, 50, time.Minute, time.Hour, true},
		{"the first expires too soon", 50*30 + 1, 50, time.Minute, time.Hour, false},
		{"this one expires sooner", 50 * 30, 50, time.Hour, time.Minute, true},
		{"this one expires too soon", 50*30 + 1, 50, time.Hour, time.Minute, false},
		{"the first is over", 1, 1e6, -time.Second, time.Hour, false},
		{"nothing is settled", 19, 0.01, time.Hour, time.Hour, false},
		{"next to nothing is settled", 18, 0.01, time.Hour, time.Hour, true},
	} {
		var b backlog
		b.depth.Store(c.depth)
		b.rate.Store(math.Float64bits(c.rate))
		if c.first != 0 {
			b.expiry.Store(now.Add(c.first).Unix())
		}
		if got := b.drains(now, c.left); got != c.want {
			t.Errorf("%s: %d at %v a second, the first ends in %v and this one in %v: drains %v, want %v", c.name, c.depth, c.rate, c.first, c.left, got, c.want)
		}
	}
}

// A call is turned away if those that wait would still wait after half of its
// deadline, and never while they are few.
func TestACallIsTurnedAwayWhenItWouldWaitInVain(t *testing.T) {
	for _, c := range []struct {
		waiting  int64
		rate     float64
		deadline time.Duration
		want     bool
	}{
		{0, 0.01, time.Second, false},
		{200, 0.01, time.Second, false}, // a batch of one block, at whatever pace
		{201, 0.01, time.Second, true},
		{200, 0, 2 * time.Second, false},
		{201, 0, 2 * time.Second, true},
		{3000, 0, 30 * time.Second, false},
		{3001, 0, 30 * time.Second, true},
		{450, 30, 30 * time.Second, false},
		{451, 30, 30 * time.Second, true},
		{15_000, 1000, 30 * time.Second, false},
	} {
		var b backlog
		b.waiting.Store(c.waiting)
		b.rate.Store(math.Float64bits(c.rate))
		if got := b.jammed(c.deadline); got != c.want {
			t.Errorf("%d wait at %v a second under a deadline of %v: jammed %v, want %v", c.waiting, c.rate, c.deadline, got, c.want)
		}
	}
}

// The pace is what was settled while there was enough to settle: a halt slows
// it down by and by, and an idle hour says nothing.
func TestThePaceIsThatOfABusyQueue(t *testing.T) {
	after := func(seen float64, took time.Duration) float64 {
		return 200 + (1-math.Exp(-took.Seconds()/60))*(seen-200)
	}
	for _, c := range []struct {
		name    string
		before  int64 // deep at the last look
		depth   int64
		settled int64
		took    time.Duration
		yielded bool
		want    float64
	}{
		{"a halt", 1e6, 1e6, 0, time.Minute, false, after(0, time.Minute)},
		{"a short halt", 1e6, 1e6, 0, 3 * time.Second, false, after(0, 3*time.Second)},
		{"half the pace", 1e6, 1e6, 300, 3 * time.Second, false, after(100, 3*time.Second)},
		{"twice the pace", 1e6, 1e6, 1200, 3 * time.Second, false, after(400, 3*time.Second)},
		{"twice the pace of few", 0, 0, 1200, 3 * time.Second, false, after(400, 3*time.Second)},
		{"nothing to settle", 0, 0, 0, time.Minute, false, 200},
		{"too little to settle", 599, 1e6, 0, 3 * time.Second, false, 200},
		{"all but settled", 1e6, 599, 0, 3 * time.Second, false, 200},
		{"it stood back for calls", 1e6, 1e6, 0, time.Minute, true, 200},
		{"no time went by", 1e6, 1e6, 1000, 0, false, 200},
		{"a halt of a day", 1e9, 1e9, 0, 24 * time.Hour, false, 0.01},
	} {
		var b backlog
		b.depth.Store(c.before)
		b.yielded.Store(c.yielded)
		b.looked(ledger.Backlog{Depth: c.depth, Expiry: 7}, c.settled, c.took)
		if got := b.perSecond(); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %v a second, want %v", c.name, got, c.want)
		}
		if b.depth.Load() != c.depth || b.expiry.Load() != 7 || c.took > 0 && b.yielded.Load() {
			t.Errorf("%s: noted %d, %d, %v", c.name, b.depth.Load(), b.expiry.Load(), b.yielded.Load())
		}
	}
}

// Settlement stands back while there is a crowd of calls, and for a moment
// after: a commit that they share answers all of them at once, and they come
// back. A clock that was set back is no crowd.
func TestSettlementStandsBackForACrowd(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	d := &Dispatcher{Now: func() time.Time { return now }}
	e := &entry{inFlight: new(atomic.Int64)}
	var leave []func()
	enter := func(n int64) {
		for range n {
			l, err := d.enter(e)
			if err != nil {
				t.Fatal(err)
			}
			leave = append(leave, l)
		}
	}
	is := func(when string, want bool) {
		t.Helper()
		if got := d.busy(); got != want {
			t.Errorf("%s: busy %v, want %v", when, got, want)
		}
	}
	is("no calls", false)
	enter(crowd() - 1)
	is("a call for each processor, and some", false)
	enter(1)
	is("a crowd", true)
	now = now.Add(time.Hour)
	is("a crowd that has been there for long", true)
	for _, l := range leave {
		l()
	}
	is("a crowd that came an hour ago and left", false)
	enter(crowd())
	for _, l := range leave[len(leave)-int(crowd()):] {
		l()
	}
	is("a crowd that was answered", true)
	now = now.Add(busyFor)
	is("a crowd that did not come back", false)
	now = now.Add(-time.Hour)
	is("the clock was set back", false)
}

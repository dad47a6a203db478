package dispatch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/meter"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
)

// timepiece is a clock that stands until it is moved.
type timepiece struct{ at atomic.Int64 }

func (c *timepiece) now() time.Time       { return time.Unix(0, c.at.Load()) }
func (c *timepiece) pass(d time.Duration) { c.at.Add(int64(d)) }

// books are n nodes' connections to one book: of SQLite, which has one owner,
// they are the same.
func books(t *testing.T, n int, postgres bool) ([]*store.DB, *timepiece) {
	t.Helper()
	clock := &timepiece{}
	clock.at.Store(time.Date(2026, 3, 31, 12, 0, 0, 0, time.UTC).UnixNano())
	o := store.Options{Now: clock.now, Fatal: func(err error) { t.Errorf("book: %v", err) }}
	if postgres {
		o.URL = storetest.Postgres(t)
	} else {
		o.Path = filepath.Join(t.TempDir(), "clawr.db")
	}
	var list []*store.DB
	for len(list) < n {
		db, err := store.Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		for list = append(list, db); !postgres && len(list) < n; {
			list = append(list, db)
		}
	}
	return list, clock
}

func onBoth(t *testing.T, test func(t *testing.T, postgres bool)) {
	t.Run("sqlite", func(t *testing.T) { test(t, false) })
	t.Run("postgres", func(t *testing.T) { test(t, true) })
}

var quiet = slog.New(slog.DiscardHandler)

// several says that there are more nodes than the book counts.
type several struct {
	*store.DB
	n int64
}

func (s several) Nodes() int64 { return s.n }

// Calls at nodes that lease, die with their leases, come back, idle and
// outlive their leases: a quota is never exceeded, and a caller who is refused
// misses only what other nodes hold, or died with.
func TestLawLeasedQuotasHoldOverAllNodes(t *testing.T) {
	onBoth(t, func(t *testing.T, postgres bool) {
		const most = 4
		dbs, clock := books(t, most, postgres)
		var serial atomic.Int64
		rapid.Check(t, func(t *rapid.T) {
			n := rapid.IntRange(1, most).Draw(t, "nodes")
			limit := rapid.Int64Range(1, 120).Draw(t, "cap")
			id := serial.Add(1)
			windows := []ledger.Counter{
				{Scope: fmt.Sprint("usage-day/", id), Window: 1, Cost: 1, Cap: limit, Code: clawr.CodeQuotaExceeded},
				{Scope: fmt.Sprint("usage-month/", id), Window: 1, Cost: 1, Cap: 2 * limit, Code: clawr.CodeQuotaExceeded},
			}
			nodes := make([]*Leases, n)
			start := func(i int) { nodes[i] = &Leases{From: several{dbs[i], int64(n)}, Now: clock.now, Log: quiet} }
			lost := map[string]int64{} // by scope
			held := func(l *Leases) (sum int64) {
				for k, h := range l.held {
					if k.scope == windows[0].Scope {
						sum += h.lease.Left
					}
				}
				return sum
			}
			lose := func(l *Leases) {
				for k, h := range l.held {
					lost[k.scope] += h.lease.Left
				}
			}
			for i := range nodes {
				start(i)
			}
			var through int64
			stop := func(i int) {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				if err := nodes[i].Run(ctx); err != nil {
					t.Fatal(err)
				}
			}
			for range rapid.IntRange(1, 40).Draw(t, "events") {
				i := rapid.IntRange(0, n-1).Draw(t, "node")
				switch rapid.IntRange(0, 9).Draw(t, "event") {
				case 0: // it dies, and another takes its place
					lose(nodes[i])
					start(i)
				case 1: // it restarts
					stop(i)
					start(i)
				case 2: // time for what idles, or lapses
					clock.pass(time.Duration(rapid.Int64Range(1, 50).Draw(t, "seconds")) * time.Second)
					nodes[i].tidy(context.Background(), clock.now().Add(-leaseIdle))
				case 3: // all slept, and their leases were swept away
					clock.pass(leaseLife + 2*time.Minute)
					for _, l := range nodes {
						lose(l)
					}
					if err := dbs[0].Beat(context.Background()); err != nil {
						t.Fatal(err)
					}
				default: // calls
					for range rapid.IntRange(1, 15).Draw(t, "calls") {
						got, err := nodes[i].Take(context.Background(), windows)
						if _, full := errors.AsType[*ledger.Exceeded](err); full {
							others := int64(0)
							for _, l := range nodes {
								others += held(l)
							}
							if through+lost[windows[0].Scope]+others < limit {
								t.Fatalf("refused after %d of %d, with %d held and %d lost", through, limit, others, lost[windows[0].Scope])
							}
							break
						}
						if err != nil {
							t.Fatal(err)
						}
						through++
						if got[0].Used > limit || n == 1 && len(lost) == 0 && got[0].Used != through {
							t.Fatalf("a caller is told that %d are used after %d of %d", got[0].Used, through, limit)
						}
					}
				}
				if through > limit {
					t.Fatalf("%d of a quota of %d came through on %d nodes", through, limit, n)
				}
			}
			for i := range nodes {
				stop(i)
			}
			list, err := dbs[0].Counters(context.Background(), windows[0].Scope, windows[1].Scope)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range list {
				if c.Used < through || c.Used > through+lost[c.Scope] {
					t.Fatalf("%s counts %d at the end: %d came through and %d were lost", c.Scope, c.Used, through, lost[c.Scope])
				}
			}
		})
	})
}

// One caller floods three nodes at once: his quota comes through to the last
// call, for fewer questions to the database than calls.
func TestAFloodIsCountedInBatches(t *testing.T) {
	onBoth(t, func(t *testing.T, postgres bool) {
		const n, limit, calls = 3, 600, 400
		dbs, clock := books(t, n, postgres)
		quota := []ledger.Counter{{Scope: "usage-day/t/c", Window: 1, Cost: 1, Cap: limit, Code: clawr.CodeQuotaExceeded}}
		var asked, through atomic.Int64
		var wg sync.WaitGroup
		var nodes []*Leases
		for i := range n {
			l := &Leases{From: counting{several{dbs[i], n}, &asked}, Now: clock.now, Log: quiet}
			nodes = append(nodes, l)
			for range 8 {
				wg.Go(func() {
					for range calls / 8 {
						_, err := l.Take(t.Context(), quota)
						if _, full := errors.AsType[*ledger.Exceeded](err); err == nil {
							through.Add(1)
						} else if !full {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
		var held int64
		for _, l := range nodes {
			for _, h := range l.held {
				held += h.lease.Left
			}
		}
		if through.Load()+held != limit {
			t.Errorf("%d of %d came through, and %d are held", through.Load(), limit, held)
		}
		refused := n*calls - through.Load()
		if questions := asked.Load() - refused; questions > limit/3 {
			t.Errorf("%d questions for %d calls", questions, through.Load())
		}
	})
}

type counting struct {
	several
	asked *atomic.Int64
}

func (c counting) Lease(ctx context.Context, list []ledger.Counter, nodes int64, life time.Duration, old ...ledger.Lease) ([]ledger.Lease, error) {
	c.asked.Add(1)
	return c.several.Lease(ctx, list, nodes, life, old...)
}

// A lease of which nobody knows whether it was granted is not spent.
func TestAnUnknownLeaseIsNotSpent(t *testing.T) {
	dbs, clock := books(t, 1, false)
	from := &torn{several: several{dbs[0], 1}}
	l := &Leases{From: from, Now: clock.now, Log: quiet}
	quota := []ledger.Counter{{Scope: "usage-day/t/c", Window: 1, Cost: 1, Cap: 100, Code: clawr.CodeQuotaExceeded}}
	through := int64(0)
	for i := range 90 {
		quota[0].Cap = 100
		if from.tear = i%7 == 3; from.tear {
			quota[0].Cap = 99 // a new version was deployed, so there is something to end, and rolled back
		}
		if i%10 == 9 {
			clock.pass(leaseLife)
		}
		if _, err := l.Take(t.Context(), quota); err == nil {
			through++
		} else if _, full := errors.AsType[*ledger.Exceeded](err); !full && !errors.Is(err, errTorn) {
			t.Fatal(err)
		}
		list, err := dbs[0].Counters(t.Context(), quota[0].Scope)
		if err != nil {
			t.Fatal(err)
		}
		var left int64
		for _, h := range l.held {
			left = h.lease.Left
		}
		if used := list[0].Used; used != through+left+from.granted {
			t.Fatalf("%d came through, %d may, %d were granted unheard, and %d are counted", through, left, from.granted, used)
		}
	}
}

var errTorn = errors.New("the connection broke during COMMIT")

// torn does what it is asked and says that it does not know.
type torn struct {
	several
	tear    bool
	granted int64
}

func (t *torn) Lease(ctx context.Context, list []ledger.Counter, nodes int64, life time.Duration, old ...ledger.Lease) ([]ledger.Lease, error) {
	got, err := t.several.Lease(ctx, list, nodes, life, old...)
	if t.tear && err == nil {
		t.granted += got[0].Granted
		return nil, errTorn
	}
	return got, err
}

// Three nodes share a caller's rate: what comes through at once is the burst
// and not three times the burst, whatever node is asked; and a node that cannot
// ask lets its part through.
func TestNodesShareARate(t *testing.T) {
	onBoth(t, func(t *testing.T, postgres bool) {
		const n, burst = 3, 60
		dbs, clock := books(t, n, postgres)
		tenant := &clawr.Tenant{ID: "t", Manifest: clawr.Manifest{Rate: clawr.Rates{
			PerCaller: clawr.Rate{Requests: burst, WindowSeconds: 60}, Global: clawr.Rate{Requests: 10 * burst, WindowSeconds: 60}}}}
		var nodes []*Rates
		for i := range n {
			nodes = append(nodes, &Rates{From: several{dbs[i], n}, Local: new(meter.Limiter), Log: quiet})
		}
		// flood asks all nodes at once, more than all could let through.
		flood := func(caller string) int64 {
			var through atomic.Int64
			var wg sync.WaitGroup
			for i := range 3 * n {
				wg.Go(func() {
					for range burst {
						d := nodes[i%n].Admit(t.Context(), tenant, caller, clock.now())
						if d.OK {
							through.Add(1)
						} else if d.RetryAfter <= 0 {
							t.Errorf("refused for ever: %+v", d)
						}
					}
				})
			}
			wg.Wait()
			return through.Load()
		}
		held := func(caller string) (sum int64) {
			for _, r := range nodes {
				if p := r.held["caller/t/"+caller]; p != nil {
					sum += p.left
				}
			}
			return sum
		}
		if got := flood("a"); got > burst || got+held("a") != burst {
			t.Errorf("%d came through at once and %d are held, want %d together", got, held("a"), burst)
		}
		clock.pass(30 * time.Second)
		if got := flood("a"); got > burst/2+burst/4 || got+held("a") != burst/2 {
			t.Errorf("%d more after half a minute, and %d are held", got, held("a"))
		}
		if got := flood("b"); got == 0 || got > burst {
			t.Errorf("another caller: %d", got)
		}
	})
}

// deaf does not answer.
type deaf struct{ asked atomic.Int64 }

func (d *deaf) Nodes() int64 { return 3 }
func (d *deaf) Spend(ctx context.Context, _ string, _ time.Time, _, _ time.Duration) (time.Time, bool, error) {
	d.asked.Add(1)
	return time.Time{}, false, errors.New("no route to host")
}

func TestANodeThatCannotAskLetsItsPartThrough(t *testing.T) {
	from := &deaf{}
	r := &Rates{From: from, Local: new(meter.Limiter), Log: quiet}
	tenant := &clawr.Tenant{ID: "t", Manifest: clawr.Manifest{Rate: clawr.Rates{PerCaller: clawr.Rate{Requests: 60, WindowSeconds: 60}}}}
	now := time.Now()
	through := 0
	for range 100 {
		if r.Admit(t.Context(), tenant, "a", now).OK {
			through++
		}
	}
	if through != 20 {
		t.Errorf("%d of 60 came through on one of three nodes, want 20", through)
	}
	if n := from.asked.Load(); n != 1 {
		t.Errorf("a database that does not answer was asked %d times in one moment", n)
	}
}

// moody answers, or does not.
type moody struct {
	several
	silent *atomic.Bool
}

func (m moody) Spend(ctx context.Context, bucket string, now time.Time, cost, size time.Duration) (time.Time, bool, error) {
	if m.silent.Load() {
		return time.Time{}, false, errors.New("no route to host")
	}
	return m.several.Spend(ctx, bucket, now, cost, size)
}

// A database that goes away, or comes back, gives nobody a second rate: what a
// node has let in for all is part of its part, and what it lets in by itself it
// owes.
func TestAnOutageIsNoSecondRate(t *testing.T) {
	const n, burst, window = 2, 60, 60 // one a second
	start := func(t *testing.T) (ask func(node, times int) int, silent *atomic.Bool, pass func(time.Duration)) {
		dbs, clock := books(t, n, false)
		silent = new(atomic.Bool)
		tenant := &clawr.Tenant{ID: "t", Manifest: clawr.Manifest{Rate: clawr.Rates{PerCaller: clawr.Rate{Requests: burst, WindowSeconds: window}}}}
		var nodes []*Rates
		for i := range n {
			nodes = append(nodes, &Rates{From: moody{several{dbs[i], n}, silent}, Local: new(meter.Limiter), Log: quiet})
		}
		return func(node, times int) (through int) {
			for range times {
				if nodes[node].Admit(t.Context(), tenant, "a", clock.now()).OK {
					through++
				}
			}
			return through
		}, silent, clock.pass
	}
	t.Run("it goes", func(t *testing.T) {
		ask, silent, _ := start(t)
		before := ask(0, 40)
		silent.Store(true)
		if got := before + ask(0, 200); before != 40 || got > burst {
			t.Errorf("%d came through before and %d with what came after, want no more than %d", before, got, burst)
		}
		if got := ask(1, 200); got != burst/n {
			t.Errorf("%d came through on a node that had let nobody in, want %d", got, burst/n)
		}
	})
	t.Run("it comes back", func(t *testing.T) {
		ask, silent, pass := start(t)
		silent.Store(true)
		first, second := ask(0, 200), ask(1, 200)
		if first != burst/n || second != burst/n {
			t.Errorf("%d and %d came through while nobody could ask, want %d each", first, second, burst/n)
		}
		silent.Store(false)
		pass(2 * time.Second)
		first += ask(0, 200)
		if most := burst + 2 + n; first > most {
			t.Errorf("%d came through one node with the two seconds after it, want %d at most", first, most)
		}
		if got, most := first+second+ask(1, 200), burst*(2*n-1)/n+2+n; got > most {
			t.Errorf("%d came through both nodes, want %d at most", got, most)
		}
		// And what is owed is paid: a minute later there is a whole rate again.
		pass(window * time.Second)
		if got := ask(0, 200) + ask(1, 200); got < burst-burst/4 || got > burst+n {
			t.Errorf("%d came through a minute later, want about %d", got, burst)
		}
	})
	t.Run("it goes, comes and goes", func(t *testing.T) {
		ask, silent, pass := start(t)
		got := 0
		for i := range 10 {
			silent.Store(i%2 == 1)
			got += ask(0, 15)
			pass(1100 * time.Millisecond)
		}
		if most := burst + 11 + n; got > most {
			t.Errorf("%d came through one node in 11 seconds, want %d at most", got, most)
		}
	})
}

// A caller whom the tenant's own bucket refuses keeps what his had.
func TestARefusalOfAllTakesNothingOfOne(t *testing.T) {
	dbs, clock := books(t, 1, false)
	r := &Rates{From: several{dbs[0], 1}, Local: new(meter.Limiter), Log: quiet}
	tenant := &clawr.Tenant{ID: "t", Manifest: clawr.Manifest{Rate: clawr.Rates{
		PerCaller: clawr.Rate{Requests: 10, WindowSeconds: 3600}, Global: clawr.Rate{Requests: 5, WindowSeconds: 1}}}}
	through := 0
	for range 30 {
		if r.Admit(t.Context(), tenant, "a", clock.now()).OK {
			through++
		}
	}
	clock.pass(time.Minute)
	for range 30 {
		if r.Admit(t.Context(), tenant, "a", clock.now()).OK {
			through++
		}
	}
	if through != 10 {
		t.Errorf("%d of 10 came through over two rounds of 5", through)
	}
}

// What this node forgets to make room lets nobody through twice.
func TestForgottenBucketsWereFull(t *testing.T) {
	dbs, clock := books(t, 1, false)
	r := &Rates{From: several{dbs[0], 1}, Local: new(meter.Limiter), Log: quiet}
	tenant := &clawr.Tenant{ID: "t", Manifest: clawr.Manifest{Rate: clawr.Rates{PerCaller: clawr.Rate{Requests: 2, WindowSeconds: 60}}}}
	for i := range 40 {
		r.Admit(t.Context(), tenant, fmt.Sprint("old", i), clock.now())
	}
	clock.pass(time.Hour)
	for i := range 40 {
		r.Admit(t.Context(), tenant, fmt.Sprint("new", i), clock.now())
	}
	if len(r.held) > 60 {
		t.Errorf("%d buckets are remembered, of which 40 can matter", len(r.held))
	}
}

package meter

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr"
)

var perMinute = clawr.Rate{Requests: 60, WindowSeconds: 60, Burst: 5}

func TestZeroLimiterKeepsCallersApart(t *testing.T) {
	var l Limiter
	for i := range 5 {
		if d := l.Allow("a", perMinute, noon, 1); !d.OK || d.Remaining != int64(4-i) {
			t.Fatalf("call %d: %+v", i, d)
		}
	}
	if d := l.Allow("a", perMinute, noon, 1); d.OK || d.RetryAfter != time.Second {
		t.Errorf("sixth call of a: %+v, want a refusal for 1 s", d)
	}
	if d := l.Allow("b", perMinute, noon, 1); !d.OK {
		t.Errorf("b pays for a: %+v", d)
	}
	l.Return("a", perMinute, 1)
	if d := l.Allow("a", perMinute, noon, 1); !d.OK {
		t.Errorf("a request that was given back is still owed: %+v", d)
	}
}

func TestConcurrentCallersGetTheBurstAndNoMore(t *testing.T) {
	var l Limiter
	var won atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				if l.Allow("one", perMinute, noon, 1).OK {
					won.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if won.Load() != 5 {
		t.Errorf("%d of 1600 concurrent calls passed, want the burst of 5", won.Load())
	}
}

func TestMemoryIsBounded(t *testing.T) {
	l := Limiter{Max: 6400}
	for i := range 50_000 {
		l.Allow(fmt.Sprint("flood-", i), perMinute, noon, 1)
	}
	if n := l.Len(); n > 6400 {
		t.Errorf("%d buckets are kept, Max is 6400", n)
	}
	// A minute later all of them are full: new callers push them out, and a
	// bucket that was just used stays.
	later := noon.Add(time.Minute)
	for i := range 20_000 {
		l.Allow("busy", perMinute, later, 1)
		l.Allow(fmt.Sprint("later-", i), perMinute, later.Add(time.Duration(i)*time.Millisecond), 1)
	}
	if n := l.Len(); n > 5000 {
		t.Errorf("%d buckets are kept, though only about 1000 are not full", n)
	}
	for range 10_000 {
		l.Allow("idle", clawr.Rate{}, later, 1)
	}
	if d := l.Allow("fresh", perMinute, later, 0); !d.OK || d.Remaining != 5 {
		t.Errorf("looking at a new bucket: %+v", d)
	}
}

func TestADrainedBucketSurvivesFullOnes(t *testing.T) {
	l := Limiter{Max: 128} // two buckets a shard
	slow := clawr.Rate{Requests: 1, WindowSeconds: 3600, Burst: 3}
	for range 3 {
		l.Allow("victim", slow, noon, 1)
	}
	for i := range 1000 { // full before the next one comes
		l.Allow(fmt.Sprint(i), clawr.Rate{Requests: 1000, WindowSeconds: 1}, noon.Add(time.Duration(i)*10*time.Millisecond), 1)
	}
	if d := l.Allow("victim", slow, noon.Add(10*time.Second), 1); d.OK || l.Len() > 128 {
		t.Errorf("%d buckets, Max is 128; callers whose buckets are full again drove out a drained one: %+v", l.Len(), d)
	}
}

func TestAdmitTakesFromBothBucketsOrNeither(t *testing.T) {
	var l Limiter
	tenant := &clawr.Tenant{ID: "tnt_1", Manifest: clawr.Manifest{Rate: clawr.Rates{
		PerCaller: clawr.Rate{Requests: 2, WindowSeconds: 60}, Global: clawr.Rate{Requests: 3, WindowSeconds: 60}}}}
	for i, s := range []struct {
		caller string
		ok     bool
		limit  int64
	}{
		{"a", true, 2}, {"a", true, 2}, {"a", false, 2}, // its own bucket, which must not drain the common one
		{"b", true, 3}, {"b", false, 3}, {"c", false, 3}, // the common one, which must not drain their own
	} {
		if d := l.Admit(tenant, s.caller, noon); d.OK != s.ok || d.Limit != s.limit {
			t.Errorf("call %d by %s: %+v, want OK %v of limit %d", i, s.caller, d, s.ok, s.limit)
		}
	}
	if d := l.Allow("caller/tnt_1/b", tenant.Rate.PerCaller, noon, 0); d.Remaining != 1 {
		t.Errorf("b has %d left, want 1: the common bucket's refusal was charged to it", d.Remaining)
	}
	if d := l.Admit(tenant, "c", noon.Add(20*time.Second)); !d.OK {
		t.Errorf("after a third of the window: %+v", d)
	}
	other := &clawr.Tenant{ID: "tnt_2", Manifest: tenant.Manifest}
	if d := l.Admit(other, "a", noon); !d.OK {
		t.Errorf("another tenant shares the bucket: %+v", d)
	}
}

func TestATenantWithoutLimitsCostsNothing(t *testing.T) {
	var l Limiter
	tenant := &clawr.Tenant{ID: "tnt_1"}
	n := testing.AllocsPerRun(100, func() {
		if !l.Admit(tenant, "a", noon).OK || Counters(tenant, "a", 1000, 1, noon) != nil {
			t.Fatal("limited")
		}
	})
	if n != 0 || l.Len() != 0 {
		t.Errorf("%v allocations and %d buckets, want none", n, l.Len())
	}
}

func BenchmarkAdmit(b *testing.B) {
	var l Limiter
	tenant := &clawr.Tenant{ID: "tnt_1", Manifest: clawr.Manifest{Rate: clawr.Rates{PerCaller: clawr.Rate{Requests: 1e6, WindowSeconds: 1}}}}
	now := noon
	b.ReportAllocs()
	for b.Loop() {
		now = now.Add(time.Microsecond)
		l.Admit(tenant, "0x0123456789abcdef", now)
	}
}

func BenchmarkAdmitNewCallers(b *testing.B) {
	l := Limiter{Max: 10_000}
	i := 0
	for b.Loop() {
		l.Allow(fmt.Sprint(i), perMinute, noon, 1)
		i++
	}
}

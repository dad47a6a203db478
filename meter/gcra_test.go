package meter

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
)

var noon = time.Date(2026, 3, 31, 12, 0, 0, 0, time.UTC)

func TestTakeByHand(t *testing.T) {
	ten := clawr.Rate{Requests: 10, WindowSeconds: 60} // one every 6 s, 10 at once
	var full time.Time
	var d Decision
	steps := []struct {
		at        time.Duration
		cost      int64
		ok        bool
		remaining int64
		reset     time.Duration
		retry     time.Duration
	}{
		{0, 1, true, 9, 6 * time.Second, 0},
		{0, 9, true, 0, 60 * time.Second, 0},
		{0, 1, false, 0, 60 * time.Second, 6 * time.Second},
		{5999 * time.Millisecond, 1, false, 0, 54001 * time.Millisecond, time.Millisecond},
		{6 * time.Second, 1, true, 0, 60 * time.Second, 0},
		{6 * time.Second, 0, true, 0, 60 * time.Second, 0},
		{36 * time.Second, 6, false, 5, 30 * time.Second, 6 * time.Second},
		{36 * time.Second, 5, true, 0, 60 * time.Second, 0},
		{36 * time.Second, 11, false, 0, 60 * time.Second, 0}, // never fits
		{time.Hour, 11, false, 10, 0, 0},
		{time.Hour, 10, true, 0, 60 * time.Second, 0},
	}
	for i, s := range steps {
		d, full = Take(ten, full, noon.Add(s.at), s.cost)
		want := Decision{OK: s.ok, Limit: 10, Remaining: s.remaining, Reset: s.reset, RetryAfter: s.retry}
		if d != want {
			t.Errorf("step %d at %s, cost %d:\n got %+v\nwant %+v", i, s.at, s.cost, d, want)
		}
	}
}

func TestBurstBoundsWhatComesAtOnce(t *testing.T) {
	r := clawr.Rate{Requests: 3, WindowSeconds: 1, Burst: 7} // 1/3 s is no whole number of nanoseconds
	var full time.Time
	passed := 0
	for range 20 {
		var d Decision
		if d, full = Take(r, full, noon, 1); d.OK {
			passed++
		}
	}
	if passed != 7 {
		t.Errorf("%d requests passed at one instant, want the burst of 7", passed)
	}
}

func TestOddRatesNeitherPanicNorOverflow(t *testing.T) {
	huge := int64(math.MaxInt64)
	for _, r := range []clawr.Rate{
		{Requests: huge, WindowSeconds: 1}, {Requests: 1, WindowSeconds: huge},
		{Requests: huge, WindowSeconds: huge, Burst: huge}, {Requests: 1, WindowSeconds: huge, Burst: huge},
	} {
		full := time.Time{}
		for _, cost := range []int64{-1, 0, 1, huge} {
			var d Decision
			if d, full = Take(r, full, noon, cost); d.Reset < 0 || d.RetryAfter < 0 || d.Remaining < 0 || d.Remaining > d.Limit {
				t.Errorf("%+v cost %d: %+v", r, cost, d)
			}
		}
		if d, _ := Take(r, noon.AddDate(5000, 0, 0), noon, 1); d.Reset < 0 || d.RetryAfter < 0 || d.Remaining < 0 {
			t.Errorf("%+v far in the future: %+v", r, d)
		}
	}
	if d, full := Take(clawr.Rate{}, noon, noon, 1000); !d.OK || d.Limit != 0 || !full.Equal(noon) {
		t.Errorf("no rate: %+v %s, want it to limit nothing", d, full)
	}
}

func rates() *rapid.Generator[clawr.Rate] {
	return rapid.Custom(func(t *rapid.T) clawr.Rate {
		return clawr.Rate{
			Requests:      rapid.Int64Range(1, 2000).Draw(t, "requests"),
			WindowSeconds: rapid.Int64Range(1, 3600).Draw(t, "window"),
			Burst:         rapid.Int64Range(0, 50).Draw(t, "burst"),
		}
	})
}

// The law of the bucket: in any stretch of time t no more than burst +
// t·requests/window come through, whatever the pattern of calls, and whoever
// waits for RetryAfter is let in.
func TestNeverMoreThanBurstPlusRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rates().Draw(t, "rate")
		type pass struct {
			at   time.Time
			cost int64
		}
		var passed []pass
		now, full := noon, time.Time{}
		for range rapid.IntRange(1, 60).Draw(t, "calls") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(20*interval(r))).Draw(t, "gap")))
			cost := rapid.Int64Range(1, 5).Draw(t, "cost")
			var d Decision
			if d, full = Take(r, full, now, cost); d.OK {
				passed = append(passed, pass{now, cost})
			} else if d.RetryAfter > 0 {
				if again, _ := Take(r, full, now.Add(d.RetryAfter), cost); !again.OK {
					t.Fatalf("refused with RetryAfter %s, and refused again after it", d.RetryAfter)
				}
				if early, _ := Take(r, full, now.Add(d.RetryAfter-1), cost); early.OK {
					t.Fatalf("let in a nanosecond before RetryAfter %s", d.RetryAfter)
				}
			}
		}
		for i := range passed {
			var sum int64
			for _, p := range passed[i:] {
				sum += p.cost
				seconds := p.at.Sub(passed[i].at).Seconds()
				if most := float64(burst(r)) + seconds*float64(r.Requests)/float64(r.WindowSeconds); float64(sum) > most+1e-6 {
					t.Fatalf("%d passed in %.9f s, at most %.3f may", sum, seconds, most)
				}
			}
		}
	})
}

// Remaining is a promise: exactly so many more single requests pass now. And
// waiting never hurts.
func TestRemainingIsExactAndTimeOnlyHelps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rates().Draw(t, "rate")
		full := noon.Add(time.Duration(rapid.Int64Range(-int64(time.Minute), int64(2*span(r, burst(r)))).Draw(t, "full")))
		d, _ := Take(r, full, noon, 0)
		later, _ := Take(r, full, noon.Add(time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "wait"))), 0)
		if later.Remaining < d.Remaining || later.Reset > d.Reset {
			t.Fatalf("waiting made it worse: %+v, then %+v", d, later)
		}
		var n int64
		for f := full; ; n++ {
			var next Decision
			if next, f = Take(r, f, noon, 1); !next.OK {
				break
			}
		}
		if n != d.Remaining {
			t.Fatalf("%d passed, Remaining said %d", n, d.Remaining)
		}
	})
}

func TestRateHeaders(t *testing.T) {
	d := Decision{Limit: 10, Remaining: 0, Reset: 59*time.Second + 1, RetryAfter: 5001 * time.Millisecond}
	got := map[string]string{}
	d.Headers(func(k, v string) { got[k] = v })
	for k, v := range map[string]string{"X-RateLimit-Limit": "10", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "60", "Retry-After": "6"} {
		if got[k] != v {
			t.Errorf("%s: %q, want %q", k, got[k], v)
		}
	}
	Decision{OK: true}.Headers(func(k, v string) { t.Errorf("no bucket, but %s: %s", k, v) })
	if err := d.Err(); clawr.CodeOf(err) != clawr.CodeRateLimited {
		t.Errorf("refusal is %v, want rate_limited", err)
	}
	if err := (Decision{OK: true}).Err(); err != nil {
		t.Errorf("let in, but %v", err)
	}
}

package meter

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
)

func TestABatchFollowsItsCallers(t *testing.T) {
	var b Batch
	at := noon
	for i, s := range []struct {
		after time.Duration
		want  int64
	}{
		{0, 1}, {time.Millisecond, 2}, {time.Millisecond, 4}, {2 * time.Second, 4}, {time.Millisecond, 8},
		{time.Millisecond, 10}, {time.Minute, 5}, {time.Minute, 2}, {time.Minute, 1}, {time.Hour, 1},
	} {
		at = at.Add(s.after)
		if got := b.Next(at, 10); got != s.want {
			t.Errorf("batch %d: %d, want %d", i, got, s.want)
		}
	}
	if got := new(Batch).Next(noon, 0); got != 1 {
		t.Errorf("the first batch of a full limit is %d, want 1: somebody has to ask", got)
	}
}

// One bucket, many nodes that take batches from it: in any stretch of time what
// comes through, on all of them, is bounded by the rate and by what they may
// hold; a node that dies with a batch lets nothing more through.
func TestLawSharedRatesHoldOverAllNodes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rates().Draw(t, "rate")
		n := rapid.Int64Range(1, 5).Draw(t, "nodes")
		s := Share(r, n)
		var bucket time.Time
		left, batch := make([]int64, n), make([]Batch, n)
		heard := make([]time.Time, n)
		var passed []time.Time
		now := noon
		for range rapid.IntRange(1, 120).Draw(t, "events") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(3*s.Interval)).Draw(t, "gap")))
			i := rapid.Int64Range(0, n-1).Draw(t, "node")
			if rapid.IntRange(0, 30).Draw(t, "crash") == 0 {
				left[i], batch[i], heard[i] = 0, Batch{}, time.Time{}
				continue
			}
			if left[i] == 0 && s.Room(heard[i], now) > 0 {
				want := batch[i].Next(now, s.Most)
				var d Decision
				d, bucket = Take(r, bucket, now, want)
				if !d.OK {
					if want = s.Room(bucket, now); want > 0 {
						d, bucket = Take(r, bucket, now, want)
						if !d.OK {
							t.Fatalf("%d were refused where there was room for %d", want, want)
						}
					}
				}
				left[i], heard[i] = want, bucket
			}
			d := s.Decide(left[i] > 0, max(left[i]-1, 0), heard[i], now)
			if d.Remaining < 0 || d.Remaining > d.Limit || d.Reset < 0 || !d.OK && d.RetryAfter <= 0 {
				t.Fatalf("a caller is told %+v", d)
			}
			if left[i] > 0 {
				left[i]--
				passed = append(passed, now)
			} else if later := now.Add(d.RetryAfter); s.Room(heard[i], later) < 1 || s.Room(heard[i], later.Add(-1)) > 0 {
				t.Fatalf("RetryAfter %s is not when there is room", d.RetryAfter)
			}
		}
		held := n * s.Most
		for i := range passed {
			for j := i; j < len(passed); j++ {
				seconds := passed[j].Sub(passed[i]).Seconds()
				most := float64(s.Burst) + float64(held) + seconds*float64(r.Requests)/float64(r.WindowSeconds)
				if float64(j-i+1) > most+1e-6 {
					t.Fatalf("%d passed in %.9f s on %d nodes, at most %.3f may", j-i+1, seconds, n, most)
				}
			}
		}
		if s.Burst >= 4*n && held > s.Burst/4 {
			t.Fatalf("%d nodes may hold %d of a bucket of %d", n, held, s.Burst)
		}
	})
}

// Nodes that cannot ask each other keep a part each, and all parts together are
// no more than the whole.
func TestPartsAreNoMoreThanTheWhole(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := rates().Draw(t, "rate")
		n := rapid.Int64Range(1, 8).Draw(t, "nodes")
		p := Part(r, n)
		if n*p.Burst > max(burst(r), n) && n > 1 {
			t.Fatalf("%d parts of a burst of %d let %d through at once", n, burst(r), n*p.Burst)
		}
		if p.Requests*r.WindowSeconds*n > r.Requests*p.WindowSeconds {
			t.Fatalf("%d parts of %+v are %+v each, which is more", n, r, p)
		}
	})
	if p := Part(clawr.Rate{}, 3); !p.IsZero() {
		t.Errorf("a part of no rate limits to %+v", p)
	}
	long := clawr.Rate{Requests: 1, WindowSeconds: int64(maxSpan / time.Second)}
	if p := Part(long, 1000); p.WindowSeconds != long.WindowSeconds {
		t.Errorf("the window of a part overflows to %d", p.WindowSeconds)
	}
}

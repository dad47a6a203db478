package meter

import (
	"time"

	"github.com/402claw/clawr"
)

// Batch is how many tokens of a limit that several nodes share one of them
// takes at a time, to spend without asking. It begins with one, so that callers
// who seldom come hold nothing back from other nodes; who comes often soon
// costs few questions. The zero Batch is ready.
type Batch struct {
	size  int64
	since time.Time
}

// How soon a batch has to be spent for the next one to be larger, and after
// how long it is smaller.
const (
	batchSoon = time.Second
	batchLong = 8 * time.Second
)

// Next is how many to take now that the last ones are spent, at most most and
// at least one.
func (b *Batch) Next(now time.Time, most int64) int64 {
	switch lasted := now.Sub(b.since); {
	case b.since.IsZero():
		b.size = 1
	case lasted < batchSoon:
		b.size *= 2
	case lasted > batchLong:
		b.size /= 2
	}
	b.since = now
	b.size = max(min(b.size, most), 1)
	return b.size
}

// Shared is a rate as several nodes keep it together: a bucket that all of
// them take from, and what each has taken from it and not spent.
type Shared struct {
	Interval time.Duration // in which one request comes back
	Size     time.Duration // in which the whole bucket does
	Burst    int64
	// Most is the largest batch of one of n nodes: together they hold no more
	// than a quarter of the bucket. So in any stretch of time t at most
	// burst·5/4 + t·requests/window come through (and n more, where the bucket
	// is smaller than that), and a caller who goes from node to node misses no
	// more than a quarter.
	Most int64
}

// Share is how n nodes keep r together.
func Share(r clawr.Rate, n int64) Shared {
	b := burst(r)
	return Shared{Interval: interval(r), Size: span(r, b), Burst: b, Most: max(b/(4*max(n, 1)), 1)}
}

// Cost is how long n requests take to come back.
func (s Shared) Cost(n int64) time.Duration {
	if n > s.Burst {
		return maxSpan
	}
	return time.Duration(n) * s.Interval
}

// Room is how many requests a bucket has left that will be full at full.
func (s Shared) Room(full, now time.Time) int64 {
	return min(int64(max(s.Size-max(full.Sub(now), 0), 0)/s.Interval), s.Burst)
}

// Decide is what a caller is told where left are held and the bucket will be
// full at full.
func (s Shared) Decide(ok bool, left int64, full, now time.Time) Decision {
	owed := min(max(full.Sub(now), 0), maxSpan)
	d := Decision{OK: ok, Limit: s.Burst, Remaining: min(left+s.Room(full, now), s.Burst), Reset: max(owed-s.Cost(min(left, s.Burst)), 0)}
	if !ok {
		d.Remaining, d.RetryAfter = 0, max(owed+s.Interval-s.Size, time.Nanosecond)
	}
	return d
}

// Part is the rate that one of n nodes may keep by itself while they cannot
// share it: all of them together let no more through than r, and each at least
// one request at once.
func Part(r clawr.Rate, n int64) clawr.Rate {
	if r.IsZero() || n <= 1 {
		return r
	}
	p := clawr.Rate{Requests: r.Requests, WindowSeconds: r.WindowSeconds * n, Burst: max(burst(r)/n, 1)}
	if r.WindowSeconds > int64(maxSpan/time.Second)/n {
		p.WindowSeconds = int64(maxSpan / time.Second)
	}
	return p
}

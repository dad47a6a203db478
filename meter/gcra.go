// Package meter decides whether a caller may proceed: rate buckets, and the
// quota and spend windows of a day and a month. It keeps time only as it is
// told and does no I/O: the exact counters of the windows are kept elsewhere,
// in the transaction that reserves a payment.
package meter

import (
	"fmt"
	"strconv"
	"time"

	"github.com/402claw/clawr"
)

// Decision is what a rate bucket says to one caller. A Decision whose Limit
// is 0 comes from no bucket at all: OK is true and there is nothing to report.
type Decision struct {
	OK        bool
	Limit     int64         // the bucket's size: how many may come at once
	Remaining int64         // how many more may come right now
	Reset     time.Duration // until the bucket is full again
	// RetryAfter is how long a refused caller has to wait for the same cost;
	// 0 if it was let in, or if it asked for more than the bucket ever holds.
	RetryAfter time.Duration
}

// maxSpan bounds every computed duration, so that no rate, however odd, makes
// a time overflow: about 31 years.
const maxSpan = 1_000_000_000 * time.Second

// Take spends cost from a bucket that will be full at full, and reports when
// it will be full afterwards. It is the generic cell rate algorithm, and
// depends on nothing but its arguments: a bucket is one time, and one that is
// full at now or before is the same as a new one. In any stretch of time t it
// lets through at most burst + t·requests/window. A refusal changes nothing.
// A rate of zero limits nothing; a cost below 0 is 0, which only looks.
func Take(r clawr.Rate, full, now time.Time, cost int64) (Decision, time.Time) {
	if r.IsZero() {
		return Decision{OK: true}, full
	}
	if full.Before(now) {
		full = now
	}
	size := span(r, burst(r))
	owed := min(full.Sub(now), maxSpan)
	cost = max(cost, 0)
	d := Decision{Limit: burst(r)}
	switch after := owed + span(r, cost); {
	case cost > d.Limit:
		// It can never fit; waiting does not help.
	case after > size:
		d.RetryAfter = after - size
	default:
		d.OK, owed, full = true, after, now.Add(after)
	}
	d.Reset = owed
	d.Remaining = min(int64(max(size-owed, 0)/interval(r)), d.Limit)
	return d, full
}

// burst is how many may come at once: the bucket's size.
func burst(r clawr.Rate) int64 {
	if r.Burst > 0 {
		return r.Burst
	}
	return r.Requests
}

// interval is how long one request takes to come back, rounded up to a
// nanosecond so that rounding never lets more through: rates above some
// millions a second come out lower than asked for.
func interval(r clawr.Rate) time.Duration {
	w := time.Duration(min(r.WindowSeconds, int64(maxSpan/time.Second))) * time.Second
	return (w-1)/time.Duration(r.Requests) + 1
}

// span is how long n requests take to come back.
func span(r clawr.Rate, n int64) time.Duration {
	t := interval(r)
	if n > int64(maxSpan/t) {
		return maxSpan
	}
	return time.Duration(n) * t
}

// Headers gives the X-RateLimit-* headers to set, which may be the Set of an
// http.Header, and Retry-After if d refuses. Times are whole seconds, rounded
// up. Without a bucket there are none.
func (d Decision) Headers(set func(name, value string)) {
	if d.Limit == 0 {
		return
	}
	set("X-RateLimit-Limit", strconv.FormatInt(d.Limit, 10))
	set("X-RateLimit-Remaining", strconv.FormatInt(d.Remaining, 10))
	set("X-RateLimit-Reset", strconv.FormatInt(Seconds(d.Reset), 10))
	if !d.OK && d.RetryAfter > 0 {
		set("Retry-After", strconv.FormatInt(Seconds(d.RetryAfter), 10))
	}
}

// Err is what a refused caller is told, and nil for one that was let in.
func (d Decision) Err() error {
	if d.OK {
		return nil
	}
	e := &clawr.Error{Code: clawr.CodeRateLimited, RetryAfter: d.RetryAfter,
		Message: fmt.Sprintf("too many requests: at most %d at once", d.Limit)}
	if d.RetryAfter > 0 {
		e.Fix = fmt.Sprintf("wait %d s and send the same request again; nothing was charged", Seconds(d.RetryAfter))
	} else {
		e.Fix = "ask for less at once; nothing was charged"
	}
	return e
}

// Seconds is d in whole seconds, rounded up, as Retry-After wants it.
func Seconds(d time.Duration) int64 {
	if d <= 0 {
		return 0
	}
	return int64((d-1)/time.Second) + 1
}

package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/meter"
)

// Buckets are rate buckets that all nodes share.
type Buckets interface {
	// Spend takes cost from a bucket if no more than size is then owed, and
	// answers with when it will be full: meter.Take in one statement.
	Spend(ctx context.Context, bucket string, now time.Time, cost, size time.Duration) (full time.Time, ok bool, err error)
	// Nodes is how many there are.
	Nodes() int64
}

// Rates are the rates of tenants on one of several nodes. A node takes a batch
// of a bucket's requests at once and lets them in by itself (meter.Shared).
// While the database does not answer, it lets in its part of the rate: rates
// keep nobody's money, and are no reason to turn callers away.
//
// What it has let in for all counts in that part, and what it lets in by itself
// it owes to the shared bucket, which is paid before anything else is taken from
// it. So a caller who stays with one node never gets more than his rate, outage
// or not, and callers of n nodes no more than burst·(2 - 1/n) at once: one node
// has taken the whole bucket, before the outage or after it, and each of the
// others, who cannot tell, lets in the burst/n that is its part. (A node that has
// let in a for all lets in max(burst/n - a, 0) by itself. Of those that have paid,
// all is in the bucket; of the others no more than max(a, burst/n) is. The a are
// at most burst together, and the sum is largest where one node has all of it.)
type Rates struct {
	From  Buckets
	Local *meter.Limiter // for the meantime
	Log   *slog.Logger

	silent atomic.Int64 // until then the database is not asked; unix nanoseconds

	mu   sync.Mutex
	held map[string]*part
}

// part is what this node has of one bucket. One call at a time asks for more.
type part struct {
	mu    sync.Mutex
	left  int64
	full  time.Time // the bucket, when it was last heard of
	owed  time.Time // when a bucket of this node's part would be full that only has what the shared one was not told of
	batch meter.Batch
	used  time.Time
	gone  bool
}

// How long an answer is waited for, how long the database is left alone that
// did not give one, and how many buckets something is held of.
const (
	bucketWait  = 500 * time.Millisecond
	bucketPause = time.Second
	mostBuckets = 1 << 16
)

// errSilent is that the database is left alone for a moment.
var errSilent = errors.New("the database did not answer a moment ago")

// Admit asks both of a tenant's buckets, as meter.Limiter's Admit does.
func (r *Rates) Admit(ctx context.Context, t *clawr.Tenant, caller string, now time.Time) meter.Decision {
	own, all := t.Rate.PerCaller, t.Rate.Global
	d := meter.Decision{OK: true}
	giveBack := func() {}
	if !own.IsZero() {
		if d, giveBack = r.take(ctx, "caller/"+t.ID+"/"+caller, own, now); !d.OK {
			return d
		}
	}
	if all.IsZero() {
		return d
	}
	g, _ := r.take(ctx, "tenant/"+t.ID, all, now)
	if !g.OK {
		giveBack()
	}
	if !g.OK || d.Limit == 0 || g.Remaining < d.Remaining {
		return g
	}
	return d
}

// take lets one request in, or says when. What it took can be given back.
func (r *Rates) take(ctx context.Context, bucket string, rate clawr.Rate, now time.Time) (d meter.Decision, giveBack func()) {
	n := r.From.Nodes()
	s, local := meter.Share(rate, n), meter.Part(rate, n)
	p := r.part(bucket, now)
	defer p.mu.Unlock()
	if p.left == 0 && s.Room(p.full, now) > 0 { // if not, waiting is all that helps
		if err := r.more(ctx, p, bucket, s, local, now); err != nil {
			return r.alone(p, bucket, local, now)
		}
	}
	if p.left == 0 {
		return s.Decide(false, 0, p.full, now), func() {}
	}
	p.left--
	counted := n > 1 && r.Local.Allow(bucket, local, now, 1).OK
	return s.Decide(true, p.left, p.full, now), func() {
		p.mu.Lock()
		p.left++
		p.mu.Unlock()
		if counted {
			r.Local.Return(bucket, local, 1)
		}
	}
}

// alone lets one request in by this node's part, of which it has taken what it
// let in for all, too. p is locked.
func (r *Rates) alone(p *part, bucket string, local clawr.Rate, now time.Time) (d meter.Decision, giveBack func()) {
	if d = r.Local.Allow(bucket, local, now, 1); !d.OK {
		return d, func() {}
	}
	_, p.owed = meter.Take(local, p.owed, now, 1)
	return d, func() {
		r.Local.Return(bucket, local, 1)
		p.mu.Lock()
		p.owed = p.owed.Add(-meter.Share(local, 1).Interval)
		p.mu.Unlock()
	}
}

// more pays what is owed and takes a batch, or as much of that as there is. An
// error is that nobody knows.
func (r *Rates) more(ctx context.Context, p *part, bucket string, s meter.Shared, local clawr.Rate, now time.Time) error {
	if now.UnixNano() < r.silent.Load() {
		return errSilent
	}
	ctx, cancel := context.WithTimeout(ctx, bucketWait)
	defer cancel()
	each := meter.Share(local, 1).Interval
	owed := int64((max(p.owed.Sub(now), 0) + each - 1) / each)
	want := owed + p.batch.Next(now, s.Most)
	for range 2 {
		full, ok, err := r.From.Spend(ctx, bucket, now, s.Cost(want), s.Size)
		if err != nil {
			if ctx.Err() == nil || context.Cause(ctx) == context.DeadlineExceeded {
				r.silent.Store(now.Add(bucketPause).UnixNano())
				r.Log.WarnContext(ctx, "rates are not shared: the database does not answer", "nodes", r.From.Nodes(), "err", err)
			}
			return err
		}
		p.full = full
		if ok {
			paid := min(owed, want)
			p.left = want - paid
			if owed > 0 {
				p.owed = now.Add(time.Duration(owed-paid) * each)
			}
			return nil
		}
		if want = min(want-1, s.Room(full, now)); want < 1 {
			return nil
		}
	}
	return nil
}

// part is what is held of a bucket, locked.
func (r *Rates) part(bucket string, now time.Time) *part {
	for {
		r.mu.Lock()
		p := r.held[bucket]
		if p == nil {
			if r.held == nil {
				r.held = map[string]*part{}
			}
			r.room(now)
			p = &part{}
			r.held[bucket] = p
		}
		r.mu.Unlock()
		p.mu.Lock()
		if !p.gone {
			p.used = now
			return p
		}
		p.mu.Unlock()
	}
}

// room looks at a few parts before one is added, and forgets those that nobody
// used since their bucket was full: what was held of it has come back. If there
// are too many, others go too.
func (r *Rates) room(now time.Time) {
	seen := 0
	for bucket, p := range r.held {
		if p.mu.TryLock() {
			if len(r.held) >= mostBuckets || !p.full.After(now) && now.Sub(p.used) > bucketPause {
				p.gone = true
				delete(r.held, bucket)
			}
			p.mu.Unlock()
		}
		if seen++; seen == 4 {
			return
		}
	}
}

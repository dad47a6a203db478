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
	s := meter.Share(rate, n)
	p := r.part(bucket, now)
	defer p.mu.Unlock()
	if p.left == 0 && s.Room(p.full, now) > 0 { // if not, waiting is all that helps
		if err := r.more(ctx, p, bucket, s, now); err != nil {
			local := meter.Part(rate, n)
			return r.Local.Allow(bucket, local, now, 1), func() { r.Local.Return(bucket, local, 1) }
		}
	}
	if p.left == 0 {
		return s.Decide(false, 0, p.full, now), func() {}
	}
	p.left--
	return s.Decide(true, p.left, p.full, now), func() {
		p.mu.Lock()
		p.left++
		p.mu.Unlock()
	}
}

// more takes a batch, or what there is if there is less. An error is that
// nobody knows.
func (r *Rates) more(ctx context.Context, p *part, bucket string, s meter.Shared, now time.Time) error {
	if now.UnixNano() < r.silent.Load() {
		return errSilent
	}
	ctx, cancel := context.WithTimeout(ctx, bucketWait)
	defer cancel()
	want := p.batch.Next(now, s.Most)
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
			p.left = want
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

package meter

import (
	"hash/maphash"
	"sync"
	"time"

	"github.com/402claw/clawr"
)

// Limiter keeps rate buckets by key, in memory of this process alone. The
// zero Limiter is ready; it is safe for concurrent use and must not be copied.
//
// Its memory is bounded: a bucket that is full again is the same as none and
// is dropped when a new key needs room. Should Max buckets really be drained
// at once, the one that is nearest to full among a few makes room, and its
// caller gets back what it owed: a flood of invented callers can so let a few
// requests too many through, and cannot lock anybody out.
type Limiter struct {
	// Max is how many buckets are kept; 0 means 1<<20, about 150 MB with long
	// keys. Set it before the first use.
	Max int

	once   sync.Once
	seed   maphash.Seed
	shards [64]shard
}

type shard struct {
	mu   sync.Mutex
	full map[string]time.Time
	_    [40]byte // a shard to itself in its cache line
}

// Allow spends cost from key's bucket. A rate of zero limits nothing and
// touches nothing.
func (l *Limiter) Allow(key string, r clawr.Rate, now time.Time, cost int64) Decision {
	if r.IsZero() {
		return Decision{OK: true}
	}
	s := l.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	full, known := s.full[key]
	d, full := Take(r, full, now, cost)
	switch {
	case known:
		s.full[key] = full
	case full.After(now):
		s.room(l.perShard(), now)
		s.full[key] = full
	}
	return d
}

// Return gives back what an Allow of the same key, rate and cost has spent,
// for a request that something else refused afterwards.
func (l *Limiter) Return(key string, r clawr.Rate, cost int64) {
	if r.IsZero() || cost <= 0 {
		return
	}
	s := l.shard(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if full, ok := s.full[key]; ok {
		s.full[key] = full.Add(-span(r, cost))
	}
}

// Admit asks both of a tenant's buckets, the caller's own and the one that all
// callers share, and spends one from each or none from either. It reports the
// bucket that refused, or else the one with less left. A tenant without rates
// costs nothing.
func (l *Limiter) Admit(t *clawr.Tenant, caller string, now time.Time) Decision {
	own, all := t.Rate.PerCaller, t.Rate.Global
	if own.IsZero() && all.IsZero() {
		return Decision{OK: true}
	}
	var key string
	d := Decision{OK: true}
	if !own.IsZero() {
		key = "caller/" + t.ID + "/" + caller
		if d = l.Allow(key, own, now, 1); !d.OK {
			return d
		}
	}
	if all.IsZero() {
		return d
	}
	g := l.Allow("tenant/"+t.ID, all, now, 1)
	if !g.OK {
		l.Return(key, own, 1)
	}
	if !g.OK || d.Limit == 0 || g.Remaining < d.Remaining {
		return g
	}
	return d
}

// Len is how many buckets are kept.
func (l *Limiter) Len() int {
	n := 0
	for i := range l.shards {
		l.shards[i].mu.Lock()
		n += len(l.shards[i].full)
		l.shards[i].mu.Unlock()
	}
	return n
}

func (l *Limiter) shard(key string) *shard {
	l.once.Do(func() {
		l.seed = maphash.MakeSeed()
		for i := range l.shards {
			l.shards[i].full = make(map[string]time.Time)
		}
	})
	return &l.shards[maphash.String(l.seed, key)%uint64(len(l.shards))]
}

func (l *Limiter) perShard() int {
	n := l.Max
	if n <= 0 {
		n = 1 << 20
	}
	return max(n/len(l.shards), 1)
}

// room looks at a few buckets before one is added. Every new key pays for the
// removal of up to four full ones, so a shard shrinks to those that still
// count without a sweep that would hold its lock for long.
func (s *shard) room(limit int, now time.Time) {
	var nearest string
	var soonest time.Time
	seen := 0
	for key, full := range s.full {
		if !full.After(now) {
			delete(s.full, key)
		} else if soonest.IsZero() || full.Before(soonest) {
			nearest, soonest = key, full
		}
		if seen++; seen == 4 {
			break
		}
	}
	if len(s.full) >= limit {
		delete(s.full, nearest)
	}
}

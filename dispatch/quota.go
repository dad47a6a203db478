package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/meter"
)

// Lessor hands batches of counters to nodes.
type Lessor interface {
	// Lease takes up to Cost and at least one of every counter, or nothing
	// (*ledger.Exceeded), and ends old leases. One transaction.
	Lease(ctx context.Context, list []ledger.Counter, nodes int64, life time.Duration, old ...ledger.Lease) ([]ledger.Lease, error)
	// ReturnLeases gives back what is left of leases, once.
	ReturnLeases(ctx context.Context, list []ledger.Lease) error
	// Nodes is how many there are.
	Nodes() int64
}

// Leases are the quotas of free calls on one of several nodes. A node takes a
// batch of a quota at once and spends it by itself; the quota counts all of it
// as used, so no more than the quota is ever spent, on all nodes together. What
// a node holds and does not spend, its callers miss elsewhere: a batch that
// lies idle goes back, that of a node which died is lost, and batches get
// smaller as the quota ends. Money is never leased: what a payment takes is
// taken in its own transaction.
type Leases struct {
	From Lessor
	Now  func() time.Time // nil: time.Now
	Log  *slog.Logger

	mu   sync.Mutex
	held map[leaseKey]*held
}

type leaseKey struct {
	scope  string
	window int64
}

// held is what this node has of one counter. A question about it is asked by
// one call at a time; the others wait and share the answer.
type held struct {
	mu    sync.Mutex
	lease ledger.Lease
	batch meter.Batch
	used  time.Time
	gone  bool // given back: look it up again
}

// How long a lease lives, from when on an idle one is given back, and the
// largest batch.
const (
	leaseLife = 30 * time.Second
	leaseIdle = 5 * time.Second
	largest   = 4096
)

func (l *Leases) now() time.Time {
	if l.Now != nil {
		return l.Now()
	}
	return time.Now()
}

// Take takes one of every counter, from what this node holds where it can, or
// none of any.
func (l *Leases) Take(ctx context.Context, list []ledger.Counter) ([]ledger.Counter, error) {
	now := l.now()
	hs := l.hold(list)
	defer func() {
		for _, h := range hs {
			h.mu.Unlock()
		}
	}()
	var short []*held // what something has to be asked for
	var ask []ledger.Counter
	var old []ledger.Lease
	for i, h := range hs {
		h.used = now
		if h.lease.Left > 0 && now.Before(h.lease.Expires) && h.lease.Cap == list[i].Cap {
			continue
		}
		c := list[i]
		c.Cost = h.batch.Next(now, largest)
		short, ask = append(short, h), append(ask, c)
		if h.lease.ID != "" {
			old = append(old, h.lease)
		}
	}
	if len(ask) > 0 {
		got, err := l.From.Lease(ctx, ask, l.From.Nodes(), leaseLife, old...)
		if _, full := errors.AsType[*ledger.Exceeded](err); err != nil && !full {
			for _, h := range short { // it may have ended
				h.lease = ledger.Lease{}
			}
		}
		if err != nil {
			return nil, err
		}
		for i, h := range short {
			h.lease = got[i]
		}
	}
	out := slices.Clone(list)
	for i, h := range hs {
		h.lease.Left--
		out[i].Used = h.lease.Used - h.lease.Left
	}
	return out, nil
}

// hold locks what is held of each of list. Every call names its windows in one
// order, and each once.
func (l *Leases) hold(list []ledger.Counter) []*held {
	hs := make([]*held, len(list))
	for i, c := range list {
		for {
			h := l.at(leaseKey{c.Scope, c.Window})
			h.mu.Lock()
			if !h.gone {
				hs[i] = h
				break
			}
			h.mu.Unlock()
		}
	}
	return hs
}

func (l *Leases) at(k leaseKey) *held {
	l.mu.Lock()
	defer l.mu.Unlock()
	h := l.held[k]
	if h == nil {
		if l.held == nil {
			l.held = map[leaseKey]*held{}
		}
		h = &held{}
		l.held[k] = h
	}
	return h
}

// Run gives back what lies idle, until ctx ends, and then everything.
func (l *Leases) Run(ctx context.Context) error {
	tick := time.NewTicker(leaseIdle / 2)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			l.tidy(ctx, l.now().Add(-leaseIdle))
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			l.tidy(ctx, l.now().Add(leaseLife))
			return nil
		}
	}
}

// tidy gives back what was not used since then, and forgets it.
func (l *Leases) tidy(ctx context.Context, since time.Time) {
	l.mu.Lock()
	var idle []*held
	for k, h := range l.held {
		if !h.mu.TryLock() {
			continue // somebody is at it
		}
		if h.used.After(since) {
			h.mu.Unlock()
			continue
		}
		h.gone = true
		delete(l.held, k)
		idle = append(idle, h)
		h.mu.Unlock()
	}
	l.mu.Unlock()
	var back []ledger.Lease
	for _, h := range idle {
		if h.lease.ID != "" {
			back = append(back, h.lease)
		}
	}
	for len(back) > 0 {
		n := min(len(back), 256)
		if err := l.From.ReturnLeases(ctx, back[:n]); err != nil {
			l.Log.WarnContext(ctx, "leases not given back; what is left of them is lost to their callers", "count", len(back), "err", err)
			return
		}
		back = back[n:]
	}
}

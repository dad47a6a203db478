package usage

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Sink keeps events for good. Record keeps all of them or none, and keeps an
// event that it has already (by tenant and request id) once.
type Sink interface {
	Record(context.Context, []Event) error
}

// Recorder takes the events of requests that no transaction has written and
// hands them to a Sink in batches. Record never waits: a crash loses the
// events of at most the last second.
//
// Under a flood, requests that sell nothing are counted rather than listed.
// In each interval the first Listed events that are not countable (challenges,
// refusals, limits) are kept as they are; after that they are merged by
// tenant, API, lifecycle, status and error into one event each, an aggregate:
// its Endpoint and Caller are "*", its Units the exact number of requests
// (Event.Requests), its Latency their mean, its Time the last one's. What is
// countable is always listed.
//
// While the sink fails, events wait in memory, at most Max of them, and are
// offered again; it is tried with ever fewer at a time, so that one event
// that it cannot take holds up no others. What does not fit is counted in
// Stats and logged, never silently lost.
type Recorder struct {
	Sink   Sink
	Log    *slog.Logger  // nil: none
	Every  time.Duration // between batches; 0: 250 ms
	Listed int           // 0: 256
	Max    int           // events in memory; 0: 65,536, some 20 MB

	mu     sync.Mutex
	queue  []Event
	taken  int // events that a flush has taken from the queue and still holds
	listed int // uncountable ones since the last flush
	merged map[mergeKey]*Event
	stats  RecorderStats

	flush   sync.Mutex // one batch at a time reaches the sink; it guards:
	waiting []Event
	batch   int // how many the sink is given at once; 0: batchMax
}

// RecorderStats counts requests since the Recorder began.
type RecorderStats struct {
	Recorded int64 `json:"recorded"` // given to Record
	Merged   int64 `json:"merged"`   // of them, counted in aggregates
	Dropped  int64 `json:"dropped"`  // of them, lost because memory was full
	Waiting  int   `json:"waiting"`  // events in memory
}

type mergeKey struct {
	tenant, api, error string
	lifecycle          Lifecycle
	status             int
}

const (
	batchMax  = 1000
	mergedMax = 4096
)

// Record takes an event. It never blocks and never fails.
func (r *Recorder) Record(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Recorded++
	if !e.Countable {
		if r.listed >= r.orListed() || r.room() == 0 {
			r.merge(e)
			return
		}
		r.listed++
	}
	if r.room() == 0 {
		r.stats.Dropped++
		return
	}
	r.queue = append(r.queue, e)
}

// room is how many more events may wait; called with mu held.
func (r *Recorder) room() int {
	limit := r.Max
	if limit <= 0 {
		limit = 65_536
	}
	return max(limit-len(r.queue)-r.taken, 0)
}

// merge is called with mu held.
func (r *Recorder) merge(e Event) {
	key := mergeKey{e.TenantID, e.API, e.Error, e.Lifecycle, e.Status}
	a := r.merged[key]
	if a == nil {
		if len(r.merged) >= mergedMax {
			r.stats.Dropped++
			return
		}
		a = newAggregate(&e)
		if r.merged == nil {
			r.merged = make(map[mergeKey]*Event)
		}
		r.merged[key] = a
	}
	r.stats.Merged++
	a.Units++
	a.Latency += e.Latency // a sum until it is queued
	a.BytesOut += e.BytesOut
	if e.Time.After(a.Time) {
		a.Time = e.Time
	}
}

// newAggregate stands for none of the requests like e yet.
func newAggregate(e *Event) *Event {
	var id [8]byte
	_, _ = rand.Read(id[:]) // it never fails
	return &Event{
		Time: e.Time, RequestID: "agg_" + hex.EncodeToString(id[:]), TenantID: e.TenantID, API: e.API, Endpoint: Aggregate,
		Owner: e.Owner, Directory: e.Directory, Caller: Aggregate, Status: e.Status, Price: e.Price, Lifecycle: e.Lifecycle, Error: e.Error,
	}
}

// Run flushes until ctx ends, and then once more. Its error is that of the
// last flush: events were lost.
func (r *Recorder) Run(ctx context.Context) error {
	every := r.Every
	if every <= 0 {
		every = 250 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	failures := 0
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			if err := r.drain(last); err != nil {
				n := r.Stats().Waiting
				return fmt.Errorf("%d usage events are lost: %w", n, err)
			}
			return nil
		case <-tick.C:
		}
		err := r.Flush(ctx)
		switch {
		case err == nil:
			failures = 0
		case ctx.Err() == nil:
			if failures++; failures == 1 || failures%100 == 0 {
				r.warn("usage events wait for the store", "err", err, "failures", failures)
			}
			// The sink gets some peace, at most 2 s of it.
			select {
			case <-ctx.Done():
			case <-time.After(min(every<<min(failures, 8), 2*time.Second)):
			}
		}
	}
}

// drain flushes until nothing waits, the sink has failed often enough for
// every event to have been offered alone, or ctx ends.
func (r *Recorder) drain(ctx context.Context) error {
	var err error
	for range 20 {
		if err = r.Flush(ctx); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// Flush hands everything that waits to the sink. When that fails the events
// wait on, those that failed behind the others.
func (r *Recorder) Flush(ctx context.Context) error {
	r.flush.Lock()
	defer r.flush.Unlock()
	r.take()
	defer func() { r.settle(0) }()
	if r.batch == 0 {
		r.batch = batchMax
	}
	for sent := 0; sent < len(r.waiting); {
		n := min(len(r.waiting)-sent, r.batch)
		batch := r.waiting[sent : sent+n : sent+n]
		if err := r.Sink.Record(ctx, batch); err != nil {
			failed := slices.Clone(batch)
			r.waiting = append(append(r.waiting[:0], r.waiting[sent+n:]...), failed...)
			r.batch = max(n/2, 1)
			return err
		}
		sent += n
		r.batch = min(2*r.batch, batchMax)
		r.settle(sent)
	}
	clear(r.waiting) // it is used again, and must not keep the events alive
	r.waiting = r.waiting[:0]
	return nil
}

// take moves what was recorded to what waits, aggregates too as far as there
// is room: those that find none go on counting.
func (r *Recorder) take() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listed = 0
	for key, a := range r.merged {
		if r.room() == 0 {
			break
		}
		a.Latency /= time.Duration(a.Units)
		r.queue = append(r.queue, *a)
		delete(r.merged, key)
	}
	if len(r.waiting) == 0 {
		r.waiting, r.queue = r.queue, r.waiting
	} else {
		r.waiting = append(r.waiting, r.queue...)
		r.queue = r.queue[:0]
	}
	r.taken = len(r.waiting)
}

// settle tells Record how much room there is again.
func (r *Recorder) settle(sent int) {
	r.mu.Lock()
	r.taken = len(r.waiting) - sent
	r.mu.Unlock()
}

// Stats says what became of the requests so far.
func (r *Recorder) Stats() RecorderStats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Waiting = len(r.queue) + r.taken + len(r.merged)
	return s
}

func (r *Recorder) warn(msg string, args ...any) {
	if r.Log != nil {
		r.Log.Warn(msg, args...)
	}
}

func (r *Recorder) orListed() int {
	if r.Listed > 0 {
		return r.Listed
	}
	return 256
}

package dispatch

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/402claw/clawr/ledger"
)

// Queue is the book's side of async: what was delivered and is to be settled.
type Queue interface {
	// Unsettled lists answered async payments that were never submitted, the
	// first to expire first, from after the given one on.
	Unsettled(ctx context.Context, expiry int64, id string, limit int) ([]ledger.Payment, error)
	// Backlog sums up what waits to be settled.
	Backlog(context.Context) (ledger.Backlog, error)
}

// The bounds of the queue: how many payments it settles at a time, how many of
// those just delivered it remembers (more are in the book), how many it reads
// at once, and what it settles in a second while calls need the processor.
const (
	settleAtOnce = 2048
	remembered   = 4096
	pageSize     = 256
	yieldRate    = 50
)

// headAlarm is from which age of the first unsettled payment on somebody
// should have a look.
const headAlarm = 5 * time.Minute

// queue holds what async just delivered, so that it is settled without asking
// the book for it, in the order of delivery, which is nearly that of expiry.
// What is not remembered is found in the book.
type queue struct {
	mu   sync.Mutex
	list []ledger.Payment
	more bool          // some were not remembered
	woke chan struct{} // holds one token
}

func (q *queue) push(p ledger.Payment) {
	q.mu.Lock()
	if q.woke == nil {
		q.woke = make(chan struct{}, 1)
	}
	if len(q.list) < remembered {
		q.list = append(q.list, p)
	} else {
		q.more = true
	}
	woke := q.woke
	q.mu.Unlock()
	select {
	case woke <- struct{}{}:
	default:
	}
}

// again has the book asked for what was not remembered or not submitted.
func (q *queue) again() {
	q.mu.Lock()
	q.more = true
	woke := q.woke
	q.mu.Unlock()
	select {
	case woke <- struct{}{}:
	default: // nil or full
	}
}

// take empties the queue. all says that the book has to be asked as well.
func (q *queue) take() (list []ledger.Payment, all bool, woke <-chan struct{}) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.woke == nil {
		q.woke = make(chan struct{}, 1)
	}
	list, all = q.list, q.more
	q.list, q.more = nil, false
	return list, all, q.woke
}

// drain settles what async delivers, many at a time, until ctx ends.
func (d *Dispatcher) drain(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, settleAtOnce)
	settle := func(p ledger.Payment) bool {
		d.yield(ctx)
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
			return false
		}
		wg.Go(func() {
			defer func() { <-room }()
			d.settleOpen(ctx, p)
		})
		return true
	}
	d.queue.again()               // at first, what an earlier process left
	var found map[string]struct{} // in the book, when all of it was gone through last
	for {
		list, all, woke := d.queue.take()
		for _, p := range list {
			if _, begun := found[p.ID]; !begun && !settle(p) {
				return
			}
		}
		if found = nil; all {
			found = d.settleBook(ctx, settle)
		}
		if all || len(list) > 0 {
			continue
		}
		select {
		case <-woke:
		case <-ctx.Done():
			return
		}
	}
}

// settleBook goes through everything in the book that waits. It gives what it
// has begun to settle: what was delivered meanwhile is remembered, too.
func (d *Dispatcher) settleBook(ctx context.Context, settle func(ledger.Payment) bool) map[string]struct{} {
	found := map[string]struct{}{}
	var last ledger.Payment
	for {
		page, err := d.Queue.Unsettled(ctx, last.ValidBefore, last.ID, pageSize)
		if err != nil {
			if ctx.Err() == nil {
				d.Log.WarnContext(ctx, "unsettled payments cannot be listed", "err", err)
			}
			return found
		}
		for _, p := range page {
			// What is in flight, a call or an earlier round is at.
			if d.flights.has(p.Key) {
				continue
			}
			if !settle(p) {
				return found
			}
			found[p.ID] = struct{}{}
		}
		if len(page) < pageSize {
			return found
		}
		last = page[len(page)-1]
	}
}

// yield lets calls go first. Payments that async delivered have an hour to be
// settled, and a caller who waits does not: while there are more calls in work
// than processors for them, only a few are begun in a second, unless the queue
// grows too long for that. Nor is a facilitator that submits nothing pressed.
func (d *Dispatcher) yield(ctx context.Context) {
	switch {
	case d.backlog.failing.Load():
	case !d.busy() || !d.backlog.drains(d.now(), asyncTimeout/2):
		return
	default:
		d.backlog.yielded.Store(true)
	}
	t := time.NewTimer(time.Second / yieldRate)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// crowd is from how many calls in work on they need every processor.
func crowd() int64 { return int64(4 * runtime.GOMAXPROCS(0)) }

// busyFor is for how long there are too many calls after there were: those who
// share a commit are all answered at once, and come back, so that now and then
// there is none for a moment in which hundreds of settlements would be begun.
const busyFor = 100 * time.Millisecond

// busy reports whether calls need every processor.
func (d *Dispatcher) busy() bool {
	since := d.now().Sub(time.Unix(0, d.crowded.Load()))
	return d.inFlight.Load() >= crowd() || since >= 0 && since < busyFor
}

// look learns how the queue is doing. since is the last look.
func (d *Dispatcher) look(ctx context.Context, since time.Time, settled int64) {
	b, err := d.Queue.Backlog(ctx)
	if err != nil {
		if ctx.Err() == nil {
			d.Log.WarnContext(ctx, "the backlog cannot be read", "err", err)
		}
		return
	}
	d.backlog.looked(b, d.backlog.settled.Load()-settled, time.Since(since))
	age := d.now().Sub(b.Head)
	if b.Expiry > 0 && age > rest {
		d.queue.again() // it is nobody's, or it was not submitted
	}
	if b.Expiry > 0 && age > headAlarm && d.alarmed.CompareAndSwap(false, true) {
		d.Log.ErrorContext(ctx, "payments are delivered and not settled", "oldest", age.Round(time.Second).String(), "waiting", b.Depth, "expires", time.Unix(b.Expiry, 0).UTC())
	} else if b.Expiry == 0 || age <= headAlarm {
		d.alarmed.Store(false)
	}
}

// settle asks for the settlement of a call's payment, and notes in row that it
// was settled. Without evidence it was not.
func (d *Dispatcher) settle(ctx context.Context, row *ledger.Payment) (ledger.Outcome, error) {
	if d.Payments == nil {
		return ledger.Outcome{}, errors.New("this node has no facilitator")
	}
	d.backlog.waiting.Add(1)
	out, err := d.Payments.Settle(ctx, *row)
	d.backlog.waiting.Add(-1)
	d.reached("settle.after")
	if err == nil && out.State == ledger.Settled {
		if out.Tx == "" || out.BlockHash == "" {
			return ledger.Outcome{State: ledger.Unknown}, nil // no evidence, no settlement
		}
		d.backlog.settled.Add(1)
		row.Evidence, row.Money = out.Evidence, ledger.Mined
	}
	return out, err
}

package facilitator

import (
	"container/heap"
	"sync"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// item is one settlement on its way into a batch.
type item struct {
	ledger.Settlement
	transfer Transfer
	opened   bool // the book does not have it yet
	apart    bool // the book has it by itself, and not in the batch
}

func transfers(its []item) []Transfer {
	ts := make([]Transfer, len(its))
	for i := range its {
		ts[i] = its[i].transfer
	}
	return ts
}

// order is an authorization that somebody wants carried by a batch, and waits.
type order struct {
	item
	a     *payment
	most  int // payments that its transaction may carry, with this one
	since time.Time
	limit uint64 // the most gas that it may take, once it was probed
	gas   uint64 // that it took then; 0: not known

	stage atomic.Int32
	seq   int64
	index int // in its line; -1: in none

	done chan struct{} // closed once one of these is set
	end  orderEnd
}

// orderEnd is what became of an order. Exactly one is set.
type orderEnd struct {
	flight  *flight      // the batch that carries it, with a seat for who waits
	refused *clawr.Error // the chain would not take it
	err     error        // nothing was signed
	doubt   error        // perhaps it was: the book knows
}

// The stages of an order. Until it is being signed the one who waits may leave.
const (
	queued int32 = iota
	taken
	signing
	withdrawn
)

func newOrder(it item, a *payment, most int, now time.Time) *order {
	return &order{item: it, a: a, most: most, since: now, index: -1, done: make(chan struct{})}
}

func (o *order) finish(end orderEnd) {
	o.end = end
	close(o.done)
}

// intake is where payments wait for a transaction. The lines are one for each
// payee, and are served in turn, one payment each: however many payments wait
// for one payee, the next of another is in the next batch. In a line those that
// end first come first.
type intake struct {
	mu    sync.Mutex
	lines map[string]*line // by payee
	turns []*line          // those that are not empty, the next one first
	n     int
	seq   int64
}

// put lets o wait.
func (q *intake) put(o *order) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.add(o)
}

func (q *intake) add(o *order) {
	if q.lines == nil {
		q.lines = make(map[string]*line)
	}
	l := q.lines[o.PayTo]
	if l == nil {
		l = &line{payTo: o.PayTo}
		q.lines[o.PayTo] = l
		q.turns = append(q.turns, l)
	}
	if o.seq == 0 {
		q.seq++
		o.seq = q.seq
	}
	heap.Push(l, o)
	q.n++
}

// putBack lets orders that were taken wait again, in their old places. Those
// that nobody waits for any more are gone.
func (q *intake) putBack(orders []*order) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, o := range orders {
		if o.stage.CompareAndSwap(taken, queued) {
			q.add(o)
		}
	}
}

// withdraw takes o out, unless it is being signed already.
func (q *intake) withdraw(o *order) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if o.stage.CompareAndSwap(queued, withdrawn) {
		l := q.lines[o.PayTo]
		heap.Remove(l, o.index)
		q.n--
		q.drop(l)
		return true
	}
	return o.stage.CompareAndSwap(taken, withdrawn)
}

// drop forgets l if it is empty.
func (q *intake) drop(l *line) {
	if l.Len() > 0 {
		return
	}
	delete(q.lines, l.payTo)
	for i := range q.turns {
		if q.turns[i] == l {
			q.turns = append(q.turns[:i:i], q.turns[i+1:]...)
			return
		}
	}
}

// take takes the next payments for one transaction, most of them at most, and
// no more than each of them allows. A payment that does not fit into what was
// taken before it waits for a transaction of its own, and its line with it.
func (q *intake) take(most int) []*order {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []*order
	var waiting []*line
	for len(q.turns) > 0 && len(out) < most {
		l := q.turns[0]
		q.turns = q.turns[1:]
		o := l.orders[0]
		if len(out) > 0 && o.most <= len(out) {
			waiting = append(waiting, l)
			continue
		}
		heap.Pop(l)
		q.n--
		o.stage.Store(taken)
		out = append(out, o)
		most = min(most, o.most)
		if l.Len() == 0 {
			delete(q.lines, l.payTo)
		} else {
			q.turns = append(q.turns, l)
		}
	}
	q.turns = append(waiting, q.turns...)
	return out
}

// waiting is the number of payments that wait.
func (q *intake) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n
}

// line is the payments for one payee: a heap by their end.
type line struct {
	payTo  string
	orders []*order
}

func (l *line) Len() int { return len(l.orders) }

func (l *line) Less(i, j int) bool {
	a, b := l.orders[i], l.orders[j]
	if a.ValidBefore != b.ValidBefore {
		return a.ValidBefore < b.ValidBefore
	}
	return a.seq < b.seq
}

func (l *line) Swap(i, j int) {
	l.orders[i], l.orders[j] = l.orders[j], l.orders[i]
	l.orders[i].index, l.orders[j].index = i, j
}

func (l *line) Push(x any) {
	o := x.(*order)
	o.index = len(l.orders)
	l.orders = append(l.orders, o)
}

func (l *line) Pop() any {
	n := len(l.orders) - 1
	o := l.orders[n]
	l.orders[n], l.orders = nil, l.orders[:n]
	o.index = -1
	return o
}

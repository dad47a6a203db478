package dataset

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

// result is the rows of one page.
type result struct {
	rows  []uint32
	more  bool // there are rows after them
	count int  // of all matching rows; -1 unless asked for
}

// page is where in the order of a query's rows an answer begins: behind row
// after, or at offset.
type page struct {
	after  uint32
	resume bool
	offset int
}

// block is how many candidates are tested at a time: by one predicate after
// the other, so that each loop stays tight.
const block = 1024

// execution is a query on its way. It is used again for another one, so that
// queries do not allocate.
type execution struct {
	s      *Segment
	q      *Query
	m      meter
	at     page
	need   int // rows up to the end of the page, and one more
	preds  []predicate
	words  []wordTest
	buf    [block]uint32
	rows   []uint32
	bits   []uint64
	unions [maxWords][]uint64 // of the words that end with a star
	used   plan
	seen   int // candidates that were tested
}

var executions = sync.Pool{New: func() any { return new(execution) }}

// run finds the rows of a query. It stops when ctx ends, and when it has used
// more CPU time than limit (0 = no limit). The rows are valid until the
// execution is let go of.
func (e *execution) run(ctx context.Context, s *Segment, q *Query, at page, limit time.Duration) (result, error) {
	if err := ctx.Err(); err != nil {
		return result{}, err
	}
	e.s, e.q, e.at, e.need = s, q, at, at.offset+q.Limit+1
	e.m = meter{ctx: ctx, limit: limit}
	e.preds, e.words, e.rows, e.seen = e.preds[:0], e.words[:0], e.rows[:0], 0
	defer e.m.done()
	if err := e.prepare(); err != nil {
		return result{}, err
	}
	r := result{count: -1}
	e.used = e.choose()
	if err := e.collect(&e.used); err != nil {
		return r, err
	}
	rows := e.rows[min(e.used.skip, len(e.rows)):]
	r.more = len(rows) > q.Limit
	r.rows = rows[:min(q.Limit, len(rows))]
	if !q.Count {
		return r, nil
	}
	var err error
	r.count, err = e.count()
	return r, err
}

// close drops what e refers to and keeps its room.
func (e *execution) close() {
	clear(e.preds[:cap(e.preds)])
	clear(e.words[:cap(e.words)])
	e.s, e.q, e.m, e.used = nil, nil, meter{}, plan{}
	executions.Put(e)
}

// prepare compiles the filters and words. Ranges of one column become one.
func (e *execution) prepare() error {
next:
	for i := range e.q.Filters {
		p, err := e.s.predicate(&e.q.Filters[i], &e.m)
		if err != nil {
			return err
		}
		for k := range e.preds {
			if o := &e.preds[k]; o.c == p.c && o.isRange() && p.isRange() {
				o.lo, o.hi = max(o.lo, p.lo), min(o.hi, p.hi)
				continue next
			}
		}
		e.preds = append(e.preds, p)
	}
	for i := range e.preds {
		e.preds[i].index()
	}
	for i, w := range e.q.Words {
		t, err := e.s.word(w, &e.m, e.unions[i])
		if err != nil {
			return err
		}
		if t.bits != nil {
			e.unions[i] = t.bits
		}
		e.words = append(e.words, t)
	}
	return nil
}

// collect walks over the candidates of a plan and keeps the rows of the page.
func (e *execution) collect(p *plan) error {
	src, size := p.src, min(p.need, block) // often one page is all that is needed
	for ; ; size = min(4*size, block) {
		sel := src.fill(e.buf[:size])
		if len(sel) == 0 {
			break
		}
		e.seen += len(sel)
		if err := e.m.spend(len(sel) * (1 + 2*len(e.preds) + 4*len(e.words))); err != nil {
			return err
		}
		sel = e.narrow(sel, p)
		if p.ordered {
			if e.rows = append(e.rows, sel...); len(e.rows) >= p.need {
				return nil
			}
			continue
		}
		for _, row := range sel {
			if e.at.resume && e.compare(row, e.at.after) <= 0 {
				continue
			}
			if p.grouped && len(e.rows) >= p.need && e.pastGroup(row) {
				e.best(p.need)
				return nil
			}
			e.rows = append(e.rows, row)
		}
		if len(e.rows) > 2*p.need+block {
			if err := e.m.spend(8 * len(e.rows)); err != nil {
				return err
			}
			e.best(p.need)
		}
	}
	if !p.ordered {
		if err := e.m.spend(8 * len(e.rows)); err != nil {
			return err
		}
		e.best(p.need)
	}
	return nil
}

// best puts the rows in order and keeps the first n.
func (e *execution) best(n int) {
	if len(e.q.Sort) == 0 {
		slices.Sort(e.rows)
	} else {
		slices.SortFunc(e.rows, e.compare)
	}
	e.rows = e.rows[:min(n, len(e.rows))]
}

// pastGroup tells that a row, taken in the order of the first sort column, has
// another value there than the last row that was kept.
func (e *execution) pastGroup(row uint32) bool {
	c := &e.s.cols[e.q.Sort[0].Col]
	return c.ordinal(row) != c.ordinal(e.rows[len(e.rows)-1])
}

// narrow tests candidates by everything but what the plan draws them from.
func (e *execution) narrow(sel []uint32, p *plan) []uint32 {
	for i := range e.preds {
		if i != p.pred && len(sel) > 0 {
			sel = e.preds[i].narrow(sel)
		}
	}
	for i := range e.words {
		if i != p.word && len(sel) > 0 {
			sel = e.words[i].narrow(sel)
		}
	}
	return sel
}

// count counts all rows that match, whatever the page.
func (e *execution) count() (int, error) {
	p := e.cheapest()
	if len(e.preds)+len(e.words) == 0 || len(e.preds)+len(e.words) == 1 && (p.pred >= 0 || p.word >= 0) {
		return p.size, nil
	}
	n := 0
	for {
		sel := p.src.fill(e.buf[:])
		if len(sel) == 0 {
			return n, nil
		}
		e.seen += len(sel)
		if err := e.m.spend(len(sel) * (1 + 2*len(e.preds) + 4*len(e.words))); err != nil {
			return 0, err
		}
		n += len(e.narrow(sel, &p))
	}
}

// compare orders two rows by the sort keys, and by row number in the direction
// of the last one.
func (e *execution) compare(a, b uint32) int {
	desc := false
	for _, k := range e.q.Sort {
		c := &e.s.cols[k.Col]
		desc = k.Desc
		d := 0
		x, y := c.ordinal(a), c.ordinal(b)
		if c.typ == Text && !c.sorted && x != y && x != 0 && y != 0 {
			d = cmp.Compare(str(c.text(x)), str(c.text(y)))
		} else {
			d = cmp.Compare(x, y)
		}
		if d != 0 {
			if desc {
				return -d
			}
			return d
		}
	}
	if desc {
		return cmp.Compare(b, a)
	}
	return cmp.Compare(a, b)
}

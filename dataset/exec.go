package dataset

import (
	"cmp"
	"context"
	"slices"
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

const block = 4096

// run finds the rows of a query. It stops when ctx ends, and when it has used
// more CPU time than limit (0 = no limit).
func (s *Segment) run(ctx context.Context, q *Query, at page, limit time.Duration) (result, error) {
	m := &meter{ctx: ctx, limit: limit}
	defer m.done()
	if err := ctx.Err(); err != nil {
		return result{}, err
	}
	e := &execution{s: s, q: q, m: m, at: at}
	if err := e.prepare(); err != nil {
		return result{}, err
	}
	if len(e.preds)+len(e.words) == 0 && len(q.Sort) == 0 {
		return e.all(), nil
	}
	if len(q.Sort) == 0 {
		return e.scan()
	}
	return e.sorted()
}

// execution is a query on its way.
type execution struct {
	s     *Segment
	q     *Query
	m     *meter
	at    page
	preds []predicate
	words []wordTest
	sel   []uint32
}

// wordTest is one word of q: a row matches if one of its searched columns has
// a code whose value contains the word.
type wordTest struct{ preds []predicate }

func (e *execution) prepare() error {
	for i := range e.q.Filters {
		p, err := e.s.predicate(&e.q.Filters[i], e.m)
		if err != nil {
			return err
		}
		e.preds = append(e.preds, p)
	}
	if len(e.q.Words) == 0 {
		return nil
	}
	e.words = make([]wordTest, len(e.q.Words))
	var buf []byte
	for i := range e.s.cols {
		c := &e.s.cols[i]
		if c.typ != Text || !e.s.search.has(i) {
			continue
		}
		sets := make([][]uint64, len(e.words))
		for w := range sets {
			sets[w] = make([]uint64, (c.distinct()+64)/64)
			e.words[w].preds = append(e.words[w].preds, predicate{c: c, set: sets[w]})
		}
		for code := int64(1); code <= int64(c.distinct()); code++ {
			v := c.text(code)
			if err := e.m.spend(4 + len(v)); err != nil {
				return err
			}
			buf = words(v, buf, func(word []byte, _ bool) {
				for w, q := range e.q.Words {
					if string(word) == q.Text || q.Prefix && len(word) > len(q.Text) && string(word[:len(q.Text)]) == q.Text {
						sets[w][code>>6] |= 1 << (code & 63)
					}
				}
			})
		}
	}
	return nil
}

// all is a page of the whole file in its own order.
func (e *execution) all() result {
	from := min(e.at.offset, e.s.n)
	if e.at.resume {
		from = int(e.at.after) + 1
	}
	to := min(from+e.q.Limit, e.s.n)
	r := result{more: to < e.s.n, count: -1}
	for row := from; row < to; row++ {
		r.rows = append(r.rows, uint32(row))
	}
	if e.q.Count {
		r.count = e.s.n
	}
	return r
}

// matching gives the rows of [from, to) that match.
func (e *execution) matching(from, to int) []uint32 {
	e.sel = e.sel[:0]
	for row := from; row < to; row++ {
		e.sel = append(e.sel, uint32(row))
	}
	sel := e.sel
	for i := range e.preds {
		sel = e.preds[i].narrow(sel)
	}
	for i := range e.words {
		out := sel[:0]
		for _, row := range sel {
			if e.words[i].test(row) {
				out = append(out, row)
			}
		}
		sel = out
	}
	return sel
}

func (w *wordTest) test(row uint32) bool {
	for i := range w.preds {
		if w.preds[i].test(row) {
			return true
		}
	}
	return false
}

// scan walks over the rows in their order.
func (e *execution) scan() (result, error) {
	r := result{count: -1}
	from, skip, total := 0, e.at.offset, 0
	if e.at.resume && !e.q.Count {
		from = int(e.at.after) + 1
	}
	for ; from < e.s.n; from += block {
		to := min(from+block, e.s.n)
		if err := e.m.spend((to - from) * (1 + len(e.preds) + 4*len(e.words))); err != nil {
			return r, err
		}
		sel := e.matching(from, to)
		total += len(sel)
		if e.at.resume {
			for len(sel) > 0 && sel[0] <= e.at.after {
				sel = sel[1:]
			}
		}
		if skip >= len(sel) {
			skip -= len(sel)
			continue
		}
		sel = sel[skip:]
		skip = 0
		take := min(len(sel), e.q.Limit-len(r.rows))
		r.rows = append(r.rows, sel[:take]...)
		if take < len(sel) {
			r.more = true
			if !e.q.Count {
				break
			}
		}
	}
	if e.q.Count {
		r.count = total
	}
	return r, nil
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

// sorted collects all matching rows behind the page's start and puts them in
// order.
func (e *execution) sorted() (result, error) {
	r := result{count: -1}
	var rows []uint32
	total := 0
	for from := 0; from < e.s.n; from += block {
		to := min(from+block, e.s.n)
		if err := e.m.spend((to - from) * (8 + len(e.preds) + 4*len(e.words))); err != nil {
			return r, err
		}
		sel := e.matching(from, to)
		total += len(sel)
		for _, row := range sel {
			if !e.at.resume || e.compare(row, e.at.after) > 0 {
				rows = append(rows, row)
			}
		}
	}
	slices.SortFunc(rows, e.compare)
	if err := e.m.sample(); err != nil {
		return r, err
	}
	rows = rows[min(e.at.offset, len(rows)):]
	r.rows = rows[:min(e.q.Limit, len(rows))]
	r.more = len(rows) > len(r.rows)
	if e.q.Count {
		r.count = total
	}
	return r, nil
}

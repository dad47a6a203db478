package dataset

import (
	"math/bits"
	"slices"
	"sort"
)

// plan is a way to find the rows of a page: where candidates come from, which
// of the filters that already decides, and whether they come in the order of
// the answer.
type plan struct {
	src     candidates
	pred    int  // predicate that the source is made of, or -1
	word    int  // word that the source is made of, or -1
	size    int  // candidates, if all are taken
	ordered bool // candidates come in the order of the answer
	grouped bool // they come in the order of the first sort column
	need    int  // rows to keep
	skip    int  // of them, before the page
	cost    float64
	name    string // for people
	column  string
}

// candidates gives candidate rows: a list and further ones behind it, rows whose
// bit is set, or all from one to another.
type candidates struct {
	listed   bool
	list     []uint32
	more     [][]uint32
	backward bool // the list from its end
	bits     []uint64
	from, to int
}

// fill puts the next candidates into buf; none are left if it gives none.
func (s *candidates) fill(buf []uint32) []uint32 {
	n := 0
	switch {
	case s.bits != nil:
		for n < len(buf) && s.from < s.to {
			w := s.bits[s.from>>6] >> (s.from & 63)
			if w == 0 {
				s.from = (s.from | 63) + 1
				continue
			}
			s.from += bits.TrailingZeros64(w)
			buf[n] = uint32(s.from)
			n++
			s.from++
		}
	case s.listed:
		for len(s.list) == 0 && len(s.more) > 0 {
			s.list, s.more = s.more[0], s.more[1:]
		}
		if n = min(len(s.list), len(buf)); s.backward {
			last := len(s.list) - 1
			for i := range n {
				buf[i] = s.list[last-i]
			}
			s.list = s.list[:len(s.list)-n]
		} else {
			copy(buf, s.list[:n])
			s.list = s.list[n:]
		}
	default:
		n = min(len(buf), max(s.to-s.from, 0))
		for i := range n {
			buf[i] = uint32(s.from + i)
		}
		s.from += n
	}
	return buf[:n]
}

func (p *predicate) isRange() bool { return p.set == nil && p.list == nil && !p.not && p.lazy == nil }

// index finds the parts of the column's order that meet p, if they are known
// without looking at rows: one for a range, one per value for a list.
func (p *predicate) index() {
	if p.c.perm == nil || p.not || p.set != nil || p.lazy != nil {
		return
	}
	p.indexed = true
	if p.list == nil {
		from, to := p.c.run(p.lo, p.hi)
		p.run, p.size = p.c.perm[from:to], to-from
		return
	}
	for _, v := range p.list {
		from, to := p.c.run(v, v)
		p.runs = append(p.runs, p.c.perm[from:to])
		p.size += to - from
	}
}

func (p *predicate) candidates() candidates {
	return candidates{listed: true, list: p.run, more: p.runs}
}

// The costs of what a plan does to one row, in units of a step of a scan.
const (
	costScan   = 1.0 // per predicate
	costRandom = 4.0 // to look at rows in another order than theirs
	costSort   = 12.0
	costBit    = 1.5 // to note a row in a bitmap
)

// cheapest is the plan that visits the fewest candidates, in any order.
func (e *execution) cheapest() plan {
	n := float64(e.s.n)
	best := plan{src: candidates{to: e.s.n}, pred: -1, word: -1, size: e.s.n, cost: n * costScan * float64(1+len(e.preds)+2*len(e.words)), name: "scan"}
	for i := range e.preds {
		p := &e.preds[i]
		if p.indexed && (float64(p.size)*costRandom <= best.cost || len(e.preds)+len(e.words) == 1) {
			best = plan{src: p.candidates(), pred: i, word: -1, size: p.size, cost: float64(p.size) * costRandom, name: "index", column: p.c.name}
		}
	}
	for i := range e.words {
		w := &e.words[i]
		if float64(w.n)*costRandom <= best.cost || len(e.preds)+len(e.words) == 1 {
			best = plan{pred: -1, word: i, size: w.n, cost: float64(w.n) * costRandom, name: "word", column: e.q.Words[i].Text}
			best.src = w.source(e.s.n)
		}
	}
	return best
}

func (w *wordTest) source(rows int) candidates {
	if w.bits != nil {
		return candidates{bits: w.bits, to: rows}
	}
	return candidates{listed: true, list: w.list}
}

// choose finds the plan of the page with the lowest cost.
func (e *execution) choose() plan {
	if len(e.q.Sort) > 0 {
		return e.chooseSorted()
	}
	// How many rows match is guessed as if the filters had nothing to do with
	// each other.
	n := float64(e.s.n)
	matches := n * e.selectivity()
	part := min(1, float64(e.need)/max(matches, 1)) // of the candidates, until the page is full
	tests := float64(1 + len(e.preds) + 2*len(e.words))
	best := plan{src: candidates{to: e.s.n}, pred: -1, word: -1, ordered: true, size: e.s.n, cost: n * part * costScan * tests, name: "scan"}
	for i := range e.preds {
		p := &e.preds[i]
		if !p.indexed {
			continue
		}
		c := plan{src: p.candidates(), pred: i, word: -1, size: p.size, name: "index", column: p.c.name}
		if p.list == nil && p.lo == p.hi || p.size == 0 { // one value: its rows are in row order
			c.ordered, c.cost = true, float64(p.size)*part*costRandom
		} else {
			c.cost = float64(p.size)*(costBit+costRandom) + n/64
		}
		if c.cost < best.cost {
			best = c
		}
	}
	for i := range e.words {
		w := &e.words[i]
		c := plan{src: w.source(e.s.n), pred: -1, word: i, size: w.n, ordered: true, cost: float64(w.n) * part * costRandom, name: "word", column: e.q.Words[i].Text}
		if c.cost < best.cost {
			best = c
		}
	}
	if !best.ordered {
		e.toBitmap(&best)
	}
	e.seek(&best)
	return best
}

// selectivity guesses the part of the rows that match.
func (e *execution) selectivity() float64 {
	part := 1.0
	for i := range e.preds {
		if e.preds[i].indexed {
			part *= float64(e.preds[i].size) / float64(e.s.n)
		} else {
			part *= 0.5
		}
	}
	for i := range e.words {
		part *= float64(e.words[i].n) / float64(e.s.n)
	}
	return part
}

// toBitmap brings the rows of a range into row order.
func (e *execution) toBitmap(p *plan) {
	words := (e.s.n + 63) / 64
	e.bits = slices.Grow(e.bits[:0], words)[:words]
	clear(e.bits)
	for {
		rows := p.src.fill(e.buf[:])
		if len(rows) == 0 {
			break
		}
		for _, row := range rows {
			e.bits[row>>6] |= 1 << (row & 63)
		}
	}
	e.m.steps += p.size
	e.seen += p.size
	p.src, p.ordered, p.name = candidates{bits: e.bits, to: e.s.n}, true, "index, in row order"
}

// seek lets an ordered plan begin at the page: behind the cursor's row, or at
// the offset where every candidate counts.
func (e *execution) seek(p *plan) {
	p.need, p.skip = e.need, e.at.offset
	if !p.ordered {
		return
	}
	if e.at.resume {
		after := int(e.at.after) + 1
		switch {
		case len(e.q.Sort) > 0:
			e.seekSorted(p)
		case p.src.listed:
			i, _ := slices.BinarySearch(p.src.list, uint32(after))
			p.src.list = p.src.list[i:]
		default:
			p.src.from = after
		}
		return
	}
	if e.decided(p) && p.src.bits == nil {
		p.need, p.skip = e.q.Limit+1, 0
		skip := min(e.at.offset, len(p.src.list))
		switch {
		case !p.src.listed:
			p.src.from = min(e.at.offset, e.s.n)
		case p.src.backward:
			p.src.list = p.src.list[:len(p.src.list)-skip]
		default:
			p.src.list = p.src.list[skip:]
		}
	}
}

// decided tells that nothing is left to test about the plan's candidates.
func (e *execution) decided(p *plan) bool {
	tests := len(e.preds) + len(e.words)
	return tests == 0 || tests == 1 && (p.pred >= 0 || p.word >= 0)
}

// chooseSorted finds the plan of a page in the order of columns: walk over the
// first one's order until the page is full, or take all candidates of the
// shortest list and sort them.
func (e *execution) chooseSorted() plan {
	k := e.q.Sort[0]
	c := &e.s.cols[k.Col]
	matches := float64(e.s.n) * e.selectivity()
	best := e.cheapest()
	best.cost += matches * costSort
	if c.perm != nil {
		walk := plan{src: candidates{listed: true, list: c.perm, backward: k.Desc}, pred: -1, word: -1, size: e.s.n, ordered: len(e.q.Sort) == 1, grouped: len(e.q.Sort) > 1, name: "order", column: c.name}
		for i := range e.preds {
			if p := &e.preds[i]; p.c == c && p.isRange() {
				walk.pred, walk.size, walk.src.list = i, p.size, p.run
			}
		}
		part := min(1, float64(e.need)/max(matches, 1))
		walk.cost = float64(walk.size) * part * costRandom
		if walk.grouped { // a group is taken whole
			walk.cost += float64(walk.size) / float64(max(c.values64(), 1)) * costRandom
		}
		if e.decided(&walk) && walk.ordered {
			walk.cost = 0
		}
		if walk.cost <= best.cost {
			best = walk
		}
	}
	if best.grouped && e.at.resume {
		e.seekGroup(&best)
	}
	e.seek(&best)
	return best
}

// values64 guesses how many different values a column has.
func (c *column) values64() int {
	if c.typ == Text {
		return c.distinct()
	}
	if c.typ == Bool {
		return 2
	}
	return 1000
}

// seekSorted lets a walk over one column's order begin behind the cursor's row.
func (e *execution) seekSorted(p *plan) {
	c, run := &e.s.cols[e.q.Sort[0].Col], p.src.list
	n := c.ordinal(e.at.after)
	i := sort.Search(len(run), func(i int) bool {
		v := c.ordinal(run[i])
		return v > n || v == n && run[i] >= e.at.after
	})
	if p.src.backward {
		p.src.list = run[:i]
		return
	}
	if i < len(run) && run[i] == e.at.after {
		i++
	}
	p.src.list = run[i:]
}

// seekGroup lets a walk begin at the first row that has the value of the
// cursor's row in the first column; compare leaves out the ones before it.
func (e *execution) seekGroup(p *plan) {
	c, run := &e.s.cols[e.q.Sort[0].Col], p.src.list
	n := c.ordinal(e.at.after)
	if p.src.backward {
		p.src.list = run[:sort.Search(len(run), func(i int) bool { return c.ordinal(run[i]) > n })]
		return
	}
	p.src.list = run[sort.Search(len(run), func(i int) bool { return c.ordinal(run[i]) >= n }):]
}

package dataset

import (
	"math/bits"
	"slices"
)

// postings say which rows contain a word, in any of the searched columns.
type postings struct {
	tokenOff []uint32
	tokens   []byte
	postOff  []uint64
	posts    []uint32
}

func (p *postings) len() int            { return max(len(p.tokenOff)-1, 0) }
func (p *postings) token(i int) string  { return str(p.tokens[p.tokenOff[i]:p.tokenOff[i+1]]) }
func (p *postings) rows(i int) []uint32 { return p.posts[p.postOff[i]:p.postOff[i+1]] }

// lower is the first token that is not below s.
func (p *postings) lower(s string) int {
	lo, hi := 0, p.len()
	for lo < hi {
		mid := (lo + hi) / 2
		if p.token(mid) < s {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// wordTest is one word of q made ready: the rows that contain it, as a list or,
// if several tokens begin like it, as bits.
type wordTest struct {
	list []uint32
	bits []uint64
	n    int // rows
	pos  int // in list, where the last row was looked for
}

// narrow keeps the rows that contain the word. Candidates mostly ascend, so each
// is looked for from where the one before was, in growing steps.
func (w *wordTest) narrow(sel []uint32) []uint32 {
	n := 0
	for _, row := range sel {
		sel[n] = row
		if w.bits != nil && w.bits[row>>6]>>(row&63)&1 == 1 || w.bits == nil && w.seek(row) {
			n++
		}
	}
	return sel[:n]
}

func (w *wordTest) seek(row uint32) bool {
	list, from := w.list, w.pos
	if from > 0 && list[from-1] >= row {
		from = 0
	}
	to := from
	for step := 1; to < len(list) && list[to] < row; step *= 2 {
		from, to = to+1, to+step
	}
	i, ok := slices.BinarySearch(list[from:min(to+1, len(list))], row)
	w.pos = from + i
	return ok
}

// word finds the rows of a word. The union of a prefix is charged to m.
func (s *Segment) word(w Word, m *meter) (wordTest, error) {
	p := &s.words
	from := p.lower(w.Text)
	to := from
	if w.Prefix {
		to = p.len()
		if end := after(w.Text); end != "" {
			to = p.lower(end)
		}
	} else if from < p.len() && p.token(from) == w.Text {
		to++
	}
	switch to - from {
	case 0:
		return wordTest{}, nil
	case 1:
		return wordTest{list: p.rows(from), n: len(p.rows(from))}, nil
	}
	t := wordTest{bits: make([]uint64, (s.n+63)/64)}
	for i := from; i < to; i++ {
		for _, row := range p.rows(i) {
			t.bits[row>>6] |= 1 << (row & 63)
		}
		if err := m.spend(4 + len(p.rows(i))); err != nil {
			return t, err
		}
	}
	for _, b := range t.bits {
		t.n += bits.OnesCount64(b)
	}
	return t, nil
}

// indexer gathers the words of a file while its text columns are written.
type indexer struct {
	dict  *dict
	arena cells // of the words
	place func([]byte) ref
	cols  []indexedColumn
	buf   []byte
}

// indexedColumn has the words of each code of a column, and the code of each row.
type indexedColumn struct {
	codes []uint32
	off   []uint32 // into ids, by code
	ids   []uint32
}

func newIndexer() *indexer {
	x := &indexer{dict: newDict()}
	x.dict.cells = &x.arena
	return x
}

// column begins a column with n values, whose rows have these codes; 0 is null.
func (x *indexer) column(codes []uint32, n int) {
	x.cols = append(x.cols, indexedColumn{codes: codes, off: make([]uint32, 2, n+2)})
	x.place = x.arena.put
}

// value takes the value of the column's next code.
func (x *indexer) value(v []byte) {
	c := &x.cols[len(x.cols)-1]
	from := len(c.ids)
	x.buf = words(v, x.buf, func(w []byte, _ bool) {
		id := x.dict.enter(w, x.place)
		if len(c.ids)-from > 64 || !slices.Contains(c.ids[from:], id) {
			c.ids = append(c.ids, id)
		}
	})
	c.off = append(c.off, uint32(len(c.ids)))
}

// tokenState is what is known of a word while its rows are put down; it is kept
// together, as each look at it is a miss of the cache.
type tokenState struct {
	last uint32 // row + 1 that had it last
	next uint32 // where its next row goes
	end  uint32 // of its room
}

// room makes room for the rows of each word: as many as there are rows with a
// code that has the word, in any column.
func (x *indexer) room(words int) (state []tokenState, total uint32) {
	state = make([]tokenState, words)
	for i := range x.cols {
		c := &x.cols[i]
		freq := make([]uint32, len(c.off)-1)
		for _, code := range c.codes {
			freq[code]++
		}
		for code, n := range freq {
			for _, id := range c.ids[c.off[code]:c.off[code+1]] {
				state[id].end += n
			}
		}
	}
	for i := range state {
		state[i].next = total
		total += state[i].end
		state[i].end = total
	}
	return state, total
}

// write puts down the rows of each word, in the order of the words; a row counts
// once however often it has the word. A file of at most 1 GB has fewer than
// 2^32 words.
func (x *indexer) write(w *segmentWriter, rows int) {
	sorted, rank := x.dict.order()
	x.dict.slots, x.dict.sorter = nil, sorter{}
	for i := range x.cols {
		for k, id := range x.cols[i].ids {
			x.cols[i].ids[k] = rank[id]
		}
	}
	state, total := x.room(len(sorted))
	posts := make([]uint32, total)
	x.each(rows, state, posts)
	x.cols = nil
	offs := make([]uint64, len(sorted)+1)
	n, from := uint32(0), uint32(0)
	for i := range state { // close the gaps that words in two columns of a row leave
		n += uint32(copy(posts[n:], posts[from:state[i].next]))
		offs[i+1] = uint64(n)
		from = state[i].end
	}
	put(w, secPostOff, 0, offs)
	put(w, secPosts, 0, posts[:n])
	ends := make([]uint32, len(sorted)+1)
	var all []byte
	for i, id := range sorted {
		all = append(all, x.dict.value(id)...)
		ends[i+1] = uint32(len(all))
	}
	put(w, secTokenOff, 0, ends)
	put(w, secTokens, 0, all)
}

// each goes through all words of all rows and puts the rows into posts.
func (x *indexer) each(rows int, state []tokenState, posts []uint32) {
	for row := range uint32(rows) {
		for i := range x.cols {
			c := &x.cols[i]
			code := c.codes[row]
			for _, id := range c.ids[c.off[code]:c.off[code+1]] {
				if t := &state[id]; t.last != row+1 {
					t.last = row + 1
					posts[t.next] = row
					t.next++
				}
			}
		}
	}
}

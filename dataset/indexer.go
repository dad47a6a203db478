package dataset

import (
	"math/bits"
	"slices"
)

// indexer gathers the words of a file while its text columns are written.
type indexer struct {
	dict  *dict
	arena cells // of the words
	cols  []indexedColumn
	buf   []byte
	// The words of the value before: those that end where the two still agree are
	// the same, and in a dictionary in order most are.
	before []byte
	ends   []int // of its words
	ids    []uint32
	batch
}

// indexedColumn has the words of each code of a column, and its rows in order.
type indexedColumn struct {
	perm, starts []uint32
	off          []uint32 // into ids, by code
	ids          []uint32
}

// reserve makes room for the words of a batch, and of all values that are still
// to come if they have as many as those before: room that is not used costs no
// memory, and room that grows is copied.
func (c *indexedColumn) reserve() {
	if done, all := len(c.off)-2, cap(c.off)-2; len(c.ids)+1<<12 > cap(c.ids) && done > 1<<12 {
		c.ids = slices.Grow(c.ids, len(c.ids)/done*(all-done)+all/8)
	}
}

// batch is values whose words are cut and hashed, and not yet looked up: as each
// look is a miss of the cache, a batch lets memory answer many at once.
type batch struct {
	values []struct{ same, more int } // how many words are those of the value before, and how many not
	words  []hashedWord
	text   []byte
}

type hashedWord struct {
	prefix   uint64
	hash     uint32
	from, to uint32 // in text
}

func newIndexer() *indexer {
	x := &indexer{dict: newDict()}
	x.dict.cells = &x.arena
	return x
}

// column begins a column; its values come in the order of their codes.
func (x *indexer) column(d *dictionary) {
	x.enter()
	x.cols = append(x.cols, indexedColumn{perm: d.perm, starts: d.starts, off: make([]uint32, 2, len(d.places)+2)})
	x.before, x.ends, x.ids = x.before[:0], x.ends[:0], x.ids[:0]
}

// value takes the value of the column's next code.
func (x *indexer) value(v []byte) {
	agree, known, from := shared(x.before, v), 0, 0
	for known < len(x.ends) && x.ends[known] < agree {
		from = x.ends[known]
		known++
	}
	x.before, x.ends = append(x.before[:agree], v[agree:]...), x.ends[:known]
	x.buf = words(v[from:], x.buf, func(w []byte, end int) {
		x.ends = append(x.ends, from+end)
		p := prefixOf(w)
		at := uint32(len(x.text))
		x.text = append(x.text, w...)
		x.words = append(x.words, hashedWord{p, x.dict.hash(w, p), at, uint32(len(x.text))})
	})
	x.values = append(x.values, struct{ same, more int }{known, len(x.ends) - known})
	if len(x.words) >= 256 || len(x.values) >= 256 {
		x.enter()
	}
}

// enter looks up the words of the batch and gives them to its values.
func (x *indexer) enter() {
	if len(x.values) == 0 {
		return
	}
	x.dict.fetch(x.words)
	c, next := &x.cols[len(x.cols)-1], 0
	c.reserve()
	for _, v := range x.values {
		x.ids = x.ids[:v.same]
		for _, w := range x.words[next : next+v.more] {
			x.ids = append(x.ids, x.dict.enterHashed(x.text[w.from:w.to], w.prefix, w.hash, x.arena.put))
		}
		next += v.more
		first := len(c.ids)
		for _, id := range x.ids {
			if len(c.ids)-first > 64 || !slices.Contains(c.ids[first:], id) {
				c.ids = append(c.ids, id)
			}
		}
		c.off = append(c.off, uint32(len(c.ids)))
	}
	x.values, x.words, x.text = x.values[:0], x.words[:0], x.text[:0]
}

// wordEntry is a code of a column that has a word. Codes need 23 bits, as there are
// at most 5 million rows, and columns 7.
type wordEntry uint32

// write puts down the rows of each word, in the order of the words; a row counts
// once however often it has the word.
func (x *indexer) write(w *segmentWriter, rows int) {
	x.enter()
	sorted, _ := x.dict.inOrder()
	x.dict.slots, x.dict.sorter = nil, sorter{}
	starts, entries := x.transpose(len(sorted))
	offs := make([]uint32, 1, len(sorted)+1)
	n := uint32(0)
	set := rowSet{bits: make([]uint64, (rows+63)/64), tops: make([]uint64, (rows+4095)/4096)}
	var out []uint32
	w.begin(secPosts, 0)
	for _, id := range sorted {
		before := len(out)
		out = x.rows(entries[starts[id]:starts[id+1]], &set, out)
		n += uint32(len(out) - before)
		offs = append(offs, n)
		if len(out) >= 1<<14 {
			writeInts(w, out)
			out = out[:0]
		}
	}
	writeInts(w, out)
	w.end()
	x.cols = nil
	put(w, secPostOff, 0, offs)
	ends := make([]uint32, 1, len(sorted)+1)
	var all []byte
	for _, id := range sorted {
		all = append(all, x.dict.value(id)...)
		ends = append(ends, uint32(len(all)))
	}
	put(w, secTokenOff, 0, ends)
	put(w, secTokens, 0, all)
}

// transpose gives the entries of each word, by its id.
func (x *indexer) transpose(n int) (starts []uint32, entries []wordEntry) {
	next := make([]uint32, n)
	for i := range x.cols {
		for _, id := range x.cols[i].ids {
			next[id]++
		}
	}
	starts = make([]uint32, n+1)
	sum := uint32(0)
	for id, k := range next {
		starts[id], next[id] = sum, sum
		sum += k
	}
	starts[n] = sum
	entries = make([]wordEntry, sum)
	for i := range x.cols {
		c := &x.cols[i]
		for code := 1; code+1 < len(c.off); code++ {
			for _, id := range c.ids[c.off[code]:c.off[code+1]] {
				entries[next[id]] = wordEntry(i<<23 | code)
				next[id]++
			}
		}
		c.ids, c.off = nil, nil
	}
	return starts, entries
}

// rows adds the rows of the entries of a word to out, ascending.
func (x *indexer) rows(entries []wordEntry, set *rowSet, out []uint32) []uint32 {
	before := len(out)
	for i, e := range entries {
		out = append(out, x.run(e)...)
		if len(out)-before > 64 && i+1 < len(entries) {
			set.add(out[before:])
			for _, e := range entries[i+1:] {
				set.add(x.run(e))
			}
			return set.drain(out[:before])
		}
	}
	if len(entries) > 1 {
		slices.Sort(out[before:])
		out = out[:before+len(slices.Compact(out[before:]))]
	}
	return out
}

// run is the rows of an entry, ascending.
func (x *indexer) run(e wordEntry) []uint32 {
	c, code := &x.cols[e>>23], e&(1<<23-1)
	return c.perm[c.starts[code]:c.starts[code+1]]
}

// rowSet is a set of rows that gives them back in order.
type rowSet struct {
	bits []uint64
	tops []uint64 // which words of bits are not zero
}

func (s *rowSet) add(rows []uint32) {
	for _, row := range rows {
		s.bits[row>>6] |= 1 << (row & 63)
		s.tops[row>>12] |= 1 << (row >> 6 & 63)
	}
}

// drain adds the rows to list and leaves the set empty.
func (s *rowSet) drain(list []uint32) []uint32 {
	for t, top := range s.tops {
		for ; top != 0; top &= top - 1 {
			k := t<<6 | bits.TrailingZeros64(top)
			for b := s.bits[k]; b != 0; b &= b - 1 {
				list = append(list, uint32(k<<6|bits.TrailingZeros64(b)))
			}
			s.bits[k] = 0
		}
		s.tops[t] = 0
	}
	return list
}

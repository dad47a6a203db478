package dataset

import (
	"math/bits"
	"slices"
	"unicode/utf8"
)

// postings say which rows contain a word, in any of the searched columns.
type postings struct {
	tokenOff []uint32
	tokens   []byte
	postOff  []uint32
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

// narrow keeps the rows that contain the word.
func (w *wordTest) narrow(sel []uint32) []uint32 {
	if w.bits == nil {
		return w.narrowList(sel)
	}
	n := 0
	for _, row := range sel {
		sel[n] = row
		if w.bits[row>>6]>>(row&63)&1 == 1 {
			n++
		}
	}
	return sel[:n]
}

// narrowList looks for each row from where the one before was, as candidates
// mostly ascend: among the next eight without a branch, as nobody could guess
// it, and beyond them in growing steps.
func (w *wordTest) narrowList(sel []uint32) []uint32 {
	list, i, n := w.list, w.pos, 0
	for _, row := range sel {
		if i > 0 && list[i-1] >= row {
			i = 0
		}
		switch {
		case i+8 > len(list):
			for i < len(list) && list[i] < row {
				i++
			}
		case list[i+7] < row:
			i = gallop(list, i+8, row)
		default: // rows are below 2^31, so that the top bit of a difference is its sign
			next := (*[8]uint32)(list[i:])
			i += int((next[0]-row)>>31 + (next[1]-row)>>31 + (next[2]-row)>>31 + (next[3]-row)>>31 +
				(next[4]-row)>>31 + (next[5]-row)>>31 + (next[6]-row)>>31)
		}
		sel[n] = row
		if i < len(list) && list[i] == row {
			n++
		}
	}
	w.pos = i
	return sel[:n]
}

// gallop is the first place from a start on whose row is not below row.
func gallop(list []uint32, from int, row uint32) int {
	to := from
	for step := 8; to < len(list) && list[to] < row; step *= 2 {
		from, to = to+1, to+step
	}
	i, _ := slices.BinarySearch(list[from:min(to, len(list))], row)
	return from + i
}

// word finds the rows of a word. The union of a prefix is charged to m, and room
// is for it.
func (s *Segment) word(w Word, m *meter, room []uint64) (wordTest, error) {
	p := &s.words
	from := p.lower(w.Text)
	to := from
	if w.Prefix {
		to = p.len()
		var tmp [maxPattern + utf8.UTFMax]byte
		if end := appendAfter(tmp[:0], w.Text); len(end) > 0 {
			to = p.lower(str(end))
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
	size := (s.n + 63) / 64
	t := wordTest{bits: slices.Grow(room[:0], size)[:size]}
	clear(t.bits)
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

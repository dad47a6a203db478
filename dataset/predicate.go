package dataset

import (
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// predicate is a filter made ready for the columns of a segment: the ordinals
// that meet it are a range, a set of codes or a list. null never meets one,
// except the range that is null itself.
type predicate struct {
	c      *column
	lo, hi int64    // range, inclusive; lo > hi is empty
	set    []uint64 // bits of codes
	list   []int64  // in order
	not    bool     // the ordinals that are not null and outside
	lazy   *Filter  // tests the text of each row; for dictionaries too large to try
	m      *meter   // that lazy tests are charged to
	// What index finds: the rows of a range, or of each value of a list.
	indexed bool
	run     []uint32
	runs    [][]uint32
	size    int
}

// lazyAbove is the size of a dictionary from which on its values are tested as
// rows come, rather than all before the first.
const lazyAbove = 1 << 14

// nullOrdinal is the ordinal of null in c, below that of every value.
func (c *column) nullOrdinal() int64 {
	if c.values != nil {
		return maxNull
	}
	return 0
}

// test reports whether a row meets p.
func (p *predicate) test(row uint32) bool {
	n := p.c.ordinal(row)
	in := false
	switch {
	case p.lazy != nil:
		if n == 0 || p.m.err != nil {
			return false
		}
		v := p.c.text(n)
		_ = p.m.spend(1 + len(v)/32) // kept, and returned by the next one
		in = p.lazy.matches(v)
	case p.set != nil:
		in = p.set[n>>6]>>(n&63)&1 == 1
	case p.list != nil:
		_, in = slices.BinarySearch(p.list, n)
	default:
		in = n >= p.lo && n <= p.hi
	}
	if p.not {
		return !in && n != p.c.nullOrdinal()
	}
	return in
}

// predicate compiles a filter. Work on dictionaries is charged to m.
func (s *Segment) predicate(f *Filter, m *meter) (predicate, error) {
	c := &s.cols[f.Col]
	p := predicate{c: c, lo: c.nullOrdinal() + 1, hi: math.MaxInt64}
	switch f.Op {
	case Null:
		if f.Args[0].Num == 1 {
			p.lo, p.hi = c.nullOrdinal(), c.nullOrdinal()
		}
		return p, nil
	case Ne, Nin:
		p.not = true
	}
	if c.typ == Text {
		if c.sorted && f.Op != Contains {
			p.sortedText(f)
			return p, nil
		}
		return p, p.anyText(f, m)
	}
	switch f.Op {
	case In, Nin:
		p.list = make([]int64, 0, len(f.Args))
		for _, v := range f.Args {
			if !v.isFrac {
				p.list = append(p.list, v.Num)
			}
		}
	default:
		p.between(f.Op, f.Args[0])
	}
	return p, nil
}

// between narrows the range by a comparison.
func (p *predicate) between(op Op, v Value) {
	n, whole := v.Num, true
	if v.isFrac {
		n, whole = floor(v.Fraction), false
	}
	switch op {
	case Eq, Ne:
		p.lo, p.hi = n, n
		if !whole {
			p.lo, p.hi = 1, 0
		}
	case Gt:
		p.lo = n + 1
	case Gte:
		p.lo = n
		if !whole {
			p.lo = n + 1
		}
	case Lt:
		p.hi = n - 1
		if !whole {
			p.hi = n
		}
	case Lte:
		p.hi = n
	}
}

// floor is the whole number at or below f, kept where adding one is safe.
func floor(f float64) int64 {
	return int64(min(max(math.Floor(f), -1<<60), 1<<60))
}

// lower is the code of the first value of a sorted dictionary that is not
// below s.
func (c *column) lower(s string) int64 {
	lo, hi := int64(1), int64(c.distinct()+1)
	for lo < hi {
		mid := (lo + hi) / 2
		if str(c.text(mid)) < s {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// find is the code of exactly s, or 0.
func (c *column) find(s string) int64 {
	if n := c.lower(s); n <= int64(c.distinct()) && str(c.text(n)) == s {
		return n
	}
	return 0
}

// sortedText turns a comparison of text into one of codes.
func (p *predicate) sortedText(f *Filter) {
	c, s := p.c, f.Args
	switch f.Op {
	case In, Nin:
		p.list = make([]int64, 0, len(s))
		for _, v := range s {
			if n := c.find(v.Text); n > 0 {
				p.list = append(p.list, n)
			}
		}
	case Eq, Ne:
		p.lo = c.find(s[0].Text)
		if p.hi = p.lo; p.lo == 0 {
			p.lo, p.hi = 1, 0
		}
	case Gt:
		p.lo = c.lower(s[0].Text + "\x00")
	case Gte:
		p.lo = c.lower(s[0].Text)
	case Lt:
		p.hi = c.lower(s[0].Text) - 1
	case Lte:
		p.hi = c.lower(s[0].Text+"\x00") - 1
	case Prefix:
		p.lo = c.lower(s[0].Text)
		var tmp [maxPattern + utf8.UTFMax]byte
		if end := appendAfter(tmp[:0], s[0].Text); len(end) > 0 {
			p.hi = c.lower(str(end)) - 1
		}
	}
}

// anyText tries every value of the dictionary, or leaves that for later.
func (p *predicate) anyText(f *Filter, m *meter) error {
	c := p.c
	if c.distinct() > lazyAbove {
		p.lazy, p.m = f, m
		return nil
	}
	p.set = make([]uint64, (c.distinct()+64)/64)
	for code := int64(1); code <= int64(c.distinct()); code++ {
		v := c.text(code)
		if err := m.spend(1 + len(v)/32); err != nil {
			return err
		}
		if f.matches(v) {
			p.set[code>>6] |= 1 << (code & 63)
		}
	}
	return nil
}

// matches holds a text against f; what ne and nin leave out matches here.
func (f *Filter) matches(v []byte) bool {
	if f.Op == In || f.Op == Nin {
		_, ok := slices.BinarySearchFunc(f.Args, str(v), func(a Value, s string) int { return strings.Compare(a.Text, s) })
		return ok
	}
	arg := f.Args[0].Text
	switch f.Op {
	case Contains:
		return strings.Contains(str(v), arg)
	case Prefix:
		return strings.HasPrefix(str(v), arg)
	case Gt:
		return str(v) > arg
	case Gte:
		return str(v) >= arg
	case Lt:
		return str(v) < arg
	case Lte:
		return str(v) <= arg
	}
	return str(v) == arg
}

// narrow keeps those rows of a selection that meet p. The loops are written
// out by width, as this is where a scan's time goes.
func (p *predicate) narrow(sel []uint32) []uint32 {
	if p.isRange() {
		switch c := p.c; {
		case c.values != nil:
			return keep(sel, c.values, p.lo, p.hi)
		case c.codes8 != nil:
			return keepCodes(sel, c.codes8, p.lo, p.hi)
		case c.codes16 != nil:
			return keepCodes(sel, c.codes16, p.lo, p.hi)
		default:
			return keepCodes(sel, c.codes32, p.lo, p.hi)
		}
	}
	out := sel[:0]
	for _, row := range sel {
		if p.test(row) {
			out = append(out, row)
		}
	}
	return out
}

func keep(sel []uint32, values []int64, lo, hi int64) []uint32 {
	n := 0
	for _, row := range sel {
		sel[n] = row
		if v := values[row]; v >= lo && v <= hi {
			n++
		}
	}
	return sel[:n]
}

func keepCodes[T uint8 | uint16 | uint32](sel []uint32, codes []T, lo, hi int64) []uint32 {
	if lo > hi || lo > math.MaxUint32 || hi < 0 {
		return sel[:0]
	}
	from, width := uint32(max(lo, 0)), uint32(min(hi, math.MaxUint32)-max(lo, 0))
	n := 0
	for _, row := range sel {
		sel[n] = row
		if uint32(codes[row])-from <= width {
			n++
		}
	}
	return sel[:n]
}

package dataset

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
)

// sortItem is a value on its way to its place: as a key, eight bytes of it or
// all, which decide most comparisons without a look at the value.
type sortItem struct {
	key uint64
	id  uint32 // row or other number; the bit same is not part of it
	at  ref    // of the value, where that is text
}

// same marks an item whose text is that of the item before it.
const same = 1 << 31

// sorter is the room that sorting needs, kept from one column to the next.
type sorter struct {
	items, room []sortItem
	groups      []group
	counts      []uint32
	perm        []uint32
	fetched     byte // see cells.fetch
}

// group is a stretch of items that are in no order yet.
type group struct{ from, to uint32 }

// take gives n items and as much room.
func (s *sorter) take(n int) (items, room []sortItem) {
	if cap(s.items) < n {
		s.items, s.room = nil, nil // before there are others
		s.items, s.room = make([]sortItem, n), make([]sortItem, n)
	}
	return s.items[:n], s.room[:n]
}

// text orders items whose texts agree before depth, equal ones as they stand:
// by the next eight bytes, then each group that agrees in those by the eight
// after them. Texts hold no NUL, so one that ends is below one that goes on. It
// marks the items that are the same as the one before.
func (s *sorter) text(items, room []sortItem, c *cells, depth int) {
	if len(items) > 0 {
		s.key(items, c, depth)
		s.keyed(items, room, c, depth)
	}
}

// keyed is text for items, one at least, whose keys are those of depth.
func (s *sorter) keyed(items, room []sortItem, c *cells, depth int) {
	for {
		byKey(items, room)
		if first := items[0].key; first != items[len(items)-1].key || first&0xff == 0 {
			break
		}
		depth += 8
		s.key(items, c, depth)
	}
	done := len(s.groups)
	for from := 0; from < len(items); {
		key, to := items[from].key, from+1
		for to < len(items) && items[to].key == key {
			to++
		}
		switch {
		case to-from == 1:
		case key&0xff == 0: // they end here
			for i := from + 1; i < to; i++ {
				items[i].id |= same
			}
		default:
			s.groups = append(s.groups, group{uint32(from), uint32(to)})
		}
		from = to
	}
	s.keyGroups(items, s.groups[done:], c, depth+8)
	for k, end := done, len(s.groups); k < end; k++ {
		g := s.groups[k]
		s.keyed(items[g.from:g.to], room[g.from:g.to], c, depth+8)
	}
	s.groups = s.groups[:done]
}

// many is how many cells memory is asked for at once: few enough to be in the
// CPU's cache still when they are looked at.
const many = 256

// keyGroups gives the items of groups the keys of a depth.
func (s *sorter) keyGroups(items []sortItem, groups []group, c *cells, depth int) {
	for len(groups) > 0 {
		n, k := 0, 0
		for ; k < len(groups) && n < many; k++ {
			g := groups[k]
			if g.to-g.from < many {
				s.fetch(items[g.from:g.to], c)
			}
			n += int(g.to - g.from)
		}
		for _, g := range groups[:k] {
			s.key(items[g.from:g.to], c, depth)
		}
		groups = groups[k:]
	}
}

// key gives items the eight bytes of their texts from depth on as keys.
func (s *sorter) key(items []sortItem, c *cells, depth int) {
	for len(items) > 0 {
		next := items[:min(len(items), many)]
		if len(next) == many {
			s.fetch(next, c)
		}
		for i := range next {
			v := c.at(next[i].at)
			from := min(depth, len(v))
			if n := min(len(v)-from, 8); from <= cap(v)-8 { // what comes after the text is shifted out
				next[i].key = binary.BigEndian.Uint64(v[from:from+8]) &^ (1<<(64-8*n) - 1)
			} else {
				next[i].key = prefixOf(v[from:])
			}
		}
		items = items[len(next):]
	}
}

// fetch is cells.fetch for items.
func (s *sorter) fetch(items []sortItem, c *cells) {
	sum := byte(0)
	for i := range items {
		r := items[i].at
		sum += c.pages[r/pageSize][r%pageSize]
	}
	s.fetched += sum
}

// byKey sorts items by key and keeps the order of equal ones.
func byKey(items, room []sortItem) {
	if len(items) <= 40 {
		insertion(items)
		return
	}
	var differ uint64
	for i := range items {
		differ |= items[i].key ^ items[0].key
	}
	if differ == 0 {
		return
	}
	if len(items) <= 1<<14 && passes(differ) <= 3 {
		leastFirst(items, room, differ)
		return
	}
	// By the highest bits first, so that what is left to do fits the cache.
	shift := max(bits.Len64(differ)-digit, 0)
	ends := scatter(items, room, shift)
	from := uint32(0)
	for _, to := range ends {
		if to > from {
			byKey(room[from:to], items[from:to])
			from = to
		}
	}
	copy(items, room)
}

func insertion(items []sortItem) {
	for i := 1; i < len(items); i++ {
		it, k := items[i], i
		for k > 0 && items[k-1].key > it.key {
			items[k] = items[k-1]
			k--
		}
		items[k] = it
	}
}

// digit is how many bits of a key one pass looks at.
const digit = 8

// scatter brings items into room in the order of one digit. It gives where the
// items of each value of it end.
func scatter(items, room []sortItem, shift int) (ends [1 << digit]uint32) {
	for i := range items {
		ends[uint8(items[i].key>>shift)]++
	}
	sum := uint32(0)
	for d := range ends {
		ends[d], sum = sum, sum+ends[d]
	}
	for _, it := range items {
		d := uint8(it.key >> shift)
		room[ends[d]] = it
		ends[d]++
	}
	return ends
}

// passes is how many digits leastFirst looks at.
func passes(differ uint64) (n int) {
	for ; differ != 0; n++ {
		differ &^= (1<<digit - 1) << bits.TrailingZeros64(differ)
	}
	return n
}

// leastFirst sorts by one digit after the other, the lowest first; digits in
// which all agree are left out.
func leastFirst(items, room []sortItem, differ uint64) {
	from, to := items, room
	for differ != 0 {
		shift := bits.TrailingZeros64(differ)
		scatter(from, to, shift)
		from, to = to, from
		differ &^= (1<<digit - 1) << shift
	}
	if &from[0] != &items[0] {
		copy(items, from)
	}
}

// permuteCodes gives the rows in order of codes below n, and where the rows of
// each code begin.
func permuteCodes(codes []uint32, n int) (perm, starts []uint32) {
	starts = make([]uint32, n+1)
	next := make([]uint32, n+1)
	for _, c := range codes {
		next[c]++
	}
	sum := uint32(0)
	for i, k := range next {
		starts[i], next[i] = sum, sum
		sum += k
	}
	perm = make([]uint32, len(codes))
	for row, c := range codes {
		perm[next[c]] = uint32(row)
		next[c]++
	}
	return perm, starts
}

// ordered is the rows of a column of numbers in order of value, ties in row
// order, with nulls first.
type ordered struct {
	perm     []uint32
	distinct int64 // values that are not null
	again    int   // the first place in perm with the value of the place before it; 0 is none
}

// order sorts numbers: not at all if they are in order, by counting if they are
// close together, else by their digits. The next order is written over it.
func (s *sorter) order(values []int64) ordered {
	lo, hi, ascend, before := int64(math.MaxInt64), int64(math.MinInt64), true, int64(math.MinInt64)
	for _, v := range values {
		ascend = ascend && v >= before
		before = v
		if hi = max(hi, v); v != maxNull {
			lo = min(lo, v)
		}
	}
	s.perm = slices.Grow(s.perm[:0], len(values))[:len(values)]
	o := ordered{perm: s.perm}
	switch span := uint64(hi) - uint64(lo); {
	case ascend:
		for i := range o.perm {
			o.perm[i] = uint32(i)
		}
		for i, v := range values {
			o.meet(i, v, i == 0 || values[i-1] != v)
		}
	case hi >= lo && span < min(4*uint64(len(values)), 1<<20):
		s.count(values, lo, int(span), &o)
	default:
		items, room := s.take(len(values))
		for i, v := range values {
			items[i] = sortItem{key: uint64(v) ^ 1<<63, id: uint32(i)}
		}
		byKey(items, room)
		for i, it := range items {
			o.perm[i] = it.id
			o.meet(i, int64(it.key^1<<63), i == 0 || items[i-1].key != it.key)
		}
	}
	return o
}

// meet takes note of the value at place i in order; fresh says that the one
// before is another.
func (o *ordered) meet(i int, v int64, fresh bool) {
	switch {
	case v == maxNull:
	case fresh:
		o.distinct++
	case o.again == 0:
		o.again = i
	}
}

// count is order for values from lo to lo+span, or null.
func (s *sorter) count(values []int64, lo int64, span int, o *ordered) {
	s.counts = slices.Grow(s.counts[:0], span+2)[:span+2]
	next := s.counts // by place: 0 is null, 1 is lo
	clear(next)
	place := func(v int64) int {
		if v == maxNull {
			return 0
		}
		return int(v-lo) + 1
	}
	for _, v := range values {
		next[place(v)]++
	}
	sum := uint32(0)
	for p, n := range next {
		if p > 0 && n > 0 {
			o.distinct++
			if n > 1 && o.again == 0 {
				o.again = int(sum) + 1
			}
		}
		next[p] = sum
		sum += n
	}
	for row, v := range values {
		p := place(v)
		o.perm[next[p]] = uint32(row)
		next[p]++
	}
}

package dataset

import "math/bits"

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
type sorter struct{ items, room []sortItem }

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
	for ; len(items) > 0; depth += 8 {
		for i := range items {
			v := c.at(items[i].at)
			items[i].key = prefixOf(v[min(depth, len(v)):])
		}
		byKey(items, room)
		if first := items[0].key; first != items[len(items)-1].key || first&0xff == 0 {
			break
		}
	}
	for from := 0; from < len(items); {
		key, to := items[from].key, from+1
		for to < len(items) && items[to].key == key {
			to++
		}
		switch group := items[from:to]; {
		case len(group) == 1:
		case key&0xff == 0: // they end here
			for i := range group[1:] {
				group[i+1].id |= same
			}
		default:
			s.text(group, room[from:to], c, depth+8)
		}
		from = to
	}
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
	if len(items) <= 1<<14 {
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

// permute gives the rows in order of value, ties in row order.
func (s *sorter) permute(values []int64) []uint32 {
	items, room := s.take(len(values))
	for i, v := range values {
		items[i] = sortItem{key: uint64(v) ^ 1<<63, id: uint32(i)}
	}
	byKey(items, room)
	perm := make([]uint32, len(values))
	for i, it := range items {
		perm[i] = it.id
	}
	return perm
}

package dataset

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"
)

// dict collects the different values of a text column. Its ids count from 0 in
// order of appearance.
type dict struct {
	seed   maphash.Seed
	slots  []slot
	cells  *cells // that the values are in
	values []ref
	sorter
}

// sorter is the room that sorting needs, kept from one column to the next.
type sorter struct{ items, room []sortItem }

// take gives n items and as much room.
func (s *sorter) take(n int) (items, room []sortItem) {
	if cap(s.items) < n {
		s.items, s.room = make([]sortItem, n), make([]sortItem, n)
	}
	return s.items[:n], s.room[:n]
}

// reset forgets all values, and takes those of other cells from now on.
func (d *dict) reset(c *cells) {
	clear(d.slots)
	d.values, d.cells = d.values[:0], c
}

// value is the value of an id.
func (d *dict) value(id uint32) []byte { return d.cells.at(d.values[id]) }

// slot is a place of the hash table. The first eight bytes of a value stand in
// it, so that a short one is found by one look at memory.
type slot struct {
	prefix uint64
	hash   uint32
	id     uint32 // + 1; 0 is free
}

func newDict() *dict { return &dict{seed: maphash.MakeSeed(), slots: make([]slot, 256)} }

// enter finds b, or adds it where place says that it is.
func (d *dict) enter(b []byte, place func([]byte) ref) uint32 {
	h, p := uint32(maphash.Bytes(d.seed, b)), prefixAt(b, 0)
	m := uint32(len(d.slots) - 1)
	i := h & m
	for ; d.slots[i].id != 0; i = (i + 1) & m {
		s := &d.slots[i]
		// Values hold no NUL, so the prefix of one with less than eight bytes is
		// that of no other.
		if s.prefix == p && s.hash == h && (len(b) < 8 || bytes.Equal(d.value(s.id-1), b)) {
			return s.id - 1
		}
	}
	id := uint32(len(d.values))
	d.values = append(d.values, place(b))
	d.slots[i] = slot{p, h, id + 1}
	if len(d.values)*4 > len(d.slots)*3 {
		d.grow()
	}
	return id
}

func (d *dict) grow() {
	old := d.slots
	d.slots = make([]slot, 2*len(old))
	m := uint32(len(d.slots) - 1)
	for _, s := range old {
		if s.id == 0 {
			continue
		}
		i := s.hash & m
		for d.slots[i].id != 0 {
			i = (i + 1) & m
		}
		d.slots[i] = s
	}
}

// sortItem is a value with eight of its bytes, which decide most comparisons
// without a look at the value.
type sortItem struct {
	prefix uint64
	id     uint32
}

// order sorts the values by their bytes. It gives the ids in that order, and the
// rank of each id.
func (d *dict) order() (ids, rank []uint32) {
	items, room := d.take(len(d.values))
	for id := range items {
		items[id].id = uint32(id)
	}
	d.sort(items, room, 0)
	ids, rank = make([]uint32, len(items)), make([]uint32, len(items))
	for r, it := range items {
		ids[r] = it.id
		rank[it.id] = uint32(r)
	}
	return ids, rank
}

// sort orders items whose values agree before depth: by the next eight bytes,
// then each group that agrees in those by the eight after them. Values hold no
// NUL, so one that ends is below one that goes on.
func (d *dict) sort(items, room []sortItem, depth int) {
	for i := range items {
		items[i].prefix = prefixAt(d.value(items[i].id), depth)
	}
	if len(items) > 256 {
		radix(items, room)
	} else {
		slices.SortFunc(items, func(a, b sortItem) int { return cmp.Compare(a.prefix, b.prefix) })
	}
	for from := 0; from < len(items); {
		to := from + 1
		for to < len(items) && items[to].prefix == items[from].prefix {
			to++
		}
		if to-from > 1 {
			d.sort(items[from:to], room[from:to], depth+8)
		}
		from = to
	}
}

// prefixAt is eight bytes of v from depth on, filled up with zeros.
func prefixAt(v []byte, depth int) uint64 {
	if len(v) >= depth+8 {
		return binary.BigEndian.Uint64(v[depth:])
	}
	n := uint64(0)
	for i := depth; i < depth+8; i++ {
		n <<= 8
		if i < len(v) {
			n |= uint64(v[i])
		}
	}
	return n
}

// radix sorts items by prefix and keeps the order of equal ones. It skips the
// digits in which all agree.
func radix(items, room []sortItem) {
	const bits, size = 11, 1 << 11
	var differ uint64
	for i := range items {
		differ |= items[i].prefix ^ items[0].prefix
	}
	from, to := items, room
	for shift := 0; shift < 64; shift += bits {
		if differ>>shift&(size-1) == 0 {
			continue
		}
		var starts [size]uint32
		for i := range from {
			starts[from[i].prefix>>shift&(size-1)]++
		}
		sum := uint32(0)
		for d := range starts {
			starts[d], sum = sum, sum+starts[d]
		}
		for _, it := range from {
			d := it.prefix >> shift & (size - 1)
			to[starts[d]] = it
			starts[d]++
		}
		from, to = to, from
	}
	if len(items) > 0 && &from[0] != &items[0] {
		copy(items, from)
	}
}

// permuteCodes gives the rows in order of small codes below n: a counting sort.
func permuteCodes(codes []uint32, n int) []uint32 {
	starts := make([]uint32, n+1)
	for _, c := range codes {
		starts[c+1]++
	}
	for i := 1; i <= n; i++ {
		starts[i] += starts[i-1]
	}
	perm := make([]uint32, len(codes))
	for row, c := range codes {
		perm[starts[c]] = uint32(row)
		starts[c]++
	}
	return perm
}

// permute gives the rows in order of value, ties in row order.
func (s *sorter) permute(values []int64) []uint32 {
	items, room := s.take(len(values))
	for i, v := range values {
		items[i] = sortItem{uint64(v) ^ 1<<63, uint32(i)}
	}
	radix(items, room)
	perm := make([]uint32, len(values))
	for i, it := range items {
		perm[i] = it.id
	}
	return perm
}

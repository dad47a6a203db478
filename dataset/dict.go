package dataset

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"slices"
)

// dict collects the different values of a text column. Its ids count from 0 in
// order of appearance.
type dict struct {
	seed   maphash.Seed
	slots  []uint32 // id + 1, 0 is free
	hashes []uint32
	values [][]byte // into the column's cells
}

func newDict() *dict { return &dict{seed: maphash.MakeSeed(), slots: make([]uint32, 256)} }

// id finds b, or adds it. It keeps b.
func (d *dict) id(b []byte) uint32 {
	h := uint32(maphash.Bytes(d.seed, b))
	m := uint32(len(d.slots) - 1)
	i := h & m
	for ; d.slots[i] != 0; i = (i + 1) & m {
		if id := d.slots[i] - 1; d.hashes[id] == h && bytes.Equal(d.values[id], b) {
			return id
		}
	}
	id := uint32(len(d.values))
	d.values = append(d.values, b)
	d.hashes = append(d.hashes, h)
	d.slots[i] = id + 1
	if len(d.values)*2 > len(d.slots) {
		d.grow()
	}
	return id
}

// find is id without adding.
func (d *dict) find(b []byte) (uint32, bool) {
	h := uint32(maphash.Bytes(d.seed, b))
	m := uint32(len(d.slots) - 1)
	for i := h & m; d.slots[i] != 0; i = (i + 1) & m {
		if id := d.slots[i] - 1; d.hashes[id] == h && bytes.Equal(d.values[id], b) {
			return id, true
		}
	}
	return 0, false
}

func (d *dict) grow() {
	d.slots = make([]uint32, 2*len(d.slots))
	m := uint32(len(d.slots) - 1)
	for id, h := range d.hashes {
		i := h & m
		for d.slots[i] != 0 {
			i = (i + 1) & m
		}
		d.slots[i] = uint32(id) + 1
	}
}

// order sorts the values by their bytes and returns the rank of each id.
func (d *dict) order() (sorted [][]byte, rank []uint32) {
	type item struct {
		prefix uint64 // the first eight bytes, which decide nearly always
		id     uint32
	}
	items := make([]item, len(d.values))
	for id, v := range d.values {
		var p [8]byte
		copy(p[:], v)
		items[id] = item{binary.BigEndian.Uint64(p[:]), uint32(id)}
	}
	slices.SortFunc(items, func(a, b item) int {
		if a.prefix != b.prefix {
			if a.prefix < b.prefix {
				return -1
			}
			return 1
		}
		return bytes.Compare(d.values[a.id], d.values[b.id])
	})
	sorted, rank = make([][]byte, len(items)), make([]uint32, len(items))
	for r, it := range items {
		sorted[r] = d.values[it.id]
		rank[it.id] = uint32(r)
	}
	return sorted, rank
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

// permute gives the rows in order of value, ties in row order: a radix sort
// that skips the digits in which all values agree.
func permute(values []int64) []uint32 {
	type item struct {
		key uint64
		row uint32
	}
	const bits, size = 11, 1 << 11
	from, to := make([]item, len(values)), make([]item, len(values))
	var differ uint64
	for i, v := range values {
		k := uint64(v) ^ 1<<63
		from[i] = item{k, uint32(i)}
		differ |= k ^ from[0].key
	}
	for shift := 0; shift < 64; shift += bits {
		if differ>>shift&(size-1) == 0 {
			continue
		}
		var starts [size]uint32
		for i := range from {
			starts[from[i].key>>shift&(size-1)]++
		}
		sum := uint32(0)
		for d := range starts {
			starts[d], sum = sum, sum+starts[d]
		}
		for _, it := range from {
			d := it.key >> shift & (size - 1)
			to[starts[d]] = it
			starts[d]++
		}
		from, to = to, from
	}
	perm := make([]uint32, len(from))
	for i, it := range from {
		perm[i] = it.row
	}
	return perm
}

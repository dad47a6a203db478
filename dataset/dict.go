package dataset

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"math/rand/v2"
)

// dict collects the different values of a text column. Its ids count from 0 in
// order of appearance.
type dict struct {
	seed    uint64
	slots   []slot
	cells   *cells // that the values are in
	values  []ref
	fetched uint32 // see fetch
	sorter
}

// slot is a place of the hash table. The first eight bytes of a value stand in
// it, so that a short one is found by one look at memory.
type slot struct {
	prefix uint64
	hash   uint32
	id     uint32 // + 1; 0 is free
}

func newDict() *dict { return &dict{seed: rand.Uint64(), slots: make([]slot, 256)} }

// reset forgets all values, and takes those of other cells from now on.
func (d *dict) reset(c *cells) {
	clear(d.slots)
	d.values, d.cells = d.values[:0], c
}

// value is the value of an id.
func (d *dict) value(id uint32) []byte { return d.cells.at(d.values[id]) }

// hash mixes all of b with a seed that strangers do not know, sixteen bytes at a
// time, as wyhash does.
func (d *dict) hash(b []byte, prefix uint64) uint32 {
	h := d.seed ^ uint64(len(b))
	for len(b) > 16 {
		h = mix(binary.LittleEndian.Uint64(b)^h, binary.LittleEndian.Uint64(b[8:])^salt)
		b = b[16:]
		prefix = prefixOf(b)
	}
	second := uint64(0)
	if len(b) > 8 {
		second = binary.LittleEndian.Uint64(b[len(b)-8:])
	}
	h = mix(prefix^h, second^salt)
	return uint32(h ^ h>>32)
}

const salt = 0xa0761d6478bd642f

func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// enter finds b, or adds it where place says that it is.
func (d *dict) enter(b []byte, place func([]byte) ref) uint32 {
	p := prefixOf(b)
	return d.enterHashed(b, p, d.hash(b, p), place)
}

func (d *dict) enterHashed(b []byte, p uint64, h uint32, place func([]byte) ref) uint32 {
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
	if len(d.values)*3 > len(d.slots)*2 {
		d.grow()
	}
	return id
}

// fetch asks memory for the slots of these words at once.
func (d *dict) fetch(list []hashedWord) {
	m, sum := uint32(len(d.slots)-1), uint32(0)
	for i := range list {
		sum += d.slots[list[i].hash&m].id
	}
	d.fetched = sum
}

func (d *dict) grow() {
	old := d.slots
	more := 4
	if len(old) >= 1<<18 {
		more = 2
	}
	d.slots = make([]slot, more*len(old))
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

// inOrder sorts the values by their bytes. It gives the ids in that order, and the
// rank of each id.
func (d *dict) inOrder() (ids, rank []uint32) {
	items, room := d.take(len(d.values))
	for id, at := range d.values {
		items[id] = sortItem{id: uint32(id), at: at}
	}
	d.text(items, room, d.cells, 0)
	ids, rank = make([]uint32, len(items)), make([]uint32, len(items))
	for r, it := range items {
		ids[r] = it.id
		rank[it.id] = uint32(r)
	}
	return ids, rank
}

// prefixOf is the first eight bytes of v, filled up with zeros.
func prefixOf(v []byte) uint64 {
	n := len(v)
	switch {
	case n >= 8:
		return binary.BigEndian.Uint64(v)
	case n >= 4: // two looks that overlap
		return uint64(binary.BigEndian.Uint32(v))<<32 | uint64(binary.BigEndian.Uint32(v[n-4:]))<<(64-8*n)
	case n > 0:
		return uint64(v[0])<<56 | uint64(v[n/2])<<(56-8*(n/2)) | uint64(v[n-1])<<(64-8*n)
	}
	return 0
}

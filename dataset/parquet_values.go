package dataset

import (
	"encoding/binary"
	"errors"
)

// values decodes the values of a page, each as the bytes that it has in the
// plain encoding; a bool is a byte.
type values struct {
	leaf *leaf
	b    []byte
	room [16]byte
}

var errEncoding = errors.New("its encoding is not known")

// decode gives a function that gives the next value, valid until the next one.
// It is not ok if the page has ended.
func (v *values) decode(h *pageHeader) (next func() ([]byte, bool), err error) {
	phys := v.leaf.physical
	ints := phys == physInt32 || phys == physInt64
	raw := phys == physBytes || phys == physFixed
	var ok bool
	switch {
	case h.encoding == encPlain:
		return v.plain(), nil
	case h.encoding == encRLE && phys == physBool:
		if v.b, _, ok = prefixed(v.b); ok {
			return v.bools(), nil
		}
	case h.encoding == encDelta && ints:
		n, _, good := deltas(v.b, h.values)
		return v.ints(n), wantDeltas(good)
	case h.encoding == encDeltaLengths && phys == physBytes:
		n, rest, good := deltas(v.b, h.values)
		return lengths(n, rest), wantDeltas(good)
	case h.encoding == encDeltaBytes && raw:
		prefix, rest, ok1 := deltas(v.b, h.values)
		suffix, rest, ok2 := deltas(rest, h.values)
		return v.prefixes(prefix, lengths(suffix, rest)), wantDeltas(ok1 && ok2)
	case h.encoding == encSplit && v.leaf.width() > 0 && phys != physInt96:
		return v.split(), nil
	}
	return nil, errEncoding
}

func wantDeltas(ok bool) error {
	if ok {
		return nil
	}
	return errors.New("its differences cannot be read")
}

// plain values stand one after the other.
func (v *values) plain() func() ([]byte, bool) {
	switch w := v.leaf.width(); {
	case w > 0:
		return func() ([]byte, bool) {
			if len(v.b) < w {
				return nil, false
			}
			one := v.b[:w]
			v.b = v.b[w:]
			return one, true
		}
	case v.leaf.physical == physBool:
		n := 0
		return func() ([]byte, bool) {
			if n/8 >= len(v.b) {
				return nil, false
			}
			v.room[0] = v.b[n/8] >> (n % 8) & 1
			n++
			return v.room[:1], true
		}
	}
	return func() (one []byte, ok bool) {
		one, v.b, ok = prefixed(v.b)
		return one, ok
	}
}

func (v *values) bools() func() ([]byte, bool) {
	r := rle{b: v.b, width: 1}
	return func() ([]byte, bool) {
		n, ok := r.next()
		v.room[0] = byte(n)
		return v.room[:1], ok
	}
}

func (v *values) ints(n []int64) func() ([]byte, bool) {
	w := v.leaf.width()
	return func() ([]byte, bool) {
		if len(n) == 0 {
			return nil, false
		}
		binary.LittleEndian.PutUint64(v.room[:], uint64(n[0]))
		n = n[1:]
		return v.room[:w], true
	}
}

// lengths are values of bytes whose lengths stand before all of them.
func lengths(n []int64, b []byte) func() ([]byte, bool) {
	return func() ([]byte, bool) {
		if len(n) == 0 || n[0] < 0 || n[0] > int64(len(b)) {
			return nil, false
		}
		one := b[:n[0]]
		b, n = b[n[0]:], n[1:]
		return one, true
	}
}

// prefixes are values that begin as the one before does. Such a value may be
// far longer than its bytes in the file, so it ends with the largest cell.
func (v *values) prefixes(n []int64, rest func() ([]byte, bool)) func() ([]byte, bool) {
	var last []byte
	return func() ([]byte, bool) {
		tail, ok := rest()
		if !ok || len(n) == 0 || n[0] < 0 || n[0] > int64(len(last)) || len(last) > MaxCell {
			return nil, false
		}
		last = append(last[:n[0]], tail...)
		n = n[1:]
		w := v.leaf.width()
		return last, w == 0 || len(last) == w
	}
}

// split values have all their first bytes first, then all their second ones.
func (v *values) split() func() ([]byte, bool) {
	w := v.leaf.width()
	n, i := len(v.b)/w, 0
	one := make([]byte, w)
	return func() ([]byte, bool) {
		if i == n {
			return nil, false
		}
		for k := range one {
			one[k] = v.b[k*n+i]
		}
		i++
		return one, true
	}
}

// rle reads small numbers in runs of equal ones and runs of packed bits. It
// makes no more of them than it is asked for.
type rle struct {
	b      []byte
	width  uint   // bits of a number
	run    uint64 // numbers left of the run
	packed bool
	value  uint32 // of all numbers of the run
	acc    uint64 // bits that were taken and are not used yet
	have   uint
}

func (r *rle) next() (uint32, bool) {
	for r.run == 0 {
		head, n := binary.Uvarint(r.b)
		if n <= 0 || r.width > 32 {
			return 0, false
		}
		r.b, r.run, r.packed = r.b[n:], head>>1, head&1 == 1
		r.acc, r.have = 0, 0
		if r.packed {
			if r.run > 1<<60 {
				return 0, false
			}
			r.run *= 8
			continue
		}
		w := int(r.width+7) / 8
		if len(r.b) < w {
			return 0, false
		}
		r.value = 0
		for i := range w {
			r.value |= uint32(r.b[i]) << (8 * i)
		}
		r.b = r.b[w:]
	}
	r.run--
	if !r.packed {
		return r.value, true
	}
	for r.have < r.width {
		if len(r.b) == 0 {
			return 0, false
		}
		r.acc |= uint64(r.b[0]) << r.have
		r.have += 8
		r.b = r.b[1:]
	}
	n := uint32(r.acc & (1<<r.width - 1))
	r.acc >>= r.width
	r.have -= r.width
	return n, true
}

// deltas reads whole numbers that are given by their differences, at most as
// many as there may be, and what follows them.
func deltas(b []byte, most int64) (n []int64, rest []byte, ok bool) {
	c := &compact{b: b}
	block, minis, total, last := c.uvarint(), c.uvarint(), c.uvarint(), c.int()
	if c.bad || total > uint64(most) || minis == 0 || minis > 1<<10 || block > 1<<20 || block%(minis*8) != 0 || block == 0 {
		return nil, nil, false
	}
	n = make([]int64, 0, total)
	if total > 0 {
		n = append(n, last)
	}
	per := int(block / minis)
	for uint64(len(n)) < total {
		least := c.int()
		if c.bad || len(c.b)-c.i < int(minis) {
			return nil, nil, false
		}
		widths := c.b[c.i : c.i+int(minis)]
		c.i += int(minis)
		for _, w := range widths {
			if uint64(len(n)) == total {
				break
			}
			size := per / 8 * int(w)
			if w > 64 || len(c.b)-c.i < size {
				return nil, nil, false
			}
			mini := c.b[c.i : c.i+size]
			c.i += size
			for k := 0; k < per && uint64(len(n)) < total; k++ {
				last += least + int64(bitsAt(mini, k*int(w), int(w)))
				n = append(n, last)
			}
		}
	}
	return n, c.b[c.i:], true
}

// bitsAt is the number of some bits, at most 64, from a place on.
func bitsAt(b []byte, at, width int) (n uint64) {
	if width == 0 {
		return 0
	}
	i, off := at/8, at%8
	if i+8 <= len(b) {
		n = binary.LittleEndian.Uint64(b[i:]) >> off
	} else {
		for k := min(len(b)-i, 8) - 1; k >= 0; k-- {
			n = n<<8 | uint64(b[i+k])
		}
		n >>= off
	}
	if off+width > 64 {
		n |= uint64(b[i+8]) << (64 - off)
	}
	return n & (1<<(width-1)<<1 - 1)
}

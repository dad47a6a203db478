package dataset

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
)

// dictionary is a text column as its different values and a code for each row.
type dictionary struct {
	codes  []uint32 // by row: 0 is null, k the value at places[k-1]
	places []ref
	perm   []uint32 // the rows in order of their codes
	starts []uint32 // of the rows of each code in perm, and the end of the last
}

// text writes a column as a dictionary and a code per row. The dictionary is in
// order unless the cells are long: those are searched rather than sorted.
func (b *builder) text(i int) error {
	c, col := b.table.cols[i], &b.schema.Columns[i]
	if b.codes == nil {
		b.codes = make([]uint32, b.table.rows)
	}
	full := int64(b.table.rows) - c.nulls
	sorted := full == 0 || c.bytes <= indexable*full
	d, few := b.lookUp(c, sorted)
	if !few {
		d = b.sortRows(c)
	}
	n := len(d.places)
	value := func(k int) []byte { return c.at(d.places[k]) }
	b.sorted[i], col.Indexed, col.Distinct = sorted, sorted, int64(n)
	if n > 0 {
		lo, hi := value(0), value(n-1)
		for k := 0; k < n && !sorted; k++ {
			if v := value(k); bytes.Compare(v, lo) < 0 {
				lo = v
			} else if bytes.Compare(v, hi) > 0 {
				hi = v
			}
		}
		col.Min, col.Max = cut(lo), cut(hi)
	}
	b.writeCodes(i, d.codes, n)
	b.writeDictionary(i, c, &d)
	if sorted {
		put(b.w, secPerm, i, d.perm)
	}
	for code := 1; code <= n && i == b.keyCol; code++ {
		if rows := d.perm[d.starts[code]:d.starts[code+1]]; len(rows) > 1 {
			return b.key(i, string(appendString(nil, cut(value(code-1)))), rows[0], rows[1])
		}
	}
	return b.key(i, "", 0, 0)
}

// sample is after how many rows it shows whether values come again.
const sample = 1 << 14

// lookUp finds the values of a column by hashing. If they are to be sorted and
// hardly one comes twice, it gives up: sorting rows is faster then.
func (b *builder) lookUp(c *cells, sorted bool) (t dictionary, few bool) {
	r, d, codes := c.reader(), b.dict, b.codes
	d.reset(c)
	place := func([]byte) ref { return r.ref }
	for row := range codes {
		if row == sample && sorted && len(d.values) > sample/4 {
			return t, false
		}
		codes[row] = 0
		if cell, null := r.next(); !null {
			codes[row] = d.enter(cell, place) + 1
		}
	}
	t = dictionary{codes: codes, places: slices.Clone(d.values)}
	if sorted {
		ids, rank := d.inOrder()
		for k, id := range ids {
			t.places[k] = d.values[id]
		}
		for row, code := range codes {
			if code > 0 {
				codes[row] = rank[code-1] + 1
			}
		}
	}
	t.perm, t.starts = permuteCodes(codes, len(t.places)+1)
	return t, true
}

// sortRows finds the values of a column by sorting its rows.
func (b *builder) sortRows(c *cells) dictionary {
	items, room := b.dict.take(len(b.codes))
	t := dictionary{codes: b.codes, perm: make([]uint32, 0, len(b.codes)), starts: make([]uint32, 1, len(b.codes)/2)}
	r := c.reader()
	var first []byte
	n, common := 0, 0 // bytes with which every value begins
	for row := range b.codes {
		cell, null := r.next()
		if null {
			t.codes[row] = 0
			t.perm = append(t.perm, uint32(row))
			continue
		}
		if n == 0 {
			first, common = cell, len(cell)
		} else if common > 0 {
			common = shared(first[:common], cell)
		}
		items[n] = sortItem{id: uint32(row), at: r.ref}
		n++
	}
	items = items[:n]
	b.dict.text(items, room[:n], c, common)
	for _, it := range items {
		row := it.id &^ same
		if row == it.id {
			t.places = append(t.places, it.at)
			t.starts = append(t.starts, uint32(len(t.perm)))
		}
		t.codes[row] = uint32(len(t.places))
		t.perm = append(t.perm, row)
	}
	t.starts = append(t.starts, uint32(len(t.perm)))
	return t
}

// shared is the number of bytes with which a and b both begin.
func shared(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if x := binary.LittleEndian.Uint64(a[i:]) ^ binary.LittleEndian.Uint64(b[i:]); x != 0 {
			return i + bits.TrailingZeros64(x)/8
		}
	}
	for ; i < n; i++ {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// writeCodes writes codes below n+1 in the fewest bytes that hold them.
func (b *builder) writeCodes(i int, codes []uint32, n int) {
	switch {
	case n < 1<<8:
		small := make([]uint8, len(codes))
		for row, c := range codes {
			small[row] = uint8(c)
		}
		put(b.w, secCodes, i, small)
	case n < 1<<16:
		small := make([]uint16, len(codes))
		for row, c := range codes {
			small[row] = uint16(c)
		}
		put(b.w, secCodes, i, small)
	default:
		put(b.w, secCodes, i, codes)
	}
}

// writeDictionary writes the values of a text column and takes their words. Each
// is looked at once: in their order they lie all over the column's cells.
func (b *builder) writeDictionary(i int, c *cells, d *dictionary) {
	searched := len(b.schema.Search) == 0 || slices.Contains(b.schema.Search, b.schema.Columns[i].Name)
	if searched {
		b.words.column(d)
	}
	offs := make([]uint32, 1, len(d.places)+1)
	end := uint32(0)
	b.w.begin(secDict, i)
	buf := make([]byte, 0, 1<<16)
	for places := d.places; len(places) > 0; {
		next := places[:min(len(places), 64)]
		places = places[len(next):]
		b.fetched += c.fetch(next)
		for _, at := range next {
			v := c.at(at)
			end += uint32(len(v))
			offs = append(offs, end)
			if searched {
				b.words.value(v)
			}
			if buf = append(buf, v...); len(buf) >= 1<<15 {
				_, _ = b.w.Write(buf)
				buf = buf[:0]
			}
		}
	}
	_, _ = b.w.Write(buf)
	b.w.end()
	put(b.w, secDictOff, i, offs)
}

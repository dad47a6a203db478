package dataset

import "encoding/binary"

// cells are the cells of one column as the file has them, one after the other:
// a uvarint of 1 + length (0 is null), then the bytes. The arena grows by
// chunks, so that nothing is copied twice and memory stays near the file's size.
type cells struct {
	chunks [][]byte
	last   []byte   // the chunk that is being filled
	pages  [][]byte // every chunk from each multiple of pageSize on
	base   ref      // of last
	mask   mask     // what every cell so far can be
	bytes  int64    // of cells, without their lengths
	nulls  int64
	empty  int64
	digits int64 // numbers with more digits than a double keeps
	frac   int   // decimals of datetimes
	nsSafe bool  // all datetimes fit 63 bits of nanoseconds
	before mask  // what the column was until cell odd of row first made it text
	first  int
	odd    string
}

func (c *cells) add(b []byte) {
	if len(c.last)+len(b)+binary.MaxVarintLen32 > cap(c.last) {
		c.grow(len(b) + binary.MaxVarintLen32)
	}
	if len(b) < 127 {
		c.last = append(c.last, byte(len(b)+1))
	} else {
		c.last = binary.AppendUvarint(c.last, uint64(len(b)+1))
	}
	c.last = appendShort(c.last, b)
	c.bytes += int64(len(b))
	if len(b) == 0 {
		c.empty++
	}
}

// appendShort is append for bytes that are few as a rule. It copies more than
// those where there is room and something to copy, as sixteen bytes at once take
// less time than to see how many there are; what follows b is of no meaning.
func appendShort(to, b []byte) []byte {
	n := len(to)
	if len(b) > 16 || cap(b) < 16 || cap(to)-n < 16 {
		return append(to, b...)
	}
	*(*[16]byte)(to[n : n+16]) = [16]byte(b[:16])
	return to[:n+len(b)]
}

func (c *cells) addNull() {
	if len(c.last) == cap(c.last) {
		c.grow(1)
	}
	c.last = append(c.last, 0)
	c.nulls++
}

func (c *cells) grow(need int) {
	size := 1 << 12
	if c.last != nil {
		c.chunks = append(c.chunks, c.last)
		size = min(2*cap(c.last), pageSize)
	}
	c.last = make([]byte, 0, max(size, need))
	c.base = ref(len(c.pages) * pageSize)
	for b := c.last[:cap(c.last)]; len(b) > 0; b = b[min(len(b), pageSize):] {
		c.pages = append(c.pages, b)
	}
}

// see narrows the types of the column by a cell of a text format.
func (c *cells) see(b []byte, row int) {
	if c.mask == textOnly || len(b) == 0 {
		return
	}
	c.narrow(classify(b), b, row)
}

// narrow leaves the types that are in m, the classes of cell b, too.
func (c *cells) narrow(m mask, b []byte, row int) {
	if m&(1<<Datetime) != 0 && c.mask&(1<<Datetime) != 0 {
		c.measure(b)
	}
	if m == floatMask && len(b) > 18 {
		c.digits++
	}
	if was := c.mask; was&m == textOnly && was != textOnly && was != anyType {
		c.before, c.first, c.odd = was, row, clip(b)
	}
	c.mask &= m
}

// measure notes how finely a datetime is given, and whether nanoseconds since
// 1970 could hold it.
func (c *cells) measure(b []byte) {
	if len(b) == 20 && string(b[:4]) > "1685" && string(b[:4]) < "2255" { // no decimals, and all is well
		return
	}
	sec, _, n, _ := parseDatetime(b)
	c.frac = max(c.frac, n)
	if sec < -9_000_000_000 || sec > 9_000_000_000 {
		c.nsSafe = false
	}
}

// decimals is how many decimals the column's datetimes are kept with.
func (c *cells) decimals() int { return (c.frac + 2) / 3 * 3 }

// ref says where a cell is: its page, and the offset in that. A file of at most
// 1 GB takes fewer than 2^32 bytes of pages.
type ref uint32

const pageSize = 1 << 18

// put is add for what is no cell of a row; it tells where b is.
func (c *cells) put(b []byte) ref {
	c.add(b)
	head := 1
	for n := len(b) + 1; n >= 128; n >>= 7 {
		head++
	}
	return c.base + ref(len(c.last)-len(b)-head)
}

// at is the cell at a place.
func (c *cells) at(r ref) []byte {
	b := c.pages[r/pageSize][r%pageSize:]
	if n := int(b[0]); n < 128 {
		return b[1:n]
	}
	u, k := binary.Uvarint(b)
	return b[k : k+int(u)-1]
}

// fetch asks memory for the cells at all these places at once, so that at need
// not wait for one after the other. What it gives means nothing.
func (c *cells) fetch(places []ref) (sum byte) {
	for _, r := range places {
		sum += c.pages[r/pageSize][r%pageSize]
	}
	return sum
}

// cellReader walks over a column's cells in row order.
type cellReader struct {
	chunks [][]byte
	size   int    // of the chunk that is read
	b      []byte // the rest of it
	base   ref    // of that chunk
	after  ref    // of the next one
	ref    ref    // of the cell that next gave
}

func (c *cells) reader() cellReader {
	all := c.chunks
	if len(c.last) > 0 {
		all = append(all[:len(all):len(all)], c.last)
	}
	return cellReader{chunks: all}
}

// next gives the next cell; null is told from "". It must not be called more
// often than there are rows.
func (r *cellReader) next() (b []byte, null bool) {
	if len(r.b) == 0 {
		r.turn()
	}
	r.ref = r.base + ref(r.size-len(r.b))
	n := int(r.b[0])
	if n < 128 {
		if n == 0 {
			r.b = r.b[1:]
			return nil, true
		}
		b, r.b = r.b[1:n], r.b[n:]
		return b, false
	}
	u, k := binary.Uvarint(r.b)
	n = int(u) - 1
	b, r.b = r.b[k:k+n], r.b[k+n:]
	return b, false
}

// turn goes on to the next chunk that is not empty.
func (r *cellReader) turn() {
	for len(r.b) == 0 {
		r.b, r.chunks = r.chunks[0], r.chunks[1:]
		r.size, r.base = len(r.b), r.after
		r.after += ref((cap(r.b) + pageSize - 1) / pageSize * pageSize)
	}
}

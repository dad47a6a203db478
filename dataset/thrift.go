package dataset

import "encoding/binary"

// compact reads Thrift's compact protocol, in which Parquet writes what is not
// data. It allocates nothing that the bytes ask for, and after the first damage
// it gives zeros: look at bad at the end.
// https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
type compact struct {
	b   []byte
	i   int
	bad bool // damaged, or it ends too early
}

// The types of the protocol that Parquet uses. A field's bool is its type.
const (
	thriftTrue   = 1
	thriftFalse  = 2
	thriftByte   = 3
	thriftDouble = 7
	thriftBinary = 8
	thriftList   = 9
	thriftSet    = 10
	thriftMap    = 11
	thriftStruct = 12

	maxThriftDepth = 16 // Parquet needs seven
)

func (c *compact) byte() byte {
	if c.i >= len(c.b) {
		c.bad = true
		return 0
	}
	c.i++
	return c.b[c.i-1]
}

func (c *compact) uvarint() uint64 {
	if c.bad {
		return 0
	}
	n, k := binary.Uvarint(c.b[c.i:])
	if k <= 0 {
		c.bad = true
		return 0
	}
	c.i += k
	return n
}

func (c *compact) int() int64 {
	u := c.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// bytes reads a string; it is a part of what is read.
func (c *compact) bytes() []byte {
	n := c.uvarint()
	if c.bad || n > uint64(len(c.b)-c.i) {
		c.bad = true
		return nil
	}
	c.i += int(n)
	return c.b[c.i-int(n) : c.i]
}

// fields calls f for every field of a struct. What f does not read is skipped.
func (c *compact) fields(f func(id int, kind byte)) { c.fieldsIn(f, 0) }

func (c *compact) fieldsIn(f func(id int, kind byte), depth int) {
	for id := 0; !c.bad; {
		head := c.byte()
		kind := head & 15
		if head == 0 || c.bad {
			return
		}
		if delta := head >> 4; delta > 0 {
			id += int(delta)
		} else {
			id = int(c.int())
		}
		at := c.i
		f(id, kind)
		if c.i == at {
			c.skip(kind, depth)
		}
	}
}

// list calls f for every element of a list of structs, strings or numbers; f
// must read it.
func (c *compact) list(kind byte, f func()) {
	n, of := c.listHead()
	if of != kind {
		c.bad = true
	}
	for ; n > 0 && !c.bad; n-- {
		f()
	}
}

func (c *compact) listHead() (n uint64, kind byte) {
	head := c.byte()
	n, kind = uint64(head>>4), head&15
	if n == 15 {
		n = c.uvarint()
	}
	if n > uint64(len(c.b)-c.i) { // an element has a byte at least
		c.bad = true
	}
	return n, kind
}

// skip passes over a value. Bools of fields have no bytes of their own.
func (c *compact) skip(kind byte, depth int) {
	if depth == maxThriftDepth {
		c.bad = true
	}
	if c.bad {
		return
	}
	switch kind {
	case thriftTrue, thriftFalse:
	case thriftByte:
		c.byte()
	case 4, 5, 6: // i16, i32, i64
		c.uvarint()
	case thriftDouble:
		for range 8 {
			c.byte()
		}
	case thriftBinary:
		c.bytes()
	case thriftList, thriftSet:
		n, of := c.listHead()
		for ; n > 0 && !c.bad; n-- {
			c.skipItem(of, depth)
		}
	case thriftMap:
		n := c.uvarint()
		if n > uint64(len(c.b)-c.i) {
			c.bad = true
		}
		if n == 0 || c.bad {
			return
		}
		of := c.byte()
		for ; n > 0 && !c.bad; n-- {
			c.skipItem(of>>4, depth)
			c.skipItem(of&15, depth)
		}
	case thriftStruct:
		c.fieldsIn(func(int, byte) {}, depth+1)
	default:
		c.bad = true
	}
}

// skipItem passes over an element; unlike a field's, its bool is a byte.
func (c *compact) skipItem(kind byte, depth int) {
	if kind == thriftTrue || kind == thriftFalse {
		c.byte()
		return
	}
	c.skip(kind, depth+1)
}

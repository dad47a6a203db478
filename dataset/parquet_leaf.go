package dataset

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"time"

	"github.com/402claw/clawr"
)

// The physical types of Parquet.
const (
	physBool = iota
	physInt32
	physInt64
	physInt96 // old timestamps
	physFloat
	physDouble
	physBytes
	physFixed
)

// logical says what the values of a leaf mean.
type logical uint8

const (
	logicalNone logical = iota // what the physical type says; bytes are text
	logicalText                // strings, enums, JSON
	logicalUint                // unsigned
	logicalDecimal
	logicalDate
	logicalTime
	logicalStamp
	logicalUUID
	logicalHalf   // float16
	logicalList   // and map: nested
	logicalOpaque // BSON, intervals, geometry, variants
)

// leaf is a column of a Parquet file.
type leaf struct {
	name     string
	physical int64
	length   int64 // of fixed bytes
	optional bool
	repeated bool
	typed    bool // has a physical type: it is a leaf
	logical  logical
	what     string // name of an opaque type
	unit     int64  // of times: how many make a second
	local    bool   // times without a zone
	scale    int64  // of decimals

	longest int   // bytes of its longest cell
	nans    int64 // that became null
}

// readLeaf reads an element of the schema.
func readLeaf(c *compact) (l *leaf, children bool) {
	l = &leaf{unit: 1000}
	converted := int64(-1)
	c.fields(func(id int, kind byte) {
		switch id {
		case 1:
			l.physical, l.typed = c.int(), true
		case 2:
			l.length = c.int()
		case 3:
			r := c.int()
			l.optional, l.repeated = r == 1, r == 2
		case 4:
			l.name = string(c.bytes())
		case 5:
			children = c.int() > 0
		case 6:
			converted = c.int()
		case 7:
			l.scale = c.int()
		case 10:
			if kind == thriftStruct {
				l.readLogical(c)
			}
		}
	})
	if l.logical == logicalNone {
		l.convert(converted)
	}
	return l, children
}

// readLogical reads a LogicalType, a union.
func (l *leaf) readLogical(c *compact) {
	c.fields(func(id int, kind byte) {
		if kind != thriftStruct {
			return
		}
		switch id {
		case 1, 4, 12:
			l.logical = logicalText
		case 2, 3:
			l.logical = logicalList
		case 5:
			l.logical = logicalDecimal
			c.fields(func(id int, _ byte) {
				if id == 1 {
					l.scale = c.int()
				}
			})
		case 6:
			l.logical = logicalDate
		case 7, 8:
			l.logical = logicalTime
			if id == 8 {
				l.logical = logicalStamp
			}
			c.fields(func(id int, kind byte) {
				switch {
				case id == 1:
					l.local = kind == thriftFalse
				case id == 2 && kind == thriftStruct:
					c.fields(func(id int, _ byte) { l.unit = scale(3 * min(max(id, 1), 3)) })
				}
			})
		case 10:
			c.fields(func(id int, kind byte) {
				if id == 2 && kind == thriftFalse {
					l.logical = logicalUint
				}
			})
		case 14:
			l.logical = logicalUUID
		case 15:
			l.logical = logicalHalf
		case 13, 16, 17, 18:
			l.logical, l.what = logicalOpaque, map[int]string{13: "BSON", 16: "a variant", 17: "a geometry", 18: "a geography"}[id]
		}
	})
}

// convert understands the older ConvertedType.
func (l *leaf) convert(t int64) {
	switch t {
	case 0, 4, 19:
		l.logical = logicalText
	case 1, 2, 3:
		l.logical = logicalList
	case 5:
		l.logical = logicalDecimal
	case 6:
		l.logical = logicalDate
	case 7, 8:
		l.logical, l.unit = logicalTime, scale(int(t-6)*3)
	case 9, 10:
		l.logical, l.unit = logicalStamp, scale(int(t-8)*3)
	case 11, 12, 13, 14:
		l.logical = logicalUint
	case 20:
		l.logical, l.what = logicalOpaque, "BSON"
	case 21:
		l.logical, l.what = logicalOpaque, "an interval"
	}
}

// check refuses what cannot be a column, and meanings that do not go with the
// physical type.
func (l *leaf) check(n int) error {
	if l.logical == logicalOpaque {
		return &clawr.Error{Code: CodeParquet, Message: fmt.Sprintf("column %d (%s) is %s, which a dataset cannot hold", n, printable(l.name), l.what),
			Fix: "leave the column out, or write it as text"}
	}
	ints := l.physical == physInt32 || l.physical == physInt64
	raw := l.physical == physBytes || l.physical == physFixed
	ok := l.physical >= physBool && l.physical <= physFixed && (l.physical != physFixed || l.length > 0 && l.length <= MaxCell)
	switch l.logical {
	case logicalText:
		ok = ok && raw
	case logicalUint, logicalTime, logicalStamp:
		ok = ok && ints
	case logicalDate:
		ok = ok && l.physical == physInt32
	case logicalDecimal:
		ok = ok && (ints || raw) && l.scale >= 0 && l.scale <= 100
	case logicalUUID:
		ok = ok && l.physical == physFixed && l.length == 16
	case logicalHalf:
		ok = ok && l.physical == physFixed && l.length == 2
	}
	if !ok {
		return badParquet(fmt.Sprintf("column %d (%s) has a type that does not exist", n, printable(l.name)), nil)
	}
	return nil
}

// width is how many bytes a plain value has; 0 if that differs.
func (l *leaf) width() int {
	switch l.physical {
	case physInt32, physFloat:
		return 4
	case physInt64, physDouble:
		return 8
	case physInt96:
		return 12
	case physFixed:
		return int(l.length)
	}
	return 0
}

// text appends a value as a CSV file would have it, with what that can be.
// No types means null.
func (l *leaf) text(b, v []byte) ([]byte, mask) {
	var n int64
	switch l.physical {
	case physBool:
		return strconv.AppendBool(b, v[0] != 0), boolMask
	case physInt96:
		day, nanos := int64(int32(binary.LittleEndian.Uint32(v[8:]))), int64(binary.LittleEndian.Uint64(v))
		return appendStamp(b, (day-2440588)*86400+floorDiv(nanos, 1e9), floorMod(nanos, 1e9))
	case physFloat:
		return l.float(b, float64(math.Float32frombits(binary.LittleEndian.Uint32(v))), 32)
	case physDouble:
		return l.float(b, math.Float64frombits(binary.LittleEndian.Uint64(v)), 64)
	case physInt32:
		n = int64(int32(binary.LittleEndian.Uint32(v)))
		if l.logical == logicalUint {
			n = int64(uint32(n))
		}
	case physInt64:
		n = int64(binary.LittleEndian.Uint64(v))
	default:
		return l.raw(b, v)
	}
	switch l.logical {
	case logicalUint:
		if n < 0 {
			return strconv.AppendUint(b, uint64(n), 10), textOnly
		}
	case logicalDecimal:
		return appendDecimal(b, strconv.FormatInt(n, 10), int(l.scale))
	case logicalDate:
		if n < minSec/86400 || n > maxSec/86400 {
			return time.Unix(n*86400, 0).UTC().AppendFormat(b, time.DateOnly), textOnly
		}
		return appendDate(b, n), dateMask
	case logicalTime:
		n = floorMod(n, 86400*l.unit)
		s := n / l.unit
		b = append(b, byte('0'+s/36000), byte('0'+s/3600%10), ':', byte('0'+s/600%6), byte('0'+s/60%10), ':', byte('0'+s/10%6), byte('0'+s%10))
		return appendNanos(b, n%l.unit*(1e9/l.unit)), textOnly
	case logicalStamp:
		return appendStamp(b, floorDiv(n, l.unit), floorMod(n, l.unit)*(1e9/l.unit))
	}
	m := intMask
	if n > maxInt || n < -maxInt {
		m = textOnly
	}
	return strconv.AppendInt(b, n, 10), m
}

// raw is text for values of bytes.
func (l *leaf) raw(b, v []byte) ([]byte, mask) {
	switch l.logical {
	case logicalDecimal:
		n := new(big.Int).SetBytes(v)
		if len(v) > 0 && v[0] >= 0x80 {
			n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(v))))
		}
		return appendDecimal(b, n.String(), int(l.scale))
	case logicalUUID:
		for i, from := range []int{0, 4, 6, 8, 10} {
			if i > 0 {
				b = append(b, '-')
			}
			b = hex.AppendEncode(b, v[from:[]int{4, 6, 8, 10, 16}[i]])
		}
		return b, textOnly
	case logicalHalf:
		return l.float(b, half(binary.LittleEndian.Uint16(v)), 32)
	}
	m := anyType // an empty string is of no type
	if len(v) > 0 {
		m = classify(v) & stringMask
	}
	return append(b, v...), m
}

// float writes a float as its shortest decimal. NaN, which stands for a missing
// value in most files that have it, is null.
func (l *leaf) float(b []byte, f float64, bits int) ([]byte, mask) {
	switch {
	case math.IsNaN(f):
		return b, 0
	case math.IsInf(f, 0):
		if f < 0 {
			b = append(b, '-')
		}
		return append(b, "Infinity"...), textOnly
	case bits == 32:
		var short [32]byte
		f, _ = strconv.ParseFloat(str(strconv.AppendFloat(short[:0], f, 'g', -1, 32)), 64)
	}
	return appendFloat(b, f), floatMask
}

// half widens a float16.
func half(h uint16) float64 {
	f, exp := float64(h&0x3ff), int(h>>10&31)
	switch exp {
	case 0:
		f = math.Ldexp(f, -24)
	case 31:
		if f = math.Inf(1); h&0x3ff != 0 {
			return math.NaN()
		}
	default:
		f = math.Ldexp(f+1024, exp-25)
	}
	if h&0x8000 != 0 {
		f = -f
	}
	return f
}

// appendDecimal writes a whole number with a point before its last digits. It
// is a number if a double keeps all of them, else text.
func appendDecimal(b []byte, digits string, point int) ([]byte, mask) {
	if digits[0] == '-' {
		b, digits = append(b, '-'), digits[1:]
	}
	for len(digits) <= point {
		digits = "0" + digits
	}
	whole, frac := digits[:len(digits)-point], digits[len(digits)-point:]
	b = append(b, whole...)
	if point == 0 {
		if n, err := strconv.ParseInt(whole, 10, 64); err == nil && n <= maxInt {
			return b, intMask
		}
		return b, textOnly
	}
	b = append(append(b, '.'), frac...)
	first, last := 0, len(digits)
	for first < last && digits[first] == '0' {
		first++
	}
	for last > first && digits[last-1] == '0' {
		last--
	}
	if last-first > 15 || len(whole) > 300 {
		return b, textOnly
	}
	return b, floatMask
}

// appendStamp writes a moment with no more decimals than it needs, three at a
// time.
func appendStamp(b []byte, sec, nanos int64) ([]byte, mask) {
	m := timeMask
	if sec < minSec || sec > maxSec {
		b, m = time.Unix(sec, 0).UTC().AppendFormat(b, time.RFC3339), textOnly
	} else {
		b = appendDatetime(b, sec, 0)
	}
	b = b[:len(b)-1]
	b = appendNanos(b, nanos)
	return append(b, 'Z'), m
}

func appendNanos(b []byte, nanos int64) []byte {
	for digits, per := 9, int64(1); nanos > 0; digits, per = digits-3, per*1000 {
		if nanos/per%1000 != 0 {
			b = append(b, '.')
			for p := int64(1e8); digits > 0; digits, p = digits-1, p/10 {
				b = append(b, byte('0'+nanos/p%10))
			}
			break
		}
	}
	return b
}

func floorDiv(a, b int64) int64 {
	if a%b < 0 {
		return a/b - 1
	}
	return a / b
}

func floorMod(a, b int64) int64 { return a - floorDiv(a, b)*b }

// warn says what became of a column's values that a dataset cannot hold.
func (l *leaf) warn(t *table, i int) {
	if l.nans > 0 {
		t.warnings = append(t.warnings, fmt.Sprintf("column %s has %d values that are no number (NaN); they are null", t.names[i], l.nans))
	}
	if l.logical == logicalStamp && l.local {
		t.warnings = append(t.warnings, fmt.Sprintf("column %s has times without a time zone; they are taken as UTC", t.names[i]))
	}
	t.cols[i].digits = 0 // what has more digits than a double keeps is text already
}

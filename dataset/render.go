package dataset

import (
	"encoding/binary"
	"math"
	"strconv"
	"unicode/utf8"
	"unsafe"
)

// appendString writes s as JSON.stringify does: only quotes, backslashes and
// control characters are escaped.
func appendString[S []byte | string](b []byte, s S) []byte {
	b = append(b, '"')
	from := 0
	for i := plain(s); i < len(s); i++ {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		case '\b':
			b = append(b, '\\', 'b')
		case '\f':
			b = append(b, '\\', 'f')
		default:
			const hex = "0123456789abcdef"
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}

// plain is how many bytes at the front of s surely need no escape.
func plain[S []byte | string](s S) int {
	b := unsafe.Slice(*(**byte)(unsafe.Pointer(&s)), len(s)) // the first word of both is where they begin
	i := 0
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		quote, slash := x^'"'*ones, x^'\\'*ones
		if ((x-' '*ones)&^x|(quote-ones)&^quote|(slash-ones)&^slash)&tops != 0 {
			break
		}
	}
	return i
}

// appendCell writes a cell of a file as the JSON value of its column.
func appendCell(b, cell []byte, t Type, decimals int) []byte {
	switch t {
	case Text:
		return appendString(b, cell)
	case Bool, Int:
		return appendShort(b, cell)
	case Float:
		if plainFloat(cell) {
			return appendShort(b, cell)
		}
	case Datetime:
		if !plainDatetime(cell, decimals) {
			break
		}
		fallthrough
	case Date:
		b = append(b, '"')
		b = appendShort(b, cell)
		return append(b, '"')
	}
	return appendOrdinal(b, ordinal(cell, t, decimals), t, decimals)
}

// ordinal maps a cell to an integer that orders as its values do. The cell is
// one that classify allowed for the type.
func ordinal(cell []byte, t Type, decimals int) int64 {
	switch t {
	case Bool:
		if cell[0] == 't' {
			return 2
		}
		return 1
	case Int:
		n := int64(0)
		for _, c := range cell {
			if c != '-' {
				n = n*10 + int64(c-'0')
			}
		}
		if cell[0] == '-' {
			n = -n
		}
		return n
	case Float:
		f, ok := shortFloat(cell)
		if !ok {
			f, _ = strconv.ParseFloat(str(cell), 64)
		}
		return floatOrdinal(f)
	case Date:
		d, _ := parseDate(cell)
		return d
	case Datetime:
		sec, nanos, _, _ := parseDatetime(cell)
		n, _ := ticks(sec, nanos, decimals)
		return n
	}
	panic("dataset: text has no ordinal")
}

// appendOrdinal writes the JSON value of an ordinal.
func appendOrdinal(b []byte, n int64, t Type, decimals int) []byte {
	if n == maxNull {
		return append(b, "null"...)
	}
	switch t {
	case Bool:
		return strconv.AppendBool(b, n == 2)
	case Int:
		return strconv.AppendInt(b, n, 10)
	case Float:
		return appendFloat(b, ordinalFloat(n))
	case Date:
		return append(appendDate(append(b, '"'), n), '"')
	case Datetime:
		return append(appendDatetime(append(b, '"'), n, decimals), '"')
	}
	panic("dataset: text has no ordinal")
}

// jsonValue is an ordinal as encoding/json wants it, for the schema.
func jsonValue(n int64, t Type, decimals int) any {
	switch t {
	case Bool:
		return n == 2
	case Int:
		return n
	case Float:
		if f := ordinalFloat(n); !math.IsInf(f, 0) && !math.IsNaN(f) {
			return f
		}
		return nil
	}
	s := appendOrdinal(nil, n, t, decimals)
	return string(s[1 : len(s)-1])
}

// cut shortens text for the schema, between characters.
func cut(b []byte) string {
	if len(b) <= 64 {
		return string(b)
	}
	n := 64
	for !utf8.RuneStart(b[n]) {
		n--
	}
	return string(b[:n]) + "…"
}

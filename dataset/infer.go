package dataset

import (
	"math"
	"strconv"
	"unsafe"
)

// mask is the set of types that a cell, or every cell of a column so far, can
// have: bit t stands for Type t.
type mask uint8

const (
	anyType    mask = 1<<(Datetime+1) - 1
	textOnly   mask = 1 << Text
	boolMask   mask = textOnly | 1<<Bool
	intMask    mask = textOnly | 1<<Int | 1<<Float
	floatMask  mask = textOnly | 1<<Float
	dateMask   mask = textOnly | 1<<Date
	timeMask   mask = textOnly | 1<<Datetime
	stringMask mask = textOnly | 1<<Date | 1<<Datetime // what a JSON string can be
)

// best is the narrowest type in m. A column without any value is text.
func (m mask) best() Type {
	if m == anyType {
		return Text
	}
	for _, t := range [...]Type{Bool, Int, Float, Date, Datetime} {
		if m&(1<<t) != 0 {
			return t
		}
	}
	return Text
}

// classify says what the characters of a cell can be read as. It must agree
// with ordinal: a type it allows must convert.
func classify(b []byte) mask {
	switch c := b[0]; {
	case c == 't' || c == 'f':
		if string(b) == "true" || string(b) == "false" {
			return boolMask
		}
	case c == '-' || c == '.':
		return numberMask(b)
	case c >= '0' && c <= '9':
		if len(b) >= 10 && b[4] == '-' {
			if _, ok := parseDate(b); ok {
				return dateMask
			}
			if _, _, _, ok := parseDatetime(b); ok {
				return timeMask
			}
			return textOnly
		}
		return numberMask(b)
	}
	return textOnly
}

// numberMask tells int, float and text apart. Beyond JSON's numbers it takes
// .5 and -.5, as statistics offices write; it refuses whole numbers beyond
// 2^53−1, which no JSON client could read back.
func numberMask(b []byte) mask {
	i, whole, frac := 0, 0, 0
	if b[i] == '-' {
		i++
	}
	start := i
	for i < len(b) && b[i]-'0' <= 9 {
		i++
	}
	whole = i - start
	if whole > 1 && b[start] == '0' {
		return textOnly
	}
	if i == len(b) {
		if whole == 0 {
			return textOnly
		}
		if b[0] == '-' && b[1] == '0' {
			return floatMask // an int has no -0
		}
		if whole < 16 {
			return intMask
		}
		if n, err := strconv.ParseInt(str(b), 10, 64); err == nil && n <= maxInt && n >= -maxInt {
			return intMask
		}
		return textOnly
	}
	if b[i] == '.' {
		i++
		start = i
		for i < len(b) && b[i]-'0' <= 9 {
			i++
		}
		frac = i - start
		if frac == 0 {
			return textOnly
		}
	}
	if whole+frac == 0 {
		return textOnly
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') && whole > 0 {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		start = i
		for i < len(b) && b[i]-'0' <= 9 {
			i++
		}
		if i == start {
			return textOnly
		}
		if i == len(b) {
			if f, err := strconv.ParseFloat(str(b), 64); err != nil || math.IsInf(f, 0) {
				return textOnly
			}
		}
	}
	if i != len(b) {
		return textOnly
	}
	if whole > 300 {
		return textOnly
	}
	return floatMask
}

// str looks at b as a string without copying; b must not change while it lives.
func str(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// two is the number of two digits; above 99 if they are none.
func two(b []byte) int {
	hi, lo := int(b[0]-'0'), int(b[1]-'0')
	if hi > 9 || lo > 9 {
		return 100
	}
	return 10*hi + lo
}

// parseDate reads YYYY-MM-DD into days since 1970-01-01; years 0000 to 9999 of
// the proleptic Gregorian calendar.
func parseDate(b []byte) (days int64, ok bool) {
	if len(b) != 10 || b[4] != '-' || b[7] != '-' {
		return 0, false
	}
	century, year, m, d := two(b), two(b[2:]), two(b[5:]), two(b[8:])
	if century > 99 || year > 99 || m < 1 || m > 12 || d < 1 || d > 28 && d > monthDays(100*century+year, m) {
		return 0, false
	}
	return civilDays(100*century+year, m, d), true
}

func monthDays(y, m int) int {
	switch m {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if y%4 == 0 && (y%100 != 0 || y%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// civilDays counts days since 1970-01-01 with years that begin in March, so
// that the leap day comes last.
func civilDays(y, m, d int) int64 {
	if m <= 2 {
		y--
		m += 12
	}
	y += 400 // so that divisions round down
	return int64(365*y+y/4-y/100+y/400+(153*(m-3)+2)/5+d-1) - 719468 - 146097
}

// parseDatetime reads RFC 3339 into seconds since 1970 and nanoseconds, and
// says how many decimals the seconds have. Leap seconds are not taken, nor
// anything whose UTC year leaves 0000 to 9999.
func parseDatetime(b []byte) (sec int64, nanos, decimals int, ok bool) {
	if len(b) < 20 || b[10] != 'T' && b[10] != 't' && b[10] != ' ' || b[13] != ':' || b[16] != ':' {
		return 0, 0, 0, false
	}
	days, ok := parseDate(b[:10])
	h, m, s := two(b[11:]), two(b[14:]), two(b[17:])
	if !ok || h > 23 || m > 59 || s > 59 {
		return 0, 0, 0, false
	}
	sec = days*86400 + int64(h*3600+m*60+s)
	rest := b[19:]
	if rest[0] == '.' {
		i := 1
		for i < len(rest) && rest[i]-'0' <= 9 {
			i++
		}
		decimals = i - 1
		if decimals == 0 || decimals > 9 {
			return 0, 0, 0, false
		}
		for k := 1; k <= 9; k++ {
			if nanos *= 10; k < i {
				nanos += int(rest[k] - '0')
			}
		}
		rest = rest[i:]
	}
	switch {
	case len(rest) == 1 && (rest[0] == 'Z' || rest[0] == 'z'):
	case len(rest) == 6 && (rest[0] == '+' || rest[0] == '-') && rest[3] == ':':
		oh, om := two(rest[1:]), two(rest[4:])
		if oh > 23 || om > 59 {
			return 0, 0, 0, false
		}
		off := int64(oh*3600 + om*60)
		if rest[0] == '-' {
			off = -off
		}
		sec -= off
	default:
		return 0, 0, 0, false
	}
	if sec < minSec || sec > maxSec {
		return 0, 0, 0, false
	}
	return sec, nanos, decimals, true
}

const (
	minSec = -62167219200 // 0000-01-01T00:00:00Z
	maxSec = 253402300799 // 9999-12-31T23:59:59Z
)

// scale is how many ticks of a datetime with that many decimals make a second.
func scale(decimals int) int64 {
	n := int64(1)
	for range decimals {
		n *= 10
	}
	return n
}

// appendDate writes days since 1970 as YYYY-MM-DD.
func appendDate(b []byte, days int64) []byte {
	z := days + 719468 + 146097
	era := z / 146097
	doe := z - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	d, m, y := doy-(153*mp+2)/5+1, mp+3, yoe+era*400-400
	if m > 12 {
		m -= 12
		y++
	}
	return append(b, byte('0'+y/1000), byte('0'+y/100%10), byte('0'+y/10%10), byte('0'+y%10), '-',
		byte('0'+m/10), byte('0'+m%10), '-', byte('0'+d/10), byte('0'+d%10))
}

// appendDatetime writes ticks since 1970 in UTC with a fixed number of
// decimals, so that the bytes order as the times do.
func appendDatetime(b []byte, ticks int64, decimals int) []byte {
	per := scale(decimals)
	sec, frac := ticks/per, ticks%per
	if frac < 0 {
		sec, frac = sec-1, frac+per
	}
	days, s := sec/86400, sec%86400
	if s < 0 {
		days, s = days-1, s+86400
	}
	b = appendDate(b, days)
	b = append(b, 'T', byte('0'+s/36000), byte('0'+s/3600%10), ':', byte('0'+s/600%6), byte('0'+s/60%10), ':',
		byte('0'+s/10%6), byte('0'+s%10))
	if decimals > 0 {
		b = append(b, '.')
		for p := per / 10; p > 0; p /= 10 {
			b = append(b, byte('0'+frac/p%10))
		}
	}
	return append(b, 'Z')
}

// ticks turns a moment into the unit of a column; false if it has more decimals
// than the column, or does not fit 63 bits.
func ticks(sec int64, nanos, decimals int) (int64, bool) {
	per := scale(decimals)
	step := scale(9 - decimals)
	if int64(nanos)%step != 0 || sec > math.MaxInt64/per-1 || sec < math.MinInt64/per+1 {
		return 0, false
	}
	return sec*per + int64(nanos)/step, true
}

// floatOrdinal maps doubles to integers that order as they do; -0 is 0.
func floatOrdinal(f float64) int64 {
	if f == 0 {
		return 0
	}
	i := int64(math.Float64bits(f))
	if i < 0 {
		i ^= math.MaxInt64
	}
	return i
}

// ordinalFloat is the inverse of floatOrdinal.
func ordinalFloat(i int64) float64 {
	if i < 0 {
		i ^= math.MaxInt64
	}
	return math.Float64frombits(uint64(i))
}

// appendFloat writes f as JavaScript does, so that the edge gives the same bytes.
func appendFloat(b []byte, f float64) []byte {
	abs := math.Abs(f)
	if abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		b = strconv.AppendFloat(b, f, 'e', -1, 64)
		if n := len(b); n >= 4 && b[n-4] == 'e' && b[n-2] == '0' { // e-07 is e-7
			b[n-2] = b[n-1]
			b = b[:n-1]
		}
		return b
	}
	return strconv.AppendFloat(b, f, 'f', -1, 64)
}

// shortFloat reads a number without an exponent and with at most 15 digits: they
// and the power of ten below them are doubles, so that their quotient is the
// nearest one to the number.
func shortFloat(b []byte) (f float64, ok bool) {
	digits := b
	if b[0] == '-' {
		digits = b[1:]
	}
	if len(digits) > 16 {
		return 0, false
	}
	n, decimals := int64(0), -1
	for i, c := range digits {
		switch {
		case c-'0' <= 9:
			n = 10*n + int64(c-'0')
		case c == '.' && decimals < 0:
			decimals = len(digits) - i - 1
		default:
			return 0, false
		}
	}
	if decimals < 0 {
		if len(digits) > 15 {
			return 0, false
		}
		decimals = 0
	}
	if f = float64(n) / powers[decimals]; b[0] == '-' {
		f = -f
	}
	return f, true
}

var powers = [...]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15}

// plainFloat reports that the characters of a cell are what appendFloat would
// write: at most 15 significant digits survive a double, and are the shortest.
func plainFloat(b []byte) bool {
	if b[0] == '-' {
		b = b[1:]
	}
	if len(b) > 16 || len(b) == 0 || b[0] == '.' {
		return false
	}
	point := -1
	for i, c := range b {
		if c == '.' {
			point = i
		} else if c-'0' > 9 {
			return false
		}
	}
	if point < 0 {
		return len(b) <= 15 && (b[0] != '0' || len(b) == 1) && string(b) != "0"
	}
	// 0.0000001 is written 1e-7
	return b[len(b)-1] != '0' && (b[0] != '0' || len(b) < 8 || string(b[:7]) != "0.00000")
}

// plainDatetime reports that the characters of a cell are what appendDatetime
// would write.
func plainDatetime(b []byte, decimals int) bool {
	n := len("2006-01-02T15:04:05Z")
	if decimals > 0 {
		n += 1 + decimals
	}
	return len(b) == n && b[10] == 'T' && b[n-1] == 'Z'
}

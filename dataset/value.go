package dataset

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/402claw/clawr"
)

// Value is what a filter compares with.
type Value struct {
	// Num is the ordinal of a bool, float, date or datetime, and an integer
	// where Fraction is not set.
	Num int64
	// Fraction holds what an int column is compared with if that is no int: a
	// number with decimals, or one beyond 2^53−1.
	Fraction float64
	isFrac   bool
	Text     string
}

// parseValue reads a filter's value as its column's type wants it.
func parseValue(c *Column, param, s string) (Value, error) {
	bad := func(want string) (Value, error) {
		return Value{}, &clawr.Error{Code: CodeInvalidValue, Param: param, Message: fmt.Sprintf("%s takes %s, not %q", param, want, short(s)),
			Fix: fmt.Sprintf("column %s is %s; see /v1/schema", c.Name, c.Type)}
	}
	switch c.Type {
	case Bool:
		switch s {
		case "true":
			return Value{Num: 2}, nil
		case "false":
			return Value{Num: 1}, nil
		}
		return bad("true or false")
	case Int, Float:
		if !jsonNumber(s) {
			return bad("a number")
		}
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return bad("a number that a double can hold")
		}
		if c.Type == Float {
			return Value{Num: floatOrdinal(f)}, nil
		}
		if f == math.Trunc(f) && math.Abs(f) <= maxInt {
			return Value{Num: int64(f)}, nil
		}
		return Value{Fraction: f, isFrac: true}, nil
	case Date:
		if d, ok := parseDate([]byte(s)); ok {
			return Value{Num: d}, nil
		}
		return bad("a date such as 2024-01-31")
	case Datetime:
		sec, nanos := int64(0), 0
		if d, ok := parseDate([]byte(s)); ok {
			sec = d * 86400
		} else if sec, nanos, _, ok = parseDatetime([]byte(s)); !ok {
			return bad("a time such as 2024-01-31T12:00:00Z, or a date")
		}
		n, ok := ticks(sec, nanos, c.Fraction)
		if !ok {
			return bad(fmt.Sprintf("a time with at most %d decimals", c.Fraction))
		}
		return Value{Num: n}, nil
	}
	return Value{Text: s}, nil
}

// jsonNumber holds s against the grammar of RFC 8259.
func jsonNumber(s string) bool {
	i := 0
	run := func() bool {
		from := i
		for i < len(s) && s[i]-'0' <= 9 {
			i++
		}
		return i > from
	}
	if i < len(s) && s[i] == '-' {
		i++
	}
	first := i
	if !run() || i-first > 1 && s[first] == '0' {
		return false
	}
	if i < len(s) && s[i] == '.' {
		i++
		if !run() {
			return false
		}
	}
	if i < len(s) && s[i]|0x20 == 'e' {
		i++
		if i < len(s) && (s[i] == '+' || s[i] == '-') {
			i++
		}
		if !run() {
			return false
		}
	}
	return i == len(s)
}

// appendJSON writes v as a JSON value of its column's type.
func (v Value) appendJSON(b []byte, c *Column) []byte {
	switch {
	case c.Type == Text:
		return appendString(b, v.Text)
	case v.isFrac:
		return appendFloat(b, v.Fraction)
	}
	return appendOrdinal(b, v.Num, c.Type, c.Fraction)
}

// appendPlain writes v as the value of a parameter, before escaping.
func (v Value) appendPlain(b []byte, c *Column) []byte {
	if c.Type == Text {
		return append(b, v.Text...)
	}
	from := len(b)
	b = v.appendJSON(b, c)
	if b[from] == '"' { // dates
		b = append(b[:from], b[from+1:len(b)-1]...)
	}
	return b
}

func compareValues(a, b Value) int {
	switch {
	case a.Text != b.Text:
		return strings.Compare(a.Text, b.Text)
	case a.isFrac || b.isFrac:
		return cmp.Compare(a.float(), b.float())
	}
	return cmp.Compare(a.Num, b.Num)
}

func (v Value) float() float64 {
	if v.isFrac {
		return v.Fraction
	}
	return float64(v.Num)
}

// parseList reads the value of in and nin: items between commas, or a JSON
// array. Items are put in order and doubled ones dropped.
func parseList(c *Column, param, s string) ([]Value, error) {
	var items []string
	if strings.HasPrefix(s, "[") {
		var err error
		if items, err = arrayItems(c, s); err != nil {
			return nil, &clawr.Error{Code: CodeInvalidValue, Param: param, Message: fmt.Sprintf("%s: %v", param, err),
				Fix: `write a,b,c or a JSON array such as ["a","b"]`}
		}
	} else {
		items = strings.Split(s, ",")
	}
	if len(items) > maxList {
		return nil, over(param, fmt.Sprintf("%s has %d items, at most %d are possible", param, len(items), maxList))
	}
	list := make([]Value, 0, len(items))
	for _, it := range items {
		v, err := parseValue(c, param, it)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
	slices.SortFunc(list, compareValues)
	return slices.CompactFunc(list, func(a, b Value) bool { return compareValues(a, b) == 0 }), nil
}

// arrayItems gives the elements of a JSON array as parseValue reads them.
func arrayItems(c *Column, s string) ([]string, error) {
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var raw []any
	if err := d.Decode(&raw); err != nil || d.More() || len(bytes.TrimSpace([]byte(s[d.InputOffset():]))) > 0 {
		return nil, fmt.Errorf("%q is not a JSON array", short(s))
	}
	items := make([]string, len(raw))
	for i, v := range raw {
		want := c.Type == Text || c.Type == Date || c.Type == Datetime
		switch v := v.(type) {
		case string:
			if !want {
				return nil, fmt.Errorf("element %d is a string, the column is %s", i+1, c.Type)
			}
			items[i] = v
		case json.Number:
			if c.Type != Int && c.Type != Float {
				return nil, fmt.Errorf("element %d is a number, the column is %s", i+1, c.Type)
			}
			items[i] = v.String()
		case bool:
			if c.Type != Bool {
				return nil, fmt.Errorf("element %d is a bool, the column is %s", i+1, c.Type)
			}
			items[i] = strconv.FormatBool(v)
		default:
			return nil, fmt.Errorf("element %d is not a value", i+1)
		}
	}
	return items, nil
}

func over(param, message string) *clawr.Error {
	return &clawr.Error{Code: CodeOverLimit, Param: param, Message: message, Fix: "ask for less"}
}

// short cuts a stranger's value for a message.
func short(s string) string { return clip([]byte(strings.ToValidUTF8(s, "?"))) }

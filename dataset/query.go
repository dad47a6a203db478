package dataset

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/402claw/clawr"
)

// Limits of the grammar, from records.md.
const (
	maxQuery     = 8 << 10
	maxFilters   = 20
	maxList      = 100
	maxLimit     = 1000
	defaultLimit = 100
	maxSort      = 3
	maxWords     = 8
	maxPattern   = 256
)

// Op is how a filter compares.
type Op uint8

// The operators; all but Eq are written behind the column's name and "__".
const (
	Eq Op = iota
	Ne
	Gt
	Gte
	Lt
	Lte
	In
	Nin
	Null
	Prefix
	Contains
)

var opNames = [...]string{"eq", "ne", "gt", "gte", "lt", "lte", "in", "nin", "null", "prefix", "contains"}

// Format is how the rows of an answer are written.
type Format uint8

// The formats.
const (
	JSON Format = iota
	NDJSON
	CSV
)

var formatNames = [...]string{"json", "ndjson", "csv"}

// Filter is one condition; a row must meet all.
type Filter struct {
	Col  int
	Op   Op
	Args []Value // one; those of the list for In and Nin; Null has Num 1 for true
}

// SortKey is one column to sort by.
type SortKey struct {
	Col  int
	Desc bool
}

// Word is one word of q.
type Word struct {
	Text   string // folded; valid as long as its query
	Prefix bool   // any word that begins so
}

// Query is a parsed request for records.
type Query struct {
	Filters []Filter // by column name, then operator
	Sort    []SortKey
	Select  []int // nil is every column
	Words   []Word
	Limit   int
	Offset  int
	Count   bool
	Format  Format
	Version string // pinned; "" is the current one
	Cursor  string // as it came; position checks it

	room       []Value // of the arguments of filters
	text       []byte  // of values that are escaped, and of words
	folded     []byte  // of one word
	sortRoom   [maxSort]SortKey
	selectRoom []int
}

// reset makes q the empty query, and keeps its room.
func (q *Query) reset() {
	*q = Query{Filters: q.Filters[:0], room: q.room[:0], text: q.text[:0], folded: q.folded, sortRoom: q.sortRoom, selectRoom: q.selectRoom, Words: q.Words[:0], Limit: defaultLimit}
}

// parse reads the raw query of a URL against a schema. Every error is a 400
// that names the parameter and, for an unknown one, the nearest column.
func (q *Query) parse(s *Schema, raw string) error {
	if len(raw) > maxQuery {
		return &clawr.Error{Code: CodeQueryTooLong, Message: fmt.Sprintf("the query has %d bytes, at most %d are possible", len(raw), maxQuery), Fix: "ask for less"}
	}
	var seen [maxFilters + 16]string
	n := 0
	for raw != "" {
		var piece string
		piece, raw, _ = strings.Cut(raw, "&")
		if piece == "" {
			continue
		}
		name, value, err := q.param(piece)
		if err != nil {
			return err
		}
		if slices.Contains(seen[:n], name) {
			return &clawr.Error{Code: CodeDuplicateParameter, Param: name, Message: fmt.Sprintf("%s is given twice", short(name)),
				Fix: "give each parameter once; use " + short(name) + "__in=a,b for several values"}
		}
		if n == len(seen) {
			return over("", "there are too many parameters")
		}
		seen[n] = name
		n++
		if isControl(name) {
			err = q.control(s, name, value)
		} else {
			err = q.filter(s, name, value)
		}
		if err != nil {
			return err
		}
	}
	if q.Cursor != "" && q.Offset > 0 {
		return &clawr.Error{Code: CodeInvalidCursor, Param: "offset", Message: "cursor and offset cannot stand together", Fix: "leave out offset: the cursor says where to go on"}
	}
	if len(q.Filters) > 1 {
		slices.SortFunc(q.Filters, func(a, b Filter) int {
			return cmp.Or(strings.Compare(s.Columns[a.Col].Name, s.Columns[b.Col].Name), cmp.Compare(a.Op, b.Op))
		})
	}
	return nil
}

// param decodes one name=value. What it gives is valid as long as q.
func (q *Query) param(piece string) (name, value string, err error) {
	name, value, ok := strings.Cut(piece, "=")
	n, ok1 := q.unescape(name)
	v, ok2 := q.unescape(value)
	switch {
	case !ok1 || !ok2 || !utf8.ValidString(n) || !utf8.ValidString(v) || strings.IndexByte(v, 0) >= 0:
		return "", "", &clawr.Error{Code: CodeInvalidValue, Param: short(n), Message: fmt.Sprintf("%q is not URL-encoded UTF-8", short(piece)),
			Fix: "encode it as application/x-www-form-urlencoded"}
	case !ok:
		return "", "", &clawr.Error{Code: CodeInvalidValue, Param: short(n), Message: fmt.Sprintf("%q has no value", short(n)), Fix: "write " + short(n) + "=value"}
	}
	return n, v, nil
}

// unescape undoes percent-encoding, with + for a space. Where there is any, the
// result is in q.text.
func (q *Query) unescape(s string) (_ string, ok bool) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, true
	}
	from := len(q.text)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '+':
			c = ' '
		case c == '%':
			if i+2 >= len(s) {
				return s, false
			}
			hi, lo := unhex[s[i+1]], unhex[s[i+2]]
			if hi|lo == 0xff {
				return s, false
			}
			c, i = hi<<4|lo, i+2
		}
		q.text = append(q.text, c)
	}
	return str(q.text[from:]), true
}

// unhex has the values of hexadecimal digits, and 0xff for what is none.
var unhex = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range byte(10) {
		t['0'+i] = i
	}
	for i := range byte(6) {
		t['a'+i], t['A'+i] = 10+i, 10+i
	}
	return t
}()

func (q *Query) control(s *Schema, name, value string) (err error) {
	switch name {
	case "limit":
		q.Limit, err = number(name, value, 1, maxLimit)
	case "offset":
		q.Offset, err = number(name, value, 0, s.MaxOffset)
	case "cursor":
		if q.Cursor = value; value == "" {
			err = badCursor("it is empty")
		}
	case "sort":
		err = q.sort(s, value)
	case "select":
		err = q.choose(s, value)
	case "q":
		err = q.search(value)
	case "count":
		if q.Count = value == "exact"; !q.Count && value != "none" {
			err = oneOf(name, value, "exact", "none")
		}
	case "format":
		i := slices.Index(formatNames[:], value)
		if q.Format = Format(max(i, 0)); i < 0 {
			err = oneOf(name, value, formatNames[:]...)
		}
	case "version":
		q.Version = value
		if !isVersion(value) {
			err = &clawr.Error{Code: CodeInvalidValue, Param: name, Message: fmt.Sprintf("%q is not a version", short(value)),
				Fix: "use meta.version of an answer, 16 hex digits"}
		}
	}
	return err
}

func isVersion(s string) bool { return len(s) == 16 && strings.Trim(s, "0123456789abcdef") == "" }

func number(name, value string, lo, hi int64) (int, error) {
	n, err := strconv.ParseInt(value, 10, 64)
	if digits := strings.TrimPrefix(value, "-"); err != nil || value[0] == '+' || digits[0] == '0' && len(value) > 1 {
		return 0, &clawr.Error{Code: CodeInvalidValue, Param: name, Message: fmt.Sprintf("%s takes a whole number, not %q", name, short(value)),
			Fix: fmt.Sprintf("give %d to %d", lo, hi)}
	}
	if n < lo || n > hi {
		return 0, &clawr.Error{Code: CodeOverLimit, Param: name, Message: fmt.Sprintf("%s is %d, possible is %d to %d", name, n, lo, hi),
			Fix: fmt.Sprintf("give %d to %d", lo, hi)}
	}
	return int(n), nil
}

func oneOf(name, value string, of ...string) error {
	return &clawr.Error{Code: CodeInvalidValue, Param: name, Message: fmt.Sprintf("%s takes %s, not %q", name, strings.Join(of, " or "), short(value)),
		Fix: "write " + name + "=" + of[0]}
}

func (q *Query) sort(s *Schema, value string) error {
	q.Sort = q.sortRoom[:0]
	for key := range strings.SplitSeq(value, ",") {
		name, desc := strings.CutPrefix(key, "-")
		c, err := s.wanted(name, "sort")
		if err != nil {
			return err
		}
		for _, k := range q.Sort {
			if k.Col == c {
				return &clawr.Error{Code: CodeInvalidValue, Param: "sort", Message: fmt.Sprintf("sort names %s twice", name), Fix: "name each column once"}
			}
		}
		if len(q.Sort) == maxSort {
			return over("sort", fmt.Sprintf("sort takes at most %d columns", maxSort))
		}
		q.Sort = append(q.Sort, SortKey{c, desc})
	}
	return nil
}

func (q *Query) choose(s *Schema, value string) error {
	q.Select = q.selectRoom[:0]
	defer func() { q.selectRoom = q.Select }()
	for name := range strings.SplitSeq(value, ",") {
		c, err := s.wanted(name, "select")
		if err != nil {
			return err
		}
		if slices.Contains(q.Select, c) {
			return &clawr.Error{Code: CodeInvalidValue, Param: "select", Message: fmt.Sprintf("select names %s twice", name), Fix: "name each column once"}
		}
		q.Select = append(q.Select, c)
	}
	return nil
}

// wanted is the column that a parameter names.
func (s *Schema) wanted(name, param string) (int, error) {
	if c := s.Column(name); c >= 0 {
		return c, nil
	}
	return 0, &clawr.Error{Code: CodeUnknownColumn, Param: param, Message: fmt.Sprintf("%s: there is no column %q", param, short(name)),
		Fix: "did you mean " + s.nearest(name) + "? All columns are in /v1/schema"}
}

func (q *Query) search(value string) error {
	if len(value) > maxPattern {
		return over("q", fmt.Sprintf("q has %d bytes, at most %d are possible", len(value), maxPattern))
	}
	q.Words, q.text, q.folded = searchWords(q.Words, q.text, q.folded, value)
	if len(q.Words) == 0 {
		return &clawr.Error{Code: CodeInvalidValue, Param: "q", Message: "q contains no word", Fix: "give at least one letter or digit"}
	}
	if len(q.Words) > maxWords {
		return over("q", fmt.Sprintf("q has %d words, at most %d are possible", len(q.Words), maxWords))
	}
	return nil
}

// filter reads col=value and col__op=value.
func (q *Query) filter(s *Schema, name, value string) error {
	col, op := name, Eq
	if i := strings.LastIndex(name, "__"); i > 0 {
		col = name[:i]
		k := slices.Index(opNames[:], name[i+2:])
		if k <= int(Eq) {
			if s.Column(col) < 0 {
				return s.unknown(name, col, name[i:])
			}
			return &clawr.Error{Code: CodeUnknownOperator, Param: name, Message: fmt.Sprintf("there is no operator %q", short(name[i+2:])),
				Fix: "use one of " + strings.Join(opNames[1:], ", ") + "; " + col + "=value is equality"}
		}
		op = Op(k)
	}
	c := s.Column(col)
	if c < 0 {
		return s.unknown(name, col, name[len(col):])
	}
	if len(q.Filters) == maxFilters {
		return over(name, fmt.Sprintf("there are more than %d filters", maxFilters))
	}
	v, list, err := s.Columns[c].args(name, op, value)
	if err != nil {
		return err
	}
	if op != In && op != Nin {
		q.room = append(q.room, v)
		list = q.room[len(q.room)-1:]
	}
	q.Filters = append(q.Filters, Filter{c, op, list[:len(list):len(list)]})
	return nil
}

func (s *Schema) unknown(name, col, op string) error {
	best, kind := s.nearest(col), "column"
	dist := edits(col, best)
	if op == "" {
		for _, c := range controls {
			if d := edits(col, c); d < dist {
				best, dist, kind = c, d, "parameter"
			}
		}
	}
	return &clawr.Error{Code: CodeUnknownParameter, Param: short(name), Message: fmt.Sprintf("there is no column or parameter %q", short(name)),
		Fix: fmt.Sprintf("did you mean the %s %s? All columns are in /v1/schema", kind, best+short(op))}
}

// args reads the value of a filter, or the values of in and nin.
func (c *Column) args(param string, op Op, value string) (v Value, list []Value, err error) {
	bad := func(why, fix string) (Value, []Value, error) {
		return Value{}, nil, &clawr.Error{Code: CodeInvalidValue, Param: param, Message: param + " " + why, Fix: fix}
	}
	switch op {
	case Null:
		switch value {
		case "true":
			return Value{Num: 1}, nil, nil
		case "false":
			return Value{}, nil, nil
		}
		return bad("takes true or false", "write "+param+"=true")
	case In, Nin:
		list, err = parseList(c, param, value)
		return Value{}, list, err
	case Prefix, Contains:
		if c.Type != Text {
			return bad(fmt.Sprintf("needs a text column, %s is %s", c.Name, c.Type), "use gte and lt for ranges")
		}
		if len(value) == 0 || len(value) > maxPattern {
			return Value{}, nil, over(param, fmt.Sprintf("%s takes 1 to %d bytes, not %d", param, maxPattern, len(value)))
		}
	case Gt, Gte, Lt, Lte:
		if c.Type == Bool {
			return bad("cannot order true and false", "write "+c.Name+"=true")
		}
	}
	v, err = parseValue(c, param, value)
	return v, nil, err
}

// appendFilters writes what decides which rows an answer has and in what
// order, in canonical form: filters, then q, select and sort.
func (q *Query) appendFilters(b []byte, s *Schema) []byte {
	for i := range q.Filters {
		f := &q.Filters[i]
		c := &s.Columns[f.Col]
		b = append(b, c.Name...)
		if f.Op != Eq {
			b = append(b, '_', '_')
			b = append(b, opNames[f.Op]...)
		}
		b = append(b, '=')
		b = f.appendArgs(b, c)
		b = append(b, '&')
	}
	if len(q.Words) > 0 {
		b = append(b, "q="...)
		for i, w := range q.Words {
			if i > 0 {
				b = append(b, '+')
			}
			b = appendEscaped(b, w.Text)
			if w.Prefix {
				b = append(b, '*')
			}
		}
		b = append(b, '&')
	}
	if q.Select != nil {
		b = append(b, "select="...)
		for i, c := range q.Select {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(b, s.Columns[c].Name...)
		}
		b = append(b, '&')
	}
	if q.Sort != nil {
		b = append(b, "sort="...)
		for i, k := range q.Sort {
			if i > 0 {
				b = append(b, ',')
			}
			if k.Desc {
				b = append(b, '-')
			}
			b = append(b, s.Columns[k.Col].Name...)
		}
		b = append(b, '&')
	}
	return b
}

func (f *Filter) appendArgs(b []byte, c *Column) []byte {
	var tmp [64]byte
	switch f.Op {
	case Null:
		return strconv.AppendBool(b, f.Args[0].Num == 1)
	case In, Nin:
		list := append(tmp[:0], '[')
		for i, v := range f.Args {
			if i > 0 {
				list = append(list, ',')
			}
			list = v.appendJSON(list, c)
		}
		return appendEscaped(b, append(list, ']'))
	}
	if c.Type == Text {
		return appendEscaped(b, f.Args[0].Text)
	}
	return appendEscaped(b, f.Args[0].appendPlain(tmp[:0], c))
}

// append writes the canonical query: equal for equal questions. Without place
// it leaves out where in the rows to begin, for the next page's address.
func (q *Query) append(b []byte, s *Schema, place bool) []byte {
	from := len(b)
	b = q.appendFilters(b, s)
	if q.Count {
		b = append(b, "count=exact&"...)
	}
	if place && q.Cursor != "" {
		b = append(b, "cursor="...)
		b = append(appendEscaped(b, q.Cursor), '&')
	}
	if q.Format != JSON {
		b = append(b, "format="...)
		b = append(append(b, formatNames[q.Format]...), '&')
	}
	if q.Limit != defaultLimit {
		b = append(b, "limit="...)
		b = append(strconv.AppendInt(b, int64(q.Limit), 10), '&')
	}
	if place && q.Offset > 0 {
		b = append(b, "offset="...)
		b = append(strconv.AppendInt(b, int64(q.Offset), 10), '&')
	}
	if q.Version != "" {
		b = append(b, "version="...)
		b = append(append(b, q.Version...), '&')
	}
	if len(b) > from {
		b = b[:len(b)-1]
	}
	return b
}

// appendEscaped percent-encodes what is not plain in the value of a parameter.
func appendEscaped[S []byte | string](b []byte, s S) []byte {
	const hex = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_', c == '~', c == ':', c == ',':
			b = append(b, c)
		case c == ' ':
			b = append(b, '+')
		default:
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return b
}

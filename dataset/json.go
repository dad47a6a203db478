package dataset

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/402claw/clawr"
)

// jsonReader reads objects out of a JSON array or, one after the other, out of
// NDJSON. Objects are flat: a value is a string, number, bool or null.
type jsonReader struct {
	src     io.Reader
	buf     []byte
	pos     int // where the unfinished object starts
	end     int
	eof     bool
	line    int // of buf[pos]
	lineAt  int // offset in buf of the start of that line, may be negative
	array   bool
	started bool
	done    bool
	scratch []byte
}

// errMore asks for more input; the object is then read again from its start.
var errMore = &clawr.Error{Code: "more"}

func newJSON(src io.Reader, array bool) *jsonReader {
	return &jsonReader{src: src, buf: make([]byte, 64<<10), line: 1, array: array}
}

// fieldFunc receives one field of an object; value is valid until it returns.
type fieldFunc func(name, value []byte, kind byte, line, column int) error

// next reads one object and hands its fields to f, or returns io.EOF. begin is
// called before the fields of each try: after more input has come, an object
// starts over.
func (j *jsonReader) next(begin func(line int) error, f fieldFunc) error {
	for {
		err := j.object(begin, f)
		if err != error(errMore) {
			return err
		}
		if err := j.fill(); err != nil {
			return err
		}
	}
}

func (j *jsonReader) fill() error {
	if j.pos > 0 {
		copy(j.buf, j.buf[j.pos:j.end])
		j.end -= j.pos
		j.lineAt -= j.pos
		j.pos = 0
	}
	if j.end == len(j.buf) {
		if j.end > 4*MaxRow {
			return rowTooLarge(j.line, int64(j.end))
		}
		j.buf = append(j.buf, make([]byte, len(j.buf))...)
	}
	n, err := io.ReadFull(j.src, j.buf[j.end:])
	j.end += n
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		j.eof = true
		return nil
	}
	return err
}

// fail is a syntax error at offset i, or a wish for more input if that is where
// the input ends for now.
func (j *jsonReader) fail(i int, what string) error {
	if i >= j.end {
		if !j.eof {
			return errMore
		}
		what = "the file ends in the middle of a value"
	}
	line, col := j.place(min(i, j.end))
	return at(CodeInvalidJSON, line, col, "", what, "give a JSON array of objects, or one object a line")
}

func (j *jsonReader) place(i int) (line, column int) {
	b := j.buf[j.pos:i]
	line = j.line + bytes.Count(b, []byte{'\n'})
	if k := bytes.LastIndexByte(b, '\n'); k >= 0 {
		return line, len(b) - k
	}
	return line, i - j.lineAt + 1
}

func (j *jsonReader) space(i int) int {
	for i < j.end && (j.buf[i] == ' ' || j.buf[i] == '\n' || j.buf[i] == '\r' || j.buf[i] == '\t') {
		i++
	}
	return i
}

// take moves the start to i, keeping count of lines.
func (j *jsonReader) take(i int) {
	b := j.buf[j.pos:i]
	if n := bytes.Count(b, []byte{'\n'}); n > 0 {
		j.line += n
		j.lineAt = j.pos + bytes.LastIndexByte(b, '\n') + 1
	}
	j.pos = i
}

func (j *jsonReader) object(begin func(int) error, f fieldFunc) error {
	i := j.space(j.pos)
	if j.array && !j.done {
		if i == j.end {
			return j.fail(i, "")
		}
		switch c := j.buf[i]; {
		case !j.started && c == '[', j.started && c == ',':
			i = j.space(i + 1)
			if !j.started && i < j.end && j.buf[i] == ']' {
				i, j.done = i+1, true
			} else if i == j.end {
				return j.fail(i, "")
			}
		case j.started && c == ']':
			i, j.done = i+1, true
		default:
			return j.fail(i, "a comma or the end of the array should stand here")
		}
	}
	if !j.array || j.done {
		i = j.space(i)
		if i == j.end {
			if !j.eof {
				j.done = false
				return errMore
			}
			j.take(i)
			return io.EOF
		}
		if j.array {
			return j.fail(i, "something follows the end of the array")
		}
	}
	if j.buf[i] != '{' {
		return j.fail(i, "every row must be an object")
	}
	line, _ := j.place(i)
	if err := begin(line); err != nil {
		return err
	}
	start := i
	i, err := j.fields(i+1, f)
	if err != nil {
		return err
	}
	if i-start > 2*MaxRow {
		return rowTooLarge(line, int64(i-start))
	}
	j.started = true
	j.take(i)
	return nil
}

// fields reads what follows an opening brace up to the closing one.
func (j *jsonReader) fields(i int, f fieldFunc) (int, error) {
	i = j.space(i)
	if i < j.end && j.buf[i] == '}' {
		return i + 1, nil
	}
	for {
		i = j.space(i)
		if i >= j.end || j.buf[i] != '"' {
			return 0, j.fail(i, "a field's name in quotes should stand here")
		}
		j.scratch = j.scratch[:0]
		name, k, err := j.str(i)
		if err != nil {
			return 0, err
		}
		i = j.space(k)
		if i >= j.end || j.buf[i] != ':' {
			return 0, j.fail(i, "a colon should stand here")
		}
		i = j.space(i + 1)
		at0 := i
		value, kind, k, err := j.value(i)
		if err != nil {
			return 0, err
		}
		line, col := 0, 0
		if kind == '{' || len(value) > MaxCell {
			line, col = j.place(at0)
		}
		if err := f(name, value, kind, line, col); err != nil {
			return 0, err
		}
		i = j.space(k)
		switch {
		case i < j.end && j.buf[i] == ',':
			i++
		case i < j.end && j.buf[i] == '}':
			return i + 1, nil
		default:
			return 0, j.fail(i, "a comma or a closing brace should stand here")
		}
	}
}

// value reads a scalar. Its kind is one of " for strings, 0 for numbers, t for
// bools, n for null and { for what is nested.
func (j *jsonReader) value(i int) (b []byte, kind byte, next int, err error) {
	if i >= j.end {
		return nil, 0, 0, j.fail(i, "")
	}
	switch c := j.buf[i]; c {
	case '"':
		b, next, err = j.str(i)
		return b, '"', next, err
	case '{', '[':
		return nil, '{', i, nil
	case 't', 'f', 'n':
		word := map[byte]string{'t': "true", 'f': "false", 'n': "null"}[c]
		for k := range len(word) {
			if i+k >= j.end || j.buf[i+k] != word[k] {
				return nil, 0, 0, j.fail(i+k, "this is not a JSON value")
			}
		}
		kind = 't'
		if c == 'n' {
			kind = 'n'
		}
		return j.buf[i : i+len(word)], kind, i + len(word), nil
	}
	return j.number(i)
}

func (j *jsonReader) number(i int) ([]byte, byte, int, error) {
	k := i
	run := func() int {
		from := k
		for k < j.end && j.buf[k]-'0' <= 9 {
			k++
		}
		return k - from
	}
	bad := func() ([]byte, byte, int, error) { return nil, 0, 0, j.fail(k, "this is not a JSON value") }
	if j.buf[k] == '-' {
		k++
	}
	first := k
	if n := run(); n == 0 || n > 1 && j.buf[first] == '0' {
		return bad()
	}
	if k < j.end && j.buf[k] == '.' {
		k++
		if run() == 0 {
			return bad()
		}
	}
	if k < j.end && j.buf[k]|0x20 == 'e' {
		k++
		if k < j.end && (j.buf[k] == '+' || j.buf[k] == '-') {
			k++
		}
		if run() == 0 {
			return bad()
		}
	}
	if k == j.end && !j.eof {
		return nil, 0, 0, errMore
	}
	return j.buf[i:k], '0', k, nil
}

// str reads the string that begins with the quote at i. Without escapes it is
// a part of the buffer, else of scratch.
func (j *jsonReader) str(i int) ([]byte, int, error) {
	start := i + 1
	for k := start; k < j.end; k++ {
		switch c := j.buf[k]; {
		case c == '"':
			return j.buf[start:k], k + 1, nil
		case c == '\\':
			return j.escaped(start, k)
		case c < 0x20:
			return nil, 0, j.fail(k, "a control character must be written as an escape")
		}
	}
	return nil, 0, j.fail(j.end, "")
}

func (j *jsonReader) escaped(start, k int) ([]byte, int, error) {
	from := len(j.scratch)
	j.scratch = append(j.scratch, j.buf[start:k]...)
	for k < j.end {
		c := j.buf[k]
		switch {
		case c == '"':
			return j.scratch[from:], k + 1, nil
		case c < 0x20:
			return nil, 0, j.fail(k, "a control character must be written as an escape")
		case c != '\\':
			j.scratch = append(j.scratch, c)
			k++
			continue
		}
		if k+1 >= j.end {
			break
		}
		if i := bytes.IndexByte([]byte(`"\/bfnrt`), j.buf[k+1]); i >= 0 {
			j.scratch = append(j.scratch, "\"\\/\b\f\n\r\t"[i])
			k += 2
			continue
		}
		r, n := j.hex(k)
		if n == 0 {
			bad := k + 1
			if j.buf[bad] == 'u' && k+6 > j.end {
				bad = j.end
			}
			return nil, 0, j.fail(bad, "this is not an escape of JSON")
		}
		k += n
		if utf16.IsSurrogate(r) {
			low, m := j.hex(k)
			if m == 0 && k+6 > j.end && !j.eof {
				return nil, 0, errMore
			}
			pair := utf16.DecodeRune(r, low)
			if m == 0 || pair == utf8.RuneError {
				line, col := j.place(k - n)
				return nil, 0, at(CodeInvalidUTF8, line, col, "", "half of a surrogate pair stands alone", "write the whole character")
			}
			r, k = pair, k+m
		}
		j.scratch = utf8.AppendRune(j.scratch, r)
	}
	return nil, 0, j.fail(j.end, "")
}

// hex reads \uXXXX at k; n is 0 if that is not there.
func (j *jsonReader) hex(k int) (r rune, n int) {
	if k+6 > j.end || j.buf[k] != '\\' || j.buf[k+1] != 'u' {
		return 0, 0
	}
	for _, c := range j.buf[k+2 : k+6] {
		d := bytes.IndexByte([]byte("0123456789abcdef"), c|0x20)
		if c >= '0' && c <= '9' {
			d = int(c - '0')
		} else if d < 10 {
			return 0, 0
		}
		r = r<<4 | rune(d)
	}
	return r, 6
}

// jsonTable gathers the objects of a file into columns, in the order in which
// fields first appear; a field that is missing is null.
type jsonTable struct {
	table
	index  map[string]int
	row    []jsonCell
	values []byte
	line   int
	late   int // fields that first appeared after the first row
	gaps   int // rows without some field
}

type jsonCell struct {
	from, to int
	kind     byte
}

func readJSON(ctx context.Context, j *jsonReader, tick func(rows int)) (*table, error) {
	t := &jsonTable{index: map[string]int{}}
	for {
		err := j.next(t.begin, t.field)
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		if err := t.flush(); err != nil {
			return nil, err
		}
		if t.rows&1023 == 0 {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			tick(t.rows)
		}
	}
	if len(t.cols) == 0 {
		return nil, &clawr.Error{Code: CodeEmpty, Message: "the file has no rows with fields", Fix: "give at least one object with a field"}
	}
	var err error
	if t.names, err = columnNames(t.labels, 0); err != nil {
		return nil, err
	}
	if t.late > 0 {
		t.warnings = append(t.warnings, fmt.Sprintf("%d fields first appear after the first row; they are null before", t.late))
	}
	if t.gaps > 0 {
		t.warnings = append(t.warnings, fmt.Sprintf("%d rows lack some field, which is null there", t.gaps))
	}
	return &t.table, nil
}

func (t *jsonTable) begin(line int) error {
	t.line = line
	t.values = t.values[:0]
	for i := range t.row {
		t.row[i] = jsonCell{}
	}
	return nil
}

func (t *jsonTable) field(name, value []byte, kind byte, line, column int) error {
	if kind == '{' {
		return at(CodeNestedValue, line, column, string(name), "the value is an object or an array; columns hold plain values",
			`flatten it first, for instance with jq '.[] | .city = .address.city | del(.address)'`)
	}
	i, ok := t.index[string(name)]
	if !ok {
		if err := checkCell(name, t.line, len(t.cols)+1, ""); err != nil {
			return err
		}
		if len(t.cols) == MaxColumns {
			return at(CodeTooManyColumns, t.line, 0, string(name), fmt.Sprintf("more than %d different fields", MaxColumns), "drop fields, or split the file")
		}
		i = len(t.cols)
		t.index[string(name)] = i
		t.addColumn(string(name))
		t.row = append(t.row, jsonCell{})
		if t.rows > 0 {
			t.late++
		}
	}
	if t.row[i].kind != 0 {
		return at(CodeDuplicateColumn, t.line, i+1, string(name), "the object has this field twice", "rename one of the two")
	}
	if err := checkCell(value, t.line, i+1, string(name)); err != nil {
		return err
	}
	from := len(t.values)
	t.values = append(t.values, value...)
	t.row[i] = jsonCell{from, len(t.values), kind}
	return nil
}

// flush moves the row that was read into the columns.
func (t *jsonTable) flush() error {
	if len(t.values) > MaxRow {
		return rowTooLarge(t.line, int64(len(t.values)))
	}
	if err := t.startRow(t.line); err != nil {
		return err
	}
	gap := false
	for i, cell := range t.row {
		c, b := t.cols[i], t.values[cell.from:cell.to]
		switch cell.kind {
		case 0, 'n':
			c.addNull()
			gap = gap || cell.kind == 0
			continue
		case '"':
			m := textOnly
			if len(b) > 0 {
				m = classify(b) & stringMask
			}
			c.narrow(m, b, t.rows)
		case 't':
			c.narrow(boolMask, b, t.rows)
		default:
			c.narrow(numberMask(b), b, t.rows)
		}
		c.add(b)
	}
	if gap {
		t.gaps++
	}
	t.rows++
	return nil
}

package dataset

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Statement is a query compiled for SQLite, as the edge runs it on D1.
type Statement struct {
	SQL  string
	Args []any // string, int64, float64
}

// Place is where a page begins for SQL: behind a row, whose values of the sort
// columns are Keys (nil, string, int64, float64).
type Place struct {
	Row    int64 // from 1, as _row counts
	Keys   []any
	Offset int
}

// SQL compiles q for the tables of WriteD1. It asks for one row more than the
// limit, which tells whether there is a next page. The first column is _row.
func (q *Query) SQL(s *Schema, at Place) Statement {
	b := &sqlBuilder{q: q, s: s}
	b.text.WriteString("SELECT _row")
	for i := range s.Columns {
		if q.Select == nil {
			b.add(", ", s.Columns[i].Name)
		}
	}
	for _, c := range q.Select {
		b.add(", ", s.Columns[c].Name)
	}
	b.add(" FROM records")
	b.where(at)
	b.add(" ORDER BY ")
	desc := false
	for _, k := range q.Sort {
		b.add(s.Columns[k.Col].Name, direction(k.Desc), ", ")
		desc = k.Desc
	}
	b.add("_row", direction(desc), " LIMIT ", strconv.Itoa(q.Limit+1))
	if at.Row == 0 && at.Offset > 0 {
		b.add(" OFFSET ", strconv.Itoa(at.Offset))
	}
	return Statement{b.text.String(), b.args}
}

// CountSQL compiles count=exact.
func (q *Query) CountSQL(s *Schema) Statement {
	b := &sqlBuilder{q: q, s: s}
	b.add("SELECT count(*) FROM records")
	b.where(Place{})
	return Statement{b.text.String(), b.args}
}

func direction(desc bool) string {
	if desc {
		return " DESC"
	}
	return ""
}

type sqlBuilder struct {
	q    *Query
	s    *Schema
	text strings.Builder
	args []any
	some bool // a condition has been written
}

func (b *sqlBuilder) add(parts ...string) {
	for _, p := range parts {
		b.text.WriteString(p)
	}
}

func (b *sqlBuilder) cond(text string, args ...any) {
	if b.some {
		b.add(" AND ", text)
	} else {
		b.add(" WHERE ", text)
	}
	b.some = true
	b.args = append(b.args, args...)
}

func (b *sqlBuilder) where(at Place) {
	for i := range b.q.Filters {
		b.filter(&b.q.Filters[i])
	}
	if len(b.q.Words) > 0 {
		var m strings.Builder
		for i, w := range b.q.Words {
			if i > 0 {
				m.WriteByte(' ')
			}
			m.WriteString(`"` + w.Text + `"`)
			if w.Prefix {
				m.WriteByte('*')
			}
		}
		b.cond("_row IN (SELECT rowid FROM fts WHERE fts MATCH ?)", m.String())
	}
	if at.Row > 0 {
		b.behind(at)
	}
}

func (b *sqlBuilder) filter(f *Filter) {
	c := &b.s.Columns[f.Col]
	n := c.Name
	switch f.Op {
	case Null:
		if f.Args[0].Num == 1 {
			b.cond(n + " IS NULL")
		} else {
			b.cond(n + " IS NOT NULL")
		}
	case In, Nin:
		list := []byte{'['}
		for i, v := range f.Args {
			if i > 0 {
				list = append(list, ',')
			}
			from := len(list)
			if list = v.appendJSON(list, c); c.Type == Float && !bytes.ContainsAny(list[from:], ".e") {
				list = append(list, ".0"...) // else it is compared as an integer, exactly, with a rounded double
			}
		}
		if f.Op == In {
			b.cond(n+" IN (SELECT value FROM json_each(?))", string(append(list, ']')))
		} else {
			b.cond("("+n+" IS NOT NULL AND "+n+" NOT IN (SELECT value FROM json_each(?)))", string(append(list, ']')))
		}
	case Prefix:
		s := strings.Clone(f.Args[0].Text) // of the query, which others will use
		if end := after(s); end != "" {
			b.cond("("+n+" >= ? AND "+n+" < ?)", s, end)
		} else {
			b.cond(n+" >= ?", s)
		}
	case Contains:
		b.cond("instr("+n+", ?) > 0", strings.Clone(f.Args[0].Text))
	default:
		b.cond(n+[...]string{Eq: " = ?", Ne: " <> ?", Gt: " > ?", Gte: " >= ?", Lt: " < ?", Lte: " <= ?"}[f.Op], f.Args[0].arg(c))
	}
}

// arg is v as SQLite stores values of the column.
func (v Value) arg(c *Column) any {
	switch {
	case v.isFrac:
		return v.Fraction
	case c.Type == Text:
		return strings.Clone(v.Text)
	}
	return sqlValue(v.Num, c.Type, c.Fraction)
}

func sqlValue(n int64, t Type, decimals int) any {
	switch t {
	case Bool:
		return n - 1
	case Int:
		return n
	case Float:
		return ordinalFloat(n)
	}
	return jsonValue(n, t, decimals)
}

// behind adds the condition of a cursor: everything after a row in the order of
// the sort keys, null being smallest, then of the row number.
func (b *sqlBuilder) behind(at Place) {
	var alts []string
	var args []any
	same, sameArgs := "", []any(nil)
	desc := false
	for i, k := range b.q.Sort {
		n, v := b.s.Columns[k.Col].Name, at.Keys[i]
		desc = k.Desc
		switch {
		case !desc && v == nil:
			alts = append(alts, same+n+" IS NOT NULL")
			args = append(args, sameArgs...)
		case !desc:
			alts = append(alts, same+n+" > ?")
			args = append(append(args, sameArgs...), v)
		case v != nil && b.s.Columns[k.Col].Nullable:
			alts = append(alts, same+"("+n+" < ? OR "+n+" IS NULL)")
			args = append(append(args, sameArgs...), v)
		case v != nil:
			alts = append(alts, same+n+" < ?")
			args = append(append(args, sameArgs...), v)
		}
		if v == nil {
			same += n + " IS NULL AND "
		} else {
			same += n + " = ? AND "
			sameArgs = append(sameArgs, v)
		}
	}
	op := "_row > ?"
	if desc {
		op = "_row < ?"
	}
	alts = append(alts, same+op)
	args = append(append(args, sameArgs...), at.Row)
	if len(alts) == 1 {
		b.cond(alts[0], args...)
		return
	}
	b.cond("("+strings.Join(alts, " OR ")+")", args...)
}

// place turns where a page begins into what SQL needs for it.
func (s *Segment) place(q *Query, at page) Place {
	if !at.resume {
		return Place{Offset: at.offset}
	}
	p := Place{Row: int64(at.after) + 1}
	for _, k := range q.Sort {
		p.Keys = append(p.Keys, s.cols[k.Col].sqlValue(at.after))
	}
	return p
}

func (c *column) sqlValue(row uint32) any {
	n := c.ordinal(row)
	switch {
	case c.isNull(row):
		return nil
	case c.typ == Text:
		return string(c.text(n))
	}
	return sqlValue(n, c.typ, c.decimals)
}

// maxStatement keeps statements below the 100 KB that D1 takes.
const maxStatement = 90_000

// WriteD1 writes the SQL that makes a D1 database of the segment: the table
// records, an index for the key and each column of Options.Index, and where
// Options.Search names columns the FTS5 table that q is looked up in.
func (s *Segment) WriteD1(out io.Writer) error {
	w := bufio.NewWriterSize(out, 1<<16)
	b := []byte("CREATE TABLE records (_row INTEGER PRIMARY KEY")
	for i := range s.schema.Columns {
		c := &s.schema.Columns[i]
		b = append(append(append(b, ", "...), c.Name...), [...]string{Text: " TEXT", Bool: " INTEGER", Int: " INTEGER", Float: " REAL", Date: " TEXT", Datetime: " TEXT"}[c.Type]...)
	}
	b = append(b, ") STRICT;\n"...)
	_, _ = w.Write(b)
	all := make([]int, len(s.cols))
	for i := range all {
		all[i] = i
	}
	s.inserts(w, "records (_row", all)
	for i, name := range append([]string{s.schema.Key}, s.schema.Index...) {
		if name != "" && (i == 0 || name != s.schema.Key) {
			fmt.Fprintf(w, "CREATE INDEX records_%s ON records (%s, _row);\n", name, name)
		}
	}
	var searched []int
	for _, n := range s.schema.Search {
		searched = append(searched, s.schema.Column(n))
	}
	if searched != nil {
		fmt.Fprintf(w, "CREATE VIRTUAL TABLE fts USING fts5(%s, content='', detail=column);\n", strings.Join(s.schema.Search, ", "))
		s.inserts(w, "fts (rowid", searched)
	}
	return w.Flush()
}

// inserts writes rows as literals, many to a statement.
func (s *Segment) inserts(w *bufio.Writer, into string, cols []int) {
	head := "INSERT INTO " + into
	for _, c := range cols {
		head += ", " + s.cols[c].name
	}
	head += ") VALUES "
	size := 0
	var b []byte
	for row := range uint32(s.n) {
		b = strconv.AppendInt(append(b[:0], '('), int64(row)+1, 10)
		for _, c := range cols {
			b = appendLiteral(append(b, ','), s.cols[c].sqlValue(row))
		}
		b = append(b, ')')
		switch {
		case size == 0:
			_, _ = w.WriteString(head)
			size = len(head)
		case size+len(b)+2 > maxStatement:
			_, _ = w.WriteString(";\n" + head)
			size = len(head)
		default:
			_, _ = w.WriteString(",\n")
		}
		size += len(b) + 2
		_, _ = w.Write(b)
	}
	_, _ = w.WriteString(";\n")
}

// appendLiteral writes v as SQL.
func appendLiteral(b []byte, v any) []byte {
	switch v := v.(type) {
	case nil:
		return append(b, "NULL"...)
	case int64:
		return strconv.AppendInt(b, v, 10)
	case float64:
		return strconv.AppendFloat(b, v, 'g', -1, 64)
	case string:
		b = append(b, '\'')
		for i := range len(v) {
			if v[i] == '\'' {
				b = append(b, '\'')
			}
			b = append(b, v[i])
		}
		return append(b, '\'')
	}
	panic("dataset: no such SQL value")
}

// after is the first string above all that begin with s: its last character
// raised by one, as UTF-8 orders like code points. "" means there is none.
func after(s string) string { return string(appendAfter(nil, s)) }

// appendAfter is after, added to b.
func appendAfter(b []byte, s string) []byte {
	for s != "" {
		r, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
		switch r++; {
		case r == 0xd800:
			r = 0xe000
		case r > utf8.MaxRune:
			continue
		}
		return utf8.AppendRune(append(b, s...), r)
	}
	return b
}

package dataset

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"
)

// nightly makes the long tests long.
var nightly = os.Getenv("CLAWR_NIGHTLY") != ""

// oracle is a dataset twice: as a segment behind its handler, and in SQLite.
type oracle struct {
	h  *Handler
	db *sql.DB
}

func newOracle(t testing.TB, name, text string, o Options) *oracle {
	t.Helper()
	s := segment(t, name, text, o)
	db, err := sql.Open("sqlite", "file:"+t.TempDir()+"/d1.db?_pragma=journal_mode(off)&_pragma=synchronous(off)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	var script strings.Builder
	if err := s.WriteD1(&script); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("BEGIN;" + script.String() + "COMMIT;"); err != nil {
		t.Fatal(err)
	}
	return &oracle{&Handler{Segment: s, CursorKey: []byte("oracle")}, db}
}

// answer is what SQLite says to a query, written by nothing that the segment's
// own rows went through.
func (o *oracle) answer(t testing.TB, rawQuery string) string {
	t.Helper()
	p, err := o.h.plan("GET", "/v1/records", rawQuery)
	if err != nil {
		t.Fatalf("%s: %v", rawQuery, err)
	}
	s, q := p.seg, p.query
	st := q.SQL(s.schema, s.place(q, p.at))
	rows, err := o.db.Query(st.SQL, st.Args...)
	if err != nil {
		t.Fatalf("%s: %v", st.SQL, err)
	}
	defer rows.Close()
	cols := q.Select
	if cols == nil {
		for i := range s.cols {
			cols = append(cols, i)
		}
	}
	var b strings.Builder
	b.WriteString(`{"data":[`)
	n, last := 0, int64(0)
	for rows.Next() {
		row, cells := make([]any, len(cols)+1), make([]any, len(cols)+1)
		for i := range row {
			cells[i] = &row[i]
		}
		if err := rows.Scan(cells...); err != nil {
			t.Fatal(err)
		}
		if n++; n > q.Limit {
			break
		}
		last = row[0].(int64)
		for i, c := range cols {
			b.WriteByte("{,"[min(i, 1)])
			fmt.Fprintf(&b, "%q:%s", s.cols[c].name, oracleJSON(row[i+1], s.cols[c].typ))
		}
		b.WriteString("},")
	}
	text := strings.TrimSuffix(b.String(), ",") + fmt.Sprintf(`],"meta":{"version":"%s","limit":%d`, s.version, q.Limit)
	if q.Count {
		st := q.CountSQL(s.schema)
		var count int
		if err := o.db.QueryRow(st.SQL, st.Args...).Scan(&count); err != nil {
			t.Fatalf("%s: %v", st.SQL, err)
		}
		text += fmt.Sprintf(`,"count":%d`, count)
	}
	if n > q.Limit {
		return text + `,"next":"` + string(o.h.nextPage(nil, &p, uint32(last-1))) + `"}}`
	}
	return text + `,"next":null}}`
}

func oracleJSON(v any, typ Type) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case int64:
		if typ == Bool {
			return strconv.FormatBool(v == 1)
		}
		return strconv.FormatInt(v, 10)
	case float64:
		return string(appendFloat(nil, v))
	case string:
		r := strings.NewReplacer(`"`, `\"`, `\`, `\\`, "\n", `\n`, "\r", `\r`, "\t", `\t`, "\x01", `\u0001`)
		return `"` + r.Replace(v) + `"`
	}
	return fmt.Sprintf("%T", v)
}

// compare asks both and tells the difference; it returns the next page.
func (o *oracle) compare(t testing.TB, rawQuery string) (next string) {
	t.Helper()
	w := httptest.NewRecorder()
	r := httptest.NewRequest("GET", "/v1/records?"+rawQuery, nil)
	if err := o.h.Serve(w, r); err != nil {
		t.Fatalf("%s: %v", rawQuery, err)
	}
	got, want := w.Body.String(), o.answer(t, rawQuery)
	if got != want {
		t.Fatalf("%s\nsegment: %.2000s\nSQLite:  %.2000s", rawQuery, got, want)
	}
	if _, after, ok := strings.Cut(got, `"next":"/v1/records?`); ok {
		next = strings.TrimSuffix(after, `"}}`)
	}
	return next
}

// generator makes up datasets and queries that fit them.
type generator struct {
	*rand.Rand
	columns []genColumn
	rows    int
}

type genColumn struct {
	name   string
	typ    Type
	values []string // it is drawn from, as they stand in a JSON file
	nulls  float64
}

var genWords = []string{"alpha", "Beta", "gamma", "DELTA", "Ünïcode", "naïve", "Straße", "x", "the", "a-b", "3.5", "日本", "ΣΊΣΥΦΟΣ", "e\u0301te", "foo_bar", "it's", `q"t`, "10%"}

func (g *generator) text() string {
	var w []string
	for range g.IntN(4) {
		w = append(w, genWords[g.IntN(len(genWords))])
	}
	s := strings.Join(w, [...]string{" ", ",", "\n", " \x01"}[min(g.IntN(12), 3)])
	if g.IntN(40) == 0 {
		s += strings.Repeat(" long tail", 30)
	}
	return s
}

func (g *generator) value(typ Type) string {
	switch typ {
	case Bool:
		return strconv.FormatBool(g.IntN(2) == 0)
	case Int:
		if g.IntN(20) == 0 {
			return strconv.FormatInt(g.Int64N(2*maxInt)-maxInt, 10)
		}
		return strconv.Itoa(g.IntN(60) - 20)
	case Float:
		if g.IntN(20) == 0 {
			return strconv.FormatFloat(g.NormFloat64()*1e20, 'g', -1, 64)
		}
		return strconv.FormatFloat(float64(g.IntN(400))/8-10, 'f', -1, 64)
	case Date:
		return fmt.Sprintf("%04d-%02d-%02d", 1950+g.IntN(100), 1+g.IntN(12), 1+g.IntN(28))
	case Datetime:
		return fmt.Sprintf("20%02d-%02d-%02dT%02d:%02d:00.%03dZ", g.IntN(100), 1+g.IntN(12), 1+g.IntN(28), g.IntN(24), g.IntN(60), g.IntN(2)*500)
	}
	return g.text()
}

func quoted(s string, typ Type) string {
	switch typ {
	case Text, Date, Datetime:
		return string(appendString(nil, s))
	}
	return s
}

// file makes a dataset as NDJSON, which unlike CSV has null and "" in text.
func (g *generator) file() string {
	g.columns = nil
	for i := range 2 + g.IntN(6) {
		c := genColumn{name: fmt.Sprintf("c%d", i), typ: Type(g.IntN(6)), nulls: [...]float64{0, 0, 0.1, 0.6}[g.IntN(4)]}
		for range 1 + g.IntN([...]int{3, 30, 600}[g.IntN(3)]) {
			c.values = append(c.values, g.value(c.typ))
		}
		g.columns = append(g.columns, c)
	}
	g.columns = append(g.columns, genColumn{name: "txt", typ: Text, values: []string{"needle in hay", g.text() + "z", g.text()}, nulls: 0.3})
	var b strings.Builder
	for range g.rows {
		b.WriteByte('{')
		for i, c := range g.columns {
			v := quoted(c.values[g.IntN(len(c.values))], c.typ)
			if g.Float64() < c.nulls {
				v = "null"
			}
			fmt.Fprintf(&b, "%s%q:%s", [...]string{"", ","}[min(i, 1)], c.name, v)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// query makes a query that is valid for the types that the file came out with.
func (g *generator) query(s *Schema) string {
	v := url.Values{}
	for range g.IntN(4) {
		i := g.IntN(len(g.columns))
		g.filter(v, &s.Columns[i], &g.columns[i])
	}
	if g.IntN(4) == 0 {
		var w []string
		for range 1 + g.IntN(2) {
			word := genWords[g.IntN(len(genWords))]
			if g.IntN(3) == 0 {
				word = string([]rune(word)[:1]) + "*"
			}
			w = append(w, word)
		}
		if len(wordsOf(strings.Join(w, " "))) > 0 {
			v.Set("q", strings.Join(w, " "))
		}
	}
	var keys, chosen []string
	for _, i := range g.Perm(len(g.columns))[:g.IntN(min(4, len(g.columns)))] {
		keys = append(keys, [...]string{"", "-"}[g.IntN(2)]+s.Columns[i].Name)
	}
	if keys != nil && g.IntN(3) > 0 {
		v.Set("sort", strings.Join(keys, ","))
	}
	for _, i := range g.Perm(len(g.columns))[:g.IntN(len(g.columns))] {
		chosen = append(chosen, s.Columns[i].Name)
	}
	if chosen != nil && g.IntN(3) == 0 {
		v.Set("select", strings.Join(chosen, ","))
	}
	if g.IntN(2) == 0 {
		v.Set("limit", strconv.Itoa([...]int{1, 2, 7, 20, 1000}[g.IntN(5)]))
	}
	if g.IntN(4) == 0 {
		v.Set("offset", strconv.Itoa(g.IntN(g.rows+1)))
	}
	if g.IntN(3) == 0 {
		v.Set("count", "exact")
	}
	return v.Encode()
}

func (g *generator) filter(v url.Values, c *Column, from *genColumn) {
	value := from.values[g.IntN(len(from.values))]
	if g.IntN(5) == 0 {
		value = g.value(c.Type)
	}
	if c.Type == Int && !strings.ContainsAny(value, ".e") && g.IntN(6) == 0 {
		value += ".5"
	}
	if c.Type == Datetime && g.IntN(6) == 0 {
		value = value[:10]
	}
	op := [...]string{"", "", "__ne", "__gt", "__gte", "__lt", "__lte", "__in", "__nin", "__null", "__prefix", "__contains"}[g.IntN(12)]
	switch {
	case op == "__null":
		value = strconv.FormatBool(g.IntN(2) == 0)
	case op == "__in" || op == "__nin":
		items := []string{}
		for range g.IntN(5) {
			items = append(items, quoted(from.values[g.IntN(len(from.values))], c.Type))
		}
		value = "[" + strings.Join(items, ",") + "]"
	case op == "__prefix" || op == "__contains":
		if c.Type != Text || value == "" {
			return
		}
		r := []rune(value)
		from := g.IntN(len(r))
		if op == "__prefix" {
			from = 0
		}
		if value = string(r[from:min(len(r), from+1+g.IntN(5))]); len(value) > maxPattern {
			return
		}
	case c.Type == Bool && op != "" && op != "__ne":
		return
	}
	v.Set(c.Name+op, value)
}

// A large whole number in a list is an integer to json_each, and no integer
// equals a double that was rounded to hold it.
func TestListsOfLargeFloatsAreComparedAsFloats(t *testing.T) {
	o := newOracle(t, "x.ndjson", "{\"f\":6.546424829673381e+17}\n{\"f\":1.5}\n{\"f\":2}\n", Options{})
	for _, q := range []string{"f__in=654642482967338100,2", "f__nin=654642482967338100,2", "f__in=6.546424829673381e17", "f=654642482967338100"} {
		o.compare(t, q)
	}
}

// The segment and SQLite, from one parsed query, must answer byte for byte the
// same; 2,000 pairs here, 100,000 in the nightly form.
func TestEveryAnswerIsSQLites(t *testing.T) {
	seeds, each := uint64(40), 50
	if nightly {
		seeds, each = 1000, 100
	}
	for seed := range seeds {
		g := &generator{Rand: rand.New(rand.NewPCG(seed, 402)), rows: [...]int{1, 10, 150, 700, 700}[seed%5]}
		if seed%20 == 19 {
			g.rows = 9000
		}
		if seed%100 == 99 { // enough for columns that are sorted by rows
			g.rows = sample + 3000
		}
		text := g.file()
		search := []string{}
		rep, err := Inspect(context.Background(), strings.NewReader(text), "x.ndjson", Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range rep.Schema.Columns {
			if c.Type == Text {
				search = append(search, c.Name)
			}
		}
		// What the generator meant as a date may have come out otherwise.
		for i := range g.columns {
			g.columns[i].typ = rep.Schema.Columns[i].Type
		}
		if len(search) > 2 {
			search = search[1:]
		}
		o := newOracle(t, "x.ndjson", text, Options{Search: search})
		for n := 0; n < each; {
			q := g.query(o.h.Segment.schema)
			for pages := 0; n < each && pages < 4; pages++ {
				next := o.compare(t, q)
				n++
				if next == "" || g.IntN(2) == 0 {
					break
				}
				q = next
			}
			if t.Failed() {
				t.Fatalf("seed %d", seed)
			}
		}
		_ = o.db.Close()
		_ = o.h.Segment.Close()
		if (seed+1)%100 == 0 {
			t.Logf("%d pairs agree", int(seed+1)*each)
		}
	}
}

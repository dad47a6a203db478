package dataset

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/402claw/clawr"
)

// vector is one case that the edge must decide as this package does.
type vector struct {
	Query     string     `json:"query"`
	Error     clawr.Code `json:"error,omitempty"`
	Param     string     `json:"param,omitempty"`
	Canonical string     `json:"canonical,omitempty"`
	SQL       string     `json:"sql,omitempty"`
	Args      []any      `json:"args,omitempty"`
	CountSQL  string     `json:"countSql,omitempty"`
	CountArgs []any      `json:"countArgs,omitempty"`
	Answer    string     `json:"answer,omitempty"`
}

type vectorFile struct {
	About     string   `json:"about"`
	CursorKey string   `json:"cursorKey"`
	Schema    *Schema  `json:"schema"`
	Setup     string   `json:"setup"` // SQL that makes the tables
	Cases     []vector `json:"cases"`
}

const vectorDir = "../testdata/vectors/records"

// TestVectorsAreWhatThisPackageDoes keeps the cases that the edge is held to;
// -update writes them.
func TestVectorsAreWhatThisPackageDoes(t *testing.T) {
	for name, queries := range map[string][]string{"people": nil, "generated": nil} {
		var o *oracle
		if name == "people" {
			o = newOracle(t, "people.csv", people, Options{Search: []string{"name", "city"}, Index: []string{"score"}})
			queries = handQueries
		} else {
			g := &generator{Rand: rand.New(rand.NewPCG(402, 2)), rows: 40}
			o = newOracle(t, "x.ndjson", g.file(), Options{Search: []string{"txt"}})
			for i := range g.columns {
				g.columns[i].typ = o.h.Segment.schema.Columns[i].Type
			}
			for range 120 {
				queries = append(queries, g.query(o.h.Segment.schema))
			}
		}
		var setup strings.Builder
		if err := o.h.Segment.WriteD1(&setup); err != nil {
			t.Fatal(err)
		}
		f := vectorFile{About: "query of GET /v1/records -> error, or canonical form, SQL with arguments, answer", CursorKey: "oracle", Schema: o.h.Segment.schema, Setup: setup.String()}
		for i := 0; i < len(queries); i++ {
			v, next := o.vector(t, queries[i])
			f.Cases = append(f.Cases, v)
			if next != "" && i < 200 {
				queries = append(queries[:len(queries):len(queries)], next)
			}
		}
		got, err := json.MarshalIndent(f, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, '\n')
		path := filepath.Join(vectorDir, name+".json")
		if *update {
			if err := os.MkdirAll(vectorDir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s is not what this package does any more; -update writes it", path)
		}
	}
}

var handQueries = []string{"", "limit=2", "limit=2&sort=-score", "sort=active,-name&limit=1", "name=Ada", "city=", "score__null=true", "score__ne=9.5", "id__in=1,3,9", "name__nin=[\"Ada\"]",
	"born__gte=1900-01-01&born__lt=1935-01-01", "name__prefix=E", "city__contains=o", "q=new+york", "q=lon*", "active=true", "active__in=true,false", "id__gt=2.5", "count=exact&limit=1", "offset=4", "select=name,score",
	"nmae=Ada", "name__like=x", "limit=0", "limit=x", "sort=nope", "select=id,id", "q=%21", "cursor=abc", "version=zz", "id=x", "active__gt=true", "name=a&name=b", "born=1900", "id__in=", "name__prefix=", "format=xml", "count=yes", "limit=1001", "offset=99", "name=%ff"}

// vector asks for one query and holds the answer against SQLite's.
func (o *oracle) vector(t *testing.T, query string) (v vector, next string) {
	t.Helper()
	v.Query = query
	p, err := o.h.plan("GET", "/v1/records", query)
	if err != nil {
		e := err.(*clawr.Error)
		v.Error, v.Param = e.Code, e.Param
		return v, ""
	}
	defer p.done()
	s := p.seg
	st := p.query.SQL(s.schema, s.place(p.query, p.at))
	v.Canonical, v.SQL, v.Args = string(p.canonical(nil)), st.SQL, st.Args
	if p.query.Count {
		ct := p.query.CountSQL(s.schema)
		v.CountSQL, v.CountArgs = ct.SQL, ct.Args
	}
	next = o.compare(t, query)
	w := httptest.NewRecorder()
	o.h.ServeHTTP(w, httptest.NewRequest("GET", "/v1/records?"+query, nil))
	v.Answer = w.Body.String()
	return v, next
}

// Pages by cursor give every row exactly once, also when another version has
// taken the place of the one they began with.
func TestCursorsWalkOverAllRowsAcrossAReplacement(t *testing.T) {
	rows := 20_000
	if nightly {
		rows = 1_000_000
	}
	file := func(first int) string {
		var b strings.Builder
		b.WriteString("n,m\n")
		for i := range rows {
			fmt.Fprintf(&b, "%d,%d\n", first+i, i%97)
		}
		return b.String()
	}
	old := &Handler{Segment: segment(t, "x.csv", file(0), Options{}), CursorKey: []byte("k")}
	fresh := &Handler{Segment: segment(t, "x.csv", file(rows), Options{}), CursorKey: []byte("k"),
		Versions: func(string) (*Segment, func(), error) { return old.Segment, func() {}, nil }}
	for _, query := range []string{"", "&sort=m", "&sort=-m,n"} {
		seen := make([]bool, rows)
		h, next, pages := old, "/v1/records?limit=1000&format=ndjson"+query, 0
		for ; next != ""; pages++ {
			w := get(t, h, next)
			if w.Code != 200 {
				t.Fatalf("%s: %d %s", next, w.Code, w.Body)
			}
			for line := range strings.Lines(w.Body.String()) {
				var r struct{ N int }
				if err := json.Unmarshal([]byte(line), &r); err != nil || r.N >= rows || seen[r.N] {
					t.Fatalf("page %d of %q has %s (%v) again, or of another version", pages, query, line, err)
				}
				seen[r.N] = true
			}
			next, _, _ = strings.Cut(strings.TrimPrefix(w.Header().Get("Link"), "<"), ">")
			if pages == 3 {
				h = fresh
			}
		}
		for n, ok := range seen {
			if !ok {
				t.Fatalf("row %d is in no page of %q", n, query)
			}
		}
		if pages != rows/1000 {
			t.Errorf("%q took %d pages", query, pages)
		}
	}
}

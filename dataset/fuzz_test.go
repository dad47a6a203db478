package dataset

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"github.com/402claw/clawr"
)

// fuzzRead reads a stranger's file; whatever it is, it is refused with a code
// or becomes rows that are JSON and open again.
func fuzzRead(t *testing.T, name string, b []byte) {
	dir := t.TempDir()
	f := filepath.Join(dir, "in")
	if err := os.WriteFile(f, b, 0o600); err != nil {
		t.Fatal(err)
	}
	in, err := os.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	rep, err := Ingest(context.Background(), in, name, Options{MaxBytes: 1 << 20}, dir)
	if err != nil {
		if code := clawr.CodeOf(err); code == clawr.CodeInternal || code == clawr.CodeFile {
			t.Fatalf("refused with %v", err)
		}
		return
	}
	s, err := Open(rep.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	all := make([]int, len(s.cols))
	for i := range all {
		all[i] = i
	}
	for i := range s.n {
		if !json.Valid(s.row(i)) {
			t.Fatalf("row %d is %q", i, s.row(i))
		}
		if built := s.appendRow(nil, uint32(i), &Query{Select: all}); string(built) != string(s.row(i)) {
			t.Fatalf("row %d is stored as %s and built as %s", i, s.row(i), built)
		}
	}
}

func FuzzCSV(f *testing.F) {
	for _, s := range []string{people, "a;b\n1;2", "a\tb\n\"x\"\"y\"\tz\n", "sep=|\na|b\n1|2\n", "\xff\xfea\x00\n\x001\x00\n\x00", "a\r1\r", "a\n\"\n", "\xef\xbb\xbfa\n-0\n1e5\n.5\n", "d\n2024-02-29\n", "d\n2024-01-01T00:00:00.123+01:00\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) { fuzzRead(t, "x.csv", b) })
}

func FuzzJSON(f *testing.F) {
	for _, s := range []string{`[{"a":1,"b":"x"},{"b":null,"a":2.5e3}]`, "{\"a\":true}\n{\"c\":\"2024-01-01\"}", `[{"a":"\u00e9\ud83d\ude00\n"}]`, `[]`, `[{"a":{}}]`, `[{"":1}]`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzRead(t, "x.json", b)
		fuzzRead(t, "x.ndjson", b)
	})
}

func FuzzGrammar(f *testing.F) {
	rep, err := ingestText(f, "people.csv", people, Options{})
	if err != nil {
		f.Fatal(err)
	}
	s, err := Open(rep.Path)
	if err != nil {
		f.Fatal(err)
	}
	h := &Handler{Segment: s, CursorKey: []byte("k")}
	_, next := names(f, h, "/v1/records?limit=1&sort=-score")
	for _, q := range []string{"", "limit=1", "name__in=[\"a\",\"b\"]", "q=a*+b&sort=-id,name", "score__gte=1e-7&born__lt=2000-01-01", "city=%41+b", "count=exact&format=csv&select=id", next[len("/v1/records?"):]} {
		f.Add("/v1/records", q)
	}
	f.Add("/v1/records/1", "select=name")
	f.Add("/v1/records/%2e", "")
	f.Fuzz(func(t *testing.T, path, query string) {
		p, err := h.plan("GET", path, query)
		if err != nil {
			if e, ok := err.(*clawr.Error); !ok || e.Fix == "" || e.HTTPStatus() < 400 || e.HTTPStatus() >= 500 {
				t.Fatalf("%q?%q is refused with %v", path, query, err)
			}
			return
		}
		c := string(p.canonical(nil))
		u, err := url.Parse(c)
		if err != nil {
			t.Fatalf("canonical %q: %v", c, err)
		}
		again, err := h.plan("GET", u.EscapedPath(), u.RawQuery)
		if err != nil || string(again.canonical(nil)) != c {
			t.Fatalf("canonical %q of %q is planned as %q, %v", c, query, again.canonical(nil), err)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", c, nil))
		if w.Code != 200 && w.Code != 404 {
			t.Fatalf("%q is answered %d %s", c, w.Code, w.Body)
		}
	})
}

func FuzzCursor(f *testing.F) {
	h := &Handler{CursorKey: []byte("k")}
	f.Add("AAAA")
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := h.openCursor(token); clawr.CodeOf(err) != CodeInvalidCursor {
			t.Fatalf("a made-up cursor %q gives %v", token, err)
		}
	})
}

// A segment whose table fits its name, but whose content does not fit together,
// must be refused and not crash: checksums do not protect from their author.
func FuzzSegment(f *testing.F) {
	rep, err := ingestText(f, "people.csv", people, Options{})
	if err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(rep.Path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, rep.ID)
	f.Add(good[:len(good)/2], rep.ID)
	f.Fuzz(func(t *testing.T, b []byte, id string) {
		if len(id) != 64 || filepath.Base(id) != id {
			t.Skip()
		}
		path := Path(t.TempDir(), id)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Skip()
		}
		s, err := Open(path)
		if err == nil {
			_ = s.Close()
		} else if clawr.CodeOf(err) != clawr.CodeSegmentCorrupt {
			t.Fatalf("refused with %v", err)
		}
	})
}

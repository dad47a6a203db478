package dataset

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/schemas again")

// files are the real files; every one of them must deploy as a person would
// have described it.
var files = []string{"airports.csv", "unemployment.tsv", "zipcodes.csv.gz", "birdstrikes.csv.gz", "movies.json.gz"}

// ingestFile publishes a file of testdata in a directory of the test's own.
func ingestFile(t testing.TB, name string, o Options) *Report {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rep, err := Ingest(context.Background(), f, name, o, t.TempDir())
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return rep
}

// ingestText publishes a file given as text.
func ingestText(t testing.TB, name, text string, o Options) (*Report, error) {
	t.Helper()
	return Ingest(context.Background(), strings.NewReader(text), name, o, t.TempDir())
}

// opened opens a segment for the time of a test.
func opened(t testing.TB, rep *Report) *Segment {
	t.Helper()
	s, err := Open(rep.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func segment(t testing.TB, name, text string, o Options) *Segment {
	t.Helper()
	rep, err := ingestText(t, name, text, o)
	if err != nil {
		t.Fatal(err)
	}
	return opened(t, rep)
}

func TestFilesGetTheTypesAPersonWouldChoose(t *testing.T) {
	for _, name := range files {
		rep := ingestFile(t, name, Options{})
		sameSchema(t, rep, strings.TrimSuffix(name, ".gz"))
	}
}

// sameSchema holds a report against the one that is checked in.
func sameSchema(t *testing.T, rep *Report, name string) {
	t.Helper()
	rep.Schema.Version = ""
	got, err := json.MarshalIndent(rep.Schema, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "schemas", name+".json")
	if *update {
		if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(got, '\n'), want) {
		t.Errorf("%s is read as\n%s\nwant\n%s", name, got, want)
	}
}

func TestEveryRowIsTheJSONOfItsColumns(t *testing.T) {
	for _, name := range files {
		s := opened(t, ingestFile(t, name, Options{}))
		all := make([]int, len(s.cols))
		for i := range all {
			all[i] = i
		}
		q := &Query{Select: all}
		for i := range s.n {
			if built := s.appendRow(nil, uint32(i), q); !bytes.Equal(built, s.row(i)) {
				t.Fatalf("%s row %d is stored as %s and built as %s", name, i, s.row(i), built)
			}
			if !json.Valid(s.row(i)) {
				t.Fatalf("%s row %d is not JSON: %s", name, i, s.row(i))
			}
		}
	}
}

func TestTheSameFileIsTheSameVersion(t *testing.T) {
	a, b := ingestFile(t, "airports.csv", Options{}), ingestFile(t, "airports.csv", Options{})
	if a.ID != b.ID || len(a.ID) != 64 || a.Version != a.ID[:16] {
		t.Errorf("one file twice is %s and %s", a.ID, b.ID)
	}
	if c := ingestFile(t, "airports.csv", Options{License: "CC0"}); c.ID == a.ID {
		t.Error("another licence is the same version")
	}
}

func TestInspectWritesNothingAndSaysTheSame(t *testing.T) {
	b, err := os.ReadFile("testdata/airports.csv")
	if err != nil {
		t.Fatal(err)
	}
	dry, err := Inspect(context.Background(), bytes.NewReader(b), "airports.csv", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if wet := ingestFile(t, "airports.csv", Options{}); dry.ID != wet.ID || dry.Path != "" {
		t.Errorf("dry run gives %s at %q, Ingest %s", dry.ID, dry.Path, wet.ID)
	}
}

func TestPackedAndEncodedFilesAreTheSameVersion(t *testing.T) {
	const text = "id,name\n1,Zoë\n2,Łódź €\n"
	utf16 := func(big bool) string {
		out := []byte{0xff, 0xfe}
		if big {
			out = []byte{0xfe, 0xff}
		}
		for _, r := range text {
			lo, hi := byte(r), byte(r>>8)
			if big {
				lo, hi = hi, lo
			}
			out = append(out, lo, hi)
		}
		return string(out)
	}
	want, err := ingestText(t, "x.csv", text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for what, in := range map[string]string{"BOM": "\xef\xbb\xbf" + text, "UTF-16LE": utf16(false), "UTF-16BE": utf16(true),
		"CRLF": strings.ReplaceAll(text, "\n", "\r\n"), "CR": strings.ReplaceAll(text, "\n", "\r"), "mixed ends": "id,name\r\n1,Zoë\n2,Łódź €",
		"sep line": "sep=,\n" + text, "quotes": "\"id\",\"name\"\n\"1\",\"Zoë\"\n\"2\",\"Łódź €\"\n"} {
		got, err := ingestText(t, "x.csv", in, Options{})
		if err != nil {
			t.Errorf("%s: %v", what, err)
		} else if got.ID != want.ID {
			t.Errorf("%s is another version: %+v", what, got.Schema)
		}
	}
	got, err := ingestText(t, "x.csv", "id,name\n1,Zo\xeb\n", Options{Encoding: "windows-1252"})
	if err != nil || got.Schema.Columns[1].Max != "Zoë" {
		t.Errorf("windows-1252 gives %+v, %v", got, err)
	}
}

func TestDelimitersAreFound(t *testing.T) {
	for d, text := range map[string]string{",": "a,b\n\"1;2;3\",x\n2,y\n", ";": "a;b\n1,5;x\n2,5;y\n", "\t": "a\tb\n1\tx\n", "|": "a|b\n1|x,y\n"} {
		rep, err := ingestText(t, "", text, Options{})
		if err != nil || len(rep.Schema.Columns) != 2 || rep.Schema.Columns[1].Name != "b" {
			t.Errorf("delimiter %q: %+v, %v", d, rep, err)
		}
	}
	rep, err := ingestText(t, "x.csv", "a:b\n1:2\n", Options{Delimiter: ":"})
	if err != nil || len(rep.Schema.Columns) != 2 {
		t.Errorf("given delimiter: %+v, %v", rep, err)
	}
}

package dataset

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/402claw/clawr"
)

func TestBadFilesSayWhereAndWhatToDo(t *testing.T) {
	wide := strings.TrimSuffix(strings.Repeat("c,", 100_001), ",")
	for _, tc := range []struct {
		name, text string
		opt        Options
		code       clawr.Code
		where      string
	}{
		{"x.csv", "", Options{}, CodeEmpty, "empty"},
		{"x.csv", "a,b\n", Options{}, CodeEmpty, "no rows"},
		{"x.csv", "\n\n\n", Options{}, CodeEmpty, "empty"},
		{"x.csv", "a,b\n1,2\n3\n", Options{}, CodeRaggedRow, "line 3, column 1"},
		{"x.csv", "a,b\n1,2\n3,4,5\n", Options{}, CodeRaggedRow, "3 cells where the header has 2"},
		{"x.csv", "a,b\n\"1\n\n\",2\n3\n", Options{}, CodeRaggedRow, "line 5"},
		{"x.csv", "a,b\n1,\"2\n3,4\n", Options{}, CodeUnclosedQuote, "line 2, column 2"},
		{"x.csv", "a,b\n1,x\"y\n", Options{}, CodeBareQuote, "line 2, column 1"},
		{"x.csv", "a,b\n1,\"x\"y\n", Options{}, CodeBareQuote, "line 2, column 2"},
		{"x.csv", "a,b\n1,\xff\xfe\n", Options{}, CodeInvalidUTF8, "line 2, column 2 (b)"},
		{"x.csv", "a,b\n1,x\x00y\n", Options{}, CodeNUL, "line 2, column 2 (b)"},
		{"x.csv", "a,a\n1,2\n", Options{}, CodeDuplicateColumn, "line 1, column 2"},
		{"x.csv", "a,\n1,2\n", Options{}, CodeEmptyHeader, "line 1, column 2"},
		{"x.csv", wide + "\n", Options{}, CodeTooManyColumns, "100001 columns"},
		{"x.csv", "a\n" + strings.Repeat("x", MaxCell+1) + "\n", Options{}, CodeCellTooLarge, "line 2, column 1 (a)"},
		{"x.csv", "a,b\n1,2\n" + strings.Repeat("x", 10<<20) + "\n", Options{}, CodeRowTooLarge, "line 3"},
		{"x.csv", "a,b\n1,\"" + strings.Repeat("x\n", 5<<20) + "\n", Options{}, CodeCellTooLarge, "line 2"},
		{"x.csv", "a,b,c\n" + strings.Repeat("x", 900_000) + "," + strings.Repeat("y", 900_000) + "," + strings.Repeat("z", 900_000) + "\n", Options{}, CodeRowTooLarge, "line 2"},
		{"x.csv", "id,b\n1,2\n1,3\n", Options{Key: "id"}, CodeKeyNotUnique, "rows 1 and 2 both have 1"},
		{"x.csv", "k,b\nx,2\ny,3\nx,4\n", Options{Key: "k"}, CodeKeyNotUnique, `rows 1 and 3 both have "x"`},
		{"x.csv", "id,b\n1,2\n,3\n", Options{Key: "id"}, CodeKeyNotUnique, "1 rows have no value"},
		{"x.csv", "id,b\n1,2\n", Options{Key: "idd"}, CodeUnknownColumn, "idd"},
		{"x.csv", "a\n1\nx\n", Options{Types: map[string]Type{"a": Int}}, CodeTypeMismatch, `row 2, column 1 (a): "x" is not an int`},
		{"x.csv", "a\n1\n", Options{Types: map[string]Type{"b": Int}}, CodeUnknownColumn, `"b"`},
		{"x.csv", "a\n1\n", Options{Search: []string{"a"}}, CodeBadOption, "only text"},
		{"x.csv", "a\n1\n", Options{Encoding: "klingon"}, CodeUnknownEncoding, "klingon"},
		{"x.csv", "a\n1\n", Options{Delimiter: ",,"}, CodeBadOption, "delimiter"},
		{"x.csv", "a\n1\n", Options{Format: "xlsx"}, CodeUnknownFormat, "xlsx"},
		{"x.csv", "a\n1\n2\n3\n", Options{MaxBytes: 4}, CodeFileTooLarge, "more than 4 bytes"},
		{"x.csv", "\x1f\x8b\x08broken", Options{}, CodeCompression, "damaged"},
		{"x.json", "", Options{}, CodeInvalidJSON, "ends"},
		{"x.json", "[]", Options{}, CodeEmpty, "no rows"},
		{"x.json", "[{}]", Options{}, CodeEmpty, "no rows"},
		{"x.json", `[{"a":1},` + "\n" + `{"a":}]`, Options{}, CodeInvalidJSON, "line 2, column 6"},
		{"x.json", `[{"a":1}`, Options{}, CodeInvalidJSON, "ends in the middle"},
		{"x.json", `[{"a":1}] x`, Options{}, CodeInvalidJSON, "line 1, column 11"},
		{"x.json", `[{"a":1} {"a":2}]`, Options{}, CodeInvalidJSON, "comma"},
		{"x.json", `[1,2]`, Options{}, CodeInvalidJSON, "must be an object"},
		{"x.json", "[{\"a\":1,\n \"b\":{\"c\":2}}]", Options{}, CodeNestedValue, "line 2, column 6 (b)"},
		{"x.json", `[{"a":[1]}]`, Options{}, CodeNestedValue, "line 1"},
		{"x.json", `[{"a":1,"a":2}]`, Options{}, CodeDuplicateColumn, "twice"},
		{"x.json", `[{"a":01}]`, Options{}, CodeInvalidJSON, "line 1"},
		{"x.json", `[{"a":"\ud800"}]`, Options{}, CodeInvalidUTF8, "surrogate"},
		{"x.json", `[{"a":"\x"}]`, Options{}, CodeInvalidJSON, "escape"},
		{"x.json", "[{\"a\":\"\xff\"}]", Options{}, CodeInvalidUTF8, "line 1, column 1 (a)"},
		{"x.json", `[{"a":"x\u0000y"}]`, Options{}, CodeNUL, "NUL"},
		{"x.ndjson", "{\"a\":1}\n{\"a\":tru}\n", Options{}, CodeInvalidJSON, "line 2, column 9"},
		{"x.ndjson", manyFields(99), Options{}, CodeTooManyColumns, "98"},
	} {
		dir := t.TempDir()
		_, err := Ingest(context.Background(), strings.NewReader(tc.text), tc.name, tc.opt, dir)
		e, ok := errors.AsType[*clawr.Error](err)
		head := tc.text[:min(len(tc.text), 40)]
		switch {
		case !ok:
			t.Errorf("%s %q: %v is no *clawr.Error", tc.name, head, err)
		case e.Code != tc.code || !strings.Contains(e.Message, tc.where):
			t.Errorf("%s %q is refused with %v, want %s and %q", tc.name, head, e, tc.code, tc.where)
		case e.Fix == "" || strings.Contains(e.Message, "\n") || len(e.Message) > 300:
			t.Errorf("%s %q: message %q, fix %q", tc.name, head, e.Message, e.Fix)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%s %q leaves %v behind", tc.name, head, left)
		}
	}
}

func manyFields(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "{\"f%d\":1}\n", i)
	}
	return b.String()
}

func TestAGzipBombStopsAtTheLimit(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = io.WriteString(z, "a\n")
	line := bytes.Repeat([]byte("0\n"), 1<<20)
	for range 32 {
		_, _ = z.Write(line)
	}
	_ = z.Close()
	_, err := Inspect(context.Background(), &packed, "bomb.csv.gz", Options{MaxBytes: 1 << 20})
	if clawr.CodeOf(err) != CodeFileTooLarge {
		t.Errorf("a gzip bomb ends with %v", err)
	}
}

func TestReadersThatFailOrStopLeaveNothing(t *testing.T) {
	dir := t.TempDir()
	_, err := Ingest(context.Background(), io.MultiReader(strings.NewReader("a\n1\n"), iotest.ErrReader(errors.New("gone"))), "x.csv", Options{}, dir)
	if clawr.CodeOf(err) != clawr.CodeFile {
		t.Errorf("a failing reader gives %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err = Ingest(ctx, strings.NewReader("a\n1\n"), "x.csv", Options{}, dir); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled ingest gives %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left behind", left)
	}
	if _, err = Ingest(context.Background(), strings.NewReader("a\n1\n"), "x.csv", Options{}, dir+"/missing"); clawr.CodeOf(err) != clawr.CodeFile {
		t.Errorf("a missing directory gives %v", err)
	}
}

func TestSweepRemovesOnlyUnfinishedSegments(t *testing.T) {
	dir := t.TempDir()
	rep, err := Ingest(context.Background(), strings.NewReader("a\n1\n"), "x.csv", Options{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/"+tempPrefix+"123", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Sweep(dir); err != nil {
		t.Fatal(err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 || left[0].Name() != rep.ID+".seg" {
		t.Errorf("after the sweep there is %v", left)
	}
}

// One byte at a time, every record is cut everywhere.
func TestReadersDoNotDependOnHowInputArrives(t *testing.T) {
	for name, text := range map[string]string{
		"x.csv":    "a,b\r\n\"x\"\"y\r\nz\",1\r\n\"\",2\n\"é\",\"3\"\r4,5",
		"x.json":   "[ {\"a\":\"x\\\"y\\u00e9\\ud83d\\ude00\",\"b\":1.5e3},\n{\"b\":null,\"a\":\"\"} , {\"a\":\"z\",\"b\":-2} ] \n",
		"x.ndjson": "{\"a\":true}\n\n{\"a\":false}{\"a\":null}",
	} {
		want, err := Inspect(context.Background(), strings.NewReader(text), name, Options{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got, err := Inspect(context.Background(), iotest.OneByteReader(strings.NewReader(text)), name, Options{})
		if err != nil || got.ID != want.ID {
			t.Errorf("%s byte by byte is %v, %v, want %s", name, got, err, want.ID)
		}
	}
}

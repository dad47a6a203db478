package dataset

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/parquet-go/parquet-go/encoding"
	"github.com/parquet-go/parquet-go/format"
)

// parquetOf writes rows as a Parquet file.
func parquetOf[T any](t testing.TB, rows []T, o ...parquet.WriterOption) []byte {
	t.Helper()
	var b bytes.Buffer
	w := parquet.NewGenericWriter[T](&b, o...)
	if _, err := w.Write(rows); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// jsonRows gives the rows of a segment as they are served.
func jsonRows(s *Segment) (out []string) {
	for i := range s.n {
		out = append(out, string(s.row(i)))
	}
	return out
}

func ptr[T any](v T) *T { return &v }

func TestParquetTypesBecomeOurs(t *testing.T) {
	type row struct {
		B    bool             `parquet:"b"`
		I8   int8             `parquet:"i8"`
		U32  uint32           `parquet:"u32"`
		I64  int64            `parquet:"i64"`
		Wide uint64           `parquet:"wide"`
		F32  float32          `parquet:"f32"`
		F64  *float64         `parquet:"f64,optional"`
		Day  int32            `parquet:"day,date"`
		Ms   time.Time        `parquet:"ms,timestamp(millisecond)"`
		Us   time.Time        `parquet:"us,timestamp(microsecond)"`
		Ns   time.Time        `parquet:"ns,timestamp(nanosecond)"`
		Old  deprecated.Int96 `parquet:"old"`
		At   int64            `parquet:"at,time(microsecond)"`
		Pay  int64            `parquet:"pay,decimal(2:18)"`
		Big  [16]byte         `parquet:"big,decimal(18:38)"`
		ID   [16]byte         `parquet:"uid,uuid"`
		Name *string          `parquet:"Name (Full),optional,dict"`
		Enum string           `parquet:"enum,enum"`
		JSON string           `parquet:"json,json"`
		Raw  []byte           `parquet:"raw"`
		When string           `parquet:"when"`
	}
	var big16, neg16 [16]byte
	big.NewInt(12_500_000_000_000_000).FillBytes(big16[:])
	n, _ := new(big.Int).SetString("340282366920938463463374607431768211455", 10) // -1 in 16 bytes
	n.FillBytes(neg16[:])
	at := time.Date(2024, 2, 29, 23, 59, 59, 123_456_789, time.UTC)
	rows := []row{
		{true, -8, math.MaxUint32, maxInt, math.MaxUint64, 0.1, ptr(1e21), 19782, at.Truncate(time.Second), at, at, deprecated.Int96{0, 0, 2440588}, 1_500_000, -1250, big16,
			[16]byte{0x12, 15: 0xff}, ptr("Zoë"), "A", `{"a":1}`, []byte("x,y"), "2024-01-01"},
		{false, 8, 0, 0, 1, -3, nil, -719162, time.Unix(-1, 0), at.Truncate(time.Microsecond), time.Unix(0, -1), deprecated.Int96{1e9, 0, 2440587}, 0, 5, neg16,
			[16]byte{}, nil, "", "2", []byte("00501"), "1999-12-31"},
		{false, 0, 1, -maxInt, 2, 16777216, ptr(math.NaN()), 0, time.Unix(0, 0), time.Unix(0, 0), time.Unix(0, 0), deprecated.Int96{0, 0, 2440588}, 86399_999_999, 0, [16]byte{},
			[16]byte{}, ptr(""), "B", "null", nil, "2000-02-29"},
	}
	dir := t.TempDir()
	rep, err := Ingest(context.Background(), bytes.NewReader(parquetOf(t, rows)), "x.parquet", Options{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	var types []string
	for _, c := range rep.Schema.Columns {
		types = append(types, c.Name+" "+c.Type.String())
	}
	want := "b bool, i8 int, u32 int, i64 int, wide text, f32 float, f64 float, day date, ms datetime, us datetime, ns datetime, old datetime, at text, pay float, big float, uid text, name_full text, enum text, json text, raw text, when date"
	if got := strings.Join(types, ", "); got != want {
		t.Errorf("types are\n%s\nwant\n%s", got, want)
	}
	if len(rep.Warnings) != 1 || !strings.Contains(rep.Warnings[0], "f64 has 1 values that are no number") {
		t.Errorf("warnings %q", rep.Warnings)
	}
	got := jsonRows(opened(t, rep))
	for i, want := range []string{
		`{"b":true,"i8":-8,"u32":4294967295,"i64":9007199254740991,"wide":"18446744073709551615","f32":0.1,"f64":1e+21,"day":"2024-02-29","ms":"2024-02-29T23:59:59Z","us":"2024-02-29T23:59:59.123456Z","ns":"2024-02-29T23:59:59.123456789Z","old":"1970-01-01T00:00:00Z","at":"00:00:01.500","pay":-12.5,"big":0.0125,"uid":"12000000-0000-0000-0000-0000000000ff","name_full":"Zoë","enum":"A","json":"{\"a\":1}","raw":"x,y","when":"2024-01-01"}`,
		`{"b":false,"i8":8,"u32":0,"i64":0,"wide":"1","f32":-3,"f64":null,"day":"0001-01-01","ms":"1969-12-31T23:59:59Z","us":"2024-02-29T23:59:59.123456Z","ns":"1969-12-31T23:59:59.999999999Z","old":"1969-12-31T00:00:01Z","at":"00:00:00","pay":0.05,"big":-1e-18,"uid":"00000000-0000-0000-0000-000000000000","name_full":null,"enum":"","json":"2","raw":"00501","when":"1999-12-31"}`,
		`{"b":false,"i8":0,"u32":1,"i64":-9007199254740991,"wide":"2","f32":16777216,"f64":null,"day":"1970-01-01","ms":"1970-01-01T00:00:00Z","us":"1970-01-01T00:00:00.000000Z","ns":"1970-01-01T00:00:00.000000000Z","old":"1970-01-01T00:00:00Z","at":"23:59:59.999999","pay":0,"big":0,"uid":"00000000-0000-0000-0000-000000000000","name_full":"","enum":"B","json":"null","raw":"","when":"2000-02-29"}`,
	} {
		if i >= len(got) || got[i] != want {
			t.Errorf("row %d is\n%s\nwant\n%s", i, got[i], want)
		}
	}
}

// One table in every compression, encoding and page version, cut into pages and
// row groups, is one version.
func TestParquetHoweverItIsWrittenIsTheSame(t *testing.T) {
	type row struct {
		I int64   `parquet:"i"`
		J *int32  `parquet:"j,optional"`
		F float64 `parquet:"f"`
		B *bool   `parquet:"b,optional"`
		S string  `parquet:"s"`
		O *string `parquet:"o,optional"`
		X [5]byte `parquet:"x"`
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	var rows []row
	var text strings.Builder
	for i := range 800 {
		r := row{I: rnd.Int64N(1<<uint(1+rnd.IntN(50))) - 1000, F: math.Round(rnd.NormFloat64()*1e6) / 64, S: fmt.Sprintf("name %d of %d", rnd.IntN(300), i/1000)}
		copy(r.X[:], fmt.Sprintf("x%04d", rnd.IntN(9999)))
		null := i%7 == 0 || i > 300 && i < 600
		if !null {
			r.J, r.B, r.O = ptr(int32(rnd.Uint32())), ptr(rnd.IntN(3) > 0), ptr(strings.Repeat("é", rnd.IntN(90)))
		}
		rows = append(rows, r)
		line, _ := json.Marshal(map[string]any{"i": r.I, "j": r.J, "b": r.B, "s": r.S, "o": r.O, "x": string(r.X[:])})
		text.WriteString(strings.TrimSuffix(string(line), "}") + `,"f":` + string(appendFloat(nil, r.F)) + "}\n")
	}
	// JSON's columns come in another order; the rows must have the same values.
	ref, err := ingestText(t, "x.ndjson", text.String(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	canonical := func(s *Segment) string {
		var b strings.Builder
		for _, r := range jsonRows(s) {
			var m map[string]any
			if err := json.Unmarshal([]byte(strings.TrimSuffix(r, ",")), &m); err != nil {
				t.Fatal(err)
			}
			line, _ := json.Marshal(m)
			b.Write(append(line, '\n'))
		}
		return b.String()
	}
	want := canonical(opened(t, ref))
	encodings := func(i, j, f, b, s, x encoding.Encoding) parquet.WriterOption {
		leaf := func(n parquet.Node, e encoding.Encoding) parquet.Node {
			if e != nil {
				n = parquet.Encoded(n, e)
			}
			return n
		}
		return parquet.NewSchema("row", parquet.Group{
			"i": leaf(parquet.Int(64), i), "j": parquet.Optional(leaf(parquet.Int(32), j)), "f": leaf(parquet.Leaf(parquet.DoubleType), f),
			"b": parquet.Optional(leaf(parquet.Leaf(parquet.BooleanType), b)), "s": leaf(parquet.String(), s), "o": parquet.Optional(leaf(parquet.String(), s)),
			"x": leaf(parquet.Leaf(parquet.FixedLenByteArrayType(5)), x)})
	}
	small := []parquet.WriterOption{parquet.PageBufferSize(1000), parquet.MaxRowsPerRowGroup(250)}
	for _, tc := range []struct {
		name      string
		o         []parquet.WriterOption
		encodings []format.Encoding
	}{
		{"plain", nil, []format.Encoding{format.Plain}},
		{"v1", []parquet.WriterOption{parquet.DataPageVersion(1)}, nil},
		{"small", small, nil},
		{"small v1", append(small, parquet.DataPageVersion(1)), nil},
		{"delta", []parquet.WriterOption{encodings(&parquet.DeltaBinaryPacked, &parquet.DeltaBinaryPacked, &parquet.ByteStreamSplit, &parquet.RLE, &parquet.DeltaLengthByteArray, &parquet.ByteStreamSplit)},
			[]format.Encoding{format.DeltaBinaryPacked, format.ByteStreamSplit, format.RLE, format.DeltaLengthByteArray}},
		{"prefixes", append(small, encodings(&parquet.ByteStreamSplit, &parquet.ByteStreamSplit, nil, nil, &parquet.DeltaByteArray, &parquet.DeltaByteArray)), []format.Encoding{format.DeltaByteArray}},
		{"dictionary", []parquet.WriterOption{encodings(&parquet.RLEDictionary, &parquet.RLEDictionary, &parquet.RLEDictionary, nil, &parquet.RLEDictionary, &parquet.RLEDictionary)}, []format.Encoding{format.RLEDictionary}},
		{"dictionary v1", append(small, encodings(&parquet.RLEDictionary, &parquet.RLEDictionary, &parquet.RLEDictionary, nil, &parquet.RLEDictionary, &parquet.RLEDictionary), parquet.DataPageVersion(1)), []format.Encoding{format.RLEDictionary}},
	} {
		for _, c := range []compress.Codec{&parquet.Uncompressed, &parquet.Snappy, &parquet.Gzip, &parquet.Zstd, &parquet.Brotli, &parquet.Lz4Raw} {
			b := parquetOf(t, rows, append(tc.o[:len(tc.o):len(tc.o)], parquet.Compression(c))...)
			rep, err := Ingest(context.Background(), bytes.NewReader(b), "x.parquet", Options{}, t.TempDir())
			if err != nil {
				t.Errorf("%s %s: %v", tc.name, c, err)
				continue
			}
			if got := canonical(opened(t, rep)); got != want {
				t.Errorf("%s %s: other rows", tc.name, c)
			}
			for _, e := range tc.encodings {
				if !hasEncoding(t, b, e) {
					t.Errorf("%s: the file has no %s", tc.name, e)
				}
			}
		}
	}
}

// hasEncoding says whether some column of a file is encoded so.
func hasEncoding(t *testing.T, b []byte, e format.Encoding) bool {
	f, err := parquet.OpenFile(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range f.Metadata().RowGroups {
		for _, c := range g.Columns {
			for _, has := range c.MetaData.Encoding {
				if has == e {
					return true
				}
			}
		}
	}
	return false
}

func TestParquetIsKnownByNameAndMagicAndFromEverywhere(t *testing.T) {
	type row struct {
		A int64 `parquet:"a"`
	}
	b := parquetOf(t, []row{{1}, {2}})
	path := filepath.Join(t.TempDir(), "x.parquet")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var id string
	for _, name := range []string{"x.parquet", "x.PQ", "x", "x.csv", "x.parquet.gz"} {
		for _, from := range []string{"memory", "file", "pipe", "gzip"} {
			in := io.Reader(bytes.NewReader(b))
			switch from {
			case "file":
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				in = f
			case "pipe":
				in = io.MultiReader(in) // nothing but Read
			case "gzip":
				in = bytes.NewReader(gzipped(t, b))
			}
			dir := t.TempDir()
			rep, err := Ingest(context.Background(), in, name, Options{Title: "x"}, dir)
			if err != nil {
				t.Errorf("%s from %s: %v", name, from, err)
				continue
			}
			if id == "" {
				id = rep.ID
			}
			if left, _ := os.ReadDir(dir); rep.ID != id || len(left) != 1 {
				t.Errorf("%s from %s is %s, want %s; in the directory is %v", name, from, rep.ID, id, left)
			}
		}
	}
	rep, err := ingestText(t, "x.csv", "PAR1,b\n1,2\n", Options{})
	if err != nil || rep.Schema.Columns[0].Label != "PAR1" {
		t.Errorf("a CSV that begins with PAR1 is %+v, %v", rep, err)
	}
}

func TestNestedParquetIsRefusedByName(t *testing.T) {
	type address struct {
		City string `parquet:"city"`
	}
	for what, b := range map[string][]byte{
		"column 2 (tags) is a list": parquetOf(t, []struct {
			A    int
			Tags []string `parquet:"tags"`
		}{{1, nil}}),
		"column 2 (ltags) is a list": parquetOf(t, []struct {
			A    int
			Tags []string `parquet:"ltags,list"`
		}{{1, nil}}),
		"column 2 (home) is a record": parquetOf(t, []struct {
			A    int
			Home address `parquet:"home"`
		}{{1, address{}}}),
		"column 2 (props) is a list": parquetOf(t, []struct {
			A int
			M map[string]int `parquet:"props"`
		}{{1, nil}}),
	} {
		_, err := Inspect(context.Background(), bytes.NewReader(b), "x.parquet", Options{})
		if clawr.CodeOf(err) != CodeNestedValue || !strings.Contains(err.Error(), what) {
			t.Errorf("%q: %v", what, err)
		}
	}
}

func TestBadParquetSaysWhatIsWrong(t *testing.T) {
	type row struct {
		A string `parquet:"a"`
		B string `parquet:"b,dict"`
	}
	good := parquetOf(t, []row{{"x", "y"}})
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for _, tc := range []struct {
		what  string
		b     []byte
		o     Options
		code  clawr.Code
		where string
	}{
		{"empty", nil, Options{}, CodeParquet, "does not begin"},
		{"magic alone", []byte("PAR1\x15"), Options{}, CodeParquet, "too short"},
		{"text", []byte("a,b\n1,2\n3,4\n5,6\n"), Options{}, CodeParquet, "does not begin"},
		{"cut", good[:len(good)-1], Options{}, CodeParquet, "end is missing"},
		{"cut before the footer", edit(func(b []byte) []byte { return append(b[:20], b[len(b)-8:]...) }), Options{}, CodeParquet, "points behind its end"},
		{"footer of 4 GB", edit(func(b []byte) []byte { copy(b[len(b)-8:], "\xff\xff\xff\xff"); return b }), Options{}, CodeParquet, "at most"},
		{"encrypted", edit(func(b []byte) []byte { copy(b[len(b)-4:], "PARE"); return b }), Options{}, CodeParquet, "encrypted"},
		{"NUL", parquetOf(t, []row{{"x\x00", "y"}}), Options{}, CodeNUL, "column 1 (a), row 1"},
		{"not UTF-8", parquetOf(t, []row{{"x", "y"}, {"x", "\xff"}}), Options{}, CodeInvalidUTF8, "column 2 (b)"},
		{"large cell", parquetOf(t, []row{{"x", "y"}, {strings.Repeat("x", MaxCell+1), "y"}}), Options{}, CodeCellTooLarge, "column 1 (a), row 2"},
		{"large row", parquetOf(t, []row{{"x", "y"}, {strings.Repeat("x", MaxCell), strings.Repeat("y", MaxCell)}}), Options{}, CodeRowTooLarge, "row 2"},
		{"no rows", parquetOf(t, []row{}), Options{}, CodeEmpty, "no rows"},
		{"limit", parquetOf(t, []row{{strings.Repeat("x", 900), strings.Repeat("y", 900)}}, parquet.Compression(&parquet.Gzip)), Options{MaxBytes: 1200}, CodeFileTooLarge, "1200 bytes"},
		{"wide", parquetOf(t, []struct {
			A [16]byte `parquet:"a,decimal(0:38)"`
		}{{}}), Options{Types: map[string]Type{"a": Date}}, CodeTypeMismatch, `"0" is not a date`},
	} {
		for _, inPlace := range []bool{false, true} {
			dir := t.TempDir()
			in := io.Reader(bytes.NewReader(tc.b))
			if inPlace {
				path := filepath.Join(t.TempDir(), "x.parquet")
				if err := os.WriteFile(path, tc.b, 0o600); err != nil {
					t.Fatal(err)
				}
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				in = f
			}
			_, err := Ingest(context.Background(), in, "x.parquet", tc.o, dir)
			e, ok := errors.AsType[*clawr.Error](err)
			if !ok || e.Code != tc.code || !strings.Contains(e.Message, tc.where) || e.Fix == "" {
				t.Errorf("%s gives %v, want %s and %q", tc.what, err, tc.code, tc.where)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("%s leaves %v behind", tc.what, left)
			}
		}
	}
}

func gzipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

package dataset

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/402claw/clawr"
	"github.com/parquet-go/parquet-go"
)

// samples are small Parquet files that between them use what the reader knows.
func samples(t testing.TB) [][]byte {
	type row struct {
		I int64   `parquet:"i,delta"`
		J *int32  `parquet:"j,optional"`
		S string  `parquet:"s,delta"`
		D *string `parquet:"d,dict,optional"`
		L string  `parquet:"l,delta"`
		B bool    `parquet:"b"`
		F float64 `parquet:"f,split"`
	}
	var rows []row
	for i := range 40 {
		r := row{I: int64(i * i), S: strings.Repeat("ab", i%5), L: "é", B: i%3 == 0, F: float64(i) / 8}
		if i%4 > 0 {
			r.J, r.D = ptr(int32(i)), ptr(string(rune('a'+i%6)))
		}
		rows = append(rows, r)
	}
	return [][]byte{
		parquetOf(t, rows, parquet.Compression(&parquet.Uncompressed)),
		parquetOf(t, rows, parquet.Compression(&parquet.Uncompressed), parquet.DataPageVersion(1)),
		parquetOf(t, rows, parquet.Compression(&parquet.Snappy)),
		parquetOf(t, rows, parquet.Compression(&parquet.Zstd), parquet.PageBufferSize(64)),
	}
}

// mustBehave reads a file that may be anything: it is a dataset or an error of
// ours, and no panic had to be caught.
func mustBehave(t *testing.T, b []byte) (ok bool) {
	_, err := Inspect(context.Background(), bytes.NewReader(b), "x.parquet", Options{MaxBytes: 8 << 20})
	if err == nil {
		return true
	}
	e, typed := errors.AsType[*clawr.Error](err)
	if !typed || e.Fix == "" || strings.Contains(e.Message, "\n") {
		t.Errorf("%v is no error for people", err)
	} else if e.Err != nil && strings.Contains(e.Err.Error(), "panic") {
		t.Errorf("%v, %v", e, e.Err)
	}
	return false
}

func TestDamagedParquetIsAnErrorNotAPanic(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	refused := 0
	for _, good := range samples(t) {
		if !mustBehave(t, good) {
			t.Fatal("the file is not read before it is damaged")
		}
		for range 400 {
			b := bytes.Clone(good)
			for range 1 + rnd.IntN(3) {
				b[4+rnd.IntN(len(b)-4)] = byte(rnd.Uint32())
			}
			if !mustBehave(t, b) {
				refused++
			}
		}
		for n := 5; n < len(good); n += 1 + len(good)/200 {
			if mustBehave(t, good[:n]) {
				t.Errorf("%d of %d bytes are a file", n, len(good))
			}
		}
	}
	if refused < 300 {
		t.Errorf("only %d of 1600 damaged files were refused", refused)
	}
}

func TestParquetBombsStopAtTheLimit(t *testing.T) {
	type row struct {
		A string `parquet:"a,dict"`
	}
	rows := make([]row, 400)
	for i := range rows {
		rows[i].A = strings.Repeat("x", 1<<19)
	}
	b := parquetOf(t, rows, parquet.Compression(&parquet.Zstd)) // 200 MB of text
	if len(b) > 4<<20 {
		t.Fatalf("the bomb has %d bytes", len(b))
	}
	if _, err := Inspect(context.Background(), bytes.NewReader(b), "x.parquet", Options{MaxBytes: 4 << 20}); clawr.CodeOf(err) != CodeFileTooLarge {
		t.Errorf("a dictionary bomb ends with %v", err)
	}
	if _, err := Inspect(context.Background(), bytes.NewReader(gzipped(t, append([]byte("PAR1\x15"), make([]byte, 8<<20)...))), "x", Options{MaxBytes: 1 << 20}); clawr.CodeOf(err) != CodeFileTooLarge {
		t.Errorf("a packed bomb ends with %v", err)
	}
}

// Lengths that a file claims cost nothing until its bytes stand behind them.
func TestClaimedLengthsAreNotBelieved(t *testing.T) {
	huge := []byte{0xff, 0xff, 0xff, 0xff, 0x0f}
	run := rle{b: append(append([]byte{}, 0xfe, 0xff, 0xff, 0xff, 0x0f), 7), width: 3}
	for range 3 {
		if n, ok := run.next(); !ok || n != 7 {
			t.Errorf("a long run gives %d, %v", n, ok)
		}
	}
	if _, ok := (&rle{b: []byte{3, 1}, width: 33}).next(); ok {
		t.Error("numbers of 33 bits are read")
	}
	if allocs := testing.AllocsPerRun(10, func() {
		if _, _, ok := deltas(append([]byte{0x80, 1, 4}, huge...), math.MaxInt32); ok {
			t.Error("deltas without bytes are read")
		}
		c := &compact{b: append([]byte{0xfc}, huge...)}
		c.list(thriftStruct, func() { t.Error("an element that is not there is read") })
		if !c.bad {
			t.Error("a list that is not there is read")
		}
	}); allocs > 4 {
		t.Errorf("lengths without bytes cost %v allocations", allocs)
	}
	deep := &compact{b: bytes.Repeat([]byte{0x1c}, 1<<20)} // a struct in a struct in a …
	deep.fields(func(int, byte) {})
	if !deep.bad || deep.i > 100 {
		t.Errorf("%d levels of structs are read", deep.i)
	}
	if _, err := new(codecs).unpack(1, []byte{0xff, 0xff, 0xff, 0x7f, 0}, 5); err == nil {
		t.Error("a snappy page may be larger than it says")
	}
}

func FuzzParquet(f *testing.F) {
	for _, b := range samples(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { mustBehave(t, b) })
}

// flights is of vega-datasets, a dev dependency of e2e: three million rows.
const flights = "../e2e/node_modules/vega-datasets/data/flights-3m.parquet"

func TestThreeMillionFlightsGetTheTypesAPersonWouldChoose(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("three million rows take seconds")
	}
	f, err := os.Open(flights)
	if errors.Is(err, os.ErrNotExist) && os.Getenv("CI") == "" {
		t.Skip("npm ci in e2e brings the file")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rep, err := Inspect(context.Background(), f, filepath.Base(flights), Options{})
	if err != nil {
		t.Fatal(err)
	}
	sameSchema(t, rep, "flights-3m.parquet")
}

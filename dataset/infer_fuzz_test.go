package dataset

import (
	"encoding/json"
	"math"
	"strconv"
	"testing"
	"time"
)

// FuzzInference holds what a cell is taken for against the standard library: a
// type that is allowed must convert, to the value that a reader would expect,
// and what is written for it must be that value in JSON.
func FuzzInference(f *testing.F) {
	for _, s := range []string{"true", "0", "-0", "-0.0", "00501", "9007199254740991", "9007199254740992", "-9007199254740991", ".5", "-.5", "1e5", "1E+400", "0.1e-7", "1.", "123456789012345678901.5",
		"2024-02-29", "2023-02-29", "0000-01-01", "9999-12-31", "2024-01-31T23:59:60Z", "2024-01-31T12:00:00.123456789+05:30", "2024-01-31 12:00:00Z", "9999-12-31T23:59:59-00:01", "x", "0x10", "1_000", "Inf", "NaN"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, cell []byte) {
		if len(cell) == 0 || len(cell) > 1000 {
			return
		}
		s, m := string(cell), classify(cell)
		if m&textOnly == 0 {
			t.Fatalf("%q is no text", s)
		}
		for typ := Bool; typ <= Datetime; typ++ {
			if m&(1<<typ) == 0 {
				continue
			}
			decimals := 0
			if typ == Datetime {
				_, _, decimals, _ = parseDatetime(cell)
				decimals = (decimals + 2) / 3 * 3
				if sec, nanos, _, _ := parseDatetime(cell); decimals == 9 {
					if _, fits := ticks(sec, nanos, 9); !fits {
						continue // such a column stays text
					}
				}
			}
			written := appendCell(nil, cell, typ, decimals)
			var v any
			if err := json.Unmarshal(written, &v); err != nil {
				t.Fatalf("%q as %s is written %s: %v", s, typ, written, err)
			}
			if again := appendOrdinal(nil, ordinal(cell, typ, decimals), typ, decimals); string(again) != string(written) {
				t.Errorf("%q as %s is written %s from the cell and %s from its ordinal", s, typ, written, again)
			}
			switch want := any(nil); typ {
			case Bool:
				if want = s == "true"; v != want {
					t.Errorf("%q is %v", s, v)
				}
			case Int:
				n, err := strconv.ParseInt(s, 10, 64)
				if err != nil || n > maxInt || n < -maxInt || string(written) != strconv.FormatInt(n, 10) {
					t.Errorf("%q as int is written %s", s, written)
				}
			case Float:
				x, err := strconv.ParseFloat(s, 64)
				if err != nil || math.IsInf(x, 0) || v != x {
					t.Errorf("%q as float is %v, want %v", s, v, x)
				}
			case Date:
				if d, err := time.Parse(time.DateOnly, s); err != nil || v != d.Format(time.DateOnly) {
					t.Errorf("%q as date is %v: %v", s, v, err)
				}
			case Datetime:
				in := []byte(s)
				in[10] = 'T'
				if last := len(in) - 1; in[last] == 'z' {
					in[last] = 'Z'
				}
				d, err := time.Parse(time.RFC3339Nano, string(in))
				got, gotErr := time.Parse(time.RFC3339Nano, v.(string))
				if err != nil || gotErr != nil || !got.Equal(d) {
					t.Errorf("%q as datetime is %v, want %v: %v", s, v, d.UTC(), err)
				}
			}
		}
	})
}

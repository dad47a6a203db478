package dataset

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestColumnsAreTheNarrowestTypeOfAllTheirCells(t *testing.T) {
	for _, tc := range []struct {
		cells string
		want  Type
	}{
		{"true false", Bool}, {"true False", Text}, {"true 1", Text},
		{"1 -2 0", Int}, {"9007199254740991", Int}, {"9007199254740992", Text}, {"-9007199254740992 1", Text}, {"123456789012345678901234567890", Text},
		{"00501", Text}, {"1 007", Text}, {"+1", Text}, {"-0", Float}, {"1 2.5", Float}, {"1e3 5", Float}, {".5 -.25", Float}, {"1.", Text}, {"1e", Text},
		{"1e400", Text}, {"0x10", Text}, {"NaN", Text}, {"1,5", Text}, {"-", Text}, {"1_000", Text},
		{"2024-02-29 1999-12-31", Date}, {"2023-02-29", Text}, {"2024-1-1", Text}, {"2024-13-01", Text}, {"20240131", Int},
		{"2024-01-31T12:00:00Z 2024-01-31T12:00:00.5+02:00", Datetime}, {"2024-01-31T12:00:00", Text}, {"2024-01-31 2024-01-31T00:00:00Z", Text},
		{"2024-01-31T12:00:60Z", Text}, {"0000-01-01T00:00:00+01:00", Text}, {"a", Text}, {"", Text}, {"1 a 2", Text},
	} {
		rep, err := ingestText(t, "x.csv", "c\n"+strings.ReplaceAll(quoteCells(tc.cells), " ", "\n")+"\n", Options{})
		if err != nil {
			t.Errorf("%q: %v", tc.cells, err)
		} else if got := rep.Schema.Columns[0].Type; got != tc.want {
			t.Errorf("%q is %s, want %s", tc.cells, got, tc.want)
		}
	}
}

func quoteCells(s string) string {
	parts := strings.Split(s, " ")
	for i := range parts {
		parts[i] = `"` + parts[i] + `"`
	}
	return strings.Join(parts, " ")
}

func TestValuesAreWrittenOneWay(t *testing.T) {
	for _, tc := range []struct{ cells, want string }{
		{"1.0 1e3 -0.0 .097 1e21 1e-7 0.000001 123456789.125 1.50", "1 1000 0 0.097 1e+21 1e-7 0.000001 123456789.125 1.5"},
		{"5 -3 0", "5 -3 0"},
		{"2024-01-31T12:00:00+02:00 2024-01-31T23:59:59.25-01:30", `"2024-01-31T10:00:00.000Z" "2024-02-01T01:29:59.250Z"`},
		{"1969-12-31T23:59:59.000001Z", `"1969-12-31T23:59:59.000001Z"`},
		{"0001-01-01 9999-12-31 1600-02-29", `"0001-01-01" "9999-12-31" "1600-02-29"`},
		{"true false", "true false"},
		{`a\b é`, `"a\\b" "é"`},
	} {
		s := segment(t, "x.csv", "c\n"+strings.ReplaceAll(quoteCells(tc.cells), " ", "\n"), Options{})
		for i, want := range strings.Split(tc.want, " ") {
			if got := string(s.row(i)); got != `{"c":`+want+`}` {
				t.Errorf("row %d of %q is %s, want %s", i, tc.cells, got, want)
			}
		}
	}
}

func TestEmptyCellsAreNullExceptInText(t *testing.T) {
	s := segment(t, "x.csv", "n,t\n1,\n,x\n", Options{})
	if a, b := string(s.row(0)), string(s.row(1)); a != `{"n":1,"t":""}` || b != `{"n":null,"t":"x"}` {
		t.Errorf("rows are %s and %s", a, b)
	}
	if n, x := s.schema.Columns[0], s.schema.Columns[1]; !n.Nullable || n.Nulls != 1 || x.Nullable || x.Empty != 1 {
		t.Errorf("columns are %+v and %+v", n, x)
	}
	j := segment(t, "x.json", `[{"t":null},{"t":""}]`, Options{})
	if a, b := string(j.row(0)), string(j.row(1)); a != `{"t":null}` || b != `{"t":""}` {
		t.Errorf("JSON rows are %s and %s", a, b)
	}
}

// What a column keeps must order, and be written, as the values do.
func TestOrdinalsOrderLikeValues(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Float64().Draw(t, "a"), rapid.Float64().Draw(t, "b")
		if math.IsNaN(a) || math.IsNaN(b) || math.IsInf(a, 0) || math.IsInf(b, 0) {
			t.Skip()
		}
		if (a < b) != (floatOrdinal(a) < floatOrdinal(b)) || (a == b) != (floatOrdinal(a) == floatOrdinal(b)) {
			t.Fatalf("%v and %v order differently as %d and %d", a, b, floatOrdinal(a), floatOrdinal(b))
		}
		if back := ordinalFloat(floatOrdinal(a)); back != a {
			t.Fatalf("%v comes back as %v", a, back)
		}
		want, _ := json.Marshal(a + 0)
		if got := appendFloat(nil, a); a != 0 && string(got) != string(want) {
			t.Fatalf("%v is written %s, encoding/json writes %s", a, got, want)
		}
		if cell := string(want); numberMask([]byte(cell)) == floatMask && plainFloat([]byte(cell)) {
			if got := appendFloat(nil, a); string(got) != cell {
				t.Fatalf("%s is called plain and would be written %s", cell, got)
			}
		}
	})
}

func TestDatesAgreeWithTheStandardLibrary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sec := rapid.Int64Range(minSec, maxSec).Draw(t, "sec")
		nanos := rapid.IntRange(0, 999_999_999).Draw(t, "nanos")
		zone := time.FixedZone("", 60*rapid.IntRange(-14*60, 14*60).Draw(t, "zone"))
		at := time.Unix(sec, int64(nanos)).In(zone)
		text := at.Format(time.RFC3339Nano)
		if at.Year() < 0 || at.Year() > 9999 {
			t.Skip()
		}
		s, n, _, ok := parseDatetime([]byte(text))
		if !ok || s != sec || n != nanos {
			t.Fatalf("%s is read as %d.%09d (%v), want %d.%09d", text, s, n, ok, sec, nanos)
		}
		if us, ok := ticks(sec, nanos/1000*1000, 6); !ok || string(appendDatetime(nil, us, 6)) != at.UTC().Format("2006-01-02T15:04:05.000000Z") {
			t.Fatalf("%s is written %s", text, appendDatetime(nil, us, 6))
		}
		day := at.UTC().Format(time.DateOnly)
		if d, ok := parseDate([]byte(day)); !ok || string(appendDate(nil, d)) != day {
			t.Fatalf("%s comes back as %s", day, appendDate(nil, d))
		}
	})
}

func TestClassifyAllowsOnlyWhatConverts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cell := rapid.StringOfN(rapid.RuneFrom([]rune("0123456789-+.eETZ:truefalsx")), 1, 26, -1).Draw(t, "cell")
		if m := classify([]byte(cell)); m&(1<<Float) != 0 && m != anyType {
			if f := ordinalFloat(ordinal([]byte(cell), Float, 0)); math.IsNaN(f) || math.IsInf(f, 0) {
				t.Fatalf("%q is called a float and converts to %v", cell, f)
			}
		}
	})
}

func TestNamesOfColumns(t *testing.T) {
	for label, want := range map[string]string{"Cost Total $": "cost_total", "IATA": "iata", "2019": "c_2019", "Größe": "grosse", "Café  au  lait": "cafe_au_lait",
		"limit": "limit_", "a__b": "a_b", "_x_": "x", "価格": "column_1", strings.Repeat("ab", 50): strings.Repeat("ab", 31)} {
		got, err := columnNames([]string{label}, 1)
		if err != nil || got[0] != want {
			t.Errorf("%q becomes %v (%v), want %q", label, got, err, want)
		}
	}
	got, err := columnNames([]string{"a b", "a-b", "a_b_2"}, 1)
	if err != nil || strings.Join(got, " ") != "a_b a_b_2 a_b_2_2" {
		t.Errorf("clashing labels become %v, %v", got, err)
	}
}

func TestShortNumbersAreTheNearestDoubles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cell := rapid.StringMatching(`-?[0-9]{0,9}(\.[0-9]{1,9})?`).Draw(t, "cell")
		if cell == "" || classify([]byte(cell))&(1<<Float) == 0 {
			t.Skip()
		}
		want, err := strconv.ParseFloat(cell, 64)
		if got, ok := shortFloat([]byte(cell)); err != nil || ok && math.Float64bits(got) != math.Float64bits(want) {
			t.Fatalf("%q is read as %v, want %v: %v", cell, got, want, err)
		} else if digits := strings.Trim(cell, "-"); !ok && len(digits) <= 15 {
			t.Fatalf("%q is not read", cell)
		}
	})
	for _, cell := range []string{"1e5", "12345678901234567", "1234567890123456", "0.12345678901234567"} {
		if f, ok := shortFloat([]byte(cell)); ok {
			t.Errorf("%s is short, and read as %v", cell, f)
		}
	}
}

func TestTimesAreMeasuredBeyondTheUsualYears(t *testing.T) {
	for cell, safe := range map[string]bool{"1684-01-01T00:00:00Z": false, "1686-01-01T00:00:00Z": true, "2254-12-31T23:59:59Z": true, "2256-01-01T00:00:00Z": false} {
		c := cells{nsSafe: true}
		if c.measure([]byte(cell)); c.nsSafe != safe || c.frac != 0 {
			t.Errorf("%s fits nanoseconds: %t, want %t; it has %d decimals", cell, c.nsSafe, safe, c.frac)
		}
		if c.measure([]byte(cell[:19] + ".25Z")); c.frac != 2 {
			t.Errorf("a quarter of a second has %d decimals", c.frac)
		}
	}
}

func TestStringsAreEscapedWhereverItIsNeeded(t *testing.T) {
	for n := range 20 {
		for i := range n {
			for _, c := range []byte{'"', '\\', 0x1f, 0x01, ' ', '!', '#', '[', ']', 0x7f} {
				text := []byte("é" + strings.Repeat("x", n))
				text[2+i] = c
				var back string
				got := appendString(nil, text)
				if err := json.Unmarshal(got, &back); err != nil || back != string(text) {
					t.Fatalf("%q is written %s, which is %q: %v", text, got, back, err)
				}
				if again := appendString(nil, string(text)); string(again) != string(got) {
					t.Fatalf("%q is written %s as bytes and %s as a string", text, got, again)
				}
			}
		}
	}
}

func TestAFewBytesAreAppendedAsManyAre(t *testing.T) {
	room := []byte("0123456789abcdefghijklmnopqrstuvwxyz")
	for from := range room {
		for to := from; to <= len(room); to++ {
			for _, space := range []int{0, 3, 15, 16, 17, 40} {
				b := appendShort(append(make([]byte, 0, 4+space), "head"...), room[from:to])
				if string(b) != "head"+string(room[from:to]) {
					t.Fatalf("%q with room for %d becomes %q", room[from:to], space, b)
				}
			}
		}
	}
}

package dataset

import (
	"bytes"
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// texts are values of the kinds that sorting by eight bytes at a time can get
// wrong: of equal beginnings, of lengths around eight and beyond a page.
func texts(r *rand.Rand, n int) [][]byte {
	long := strings.Repeat("x", pageSize-3)
	kinds := []func() string{
		func() string { return fmt.Sprintf("SKU-%08x", r.Uint32()) },
		func() string { return fmt.Sprintf("%d", r.IntN(n)) },
		func() string { return strings.Repeat("ab", r.IntN(14)) },
		func() string { return strings.Repeat("é", r.IntN(6)) + fmt.Sprint(r.IntN(3)) },
		func() string { return "the same beginning " + strings.Repeat("z", r.IntN(20)) },
		func() string { return "" },
	}
	list := make([][]byte, n)
	for i := range list {
		list[i] = []byte(kinds[r.IntN(len(kinds))]())
		if r.IntN(5000) == 0 {
			list[i] = []byte(long + fmt.Sprint(r.IntN(9)))
		}
	}
	return list
}

func TestTextIsSortedByItsBytesAndEqualOnesStayInOrder(t *testing.T) {
	for _, n := range []int{0, 1, 2, 41, 3000, 60_000} {
		var c cells
		list := texts(rand.New(rand.NewPCG(uint64(n), 1)), n)
		items, want := make([]sortItem, n), make([]int, n)
		for i, v := range list {
			items[i], want[i] = sortItem{id: uint32(i), at: c.put(v)}, i
		}
		slices.SortStableFunc(want, func(a, b int) int { return bytes.Compare(list[a], list[b]) })
		new(sorter).text(items, make([]sortItem, n), &c, 0)
		for k, it := range items {
			if int(it.id&^same) != want[k] {
				t.Fatalf("of %d values number %d is %q, want %q", n, k, clip(list[it.id&^same]), clip(list[want[k]]))
			}
			if equal := k > 0 && bytes.Equal(list[want[k]], list[want[k-1]]); equal != (it.id&same != 0) {
				t.Fatalf("of %d values %q is marked the same as the one before: %t", n, clip(list[want[k]]), !equal)
			}
		}
	}
}

func TestNumbersAreSortedAndEqualOnesStayInOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{1, 7, 40, 41, 500, 1 << 14, 40_000}).Draw(t, "n")
		bits := rapid.IntRange(0, 63).Draw(t, "bits")
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		values := make([]int64, n)
		want := make([]uint32, n)
		nulls, sorted := rapid.Bool().Draw(t, "nulls"), rapid.Bool().Draw(t, "sorted")
		for i := range values {
			if values[i], want[i] = int64(r.Uint64())>>bits, uint32(i); nulls && r.IntN(3) == 0 {
				values[i] = maxNull
			}
		}
		if sorted {
			slices.Sort(values)
		}
		slices.SortStableFunc(want, func(a, b uint32) int { return cmp.Compare(values[a], values[b]) })
		distinct, again := int64(0), 0
		for k, row := range want {
			switch {
			case values[row] == maxNull:
			case k == 0 || values[want[k-1]] != values[row]:
				distinct++
			case again == 0:
				again = k
			}
		}
		if got := new(sorter).order(values); !slices.Equal(got.perm, want) || got.distinct != distinct || got.again != again {
			t.Fatalf("%d values of %d bits are not in order, or %d of them differ rather than %d, or the first to come again is %d, want %d",
				n, 64-bits, got.distinct, distinct, got.again, again)
		}
	})
}

// A column is hashed or sorted, as its first rows suggest; both must find the
// same dictionary.
func TestHashingAndSortingFindTheSameDictionary(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for name, value := range map[string]func(row int) string{
		"few":    func(int) string { return fmt.Sprintf("brand %d", r.IntN(300)) },
		"unique": func(row int) string { return fmt.Sprintf("SKU-%08x", row*2654435761) },
		"one":    func(int) string { return "the one and only value" },
		"mixed":  func(row int) string { return string(texts(r, 1)[0]) + fmt.Sprint(row%9000) },
	} {
		var c cells
		const rows = 20_000
		for row := range rows {
			if row%11 == 3 {
				c.addNull()
			} else {
				c.add([]byte(value(row)))
			}
		}
		hashed := &builder{table: &table{rows: rows}, dict: newDict(), codes: make([]uint32, rows)}
		sorted := &builder{table: &table{rows: rows}, dict: newDict(), codes: make([]uint32, rows)}
		b := sorted.sortRows(&c)
		// What gives up would not, if it did not know that its values are sorted.
		a, few := hashed.lookUp(&c, true)
		if !few {
			if a, _ = hashed.lookUp(&c, false); len(a.places) != len(b.places) {
				t.Errorf("%s: %d values by hashing, %d by sorting", name, len(a.places), len(b.places))
			}
			continue
		}
		if !slices.Equal(a.codes, b.codes) || !slices.Equal(a.perm, b.perm) || !slices.Equal(a.starts, b.starts) {
			t.Errorf("%s: codes or rows differ", name)
		}
		for k := range a.places {
			if v, w := c.at(a.places[k]), c.at(b.places[k]); !bytes.Equal(v, w) {
				t.Fatalf("%s: value %d is %q by hashing and %q by sorting", name, k, clip(v), clip(w))
			}
		}
	}
}

// Each word's rows are gathered in three ways, by how many there are.
func TestEveryWordHasItsRows(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	var text strings.Builder
	text.WriteString("a,b,c\n")
	const rows = 20_000
	want := map[string]map[int]bool{}
	for row := range rows {
		cells := []string{fmt.Sprintf("code %x of %d", row*40503, r.IntN(50)), fmt.Sprintf("word%d, Word%d", r.IntN(2000), r.IntN(2000)), []string{"plain", "code", "Élan 7"}[r.IntN(3)]}
		fmt.Fprintf(&text, "%s,%q,%s\n", cells[0], cells[1], cells[2])
		for _, w := range wordsOf(strings.Join(cells, " ")) {
			if want[w.Text] == nil {
				want[w.Text] = map[int]bool{}
			}
			want[w.Text][row] = true
		}
	}
	rep, err := ingestText(t, "x.csv", text.String(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(rep.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.words.len() != len(want) {
		t.Errorf("%d words, want %d", s.words.len(), len(want))
	}
	for i := range s.words.len() {
		got, rows := s.words.rows(i), want[s.words.token(i)]
		if len(got) != len(rows) || !slices.IsSorted(got) || slices.ContainsFunc(got, func(row uint32) bool { return !rows[int(row)] }) {
			t.Fatalf("%q has %d rows, want %d of them, ascending", s.words.token(i), len(got), len(rows))
		}
	}
}

func wordsOf(text string) []Word {
	list, _, _ := searchWords(nil, nil, nil, text)
	return list
}

package dataset

import (
	"context"
	"fmt"
	"strings"
	"testing"
)

// numbers is a dataset of 20,000 rows whose answers are known by arithmetic.
func numbersHandler(t testing.TB) *Handler {
	t.Helper()
	var b strings.Builder
	b.WriteString("id,mod7,mod100,sq,word,uniq\n")
	for i := range 20_000 {
		fmt.Fprintf(&b, "%d,%d,%d,%d,w%d common,text %d\n", i, i%7, i%100, (i*i)%9973, i%1000, i*7919%20000)
	}
	return &Handler{Segment: segment(t, "n.csv", b.String(), Options{}), CursorKey: []byte("k")}
}

func TestThePlannerTakesTheShortestWay(t *testing.T) {
	h := numbersHandler(t)
	for query, want := range map[string]struct {
		plan, column string
		atMost       int // rows touched
	}{
		"":                                        {"scan", "", 101},
		"offset=19000":                            {"scan", "", 1024},
		"id=777":                                  {"index", "id", 1},
		"mod100=3&mod7=2":                         {"index", "mod100", 200},
		"mod100=3&limit=5":                        {"index", "mod100", 6},
		"mod100=3&count=exact&limit=1":            {"index", "mod100", 2},
		"mod100=3&offset=150&limit=5":             {"index", "mod100", 6},
		"id__gte=100&id__lt=110":                  {"index, in row order", "id", 20},
		"id__in=5,19999,7":                        {"index, in row order", "id", 6},
		"sq__gte=10&limit=20":                     {"scan", "", 1024},
		"sort=sq&limit=10":                        {"order", "sq", 11},
		"sort=-sq&limit=10&offset=5000":           {"order", "sq", 11},
		"sort=sq&sq__gte=500&limit=10":            {"order", "sq", 11},
		"sort=-sq&sq__gte=500&sq__lt=900&limit=9": {"order", "sq", 10},
		"sort=sq&id=5":                            {"index, sorted", "id", 1},
		"sort=sq,-id&limit=10":                    {"order, sorted", "sq", 64},
		"q=w77":                                   {"word", "w77", 20},
		"q=w77+common&limit=3":                    {"word", "w77", 20},
		"q=common&id=9":                           {"index", "id", 1},
		"uniq=text+5":                             {"index", "uniq", 1},
		"uniq__prefix=text+123":                   {"index, in row order", "uniq", 222},
		"word__contains=nothing&mod100=1":         {"index", "mod100", 200},
	} {
		x, err := h.Explain(context.Background(), "/v1/records?"+query)
		if err != nil {
			t.Errorf("%s: %v", query, err)
			continue
		}
		if x.Plan != want.plan || x.Column != want.column || x.Touched > want.atMost {
			t.Errorf("%s is answered by %q of %q, %d rows touched; want %+v", query, x.Plan, x.Column, x.Touched, want)
		}
	}
	x, err := h.Explain(context.Background(), "/v1/records?mod7=1&mod100=2&word__contains=9&count=exact")
	if err != nil || len(x.Filters) != 3 || x.Filters[0] != "mod100 eq: index, 200 rows" || !strings.Contains(x.SQL, "mod100 = ?") || x.Count < 0 {
		t.Errorf("explained as %+v, %v", x, err)
	}
}

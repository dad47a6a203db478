package dataset

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// discard is a ResponseWriter that keeps nothing.
type discard struct{ head http.Header }

func (d *discard) Header() http.Header         { return d.head }
func (d *discard) Write(b []byte) (int, error) { return len(b), nil }
func (d *discard) WriteHeader(int)             {}

// What a request costs in our code, without net/http.
func BenchmarkServe(b *testing.B) {
	h := numbersHandler(b)
	for _, query := range []string{"limit=1", "", "mod100=3&limit=20", "id__gte=100&sort=-sq&limit=20", "q=w77", "offset=10000&limit=20", "mod7=3&count=exact&limit=1"} {
		b.Run(query, func(b *testing.B) {
			r := httptest.NewRequest("GET", "/v1/records?"+query, nil)
			w := &discard{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				if err := h.Serve(w, r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestAListIsAnsweredWithoutAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	h := numbersHandler(t)
	w := &discard{http.Header{}}
	first := httptest.NewRecorder()
	h.ServeHTTP(first, httptest.NewRequest("GET", "/v1/records?sort=-sq&limit=20&id__gte=100", nil))
	_, next, _ := strings.Cut(first.Body.String(), `"next":"/v1/records?`)
	next = strings.TrimSuffix(next, `"}}`)
	for _, query := range []string{"limit=1", "", "mod100=3&limit=20", "word=w5%20common", "id__gte=100&sort=-sq&limit=20", "q=w77+comm%2A", "q=common+w77", "offset=10000&limit=20",
		"mod7=3&count=exact&limit=1", "select=id,word&mod7=2&uniq__prefix=te", next} {
		r := httptest.NewRequest("GET", "/v1/records?"+query, nil)
		if n := testing.AllocsPerRun(1000, func() {
			if err := h.Serve(w, r); err != nil {
				t.Fatal(err)
			}
		}); n > 0 {
			t.Errorf("%s needs %v allocations, want 0", query, n)
		}
	}
}

func BenchmarkPlan(b *testing.B) {
	h := numbersHandler(b)
	r := httptest.NewRequest("GET", "/v1/records?mod100=3&limit=20", nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := h.Plan(r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReader is the CSV reader alone.
func BenchmarkReader(b *testing.B) {
	var text strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&text, "%d,SKU-%08x,some words of a name,brand %d,category,12.50,true,2024-01-31,\"quoted, with a comma\"\n", i, i*7919, i%300)
	}
	b.SetBytes(int64(text.Len()))
	for b.Loop() {
		c := newCSV(strings.NewReader(text.String()), ',', false)
		for {
			if _, err := c.next(); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkIngest(b *testing.B) {
	var text strings.Builder
	text.WriteString("id,sku,name,price,active,day\n")
	for i := range 50_000 {
		fmt.Fprintf(&text, "%d,SKU-%08x,some words of name %d,%d.5,true,2024-01-%02d\n", i, i*7919, i%5000, i%900, 1+i%28)
	}
	b.SetBytes(int64(text.Len()))
	for b.Loop() {
		if _, err := Inspect(context.Background(), strings.NewReader(text.String()), "x.csv", Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

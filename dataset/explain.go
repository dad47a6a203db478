package dataset

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// Explanation says how a query is answered.
type Explanation struct {
	Canonical string        `json:"canonical"`
	Plan      string        `json:"plan"`   // scan, index, word, order or lookup, and how it is used
	Column    string        `json:"column"` // or word that drives it
	Filters   []string      `json:"filters"`
	Touched   int           `json:"rowsTouched"` // candidates that were looked at
	Rows      int           `json:"rows"`        // of the page
	Total     int           `json:"rowsTotal"`   // of the dataset
	Count     int           `json:"count"`       // -1 unless asked for
	Time      time.Duration `json:"nanoseconds"`
	SQL       string        `json:"sql"` // what the edge runs for it
	Args      []any         `json:"args"`
}

// Explain runs the query of a path and query string such as
// /v1/records?state=CA, and says which index ran and how many rows it touched.
func (h *Handler) Explain(ctx context.Context, target string) (*Explanation, error) {
	path, query, _ := strings.Cut(target, "?")
	p, err := h.plan(http.MethodGet, path, query)
	if p.release != nil {
		defer p.release()
	}
	if err != nil {
		return nil, err
	}
	x := &Explanation{Canonical: string(p.canonical(nil)), Total: p.seg.n, Count: -1, Filters: []string{}}
	start := time.Now()
	switch p.route {
	case record:
		_, err := p.seg.lookup(p.key)
		x.Plan, x.Column, x.Touched, x.Rows = "lookup", p.seg.schema.Key, 1, 1
		x.Time = time.Since(start)
		return x, err
	case records:
	default:
		x.Plan = "page"
		return x, nil
	}
	e := executions.Get().(*execution)
	defer e.close()
	r, err := e.run(ctx, p.seg, p.query, p.at, h.CPU)
	if err != nil {
		return nil, err
	}
	x.Time = time.Since(start)
	x.Plan, x.Column, x.Touched, x.Rows, x.Count = e.used.name, e.used.column, e.seen, len(r.rows), r.count
	if !e.used.ordered {
		x.Plan += ", sorted"
	}
	for i := range p.query.Filters {
		f := &p.query.Filters[i]
		c := &p.seg.cols[f.Col]
		how := "each row is tested"
		pr, err := p.seg.predicate(f, &e.m)
		if err != nil {
			return nil, err
		}
		if pr.index(); pr.indexed {
			how = fmt.Sprintf("index, %d rows", pr.size)
		} else if pr.lazy != nil {
			how = "the text of each row is tested"
		}
		x.Filters = append(x.Filters, fmt.Sprintf("%s %s: %s", c.name, opNames[f.Op], how))
	}
	st := p.query.SQL(p.seg.schema, p.seg.place(p.query, p.at))
	x.SQL, x.Args = st.SQL, st.Args
	return x, nil
}

package dataset

import (
	"encoding/json"
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/402claw/clawr"
)

// maxBuffer is the largest buffer that is kept for the next answer.
const maxBuffer = 1 << 20

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 16<<10); return &b }}

// appendRow writes one row, as it was rendered or as select wants it.
func (s *Segment) appendRow(b []byte, row uint32, q *Query) []byte {
	if q == nil || q.Select == nil {
		return append(b, s.row(int(row))...)
	}
	for i, c := range q.Select {
		if i == 0 {
			b = append(b, '{', '"')
		} else {
			b = append(b, ',', '"')
		}
		b = append(b, s.cols[c].name...)
		b = append(b, '"', ':')
		b = s.cols[c].appendJSON(b, row)
	}
	return append(b, '}')
}

// appendRows writes rows with commas between them; rows that follow each other
// are one copy.
func (s *Segment) appendRows(b []byte, rows []uint32, q *Query) []byte {
	if len(rows) == 0 {
		return b
	}
	if q.Select != nil {
		for _, row := range rows {
			b = append(s.appendRow(b, row, q), ',')
		}
		return b[:len(b)-1]
	}
	for i := 0; i < len(rows); {
		k := i + 1
		for k < len(rows) && rows[k] == rows[k-1]+1 {
			k++
		}
		b = append(b, s.body[s.rowAt(int(rows[i])):s.rowAt(int(rows[k-1])+1)]...)
		i = k
	}
	return b[:len(b)-1]
}

// appendCSV writes rows by RFC 4180 with a header of column names. null is an
// empty cell and "" a quoted one.
func (s *Segment) appendCSV(b []byte, rows []uint32, q *Query) []byte {
	cols := q.Select
	if cols == nil {
		for i := range s.cols {
			cols = append(cols, i)
		}
	}
	for i, c := range cols {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, s.cols[c].name...)
	}
	b = append(b, '\r', '\n')
	for _, row := range rows {
		for i, c := range cols {
			if i > 0 {
				b = append(b, ',')
			}
			b = s.cols[c].appendCSV(b, row)
		}
		b = append(b, '\r', '\n')
	}
	return b
}

func (c *column) appendCSV(b []byte, row uint32) []byte {
	if c.isNull(row) {
		return b
	}
	n := c.ordinal(row)
	if c.typ != Text {
		from := len(b)
		if b = appendOrdinal(b, n, c.typ, c.decimals); b[from] == '"' {
			copy(b[from:], b[from+1:len(b)-1])
			b = b[:len(b)-2]
		}
		return b
	}
	v := c.text(n)
	plain := len(v) > 0
	for _, ch := range v {
		plain = plain && ch != '"' && ch != ',' && ch != '\n' && ch != '\r'
	}
	if plain {
		return append(b, v...)
	}
	b = append(b, '"')
	for _, ch := range v {
		if ch == '"' {
			b = append(b, '"')
		}
		b = append(b, ch)
	}
	return append(b, '"')
}

// lookup finds the row of a key: by the key's column, or by row number from 1.
func (s *Segment) lookup(key string) (uint32, error) {
	missing := &clawr.Error{Code: clawr.CodeRecordNotFound, Message: "there is no record " + short(key), Fix: "search with /v1/records; you were not charged"}
	if s.key < 0 {
		n, err := number("key", key, 1, int64(s.n))
		if err != nil {
			return 0, missing
		}
		return uint32(n - 1), nil
	}
	c := &s.cols[s.key]
	v, err := parseValue(&s.schema.Columns[s.key], "key", key)
	if err != nil {
		return 0, missing
	}
	p, err := s.predicate(&Filter{Col: s.key, Op: Eq, Args: []Value{v}}, &meter{steps: -1 << 40})
	if err != nil {
		return 0, err
	}
	if c.perm != nil && p.set == nil {
		lo, hi := c.run(p.lo, p.hi)
		if lo == hi {
			return 0, missing
		}
		return c.perm[lo], nil
	}
	for row := range uint32(s.n) {
		if p.test(row) {
			return row, nil
		}
	}
	return 0, missing
}

// run is the part of perm whose ordinals are in [lo, hi].
func (c *column) run(lo, hi int64) (from, to int) {
	if lo > hi {
		return 0, 0
	}
	if from = c.search(lo); hi == math.MaxInt64 {
		return from, len(c.perm)
	}
	return from, c.search(hi + 1)
}

// search is the first place in perm whose ordinal is at least n.
func (c *column) search(n int64) int {
	from, to := 0, len(c.perm)
	for from < to {
		mid := (from + to) / 2
		if c.ordinal(c.perm[mid]) < n {
			from = mid + 1
		} else {
			to = mid
		}
	}
	return from
}

// freePage answers what costs nothing.
func (h *Handler) freePage(r route, b []byte) ([]byte, error) {
	s := h.Segment
	switch r {
	case schema:
		out := struct {
			*Schema
			Updated *time.Time `json:"updated,omitempty"`
			Price   string     `json:"priceUsd"`
		}{Schema: s.schema, Price: h.price()}
		if !h.Facts.Updated.IsZero() {
			out.Updated = &h.Facts.Updated
		}
		j, err := json.Marshal(out)
		return append(b, j...), err
	case preview:
		n := min(s.schema.PreviewRows, s.n)
		b = append(b, `{"data":[`...)
		if n > 0 {
			b = append(b, s.body[:s.rowAt(n)-1]...)
		}
		b = append(b, `],"meta":{"version":"`...)
		return append(append(b, s.version...), `"}}`...), nil
	case openapi:
		j, err := json.Marshal(h.openAPI())
		return append(b, j...), err
	case pricing:
		j, err := json.Marshal(h.pricing())
		return append(b, j...), err
	}
	return append(b, `{"ok":true}`...), nil
}

func (h *Handler) price() string {
	if !h.Facts.Paid {
		return "0"
	}
	return h.Facts.Price.String()
}

// pricing says what calls cost, without a payment or a challenge.
func (h *Handler) pricing() any {
	type endpoint struct {
		Method   string `json:"method"`
		Path     string `json:"path"`
		PriceUsd string `json:"priceUsd"`
	}
	out := struct {
		PriceUsd  string       `json:"priceUsd"`
		Scheme    string       `json:"scheme,omitempty"`
		Network   string       `json:"network,omitempty"`
		Asset     *clawr.Asset `json:"asset,omitempty"`
		Amount    string       `json:"amount,omitempty"` // in the asset's smallest units
		PayTo     string       `json:"payTo,omitempty"`
		Endpoints []endpoint   `json:"endpoints"`
	}{PriceUsd: h.price()}
	if f := &h.Facts; f.Paid {
		out.Scheme, out.Network, out.PayTo = f.Scheme, f.Network, f.PayTo
		if f.Asset.Address != "" {
			out.Asset = &f.Asset
			if n, err := f.Price.Atomic(f.Asset.Decimals); err == nil {
				out.Amount = strconv.FormatInt(n, 10)
			}
		}
	}
	for _, p := range []string{recordsPath, recordPath + "{key}"} {
		out.Endpoints = append(out.Endpoints, endpoint{"GET", p, h.price()})
	}
	for _, p := range []string{"/v1/schema", "/v1/preview", "/openapi.json", "/pricing", "/health"} {
		out.Endpoints = append(out.Endpoints, endpoint{"GET", p, "0"})
	}
	return out
}

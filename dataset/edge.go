package dataset

import (
	"bufio"
	"encoding/json"
	"io"
	"slices"
)

// What a dataset's Worker at Cloudflare's edge holds itself, and what D1
// answers for it. See cloudflare/edge/CONTRACT.md.
const (
	// EdgeSmall is the most bytes of rendered rows that go into the Worker as a
	// module. More of them are put into a D1 database.
	EdgeSmall = 1 << 20
	// edgeIndexFrom is the number of rows beyond which only indexed columns can
	// be filtered and sorted by in D1, where a scan costs what a call does.
	edgeIndexFrom = 10_000
	edgeMaxOffset = 10_000
)

// edgeManifest is what the Worker knows of its dataset.
type edgeManifest struct {
	ID        string              `json:"id"`
	Version   string              `json:"version"`
	Large     bool                `json:"large"`
	Rows      int64               `json:"rows"`
	Key       string              `json:"key"`
	Search    []string            `json:"search"`
	MaxOffset int64               `json:"maxOffset"`
	Columns   []edgeColumn        `json:"columns"`
	Pages     map[string]edgePage `json:"pages"`
}

type edgeColumn struct {
	Name     string `json:"name"`
	Type     Type   `json:"type"`
	Nullable bool   `json:"nullable"`
	Indexed  bool   `json:"indexed"`
	Fraction int    `json:"fraction,omitempty"`
}

type edgePage struct {
	Body string `json:"body"`
	ETag string `json:"etag"`
}

// EdgeLarge reports whether s is too large for its Worker to hold.
func (s *Segment) EdgeLarge() bool { return len(s.body) > EdgeSmall }

// EdgeManifest is the module manifest.json of the dataset's Worker: its schema
// as the edge can serve it, and the pages that cost nothing, as they are served.
// Facts must be those of the version that is published.
func (h *Handler) EdgeManifest() ([]byte, error) {
	large := h.Segment.EdgeLarge()
	schema := *h.Segment.schema
	if large {
		schema.MaxOffset = min(schema.MaxOffset, edgeMaxOffset)
		schema.Columns = slices.Clone(schema.Columns)
		for i := range schema.Columns {
			c := &schema.Columns[i]
			c.Indexed = c.Name == schema.Key || slices.Contains(schema.Index, c.Name) || schema.Rows <= edgeIndexFrom
		}
	}
	seg := *h.Segment
	seg.schema = &schema
	free := &Handler{Segment: &seg, Facts: h.Facts}
	m := edgeManifest{ID: seg.id, Version: seg.version, Large: large, Rows: schema.Rows, Key: schema.Key, Search: schema.Search, MaxOffset: schema.MaxOffset, Pages: map[string]edgePage{}}
	if m.Search == nil {
		m.Search = []string{}
	}
	for i := range schema.Columns {
		c := &schema.Columns[i]
		m.Columns = append(m.Columns, edgeColumn{c.Name, c.Type, c.Nullable, c.Indexed, c.Fraction})
	}
	for path, r := range map[string]route{"/v1/schema": schemaRoute, "/v1/preview": preview, "/health": health, "/pricing": pricing, "/openapi.json": openapi} {
		body, err := free.freePage(r, nil)
		if err != nil {
			return nil, err
		}
		m.Pages[path] = edgePage{string(body), free.ETag(path)}
	}
	return json.Marshal(m)
}

// schemaRoute is the route of /v1/schema, under a name that a variable schema
// does not hide.
const schemaRoute = schema

// WriteRows writes the module rows.ndjson of the dataset's Worker: every row as
// it was rendered, one a line, or nothing if the rows are in D1.
func (s *Segment) WriteRows(out io.Writer) error {
	if s.EdgeLarge() {
		return nil
	}
	w := bufio.NewWriterSize(out, 1<<16)
	for i := range s.n {
		_, _ = w.Write(s.row(i))
		_ = w.WriteByte('\n')
	}
	return w.Flush()
}

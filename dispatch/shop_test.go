package dispatch_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dispatch"
)

// goods is what version v of a tenant sells at a canonical request.
func goods(t *clawr.Tenant, canonical string) string {
	return fmt.Sprintf(`{"tenant":%q,"version":%d,"content":%q,"asked":%q}`, t.Slug, t.Version, t.Content, canonical)
}

// shop does the work of all tenants: /v1/records costs a unit, /v1/bulk?n=3
// three, /v1/run takes POST, /v1/free is free. It does, once, what the test
// has told it for the next call.
type shop struct {
	mu   sync.Mutex
	runs map[string]int // by canonical request
	next func(http.ResponseWriter, *http.Request) error
}

func (s *shop) Open(_ context.Context, t *clawr.Tenant) (dispatch.Worker, error) {
	switch t.Kind {
	case clawr.KindDataset:
		return &dataset{counter{s, t}}, nil
	case clawr.KindFunction:
		return &counter{s, t}, nil
	}
	return nil, fmt.Errorf("no worker for %s", t.Kind)
}

func (s *shop) once(do func(http.ResponseWriter, *http.Request) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next = do
}

func (s *shop) total() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.runs {
		n += k
	}
	return n
}

type counter struct {
	shop *shop
	t    *clawr.Tenant
}

func (c *counter) Plan(r *http.Request) (string, int64, error) {
	q := r.URL.Query()
	canonical := r.URL.EscapedPath()
	if enc := q.Encode(); enc != "" {
		canonical += "?" + enc
	}
	path, units := r.URL.EscapedPath(), int64(0)
	switch {
	case path == "/v1/records", strings.HasPrefix(path, "/v1/records/") && !strings.Contains(path[12:], "/"):
		units = 1
	case path == "/v1/run":
		if r.Method != "POST" {
			return canonical, 0, &clawr.Error{Code: clawr.CodeMethodNotAllowed, Message: "POST only"}
		}
		return canonical, 1, nil
	case path == "/v1/bulk":
		units, _ = strconv.ParseInt(q.Get("n"), 10, 64)
	case path == "/v1/free":
		if r.Method == "POST" {
			return canonical, 0, nil
		}
	case path == "/v1/panic":
		panic("plan")
	default:
		return canonical, 0, &clawr.Error{Code: clawr.CodeNotFound, Message: "nothing there"}
	}
	if r.Method != "GET" && r.Method != "HEAD" {
		return canonical, 0, &clawr.Error{Code: clawr.CodeMethodNotAllowed, Message: "GET only"}
	}
	if q.Has("bad") {
		return canonical, units, &clawr.Error{Code: "unknown_parameter", Param: "bad", Message: "bad is not a parameter"}
	}
	return canonical, units, nil
}

func (c *counter) Check(_ context.Context, r *http.Request) error {
	if strings.HasPrefix(r.URL.Path, "/v1/records/missing") {
		return &clawr.Error{Code: clawr.CodeRecordNotFound, Message: "no such record"}
	}
	return nil
}

func (c *counter) Serve(w http.ResponseWriter, r *http.Request) error {
	canonical, _, _ := c.Plan(r)
	c.shop.mu.Lock()
	next := c.shop.next
	c.shop.next = nil
	c.shop.runs[canonical]++
	c.shop.mu.Unlock()
	if next != nil {
		return next(w, r)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", etag(c.t, canonical))
	body := goods(c.t, canonical)
	if r.Method == "POST" {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		body += string(b)
	}
	_, err := io.WriteString(w, body)
	return err
}

func etag(t *clawr.Tenant, canonical string) string {
	s := sha256.Sum256([]byte(goods(t, canonical)))
	return `"` + hex.EncodeToString(s[:8]) + `"`
}

// dataset can say its answers again.
type dataset struct{ counter }

// bazaar is as large as what a dataset says of itself, with what a challenge is
// cut at in it.
var bazaar = `{"info":{"input":{"type":"http","method":"GET"},"output":{"example":"{quote} {url} {reason}` + strings.Repeat("x", 1600) + `"}},"schema":{"type":"object"}}`

func (*dataset) Discovery() (string, json.RawMessage, error) {
	return "/v1/records", json.RawMessage(bazaar), nil
}

func (d *dataset) Answer(_ context.Context, canonical string) ([]byte, error) {
	return []byte(goods(d.t, canonical)), nil
}

func (d *dataset) ETag(canonical string) string { return etag(d.t, canonical) }

// logged is a log that a test can read.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
)

// book is the real store, seen through this package's types as main sees it.
type book struct{ *store.DB }

func (b book) Owner(ctx context.Context, id string) (Owner, error) {
	o, err := b.DB.Owner(ctx, id)
	return Owner(o), err
}

func (b book) Owners(ctx context.Context) ([]Owner, error) {
	list, err := b.DB.Owners(ctx)
	var out []Owner
	for _, o := range list {
		out = append(out, Owner(o))
	}
	return out, err
}

func (b book) CreateToken(ctx context.Context, t Token, by string) error {
	return b.DB.CreateToken(ctx, store.Token(t), by)
}

func (b book) Tokens(ctx context.Context) ([]Token, error) {
	list, err := b.DB.Tokens(ctx)
	var out []Token
	for _, t := range list {
		out = append(out, Token(t))
	}
	return out, err
}

func (b book) TokenByHash(ctx context.Context, hash string) (Token, error) {
	t, err := b.DB.TokenByHash(ctx, hash)
	return Token(t), err
}

func (b book) History(ctx context.Context, p *ledger.Payment) ([]Step, error) {
	list, err := b.DB.History(ctx, p)
	var out []Step
	for _, s := range list {
		out = append(out, Step(s))
	}
	return out, err
}

func (b book) Payments(ctx context.Context, f PaymentFilter) ([]ledger.Payment, error) {
	return b.DB.Payments(ctx, store.PaymentFilter(f))
}

// shelf keeps segments in memory.
type shelf map[string][]byte

func (s shelf) Has(_ context.Context, id string) (bool, error) { _, ok := s[id]; return ok, nil }

func (s shelf) Put(_ context.Context, id string, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if HashSecret(string(b)) != id { // the same hash
		return &clawr.Error{Code: clawr.CodeSegmentCorrupt, Message: "the bytes have another hash"}
	}
	s[id] = b
	return nil
}

type world struct {
	claims int // that were asked for
	*Handler
	*Client
	t   *testing.T
	db  book
	as  *Principal // who asks; nil: by their tokens
	now time.Time
	id  string // of a segment that is there
	raw string // the database's file
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, now: time.Date(2026, 2, 13, 10, 30, 0, 0, time.UTC)}
	clock := func() time.Time { return w.now }
	w.raw = filepath.Join(t.TempDir(), "clawr.db")
	db, err := store.Open(t.Context(), store.Options{Path: w.raw, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	w.db = book{db}
	operator := Operator()
	w.as = &operator
	w.id = HashSecret("a segment")
	tokens := Bearer(w.db, clock)
	w.Handler = NewHandler(&Handler{Tenants: w.db, Owners: w.db, Tokens: w.db, Events: w.db, Payments: w.db, Channels: till{db, &w.claims}, Refunds: payer{db}, Segments: shelf{w.id: []byte("a segment")},
		Authorize: func(r *http.Request) (Principal, error) {
			if w.as != nil {
				return *w.as, nil
			}
			return tokens(r)
		}, PublicURL: "https://api.example.com", Docs: "https://docs.example.com/", Now: clock})
	srv := httptest.NewServer(w.Handler)
	t.Cleanup(srv.Close)
	w.Client = &Client{HTTP: srv.Client(), Base: srv.URL}
	return w
}

const someone = "0x00000000000000000000000000000000000000a1"

// paid is a deploy of a paid dataset.
func (w *world) paid() Deploy {
	return Deploy{Manifest: clawr.Manifest{Content: w.id, Rows: 3, Price: 1000, X402: true, PayTo: someone}}
}

// call sends raw bytes and returns the status, the headers and the body.
func (w *world) call(method, path, body string, header ...string) (int, http.Header, map[string]any) {
	w.t.Helper()
	req := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	w.Handler.ServeHTTP(rec, req)
	return rec.Code, rec.Header(), object(w.t, rec.Body.Bytes())
}

func object(t *testing.T, b []byte) map[string]any {
	t.Helper()
	var m map[string]any
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&m); err != nil {
		t.Fatalf("%q is not one JSON object: %v", b, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		t.Fatalf("something follows the JSON: %q", b)
	}
	return m
}

func wantCode(t *testing.T, err error, code clawr.Code, fix string) {
	t.Helper()
	e, ok := errors.AsType[*clawr.Error](err)
	if !ok || e.Code != code || e.Fix == "" || !strings.Contains(e.Fix, fix) {
		t.Errorf("got %v (fix %q), want %s with a fix that has %q", err, fixOf(err), code, fix)
	}
}

func fixOf(err error) string {
	if e, ok := errors.AsType[*clawr.Error](err); ok {
		return e.Fix
	}
	return ""
}

func TestTheOneErrorShape(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		method, path, body string
		status             int
		code, param        string
	}{
		{"GET", "/nowhere", "", 404, "not_found", ""},
		{"PATCH", "/v1/tenants", "", 405, "method_not_allowed", ""},
		{"GET", "/v1/tenants/none", "", 404, "tenant_not_found", "tenant"},
		{"GET", "/v1/tenants/none/versions", "", 404, "tenant_not_found", "tenant"},
		{"POST", "/v1/tenants/none/pause", "", 404, "tenant_not_found", "tenant"},
		{"DELETE", "/v1/tenants/none", "", 404, "tenant_not_found", "tenant"},
		{"POST", "/v1/tenants/gold/deploys", "", 400, "invalid_request", ""},
		{"POST", "/v1/tenants/gold/deploys", "{", 400, "invalid_request", ""},
		{"POST", "/v1/tenants/gold/deploys", "{}{}", 400, "invalid_request", ""},
		{"POST", "/v1/tenants/gold/deploys", `{"prize":"1"}`, 400, "invalid_request", ""},
		{"POST", "/v1/tenants/gold/deploys", `{"priceUsd":"0.0000001"}`, 400, "invalid_amount", ""},
		{"POST", "/v1/tenants/gold/deploys", `{"priceUsd":-1}`, 400, "invalid_amount", ""},
		{"POST", "/v1/tenants/gold/deploys", strings.Repeat(" ", maxBody+1), 413, "body_too_large", ""},
		{"POST", "/v1/tenants/Gold/deploys", `{}`, 400, "invalid_slug", "tenant"},
		{"POST", "/v1/tenants/gold/rollback", `{"to":-1}`, 400, "invalid_request", "to"},
		{"GET", "/v1/owners/none", "", 404, "not_found", "owner"},
		{"PUT", "/v1/owners/a%20b", "{}", 400, "invalid_request", "owner"},
		{"PUT", "/v1/owners/codex", `{"payTo":"0x12"}`, 400, "invalid_address", "pay-to"},
		{"PUT", "/v1/owners/codex", `{"payTo":"0x0000000000000000000000000000000000000000"}`, 400, "invalid_address", "pay-to"},
		{"POST", "/v1/tokens", `{"scopes":[]}`, 400, "invalid_request", "scope"},
		{"POST", "/v1/tokens", `{"scopes":["all"]}`, 400, "invalid_request", "scope"},
		{"POST", "/v1/tokens", `{"scopes":["events:read"],"expiresIn":-1}`, 400, "invalid_request", "expires"},
		{"DELETE", "/v1/tokens/none", "", 404, "not_found", "token"},
		{"GET", "/v1/events?limit=0", "", 400, "invalid_request", "limit"},
		{"GET", "/v1/events?limit=2001", "", 400, "invalid_request", "limit"},
		{"POST", "/v1/events", "nonsense", 400, "invalid_events", ""},
		{"GET", "/v1/analytics?window=month", "", 400, "invalid_window", "window"},
		{"GET", "/v1/analytics?window=", "", 400, "invalid_window", "window"},
		{"GET", "/v1/analytics?top=0", "", 400, "invalid_request", "top"},
		{"GET", "/v1/analytics?now=soon", "", 400, "invalid_request", "now"},
		{"GET", "/v1/payments?money=lost", "", 400, "invalid_request", "money"},
		{"GET", "/v1/payments?tenant=none", "", 404, "tenant_not_found", "tenant"},
		{"GET", "/v1/payments?payer=me", "", 400, "invalid_address", "payer"},
		{"GET", "/v1/payments/none", "", 404, "not_found", "payment"},
		{"GET", "/v1/directory?form=yaml", "", 400, "invalid_request", "form"},
		{"PUT", "/v1/segments/abc", "", 400, "invalid_request", "sha256"},
		{"PUT", "/v1/segments/" + strings.Repeat("0", 64), "other bytes", 400, "segment_corrupt", ""},
	} {
		status, h, got := w.call(c.method, c.path, c.body)
		name := c.method + " " + c.path
		if status != c.status || got["error"] != c.code || got["ok"] != false || got["message"] == "" {
			t.Errorf("%s: %d %v, want %d %s", name, status, got, c.status, c.code)
		}
		if p, _ := got["param"].(string); p != c.param {
			t.Errorf("%s: param %q, want %q", name, p, c.param)
		}
		if got["docs"] != "https://docs.example.com/errors.md#"+c.code {
			t.Errorf("%s: docs %v", name, got["docs"])
		}
		if id := h.Get("X-Request-Id"); len(id) != 20 || got["requestId"] != id || h.Get("Cache-Control") != "no-store" || h.Get("Content-Type") != "application/json" {
			t.Errorf("%s: request id %q in the head, %v in the body; head %v", name, id, got["requestId"], h)
		}
	}
	if _, h, _ := w.call("PATCH", "/v1/tenants/gold", ""); h.Get("Allow") != "DELETE, GET" {
		t.Errorf("Allow: %q", h.Get("Allow"))
	}
	if list, err := w.Client.Tenants(t.Context(), true); err != nil || len(list) != 0 {
		t.Errorf("refused requests left %v behind (%v)", list, err)
	}
}

type directory = Tenants

type broken struct{ directory }

func (broken) Tenants(context.Context) ([]clawr.Tenant, error) {
	return nil, errors.New("disk on fire at /var/lib/secret")
}

func TestInternalErrorsSayNothing(t *testing.T) {
	w := newWorld(t)
	w.Handler.Tenants = broken{}
	status, _, got := w.call("GET", "/v1/tenants", "")
	if status != 500 || got["error"] != "internal" || strings.Contains(got["message"].(string), "fire") {
		t.Errorf("%d %v", status, got)
	}
	_, err := w.Client.Tenants(t.Context(), false)
	wantCode(t, err, clawr.CodeInternal, "request id req_")
}

func TestClientCannotBeReached(t *testing.T) {
	c := &Client{HTTP: http.DefaultClient, Base: "http://127.0.0.1:1"}
	_, err := c.Tenants(t.Context(), false)
	wantCode(t, err, clawr.CodeUnreachable, "--server")
	_, err = (&Client{HTTP: http.DefaultClient, Base: "::"}).Tenants(t.Context(), false)
	wantCode(t, err, clawr.CodeUsage, "--server")
	for _, h := range []http.HandlerFunc{
		func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "<html>bad gateway", http.StatusBadGateway)
		},
		func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") },
		func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) },
	} {
		srv := httptest.NewServer(h)
		_, err := (&Client{HTTP: srv.Client(), Base: srv.URL}).Tenants(t.Context(), false)
		wantCode(t, err, clawr.CodeUnreachable, "--server")
		srv.Close()
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Tenants(ctx, false); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call gives %v", err)
	}
}

func TestAHostileServerCannotWriteToTheTerminal(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(429)
		io.WriteString(w, `{"error":"rate_limited","message":"\u001b]0;pwned\u0007`+strings.Repeat("x", 5000)+`","fix":"\u202ecurl"}`)
	}))
	defer srv.Close()
	_, err := (&Client{HTTP: srv.Client(), Base: srv.URL}).Owners(t.Context())
	e, _ := errors.AsType[*clawr.Error](err)
	if e == nil || strings.ContainsAny(e.Message+e.Fix, "\x1b\x07\u202e") || len(e.Message) > 300 || e.RetryAfter != 7*time.Second {
		t.Errorf("%#v", err)
	}
}

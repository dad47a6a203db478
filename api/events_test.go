package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

const sample = `{"ts":"2026-02-13T09:00:00Z","requestId":"1","api":"gold","callerId":"a","priceUsd":0.001,"latencyMs":12.5}
{"ts":"2026-02-10T09:00:00Z","requestId":"2","api":"gold","callerId":"b","priceUsd":0.001,"status":500}
{"ts":"2026-01-10T09:00:00Z","requestId":"3","api":"silver","callerId":"a"}
{"ts":"2026-02-13T09:00:00Z","requestId":"1","api":"gold","callerId":"again"}
{"owner":"no time"}
`

func TestImportAndReports(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	got, err := w.Client.ImportEvents(ctx, strings.NewReader(sample))
	if want := (Imported{Parsed: usage.Parsed{Events: 3, Dropped: 1, Duplicates: 1}, Added: 3}); err != nil || got != want {
		t.Errorf("import: %+v, %v; want %+v", got, err, want)
	}
	if got, err = w.Client.ImportEvents(ctx, strings.NewReader(sample)); err != nil || got.Added != 0 {
		t.Errorf("importing it again adds %d (%v), want 0", got.Added, err)
	}
	if _, err = w.Client.ImportEvents(ctx, strings.NewReader(strings.ReplaceAll(sample, `"requestId":"`, `"requestId":"x`)+"oops\n")); clawr.CodeOf(err) != usage.CodeBadEvents {
		t.Errorf("a broken last line: %v", err)
	}
	list, err := w.Client.Events(ctx, 2)
	if err != nil || len(list) != 2 || list[0].RequestID != "2" || list[1].RequestID != "3" {
		t.Errorf("the last two events are %+v (%v); a broken import must leave nothing", list, err)
	}

	for window, calls := range map[usage.Window]int64{usage.Today: 1, usage.Week: 2, usage.Overall: 3} {
		s, err := w.Client.Analytics(ctx, window, 1, time.Time{})
		if err != nil || s.Window != window || s.Hero.Calls != calls || len(s.Top) != 1 || s.Debug.Received != 3 {
			t.Errorf("%s: %+v, %v; want %d calls", window, s, err, calls)
		}
	}
	s, err := w.Client.Analytics(ctx, usage.Today, 5, time.Date(2026, 1, 10, 12, 0, 0, 0, time.UTC))
	if err != nil || s.Hero.Calls != 1 || s.All[0].APIID != "silver" {
		t.Errorf("at another time: %+v, %v", s, err)
	}
	all, err := w.Client.AllAnalytics(ctx, 1, time.Time{})
	if err != nil || len(all.Windows) != 3 || all.Windows[usage.Week].Hero.Calls != 2 {
		t.Errorf("all windows: %+v, %v", all, err)
	}
	direct := usage.NewReport(usage.Overall, w.now)
	if _, err := usage.Parse(strings.NewReader(sample), func(e usage.Event) error { direct.Add(e); return nil }); err != nil {
		t.Fatal(err)
	}
	got2, want := all.Windows[usage.Overall], direct.Snapshot(1)
	a, _ := json.Marshal(got2)
	b, _ := json.Marshal(want)
	if diff := cmp.Diff(string(b), string(a)); diff != "" {
		t.Errorf("through the store and HTTP a report changes (-direct +got):\n%s", diff)
	}
}

func TestWhatWaitsIsFlushedFirst(t *testing.T) {
	w := newWorld(t)
	rec := &usage.Recorder{Sink: w.db}
	w.Handler.Flush = rec.Flush
	rec.Record(usage.Event{Time: w.now, RequestID: "r", API: "gold", Endpoint: "/", Owner: "@me", Directory: "APIs", Caller: "c", Lifecycle: usage.Success, Status: 200, Countable: true})
	if list, err := w.Client.Events(t.Context(), 10); err != nil || len(list) != 1 {
		t.Errorf("an event that was just recorded is not listed: %v %v", list, err)
	}
	w.Handler.Flush = func(context.Context) error { return errors.New("down") }
	if _, err := w.Client.Analytics(t.Context(), usage.Today, 1, time.Time{}); clawr.CodeOf(err) != clawr.CodeInternal {
		t.Errorf("a failed flush gives %v", err)
	}
}

func TestImportIsBounded(t *testing.T) {
	w := newWorld(t)
	w.Handler.MaxImport = int64(len(sample))
	if _, err := w.Client.ImportEvents(t.Context(), strings.NewReader(sample+sample)); clawr.CodeOf(err) != clawr.CodeBodyTooLarge {
		t.Errorf("twice of what is allowed: %v", err)
	}
	if list, _ := w.Client.Events(t.Context(), 1); len(list) != 0 {
		t.Error("an import that was too large left events")
	}
	if got, err := w.Client.ImportEvents(t.Context(), strings.NewReader(sample)); err != nil || got.Added != 3 {
		t.Errorf("just what is allowed: %+v, %v", got, err)
	}
}

func platform(t *testing.T, w *world, public bool) func(path string, header ...string) (int, http.Header, map[string]any) {
	p := NewPlatform(&Platform{Events: w.db, Authorize: Bearer(w.db, func() time.Time { return w.now }), Public: public, Now: func() time.Time { return w.now }})
	return func(path string, header ...string) (int, http.Header, map[string]any) {
		r := httptest.NewRequest("GET", path, nil)
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		rec := httptest.NewRecorder()
		p.ServeHTTP(rec, r)
		return rec.Code, rec.Header(), object(t, rec.Body.Bytes())
	}
}

func token(t *testing.T, w *world, scopes ...string) string {
	t.Helper()
	made, err := w.Client.CreateToken(t.Context(), NewTokenRequest{Scopes: scopes})
	if err != nil {
		t.Fatal(err)
	}
	return "Bearer " + made.Secret
}

func TestPlatformByToken(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Client.ImportEvents(t.Context(), strings.NewReader(sample)); err != nil {
		t.Fatal(err)
	}
	get := platform(t, w, false)
	events, analytics := token(t, w, EventsRead), token(t, w, AnalyticsRead)
	for _, c := range []struct {
		path, auth string
		status     int
		code       string
	}{
		{"/__platform/events", "", 401, "token_missing"},
		{"/__platform/events", analytics, 403, "scope_missing"},
		{"/__platform/events?limit=x", events, 400, "invalid_request"},
		{"/__platform/events?limit=2001", events, 400, "invalid_request"},
		{"/__platform/events?limit=2000", events, 200, ""},
		{"/__platform/analytics", "", 401, "token_missing"},
		{"/__platform/analytics", events, 403, "scope_missing"},
		{"/__platform/analytics?window=month", analytics, 400, "invalid_window"},
		{"/__platform/analytics?window=month", "", 401, "token_missing"},
		{"/__platform/analytics?top=101", analytics, 400, "invalid_request"},
		{"/__platform/analytics?top=100", analytics, 200, ""},
		{"/__platform/secrets", analytics, 404, "not_found"},
	} {
		status, h, got := get(c.path, "Authorization", c.auth)
		if code, _ := got["error"].(string); status != c.status || code != c.code || status == 401 && h.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: %d %v, want %d %s", c.path, status, got, c.status, c.code)
		}
	}
	_, _, got := get("/__platform/events?limit=2", "Authorization", events)
	list := got["events"].([]any)
	if got["ok"] != true || len(list) != 2 || list[1].(map[string]any)["requestId"] != "3" {
		t.Errorf("events, newest last: %v", got)
	}
	_, h, got := get("/__platform/analytics?window=week", "Authorization", analytics)
	if got["window"] != "week" || got["requestId"] != h.Get("X-Request-Id") || got["debug"].(map[string]any)["eventsReceived"] != 3.0 {
		t.Errorf("one window: %v", got)
	}
	_, _, got = get("/__platform/analytics", "Authorization", analytics)
	if windows := got["windows"].(map[string]any); len(windows) != 3 || windows["overall"].(map[string]any)["heroStats"].(map[string]any)["calls"] != 3.0 {
		t.Errorf("no window is all three: %v", got)
	}
}

func TestPublicAnalyticsLeaveThingsOut(t *testing.T) {
	w := newWorld(t)
	if _, err := w.Client.ImportEvents(t.Context(), strings.NewReader(sample)); err != nil {
		t.Fatal(err)
	}
	get := platform(t, w, true)
	status, _, got := get("/__platform/analytics?window=overall")
	b, _ := json.Marshal(got)
	if status != 200 || got["debug"] != nil || strings.Contains(string(b), "caller") && strings.Contains(string(b), "callerId") {
		t.Errorf("%d %s", status, b)
	}
	if got["heroStats"].(map[string]any)["calls"] != 3.0 {
		t.Errorf("%s", b)
	}
	if _, _, got = get("/__platform/analytics?window=overall", "Authorization", token(t, w, AnalyticsRead)); got["debug"] == nil {
		t.Error("a token with the scope sees no debug counts")
	}
	if status, _, got = get("/__platform/analytics?window=overall", "Authorization", "Bearer nonsense"); status != 200 || got["debug"] != nil {
		t.Errorf("a bad token: %d %v; want what everybody sees", status, got)
	}
	if status, _, _ = get("/__platform/events"); status != 401 {
		t.Errorf("public analytics opened the events: %d", status)
	}
}

// counting counts how often all events are read.
type counting struct {
	book
	n int
}

func (c *counting) EachEvent(ctx context.Context, from, to time.Time, fn func(usage.Event) error) error {
	c.n++
	return c.book.EachEvent(ctx, from, to, fn)
}

func TestPublicAnalyticsAreNoWayToKeepTheStoreBusy(t *testing.T) {
	w := newWorld(t)
	events := &counting{book: w.db}
	p := NewPlatform(&Platform{Events: events, Public: true, Now: func() time.Time { return w.now }})
	ask := func() {
		p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/__platform/analytics", nil))
	}
	for range 50 {
		ask()
	}
	if events.n != 1 {
		t.Errorf("50 requests read all events %d times, want once", events.n)
	}
	w.now = w.now.Add(freshness)
	ask()
	if events.n != 2 {
		t.Errorf("the answer is never made again")
	}
}

func TestPaymentsAreShownWithoutTheirSecrets(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.Handler.Assets = []clawr.Asset{{Network: "eip155:31337", Address: "0x00000000000000000000000000000000000000ee", Decimals: 6}}
	tenant, err := w.Client.Deploy(ctx, "gold", w.paid())
	if err != nil {
		t.Fatal(err)
	}
	hash := func(s string) string { return HashSecret(s) }
	for i, payer := range []string{"0x00000000000000000000000000000000000000b1", "0x00000000000000000000000000000000000000b2"} {
		p := ledger.Payment{ID: fmt.Sprint("pay_", i), TenantID: tenant.ID, Version: 1, Route: "/v1/records", Scheme: "exact",
			Key:   ledger.Key{Network: "eip155:31337", Asset: "0x00000000000000000000000000000000000000ee", Payer: payer, Nonce: "0x" + hash(payer)},
			PayTo: someone, Amount: 1500, ValidBefore: 2_000_000_000, Fingerprint: hash("f"), Payload: []byte(`{"secret":"payload"}`), PayloadSHA256: hash("p"),
			SignatureSHA256: hash("signature"), QuoteSHA256: hash("quote"), ClientAddrHash: "address", Policy: ledger.SettleBeforeResponse, Facilitator: "self",
			Counters: []ledger.Counter{{Scope: "spend-day/x", Window: 1, Cost: 1500, Cap: 5000, Code: clawr.CodeCapExceeded}}}
		if _, err := w.db.Reserve(ctx, p, "node", time.Minute); err != nil {
			t.Fatal(err)
		}
		w.now = w.now.Add(time.Second)
	}
	ev := usage.Event{Time: w.now, RequestID: "req_0", TenantID: tenant.ID, API: "gold", Endpoint: "/v1/records", Owner: "@me", Directory: "APIs", Caller: "c", Status: 200, Price: 1500, Units: 1, Lifecycle: usage.Unsettled}
	if err := w.db.Done(ctx, "pay_0", 1, ledger.Answer{Status: 200, Body: []byte("private answer"), SHA256: hash("private answer"), Len: 14, Expires: w.now.Add(time.Hour)}, ev); err != nil {
		t.Fatal(err)
	}
	list, err := w.Client.Payments(ctx, PaymentQuery{})
	if err != nil || len(list) != 2 || list[0].ID != "pay_1" || list[0].Tenant != "gold" || list[0].Amount != "1500" || list[0].AmountUSD != "0.0015" {
		t.Errorf("%+v, %v", list, err)
	}
	for q, want := range map[PaymentQuery]int{
		{Tenant: "gold"}: 2, {Payer: "0x00000000000000000000000000000000000000B1"}: 1, {Money: "held"}: 2, {Money: "mined"}: 0, {Limit: 1}: 1, {Tenant: "gold", Money: "dead"}: 0,
	} {
		if list, err := w.Client.Payments(ctx, q); err != nil || len(list) != want {
			t.Errorf("%+v: %d payments (%v), want %d", q, len(list), err, want)
		}
	}
	p, err := w.Client.Payment(ctx, "pay_0")
	if err != nil || p.Work != ledger.Done || p.Answer == nil || p.Answer.Bytes != 14 || len(p.Counters) != 1 {
		t.Errorf("%+v, %v", p, err)
	}
	_, _, raw := w.call("GET", "/v1/payments/pay_0", "")
	b, _ := json.Marshal(raw)
	for _, secret := range []string{"payload", hash("signature"), hash("quote"), "private answer", `"address"`} {
		if strings.Contains(string(b), secret) {
			t.Errorf("%s\nshows %q", b, secret)
		}
	}
	if _, err := w.Client.Remove(ctx, "gold"); err != nil {
		t.Fatal(err)
	}
	if list, err := w.Client.Payments(ctx, PaymentQuery{Tenant: "gold"}); err != nil || len(list) != 2 {
		t.Errorf("the payments of a removed tenant: %+v, %v", list, err)
	}
}

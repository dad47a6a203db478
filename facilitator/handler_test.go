package facilitator_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// serve is the HTTP face of w's facilitator.
func (w *world) serve(h *facilitator.Handler) *httptest.Server {
	if h == nil {
		h = &facilitator.Handler{}
	}
	h.Facilitator = w.fac
	s := httptest.NewServer(h)
	w.Cleanup(s.Close)
	return s
}

func (w *world) post(url string, body []byte) (int, map[string]any) {
	w.Helper()
	resp, err := http.Post(url, "application/json", bytes.NewReader(body))
	w.ok(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	w.ok(err)
	var out map[string]any
	if err := json.Unmarshal(raw, &out); err != nil {
		w.Fatalf("%s: %q: %v", url, raw, err)
	}
	return resp.StatusCode, out
}

func body(p *x402.PaymentPayload, terms x402.Requirements) []byte {
	q := x402.VerifyRequest{Payload: *p, Requirements: terms}
	return q.JSON()
}

func TestTheHTTPFaceVerifiesAndSettles(t *testing.T) {
	w := newWorld(t)
	s := w.serve(nil)
	p := w.payment()
	status, v := w.post(s.URL+"/verify", body(p, w.terms()))
	if status != 200 || v["isValid"] != true || v["payer"] != x402.Lower(w.payer.Address()) {
		t.Errorf("verify: %d %v", status, v)
	}
	status, first := w.post(s.URL+"/settle", body(p, w.terms()))
	if status != 200 || first["success"] != true || first["network"] != w.asset.Network || first["transaction"] == "" || first["payer"] != x402.Lower(w.payer.Address()) {
		t.Errorf("settle: %d %v", status, first)
	}
	if _, again := w.post(s.URL+"/settle", body(p, w.terms())); again["transaction"] != first["transaction"] || again["success"] != true {
		t.Errorf("settled again: %v", again)
	}
	if status, v := w.post(s.URL+"/verify", body(p, w.terms())); status != 200 || v["isValid"] != false || v["invalidReason"] != string(x402.ReasonNonceUsed) {
		t.Errorf("verify afterwards: %d %v", status, v)
	}
	bad := w.terms()
	bad.Amount = "1001"
	if status, v := w.post(s.URL+"/settle", body(w.payment(), bad)); status != 200 || v["success"] != false || v["errorReason"] != string(x402.ReasonValue) || v["transaction"] != "" {
		t.Errorf("settle of too little: %d %v", status, v)
	}
	if w.spent() != 1 || w.units(w.payTo) != 1000 {
		t.Errorf("%d transactions moved %d units", w.spent(), w.units(w.payTo))
	}
}

func TestTheHTTPFaceSpeaksVersion1(t *testing.T) {
	w := newWorldLikeBaseSepolia(t)
	s := w.serve(nil)
	e, err := x402.ParseExact(w.payment().Payload)
	w.ok(err)
	v1 := fmt.Sprintf(`{"x402Version":1,"paymentPayload":{"x402Version":1,"scheme":"exact","network":"base-sepolia","payload":%s},
		"paymentRequirements":{"scheme":"exact","network":"base-sepolia","maxAmountRequired":"1000","resource":"http://shop/","description":"","mimeType":"",
		"payTo":%q,"maxTimeoutSeconds":90,"asset":%q,"extra":{"name":"USDC","version":"2"}}}`, e.JSON(), w.payTo, w.asset.Address)
	if status, v := w.post(s.URL+"/verify", []byte(v1)); status != 200 || v["isValid"] != true {
		t.Errorf("verify: %d %v", status, v)
	}
	if status, v := w.post(s.URL+"/settle", []byte(v1)); status != 200 || v["success"] != true || v["network"] != "base-sepolia" {
		t.Errorf("settle: %d %v", status, v)
	}
	resp, err := http.Get(s.URL + "/supported")
	w.ok(err)
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	w.ok(err)
	got, err := x402.ParseSupported(raw)
	w.ok(err)
	if len(got.Kinds) != 2 || got.Kinds[0].Network != "eip155:84532" || got.Kinds[1].Network != "base-sepolia" || got.Kinds[1].Version != 1 ||
		len(got.Signers["eip155:*"]) != 1 || !strings.EqualFold(got.Signers["eip155:*"][0], w.node.Key.Address().Hex()) {
		t.Errorf("supported: %s", raw)
	}
}

// What cannot be read is answered as what it is, and never as a verdict with
// status 200 or as our fault.
func TestMustPass10GarbageIsARequestsFault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	s := w.serve(nil)
	good := string(body(w.payment(), w.terms()))
	for _, raw := range []string{"", "null", "[]", "{", `""`, "{}", `{"x402Version":2}`, strings.Replace(good, `"x402Version":2`, `"x402Version":3`, 1),
		strings.Replace(good, `"x402Version":2`, `"x402Version":"2"`, 1), strings.Replace(good, "paymentRequirements", "requirements", 1),
		good + "x", strings.Replace(good, `{"x402Version":2,`, `{"x402Version":2,"x402Version":2,`, 1), strings.Repeat("[", 10_000),
		`{"__proto__":{"isValid":true}}`, "\xff\xfe" + good} {
		for path, member := range map[string]string{"/verify": "isValid", "/settle": "success"} {
			status, v := w.post(s.URL+path, []byte(raw))
			if status != 400 || v[member] != false {
				t.Errorf("%s %.60q: %d %v", path, raw, status, v)
			}
		}
	}
	status, v := w.post(s.URL+"/verify", []byte(`{"x402Version":2,"x":"`+strings.Repeat("a", x402.MaxBody)+`"}`))
	if status != http.StatusRequestEntityTooLarge || v["isValid"] != nil {
		t.Errorf("too long: %d %v", status, v)
	}
	for _, c := range []struct {
		method, path string
		status       int
	}{{"GET", "/verify", 405}, {"PUT", "/settle", 405}, {"POST", "/supported", 405}, {"GET", "/", 404}, {"POST", "/verify/", 404}, {"POST", "//verify", 404}, {"GET", "/health", 200}, {"HEAD", "/supported", 200}} {
		req, err := http.NewRequest(c.method, s.URL+c.path, strings.NewReader("{}"))
		w.ok(err)
		resp, err := http.DefaultClient.Do(req)
		w.ok(err)
		resp.Body.Close()
		if resp.StatusCode != c.status {
			t.Errorf("%s %s: %d, want %d", c.method, c.path, resp.StatusCode, c.status)
		}
	}
	if w.spent() != 0 {
		t.Errorf("%d transactions", w.spent())
	}
}

func TestTokensAreAskedForBeforeAnythingElse(t *testing.T) {
	w := newWorld(t)
	s := w.serve(&facilitator.Handler{Authorize: func(r *http.Request) (string, error) {
		if r.Header.Get("Authorization") == "Bearer good" {
			return "tok_1", nil
		}
		return "", &clawr.Error{Code: clawr.CodeTokenMissing, Message: "a token is needed", Fix: "send Authorization: Bearer"}
	}})
	p := w.payment()
	ask := func(token string) int {
		req, err := http.NewRequest("POST", s.URL+"/settle", bytes.NewReader(body(p, w.terms())))
		w.ok(err)
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		w.ok(err)
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	if got := ask("bad"); got != 401 || w.spent() != 0 {
		t.Errorf("with a bad token: %d, %d transactions", got, w.spent())
	}
	if got := ask("good"); got != 200 {
		t.Errorf("with a good token: %d", got)
	}
	e, err := x402.ParseExact(p.Payload)
	w.ok(err)
	st, err := w.db.Settlement(t.Context(), ledger.Key{Network: w.asset.Network, Asset: w.asset.Address, Payer: e.Payer(), Nonce: e.Nonce.Hex()})
	if err != nil || st == nil || st.RequestedBy != "tok_1" {
		t.Errorf("asked by %+v, %v", st, err)
	}
}

// A slow block is settlement_pending with its transaction, and the identical
// request finds the end, as the reference's server expects.
func TestASlowBlockIsPending(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, devchainOptions(700*time.Millisecond))
	s := w.serve(&facilitator.Handler{Wait: 100 * time.Millisecond})
	p := w.payment()
	var pending, last map[string]any
	asked := make(chan struct{}) // until somebody was told that it is pending, nobody broadcasts it
	var once sync.Once
	release := func() { once.Do(func() { close(asked) }) }
	t.Cleanup(release)
	w.at("broadcast.before", func() { <-asked })
	for end := time.Now().Add(20 * time.Second); last["success"] != true && time.Now().Before(end); {
		_, last = w.post(s.URL+"/settle", body(p, w.terms()))
		if last["errorReason"] == "settlement_pending" {
			pending = last
			release()
		}
	}
	if pending["success"] != false || pending["transaction"] == "" {
		t.Errorf("before the block: %v", pending)
	}
	if last["success"] != true || last["transaction"] != pending["transaction"] || w.spent() != 1 {
		t.Errorf("%v after %v, %d transactions", last, pending, w.spent())
	}
}

// A client that hangs up does not cut the settlement short.
func TestAHangUpDoesNotCancelASettlement(t *testing.T) {
	w := newWorld(t)
	s := w.serve(nil)
	p := w.payment()
	client := &http.Client{}
	w.at("t3.after", func() { client.CloseIdleConnections() })
	req, err := http.NewRequestWithContext(t.Context(), "POST", s.URL+"/settle", bytes.NewReader(body(p, w.terms())))
	w.ok(err)
	ctx, cancel := contextWithCancel(t)
	w.at("preflight", cancel)
	if resp, err := client.Do(req.WithContext(ctx)); err == nil {
		resp.Body.Close()
	}
	for range 200 {
		if w.units(w.payTo) == 1000 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if got := w.units(w.payTo); got != 1000 {
		t.Errorf("the shop has %d units", got)
	}
}

// judge is a facilitator that has seen everything that came through.
type judge struct{ seen *x402.PaymentPayload }

func (j *judge) Verify(_ context.Context, p *x402.PaymentPayload, _ x402.Requirements) (x402.VerifyResponse, error) {
	j.seen = p
	return x402.VerifyResponse{IsValid: true}, nil
}

func (j *judge) SettleFor(_ context.Context, r facilitator.Request) (ledger.Outcome, error) {
	j.seen = r.Payload
	return ledger.Outcome{State: ledger.Unknown}, nil
}

func (j *judge) VerifyChannel(_ context.Context, p *x402.PaymentPayload, _ x402.Requirements) (x402.VerifyResponse, error) {
	j.seen = p
	return x402.VerifyResponse{}, nil
}

func (j *judge) SettleChannel(_ context.Context, p *x402.PaymentPayload, _ x402.Requirements) (x402.SettleResponse, error) {
	j.seen = p
	return x402.SettleResponse{}, nil
}

func (j *judge) Supported() x402.SupportedResponse { return x402.SupportedResponse{} }

// FuzzHandler sends anything: what is not a payment never reaches the
// facilitator, and is always the request's fault.
func FuzzHandler(f *testing.F) {
	f.Add("/verify", []byte(`{"x402Version":2,"paymentPayload":{"x402Version":2,"accepted":{"scheme":"exact","network":"eip155:1","amount":"1","asset":"0x00","payTo":"0x00","maxTimeoutSeconds":60},"payload":{}},"paymentRequirements":{"scheme":"exact","network":"eip155:1","amount":"1","asset":"0x00","payTo":"0x00","maxTimeoutSeconds":60}}`))
	f.Add("/settle", []byte(`{"x402Version":1,"paymentPayload":{"x402Version":1,"scheme":"exact","network":"base","payload":{}},"paymentRequirements":{"scheme":"exact","network":"base","maxAmountRequired":"1","resource":"http://x","description":"","mimeType":"","payTo":"0x00","maxTimeoutSeconds":60,"asset":"0x00"}}`))
	f.Add("/settle", []byte(`{}`))
	f.Add("/verify", []byte(`[[[[`))
	f.Fuzz(func(t *testing.T, path string, raw []byte) {
		if path != "/settle" {
			path = "/verify"
		}
		j := &judge{}
		rec := httptest.NewRecorder()
		(&facilitator.Handler{Facilitator: j, Log: slog.New(slog.DiscardHandler)}).ServeHTTP(rec, httptest.NewRequest("POST", path, bytes.NewReader(raw)))
		var v struct{ IsValid, Success *bool }
		if err := json.Unmarshal(rec.Body.Bytes(), &v); err != nil {
			t.Fatalf("answer %q: %v", rec.Body, err)
		}
		verdict := v.IsValid != nil || v.Success != nil
		switch {
		case (rec.Code == 200) != (j.seen != nil):
			t.Errorf("%d for %q, and the facilitator saw %+v", rec.Code, raw, j.seen)
		case rec.Code != 200 && rec.Code != 400 && rec.Code != 413, rec.Code != 413 && !verdict:
			t.Errorf("%d %s for %q", rec.Code, rec.Body, raw)
		}
	})
}

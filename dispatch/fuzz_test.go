package dispatch_test

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// FuzzServeHTTP sends what a stranger may send: any method, host, target and
// headers. It is never answered with a 5xx, and never with what is for sale.
func FuzzServeHTTP(f *testing.F) {
	for _, target := range []string{"/t/acme/v1/records?limit=1", "/v1/records", "/t/acme/v1/free", "/t/acme", "/t/", "/", "//", "/t/acme/v1/%2frecords", "/t/acme/v1/records?bad=1",
		"/t/acme/v1/records;x", "/t/acme/%", "/t/acme/v1/records/%00?q=%zz", "*", "/t/acme/v1/bulk?n=9223372036854775807", "/t/acme/v1/bulk?n=-1"} {
		f.Add("GET", "api.example.com", target, "", "", "", "")
	}
	good := `{"x402Version":2,"accepted":{"scheme":"exact","network":"eip155:84532","amount":"1000","asset":"` + usdc.Address + `","payTo":"` + payTo +
		`","maxTimeoutSeconds":63,"extra":{"name":"USDC","version":"2"}},"payload":{"signature":"0x` + strings.Repeat("11", 65) + `","authorization":{"from":"` + payTo +
		`","to":"` + payTo + `","value":"1000","validAfter":"0","validBefore":"99999999999","nonce":"0x` + strings.Repeat("22", 32) + `"}}}`
	v1 := `{"x402Version":1,"scheme":"exact","network":"base-sepolia",` + good[strings.Index(good, `"payload"`):]
	f.Add("GET", "api.example.com", "/t/acme/v1/records", "Payment-Signature", good, "", "")
	f.Add("GET", "acme.example.com", "/v1/records", "X-Payment", v1, "X-Payment", v1)
	f.Add("HEAD", "ACME.example.com.:80", "/v1/records", "If-None-Match", `"x", W/"y", *`, "Accept", "text/html")
	f.Add("OPTIONS", "", "*", "Origin", "null", "Access-Control-Request-Headers", "payment-signature")
	f.Add("POST", "[::1]:443", "/t/fn/v1/run", "Content-Length", "-1", "Transfer-Encoding", "chunked")
	f.Add("get", "a:b:c", "/t/acme/v1/records", "Payment-Signature", "{", "Payment-Signature", "}")

	w := newWorld(f)
	w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction}})
	w.deploy(clawr.Tenant{Slug: "limited", Manifest: clawr.Manifest{Price: price, X402: true, Usage: clawr.Quota{Daily: 1 << 40}, Rate: clawr.Rates{PerCaller: clawr.Rate{Requests: 1 << 30, WindowSeconds: 1}}}})
	w.d.Usage = unrecorded{}
	f.Fuzz(func(t *testing.T, method, host, target, name1, value1, name2, value2 string) {
		w.TB = t
		u, err := url.ParseRequestURI(target)
		if err != nil {
			u = new(url.URL)
			u.Path, u.RawQuery, _ = strings.Cut(target, "?")
		}
		r := &http.Request{Method: method, URL: u, Host: host, Header: http.Header{}, Body: http.NoBody, RemoteAddr: "192.0.2.1:1", Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1}
		for _, h := range [][2]string{{name1, value1}, {name2, value2}} {
			if k := http.CanonicalHeaderKey(h[0]); strings.HasSuffix(k, "Payment") || strings.HasPrefix(k, "Payment") {
				if strings.HasPrefix(h[1], "{") { // JSON is easier to change than its base64
					h[1] = base64.StdEncoding.EncodeToString([]byte(h[1]))
				}
				r.Header.Add(k, h[1])
			} else {
				r.Header.Add(k, h[1])
			}
		}
		ran := w.shop.total()
		rec := w.record(r.WithContext(t.Context()))
		path := u.EscapedPath()
		switch {
		case rec.Code >= 500 && !strings.HasSuffix(path, "/v1/panic") && !strings.HasSuffix(path, "/v1/bulk"): // the faults of a worker
			t.Errorf("%s %q: %d %s", method, target, rec.Code, rec.Body)
		case strings.Contains(rec.Body.String(), `"asked"`) && !strings.HasSuffix(path, "/v1/free") && !strings.HasSuffix(path, "/v1/bulk"):
			t.Errorf("%s %q gave %s", method, target, rec.Body)
		case rec.Code == 200 && (strings.HasSuffix(path, "/v1/records") || strings.HasSuffix(path, "/v1/run")) && method != "OPTIONS":
			t.Errorf("%s %q: 200 without payment", method, target)
		case rec.Code == 402:
			if _, err := x402.ParseRequired(rec.Header().Get("Payment-Required")); err != nil {
				t.Errorf("%s %q: a challenge that cannot be read: %v", method, target, err)
			}
		}
		if n := w.shop.total() - ran; n > 0 && rec.Code != 200 && rec.Code < 500 {
			t.Errorf("%s %q: the worker ran for a %d", method, target, rec.Code)
		}
		if rec.Header().Get("X-Request-Id") == "" || rec.Code == 0 {
			t.Errorf("%s %q: no answer", method, target)
		}
	})
}

type unrecorded struct{}

func (unrecorded) Record(e usage.Event) {}

// FuzzPayment changes a payment that would be taken, byte by byte: either it is
// the same payment, or nothing is sold for it.
func FuzzPayment(f *testing.F) {
	w := newWorld(f)
	w.d.Usage = unrecorded{}
	k := key(f)
	fresh := func() string {
		b, err := base64.StdEncoding.DecodeString(w.signed(k, w.get("").required()).Header())
		w.ok(err)
		return string(b)
	}
	f.Add(0, 0, "", false)
	for _, word := range []string{`"amount":"1000"`, `"value":"1000"`, `"payTo"`, `"nonce":"0x`, `"quote":"`, `"signature":"0x`, `"validBefore":"`, `"asset"`, `"network"`, `"extra":{`} {
		at := strings.Index(fresh(), word)
		f.Add(at, len(word), "", false)
		f.Add(at+len(word)-1, 1, "0", false)
		f.Add(at, 0, `"x":1,`, false)
	}
	f.Fuzz(func(t *testing.T, at, cut int, insert string, v1 bool) {
		w.TB = t
		p := fresh()
		if at < 0 || at > len(p) || cut < 0 || cut > len(p)-at {
			t.Skip()
		}
		changed := p[:at] + insert + p[at+cut:]
		before := len(w.till.transfers())
		q := request{pay: base64.StdEncoding.EncodeToString([]byte(changed)), v1: v1}
		a := w.send(q)
		sold := len(w.till.transfers()) - before
		if a.Code >= 500 || (a.Code == 200) != (sold == 1) {
			t.Fatalf("%d, %d sold: %s\n%s", a.Code, sold, a.Body, changed)
		}
		if sold == 0 {
			return
		}
		// It was taken: then its payer signed exactly this transfer.
		row := w.row(q)
		if row.Payer != address(k) || row.Amount != price || row.PayTo != payTo || row.Money != ledger.Mined {
			t.Fatalf("sold for %+v\n%s", row, changed)
		}
		// Its original is the same payment, and buys nothing more.
		if b := w.send(request{pay: base64.StdEncoding.EncodeToString([]byte(p)), v1: false}); b.Code == 402 && !strings.Contains(changed, `"nonce":"`+row.Nonce) {
			return
		} else if len(w.till.transfers())-before != 1 {
			t.Fatalf("two payments were made of one: %d\n%s", b.Code, changed)
		}
	})
}

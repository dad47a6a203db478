package dispatch_test

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// raw sends bytes to a real server and gives its answer.
func raw(t testing.TB, addr, head string) *http.Response {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, head); err != nil {
		t.Fatal(err)
	}
	method, _, _ := strings.Cut(head, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	b, _ := io.ReadAll(res.Body)
	res.Body = io.NopCloser(strings.NewReader(string(b)))
	return res
}

// serve puts the dispatcher behind a real server.
func (w *world) serve() string {
	s := httptest.NewUnstartedServer(w.d)
	s.Config.MaxHeaderBytes = 32 << 10
	s.Start()
	w.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func TestMustPass09PathAndMethodTricks(t *testing.T) {
	w := newWorld(t)
	addr := w.serve()
	for _, c := range []struct {
		line   string // method and target
		status int    // 0: any refusal
	}{
		{"GET /t/acme/v1/records", 402},
		{"HEAD /t/acme/v1/records", 402},
		{"POST /t/acme/v1/records", 405},
		{"PUT /t/acme/v1/records", 405},
		{"get /t/acme/v1/records", 405},
		{"HEAD /t/acme/v1/records?bad=1", 402},
		{"GET /t/acme/v1/records?", 402},
		{"GET /t/acme/v1/records#x", 0},
		{"GET /t/acme/v1/records/", 402}, // a record whose key is empty
		{"GET /t/acme/v1/records%2f", 404},
		{"GET /t/acme/v1%2frecords", 404},
		{"GET /t/acme%2fv1/records", 404},
		{"GET /t/acme/v1/record%73", 404},
		{"GET /t/acme/v1/records%0a", 404},
		{"GET /t/acme/v1/records%00", 404},
		{"GET /t/acme//v1/records", 404},
		{"GET //t/acme/v1/records", 404},
		{"GET /t/acme/v1//records", 404},
		{"GET /t//v1/records", 404},
		{"GET /T/acme/v1/records", 404},
		{"GET /t/ACME/v1/records", 404},
		{"GET /t/acme/V1/records", 404},
		{"GET /t/acme/v1/RECORDS", 404},
		{"GET /t/acme/v1/records;x", 404},
		{"GET /t/acme/v1/./records", 404},
		{"GET /t/acme/v1/x/../records", 404},
		{"GET /t/x/../acme/v1/records", 404},
		{"GET /t/acme/v1/records/a/b", 404},
		{"GET /t/acme/v1/records/a%2fb", 402},
		{"GET http://acme.example.com/v1/records", 402},
		{"GET http://other.example.com/t/acme/v1/records", 402},
		{"CONNECT /t/acme/v1/records", 405},
		{"CONNECT acme.example.com:443", 404},
		{"TRACE /t/acme/v1/records", 405},
		{"GET /t/acme", 404},
		{"GET /t/", 404},
		{"GET *", 0},
	} {
		res := raw(t, addr, c.line+" HTTP/1.1\r\nHost: api.example.com\r\nConnection: close\r\n\r\n")
		b, _ := io.ReadAll(res.Body)
		if c.status != 0 && res.StatusCode != c.status || res.StatusCode >= 500 || res.StatusCode == 200 || strings.Contains(string(b), "asked") {
			t.Errorf("%s: %s %s, want %d", c.line, res.Status, b, c.status)
		}
		if res.StatusCode == 402 && res.Header.Get("PAYMENT-REQUIRED") == "" {
			t.Errorf("%s: a 402 that asks for nothing", c.line)
		}
	}
	for _, host := range []string{"acme.example.com", "ACME.example.com", "acme.example.com.", "acme.example.com:8080"} {
		if res := raw(t, addr, "GET /v1/records HTTP/1.1\r\nHost: "+host+"\r\n\r\n"); res.StatusCode != 402 {
			t.Errorf("host %s: %s", host, res.Status)
		}
	}
	// A host is all its tenant's: no way from there to another one.
	w.deploy(clawr.Tenant{Slug: "other"})
	if res := raw(t, addr, "GET /t/other/v1/records HTTP/1.1\r\nHost: acme.example.com\r\n\r\n"); res.StatusCode != 404 {
		t.Errorf("another tenant by the path of a host: %s", res.Status)
	}
	w.untouched()

	// HEAD costs what GET costs, and one does not pay for the other.
	head := w.payment(request{method: "HEAD"})
	w.send(head).is(200, "").has("Content-Length", fmt.Sprint(len(w.send(w.payment(request{})).Body.String())))
	if w.send(head).Body.Len() > 0 {
		t.Error("HEAD has a body")
	}
	head.method = "GET"
	w.send(head).is(409, clawr.CodeBoundElsewhere)
}

func TestMustPass10HostileHeaders(t *testing.T) {
	w := newWorld(t)
	good := w.payment(request{}).pay
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	plain, err := base64.StdEncoding.DecodeString(good)
	w.ok(err)
	with := func(old, new string) string { return b64(strings.Replace(string(plain), old, new, 1)) }
	for name, c := range map[string]struct {
		header http.Header
		status int
	}{
		"empty":             {http.Header{"Payment-Signature": {""}}, 400},
		"spaces":            {http.Header{"Payment-Signature": {"   "}}, 400},
		"no base64":         {http.Header{"Payment-Signature": {"{}"}}, 400},
		"url-safe":          {http.Header{"Payment-Signature": {"_-_-"}}, 400},
		"unpadded":          {http.Header{"Payment-Signature": {strings.TrimRight(b64("{} "), "=")}}, 400},
		"no JSON":           {http.Header{"Payment-Signature": {b64("hello")}}, 400},
		"no object":         {http.Header{"Payment-Signature": {b64("[]")}}, 400},
		"null":              {http.Header{"Payment-Signature": {b64("null")}}, 400},
		"empty object":      {http.Header{"Payment-Signature": {b64("{}")}}, 400},
		"two objects":       {http.Header{"Payment-Signature": {b64(string(plain) + string(plain))}}, 400},
		"invalid UTF-8":     {http.Header{"Payment-Signature": {b64("{\"x402Version\":2,\"a\":\"\xff\"}")}}, 400},
		"version 3":         {http.Header{"Payment-Signature": {with(`"x402Version":2`, `"x402Version":3`)}}, 400},
		"version twice":     {http.Header{"Payment-Signature": {with(`{"x402Version":2`, `{"x402Version":2,"x402Version":2`)}}, 400},
		"deep":              {http.Header{"Payment-Signature": {b64(strings.Repeat("[", 5000) + strings.Repeat("]", 5000))}}, 400},
		"deep extension":    {http.Header{"Payment-Signature": {with(`{"x402Version":2`, `{"extensions":{"a":`+strings.Repeat("[", 200)+strings.Repeat("]", 200)+`},"x402Version":2`)}}, 400},
		"members":           {http.Header{"Payment-Signature": {b64("{" + strings.TrimSuffix(strings.Repeat(`"a":1,`, 1000), ",") + "}")}}, 400},
		"over 16 KB":        {http.Header{"Payment-Signature": {b64(strings.Repeat("A", 13<<10))}}, 431},
		"twice":             {http.Header{"Payment-Signature": {good, good}}, 400},
		"both":              {http.Header{"Payment-Signature": {good}, "X-Payment": {good}}, 400},
		"twice X-PAYMENT":   {http.Header{"X-Payment": {good, good}}, 400},
		"no authorization":  {http.Header{"Payment-Signature": {with(`"authorization"`, `"other"`)}}, 400},
		"payload is a list": {http.Header{"Payment-Signature": {with(`"payload":{`, `"payload":[{`)}}, 400},
		"nonce too short":   {http.Header{"Payment-Signature": {with(`"nonce":"0x`, `"nonce":"0xzz`)}}, 400},
		"from is a name":    {http.Header{"Payment-Signature": {with(`"from":"0x`, `"from":"ann`)}}, 400},
		"permit2":           {http.Header{"Payment-Signature": {with(`"authorization"`, `"permit2Authorization"`)}}, 400},
		"__proto__":         {http.Header{"Payment-Signature": {with(`"extra":{`, `"extra":{"__proto__":{"name":"x"},"constructor":1,`)}}, 0},
		"sign-in":           {http.Header{"Sign-In-With-X": {"garbage"}}, 402},
	} {
		a := w.send(request{header: c.header})
		if c.status == 0 {
			// An unknown member of extra may be there: it is no way to be somebody else.
			a.is(200, "")
			w.sold(1, 1)
			continue
		}
		if a.Code != c.status {
			t.Errorf("%s: %d %s, want %d", name, a.Code, a.Body, c.status)
		}
		if a.Code == 400 {
			a.is(400, clawr.CodeBadHeader).has("PAYMENT-REQUIRED", "", "X-Tenant-Id", "*", "X-Request-Id", "*")
			if e := w.event(a); e.Lifecycle != "payment_invalid" || e.Countable || e.Billable || e.Endpoint != "/v1/records" {
				t.Errorf("%s: event %+v", name, e)
			}
		}
	}
	addr := w.serve()
	res := raw(t, addr, "GET /t/acme/v1/records HTTP/1.1\r\nHost: x\r\nPAYMENT-SIGNATURE: "+strings.Repeat("A", 64<<10)+"\r\n\r\n")
	if res.StatusCode != 431 {
		t.Errorf("64 KB of header: %s", res.Status)
	}
}

// A challenge is what x402's own encoder makes of the same content, byte for
// byte, whatever a tenant and a caller put into it.
func TestChallengesAreWhatTheEncoderMakes(t *testing.T) {
	for _, network := range []string{"eip155:84532", "eip155:31337"} {
		w := newWorld(t)
		w.d.Asset.Network = network
		for _, description := range []string{"", "Prices of gold", `{quote} {url} "quoted" <b>&amp; \ ` + "\u2028\t\n", strings.Repeat("ä", 400)} {
			w.deploy(clawr.Tenant{Slug: "acme", Hosts: []string{"acme.example.com"}, Manifest: clawr.Manifest{Description: description, Price: price, X402: true}})
			for _, q := range []request{
				{}, {path: "/t/acme/v1/records?a=1&b=2"}, {host: "acme.example.com", path: "/v1/records/a%20b?q=%22x%22"},
				{path: "/t/acme/v1/records?q=\"x\"<b>\\\x7f\xff\u00e4{quote}{url}"}, {path: "/t/acme/v1/records?q=" + strings.Repeat("x", 5000)},
				w.forge(request{}, func(f *forged) { f.auth.Value = x402.Uint(1) }),
			} {
				a := w.send(q)
				required := a.required()
				if got := required.Header(); got != a.Header().Get("PAYMENT-REQUIRED") {
					t.Errorf("%s: the header is not what the encoder makes:\n%s\n%s", q.path, a.Header().Get("PAYMENT-REQUIRED"), got)
				}
				if !strings.Contains(a.Body.String(), `,"accepts":`+string(required.AppendAccepts(nil))+`,"clawr":`) {
					t.Errorf("%s: the body's accepts are not what the encoder makes:\n%s\n%s", q.path, a.Body, required.AppendAccepts(nil))
				}
				if n := len(a.Header().Get("PAYMENT-REQUIRED")); n > 4<<10 {
					t.Errorf("%s: PAYMENT-REQUIRED has %d bytes", q.path[:20], n)
				}
				if len(description) < 300 && required.Resource.Description != description {
					t.Errorf("description %q became %q", description, required.Resource.Description)
				}
			}
		}
	}
}

// Listings read how a route is asked from its challenge, as long as that stays
// small enough for proxies.
func TestAChallengeSaysHowItsRouteIsAsked(t *testing.T) {
	w := newWorld(t)
	for path, want := range map[string]string{"/t/acme/v1/records": bazaar, "/t/acme/v1/records?limit=1": bazaar, "/t/acme/v1/records?nope&bad=1": bazaar,
		"/t/acme/v1/records/1": "", "/t/acme/v1/bulk?n=2": "", "/t/acme/v1/records?q=" + strings.Repeat("x", 900): ""} {
		says := w.get(path).is(402, clawr.CodeMissingPayment).required().Extensions
		if got := says.Find("bazaar"); string(got) != want {
			t.Errorf("%.40s says %.100s, want %.100s", path, got, want)
		}
		if says.Find(x402.PaymentIdentifier) == nil {
			t.Errorf("%.40s does not offer payment-identifier", path)
		}
	}
	w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction, Price: price, X402: true}})
	if got := w.get("/t/fn/v1/records").required().Extensions.Find("bazaar"); got != nil {
		t.Errorf("a function that says nothing of itself has %s", got)
	}
}

func TestTheResourceIsTheURLThatWasAsked(t *testing.T) {
	w := newWorld(t)
	url := func(q request) string { return w.send(q).is(402, clawr.CodeMissingPayment).required().Resource.URL }
	check := func(got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("resource %s, want %s", got, want)
		}
	}
	check(url(request{}), "http://api.example.com/t/acme/v1/records?limit=1")
	check(url(request{host: "acme.example.com:8080", path: "/v1/records"}), "http://acme.example.com:8080/v1/records")
	check(url(request{host: `evil"<x>`}), "http://evil%22%3Cx%3E/t/acme/v1/records?limit=1")
	check(url(request{path: "/t/acme/v1/records/" + strings.Repeat("x", 2000)}), "http://api.example.com")
	check(url(request{host: strings.Repeat("h", 300)}), "http://"+strings.Repeat("h", 255)+"/t/acme/v1/records?limit=1")
	w.d.PublicURL = "https://api.402.example/"
	check(url(request{host: "evil.example"}), "https://api.402.example/t/acme/v1/records?limit=1")
	check(url(request{host: "acme.example.com", path: "/v1/records"}), "https://acme.example.com/v1/records")
	w.d.Scheme = "http"
	check(url(request{host: "acme.example.com", path: "/v1/records"}), "http://acme.example.com/v1/records")
}

func TestCallersAreNamedByAddressAndHashed(t *testing.T) {
	w := newWorld(t)
	caller := func(from string) string { return w.event(w.send(request{from: from})).Caller }
	one := caller("203.0.113.7")
	if len(one) != 16 || strings.Contains(one, "203") {
		t.Errorf("caller %q", one)
	}
	if caller("203.0.113.7") != one || caller("203.0.113.8") == one {
		t.Error("callers by IPv4 address are mixed up")
	}
	if caller("::ffff:203.0.113.7") != one {
		t.Error("an IPv4 address in IPv6's form is another caller")
	}
	if a := caller("2001:db8:1:2::1"); a != caller("2001:db8:1:2:ffff::9") || a == caller("2001:db8:1:3::1") {
		t.Error("IPv6 callers are not told apart by their /64")
	}
	q := w.payment(request{})
	paid := w.event(w.send(q)).Caller
	if paid == one || strings.Contains(paid, w.row(q).Payer[2:10]) {
		t.Errorf("the payer is %q", paid)
	}
	for _, e := range w.events() {
		if len(e.Caller) != 16 {
			t.Errorf("event with caller %q", e.Caller)
		}
	}
}

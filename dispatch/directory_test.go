package dispatch_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/x402"
)

// opening counts how often a worker is opened.
type opening struct {
	dispatch.Workers
	mu sync.Mutex
	n  map[int64]int // by version
}

func (o *opening) Open(ctx context.Context, t *clawr.Tenant) (dispatch.Worker, error) {
	o.mu.Lock()
	o.n[t.Version]++
	o.mu.Unlock()
	return o.Workers.Open(ctx, t)
}

func TestWorkersOutliveReloads(t *testing.T) {
	w := newWorld(t)
	o := &opening{Workers: w.shop, n: map[int64]int{}}
	w.d.Workers = o
	old := w.payment(request{})
	for range 3 {
		w.get("/t/acme/v1/free").is(200, "")
		w.deploy(clawr.Tenant{Slug: "other"}) // reloads
	}
	if o.n[1] != 1 {
		t.Errorf("version 1 was opened %d times", o.n[1])
	}
	w.deploy(clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Content: "new", Price: price, X402: true}})
	for range 3 {
		w.send(old).is(200, "") // by a version that is not on sale any more
		w.reload()
	}
	if o.n[1] != 2 || o.n[2] > 1 {
		t.Errorf("opened by version: %v", o.n)
	}
}

func TestADispatcherWithoutADirectoryKnowsNobody(t *testing.T) {
	w := newWorld(t)
	good := w.payment(request{})
	w.d.Directory = &dispatch.Directory{}
	w.get("/t/acme/v1/records").is(404, clawr.CodeTenantNotFound)
	w.send(good).is(404, clawr.CodeTenantNotFound)
	if w.d.Directory.HasHost("acme.example.com") {
		t.Error("it knows a host")
	}
	w.reload()
	for host, has := range map[string]bool{"acme.example.com": true, "ACME.EXAMPLE.COM:80": true, "acme.example.com.": true, "example.com": false, "": false, "[::1]:80": false} {
		if w.d.Directory.HasHost(host) != has {
			t.Errorf("HasHost(%q) is %v", host, !has)
		}
	}
}

func TestARemovedTenantHasNoHosts(t *testing.T) {
	w := newWorld(t)
	w.status("acme", clawr.StatusPaused)
	if !w.d.Directory.HasHost("acme.example.com") {
		t.Error("a paused tenant lost its host")
	}
	w.status("acme", clawr.StatusRemoved)
	if w.d.Directory.HasHost("acme.example.com") {
		t.Error("a removed tenant kept its host")
	}
}

// watched is a body that says whether it was read.
type watched struct {
	io.Reader
	read bool
}

func (b *watched) Read(p []byte) (int, error) { b.read = true; return b.Reader.Read(p) }
func (*watched) Close() error                 { return nil }

// A stranger's body is not read before he has shown that he pays.
func TestBodiesOfStrangersAreNotRead(t *testing.T) {
	w := newWorld(t)
	w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction}})
	run := request{method: "POST", path: "/t/fn/v1/run"}
	body := strings.Repeat("x", 1000)
	bought := w.payment(run)
	bought.body = body
	w.send(bought).is(200, "")
	unsigned := w.forge(run, func(f *forged) { f.sign = func([]byte) []byte { return make([]byte, 65) } })
	poor := w.payment(run)
	w.till.balance[w.payer(poor)] = 0
	for name, c := range map[string]struct {
		q    request
		read bool
		code int
	}{
		"no payment":       {run, false, 402},
		"a bad header":     {request{method: "POST", path: run.path, pay: "?"}, false, 400},
		"a bad signature":  {unsigned, false, 402},
		"no money":         {poor, false, 402},
		"a stolen payment": {w.stolenFrom(bought), false, 409},
		"a resend":         {bought, true, 200},
		"a new payment":    {w.payment(run), true, 200},
	} {
		b := &watched{Reader: strings.NewReader(body)}
		c.q.body = ""
		r := c.q.http()
		r.Body, r.ContentLength = b, -1
		if rec := w.record(r); rec.Code != c.code || b.read != c.read {
			t.Errorf("%s: %d, body read: %v", name, rec.Code, b.read)
		}
	}
}

// payer is who pays by q.
func (w *world) payer(q request) string {
	p, err := x402.ParsePayment(q.pay)
	w.ok(err)
	e, err := x402.ParseExact(p.Payload)
	w.ok(err)
	return e.Payer()
}

func TestIfNoneMatch(t *testing.T) {
	w := newWorld(t)
	q := w.payment(request{})
	tag := w.send(q).Header().Get("ETag")
	for match, status := range map[string]int{tag: 304, "W/" + tag: 304, `"a", ` + tag: 304, tag + `,"b"`: 304, "*": 402, `"a"`: 402, "": 402, strings.Trim(tag, `"`): 402, `"*"`: 402} {
		for _, method := range []string{"GET", "HEAD"} {
			a := w.send(request{method: method, header: http.Header{"If-None-Match": {match}}})
			if a.Code != status || a.Code == 304 && (a.Body.Len() > 0 || a.Header().Get("ETag") != tag) {
				t.Errorf("If-None-Match: %s: %s %d %v", match, method, a.Code, a.Header())
			}
		}
	}
	held := http.Header{"If-None-Match": {tag}}
	w.send(request{path: "/t/acme/v1/records?limit=2", header: held}).is(402, clawr.CodeMissingPayment)
	w.send(request{path: "/t/acme/v1/records?bad=1", header: held}).is(402, clawr.CodeMissingPayment)
	// Whoever pays for what he holds already keeps his money.
	again := w.payment(request{})
	again.header = held
	w.send(again).is(304, "")
	if w.row(again) != nil {
		t.Error("a 304 was charged")
	}
	// And whoever has paid gets what he paid for.
	q.header = held
	w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
	w.deploy(clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Content: "new", Price: price, X402: true}})
	w.send(request{header: held}).is(402, clawr.CodeMissingPayment)
	w.sold(1, 1)
}

func TestChallengesFollowTheUnits(t *testing.T) {
	w := newWorld(t)
	for range 2 {
		for n, want := range map[string]string{"1": "1000", "3": "3000", "1000000": "1000000000"} {
			if got := w.get("/t/acme/v1/bulk?n=" + n).required().Accepts[0].Amount; got != want {
				t.Errorf("%s units cost %s, want %s", n, got, want)
			}
		}
	}
	// A quote is for an amount: it does not buy more.
	three := w.payment(request{path: "/t/acme/v1/bulk?n=3"})
	one := w.payment(request{path: "/t/acme/v1/bulk?n=1"})
	w.send(request{path: "/t/acme/v1/bulk?n=3", pay: one.pay}).is(402, x402.ReasonValue)
	w.send(request{path: "/t/acme/v1/bulk?n=1", pay: three.pay}).is(402, x402.ReasonValue)
	w.untouched()
	w.get("/t/acme/v1/bulk?n=0").is(200, "")
	w.get("/t/acme/v1/bulk?n=-1").is(502, clawr.CodeWorkerFailure)
}

// What is sold at the edge is sold there alone: a node that took its payments
// too would be a second book of one address.
func TestANodeDoesNotSellForTheEdge(t *testing.T) {
	w := newWorld(t)
	w.deploy(clawr.Tenant{Slug: "edgy", Hosts: []string{"edgy.example.com"}, Manifest: clawr.Manifest{Home: clawr.HomeEdge, PayTo: "0x00000000000000000000000000000000000000ed"}})
	for _, path := range []string{"/t/edgy/v1/records", "/t/edgy/v1/free"} {
		w.get(path).is(404, clawr.CodeTenantNotFound)
	}
	q := w.payment(request{})
	q.path = "/t/edgy/v1/records"
	w.send(q).is(404, clawr.CodeTenantNotFound)
	if row := w.row(q); row != nil {
		t.Errorf("reserved: %+v", row)
	}
}

package dispatch_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/x402"
)

// The dispatcher's part of 14: fifty distinct payments at once, under every
// policy, are fifty transfers, and a reorganisation takes back what it undid
// and nothing else.
func TestMustPass14FiftyAtOnceAndAReorganisation(t *testing.T) {
	c := newChainWorld(t)
	shops := c.sells()
	c.d.Deadline = 30 * time.Second
	total := 0
	for policy, shop := range shops {
		qs := make([]request, 50)
		for i := range qs {
			qs[i] = c.buy(fmt.Sprintf("%s/v1/records?metal=gold&limit=%d", shop, 1+i))
		}
		for i, a := range c.atOnce(qs...) {
			if a.Code != 200 || !leaks(a) {
				t.Fatalf("%s, payment %d: %d %s", policy, i, a.Code, a.Body)
			}
		}
		total += len(qs)
		c.settled(total)
		// The block of one is lost.
		q := qs[7]
		row := c.row(q)
		lost := ledger.Block{Number: row.BlockNumber, Hash: row.BlockHash}
		if row.Money == ledger.Final {
			continue // too late
		}
		if _, err := c.db.UnmineBlock(t.Context(), row.Network, lost); err != nil {
			t.Fatal(err)
		}
		a := c.send(q)
		if a.Header().Get("PAYMENT-REQUIRED") != "" {
			t.Fatalf("%s: asked for another payment: %d %s", policy, a.Code, a.Body)
		}
		c.until("the same block again", func() bool { return c.send(q).Code == 200 })
		c.settled(total)
	}
}

// The dispatcher's part of 19: tenants are apart in what they are paid for, to
// whom, and how much.
func TestMustPass19Tenants(t *testing.T) {
	const theirs = "0x00000000000000000000000000000000000000b2"
	t.Run("no payTo is redirected", func(t *testing.T) {
		w := newWorld(t)
		w.deploy(clawr.Tenant{Slug: "other", Manifest: clawr.Manifest{PayTo: theirs}})
		w.deploy(clawr.Tenant{Slug: "twin", Manifest: clawr.Manifest{}}) // the same payTo as acme
		for name, change := range map[string]func(*forged){
			"payTo":        func(f *forged) { f.Accepted.PayTo = theirs },
			"recipient":    func(f *forged) { f.auth.To = [20]byte{19: 0xb2} },
			"both":         func(f *forged) { f.Accepted.PayTo, f.auth.To = theirs, [20]byte{19: 0xb2} },
			"and no quote": func(f *forged) { f.Accepted.PayTo, f.auth.To, f.Accepted.Extra.Quote = theirs, [20]byte{19: 0xb2}, "" },
			"another's quote": func(f *forged) {
				f.Accepted.Extra.Quote = w.get("/t/twin/v1/records?limit=1").required().Accepts[0].Extra.Quote
			},
		} {
			if a := w.send(w.forge(request{}, change)); a.Code != 402 {
				t.Errorf("%s: %d %s", name, a.Code, a.Body)
			}
		}
		w.untouched()
		// What was bought of one is not had of the other, and the row says who earns.
		q := w.payment(request{})
		w.send(q).is(200, "")
		for _, path := range []string{"/t/other/v1/records?limit=1", "/t/twin/v1/records?limit=1"} {
			again := q
			again.path = path
			w.send(again).is(409, clawr.CodeBoundElsewhere)
		}
		if row := w.row(q); row.PayTo != payTo {
			t.Errorf("paid to %s", row.PayTo)
		}
		// A deploy that changes the payTo changes it for later challenges alone.
		old := w.payment(request{path: "/t/acme/v1/records?n=2"})
		w.deploy(clawr.Tenant{Slug: "acme", Hosts: []string{"acme.example.com"}, Manifest: clawr.Manifest{PayTo: theirs}})
		w.send(old).is(200, "")
		if row := w.row(old); row.PayTo != payTo {
			t.Errorf("an old quote was paid to %s", row.PayTo)
		}
		fresh := w.payment2(request{path: "/t/acme/v1/records?n=3"}, theirs)
		w.send(fresh).is(200, "")
		if row := w.row(fresh); row.PayTo != theirs {
			t.Errorf("a new quote was paid to %s", row.PayTo)
		}
	})
	t.Run("limits are a tenant's own", func(t *testing.T) {
		w := newWorld(t)
		w.deploy(clawr.Tenant{Slug: "small", Manifest: clawr.Manifest{Price: price, X402: true, Usage: clawr.Quota{Daily: 1}, Rate: clawr.Rates{PerCaller: clawr.Rate{Requests: 4, WindowSeconds: 3600}}}})
		w.send(w.payment(request{path: "/t/small/v1/records"})).is(200, "")
		for range 4 {
			w.get("/t/small/v1/records")
		}
		w.get("/t/small/v1/records").is(429, clawr.CodeRateLimited)
		for range 20 {
			w.get("/t/acme/v1/records").is(402, clawr.CodeMissingPayment)
		}
	})
	t.Run("credit is a seller's own", func(t *testing.T) {
		w := newWorld(t)
		w.policies()
		w.deploy(clawr.Tenant{Slug: "other", Manifest: clawr.Manifest{PayTo: theirs, Settle: "async"}})
		w.d.Exposure = ledger.Exposure{Payer: 10 * price, Credit: 10 * price, Total: 20 * price}
		for i := range 30 { // more than all of one seller's credit, from many wallets
			w.send(w.payment(request{path: fmt.Sprintf("/t/async/v1/records?n=%d", i)})).is(200, "")
		}
		if e := w.exposure("*"); e.Held != 20*price {
			t.Errorf("exposure %+v", e)
		}
		if r := w.send(w.payment(request{path: "/t/other/v1/records"})).is(200, "").receipt(); r.Transaction != "" {
			t.Error("another seller's buyers used up the credit of this one's")
		}
	})
	t.Run("one that hangs leaves room", func(t *testing.T) {
		w := newWorld(t)
		w.d.MaxFlight, w.d.Deadline = 8, 30*time.Second
		w.deploy(clawr.Tenant{Slug: "slow", Manifest: clawr.Manifest{Kind: clawr.KindFunction}})
		var qs []request
		for i := range 8 {
			qs = append(qs, w.payment(request{path: fmt.Sprintf("/t/slow/v1/records?n=%d", i)}))
		}
		release := make(chan struct{})
		var wg sync.WaitGroup
		hanging := 0
		for _, q := range qs {
			entered := make(chan struct{})
			w.shop.once(func(rw http.ResponseWriter, _ *http.Request) error {
				close(entered)
				<-release
				_, err := rw.Write([]byte("asked"))
				return err
			})
			answered := make(chan *answer, 1)
			wg.Go(func() { answered <- w.send(q) })
			select {
			case <-entered:
				hanging++
			case a := <-answered:
				a.is(503, clawr.CodeOverloaded)
				w.shop.once(nil)
			}
		}
		if hanging != 6 {
			t.Errorf("one tenant has %d of 8 places", hanging)
		}
		w.send(w.payment(request{})).is(200, "")
		close(release)
		wg.Wait()
	})
}

// payment2 is payment for a tenant that is paid at another address.
func (w *world) payment2(q request, to string) request {
	w.Helper()
	required := w.send(q).is(402, clawr.CodeMissingPayment).required()
	if required.Accepts[0].PayTo != to {
		w.Fatalf("to be paid to %s, want %s", required.Accepts[0].PayTo, to)
	}
	q.pay = w.signed(key(w), required).Header()
	return q
}

// named is a new key's payment for q that calls itself id.
func (w *world) named(q request, id string) request {
	w.Helper()
	q.pay = ""
	p := w.signed(key(w), w.send(q).is(402, clawr.CodeMissingPayment).required())
	if !p.Identify(id) {
		w.Fatalf("%q was not advertised, or is no id", id)
	}
	q.pay = p.Header()
	return q
}

// 22: payment-identifier. The same id and payload get the stored answer, the
// same id in another payload 409, a malformed or missing one 400, and an id is
// its payer's and its tenant's.
func TestMustPass22PaymentIdentifier(t *testing.T) {
	engines(t, func(t *testing.T, w *world) {
		const id = "order-00000000000001"
		w.deploy(clawr.Tenant{Slug: "strict", Manifest: clawr.Manifest{Price: price, X402: true, RequirePaymentID: true}})
		w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction}})
		for slug, want := range map[string]string{"acme": `"required":false`, "strict": `"required":true`} {
			ext := w.get("/t/" + slug + "/v1/records").required().Extensions.Find(x402.PaymentIdentifier)
			if !strings.Contains(string(ext), `{"info":{`+want+`},"schema":{`) || len(w.get("/t/"+slug+"/v1/records").Header().Get("PAYMENT-REQUIRED")) > 4096 {
				t.Errorf("%s advertises %s", slug, ext)
			}
		}
		k := key(t)
		pay := func(path, id string) request {
			p := w.signed(k, w.get(path).required())
			if id != "" && !p.Identify(id) {
				t.Fatal("not named")
			}
			return request{path: path, pay: p.Header()}
		}
		q := pay("/t/acme/v1/records?limit=1", id)
		first := w.send(q).is(200, "")
		if row := w.row(q); row.ClientRef != id {
			t.Errorf("the row calls it %q", row.ClientRef)
		}
		if again := w.send(q).is(200, "").has("X-Clawr-Replayed", "true"); again.Body.String() != first.Body.String() {
			t.Errorf("another answer: %s", again.Body)
		}
		transfers, runs := len(w.till.transfers()), w.shop.total()
		for name, twin := range map[string]request{"the same call": pay("/t/acme/v1/records?limit=1", id), "another call": pay("/t/acme/v1/records?limit=2", id)} {
			a := w.send(twin).is(409, clawr.CodeIdentifierUsed).has("PAYMENT-REQUIRED", "")
			if !strings.Contains(a.Body.String(), "not charged") || w.row(twin) != nil {
				t.Errorf("%s: %s", name, a.Body)
			}
		}
		if len(w.till.transfers()) != transfers || w.shop.total() != runs {
			t.Error("a used id was paid for")
		}
		w.send(pay("/t/strict/v1/records", id)).is(200, "")                  // another tenant
		w.send(w.named(request{path: "/t/acme/v1/records"}, id)).is(200, "") // another payer
		w.send(pay("/t/acme/v1/records?limit=3", "")).is(200, "")            // it is optional here
		w.send(pay("/t/strict/v1/records?limit=3", "")).is(400, clawr.CodeBadHeader).has("PAYMENT-REQUIRED", "")
		w.send(w.paymentV1(request{path: "/t/strict/v1/records"})).is(400, clawr.CodeBadHeader)

		for name, ext := range map[string]string{
			"short":       `{"info":{"required":false,"id":"123456789012345"}}`,
			"long":        `{"info":{"required":false,"id":"` + strings.Repeat("x", 129) + `"}}`,
			"characters":  `{"info":{"required":false,"id":"order 00000000000001"}}`,
			"a number":    `{"info":{"required":false,"id":12345678901234567890}}`,
			"no info":     `{}`,
			"no required": `{"info":{"id":"order-00000000000002"}}`,
			"a text":      `"order-00000000000002"`,
		} {
			p := w.signed(k, w.get("/t/acme/v1/records").required())
			p.Extensions = x402.Object{{Name: x402.PaymentIdentifier, Value: []byte(ext)}}
			if a := w.send(request{path: "/t/acme/v1/records", pay: p.Header()}); a.Code != 400 || a.error() != string(clawr.CodeBadHeader) {
				t.Errorf("%s: %d %s", name, a.Code, a.Body)
			}
		}
		// Of many payments with one id at once, one buys.
		qs := make([]request, 12)
		for i := range qs {
			qs[i] = pay(fmt.Sprintf("/t/acme/v1/records?limit=%d", 10+i), "order-00000000000009")
		}
		before, won := len(w.till.transfers()), 0
		for _, a := range w.atOnce(qs...) {
			if a.Code == 200 {
				won++
				continue
			}
			a.is(409, clawr.CodeIdentifierUsed)
		}
		if won != 1 || len(w.till.transfers())-before != 1 {
			t.Errorf("%d of %d payments with one id bought, %d transfers", won, len(qs), len(w.till.transfers())-before)
		}
		// What failed and was not charged is asked for again by its name.
		w.shop.once(func(rw http.ResponseWriter, _ *http.Request) error { rw.WriteHeader(500); return nil })
		w.send(pay("/t/fn/v1/records", id)).is(502, clawr.CodeWorkerFailure)
		w.send(pay("/t/fn/v1/records", id)).is(200, "")
		rows, err := w.db.Payments(t.Context(), store.PaymentFilter{})
		w.ok(err)
		for _, p := range rows {
			if p.Money == ledger.Signed || p.Money == ledger.Held {
				t.Errorf("%s is %s", p.ID, p.Money)
			}
		}
	})
}

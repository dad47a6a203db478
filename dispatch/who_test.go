package dispatch_test

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// stolen is what an attacker makes who has read everything on the chain (the
// authorization and its signature are calldata) and everything that he is told
// himself (a challenge, with a quote, for the same request): every request of
// his that could be taken for the buyer's.
func (w *world) stolen(q request) map[string]request {
	w.Helper()
	p, err := x402.ParsePayment(q.pay)
	w.ok(err)
	mine := q
	mine.pay, mine.from = "", ""
	quote := w.send(mine).required().Accepts[0].Extra.Quote
	out := map[string]request{}
	for name, with := range map[string]string{"no quote": "", "his own quote": quote, "a quote with a bit more": flip(p.Accepted.Extra.Quote, 40),
		"half a quote": p.Accepted.Extra.Quote[:40], "zeros": strings.Repeat("A", x402.QuoteLen)} {
		forged := *p
		forged.Accepted.Extra.Quote = with
		mine.pay = forged.Header()
		out[name] = mine
	}
	v1 := *p
	v1.Version = 1
	mine.pay, mine.v1 = v1.Header(), true
	out["version 1"] = mine
	mine.v1 = false
	e, err := x402.ParseExact(p.Payload)
	w.ok(err)
	e.Signature[64] -= 27 // the same signature, spelled otherwise
	forged := *p
	forged.Payload = e.JSON()
	mine.pay = forged.Header()
	out["another spelling"] = mine
	forged = *p
	forged.Accepted.Extra.Quote, forged.Extensions = quote, x402.Object{{Name: "x", Value: []byte("1")}}
	mine.pay = forged.Header()
	out["another layout"] = mine
	return out
}

func TestWhoMayHaveTheStoredAnswer(t *testing.T) {
	for name, outcomes := range map[string][]outcome{"settled": nil, "in the mempool": {(*till).broadcast, (*till).broadcast}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			q := w.payment(request{})
			w.till.next(outcomes...)
			if a := w.send(q); a.Code != 200 && a.Code != 503 {
				t.Fatalf("%d %s", a.Code, a.Body)
			}
			ran := w.shop.total()
			for _, from := range []string{"192.0.2.1", "198.51.100.66"} { // the buyer's own address is no proof
				for _, method := range []string{"GET", "HEAD"} {
					for name, attack := range w.stolen(q) {
						attack.from, attack.method = from, method
						a := w.send(attack)
						if a.Code != 409 || strings.Contains(a.Body.String(), "asked") || a.Header().Get("PAYMENT-RESPONSE") != "" || a.Header().Get("ETag") != "" {
							t.Errorf("%s from %s: %d %v %s", name, from, a.Code, a.Header(), a.Body)
						}
						if e := w.event(a); e.Lifecycle != "payment_invalid" || e.Countable || e.Caller == w.event(w.send(q)).Caller {
							t.Errorf("%s: an attack is booked as %+v", name, e)
						}
					}
				}
			}
			if w.shop.total() != ran {
				t.Errorf("the work ran %d more times", w.shop.total()-ran)
			}
			w.till.script = nil
			w.send(q).is(200, "")
		})
	}
}

// What others send in a buyer's name must not use up what he may ask for.
func TestAttackersDoNotUseUpTheBuyersReplays(t *testing.T) {
	w := newWorld(t)
	q := w.payment(request{})
	w.send(q).is(200, "")
	attack := w.stolen(q)["his own quote"]
	for range 300 {
		w.send(attack).is(409, clawr.CodeAlreadyUsed)
	}
	w.send(q).is(200, "")
	limited := 0
	for range 80 {
		if a := w.send(q); a.Code == 429 {
			a.is(429, clawr.CodeRateLimited).has("Retry-After", "*", "X-RateLimit-Limit", "60")
			limited++
		}
	}
	if limited == 0 {
		t.Error("the buyer may ask for ever")
	}
}

func TestAVersion1AnswerIsForThePayingAddressForTenMinutes(t *testing.T) {
	w := newWorld(t)
	q := w.paymentV1(request{from: "203.0.113.7"})
	w.send(q).is(200, "")
	row := w.state(q, ledger.Done, ledger.Mined)
	if row.QuoteSHA256 != "" || strings.Contains(row.ClientAddrHash, "203") {
		t.Errorf("row %+v", row)
	}
	other := q
	other.from = "203.0.113.8"
	w.send(other).is(409, clawr.CodeAlreadyUsed)
	w.send(q).is(200, "").has("X-Clawr-Replayed", "true")

	// With a quote, whosoever, it is not the payment that was made.
	forged, err := x402.ParsePaymentV1(q.pay)
	w.ok(err)
	forged.Version, forged.Accepted = 2, w.get("").required().Accepts[0]
	w.send(request{from: q.from, pay: forged.Header()}).is(409, clawr.CodeAlreadyUsed)
	forged.Accepted.Extra.Quote = ""
	w.send(request{from: q.from, pay: forged.Header()}).is(200, "") // no quote either: as good as version 1
	w.pass(9 * time.Minute)
	w.send(q).is(200, "")
	w.pass(2 * time.Minute)
	w.send(q).is(409, clawr.CodeAlreadyUsed)
	// That the payment becomes final later does not begin another ten minutes.
	w.pass(5 * time.Minute)
	w.ok(w.db.Final(t.Context(), row.Key, row.BlockHash))
	w.send(q).is(409, clawr.CodeAlreadyUsed)
	w.sold(1, 1)
}

// A buyer who signs for ever has his ten minutes all the same.
func TestAVersion1AnswerToAnEndlessAuthorization(t *testing.T) {
	w := newWorld(t)
	for _, until := range []uint64{1 << 35, 1 << 41, 1 << 62, 1<<64 - 1} {
		q := w.forge(request{}, func(f *forged) { f.Accepted.Extra.Quote, f.auth.ValidBefore = "", x402.Uint(until) })
		w.send(q).is(200, "")
		w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
		w.pass(11 * time.Minute)
		w.send(q).is(409, clawr.CodeAlreadyUsed)
	}
}

func TestAVersion1PaymentThatIsNotMinedYetWaitsForItsAddress(t *testing.T) {
	w := newWorld(t)
	w.till.next((*till).unknown)
	q := w.paymentV1(request{from: "203.0.113.7"})
	w.send(q).is(503, clawr.CodeSettlementPending)
	w.pass(20 * time.Minute)
	w.send(request{from: "203.0.113.8", pay: q.pay, v1: true}).is(409, clawr.CodeAlreadyUsed)
	w.till.next((*till).unknown)
	w.send(q).is(503, clawr.CodeSettlementPending)
}

func TestARemovedTenantsBuyersKeepTheirAnswers(t *testing.T) {
	w := newWorld(t)
	byPath, byHost := w.payment(request{}), w.payment(request{host: "acme.example.com", path: "/v1/records?limit=2"})
	a, b := w.send(byPath).is(200, ""), w.send(byHost).is(200, "")
	unused := w.payment(request{path: "/t/acme/v1/records?limit=3"})
	unusedByHost := w.payment(request{host: "acme.example.com", path: "/v1/records?limit=4"})
	again := func(replays bool) {
		t.Helper()
		for q, first := range map[*request]*answer{&byPath: a, &byHost: b} {
			got := w.send(*q)
			if got.Code != 200 || got.Body.String() != first.Body.String() || got.Header().Get("X-Tenant-Id") != a.Header().Get("X-Tenant-Id") {
				t.Errorf("%d %s, want %s", got.Code, got.Body, first.Body)
			}
			if e := w.event(got); e.Lifecycle != "replayed" || e.Countable || e.API != "acme" {
				t.Errorf("event %+v", e)
			}
		}
		w.send(w.stolenFrom(byPath)).is(409, clawr.CodeAlreadyUsed)
	}
	w.status("acme", clawr.StatusPaused)
	again(true)
	w.get("").is(503, clawr.CodeTenantPaused).has("Retry-After", "60", "PAYMENT-REQUIRED", "")
	w.send(unused).is(503, clawr.CodeTenantPaused)
	w.status("acme", clawr.StatusRemoved)
	again(true)
	w.get("").is(404, clawr.CodeTenantNotFound)
	w.send(unused).is(404, clawr.CodeTenantNotFound).has("PAYMENT-REQUIRED", "")
	w.send(unusedByHost).is(404, clawr.CodeTenantNotFound)
	// Its host goes to somebody else, who sells other things at the same paths.
	w.deploy(clawr.Tenant{Slug: "heir", Hosts: []string{"acme.example.com"}})
	again(true)
	w.send(request{host: "acme.example.com", path: "/v1/records?limit=2"}).is(402, clawr.CodeMissingPayment)
	w.send(request{host: "acme.example.com", path: "/v1/records?limit=1", pay: byHost.pay}).is(409, clawr.CodeBoundElsewhere)
	if e := w.events(); e[len(e)-1].API != "heir" {
		t.Errorf("the event is %s's", e[len(e)-1].API)
	}
	w.sold(2, 2)
}

// stolenFrom is one of stolen's, made without asking for a challenge.
func (w *world) stolenFrom(q request) request {
	p, err := x402.ParsePayment(q.pay)
	w.ok(err)
	p.Accepted.Extra.Quote = ""
	q.pay = p.Header()
	return q
}

func TestADeployBetweenSendAndResend(t *testing.T) {
	w := newWorld(t)
	deploy := func(content string, price clawr.Amount, payTo string) {
		w.deploy(clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Content: content, Price: price, X402: true, PayTo: payTo}})
	}
	deploy("old", price, "")
	sent := w.payment(request{})
	a := w.send(sent).is(200, "")
	quoted := w.payment(request{path: "/t/acme/v1/records?limit=2"})
	noQuote := w.forge(request{}, func(f *forged) { f.Accepted.Extra.Quote = "" })
	w.till.next((*till).broadcast)
	pending := w.payment(request{path: "/t/acme/v1/records?limit=3"})
	w.send(pending).is(503, clawr.CodeSettlementPending)

	const newPayTo = "0x00000000000000000000000000000000000000a2"
	deploy("new", 3*price, newPayTo)
	if b := w.send(sent).is(200, "").Body.String(); b != a.Body.String() || !strings.Contains(b, `"content":"old"`) {
		t.Errorf("resent after a deploy: %s, was %s", b, a.Body)
	}
	if b := w.send(pending).is(200, "").Body.String(); !strings.Contains(b, `"content":"old"`) || !strings.Contains(b, "limit=3") {
		t.Errorf("pending over a deploy: %s", b)
	}
	// A quote that has not expired is honoured: its price, its payTo, its data.
	if b := w.send(quoted).is(200, "").Body.String(); !strings.Contains(b, `"content":"old"`) {
		t.Errorf("an old quote bought %s", b)
	}
	if row := w.row(quoted); row.Amount != price || row.PayTo != payTo || row.Version != w.row(sent).Version {
		t.Errorf("an old quote is booked as %+v", row)
	}
	if e := w.event(w.send(quoted)); e.Price != price {
		t.Errorf("event of an old quote: %+v", e)
	}
	w.send(noQuote).is(402, x402.ReasonNoMatch)
	r := w.get("").required().Accepts[0]
	if r.Amount != fmt.Sprint(3*price) || r.PayTo != newPayTo {
		t.Errorf("new terms %+v", r)
	}
	// Back to the old manifest is back to the old version; then gone, then free.
	deploy("old", price, "")
	w.send(sent).is(200, "").has("X-Clawr-Replayed", "true")
	old := w.payment(request{path: "/t/acme/v1/records?limit=4"})
	w.deploy(clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Content: "free", Price: price, X402: false}})
	w.send(sent).is(200, "").has("X-Clawr-Replayed", "true")
	if b := w.send(old).is(200, "").Body.String(); !strings.Contains(b, `"content":"old"`) {
		t.Errorf("an old quote for what is free now bought %s", b)
	}
	w.get("").is(200, "")
	w.sold(4, 5)
}

func TestAnOldQuoteExpires(t *testing.T) {
	w := newWorld(t)
	q := w.payment(request{})
	w.pass(64 * time.Second) // maxTimeoutSeconds is 63
	fresh := w.send(q).is(402, x402.ReasonQuoteExpired).required()
	w.untouched()
	// The authorization was not used: with a fresh quote it would have been too late all the same.
	p, err := x402.ParsePayment(q.pay)
	w.ok(err)
	p.Accepted = fresh.Accepts[0]
	q.pay = p.Header()
	w.send(q).is(402, x402.ReasonValidBefore)
	w.untouched()
}

// A bearer credential: it is in nobody's log, book or request to a facilitator.
func TestTheQuoteIsKeptNowhere(t *testing.T) {
	w := newWorld(t)
	w.shop.once(func(http.ResponseWriter, *http.Request) error { return fmt.Errorf("no luck") })
	failed, sold := w.payment(request{}), w.payment(request{path: "/t/acme/v1/records?limit=2"})
	w.send(failed).is(502, clawr.CodeWorkerFailure)
	w.till.next((*till).down)
	w.send(sold).is(503, clawr.CodeSettlementPending)
	w.send(sold).is(200, "")
	for _, q := range []request{failed, sold} {
		p, err := x402.ParsePayment(q.pay)
		w.ok(err)
		quote, row := p.Accepted.Extra.Quote, w.row(q)
		answer, err := w.db.Answer(context.Background(), row.ID)
		w.ok(err)
		stored := fmt.Sprintf("%+v %s %+v %+v %s", *row, row.Payload, answer, w.events(), w.log)
		if strings.Contains(stored, quote) || strings.Contains(stored, base64.StdEncoding.EncodeToString([]byte(quote))) {
			t.Errorf("the quote is kept: %s", stored)
		}
		if row.QuoteSHA256 == "" {
			t.Error("not even its hash is kept")
		}
	}
}

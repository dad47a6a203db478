package dispatch_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
	"github.com/402claw/clawr/x402"
)

// The tests whose names begin with TestMustPass are the list "What must pass"
// of the protocol's page, by number: attacks that were seen or published.

// at once sends every request in a goroutine of its own.
func (w *world) atOnce(qs ...request) []*answer {
	out := make([]*answer, len(qs))
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i, q := range qs {
		wg.Go(func() {
			<-start
			out[i] = w.send(q)
		})
	}
	close(start)
	wg.Wait()
	return out
}

// engines runs a test on both databases.
func engines(t *testing.T, test func(t *testing.T, w *world)) {
	t.Run("sqlite", func(t *testing.T) { test(t, newWorld(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, newWorldOn(t, store.Options{URL: storetest.Postgres(t)})) })
}

func TestMustPass01ReplaySequentialAndConcurrent(t *testing.T) {
	engines(t, func(t *testing.T, w *world) {
		other := w.dispatcher("node-2")
		w.reload(other)
		for name, nodes := range map[string][]int{"sequential": nil, "concurrent": {0}, "on two nodes": {0, 1}} {
			before, ran := len(w.till.transfers()), w.shop.total()
			q := w.payment(request{})
			var answers []*answer
			if nodes == nil {
				for range 20 {
					answers = append(answers, w.send(q))
				}
			} else {
				qs := make([]request, 20)
				for i := range qs {
					qs[i] = q
					if len(nodes) > 1 && i%2 == 1 {
						qs[i].node = other
					}
				}
				answers = w.atOnce(qs...)
			}
			first := 0
			for _, a := range answers {
				a.is(200, "")
				if a.Body.String() != answers[0].Body.String() || a.receipt().Transaction != answers[0].receipt().Transaction {
					t.Errorf("%s: two answers to one payment: %s %s", name, a.Body, answers[0].Body)
				}
				if a.Header().Get("X-Clawr-Replayed") == "" {
					first++
				}
			}
			if first != 1 {
				t.Errorf("%s: %d answers were not replays, want 1", name, first)
			}
			if n, r := len(w.till.transfers())-before, w.shop.total()-ran; n != 1 || r != 1 {
				t.Errorf("%s: %d transfers and %d runs, want 1 and 1", name, n, r)
			}
		}
	})
}

func TestMustPass02TamperedAccepted(t *testing.T) {
	w := newWorld(t)
	other := w.deploy(clawr.Tenant{Slug: "other"})
	for name, c := range map[string]struct {
		change func(*forged)
		want   clawr.Code
	}{
		"amount":            {func(f *forged) { f.Accepted.Amount = "1" }, x402.ReasonNoMatch},
		"asset":             {func(f *forged) { f.Accepted.Asset = "0x00000000000000000000000000000000000000bb" }, x402.ReasonNoMatch},
		"asset in capitals": {func(f *forged) { f.Accepted.Asset = "0x" + strings.ToUpper(usdc.Address[2:]) }, x402.ReasonNoMatch},
		"payTo":             {func(f *forged) { f.Accepted.PayTo = x402.Lower(f.auth.From); f.auth.To = f.auth.From }, x402.ReasonNoMatch},
		"network":           {func(f *forged) { f.Accepted.Network = "eip155:1" }, x402.ReasonNoMatch},
		"scheme":            {func(f *forged) { f.Accepted.Scheme = "upto" }, x402.ReasonNoMatch},
		"time":              {func(f *forged) { f.Accepted.MaxTimeoutSeconds = 1 << 40 }, x402.ReasonNoMatch},
		"token name":        {func(f *forged) { f.Accepted.Extra.Name = "Fake" }, x402.ReasonNoMatch},
		"token version":     {func(f *forged) { f.Accepted.Extra.Version = "" }, x402.ReasonNoMatch},
		"one more member":   {func(f *forged) { f.Accepted.Rest = x402.Object{{Name: "free", Value: []byte("true")}} }, x402.ReasonNoMatch},
		"quote of nobody":   {func(f *forged) { f.Accepted.Extra.Quote = strings.Repeat("A", x402.QuoteLen) }, x402.ReasonQuoteForeign},
		"quote cut short":   {func(f *forged) { f.Accepted.Extra.Quote = f.Accepted.Extra.Quote[1:] }, x402.ReasonQuoteMalformed},
		"quote with a bit":  {func(f *forged) { f.Accepted.Extra.Quote = flip(f.Accepted.Extra.Quote, 20) }, x402.ReasonQuoteForeign},
		"quote of another": {func(f *forged) {
			f.Accepted.Extra.Quote = w.d.Quotes.Mint(other.ID, x402.Quote{Version: 1, Units: price, Expires: w.now().Add(time.Minute)})
		}, x402.ReasonQuoteForeign},
		"quote of a version": {func(f *forged) { f.Accepted.Extra.Quote = w.quote(9, price, time.Minute) }, x402.ReasonQuoteForeign},
		"quote of a price":   {func(f *forged) { f.Accepted.Extra.Quote = w.quote(1, 1, time.Minute) }, x402.ReasonValue},
		"quote too old":      {func(f *forged) { f.Accepted.Extra.Quote = w.quote(1, price, -time.Second) }, x402.ReasonQuoteExpired},
		"app to be credited": {func(f *forged) {
			f.Extensions = x402.Object{{Name: "builder-code", Value: []byte(`{"info":{"a":"thief"}}`)}}
		}, x402.ReasonEchoMismatch},
	} {
		t.Run(name, func(t *testing.T) {
			a := w.send(w.forge(request{}, c.change)).is(402, c.want)
			if r := a.required(); r.Error != string(c.want) || len(r.Accepts) != 1 || r.Accepts[0].Amount != fmt.Sprint(price) {
				t.Errorf("the challenge is %+v", r)
			}
		})
	}
	if w.till.verifies > 0 {
		t.Errorf("the facilitator was asked %d times about payments for something else", w.till.verifies)
	}
	w.untouched()
}

func flip(s string, i int) string {
	c := byte('A')
	if s[i] == c {
		c = 'B'
	}
	return s[:i] + string(c) + s[i+1:]
}

// quote is one that was really made here, for the tenant of all tests.
func (w *world) quote(version, units int64, life time.Duration) string {
	tenants, err := w.db.Tenants(context.WithoutCancel(w.Context()))
	w.ok(err)
	return w.d.Quotes.Mint(tenants[0].ID, x402.Quote{Version: version, Units: units, Expires: w.now().Add(life)})
}

func TestMustPass03BadAuthorization(t *testing.T) {
	w := newWorld(t)
	half, _ := new(big.Int).SetString("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)
	token := common.HexToAddress(usdc.Address)
	for name, c := range map[string]struct {
		change func(*forged)
		want   clawr.Code
	}{
		"pays somebody else": {func(f *forged) { f.auth.To = f.auth.From }, x402.ReasonRecipient},
		"pays less":          {func(f *forged) { f.auth.Value = x402.Uint(price - 1) }, x402.ReasonValue},
		"pays more":          {func(f *forged) { f.auth.Value = x402.Uint(price + 1) }, x402.ReasonValue},
		"is over":            {func(f *forged) { f.auth.ValidBefore = x402.Uint(uint64(w.now().Unix() - 1)) }, x402.ReasonValidBefore},
		"begins later":       {func(f *forged) { f.auth.ValidAfter = x402.Uint(uint64(w.now().Unix() + 30)) }, x402.ReasonValidAfter},
		"another signer":     {func(f *forged) { f.key = key(t) }, x402.ReasonSignature},
		"nobody's signature": {func(f *forged) { f.sign = func([]byte) []byte { return make([]byte, 65) } }, x402.ReasonSignature},
		"a signature cut":    {func(f *forged) { f.sign = func(s []byte) []byte { return s[:64] } }, x402.ReasonSignature},
		"no signature":       {func(f *forged) { f.sign = func([]byte) []byte { return nil } }, ""},
		"v 29":               {func(f *forged) { f.sign = func(s []byte) []byte { s[64] = 29; return s } }, x402.ReasonSignature},
		"high s":             {func(f *forged) { f.sign = func(s []byte) []byte { return highS(s, half) } }, x402.ReasonSignature},
		"another name":       {func(f *forged) { f.domain = x402.NewDomain("USD Coin", usdc.Version, 84532, token) }, x402.ReasonSignature},
		"another version":    {func(f *forged) { f.domain = x402.NewDomain(usdc.Name, "1", 84532, token) }, x402.ReasonSignature},
		"another chain":      {func(f *forged) { f.domain = x402.NewDomain(usdc.Name, usdc.Version, 8453, token) }, x402.ReasonSignature},
		"another token":      {func(f *forged) { f.domain = x402.NewDomain(usdc.Name, usdc.Version, 84532, f.auth.From) }, x402.ReasonSignature},
		"undeployed contract": {func(f *forged) {
			f.sign = func(s []byte) []byte { return append(s, bytes.Repeat([]byte{0x64, 0x92}, 16)...) }
		}, x402.ReasonFactory},
	} {
		t.Run(name, func(t *testing.T) {
			q := w.forge(request{}, c.change)
			if c.want == "" {
				w.send(q).is(400, clawr.CodeBadHeader)
				return
			}
			w.send(q).is(402, c.want).required()
		})
	}
	w.untouched()
}

// highS is the other signature of the same key for the same digest.
func highS(sig []byte, order *big.Int) []byte {
	s := new(big.Int).Sub(order, new(big.Int).SetBytes(sig[32:64]))
	s.FillBytes(sig[32:64])
	sig[64] = 55 - sig[64] // 27 ↔ 28
	return sig
}

func TestMustPass04UnfundedPayerAndBalanceThatMoves(t *testing.T) {
	w := newWorld(t)
	k := key(t)
	w.till.balance[address(k)] = price - 1
	q := request{pay: w.signed(k, w.get("").required()).Header()}
	w.send(q).is(402, x402.ReasonBalance).required()
	w.untouched()

	w.till.balance[address(k)] = price
	w.deploy(clawr.Tenant{Slug: "capped", Manifest: clawr.Manifest{Spend: clawr.Caps{Daily: price}}})
	q = request{path: "/t/capped/v1/records"}
	q.pay = w.signed(k, w.send(q).required()).Header()
	w.at("worker.after", func() { w.till.mu.Lock(); defer w.till.mu.Unlock(); w.till.balance[address(k)] = 0 })
	a := w.send(q).is(402, x402.ReasonBalance)
	if r := a.receipt(); r.Success || r.ErrorReason != x402.ReasonBalance || r.Transaction != "" {
		t.Errorf("PAYMENT-RESPONSE %+v", r)
	}
	if strings.Contains(a.Body.String(), "asked") {
		t.Errorf("the answer was given away: %s", a.Body)
	}
	w.state(q, ledger.Done, ledger.Released)
	w.sold(0, 1)
	if e := w.event(a); e.Lifecycle != "settlement_failed" || e.Billable || e.Countable || e.Status != 402 || e.Billed != 0 {
		t.Errorf("event %+v", e)
	}
	// The spend cap was given back: it is exactly one call.
	w.till.balance[address(k)] = price
	q.pay = w.signed(k, w.send(request{path: q.path}).required()).Header()
	w.send(q).is(200, "")
	w.sold(1, 2)
}

func TestMustPass05SettlementFailsAfterTheWork(t *testing.T) {
	for name, c := range map[string]struct {
		outcome outcome
		status  int
		money   ledger.Money
	}{
		"preflight refuses": {(*till).refuse, 402, ledger.Released},
		"dead with proof":   {(*till).dead, 402, ledger.Dead},
		"in no block yet":   {(*till).broadcast, 503, ledger.Signed},
		"not known":         {(*till).unknown, 503, ledger.Signed},
		"reply lost":        {(*till).lost, 503, ledger.Signed},
		"not submitted":     {(*till).down, 503, ledger.Held},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.till.next(c.outcome)
			q := w.payment(request{})
			a := w.send(q)
			if a.Code != c.status {
				t.Fatalf("%d %s, want %d", a.Code, a.Body, c.status)
			}
			if strings.Contains(a.Body.String(), "asked") || a.Header().Get("ETag") != "" || a.Header().Get("X-Clawr-Replayed") != "" {
				t.Errorf("the answer was given away: %v %s", a.Header(), a.Body)
			}
			row := w.state(q, ledger.Done, c.money)
			if stored, err := w.db.Answer(t.Context(), row.ID); err != nil || stored == nil {
				t.Errorf("the work is not in the book: %v, %v", stored, err)
			}
		})
	}
}

// What a facilitator's words may lead to when it is mad or malicious. That
// those of a remote one are turned into these is facilitator's own test.
func TestMustPass06HostileFacilitator(t *testing.T) {
	w := newWorld(t)
	verdict := func(v x402.VerifyResponse, err error) {
		w.till.judge = func(*x402.PaymentPayload) (x402.VerifyResponse, error, bool) { return v, err, true }
	}
	say := func(o ledger.Outcome) outcome {
		return func(*till, context.Context, ledger.Payment) (ledger.Outcome, error) { return o, nil }
	}
	q := w.payment(request{})
	verdict(x402.VerifyResponse{}, errors.New("500"))
	a := w.send(q).is(503, clawr.CodeFacilitatorDown).has("Retry-After", "*", "PAYMENT-REQUIRED", "")
	if !strings.Contains(a.Body.String(), `"retry":"same_payment"`) {
		t.Errorf("advice: %s", a.Body)
	}
	verdict(x402.VerifyResponse{IsValid: true, Payer: "0x00000000000000000000000000000000000000cc"}, nil)
	w.send(q).is(503, clawr.CodeFacilitatorDown)
	verdict(x402.VerifyResponse{IsValid: true}, nil)
	w.send(q).is(503, clawr.CodeFacilitatorDown)
	evil := clawr.Code(`x"},"accepts":[{"payTo":"0xevil"}],"y":"`)
	verdict(x402.VerifyResponse{InvalidReason: evil, Payer: "x"}, nil)
	a = w.send(q).is(402, clawr.CodePaymentRejected)
	if r := a.required(); r.Accepts[0].PayTo != payTo || strings.Contains(a.Body.String(), "0xevil") {
		t.Errorf("a facilitator wrote into the challenge: %+v\n%s", r, a.Body)
	}
	verdict(x402.VerifyResponse{}, nil)
	w.send(q).is(402, clawr.CodePaymentRejected)
	w.untouched()
	w.till.judge = nil

	w.till.next(
		say(ledger.Outcome{State: ledger.Settled}),
		say(ledger.Outcome{State: ledger.Settled, Evidence: ledger.Evidence{Tx: "0xabc"}}),
		say(ledger.Outcome{State: ledger.OutcomeState(99), Evidence: ledger.Evidence{Tx: "0xabc", BlockHash: "0xdef"}}),
	)
	for range 3 {
		a := w.send(q).is(503, clawr.CodeSettlementPending)
		if r := a.receipt(); r.Success || r.ErrorReason != clawr.CodeSettlementPending || strings.Contains(a.Body.String(), "asked") {
			t.Errorf("a success without evidence was believed: %+v %s", r, a.Body)
		}
	}
	w.till.next(say(ledger.Outcome{State: ledger.NotCharged, Reason: evil}))
	a = w.send(q).is(402, clawr.CodePaymentRejected)
	if r := a.receipt(); r.ErrorReason != clawr.CodePaymentRejected {
		t.Errorf("PAYMENT-RESPONSE %+v", r)
	}
	w.sold(0, 1)
}

func TestMustPass07SameAuthorizationAfterALostReply(t *testing.T) {
	w := newWorld(t)
	w.till.next((*till).lost)
	q := w.payment(request{})
	w.send(q).is(503, clawr.CodeSettlementPending).has("Retry-After", "2", "PAYMENT-REQUIRED", "")
	w.sold(1, 1)
	a := w.send(q).is(200, "")
	if r := a.receipt(); !r.Success || r.Transaction != w.row(q).Tx {
		t.Errorf("PAYMENT-RESPONSE %+v", r)
	}
	// And when it is over, and its nonce used: never denied.
	w.pass(20 * time.Minute)
	w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
	w.sold(1, 1)
}

func TestMustPass08CrossResource(t *testing.T) {
	w := newWorld(t)
	w.deploy(clawr.Tenant{Slug: "sibling", Hosts: []string{"sibling.example.com"}})          // the same price and payTo
	w.deploy(clawr.Tenant{Slug: "post", Manifest: clawr.Manifest{Kind: clawr.KindFunction}}) // takes bodies
	bought := w.payment(request{})
	w.send(bought).is(200, "")
	for name, q := range map[string]request{
		"query":        {path: "/t/acme/v1/records?limit=2"},
		"more of it":   {path: "/t/acme/v1/records?limit=1&offset=1"},
		"path":         {path: "/t/acme/v1/records/1"},
		"free path":    {path: "/t/acme/v1/free"},
		"nothing":      {path: "/t/acme/v1/nothing"},
		"bad query":    {path: "/t/acme/v1/records?bad=1"},
		"method":       {method: "HEAD"},
		"tenant":       {path: "/t/sibling/v1/records?limit=1"},
		"tenant host":  {host: "sibling.example.com", path: "/v1/records?limit=1"},
		"own host":     {host: "acme.example.com", path: "/v1/records?limit=1"},
		"another host": {host: "api.example.org"},
		"nobody":       {path: "/t/nobody/v1/records?limit=1"},
		"no tenant":    {path: "/v1/records?limit=1"},
		"body":         {body: "something"},
	} {
		t.Run(name, func(t *testing.T) {
			q.pay = bought.pay
			w.send(q).is(409, clawr.CodeBoundElsewhere).has("PAYMENT-REQUIRED", "", "PAYMENT-RESPONSE", "")
		})
	}
	// The same question spelled otherwise is the same question.
	same := bought
	same.path, same.host = "/t/acme/v1/records?limit=%31", "API.example.com:443"
	w.send(same).is(200, "").has("X-Clawr-Replayed", "true")
	w.sold(1, 1)

	run := w.payment(request{method: "POST", path: "/t/post/v1/run", body: "one"})
	w.send(run).is(200, "")
	run.body = "two"
	w.send(run).is(409, clawr.CodeBoundElsewhere)
	w.sold(2, 2)

	first := w.payment(request{path: "/t/acme/v1/records?n=0"})
	qs := make([]request, 20)
	for i := range qs {
		qs[i] = request{path: fmt.Sprintf("/t/acme/v1/records?n=%d", i), pay: first.pay}
	}
	won := 0
	for _, a := range w.atOnce(qs...) {
		if a.Code == 200 {
			won++
			continue
		}
		a.is(409, clawr.CodeBoundElsewhere)
	}
	if won != 1 {
		t.Errorf("one payment bought %d of 20 resources", won)
	}
	w.sold(3, 3)
}

func TestMustPass11Amounts(t *testing.T) {
	w := newWorld(t)
	for _, value := range []string{"0", "01000", "+1000", "-1000", "1e3", "0x3e8", "1000.0", "0.001", " 1000", "1000 ", "", "١٠٠٠",
		"115792089237316195423570985008687907853269984665640564039457584007913129639936", // 2^256
		"115792089237316195423570985008687907853269984665640564039457584007913129640936", // 2^256 + 1000
		"18446744073709552616", // 2^64 + 1000
	} {
		q := w.forge(request{}, func(f *forged) {
			f.json = func(s string) string {
				return strings.Replace(s, `"value":"1000"`, fmt.Sprintf(`"value":%q`, value), 1)
			}
		})
		if a := w.send(q); a.Code != 402 && a.Code != 400 {
			t.Errorf("value %q: %d %s", value, a.Code, a.Body)
		}
		q = w.forge(request{}, func(f *forged) { f.Accepted.Amount = value; f.auth.Value = x402.Uint(0) })
		if a := w.send(q); a.Code != 402 && a.Code != 400 {
			t.Errorf("amount %q: %d %s", value, a.Code, a.Body)
		}
	}
	w.untouched()

	w.d.Asset.Decimals = 18
	w.deploy(clawr.Tenant{Slug: "wei"})
	q := request{path: "/t/wei/v1/records"}
	if got := w.send(q).required().Accepts[0].Amount; got != "1000000000000000" {
		t.Errorf("$0.001 in a token with 18 decimals is %s", got)
	}
	w.send(w.forge(q, func(*forged) {})).is(402, x402.ReasonValue) // 1000 units, as if it had 6
	w.untouched()
	q.pay = w.signed(key(t), w.send(q).required()).Header()
	w.send(q).is(200, "")
	if row := w.row(q); row.Amount != 1e15 {
		t.Errorf("booked as %d", row.Amount)
	}
	// What cannot be paid in 63 bits is an error, and no challenge.
	w.deploy(clawr.Tenant{Slug: "dear", Manifest: clawr.Manifest{Price: clawr.MaxPrice, X402: true}})
	w.get("/t/dear/v1/records").is(400, clawr.CodeBadAmount)
	w.get("/t/wei/v1/bulk?n=9223372036854775807").is(400, clawr.CodeBadAmount)
}

// The dispatcher's part of 13: it takes payments in one token to whom it sells
// for, and nothing else ever reaches a facilitator.
func TestMustPass13OnlyOurTokenAndPayTo(t *testing.T) {
	w := newWorld(t)
	evil := "0x00000000000000000000000000000000000e0110"
	for name, change := range map[string]func(*forged){
		"token": func(f *forged) {
			f.Accepted.Asset = evil
			f.domain = x402.NewDomain(usdc.Name, usdc.Version, 84532, common.HexToAddress(evil))
		},
		"payTo": func(f *forged) { f.Accepted.PayTo, f.auth.To = evil, common.HexToAddress(evil) },
		"both, and no quote": func(f *forged) {
			f.Accepted.Asset, f.Accepted.PayTo, f.auth.To, f.Accepted.Extra.Quote = evil, evil, common.HexToAddress(evil), ""
		},
		"token, by version 1": func(f *forged) {
			f.Version, f.domain = 1, x402.NewDomain(usdc.Name, usdc.Version, 84532, common.HexToAddress(evil))
		},
	} {
		q := w.forge(request{v1: strings.HasSuffix(name, "1"), path: "/t/acme/v1/records"}, change)
		if a := w.send(q); a.Code != 402 {
			t.Errorf("%s: %d %s", name, a.Code, a.Body)
		}
	}
	// Version 1 names no token: its payment could be a contract's in ours, whose
	// code only the facilitator can ask.
	if w.till.verifies != 1 || w.till.settles > 0 {
		t.Errorf("a facilitator was sent %d payments, want the one that might be for us", w.till.verifies+w.till.settles)
	}
	w.untouched()
	// A facilitator URL in the payment is a member like any other: nobody asks there.
	q := w.forge(request{}, func(f *forged) {
		f.Accepted.Extra.Rest = x402.Object{{Name: "facilitator", Value: []byte(`"http://evil.example"`)}}
	})
	w.send(q).is(200, "")
	if w.till.verifies != 2 {
		t.Errorf("%d verifications", w.till.verifies)
	}
}

func TestMustPass15NoPaidAnswerInASharedCache(t *testing.T) {
	w := newWorld(t)
	w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction}})
	w.get("").is(402, clawr.CodeMissingPayment).has("Cache-Control", "no-store")
	q := w.payment(request{})
	w.send(q).is(200, "").has("Cache-Control", "private", "Vary", "PAYMENT-SIGNATURE, X-PAYMENT")
	w.send(q).is(200, "").has("Cache-Control", "private", "Vary", "PAYMENT-SIGNATURE, X-PAYMENT")
	fn := w.payment(request{path: "/t/fn/v1/records"})
	w.send(fn).is(200, "").has("Cache-Control", "private, no-store", "Vary", "PAYMENT-SIGNATURE, X-PAYMENT")
	w.send(request{header: http.Header{"If-None-Match": {w.send(q).Header().Get("ETag")}}}).is(304, "").has("Cache-Control", "private", "Vary", "PAYMENT-SIGNATURE, X-PAYMENT")
	for name, a := range map[string]*answer{
		"409": w.send(request{path: "/t/acme/v1/records?other", pay: q.pay}), "400": w.send(request{pay: "!"}), "404": w.get("/t/nobody/x"),
		"refused": w.send(w.forge(request{}, func(f *forged) { f.auth.Value = x402.Uint(1) })),
	} {
		if a.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: Cache-Control %q", name, a.Header().Get("Cache-Control"))
		}
	}
	// A worker cannot make its answer public, or speak for the payment.
	w.shop.once(func(rw http.ResponseWriter, _ *http.Request) error {
		h := rw.Header()
		for _, k := range []string{"Cache-Control", "PAYMENT-RESPONSE", "PAYMENT-REQUIRED", "X-Payment-Response", "Set-Cookie", "Transfer-Encoding", "Connection",
			"Access-Control-Allow-Origin", "X-Tenant-Id", "X-Request-Id", "X-Clawr-Replayed", "Settlement-Overrides", "Content-Length"} {
			h.Set(k, "worker")
		}
		h.Set("Vary", "Accept")
		h.Set("X-Its-Own", "worker")
		_, err := rw.Write([]byte("goods"))
		return err
	})
	own := w.payment(request{path: "/t/fn/v1/records?n=2"})
	for range 2 { // fresh and stored
		a := w.send(own).is(200, "").has("X-Its-Own", "worker", "Vary", "Accept|PAYMENT-SIGNATURE, X-PAYMENT", "Content-Length", "5")
		for k, v := range a.Header() {
			if k != "X-Its-Own" && strings.Contains(strings.Join(v, ""), "worker") {
				t.Errorf("the worker set %s", k)
			}
		}
	}
}

func TestMustPass20CORS(t *testing.T) {
	w := newWorld(t)
	w.status("acme", clawr.StatusActive)
	pre := w.send(request{method: "OPTIONS", header: http.Header{"Origin": {"https://page.example"}, "Access-Control-Request-Method": {"GET"},
		"Access-Control-Request-Headers": {"payment-signature,access-control-expose-headers"}}}).is(204, "")
	for _, h := range []string{"PAYMENT-SIGNATURE", "X-PAYMENT", "SIGN-IN-WITH-X", "Access-Control-Expose-Headers", "Content-Type"} {
		if !strings.Contains(pre.Header().Get("Access-Control-Allow-Headers"), h) {
			t.Errorf("a page may not send %s", h)
		}
	}
	pre.has("Access-Control-Allow-Origin", "*", "Access-Control-Allow-Methods", "*", "Access-Control-Max-Age", "*", "PAYMENT-REQUIRED", "")
	q := w.payment(request{})
	for _, a := range []*answer{pre, w.get(""), w.send(q), w.send(q), w.send(request{pay: "!"}), w.get("/t/acme/v1/free"), w.get("/t/nobody"), w.get("/t/acme/nothing")} {
		expose := a.Header().Get("Access-Control-Expose-Headers")
		if a.Header().Get("Access-Control-Allow-Origin") != "*" || !strings.Contains(expose, "PAYMENT-REQUIRED") || !strings.Contains(expose, "PAYMENT-RESPONSE") ||
			!strings.Contains(expose, "X-PAYMENT-RESPONSE") || a.Header().Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("a page cannot read this %d: %v", a.Code, a.Header())
		}
	}
	w.sold(1, 2) // preflights cost nothing and run nothing; the free page is the second run
	if n := len(w.events()); n == 0 {
		t.Error("no events")
	}
}

func TestMustPass21BothVersions(t *testing.T) {
	w := newWorld(t)
	a := w.get("")
	if r := a.required(); r.Version != 2 || r.Accepts[0].Network != usdc.Network || r.Accepts[0].Extra.Quote == "" {
		t.Errorf("the header is not version 2's: %+v", r)
	}
	for _, want := range []string{`"x402Version":2`, `"network":"base-sepolia"`, `"maxAmountRequired":"1000"`, `"resource":"http://api.example.com/t/acme/v1/records?limit=1"`,
		`"description":""`, `"mimeType":"application/json"`, `"payTo":"` + payTo + `"`} {
		if !strings.Contains(a.Body.String(), want) {
			t.Errorf("the body lacks %s: %s", want, a.Body)
		}
	}
	for _, no := range []string{"outputSchema", "eip155:"} {
		if strings.Contains(a.Body.String(), no) {
			t.Errorf("the body has %s, which version 1's clients refuse: %s", no, a.Body)
		}
	}
	for _, says := range []string{`"x402Version":1`, `"x402Version":2`} { // its client copies the number from the body
		q := w.paymentV1(request{})
		raw, err := base64.StdEncoding.DecodeString(q.pay)
		w.ok(err)
		q.pay = base64.StdEncoding.EncodeToString([]byte(strings.Replace(string(raw), `"x402Version":1`, says, 1)))
		a := w.send(q).is(200, "")
		old, err := x402.ParseResponse(a.Header().Get("X-PAYMENT-RESPONSE"))
		if err != nil || old.Network != "base-sepolia" || !old.Success || old.Transaction == "" {
			t.Errorf("X-PAYMENT-RESPONSE %+v, %v", old, err)
		}
		if r := a.receipt(); r.Network != usdc.Network {
			t.Errorf("PAYMENT-RESPONSE %+v", r)
		}
		w.send(q).is(200, "").has("X-Clawr-Replayed", "true", "X-PAYMENT-RESPONSE", "*")
		w.send(request{pay: q.pay}).is(400, clawr.CodeBadHeader) // the other version's header
	}
	v2 := w.payment(request{})
	w.send(v2).is(200, "").has("X-PAYMENT-RESPONSE", "")
	w.send(request{header: http.Header{"X-Payment": {v2.pay}}, pay: v2.pay}).is(400, clawr.CodeBadHeader)
	w.sold(3, 3)

	w.till.next((*till).unknown)
	q := w.paymentV1(request{})
	a = w.send(q).is(503, clawr.CodeSettlementPending)
	if old, err := x402.ParseResponse(a.Header().Get("X-PAYMENT-RESPONSE")); err != nil || old.Success || old.ErrorReason != clawr.CodeSettlementPending || old.Network != "base-sepolia" {
		t.Errorf("X-PAYMENT-RESPONSE %+v, %v", old, err)
	}
}

func TestAPaymentWithoutAQuoteIsTakenAtTodaysTerms(t *testing.T) {
	w := newWorld(t)
	q := w.forge(request{}, func(f *forged) { f.Accepted.Extra.Quote = "" })
	w.deploy(clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Price: 2 * price, X402: true}})
	w.send(q).is(402, x402.ReasonNoMatch)
	w.untouched()
	q = w.forge(request{}, func(f *forged) { f.Accepted.Extra.Quote, f.auth.Value = "", x402.Uint(2*price) })
	w.send(q).is(200, "")
	w.sold(1, 1)
}

package e2e

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/dataset"
	"github.com/402claw/clawr/x402"
)

const strangersTx = "0x5555555555555555555555555555555555555555555555555555555555555555"

// x402.md, "What must pass" 6: whatever facilitators say, 200 means that the
// chain shows the payment, and while it may be charged nothing is a 402. What is
// not known is said at the route's deadline, which is shorter here.
func TestEdgeMustPass06HostileFacilitators(t *testing.T) {
	t.Parallel()
	w := newEdgeWorld(t, func(e *edge) { e.config.Vars["DEADLINE_SECONDS"] = "15" })
	success := `{"success":true,"transaction":"%TX%","network":"%NET%"}`
	var wg sync.WaitGroup
	for _, c := range []struct {
		name   string
		chain  bool // it really settled
		status int
		body   string
	}{
		{"honest", true, 200, success},
		{"lies", false, 200, strings.ReplaceAll(success, "%TX%", strangersTx)},
		{"500", false, 500, "oops"},
		{"500, but settled", true, 500, "oops"},
		{"503 html", false, 503, "<html>"},
		{"garbage", false, 200, "\x00\xff"},
		{"garbage, but settled", true, 200, "{"},
		{"nothing", false, 200, ""},
		{"true as a string", false, 200, `{"success":"true","transaction":"` + strangersTx + `","network":"%NET%"}`},
		{"false as a string, but settled", true, 200, `{"success":"false","transaction":"","network":"%NET%"}`},
		{"success without a transaction", false, 200, `{"success":true,"transaction":"","network":"%NET%"}`},
		{"success on another network", false, 200, `{"success":true,"transaction":"` + strangersTx + `","network":"eip155:1"}`},
		{"success with status 500", false, 500, `{"success":true,"transaction":"` + strangersTx + `","network":"%NET%"}`},
		{"rejected", false, 200, `{"success":false,"errorReason":"invalid_exact_evm_signature","transaction":"","network":"%NET%"}`},
		{"rejected, but settled", true, 200, `{"success":false,"errorReason":"invalid_exact_evm_signature","transaction":"","network":"%NET%"}`},
		{"rejected with 400", false, 400, `{"success":false,"errorReason":"invalid_payload","transaction":"","network":""}`},
		{"reply dropped", false, hangUp, ""},
		{"reply dropped, but settled", true, hangUp, ""},
		{"pending as the reference has it", false, 200, `{"success":false,"errorReason":"settlement_pending","transaction":"` + strangersTx + `","network":"%NET%"}`},
		{"pending with 500", true, 500, `{"success":false,"errorReason":"settlement_pending","transaction":"%TX%","network":"%NET%"}`},
		{"pending by a payment id", true, 200, `{"success":false,"paymentId":"p_1","status":"/p/1"}`},
		{"pending by a payment id for long", false, 200, `{"success":false,"paymentId":"p_1","status":"/p/1"}`},
		{"pending by 202", true, 202, ``},
		{"pending by 202 for long", false, 202, `{"status":"queued"}`},
		{"redirects", false, 307, "http://127.0.0.1:9/"},
		{"too long", false, 200, strings.Repeat(" ", 100<<10) + success},
	} {
		wg.Go(func() {
			who := w.chain.account(t, 1_000_000)
			w.front.on(who.Address().Hex(), settleSays(c.chain, c.status, strings.ReplaceAll(c.body, "%NET%", w.chain.network)))
			header := sign(t, who, w.list, nil)
			for i := range 2 {
				a, err := ask(t, "GET", w.list, payHeader, header)
				if err != nil {
					t.Errorf("%s: %v", c.name, err)
					return
				}
				if c.chain {
					if a.Status != 200 || a.Header.Get("X-Clawr-Replayed") == "true" != (i > 0) {
						t.Errorf("%s, time %d: answered %d %s, but it is on the chain", c.name, i+1, a.Status, a.Body)
					}
				} else if r := a.receipt(t); a.Status != 503 || a.code() != "settlement_pending" || a.Header.Get("Retry-After") == "" || r.Success || r.ErrorReason != "settlement_pending" {
					t.Errorf("%s, time %d: answered %d %s %+v, and may still be charged", c.name, i+1, a.Status, a.Body, r)
				}
			}
			left := w.chain.balance(t, who.Address())
			if (left == 999_000) != c.chain {
				t.Errorf("%s: the buyer has %d left", c.name, left)
			}
		})
	}
	wg.Wait()
	// What a facilitator says of verification alone is refused or passed over.
	for name, c := range map[string]struct {
		status, want int
		body         string
	}{
		"500": {500, 503, "oops"}, "garbage": {200, 503, "{"}, "a string": {200, 503, `{"isValid":"true"}`}, "another's": {200, 503, `{"isValid":true,"payer":"0x0000000000000000000000000000000000000001"}`},
		"no": {200, 402, `{"isValid":false,"invalidReason":"invalid_exact_evm_insufficient_balance"}`}, "no with 400": {400, 402, `{"isValid":false,"invalidReason":"<b>"}`}, "unauthorized": {401, 503, `{"isValid":false}`},
	} {
		who := w.chain.account(t, 1_000_000)
		w.front.on(who.Address().Hex(), func(path string, pass func() (int, string)) (int, string) { return c.status, c.body })
		a := get(t, w.list, payHeader, sign(t, who, w.list, nil))
		if a.Status != c.want || strings.Contains(a.Body, "<b>") || w.chain.balance(t, who.Address()) != 1_000_000 {
			t.Errorf("verification says %s: answered %d %s, want %d", name, a.Status, a.Body, c.want)
		}
	}
	for _, body := range w.front.settlements() {
		if strings.Contains(body, `"quote"`) {
			t.Fatalf("a facilitator saw a quote: %s", body)
		}
	}
}

// garbage is answered 400, 402 or 431, and never by a failure.
func garbage(t *testing.T, w *edgeWorld, who *chain.Key) {
	good := sign(t, who, w.list, nil)
	plain, err := base64.StdEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	twice := strings.Replace(string(plain), `"x402Version":2`, `"x402Version":2,"x402Version":2`, 1)
	for what, header := range map[string]string{
		"a word": "garbage", "one bracket": b64("{"), "nothing": b64(""), "null": b64("null"), "an array": b64("[]"), "a number": b64("1"), "no members": b64("{}"), "url-safe": strings.NewReplacer("+", "-", "/", "_").Replace(good) + "_",
		"unpadded": strings.TrimRight(good+"=", "=") + "A", "spaces inside": good[:20] + " " + good[20:], "not UTF-8": b64("{\"a\":\"\xff\"}"), "deep": b64(strings.Repeat("[", 5000) + strings.Repeat("]", 5000)),
		"a prototype": b64(`{"__proto__":{"x402Version":2},"constructor":{"prototype":{}}}`), "a member twice": b64(twice), "data behind": b64(string(plain) + "{}"), "version 9": b64(strings.Replace(string(plain), `"x402Version":2`, `"x402Version":9`, 1)),
		"a huge number": b64(strings.Replace(string(plain), `"maxTimeoutSeconds":`, `"maxTimeoutSeconds":1e400`, 1)), "a BOM": b64("\ufeff" + string(plain)), "a leading zero": b64(strings.Replace(string(plain), `"value":"1000"`, `"value":"01000"`, 1)),
		"a negative value": b64(strings.Replace(string(plain), `"value":"1000"`, `"value":"-1"`, 1)), "a value over uint256": b64(strings.Replace(string(plain), `"value":"1000"`, `"value":"`+strings.Repeat("9", 78)+`"`, 1)),
		"a value like 1e3": b64(strings.Replace(string(plain), `"value":"1000"`, `"value":"1e3"`, 1)),
	} {
		refused(t, what, get(t, w.list, payHeader, header), 400, "invalid_payment_header")
	}
	refused(t, "two headers", get(t, w.list, payHeader, good, payHeader, good), 400, "invalid_payment_header")
	refused(t, "two kinds", get(t, w.list, payHeader, good, "X-PAYMENT", good), 400, "invalid_payment_header")
	refused(t, "oversize", get(t, w.list, payHeader, strings.Repeat("A", 17<<10)), 431, "headers_too_large")
	refused(t, "a bad query with a payment", get(t, w.list+"?nope=1", payHeader, good), 400, "unknown_parameter")
	refused(t, "a bad query without one", get(t, w.list+"?nope=1"), 402, "missing_payment_signature")
	refused(t, "no such record", get(t, w.list+"/77", payHeader, sign(t, who, w.list+"/77", nil)), 404, "record_not_found")
	paidOK(t, get(t, w.list, payHeader, good)) // none of it used the payment up
}

// Who may have the stored answer (money.md): whoever knows everything that is
// on the chain and in the public challenge has nothing of it.
func TestEdgeGivesStoredAnswersToWhoPaidAlone(t *testing.T) {
	t.Parallel()
	w := newEdgeWorld(t, nil)
	who := w.chain.account(t, 1_000_000)
	header := sign(t, who, w.list, nil)
	paidOK(t, get(t, w.list, payHeader, header))
	p, err := x402.ParsePayment(header)
	if err != nil {
		t.Fatal(err)
	}
	same := func(change func(*x402.PaymentPayload)) string {
		q := *p
		change(&q)
		return q.Header()
	}
	fresh := sign(t, who, w.list, nil)
	other, err := x402.ParsePayment(fresh)
	if err != nil {
		t.Fatal(err)
	}
	for what, h := range map[string]string{
		"without the quote": same(func(q *x402.PaymentPayload) { q.Accepted.Extra.Quote = "" }), "with a fresh quote": same(func(q *x402.PaymentPayload) { q.Accepted.Extra.Quote = other.Accepted.Extra.Quote }),
		"with a quote of its own": same(func(q *x402.PaymentPayload) { q.Accepted.Extra.Quote = strings.Repeat("A", x402.QuoteLen) }),
		"with another signature": same(func(q *x402.PaymentPayload) {
			q.Payload = []byte(strings.Replace(string(q.Payload), `"signature":"0x`, `"signature":"0x00`, 1))
		}),
	} {
		refused(t, what, get(t, w.list, payHeader, h), 409, "already_used")
	}
	v1 := *p
	v1.Version = 1
	refused(t, "as version 1", get(t, w.list, "X-PAYMENT", v1.Header()), 409, "already_used")
	// A payment without a quote is answered again to the address that made it.
	bare := sign(t, who, w.list, func(q *x402.PaymentPayload) { q.Accepted.Extra.Quote = "" })
	paidOK(t, get(t, w.list, payHeader, bare, "CF-Connecting-IP", "192.0.2.1"))
	paidOK(t, get(t, w.list, payHeader, bare, "CF-Connecting-IP", "192.0.2.1"))
	refused(t, "from another address", get(t, w.list, payHeader, bare, "CF-Connecting-IP", "192.0.2.2"), 409, "already_used")
	// And the buyer has it for as long as it is kept.
	if a := get(t, w.list, payHeader, header, "CF-Connecting-IP", "192.0.2.3"); a.Header.Get("X-Clawr-Replayed") != "true" {
		t.Errorf("the buyer is answered %d %s", a.Status, a.Body)
	}
}

// x402.md, "What must pass" 19: a payment for one tenant buys nothing of
// another's, and the limits of one are not the other's.
func TestEdgeMustPass19TenantsDoNotShareMoneyOrLimits(t *testing.T) {
	t.Parallel()
	stranger, err := chain.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	w := newEdgeWorld(t, func(e *edge) {
		second, worker := edgeData(t, e.chain, "second", edgePeople, stranger.Address(), dataset.Options{})
		e.publish(second, worker)
		third, worker := edgeData(t, e.chain, "third", edgePeople, e.payTo, dataset.Options{})
		third.Rate.PerCaller.Requests, third.Rate.PerCaller.WindowSeconds = 2, 60
		e.publish(third, worker)
	})
	who := w.chain.account(t, 1_000_000)
	header := sign(t, who, w.list, nil)
	refused(t, "another payTo", get(t, w.url+"/t/second/v1/records", payHeader, header), 402)
	refused(t, "another tenant's quote", get(t, w.url+"/t/third/v1/records", payHeader, header), 402, "quote_foreign")
	refused(t, "over the rate", func() answer { get(t, w.url+"/t/third/v1/records"); return get(t, w.url+"/t/third/v1/records") }(), 429, "rate_limited")
	paidOK(t, get(t, w.list, payHeader, header))
	refused(t, "once it is paid", get(t, w.url+"/t/second/v1/records", payHeader, header), 409, "payment_bound_elsewhere")
	if got := w.chain.balance(t, stranger.Address()); got != 0 {
		t.Errorf("the other tenant's owner has %d", got)
	}
}

// x402.md, "What must pass" 21: version 1's official client pays the same edge.
func TestEdgeMustPass21Version1ClientPays(t *testing.T) {
	t.Parallel()
	c := devChain(t, "--like-base-sepolia")
	e, url := shop(t, c, nil)
	buyer := c.account(t, 1_000_000)
	got := report(t, script(t, "fetch-v1.mjs", "URL="+url+"?limit=1", "PRIVATE_KEY="+buyer.Reveal(), "COUNT=2", "REPLAY=1"))
	for _, p := range append(got.Payments, got.Replays...) {
		if p.Status != http.StatusOK || len(p.Body.Data) != 1 || p.PaymentResponse == nil || !p.PaymentResponse.Success {
			t.Fatalf("a paid call was answered %+v", p)
		}
		transferred(t, c, p.PaymentResponse.Transaction, buyer.Address(), e.payTo, 1000)
	}
	if earned := c.balance(t, e.payTo); earned != 2000 {
		t.Errorf("the seller has %d, want 2000", earned)
	}
}

// chainID is the number of a network.
func chainID(t testing.TB, network string) uint64 {
	t.Helper()
	id, ok := x402.ChainID(network)
	if !ok {
		t.Fatalf("%s has no number", network)
	}
	return id
}

// highS is the other signature of the same message: its s is in the upper half.
func highS(sig []byte) []byte {
	out := append([]byte(nil), sig...)
	s := new(big.Int).SetBytes(sig[32:64])
	s.Sub(crypto.S256().Params().N, s).FillBytes(out[32:64])
	out[64] = 55 - sig[64]
	return out
}

// raw sends a request line as it is.
func raw(t testing.TB, addr, method, target string) answer {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", method, target, addr)
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s: %v", method, target, err)
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(b)}
}

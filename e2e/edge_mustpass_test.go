package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	nouns "github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/dataset"
	"github.com/402claw/clawr/x402"
)

// edgeWorld is an edge with everything around it that a test may turn.
type edgeWorld struct {
	*edge
	front *front
	list  string // URL of the records
}

// newEdgeWorld starts one that sells a few people; change may alter it before.
func newEdgeWorld(t testing.TB, change func(*edge)) *edgeWorld {
	t.Helper()
	c := devChain(t)
	seller, err := chain.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	w := &edgeWorld{front: newFront(t, facilitate(t, c, seller.Address()))}
	w.edge = newEdge(t, c, seller.Address(), w.front.URL)
	tenant, worker := edgeData(t, c, "people", edgePeople, w.payTo, dataset.Options{Search: []string{"name", "city"}})
	tenant.Hosts = []string{"people.api.example.com"}
	w.publish(tenant, worker)
	if change != nil {
		change(w.edge)
	}
	w.up(t)
	w.list = w.url + "/t/people/v1/records"
	return w
}

const edgePeople = "id,name,city,born,score,active\n1,Ada,London,1815-12-10,9.5,true\n2,Grace,New York,1906-12-09,9.5,false\n3,Edsger,Rotterdam,1930-05-11,,true\n" +
	"4,Barbara,Los Angeles,1939-11-07,7.25,true\n5,Tony,,1934-01-11,8,false\n"

// works counts how often the Worker of people did its work since the last time.
func (w *edgeWorld) works(t testing.TB) (n int) {
	t.Helper()
	var seen []struct {
		Name    string
		Options struct {
			Limits struct{ CPUMs, SubRequests int64 }
		}
		Headers [][2]string
	}
	w.tell(t, "/seen", nil, &seen)
	for _, s := range seen {
		asked := false
		for _, h := range s.Headers {
			asked = asked || h[0] == "x-clawr-do"
		}
		if !asked {
			n++
		}
	}
	return n
}

// earned is what the seller has now.
func (w *edgeWorld) earned(t testing.TB) int64 { return w.chain.balance(t, w.payTo) }

func paidOK(t testing.TB, a answer) *x402.SettleResponse {
	t.Helper()
	if a.Status != http.StatusOK || !strings.Contains(a.Body, `"data":[`) {
		t.Fatalf("a paid call was answered %d %s", a.Status, a.Body)
	}
	r := a.receipt(t)
	if !r.Success || r.Transaction == "" {
		t.Fatalf("the receipt is %+v", r)
	}
	return r
}

func refused(t testing.TB, what string, a answer, status int, codes ...string) {
	t.Helper()
	ok := a.Status == status && len(codes) == 0
	for _, c := range codes {
		ok = ok || a.Status == status && a.code() == c
	}
	if !ok || strings.Contains(a.Body, `"data":[`) {
		t.Errorf("%s: answered %d %s, want %d %v", what, a.Status, a.Body, status, codes)
	}
	if a.Status == http.StatusPaymentRequired && a.Header.Get(x402.HeaderRequired) == "" {
		t.Errorf("%s: a 402 without a challenge", what)
	}
}

const payHeader = "PAYMENT-SIGNATURE"

// x402.md, "What must pass", in workerd. Each part has a buyer of its own.
func TestEdgeMustPass(t *testing.T) {
	t.Parallel()
	w := newEdgeWorld(t, nil)
	buyer := func(t *testing.T) *chain.Key { return w.chain.account(t, 1_000_000) }

	t.Run("01 a payment is charged and worked for once, one after the other and at once", func(t *testing.T) {
		for _, parallel := range []bool{false, true} {
			who, before := buyer(t), w.earned(t)
			header := sign(t, who, w.list, nil)
			w.works(t)
			var mu sync.Mutex
			fresh, txs := 0, map[string]bool{}
			send := func() {
				a, err := ask(t, "GET", w.list, payHeader, header)
				if err != nil {
					t.Error(err)
					return
				}
				r := paidOK(t, a)
				mu.Lock()
				defer mu.Unlock()
				txs[r.Transaction] = true
				if a.Header.Get("X-Clawr-Replayed") == "" {
					fresh++
				}
			}
			var wg sync.WaitGroup
			for range 20 {
				if parallel {
					wg.Go(send)
				} else {
					send()
				}
			}
			wg.Wait()
			if n := w.works(t); n != 1 || fresh != 1 || len(txs) != 1 || w.earned(t)-before != 1000 {
				t.Errorf("parallel %v: worked %d times, %d fresh answers, transactions %v, earned %d", parallel, n, fresh, txs, w.earned(t)-before)
			}
		}
	})

	t.Run("01b the same payment 200 times in parallel", func(t *testing.T) {
		who, before := buyer(t), w.earned(t)
		header := sign(t, who, w.list, nil)
		w.works(t)
		var mu sync.Mutex
		codes, fresh := map[int]int{}, 0
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				a, err := ask(t, "GET", w.list, payHeader, header)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				codes[a.Status]++
				if a.Status == http.StatusOK && a.Header.Get("X-Clawr-Replayed") == "" {
					fresh++
				}
			})
		}
		wg.Wait()
		// The rest waited for the first, or had their budget of resends used up.
		if n := w.works(t); n != 1 || fresh != 1 || w.earned(t)-before != 1000 || codes[402] != 0 || codes[200]+codes[429]+codes[503] != 200 {
			t.Errorf("worked %d times, %d fresh answers, earned %d, answers %v", n, fresh, w.earned(t)-before, codes)
		}
	})

	t.Run("02 a tampered offer", func(t *testing.T) {
		who, before := buyer(t), w.earned(t)
		for what, change := range map[string]func(*x402.PaymentPayload){
			"scheme":   func(p *x402.PaymentPayload) { p.Accepted.Scheme = "upto" },
			"network":  func(p *x402.PaymentPayload) { p.Accepted.Network = "eip155:1" },
			"amount":   func(p *x402.PaymentPayload) { p.Accepted.Amount = "1" },
			"asset":    func(p *x402.PaymentPayload) { p.Accepted.Asset = who.Address().Hex() },
			"payTo":    func(p *x402.PaymentPayload) { p.Accepted.PayTo = who.Address().Hex() },
			"time":     func(p *x402.PaymentPayload) { p.Accepted.MaxTimeoutSeconds++ },
			"name":     func(p *x402.PaymentPayload) { p.Accepted.Extra.Name = "USD" },
			"version":  func(p *x402.PaymentPayload) { p.Accepted.Extra.Version = "1" },
			"quote":    func(p *x402.PaymentPayload) { p.Accepted.Extra.Quote = strings.Repeat("A", x402.QuoteLen) },
			"unknown":  func(p *x402.PaymentPayload) { p.Accepted.Rest = x402.Object{{Name: "bonus", Value: []byte("1")}} },
			"truncate": func(p *x402.PaymentPayload) { p.Accepted.Extra.Quote = p.Accepted.Extra.Quote[:70] },
		} {
			refused(t, what, get(t, w.list, payHeader, sign(t, who, w.list, change)), 402)
		}
		if got := w.earned(t) - before; got != 0 {
			t.Errorf("tampered offers earned %d", got)
		}
	})

	t.Run("03 a bad authorization", func(t *testing.T) {
		who, before := buyer(t), w.earned(t)
		now := uint64(time.Now().Unix())
		domain := x402.NewDomain("USDC", "2", chainID(t, w.chain.network), w.chain.asset)
		alter := func(change func(*x402.Exact), d x402.Domain, signed bool) func(*x402.PaymentPayload) {
			return func(p *x402.PaymentPayload) {
				e, err := x402.ParseExact(p.Payload)
				if err != nil {
					t.Fatal(err)
				}
				change(e)
				if signed {
					if e.Signature, err = e.Sign(key(t, who), d); err != nil {
						t.Fatal(err)
					}
				}
				p.Payload = e.JSON()
			}
		}
		for what, c := range map[string]struct {
			change func(*x402.Exact)
			domain x402.Domain
			signed bool
			reason nouns.Code
		}{
			"to another":       {func(e *x402.Exact) { e.To = who.Address() }, domain, true, x402.ReasonRecipient},
			"too little":       {func(e *x402.Exact) { e.Value = x402.Uint(999) }, domain, true, x402.ReasonValue},
			"too much":         {func(e *x402.Exact) { e.Value = x402.Uint(1001) }, domain, true, x402.ReasonValue},
			"too short":        {func(e *x402.Exact) { e.ValidBefore = x402.Uint(now + 10) }, domain, true, x402.ReasonValidBefore},
			"not yet":          {func(e *x402.Exact) { e.ValidAfter = x402.Uint(now + 1000) }, domain, true, x402.ReasonValidAfter},
			"another's nonce":  {func(e *x402.Exact) { e.Nonce[0] ^= 1 }, domain, false, x402.ReasonSignature},
			"high s":           {func(e *x402.Exact) { e.Signature = highS(e.Signature) }, domain, false, x402.ReasonSignature},
			"another domain":   {func(*x402.Exact) {}, x402.NewDomain("USD Coin", "2", chainID(t, w.chain.network), w.chain.asset), true, x402.ReasonSignature},
			"another chain":    {func(*x402.Exact) {}, x402.NewDomain("USDC", "2", 1, w.chain.asset), true, x402.ReasonSignature},
			"somebody's purse": {func(e *x402.Exact) { e.From[0] ^= 1 }, domain, false, x402.ReasonSignature},
		} {
			refused(t, what, get(t, w.list, payHeader, sign(t, who, w.list, alter(c.change, c.domain, c.signed))), 402, string(c.reason))
		}
		if got := w.earned(t) - before; got != 0 {
			t.Errorf("bad authorizations earned %d", got)
		}
	})

	t.Run("04 a purse that is empty, or emptied between verification and settlement", func(t *testing.T) {
		poor := w.chain.account(t, 0)
		refused(t, "unfunded", get(t, w.list, payHeader, sign(t, poor, w.list, nil)), 402, string(x402.ReasonBalance))
		// Two payments of one purse that holds one: both verify, one can settle.
		who, before := w.chain.account(t, 1000), w.earned(t)
		both := []string{sign(t, who, w.list, nil), sign(t, who, w.list, nil)}
		var gate sync.WaitGroup
		gate.Add(2)
		w.front.on(who.Address().Hex(), func(path string, pass func() (int, string)) (int, string) {
			status, body := pass()
			if path == "/verify" {
				gate.Done()
				gate.Wait()
			}
			return status, body
		})
		answers := make([]answer, 2)
		var wg sync.WaitGroup
		for i := range both {
			wg.Go(func() { answers[i], _ = ask(t, "GET", w.list, payHeader, both[i]) })
		}
		wg.Wait()
		if answers[0].Status != 200 {
			answers[0], answers[1], both[0], both[1] = answers[1], answers[0], both[1], both[0]
		}
		paidOK(t, answers[0])
		refused(t, "emptied", answers[1], 503, "settlement_pending")
		if got := w.earned(t) - before; got != 1000 {
			t.Errorf("earned %d, want 1000", got)
		}
		// It may still be charged, and is, once there is money: then the answer is the buyer's.
		w.front.on(who.Address().Hex(), nil)
		w.chain.fund(t, who.Address(), nil, 1000)
		for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(300 * time.Millisecond) {
			a := get(t, w.list, payHeader, both[1])
			if a.Status == http.StatusOK {
				paidOK(t, a)
				break
			}
			refused(t, "while it is not settled", a, 503, "settlement_pending")
			if time.Now().After(deadline) {
				t.Fatal("a payment that can be charged again was not charged")
			}
		}
	})

	t.Run("05 a settlement that fails after the work withholds the body", func(t *testing.T) {
		who := buyer(t)
		w.front.on(who.Address().Hex(), settleSays(false, 200, fmt.Sprintf(`{"success":false,"errorReason":"invalid_exact_evm_transaction_failed","transaction":"","network":%q}`, w.chain.network)))
		header := sign(t, who, w.list, nil)
		a := get(t, w.list, payHeader, header)
		refused(t, "failed settlement", a, 503, "settlement_pending")
		if r := a.receipt(t); r.Success || r.ErrorReason != "settlement_pending" {
			t.Errorf("the receipt says %+v", r)
		}
		w.edge.events(t, func(list []map[string]any) bool {
			for _, ev := range list {
				if ev["lifecycle"] == "settlement_pending" && ev["billedUsd"] == 0.0 && ev["paymentId"] != nil {
					return true
				}
			}
			return false
		})
	})

	t.Run("07 a lost reply is no second charge, and no loss", func(t *testing.T) {
		who, before := buyer(t), w.earned(t)
		first := true
		w.front.on(who.Address().Hex(), func(path string, pass func() (int, string)) (int, string) {
			status, body := pass()
			if path == "/settle" && first {
				first = false
				return hangUp, ""
			}
			return status, body
		})
		header := sign(t, who, w.list, nil)
		var tx string
		for range 3 {
			r := paidOK(t, get(t, w.list, payHeader, header))
			if tx != "" && tx != r.Transaction {
				t.Errorf("transaction %s, then %s", tx, r.Transaction)
			}
			tx = r.Transaction
		}
		if got := w.earned(t) - before; got != 1000 {
			t.Errorf("earned %d, want 1000", got)
		}
	})

	t.Run("08 a payment buys one request", func(t *testing.T) {
		who := buyer(t)
		header := sign(t, who, w.list+"?limit=2", nil)
		paidOK(t, get(t, w.list+"?limit=2", payHeader, header))
		for _, u := range []string{w.list, w.list + "?limit=3", w.list + "/1", w.url + "/t/people/v1/schema"} {
			refused(t, u, get(t, u, payHeader, header), 409, "payment_bound_elsewhere")
		}
		refused(t, "by host", get(t, w.url+"/v1/records?limit=2", payHeader, header, "Host", "people.api.example.com"), 409, "payment_bound_elsewhere")
		head, err := ask(t, "HEAD", w.list+"?limit=2", payHeader, header)
		if err != nil || head.Status != 409 {
			t.Errorf("HEAD with a GET's payment is answered %d: %v", head.Status, err)
		}
		// The same question in other words is the same request.
		if a := get(t, w.list+"?count=none&limit=2", payHeader, header); a.Status != 200 {
			t.Errorf("the same question in other words is answered %d %s", a.Status, a.Body)
		}
	})

	t.Run("09 no path or method leads past the till", func(t *testing.T) {
		for _, path := range []string{"/v1/records", "/v1/records/1", "/v1//records", "/v1/records/", "/v1%2frecords", "/V1/records", "/v1/records;x", "/./v1/records", "/x/../v1/records",
			"/v1/records%0a", "/v1/records%00", "/v1/records/%2e", "/v1/records/..%2f..%2fv1%2fschema", "//v1/records", "/v1/records/1;x", "/v1/records?limit=1#", "/v1/records%3flimit=1"} {
			for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"} {
				a := raw(t, w.addr, method, "/t/people"+path)
				if a.Status == http.StatusOK || strings.Contains(a.Body, "Ada") {
					t.Errorf("%s %s is answered %d %s without a payment", method, path, a.Status, a.Body)
				}
				if a.Status >= 500 {
					t.Errorf("%s %s is answered %d %s", method, path, a.Status, a.Body)
				}
			}
		}
		if a := raw(t, w.addr, "HEAD", "/t/people/v1/records"); a.Status != 402 || a.Header.Get(x402.HeaderRequired) == "" {
			t.Errorf("HEAD is answered %d", a.Status)
		}
	})

	t.Run("10 garbage is a 400, a 402 or a 431", func(t *testing.T) { garbage(t, w, buyer(t)) })

	t.Run("15 no shared cache keeps what is paid for", func(t *testing.T) {
		a := get(t, w.list)
		if a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("a challenge has Cache-Control %q", a.Header.Get("Cache-Control"))
		}
		who := buyer(t)
		header := sign(t, who, w.list, nil)
		for range 2 {
			a = get(t, w.list, payHeader, header)
			paidOK(t, a)
			if a.Header.Get("Cache-Control") != "private" || !strings.Contains(a.Header.Get("Vary"), "PAYMENT-SIGNATURE") {
				t.Errorf("a paid answer has Cache-Control %q and Vary %q", a.Header.Get("Cache-Control"), a.Header.Get("Vary"))
			}
		}
		tag := a.Header.Get("Etag")
		if n := get(t, w.list, "If-None-Match", tag); n.Status != http.StatusNotModified || n.Body != "" || n.Header.Get("Cache-Control") != "private" {
			t.Errorf("the same version is answered %d %q", n.Status, n.Body)
		}
		if n := get(t, w.list, "If-None-Match", "*"); n.Status != 402 {
			t.Errorf(`If-None-Match: * is answered %d`, n.Status)
		}
	})

	t.Run("20 browsers may pay", func(t *testing.T) {
		a, err := ask(t, "OPTIONS", w.list, "Origin", "https://example.org", "Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "payment-signature,access-control-expose-headers")
		if err != nil || a.Status != http.StatusNoContent || !strings.Contains(a.Header.Get("Access-Control-Allow-Headers"), "PAYMENT-SIGNATURE") ||
			!strings.Contains(a.Header.Get("Access-Control-Allow-Headers"), "Access-Control-Expose-Headers") {
			t.Errorf("OPTIONS is answered %d %v: %v", a.Status, a.Header, err)
		}
		for _, u := range []string{w.list, w.url + "/t/nobody/", w.url + "/t/people/v1/schema"} {
			a := get(t, u, "Origin", "https://example.org")
			if a.Header.Get("Access-Control-Allow-Origin") != "*" || !strings.Contains(a.Header.Get("Access-Control-Expose-Headers"), "PAYMENT-REQUIRED") {
				t.Errorf("%s: CORS headers %v", u, a.Header)
			}
		}
	})
}

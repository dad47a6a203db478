package buyer

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// adversary is a server that answers anything at any time, keeps every payment
// that it ever saw, and charges what it likes while the token would let it.
type adversary struct {
	t   *rapid.T
	now func() time.Time
	// charges by nonce; delivered by nonce, once the buyer had the whole answer.
	charged, delivered map[string]bool
	auths              map[string]*auth
}

type auth struct {
	url    string
	value  int64
	until  int64
	day    string
	signed time.Time
}

// errKilled stands for the end of the process, however sudden.
var errKilled = fmt.Errorf("killed")

func (a *adversary) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	header := r.Header.Get(x402.HeaderSignature)
	killed := rapid.IntRange(0, 19).Draw(a.t, "kill") == 0
	nonce := ""
	if header != "" {
		nonce = a.note(r, header)
	}
	if killed {
		panic(errKilled)
	}
	a.maybeCharge()
	how := rapid.SampledFrom([]string{"challenge", "challenge", "answer", "cut", "503", "500", "not charged", "402", "402 pending", "402 used", "404", "409", "429", "redirect", "hang"}).Draw(a.t, "how")
	if header == "" && how != "answer" && how != "cut" && how != "503" && how != "redirect" {
		how = "challenge"
	}
	h := http.Header{}
	receipt := func(reason string) {
		s := x402.SettleResponse{Success: reason == "", ErrorReason: clawr.Code(reason), Network: usdc.Network}
		if reason == "" {
			s.Transaction = tx
		}
		h.Set(x402.HeaderResponse, s.Header())
	}
	switch how {
	case "challenge", "402":
		s := newSeller(nil, nil)
		s.price = rapid.Int64Range(1, 6000).Draw(a.t, "price")
		s.life = rapid.Int64Range(1, 200).Draw(a.t, "life")
		req := s.required(&http.Request{Host: r.URL.Host, URL: r.URL})
		h.Set(x402.HeaderRequired, req.Header())
		return answer(r, 402, h, ""), nil
	case "402 pending":
		receipt("settlement_pending")
		return answer(r, 402, h, ""), nil
	case "402 used":
		receipt("invalid_exact_evm_nonce_already_used")
		return answer(r, 402, h, ""), nil
	case "cut":
		return nil, io.ErrUnexpectedEOF
	case "hang":
		<-r.Context().Done()
		return nil, r.Context().Err()
	case "503", "500", "404", "409", "429":
		if rapid.Bool().Draw(a.t, "when") {
			h.Set("Retry-After", fmt.Sprint(rapid.IntRange(0, 300).Draw(a.t, "after")))
		}
		var status int
		fmt.Sscan(how, &status)
		return answer(r, status, h, ""), nil
	case "not charged":
		receipt("not_charged")
		return answer(r, 502, h, ""), nil
	case "redirect":
		h.Set("Location", "/other")
		return answer(r, 307, h, ""), nil
	}
	if nonce != "" {
		receipt("")
		a.delivered[nonce] = true
		a.charged[nonce] = a.charged[nonce] || a.now().Unix() < a.auths[nonce].until
	}
	return answer(r, 200, h, "the answer"), nil
}

// note records a payment that was sent, and holds the law against it.
func (a *adversary) note(r *http.Request, header string) string {
	p, err := x402.ParsePayment(header)
	if err != nil {
		a.t.Fatal(err)
	}
	e, err := x402.ParseExact(p.Payload)
	if err != nil {
		a.t.Fatal(err)
	}
	nonce := e.Nonce.Hex()
	if a.auths[nonce] != nil {
		return nonce
	}
	value, _ := e.Value.Int64()
	until, _ := e.ValidBefore.Int64()
	now := a.now()
	a.auths[nonce] = &auth{url: r.URL.String(), value: value, until: until, day: dayOf(now), signed: now}
	return nonce
}

// maybeCharge takes the money of any payment ever seen that the token would
// still let it take.
func (a *adversary) maybeCharge() {
	for nonce, x := range a.auths {
		if !a.charged[nonce] && a.now().Unix() < x.until && rapid.IntRange(0, 3).Draw(a.t, "charge") == 0 {
			a.charged[nonce] = true
		}
	}
}

// TestNoServerMakesABuyerPayTwice: in no sequence of answers, charges, cuts,
// crashes and restarts does a buyer sign a second payment for a call while the
// first may still be charged (nor, with a chain to ask, if it was), nor one of
// more than its limit, nor can more be charged for a day than its limit.
func TestNoServerMakesABuyerPayTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var failed any
		synctest.Test(t, func(t *testing.T) {
			defer func() { failed = recover() }()
			onePurchaser(t, rt)
		})
		if failed != nil {
			panic(failed) // rapid's own, in its own goroutine
		}
	})
}

func onePurchaser(t *testing.T, rt *rapid.T) {
	dir, err := os.MkdirTemp(scratch(), "law")
	if err != nil {
		rt.Fatal(err)
	}
	defer os.RemoveAll(dir)
	w := wallet(t, dir)
	perCall, perDay := clawr.Amount(5000), clawr.Amount(7000)
	if err := w.SetLimits(Limits{PerCall: perCall, PerDay: perDay}); err != nil {
		rt.Fatal(err)
	}
	a := &adversary{t: rt, now: time.Now, charged: map[string]bool{}, delivered: map[string]bool{}, auths: map[string]*auth{}}
	withChain := rapid.Bool().Draw(rt, "chain")
	var node Chain
	if withChain {
		node = &fakeChain{network: usdc.Network, balance: 1 << 40, used: func(n string) bool { return a.charged[n] },
			final: func() time.Time { return time.Now().Add(-20 * time.Second) }}
	}
	for range rapid.IntRange(1, 12).Draw(rt, "calls") {
		u := "http://shop.test/" + rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "what")
		before := map[string]bool{}
		for n := range a.auths {
			before[n] = true
		}
		limit := perCall
		r := Request{URL: u, Timeout: time.Duration(rapid.IntRange(1, 200).Draw(rt, "timeout")) * time.Second}
		if rapid.Bool().Draw(rt, "has max") {
			max := clawr.Amount(rapid.IntRange(0, 8000).Draw(rt, "max"))
			r.Max, limit = &max, min(max, perCall)
		}
		open, err := w.Open()
		if err != nil {
			rt.Fatal(err)
		}
		began := time.Now()
		err = doAndDie(t, w.Dir(), a, node, r)
		if err != nil && clawr.CodeOf(err) == clawr.CodeInternal && err != errKilled {
			rt.Fatalf("an error without a code: %v", err)
		}
		fresh := ""
		for n := range a.auths {
			if !before[n] && fresh != "" {
				rt.Fatalf("one call signed two payments")
			} else if !before[n] {
				fresh = n
			}
		}
		if fresh != "" {
			x := a.auths[fresh]
			if clawr.Amount(x.value) > limit {
				rt.Fatalf("%d were signed for under a limit of %d", x.value, limit)
			}
			for n := range before {
				old := a.auths[n]
				if old.url != u || a.delivered[n] && !isOpen(open, n) {
					continue
				}
				if x.signed.Unix() < old.until {
					rt.Fatalf("a second payment was signed at %d for %s while the first may be charged until %d", x.signed.Unix(), u, old.until)
				}
				if withChain && a.charged[n] {
					rt.Fatalf("a second payment was signed although the chain says that the first was charged")
				}
			}
		}
		if strings.Contains(fmt.Sprint(err), "not charged, which is proven") {
			for n := range a.auths {
				if fresh == n && a.charged[n] {
					rt.Fatalf("a charged payment was proven not charged")
				}
			}
		}
		charged := map[string]clawr.Amount{}
		for n, x := range a.auths {
			if a.charged[n] || time.Now().Unix() < x.until {
				charged[x.day] += clawr.Amount(x.value)
			}
		}
		for day, n := range charged {
			if n > perDay {
				rt.Fatalf("%d were, or may be, charged for %s, the limit is %d", n, day, perDay)
			}
		}
		if took := time.Since(began); took > r.Timeout+refusalTime+stall+time.Second {
			rt.Fatalf("it took %s with a timeout of %s", took, r.Timeout)
		}
		time.Sleep(time.Duration(rapid.IntRange(0, 1500).Draw(rt, "pause")) * time.Second)
	}
}

// doAndDie makes a call as a new process would, which may be killed.
func doAndDie(t *testing.T, dir string, a *adversary, node Chain, r Request) (err error) {
	defer func() {
		if p := recover(); p == errKilled {
			err = errKilled
		} else if p != nil {
			panic(p)
		}
	}()
	w, err := OpenWallet(dir, "")
	if err != nil {
		return err
	}
	_, err = (&Client{Wallet: w, Transport: a, Chain: node}).Do(context.WithoutCancel(t.Context()), r)
	return err
}

// isOpen reports whether the payment with a nonce was open.
func isOpen(open []Payment, nonce string) bool {
	for _, p := range open {
		if p.Nonce == nonce {
			return true
		}
	}
	return false
}

package dispatch_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/x402"
)

// The published attacks on servers that take payments, a thousand attempts
// each, against a real book and a real chain: Five Attacks (arXiv 2605.11781)
// by their Roman numbers, Free-Riding (arXiv 2605.30998) by F and a number.

// sells puts the metals on sale under every policy, for one address.
func (c *onChain) sells() map[ledger.Policy]string {
	c.Helper()
	c.d.Exposure = rich
	tenants, err := c.db.Tenants(c.Context())
	c.ok(err)
	t := tenants[slices.IndexFunc(tenants, func(t clawr.Tenant) bool { return t.Slug == "metals" })]
	out := map[ledger.Policy]string{ledger.SettleBeforeResponse: "/t/metals"}
	for _, p := range []ledger.Policy{ledger.SettleFirst, ledger.Async} {
		slug := strings.ReplaceAll(string(p), "_", "-")
		c.deploy(clawr.Tenant{Slug: slug, Manifest: clawr.Manifest{Content: t.Content, Price: price, X402: true, Settle: string(p)}})
		out[p] = "/t/" + slug
	}
	c.running(c.d)
	return out
}

// leaks reports whether a is an answer that is sold, or has one in it.
func leaks(a *answer) bool { return a.Code < 300 || strings.Contains(a.Body.String(), `"data"`) }

// settled waits until the chain has moved n payments, and wants the book to
// agree.
func (c *onChain) settled(n int) {
	c.Helper()
	booked := func() (sum int64) {
		rows, err := c.db.Payments(context.WithoutCancel(c.Context()), store.PaymentFilter{Limit: 1 << 20})
		c.ok(err)
		for _, p := range rows {
			if p.Money == ledger.Mined || p.Money == ledger.Final {
				sum += p.Amount
			}
		}
		return sum
	}
	want := int64(n) * price
	c.until(fmt.Sprint("the settlement of ", n), func() bool { return c.units(payTo) >= want && booked() >= want })
	if chain, book := c.units(payTo), booked(); chain != want || book != want {
		c.Errorf("the chain moved %d units and the book says %d, want %d", chain, book, want)
	}
}

// II: one payment's header is replayed for everything else that is on sale.
func TestAttackIIReplayedHeader(t *testing.T) {
	c := newChainWorld(t)
	shops := c.sells()
	for policy, shop := range shops {
		q := c.buy(shop + "/v1/records?metal=gold")
		c.send(q).is(200, "")
		granted := 0
		for i := range attempts {
			again := q
			again.from = fmt.Sprintf("198.51.100.%d", i%250)
			switch i % 4 {
			case 0:
				again.path = fmt.Sprintf("%s/v1/records?metal=gold&limit=%d", shop, 2+i)
			case 1:
				again.path = fmt.Sprintf("%s/v1/records?limit=%d", shop, 1+i)
			case 2:
				again.path = fmt.Sprintf("%s/v1/records/%d", shop, 1+i%3)
			case 3: // the shop next door, at the same price and for the same address
				for _, other := range shops {
					if other != shop {
						again.path = other + "/v1/records?metal=gold"
					}
				}
			}
			if a := c.send(again); leaks(a) {
				granted++
				t.Logf("%s: %d %s", again.path, a.Code, a.Body)
			}
		}
		if granted > 0 {
			t.Errorf("%s: %d of %d replays were granted", policy, granted, attempts)
		}
	}
	c.settled(len(shops))
}

// sharedCache is an HTTP cache that others use too, and that keeps all that it
// may by RFC 9111: it decides by Cache-Control, and by Vary.
type sharedCache struct {
	c    *onChain
	mu   sync.Mutex
	kept map[string]*answer
}

func (s *sharedCache) get(q request) *answer {
	r := q.http()
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, a := range s.kept {
		url, vary, _ := strings.Cut(key, "\n")
		if url == r.Host+r.URL.String() && vary == varied(a, r) {
			return a
		}
	}
	a := s.c.send(q)
	control := a.Header().Get("Cache-Control")
	if !strings.Contains(control, "private") && !strings.Contains(control, "no-store") {
		s.kept[r.Host+r.URL.String()+"\n"+varied(a, r)] = a
	}
	return a
}

// varied are the request's headers that an answer depends on.
func varied(a *answer, r *http.Request) string {
	var b strings.Builder
	for _, line := range a.Header().Values("Vary") {
		for name := range strings.SplitSeq(line, ",") {
			fmt.Fprintf(&b, "%s=%q;", strings.TrimSpace(name), r.Header.Values(strings.TrimSpace(name)))
		}
	}
	return b.String()
}

// III: a CDN between us and the callers keeps paid answers, or hops do not
// agree on which header is the payment.
func TestAttackIIIProxiesAndHeaders(t *testing.T) {
	t.Run("a shared cache", func(t *testing.T) {
		c := newChainWorld(t)
		shops := c.sells()
		cache := &sharedCache{c: c, kept: map[string]*answer{}}
		var paths []string
		for _, shop := range shops {
			for i := range 8 {
				q := c.buy(fmt.Sprintf("%s/v1/records?metal=gold&limit=%d", shop, 1+i))
				if a := cache.get(q); !leaks(a) {
					t.Fatalf("%d %s", a.Code, a.Body)
				}
				paths = append(paths, q.path)
			}
		}
		leaked := 0
		for i := range attempts {
			q := request{path: paths[i%len(paths)], from: "198.51.100.7"}
			if i%2 == 1 {
				q.header = http.Header{"If-None-Match": {"*"}}
			}
			if leaks(cache.get(q)) {
				leaked++
			}
		}
		if leaked > 0 {
			t.Errorf("%d of %d callers got what others paid for", leaked, attempts)
		}
	})
	t.Run("headers", func(t *testing.T) {
		c := newChainWorld(t)
		q := c.buy("/t/metals/v1/records?metal=gold")
		c.send(q).is(200, "")
		p, err := x402.ParsePayment(q.pay)
		c.ok(err)
		stripped := *p
		stripped.Accepted.Extra.Quote = ""
		public := stripped.Header() // all of it that the chain shows
		leaked := 0
		for i := range attempts {
			forms := []http.Header{
				{"Payment-Signature": {public, public}},
				{"Payment-Signature": {public}, "X-Payment": {public}},
				{"Payment-Signature": {public + ", " + public}},
				{"Payment-Signature": {public + "," + strings.Repeat("A", i%64)}},
				{"Payment_Signature": {q.pay}},
				{"payment-signature": {q.pay}},
				{"Payment-Signature ": {q.pay}},
				{"X-Forwarded-Payment-Signature": {q.pay}},
				{"Payment-Response": {q.pay}},
				{"Payment-Required": {q.pay}},
				{"Cookie": {"PAYMENT-SIGNATURE=" + q.pay}},
				{"Authorization": {"Bearer " + q.pay}},
				{"X-Payment": {public}},
				{"Payment-Signature": {" " + public}},
				{"Payment-Signature": {strings.ToLower(public)}},
				{"Payment-Signature": {public[:len(public)-1-i%8]}},
				{"Payment-Signature": {public}, "X-Forwarded-For": {"192.0.2.1"}, "Forwarded": {"for=192.0.2.1"}, "X-Real-Ip": {"192.0.2.1"}},
				{"X-Original-Url": {"/t/metals/v1/schema"}, "X-Rewrite-Url": {"/t/metals/v1/schema"}},
				{"X-Http-Method-Override": {"OPTIONS"}},
				{"Settlement-Overrides": {`{"amount":"0"}`}},
			}
			attack := request{path: "/t/metals/v1/records?metal=gold", header: forms[i%len(forms)], from: fmt.Sprintf("198.51.100.%d", i%250)}
			if a := c.send(attack); leaks(a) {
				leaked++
				t.Logf("%v: %d %s", attack.header, a.Code, a.Body)
			}
		}
		if leaked > 0 {
			t.Errorf("%d of %d attempts got the answer", leaked, attempts)
		}
		c.settled(1)
	})
}

// F1: one payment is presented for a resource and for its siblings at the same
// price, all at once.
func TestAttackF1SiblingResource(t *testing.T) {
	c := newChainWorld(t)
	shops := c.sells()
	paths := slices.Sorted(func(yield func(string) bool) {
		for _, p := range shops {
			if !yield(p) {
				return
			}
		}
	})
	other := c.second()
	const siblings = 20
	granted, tried := 0, 0
	for n := range attempts / siblings {
		home := paths[n%len(paths)]
		q := c.buy(home + "/v1/records?limit=1")
		qs := make([]request, siblings)
		for i := range qs {
			qs[i] = q
			qs[i].path = fmt.Sprintf("%s/v1/records?metal=gold&limit=%d", paths[(n+i/7)%len(paths)], 1+i)
			if i%2 == 1 {
				qs[i].node = other
			}
		}
		won := 0
		for _, a := range c.atOnce(qs...) {
			tried++
			if a.Code == 200 {
				won++
			} else if leaks(a) {
				t.Errorf("%d %s", a.Code, a.Body)
			}
		}
		if won > 1 {
			granted += won - 1
		}
		if won == 0 {
			t.Errorf("payment %d bought nothing at all", n)
		}
	}
	if granted > 0 || tried != attempts {
		t.Errorf("%d of %d presentations were granted besides the one that was paid", granted, tried)
	}
	c.settled(attempts / siblings)
}

// F2: one payment is presented many times at once, on two nodes, so that it is
// settled, or answered, more than once.
func TestAttackF2DuplicateSettlements(t *testing.T) {
	c := newChainWorld(t)
	shops := c.sells()
	other := c.second()
	const twins = 20
	n := 0
	for policy, shop := range shops {
		for range (attempts + twins*len(shops) - 1) / (twins * len(shops)) { // rounded up
			n++
			q := c.buy(fmt.Sprintf("%s/v1/records?metal=gold&limit=%d", shop, n))
			qs := make([]request, twins)
			for i := range qs {
				qs[i] = q
				if i%2 == 1 {
					qs[i].node = other
				}
			}
			first, body := 0, ""
			for _, a := range c.atOnce(qs...) {
				a.is(200, "")
				if a.Header().Get("X-Clawr-Replayed") == "" {
					first++
				}
				if body == "" {
					body = a.Body.String()
				}
				if a.Body.String() != body {
					t.Errorf("%s: two answers to one payment", policy)
				}
			}
			if first != 1 {
				t.Errorf("%s: the work was done for %d of %d presentations", policy, first, twins)
			}
		}
	}
	if n*twins < attempts {
		t.Errorf("%d presentations, want %d", n*twins, attempts)
	}
	c.settled(n)
	events := map[string]int{}
	for _, e := range c.events() {
		if e.Countable {
			events[e.PaymentID]++
		}
	}
	for id, count := range events {
		if count != 1 {
			t.Errorf("payment %s counts as %d calls", id, count)
		}
	}
}

// second is one more node on the same book and chain.
func (c *onChain) second() *dispatch.Dispatcher {
	c.Helper()
	d := c.dispatcher("node-2")
	d.Workers, d.Asset, d.Payments, d.Deadline, d.Exposure = c.d.Workers, c.d.Asset, c.d.Payments, c.d.Deadline, c.d.Exposure
	c.reload(d)
	return d
}

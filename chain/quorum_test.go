package chain_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/rpcproxy"
)

// providers are n proxies of w's chain, and a quorum of them.
func (w *world) providers(t testing.TB, n int) (*chain.Quorum, []*rpcproxy.Proxy) {
	t.Helper()
	var list []*rpcproxy.Proxy
	var urls []string
	for range n {
		p, err := rpcproxy.Start(w.URL())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			for _, err := range p.Close() {
				t.Error(err)
			}
		})
		list, urls = append(list, p), append(urls, p.URL)
	}
	q, err := chain.DialQuorum(t.Context(), w.Network(), urls)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	return q, list
}

// pay carries a transfer out, and gives its transaction.
func (w *world) pay(t testing.TB, tr chain.Transfer) chain.Tx {
	t.Helper()
	tx := w.build(t, w.cl, tr)
	r, _, err := w.cl.Submit(t.Context(), tx, 10*time.Second)
	if err != nil || r == nil || r.Find(tr).Use != chain.Paid {
		t.Fatalf("%+v, %v", r, err)
	}
	return tx
}

func forged(tr chain.Transfer) rpcproxy.Forged {
	return rpcproxy.Forged{Asset: tr.Asset, Payer: tr.Payer, PayTo: tr.PayTo, Amount: tr.Amount, Nonce: tr.Nonce}
}

// lies are what one of three may do.
func lies(w *world, tr chain.Transfer) map[string]func(*rpcproxy.Proxy) {
	return map[string]func(*rpcproxy.Proxy){
		"honest":       func(*rpcproxy.Proxy) {},
		"down":         func(p *rpcproxy.Proxy) { p.Door(rpcproxy.Down) },
		"silent":       func(p *rpcproxy.Proxy) { p.Door(rpcproxy.Silent) },
		"stale head":   func(p *rpcproxy.Proxy) { p.StaleHead(1) },
		"false final":  func(p *rpcproxy.Proxy) { p.FalseFinal(1_000_000) },
		"wrong hashes": func(p *rpcproxy.Proxy) { p.WrongHashes() },
		"forged":       func(p *rpcproxy.Proxy) { p.Forge(forged(tr)) },
		"denied":       func(p *rpcproxy.Proxy) { p.Deny() },
		"swallowed":    func(p *rpcproxy.Proxy) { p.Swallow() },
		"refused":      func(p *rpcproxy.Proxy) { refuseAll(p) },
		"429": func(p *rpcproxy.Proxy) {
			p.Door(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(429); return false })
		},
	}
}

func refuseAll(p *rpcproxy.Proxy) {
	no := func([]json.RawMessage, func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		return nil, &rpcproxy.Error{Code: -32000, Message: "header not found"}
	}
	for _, m := range []string{"eth_getBlockByNumber", "eth_getTransactionReceipt", "eth_getLogs", "eth_call", "eth_sendRawTransaction", "eth_getTransactionCount"} {
		p.On(m, no)
	}
}

// Whatever one of three does, the other two are believed, wherever it stands.
func TestOneLiarOfThreeChangesNothing(t *testing.T) {
	w := newStillWorld(t)
	tr := w.transfer(t, 10, 1)
	tx := w.pay(t, tr)
	unpaid := w.transfer(t, 10, 2)
	assets := []common.Address{w.asset}
	q, list := w.providers(t, 3)
	for name, lie := range lies(w, unpaid) {
		for at, p := range list {
			t.Run(fmt.Sprintf("%s %d", name, at), func(t *testing.T) {
				lie(p)
				defer p.Honest()
				ctx := t.Context()
				head, err := w.cl.Head(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if b, err := q.Head(ctx); err != nil || b.Hash != head.Hash {
					t.Errorf("head %+v, %v, want %+v", b, err, head)
				}
				if b, err := q.Finalized(ctx); err != nil || b.Hash != head.Hash || b.Time != head.Time {
					t.Errorf("finalized %+v, %v, want %+v", b, err, head)
				}
				if b, err := q.Canonical(ctx, head.Number); err != nil || b == nil || b.Hash != head.Hash {
					t.Errorf("block %+v, %v, want %+v", b, err, head)
				}
				if b, err := q.Canonical(ctx, head.Number+1_000_000); err != nil || b != nil {
					t.Errorf("a block that is not there: %+v, %v", b, err)
				}
				if r, err := q.Receipt(ctx, tx.Hash); err != nil || r == nil || r.Find(tr).Use != chain.Paid || r.Find(unpaid).Use != chain.Unused {
					t.Errorf("receipt %+v, %v", r, err)
				}
				if r, err := q.Receipt(ctx, common.Hash{1}); err != nil || r != nil {
					t.Errorf("a transaction that is not there: %+v, %v", r, err)
				}
				for what, want := range map[*chain.Transfer]bool{&tr: true, &unpaid: false} {
					if used, err := q.AuthorizationState(ctx, w.asset, what.Payer, what.Nonce); err != nil || used != want {
						t.Errorf("used: %v, %v, want %v", used, err, want)
					}
				}
				if _, f, err := q.Search(ctx, tr, head.Time.Add(-time.Hour)); err != nil || f.Use != chain.Paid || f.Tx != tx.Hash {
					t.Errorf("found %+v, %v", f, err)
				}
				if _, f, err := q.Search(ctx, unpaid, head.Time.Add(-time.Hour)); err != nil || f.Use != chain.Unused {
					t.Errorf("found what is not there: %+v, %v", f, err)
				}
				want, err := w.cl.Blocks(ctx, 0, head.Number, assets)
				if err != nil {
					t.Fatal(err)
				}
				got, err := q.Blocks(ctx, 0, head.Number, assets)
				if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("blocks %v, %v, want %v", got, err, want)
				}
				if a, err := q.Asset(ctx, w.asset); err != nil || a != w.Asset() {
					t.Errorf("asset %+v, %v, want %+v", a, err, w.Asset())
				}
				if a, err := q.Asset(ctx, w.shop); clawr.CodeOf(err) != clawr.CodeNoContract {
					t.Errorf("an asset that is none: %+v, %v", a, err)
				}
				if n, err := q.FinalNonce(ctx, w.signer.Address()); err != nil || n != 1 {
					t.Errorf("finalized nonce %d, %v, want 1", n, err)
				}
				if n, err := q.Nonce(ctx, w.signer.Address()); err != nil || n != 1 {
					t.Errorf("nonce %d, %v, want 1", n, err)
				}
			})
		}
	}
}

// A broadcast goes to all: a provider that keeps it to itself delays nobody.
func TestBroadcastsGoToAll(t *testing.T) {
	w := newStillWorld(t)
	q, list := w.providers(t, 3)
	for name, lie := range lies(w, w.transfer(t, 10, 99)) {
		t.Run(name, func(t *testing.T) {
			lie(list[0])
			defer list[0].Honest()
			tr := w.transfer(t, 10, time.Now().UnixNano())
			r, err := q.Submit(t.Context(), w.build(t, w.cl, tr), time.Minute)
			if err != nil || r == nil || r.Find(tr).Use != chain.Paid {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	if list[1].Calls("eth_sendRawTransaction") == 0 || list[2].Calls("eth_sendRawTransaction") == 0 {
		t.Error("somebody was not told")
	}
}

// Where no two agree there is no verdict, and no verdict is an error.
func TestConflictingProvidersAreNoVerdict(t *testing.T) {
	w := newStillWorld(t)
	tr, unpaid := w.transfer(t, 10, 1), w.transfer(t, 10, 2)
	tx := w.pay(t, tr)
	q, list := w.providers(t, 3)
	list[0].Forge(forged(unpaid))
	list[1].Door(rpcproxy.Down)
	if r, err := q.Receipt(t.Context(), common.Hash{1}); err == nil {
		t.Errorf("receipt %+v", r)
	}
	if used, err := q.AuthorizationState(t.Context(), w.asset, unpaid.Payer, unpaid.Nonce); err == nil {
		t.Errorf("used: %v", used)
	}
	if _, f, err := q.Search(t.Context(), unpaid, time.Unix(0, 0)); err == nil && f.Use != chain.Unused {
		t.Errorf("found %+v", f)
	}
	list[0].Honest()
	list[0].Deny()
	if r, err := q.Receipt(t.Context(), tx.Hash); err == nil {
		t.Errorf("receipt %+v", r)
	}
	list[0].Honest()
	list[0].FalseFinal(1000)
	b, err := q.Finalized(t.Context())
	if head, _ := w.cl.Head(t.Context()); err == nil && b.Hash != head.Hash {
		t.Errorf("finalized %+v", b)
	}
	list[2].Door(rpcproxy.Down)
	if b, err := q.Head(t.Context()); err == nil {
		t.Errorf("one of three is a head: %+v", b)
	}
}

// A provider that is down when clawr starts takes part when it is back; two of
// three that are down, one on another chain, and one named twice are refused.
func TestDialQuorum(t *testing.T) {
	w := newStillWorld(t)
	var urls []string
	var list []*rpcproxy.Proxy
	for range 3 {
		p, err := rpcproxy.Start(w.URL())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		urls, list = append(urls, p.URL), append(list, p)
	}
	list[0].Door(rpcproxy.Down)
	q, err := chain.DialQuorum(t.Context(), w.Network(), urls)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if q.Size() != 3 || q.Need() != 2 {
		t.Errorf("%d of %d", q.Need(), q.Size())
	}
	list[1].Door(rpcproxy.Down)
	if _, err := q.Head(t.Context()); err == nil {
		t.Error("one of three decides")
	}
	list[0].Honest()
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		if _, err := q.Head(t.Context()); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a provider that is back is not asked")
		}
	}
	if _, err := chain.DialQuorum(t.Context(), w.Network(), []string{urls[0], urls[1], "http://127.0.0.1:1"}); clawr.CodeOf(err) != clawr.CodeUnreachable {
		t.Errorf("one of three is there: %v", err)
	}
	if _, err := chain.DialQuorum(t.Context(), "eip155:1", urls[:1]); clawr.CodeOf(err) != clawr.CodeWrongChain {
		t.Errorf("another chain: %v", err)
	}
	if _, err := chain.DialQuorum(t.Context(), w.Network(), []string{urls[0], urls[2], urls[0]}); clawr.CodeOf(err) != clawr.CodeUsage {
		t.Errorf("one provider twice: %v", err)
	}
	if _, err := chain.DialQuorum(t.Context(), w.Network(), nil); clawr.CodeOf(err) != clawr.CodeUsage {
		t.Errorf("no provider: %v", err)
	}
}

// A client of several providers asks the next when one does not answer.
func TestDialAny(t *testing.T) {
	w := newStillWorld(t)
	_, list := w.providers(t, 3)
	urls := []string{list[0].URL, list[1].URL, list[2].URL}
	cl, err := chain.DialAny(t.Context(), urls)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	down := atomic.Int64{}
	for i, p := range list {
		p.Door(func(w http.ResponseWriter, r *http.Request) bool {
			if int64(i) < down.Load() {
				panic(http.ErrAbortHandler)
			}
			return true
		})
	}
	for n := range 3 {
		down.Store(int64(n))
		if _, err := cl.Head(t.Context()); err != nil {
			t.Errorf("%d of 3 are down: %v", n, err)
		}
	}
	down.Store(3)
	if _, err := cl.Head(t.Context()); clawr.CodeOf(err) != clawr.CodeUnreachable {
		t.Errorf("all are down: %v", err)
	}
}

// Whatever one of three says of what payments would do, each of them is
// foretold as the other two do; what those do not agree on, as unknown, and the
// rest all the same.
func TestOneLiarOfThreeForetellsNothing(t *testing.T) {
	w := newStillWorld(t)
	used, good, poor := w.transfer(t, 10, 1), w.transfer(t, 10, 2), w.transfer(t, 1<<50, 3)
	w.pay(t, used)
	ts := []chain.Transfer{used, good, poor}
	q, list := w.providers(t, 3)
	truth, err := w.cl.ProbeAll(t.Context(), w.signer.Address(), ts, 150_000)
	if err != nil || !truth[0].Used || truth[1].Used || truth[1].Rejection != nil || truth[2].Rejection == nil {
		t.Fatalf("foretold %+v, %v", truth, err)
	}
	word := func(n string) rpcproxy.Rule {
		return func([]json.RawMessage, func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
			return json.Marshal("0x" + strings.Repeat("0", 63) + n)
		}
	}
	all := lies(w, good)
	all["all is well"] = func(p *rpcproxy.Proxy) { p.On("eth_call", word("0")) }
	all["all is used"] = func(p *rpcproxy.Proxy) { p.On("eth_call", word("1")) }
	all["all have code"] = func(p *rpcproxy.Proxy) { p.On("eth_getCode", word("1")); p.On("eth_call", word("1")) }
	all["all revert"] = func(p *rpcproxy.Proxy) {
		p.On("eth_call", func([]json.RawMessage, func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
			return nil, &rpcproxy.Error{Code: 3, Message: "execution reverted"}
		})
	}
	for name, lie := range all {
		for at, p := range list {
			t.Run(fmt.Sprintf("%s %d", name, at), func(t *testing.T) {
				lie(p)
				defer p.Honest()
				for _, some := range [][]int{{0, 1, 2}, {0}, {1}, {2}} { // together, and each alone
					var asked []chain.Transfer
					for _, i := range some {
						asked = append(asked, ts[i])
					}
					got, err := q.ProbeAll(t.Context(), w.signer.Address(), asked, 150_000)
					if err != nil {
						t.Fatal(err)
					}
					for k, i := range some {
						if g, want := got[k], truth[i]; g.Err != nil || g.Contract != want.Contract || g.Used != want.Used || (g.Rejection == nil) != (want.Rejection == nil) {
							t.Errorf("of %d, transfer %d is foretold as %+v, want %+v", len(some), i, g, want)
						}
					}
				}
			})
		}
	}

	list[0].Door(rpcproxy.Down)
	list[1].Forge(forged(good)) // its authorization is used, and so is every other
	got, err := q.ProbeAll(t.Context(), w.signer.Address(), ts[:1], 150_000)
	if err != nil || got[0].Err != nil || !got[0].Used {
		t.Errorf("what both say is %+v, %v", got, err)
	}
	got, err = q.ProbeAll(t.Context(), w.signer.Address(), ts[1:2], 150_000)
	if err != nil || clawr.CodeOf(got[0].Err) != clawr.CodeUnreachable {
		t.Errorf("what two do not agree on is %+v, %v", got, err)
	}
	list[1].Door(rpcproxy.Down)
	if got, err := q.ProbeAll(t.Context(), w.signer.Address(), ts, 150_000); clawr.CodeOf(err) != clawr.CodeUnreachable {
		t.Errorf("one of three foretells %+v, %v", got, err)
	}
}

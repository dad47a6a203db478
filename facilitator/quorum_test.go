package facilitator_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/rpcproxy"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/facilitator/onchain"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// providers puts n proxies between w's facilitator and the chain: what they
// agree on is believed.
func (w *world) providers(n int) []*rpcproxy.Proxy {
	w.Helper()
	upstream := ""
	if w.anvil != nil {
		upstream = w.anvil.URL
	} else {
		upstream = w.chain.URL()
	}
	var list []*rpcproxy.Proxy
	var urls []string
	for range n {
		p, err := rpcproxy.Start(upstream)
		w.ok(err)
		w.Cleanup(func() {
			for _, err := range p.Close() {
				w.Error(err)
			}
		})
		list, urls = append(list, p), append(urls, p.URL)
	}
	q, err := chain.DialQuorum(w.Context(), w.asset.Network, urls)
	w.ok(err)
	w.Cleanup(q.Close)
	client, err := chain.DialAny(w.Context(), urls)
	w.ok(err)
	w.Cleanup(client.Close)
	client.Now = w.now
	w.believed = &onchain.Node{Client: client, Key: w.node.Key, Quorum: q}
	w.fac = w.facilitator()
	w.ok(w.fac.Start(w.Context()))
	return list
}

func (w *world) forged(p *x402.PaymentPayload) rpcproxy.Forged {
	w.Helper()
	e, err := x402.ParseExact(p.Payload)
	w.ok(err)
	value, _ := e.Value.Int64()
	return rpcproxy.Forged{Asset: common.HexToAddress(w.asset.Address), Payer: e.From, PayTo: e.To, Amount: value, Nonce: e.Nonce}
}

// submitted is a payment that somebody may have and nobody has settled.
func (w *world) submitted(p *x402.PaymentPayload) ledger.Payment {
	w.Helper()
	row := w.reserved(p)
	w.ok(w.db.Submit(w.Context(), row.ID, row.Epoch, "https://gone.example"))
	return *w.row(row.Key)
}

// One liar of three makes nothing paid: neither with receipts, nor with logs,
// nor with state; and nothing dead, with whatever time it finalizes.
func TestOneLiarOfThreeIsNoVerdict(t *testing.T) {
	w := newWorld(t)
	list := w.providers(3)
	v := w.watcher()
	w.look(v)
	for i, liar := range list {
		for name, lie := range map[string]func(x402.PaymentPayload){
			"forged":       func(p x402.PaymentPayload) { liar.Forge(w.forged(&p)) },
			"false final":  func(x402.PaymentPayload) { liar.FalseFinal(3600) },
			"wrong hashes": func(x402.PaymentPayload) { liar.WrongHashes() },
			"stale head":   func(x402.PaymentPayload) { liar.StaleHead(1) },
			"all of it": func(p x402.PaymentPayload) {
				liar.FalseFinal(3600)
				liar.Forge(w.forged(&p))
				liar.Swallow()
			},
		} {
			t.Run(fmt.Sprintf("%s %d", name, i), func(t *testing.T) {
				p := w.payment()
				row := w.submitted(p)
				lie(*p)
				defer liar.Honest()
				w.fund(w.key(), 1) // a block more
				w.look(v)
				out, err := w.fac.Reconcile(t.Context(), row)
				w.ok(err)
				if out.State == ledger.Settled || out.State == ledger.NotCharged {
					t.Errorf("reconciled as %+v", out)
				}
				w.money(row.Key, ledger.Signed)
				// What does happen is seen all the same.
				tx := w.submitAs(w.stranger(), p)
				w.look(v)
				if got := w.money(row.Key, ledger.Final); got.Tx != tx {
					t.Errorf("paid by %s, want %s", got.Tx, tx)
				}
				// Nor is he believed who says what a payment would do.
				row = w.reserved(w.payment())
				if out, err = w.fac.Settle(t.Context(), row); err != nil || out.State != ledger.Settled {
					t.Errorf("settled as %+v, %v", out, err)
				}
			})
		}
	}
}

// A liar who hides what was paid does not make it dead, whatever the time is.
func TestADeniedPaymentIsNotDead(t *testing.T) {
	w := newWorld(t)
	list := w.providers(3)
	for i, liar := range list {
		p := w.payment()
		row := w.submitted(p)
		w.submitAs(w.stranger(), p)
		w.ahead.Add(200) // it would be over, were it unused
		liar.Deny()
		out, err := w.fac.Reconcile(t.Context(), row)
		w.ok(err)
		if out.State == ledger.NotCharged {
			t.Errorf("denied by %d: %+v", i, out)
		}
		liar.Honest()
		want(t, w.settle(row), ledger.Settled, "")
	}
	// Two of three are the majority, and one that is down leaves them one each:
	// nobody knows.
	p := w.payment()
	row := w.submitted(p)
	w.submitAs(w.stranger(), p)
	w.ahead.Add(200)
	list[0].Deny()
	list[1].Door(rpcproxy.Down)
	out, err := w.fac.Reconcile(t.Context(), row)
	w.ok(err)
	if out.State == ledger.NotCharged || out.State == ledger.Settled {
		t.Errorf("one against one: %+v", out)
	}
	w.money(row.Key, ledger.Signed)
}

// Reorganisations are followed by what the providers agree on: one that is on
// the old branch, or makes one up, moves nothing.
func TestALiarCausesNoReorg(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	list := w.providers(3)
	v := w.watcher()
	w.look(v)
	row := w.reserved(w.payment())
	want(t, w.settle(row), ledger.Settled, "")
	w.look(v)
	w.at("unmine.before", func() { t.Error("evidence was taken back on a liar's word") })
	for _, liar := range list {
		for _, lie := range []func(){liar.WrongHashes, func() { liar.StaleHead(2) }, func() { liar.FalseFinal(1000) }, func() { liar.Door(rpcproxy.Down) }} {
			lie()
			w.mine(1)
			w.look(v)
			w.money(row.Key, ledger.Mined)
			liar.Honest()
		}
	}
	w.at("unmine.before", nil)
	list[2].Door(rpcproxy.Down)
	head, err := w.node.Head(t.Context())
	w.ok(err)
	w.reorg(int(head.Number - w.row(row.Key).BlockNumber + 1))
	w.look(v)
	w.money(row.Key, ledger.Signed)
}

// Many payments at once, with one provider that is worse every time.
func TestPaymentsSettleBesideALiar(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, devchainOptions(100*time.Millisecond))
	list := w.providers(3)
	bad := []func(*rpcproxy.Proxy){
		func(p *rpcproxy.Proxy) { p.Door(rpcproxy.Down) }, func(p *rpcproxy.Proxy) { p.Swallow() }, func(p *rpcproxy.Proxy) { p.Deny() },
		func(p *rpcproxy.Proxy) { p.WrongHashes() }, func(p *rpcproxy.Proxy) { p.StaleHead(3) }, func(p *rpcproxy.Proxy) { p.FalseFinal(100) },
	}
	paid := int64(0)
	for i, lie := range bad {
		liar := list[i%3]
		lie(liar)
		var wg sync.WaitGroup
		for range 10 {
			row := w.reserved(w.payment())
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				if out, err := w.fac.Settle(ctx, row); err != nil || out.State != ledger.Settled {
					t.Errorf("lie %d: %+v, %v", i, out, err)
				}
			})
		}
		wg.Wait()
		paid += 10_000
		liar.Honest()
	}
	if got := w.units(w.payTo); got != paid {
		t.Errorf("the seller has %d, want %d", got, paid)
	}
}

// stateOf has a provider answer what becomes of authorizations as of a block
// that a rule gives for the one that is asked about; nil: it cannot say.
func stateOf(p *rpcproxy.Proxy, block func(asked string) any) {
	p.On("eth_call", func(params []json.RawMessage, ask func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		if !strings.Contains(string(params[0]), "0xe94a0102") { // authorizationState(address,bytes32)
			return ask()
		}
		at := block(strings.Trim(string(params[1]), `"`))
		if at == nil {
			return nil, &rpcproxy.Error{Code: -32000, Message: "missing trie node"}
		}
		return ask(params[0], at)
	})
}

// expire has a finalized block be younger than every payment so far.
func (w *world) expire() {
	w.Helper()
	w.ahead.Add(300)
	w.ok(w.anvil.Call(w.Context(), nil, "evm_increaseTime", 300))
	w.mine(1)
	w.mine(70) // anvil finalizes 64 blocks below the head
}

// A provider is many nodes. That one of them is behind the block that another
// calls finalized, and has not seen a payment in it, does not make it dead.
func TestAHeadBehindTheFinalizedBlockIsNoProof(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		w := newAnvilWorld(t)
		list := w.providers(n)
		p := w.payment()
		row := w.submitted(p)
		before, err := w.node.Head(t.Context())
		w.ok(err)
		w.submitAs(w.stranger(), p)
		w.expire()
		for _, lags := range list {
			stateOf(lags, func(asked string) any {
				if asked == "latest" {
					return fmt.Sprintf("0x%x", before.Number)
				}
				return json.RawMessage(asked) // an object with the block's hash
			})
		}
		out, err := w.fac.Reconcile(t.Context(), row)
		w.ok(err)
		want(t, out, ledger.Unknown, "")
		w.money(row.Key, ledger.Signed)
		for _, p := range list {
			p.Honest()
		}
		want(t, w.settle(row), ledger.Settled, "")
	}
}

// Whoever cannot say how things stood in the finalized block gives no proof:
// the payment stays open until enough providers can.
func TestWithoutTheFinalizedStateThereIsNoProof(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		w := newAnvilWorld(t)
		list := w.providers(n)
		row := w.submitted(w.payment())
		w.expire()
		var asked atomic.Int64
		for _, pruned := range list[n/3:] { // all of one, two of three
			stateOf(pruned, func(at string) any {
				if at == "latest" {
					return at
				}
				asked.Add(1)
				return nil
			})
		}
		out, err := w.fac.Reconcile(t.Context(), row)
		w.ok(err)
		want(t, out, ledger.Unknown, "")
		w.money(row.Key, ledger.Signed)
		list[n-1].Honest()
		out, err = w.fac.Reconcile(t.Context(), row)
		w.ok(err)
		want(t, out, ledger.NotCharged, "")
		if got := w.money(row.Key, ledger.Dead); got.Proof == "" || asked.Load() == 0 {
			t.Errorf("dead with proof %q; %d were asked for what they do not have", got.Proof, asked.Load())
		}
	}
}

// What a payer has when clawr first meets it is what the providers agree on: one
// of them makes nobody rich, nor turns anybody away.
func TestTheFirstReadOfAPayerIsAgreedOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	list := w.providers(3)
	v := w.watcher()
	v.Mirror = &facilitator.Mirror{Chain: w.believed}
	w.fac.Mirror, w.fac.Holds = v.Mirror, w.db
	w.look(v)
	says := func(p *rpcproxy.Proxy, balance string) {
		p.On("eth_call", func(params []json.RawMessage, ask func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
			if strings.Contains(string(params[0]), "0x70a08231") { // balanceOf(address)
				return json.Marshal("0x" + strings.Repeat("0", 64-len(balance)) + balance)
			}
			return ask()
		})
	}
	rich := w.payer
	for _, liar := range list {
		says(liar, "ffffff")
		w.payer = w.key()
		w.fund(w.payer, 999)
		w.look(v)
		w.verify(w.payment(), false)
		liar.Honest()
	}
	w.payer = rich
	for _, liar := range list {
		says(liar, "0")
		w.fac.Mirror = &facilitator.Mirror{Chain: w.believed}
		v.Mirror = w.fac.Mirror
		w.look(v)
		w.verify(w.payment(), true)
		liar.Honest()
	}
}

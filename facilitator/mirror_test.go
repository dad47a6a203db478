package facilitator_test

import (
	"encoding/json"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/rpcproxy"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// mirrored gives w's facilitator a mirror, with a proxy between it and the
// chain, and a watcher that has looked once.
func (w *world) mirrored() (*facilitator.Watcher, *rpcproxy.Proxy) {
	w.Helper()
	url := ""
	if w.anvil != nil {
		url = w.anvil.URL
	} else {
		url = w.chain.URL()
	}
	proxy, err := rpcproxy.Start(url)
	w.ok(err)
	w.Cleanup(func() {
		for _, err := range proxy.Close() {
			w.Errorf("clawr sent what is no JSON-RPC: %v", err)
		}
	})
	client, err := chain.Dial(w.Context(), proxy.URL)
	w.ok(err)
	w.Cleanup(client.Close)
	client.Now = w.now
	w.node.Client = client
	v := w.watcher()
	v.Mirror = &facilitator.Mirror{Chain: w.node}
	w.fac.Mirror, w.fac.Holds = v.Mirror, w.db
	w.look(v)
	return v, proxy
}

// verify wants the verdict on p.
func (w *world) verify(p *x402.PaymentPayload, valid bool) x402.VerifyResponse {
	w.Helper()
	got, err := w.fac.Verify(w.Context(), p, w.terms())
	w.ok(err)
	if got.IsValid != valid {
		w.Fatalf("verified as %+v, want valid %v", got, valid)
	}
	return got
}

// A payer is read once, in one round trip, however many ask; afterwards
// nothing is asked.
func TestVerifyAsksNothingOfTheChainForAKnownPayer(t *testing.T) {
	w := newWorld(t)
	v, proxy := w.mirrored()
	w.verify(w.payment(), true) // and the signer's money
	w.payer = w.key()
	w.fund(w.payer, 1_000_000)
	w.look(v)
	before := proxy.Trips()
	var wg sync.WaitGroup
	for range 32 {
		p := w.payment()
		wg.Go(func() {
			if got, err := w.fac.Verify(t.Context(), p, w.terms()); err != nil || !got.IsValid {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
	wg.Wait()
	if n := proxy.Trips() - before; n != 1 {
		t.Errorf("%d round trips for a new payer, want 1", n)
	}
	for range 100 {
		w.verify(w.payment(), true)
	}
	if n := proxy.Trips() - before; n != 1 {
		t.Errorf("%d round trips for a known payer, want none", n-1)
	}
}

// What the mirror holds against a payment is asked of the chain before it is
// refused: its newest block may be younger.
func TestNothingIsRefusedOnTheMirrorsWordAlone(t *testing.T) {
	w := newWorld(t)
	v, _ := w.mirrored()
	w.verify(w.payment(), true)
	w.drain(1_000_000)
	w.verify(w.payment(), true) // not followed yet: the preflight is for that
	row := w.reserved(w.payment())
	want(t, w.settle(row), ledger.NotCharged, x402.ReasonBalance)
	w.ok(w.db.Release(t.Context(), row.ID, row.Epoch, x402.ReasonBalance, usage.Event{}))
	w.look(v)
	if got := w.verify(w.payment(), false); got.InvalidReason != x402.ReasonBalance {
		t.Errorf("refused for %s", got.InvalidReason)
	}
	w.fund(w.payer, 1000)
	w.verify(w.payment(), true) // the mirror still thinks that it is poor
	w.look(v)
	w.verify(w.payment(), true)
	// A stranger spends the authorization.
	p := w.payment()
	w.submitAs(w.stranger(), p)
	w.fund(w.payer, 100_000)
	w.look(v)
	if got := w.verify(p, false); got.InvalidReason != x402.ReasonNonceUsed {
		t.Errorf("refused for %s", got.InvalidReason)
	}
	// One that was used before the payer was known here.
	other := newWorld(t)
	q := other.payment()
	other.submitAs(other.stranger(), q)
	other.mirrored()
	if got := other.verify(q, false); got.InvalidReason != x402.ReasonNonceUsed {
		t.Errorf("refused for %s", got.InvalidReason)
	}
	r := other.payment()
	other.submitAs(other.stranger(), r)
	again := other.watcher()
	again.Mirror = &facilitator.Mirror{Chain: other.node}
	other.fac.Mirror = again.Mirror
	other.look(again)
	other.verify(other.payment(), true) // reads the payer, with what it used in the last hour
	if got := other.verify(r, false); got.InvalidReason != x402.ReasonNonceUsed {
		t.Errorf("refused for %s", got.InvalidReason)
	}
}

// What a payer has promised to payments that are under way is not his to
// promise again.
func TestMustPass04PromisedMoneyIsNotPromisedTwice(t *testing.T) {
	w := newWorld(t)
	w.drain(1_000_000)
	w.fund(w.payer, 2500)
	v, _ := w.mirrored()
	a, b := w.reserved(w.payment()), w.reserved(w.payment())
	if got := w.verify(w.payment(), false); got.InvalidReason != x402.ReasonBalance {
		t.Errorf("refused for %s", got.InvalidReason)
	}
	w.ok(w.db.Release(t.Context(), a.ID, a.Epoch, "x", usage.Event{RequestID: "req_resend", Lifecycle: usage.SettleFailed}))
	w.verify(w.payment(), true)
	want(t, w.settle(b), ledger.Settled, "")
	w.look(v)
	w.verify(w.payment(), true)  // 1500 are left
	c := w.reserved(w.payment()) // 500
	w.verify(w.payment(), false)
	w.fund(w.payer, 500)
	w.verify(w.payment(), true)
	want(t, w.settle(c), ledger.Settled, "")
}

// When the newest block was not confirmed lately the chain is asked.
func TestAStaleMirrorSaysNothing(t *testing.T) {
	w := newWorld(t)
	v, proxy := w.mirrored()
	w.verify(w.payment(), true)
	before := proxy.Calls("eth_call")
	w.verify(w.payment(), true)
	if n := proxy.Calls("eth_call") - before; n != 0 {
		t.Fatalf("%d calls for a known payer", n)
	}
	w.ahead.Add(6)
	w.verify(w.payment(), true)
	if proxy.Calls("eth_call") == before {
		t.Error("a mirror of six seconds ago was believed")
	}
	w.drain(1_000_000)
	w.verify(w.payment(), false)
	w.look(v)
	before = proxy.Trips()
	w.verify(w.payment(), false) // by the chain, as every refusal
	if proxy.Trips() == before {
		t.Error("refused without asking")
	}
}

// A reorganisation makes it forget: what was read there may not be so.
func TestAReorgEmptiesTheMirror(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	w.payer = w.key()
	w.fund(w.payer, 1000)
	v, proxy := w.mirrored()
	w.verify(w.payment(), true)
	w.reorg(1) // takes the payer's money away
	w.look(v)
	before := proxy.Trips()
	if got := w.verify(w.payment(), false); got.InvalidReason != x402.ReasonBalance || proxy.Trips() == before {
		t.Errorf("%+v after %d round trips", got, proxy.Trips()-before)
	}
}

// An account that gets code after it was verified (EIP-7702) is asked as a
// contract before anything is signed.
func TestMustPass13CodeIsLookedForBeforeTheSignature(t *testing.T) {
	t.Parallel()
	for name, w := range map[string]*world{"development chain": newWorld(t), "anvil": newAnvilWorld(t)} {
		t.Run(name, func(t *testing.T) {
			w.mirrored()
			p := w.payment()
			w.verify(p, true)
			row := w.reserved(p)
			refuser := w.hostile("HostileWallet", number(1))
			w.delegate(refuser)
			w.verify(w.payment(), true) // the mirror does not know; the preflight does
			out := w.settle(row)
			if out.State != ledger.NotCharged || w.spent() != 0 {
				t.Errorf("settled as %+v with %d transactions, want a refusal", out, w.spent())
			}
			w.ahead.Add(601) // and so does the mirror, ten minutes later
			w.look(w.lookAgain())
			if got := w.verify(w.payment(), false); got.InvalidReason != x402.ReasonSignature {
				t.Errorf("refused for %s", got.InvalidReason)
			}
		})
	}
}

// lookAgain is a watcher of the facilitator's mirror.
func (w *world) lookAgain() *facilitator.Watcher {
	v := w.watcher()
	v.Mirror = w.fac.Mirror
	return v
}

// The mirror's law: once it has followed the chain, what it says of a payer is
// what the chain says, whatever was done in between.
func TestTheMirrorIsTheChain(t *testing.T) {
	w := newWorld(t)
	v, proxy := w.mirrored()
	keys := make([]*chain.Key, 3)
	for i := range keys {
		keys[i] = w.key()
		w.fund(keys[i], 5000)
	}
	w.look(v)
	rapid.Check(t, func(t *rapid.T) {
		var used []*x402.PaymentPayload
		for range rapid.IntRange(1, 6).Draw(t, "steps") {
			w.payer = rapid.SampledFrom(keys).Draw(t, "payer")
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				w.fund(w.payer, rapid.Int64Range(1, 3000).Draw(t, "units"))
			case 1:
				if had := w.units(x402.Lower(w.payer.Address())); had > 0 {
					to := rapid.SampledFrom(keys).Draw(t, "to")
					w.call(w.payer, w.asset.Address, "transfer(address,uint256)", address(to.Address()), number(rapid.Int64Range(0, had).Draw(t, "units")))
				}
			case 2:
				if w.units(x402.Lower(w.payer.Address())) >= 1000 {
					p := w.payment()
					w.submitAs(keys[0], p)
					used = append(used, p)
				}
			case 3:
				w.look(v)
			case 4:
				w.verifies(t, w.payment())
			}
		}
		w.look(v)
		for _, k := range keys {
			w.payer = k
			w.verifies(t, w.payment()) // reads it if it was unknown
		}
		for _, k := range keys {
			w.payer = k
			enough := w.units(x402.Lower(k.Address())) >= 1000
			before := proxy.Calls("eth_call")
			if got := w.verifies(t, w.payment()); got != enough {
				t.Errorf("the mirror says %v, the chain %v", got, enough)
			}
			if asked := proxy.Calls("eth_call") > before; asked == enough {
				t.Errorf("the chain was asked: %v, the payment is valid: %v", asked, enough)
			}
		}
		for _, p := range used {
			if w.verifies(t, p) {
				t.Errorf("a used authorization is valid: %s", p.Payload)
			}
		}
	})
}

func (w *world) verifies(t *rapid.T, p *x402.PaymentPayload) bool {
	got, err := w.fac.Verify(w.Context(), p, w.terms())
	if err != nil {
		t.Fatal(err)
	}
	return got.IsValid
}

// However many payers come by, the mirror stays small, and right.
func TestTheMirrorIsBounded(t *testing.T) {
	w := newWorld(t)
	_, proxy := w.mirrored()
	w.fac.Mirror.Size = 4
	var keys []*chain.Key
	for range 8 {
		w.payer = w.key()
		w.fund(w.payer, 1000)
		keys = append(keys, w.payer)
	}
	w.look(w.lookAgain())
	for range 3 {
		for _, w.payer = range keys {
			w.verify(w.payment(), true)
		}
	}
	before := proxy.Trips()
	w.verify(w.payment(), true)
	if proxy.Trips() != before {
		t.Error("the last payer was forgotten")
	}
	w.payer = keys[0]
	w.verify(w.payment(), true)
	if proxy.Trips() == before {
		t.Error("the mirror remembers more than it may")
	}
}

// A node that will not say what a payer is leaves the verdict to the probe,
// and one that says nothing at all leaves it open.
func TestANodesSilenceIsNoVerdict(t *testing.T) {
	w := newWorld(t)
	v, proxy := w.mirrored()
	w.verify(w.payment(), true)
	w.payer = w.key()
	w.fund(w.payer, 1000)
	w.look(v)
	refuse := func([]json.RawMessage, func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		return nil, &rpcproxy.Error{Code: -32000, Message: "missing trie node"}
	}
	proxy.On("eth_getCode", refuse)
	if got, err := w.fac.Verify(t.Context(), w.payment(), w.terms()); err == nil {
		t.Errorf("%+v, want an error", got)
	}
	proxy.On("eth_getCode", nil)
	proxy.On("eth_getLogs", refuse) // a provider that gives no logs of an hour
	w.verify(w.payment(), true)
	before := proxy.Trips()
	w.verify(w.payment(), true)
	if proxy.Trips() != before {
		t.Error("the payer is not known")
	}
	proxy.Door(rpcproxy.Down)
	w.verify(w.payment(), true)
	w.payer = w.key()
	if got, err := w.fac.Verify(t.Context(), w.payment(), w.terms()); err == nil {
		t.Errorf("%+v, want an error", got)
	}
}

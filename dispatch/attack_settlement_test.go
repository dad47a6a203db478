package dispatch_test

import (
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/x402"
)

// The attacks of "Five Attacks on x402" (arXiv 2605.11781) on the settlement
// itself, each tried a thousand times, in its variants by turns.
const attempts = 1000

// given reports whether an answer has what was for sale. The quotation marks
// belong to it: in a thousand challenges some quote's base64 says usd as well.
func given(a *answer) bool { return a.Code == 200 || strings.Contains(a.Body.String(), `"usd":`) }

// I-A: the payment is granted, and then reverts on the chain. The payer's money
// is gone after the verification, or after the signature; or his nonce is, for
// a transfer to himself.
func TestAttackIAGrantedThenReverted(t *testing.T) {
	t.Parallel()
	c := newChainWorld(t)
	token := common.HexToAddress(c.d.Asset.Address)
	attacker := c.funded(0)
	who := crypto.PubkeyToAddress(attacker.PublicKey)
	leaks := 0
	for n := range attempts {
		if had := c.units(address(attacker)); had < price {
			c.ok(c.chain.Fund(t.Context(), who, nil, price))
		}
		q := c.buyWith(attacker, records)
		switch n % 3 {
		case 0:
			c.at("verify.after", func() { c.spend(attacker, price) })
		case 1:
			c.at("t3.after", func() { c.spend(attacker, price) })
		case 2:
			p, err := x402.ParsePayment(q.pay)
			c.ok(err)
			e, err := x402.ParseExact(p.Payload)
			c.ok(err)
			back := e.Authorization
			back.To = who
			id, _ := x402.ChainID(c.d.Asset.Network)
			sig, err := back.Sign(attacker, x402.NewDomain(c.d.Asset.Name, c.d.Asset.Version, id, token))
			c.ok(err)
			before, _ := back.ValidBefore.Int64()
			call := chain.Transfer{Asset: token, Payer: who, PayTo: who, Amount: price, ValidBefore: before, Nonce: back.Nonce, Signature: sig}.Calldata()
			c.at("t3.after", func() { c.transact(attacker, chain.Call{To: &token, Data: call, Gas: 200_000}) })
		}
		first, again := c.send(q), c.send(q)
		if given(first) || given(again) {
			leaks++
			t.Logf("attempt %d was answered %d %s, then %d", n, first.Code, first.Body, again.Code)
		}
	}
	if got := c.units(payTo); leaks != 0 || got != 0 {
		t.Errorf("%d of %d attempts got an answer, the owner has %d units", leaks, attempts, got)
	}
}

// I-B: a third party pre-empts the settlement of an authorization that names no
// caller. When he is faster than our transaction, the buyer has paid, once, and
// has the answer; when he was there before we signed, nobody has it. He never has.
func TestAttackIBPreemptedSettlement(t *testing.T) {
	t.Parallel()
	c := newChainWorld(t)
	token := common.HexToAddress(c.d.Asset.Address)
	thief := c.funded(0)
	c.ok(c.chain.Fund(t.Context(), crypto.PubkeyToAddress(c.buyer.PublicKey), nil, attempts*price))
	leaks, denied, paid := 0, 0, int64(0)
	for n := range attempts {
		q := c.buy(records)
		p, err := x402.ParsePayment(q.pay)
		c.ok(err)
		e, err := x402.ParseExact(p.Payload)
		c.ok(err)
		before, _ := e.ValidBefore.Int64()
		call := chain.Transfer{Asset: token, Payer: e.From, PayTo: e.To, Amount: price, ValidBefore: before, Nonce: e.Nonce, Signature: e.Signature}.Calldata()
		preempt := func() { c.transact(thief, chain.Call{To: &token, Data: call, Gas: 200_000}) }
		point := []string{"t3.after", "t2.after"}[n%2]
		c.at(point, preempt)
		a := c.send(q)
		for range 5 {
			if a.Code != 503 || n%2 == 1 {
				break
			}
			a = c.send(q)
		}
		paid += price // whoever submitted it
		switch {
		case n%2 == 0 && !given(a):
			denied++
			t.Logf("attempt %d: the buyer paid, and was answered %d %s", n, a.Code, a.Body)
		case n%2 == 1 && (given(a) || a.Code == 402):
			leaks++
			t.Logf("attempt %d: what was spent before bought %d %s", n, a.Code, a.Body)
		}
		// What the thief can make of it: everything but the buyer's quote.
		mine := request{path: records, from: "198.51.100.66"}
		quote := ""
		if n%4 < 2 {
			quote = c.send(mine).required().Accepts[0].Extra.Quote
		}
		p.Accepted.Extra.Quote = quote
		mine.pay = p.Header()
		if got := c.send(mine); given(got) {
			leaks++
			t.Logf("attempt %d: the thief was answered %d %s", n, got.Code, got.Body)
		}
	}
	if got := c.units(payTo); leaks != 0 || denied != 0 || got != paid {
		t.Errorf("%d of %d attempts got an answer, %d buyers were denied, the owner has %d units, want %d", leaks, attempts, denied, got, paid)
	}
}

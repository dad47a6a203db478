package dispatch_test

import (
	"context"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/store"
)

// broke takes nearly all of the signer's ether away.
func (c *onChain) broke() {
	c.Helper()
	ctx := context.WithoutCancel(c.Context())
	has, err := c.node.Balance(ctx, c.node.Signer())
	c.ok(err)
	fees, err := c.node.Client.Fees(ctx)
	c.ok(err)
	gas := new(big.Int).Mul(fees.Max, big.NewInt(21_000))
	nowhere := common.Address{18: 0xde, 19: 0xad}
	_, err = c.node.Transact(ctx, c.node.Key, chain.Call{To: &nowhere, Value: has.Sub(has, gas), Gas: 21_000})
	c.ok(err)
}

// Nobody can settle while the only signer has no ether. What comes then is
// turned away before anything is reserved, with a 503 and not a 402: there is
// nothing wrong with the payment, and the same header is good when there is
// ether again. Async does not take it either: its queue would not drain.
// Vouchers of a channel need no transaction.
func TestWithoutEtherNothingIsReserved(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(10*price, price)).is(200, "")
	first, second := c.buy(records), c.buyWith(c.funded(price), records)
	c.broke()
	c.pass(31 * time.Second) // for which an account that had ether is believed to have some
	for _, q := range []request{first, second} {
		c.send(q).is(503, clawr.CodeFacilitatorDown).has("Retry-After", "*")
	}
	rows, err := c.db.Payments(t.Context(), store.PaymentFilter{})
	c.ok(err)
	if len(rows) != 0 {
		t.Errorf("%d payments are reserved", len(rows))
	}
	c.send(c.voucher(2*price)).is(200, "")
	c.ok(c.chain.Fund(t.Context(), c.node.Signer(), big.NewInt(1e18), 0))
	c.pass(3 * time.Second)
	for _, q := range []request{first, second} {
		c.served(q)
	}
}

// A payment that was signed for when the ether ran out is pending, and settled
// when there is some again: never is another asked for.
func TestEtherThatRunsOutLeavesPaymentsPending(t *testing.T) {
	c := newChainWorld(t)
	c.d.Deadline = 3 * time.Second
	q := c.buy(records)
	c.at("preflight", c.broke) // it had some a moment before
	a := c.send(q)
	for range 2 {
		if a.Code != 503 || clawr.Code(a.error()) != clawr.CodeSettlementPending {
			t.Fatalf("%d %s", a.Code, a.Body)
		}
		a = c.send(q)
	}
	c.ok(c.chain.Fund(t.Context(), c.node.Signer(), big.NewInt(1e18), 0))
	c.served(q)
	if got := c.units(payTo); got != price {
		t.Errorf("the owner has %d, want %d", got, price)
	}
	c.send(q).is(200, "").has("X-Clawr-Replayed", "true")
}

package facilitator_test

import (
	"context"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/x402"
)

// A deposit that was signed for is public, and whoever has seen it may carry it
// out: that its transaction was reverted, and that the next one would be, is no
// proof that it will not be made. Only its end is.
func TestARevertedDepositIsRefusedByProofAlone(t *testing.T) {
	for name, test := range map[string]struct {
		end    func(*canal, *x402.ChannelPayload)
		made   bool
		reason string
	}{
		"it is over":              {func(c *canal, _ *x402.ChannelPayload) { c.later(15 * time.Minute) }, false, string(x402.ReasonDepositValidBefore)},
		"a stranger has it made":  {func(c *canal, p *x402.ChannelPayload) { c.fund(c.payer, 10_000); c.carryOut(p) }, true, ""},
		"the payer has the money": {func(c *canal, _ *x402.ChannelPayload) { c.fund(c.payer, 10_000) }, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCanal(t)
			p := c.deposit(10_000, 1000)
			c.at("t3.after", func() { c.drain(1_000_000) }) // the simulation was good
			if s := c.settle(p); s.Success || s.ErrorReason != x402.ReasonPending {
				t.Fatalf("reverted: %+v, want settlement_pending", s)
			}
			if s := c.settle(p); s.Success || s.ErrorReason != x402.ReasonPending {
				t.Fatalf("asked again: %+v, want settlement_pending", s)
			}
			end, err := c.fac.Deposited(t.Context(), p)
			if err != nil || end == nil || end.Success || end.ErrorReason != x402.ReasonPending {
				t.Fatalf("%+v, %v; want settlement_pending", end, err)
			}
			// A process that knows nothing but the book says the same.
			c.fac = c.facilitator()
			if s := c.settle(p); s.Success || s.ErrorReason != x402.ReasonPending {
				t.Fatalf("after a restart: %+v, want settlement_pending", s)
			}
			test.end(c, p)
			s := c.settle(p)
			if s.Success != test.made || string(s.ErrorReason) != test.reason {
				t.Errorf("%+v, want success %v, %q", s, test.made, test.reason)
			}
			end, err = c.fac.Deposited(t.Context(), p)
			if err != nil || (end != nil) != test.made || test.made && (!end.Success || end.Transaction == "") {
				t.Errorf("%+v, %v", end, err)
			}
		})
	}
}

// What was never signed for was never submitted, and its refusal needs no proof.
func TestADepositThatWasNotSubmittedIsRefusedAtOnce(t *testing.T) {
	c := newCanal(t)
	c.drain(1_000_000)
	p := c.deposit(10_000, 1000)
	if s := c.settle(p); s.Success || s.ErrorReason != x402.ReasonDepositSimulation {
		t.Errorf("%+v", s)
	}
	if end, err := c.fac.Deposited(t.Context(), p); end != nil || err != nil {
		t.Errorf("%+v, %v", end, err)
	}
}

// Long after it was made a deposit is still known to be made.
func TestADepositIsMadeForEver(t *testing.T) {
	c := newCanal(t)
	p := c.deposit(10_000, 1000)
	first := c.must(p)
	c.later(3 * time.Hour)
	if s := c.must(p); s.Transaction != first.Transaction {
		t.Errorf("made in %s, and then in %s", first.Transaction, s.Transaction)
	}
	if end, err := c.fac.Deposited(context.WithoutCancel(t.Context()), p); err != nil || end == nil || !end.Success || end.Transaction != first.Transaction {
		t.Errorf("%+v, %v", end, err)
	}
}

// later lets time pass, and makes a block that shows it.
func (c *canal) later(d time.Duration) {
	c.Helper()
	c.ahead.Add(int64(d / time.Second))
	c.fund(c.world.key(), 1)
}

// carryOut has a stranger make a deposit.
func (c *canal) carryOut(p *x402.ChannelPayload) {
	c.Helper()
	to := common.HexToAddress(chain.ChannelsAddress)
	data := chain.ChannelDeposit{Config: chain.ChannelConfig(p.Config), Amount: p.Deposit.Amount, ValidAfter: common.Hash(p.Deposit.ValidAfter),
		ValidBefore: common.Hash(p.Deposit.ValidBefore), Salt: p.Deposit.Salt, Signature: p.Deposit.Signature}.Calldata()
	_, err := c.node.Transact(context.WithoutCancel(c.Context()), c.stranger(), chain.Call{To: &to, Gas: 400_000, Data: data})
	c.ok(err)
}

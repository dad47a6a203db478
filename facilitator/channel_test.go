package facilitator_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// canal is a world with a channel from its payer to its payee.
type canal struct {
	*world
	d      x402.Domain
	key    *ecdsa.PrivateKey
	config x402.ChannelConfig
	terms  x402.Requirements
}

func newCanal(t *testing.T) *canal {
	w := newWorld(t)
	authorizer := w.key()
	w.fac.Authorizer = authorizer
	key, err := crypto.HexToECDSA(w.payer.Reveal()[2:])
	w.ok(err)
	id, _ := x402.ChainID(w.asset.Network)
	c := &canal{world: w, d: x402.ChannelDomain(id), key: key, config: x402.ChannelConfig{Payer: w.payer.Address(), PayerAuthorizer: w.payer.Address(),
		Receiver: common.HexToAddress(w.payTo), ReceiverAuthorizer: authorizer.Address(), Token: common.HexToAddress(w.asset.Address), WithdrawDelay: x402.MinWithdrawDelay}}
	c.terms = x402.Requirements{Scheme: x402.SchemeChannel, Network: w.asset.Network, Amount: "1000", Asset: w.asset.Address, PayTo: w.payTo, MaxTimeoutSeconds: 600,
		Extra: x402.Extra{Name: w.asset.Name, Version: w.asset.Version, Rest: x402.Object{
			{Name: "receiverAuthorizer", Value: []byte(`"` + authorizer.Address().Hex() + `"`)}, {Name: "withdrawDelay", Value: []byte(strconv.Itoa(x402.MinWithdrawDelay))}}}}
	return c
}

// voucher allows max in all.
func (c *canal) voucher(max int64) *x402.ChannelPayload {
	c.Helper()
	p := &x402.ChannelPayload{Kind: x402.ChannelVoucher, Config: c.config, Voucher: x402.Voucher{Channel: c.config.ID(c.d), MaxClaimable: max}}
	c.ok(p.Voucher.Sign(c.key, c.d))
	return p
}

// deposit puts amount into the channel, with a voucher for max.
func (c *canal) deposit(amount, max int64) *x402.ChannelPayload {
	c.Helper()
	p := c.voucher(max)
	p.Kind = x402.ChannelDeposit
	p.Deposit = &x402.Deposit{Amount: amount, ValidBefore: x402.Uint(uint64(c.now().Unix() + 600)), Salt: common.BytesToHash(crypto.Keccak256(c.world.key().Address().Bytes()))}
	id, _ := x402.ChainID(c.asset.Network)
	c.ok(p.Deposit.Sign(c.key, x402.NewDomain(c.asset.Name, c.asset.Version, id, c.config.Token), p.Voucher.Channel))
	return p
}

func (c *canal) payload(p *x402.ChannelPayload) *x402.PaymentPayload {
	return &x402.PaymentPayload{Version: 2, Accepted: c.terms, Payload: p.JSON()}
}

func (c *canal) verify(p *x402.ChannelPayload) x402.VerifyResponse {
	c.Helper()
	v, err := c.fac.VerifyChannel(c.Context(), c.payload(p), c.terms)
	c.ok(err)
	return v
}

func (c *canal) settle(p *x402.ChannelPayload) x402.SettleResponse {
	c.Helper()
	s, err := c.fac.SettleChannel(c.Context(), c.payload(p), c.terms)
	c.ok(err)
	return s
}

func (c *canal) must(p *x402.ChannelPayload) x402.SettleResponse {
	c.Helper()
	s := c.settle(p)
	if !s.Success || s.Transaction == "" {
		c.Fatalf("%s: %+v", p.Kind, s)
	}
	return s
}

// claim brings the channel's total up, by a voucher for max.
func (c *canal) claim(max, total int64) *x402.ChannelPayload {
	return &x402.ChannelPayload{Kind: x402.ChannelClaim, Claims: []x402.Claim{{Config: c.config, Voucher: c.voucher(max).Voucher, Total: total}}}
}

func (c *canal) earned() int64 {
	c.Helper()
	n, err := c.node.TokenBalance(c.Context(), c.config.Token, c.config.Receiver)
	c.ok(err)
	return n.Int64()
}

func TestAChannelIsSettledFromDepositToRefund(t *testing.T) {
	c := newCanal(t)
	if v := c.verify(c.voucher(1000)); v.IsValid || v.InvalidReason != x402.ReasonChannelNotFound {
		t.Fatalf("a channel that nobody funded: %+v", v)
	}
	p := c.deposit(10_000, 1000)
	if v := c.verify(p); !v.IsValid || v.Payer != c.config.Payer.Hex() {
		t.Fatalf("%+v", v)
	}
	s := c.must(p)
	if s.Amount != "10000" {
		t.Errorf("the deposit is said to be of %s", s.Amount)
	}
	var state struct{ Balance, TotalClaimed, RefundNonce, ChannelID string }
	if err := json.Unmarshal(s.Extra.Find("channelState"), &state); err != nil || state.Balance != "10000" || state.TotalClaimed != "0" || state.ChannelID != p.Voucher.Channel.Hex() {
		t.Errorf("the channel is said to be %s, %v", s.Extra.Find("channelState"), err)
	}
	// Asked again it is the same deposit, in the same transaction.
	if again := c.must(p); again.Transaction != s.Transaction {
		t.Errorf("a second deposit, %s after %s", again.Transaction, s.Transaction)
	}
	if v := c.verify(c.voucher(3000)); !v.IsValid || string(v.Extra.Find("balance")) != `"10000"` {
		t.Errorf("a voucher: %+v", v)
	}
	c.must(c.claim(3000, 2500))
	if s := c.must(&x402.ChannelPayload{Kind: x402.ChannelSettle, Receiver: c.config.Receiver, Token: c.config.Token}); s.Amount != "2500" || c.earned() != 2500 {
		t.Errorf("settled %s, earned %d", s.Amount, c.earned())
	}
	if s := c.settle(&x402.ChannelPayload{Kind: x402.ChannelSettle, Receiver: c.config.Receiver, Token: c.config.Token}); s.Success || s.ErrorReason != x402.ReasonNothingToSettle {
		t.Errorf("settled twice: %+v", s)
	}
	refund := c.voucher(3000)
	refund.Kind, refund.Amount, refund.Completed = x402.ChannelRefund, 7000, true
	refund.Claims = c.claim(3000, 3000).Claims
	if s := c.must(refund); s.Amount != "7000" {
		t.Errorf("refunded %s", s.Amount)
	}
	if s := c.settle(refund); s.Success || s.ErrorReason != x402.ReasonRefundSimulation {
		t.Errorf("refunded twice: %+v", s)
	}
	got, err := c.fac.ChannelState(t.Context(), p.Voucher.Channel)
	if err != nil || got.Balance != 3000 || got.TotalClaimed != 3000 || got.RefundNonce != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	// Nothing that was signed is left open.
	open, err := c.db.OpenBatches(t.Context(), c.asset.Network, x402.Lower(c.node.Signer()))
	if err != nil || len(open) != 0 {
		t.Errorf("%d batches are open, %v", len(open), err)
	}
}

// One deposit that is asked for many times at once is made once.
func TestADepositIsMadeOnce(t *testing.T) {
	c := newCanal(t)
	p := c.deposit(10_000, 1000)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if s, err := c.fac.SettleChannel(context.WithoutCancel(t.Context()), c.payload(p), c.terms); err != nil || !s.Success {
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
	wg.Wait()
	if got, err := c.fac.ChannelState(t.Context(), p.Voucher.Channel); err != nil || got.Balance != 10_000 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestChannelPayloadsAreRefusedByName(t *testing.T) {
	c := newCanal(t)
	c.must(c.deposit(10_000, 1000))
	c.must(c.claim(2000, 2000))
	stranger := c.world.key()
	change := func(p *x402.ChannelPayload, do func(*x402.ChannelPayload)) *x402.ChannelPayload {
		do(p)
		p.Voucher.Channel = p.Config.ID(c.d)
		c.ok(p.Voucher.Sign(c.key, c.d))
		return p
	}
	forged := c.voucher(3000)
	forged.Voucher.Signature[40] ^= 1
	poor := c.deposit(1<<40, 3000)
	late := c.deposit(100, 3000)
	late.Deposit.ValidBefore = x402.Uint(uint64(c.now().Unix()))
	moved := c.deposit(100, 3000)
	moved.Deposit.Amount = 200
	for name, test := range map[string]struct {
		p    *x402.ChannelPayload
		want clawr.Code
	}{
		"above the balance":              {c.voucher(10_001), x402.ReasonCumulativeBalance},
		"claimed already":                {c.voucher(2000), x402.ReasonCumulativeBelow},
		"forged":                         {forged, x402.ReasonVoucherSignature},
		"to somebody else":               {change(c.voucher(3000), func(p *x402.ChannelPayload) { p.Config.Receiver = stranger.Address() }), x402.ReasonChannelReceiver},
		"another authorizer":             {change(c.voucher(3000), func(p *x402.ChannelPayload) { p.Config.ReceiverAuthorizer = stranger.Address() }), x402.ReasonChannelAuthorizer},
		"another token":                  {change(c.voucher(3000), func(p *x402.ChannelPayload) { p.Config.Token = stranger.Address() }), x402.ReasonChannelToken},
		"another delay":                  {change(c.voucher(3000), func(p *x402.ChannelPayload) { p.Config.WithdrawDelay++ }), x402.ReasonChannelDelay},
		"a deposit that is over":         {late, x402.ReasonDepositValidBefore},
		"a deposit of another sum":       {moved, x402.ReasonDepositSignature},
		"more than the payer has":        {poor, x402.ReasonDepositSimulation},
		"a claim that is not signed for": {c.claim(3000, 3000), x402.ReasonChannelPayload},
	} {
		if v := c.verify(test.p); v.IsValid || v.InvalidReason != test.want {
			t.Errorf("%s: %+v, want %s", name, v, test.want)
		}
	}
	if s := c.settle(c.voucher(3000)); s.Success || s.ErrorReason != x402.ReasonChannelPayload {
		t.Errorf("a voucher was settled: %+v", s)
	}
	c.fac.Authorizer = stranger
	if s := c.settle(c.claim(3000, 3000)); s.Success || s.ErrorReason != x402.ReasonAuthorizerMissing {
		t.Errorf("a claim by nobody's authority: %+v", s)
	}
	over := c.claim(20_000, 20_000)
	over.ClaimAuthorization = make([]byte, 65)
	if s := c.settle(over); s.Success || s.ErrorReason != x402.ReasonClaimSimulation {
		t.Errorf("a claim above the balance: %+v", s)
	}
}

// A claim whose block does not come is pending, and a restart sees it through.
func TestAClaimOutlivesItsProcess(t *testing.T) {
	c := newCanal(t)
	c.must(c.deposit(10_000, 1000))
	authorizer := c.fac.Authorizer
	ctx, cancel := context.WithCancel(t.Context())
	c.at("t3.after", cancel) // signed and stored; whoever asked is gone
	s, err := c.fac.SettleChannel(ctx, c.payload(c.claim(3000, 3000)), c.terms)
	if err != nil || !s.Success && s.ErrorReason != x402.ReasonPending {
		t.Fatalf("%+v, %v", s, err)
	}
	c.fac = c.facilitator()
	c.fac.Authorizer = authorizer
	c.ok(c.fac.Start(t.Context()))
	deadline := time.Now().Add(30 * time.Second)
	for {
		got, err := c.fac.ChannelState(t.Context(), c.config.ID(c.d))
		c.ok(err)
		if got.TotalClaimed == 3000 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%+v", got)
		}
		time.Sleep(50 * time.Millisecond)
	}
	var open []ledger.Batch
	for open, err = c.db.OpenBatches(t.Context(), c.asset.Network, x402.Lower(c.node.Signer())); len(open) > 0 && err == nil && time.Now().Before(deadline); {
		time.Sleep(50 * time.Millisecond)
		open, err = c.db.OpenBatches(t.Context(), c.asset.Network, x402.Lower(c.node.Signer()))
	}
	if len(open) != 0 || err != nil {
		t.Errorf("%d batches are open, %v", len(open), err)
	}
}

// What an earlier process signed and nobody has seen in a block is carried
// through, and not made again: the second transaction would be reverted, and
// the payer told that his deposit, or refund, was not made.
func TestWhatIsOnItsWayIsNotSignedAgain(t *testing.T) {
	c := newCanal(t)
	authorizer := c.fac.Authorizer
	again := func(p *x402.ChannelPayload, batches int64) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		cancelled := make(chan struct{})
		c.at("t3.after", func() { close(cancelled); runtime.Goexit() })
		go c.fac.SettleChannel(context.WithoutCancel(ctx), c.payload(p), c.terms)
		<-cancelled
		cancel()
		c.fac = c.facilitator()
		c.fac.Authorizer = authorizer
		c.must(p)
		next, err := c.db.NextNonce(t.Context(), c.asset.Network, x402.Lower(c.node.Signer()))
		if err != nil || next != batches {
			t.Errorf("%s: the next nonce is %d, %v; want %d", p.Kind, next, err, batches)
		}
	}
	again(c.deposit(10_000, 1000), 1)
	again(c.claim(3000, 2500), 2)
	refund := c.voucher(3000)
	refund.Kind, refund.Amount, refund.Completed = x402.ChannelRefund, 7000, true
	refund.Claims = c.claim(3000, 3000).Claims
	again(refund, 3)
}

// A channel that names no key is signed for by its payer. If that has code, the
// contract will ask the code, also where there is a key (EIP-7702): so the code
// is asked, and the key's signature says nothing.
func TestAPayerWithCodeSignsVouchersByItsCode(t *testing.T) {
	c := newCanal(t)
	c.config.PayerAuthorizer = common.Address{}
	c.must(c.deposit(10_000, 1000))
	if v := c.verify(c.voucher(2000)); !v.IsValid {
		t.Fatalf("before it has code: %+v", v)
	}
	c.fund(c.payer, 0)
	c.delegate(c.hostile("HostileWallet", number(1)))
	if v := c.verify(c.voucher(2000)); v.IsValid || v.InvalidReason != x402.ReasonVoucherSignature {
		t.Errorf("its code says no: %+v", v)
	}
	// And that is what the chain says of it, too.
	if s := c.settle(c.claim(2000, 2000)); s.Success || s.ErrorReason != x402.ReasonClaimSimulation {
		t.Errorf("the claim: %+v", s)
	}
	c.delegate(c.hostile("HostileWallet", number(0)))
	if v := c.verify(c.voucher(2000)); !v.IsValid {
		t.Errorf("its code says yes: %+v", v)
	}
	other := c.voucher(3000)
	other.Voucher.Signature = []byte("anything that the code takes")
	if v := c.verify(other); !v.IsValid {
		t.Errorf("its code says yes to anything: %+v", v)
	}
	c.must(c.claim(2000, 2000))
	// A key that is named signs alone, whatever code the payer has.
	c.config.PayerAuthorizer = c.payer.Address()
	c.config.Salt = common.Hash{1}
	c.must(c.deposit(10_000, 1000))
	c.delegate(c.hostile("HostileWallet", number(1)))
	if v := c.verify(c.voucher(2000)); !v.IsValid {
		t.Errorf("by the key that is named: %+v", v)
	}
}

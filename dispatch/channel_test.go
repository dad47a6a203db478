package dispatch_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// canal is a world in which metals are sold for vouchers, and a channel of its
// buyer's.
type canal struct {
	*onChain
	domain x402.Domain
	terms  x402.Requirements // with a quote
	config x402.ChannelConfig
}

func newCanal(t *testing.T) *canal {
	c := &canal{onChain: newChainWorld(t)}
	authorizer, err := chain.NewKey()
	c.ok(err)
	c.fac.Authorizer = authorizer
	c.d.Till = &dispatch.Till{Channels: c.db, Holds: c.db, Vault: c.fac, Authorizer: authorizer}
	all, err := c.db.Tenants(t.Context())
	c.ok(err)
	for _, metals := range all {
		if metals.Slug == "metals" {
			metals.Schemes = []string{"exact", "batch-settlement"}
			c.deploy(metals)
		}
	}
	c.terms = c.offered()
	id, _ := x402.ChainID(c.terms.Network)
	c.domain = x402.ChannelDomain(id)
	c.config = x402.ChannelConfig{Payer: crypto.PubkeyToAddress(c.buyer.PublicKey), PayerAuthorizer: crypto.PubkeyToAddress(c.buyer.PublicKey),
		Receiver: common.HexToAddress(payTo), ReceiverAuthorizer: authorizer.Address(), Token: common.HexToAddress(c.d.Asset.Address), WithdrawDelay: x402.MinWithdrawDelay}
	return c
}

// offered is what a challenge offers beside exact.
func (c *canal) offered() x402.Requirements {
	c.Helper()
	offers := c.get(records).is(402, clawr.CodeMissingPayment).required().Accepts
	if len(offers) != 2 || offers[0].Scheme != x402.SchemeExact || offers[1].Scheme != x402.SchemeChannel || offers[0].Extra.Quote == "" || offers[1].Extra.Quote == "" {
		c.Fatalf("offers: %+v", offers)
	}
	return offers[1]
}

func (c *canal) id() common.Hash { return c.config.ID(c.domain) }

// payload is a voucher that allows max in all.
func (c *canal) payload(max int64) *x402.ChannelPayload {
	p := &x402.ChannelPayload{Kind: x402.ChannelVoucher, Config: c.config, Voucher: x402.Voucher{Channel: c.id(), MaxClaimable: max}}
	c.ok(p.Voucher.Sign(c.buyer, c.domain))
	return p
}

// with is a request that is paid with p.
func (c *canal) with(p *x402.ChannelPayload) request {
	sent := &x402.PaymentPayload{Version: 2, Accepted: c.terms, Payload: p.JSON()}
	return request{path: records, pay: sent.Header()}
}

func (c *canal) voucher(max int64) request { return c.with(c.payload(max)) }

// deposit brings amount into the channel, and a voucher for max.
func (c *canal) deposit(amount, max int64) request {
	c.Helper()
	p := c.payload(max)
	p.Kind = x402.ChannelDeposit
	p.Deposit = &x402.Deposit{Amount: amount, ValidBefore: x402.Uint(uint64(c.now().Unix() + 600))}
	rand.Read(p.Deposit.Salt[:])
	id, _ := x402.ChainID(c.terms.Network)
	c.ok(p.Deposit.Sign(c.buyer, x402.NewDomain(c.terms.Extra.Name, c.terms.Extra.Version, id, c.config.Token), c.id()))
	return c.with(p)
}

// charged checks what the book says was charged.
func (c *canal) charged(want int64) *ledger.Channel {
	c.Helper()
	ch, err := c.db.Channel(context.WithoutCancel(c.Context()), c.id().Hex())
	c.ok(err)
	if ch == nil || ch.Charged != want {
		c.Fatalf("the channel is %+v, want %d charged", ch, want)
	}
	return ch
}

func TestCallsArePaidByVoucher(t *testing.T) {
	c := newCanal(t)
	a := c.send(c.deposit(10*price, price)).is(200, "")
	r := a.receipt()
	if !r.Success || r.Transaction == "" || r.Amount != strconv.Itoa(10*price) || string(r.Extra.Find("chargedAmount")) != `"1000"` {
		t.Errorf("the deposit's receipt: %+v", r)
	}
	if !strings.Contains(a.Body.String(), `"usd":2411`) {
		t.Errorf("sold %s", a.Body)
	}
	for n := int64(2); n <= 10; n++ {
		a := c.send(c.voucher(n*price)).is(200, "").has("Cache-Control", "private")
		r := a.receipt()
		var state struct{ ChargedCumulativeAmount, Balance string }
		c.ok(json.Unmarshal(r.Extra.Find("channelState"), &state))
		if !r.Success || r.Transaction != "" || state.ChargedCumulativeAmount != strconv.FormatInt(n*price, 10) || state.Balance != "10000" {
			t.Errorf("voucher %d: %+v, %+v", n, r, state)
		}
	}
	if got := c.units(payTo); got != 0 {
		t.Errorf("%d units were moved before anything was claimed", got)
	}
	n, err := c.d.Claim(t.Context(), true)
	if err != nil || n != 1 || c.units(payTo) != 10*price {
		t.Errorf("claimed %d channels, %v; the owner has %d", n, err, c.units(payTo))
	}
	ch := c.charged(10 * price)
	if ch.Due() != 0 || ch.Claimed != 10*price {
		t.Errorf("after the claim: %+v", ch)
	}
	if n, err := c.d.Claim(t.Context(), true); n != 0 || err != nil {
		t.Errorf("claimed %d again, %v", n, err)
	}
	// The events bill exactly what was charged, once each (I10).
	billed, calls := clawr.Amount(0), 0
	for _, e := range c.events() {
		if e.Lifecycle == usage.Success && e.Billable {
			billed, calls = billed+e.Billed, calls+1
		}
	}
	if billed != 10*price || calls != 10 {
		t.Errorf("%d calls bill %d", calls, billed)
	}
}

// One increment buys one request; whoever has the voucher, and its quote, has
// the answer again.
func TestAVoucherBuysOneRequest(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(10*price, price)).is(200, "")
	q := c.voucher(2 * price)
	first := c.send(q).is(200, "")
	again := c.send(q).is(200, "").has("X-Clawr-Replayed", "true")
	if !bytes.Equal(first.Body.Bytes(), again.Body.Bytes()) {
		t.Errorf("again: %s", again.Body)
	}
	other := q
	other.path = "/t/metals/v1/records?metal=tin"
	c.send(other).is(409, clawr.CodeBoundElsewhere)
	// The voucher is public once it is claimed; the quote is not.
	c.terms = c.offered()
	a := c.send(c.voucher(2*price)).is(402, x402.ReasonCumulativeMismatch)
	if strings.Contains(a.Body.String(), "2411") {
		t.Errorf("given away: %s", a.Body)
	}
	c.charged(2 * price)
}

func TestMustPass12BadVouchersAreNotServed(t *testing.T) {
	c := newCanal(t)
	c.send(c.voucher(price)).is(402, x402.ReasonCumulativeBalance) // of a channel that nobody funded
	c.send(c.deposit(5*price, price)).is(200, "")
	c.send(c.voucher(2*price)).is(200, "")
	forged := c.payload(3 * price)
	forged.Voucher.Signature[10] ^= 1
	foreign := c.payload(3 * price)
	foreign.Config.Salt = common.Hash{1}
	moved := c.payload(3 * price)
	moved.Config.Receiver = common.Address{7}
	moved.Voucher.Channel = moved.Config.ID(c.domain)
	c.ok(moved.Voucher.Sign(c.buyer, c.domain))
	cheap := c.payload(2*price + 1)
	for name, test := range map[string]struct {
		q    request
		code int
		want clawr.Code
	}{
		"down":                {c.voucher(price / 2), 402, x402.ReasonCumulativeMismatch},
		"a jump":              {c.voucher(4 * price), 402, x402.ReasonCumulativeMismatch},
		"less than the price": {c.with(cheap), 402, x402.ReasonCumulativeMismatch},
		"forged":              {c.with(forged), 402, x402.ReasonVoucherSignature},
		"another channel":     {c.with(foreign), 400, clawr.CodeBadHeader},
		"another receiver":    {c.with(moved), 402, x402.ReasonChannelReceiver},
		"a claim":             {c.with(&x402.ChannelPayload{Kind: x402.ChannelSettle, Receiver: c.config.Receiver, Token: c.config.Token}), 400, clawr.CodeBadHeader},
	} {
		t.Run(name, func(t *testing.T) {
			a := c.send(test.q).is(test.code, test.want)
			if strings.Contains(a.Body.String(), "2411") {
				t.Errorf("given away: %s", a.Body)
			}
			if test.want != x402.ReasonCumulativeMismatch {
				return
			}
			// It says where the channel stands, and proves it.
			offer := a.required().Accepts[1]
			var state struct{ ChargedCumulativeAmount string }
			var proof struct{ SignedMaxClaimable, Signature string }
			c.ok(json.Unmarshal(offer.Extra.Rest.Find("channelState"), &state))
			c.ok(json.Unmarshal(offer.Extra.Rest.Find("voucherState"), &proof))
			v := x402.Voucher{Channel: c.id(), MaxClaimable: 2 * price, Signature: common.FromHex(proof.Signature)}
			if state.ChargedCumulativeAmount != "2000" || proof.SignedMaxClaimable != "2000" || !v.SignedBy(c.config.Payer, c.domain) {
				t.Errorf("the channel is said to be at %+v, %+v", state, proof)
			}
		})
	}
	c.charged(2 * price)
	for n := int64(3); n <= 5; n++ {
		c.send(c.voucher(n*price)).is(200, "")
	}
	c.send(c.voucher(6*price)).is(402, x402.ReasonCumulativeBalance)
	c.charged(5 * price)
}

// Fifty calls at once on one channel, on two nodes: each increment is served
// once, none is served unpaid, and the balance is not overdrawn.
func TestMustPass12FiftyCallsOnOneChannel(t *testing.T) {
	c := newCanal(t)
	second := c.dispatcher("node-2")
	second.Workers, second.Asset, second.Payments, second.Deadline = c.d.Workers, c.d.Asset, c.fac, c.d.Deadline
	second.Till = &dispatch.Till{Channels: c.db, Holds: c.db, Vault: c.fac, Authorizer: c.d.Till.Authorizer}
	c.reload(second)
	c.send(c.deposit(20*price, price)).is(200, "")
	var served atomic.Int64
	var wg sync.WaitGroup
	for i := range 50 {
		q := c.voucher(int64(2+i/2) * price) // each twice; the last ones are beyond the balance
		if i%2 == 1 {
			q.node = second
		}
		wg.Go(func() {
			for range 40 {
				a := c.send(q)
				if a.Code == 200 {
					if a.Header().Get("X-Clawr-Replayed") == "" {
						served.Add(1)
					}
					return
				}
				if code := clawr.Code(a.error()); a.Code != 402 || code != x402.ReasonCumulativeMismatch && code != x402.ReasonCumulativeBalance {
					t.Errorf("%d %s", a.Code, a.Body)
					return
				}
			}
		})
	}
	wg.Wait()
	ch, err := c.db.Channel(t.Context(), c.id().Hex())
	c.ok(err)
	if ch.Charged > 20*price || ch.Charged != (served.Load()+1)*price {
		t.Errorf("%d calls were served for %d", served.Load()+1, ch.Charged)
	}
	if _, err := c.d.Claim(t.Context(), true); err != nil || c.units(payTo) != ch.Charged {
		t.Errorf("the owner has %d of %d, %v", c.units(payTo), ch.Charged, err)
	}
}

// A refund gives back what was not charged, and nobody spends it meanwhile.
func TestARefundLeavesWhatWasCharged(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(10*price, price)).is(200, "")
	c.send(c.voucher(2*price)).is(200, "")
	had := c.units(address(c.buyer))
	refund := c.payload(2 * price)
	refund.Kind = x402.ChannelRefund
	wrong := c.payload(price)
	wrong.Kind = x402.ChannelRefund
	c.send(c.with(wrong)).is(402, x402.ReasonCumulativeMismatch)
	c.at("preflight", func() { // the refund is on its way to the chain
		v, ev := ledger.Voucher{ID: "pay_00000000000000ff", Channel: c.id().Hex(), MaxClaimable: 3 * price, Amount: price, Signature: []byte{1}, TenantID: "x"}, usage.Event{RequestID: "req_ff"}
		if _, _, err := c.db.Charge(context.WithoutCancel(t.Context()), v, ledger.Answer{Status: 200}, ev); err == nil {
			t.Error("another node charged what is being given back")
		}
	})
	a := c.send(c.with(refund)).is(200, "")
	if r := a.receipt(); !r.Success || r.Amount != strconv.Itoa(8*price) || r.Transaction == "" {
		t.Errorf("%+v", r)
	}
	if got := c.units(address(c.buyer)) - had; got != 8*price {
		t.Errorf("the payer has %d back, want %d", got, 8*price)
	}
	ch := c.charged(2 * price)
	if ch.Balance != 2*price || ch.Claimed != 2*price || ch.Reserved != 0 {
		t.Errorf("%+v", ch)
	}
	c.send(c.with(refund)).is(402, x402.ReasonRefundNoBalance)
}

// Work that fails, and a book that does, cost nothing: the same voucher buys
// the answer afterwards.
func TestAVoucherIsGoodUntilItIsCharged(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(5*price, price)).is(200, "")
	q := c.voucher(2 * price)
	ctx, cancel := context.WithCancel(t.Context())
	q.ctx = ctx
	c.at("worker.before", cancel) // its sender hangs up: it is charged, and kept, all the same
	c.send(q).is(200, "")
	c.charged(2 * price)
	q.ctx = nil
	c.send(q).is(200, "").has("X-Clawr-Replayed", "true")
	c.deploy(clawr.Tenant{Slug: "broken", Manifest: clawr.Manifest{Price: price, X402: true, Content: strings.Repeat("0", 64), Schemes: []string{"exact", "batch-settlement"}}})
	broken := c.voucher(3 * price)
	broken.path = "/t/broken/v1/records"
	if a := c.send(broken); a.Code < 400 {
		t.Errorf("work that cannot be done was answered %d", a.Code)
	}
	c.charged(2 * price)
}

// A payer who withdraws while he calls can spend what he does not withdraw, and
// what he has spent is claimed before he has the rest.
func TestAPayerWhoWithdrawsWhileCalling(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(10*price, price)).is(200, "")
	c.send(c.voucher(2*price)).is(200, "")
	to := common.HexToAddress(chain.ChannelsAddress)
	c.transact(c.buyer, chain.Call{To: &to, Data: chain.WithdrawCalldata(chain.ChannelConfig(c.config), 7*price), Gas: 200_000})
	c.pass(6 * time.Minute) // what is known of the channel is old
	c.terms = c.offered()
	c.send(c.voucher(3*price)).is(200, "")
	c.send(c.voucher(4*price)).is(402, x402.ReasonCumulativeBalance)
	if n, err := c.d.Claim(t.Context(), false); err != nil || n != 1 {
		t.Errorf("claimed %d channels, %v", n, err)
	}
	if got := c.units(payTo); got != 3*price {
		t.Errorf("the owner has %d, want %d", got, 3*price)
	}
	c.pass(15 * time.Minute)
	had := c.units(address(c.buyer))
	c.transact(c.buyer, chain.Call{To: &to, Data: chain.FinalizeCalldata(chain.ChannelConfig(c.config)), Gas: 200_000})
	if got := c.units(address(c.buyer)) - had; got != 7*price {
		t.Errorf("the payer withdrew %d", got)
	}
	// The seller's loss is what was unclaimed then: nothing.
	c.terms = c.offered()
	c.send(c.voucher(4*price)).is(402, x402.ReasonCumulativeBalance)
	if ch := c.charged(3 * price); ch.Forfeited != 0 {
		t.Errorf("%+v", ch)
	}
}

// What is due is claimed without being asked for when it is much, or old.
func TestDueChannelsAreClaimedInTime(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(10*price, price)).is(200, "")
	claim := func(want int) {
		t.Helper()
		if n, err := c.d.Claim(t.Context(), false); n != want || err != nil {
			t.Errorf("claimed %d channels, %v; want %d", n, err, want)
		}
	}
	claim(0)
	c.pass(x402.MinWithdrawDelay * time.Second / 4)
	claim(1)
	c.terms = c.offered()
	c.send(c.voucher(2*price)).is(200, "")
	claim(0)
	c.d.Till.ClaimAbove = 2 * price
	c.send(c.voucher(3*price)).is(200, "")
	claim(1)
	if got := c.units(payTo); got != 3*price {
		t.Errorf("the owner has %d", got)
	}
}

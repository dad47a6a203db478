package dispatch_test

import (
	"bytes"
	"context"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/x402"
)

// The bad luck of channels: crashes, lost vouchers, claims that the chain does
// not take, and payers that are contracts.

// state is the channel as the chain has it.
func (c *canal) state(id common.Hash) chain.ChannelState {
	c.Helper()
	s, err := c.node.Client.ChannelStates(context.WithoutCancel(c.Context()), id)
	c.ok(err)
	return s[0]
}

// die is crashAll for a node that takes vouchers.
func (c *canal) die(point string, q request) {
	c.Helper()
	c.dieAt(point, func() { c.send(q) })
}

// reopen begins a new process on what the last one left.
func (c *canal) reopen() {
	c.Helper()
	authorizer, workers, asset := c.d.Till.Authorizer, c.d.Workers, c.d.Asset
	c.ok(c.db.Close())
	db, err := store.Open(c.Context(), store.Options{Path: c.path, Now: c.now})
	c.ok(err)
	c.Cleanup(func() { db.Close() })
	c.db, c.rec.Sink = db, db
	c.restart()
	c.d.Workers, c.d.Asset, c.d.Deadline = workers, asset, 10*time.Second
	c.start()
	c.fac.Authorizer = authorizer
	c.d.Till = &dispatch.Till{Channels: c.db, Holds: c.db, Receivers: c.db, Vault: c.fac, Authorizer: authorizer}
}

// dieAt has the process die at a point of what do does.
func (c *canal) dieAt(point string, do func()) {
	c.Helper()
	died, ended := make(chan struct{}), make(chan struct{})
	c.at(point, func() { close(died); runtime.Goexit() })
	go func() {
		defer close(ended)
		do()
	}()
	select {
	case <-died:
	case <-ended:
		select {
		case <-died:
		default:
			c.Fatalf("%s was not reached", point)
		}
	}
	c.reopen()
}

// Wherever the process dies between a voucher's arrival and its answer, the
// same voucher buys the answer afterwards, once, for one price.
func TestACrashAnywhereIsMendedByTheSameVoucher(t *testing.T) {
	for _, point := range []string{"voucher.received", "worker.before", "worker.after", "charge.after", "respond.before"} {
		t.Run(point, func(t *testing.T) {
			c := newCanal(t)
			c.send(c.deposit(10*price, price)).is(200, "")
			q := c.voucher(2 * price)
			c.die(point, q)
			booked := point == "charge.after" || point == "respond.before"
			if booked {
				c.charged(2 * price)
			} else {
				c.charged(price)
			}
			a := c.send(q).is(200, "")
			if replayed := a.Header().Get("X-Clawr-Replayed") == "true"; replayed != booked || !strings.Contains(a.Body.String(), `"usd":2411`) {
				t.Errorf("replayed: %v, %s", replayed, a.Body)
			}
			if again := c.send(q).is(200, ""); !bytes.Equal(again.Body.Bytes(), a.Body.Bytes()) {
				t.Errorf("again: %s", again.Body)
			}
			c.charged(2 * price)
			if _, err := c.d.Claim(t.Context(), true); err != nil || c.units(payTo) != 2*price {
				t.Errorf("the owner has %d, %v", c.units(payTo), err)
			}
		})
	}
}

// A deposit is made once, and its voucher charged once, wherever the process
// dies: the payer sends the same payload again, and is not asked for another.
func TestACrashAroundADepositMakesItOnce(t *testing.T) {
	for _, point := range []string{"deposit.build", "t3.before", "t3.after", "deposit.signed", "broadcast.before", "broadcast.after", "mined.before", "mined.after", "deposit.after"} {
		t.Run(point, func(t *testing.T) {
			c := newCanal(t)
			q := c.deposit(10*price, price)
			c.die(point, q)
			c.send(q).is(200, "")
			c.send(q).is(200, "").has("X-Clawr-Replayed", "true")
			c.charged(price)
			if s := c.state(c.id()); s.Balance != 10*price {
				t.Errorf("%+v", s)
			}
			if left := c.units(address(c.buyer)); left != 1_000_000-10*price {
				t.Errorf("the buyer has %d", left)
			}
		})
	}
}

// Claims that a crash interrupts are made good by the next, to the unit.
func TestACrashAroundAClaimLosesNothing(t *testing.T) {
	for _, point := range []string{"claim.build", "claim.signed", "claim.broadcast.before", "claim.broadcast.after", "claim.mined.before", "claim.mined.after", "settle.build", "settle.signed", "settle.mined.after"} {
		t.Run(point, func(t *testing.T) {
			c := newCanal(t)
			c.send(c.deposit(10*price, price)).is(200, "")
			c.send(c.voucher(2*price)).is(200, "")
			c.dieAt(point, func() { c.d.Claim(context.WithoutCancel(t.Context()), true) })
			for end := time.Now().Add(time.Minute); c.units(payTo) != 2*price && time.Now().Before(end); {
				if _, err := c.d.Claim(t.Context(), true); err != nil {
					t.Log(err) // in no block yet
				}
				time.Sleep(20 * time.Millisecond)
			}
			if got := c.units(payTo); got != 2*price {
				t.Errorf("the owner has %d, want %d", got, 2*price)
			}
			if ch := c.charged(2 * price); ch.Claimed != 2*price || ch.Forfeited != 0 {
				t.Errorf("%+v", ch)
			}
		})
	}
}

// A contract may take back what it signed: its calls would be served, and the
// claim refused. So vouchers are signed by keys, and nothing else opens,
// charges or closes a channel.
func TestVouchersAreSignedByAKey(t *testing.T) {
	c := newCanal(t)
	c.config.PayerAuthorizer = common.Address{} // the payer itself, which may be a contract
	c.send(c.deposit(10*price, price)).is(402, x402.ReasonVoucherSignature)
	if s := c.state(c.id()); s.Balance != 0 {
		t.Errorf("a deposit was made into a channel that is not served: %+v", s)
	}
	// Somebody else makes the deposit, and it is public from then on.
	q := c.deposit(10*price, price)
	sent, err := x402.ParsePayment(q.pay)
	c.ok(err)
	p, err := x402.ParseChannel(sent.Payload, c.domain)
	c.ok(err)
	to := common.HexToAddress(chain.ChannelsAddress)
	c.transact(c.buyer, chain.Call{To: &to, Gas: 400_000, Data: chain.ChannelDeposit{Config: chain.ChannelConfig(c.config), Amount: p.Deposit.Amount,
		ValidAfter: common.Hash(p.Deposit.ValidAfter), ValidBefore: common.Hash(p.Deposit.ValidBefore), Salt: p.Deposit.Salt, Signature: p.Deposit.Signature}.Calldata()})
	for name, sig := range map[string][]byte{"junk": make([]byte, 65), "nothing": {0}, "the payer's": p.Voucher.Signature} {
		p.Voucher.Signature = sig
		for _, kind := range []x402.ChannelKind{x402.ChannelDeposit, x402.ChannelVoucher, x402.ChannelRefund} {
			p.Kind = kind
			p.Voucher.MaxClaimable = price
			if kind == x402.ChannelRefund {
				p.Voucher.MaxClaimable = 0
			}
			a := c.send(c.with(p)).is(402, x402.ReasonVoucherSignature)
			if strings.Contains(a.Body.String(), "2411") {
				t.Errorf("%s, %s: given away", kind, name)
			}
		}
	}
	if s := c.state(c.id()); s.Balance != 10*price || s.RefundNonce != 0 {
		t.Errorf("%+v", s)
	}
}

// With a refund the rest of what was charged is claimed. The seller has it
// within the time that any debt may last.
func TestWhatARefundClaimsIsSent(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(10*price, price)).is(200, "")
	c.send(c.voucher(2*price)).is(200, "")
	refund := c.payload(2 * price)
	refund.Kind = x402.ChannelRefund
	c.send(c.with(refund)).is(200, "")
	c.pass(x402.MinWithdrawDelay * time.Second / 4)
	if _, err := c.d.Claim(t.Context(), false); err != nil || c.units(payTo) != 2*price {
		t.Errorf("the owner has %d, %v", c.units(payTo), err)
	}
}

// A backup may be older than the newest voucher. What was lost is lost by the
// seller alone: the payer is not charged again for what he has, and what he
// presents is charged.
func TestALostNewestVoucher(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(10*price, price)).is(200, "")
	c.send(c.voucher(2*price)).is(200, "")
	backup := filepath.Join(t.TempDir(), "backup.db")
	_, err := c.db.Backup(t.Context(), backup)
	c.ok(err)
	lost := c.voucher(3 * price)
	c.send(lost).is(200, "")
	c.restore(backup)
	// He goes on from what he paid, and is told where the book stands.
	c.send(c.voucher(4*price)).is(402, x402.ReasonCumulativeMismatch)
	c.charged(2 * price)
	// What was lost buys the same answer again, and is charged then.
	c.send(lost).is(200, "")
	c.send(lost).is(200, "").has("X-Clawr-Replayed", "true")
	c.send(c.voucher(4*price)).is(200, "")
	if _, err := c.d.Claim(t.Context(), true); err != nil || c.units(payTo) != 4*price {
		t.Errorf("the owner has %d, %v", c.units(payTo), err)
	}
}

// Where the whole channel is unknown, the payer's next voucher brings back what
// the lost ones were worth.
func TestALostChannelComesBackWithItsNextVoucher(t *testing.T) {
	c := newCanal(t)
	backup := filepath.Join(t.TempDir(), "backup.db")
	_, err := c.db.Backup(t.Context(), backup)
	c.ok(err)
	c.send(c.deposit(10*price, price)).is(200, "")
	c.send(c.voucher(2*price)).is(200, "")
	c.restore(backup)
	c.send(c.voucher(3*price)).is(200, "")
	c.charged(3 * price)
	c.send(c.voucher(3*price+1)).is(402, x402.ReasonCumulativeMismatch)
	if _, err := c.d.Claim(t.Context(), true); err != nil || c.units(payTo) != 3*price {
		t.Errorf("the owner has %d, %v", c.units(payTo), err)
	}
}

func (c *canal) restore(backup string) {
	c.Helper()
	c.ok(c.db.Close())
	_, err := store.Restore(c.Context(), backup, c.path, "operator", c.now())
	c.ok(err)
	c.reopen()
}

// One channel's claim is reverted, because its payer has withdrawn what it
// claims: the others are claimed all the same, and the loss is what was not
// claimed when he withdrew.
func TestAClaimThatRevertsHoldsUpNoOther(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(10*price, price)).is(200, "")
	c.send(c.voucher(2*price)).is(200, "")
	thief := c.config
	to := common.HexToAddress(chain.ChannelsAddress)
	c.transact(c.buyer, chain.Call{To: &to, Data: chain.WithdrawCalldata(chain.ChannelConfig(c.config), 10*price), Gas: 200_000})
	c.pass(x402.MinWithdrawDelay * time.Second) // the seller has slept through it
	c.terms = c.offered()
	for i := byte(1); i <= 4; i++ {
		c.config.Salt = common.Hash{i}
		c.send(c.deposit(5*price, price)).is(200, "")
	}
	c.at("claim.build", func() { // the chain would take the claim, but this comes first
		c.transact(c.buyer, chain.Call{To: &to, Data: chain.FinalizeCalldata(chain.ChannelConfig(thief)), Gas: 200_000})
	})
	if n, err := c.d.Claim(t.Context(), true); n != 4 || err == nil {
		t.Errorf("%d channels were claimed, %v; want four, and that the fifth was not", n, err)
	}
	if got := c.units(payTo); got != 4*price {
		t.Errorf("the owner has %d, want %d", got, 4*price)
	}
	c.config = thief
	c.pass(6 * time.Minute)
	c.terms = c.offered()
	c.send(c.voucher(3*price)).is(402, x402.ReasonCumulativeBalance)
	if ch := c.charged(0); ch.Forfeited != 2*price || ch.Due() != 0 {
		t.Errorf("%+v, want the two calls lost", ch)
	}
	if n, err := c.d.Claim(t.Context(), true); n != 0 || err != nil {
		t.Errorf("claimed %d, %v", n, err)
	}
}

// Claims, what is sent, deposits and exact payments share one signer: each has
// a nonce of its own, none of them fails for it, and no nonce is left out.
func TestClaimsAndPaymentsShareTheSignersNonces(t *testing.T) {
	c := newCanal(t)
	const channels = 6
	for i := range channels {
		c.config.Salt = common.Hash{byte(i + 1)}
		c.send(c.deposit(5*price, price)).is(200, "")
	}
	var exact []request
	for range 4 {
		exact = append(exact, c.buy(records))
	}
	var deposits []request
	for i := range 4 {
		c.config.Salt = common.Hash{byte(i + 100)}
		deposits = append(deposits, c.deposit(5*price, price))
	}
	var wg sync.WaitGroup
	for range 3 { // each claims what is due, and sends it
		wg.Go(func() {
			if _, err := c.d.Claim(context.WithoutCancel(t.Context()), true); err != nil {
				t.Errorf("claim: %v", err)
			}
		})
	}
	for _, q := range append(exact, deposits...) {
		wg.Go(func() { c.send(q).is(200, "") })
	}
	wg.Wait()
	if _, err := c.d.Claim(t.Context(), true); err != nil {
		t.Error(err)
	}
	if got, want := c.units(payTo), int64(channels+len(exact)+len(deposits))*price; got != want {
		t.Errorf("the owner has %d, want %d", got, want)
	}
	open, err := c.db.OpenBatches(t.Context(), c.terms.Network, x402.Lower(c.node.Signer()))
	if err != nil || len(open) != 0 {
		t.Errorf("%d transactions are in no block, %v", len(open), err)
	}
}

// A refund that a crash leaves on its way is waited for: what it takes out of
// the channel is not sold meanwhile, and the channel is good again afterwards.
func TestACrashAroundARefundSellsNothingTwice(t *testing.T) {
	for _, point := range []string{"hold.after", "refund.build", "refund.signed", "refund.broadcast.before", "refund.broadcast.after", "refund.mined.before", "refund.mined.after"} {
		t.Run(point, func(t *testing.T) {
			c := newCanal(t)
			c.send(c.deposit(10*price, price)).is(200, "")
			refund := c.payload(price)
			refund.Kind = x402.ChannelRefund
			c.die(point, c.with(refund))
			// Long after any call's deadline the book still believes in the balance.
			c.pass(time.Minute)
			if a := c.send(c.voucher(2 * price)); a.Code == 200 && c.state(c.id()).Balance < 2*price {
				t.Fatal("sold for what was given back")
			}
			for end := time.Now().Add(time.Minute); c.units(address(c.buyer)) != 1_000_000-price && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				c.send(c.with(refund))
			}
			if got := c.units(address(c.buyer)); got != 1_000_000-price {
				t.Errorf("the buyer has %d, want %d", got, 1_000_000-price)
			}
			q := c.deposit(5*price, 2*price)
			for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
				a := c.send(q)
				if a.Code == 200 {
					break
				}
				if a.Code != 503 || time.Now().After(end) {
					t.Fatalf("%d %s", a.Code, a.Body)
				}
			}
			if ch := c.charged(2 * price); ch.Forfeited != 0 {
				t.Errorf("%+v", ch)
			}
		})
	}
}

// A channel that another process holds is busy, and its voucher is not wrong: a
// client that was asked to sign again would sign the same.
func TestAHeldChannelIsBusy(t *testing.T) {
	c := newCanal(t)
	c.send(c.deposit(10*price, price)).is(200, "")
	epoch, err := c.db.HoldChannel(t.Context(), c.id().Hex(), price, price, "somebody", time.Minute)
	c.ok(err)
	c.send(c.voucher(2*price)).is(503, x402.ReasonChannelBusy).has("Retry-After", "1")
	c.send(c.voucher(3*price)).is(402, x402.ReasonCumulativeMismatch)
	c.ok(c.db.ReleaseChannel(t.Context(), c.id().Hex(), epoch))
	c.send(c.voucher(2*price)).is(200, "")
}

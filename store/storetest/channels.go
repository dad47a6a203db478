package storetest

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"pgregory.net/rapid"
)

// seen is a channel as the chain shows it at a second.
func seen(n int64, balance, claimed int64, second int64) ledger.Channel {
	return ledger.Channel{ID: fmt.Sprintf("0x%064x", n), Network: home, Asset: asset, Payer: buyer, PayTo: seller, Config: []byte(`{}`),
		Balance: balance, Claimed: claimed, Synced: time.Unix(1_700_000_000+second, 0).UTC()}
}

func (f *fixture) sync(c ledger.Channel) ledger.Channel {
	f.Helper()
	got, err := f.SyncChannel(f.ctx(), c)
	f.ok(err)
	return got
}

// voucher is one that allows max in a channel, for amount more than before.
func (f *fixture) voucher(c ledger.Channel, max, amount int64) (ledger.Voucher, usage.Event) {
	f.Helper()
	t := f.deploy()
	n := f.serial.Add(1)
	v := ledger.Voucher{ID: fmt.Sprintf("pay_%016x", n), Channel: c.ID, MaxClaimable: max, Amount: amount, Signature: []byte{1, byte(n)},
		TenantID: t.ID, Version: t.Version, Route: "/v1/records", Fingerprint: hash("fingerprint", n), SignatureSHA256: hash("signature", n), QuoteSHA256: hash("quote", n)}
	return v, event(ledger.Payment{ID: v.ID, TenantID: t.ID, Route: v.Route})
}

func (f *fixture) charge(c ledger.Channel, max, amount int64) (ledger.Channel, error) {
	f.Helper()
	v, ev := f.voucher(c, max, amount)
	got, _, err := f.Charge(f.ctx(), v, answer(), ev)
	return got, err
}

func (f *fixture) channel(c ledger.Channel) ledger.Channel {
	f.Helper()
	got, err := f.Channel(f.ctx(), c.ID)
	f.ok(err)
	if got == nil {
		f.Fatalf("channel %s is gone", c.ID)
	}
	return *got
}

// behind fails the test unless err says where the channel stands.
func (f *fixture) behind(err error) ledger.Channel {
	f.Helper()
	var b *ledger.ChannelBehind
	if !errors.As(err, &b) {
		f.Fatalf("%v, want that the channel is elsewhere", err)
	}
	return b.Channel
}

// aVoucherIsOneCharge books charge, answer, event and counters together, and
// gives the answer back to the voucher that paid it.
func aVoucherIsOneCharge(f *fixture) {
	c := f.sync(seen(1, 10_000, 0, 0))
	v, ev := f.voucher(c, 1000, 1000)
	v.Counters = []ledger.Counter{{Scope: "spend", Window: 0, Cost: 1000, Cap: 1500}}
	got, counters, err := f.Charge(f.ctx(), v, answer(), ev)
	f.ok(err)
	if got.Charged != 1000 || got.Signed != 1000 || got.Due() != 1000 || got.Unclaimed.IsZero() || counters[0].Used != 1000 {
		f.Errorf("%+v, %+v", got, counters)
	}
	bought, a, err := f.Voucher(f.ctx(), c.ID, 1000)
	f.ok(err)
	if bought == nil || bought.ID != v.ID || bought.Fingerprint != v.Fingerprint || string(a.Body) != string(answer().Body) || len(a.Headers) != 2 {
		f.Errorf("%+v, %+v", bought, a)
	}
	if e := f.events()[ev.RequestID]; e.Billed != 1000 || !e.Billable || e.Lifecycle != usage.Success {
		f.Errorf("the event is %+v", e)
	}
	// What the cap refuses leaves nothing behind.
	next, ev := f.voucher(c, 2000, 1000)
	next.Counters = v.Counters
	if _, _, err := f.Charge(f.ctx(), next, answer(), ev); !errors.As(err, new(*ledger.Exceeded)) {
		f.Errorf("%v, want that the cap is reached", err)
	}
	if got := f.channel(c); got.Charged != 1000 || len(f.events()) != 1 {
		f.Errorf("a refused charge left %+v and %d events", got, len(f.events()))
	}
	if v, a, err := f.Voucher(f.ctx(), c.ID, 2000); v != nil || a != nil || err != nil {
		f.Errorf("it has an answer: %+v, %+v, %v", v, a, err)
	}
}

// vouchersGoOneByOne refuses what repeats, jumps, goes down or exceeds the
// balance, and says where the channel stands.
func vouchersGoOneByOne(f *fixture) {
	c := f.sync(seen(1, 2500, 0, 0))
	_, err := f.charge(c, 1000, 1000)
	f.ok(err)
	for _, bad := range [][2]int64{{1000, 1000}, {3000, 1000}, {500, 500}, {2001, 1000}, {900, 1000 - 100}} {
		_, err := f.charge(c, bad[0], bad[1])
		if at := f.behind(err); at.Charged != 1000 {
			f.Errorf("%v: %+v", bad, at)
		}
	}
	_, err = f.charge(c, 2000, 1000)
	f.ok(err)
	_, err = f.charge(c, 3000, 1000)
	f.behind(err) // above the balance
	c = seen(1, 2500, 0, 1)
	c.Withdrawal, c.WithdrawAt = 400, 5
	f.sync(c)
	_, err = f.charge(c, 2200, 200)
	f.behind(err) // what the payer is withdrawing is his
	_, err = f.charge(c, 2100, 100)
	f.ok(err)
}

// oneOfManyVouchers lets one of many that want the same increment through.
func oneOfManyVouchers(f *fixture) {
	c := f.sync(seen(1, 100_000, 0, 0))
	f.deploy()
	var won atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		v, ev := f.voucher(c, 1000, 1000)
		wg.Go(func() {
			if _, _, err := f.Charge(f.ctx(), v, answer(), ev); err == nil {
				won.Add(1)
			} else if !errors.As(err, new(*ledger.ChannelBehind)) {
				f.Errorf("charge: %v", err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 || f.channel(c).Charged != 1000 || len(f.events()) != 1 {
		f.Errorf("%d of 32 were charged, %+v, %d events", won.Load(), f.channel(c), len(f.events()))
	}
}

// aHoldKeepsOthersOut reserves a channel for one call, until it is charged,
// released or its lease is over; a holder that was fenced charges nothing.
func aHoldKeepsOthersOut(f *fixture) {
	c := f.sync(seen(1, 10_000, 0, 0))
	epoch, err := f.HoldChannel(f.ctx(), c.ID, 0, 1000, "one", lease)
	f.ok(err)
	_, err = f.HoldChannel(f.ctx(), c.ID, 0, 1000, "two", lease)
	if at := f.behind(err); at.Reserved != 1000 || at.Holder != "one" {
		f.Errorf("%+v", at)
	}
	_, err = f.charge(c, 1000, 1000) // by a call that holds nothing
	f.behind(err)
	f.ok(f.ReleaseChannel(f.ctx(), c.ID, epoch))
	epoch, err = f.HoldChannel(f.ctx(), c.ID, 0, 1000, "two", expired)
	f.ok(err)
	later, err := f.HoldChannel(f.ctx(), c.ID, 0, 700, "three", lease)
	f.ok(err)
	v, ev := f.voucher(c, 1000, 1000)
	v.Epoch = epoch
	_, _, err = f.Charge(f.ctx(), v, answer(), ev)
	f.behind(err)
	f.ok(f.ReleaseChannel(f.ctx(), c.ID, epoch)) // no longer his to release
	if got := f.channel(c); got.Reserved != 700 || got.Charged != 0 {
		f.Errorf("%+v", got)
	}
	v, ev = f.voucher(c, 700, 700)
	v.Epoch = later
	got, _, err := f.Charge(f.ctx(), v, answer(), ev)
	f.ok(err)
	if got.Reserved != 0 || got.Charged != 700 || got.Holder != "" {
		f.Errorf("%+v", got)
	}
	if _, err := f.HoldChannel(f.ctx(), c.ID, 700, 9_301, "one", lease); err == nil {
		f.Error("more than the balance was reserved")
	}
}

// aRefundIsSignedInItsHold stores a signature only together with the next epoch
// of its hold: what was released is not signed for, what is signed for is not
// released by who knew the hold before, and of the two that come at once one
// wins.
func aRefundIsSignedInItsHold(f *fixture) {
	c := f.sync(seen(1, 1_000_000, 0, 0))
	refund := func(n, epoch int64) ledger.Batch {
		return ledger.Batch{ID: fmt.Sprintf("bat_refund%d", n), Network: home, Signer: signer, Nonce: n, CalldataSHA256: hash("refund", n), State: ledger.BatchSigned,
			Txs: []ledger.Tx{{Hash: "0x" + hash("tx of a refund", n), Attempt: 1, Raw: []byte{1}, MaxFee: "1", Tip: "1"}}, Hold: &ledger.Hold{Channel: c.ID, Epoch: epoch}}
	}
	signed := func(b ledger.Batch) bool {
		list, err := f.OpenBatches(f.ctx(), home, signer)
		f.ok(err)
		return slices.ContainsFunc(list, func(is ledger.Batch) bool { return is.ID == b.ID })
	}
	epoch, err := f.HoldChannel(f.ctx(), c.ID, 0, 1000, "one", lease)
	f.ok(err)
	b := refund(0, epoch)
	f.ok(f.Sign(f.ctx(), b))
	f.ok(f.ReleaseChannel(f.ctx(), c.ID, epoch)) // by who knew it before
	if got := f.channel(c); got.Reserved != 1000 || !signed(b) {
		f.Errorf("%+v, signed: %v", got, signed(b))
	}
	f.ok(f.ReleaseChannel(f.ctx(), c.ID, epoch+1))
	if got := f.channel(c); got.Reserved != 0 {
		f.Errorf("%+v", got)
	}
	b = refund(1, epoch+1)
	if err := f.Sign(f.ctx(), b); !errors.Is(err, ledger.ErrReleased) || signed(b) {
		f.Errorf("what was released was signed for: %v", err)
	}
	for n := int64(1); n <= 20; n++ {
		epoch, err := f.HoldChannel(f.ctx(), c.ID, 0, 1000, "one", lease)
		f.ok(err)
		b, begin := refund(n, epoch), make(chan struct{})
		var signing error
		var wg sync.WaitGroup
		wg.Go(func() { <-begin; signing = f.Sign(f.ctx(), b) })
		wg.Go(func() {
			<-begin
			if err := f.ReleaseChannel(f.ctx(), c.ID, epoch); err != nil {
				f.Errorf("release: %v", err)
			}
		})
		close(begin)
		wg.Wait()
		held := f.channel(c).Reserved > 0
		if signing != nil && !errors.Is(signing, ledger.ErrReleased) || (signing == nil) != held || held != signed(b) {
			f.Errorf("signing %v, signed: %v, held: %v", signing, signed(b), held)
		}
		f.ok(f.ReleaseChannel(f.ctx(), c.ID, epoch+1))
	}
}

// theChainIsBelieved mirrors what the chain says, newest last: claims, top-ups,
// withdrawals that were faster than we were, and what a reorganisation undoes.
func theChainIsBelieved(f *fixture) {
	c := f.sync(seen(1, 1000, 0, 10))
	for max := int64(200); max <= 800; max += 200 {
		_, err := f.charge(c, max, 200)
		f.ok(err)
	}
	due := func() int {
		list, err := f.DueChannels(f.ctx(), home, 10)
		f.ok(err)
		return len(list)
	}
	if due() != 1 {
		f.Fatal("nothing is due")
	}
	claimedFor := func(want int) {
		f.Helper()
		if list, err := f.ClaimedFor(f.ctx(), home); err != nil || len(list) != want || want == 1 && list[0] != (ledger.Receiver{Address: seller, Asset: asset}) {
			f.Errorf("%v, %v; want %d receivers of what was claimed", list, err, want)
		}
	}
	claimedFor(0)
	steps := []struct {
		what             string
		balance, claimed int64
		second           int64
		want             ledger.Channel
		due              int
	}{
		{"a claim", 1000, 800, 20, ledger.Channel{Balance: 1000, Claimed: 800, Charged: 800, Signed: 800}, 0},
		{"an older view", 5000, 0, 15, ledger.Channel{Balance: 1000, Claimed: 800, Charged: 800, Signed: 800}, 0},
		{"a reorganisation undoes the claim", 1000, 300, 30, ledger.Channel{Balance: 1000, Claimed: 300, Charged: 800, Signed: 800}, 1},
		{"a withdrawal that was faster", 500, 300, 40, ledger.Channel{Balance: 500, Claimed: 300, Charged: 500, Signed: 500, Forfeited: 300}, 1},
		{"the rest is claimed", 500, 500, 50, ledger.Channel{Balance: 500, Claimed: 500, Charged: 500, Signed: 500, Forfeited: 300}, 0},
		{"a top-up pays the debt", 2000, 500, 60, ledger.Channel{Balance: 2000, Claimed: 500, Charged: 800, Signed: 800}, 1},
	}
	for _, s := range steps {
		f.sync(seen(1, s.balance, s.claimed, s.second))
		got := f.channel(c)
		if got.Balance != s.want.Balance || got.Claimed != s.want.Claimed || got.Charged != s.want.Charged || got.Signed != s.want.Signed || got.Forfeited != s.want.Forfeited {
			f.Errorf("%s: %+v, want %+v", s.what, got, s.want)
		}
		if due() != s.due {
			f.Errorf("%s: %d channels are due, want %d", s.what, due(), s.due)
		}
		if s.want.Forfeited > 0 {
			if _, err := f.charge(c, got.Charged+1, 1); err == nil {
				f.Errorf("%s: a channel with a debt was charged", s.what)
			}
		}
	}
	claimedFor(1)
	_, err := f.charge(c, 1000, 200)
	f.ok(err)
}

// lostVouchersComeWithTheNext takes the payer's word for what he was charged,
// where no voucher of his is known: he signs for all of it.
func lostVouchersComeWithTheNext(f *fixture) {
	c := f.sync(seen(1, 10_000, 2000, 0))
	if c.Charged != 2000 {
		f.Fatalf("%+v", c)
	}
	_, err := f.charge(c, 2900, 1000)
	f.behind(err) // less than is claimed already
	got, err := f.charge(c, 6000, 1000)
	f.ok(err)
	if got.Charged != 6000 || got.Due() != 4000 {
		f.Errorf("%+v", got)
	}
	_, err = f.charge(c, 9000, 1000)
	f.behind(err)
}

// channelsNeverOwe holds every history of a channel to I9 and to a reference of
// a few lines.
func channelsNeverOwe(f *fixture) {
	n := int64(100)
	f.deploy()
	rapid.Check(f.T, func(r *rapid.T) {
		n++
		now := int64(0)
		view := seen(n, rapid.Int64Range(0, 5000).Draw(r, "balance"), 0, now)
		f.sync(view)
		ever, allowed := int64(0), int64(0) // what was charged, and what the last voucher allows
		for range rapid.IntRange(1, 20).Draw(r, "steps") {
			if rapid.Bool().Draw(r, "chain") {
				now++
				balance := rapid.Int64Range(0, 5000).Draw(r, "balance")
				claimed := rapid.Int64Range(0, min(balance, allowed)).Draw(r, "claimed")
				view = seen(n, balance, claimed, now)
				view.Withdrawal = rapid.Int64Range(0, balance-claimed).Draw(r, "withdrawal")
				f.sync(view)
				ever = max(ever, claimed)
			} else {
				base := ever + rapid.SampledFrom([]int64{0, 0, 0, -1, 1, 100}).Draw(r, "off")
				amount := rapid.Int64Range(1, 900).Draw(r, "amount")
				if base < 0 {
					continue
				}
				_, err := f.charge(view, base+amount, amount)
				good := (base == ever || allowed == 0 && base >= ever) && base+amount <= view.Balance-view.Withdrawal && ever <= view.Balance
				if good != (err == nil) {
					r.Fatalf("a voucher for %d on %d, %+v: %v", base+amount, ever, view, err)
				}
				if good {
					ever, allowed = base+amount, base+amount
				}
			}
			got := f.channel(view)
			if got.Charged+got.Forfeited != ever || got.Charged != min(ever, view.Balance) || got.Allowed != allowed {
				r.Fatalf("charged %d, allowed %d, the chain says %+v: %+v", ever, allowed, view, got)
			}
			if !(got.Claimed <= got.Charged && got.Charged <= got.Signed && got.Signed <= got.Balance) {
				r.Fatalf("I9 does not hold: %+v", got)
			}
		}
	})
}

// oldVouchersExpire removes answers whose time is over, and no others.
func oldVouchersExpire(f *fixture) {
	c := f.sync(seen(1, 10_000, 0, 0))
	for i, expires := range []time.Time{time.Unix(1_000_000_000, 0), time.Unix(4_000_000_000, 0)} {
		v, ev := f.voucher(c, int64(1000*(i+1)), 1000)
		a := answer()
		a.Expires = expires
		_, _, err := f.Charge(f.ctx(), v, a, ev)
		f.ok(err)
	}
	if n, err := f.ExpireVouchers(f.ctx()); n != 1 || err != nil {
		f.Errorf("%d, %v", n, err)
	}
	if v, _, err := f.Voucher(f.ctx(), c.ID, 2000); v == nil || err != nil {
		f.Errorf("%v, %v", v, err)
	}
	if list, err := f.Channels(f.ctx(), buyer, 10); len(list) != 1 || err != nil {
		f.Errorf("%v, %v", list, err)
	}
}

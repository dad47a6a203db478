package facilitator_test

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// together has the facilitator find all of rows at once, when it has settled
// one payment more, and gives how each of them ended.
func (w *world) together(rows ...ledger.Payment) []ledger.Outcome {
	w.Helper()
	plug, held := w.reserved(w.payment()), make(chan struct{})
	w.at("preflight", func() {
		close(held)
		for end := time.Now().Add(30 * time.Second); w.fac.Waiting() < len(rows); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				w.Errorf("%d of %d payments wait", w.fac.Waiting(), len(rows))
				return
			}
		}
	})
	first := make(chan ledger.Outcome, 1)
	go func() { first <- w.settleAll(plug)[0] }()
	<-held
	outs := w.settleAll(rows...)
	if out := <-first; out.State != ledger.Settled {
		w.Errorf("the first payment: %+v", out)
	}
	return outs
}

// settleAll settles rows side by side, and gives how each of them ended.
func (w *world) settleAll(rows ...ledger.Payment) []ledger.Outcome {
	w.Helper()
	outs := make([]ledger.Outcome, len(rows))
	ctx, cancel := context.WithTimeout(w.Context(), 60*time.Second)
	defer cancel()
	var work sync.WaitGroup
	for i, row := range rows {
		work.Go(func() {
			var err error
			if outs[i], err = w.fac.Settle(ctx, row); err != nil {
				w.Errorf("%s: %v", row.ID, err)
			}
		})
	}
	work.Wait()
	return outs
}

// buyers makes n payments, each of another payer.
func (w *world) buyers(n int) (rows []ledger.Payment) {
	w.Helper()
	payer := w.payer
	defer func() { w.payer = payer }()
	for range n {
		w.payer = w.key()
		w.fund(w.payer, 1000)
		rows = append(rows, w.reserved(w.payment()))
	}
	return rows
}

// audit holds the book against the chain, to the unit.
func (w *world) audit(rows ...ledger.Payment) {
	w.Helper()
	paid := map[string]int64{}
	for _, r := range rows {
		p := w.row(r.Key)
		tr, err := x402.ParsePayload(p.Payload)
		w.ok(err)
		e, err := x402.ParseExact(tr.Payload)
		w.ok(err)
		amount, _ := e.Value.Int64()
		before, _ := e.ValidBefore.Int64()
		f, err := w.node.FindEvidence(context.WithoutCancel(w.Context()), chain.Transfer{Asset: common.HexToAddress(p.Asset), Payer: e.From, PayTo: e.To, Amount: amount,
			ValidBefore: before, Nonce: e.Nonce, Signature: e.Signature}, 0)
		w.ok(err)
		if (f.Use == chain.Paid) != (p.Money == ledger.Mined) {
			w.Errorf("%s is %s in the book, %s on the chain", p.ID, p.Money, f.Use)
		}
		if f.Use == chain.Paid {
			paid[p.PayTo] += amount
			if p.Tx != lower(f.Tx) || p.LogIndex != f.Evidence.LogIndex {
				w.Errorf("%s is booked in %s, %d, and was paid in %s, %d", p.ID, p.Tx, p.LogIndex, f.Tx, f.Evidence.LogIndex)
			}
		}
	}
	for who, n := range paid {
		if have := w.units(who); have < n {
			w.Errorf("%s has %d units, the logs say %d", who, have, n)
		}
	}
}

func lower(h common.Hash) string { return "0x" + common.Bytes2Hex(h[:]) }

func TestABatchIsOneTransactionAndEveryPaymentHasItsOwnEvidence(t *testing.T) {
	w := newWorld(t)
	var rows []ledger.Payment
	for range 120 {
		rows = append(rows, w.reserved(w.payment()))
	}
	logs := map[int64]bool{}
	outs := w.together(rows...)
	for _, out := range outs {
		want(t, out, ledger.Settled, "")
		if out.Tx != outs[0].Tx || logs[out.LogIndex] {
			t.Errorf("paid in %s, log %d; others in %s", out.Tx, out.LogIndex, outs[0].Tx)
		}
		logs[out.LogIndex] = true
	}
	if w.spent() != 2 || w.units(w.payTo) != 121_000 {
		t.Errorf("%d transactions moved %d units, want 2 and 121000", w.spent(), w.units(w.payTo))
	}
	w.audit(rows...)
}

// Whatever a token does once it is not simulated any more: who pays with an
// honest one in the same batch is settled, and nobody is told a lie.
func TestAHostileTokenInABatchHoldsUpNobody(t *testing.T) {
	t.Parallel()
	for mode, name := range map[int64]string{1: "burns gas", 2: "reverts", 3: "does nothing", 4: "transfers less", 5: "transfers elsewhere"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			good := w.buyers(12)
			terms := w.hostileTerms(mode)
			var rows []ledger.Payment
			for i, g := range good {
				if i%6 == 3 {
					rows = append(rows, w.reserved(w.signed(w.authorization(), terms)))
				}
				rows = append(rows, g)
			}
			outs := w.together(rows...)
			for i, out := range outs {
				if rows[i].Asset == w.asset.Address {
					want(t, out, ledger.Settled, "")
				} else if out.State == ledger.Settled || out.State == ledger.NotCharged && w.row(rows[i].Key).Proof == "" {
					t.Errorf("with the hostile token: %+v", out)
				}
			}
			w.audit(good...)
			if w.units(w.payTo) != 13_000 {
				t.Errorf("the shop has %d units, want 13000", w.units(w.payTo))
			}
			if most := uint64(2 + 2*10); w.spent() > most {
				t.Errorf("%d transactions, want %d at most", w.spent(), most)
			}
		})
	}
}

// A token that burns gas in the simulation too is found there, by itself.
func TestATokenThatBurnsGasAlwaysIsRefusedAlone(t *testing.T) {
	t.Parallel()
	for _, mode := range []int64{7, 8} {
		w := newWorld(t)
		rows := append(w.buyers(5), w.reserved(w.signed(w.authorization(), w.hostileTerms(mode))))
		outs := w.together(rows...)
		for _, out := range outs[:5] {
			want(t, out, ledger.Settled, "")
		}
		want(t, outs[5], ledger.NotCharged, x402.ReasonSimulation)
		if w.spent() != 2 {
			t.Errorf("%d transactions, want 2", w.spent())
		}
	}
}

// Between the last look and the block payers move their money away, take their
// authorizations back, and strangers are faster: each item of the batch ends
// as it would alone.
func TestEachItemOfABatchEndsByItself(t *testing.T) {
	w := newWorld(t)
	rows := w.buyers(4)
	drainer := w.key()
	w.fund(drainer, 1000)
	buyer := w.payer
	w.payer = drainer
	drained := w.reserved(w.payment())
	w.payer = buyer
	a := w.authorization()
	cancelled := w.reserved(w.signed(a, w.terms()))
	faster := w.payment()
	theirs := w.reserved(faster)
	var tx string
	batches := 0
	var hook func()
	hook = func() { // at the second batch, which has them all
		if batches++; batches == 1 {
			w.at("t3.after", hook)
			return
		}
		w.call(drainer, w.asset.Address, "transfer(address,uint256)", addressOf("0x00000000000000000000000000000000000000aa"), number(1000))
		w.cancel(a)
		tx = w.submitAs(w.stranger(), faster)
	}
	w.at("t3.after", hook)
	outs := w.together(append(rows, drained, cancelled, theirs)...)
	for _, out := range outs[:4] {
		want(t, out, ledger.Settled, "")
	}
	want(t, outs[4], ledger.Broadcast, x402.ReasonTransactionFailed)
	want(t, outs[5], ledger.NotCharged, "")
	want(t, outs[6], ledger.Settled, "")
	if outs[6].Tx != tx || outs[0].Tx == tx {
		t.Errorf("paid by %s, want the stranger's %s", outs[6].Tx, tx)
	}
	if p := w.row(cancelled.Key); p.Money != ledger.Dead || p.Proof == "" {
		t.Errorf("the cancelled one is %s with proof %q", p.Money, p.Proof)
	}
	w.audit(append(rows, drained, cancelled, theirs)...)
	if w.units(w.payTo) != 6000 || w.spent() != 2 {
		t.Errorf("%d transactions, the shop has %d", w.spent(), w.units(w.payTo))
	}
}

// A payer who can afford one of two payments in a batch is charged for that
// one, and the other was never submitted.
func TestAPayerWhoCanAffordOneOfTwoIsAskedForOne(t *testing.T) {
	w := newWorld(t)
	poor := w.key()
	w.fund(poor, 1000)
	buyer := w.payer
	w.payer = poor
	rows := []ledger.Payment{w.reserved(w.payment()), w.reserved(w.payment())}
	w.payer = buyer
	outs := w.together(append(rows, w.buyers(3)...)...)
	if outs[0].State != ledger.Settled {
		outs[0], outs[1], rows[0], rows[1] = outs[1], outs[0], rows[1], rows[0]
	}
	want(t, outs[0], ledger.Settled, "")
	want(t, outs[1], ledger.NotCharged, x402.ReasonBalance)
	if w.row(rows[1].Key).Money != ledger.Held || w.units(w.payTo) != 5000 {
		t.Errorf("the other is %s, the shop has %d", w.row(rows[1].Key).Money, w.units(w.payTo))
	}
}

// A payer with code may do anything with the gas of a batch: it has a
// transaction of its own, also if it got its code a moment ago.
func TestPayersWithCodeSettleAlone(t *testing.T) {
	w := newWorld(t)
	wallet, terms := w.wallet(0)
	alone := w.reserved(w.carrying(wallet, bytes.Repeat([]byte{7}, 80), terms))
	buyer := w.payer
	w.payer = w.key()
	w.fund(w.payer, 1000)
	w.call(w.stranger(), terms.Asset, "mint(address,uint256)", address(w.payer.Address()), number(1000))
	late := w.reserved(w.signed(w.authorization(), terms))
	w.delegate(w.hostile("HostileWallet", number(0))) // says yes
	w.payer = buyer
	outs := w.together(append(w.buyers(4), alone, late)...)
	txs := map[string]int{}
	for _, out := range outs {
		want(t, out, ledger.Settled, "")
		txs[out.Tx]++
	}
	if txs[outs[4].Tx] != 1 || txs[outs[5].Tx] != 1 || len(txs) > 5 {
		t.Errorf("transactions and their payments: %v", txs)
	}
}

// One payment that the book refuses does not keep the others of its batch.
func TestABatchThatTheBookRefusesIsDivided(t *testing.T) {
	w := newWorld(t)
	rows := w.buyers(9)
	released := rows[4]
	w.at("batch.after", func() { // of the first
		w.at("batch.after", func() {
			w.ok(w.db.Release(context.WithoutCancel(w.Context()), released.ID, released.Epoch, clawr.CodeSettlementFailed, usage.Event{RequestID: "req_" + released.ID[4:], Lifecycle: usage.SettleFailed}))
		})
	})
	plug, held := w.reserved(w.payment()), make(chan struct{})
	w.at("preflight", func() {
		close(held)
		for w.fac.Waiting() < len(rows) {
			time.Sleep(time.Millisecond)
		}
	})
	var work sync.WaitGroup
	work.Go(func() { w.fac.Settle(t.Context(), plug) })
	<-held
	for i, row := range rows {
		work.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			out, err := w.fac.Settle(ctx, row)
			if i == 4 {
				if clawr.CodeOf(err) != clawr.CodeConflict {
					t.Errorf("the released one: %+v, %v, want %s", out, err, clawr.CodeConflict)
				}
			} else if err != nil || out.State != ledger.Settled {
				t.Errorf("number %d: %+v, %v", i, out, err)
			}
		})
	}
	work.Wait()
	if w.units(w.payTo) != 9000 {
		t.Errorf("the shop has %d units, want 9000", w.units(w.payTo))
	}
}

// x402.md's F4: whoever floods one payee's line, the next payment of another
// payee is in the next batch that is made.
func TestMustPass19OnePayeesFloodDoesNotStarveAnother(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fac.AllowPayTo, w.fac.Batch, w.fac.InFlight = nil, 10, 1
	const flood = 150
	var rows []ledger.Payment
	for range flood {
		rows = append(rows, w.reserved(w.payment()))
	}
	victim := x402.Lower(w.key().Address())
	terms := w.terms()
	terms.PayTo = victim
	var mine []ledger.Payment
	for range 5 {
		a := w.authorization()
		a.To = common.HexToAddress(victim)
		a.ValidBefore = x402.Uint(uint64(w.now().Unix() + 900)) // in no hurry, unlike the flood
		mine = append(mine, w.reserved(w.signed(a, terms)))
	}
	outs := w.together(append(rows, mine...)...)
	first := int64(0)
	for _, out := range outs {
		want(t, out, ledger.Settled, "")
		if first == 0 || out.BlockNumber < first {
			first = out.BlockNumber
		}
	}
	for i, out := range outs[flood:] {
		// Two at most in each batch that both share, beginning with the first.
		if behind := out.BlockNumber - first; behind > 1 {
			t.Errorf("payment %d of the other payee waited for %d batches of the flood", i, behind)
		}
	}
	w.audit(append(rows, mine...)...)
}

func TestSeveralSignersShareTheWork(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, devchainOptions(200*time.Millisecond))
	more := w.key()
	w.fund(more, 0)
	broke := w.key()
	other, third := *w.node, *w.node
	other.Key, third.Key = more, broke
	w.fac = w.facilitator()
	w.fac.Signers = append(w.fac.Signers, &third, &other)
	w.fac.Batch, w.fac.InFlight = 5, 2
	w.ok(w.fac.Start(t.Context())) // one without ether is no reason to refuse
	rows := w.buyers(60)
	for _, out := range w.settleAll(rows...) {
		want(t, out, ledger.Settled, "")
	}
	w.audit(rows...)
	for _, k := range []*chain.Key{w.node.Key, more} {
		if n, err := w.node.NonceAt(t.Context(), k.Address()); err != nil || n < 3 {
			t.Errorf("%s made %d transactions, %v", k, n, err)
		}
	}
	if n, err := w.node.NonceAt(t.Context(), broke.Address()); err != nil || n != 0 {
		t.Errorf("the one without ether made %d transactions, %v", n, err)
	}
	if got := fmt.Sprint(w.fac.Supported().Signers["eip155:*"]); got != fmt.Sprint([]string{w.node.Key.Address().Hex(), broke.Address().Hex(), more.Address().Hex()}) {
		t.Errorf("signers %s", got)
	}
}

// A signer that is not used any more ends what it began.
func TestAnOldSignerEndsWhatItBegan(t *testing.T) {
	w := newWorld(t)
	row := w.reserved(w.payment())
	w.die("t3.after", row) // and the new process recovers it, as its signer is the same
	w.money(row.Key, ledger.Mined)

	row = w.reserved(w.payment())
	gone := make(chan struct{})
	w.at("t3.after", func() { close(gone); select {} })
	go w.fac.Settle(context.Background(), row)
	<-gone
	old := *w.node
	w.node.Key = w.key()
	w.fund(w.node.Key, 0)
	w.fac = w.facilitator()
	w.fac.Signers = append(w.fac.Signers, &old)
	w.ok(w.fac.Start(t.Context()))
	w.money(row.Key, ledger.Mined)
	want(t, w.settle(w.reserved(w.payment())), ledger.Settled, "")
}

package facilitator_test

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/e2e/anvil"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// newAnvilWorld is a world on a chain that can be reorganised.
func newAnvilWorld(t testing.TB, args ...string) *world {
	t.Helper()
	w := emptyWorld(t)
	var err error
	w.anvil, err = anvil.Start(t.Context(), anvil.Options{Args: args})
	w.ok(err)
	t.Cleanup(func() { w.anvil.Close() })
	w.asset = w.anvil.Asset
	w.populate(w.anvil.URL)
	w.mine(10) // reorganisations leave the accounts their money
	return w
}

func (w *world) watcher() *facilitator.Watcher {
	chain := w.node
	if w.believed != nil {
		chain = w.believed
	}
	return &facilitator.Watcher{Network: w.asset.Network, Assets: []clawr.Asset{w.asset}, Chain: chain, Book: w.db, Cursors: w.db, Now: w.now,
		Log: slog.New(slog.DiscardHandler), Failpoint: w.reached}
}

// look has v look once.
func (w *world) look(v *facilitator.Watcher) {
	w.Helper()
	w.ok(v.Look(w.Context()))
}

// mine makes n empty blocks.
func (w *world) mine(n int) {
	w.Helper()
	w.ok(w.anvil.Call(w.Context(), nil, "anvil_mine", fmt.Sprintf("0x%x", n)))
}

// reorg replaces the last blocks of the chain by empty ones: what was in them
// is in no pool either.
func (w *world) reorg(depth int) {
	w.Helper()
	w.ok(w.anvil.Call(w.Context(), nil, "anvil_reorg", depth, []any{}))
}

func (w *world) money(k ledger.Key, want ledger.Money) *ledger.Payment {
	w.Helper()
	p := w.row(k)
	if p.Money != want {
		w.Fatalf("the payment is %s, want %s", p.Money, want)
	}
	return p
}

func (w *world) cursor() ledger.Cursor {
	w.Helper()
	c, err := w.db.Cursor(w.Context(), w.asset.Network)
	w.ok(err)
	if c == nil {
		w.Fatal("there is no cursor")
	}
	return *c
}

// A reorganisation of any depth takes the evidence back, the same transaction
// is broadcast again, and the seller has the money once.
func TestMustPass14ReorgOfAnyDepth(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	v := w.watcher()
	w.look(v)
	for depth := 1; depth <= 10; depth++ {
		row := w.reserved(w.payment())
		first := w.settle(row)
		want(t, first, ledger.Settled, "")
		w.mine(depth - 1)
		w.look(v)
		w.money(row.Key, ledger.Mined)
		had := w.units(w.payTo)
		w.reorg(depth)
		if got := w.units(w.payTo); got != had-1000 {
			t.Fatalf("depth %d: the seller has %d after the loss, want %d", depth, got, had-1000)
		}
		w.look(v)
		p := w.money(row.Key, ledger.Signed)
		if events, err := w.db.Events(t.Context(), 100); err != nil || events[len(events)-1].Billed != 0 {
			t.Errorf("depth %d: what was lost is billed: %+v, %v", depth, events[len(events)-1], err)
		}
		again := w.settle(*p)
		want(t, again, ledger.Settled, "")
		if again.Tx != first.Tx || again.BlockHash == first.BlockHash {
			t.Errorf("depth %d: settled again by %s in %s, first by %s in %s", depth, again.Tx, again.BlockHash, first.Tx, first.BlockHash)
		}
		w.look(v)
		if p = w.money(row.Key, ledger.Mined); p.BlockHash != again.BlockHash {
			t.Errorf("depth %d: booked in %s, mined in %s", depth, p.BlockHash, again.BlockHash)
		}
		if got := w.units(w.payTo); got != had {
			t.Errorf("depth %d: the seller has %d, want %d", depth, got, had)
		}
	}
	w.mine(70) // anvil finalizes 64 blocks below the head
	w.look(v)
	list, err := w.db.OpenPayments(t.Context(), 100)
	if err != nil || len(list) != 0 {
		t.Errorf("open: %v, %v", list, err)
	}
	left, err := w.db.Blocks(t.Context(), w.asset.Network, 0, 1<<60)
	if err != nil || len(left) != 0 {
		t.Errorf("not final: %v, %v", left, err)
	}
}

// The height of a finalized block is not enough: what was mined there in
// another block is taken back, and never final.
func TestTheSameHeightIsNotTheSameBlock(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	v := w.watcher()
	w.look(v)
	p := w.payment()
	row := w.reserved(p)
	want(t, w.settle(row), ledger.Settled, "")
	lost := *w.money(row.Key, ledger.Mined)
	w.look(v)
	w.reorg(3)
	w.look(v)
	w.money(row.Key, ledger.Signed)
	// A node that lags behind books the lost block after all.
	w.ok(w.db.Paid(t.Context(), row.Key, lost.Evidence))
	w.at("final.before", func() { t.Error("something was made final") })
	other := w.watcher() // one that was started later and saw no reorganisation
	w.look(other)
	w.money(row.Key, ledger.Signed)
	w.ok(w.db.Paid(t.Context(), row.Key, lost.Evidence))
	w.mine(100)
	w.ahead.Add(3600) // nobody suspects anything any more
	w.look(v)
	w.money(row.Key, ledger.Signed)
	if c := w.cursor(); c.Final <= lost.BlockNumber {
		t.Errorf("the cursor is at %+v, the lost block was %d", c, lost.BlockNumber)
	}
}

// Whoever's transaction pays, the payment is mined and, in time, final.
func TestLogsShowThirdPartySubmissions(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	v := w.watcher()
	w.look(v)
	p, q := w.payment(), w.payment()
	row, held := w.reserved(p), w.reserved(q)
	w.ok(w.db.Submit(t.Context(), row.ID, row.Epoch, "https://gone.example"))
	w.mine(1)
	tx := w.submitAs(w.stranger(), p)
	w.submitAs(w.stranger(), q)
	w.look(v)
	if got := w.money(row.Key, ledger.Mined); got.Tx != tx {
		t.Errorf("paid by %s, want %s", got.Tx, tx)
	}
	// What was not submitted here may have bought something elsewhere.
	w.money(held.Key, ledger.Held)
	var reached []string
	for _, point := range []string{"final.before", "final.after"} {
		w.at(point, func() { reached = append(reached, point+" "+string(w.row(row.Key).Money)) })
	}
	w.mine(80)
	w.look(v)
	w.money(row.Key, ledger.Final)
	if fmt.Sprint(reached) != "[final.before mined final.after final]" {
		t.Errorf("reached %v", reached)
	}
}

// After a reorganisation the payer may take the authorization back: then it is
// dead, once that is final, and never charged.
func TestCancelledAfterAReorg(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	v := w.watcher()
	w.look(v)
	a := w.authorization()
	row := w.reserved(w.signed(a, w.terms()))
	w.at("broadcast.before", nil)
	want(t, w.settle(row), ledger.Settled, "")
	w.look(v)
	w.reorg(2)
	w.cancel(a)
	w.look(v)
	p := w.money(row.Key, ledger.Signed)
	out := w.settle(*p)
	if out.State == ledger.Settled || out.State == ledger.NotCharged {
		t.Fatalf("cancelled in a block that may be lost: %+v, want unknown", out)
	}
	w.money(row.Key, ledger.Signed)
	w.mine(80)
	w.look(v)
	want(t, w.settle(*w.row(row.Key)), ledger.NotCharged, "")
	if p = w.money(row.Key, ledger.Dead); p.Proof == "" {
		t.Error("dead without proof")
	}
	if w.units(w.payTo) != 0 {
		t.Error("the seller was paid")
	}
}

// Our transaction reverts, because somebody was faster: the settlement is paid
// by his. When his block is lost, it is not any more, and is settled again.
func TestEvidenceMovesToAnotherBlock(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	v := w.watcher()
	w.look(v)
	p := w.payment()
	row := w.reserved(p)
	thief := w.stranger()
	var theirs string
	w.at("t3.after", func() { theirs = w.submitAs(thief, p) })
	out := w.settle(row)
	want(t, out, ledger.Settled, "")
	if out.Tx != theirs {
		t.Fatalf("paid by %s, want %s", out.Tx, theirs)
	}
	w.look(v)
	w.money(row.Key, ledger.Mined)
	w.reorg(4)
	w.look(v)
	w.money(row.Key, ledger.Signed)
	s, err := w.db.Settlement(t.Context(), row.Key)
	if err != nil || s.Item == ledger.ItemElsewhere || s.Item == ledger.ItemPaid {
		t.Fatalf("the settlement is %q after its block was lost, %v", s.Item, err)
	}
	out = w.settle(*w.row(row.Key))
	want(t, out, ledger.Settled, "")
	if out.Tx == theirs || w.units(w.payTo) != 1000 {
		t.Errorf("paid by %s, the seller has %d", out.Tx, w.units(w.payTo))
	}
	w.look(v)
	w.money(row.Key, ledger.Mined)
}

// A process that is started after a reorganisation finds it, and goes on where
// the last one was.
func TestTheWatcherGoesOnWhereTheLastOneWas(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	w.mine(70)
	v := w.watcher()
	w.look(v)
	lost := w.reserved(w.payment())
	want(t, w.settle(lost), ledger.Settled, "")
	w.look(v)
	cursor := w.cursor()
	if head, err := w.node.Head(t.Context()); err != nil || cursor.Scanned.Number != head.Number || cursor.Scanned.Hash != head.Hash.Hex() {
		t.Errorf("the cursor is at %+v, the head at %+v, %v", cursor, head, err)
	}
	// While nobody looks: a reorganisation, and a payment by a stranger, long ago.
	w.reorg(2)
	p := w.payment()
	row := w.reserved(p)
	w.ok(w.db.Submit(t.Context(), row.ID, row.Epoch, "https://gone.example"))
	w.submitAs(w.stranger(), p)
	w.mine(300)
	v = w.watcher()
	w.look(v)
	w.money(lost.Key, ledger.Signed)
	w.money(row.Key, ledger.Final)
	if c := w.cursor(); c.Scanned.Number < cursor.Scanned.Number+300 || c.Final <= cursor.Final {
		t.Errorf("the cursor is at %+v, was at %+v", c, cursor)
	}
}

// A node that contradicts a finalized block is on another chain, or was set
// back: nothing is taken back on its word.
func TestAFinalizedBlockIsNotContradicted(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	var snapshot string
	w.ok(w.anvil.Call(t.Context(), &snapshot, "evm_snapshot"))
	v := w.watcher()
	w.look(v)
	row := w.reserved(w.payment())
	want(t, w.settle(row), ledger.Settled, "")
	w.mine(70)
	w.look(v)
	young := w.reserved(w.payment())
	want(t, w.settle(young), ledger.Settled, "")
	w.look(v)
	w.ok(w.anvil.Call(t.Context(), nil, "evm_revert", snapshot))
	w.mine(200)
	if err := v.Look(t.Context()); err == nil {
		t.Error("a chain without the finalized block was followed")
	}
	w.money(row.Key, ledger.Final)
	w.money(young.Key, ledger.Mined)
}

// Under settle_first the money comes before the work: it is lost and final
// whatever the work does.
func TestSettleFirstIsWatchedBeforeItsWork(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	v := w.watcher()
	w.look(v)
	row := w.reservedFirst(w.payment())
	want(t, w.settle(row), ledger.Settled, "")
	w.look(v)
	w.reorg(2)
	w.look(v)
	p := w.money(row.Key, ledger.Signed)
	if err := w.db.Start(t.Context(), p.ID, p.Epoch); err == nil {
		t.Error("work began for evidence that was lost")
	}
	want(t, w.settle(*p), ledger.Settled, "")
	w.ok(w.db.Start(t.Context(), p.ID, p.Epoch))
	w.mine(80)
	w.look(v)
	if p = w.money(row.Key, ledger.Final); p.Work != ledger.Running {
		t.Errorf("the work is %s", p.Work)
	}
}

// Run follows a chain by itself, with a block for each transaction.
func TestWatcherRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	v := w.watcher()
	v.Every = 5 * time.Millisecond
	w.running(v)
	for range 30 {
		row := w.reserved(w.payment())
		want(t, w.settle(row), ledger.Settled, "")
		w.until("final", func() bool { return w.row(row.Key).Money == ledger.Final })
	}
}

// running runs v until the test ends.
func (w *world) running(v *facilitator.Watcher) {
	w.Helper()
	ctx, cancel := contextWithCancel(w)
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	w.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				w.Errorf("watcher: %v", err)
			}
		case <-time.After(20 * time.Second):
			w.Error("the watcher does not end")
		}
	})
	head, err := w.node.Head(w.Context())
	w.ok(err)
	w.until("followed", func() bool { return v.Followed() >= head.Number })
}

func (w *world) until(what string, ok func() bool) {
	w.Helper()
	for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("it is never %s", what)
		}
	}
}

// reservedFirst is a payment that is settled before its work begins.
func (w *world) reservedFirst(p *x402.PaymentPayload) ledger.Payment {
	w.Helper()
	row := w.reservation(p)
	row.Policy = ledger.SettleFirst
	row, err := w.db.Reserve(w.Context(), row, "test", time.Minute)
	w.ok(err)
	return *w.row(row.Key)
}

// That time is over is proved by a finalized block, not by the head or by a
// clock: until then somebody may yet show a block in which it was paid.
func TestOnlyFinalizedTimeIsProofOfDeath(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	row := w.reserved(w.payment())
	w.ok(w.db.Submit(t.Context(), row.ID, row.Epoch, "https://gone.example"))
	w.mine(70)
	w.ahead.Add(300)
	w.ok(w.anvil.Call(t.Context(), nil, "evm_increaseTime", 300))
	w.mine(1)
	head, err := w.node.Head(t.Context())
	w.ok(err)
	if head.Time.Unix() <= row.ValidBefore {
		t.Fatalf("the head is of %v", head.Time)
	}
	out, err := w.fac.Reconcile(t.Context(), *w.row(row.Key))
	w.ok(err)
	want(t, out, ledger.Unknown, "")
	w.money(row.Key, ledger.Signed)
	w.mine(70)
	out, err = w.fac.Reconcile(t.Context(), *w.row(row.Key))
	w.ok(err)
	want(t, out, ledger.NotCharged, "")
	if p := w.money(row.Key, ledger.Dead); p.Proof == "" {
		t.Error("dead without proof")
	}
}

// A process that dies while it takes evidence back, or makes it final, leaves
// that to the next one.
func TestTheNextWatcherFinishesWhatOneBegan(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	for _, point := range []string{"unmine.before", "unmine.after", "final.before", "final.after"} {
		v := w.watcher()
		w.look(v)
		row := w.reserved(w.payment())
		want(t, w.settle(row), ledger.Settled, "")
		w.look(v)
		end := ledger.Signed
		if point == "final.before" || point == "final.after" {
			end = ledger.Final
			w.mine(80)
		} else {
			w.reorg(1)
		}
		ctx, die := contextWithCancel(w)
		w.at(point, die)
		v.Look(ctx) // its book is gone with it
		w.look(w.watcher())
		w.money(row.Key, end)
		want(t, w.settle(*w.row(row.Key)), ledger.Settled, "")
		w.mine(80)
		w.look(w.watcher())
		w.money(row.Key, ledger.Final)
	}
	if got := w.units(w.payTo); got != 4000 {
		t.Errorf("the seller has %d units", got)
	}
}

package storetest

import (
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

func blockNamed(n int64, name string) ledger.Block {
	return ledger.Block{Number: n, Hash: "0x" + hash("block", name)}
}

// in is evidence of a transaction in b.
func in(b ledger.Block, tx string) ledger.Evidence {
	return ledger.Evidence{Tx: tx, BlockNumber: b.Number, BlockHash: b.Hash, LogIndex: 3}
}

func (f *fixture) blocks(from, to int64) []ledger.Block {
	f.Helper()
	list, err := f.Blocks(f.ctx(), home, from, to)
	f.ok(err)
	return list
}

// counted fails the test unless so many payments moved.
func (f *fixture) counted(what string, n, want int, err error) {
	f.Helper()
	f.ok(err)
	if n != want {
		f.Errorf("%s moved %d payments, want %d", what, n, want)
	}
}

// blocksAreLostAndFinal: everything in a block shares its fate, and nothing
// else does.
func blocksAreLostAndFinal(f *fixture) {
	low, high, lost := blockNamed(7, "7"), blockNamed(9, "9"), blockNamed(9, "9 of another chain")
	p, b := f.signed()
	f.ok(f.Mined(f.ctx(), b.ID, b.Txs[0].Hash, low.Number, low.Hash, []ledger.ItemResult{{SettlementID: b.Settlements[0], Outcome: ledger.ItemPaid, Evidence: in(low, b.Txs[0].Hash)}}))
	remote := f.answered()
	f.ok(f.Submit(f.ctx(), remote.ID, 1, "https://facilitator.example.com"))
	f.ok(f.Paid(f.ctx(), remote.Key, in(lost, "0x"+hash("remote"))))
	// Our transaction reverted in block 7, and a third party's paid in block 9.
	third, tb := f.signed()
	f.ok(f.Mined(f.ctx(), tb.ID, tb.Txs[0].Hash, low.Number, low.Hash, []ledger.ItemResult{{SettlementID: tb.Settlements[0], Outcome: ledger.ItemElsewhere, Evidence: in(lost, "0x"+hash("third"))}}))

	if got := f.blocks(0, 8); len(got) != 1 || got[0] != low {
		f.Errorf("up to 8: %v", got)
	}
	if got := f.blocks(8, 1<<40); len(got) != 1 || got[0] != lost {
		f.Errorf("from 8 on: %v", got)
	}
	// The same height is not the same block.
	n, err := f.FinalizeBlock(f.ctx(), home, high, 9)
	f.counted("another block of the same height", n, 0, err)
	n, err = f.UnmineBlock(f.ctx(), home, high)
	f.counted("the loss of another block", n, 0, err)
	n, err = f.UnmineBlock(f.ctx(), "eip155:1", lost)
	f.counted("the loss of another network's block", n, 0, err)

	// Block 7 is final: what was paid in it is. The batch with a later evidence waits.
	n, err = f.FinalizeBlock(f.ctx(), home, low, 8)
	f.counted("finality", n, 1, err)
	f.state(p, ledger.Done, ledger.Final)
	if s := f.settlement(third.Key); s.Batch.State != ledger.BatchMined {
		f.Errorf("the batch is %s before its evidence is final", s.Batch.State)
	}
	// Block 9 is lost.
	n, err = f.UnmineBlock(f.ctx(), home, lost)
	f.counted("the loss", n, 2, err)
	n, err = f.UnmineBlock(f.ctx(), home, lost)
	f.counted("the loss again", n, 0, err)
	f.state(remote, ledger.Done, ledger.Signed)
	f.state(third, ledger.Done, ledger.Signed)
	for _, p := range []ledger.Payment{remote, third} {
		if e := f.events()[event(p).RequestID]; e.Lifecycle != usage.Unsettled || e.Billed != 0 || e.Billable {
			f.Errorf("event after the loss: %+v", e)
		}
	}
	if s := f.settlement(third.Key); s.Item != ledger.ItemReverted {
		f.Errorf("the settlement is %q, want that it may be settled again", s.Item)
	}
	again := f.batch(f.settlement(third.Key))
	f.ok(f.Sign(f.ctx(), again))
	n, err = f.UnmineBlock(f.ctx(), home, low)
	f.counted("the loss of a final block", n, 0, err)
	f.state(p, ledger.Done, ledger.Final)

	// Found again, by whomever.
	use := ledger.Use{Key: remote.Key, PayTo: remote.PayTo, Amount: remote.Amount, Evidence: in(high, "0x"+hash("remote"))}
	n, err = f.Used(f.ctx(), []ledger.Use{use})
	f.counted("a use", n, 1, err)
	n, err = f.Used(f.ctx(), []ledger.Use{use})
	f.counted("the same use", n, 0, err)
	if p := f.state(remote, ledger.Done, ledger.Mined); p.Evidence != use.Evidence {
		f.Errorf("evidence %+v", p.Evidence)
	}
	if e := f.events()[event(remote).RequestID]; e.Lifecycle != usage.Success || e.Billed != 1000 {
		f.Errorf("event when it was found again: %+v", e)
	}
	n, err = f.FinalizeBlock(f.ctx(), home, high, 9)
	f.counted("finality of 9", n, 1, err)
	f.state(remote, ledger.Done, ledger.Final)
}

// usesAreOfExactlyTheTransfer: only a submitted payment, for the same payee
// and amount, is paid by a use.
func usesAreOfExactlyTheTransfer(f *fixture) {
	b := blockNamed(7, "7")
	use := func(p ledger.Payment) ledger.Use {
		return ledger.Use{Key: p.Key, PayTo: p.PayTo, Amount: p.Amount, Evidence: in(b, "0x"+hash(p.ID))}
	}
	held, running := f.answered(), f.reserved()
	p, _ := f.signed()
	other := use(p)
	other.PayTo = buyer
	less := use(p)
	less.Amount--
	elsewhere := use(p)
	elsewhere.Network = "eip155:1"
	n, err := f.Used(f.ctx(), []ledger.Use{use(held), use(running), other, less, elsewhere, {Key: ledger.Key{Network: home}, Evidence: in(b, "0x1")}})
	f.counted("what does not fit", n, 0, err)
	f.state(held, ledger.Done, ledger.Held)
	f.state(p, ledger.Done, ledger.Signed)
	if _, err := f.Used(f.ctx(), []ledger.Use{{Key: p.Key, PayTo: p.PayTo, Amount: p.Amount}}); err == nil {
		f.Error("used without evidence")
	}
	n, err = f.Used(f.ctx(), []ledger.Use{use(held), use(p)})
	f.counted("what fits", n, 1, err)
	f.state(p, ledger.Done, ledger.Mined)

	// Under settle_first the money is final before there is an answer.
	first := f.payment()
	first.Policy = ledger.SettleFirst
	first, err = f.Reserve(f.ctx(), first, "node", lease)
	f.ok(err)
	f.ok(f.Sign(f.ctx(), f.batch(f.settlement(first.Key))))
	n, err = f.Used(f.ctx(), []ledger.Use{use(first)})
	f.counted("settle first", n, 1, err)
	n, err = f.FinalizeBlock(f.ctx(), home, b, 7)
	f.counted("finality", n, 2, err)
	f.state(first, ledger.Pending, ledger.Final)
	f.ok(f.Start(f.ctx(), first.ID, 1))
	// And one whose evidence is lost while its work runs.
	second := f.payment()
	second.Policy = ledger.SettleFirst
	second, err = f.Reserve(f.ctx(), second, "node", lease)
	f.ok(err)
	f.ok(f.Sign(f.ctx(), f.batch(f.settlement(second.Key))))
	c := blockNamed(8, "8")
	u := use(second)
	u.Evidence = in(c, u.Tx)
	n, err = f.Used(f.ctx(), []ledger.Use{u})
	f.counted("settle first", n, 1, err)
	f.ok(f.Start(f.ctx(), second.ID, 1))
	n, err = f.UnmineBlock(f.ctx(), home, c)
	f.counted("the loss", n, 1, err)
	f.state(second, ledger.Running, ledger.Signed)
	f.ok(f.Done(f.ctx(), second.ID, 1, answer(), event(second)))
	if e := f.events()[event(second).RequestID]; e.Billed != 0 {
		f.Errorf("billed for what is not paid: %+v", e)
	}
}

// openPaymentsAreHeld: what an account has promised and not paid yet.
func openPaymentsAreHeld(f *fixture) {
	held := func(want int64) {
		f.Helper()
		got, err := f.Held(f.ctx(), home, asset, buyer)
		f.ok(err)
		if got != want {
			f.Errorf("%d units are held, want %d", got, want)
		}
	}
	held(0)
	worker := f.reserved()
	held(1000)
	f.answered()
	p, b := f.signed()
	held(3000)
	f.ok(f.mine(b, ledger.ItemPaid))
	held(2000)
	f.ok(f.Release(f.ctx(), worker.ID, 1, "x", usage.Event{}))
	held(1000)
	if got, err := f.Held(f.ctx(), home, asset, seller); err != nil || got != 0 {
		f.Errorf("the seller has %d held, %v", got, err)
	}
	_, err := f.UnmineBlock(f.ctx(), home, ledger.Block{Number: 7, Hash: evidence("").BlockHash})
	f.ok(err)
	held(2000)
	f.ok(f.Dead(f.ctx(), p.Key, "proof"))
	held(1000)
	async := f.async(ledger.Exposure{Payer: 1000, Credit: 1000, Total: 1000})
	held(2000)
	f.async(ledger.Exposure{Payer: 1000, Credit: 1000, Total: 1000}) // there is no room: not async
	held(3000)
	f.ok(f.Release(f.ctx(), async.ID, 1, "x", usage.Event{}))
	held(2000)
}

// cursorsMove: a watcher goes on where the last one was.
func cursorsMove(f *fixture) {
	c, err := f.Cursor(f.ctx(), home)
	if err != nil || c != nil {
		f.Fatalf("a chain that nobody followed has a cursor: %+v, %v", c, err)
	}
	for _, want := range []ledger.Cursor{
		{Scanned: blockNamed(9, "9")},
		{Scanned: blockNamed(20, "20"), Final: 10, FinalTime: time.Unix(1_900_000_000, 0).UTC()},
		{Scanned: blockNamed(12, "12"), Final: 10, FinalTime: time.Unix(1_900_000_000, 0).UTC()}, // a reorganization
	} {
		f.ok(f.SetCursor(f.ctx(), home, want))
		if c, err = f.Cursor(f.ctx(), home); err != nil || *c != want {
			f.Errorf("cursor %+v, %v, want %+v", c, err, want)
		}
	}
	if err := f.SetCursor(f.ctx(), home, ledger.Cursor{Scanned: blockNamed(5, "5"), Final: 6}); err == nil {
		f.Error("final beyond what was scanned")
	}
	if c, err := f.Cursor(f.ctx(), "eip155:1"); err != nil || c != nil {
		f.Errorf("another network has it too: %+v, %v", c, err)
	}
}

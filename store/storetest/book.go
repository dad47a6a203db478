package storetest

import (
	"errors"
	"slices"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/google/go-cmp/cmp"
)

// foreign is an authorization that another server sent to our facilitator.
func (f *fixture) foreign() ledger.Settlement {
	f.Helper()
	return f.settlement(f.payment().Key)
}

func settlementsAreAskedOnce(f *fixture) {
	k := f.payment().Key
	first := f.settlement(k)
	if first.ID == "" || first.Batch != nil || first.Item != ledger.ItemOpen || first.RequestedBy != "self" || first.Key != k {
		f.Errorf("opened as %+v", first)
	}
	other, err := f.OpenSettlement(f.ctx(), ledger.Settlement{Key: k, PayTo: buyer, Amount: 1, ValidBefore: 5, Payload: []byte("else")})
	f.ok(err)
	if diff := cmp.Diff(first, other); diff != "" {
		f.Errorf("asked twice, with other words (-first +second):\n%s", diff)
	}
	if s, err := f.Settlement(f.ctx(), f.payment().Key); s != nil || err != nil {
		f.Errorf("never asked: %+v, %v", s, err)
	}
	b := f.batch(first)
	f.ok(f.Sign(f.ctx(), b))
	got := f.settlement(k)
	b.Created = got.Batch.Created
	if diff := cmp.Diff(&b, got.Batch); diff != "" {
		f.Errorf("its batch (-signed +read):\n%s", diff)
	}
}

func signIsAllOrNothing(f *fixture) {
	good, running := f.answered(), f.reserved()
	released := f.answered()
	f.ok(f.Release(f.ctx(), released.ID, 1, clawr.CodeSettlementFailed, event(released)))
	nonce, err := f.NextNonce(f.ctx(), home, signer)
	f.ok(err)
	for name, bad := range map[string]ledger.Payment{"still running": running, "released": released} {
		if err := f.Sign(f.ctx(), f.batch(f.settlement(good.Key), f.settlement(bad.Key))); !errors.Is(err, ledger.ErrFenced) {
			f.Errorf("%s: %v, want ErrFenced", name, err)
		}
		f.state(good, ledger.Done, ledger.Held)
		f.state(bad, bad.Work, f.reload(bad).Money)
	}
	if n, err := f.NextNonce(f.ctx(), home, signer); n != nonce || err != nil {
		f.Errorf("a refused batch used a nonce: %d, %v", n, err)
	}
	stranger := f.foreign()
	b := f.batch(f.settlement(good.Key), stranger)
	f.ok(f.Sign(f.ctx(), b))
	f.state(good, ledger.Done, ledger.Signed)
	if n, err := f.NextNonce(f.ctx(), home, signer); n != nonce+1 || err != nil {
		f.Errorf("next nonce %d, %v", n, err)
	}
	if n, err := f.NextNonce(f.ctx(), "eip155:1", signer); n != 0 || err != nil {
		f.Errorf("next nonce on another network %d, %v", n, err)
	}

	// One nonce may be signed for two transfers. What settles is not what we sold for.
	ours := f.answered()
	other, err := f.OpenSettlement(f.ctx(), ledger.Settlement{Key: ours.Key, PayTo: buyer, Amount: ours.Amount, ValidBefore: 5, Payload: []byte(`{}`)})
	f.ok(err)
	if err := f.Sign(f.ctx(), f.batch(other)); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("signed another transfer of the same nonce: %v", err)
	}
	f.state(ours, ledger.Done, ledger.Held)

	if err := f.Sign(f.ctx(), f.batch(f.foreign(), stranger)); !errors.Is(err, ledger.ErrLive) {
		f.Errorf("a settlement in two live batches: %v", err)
	}
	twin := f.batch(f.foreign())
	twin.Nonce = b.Nonce
	if err := f.Sign(f.ctx(), twin); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("two batches with one nonce: %v", err)
	}
	for name, broken := range map[string]ledger.Batch{
		"no transaction":     {ID: "bat_1", Network: home, Signer: signer, Nonce: 99, Settlements: b.Settlements},
		"no settlement":      {ID: "bat_2", Network: home, Signer: signer, Nonce: 99, Txs: b.Txs},
		"unknown settlement": {ID: "bat_3", Network: home, Signer: signer, Nonce: 99, Settlements: []string{"stl_none"}, Txs: []ledger.Tx{{Hash: "0x99", Attempt: 1, Raw: []byte{1}}}},
	} {
		if err := f.Sign(f.ctx(), broken); err == nil {
			f.Errorf("%s: signed", name)
		}
	}
	if list, err := f.OpenBatches(f.ctx(), home, signer); err != nil || len(list) != 1 || list[0].ID != b.ID {
		f.Errorf("open batches: %+v, %v", list, err)
	}

	// Once our facilitator has signed it for somebody else, we do not sell for it.
	late := f.payment()
	late.Key = stranger.Key
	_, err = f.Reserve(f.ctx(), late, "node", lease)
	f.refused(err, clawr.CodeAlreadyUsed)
	if p, err := f.Find(f.ctx(), late.Key); p != nil || err != nil {
		f.Errorf("refused, but kept: %+v, %v", p, err)
	}
}

// settlementsOpenWithTheirBatch signs what was never opened before.
func settlementsOpenWithTheirBatch(f *fixture) {
	p := f.answered()
	fresh := func(k ledger.Key, id string) ledger.Settlement {
		return ledger.Settlement{ID: id, Key: k, PayTo: seller, Amount: 1000, ValidBefore: 2_000_000_000, Payload: []byte(`{}`), RequestedBy: "self"}
	}
	known, one, two := f.foreign(), fresh(p.Key, "stl_1"), fresh(f.payment().Key, "stl_2")
	b := f.batch(known, one, two)
	f.ok(f.Sign(f.ctx(), b, one, two))
	f.state(p, ledger.Done, ledger.Signed)
	list, err := f.Settlements(f.ctx(), b.ID)
	f.ok(err)
	if len(list) != 3 || list[0].ID != known.ID || list[1].Key != p.Key || list[2].Amount != 1000 || string(list[2].Payload) != `{}` {
		f.Errorf("the batch carries %+v", list)
	}
	if s := f.settlement(p.Key); s.ID != "stl_1" || s.Batch == nil || s.Batch.ID != b.ID {
		f.Errorf("opened with its batch: %+v", s)
	}
	// Somebody opened it meanwhile: nothing of the batch stays.
	late := f.answered()
	f.settlement(late.Key)
	again := fresh(late.Key, "stl_3")
	if err := f.Sign(f.ctx(), f.batch(again), again); !errors.Is(err, ledger.ErrLive) {
		f.Errorf("opened twice: %v", err)
	}
	f.state(late, ledger.Done, ledger.Held)
	if open, err := f.OpenBatches(f.ctx(), home, signer); err != nil || len(open) != 1 {
		f.Errorf("open batches: %+v, %v", open, err)
	}
}

func feeBumpsAreStoredFirst(f *fixture) {
	p, b := f.signed()
	bump := ledger.Tx{Hash: "0x" + hash("bump"), Attempt: 2, Raw: []byte{9, 9}, MaxFee: "2000000000", Tip: "2000000"}
	f.ok(f.AddTx(f.ctx(), b.ID, bump))
	if err := f.AddTx(f.ctx(), b.ID, bump); err == nil {
		f.Error("one transaction was stored twice")
	}
	list, err := f.OpenBatches(f.ctx(), home, signer)
	f.ok(err)
	if want := append(slices.Clone(b.Txs), bump); len(list) != 1 || cmp.Diff(want, list[0].Txs) != "" {
		f.Errorf("transactions: %+v", list)
	}
	result := []ledger.ItemResult{{SettlementID: b.Settlements[0], Outcome: ledger.ItemPaid, Evidence: evidence(bump.Hash)}}
	if err := f.Mined(f.ctx(), b.ID, "0x"+hash("not ours"), 7, "0xb", result); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("mined by a transaction that is not the batch's: %v", err)
	}
	f.ok(f.Mined(f.ctx(), b.ID, bump.Hash, 7, evidence("").BlockHash, result))
	if p := f.state(p, ledger.Done, ledger.Mined); p.Tx != bump.Hash {
		f.Errorf("paid by %s", p.Tx)
	}
	if err := f.AddTx(f.ctx(), b.ID, ledger.Tx{Hash: "0x3", Attempt: 3, Raw: []byte{1}}); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("a fee bump of a mined batch: %v", err)
	}
}

func minedBatchesAreBookedOnce(f *fixture) {
	paid, reverted, elsewhere, unknown := f.answered(), f.answered(), f.answered(), f.answered()
	stranger := f.foreign()
	b := f.batch(f.settlement(paid.Key), f.settlement(reverted.Key), f.settlement(elsewhere.Key), f.settlement(unknown.Key), stranger)
	f.ok(f.Sign(f.ctx(), b))
	tx, block := b.Txs[0].Hash, evidence("").BlockHash
	third := evidence("0x" + hash("third party"))
	results := []ledger.ItemResult{
		{SettlementID: b.Settlements[0], Outcome: ledger.ItemPaid, Evidence: evidence(tx)},
		{SettlementID: b.Settlements[1], Outcome: ledger.ItemReverted},
		{SettlementID: b.Settlements[2], Outcome: ledger.ItemElsewhere, Evidence: third},
		{SettlementID: b.Settlements[3], Outcome: ledger.ItemElsewhere},
		{SettlementID: b.Settlements[4], Outcome: ledger.ItemPaid, Evidence: evidence(tx)},
	}
	wrong := slices.Clone(results)
	wrong[4].SettlementID = b.Settlements[0]
	for name, list := range map[string][]ledger.ItemResult{"too few": results[:4], "one twice": wrong} {
		if err := f.Mined(f.ctx(), b.ID, tx, 7, block, list); err == nil {
			f.Errorf("%s results were booked", name)
		}
		f.state(paid, ledger.Done, ledger.Signed)
	}
	f.ok(f.Mined(f.ctx(), b.ID, tx, 7, block, results))
	f.ok(f.Mined(f.ctx(), b.ID, tx, 7, block, results))
	if err := f.Mined(f.ctx(), b.ID, tx, 8, "0x"+hash("block 8"), results); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("mined in two blocks: %v", err)
	}
	f.state(paid, ledger.Done, ledger.Mined)
	f.state(reverted, ledger.Done, ledger.Signed)
	if p := f.state(elsewhere, ledger.Done, ledger.Mined); p.Evidence != third {
		f.Errorf("evidence of a third party's transaction: %+v", p.Evidence)
	}
	f.state(unknown, ledger.Done, ledger.Signed)
	events := f.events()
	for p, billed := range map[*ledger.Payment]clawr.Amount{&paid: 1000, &reverted: 0, &elsewhere: 1000, &unknown: 0} {
		e := events[event(*p).RequestID]
		if e.Billed != billed || (e.Lifecycle == usage.Success) != (billed > 0) {
			f.Errorf("event of %s: %+v", p.ID, e)
		}
	}
	for k, want := range map[ledger.Key]ledger.ItemOutcome{paid.Key: ledger.ItemPaid, reverted.Key: ledger.ItemReverted, elsewhere.Key: ledger.ItemElsewhere, stranger.Key: ledger.ItemPaid} {
		if s := f.settlement(k); s.Item != want || s.Batch.State != ledger.BatchMined {
			f.Errorf("settlement ended %q, want %q: %+v", s.Item, want, s)
		}
	}
	// What reverted may go again; what is paid or used may not.
	for name, p := range map[string]ledger.Payment{"paid": paid, "used elsewhere": elsewhere, "used by whom is unknown": unknown} {
		if err := f.Sign(f.ctx(), f.batch(f.settlement(p.Key))); !errors.Is(err, ledger.ErrLive) {
			f.Errorf("%s went into another batch: %v", name, err)
		}
	}
	again := f.batch(f.settlement(reverted.Key))
	f.ok(f.Sign(f.ctx(), again))
	if p := f.state(reverted, ledger.Done, ledger.Signed); p.BatchID != again.ID {
		f.Errorf("in batch %s, want %s", p.BatchID, again.ID)
	}
	f.ok(f.mine(again, ledger.ItemPaid))
	f.state(reverted, ledger.Done, ledger.Mined)
}

func reorganisations(f *fixture) {
	block := evidence("").BlockHash
	p, b := f.signed()
	f.ok(f.mine(b, ledger.ItemPaid))
	if err := f.UnmineBatch(f.ctx(), b.ID, "0x"+hash("another block")); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("a block was lost that the batch is not in: %v", err)
	}
	f.ok(f.UnmineBatch(f.ctx(), b.ID, block))
	f.state(p, ledger.Done, ledger.Signed)
	if e := f.events()[event(p).RequestID]; e.Lifecycle != usage.Unsettled || e.Billed != 0 || e.Billable {
		f.Errorf("event after a reorganisation: %+v", e)
	}
	if list, err := f.OpenBatches(f.ctx(), home, signer); err != nil || len(list) != 1 {
		f.Errorf("to be broadcast again: %+v, %v", list, err)
	}
	if err := f.FinalizeBatch(f.ctx(), b.ID, block); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("finalized what is not mined: %v", err)
	}
	f.ok(f.mine(b, ledger.ItemPaid))
	f.ok(f.FinalizeBatch(f.ctx(), b.ID, block))
	f.state(p, ledger.Done, ledger.Final)
	if err := f.UnmineBatch(f.ctx(), b.ID, block); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("a finalized block was lost: %v", err)
	}
	f.ok(f.mine(b, ledger.ItemPaid))

	// An item that reverted, went into a second batch, and whose first batch is
	// lost and mined again, this time with it.
	p, b = f.signed()
	f.ok(f.mine(b, ledger.ItemReverted))
	next := f.batch(f.settlement(p.Key))
	f.ok(f.Sign(f.ctx(), next))
	f.ok(f.UnmineBatch(f.ctx(), b.ID, block))
	f.state(p, ledger.Done, ledger.Signed)
	if s := f.settlement(p.Key); s.Batch.ID != next.ID {
		f.Errorf("the live batch is %s, want %s", s.Batch.ID, next.ID)
	}
	f.ok(f.mine(b, ledger.ItemPaid))
	f.state(p, ledger.Done, ledger.Mined)
	if s := f.settlement(p.Key); s.Item != ledger.ItemPaid || s.Batch.ID != b.ID {
		f.Errorf("paid by %s (%q), want %s", s.Batch.ID, s.Item, b.ID)
	}

	// One nonce, signed for two transfers: ours was sold and sent to a remote
	// facilitator after the other had reverted; now the other is mined all the same.
	p = f.payment()
	other, err := f.OpenSettlement(f.ctx(), ledger.Settlement{Key: p.Key, PayTo: buyer, Amount: p.Amount, ValidBefore: 5, Payload: []byte(`{}`)})
	f.ok(err)
	b = f.batch(other)
	f.ok(f.Sign(f.ctx(), b))
	f.ok(f.mine(b, ledger.ItemReverted))
	p, err = f.Reserve(f.ctx(), p, "node", lease)
	f.ok(err)
	f.ok(f.Done(f.ctx(), p.ID, 1, answer(), event(p)))
	f.ok(f.Submit(f.ctx(), p.ID, 1, "https://facilitator.example.com"))
	f.ok(f.UnmineBatch(f.ctx(), b.ID, block))
	f.ok(f.mine(b, ledger.ItemPaid))
	f.state(p, ledger.Done, ledger.Signed)

	// The signer's nonce went to another transaction for good.
	p, b = f.signed()
	f.ok(f.OrphanBatch(f.ctx(), b.ID))
	if err := f.OrphanBatch(f.ctx(), b.ID); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("orphaned twice: %v", err)
	}
	if err := f.mine(b, ledger.ItemPaid); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("an orphan was mined: %v", err)
	}
	f.state(p, ledger.Done, ledger.Signed)
	f.ok(f.Sign(f.ctx(), f.batch(f.settlement(p.Key))))
}

func settleFirst(f *fixture) {
	pay := func() (ledger.Payment, ledger.Batch) {
		p := f.payment()
		p.Policy = ledger.SettleFirst
		p, err := f.Reserve(f.ctx(), p, "node", lease)
		f.ok(err)
		f.state(p, ledger.Pending, ledger.Held)
		b := f.batch(f.settlement(p.Key))
		f.ok(f.Sign(f.ctx(), b))
		return p, b
	}
	p, b := pay()
	if err := f.Start(f.ctx(), p.ID, 1); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("work began before the money was there: %v", err)
	}
	f.ok(f.mine(b, ledger.ItemPaid))
	f.ok(f.Start(f.ctx(), p.ID, 1))
	f.ok(f.Renew(f.ctx(), p.ID, 1, expired))
	p, err := f.TakeOver(f.ctx(), p.ID, 1, "node-2", lease) // paid, so it runs again for free
	f.ok(err)
	f.ok(f.Done(f.ctx(), p.ID, 2, answer(), event(p)))
	f.state(p, ledger.Done, ledger.Mined)
	if e := f.events()[event(p).RequestID]; e.Lifecycle != usage.Success || e.Billed != 1000 || !e.Billable {
		f.Errorf("event of what was settled first: %+v", e)
	}

	p, b = pay()
	f.ok(f.mine(b, ledger.ItemPaid))
	f.ok(f.Start(f.ctx(), p.ID, 1))
	if err := f.Release(f.ctx(), p.ID, 1, clawr.CodeWorkerFailure, event(p)); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("released what was paid: %v", err)
	}
	f.ok(f.Fail(f.ctx(), p.ID, 1, clawr.CodeWorkerFailure, event(p)))
	if err := f.Fail(f.ctx(), p.ID, 1, clawr.CodeWorkerFailure, event(p)); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("two refunds: %v", err)
	}
	f.state(p, ledger.Failed, ledger.Mined)
}

// callsHaveNoncesToo keeps a transaction that settles nothing like all others:
// its nonce is taken, and it is open until it is mined.
func callsHaveNoncesToo(f *fixture) {
	b := f.batch()
	f.ok(f.Sign(f.ctx(), b))
	if next, err := f.NextNonce(f.ctx(), home, signer); err != nil || next != b.Nonce+1 {
		f.Errorf("next nonce %d, %v", next, err)
	}
	open, err := f.OpenBatches(f.ctx(), home, signer)
	f.ok(err)
	if len(open) != 1 || len(open[0].Settlements) != 0 {
		f.Errorf("%+v", open)
	}
	f.ok(f.mine(b))
	f.ok(f.mine(b)) // booked twice is once
	if open, err := f.OpenBatches(f.ctx(), home, signer); len(open) != 0 || err != nil {
		f.Errorf("%+v, %v", open, err)
	}
	other := f.batch(f.settlement(f.answered().Key))
	f.ok(f.Sign(f.ctx(), other))
	if err := f.mine(other); err == nil {
		f.Error("a batch was booked without the results of its settlements")
	}
}

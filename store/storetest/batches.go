package storetest

import (
	"sync"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

// delivered is an async payment whose answer is stored.
func (f *fixture) delivered(payer string) ledger.Payment {
	f.Helper()
	p := f.payment()
	p.Payer, p.Policy, p.Exposure = payer, ledger.Async, ledger.Exposure{Payer: 1 << 40, Credit: 1 << 40, Total: 1 << 40}
	p, err := f.Reserve(f.ctx(), p, f.Node(), lease)
	f.ok(err)
	f.ok(f.Done(f.ctx(), p.ID, p.Epoch, answer(), event(p)))
	return p
}

// kept is what stands for an authorization in the facilitator's book.
func (f *fixture) kept(k ledger.Key) ledger.Settlement {
	f.Helper()
	s, err := f.Settlement(f.ctx(), k)
	f.ok(err)
	return *s
}

// aBatchIsBookedAtOnce: whatever shares a transaction is signed, mined and lost
// by the same statements, each by its own policy; what is exposed follows to the
// unit, and the event of what async delivered stays what it was.
func aBatchIsBookedAtOnce(f *fixture) {
	other := "0x" + hash("another buyer")[:40]
	sold := []ledger.Payment{f.delivered(buyer), f.answered(), f.delivered(other), f.delivered(buyer)}
	foreign, late := f.foreign(), f.delivered(buyer)
	var items []ledger.Settlement
	for _, p := range sold {
		items = append(items, f.settlement(p.Key))
	}
	same := f.delivered(buyer) // its settlement has the payment's very payload
	opened := ledger.Settlement{ID: "stl_" + same.ID, Key: same.Key, PayTo: same.PayTo, Amount: same.Amount, ValidBefore: same.ValidBefore, Payload: same.Payload}
	sold = append(sold, same)
	b := f.batch(append(items, opened, foreign)...)
	f.ok(f.Sign(f.ctx(), b, opened))
	carried, err := f.Settlements(f.ctx(), b.ID)
	f.ok(err)
	for i, s := range carried {
		want := `{}`
		if s.ID == opened.ID {
			want = string(same.Payload)
		}
		if got := f.kept(s.Key); string(s.Payload) != want || string(got.Payload) != want {
			f.Errorf("settlement %d has the payload %q, and by itself %q, want %s", i, s.Payload, got.Payload, want)
		}
	}
	exposed := func(when string, mine, all int64) {
		f.Helper()
		if a, b := f.exposure(buyer), f.exposure("*"); a.Held != mine || b.Held != all {
			f.Errorf("%s: %d of the buyer and %d of all are exposed, want %d and %d", when, a.Held, b.Held, mine, all)
		}
		backlog, err := f.Backlog(f.ctx())
		f.ok(err)
		if backlog.Depth*1000 != all {
			f.Errorf("%s: %d payments wait", when, backlog.Depth)
		}
	}
	exposed("signed", 4000, 5000)
	at := func(when string, money ledger.Money, settled usage.Lifecycle) {
		f.Helper()
		events := f.events()
		for _, p := range sold {
			f.state(p, ledger.Done, money)
			want, billed := usage.Success, int64(1000)
			if p.Policy != ledger.Async && settled != usage.Success {
				want, billed = settled, 0
			}
			if e := events[event(p).RequestID]; e.Lifecycle != want || int64(e.Billed) != billed {
				f.Errorf("%s: the event of a payment under %s says %s and bills %d", when, p.Policy, e.Lifecycle, e.Billed)
			}
		}
		f.state(late, ledger.Done, ledger.Held)
	}
	at("signed", ledger.Signed, usage.Unsettled)

	paid := []ledger.ItemOutcome{ledger.ItemPaid, ledger.ItemPaid, ledger.ItemPaid, ledger.ItemPaid, ledger.ItemPaid, ledger.ItemPaid}
	f.ok(f.mine(b, paid...))
	at("mined", ledger.Mined, usage.Success)
	exposed("mined", 1000, 1000)
	for i, p := range sold {
		if got := f.reload(p).Evidence; got != evidence(b.Txs[0].Hash) {
			f.Errorf("item %d has the evidence %+v", i, got)
		}
	}
	block := ledger.Block{Number: evidence("").BlockNumber, Hash: evidence("").BlockHash}
	n, err := f.UnmineBlock(f.ctx(), home, block)
	f.counted("the loss", n, len(sold), err)
	at("lost", ledger.Signed, usage.Unsettled)
	exposed("lost", 4000, 5000)

	// One of them reverted, as far as the receipt was understood: whoever sees
	// the transfer in the block books it all the same.
	paid[2] = ledger.ItemReverted
	f.ok(f.mine(b, paid...))
	f.state(sold[2], ledger.Done, ledger.Signed)
	var uses []ledger.Use
	for _, p := range sold {
		uses = append(uses, ledger.Use{Key: p.Key, PayTo: p.PayTo, Amount: p.Amount, Evidence: evidence(b.Txs[0].Hash)})
	}
	n, err = f.Used(f.ctx(), uses)
	f.counted("the uses", n, 1, err)
	at("mined again", ledger.Mined, usage.Success)
	exposed("mined again", 1000, 1000)
	n, err = f.Used(f.ctx(), uses)
	f.counted("the uses again", n, 0, err)
}

// largeBlocksAreFinalInParts, and each payment once.
func largeBlocksAreFinalInParts(f *fixture) {
	const count = 520 // more than two transactions' worth
	block := ledger.Block{Number: evidence("").BlockNumber, Hash: evidence("").BlockHash}
	f.deploy()
	sold := make([]ledger.Payment, count)
	for i := range sold {
		sold[i] = f.payment()
		sold[i].Policy, sold[i].Exposure = ledger.Async, ledger.Exposure{Payer: 1 << 40, Credit: 1 << 40, Total: 1 << 40}
	}
	var wait sync.WaitGroup
	errs := make(chan error, count)
	for part := range 8 {
		wait.Go(func() {
			for i := part; i < count; i += 8 {
				p, err := f.Reserve(f.ctx(), sold[i], f.Node(), lease)
				if err == nil {
					err = f.Done(f.ctx(), p.ID, p.Epoch, answer(), event(p))
				}
				if err != nil {
					errs <- err
				}
			}
		})
	}
	wait.Wait()
	close(errs)
	for err := range errs {
		f.ok(err)
	}
	for from := 0; from < count; from += count / 2 {
		var opened []ledger.Settlement
		var results []ledger.ItemResult
		for _, p := range sold[from : from+count/2] {
			opened = append(opened, ledger.Settlement{ID: "stl_" + p.ID, Key: p.Key, PayTo: p.PayTo, Amount: p.Amount, ValidBefore: p.ValidBefore, Payload: p.Payload})
		}
		b := f.batch(opened...)
		f.ok(f.Sign(f.ctx(), b, opened...))
		for _, id := range b.Settlements {
			results = append(results, ledger.ItemResult{SettlementID: id, Outcome: ledger.ItemPaid, Evidence: evidence(b.Txs[0].Hash)})
		}
		f.ok(f.Mined(f.ctx(), b.ID, b.Txs[0].Hash, block.Number, block.Hash, results))
	}
	n, err := f.FinalizeBlock(f.ctx(), home, block, block.Number)
	f.counted("finality", n, count, err)
	if e := f.exposure(buyer); e.Volume != count*1000 || e.Held != 0 {
		f.Errorf("exposure %+v", e)
	}
	if left := f.blocks(0, 1<<40); len(left) != 0 {
		f.Errorf("blocks that are not final: %v", left)
	}
	n, err = f.FinalizeBlock(f.ctx(), home, block, block.Number)
	f.counted("finality again", n, 0, err)
}

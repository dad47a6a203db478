package storetest

import (
	"fmt"
	"sync/atomic"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

// exposure is where a payer stands with the seller of all tests.
func (f *fixture) exposure(payer string) ledger.Exposed {
	f.Helper()
	e, err := f.ExposureOf(f.ctx(), home, asset, seller, payer)
	f.ok(err)
	return e
}

// async reserves a payment under async, with these caps.
func (f *fixture) async(e ledger.Exposure) ledger.Payment {
	f.Helper()
	p := f.payment()
	p.Policy, p.Exposure = ledger.Async, e
	p, err := f.Reserve(f.ctx(), p, "node", lease)
	f.ok(err)
	if row := f.reload(p); row.Policy != p.Policy {
		f.Fatalf("reserved under %s, and the row says %s", p.Policy, row.Policy)
	}
	return p
}

// paidFinally is a payment of 1000 that is in a finalized block.
func (f *fixture) paidFinally() {
	f.Helper()
	p, b := f.signed()
	f.ok(f.mine(b, ledger.ItemPaid))
	// By batch or by block: both count, and once.
	block := ledger.Block{Number: evidence("").BlockNumber, Hash: evidence("").BlockHash}
	if f.serial.Load()%4 < 2 {
		f.ok(f.FinalizeBatch(f.ctx(), b.ID, block.Hash))
	}
	_, err := f.FinalizeBlock(f.ctx(), home, block, block.Number)
	f.ok(err)
	f.state(p, ledger.Done, ledger.Final)
}

// newPayersStartAtZero gives a payer room for a tenth of what he paid in
// finalized blocks, up to the limit, and nobody else any.
func newPayersStartAtZero(f *fixture) {
	caps := ledger.Exposure{Payer: 1500, Total: 100_000}
	if p := f.async(caps); p.Policy != ledger.SettleBeforeResponse || p.Work != ledger.Running {
		f.Fatalf("a new payer is sold to under %s", p.Policy)
	}
	for range 9 {
		f.paidFinally()
	}
	if p := f.async(caps); p.Policy == ledger.Async {
		f.Error("900 of credit were enough for 1000")
	}
	f.paidFinally()
	p := f.async(caps)
	if p.Policy != ledger.Async {
		f.Fatalf("1000 of credit were not enough for 1000: %+v", f.exposure(buyer))
	}
	if e := f.exposure(buyer); e != (ledger.Exposed{Held: 1000, Cap: 1000, Volume: 10_000}) {
		f.Errorf("exposure %+v", e)
	}
	if p := f.async(caps); p.Policy == ledger.Async {
		f.Error("the credit was given twice")
	}
	for range 10 {
		f.paidFinally()
	}
	if p := f.async(caps); p.Policy == ledger.Async {
		f.Error("the limit of 1500 let 2000 through")
	}
	other := f.payment()
	other.Policy, other.Exposure, other.Payer = ledger.Async, caps, signer
	got, err := f.Reserve(f.ctx(), other, "node", lease)
	f.ok(err)
	if got.Policy == ledger.Async {
		f.Error("another payer has this one's credit")
	}
	elsewhere := f.payment()
	elsewhere.Policy, elsewhere.Exposure, elsewhere.PayTo = ledger.Async, caps, signer
	if got, err = f.Reserve(f.ctx(), elsewhere, "node", lease); err != nil || got.Policy == ledger.Async {
		f.Errorf("credit earned at one seller buys at another (%v)", err)
	}
	again, err := f.Reserve(f.ctx(), ledger.Payment{ID: p.ID, TenantID: p.TenantID, Version: 1, Scheme: "exact", Key: p.Key, PayTo: p.PayTo, Amount: p.Amount,
		ValidAfter: 1, ValidBefore: p.ValidBefore, Fingerprint: p.Fingerprint, Payload: p.Payload, Policy: ledger.Async, Exposure: caps}, "node", lease)
	f.ok(err)
	if again.Policy != ledger.Async || f.exposure(buyer).Held != 1000 {
		f.Errorf("reserving again took again: %+v", f.exposure(buyer))
	}
}

// exposureFollowsTheMoney takes one async payment along every way that it can
// go.
func exposureFollowsTheMoney(f *fixture) {
	caps := ledger.Exposure{Payer: 10_000, Credit: 10_000, Total: 10_000}
	debt := int64(0)
	check := func(what string, held int64) {
		f.Helper()
		if e, all := f.exposure(buyer), f.exposure("*"); e.Held != held || e.BadDebt != debt || all.Held != held || all.BadDebt != debt {
			f.Fatalf("%s: %+v of the payer, %+v of all, want %d held and %d lost", what, e, all, held, debt)
		}
		if b, err := f.Backlog(f.ctx()); err != nil || b.Depth != held/1000 {
			f.Fatalf("%s: %d payments wait (%v), want %d", what, b.Depth, err, held/1000)
		}
	}
	done := func() (ledger.Payment, ledger.Batch) {
		p := f.async(caps)
		check("reserved", 1000)
		f.ok(f.Done(f.ctx(), p.ID, 1, answer(), event(p)))
		check("done", 1000)
		return p, f.batch(f.settlement(p.Key))
	}
	p := f.async(caps)
	f.ok(f.Release(f.ctx(), p.ID, 1, clawr.CodeWorkerFailure, event(p)))
	check("failed and released", 0)

	p = f.async(caps)
	f.ok(f.Renew(f.ctx(), p.ID, 1, expired))
	if n, err := f.Janitor(f.ctx(), 0); err != nil || n != 1 {
		f.Fatal(n, err)
	}
	check("abandoned", 0)

	_, b := done()
	f.ok(f.Sign(f.ctx(), b))
	check("signed", 1000)
	f.ok(f.mine(b, ledger.ItemPaid))
	check("mined", 0)
	f.ok(f.UnmineBatch(f.ctx(), b.ID, evidence("").BlockHash))
	check("lost by a reorganisation", 1000)
	f.ok(f.mine(b, ledger.ItemPaid))
	f.ok(f.FinalizeBatch(f.ctx(), b.ID, evidence("").BlockHash))
	check("final", 0)
	if v := f.exposure(buyer).Volume; v != 1000 {
		f.Errorf("%d paid for good", v)
	}

	p, _ = done()
	f.ok(f.Submit(f.ctx(), p.ID, 1, "https://facilitator.example.com"))
	f.ok(f.Paid(f.ctx(), p.Key, evidence("0x1")))
	f.ok(f.Unmine(f.ctx(), p.Key, evidence("").BlockHash))
	check("lost by a reorganisation, alone", 1000)
	f.ok(f.Paid(f.ctx(), p.Key, evidence("0x1")))
	f.ok(f.Final(f.ctx(), p.Key, evidence("").BlockHash))
	check("final, alone", 0)

	p, b = done()
	f.ok(f.Sign(f.ctx(), b))
	f.ok(f.Dead(f.ctx(), p.Key, "proof"))
	debt += 1000
	check("dead", 0)

	p, _ = done()
	f.ok(f.Release(f.ctx(), p.ID, 1, clawr.CodeSettlementFailed, usage.Event{RequestID: "req_x"}))
	debt += 1000
	check("delivered, and refused by the preflight", 0)

	// A debt uses up room for good: a payer cannot take the cap again and again.
	for range 8 {
		if p := f.async(caps); p.Policy != ledger.Async {
			f.Fatal("there should be room for 8000")
		}
	}
	if p := f.async(caps); p.Policy == ledger.Async {
		f.Error("a debt of 2000 left room for 9000 of 10000")
	}
}

// exposureHolds has many payers buy at once: neither a payer's cap nor the
// seller's is ever passed, and both can be used in full.
func exposureHolds(f *fixture) {
	caps := ledger.Exposure{Payer: 5000, Credit: 5000, Total: 12_000}
	f.deploy()
	payments := make([]ledger.Payment, 48)
	for i := range payments {
		payments[i] = f.payment()
		payments[i].Policy, payments[i].Exposure, payments[i].Payer = ledger.Async, caps, fmt.Sprintf("0x%040x", 1+i%4)
	}
	var async atomic.Int64
	atOnce(len(payments), func(i int) {
		p, err := f.Reserve(f.ctx(), payments[i], "node", lease)
		if err != nil {
			f.Error(err)
		}
		if p.Policy == ledger.Async {
			async.Add(1)
		}
	})
	sum := int64(0)
	for i := range 4 {
		e := f.exposure(fmt.Sprintf("0x%040x", 1+i))
		if sum += e.Held; e.Held > 5000 {
			f.Errorf("payer %d holds %+v", i, e)
		}
	}
	if all := f.exposure("*"); all.Held != 12_000 || sum != 12_000 || async.Load() != 12 {
		f.Errorf("%+v of all, %d of the payers, %d sales; want 12 sales for 12000", all, sum, async.Load())
	}
}

// backlogIsListedOldestFirst lists what waits under async page by page, and
// sums up what waits at all.
func backlogIsListedOldestFirst(f *fixture) {
	if b, err := f.Backlog(f.ctx()); err != nil || b != (ledger.Backlog{}) {
		f.Errorf("an empty book has a backlog: %+v, %v", b, err)
	}
	caps := ledger.Exposure{Payer: 1 << 40, Credit: 1 << 40, Total: 1 << 40}
	want := map[string]bool{}
	var first ledger.Payment
	for range 5 {
		p := f.async(caps)
		if len(want) == 0 {
			first = p
		}
		f.ok(f.Done(f.ctx(), p.ID, 1, answer(), event(p)))
		want[p.ID] = true
	}
	f.answered()  // of another policy
	f.async(caps) // in work
	signed := f.async(caps)
	f.ok(f.Done(f.ctx(), signed.ID, 1, answer(), event(signed)))
	f.ok(f.Sign(f.ctx(), f.batch(f.settlement(signed.Key))))
	var at ledger.Payment
	for {
		page, err := f.Unsettled(f.ctx(), at.ValidBefore, at.ID, 2)
		f.ok(err)
		if len(page) == 0 {
			break
		}
		for _, p := range page {
			if !want[p.ID] || p.ValidBefore <= at.ValidBefore {
				f.Errorf("%s after %s", p.ID, at.ID)
			}
			delete(want, p.ID)
			at = p
		}
	}
	if len(want) > 0 {
		f.Errorf("not listed: %v", want)
	}
	got, err := f.Backlog(f.ctx())
	f.ok(err)
	if got.Depth != 7 || got.Expiry != first.ValidBefore || !got.Head.Equal(first.Created) {
		f.Errorf("backlog %+v", got)
	}
}

// owedAfterTheLease ends paid work that nobody comes back for with a refund,
// and takes the refund back if the payment turns out to be dead.
func owedAfterTheLease(f *fixture) {
	paid := func(start bool) (ledger.Payment, ledger.Batch) {
		p := f.payment()
		p.Policy = ledger.SettleFirst
		p, err := f.Reserve(f.ctx(), p, "node", lease)
		f.ok(err)
		b := f.batch(f.settlement(p.Key))
		f.ok(f.Sign(f.ctx(), b))
		f.ok(f.mine(b, ledger.ItemPaid))
		if start {
			f.ok(f.Start(f.ctx(), p.ID, 1))
		}
		return p, b
	}
	var list []ledger.Payment
	var last ledger.Batch
	for _, started := range []bool{false, true} {
		p, b := paid(started)
		if n, err := f.Owe(f.ctx(), 0); err != nil || n != 0 {
			f.Fatalf("owed under a lease: %d, %v", n, err)
		}
		f.ok(f.Renew(f.ctx(), p.ID, 1, expired))
		if n, err := f.Owe(f.ctx(), lease); err != nil || n != 0 {
			f.Fatalf("owed within the grace: %d, %v", n, err)
		}
		list, last = append(list, p), b
		if n, err := f.Owe(f.ctx(), 0); err != nil || n != 1 {
			f.Fatalf("%d owed, %v", n, err)
		}
	}
	for _, p := range list {
		f.state(p, ledger.Failed, ledger.Mined)
		if r, err := f.Refund(f.ctx(), p.ID); err != nil || r == nil || r.Amount != 1000 || r.State != "due" {
			f.Errorf("refund %+v, %v", r, err)
		}
		if err := f.Start(f.ctx(), p.ID, 1); err == nil {
			f.Error("its owner came back and began")
		}
	}
	f.ok(f.UnmineBatch(f.ctx(), last.ID, evidence("").BlockHash))
	f.ok(f.Dead(f.ctx(), list[1].Key, "proof"))
	if r, err := f.Refund(f.ctx(), list[1].ID); err != nil || r != nil {
		f.Errorf("a refund of what was never paid: %+v, %v", r, err)
	}
}

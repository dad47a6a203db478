package storetest

import (
	"bytes"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/google/go-cmp/cmp"
)

// paidCall follows one payment from the reservation to the mined batch.
func paidCall(f *fixture) {
	want := f.payment()
	want.Counters = []ledger.Counter{{Scope: "spend", Window: 60, Cost: 1000, Cap: 1500, Code: clawr.CodeCapExceeded}}
	p, err := f.Reserve(f.ctx(), want, "node-1", lease)
	f.ok(err)
	if p.Work != ledger.Running || p.Money != ledger.Held || p.Epoch != 1 || p.Owner != "node-1" || p.Counters[0].Used != 1000 || !p.LeaseUntil.After(p.Created) {
		f.Errorf("reserved as %+v", p)
	}
	row, err := f.Find(f.ctx(), p.Key)
	f.ok(err)
	p.Counters[0].Used = 0 // not the row's
	if diff := cmp.Diff(&p, row); diff != "" {
		f.Errorf("Find after Reserve (-reserved +found):\n%s", diff)
	}

	f.ok(f.Done(f.ctx(), p.ID, 1, answer(), event(p)))
	f.state(p, ledger.Done, ledger.Held)
	got, err := f.Answer(f.ctx(), p.ID)
	f.ok(err)
	if a := answer(); cmp.Diff(&a, got) != "" {
		f.Errorf("answer (-stored +read):\n%s", cmp.Diff(&a, got))
	}
	pending := event(p)
	pending.Lifecycle = usage.Unsettled
	if diff := cmp.Diff(pending, f.events()[pending.RequestID]); diff != "" {
		f.Errorf("event after T2 (-want +got):\n%s", diff)
	}

	s := f.settlement(p.Key)
	b := f.batch(s)
	f.ok(f.Sign(f.ctx(), b))
	if p := f.state(p, ledger.Done, ledger.Signed); p.BatchID != b.ID || p.Facilitator != "self" {
		f.Errorf("signed in batch %q by %q", p.BatchID, p.Facilitator)
	}
	open, err := f.OpenBatches(f.ctx(), home, signer)
	f.ok(err)
	if len(open) != 1 || !bytes.Equal(open[0].Txs[0].Raw, b.Txs[0].Raw) {
		f.Errorf("open batches: %+v", open)
	}

	f.ok(f.mine(b, ledger.ItemPaid))
	if p := f.state(p, ledger.Done, ledger.Mined); p.Evidence != evidence(b.Txs[0].Hash) {
		f.Errorf("evidence %+v", p.Evidence)
	}
	paid := pending
	paid.Lifecycle, paid.Billed, paid.Billable = usage.Success, 1000, true
	if diff := cmp.Diff(paid, f.events()[paid.RequestID]); diff != "" {
		f.Errorf("event after mining (-want +got):\n%s", diff)
	}
	if s := f.settlement(p.Key); s.Item != ledger.ItemPaid || s.Batch.State != ledger.BatchMined || s.Evidence != evidence(b.Txs[0].Hash) {
		f.Errorf("settlement after mining: %+v", s)
	}
	open, err = f.OpenBatches(f.ctx(), home, signer)
	f.ok(err)
	if len(open) != 0 {
		f.Errorf("still open: %+v", open)
	}
}

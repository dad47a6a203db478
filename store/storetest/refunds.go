package storetest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

// failed is a payment that was settled first, and whose work failed: a refund
// is due. It is mined.
func (f *fixture) failed() (ledger.Payment, ledger.Batch) {
	f.Helper()
	p := f.payment()
	p.Policy = ledger.SettleFirst
	p, err := f.Reserve(f.ctx(), p, "node", lease)
	f.ok(err)
	b := f.batch(f.settlement(p.Key))
	f.ok(f.Sign(f.ctx(), b))
	f.ok(f.mine(b, ledger.ItemPaid))
	f.ok(f.Start(f.ctx(), p.ID, p.Epoch))
	f.ok(f.Fail(f.ctx(), p.ID, p.Epoch, clawr.CodeWorkerFailure, usage.Event{}))
	return f.state(p, ledger.Failed, ledger.Mined), b
}

// owed is that, and final: its refund can be signed.
func (f *fixture) owed() ledger.Refund {
	f.Helper()
	p, b := f.failed()
	f.ok(f.FinalizeBatch(f.ctx(), b.ID, evidence("").BlockHash))
	return f.refund(p.ID)
}

func (f *fixture) refund(id string) ledger.Refund {
	f.Helper()
	r, err := f.Refund(f.ctx(), id)
	f.ok(err)
	if r == nil {
		f.Fatalf("%s has no refund", id)
	}
	return *r
}

// repay stores what the seller signed for r, valid before a moment.
func (f *fixture) repay(r ledger.Refund, validBefore int64) error {
	r.Nonce, r.ValidBefore, r.Payload = ledger.RefundNonce(r.Payment), validBefore, fmt.Appendf(nil, `{"until":%d}`, validBefore)
	return f.SignRefund(f.ctx(), r, "ann")
}

// fencedOff fails the test unless err says that the row did not allow it.
func (f *fixture) fencedOff(what string, err error) {
	f.Helper()
	if !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("%s: %v, want ErrFenced", what, err)
	}
}

// refundsAreSignedOnce follows a refund from due to final, and tries at each
// place what must not be possible there.
func refundsAreSignedOnce(f *fixture) {
	early, b := f.failed()
	f.fencedOff("signed before the payment is final", f.repay(f.refund(early.ID), 100))
	f.ok(f.FinalizeBatch(f.ctx(), b.ID, evidence("").BlockHash))
	r := f.refund(early.ID)
	if r.State != ledger.RefundDue || r.From != seller || r.Payment != early.Key || !r.Payable() || r.Nonce != "" {
		f.Fatalf("due as %+v", r)
	}
	f.fencedOff("seen before it is signed", f.RefundSeen(f.ctx(), r.PaymentID, evidence("0xa"), false))
	f.fencedOff("over before it is signed", f.RefundOver(f.ctx(), r.PaymentID, 100, "proof"))
	more := r
	more.Amount++
	f.fencedOff("signed for more than is owed", f.repay(more, 100))
	other := r
	other.Nonce, other.ValidBefore, other.Payload = "0x"+hash("nonce"), 100, []byte("{}")
	if f.SignRefund(f.ctx(), other, "ann") == nil {
		f.Error("signed under another nonce")
	}

	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			switch err := f.repay(r, 100+int64(i)); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, ledger.ErrFenced):
				f.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		f.Errorf("%d of 16 concurrent signatures of one refund were stored, want 1", won.Load())
	}
	signed := f.refund(r.PaymentID)
	if signed.State != ledger.RefundSigned || signed.Nonce != ledger.RefundNonce(r.Payment) || len(signed.Payload) == 0 || signed.Payable() {
		f.Fatalf("signed as %+v", signed)
	}
	if units, err := f.Promised(f.ctx(), home, asset, seller); err != nil || units != 1000 {
		f.Errorf("%d units are promised, %v", units, err)
	}
	if list, err := f.SignedRefunds(f.ctx(), home, ledger.Refund{}, 10); err != nil || len(list) != 1 || list[0].PaymentID != r.PaymentID {
		f.Errorf("to be seen through: %+v, %v", list, err)
	} else if list, err := f.SignedRefunds(f.ctx(), home, list[0], 10); err != nil || len(list) != 0 {
		f.Errorf("after the last one: %+v, %v", list, err)
	}
	f.fencedOff("signed again while it may be charged", f.repay(r, 1000))

	// It expired unused, and is signed again.
	f.fencedOff("over on the proof of another window", f.RefundOver(f.ctx(), r.PaymentID, signed.ValidBefore+1, "proof"))
	f.ok(f.RefundOver(f.ctx(), r.PaymentID, signed.ValidBefore, "proof"))
	if over := f.refund(r.PaymentID); !over.Payable() || over.Proof != "proof" {
		f.Errorf("over as %+v", over)
	}
	if list, err := f.SignedRefunds(f.ctx(), home, ledger.Refund{}, 10); err != nil || len(list) != 0 {
		f.Errorf("what is over is to be seen through: %+v, %v", list, err)
	}
	f.fencedOff("signed again for the same time", f.repay(r, signed.ValidBefore))
	b = f.batch(f.settlement(r.Key())) // a transaction that carries the first one may be mined yet
	f.ok(f.Sign(f.ctx(), b))
	f.fencedOff("signed again while a transaction carries it", f.repay(r, 1000))
	f.ok(f.OrphanBatch(f.ctx(), b.ID))
	f.ok(f.repay(r, 1000))
	again := f.refund(r.PaymentID)
	if again.Nonce != signed.Nonce || again.ValidBefore != 1000 || again.Proof != "" {
		f.Errorf("signed again as %+v", again)
	}
	if s, err := f.Settlement(f.ctx(), r.Key()); err != nil || s == nil || s.ValidBefore != 1000 || string(s.Payload) != string(again.Payload) {
		f.Errorf("the settler keeps %+v, %v", s, err)
	}

	// It is mined, lost, mined again and final.
	e := evidence("0xa")
	f.ok(f.RefundSeen(f.ctx(), r.PaymentID, e, false))
	if units, err := f.Promised(f.ctx(), home, asset, seller); err != nil || units != 0 {
		f.Errorf("%d units are promised that were paid, %v", units, err)
	}
	f.fencedOff("signed again when it was paid", f.repay(r, 2000))
	f.fencedOff("over when it was paid", f.RefundOver(f.ctx(), r.PaymentID, 1000, "proof"))
	f.fencedOff("lost from another block", f.RefundLost(f.ctx(), r.PaymentID, "0xother"))
	f.ok(f.RefundLost(f.ctx(), r.PaymentID, e.BlockHash))
	if got := f.refund(r.PaymentID); got.State != ledger.RefundSigned || got.Tx != "" {
		f.Errorf("lost as %+v", got)
	}
	f.ok(f.RefundSeen(f.ctx(), r.PaymentID, e, true))
	done := f.refund(r.PaymentID)
	if done.State != ledger.RefundFinal || done.Evidence != e {
		f.Errorf("final as %+v", done)
	}
	f.fencedOff("lost when it is final", f.RefundLost(f.ctx(), r.PaymentID, e.BlockHash))
	f.fencedOff("seen elsewhere when it is final", f.RefundSeen(f.ctx(), r.PaymentID, evidence("0xb"), true))
	f.fencedOff("signed when it is final", f.repay(r, 3000))
	if list, err := f.OpenRefunds(f.ctx(), 10); err != nil || len(list) != 0 {
		f.Errorf("open: %+v, %v", list, err)
	}
	if list, err := f.RefundsOf(f.ctx(), home, asset, seller); err != nil || len(list) != 1 {
		f.Errorf("of the seller: %+v, %v", list, err)
	}
	if _, err := f.CheckAudit(f.ctx()); err != nil {
		f.Error(err)
	}
	findings, err := f.Check(f.ctx())
	f.ok(err)
	for _, c := range findings {
		if c.Name == "refunds" && c.State != "ok" {
			f.Errorf("%+v", c)
		}
	}
}

// refundHistories makes random moves, and holds each refund against a machine
// of a few lines.
func refundHistories(f *fixture) {
	rapid.Check(f.T, func(t *rapid.T) {
		r := f.owed()
		state, until, over, block := ledger.RefundDue, int64(0), false, ""
		for i := range rapid.IntRange(1, 12).Draw(t, "moves") {
			var err error
			may := false
			move := rapid.SampledFrom([]string{"sign", "seen", "final", "lost", "over"}).Draw(t, "move")
			b := rapid.SampledFrom([]string{"0xb1", "0xb2"}).Draw(t, "block")
			e := ledger.Evidence{Tx: "0x" + b, BlockNumber: 7, BlockHash: b, LogIndex: 1}
			switch move {
			case "sign":
				next := int64(rapid.IntRange(1, 30).Draw(t, "until"))
				may = state == ledger.RefundDue || state == ledger.RefundSigned && over && block == "" && next > until
				if err = f.repay(r, next); may {
					state, until, over = ledger.RefundSigned, next, false
				}
			case "seen", "final":
				may = state == ledger.RefundSigned
				if err = f.RefundSeen(f.ctx(), r.PaymentID, e, move == "final"); may {
					block, over = b, false
					if move == "final" {
						state = ledger.RefundFinal
					}
				}
			case "lost":
				may = state == ledger.RefundSigned && block == b
				if err = f.RefundLost(f.ctx(), r.PaymentID, b); may {
					block = ""
				}
			case "over":
				may = state == ledger.RefundSigned && block == ""
				if err = f.RefundOver(f.ctx(), r.PaymentID, until, "proof"); may {
					over = true
				}
			}
			if may && err != nil || !may && !errors.Is(err, ledger.ErrFenced) {
				t.Fatalf("move %d, %s: %v, may it: %v", i, move, err, may)
			}
			got := f.refund(r.PaymentID)
			if got.State != state || got.ValidBefore != until || (got.Proof != "") != over || got.BlockHash != block || got.Amount != r.Amount ||
				state != ledger.RefundDue && got.Nonce != ledger.RefundNonce(r.Payment) {
				t.Fatalf("after move %d, %s, it is %+v, want %s until %d, over %v, in %q", i, move, got, state, until, over, block)
			}
		}
	})
}

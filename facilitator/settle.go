package facilitator

import (
	"context"
	"errors"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// retryAfter is how long a settlement whose transaction was reverted rests: a
// payer who moves money in and out must not burn gas as fast as we can sign.
const retryAfter = 30 * time.Second

// bookTimeout bounds what is written after a signature, when nobody's context
// may cut it short any more.
const bookTimeout = 10 * time.Second

// Settle settles a payment that is reserved in the book, or finds out what
// became of it. An error means that nothing was submitted by this call or any
// other; what is not known is an outcome.
func (f *Facilitator) Settle(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	switch p.Money {
	case ledger.Mined, ledger.Final:
		return settled(p.Evidence), nil
	case ledger.Released, ledger.Dead:
		return notCharged(p.ErrorCode, p.Proof), nil
	}
	r, err := fromRow(p, f.asset(p.Asset))
	if err != nil {
		return submittedOr(p.Money == ledger.Signed, err)
	}
	return f.SettleFor(ctx, r)
}

// submittedOr keeps the promise that an error means that nothing was submitted.
func submittedOr(submitted bool, err error) (ledger.Outcome, error) {
	if submitted {
		return unknown("", clawr.CodeOf(err), err.Error()), nil
	}
	return ledger.Outcome{}, err
}

// SettleFor settles r's payment, or finds out what became of it: asking twice
// is asking once. It waits for the block until ctx ends. An error means that
// nothing was submitted.
func (f *Facilitator) SettleFor(ctx context.Context, r Request) (ledger.Outcome, error) {
	a, err := f.read(r.Payload, &r.Requirements, time.Time{}, r.submitted)
	if err != nil {
		e, _ := refusal(err)
		if e == nil {
			return submittedOr(r.submitted, err)
		}
		if r.submitted {
			return unknown("", e.Code, e.Message), nil
		}
		return notCharged(e.Code, e.Message), nil
	}
	for {
		s, fl, out, err := f.submit(ctx, a, r)
		switch {
		case err != nil:
			return submittedOr(r.submitted, err)
		case out != nil:
			return *out, nil
		}
		end, over := f.await(ctx, a, s, fl)
		if over {
			return end, nil
		}
		r.again = len(fl.its) > 1 // the batch is over, and did not decide about it
	}
}

// submit brings the payment into a live batch, alone for its authorization. It
// gives a seat in the flight of that, or the outcome if there is nothing to
// wait for.
func (f *Facilitator) submit(ctx context.Context, a *payment, r Request) (s ledger.Settlement, fl *flight, out *ledger.Outcome, err error) {
	end := func(o ledger.Outcome) (ledger.Settlement, *flight, *ledger.Outcome, error) { return s, nil, &o, nil }
	unlock, err := f.keys.lock(ctx, a.Key)
	if err != nil { // somebody else is at it, and did not come to an end
		return end(unknown("", x402.ReasonPending, "the payment is being settled"))
	}
	defer unlock()
	s, opened, err := f.settlement(ctx, a, r)
	if err != nil {
		return s, nil, nil, err
	}
	if s.PayTo != a.payTo || s.Amount != a.transfer.Amount || s.ValidBefore != a.transfer.ValidBefore {
		if r.submitted {
			return end(unknown("", x402.ReasonNonceUsed, "the payer signed the same nonce for another transfer"))
		}
		return end(notCharged(x402.ReasonNonceUsed, "the payer signed the same nonce for another transfer"))
	}
	if paid(&s) {
		return end(settled(s.Evidence))
	}
	if live(&s) {
		fl, err = f.board(ctx, s.Batch)
		if err != nil {
			return end(unknown(lastTx(&s), x402.ReasonPending, err.Error()))
		}
		return s, fl, nil, nil
	}
	r.submitted = r.submitted || s.Batch != nil
	if r.created.IsZero() || s.Created.Before(r.created) {
		r.created = s.Created
	}
	if s.Item == ledger.ItemReverted && !r.again && f.now().Sub(s.Batch.Created) < retryAfter {
		return end(f.ended(ctx, a, r, lastTx(&s), x402.ReasonTransactionFailed, "its transaction was reverted"))
	}
	got := f.order(ctx, newOrder(item{Settlement: s, transfer: a.transfer, opened: opened}, a, f.share(a, &s), f.now()))
	if got.doubt != nil {
		got = f.doubted(ctx, &s, got.doubt)
	}
	switch {
	case got.flight != nil:
		return s, got.flight, nil, nil
	case got.refused != nil:
		return end(f.refused(ctx, a, r, &s, got.refused))
	case got.err != nil && s.Batch != nil:
		return end(unknown(lastTx(&s), clawr.CodeOf(got.err), got.err.Error()))
	case got.err != nil:
		return s, nil, nil, got.err
	case paid(&s):
		return end(settled(s.Evidence))
	}
	return end(unknown("", x402.ReasonPending, "the book does not answer"))
}

// share is how many payments may share a's transaction. What a contract signed
// has one to itself. What was reverted in a batch is tried in half as large a
// one: so that the others of that batch are not held up by the one whose fault
// it was.
func (f *Facilitator) share(a *payment, s *ledger.Settlement) int {
	switch {
	case a.foreign || len(a.transfer.Signature) != 65:
		return 1
	case s.Item == ledger.ItemReverted:
		return max(len(s.Batch.Settlements)/2, 1)
	}
	return f.batch()
}

// refused is the outcome of a payment that the chain would not take.
func (f *Facilitator) refused(ctx context.Context, a *payment, r Request, s *ledger.Settlement, e *clawr.Error) ledger.Outcome {
	over := e.Code == x402.ReasonValidBefore || e.Code == x402.ReasonValidAfter
	if over && !r.submitted { // it may have been used in time
		switch used, err := f.Chain.Used(ctx, a.transfer, nil); {
		case err != nil:
			return unknown("", clawr.CodeFacilitatorDown, "the chain cannot be asked just now")
		case used:
			e = errConsumed
		}
	}
	if e.Code == x402.ReasonNonceUsed || r.submitted {
		return f.ended(ctx, a, r, lastTx(s), e.Code, e.Message)
	}
	return notCharged(e.Code, e.Message)
}

// doubted asks the book whether s was signed, when nothing else knows. If it
// cannot be asked, the payment has to be taken for submitted.
func (f *Facilitator) doubted(ctx context.Context, s *ledger.Settlement, err error) orderEnd {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTimeout)
	defer cancel()
	stands, again := f.Book.Settlement(ctx, s.Key)
	switch {
	case again != nil:
		f.log().ErrorContext(ctx, "signed, and perhaps not stored", "settlement", s.ID, "err", errors.Join(err, again))
		return orderEnd{}
	case stands != nil && paid(stands):
		*s = *stands
		return orderEnd{}
	case stands != nil && live(stands):
		*s = *stands
		fl, err := f.board(ctx, s.Batch)
		if err != nil {
			return orderEnd{}
		}
		return orderEnd{flight: fl}
	case errors.Is(err, ledger.ErrFenced):
		err = &clawr.Error{Code: clawr.CodeConflict, Message: "the authorization belongs to another payment, or was given up", Fix: "send the same request again", Err: err}
	}
	return orderEnd{err: err}
}

// settlement gives the row of a's authorization, or the one that is opened
// when a batch carries it: what was never signed for needs no row. So nobody
// can open one in a payer's name, where it would stand in the payer's way.
func (f *Facilitator) settlement(ctx context.Context, a *payment, r Request) (s ledger.Settlement, opened bool, err error) {
	switch stands, err := f.Book.Settlement(ctx, a.Key); {
	case err != nil:
		return s, false, err
	case stands != nil:
		return *stands, false, nil
	}
	return ledger.Settlement{ID: laterID("stl_", f.now()), Key: a.Key, PayTo: a.payTo, Amount: a.transfer.Amount, ValidBefore: a.transfer.ValidBefore,
		Payload: r.Payload.JSON(), RequestedBy: r.RequestedBy, Created: f.now()}, true, nil
}

// paid reports whether the book has evidence for s.
func paid(s *ledger.Settlement) bool {
	return s.Item == ledger.ItemPaid || s.Item == ledger.ItemElsewhere
}

// live reports whether a transaction that carries s may be mined yet.
func live(s *ledger.Settlement) bool {
	return s.Batch != nil && s.Batch.State == ledger.BatchSigned && s.Item == ledger.ItemOpen
}

// lastTx is the newest transaction that carried s, or "".
func lastTx(s *ledger.Settlement) string {
	if s.Batch == nil || len(s.Batch.Txs) == 0 {
		return ""
	}
	return s.Batch.Txs[len(s.Batch.Txs)-1].Hash
}

// await waits in a flight for the end of s, until ctx ends. It is not over if
// the batch came to its end without deciding about s.
func (f *Facilitator) await(ctx context.Context, a *payment, s ledger.Settlement, fl *flight) (out ledger.Outcome, over bool) {
	defer fl.leave()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if f.clock.time().Unix() > a.transfer.ValidBefore { // if it is in no block yet, it can only be reverted now
			return f.ended(ctx, a, Request{submitted: true, created: s.Created}, fl.tx(), x402.ReasonValidBefore, "the authorization is over"), true
		}
		select {
		case <-fl.done:
			return f.landed(ctx, a, s, fl)
		case <-ctx.Done():
			return unknown(fl.tx(), x402.ReasonPending, "the transaction is in no block yet"), true
		case <-tick.C:
		}
	}
}

// landed is what a flight did for s.
func (f *Facilitator) landed(ctx context.Context, a *payment, s ledger.Settlement, fl *flight) (out ledger.Outcome, over bool) {
	result := ledger.ItemResult{}
	for _, r := range fl.results {
		if r.SettlementID == s.ID {
			result = r
		}
	}
	switch result.Outcome {
	case ledger.ItemPaid, ledger.ItemElsewhere:
		return settled(result.Evidence), true
	case ledger.ItemOpen:
		return out, false // the book knows
	}
	if len(fl.its) > 1 && (!fl.receipt.OK || fl.exhausted(fl.receipt)) {
		f.log().WarnContext(ctx, "a batch failed, and is divided", "batch", fl.batch.ID, "payments", len(fl.its), "settlement", s.ID)
		return out, false
	}
	reason := x402.ReasonTransactionFailed
	if fl.receipt.OK && len(fl.its) == 1 {
		reason = x402.ReasonTransferEvent
	}
	f.log().WarnContext(ctx, "transaction mined without its payment", "settlement", s.ID, "tx", fl.receipt.Tx, "reverted", !fl.receipt.OK)
	return f.ended(ctx, a, Request{submitted: true, created: s.Created}, fl.receipt.Tx, reason, "its transaction did not move the money"), true
}

// mined finds out what receipt r of batch b means for each of its settlements,
// and stores it. A settlement that r did not pay may have been paid by
// somebody else's transaction, who saw ours.
func (f *Facilitator) mined(ctx context.Context, b *ledger.Batch, its []item, r *Receipt, reached func(point string)) ([]ledger.ItemResult, error) {
	f.clock.saw(r.Time)
	results := make([]ledger.ItemResult, len(its))
	var unpaid []Transfer
	var which []int
	for i, it := range its {
		results[i] = ledger.ItemResult{SettlementID: it.ID, Outcome: ledger.ItemReverted}
		if r.Found[i].Use == Paid {
			results[i].Outcome, results[i].Evidence = ledger.ItemPaid, r.Found[i].Evidence
			continue
		}
		unpaid, which = append(unpaid, it.transfer), append(which, i)
	}
	if len(unpaid) > 0 {
		probes, err := f.Chain.ProbeAll(ctx, unpaid, f.gas(true))
		if err != nil {
			return nil, err
		}
		for k, i := range which {
			if probes[k].Used || probes[k].Err != nil {
				if err := f.elsewhere(ctx, b, &its[i], &results[i]); err != nil {
					return nil, err
				}
			}
		}
	}
	reached("mined.before")
	if err := f.Book.Mined(ctx, b.ID, r.Tx, r.BlockNumber, r.BlockHash, results); err != nil {
		return nil, err
	}
	reached("mined.after")
	return results, nil
}

// elsewhere looks for the transaction of somebody else that paid it.
func (f *Facilitator) elsewhere(ctx context.Context, b *ledger.Batch, it *item, result *ledger.ItemResult) error {
	found, err := f.Chain.Find(ctx, it.transfer, b.Created.Add(-time.Minute))
	if err == nil && found.Use == Paid {
		result.Outcome, result.Evidence = ledger.ItemElsewhere, found.Evidence
		f.log().InfoContext(ctx, "paid by somebody else's transaction", "settlement", it.ID, "tx", found.Tx)
	}
	return err
}

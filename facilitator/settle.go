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
	s, out, err := f.submit(ctx, a, r)
	if err != nil || out != nil {
		if out == nil {
			return submittedOr(r.submitted, err)
		}
		return *out, nil
	}
	return f.await(ctx, a, s), nil
}

// submit brings the payment into a live batch, alone for its authorization. It
// gives the settlement that has one, or the outcome if there is nothing to
// wait for.
func (f *Facilitator) submit(ctx context.Context, a *payment, r Request) (ledger.Settlement, *ledger.Outcome, error) {
	unlock, err := f.keys.lock(ctx, a.Key)
	if err != nil { // somebody else is at it, and did not come to an end
		out := unknown("", x402.ReasonPending, "the payment is being settled")
		return ledger.Settlement{}, &out, nil
	}
	defer unlock()
	end := func(out ledger.Outcome) (ledger.Settlement, *ledger.Outcome, error) {
		return ledger.Settlement{}, &out, nil
	}
	s, opened, err := f.settlement(ctx, a, r)
	if err != nil {
		return s, nil, err
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
		return s, nil, nil
	}
	r.submitted = r.submitted || s.Batch != nil
	if r.created.IsZero() || s.Created.Before(r.created) {
		r.created = s.Created
	}
	if s.Batch != nil && f.now().Sub(s.Batch.Created) < retryAfter {
		return end(f.ended(ctx, a, r, lastTx(&s), x402.ReasonTransactionFailed, "its transaction was reverted"))
	}
	refused, err := f.preflight(ctx, a)
	switch {
	case err != nil && s.Batch != nil:
		return end(unknown(lastTx(&s), clawr.CodeOf(err), err.Error()))
	case err != nil:
		return s, nil, err
	case refused != nil && (refused.Code == x402.ReasonNonceUsed || r.submitted):
		return end(f.ended(ctx, a, r, lastTx(&s), refused.Code, refused.Message))
	case refused != nil:
		return end(notCharged(refused.Code, refused.Message))
	}
	next, out, err := f.sign(ctx, a, item{s, a.transfer, opened})
	if err != nil && s.Batch != nil {
		return end(unknown(lastTx(&s), clawr.CodeOf(err), err.Error()))
	}
	return next, out, err
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
	return ledger.Settlement{ID: newID("stl_"), Key: a.Key, PayTo: a.payTo, Amount: a.transfer.Amount, ValidBefore: a.transfer.ValidBefore,
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

// preflight is the last look before a signature: the window by the clock and
// by the chain, and the transfer as the chain would carry it out now. It gives
// a refusal, or the error of a node that is silent.
func (f *Facilitator) preflight(ctx context.Context, a *payment) (*clawr.Error, error) {
	f.reached("preflight")
	err := f.foresee(ctx, a)
	if e, ok := refusal(err); ok {
		return e, nil
	}
	return nil, err
}

func (f *Facilitator) foresee(ctx context.Context, a *payment) error {
	now, err := f.clock.fresh(ctx, f.Chain, f.now())
	if err != nil {
		return down("the chain cannot be asked just now", err)
	}
	over := a.window(now)
	if over == nil {
		return f.judge(ctx, a)
	}
	// An authorization that is over may have been used in time.
	used, err := f.Chain.Used(ctx, a.transfer)
	switch {
	case err != nil:
		return down("the chain cannot be asked just now", err)
	case used:
		return errConsumed
	}
	return over
}

// sign puts it into a batch of its own and stores that.
func (f *Facilitator) sign(ctx context.Context, a *payment, it item) (ledger.Settlement, *ledger.Outcome, error) {
	s := it.Settlement
	b, err := f.queue.sign(ctx, f, []item{it}, f.gas(a.foreign))
	if err == nil {
		s.Batch, s.Item = &b, ledger.ItemOpen
		return s, nil, nil
	}
	if errors.Is(err, errUnsigned) {
		return s, nil, err
	}
	// Whether it was written is not known, or somebody else was faster: the
	// book says which. If it cannot be asked, the payment has to be taken for
	// submitted.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTimeout)
	defer cancel()
	stands, again := f.Book.Settlement(ctx, s.Key)
	switch {
	case again != nil:
		f.log().ErrorContext(ctx, "signed, and perhaps not stored", "settlement", s.ID, "err", errors.Join(err, again))
		out := unknown("", x402.ReasonPending, "the book does not answer")
		return s, &out, nil
	case stands != nil && paid(stands):
		out := settled(stands.Evidence)
		return s, &out, nil
	case stands != nil && live(stands):
		return *stands, nil, nil
	case errors.Is(err, ledger.ErrFenced):
		err = &clawr.Error{Code: clawr.CodeConflict, Message: "the authorization belongs to another payment, or was given up", Fix: "send the same request again", Err: err}
	}
	return s, nil, err
}

// await broadcasts the live batch of s and waits for its block until ctx ends.
func (f *Facilitator) await(ctx context.Context, a *payment, s ledger.Settlement) ledger.Outcome {
	b := s.Batch
	tx := b.Txs[len(b.Txs)-1]
	its := []item{{Settlement: s, transfer: a.transfer}}
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		if f.clock.time().Unix() > a.transfer.ValidBefore { // if it is in no block yet, it can only be reverted now
			return f.ended(ctx, a, Request{submitted: true, created: s.Created}, tx.Hash, x402.ReasonValidBefore, "the authorization is over")
		}
		if r := f.broadcast(ctx, b, its); r != nil {
			return f.finish(ctx, a, s, r)
		}
		select {
		case <-ctx.Done():
			return unknown(tx.Hash, x402.ReasonPending, "the transaction is in no block yet")
		case <-time.After(pause):
		}
	}
}

// broadcast sends every transaction of a batch, the newest first, and gives
// the receipt of whichever is in a block. Nothing that a node says meanwhile
// is the last word.
func (f *Facilitator) broadcast(ctx context.Context, b *ledger.Batch, its []item) *Receipt {
	ts := transfers(its)
	for i := len(b.Txs) - 1; i >= 0; i-- {
		tx := b.Txs[i]
		if i == len(b.Txs)-1 {
			f.reached("broadcast.before")
			r, err := f.Chain.Submit(ctx, tx, ts)
			f.reached("broadcast.after")
			if r != nil {
				return r
			}
			if err != nil && ctx.Err() == nil {
				f.funds.heard(err)
				f.log().WarnContext(ctx, "transaction not accepted", "batch", b.ID, "tx", tx.Hash, "err", err)
			}
			continue
		}
		if r, err := f.Chain.Receipt(ctx, tx.Hash, ts); err == nil && r != nil {
			return r
		}
	}
	return nil
}

// finish books what a mined transaction did for its settlements, and gives the
// outcome of s.
func (f *Facilitator) finish(ctx context.Context, a *payment, s ledger.Settlement, r *Receipt) ledger.Outcome {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTimeout)
	defer cancel()
	results, err := f.mined(ctx, s.Batch, []item{{Settlement: s, transfer: a.transfer}}, r)
	if err != nil {
		if stands, again := f.Book.Settlement(ctx, s.Key); again == nil && stands != nil && paid(stands) {
			return settled(stands.Evidence) // somebody else booked it first
		}
		f.log().ErrorContext(ctx, "mined, but not booked", "batch", s.Batch.ID, "tx", r.Tx, "err", err)
		return unknown(r.Tx, x402.ReasonPending, "the book does not answer")
	}
	switch results[0].Outcome {
	case ledger.ItemPaid, ledger.ItemElsewhere:
		return settled(results[0].Evidence)
	}
	reason := x402.ReasonTransactionFailed
	if r.OK {
		reason = x402.ReasonTransferEvent
	}
	f.log().WarnContext(ctx, "transaction mined without its payment", "settlement", s.ID, "tx", r.Tx, "reverted", !r.OK)
	return f.ended(ctx, a, Request{submitted: true, created: s.Created}, r.Tx, reason, "its transaction did not move the money")
}

// mined finds out what receipt r of batch b means for each of its settlements,
// and stores it. A settlement that r did not pay may have been paid by
// somebody else's transaction, who saw ours.
func (f *Facilitator) mined(ctx context.Context, b *ledger.Batch, its []item, r *Receipt) ([]ledger.ItemResult, error) {
	f.clock.saw(r.Time)
	results := make([]ledger.ItemResult, len(its))
	for i, it := range its {
		results[i] = ledger.ItemResult{SettlementID: it.ID, Outcome: ledger.ItemReverted}
		if r.Found[i].Use == Paid {
			results[i].Outcome, results[i].Evidence = ledger.ItemPaid, r.Found[i].Evidence
			continue
		}
		used, err := f.Chain.Used(ctx, it.transfer)
		if err != nil {
			return nil, err
		}
		if !used {
			continue
		}
		found, err := f.Chain.Find(ctx, it.transfer, b.Created.Add(-time.Minute))
		if err != nil {
			return nil, err
		}
		if found.Use == Paid {
			results[i].Outcome, results[i].Evidence = ledger.ItemElsewhere, found.Evidence
			f.log().InfoContext(ctx, "paid by somebody else's transaction", "settlement", it.ID, "tx", found.Tx)
		}
	}
	f.reached("mined.before")
	if err := f.Book.Mined(ctx, b.ID, r.Tx, r.BlockNumber, r.BlockHash, results); err != nil {
		return nil, err
	}
	f.reached("mined.after")
	f.queue.done(b.ID)
	return results, nil
}

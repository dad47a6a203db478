package dispatch

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// detached is the context of everything after the reservation: the client's
// hang-up ends none of it, only the route's own deadline does.
func (d *Dispatcher) detached(c *call) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(c.in.Context()), d.deadline()-d.now().Sub(c.start))
}

// enter counts a paid call of e in, if there is room, of which no tenant may
// have more than three quarters: one whose work hangs must not take the others'.
// What is turned away here is not reserved yet, or is nobody's work.
func (d *Dispatcher) enter(e *entry) (leave func(), err error) {
	all, own := d.inFlight.Add(1), e.inFlight.Add(1)
	leave = func() { d.inFlight.Add(-1); e.inFlight.Add(-1) }
	if all >= crowd() {
		d.crowded.Store(d.now().UnixNano())
	}
	if d.MaxFlight > 0 && (all > d.MaxFlight || own > max(d.MaxFlight*3/4, 1)) {
		leave()
		return nil, &clawr.Error{Code: clawr.CodeOverloaded, Message: "too many paid calls are in work; nothing was charged", Fix: "send the same request again", RetryAfter: time.Second}
	}
	if d.backlog.jammed(d.deadline()) {
		leave()
		return nil, &clawr.Error{Code: clawr.CodeOverloaded, Message: "settlements take too long just now; nothing was charged", Fix: "send the same request again", RetryAfter: 5 * time.Second}
	}
	return leave, nil
}

// reserve claims the authorization and everything that the call takes from, in
// one transaction, and performs it. Somebody who was faster is followed, with
// nothing of ours in flight.
func (d *Dispatcher) reserve(c *call, p *payment, e *entry, terms x402.Requirements) error {
	faster, err := d.claim(c, p, e, terms)
	if faster != nil {
		return d.standing(c, p, faster)
	}
	return err
}

// claim reserves and performs, or gives the row that was there first. Once it
// is reserved the payment is spent on this request: whatever happens, the
// reservation ends settled or released.
func (d *Dispatcher) claim(c *call, p *payment, e *entry, terms x402.Requirements) (faster *ledger.Payment, err error) {
	leave, err := d.enter(e)
	if err != nil {
		return nil, err
	}
	defer leave()
	ws, counters := c.windows(e, c.ev.Caller, e.Price)
	row, err := d.row(c, p, e, terms)
	if err != nil {
		return nil, err
	}
	row.Counters = counters
	defer d.flights.begin(p.key)()
	ctx, cancel := d.detached(c)
	defer cancel()
	d.reached("verify.after")
	got, err := d.Book.Reserve(ctx, row, d.Node, leaseTime)
	if conflict, ok := errors.AsType[*ledger.Conflict](err); ok {
		if conflict.Payment.Key != p.key { // it is the identifier that is known
			return nil, &clawr.Error{Code: clawr.CodeIdentifierUsed, Param: x402.PaymentIdentifier, Message: "another payment has this payment-identifier; this one was not charged",
				Fix: "send that payment's header again, or sign a new payment with a new id"}
		}
		return conflict.Payment, nil
	}
	if err != nil {
		return nil, unavailable(c.exceeded(ws, err))
	}
	d.reached("t1.after")
	c.left(ws, got.Counters)
	return nil, d.perform(ctx, c, p, e, &got)
}

// row is the payment as it is reserved. The quote is kept as a hash only: it
// is a bearer credential.
func (d *Dispatcher) row(c *call, p *payment, e *entry, terms x402.Requirements) (ledger.Payment, error) {
	kept := p.ForFacilitator(&terms)
	if d.Bare {
		kept = kept.Bare()
	}
	raw := kept.JSON()
	amount, err := strconv.ParseInt(terms.Amount, 10, 64)
	if err != nil {
		return ledger.Payment{}, err
	}
	after, _ := p.exact.ValidAfter.Int64()
	return ledger.Payment{
		ID: d.newID("pay_"), TenantID: e.ID, Version: e.Version, Route: c.ev.Endpoint, Scheme: x402.SchemeExact, Key: p.key,
		PayTo: e.PayTo, Amount: amount, ValidAfter: after, ValidBefore: p.validBefore(),
		Fingerprint: c.fingerprint(e, c.canonical), Payload: raw, PayloadSHA256: hashHex(raw), SignatureSHA256: p.signature,
		QuoteSHA256: p.quoteSHA, ClientAddrHash: d.callers.hash(d.Salt, addrCaller, c.addr), ClientRef: p.ref, Policy: d.policy(c, e, p), Exposure: d.Exposure,
	}, nil
}

// run does the work that row reserved, stores the answer, and settles.
func (d *Dispatcher) run(ctx context.Context, c *call, p *payment, e *entry, row *ledger.Payment) error {
	d.reached("worker.before")
	answer, err := d.work(ctx, c)
	d.reached("worker.after")
	c.paidEvent(e, row)
	c.ev.Countable, c.ev.Billable = true, false
	if err != nil {
		return d.giveUp(ctx, c, row, err)
	}
	answer.Expires = d.answerExpiry(row)
	c.ev.Lifecycle = usage.Unsettled
	c.ev.Status, c.ev.BytesOut, c.ev.Latency = answer.Status, answer.Len, d.now().Sub(c.start)
	if err := d.Book.Done(ctx, row.ID, row.Epoch, *answer, c.ev); err != nil {
		return d.lost(ctx, c, row, "answer not stored", err)
	}
	c.booked = true
	d.reached("t2.after")
	row.Work = ledger.Done
	switch row.Policy {
	case ledger.Async: // delivered at once, and settled behind the caller's back
		d.queue.push(*row)
		return d.respond(c, e, row, answer)
	case ledger.SettleFirst:
		return d.respond(c, e, row, answer)
	}
	return d.finish(ctx, c, p, e, row, answer)
}

// giveUp releases row, whose work failed with err. Only then may the caller be
// told that it was not charged: if somebody else has the row by now, he may
// come to an end with it. What was settled first cannot be released.
func (d *Dispatcher) giveUp(ctx context.Context, c *call, row *ledger.Payment, err error) error {
	switch {
	case row.Policy != ledger.SettleFirst:
	case ctx.Err() != nil && idempotent(c.Method):
		c.ev.Countable = false
		return errNoTime
	default:
		return d.owe(ctx, c, row, err)
	}
	c.ev.Lifecycle, c.ev.Status, c.ev.Error, c.ev.Latency = usage.Failure, statusOf(err), string(clawr.CodeOf(err)), d.now().Sub(c.start)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTime)
	defer cancel()
	if rerr := d.Book.Release(ctx, row.ID, row.Epoch, clawr.CodeOf(err), c.ev); rerr != nil {
		d.Log.ErrorContext(ctx, "not released", "payment", row.ID, "why", err)
		return d.lost(ctx, c, row, "not released", rerr)
	}
	c.booked = true
	c.receipt = &x402.SettleResponse{ErrorReason: clawr.CodeNotCharged, Network: row.Network, Payer: row.Payer}
	return err
}

// bookTime is how long a release may take when the deadline is over.
const bookTime = 3 * time.Second

// endless is a time in unix seconds, in the year 36812, from which on an
// authorization is taken to have no end: sums with it must not overflow.
const endless = 1 << 40

// answerExpiry is until when the answer is kept: a day, and as long as the
// authorization could still be charged (I13).
func (d *Dispatcher) answerExpiry(row *ledger.Payment) time.Time {
	day := d.now().Add(24 * time.Hour)
	if until := time.Unix(row.ValidBefore, 0).Add(time.Hour); row.ValidBefore < endless && until.After(day) {
		return until
	}
	return day
}

// finish settles row, whose answer is stored, and hands the answer over.
// answer is nil if another call stored it: then this one is a resend, and the
// event of the payment is not its own.
func (d *Dispatcher) finish(ctx context.Context, c *call, p *payment, e *entry, row *ledger.Payment, answer *ledger.Answer) error {
	out, err := d.settle(ctx, row)
	switch {
	case err != nil || out.State != ledger.Settled:
		return d.unsettled(ctx, c, p, e, row, out, err)
	case answer == nil:
		return d.replay(ctx, c, e, row)
	}
	return d.respond(c, e, row, answer)
}

// unsettled answers for a settlement that did not come to its end: with a 402
// if there is proof that it never will.
func (d *Dispatcher) unsettled(ctx context.Context, c *call, p *payment, e *entry, row *ledger.Payment, out ledger.Outcome, err error) error {
	if err != nil {
		d.Log.WarnContext(ctx, "settlement not submitted", "payment", row.ID, "err", err)
		return d.pending(c, row, "")
	}
	if out.State == ledger.NotCharged {
		c.paidEvent(e, row)
		c.ev.Lifecycle, c.ev.Countable, c.ev.Billable = usage.SettleFailed, false, false
		c.ev.Status, c.ev.Error = http.StatusPaymentRequired, string(reasonFor(out.Reason))
		if row.Money == ledger.Held {
			if row.Work == ledger.Done { // the work was for nothing
				d.forNothing(row.Payer, c.start)
			}
			// Fenced means that it is dead or released already: as good.
			err := d.Book.Release(ctx, row.ID, row.Epoch, reasonFor(out.Reason), c.ev)
			if err != nil && !errors.Is(err, ledger.ErrFenced) {
				d.Log.ErrorContext(ctx, "not released", "payment", row.ID, "err", err)
				return d.pending(c, row, "")
			}
			c.booked = c.booked || err == nil && row.Work != ledger.Done
		}
		return d.refuseSettlement(c, row, out)
	}
	return d.pending(c, row, out.Tx)
}

// refuseSettlement answers 402 with the settlement's reason: there is proof
// that the payment was not charged and will not be.
func (d *Dispatcher) refuseSettlement(c *call, row *ledger.Payment, out ledger.Outcome) error {
	reason := reasonFor(out.Reason)
	c.setReceipt(&x402.SettleResponse{ErrorReason: reason, Network: row.Network, Payer: row.Payer})
	return d.refuse(c, reason, "the payment could not be settled; you were not charged")
}

// pending is what is said while the authorization may still be charged: never
// a 402, because clients answer those with a new payment.
func (d *Dispatcher) pending(c *call, row *ledger.Payment, tx string) *clawr.Error {
	c.receipt = &x402.SettleResponse{ErrorReason: clawr.CodeSettlementPending, Transaction: tx, Network: row.Network, Payer: row.Payer}
	after := 2 * time.Second
	if row.Money != ledger.Signed && (row.Work == ledger.Pending || row.Work == ledger.Running) {
		after = time.Second // it is not the chain that is waited for
	}
	return &clawr.Error{Code: clawr.CodeSettlementPending, Message: "the payment is being settled", Fix: "send the same PAYMENT-SIGNATURE again; do not sign a new one", RetryAfter: after}
}

// stuck is what is said when something of ours, which the log learns, keeps
// the answer from whoever may have it. It says nothing of charges.
func (d *Dispatcher) stuck(c *call, row *ledger.Payment, err error) error {
	if clawr.CodeOf(err) == clawr.CodeVersionGone {
		return err
	}
	if c.in.Context().Err() == nil {
		d.Log.ErrorContext(c.in.Context(), "a payment's answer cannot be given", "payment", row.ID, "money", row.Money, "err", err)
	}
	out := d.pending(c, row, row.Tx)
	out.Message, out.Err = "the answer to this payment cannot be given right now", err
	return out
}

// replay answers with the stored answer, byte for byte.
func (d *Dispatcher) replay(ctx context.Context, c *call, e *entry, row *ledger.Payment) error {
	answer, err := c.stored, error(nil)
	if answer == nil {
		answer, err = d.Book.Answer(ctx, row.ID)
	}
	if err != nil {
		return d.stuck(c, row, err)
	}
	if answer == nil {
		return &clawr.Error{Code: clawr.CodeVersionGone, Message: "the answer that this payment bought is not kept any more", Fix: "sign a new payment to ask again"}
	}
	if answer.Body == nil && answer.Ref != "" {
		if answer.Body, err = c.worker.answer(ctx, answer.Ref); err != nil {
			return d.stuck(c, row, err)
		}
		if hashHex(answer.Body) != answer.SHA256 {
			return d.stuck(c, row, errors.New("the stored answer cannot be recomputed"))
		}
	}
	c.paidEvent(e, row)
	c.ev.Lifecycle, c.ev.Billable, c.ev.Countable, c.ev.Billed = usage.Replayed, false, false, 0
	if row.Money == ledger.Signed {
		row.Tx = "" // async, and a reorganisation lost it
	}
	c.w.Header()["X-Clawr-Replayed"] = []string{"true"}
	return d.respond(c, e, row, answer)
}

// respond hands over an answer that is paid for. No cache that others use may
// keep it.
func (d *Dispatcher) respond(c *call, e *entry, row *ledger.Payment, a *ledger.Answer) error {
	h := c.w.Header()
	for _, kv := range a.Headers {
		h.Add(kv[0], kv[1])
	}
	h["Cache-Control"] = cachePrivate
	if e.Kind != clawr.KindDataset {
		h["Cache-Control"] = cacheNone
	}
	h["Vary"] = append(slices.Clip(h["Vary"]), varyPayment...)
	h["Content-Length"] = []string{strconv.FormatInt(a.Len, 10)}
	receipt := &x402.SettleResponse{Success: true, Transaction: row.Tx, Network: row.Network, Payer: row.Payer, Extra: c.extra}
	if c.deposit != nil {
		receipt.Transaction, receipt.Amount = c.deposit.Transaction, c.deposit.Amount
	}
	c.setReceipt(receipt)
	d.reached("respond.before")
	c.w.WriteHeader(a.Status)
	if c.Method != http.MethodHead {
		c.w.Write(a.Body)
	}
	return nil
}

// setReceipt puts r into PAYMENT-RESPONSE, and into version 1's header for
// those who paid with that.
func (c *call) setReceipt(r *x402.SettleResponse) {
	c.w.Header()[x402.HeaderResponse] = []string{r.Header()}
	if c.v1 {
		old := *r
		if name := x402.V1Name(r.Network); name != "" {
			old.Network = name
		}
		c.w.Header()[x402.HeaderResponseV1] = []string{old.Header()}
	}
}

// paidEvent fills in what a payment tells about the request: Price is that of
// the whole call, which is what is billed once it is settled.
func (c *call) paidEvent(e *entry, row *ledger.Payment) {
	c.ev.Units = c.units
	if row.Scheme != x402.SchemeChannel { // what a voucher bought has no row of payments
		c.ev.PaymentID = row.ID
	}
	c.ev.Price = e.Price * clawr.Amount(c.units)
}

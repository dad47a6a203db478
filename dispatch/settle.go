package dispatch

import (
	"context"
	"errors"
	"maps"
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
	return context.WithDeadline(context.WithoutCancel(c.in.Context()), c.start.Add(d.deadline()))
}

// lease is how long a reservation is left alone after its owner went quiet:
// nobody holds one for longer than a route's deadline.
func (d *Dispatcher) lease() time.Duration { return d.deadline() + 5*time.Second }

// reserve claims the authorization and everything that the call takes from, in
// one transaction. From there on the payment is spent on this request:
// whatever happens, the reservation ends settled or released.
func (d *Dispatcher) reserve(c *call, p *payment, e *entry, terms x402.Requirements) error {
	ws, counters := c.windows(e, c.ev.Caller, e.Price)
	row, err := d.row(c, p, e, terms)
	if err != nil {
		return err
	}
	row.Counters = counters
	end := d.flights.begin(p.key)
	defer end()
	d.inFlight.Add(1)
	defer d.inFlight.Add(-1)
	ctx, cancel := d.detached(c)
	defer cancel()
	d.reached("verify.after")
	got, err := d.Book.Reserve(ctx, row, d.Node, d.lease())
	if conflict, ok := errors.AsType[*ledger.Conflict](err); ok {
		end()
		return d.standing(c, p, conflict.Payment)
	}
	if err != nil {
		if err = c.exceeded(ws, err); clawr.CodeOf(err) == clawr.CodeInternal {
			err = unavailable(err)
		}
		return err
	}
	d.reached("t1.after")
	c.left(ws, got.Counters)
	return d.perform(ctx, c, p, e, &got)
}

// row is the payment as it is reserved. The quote is kept as a hash only: it
// is a bearer credential.
func (d *Dispatcher) row(c *call, p *payment, e *entry, terms x402.Requirements) (ledger.Payment, error) {
	raw := p.ForFacilitator(&terms).JSON()
	amount, err := strconv.ParseInt(terms.Amount, 10, 64)
	if err != nil {
		return ledger.Payment{}, err
	}
	after, _ := p.exact.ValidAfter.Int64()
	before, _ := p.exact.ValidBefore.Int64()
	return ledger.Payment{
		ID: "pay_" + newRequestID()[4:], TenantID: e.ID, Version: e.Version, Route: c.URL.Path, Scheme: x402.SchemeExact, Key: p.key,
		PayTo: e.PayTo, Amount: amount, ValidAfter: after, ValidBefore: before,
		Fingerprint: c.fingerprint(e, c.canonical), Payload: raw, PayloadSHA256: hashHex(raw), SignatureSHA256: p.signature,
		QuoteSHA256: p.quoteSHA, ClientAddrHash: d.callers.hash(d.Salt, "addr:", c.addr), Policy: ledger.SettleBeforeResponse,
	}, nil
}

// perform does the work that row reserved, stores the answer, and settles.
func (d *Dispatcher) perform(ctx context.Context, c *call, p *payment, e *entry, row *ledger.Payment) error {
	d.reached("worker.before")
	answer, err := d.work(ctx, c)
	d.reached("worker.after")
	c.paidEvent(e, row)
	if err != nil {
		c.ev.Lifecycle, c.ev.Countable, c.ev.Billable = usage.Failure, true, false
		c.ev.Status, c.ev.Error, c.ev.Latency = statusOf(err), string(clawr.CodeOf(err)), d.now().Sub(c.start)
		c.receipt = &x402.SettleResponse{ErrorReason: clawr.CodeNotCharged, Network: row.Network, Payer: row.Payer}
		if rerr := d.Book.Release(ctx, row.ID, row.Epoch, clawr.CodeOf(err), c.ev); rerr != nil {
			// The janitor releases it later; it was not submitted.
			d.Log.ErrorContext(ctx, "not released", "payment", row.ID, "err", rerr)
		} else {
			c.booked = true
		}
		return err
	}
	answer.Expires = d.answerExpiry(row)
	c.ev.Lifecycle, c.ev.Countable = usage.Unsettled, true
	c.ev.Status, c.ev.BytesOut, c.ev.Latency = answer.Status, answer.Len, d.now().Sub(c.start)
	if err := d.Book.Done(ctx, row.ID, row.Epoch, *answer, c.ev); err != nil {
		if !errors.Is(err, ledger.ErrFenced) {
			d.Log.ErrorContext(ctx, "answer not stored", "payment", row.ID, "err", err)
		}
		return d.pending(c, row, "")
	}
	c.booked = true
	d.reached("t2.after")
	row.Work = ledger.Done
	return d.finish(ctx, c, p, e, row, answer)
}

// answerExpiry is until when the answer is kept: a day, and as long as the
// authorization could still be charged (I13).
func (d *Dispatcher) answerExpiry(row *ledger.Payment) time.Time {
	day := d.now().Add(24 * time.Hour)
	if until := time.Unix(row.ValidBefore, 0).Add(time.Hour); row.ValidBefore < 1<<40 && until.After(day) {
		return until
	}
	return day
}

// work has the worker answer into a bounded buffer.
func (d *Dispatcher) work(ctx context.Context, c *call) (*ledger.Answer, error) {
	limit := d.MaxAnswer
	if limit <= 0 {
		limit = 64 << 20
	}
	// The work gets what the deadline leaves when the settlement's share is
	// taken off: a slow worker must not eat the settlement's time.
	wctx, cancel := context.WithTimeout(ctx, max(d.deadline()*2/3, time.Second))
	defer cancel()
	buf := &buffer{header: http.Header{}, limit: limit}
	err := d.guard(c, func() error { return c.worker.Serve(buf, c.Request.WithContext(wctx)) })
	switch {
	case err != nil && wctx.Err() != nil && clawr.CodeOf(err) == clawr.CodeInternal:
		return nil, &clawr.Error{Code: clawr.CodeWorkerTimeout, Message: "the API took too long; you were not charged", Fix: "ask for less, or try again later", Err: err}
	case buf.over:
		return nil, &clawr.Error{Code: clawr.CodeWorkerFailure, Message: "the answer is too large; you were not charged", Fix: "ask for less"}
	case err != nil && clawr.CodeOf(err) == clawr.CodeInternal:
		d.Log.ErrorContext(ctx, "worker failed", "tenant", c.e.Slug, "version", c.e.Version, "err", err)
		return nil, &clawr.Error{Code: clawr.CodeWorkerFailure, Message: "the API failed; you were not charged", Fix: "try again later", Err: err}
	case err != nil:
		return nil, err
	case buf.status >= 400:
		d.Log.ErrorContext(ctx, "worker refused", "tenant", c.e.Slug, "version", c.e.Version, "status", buf.status)
		return nil, &clawr.Error{Code: clawr.CodeWorkerFailure, Message: "the API failed; you were not charged", Fix: "try again later"}
	}
	a := &ledger.Answer{Status: max(buf.status, http.StatusOK), Body: buf.body, SHA256: hashHex(buf.body), Len: int64(len(buf.body))}
	for _, k := range slices.Sorted(maps.Keys(buf.header)) {
		for _, v := range buf.header[k] {
			a.Headers = append(a.Headers, [2]string{k, v})
		}
	}
	if c.worker.recompute != nil && idempotent(c.Method) && a.Status == http.StatusOK {
		a.Ref = c.canonical
	}
	return a, nil
}

// finish settles row, whose answer is stored, and hands the answer over.
// answer is nil if another call stored it.
func (d *Dispatcher) finish(ctx context.Context, c *call, p *payment, e *entry, row *ledger.Payment, answer *ledger.Answer) error {
	end := d.flights.begin(p.key)
	defer end()
	out, err := d.Payments.Settle(ctx, *row)
	d.reached("settle.after")
	if err != nil {
		d.Log.WarnContext(ctx, "settlement not submitted", "payment", row.ID, "err", err)
		return d.pending(c, row, "")
	}
	switch out.State {
	case ledger.Settled:
		row.Evidence, row.Money = out.Evidence, ledger.Mined
		if answer == nil {
			return d.replay(ctx, c, p, e, row)
		}
		c.ev.Billable, c.ev.Lifecycle = true, usage.Success
		return d.respond(c, p, e, row, answer)
	case ledger.NotCharged:
		c.paidEvent(e, row)
		c.ev.Lifecycle, c.ev.Countable, c.ev.Status, c.ev.Error = usage.SettleFailed, false, http.StatusPaymentRequired, string(out.Reason)
		if row.Money == ledger.Held {
			// Fenced means that it is dead or released already: as good.
			if err := d.Book.Release(ctx, row.ID, row.Epoch, out.Reason, c.ev); err != nil && !errors.Is(err, ledger.ErrFenced) {
				d.Log.ErrorContext(ctx, "not released", "payment", row.ID, "err", err)
				return d.pending(c, row, "")
			}
		}
		c.booked = true
		return d.refuseSettlement(c, row, out)
	}
	return d.pending(c, row, out.Tx)
}

// refuseSettlement answers 402 with the settlement's reason: there is proof
// that the payment was not charged and will not be.
func (d *Dispatcher) refuseSettlement(c *call, row *ledger.Payment, out ledger.Outcome) error {
	c.setReceipt(&x402.SettleResponse{ErrorReason: out.Reason, Network: row.Network, Payer: row.Payer})
	return d.refuse(c, out.Reason, "the payment could not be settled; you were not charged")
}

// pending is what is said while the authorization may still be charged: never
// a 402, because clients answer those with a new payment.
func (d *Dispatcher) pending(c *call, row *ledger.Payment, tx string) error {
	c.receipt = &x402.SettleResponse{ErrorReason: clawr.CodeSettlementPending, Transaction: tx, Network: row.Network, Payer: row.Payer}
	return &clawr.Error{Code: clawr.CodeSettlementPending, Message: "the payment is being settled", Fix: "send the same PAYMENT-SIGNATURE again; do not sign a new one", RetryAfter: 2 * time.Second}
}

// replay answers with the stored answer, byte for byte.
func (d *Dispatcher) replay(ctx context.Context, c *call, p *payment, e *entry, row *ledger.Payment) error {
	answer, err := d.Book.Answer(ctx, row.ID)
	if err != nil {
		return unavailable(err)
	}
	if answer == nil {
		return &clawr.Error{Code: clawr.CodeVersionGone, Message: "the answer that this payment bought is not kept any more", Fix: "sign a new payment to ask again"}
	}
	if answer.Body == nil && answer.Ref != "" {
		if c.worker.recompute == nil {
			return &clawr.Error{Code: clawr.CodeInternal, Err: errors.New("a stored answer has nobody to recompute it")}
		}
		if answer.Body, err = c.worker.recompute.Answer(ctx, answer.Ref); err != nil {
			return unavailable(err)
		}
		if hashHex(answer.Body) != answer.SHA256 {
			d.Log.ErrorContext(ctx, "a stored answer cannot be recomputed", "payment", row.ID, "tenant", e.Slug, "version", e.Version)
			return &clawr.Error{Code: clawr.CodeInternal}
		}
	}
	c.paidEvent(e, row)
	c.ev.Lifecycle, c.ev.Billable, c.ev.Countable, c.ev.Billed = usage.Replayed, false, false, 0
	c.w.Header()["X-Clawr-Replayed"] = []string{"true"}
	return d.respond(c, p, e, row, answer)
}

// respond hands over an answer that is paid for.
func (d *Dispatcher) respond(c *call, p *payment, e *entry, row *ledger.Payment, a *ledger.Answer) error {
	h := c.w.Header()
	for _, kv := range a.Headers {
		h.Add(kv[0], kv[1])
	}
	h["Cache-Control"] = cachePrivate
	if e.Kind != clawr.KindDataset {
		h["Cache-Control"] = []string{"private, no-store"}
	}
	h["Content-Length"] = []string{strconv.FormatInt(a.Len, 10)}
	c.setReceipt(&x402.SettleResponse{Success: true, Transaction: row.Tx, Network: row.Network, Payer: row.Payer})
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

// paidEvent fills in what a payment tells about the request.
func (c *call) paidEvent(e *entry, row *ledger.Payment) {
	c.ev.PaymentID, c.ev.Price, c.ev.Units = row.ID, e.Price, c.units
}

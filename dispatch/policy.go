package dispatch

import (
	"context"
	"errors"
	"math"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// Charged is the book's side of settle_first, where the money comes before the
// work.
type Charged interface {
	// Start lets the work of a paid payment begin.
	Start(ctx context.Context, id string, epoch int64) error
	// Fail ends paid work that cannot be delivered: a refund is due.
	Fail(ctx context.Context, id string, epoch int64, why clawr.Code, ev usage.Event) error
	// Owe is Fail for what nobody came back for.
	Owe(ctx context.Context, olderThan time.Duration) (int, error)
}

// asyncTimeout is what challenges of async tenants ask clients to sign for, so
// that a chain that stands still for an hour does not kill the queue.
const asyncTimeout = time.Hour

// preflightRate is how often a payer may let us work for nothing: his payment
// was good when the work began, and was not when it was to be submitted.
var preflightRate = clawr.Rate{Requests: 3, WindowSeconds: 3600, Burst: 3}

// policy is the order of work and settlement for one payment. The tenant's own
// stands back where the payer gives a reason to want the money first: a
// contract's code may decide otherwise a moment later, and so may somebody who
// did it before. Under async the payment has to live long enough to wait in a
// queue, which must be one that drains; whether its payer has credit is found
// out in T1.
func (d *Dispatcher) policy(c *call, e *entry, p *payment) ledger.Policy {
	left := time.Duration(p.validBefore()-c.start.Unix()) * time.Second
	switch {
	case p.contract || d.Limiter.Allow("preflight/"+p.key.Payer, preflightRate, c.start, 0).Remaining < 1:
		return ledger.SettleFirst
	case e.policy == ledger.Async && (left < asyncTimeout/2 || !d.backlog.drains(c.start, left)):
		return ledger.SettleBeforeResponse
	}
	return e.policy
}

// forNothing notes that we worked for payer, and that nothing was to be had.
func (d *Dispatcher) forNothing(payer string, now time.Time) {
	if d.Limiter != nil { // who only carries others' payments sells nothing
		d.Limiter.Allow("preflight/"+payer, preflightRate, now, 1)
	}
}

// policyOf reads a manifest's policy.
func policyOf(settle string) ledger.Policy {
	switch p := ledger.Policy(settle); p {
	case ledger.SettleFirst, ledger.Async:
		return p
	}
	return ledger.SettleBeforeResponse
}

// maxTimeoutSeconds is what challenges ask clients to sign for.
func (d *Dispatcher) maxTimeoutSeconds(p ledger.Policy) int64 {
	t := d.deadline() + settleTime
	if p == ledger.Async {
		t = max(t, asyncTimeout)
	}
	return int64(t / time.Second)
}

// perform brings a reservation to its end, in the order that its policy says.
func (d *Dispatcher) perform(ctx context.Context, c *call, p *payment, e *entry, row *ledger.Payment) error {
	stop := d.keep(ctx, row)
	defer stop()
	if row.Policy != ledger.SettleFirst {
		return d.run(ctx, c, p, e, row)
	}
	if row.Money != ledger.Mined && row.Money != ledger.Final {
		out, err := d.settle(ctx, row)
		if err != nil || out.State != ledger.Settled {
			stop()
			d.quit(ctx, row)
			return d.unsettled(ctx, c, p, e, row, out, err)
		}
	}
	if row.Work == ledger.Pending {
		if err := d.Charged.Start(ctx, row.ID, row.Epoch); err != nil {
			// Somebody else has it, or a reorganisation took the payment back.
			stop()
			d.quit(ctx, row)
			return d.lost(ctx, c, row, "not started", err)
		}
		row.Work = ledger.Running
	}
	err := d.run(ctx, c, p, e, row)
	if errors.Is(err, errNoTime) {
		stop()
		d.quit(ctx, row)
		return d.pending(c, row, row.Tx)
	}
	return err
}

// errNoTime says that paid work was cut short by the route's deadline, of which
// the settlement had taken too much: the work has not failed. A resend does it
// again, with all of the time.
var errNoTime = errors.New("dispatch: the settlement took the time of the work")

// quit gives the lease of unfinished work up, so that a resend need not wait
// for its end. Who has lost it already loses nothing.
func (d *Dispatcher) quit(ctx context.Context, row *ledger.Payment) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTime)
	defer cancel()
	if err := d.Recovery.Renew(ctx, row.ID, row.Epoch, 0); err != nil && !errors.Is(err, ledger.ErrFenced) {
		d.Log.WarnContext(ctx, "lease not given up", "payment", row.ID, "err", err)
	}
}

// lost is what is said when the book did not take a move of ours: somebody
// else has the row by now, and may come to an end with it.
func (d *Dispatcher) lost(ctx context.Context, c *call, row *ledger.Payment, what string, err error) error {
	if !errors.Is(err, ledger.ErrFenced) {
		d.Log.ErrorContext(ctx, what, "payment", row.ID, "err", err)
	}
	c.ev.Lifecycle = "" // nothing of it is in the book
	out := d.pending(c, row, row.Tx)
	out.RetryAfter = 2 * time.Second // where it stands is not known
	return out
}

// owe ends work that failed with why although it is paid for: a refund is due
// from the moment on that the caller is told so.
func (d *Dispatcher) owe(ctx context.Context, c *call, row *ledger.Payment, why error) error {
	c.ev.Lifecycle, c.ev.Status, c.ev.Error, c.ev.Latency = usage.Failure, http.StatusBadGateway, string(clawr.CodeRefundDue), d.now().Sub(c.start)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTime)
	defer cancel()
	if err := d.Charged.Fail(ctx, row.ID, row.Epoch, clawr.CodeOf(why), c.ev); err != nil {
		return d.lost(ctx, c, row, "refund not booked", err)
	}
	c.booked = true
	return d.refundDue(c, row)
}

// refundDue is what is said of a payment that was charged and will not be
// delivered: neither a 402, which would be answered with a second payment, nor
// "not charged".
func (d *Dispatcher) refundDue(c *call, row *ledger.Payment) error {
	c.receipt = &x402.SettleResponse{Success: true, Transaction: row.Tx, Network: row.Network, Payer: row.Payer}
	return &clawr.Error{Code: clawr.CodeRefundDue, Message: "the API failed after it was paid; a refund of payment " + row.ID + " is due",
		Fix: "keep the payment's id for its publisher; to ask again, sign a new payment"}
}

// A backlog is what the node knows of its queue of unsettled payments.
type backlog struct {
	settled atomic.Int64  // payments that this process saw settled
	waiting atomic.Int64  // calls that wait for their settlement now
	yielded atomic.Bool   // since the last look the queue stood back for calls
	failing atomic.Bool   // the last payment of the queue could not be submitted
	rate    atomic.Uint64 // settlements a second, a float64's bits; 0: not known
	depth   atomic.Int64  // async payments that wait, on all nodes
	expiry  atomic.Int64  // when the first of those that async delivered is over, unix seconds; 0: none
}

// firstRate is what a settler is trusted with before it was seen at work, in
// payments a second.
const firstRate = 200

func (b *backlog) perSecond() float64 {
	if r := math.Float64frombits(b.rate.Load()); r > 0 {
		return r
	}
	return firstRate
}

// looked notes what the book says waits, and how many were settled in the time
// since the last look. The rate is a moving average over about a minute in
// which there was enough to settle: a chain that stands still slows it down, and
// a short halt does not stop the sales.
func (b *backlog) looked(now ledger.Backlog, done int64, took time.Duration) {
	least := min(b.depth.Swap(now.Depth), now.Depth)
	b.expiry.Store(now.Expiry)
	if took <= 0 {
		return
	}
	rate, seen := b.perSecond(), float64(done)/took.Seconds()
	// Fewer were settled than can be, if there were no more to settle.
	if idle := b.yielded.Swap(false) || float64(least) < rate*took.Seconds(); idle && seen < rate {
		return
	}
	rate += (1 - math.Exp(-took.Seconds()/60)) * (seen - rate)
	b.rate.Store(math.Float64bits(max(rate, 0.01)))
}

// drains reports whether the queue would be through in half of the time that
// its first payment, and one more that lives for so long, have left (money.md,
// "Backlog").
func (b *backlog) drains(now time.Time, left time.Duration) bool {
	if first := b.expiry.Load(); first > 0 {
		left = min(left, time.Unix(first, 0).Sub(now))
	}
	return float64(b.depth.Load())/b.perSecond() <= left.Seconds()/2
}

// jammed reports whether the calls that wait for their settlement already are
// more than are settled in half of a deadline: one more would wait in vain.
func (b *backlog) jammed(deadline time.Duration) bool {
	n := b.waiting.Load()
	return n > firstRate && float64(n)/b.perSecond() > deadline.Seconds()/2
}

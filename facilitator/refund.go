package facilitator

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// Refunds is the book of what is paid back. Each method is one transaction.
type Refunds interface {
	// SignedRefunds are those whose authorization is signed, and whose transfer is
	// in no finalized block, from the one after the given one on; oldest first.
	SignedRefunds(ctx context.Context, network string, after ledger.Refund, limit int) ([]ledger.Refund, error)
	// RefundSeen notes where the chain shows a transfer, for good if final.
	RefundSeen(ctx context.Context, paymentID string, e ledger.Evidence, final bool) error
	// RefundLost takes back what was seen in a block that is not on the chain any more.
	RefundLost(ctx context.Context, paymentID, blockHash string) error
	// RefundOver notes the proof that what was signed, valid before a moment, can
	// never be charged.
	RefundOver(ctx context.Context, paymentID string, validBefore int64, proof string) error
}

// Refunder sees refunds through that were signed: it has them settled as
// payments are, from the seller to the payer, notes where the chain shows them,
// and ends when that block is finalized. What a reorganisation takes back is
// settled again. It keeps nothing in memory that matters: a process that takes
// over does the same, and however many do, a nonce moves money once.
type Refunder struct {
	Network string
	Book    Refunds
	// Settle submits a payment that is signed, or finds out what became of it.
	Settle func(context.Context, ledger.Payment) (ledger.Outcome, error)
	Via    string // the facilitator's URL; empty: it is this process
	Chain  Witness
	// Leads says whether this process settles; nil: it does.
	Leads func() bool
	Every time.Duration // between two looks; 0: DefaultRefundEvery
	Now   func() time.Time
	Log   *slog.Logger

	once    sync.Once
	wake    chan struct{}
	last    ledger.Refund // that was looked at; zero: the next look begins with the oldest
	mu      sync.Mutex
	resting map[string]rest // by payment id: what did not get on lately
}

type rest struct {
	until time.Time
	wait  time.Duration
	why   clawr.Code
}

// How often signed refunds are looked at, how many at once, how long a look
// waits for one of them, and how long one rests at most that does not get on.
const (
	DefaultRefundEvery = 2 * time.Second
	refundsAtOnce      = 256
	refundWait         = 20 * time.Second
	refundRest         = time.Minute
)

// Run looks at once, every Every, and when it is poked, until ctx ends.
func (r *Refunder) Run(ctx context.Context) error {
	every := r.Every
	if every <= 0 {
		every = DefaultRefundEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := r.Look(ctx); err != nil && ctx.Err() == nil {
			r.log().WarnContext(ctx, "refunds cannot be read", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.poked():
		}
	}
}

func (r *Refunder) poked() chan struct{} {
	r.once.Do(func() { r.wake = make(chan struct{}, 1) })
	return r.wake
}

// Poke has Run look at once, also at what rests.
func (r *Refunder) Poke() {
	r.mu.Lock()
	r.resting = nil
	r.mu.Unlock()
	select {
	case r.poked() <- struct{}{}:
	default:
	}
}

// Look carries signed refunds on by one step: up to refundsAtOnce, all at once,
// so that one transaction can carry many. The next look is at the next ones. Run
// looks, or a caller who has no Run.
func (r *Refunder) Look(ctx context.Context) error {
	if r.Leads != nil && !r.Leads() {
		return nil
	}
	list, err := r.Book.SignedRefunds(ctx, r.Network, r.last, refundsAtOnce)
	if err != nil {
		return err
	}
	if r.last = (ledger.Refund{}); len(list) == refundsAtOnce {
		r.last = ledger.Refund{PaymentID: list[len(list)-1].PaymentID, Created: list[len(list)-1].Created}
	}
	ctx, cancel := context.WithTimeout(ctx, refundWait)
	defer cancel()
	var work sync.WaitGroup
	for i := range list {
		if r.rests(list[i].PaymentID) {
			continue
		}
		work.Go(func() {
			if err := r.carry(ctx, &list[i]); err != nil && ctx.Err() == nil && !errors.Is(err, ledger.ErrFenced) {
				r.log().WarnContext(ctx, "a refund is not known to be paid", "payment", list[i].PaymentID, "err", err)
			}
		})
	}
	work.Wait()
	return nil
}

// carry has one refund settled, and books what the chain shows of it.
func (r *Refunder) carry(ctx context.Context, f *ledger.Refund) error {
	p := ledger.Payment{ID: f.PaymentID, Scheme: x402.SchemeExact, Key: f.Key(), PayTo: f.Payment.Payer, Amount: f.Amount, ValidBefore: f.ValidBefore, Payload: f.Payload,
		Money: ledger.Signed, Facilitator: r.Via, Created: f.Created}
	t, err := transferOf(p)
	if err != nil {
		return err
	}
	if f.Tx != "" {
		if shown, err := r.seen(ctx, f, t, f.Evidence); err != nil || shown {
			return err
		}
		if err := r.Book.RefundLost(ctx, f.PaymentID, f.BlockHash); err != nil {
			return err
		}
		f.Evidence = ledger.Evidence{}
	}
	out, err := r.Settle(ctx, p)
	if err != nil { // never for what is signed
		return err
	}
	// Neither reading nor booking what the chain shows may be cut off by a time
	// that was meant for waiting.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTimeout)
	defer cancel()
	switch {
	case out.State == ledger.Settled:
		_, err := r.seen(ctx, f, t, out.Evidence)
		return err
	case out.State == ledger.NotCharged:
		r.log().WarnContext(ctx, "what was signed for a refund is over, and was not charged: it has to be signed again", "payment", f.PaymentID, "proof", out.Message)
		return r.Book.RefundOver(ctx, f.PaymentID, f.ValidBefore, out.Message)
	case out.Reason == x402.ReasonNonceUsed:
		// It was used before this book knew of it: a book that was restored.
		found, err := r.Chain.Find(ctx, t, time.Time{})
		if err != nil {
			return err
		}
		if found.Use == Paid {
			_, err := r.seen(ctx, f, t, found.Evidence)
			return err
		}
	}
	r.rest(ctx, f.PaymentID, out)
	return nil
}

// transferOf is the transfer that a payment's payload authorizes.
func transferOf(p ledger.Payment) (Transfer, error) {
	q, err := fromRow(p, nil)
	if err != nil {
		return Transfer{}, err
	}
	asset := &clawr.Asset{Network: p.Network, Address: p.Asset, Name: q.Requirements.Extra.Name, Version: q.Requirements.Extra.Version}
	a, err := readPayment(q.Payload, &q.Requirements, asset, time.Time{})
	if err != nil {
		return Transfer{}, err
	}
	return a.transfer, nil
}

// seen books where the canonical chain has the transfer that e is evidence of,
// for good if that block is finalized. It reports whether the chain has it. The
// finalized block is asked for first, so that what is read after it is not older.
func (r *Refunder) seen(ctx context.Context, f *ledger.Refund, t Transfer, e ledger.Evidence) (shown bool, err error) {
	last, err := r.Chain.Finalized(ctx)
	if err != nil {
		return false, err
	}
	receipt, err := r.Chain.Receipt(ctx, e.Tx, []Transfer{t})
	if err != nil {
		return false, err
	}
	if receipt == nil || len(receipt.Found) != 1 || receipt.Found[0].Use != Paid {
		return false, nil // reorganised away, or the node lags behind
	}
	e = receipt.Found[0].Evidence
	final := e.BlockNumber <= last.Number
	if !final && e == f.Evidence {
		return true, nil
	}
	return true, r.Book.RefundSeen(ctx, f.PaymentID, e, final)
}

// rests reports whether a refund did not get on lately, and is left alone.
func (r *Refunder) rests(id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now().Before(r.resting[id].until)
}

// rest leaves a refund alone for a while, and tells the operator why, once.
func (r *Refunder) rest(ctx context.Context, id string, out ledger.Outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resting == nil || len(r.resting) > 4*refundsAtOnce {
		r.resting = map[string]rest{}
	}
	last := r.resting[id]
	next := rest{wait: min(max(2*last.wait, time.Second), refundRest), why: out.Reason}
	next.until = r.now().Add(next.wait)
	r.resting[id] = next
	if out.Reason != last.why && out.Reason != x402.ReasonPending {
		r.log().WarnContext(ctx, "a refund is signed, and not paid yet", "payment", id, "reason", out.Reason, "message", out.Message)
	}
}

func (r *Refunder) now() time.Time {
	if r.Now != nil {
		return r.Now()
	}
	return time.Now()
}

func (r *Refunder) log() *slog.Logger {
	if r.Log != nil {
		return r.Log
	}
	return slog.Default()
}

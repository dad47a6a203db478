package facilitator

import (
	"context"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/core/types"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// The pace of a flight.
const (
	firstTurn   = 4 * time.Second // how long a transaction is waited for before it is looked after
	laterTurn   = time.Second     // the same, once there are several attempts
	firstPause  = 50 * time.Millisecond
	lastPause   = time.Second
	forsakenFor = 3 * time.Second // how long a batch is seen to that nobody waits for
	orphanCheck = 10 * time.Second
	maxAttempts = 20 // each costs an eighth more than the one before: tenfold
)

// DefaultBump is how many blocks may pass a transaction by before it offers more.
const DefaultBump = 3

// flight is a batch on its way into a block: it is broadcast, waited for,
// broadcast again, replaced by the same calls for higher fees, and booked, by
// one goroutine however many wait for it.
type flight struct {
	s     *settler
	what  x402.ChannelKind // empty: payments, or nobody here knows any more
	its   []item
	seats int // who wait for it, under s.mu

	done chan struct{} // closed when it is over
	// results, once done is closed, are those of the items, in their order. nil
	// means that the batch was given up or that somebody else booked it: the
	// book knows.
	results []ledger.ItemResult
	receipt *Receipt

	// The flight's own.
	batch   ledger.Batch // its Txs grow under s.mu
	since   time.Time    // when it began, or was last waited for
	block   int64        // the head when the newest attempt was made
	checked time.Time    // whether the nonce is somebody else's
	sent    time.Time    // local
}

// leave gives a seat back.
func (fl *flight) leave() {
	fl.s.mu.Lock()
	defer fl.s.mu.Unlock()
	fl.seats--
	fl.since = fl.s.f.now()
}

// forsaken ends a flight that nobody waits for, where nobody else sees to it.
func (fl *flight) forsaken() bool {
	s := fl.s
	if s.f.running.Load() {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fl.seats > 0 || s.f.now().Sub(fl.since) < forsakenFor {
		return false
	}
	s.remove(fl)
	return true
}

// land ends a flight.
func (fl *flight) land() {
	fl.s.mu.Lock()
	defer fl.s.mu.Unlock()
	fl.s.remove(fl)
}

// remove takes fl out, and tells who waits for it or for its room.
func (s *settler) remove(fl *flight) {
	if s.flights[fl.batch.ID] == fl {
		delete(s.flights, fl.batch.ID)
	}
	close(fl.done)
	close(s.landed)
	s.landed = make(chan struct{})
}

// tx is the newest attempt's hash.
func (fl *flight) tx() string {
	fl.s.mu.Lock()
	defer fl.s.mu.Unlock()
	return fl.batch.Txs[len(fl.batch.Txs)-1].Hash
}

func (fl *flight) fly() {
	fl.sent = time.Now()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		turn := firstTurn
		if len(fl.batch.Txs) > 1 {
			turn = laterTurn
		}
		ctx, cancel := context.WithTimeout(context.Background(), turn)
		r := fl.broadcast(ctx)
		cancel()
		if r != nil && fl.book(r) {
			return
		}
		if r == nil && fl.lookAfter() {
			return
		}
		if fl.forsaken() {
			return
		}
		time.Sleep(pause)
	}
}

// broadcast sends the newest transaction of the batch, and gives the receipt
// of whichever is in a block. Nothing that a node says meanwhile is the last
// word.
func (fl *flight) broadcast(ctx context.Context) *Receipt {
	f, ts := fl.s.f, transfers(fl.its)
	newest := len(fl.batch.Txs) - 1
	for _, tx := range fl.batch.Txs[:newest] {
		if r, err := f.Chain.Receipt(ctx, tx.Hash, ts); err == nil && r != nil {
			return r
		}
	}
	tx := fl.batch.Txs[newest]
	fl.reached("broadcast.before")
	r, err := fl.s.from.Submit(ctx, tx, ts)
	fl.reached("broadcast.after")
	if err != nil && r == nil && ctx.Err() == nil {
		fl.s.money.heard(err)
		f.log().WarnContext(ctx, "transaction not accepted", "batch", fl.batch.ID, "tx", tx.Hash, "err", err)
	}
	return r
}

// reached is at a failpoint: of every transaction's, and of those that do the
// same with a channel, such as "claim.broadcast.after".
func (fl *flight) reached(point string) {
	fl.s.f.reached(point)
	if fl.what != "" {
		fl.s.f.reached(string(fl.what) + "." + point)
	}
}

// book stores what the transaction in r did, and lands if the book has it, from
// us or from somebody else.
func (fl *flight) book(r *Receipt) bool {
	s := fl.s
	ctx, cancel := context.WithTimeout(context.Background(), bookTimeout)
	defer cancel()
	results, err := s.f.mined(ctx, &fl.batch, fl.its, r, fl.reached)
	switch {
	case errors.Is(err, ledger.ErrFenced): // somebody else booked it, or gave it up
	case err != nil:
		s.f.log().ErrorContext(ctx, "mined, but not booked", "batch", fl.batch.ID, "tx", r.Tx, "err", err)
		return false
	default:
		fl.results, fl.receipt = results, r
		s.took(time.Since(fl.sent))
	}
	fl.land()
	return true
}

// took learns how long it is to a block.
func (s *settler) took(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pace += (d - s.pace) / 4
}

// lookAfter does for a batch that is in no block what can be done. It is true
// if that was the end of it.
func (fl *flight) lookAfter() bool {
	s, f := fl.s, fl.s.f
	if s.address != fl.batch.Signer || !s.leads() {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), bookTimeout)
	defer cancel()
	if _, err := f.clock.fresh(ctx, f.Chain, f.now()); err != nil {
		return false
	}
	if now := f.now(); now.Sub(fl.checked).Abs() >= orphanCheck {
		fl.checked = now
		if fl.orphaned(ctx) {
			return true
		}
	}
	head := f.clock.number.Load()
	if fl.block == 0 || head < fl.block {
		fl.block = head
	}
	if head-fl.block >= f.bump() && len(fl.batch.Txs) < maxAttempts {
		fl.block = head
		if err := fl.outbid(ctx); err != nil {
			f.log().WarnContext(ctx, "no higher fees", "batch", fl.batch.ID, "err", err)
		}
	}
	return false
}

// outbid replaces the newest transaction by one with the same calls and higher
// fees. The book has it before anybody sees it.
func (fl *flight) outbid(ctx context.Context) error {
	s, f := fl.s, fl.s.f
	f.reached("bump.before")
	tx, err := s.from.Replace(ctx, fl.batch.Txs[len(fl.batch.Txs)-1])
	if err != nil {
		return err
	}
	if err := f.Ends.AddTx(ctx, fl.batch.ID, tx); err != nil {
		fl.reload(ctx) // somebody else may have been faster
		return err
	}
	f.reached("bump.after")
	f.log().InfoContext(ctx, "higher fees for a transaction that blocks pass by", "batch", fl.batch.ID, "attempt", tx.Attempt, "tx", tx.Hash, "max_fee", tx.MaxFee)
	s.mu.Lock()
	defer s.mu.Unlock()
	fl.batch.Txs = append(fl.batch.Txs[:len(fl.batch.Txs):len(fl.batch.Txs)], tx)
	return nil
}

// reload reads the attempts that others made.
func (fl *flight) reload(ctx context.Context) {
	open, err := fl.s.f.Book.OpenBatches(ctx, fl.batch.Network, fl.batch.Signer)
	if err != nil {
		return
	}
	for _, b := range open {
		if b.ID == fl.batch.ID {
			fl.s.mu.Lock()
			fl.batch.Txs = b.Txs
			fl.s.mu.Unlock()
		}
	}
}

// orphaned gives the batch up if none of its transactions can ever be mined: a
// finalized block has used its nonce, and none of them is in a block. Its
// settlements may go into another batch, and if that is wrong all the same,
// the token takes an authorization once.
func (fl *flight) orphaned(ctx context.Context) bool {
	s, f := fl.s, fl.s.f
	next, err := s.from.FinalNonce(ctx)
	if err != nil || next <= fl.batch.Nonce {
		return false
	}
	fl.reload(ctx)
	for _, tx := range fl.batch.Txs {
		if r, err := f.Chain.Receipt(ctx, tx.Hash, nil); err != nil || r != nil {
			return false
		}
	}
	if err := f.Ends.OrphanBatch(ctx, fl.batch.ID); err != nil && !errors.Is(err, ledger.ErrFenced) {
		f.log().ErrorContext(ctx, "orphaned, but not booked", "batch", fl.batch.ID, "err", err)
		return false
	}
	f.log().ErrorContext(ctx, "the signer's nonce was used by a transaction that is not ours: see who else has the key",
		"batch", fl.batch.ID, "signer", fl.batch.Signer, "nonce", fl.batch.Nonce)
	fl.land()
	return true
}

// exhausted reports whether the transaction in r used up nearly all its gas, so
// that what it did not pay may not be to blame for that.
func (fl *flight) exhausted(r *Receipt) bool {
	for _, tx := range fl.batch.Txs {
		if tx.Hash != r.Tx {
			continue
		}
		t := new(types.Transaction)
		return t.UnmarshalBinary(tx.Raw) == nil && r.GasUsed > t.Gas()-t.Gas()/16
	}
	return false
}

func (f *Facilitator) bump() int64 {
	if f.Bump > 0 {
		return f.Bump
	}
	return DefaultBump
}

package facilitator

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// The defaults of batches.
const (
	DefaultBatch = 200 // payments of one transaction
	// batchGas bounds a transaction: EIP-7825 ends at 2^24.
	batchGas = 16_500_000
)

// settler signs and sends for one account. Whenever payments wait and it has
// room for a transaction one goroutine of its own builds batches; each batch
// then has one that sees it into a block, however many wait for it.
//
// How long a payment waits for others to share its transaction depends on
// what is under way. With nothing under way it waits for nothing. While a
// transaction waits for its block, a few more gather; and when no more
// transactions may wait for a block, all do.
type settler struct {
	f       *Facilitator
	from    Sender
	address string // as the book names it
	nonces  nonces
	money   money

	mu       sync.Mutex
	flights  map[string]*flight // by batch: what is in no block yet
	landed   chan struct{}      // closed when one of them comes to its end
	building bool
	pace     time.Duration // from the signature to the block, lately
	multi    bool          // the chain has Multicall3
	asked    bool          // whether it has
}

// settlers are those of all accounts, Chain's own first.
func (f *Facilitator) settlers() []*settler {
	f.once.Do(func() {
		for _, s := range append([]Sender{f.Chain}, f.Signers...) {
			f.all = append(f.all, &settler{f: f, from: s, address: strings.ToLower(s.Signer().Hex()),
				flights: make(map[string]*flight), landed: make(chan struct{})})
		}
	})
	return f.all
}

// settlerOf is the settler of an account, nil if its key is not here.
func (f *Facilitator) settlerOf(address string) *settler {
	for _, s := range f.settlers() {
		if s.address == address {
			return s
		}
	}
	return nil
}

// leads reports whether this process may sign for the account now.
func (s *settler) leads() bool { return s.f.Leads == nil || s.f.Leads(s.address) }

// order has the payment carried by some batch, and waits for that until ctx
// ends. From the signature on it waits for the book.
func (f *Facilitator) order(ctx context.Context, o *order) orderEnd {
	if len(f.able()) == 0 {
		return orderEnd{err: down("another process settles with this signer", nil)}
	}
	f.intake.put(o)
	f.wake()
	select {
	case <-o.done:
	case <-ctx.Done():
		if f.intake.withdraw(o) {
			return orderEnd{err: down("the payment's turn did not come in time", ctx.Err())}
		}
		<-o.done
	}
	return o.end
}

// Waiting is the number of payments that no transaction carries yet: how far
// settlement is behind.
func (f *Facilitator) Waiting() int { return f.intake.waiting() }

// wake has one more settler build batches, unless one that has room does it:
// each builds as long as payments wait.
func (f *Facilitator) wake() {
	var idle *settler
	all, turn := f.able(), int(f.turn.Add(1))
	for i := range all {
		s := all[(turn+i)%len(all)]
		s.mu.Lock()
		building, room := s.building, len(s.flights) < f.inFlight()
		s.mu.Unlock()
		switch {
		case building && room && f.intake.waiting() <= f.batch():
			return // it comes back for them
		case !building && (idle == nil || room):
			idle = s
		}
	}
	if idle != nil {
		idle.start()
	}
}

// able are the settlers that may sign and have money; if none has any, those
// that may sign, so that somebody says so.
func (f *Facilitator) able() (out []*settler) {
	var poor []*settler
	for _, s := range f.settlers() {
		switch {
		case !s.leads():
		case s.money.short():
			poor = append(poor, s)
		default:
			out = append(out, s)
		}
	}
	if len(out) == 0 {
		return poor
	}
	return out
}

func (s *settler) start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.building {
		s.building = true
		go s.build()
	}
}

// rest ends the building if nothing waits.
func (s *settler) rest() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f.intake.waiting() > 0 {
		return false
	}
	s.building = false
	return true
}

// build makes batches as long as payments wait.
func (s *settler) build() {
	for !s.rest() {
		if !s.room() {
			continue
		}
		s.gather()
		most := s.f.batch()
		ctx, cancel := context.WithTimeout(context.Background(), preflightTime)
		if !s.together(ctx) {
			most = 1
		}
		if orders := s.f.intake.take(most); len(orders) > 0 {
			s.settle(ctx, orders)
		}
		cancel()
	}
}

// preflightTime bounds all that is asked of the chain before a signature.
const preflightTime = 20 * time.Second

// room waits a while for there to be room for one more transaction.
func (s *settler) room() bool {
	s.mu.Lock()
	full, landed := len(s.flights) >= s.f.inFlight(), s.landed
	s.mu.Unlock()
	if !full {
		return true
	}
	select {
	case <-landed:
	case <-time.After(time.Second): // perhaps nobody waits any more
	}
	return false
}

// gather waits for others to share the next transaction, while an earlier one
// waits for its block: an eighth of the time that this takes, so that little is
// lost if the block comes later than the next payment.
func (s *settler) gather() {
	s.mu.Lock()
	busy, landed, wait := len(s.flights) > 0, s.landed, min(s.pace/8, longestGather)
	s.mu.Unlock()
	for end := time.Now().Add(wait); busy && s.f.intake.waiting() < s.f.batch(); {
		left := time.Until(end)
		if left <= 0 {
			return
		}
		select {
		case <-landed:
			return
		case <-time.After(min(left, 10*time.Millisecond)):
		}
	}
}

// longestGather is for chains that stand still.
const longestGather = 500 * time.Millisecond

// together reports whether one transaction may carry many payments here.
func (s *settler) together(ctx context.Context) bool {
	s.mu.Lock()
	multi, asked := s.multi, s.asked
	s.mu.Unlock()
	if asked {
		return multi
	}
	multi, err := s.from.Batches(ctx)
	if err != nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.multi, s.asked = multi, true
	return multi
}

// settle brings orders into batches, as far as the chain would take them.
func (s *settler) settle(ctx context.Context, orders []*order) {
	f := s.f
	if err := s.money.check(ctx, s); err != nil {
		if able := f.able(); len(able) == 0 || able[0].money.short() {
			fail(orders, err)
		} else { // it is others' work
			f.intake.putBack(orders)
			able[0].start()
			time.Sleep(20 * time.Millisecond)
		}
		return
	}
	f.reached("preflight")
	ready := s.preflight(ctx, orders)
	ready, rest := s.fitting(ready)
	f.intake.putBack(rest)
	var its []*order
	for _, o := range ready {
		if o.stage.CompareAndSwap(taken, signing) {
			its = append(its, o)
		}
	}
	if len(its) > 0 {
		f.reached("batch.after")
		s.carry(ctx, its)
	}
}

// fitting is the orders that fit into the gas of one transaction, and the rest.
func (s *settler) fitting(orders []*order) (in, rest []*order) {
	for i := range orders {
		if i > 0 && gasOf(orders[:i+1]) > batchGas {
			return orders[:i], orders[i:]
		}
	}
	return orders, nil
}

// What a payment costs in a batch beside its own simulation: its calldata, the
// loop around it, and the slots that the simulation had read before.
const (
	gasOfItem  = 14_000
	gasOfBatch = 50_000
)

// gasOf is the most gas that a transaction of orders may take: a fifth more
// than all of them together. A single payment has the whole limit, as anybody's
// transaction would.
func gasOf(orders []*order) uint64 {
	if len(orders) == 1 {
		return orders[0].limit
	}
	sum := uint64(gasOfBatch)
	for _, o := range orders {
		sum += o.probed() + gasOfItem
	}
	return sum + sum/5
}

// carry puts orders into a batch that the book has, and sends it on its way. If
// the book refuses one of them it refuses all: so each half is tried by itself.
func (s *settler) carry(ctx context.Context, orders []*order) {
	its := make([]item, len(orders))
	for i, o := range orders {
		its[i] = o.item
	}
	b, err := s.sign(ctx, nil, its, func(nonce int64) (ledger.Tx, string, error) {
		return s.from.Sign(ctx, nonce, gasOf(orders), transfers(its))
	})
	switch {
	case err == nil:
		fl := s.launch(b, its, len(orders), "")
		for _, o := range orders {
			o.finish(orderEnd{flight: fl})
		}
	case isUnsigned(err):
		fail(orders, err)
	case len(orders) > 1 && isRefused(err):
		half := len(orders) / 2
		s.carry(ctx, orders[:half])
		s.carry(ctx, orders[half:])
	default:
		for _, o := range orders {
			o.finish(orderEnd{doubt: err})
		}
	}
}

// fail ends orders that nothing was signed for.
func fail(orders []*order, err error) {
	for _, o := range orders {
		if s := o.stage.Load(); s == signing || s == taken && o.stage.CompareAndSwap(taken, signing) {
			o.finish(orderEnd{err: err})
		}
	}
}

// launch sends a batch on its way, with seats for those who wait for it.
func (s *settler) launch(b ledger.Batch, its []item, seats int, what x402.ChannelKind) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(b, its, seats, what)
}

func (s *settler) add(b ledger.Batch, its []item, seats int, what x402.ChannelKind) *flight {
	fl := &flight{s: s, what: what, batch: b, its: its, seats: seats, done: make(chan struct{}), since: s.f.now(), block: s.f.clock.number.Load()}
	s.flights[b.ID] = fl
	go fl.fly()
	return fl
}

// board gives a seat in the flight of a batch that the book has, whoever
// signed it. The items are only asked for if nobody else is at it.
func (f *Facilitator) board(ctx context.Context, b *ledger.Batch) (*flight, error) {
	s := f.settlerOf(b.Signer)
	if s == nil {
		s = f.settlers()[0] // without the key it can still be sent
	}
	if fl := s.seat(b.ID); fl != nil {
		return fl, nil
	}
	its, err := f.items(ctx, b.ID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if fl := s.flights[b.ID]; fl != nil {
		fl.seats++
		return fl, nil
	}
	return s.add(*b, its, 1, ""), nil
}

// seat gives a seat in a flight, nil if there is no such flight.
func (s *settler) seat(batchID string) *flight {
	s.mu.Lock()
	defer s.mu.Unlock()
	fl := s.flights[batchID]
	if fl != nil {
		fl.seats++
	}
	return fl
}

// items are the settlements of a batch, with what their payers signed.
func (f *Facilitator) items(ctx context.Context, batchID string) ([]item, error) {
	list, err := f.Ends.Settlements(ctx, batchID)
	if err != nil {
		return nil, err
	}
	its := make([]item, 0, len(list))
	for _, s := range list {
		a, err := f.readSettlement(&s)
		if err != nil {
			return nil, err
		}
		its = append(its, item{Settlement: s, transfer: a.transfer})
	}
	return its, nil
}

func (f *Facilitator) inFlight() int {
	if f.InFlight > 0 {
		return f.InFlight
	}
	return DefaultInFlight
}

func (f *Facilitator) batch() int {
	if f.Batch > 0 {
		return min(f.Batch, maxBatch)
	}
	return DefaultBatch
}

// maxBatch is the book's own bound.
const maxBatch = 500

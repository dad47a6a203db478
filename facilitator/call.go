package facilitator

import (
	"context"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// Channels is the part of a node that knows payment channels. An account that
// has it can settle the scheme batch-settlement.
type Channels interface {
	// ChannelStates reads channels at the head, in one round trip.
	ChannelStates(ctx context.Context, ids ...common.Hash) ([]ChannelState, error)
	// Claimed is what was ever claimed for a receiver, and what of it was sent.
	Claimed(ctx context.Context, receiver, token common.Address) (claimed, settled int64, err error)
	// Foretell carries what p asks for out at the head, without a transaction.
	// It gives the gas that a transaction needs, or in what words the chain
	// refuses.
	Foretell(ctx context.Context, p *x402.ChannelPayload) (gas uint64, refusal string, err error)
	// SignChannel makes the transaction number nonce that does what p asks for.
	SignChannel(ctx context.Context, nonce int64, gas uint64, p *x402.ChannelPayload) (tx ledger.Tx, calldataSHA256 string, err error)
}

// ChannelState is what the chain says of a channel, in atomic units.
type ChannelState struct {
	Balance      int64
	TotalClaimed int64
	Withdrawal   int64 // that has begun; 0: none
	WithdrawAt   int64 // unix seconds at which it began
	RefundNonce  uint64
}

// calls is a settler that can settle channels, nil if no account can.
func (f *Facilitator) calls() (*settler, Channels) {
	for _, s := range f.able() {
		if c, ok := s.from.(Channels); ok {
			return s, c
		}
	}
	return nil, nil
}

// channels reads channels, whoever may settle them; nil if nobody knows them.
func (f *Facilitator) channels() Channels {
	for _, s := range f.settlers() {
		if c, ok := s.from.(Channels); ok {
			return c
		}
	}
	return nil
}

// errRefused is the chain's refusal of what a channel was asked to do.
type errRefused struct{ words string }

func (e *errRefused) Error() string { return e.words }

// call does what ch asks for by one transaction of its own, which the book has
// before anybody sees it, and waits for its block until ctx ends. receipt is nil
// if there is none yet: then tx may be mined at any time. The error of one that
// was never signed is errRefused, or says that nobody could be asked. The book
// has notes from the signature on.
func (f *Facilitator) call(ctx context.Context, ch *channel, notes ...item) (receipt *Receipt, tx string, err error) {
	p, most := ch.ChannelPayload, limitOf(ch.ChannelPayload)
	if fl, err := f.underWay(ctx, p); err != nil {
		return nil, "", down("the book does not answer", err)
	} else if fl != nil {
		return f.through(ctx, fl)
	}
	s, c := f.calls()
	if s == nil {
		return nil, "", down("nobody settles channels here just now", nil)
	}
	if err := s.money.check(ctx, s); err != nil {
		return nil, "", err
	}
	gas, refusal, err := c.Foretell(ctx, p)
	switch {
	case err != nil:
		return nil, "", down("the chain cannot be asked just now", err)
	case refusal != "":
		return nil, "", &errRefused{refusal}
	case gas > most:
		return nil, "", &errRefused{"it would take too much gas"}
	}
	f.reached("preflight")
	f.reached(string(p.Kind) + ".build")
	b, err := s.sign(ctx, ch.hold, notes, func(nonce int64) (ledger.Tx, string, error) {
		return c.SignChannel(ctx, nonce, min(gas+gas/5, most), p)
	})
	if err != nil {
		if isUnsigned(err) {
			return nil, "", err
		}
		f.nextNonce(s)
		f.log().WarnContext(ctx, "nobody knows whether a transaction is in the book", "batch", b.ID, "err", err)
		return nil, b.Txs[0].Hash, nil
	}
	f.reached(string(p.Kind) + ".signed")
	return f.through(ctx, s.launch(b, nil, 1, p.Kind))
}

// underWay is the flight of a transaction that does the same as p, and was
// signed before: perhaps by a process that did not see it into a block. A second
// one would be reverted, and that would be said of the first. Whatever is sent
// to a receiver is asked for anew, because more may have been claimed.
func (f *Facilitator) underWay(ctx context.Context, p *x402.ChannelPayload) (*flight, error) {
	if p.Kind == x402.ChannelSettle {
		return nil, nil
	}
	for _, s := range f.settlers() { // whoever leads them now
		c, ok := s.from.(Channels)
		if !ok {
			continue
		}
		open, err := f.Book.OpenBatches(ctx, f.Network, s.address)
		if err != nil {
			return nil, err
		}
		if len(open) == 0 {
			continue
		}
		_, calldata, err := c.SignChannel(ctx, open[0].Nonce, limitOf(p), p) // nobody sees it
		if err != nil {
			return nil, err
		}
		for i := range open {
			if open[i].CalldataSHA256 == calldata {
				return f.board(ctx, &open[i])
			}
		}
	}
	return nil, nil
}

// Moving reports whether a transaction that names a channel is signed and in no
// block yet, whoever signed it and whatever it does.
func (f *Facilitator) Moving(ctx context.Context, c x402.ChannelConfig) (bool, error) {
	for _, s := range f.settlers() {
		open, err := f.Book.OpenBatches(ctx, f.Network, s.address)
		if err != nil {
			return false, down("the book does not answer", err)
		}
		for i := range open {
			if len(open[i].Txs) > 0 && c.NamedIn(open[i].Txs[0].Raw) { // the others make the same call
				return true, nil
			}
		}
	}
	return false, nil
}

// through waits for a flight until ctx ends, and gives its seat back.
func (f *Facilitator) through(ctx context.Context, fl *flight) (receipt *Receipt, tx string, err error) {
	defer fl.leave()
	select {
	case <-fl.done:
		if fl.receipt == nil { // somebody else booked it, or it was given up
			r, err := f.Chain.Receipt(ctx, fl.tx(), nil)
			return r, fl.tx(), err
		}
		return fl.receipt, fl.receipt.Tx, nil
	case <-ctx.Done():
		return nil, fl.tx(), nil
	}
}

// nextNonce has the next signature ask which nonce is free.
func (f *Facilitator) nextNonce(s *settler) {
	s.nonces.mu.Lock()
	defer s.nonces.mu.Unlock()
	s.nonces.known = false
}

// The most gas that the transactions of channels may take.
const (
	depositGas     = 400_000
	refundGas      = 500_000
	settleGas      = 200_000
	claimGas       = 60_000
	claimGasEach   = 45_000
	channelTimeout = 30 * time.Second
)

// limitOf is the most gas that p may take. A token may ask for more than any
// real one needs.
func limitOf(p *x402.ChannelPayload) uint64 {
	switch p.Kind {
	case x402.ChannelDeposit:
		return depositGas
	case x402.ChannelRefund:
		return refundGas + claimGasEach*uint64(len(p.Claims))
	case x402.ChannelSettle:
		return settleGas
	}
	return min(claimGas+claimGasEach*uint64(len(p.Claims)), batchGas)
}

// refusedBy is what the chain refused, as the scheme names it.
func refusedBy(err error, reason clawr.Code) (*clawr.Error, bool) {
	e, ok := errors.AsType[*errRefused](err)
	if !ok {
		return nil, false
	}
	return refuse(reason, "the chain would not take it: "+e.words), true
}

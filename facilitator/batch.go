package facilitator

import (
	"context"
	"errors"
	"sync"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// preflight is the last look before a signature, at many payments at once: the
// window by the clock and by the chain, and the transfers as the chain would
// carry them out now, one after the other. It gives those that may be signed;
// the others have come to their end, or wait for a transaction of their own.
func (s *settler) preflight(ctx context.Context, orders []*order) (ready []*order) {
	f := s.f
	now, err := f.clock.fresh(ctx, f.Chain, f.now())
	if err != nil {
		fail(orders, down("the chain cannot be asked just now", err))
		return nil
	}
	var open []*order
	for _, o := range orders {
		if e, ok := refusal(o.a.window(now)); ok {
			o.refuse(e)
		} else {
			open = append(open, o)
		}
	}
	return s.probe(ctx, open)
}

// probe asks the chain about orders. If it cannot be asked about all of them
// together, each half is tried by itself: one payment that a node stumbles over
// must not hold up the others.
func (s *settler) probe(ctx context.Context, orders []*order) (ready []*order) {
	f := s.f
	if len(orders) == 0 {
		return nil
	}
	ts := make([]Transfer, len(orders))
	for i, o := range orders {
		ts[i] = o.transfer
	}
	probes, err := f.Chain.ProbeAll(ctx, ts, f.gas(len(orders) == 1 && orders[0].a.foreign))
	if err == nil && len(probes) != len(ts) {
		err = errors.New("the chain was asked about some payments, and answered about others")
	}
	switch {
	case err != nil && len(orders) > 1 && clawr.CodeOf(err) != clawr.CodeUnreachable && ctx.Err() == nil:
		half := len(orders) / 2
		return append(s.probe(ctx, orders[:half]), s.probe(ctx, orders[half:])...)
	case err != nil:
		fail(orders, down("the chain cannot be asked just now", err))
		return nil
	}
	verdicts := f.weigh(ctx, orders, probes)
	var alone []*order
	for i, o := range orders {
		e, no := refusal(verdicts[i])
		switch {
		case no:
			o.refuse(e)
		case verdicts[i] != nil:
			fail([]*order{o}, verdicts[i])
		case probes[i].Contract && len(orders) > 1:
			// A contract can do what it likes with the gas of a batch.
			o.most = 1
			alone = append(alone, o)
		default:
			o.limit, o.gas = f.gas(probes[i].Contract || o.a.foreign), probes[i].Gas
			ready = append(ready, o)
		}
	}
	f.intake.putBack(alone)
	return ready
}

// weigh gives what each probe holds against its payment: a refusal, the error
// of a node that is silent, or nil.
func (f *Facilitator) weigh(ctx context.Context, orders []*order, probes []Probe) []error {
	verdicts := make([]error, len(orders))
	var asking sync.WaitGroup
	room := make(chan struct{}, DefaultInFlight)
	for i, o := range orders {
		p := probes[i]
		switch {
		case clawr.CodeOf(p.Err) == clawr.CodeNoContract:
			verdicts[i] = refuse(x402.ReasonNoContract, "there is no EIP-3009 token at the asset's address")
		case p.Err != nil:
			verdicts[i] = down("the chain cannot be asked just now", p.Err)
		case p.Contract: // it has to be asked
			room <- struct{}{}
			asking.Go(func() {
				defer func() { <-room }()
				verdicts[i] = f.weighOne(ctx, o.a, p)
			})
		default:
			verdicts[i] = f.weighOne(ctx, o.a, p)
		}
	}
	asking.Wait()
	return verdicts
}

func (f *Facilitator) weighOne(ctx context.Context, a *payment, p Probe) error {
	if err := f.signature(ctx, a, p); err != nil {
		return err
	}
	switch {
	case p.Used:
		return errConsumed
	case p.Refusal != "":
		return refuse(p.Refusal, p.Message)
	}
	return nil
}

// refuse ends an order that the chain would not take.
func (o *order) refuse(e *clawr.Error) {
	if o.stage.CompareAndSwap(taken, signing) {
		o.finish(orderEnd{refused: e})
	}
}

// probed is the gas that o takes in a batch: all that it may, if no node said.
func (o *order) probed() uint64 {
	if o.gas == 0 {
		return o.limit
	}
	return min(o.gas, o.limit)
}

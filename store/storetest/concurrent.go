package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
)

// atOnce runs n copies of fn together and waits for them.
func atOnce(n int, fn func(i int)) {
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		wg.Go(func() {
			<-start
			fn(i)
		})
	}
	close(start)
	wg.Wait()
}

// oneOfManyPresentations presents one authorization 32 times at once, half of
// them for another request.
func oneOfManyPresentations(f *fixture) {
	first := f.payment()
	var won, conflicts atomic.Int64
	atOnce(32, func(i int) {
		p := first
		p.ID = fmt.Sprintf("pay_%016x", 1000+i)
		if i%2 == 0 {
			p.Fingerprint = hash("another request", i)
		}
		_, err := f.Reserve(f.ctx(), p, "node", lease)
		switch {
		case err == nil:
			won.Add(1)
		case conflict(err) != nil && conflict(err).Key == first.Key:
			conflicts.Add(1)
		default:
			f.Errorf("presentation %d: %v", i, err)
		}
	})
	if won.Load() != 1 || conflicts.Load() != 31 {
		f.Errorf("%d of 32 concurrent presentations of one authorization were accepted and %d conflicted, want 1 and 31", won.Load(), conflicts.Load())
	}
	if list, err := f.Payments(f.ctx(), store.PaymentFilter{}); err != nil || len(list) != 1 {
		f.Errorf("%d rows, %v", len(list), err)
	}
}

// twoTenantsOnePayTo presents one authorization to two tenants that are paid
// to one address: only one of them may sell for it.
func twoTenantsOnePayTo(f *fixture) {
	one := f.deploy()
	two, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "other", Manifest: manifest()}, "bob")
	f.ok(err)
	var sold atomic.Int64
	first := f.payment()
	atOnce(16, func(i int) {
		p := first
		p.ID, p.TenantID = fmt.Sprintf("pay_%016x", 1000+i), one.ID
		if i%2 == 1 {
			p.TenantID = two.ID
		}
		if _, err := f.Reserve(f.ctx(), p, "node", lease); err == nil {
			sold.Add(1)
		} else if conflict(err) == nil {
			f.Error(err)
		}
	})
	if sold.Load() != 1 {
		f.Errorf("%d sales for one authorization", sold.Load())
	}
}

// capsHold has many callers spend from shared caps, give some of it back, and
// checks that the caps were never passed and that the sums are right.
func capsHold(f *fixture) {
	const callers, each, limit = 12, 8, 30
	caps := func(i int) []ledger.Counter { // in an order of its own each: deadlocks must not happen, or be retried
		a := ledger.Counter{Scope: "a", Window: 1, Cost: 1, Cap: limit, Code: clawr.CodeCapExceeded}
		b := ledger.Counter{Scope: "b", Window: 1, Cost: 2, Cap: 2 * limit, Code: clawr.CodeCapExceeded}
		if i%2 == 0 {
			return []ledger.Counter{a, b}
		}
		return []ledger.Counter{b, a}
	}
	var held, taken atomic.Int64
	f.deploy()
	var serial sync.Mutex
	next := func() ledger.Payment {
		serial.Lock()
		defer serial.Unlock()
		return f.payment()
	}
	atOnce(callers, func(i int) {
		for j := range each {
			p := next()
			p.Counters = caps(i)
			p, err := f.Reserve(f.ctx(), p, "node", lease)
			if _, full := errors.AsType[*ledger.Exceeded](err); full {
				continue
			}
			if err != nil {
				f.Error(err)
				return
			}
			for _, c := range p.Counters {
				if c.Used > c.Cap {
					f.Errorf("%s: %d used of %d", c.Scope, c.Used, c.Cap)
				}
			}
			held.Add(1)
			if (i+j)%3 == 0 {
				if err := f.Release(f.ctx(), p.ID, 1, clawr.CodeWorkerFailure, usage.Event{}); err != nil {
					f.Error(err)
				}
				held.Add(-1)
			}
		}
	})
	atOnce(callers, func(i int) {
		_, err := f.Take(f.ctx(), caps(i))
		if _, full := errors.AsType[*ledger.Exceeded](err); err == nil {
			taken.Add(1)
		} else if !full {
			f.Error(err)
		}
	})
	list, err := f.Counters(f.ctx(), "a", "b")
	f.ok(err)
	want := held.Load() + taken.Load()
	if len(list) != 2 || list[0].Used != want || list[1].Used != 2*want || want > limit {
		f.Errorf("%d held and %d taken of %d, counted as %+v", held.Load(), taken.Load(), limit, list)
	}
	if want != limit {
		f.Errorf("only %d of %d could be used", want, limit)
	}
}

// whoeverIsFirst lets moves of which only one may win meet each other.
func whoeverIsFirst(f *fixture) {
	for range 8 {
		p := f.answered()
		b := f.batch(f.settlement(p.Key))
		errs := make([]error, 3)
		atOnce(3, func(i int) {
			switch i {
			case 0:
				errs[i] = f.Release(f.ctx(), p.ID, 1, clawr.CodeSettlementFailed, event(p))
			case 1:
				errs[i] = f.Submit(f.ctx(), p.ID, 1, "https://facilitator.example.com")
			case 2:
				errs[i] = f.Sign(f.ctx(), b)
			}
		})
		released, submitted, signed := errs[0] == nil, errs[1] == nil, errs[2] == nil
		p = f.reload(p)
		// A batch may carry what was submitted already, not the other way round.
		if released == (submitted || signed) || released != (p.Money == ledger.Released) || released && p.BatchID != "" {
			f.Fatalf("I4: released %v, submitted %v, signed %v, and the payment is %s in batch %q", errs[0], errs[1], errs[2], p.Money, p.BatchID)
		}
	}
	for range 8 {
		p := f.reserved()
		f.ok(f.Renew(f.ctx(), p.ID, 1, expired))
		var done, taken atomic.Int64
		atOnce(4, func(i int) {
			if i%2 == 0 {
				if f.Done(f.ctx(), p.ID, 1, answer(), event(p)) == nil {
					done.Add(1)
				}
			} else if _, err := f.TakeOver(f.ctx(), p.ID, 1, "node-2", lease); err == nil {
				taken.Add(1)
			}
		})
		if done.Load()+taken.Load() != 1 {
			f.Fatalf("%d answers and %d take-overs of one epoch", done.Load(), taken.Load())
		}
	}
}

// soldOrSettledElsewhere lets a reservation meet the facilitator that signs the
// same authorization for another server: one of them must see the other.
func soldOrSettledElsewhere(f *fixture) {
	for range 12 {
		p := f.payment()
		b := f.batch(f.settlement(p.Key))
		var reserved, signed error
		atOnce(2, func(i int) {
			if i == 0 {
				_, reserved = f.Reserve(f.ctx(), p, "node", lease)
			} else {
				signed = f.Sign(f.ctx(), b)
			}
		})
		if (reserved == nil) == (signed == nil) {
			f.Fatalf("reserved: %v; signed for another server: %v; want one of them", reserved, signed)
		}
	}
}

// callersLeave cancels contexts while their writes are queued or running: the
// writes of others must not suffer, and what was acknowledged must be there.
func callersLeave(f *fixture) {
	f.deploy()
	payments := make([]ledger.Payment, 64)
	for i := range payments {
		payments[i] = f.payment()
	}
	errs := make([]error, len(payments))
	atOnce(len(payments), func(i int) {
		ctx, cancel := context.WithCancel(f.ctx())
		defer cancel()
		if i%2 == 0 {
			go cancel()
		}
		_, errs[i] = f.Reserve(ctx, payments[i], "node", lease)
	})
	for i, p := range payments {
		row, err := f.Find(f.ctx(), p.Key)
		f.ok(err)
		switch {
		case errs[i] == nil && row == nil:
			f.Errorf("payment %d was acknowledged and is not there", i)
		case errs[i] != nil && i%2 == 1:
			f.Errorf("payment %d failed because of others: %v", i, errs[i])
		case errs[i] != nil && !errors.Is(errs[i], context.Canceled):
			f.Errorf("payment %d: %v", i, errs[i])
		case errs[i] != nil && row != nil:
			f.Errorf("payment %d was reported cancelled and is there", i)
		}
	}
}

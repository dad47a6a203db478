package facilitator_test

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/402claw/clawr/facilitator"
)

// asked counts how often the book is asked.
type asked struct {
	facilitator.Holds
	n atomic.Int64
}

func (a *asked) Held(ctx context.Context, network, asset, payer string) (int64, error) {
	a.n.Add(1)
	return a.Holds.Held(ctx, network, asset, payer)
}

// What a payer has promised is read once in a second, as long as there is room
// beside all that was verified meanwhile. Without room it is read at once.
func TestPromisesAreNotReadForEachPayment(t *testing.T) {
	w := newWorld(t)
	w.payer = w.key()
	w.fund(w.payer, 100_000) // for 100 payments
	w.mirrored()
	book := &asked{Holds: w.db}
	w.fac.Holds = book
	for range 90 {
		w.verify(w.payment(), true)
	}
	if n := book.n.Load(); n != 1 {
		t.Errorf("the book was asked %d times for 90 payments", n)
	}
	for range 60 { // nothing of it was reserved: the book says that there is room
		w.verify(w.payment(), true)
	}
	if n := book.n.Load(); n != 2 {
		t.Errorf("the book was asked %d times, want once more", n)
	}
	w.ahead.Add(2)
	w.look(w.watcher())
	before := book.n.Load()
	w.verify(w.payment(), true)
	if book.n.Load() == before {
		t.Error("what the book said two seconds ago was believed")
	}
}

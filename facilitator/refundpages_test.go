package facilitator

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr/ledger"
)

// stuck is a book of signed refunds that never get on.
type stuck struct {
	Refunds
	list []ledger.Refund
}

func (s stuck) SignedRefunds(_ context.Context, _ string, after ledger.Refund, limit int) ([]ledger.Refund, error) {
	i, found := slices.BinarySearchFunc(s.list, after, func(a, b ledger.Refund) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.PaymentID, b.PaymentID))
	})
	if found {
		i++
	}
	return slices.Clone(s.list[i:min(i+limit, len(s.list))]), nil
}

// As many refunds as a look takes, none of which can be paid, keep no younger
// one waiting; and after the youngest the oldest have their turn again.
func TestRefundsThatCannotBePaidKeepNoOtherWaiting(t *testing.T) {
	var book stuck
	for i := range 2*refundsAtOnce + 88 {
		book.list = append(book.list, ledger.Refund{PaymentID: fmt.Sprintf("pay_%04d", i), Created: time.Unix(int64(i/3), 0)})
	}
	var mu sync.Mutex
	asked := map[string]int{}
	log := slog.New(noting(func(r slog.Record) {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "payment" {
				mu.Lock()
				asked[a.Value.String()]++
				mu.Unlock()
			}
			return true
		})
	}))
	r := &Refunder{Book: book, Log: log}
	for look := range 6 {
		if err := r.Look(t.Context()); err != nil {
			t.Fatal(err)
		}
		if look%3 < 2 {
			continue
		}
		for _, f := range book.list {
			if n := asked[f.PaymentID]; n != look/3+1 {
				t.Fatalf("after %d looks at %d refunds %s was carried on %d times", look+1, len(book.list), f.PaymentID, n)
			}
		}
	}
}

// noting is a handler that gives records away.
type noting func(slog.Record)

func (noting) Enabled(context.Context, slog.Level) bool        { return true }
func (n noting) Handle(_ context.Context, r slog.Record) error { n(r); return nil }
func (n noting) WithAttrs([]slog.Attr) slog.Handler            { return n }
func (n noting) WithGroup(string) slog.Handler                 { return n }

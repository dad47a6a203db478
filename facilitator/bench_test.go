package facilitator_test

import (
	"testing"

	"github.com/402claw/clawr/ledger"
)

// The chain runs in the same process, and the book syncs every commit to disk.

func BenchmarkVerify(b *testing.B) {
	w := newWorld(b)
	p, terms := w.payment(), w.terms()
	b.ReportAllocs()
	for b.Loop() {
		if v, err := w.fac.Verify(b.Context(), p, terms); err != nil || !v.IsValid {
			b.Fatal(v, err)
		}
	}
}

func BenchmarkSettle(b *testing.B) {
	w := newWorld(b)
	w.fund(w.payer, 1e12)
	b.ReportAllocs()
	for b.Loop() {
		out, err := w.fac.SettleFor(b.Context(), request(w.payment()))
		if err != nil || out.State != ledger.Settled {
			b.Fatal(out, err)
		}
	}
}

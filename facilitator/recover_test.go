package facilitator_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain/devchain"
	"github.com/402claw/clawr/ledger"
)

func newWorldLikeBaseSepolia(t testing.TB) *world {
	return newWorldWith(t, devchain.Options{LikeBaseSepolia: true})
}

func devchainOptions(block time.Duration) devchain.Options { return devchain.Options{BlockTime: block} }

func contextWithCancel(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

// die has the process end at a failpoint: nothing after it happens, and a new
// process opens the book.
func (w *world) die(point string, row ledger.Payment) {
	w.Helper()
	gone := make(chan struct{})
	w.at(point, func() {
		close(gone)
		select {} // this goroutine never goes on
	})
	old := w.fac
	go old.Settle(context.Background(), row)
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		w.Fatalf("%s is not reached", point)
	}
	w.ok(w.db.Close())
	w.open()
}

// Whatever the moment of a crash, the next process charges the payment once
// and finds it by the same authorization.
func TestMustPass24CrashesAreReconciled(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		point string
		money ledger.Money // once the next process has started
	}{
		{"preflight", ledger.Held}, {"t3.before", ledger.Held}, {"t3.after", ledger.Mined}, {"broadcast.before", ledger.Mined},
		{"broadcast.after", ledger.Mined}, {"mined.before", ledger.Mined}, {"mined.after", ledger.Mined},
	} {
		t.Run(c.point, func(t *testing.T) {
			w := newWorld(t)
			row := w.reserved(w.payment())
			w.die(c.point, row)
			if got := w.row(row.Key).Money; got != c.money {
				t.Errorf("after the start the payment is %s, want %s", got, c.money)
			}
			want(t, w.settle(*w.row(row.Key)), ledger.Settled, "")
			if w.spent() != 1 || w.units(w.payTo) != 1000 {
				t.Errorf("%d transactions moved %d units", w.spent(), w.units(w.payTo))
			}
			// The signer's nonces go on where they were.
			want(t, w.settle(w.reserved(w.payment())), ledger.Settled, "")
			if w.spent() != 2 {
				t.Errorf("%d transactions", w.spent())
			}
		})
	}
}

// The book may be behind the chain by a transaction of somebody else: then the
// chain, by payer and nonce, has the last word.
func TestMustPass24ReconcileByPayerAndNonce(t *testing.T) {
	w := newWorld(t)
	p := w.payment()
	row := w.reserved(p)
	w.ok(w.db.Submit(t.Context(), row.ID, row.Epoch, "https://gone.example"))
	out, err := w.fac.Reconcile(t.Context(), *w.row(row.Key))
	w.ok(err)
	want(t, out, ledger.Unknown, "")
	tx := w.submitAs(w.stranger(), p)
	out, err = w.fac.Reconcile(t.Context(), *w.row(row.Key))
	w.ok(err)
	want(t, out, ledger.Settled, "")
	if got := w.row(row.Key); got.Money != ledger.Mined || got.Tx != tx {
		t.Errorf("booked %s by %s, want %s", got.Money, got.Tx, tx)
	}
}

func TestReconcileFindsTheProofOfDeath(t *testing.T) {
	w := newWorld(t)
	row := w.reserved(w.payment())
	w.ok(w.db.Submit(t.Context(), row.ID, row.Epoch, "https://gone.example"))
	w.ahead.Add(95)
	out, err := w.fac.Reconcile(t.Context(), *w.row(row.Key))
	w.ok(err)
	want(t, out, ledger.NotCharged, "")
	var proof struct {
		Why  string
		Hash string
		Time int64
	}
	got := w.row(row.Key)
	if err := json.Unmarshal([]byte(got.Proof), &proof); err != nil || got.Money != ledger.Dead || proof.Why == "" || len(proof.Hash) != 66 || proof.Time <= got.ValidBefore {
		t.Errorf("the payment is %s with proof %q", got.Money, got.Proof)
	}
}

// Run brings what nobody waits for to its end.
func TestRunSeesOpenBatchesThrough(t *testing.T) {
	t.Parallel()
	w := newWorldWith(t, devchainOptions(300*time.Millisecond))
	var rows []ledger.Payment
	for range 5 {
		row := w.reserved(w.payment())
		rows = append(rows, row)
		ctx, cancel := context.WithCancel(t.Context())
		w.at("t3.after", cancel) // signed, and the caller is gone
		out, err := w.fac.Settle(ctx, row)
		w.ok(err)
		want(t, out, ledger.Broadcast, "")
	}
	w.ahead.Add(4) // settleTime is over
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.fac.Run(ctx) }()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		open := 0
		for _, r := range rows {
			if w.row(r.Key).Money != ledger.Mined {
				open++
			}
		}
		if open == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of %d payments are not mined", open, len(rows))
		}
	}
	if head := w.fac.HeadTime(); w.now().Sub(head) > 20*time.Second {
		t.Errorf("the head is of %v, now is %v", head, w.now())
	}
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Run does not end")
	}
	if w.spent() != 5 || w.units(w.payTo) != 5000 {
		t.Errorf("%d transactions moved %d units", w.spent(), w.units(w.payTo))
	}
}

// A data directory and a chain that do not belong together are refused before
// a payment can hang for ever.
func TestStartRefusesAChainThatIsBehindTheBook(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for range 3 {
		want(t, w.settle(w.reserved(w.payment())), ledger.Settled, "")
	}
	other := newWorld(t)
	other.node.Key = w.node.Key
	other.fund(other.node.Key, 0)
	f := other.facilitator()
	f.Book, f.Ends = w.db, w.db
	if err := f.Start(t.Context()); clawr.CodeOf(err) != clawr.CodeWrongChain {
		t.Errorf("start: %v, want %s", err, clawr.CodeWrongChain)
	}
}

func TestStartRefusesAssetsOfOtherNetworks(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(a *clawr.Asset){
		"network": func(a *clawr.Asset) { a.Network = "eip155:1" },
		"name":    func(a *clawr.Asset) { a.Name = "" },
		"version": func(a *clawr.Asset) { a.Version = "" },
	} {
		f := w.facilitator()
		change(&f.Assets[0])
		if err := f.Start(t.Context()); clawr.CodeOf(err) != clawr.CodeUsage {
			t.Errorf("asset with another %s: %v", name, err)
		}
	}
}

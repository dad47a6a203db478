package facilitator_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// seller gives the shop a key, so that it can pay back what it was paid.
func (w *world) seller() *chain.Key {
	k := w.key()
	w.fund(k, 0)
	w.payTo = x402.Lower(k.Address())
	return k
}

// owed is the refund of a payment that was charged for good, and never
// delivered.
func (w *world) owed() ledger.Refund {
	w.Helper()
	p := w.reservation(w.payment())
	p.Policy = ledger.SettleFirst
	row, err := w.db.Reserve(w.Context(), p, "test", time.Minute)
	w.ok(err)
	out := w.settle(row)
	want(w, out, ledger.Settled, "")
	w.ok(w.db.Start(w.Context(), row.ID, row.Epoch))
	w.ok(w.db.Fail(w.Context(), row.ID, row.Epoch, clawr.CodeWorkerFailure, usage.Event{}))
	w.ok(w.db.Final(w.Context(), row.Key, out.BlockHash))
	w.ok(w.db.FinalizeBatch(w.Context(), w.row(row.Key).BatchID, out.BlockHash))
	return w.refund(row.ID)
}

func (w *world) refund(id string) ledger.Refund {
	w.Helper()
	r, err := w.db.Refund(context.WithoutCancel(w.Context()), id)
	w.ok(err)
	if r == nil {
		w.Fatalf("%s has no refund", id)
	}
	return *r
}

// repay signs a refund with the seller's key and stores that.
func (w *world) repay(k *chain.Key, r ledger.Refund, valid time.Duration) error {
	w.Helper()
	until := w.now().Add(valid).Unix()
	auth, terms := facilitator.Repayment(&r, w.asset, until)
	digest, ok := facilitator.RepaymentDigest(auth, terms)
	if !ok {
		w.Fatal("no network")
	}
	sig, err := k.SignHash(digest[:])
	w.ok(err)
	r.Nonce, r.ValidBefore, r.Payload = ledger.RefundNonce(r.Payment), until, facilitator.SignedRepayment(auth, terms, sig).JSON()
	return w.db.SignRefund(w.Context(), r, "test")
}

// refunder is one that a process would run.
func (w *world) refunder() *facilitator.Refunder {
	return &facilitator.Refunder{Network: w.asset.Network, Book: w.db, Settle: w.fac.Settle, Chain: w.node, Now: w.now, Log: slog.New(slog.DiscardHandler)}
}

// ends looks until a refund is in a state, or has evidence if that is empty.
func (w *world) ends(id string, state ledger.RefundState) ledger.Refund {
	w.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		w.ok(w.refunder().Look(w.Context())) // each a new one: it needs no memory
		r := w.refund(id)
		if r.State == state || state == "" && r.Tx != "" {
			return r
		}
		if time.Now().After(deadline) {
			w.Fatalf("the refund is %s: %+v", r.State, r)
		}
	}
}

// movedBack checks that the chain shows exactly so many transfers from the
// seller to the buyer, the one that the book has.
func (w *world) movedBack(r ledger.Refund, times int) {
	w.Helper()
	list, _, err := w.node.Transfers(w.Context(), common.HexToAddress(w.asset.Address), common.HexToAddress(r.Payment.Payer), 0)
	w.ok(err)
	n := 0
	for _, m := range list {
		if x402.Lower(m.From) != r.From {
			continue
		}
		n++
		if m.Amount != r.Amount || times == 1 && r.Tx != "" && (m.Tx != r.Tx || m.LogIndex != r.LogIndex) {
			w.Errorf("the chain shows %+v, the book %+v", m, r)
		}
	}
	if n != times {
		w.Errorf("%d transfers back, want %d", n, times)
	}
}

func TestARefundGoesBackOnceAndForGood(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seller := w.seller()
	before := w.units(x402.Lower(w.payer.Address()))
	r := w.owed()
	w.ok(w.repay(seller, r, time.Hour))
	if err := w.repay(seller, r, 2*time.Hour); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("signed again while the first may be charged: %v", err)
	}
	done := w.ends(r.PaymentID, ledger.RefundFinal)
	if done.Tx == "" || done.BlockHash == "" || done.Nonce != ledger.RefundNonce(r.Payment) {
		t.Errorf("booked as %+v", done)
	}
	if got := w.units(x402.Lower(w.payer.Address())); got != before {
		t.Errorf("the buyer has %d units, and had %d", got, before)
	}
	w.ok(w.refunder().Look(t.Context()))
	w.movedBack(done, 1)
	if w.units(w.payTo) != 0 || w.spent() != 2 {
		t.Errorf("the seller has %d units after %d transactions", w.units(w.payTo), w.spent())
	}
	if err := w.repay(seller, r, 3*time.Hour); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("signed what is paid: %v", err)
	}
}

// Many processes see the same refunds through at once.
func TestRefundersDoNotPayTwice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seller := w.seller()
	var list []ledger.Refund
	for range 5 {
		r := w.owed()
		w.ok(w.repay(seller, r, time.Hour))
		list = append(list, r)
	}
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			r := w.refunder()
			for range 3 {
				if err := r.Look(t.Context()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, r := range list {
		w.ends(r.PaymentID, ledger.RefundFinal)
	}
	w.movedBack(list[0], 5)
	if w.units(w.payTo) != 0 {
		t.Errorf("the seller has %d units", w.units(w.payTo))
	}
}

// Whatever the moment at which a process dies, the next one sees the refund
// through, and the money moves once.
func TestARefundIsPaidOnceWhereverAProcessDies(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"preflight", "batch.after", "t3.before", "t3.after", "broadcast.before", "broadcast.after", "mined.before", "mined.after"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			seller := w.seller()
			r := w.owed()
			w.ok(w.repay(seller, r, time.Hour))
			gone := make(chan struct{})
			w.at(point, func() {
				close(gone)
				select {} // this goroutine never goes on
			})
			old := w.refunder()
			go old.Look(context.WithoutCancel(t.Context()))
			select {
			case <-gone:
			case <-time.After(30 * time.Second):
				t.Fatalf("%s is not reached", point)
			}
			w.ok(w.db.Close())
			w.open()
			done := w.ends(r.PaymentID, ledger.RefundFinal)
			w.movedBack(done, 1)
			if w.spent() != 2 {
				t.Errorf("%d transactions", w.spent())
			}
			if err := w.repay(seller, r, 2*time.Hour); !errors.Is(err, ledger.ErrFenced) {
				t.Errorf("signed what is paid: %v", err)
			}
		})
	}
}

// A book that was restored from before the refund does not know that it was
// paid. The same nonce finds it.
func TestARestoredBookDoesNotPayARefundAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seller := w.seller()
	w.fund(seller, 5000) // there would be money for it
	r := w.owed()
	copied := w.path + ".copy"
	_, err := w.db.Backup(t.Context(), copied)
	w.ok(err)
	w.ok(w.repay(seller, r, time.Hour))
	first := w.ends(r.PaymentID, ledger.RefundFinal)
	w.ok(w.db.Close())
	for _, suffix := range []string{"", "-wal", "-shm", "-head", ".sums"} {
		os.Remove(w.path + suffix)
	}
	w.path = copied
	w.open()
	if got := w.refund(r.PaymentID); got.State != ledger.RefundDue {
		t.Fatalf("the copy has a refund that is %s", got.State)
	}
	w.ok(w.repay(seller, r, 2*time.Hour))
	again := w.ends(r.PaymentID, ledger.RefundFinal)
	if again.Tx != first.Tx {
		t.Errorf("paid by %s, and then by %s", first.Tx, again.Tx)
	}
	w.movedBack(again, 1)
}

func TestARefundWaitsForItsSellersMoney(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seller := w.seller()
	r := w.owed()
	w.call(seller, w.asset.Address, "transfer(address,uint256)", addressOf("0x00000000000000000000000000000000000000fe"), number(1000)) // spent it
	w.ok(w.repay(seller, r, time.Hour))
	for range 3 {
		w.ok(w.refunder().Look(t.Context()))
	}
	if got := w.refund(r.PaymentID); got.State != ledger.RefundSigned || got.Tx != "" || got.Proof != "" {
		t.Fatalf("without money the refund is %+v", got)
	}
	w.fund(seller, 1000)
	w.movedBack(w.ends(r.PaymentID, ledger.RefundFinal), 1)
}

// What was signed and expired is signed again under the same nonce, and not
// before a finalized block proves that it was not used.
func TestAnExpiredRefundIsSignedAgainUnderItsNonce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seller := w.seller()
	r := w.owed()
	w.ok(w.repay(seller, r, 30*time.Second))
	first := w.refund(r.PaymentID)
	w.ahead.Add(40) // nobody looked
	if err := w.repay(seller, r, time.Hour); !errors.Is(err, ledger.ErrFenced) {
		t.Fatalf("signed again on the local clock's word: %v", err)
	}
	w.fund(w.key(), 1) // a block of that time
	for deadline := time.Now().Add(30 * time.Second); w.refund(r.PaymentID).Proof == ""; time.Sleep(20 * time.Millisecond) {
		w.ok(w.refunder().Look(t.Context()))
		if time.Now().After(deadline) {
			t.Fatal("no proof")
		}
	}
	over := w.refund(r.PaymentID)
	if !over.Payable() || over.State != ledger.RefundSigned || !strings.Contains(over.Proof, "expired unused") {
		t.Errorf("after its time it is %+v", over)
	}
	w.ok(w.repay(seller, r, time.Hour))
	done := w.ends(r.PaymentID, ledger.RefundFinal)
	if done.Nonce != first.Nonce || done.ValidBefore <= first.ValidBefore {
		t.Errorf("signed as %+v, then as %+v", first, done)
	}
	w.movedBack(done, 1)
}

// A settlement that was reverted keeps the row of the first signature: what is
// signed anew takes its place.
func TestARefundIsSignedAgainAfterItsTransactionFailed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seller := w.seller()
	r := w.owed()
	w.ok(w.repay(seller, r, 30*time.Second))
	w.at("t3.after", func() { // the money leaves between the simulation and the block
		w.call(seller, w.asset.Address, "transfer(address,uint256)", addressOf("0x00000000000000000000000000000000000000fe"), number(1000))
	})
	w.ok(w.refunder().Look(t.Context()))
	if w.spent() != 2 {
		t.Fatalf("%d transactions, want one that failed", w.spent())
	}
	w.movedBack(r, 0)
	w.ahead.Add(40)
	w.fund(seller, 1000)
	for deadline := time.Now().Add(30 * time.Second); w.refund(r.PaymentID).Proof == ""; time.Sleep(20 * time.Millisecond) {
		w.ok(w.refunder().Look(t.Context()))
		if time.Now().After(deadline) {
			t.Fatal("no proof")
		}
	}
	w.ok(w.repay(seller, r, time.Hour))
	w.movedBack(w.ends(r.PaymentID, ledger.RefundFinal), 1)
}

// A reorganisation takes a refund back, and it is sent again.
func TestAReorgBringsARefundBack(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	seller := w.seller()
	r := w.owed()
	watcher := w.watcher()
	w.ok(watcher.Look(t.Context()))
	w.ok(w.repay(seller, r, time.Hour))
	mined := w.ends(r.PaymentID, "")
	if mined.State != ledger.RefundSigned {
		t.Fatalf("in a block that is not finalized it is %s", mined.State)
	}
	w.ok(watcher.Look(t.Context()))
	w.reorg(1)
	w.ok(watcher.Look(t.Context()))
	again := mined
	for deadline := time.Now().Add(60 * time.Second); again.Tx == "" || again.BlockHash == mined.BlockHash; time.Sleep(20 * time.Millisecond) {
		w.ok(w.fac.Recover(t.Context()))
		w.ok(w.refunder().Look(t.Context()))
		w.ok(watcher.Look(t.Context()))
		again = w.refund(r.PaymentID)
		if time.Now().After(deadline) {
			t.Fatalf("after the reorganisation it is %+v", again)
		}
	}
	if again.State != ledger.RefundSigned {
		t.Errorf("mined again it is %s", again.State)
	}
	w.mine(160)
	w.ok(watcher.Look(t.Context()))
	w.movedBack(w.ends(r.PaymentID, ledger.RefundFinal), 1)
}

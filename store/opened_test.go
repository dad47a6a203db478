package store_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
)

// A settlement that the book has not seen is written with its batch.
func TestSignOpensSettlements(t *testing.T) {
	for name, engine := range map[string]func(testing.TB) *store.DB{"sqlite": sqlite, "postgres": postgres} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := engine(t)
			t.Run("with the batch", func(t *testing.T) { opensWithTheBatch(t, db) })
			t.Run("or not at all", func(t *testing.T) { opensOrNot(t, db) })
			t.Run("once", func(t *testing.T) { opensOnce(t, db) })
		})
	}
}

func answered(t *testing.T, db *store.DB, n int) ledger.Payment {
	t.Helper()
	p := reserve(t, db, n, ledger.SettleBeforeResponse)
	must(t, db.Done(t.Context(), p.ID, p.Epoch, ledger.Answer{Status: 200, Ref: "x", SHA256: "x", Expires: time.Now()},
		usage.Event{Time: time.Now(), RequestID: fmt.Sprintf("req_%016x", n), TenantID: p.TenantID, API: "acme"}))
	return p
}

func unopened(p ledger.Payment) ledger.Settlement {
	return ledger.Settlement{ID: "stl_" + p.ID[4:], Key: p.Key, PayTo: p.PayTo, Amount: p.Amount, ValidBefore: p.ValidBefore, Payload: p.Payload, RequestedBy: "self"}
}

func batchOf(nonce int64, list ...ledger.Settlement) ledger.Batch {
	b := ledger.Batch{ID: fmt.Sprintf("bat_%016x", nonce), Network: "eip155:31337", Signer: "0x00000000000000000000000000000000000000dd", Nonce: nonce, CalldataSHA256: "x",
		State: ledger.BatchSigned, Txs: []ledger.Tx{{Hash: fmt.Sprintf("0x%064x", nonce), Attempt: 1, Raw: []byte{2}, MaxFee: "1", Tip: "1"}}}
	for _, s := range list {
		b.Settlements = append(b.Settlements, s.ID)
	}
	return b
}

func opensWithTheBatch(t *testing.T, db *store.DB) {
	p := answered(t, db, 1)
	s := unopened(p)
	must(t, db.Sign(t.Context(), batchOf(1, s), s))
	got, err := db.Settlement(t.Context(), p.Key)
	must(t, err)
	if got == nil || got.ID != s.ID || got.Batch == nil || got.Batch.Nonce != 1 || got.RequestedBy != "self" || got.Created.IsZero() {
		t.Errorf("opened as %+v", got)
	}
	row, err := db.Payment(t.Context(), p.ID)
	must(t, err)
	if row.Money != ledger.Signed || row.BatchID != got.Batch.ID {
		t.Errorf("its payment is %s in batch %q", row.Money, row.BatchID)
	}
}

func opensOrNot(t *testing.T, db *store.DB) {
	standing, released, good := answered(t, db, 10), answered(t, db, 11), answered(t, db, 12)
	_, err := db.OpenSettlement(t.Context(), ledger.Settlement{ID: "stl_before", Key: standing.Key, PayTo: standing.PayTo, Amount: 1, ValidBefore: 9, Payload: []byte("{}")})
	must(t, err)
	must(t, db.Release(t.Context(), released.ID, released.Epoch, clawr.CodeSettlementFailed, usage.Event{}))
	for bad, want := range map[*ledger.Payment]error{&standing: ledger.ErrLive, &released: ledger.ErrFenced} {
		list := []ledger.Settlement{unopened(good), unopened(*bad)}
		if err := db.Sign(t.Context(), batchOf(10, list...), list...); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", bad.ID, err, want)
		}
	}
	for _, p := range []ledger.Payment{good, released} {
		if s, err := db.Settlement(t.Context(), p.Key); s != nil || err != nil {
			t.Errorf("a refused batch left %+v, %v", s, err)
		}
	}
	if row, err := db.Payment(t.Context(), good.ID); err != nil || row.Money != ledger.Held {
		t.Errorf("a refused batch moved a payment: %+v, %v", row, err)
	}
	if n, err := db.NextNonce(t.Context(), "eip155:31337", "0x00000000000000000000000000000000000000dd"); n != 2 || err != nil {
		t.Errorf("a refused batch used a nonce: %d, %v", n, err)
	}
}

func opensOnce(t *testing.T, db *store.DB) {
	p := answered(t, db, 20)
	errs := make([]error, 8)
	var wait sync.WaitGroup
	for i := range errs {
		wait.Go(func() {
			s := unopened(p)
			s.ID = fmt.Sprintf("stl_%016x", 100+i)
			errs[i] = db.Sign(t.Context(), batchOf(int64(100+i), s), s)
		})
	}
	wait.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, ledger.ErrLive):
			t.Errorf("%v, want ErrLive", err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d batches carry one authorization, want 1", won, len(errs))
	}
}

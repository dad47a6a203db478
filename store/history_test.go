package store_test

import (
	"testing"
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
)

// Pages of payments have each payment once, those of one moment too.
func TestPagesOfPayments(t *testing.T) {
	for name, engine := range map[string]func(testing.TB, func() time.Time) *store.DB{
		"sqlite": func(t testing.TB, now func() time.Time) *store.DB {
			return open(t, store.Options{Path: t.TempDir() + "/clawr.db", Now: now})
		},
		"postgres": func(t testing.TB, now func() time.Time) *store.DB {
			return open(t, store.Options{URL: storetest.Postgres(t), Now: now})
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			db := engine(t, c.now)
			for n := range 23 {
				reserve(t, db, n+1, ledger.SettleBeforeResponse)
				if n%5 == 0 {
					c.forward(time.Second)
				}
			}
			seen := map[string]int{}
			f := store.PaymentFilter{Limit: 4}
			for {
				list, err := db.Payments(t.Context(), f)
				must(t, err)
				for _, p := range list {
					seen[p.ID]++
				}
				if len(list) < f.Limit {
					break
				}
				f.Before, f.BeforeID = list[len(list)-1].Created, list[len(list)-1].ID
			}
			if len(seen) != 23 {
				t.Errorf("%d payments seen, want 23", len(seen))
			}
			for id, n := range seen {
				if n != 1 {
					t.Errorf("%s was seen %d times", id, n)
				}
			}
		})
	}
}

// A payment's history has every batch and transaction that carried it, and how
// each ended.
func TestHistoryTellsEverything(t *testing.T) {
	for name, engine := range map[string]func(testing.TB) *store.DB{"sqlite": sqlite, "postgres": postgres} {
		t.Run(name, func(t *testing.T) {
			db := engine(t)
			p := answered(t, db, 1)
			s := unopened(p)
			first := batchOf(1, s)
			must(t, db.Sign(t.Context(), first, s))
			must(t, db.AddTx(t.Context(), first.ID, ledger.Tx{Hash: "0xbb", Attempt: 2, Raw: []byte{3}, MaxFee: "2", Tip: "2"}))
			must(t, db.Mined(t.Context(), first.ID, first.Txs[0].Hash, 7, "0x07", []ledger.ItemResult{{SettlementID: s.ID, Outcome: ledger.ItemReverted}}))
			second := batchOf(2, s)
			must(t, db.Sign(t.Context(), second))
			at := ledger.Evidence{Tx: second.Txs[0].Hash, BlockNumber: 9, BlockHash: "0x09", LogIndex: 3}
			must(t, db.Mined(t.Context(), second.ID, at.Tx, 9, "0x09", []ledger.ItemResult{{SettlementID: s.ID, Outcome: ledger.ItemPaid, Evidence: at}}))
			row, err := db.Payment(t.Context(), p.ID)
			must(t, err)
			steps, err := db.History(t.Context(), row)
			must(t, err)
			var got []string
			for _, s := range steps {
				got = append(got, s.What)
			}
			want := []string{"reserved", "signed", "broadcast", "broadcast", "ended", "signed", "broadcast", "ended", "mined"}
			if len(got) != len(want) {
				t.Fatalf("history is %v, want %v", got, want)
			}
			for i := range want {
				if got[i] != want[i] {
					t.Fatalf("history is %v, want %v", got, want)
				}
			}
			if steps[4].Detail != "reverted in batch "+first.ID {
				t.Errorf("the first batch ended as %q", steps[4].Detail)
			}
			list, err := db.Charges(t.Context(), p.Network, p.Asset, p.PayTo)
			must(t, err)
			if len(list) != 1 || list[0].ID != p.ID || list[0].Tx != at.Tx || list[0].LogIndex != 3 || list[0].Amount != p.Amount {
				t.Errorf("charged: %+v", list)
			}
			sellers, err := db.Sellers(t.Context())
			must(t, err)
			if len(sellers) != 1 || sellers[0].PayTo != p.PayTo || !sellers[0].Since.Equal(p.Created) {
				t.Errorf("sellers: %+v", sellers)
			}
		})
	}
}

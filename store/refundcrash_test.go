package store_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
)

// repaid carries a payment that cannot be delivered on, from wherever it is,
// until it is paid back for good.
func repaid(ctx context.Context, db *store.DB, p ledger.Payment) error {
	row, err := db.Find(ctx, p.Key)
	if err != nil {
		return err
	}
	if row == nil {
		r, err := db.Reserve(ctx, p, "node", time.Minute)
		if err != nil {
			return err
		}
		s, err := db.OpenSettlement(ctx, ledger.Settlement{Key: r.Key, PayTo: r.PayTo, Amount: r.Amount, ValidBefore: r.ValidBefore, Payload: r.Payload})
		if err != nil {
			return err
		}
		b := ledger.Batch{ID: "bat_" + r.ID, Network: r.Network, Signer: signer, Settlements: []string{s.ID}, Txs: []ledger.Tx{{Hash: "0x" + r.ID, Attempt: 1, Raw: []byte("raw")}}}
		tx := b.Txs[0].Hash
		err = errors.Join(db.Sign(ctx, b),
			db.Mined(ctx, b.ID, tx, 7, "0xb", []ledger.ItemResult{{SettlementID: s.ID, Outcome: ledger.ItemPaid, Evidence: ledger.Evidence{Tx: tx, BlockNumber: 7, BlockHash: "0xb"}}}),
			db.Start(ctx, r.ID, 1), db.Fail(ctx, r.ID, 1, clawr.CodeWorkerFailure, usage.Event{}), db.FinalizeBatch(ctx, b.ID, "0xb"))
		if err != nil {
			return err
		}
	}
	r, err := db.Refund(ctx, p.ID)
	if err != nil {
		return err
	}
	if r.State == ledger.RefundDue {
		r.Nonce, r.ValidBefore, r.Payload = ledger.RefundNonce(r.Payment), 1000, []byte("signed")
		if err := db.SignRefund(ctx, *r, "ann"); err != nil {
			return err
		}
	}
	if r.State == ledger.RefundFinal {
		return nil
	}
	return db.RefundSeen(ctx, p.ID, ledger.Evidence{Tx: "0xrefund", BlockNumber: 9, BlockHash: "0xc"}, true)
}

// TestKilledWhileARefundIsPaid kills a process around both moves of a refund
// and looks at what is left: what is signed is there before anybody may send
// it. Then another process finishes it.
func TestKilledWhileARefundIsPaid(t *testing.T) {
	onBoth(t, func(t *testing.T, o store.Options, _ *sql.DB) {
		for failpoint, want := range map[string]ledger.RefundState{
			"repay.before": ledger.RefundDue, "repay.after": ledger.RefundSigned, "repaid.before": ledger.RefundSigned, "repaid.after": ledger.RefundFinal,
		} {
			t.Run(failpoint, func(t *testing.T) {
				db := killed(t, o, failpoint)
				list, err := db.Payments(t.Context(), store.PaymentFilter{Refund: want})
				must(t, err)
				if len(list) != 1 {
					t.Fatalf("killed at %s, %d payments have a refund that is %s", failpoint, len(list), want)
				}
				r, err := db.Refund(t.Context(), list[0].ID)
				must(t, err)
				if signed := want != ledger.RefundDue; r.State != want || (string(r.Payload) == "signed") != signed || (r.Nonce != "") != signed || (r.Tx != "") != (want == ledger.RefundFinal) {
					t.Errorf("killed at %s, left %+v", failpoint, r)
				}
				must(t, repaid(t.Context(), db, list[0]))
				r, err = db.Refund(t.Context(), list[0].ID)
				must(t, err)
				if r.State != ledger.RefundFinal || r.Tx != "0xrefund" {
					t.Errorf("another process could not finish it: %+v", r)
				}
				if _, err := db.CheckAudit(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
	})
}

// TestRefundsThatWereDueStayDue migrates the table from before refunds were
// paid, with what was due in it.
func TestRefundsThatWereDueStayDue(t *testing.T) {
	text, err := os.ReadFile("migrations/00014_refunds.sql")
	must(t, err)
	migration := regexp.MustCompile(`--.*`).ReplaceAllString(string(text), "")
	onBoth(t, func(t *testing.T, o store.Options, raw *sql.DB) {
		db := open(t, o)
		tenant, err := db.Deploy(t.Context(), clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Owner: "ann"}}, "ann")
		must(t, err)
		p, err := db.Reserve(t.Context(), payment(tenant.ID, 1, ledger.SettleFirst), "node", time.Minute)
		must(t, err)
		must(t, db.Close())
		statements := append([]string{
			`DROP TABLE refunds`,
			`CREATE TABLE refunds(
				payment_id TEXT PRIMARY KEY REFERENCES payments(id), amount BIGINT NOT NULL CHECK(amount > 0), reason TEXT NOT NULL,
				state TEXT NOT NULL CHECK(state IN('due','signed','final')), tx_hash TEXT, created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL,
				CHECK(state = 'due' OR tx_hash IS NOT NULL))`,
			`INSERT INTO refunds(payment_id, amount, reason, state, created_at, updated_at) VALUES ('` + p.ID + `', 1000, 'tenant_worker_failure', 'due', 5, 6)`,
		}, strings.Split(migration, ";")...)
		for _, statement := range statements {
			if strings.TrimSpace(statement) == "" {
				continue
			}
			if _, err := raw.ExecContext(t.Context(), statement); err != nil {
				t.Fatalf("%s: %v", statement, err)
			}
		}
		must(t, raw.Close()) // SQLite: it would keep its log
		o.Repair = true      // another program wrote it
		r, err := open(t, o).Refund(t.Context(), p.ID)
		must(t, err)
		if r == nil || r.State != ledger.RefundDue || r.Amount != 1000 || r.Payment != p.Key || r.Created.UnixMicro() != 5 {
			t.Errorf("after the migration the refund is %+v", r)
		}
	})
}

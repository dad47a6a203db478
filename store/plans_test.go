package store_test

import (
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
)

// wholeTable matches a step of a plan that goes through everything that was
// ever sold: without an index, with one of all rows, or by the network alone,
// which all have in common. An index of what is open has few rows.
var wholeTable = regexp.MustCompile(`^SCAN (payments|p|settlements|s|settlement_items|i|usage_events)( USING (COVERING )?INDEX (sqlite_autoindex|usage|payments_(created|tenant|ref)|settlement_items)\w*)?$` +
	`|INDEX sqlite_autoindex_(payments|settlements)_2 \(network=\?( AND asset=\?)?\)`)

// mayReadAll reports whether a statement is one of those that somebody asks for
// at times: a check, the beginning of a list, and reconcile.
func mayReadAll(step, statement string) bool {
	statement = strings.TrimSpace(statement)
	return strings.HasPrefix(statement, "SELECT COUNT(*)") || strings.HasPrefix(statement, "SELECT (SELECT COUNT(*)") ||
		strings.Contains(step, " USING INDEX ") && strings.HasPrefix(step, "SCAN") && strings.Contains(statement, " LIMIT $") ||
		strings.Contains(statement, "FROM refunds r JOIN payments p ON p.id = r.payment_id WHERE p.network = $1 AND p.asset = $2")
}

// Nothing that is done for a call, or every few seconds, reads a book from its
// beginning: it would take longer each day, and keep the log of SQLite, which has
// no statistics of what it has, from beginning anew for as long.
func TestNoStatementReadsAWholeBook(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]bool{}
	t.Run("contract", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) *store.DB {
			db, err := store.Open(t.Context(), store.Options{Path: filepath.Join(t.TempDir(), "clawr.db")})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				mu.Lock()
				for _, s := range db.Statements() {
					asked[s] = true
				}
				mu.Unlock()
				if err := db.Close(); err != nil {
					t.Error(err)
				}
			})
			return db
		})
	})
	if len(asked) < 100 {
		t.Fatalf("the contract has %d statements", len(asked))
	}
	db := open(t, store.Options{Path: filepath.Join(t.TempDir(), "clawr.db")})
	for s := range asked {
		steps, err := db.Plan(t.Context(), s)
		if err != nil {
			t.Errorf("%v: %s", err, s)
		}
		for _, step := range steps {
			if wholeTable.MatchString(step) && !mayReadAll(step, s) {
				t.Errorf("%s:\n%s", step, s)
			}
		}
	}
}

// Whoever lists what is not settled reads what is not settled, and no more.
func TestOpenPaymentsAreFoundByTheirIndex(t *testing.T) {
	for _, f := range []store.PaymentFilter{
		{Money: ledger.Held},
		{Money: ledger.Signed, Before: time.Unix(1, 0)},
		{Money: ledger.Signed, Before: time.Unix(1, 0), BeforeID: "pay_1"},
	} {
		db := open(t, store.Options{Path: filepath.Join(t.TempDir(), "clawr.db")})
		if _, err := db.Payments(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		lists := 0
		for _, s := range db.Statements() {
			if !strings.Contains(s, "FROM payments WHERE TRUE") {
				continue
			}
			lists++
			steps, err := db.Plan(t.Context(), s)
			plan := strings.Join(steps, "\n")
			if err != nil || !strings.Contains(plan, "payments_settle") && !strings.Contains(plan, "payments_lease") { // those of what is open
				t.Errorf("%+v: %v\n%s", f, err, plan)
			}
		}
		if lists != 1 {
			t.Errorf("%+v: %d statements list payments", f, lists)
		}
	}
}

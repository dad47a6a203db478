package store_test

import (
	"database/sql"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

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
func mayReadAll(step, s string) bool {
	return strings.HasPrefix(strings.TrimSpace(s), "SELECT COUNT(*)") || strings.HasPrefix(strings.TrimSpace(s), "SELECT (SELECT COUNT(*)") ||
		strings.Contains(step, " USING INDEX ") && strings.HasPrefix(step, "SCAN") && strings.Contains(s, " LIMIT $") || strings.Contains(s, "FROM refunds r JOIN payments p ON p.id = r.payment_id WHERE p.network = $1 AND p.asset = $2")
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
	path := filepath.Join(t.TempDir(), "clawr.db")
	db, err := store.Open(t.Context(), store.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	raw, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if len(asked) < 100 {
		t.Fatalf("the contract has %d statements", len(asked))
	}
	for s := range asked {
		args := make([]any, 40)
		rows, err := raw.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+s, args[:parameters(s)]...)
		if err != nil {
			t.Errorf("%v: %s", err, s)
			continue
		}
		for rows.Next() {
			var id, parent, unused int
			var step string
			if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
				t.Fatal(err)
			}
			if wholeTable.MatchString(step) && !mayReadAll(step, s) {
				t.Errorf("%s:\n%s", step, s)
			}
		}
		if err := rows.Close(); err != nil {
			t.Error(err)
		}
	}
}

// parameters is how many parameters a statement has.
func parameters(s string) (n int) {
	for _, m := range regexp.MustCompile(`\$([0-9]+)`).FindAllStringSubmatch(s, -1) {
		i, err := strconv.Atoi(m[1])
		if err == nil {
			n = max(n, i)
		}
	}
	return n
}

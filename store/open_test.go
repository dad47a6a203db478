package store_test

import (
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
	"github.com/402claw/clawr/usage"
	"github.com/google/go-cmp/cmp"
	_ "github.com/jackc/pgx/v5/stdlib"
)

// onBoth runs a test on both engines: with the options of an empty database,
// and a connection of the test's own to it.
func onBoth(t *testing.T, test func(t *testing.T, o store.Options, raw *sql.DB)) {
	run := func(name, driver string, options func(t *testing.T) (store.Options, string)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, source := options(t)
			raw, err := sql.Open(driver, source)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { raw.Close() })
			test(t, o, raw)
		})
	}
	run("SQLite", "sqlite", func(t *testing.T) (store.Options, string) {
		path := filepath.Join(t.TempDir(), "clawr.db")
		return store.Options{Path: path}, "file:" + path + "?_pragma=busy_timeout(10000)"
	})
	run("Postgres", "pgx", func(t *testing.T) (store.Options, string) {
		url := storetest.Postgres(t)
		return store.Options{URL: url}, url
	})
}

func execute(t *testing.T, raw *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := raw.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

func manifest() clawr.Manifest {
	return clawr.Manifest{Kind: clawr.KindDataset, Owner: "ann", Price: 1000, X402: true, PayTo: "0x00000000000000000000000000000000000000bb"}
}

func wantCode(t *testing.T, err error, code clawr.Code) {
	t.Helper()
	if clawr.CodeOf(err) != code {
		t.Errorf("got %v, want %s", err, code)
	}
}

func TestReopenedDatabaseIsTheSame(t *testing.T) {
	onBoth(t, func(t *testing.T, o store.Options, raw *sql.DB) {
		now := time.UnixMicro(1_700_000_000_000_000)
		o.Now = func() time.Time { return now }
		db := open(t, o)
		want, err := db.Deploy(t.Context(), clawr.Tenant{Slug: "acme", Manifest: manifest()}, "ann")
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Record(t.Context(), []usage.Event{{Time: now, RequestID: "1", API: "a"}, {Time: now, RequestID: "2", API: "a"}}); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		wantCode(t, db.SetOwner(t.Context(), "ann", "Ann", "", "test"), clawr.CodeOverloaded)

		now = now.Add(-time.Hour) // the clock went back; the order of arrival must not
		db = open(t, o)
		got, err := db.TenantVersion(t.Context(), want.ID, 1)
		if err != nil || got.Slug != "acme" || !got.Created.Equal(want.Created) {
			t.Errorf("%+v, %v", got, err)
		}
		if err := db.Record(t.Context(), []usage.Event{{Time: now, RequestID: "3", API: "a"}}); err != nil {
			t.Fatal(err)
		}
		list, err := db.Events(t.Context(), 1)
		if err != nil || list[0].RequestID != "3" {
			t.Errorf("the last event to arrive is %+v, %v", list, err)
		}
	})
}

// Who copies the file of a server that has ended has all of it.
func TestClosedDatabaseIsOneFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clawr.db")
	db, err := store.Open(t.Context(), store.Options{Path: path})
	must(t, err)
	reserve(t, db, 1, ledger.SettleBeforeResponse)
	must(t, db.Close())
	for _, suffix := range []string{"-wal", "-shm"} {
		if _, err := os.Stat(path + suffix); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left behind: %v", path+suffix, err)
		}
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, o store.Options, raw *sql.DB) {
		if err := open(t, o).Close(); err != nil {
			t.Fatal(err)
		}
		execute(t, raw, `INSERT INTO goose_db_version(version_id, is_applied) VALUES (4000, TRUE)`)
		_, err := store.Open(t.Context(), o)
		wantCode(t, err, clawr.CodeConflict)
	})
}

// TestNodesMayStartTogether opens one empty database from several nodes.
func TestNodesMayStartTogether(t *testing.T) {
	o := store.Options{URL: storetest.Postgres(t)}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			db, err := store.Open(t.Context(), o)
			if err != nil {
				t.Error(err)
				return
			}
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(text, []byte(strings.Repeat("not a database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    store.Options
		code clawr.Code
	}{
		"nothing":           {store.Options{}, clawr.CodeUsage},
		"two databases":     {store.Options{Path: text, URL: "postgres://localhost/x"}, clawr.CodeUsage},
		"no directory":      {store.Options{Path: filepath.Join(dir, "none", "clawr.db")}, clawr.CodeFile},
		"a directory":       {store.Options{Path: dir}, clawr.CodeFile},
		"another file":      {store.Options{Path: text}, clawr.CodeFile},
		"not a URL":         {store.Options{URL: "postgres://localhost:port/x"}, clawr.CodeUsage},
		"nobody is there":   {store.Options{URL: "postgres://127.0.0.1:1/x?connect_timeout=2"}, clawr.CodeUnreachable},
		"password in a URL": {store.Options{URL: "postgres://u:hunter2@127.0.0.1:port/x"}, clawr.CodeUsage},
	} {
		db, err := store.Open(t.Context(), c.o)
		if err == nil {
			db.Close()
		}
		if clawr.CodeOf(err) != c.code {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows the password: %v", name, err)
		}
	}
	if b, _ := os.ReadFile(text); !strings.HasPrefix(string(b), "not a database") {
		t.Error("a file that is no database was changed")
	}
}

func TestDatabaseIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "with ?strange#name%20.db")
	db := open(t, store.Options{Path: path})
	if err := db.SetOwner(t.Context(), "ann", "Ann", "", "test"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", filepath.Base(name), info.Mode().Perm())
		}
	}
}

func TestOnePayToOneLedger(t *testing.T) {
	onBoth(t, func(t *testing.T, o store.Options, raw *sql.DB) {
		db := open(t, o)
		m := manifest()
		execute(t, raw, `INSERT INTO ledger_homes(pay_to, home) VALUES ($1, 'edge')`, m.PayTo)
		_, err := db.Deploy(t.Context(), clawr.Tenant{Slug: "acme", Manifest: m}, "ann")
		wantCode(t, err, clawr.CodeLedgerHome)
		if list, err := db.Tenants(t.Context()); len(list) != 0 || err != nil {
			t.Errorf("refused, but there: %+v, %v", list, err)
		}
		edge := m
		edge.Home = clawr.HomeEdge
		if _, err := db.Deploy(t.Context(), clawr.Tenant{Slug: "edgy", Manifest: edge}, "ann"); err != nil {
			t.Errorf("an address whose book is at the edge cannot be sold for there: %v", err)
		}
		edge.PayTo = "0x00000000000000000000000000000000000000ee"
		native := edge
		native.Home = ""
		if _, err := db.Deploy(t.Context(), clawr.Tenant{Slug: "first", Manifest: native}, "ann"); err != nil {
			t.Fatal(err)
		}
		_, err = db.Deploy(t.Context(), clawr.Tenant{Slug: "first", Manifest: edge}, "ann")
		wantCode(t, err, clawr.CodeLedgerHome)
		// A version goes back to the book that it was sold by.
		for _, home := range []clawr.Home{clawr.HomeEdge, ""} {
			moved := m
			moved.Home, moved.PayTo = home, "0x00000000000000000000000000000000000000"+map[clawr.Home]string{"": "a1", clawr.HomeEdge: "a2"}[home]
			if _, err := db.Deploy(t.Context(), clawr.Tenant{Slug: "moved", Manifest: moved}, "ann"); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := db.Rollback(t.Context(), "moved", 0, "ann"); err != nil || got.Home != clawr.HomeEdge {
			t.Errorf("rolled back to %+v, %v", got.Manifest, err)
		}
		m.X402, m.PayTo = false, ""
		if _, err := db.Deploy(t.Context(), clawr.Tenant{Slug: "acme", Manifest: m}, "ann"); err != nil {
			t.Errorf("a free tenant needs no payTo: %v", err)
		}
	})
}

// TestAuditChain checks that every change of tenants, owners and tokens is in
// the chain once, with who made it, and that no row can be changed or left out
// without its being seen.
func TestAuditChain(t *testing.T) {
	onBoth(t, func(t *testing.T, o store.Options, raw *sql.DB) {
		db := open(t, o)
		m := manifest()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				m := m
				m.Price = clawr.Amount(i)
				if _, err := db.Deploy(t.Context(), clawr.Tenant{Slug: "acme", Manifest: m}, "ann"); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if _, err := db.Rollback(t.Context(), "acme", 0, "bob \"the\" builder"); err != nil {
			t.Fatal(err)
		}
		if _, err := db.SetStatus(t.Context(), "acme", clawr.StatusPaused, "eve"); err != nil {
			t.Fatal(err)
		}
		if n, err := db.CheckAudit(t.Context()); n != 10 || err != nil {
			t.Errorf("%d rows, %v; want 10", n, err)
		}
		token := store.Token{ID: "tok_1", Prefix: "clawr_Abc123", SecretSHA256: strings.Repeat("5e", 32), Scopes: []string{"events:read", "tokens:write"}}
		for _, err := range []error{
			db.SetOwner(t.Context(), "ann", `Ann "A."`, "", "tok_9"),
			db.CreateToken(t.Context(), token, "operator"),
			db.SetOwner(t.Context(), "ann", `Ann "A."`, "", "eve"), // which changes nothing
			db.RevokeToken(t.Context(), "tok_1", "bob"),
			db.RevokeToken(t.Context(), "tok_1", "eve"),
			db.RotateSecret(t.Context(), "quote", "operator"),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
		wantCode(t, db.CreateToken(t.Context(), token, "eve"), clawr.CodeConflict)
		wantCode(t, db.RevokeToken(t.Context(), "tok_2", "eve"), clawr.CodeNotFound)
		var got []string
		rows, err := raw.QueryContext(t.Context(), `SELECT actor || ' ' || action || ' ' || subject || ' ' || detail FROM audit_log WHERE seq > 10 ORDER BY seq`)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var s string
			if err := rows.Scan(&s); err != nil {
				t.Fatal(err)
			}
			got = append(got, s)
		}
		// Nothing of the secret is in it, nor its hash or first characters.
		if diff := cmp.Diff([]string{
			`tok_9 owner ann {"name":"Ann \"A.\"","payTo":""}`,
			`operator token tok_1 {"scopes":["events:read","tokens:write"]}`,
			`bob revoke tok_1 {}`,
			`operator rotate quote {"id":"1"}`,
		}, got); diff != "" {
			t.Errorf("owners, tokens and secrets in the log (-want +got):\n%s", diff)
		}
		if n, err := db.CheckAudit(t.Context()); n != 14 || err != nil {
			t.Errorf("%d rows, %v; want 14", n, err)
		}
		execute(t, raw, `UPDATE audit_log SET actor = 'mallory' WHERE seq = 13`)
		if n, err := db.CheckAudit(t.Context()); n != 12 || err == nil {
			t.Errorf("a changed revocation was not seen: %d, %v", n, err)
		}
		execute(t, raw, `UPDATE audit_log SET actor = 'mallory' WHERE seq = 4`)
		if n, err := db.CheckAudit(t.Context()); n != 3 || err == nil {
			t.Errorf("a changed row was not seen: %d, %v", n, err)
		}
		execute(t, raw, `UPDATE audit_log SET actor = 'ann' WHERE seq = 4`)
		execute(t, raw, `DELETE FROM audit_log WHERE seq = 7`)
		if n, err := db.CheckAudit(t.Context()); n != 6 || err == nil {
			t.Errorf("a missing row was not seen: %d, %v", n, err)
		}
	})
}

// TestFailedWorkOwesARefund looks at the row that Fail leaves.
func TestFailedWorkOwesARefund(t *testing.T) {
	onBoth(t, func(t *testing.T, o store.Options, raw *sql.DB) {
		db := open(t, o)
		p := reserve(t, db, 1, ledger.SettleFirst)
		must(t, db.Submit(t.Context(), p.ID, 1, "https://facilitator.example.com"))
		must(t, db.Paid(t.Context(), p.Key, ledger.Evidence{Tx: "0x1", BlockNumber: 1, BlockHash: "0x2"}))
		must(t, db.Start(t.Context(), p.ID, 1))
		must(t, db.Fail(t.Context(), p.ID, 1, clawr.CodeWorkerFailure, usage.Event{}))
		var amount int64
		var state, reason string
		if err := raw.QueryRowContext(t.Context(), `SELECT amount, state, reason FROM refunds WHERE payment_id = $1`, p.ID).Scan(&amount, &state, &reason); err != nil {
			t.Fatal(err)
		}
		if amount != p.Amount || state != "due" || reason != string(clawr.CodeWorkerFailure) {
			t.Errorf("refund of %d is %s because of %s", amount, state, reason)
		}
	})
}

// What an operator does to the book itself is in the log of what it is then.
func TestRepairsAreInTheAuditLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clawr.db")
	db := open(t, store.Options{Path: path})
	lost := reserve(t, db, 1, ledger.SettleBeforeResponse)
	backup := filepath.Join(t.TempDir(), "copy.db")
	if _, err := db.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	must(t, db.Close())
	if _, err := store.Restore(t.Context(), backup, path, "olga", time.Now()); err != nil {
		t.Fatal(err)
	}
	db = open(t, store.Options{Path: path})
	before, err := db.CheckAudit(t.Context())
	must(t, err)
	shown := ledger.Evidence{Tx: "0x1", BlockNumber: 1, BlockHash: "0x2"}
	for range 2 { // the second time there is nothing to do
		if _, err := db.Rebuild(t.Context(), lost.Key, lost.PayTo, lost.Amount, shown, "olga"); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := db.CheckAudit(t.Context()); err != nil || n != before+1 {
		t.Errorf("%d rows after %d, %v; want one more", n, before, err)
	}
	raw, err := sql.Open("sqlite", "file:"+path+"?mode=ro")
	must(t, err)
	defer raw.Close()
	for _, want := range []string{
		`olga restore database {"backup":"copy.db","kept":"clawr.db.`,
		`olga rebuild ` + lost.ID + ` {"did":"booked, refund due","tx":"0x1"}`,
	} {
		var n int
		must(t, raw.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM audit_log WHERE substr(actor || ' ' || action || ' ' || subject || ' ' || detail, 1, length($1)) = $1`, want).Scan(&n))
		if n != 1 {
			t.Errorf("%d rows of the log begin with %q, want 1", n, want)
		}
	}
}

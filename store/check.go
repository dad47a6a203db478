package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/402claw/clawr"
)

// Finding is one thing that Check looked at.
type Finding struct {
	Name   string // such as "I4"
	What   string // what must hold
	State  State
	Detail string // what is wrong, or what was looked at
}

// State is how a finding turned out.
type State string

// A warning is about how the database is run; what fails is wrong in it.
const (
	Sound   State = "ok"
	Warning State = "warning"
	Failed  State = "failed"
)

// invariants are money.md's as queries that count what breaks them. Most
// cannot be broken by any statement of ours; they are for what somebody else
// did to the database.
var invariants = []struct{ name, what, count string }{
	{"I1", "one authorization has one payment", `
		SELECT COUNT(*) FROM (SELECT 1 FROM payments GROUP BY network, asset, payer, auth_nonce HAVING COUNT(*) > 1) AS twice`},
	{"I2", "an answer belongs to one payment", `
		SELECT COUNT(*) FROM payment_responses r LEFT JOIN payments p ON p.id = r.payment_id WHERE p.id IS NULL`},
	{"I3", "nothing is submitted before its answer is stored", `
		SELECT COUNT(*) FROM payments p WHERE policy <> 'settle_first' AND money IN('signed','mined','final','dead')
		   AND (work <> 'done' OR NOT EXISTS(SELECT 1 FROM payment_responses r WHERE r.payment_id = p.id))`},
	{"I4", "what is released was never submitted", `
		SELECT COUNT(*) FROM payments p JOIN settlements s ON s.network = p.network AND s.asset = p.asset AND s.payer = p.payer AND s.auth_nonce = p.auth_nonce
			JOIN settlement_items i ON i.settlement_id = s.id AND i.live = 1
		WHERE p.money = 'released' AND (s.requested_by IS NULL OR s.requested_by = 'self')`},
	{"I5", "what is paid has evidence", `
		SELECT COUNT(*) FROM payments WHERE money IN('mined','final') AND (tx_hash IS NULL OR block_hash IS NULL OR block_number IS NULL OR log_index IS NULL)`},
	{"I6", "what is dead has proof", `SELECT COUNT(*) FROM payments WHERE money = 'dead' AND (proof IS NULL OR proof = '')`},
	{"I7", "a settlement is in one live batch, a signer's number in one batch", `
		SELECT (SELECT COUNT(*) FROM (SELECT 1 FROM settlement_items WHERE live = 1 GROUP BY settlement_id HAVING COUNT(*) > 1) AS a)
		     + (SELECT COUNT(*) FROM (SELECT 1 FROM settlement_batches GROUP BY network, signer, signer_nonce HAVING COUNT(*) > 1) AS b)
		     + (SELECT COUNT(*) FROM settlement_batches b WHERE NOT EXISTS(SELECT 1 FROM settlement_txs t WHERE t.batch_id = b.id))`},
	{"I8", "exposure is within its cap", `SELECT COUNT(*) FROM exposure WHERE held < 0 OR held > cap`},
	{"I9", "claimed ≤ charged ≤ signed ≤ balance in every channel", `
		SELECT COUNT(*) FROM channels WHERE NOT (total_claimed <= charged AND charged <= signed_max AND signed_max <= balance)`},
	{"I10", "a delivered call has one event", `
		SELECT COUNT(*) FROM payments p WHERE work = 'done' AND event_id IS NOT NULL
		   AND (SELECT COUNT(*) FROM usage_events e WHERE e.payment_id = p.id AND e.event_id = p.event_id) <> 1`},
	{"I11", "no counter is beyond its cap", `SELECT COUNT(*) FROM counters WHERE used < 0 OR used > cap`},
	{"I13", "what is charged has its answer, or a refund is due", `
		SELECT COUNT(*) FROM payments p WHERE money IN('mined','final') AND work <> 'pending' AND work <> 'running'
		   AND NOT EXISTS(SELECT 1 FROM payment_responses r WHERE r.payment_id = p.id) AND NOT EXISTS(SELECT 1 FROM refunds f WHERE f.payment_id = p.id)`},
	{"refunds", "what is refunded was charged for good, and no more of it", `
		SELECT COUNT(*) FROM refunds f JOIN payments p ON p.id = f.payment_id WHERE f.amount <> p.amount OR f.state <> 'due' AND p.money <> 'final'`},
}

// Check looks at the whole database: the file, the invariants, the audit
// chain, and how the server is set up. An error is that it could not look.
func (db *DB) Check(ctx context.Context) ([]Finding, error) {
	list, err := db.engine.check(ctx)
	if err != nil {
		return list, err
	}
	for _, inv := range invariants {
		var broken int64
		if err := db.reader().QueryRowContext(ctx, inv.count).Scan(&broken); err != nil {
			return list, fmt.Errorf("%s: %w", inv.name, err)
		}
		f := Finding{Name: inv.name, What: inv.what, State: Sound}
		if broken > 0 {
			f.State, f.Detail = Failed, fmt.Sprintf("%d rows break it", broken)
		}
		list = append(list, f)
	}
	rows, err := db.CheckAudit(ctx)
	f := Finding{Name: "I12", What: "the audit chain has no fork and no gap", State: Sound, Detail: fmt.Sprintf("%d rows", rows)}
	if err != nil {
		f.State, f.Detail = Failed, err.Error()
	}
	return append(list, f), nil
}

// check looks at the file: SQLite's own opinion, and ours of every page.
func (d *sqliteDB) check(ctx context.Context) ([]Finding, error) {
	guard := Finding{Name: "guard", What: "the file is as it was left, and has every commit that was acknowledged", State: Sound}
	if d.damage != nil {
		guard.State, guard.Detail = Failed, d.damage.Err.Error()
	} else {
		err := d.writer.write(ctx, func(context.Context, querier, bool) error { // no checkpoint meanwhile
			log, err := readWAL(d.guard.path)
			if err != nil {
				return err
			}
			defer log.close()
			if err := d.guard.sums.verify(log); err != nil {
				guard.State, guard.Detail = Failed, err.Error()
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	whole := Finding{Name: "integrity", What: "SQLite finds nothing wrong with the file", State: Sound}
	if err := integrity(ctx, d.reads); err != nil {
		whole.State, whole.Detail = Failed, err.Error()
	}
	return []Finding{guard, whole}, nil
}

// check looks at the settings on which an acknowledged reservation depends.
func (p *postgresDB) check(ctx context.Context) ([]Finding, error) {
	var fsync, pages, names string
	var standbys, inSync int
	err := p.db.QueryRowContext(ctx, `
		SELECT current_setting('fsync'), current_setting('full_page_writes'), current_setting('synchronous_standby_names'),
			(SELECT COUNT(*) FROM pg_stat_replication), (SELECT COUNT(*) FROM pg_stat_replication WHERE sync_state IN('sync','quorum'))`).
		Scan(&fsync, &pages, &names, &standbys, &inSync)
	if err != nil {
		return nil, err
	}
	disk := Finding{Name: "durability", What: "the server syncs what it acknowledges", State: Sound}
	if fsync != "on" || pages != "on" {
		disk.State, disk.Detail = Failed, fmt.Sprintf("fsync is %s and full_page_writes %s: a power cut loses payments; set both on", fsync, pages)
	}
	standby := Finding{Name: "standby", What: "a synchronous standby has every acknowledged payment", State: Sound,
		Detail: fmt.Sprintf("%d standbys, %d synchronous", standbys, inSync)}
	switch {
	case standbys == 0 && names == "":
		standby.State, standby.Detail = Warning, "there is no standby: the book is as safe as one disk; add one, named in synchronous_standby_names"
	case names == "":
		standby.State, standby.Detail = Warning, fmt.Sprintf("%d standbys, and none is synchronous: a fail-over forgets reservations, and sells for an authorization twice; set synchronous_standby_names", standbys)
	case inSync == 0:
		standby.State, standby.Detail = Failed, fmt.Sprintf("synchronous_standby_names is %q, and none of %d standbys is in sync: every write waits", names, standbys)
	}
	return []Finding{disk, standby}, nil
}

// Backup writes a consistent copy of the database to a new file while it is in
// use, and checks it. PostgreSQL has a program for that.
func (db *DB) Backup(ctx context.Context, path string) (size int64, err error) {
	s, ok := db.engine.(*sqliteDB)
	if !ok {
		return 0, &clawr.Error{Code: clawr.CodeUsage, Param: "database-url", Message: "a Postgres database is copied by its own program", Fix: "pg_dump --format=custom --file=clawr.dump \"$DATABASE_URL\""}
	}
	if _, err := os.Lstat(path); err == nil {
		return 0, &clawr.Error{Code: clawr.CodeConflict, Param: "backup", Message: path + " is there already", Fix: "choose another file, or remove it"}
	}
	part := path + ".part"
	os.Remove(part)
	defer os.Remove(part)
	unwritable := func(err error) error {
		return &clawr.Error{Code: clawr.CodeFile, Param: "backup", Message: "the backup cannot be written", Fix: "choose a file in a directory that clawr may write to, with room", Err: err}
	}
	from, err := connectSQLite(s.guard.path, "ro")
	if err != nil {
		return 0, err
	}
	defer from.Close()
	if _, err := from.ExecContext(ctx, `VACUUM INTO $1`, part); err != nil {
		return 0, unwritable(err)
	}
	if err := checkCopy(ctx, part); err != nil {
		return 0, err
	}
	f, err := os.OpenFile(part, os.O_RDWR, 0)
	if err != nil {
		return 0, unwritable(err)
	}
	st, err := f.Stat()
	for _, step := range []func() error{func() error { return err }, func() error { return f.Chmod(0o600) }, f.Sync, f.Close, func() error { return os.Rename(part, path) }} {
		if err := step(); err != nil {
			return 0, unwritable(err)
		}
	}
	return st.Size(), nil
}

// checkCopy is an error unless path is a whole database of ours.
func checkCopy(ctx context.Context, path string) error {
	broken := func(err error) error {
		return &clawr.Error{Code: clawr.CodeFile, Param: "backup", Message: path + " is no whole database of clawr's", Fix: "choose another backup", Err: err}
	}
	if _, err := os.Stat(path); err != nil {
		return &clawr.Error{Code: clawr.CodeFile, Param: "backup", Message: "there is no file " + path, Fix: "clawr db restore FILE, as clawr db backup wrote it", Err: err}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return broken(err)
	}
	db, err := connectSQLite(abs, "ro")
	if err != nil {
		return broken(err)
	}
	defer db.Close()
	if err := integrity(ctx, db); err != nil {
		return broken(err)
	}
	var payments int64
	if err := db.QueryRowContext(ctx, `SELECT COUNT(*) FROM payments`).Scan(&payments); err != nil {
		return broken(err)
	}
	return nil
}

// Restore makes the database at path of a copy that Backup wrote. What was
// there is kept beside it, under the name that it gives ("" if nothing was).
// The caller holds the data directory's lock. Who did it is in the audit log of
// what begins now.
func Restore(ctx context.Context, backup, path, by string, now time.Time) (kept string, err error) {
	if err := checkCopy(ctx, backup); err != nil {
		return "", err
	}
	b, err := os.Open(backup)
	if err != nil {
		return "", err
	}
	defer b.Close()
	part := path + ".part"
	defer os.Remove(part)
	if err := copyFile(part, b); err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err == nil {
		kept = path + "." + now.UTC().Format("20060102T150405Z")
		for _, suffix := range []string{walSuffix, ""} { // the log first: alone it is nothing
			if err := os.Rename(path+suffix, kept+suffix); err != nil && !os.IsNotExist(err) {
				return "", err
			}
		}
	}
	os.Remove(path + shmSuffix)
	os.Remove(path + walSuffix)
	if err := os.Remove(path + sumsSuffix); err != nil && !os.IsNotExist(err) {
		return kept, err
	}
	// The head stays: what begins now follows it too.
	if err := os.Rename(part, path); err != nil {
		return kept, err
	}
	db, err := Open(ctx, Options{Path: path, Repair: true})
	if err != nil {
		return kept, err
	}
	err = db.inLine(ctx, func(ctx context.Context, q querier, _ bool) error {
		return db.audit(ctx, q, by, "restore", "database", fmt.Sprintf(`{"backup":%q,"kept":%q}`, filepath.Base(backup), filepath.Base(cmp.Or(kept, "nothing"))))
	})
	return kept, errors.Join(err, db.Close())
}

// copyFile writes what r gives to a new file, durably.
func copyFile(path string, r *os.File) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	_, err = f.ReadFrom(r)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

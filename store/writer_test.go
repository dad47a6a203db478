package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr"
	sqlite3 "modernc.org/sqlite/lib"
)

// file is an SQLite database with one table, opened as the store opens its own.
func file(t *testing.T) (*sql.DB, *sql.Conn) {
	t.Helper()
	db, err := connectSQLite(filepath.Join(t.TempDir(), "w.db"), "rwc", "journal_mode(WAL)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ExecContext(t.Context(), `CREATE TABLE n(n BIGINT PRIMARY KEY CHECK(n >= 0))`); err != nil {
		t.Fatal(err)
	}
	return db, conn
}

// faulty is a connection whose next run of a statement fails, as it does on a
// broken disk.
type faulty struct {
	querier
	statement string
	err       error
}

func (f *faulty) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if query == f.statement {
		f.statement = ""
		return nil, f.err
	}
	return f.querier.ExecContext(ctx, query, args...)
}

// code is an SQLite result code as an error.
type code int

func (c code) Error() string { return fmt.Sprintf("SQLite error %d", int(c)) }
func (c code) Code() int     { return int(c) }

func insert(n int) transaction {
	return func(ctx context.Context, q querier, again bool) error {
		_, err := q.ExecContext(ctx, `INSERT INTO n(n) VALUES ($1) ON CONFLICT DO NOTHING`, n)
		return err
	}
}

func count(t *testing.T, db *sql.DB) (n int) {
	t.Helper()
	if err := db.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM n`).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// blocked starts a job that holds the writer until release is closed, so that
// what follows shares one transaction with it.
func blocked(w *writer, release chan struct{}) (done chan error) {
	started := make(chan struct{})
	start := sync.OnceFunc(func() { close(started) })
	done = make(chan error, 1)
	go func() {
		done <- w.write(context.Background(), func(ctx context.Context, q querier, again bool) error {
			if !again {
				start()
				<-release
			}
			return insert(1000)(ctx, q, again)
		})
	}()
	<-started
	return done
}

// together runs fns so that they are all in one batch.
func together(t *testing.T, w *writer, fns ...transaction) []error {
	t.Helper()
	release := make(chan struct{})
	first := blocked(w, release)
	errs := make([]error, len(fns))
	var wg sync.WaitGroup
	for i, fn := range fns {
		wg.Go(func() { errs[i] = w.write(context.Background(), fn) })
	}
	for len(w.jobs) < len(fns) {
		time.Sleep(time.Millisecond)
	}
	close(release)
	wg.Wait()
	return append(errs, <-first)
}

func TestOneRefusalTakesNobodyAlong(t *testing.T) {
	db, conn := file(t)
	w := newWriter(&prepared{db: conn}, nil, func(err error) { t.Error(err) })
	defer w.stop()
	mine := errors.New("refused")
	errs := together(t, w,
		insert(1),
		func(ctx context.Context, q querier, again bool) error {
			return errors.Join(insert(2)(ctx, q, again), mine)
		},
		insert(-1), // a CHECK
		insert(3),
	)
	if errs[0] != nil || !errors.Is(errs[1], mine) || errs[2] == nil || errs[3] != nil || errs[4] != nil {
		t.Errorf("ended with %v", errs)
	}
	if n := count(t, db); n != 3 {
		t.Errorf("%d rows, want 3", n)
	}
}

// Who is refused before he wrote anything costs nobody a second run, and who is
// refused after he did leaves nothing, whatever statement he wrote with.
func TestARefusalIsCleanedUpOnlyIfItHasToBe(t *testing.T) {
	mine := errors.New("refused")
	returning := func(ctx context.Context, q querier, _ bool) error {
		var n int
		return errors.Join(q.QueryRowContext(ctx, `INSERT INTO n(n) VALUES (2) RETURNING n`).Scan(&n), mine)
	}
	for name, c := range map[string]struct {
		refused transaction
		runs    int64
	}{
		"at once": {func(context.Context, querier, bool) error { return mine }, 1},
		"after a look": {func(ctx context.Context, q querier, _ bool) error {
			var n int
			_ = q.QueryRowContext(ctx, "\n\tSELECT COUNT(*) FROM n").Scan(&n)
			return mine
		}, 1},
		"after a no": {func(ctx context.Context, q querier, _ bool) error {
			_, err := q.ExecContext(ctx, `UPDATE n SET n = 5 WHERE n = 77`)
			return errors.Join(err, mine)
		}, 1},
		"after an insert": {func(ctx context.Context, q querier, again bool) error {
			return errors.Join(insert(2)(ctx, q, again), mine)
		}, 2},
		"with RETURNING": {returning, 2},
	} {
		t.Run(name, func(t *testing.T) {
			db, conn := file(t)
			w := newWriter(&prepared{db: conn}, nil, func(err error) { t.Error(err) })
			defer w.stop()
			var runs atomic.Int64
			errs := together(t, w, func(ctx context.Context, q querier, again bool) error {
				runs.Add(1)
				return insert(1)(ctx, q, again)
			}, c.refused)
			if errs[0] != nil || !errors.Is(errs[1], mine) || errs[2] != nil {
				t.Errorf("ended with %v", errs)
			}
			if n := count(t, db); n != 2 {
				t.Errorf("%d rows, want 2", n)
			}
			if runs.Load() > c.runs {
				t.Errorf("a neighbour ran %d times, want %d", runs.Load(), c.runs)
			}
		})
	}
}

func TestFailedCommitIsLookedUpByEachWaiter(t *testing.T) {
	db, conn := file(t)
	w := newWriter(&faulty{conn, "COMMIT", code(sqlite3.SQLITE_IOERR_WRITE)}, nil, func(err error) { t.Error(err) })
	defer w.stop()
	var again atomic.Int64
	errs := together(t, w, insert(1), func(ctx context.Context, q querier, second bool) error {
		if second {
			again.Add(1)
		}
		return insert(2)(ctx, q, second)
	})
	for i, err := range errs {
		if err != nil {
			t.Errorf("waiter %d: %v", i, err)
		}
	}
	if n := count(t, db); n != 3 || again.Load() != 1 {
		t.Errorf("%d rows, want 3; told again %d times, want once", n, again.Load())
	}
}

func TestFullDiskIsUnavailable(t *testing.T) {
	db, conn := file(t)
	if _, err := conn.ExecContext(t.Context(), `CREATE TABLE big(b BLOB); PRAGMA max_page_count = 50`); err != nil {
		t.Fatal(err)
	}
	w := newWriter(&prepared{db: conn}, nil, func(err error) { t.Error(err) })
	defer w.stop()
	big := func(ctx context.Context, q querier, again bool) error {
		if err := insert(2)(ctx, q, again); err != nil {
			return err
		}
		_, err := q.ExecContext(ctx, `INSERT INTO big(b) VALUES ($1)`, make([]byte, 1<<20))
		return err
	}
	errs := together(t, w, insert(1), big)
	if errs[0] != nil || errs[2] != nil {
		t.Errorf("the neighbours ended with %v", errs)
	}
	if clawr.CodeOf(errs[1]) != clawr.CodeOverloaded || sqliteCode(errs[1]) != sqlite3.SQLITE_FULL {
		t.Errorf("a full disk is told as %v", errs[1])
	}
	if n := count(t, db); n != 2 {
		t.Errorf("%d rows, want 2", n)
	}
	if _, err := conn.ExecContext(t.Context(), `PRAGMA max_page_count = 5000`); err != nil {
		t.Fatal(err)
	}
	if err := w.write(t.Context(), big); err != nil {
		t.Errorf("once there is space again: %v", err)
	}
}

func TestFailedFsyncIsFatal(t *testing.T) {
	db, conn := file(t)
	var fatal atomic.Int64
	w := newWriter(&faulty{conn, "COMMIT", code(sqlite3.SQLITE_IOERR_FSYNC)}, nil, func(error) { fatal.Add(1) })
	defer w.stop()
	for i, err := range together(t, w, insert(1), insert(2)) {
		if clawr.CodeOf(err) != clawr.CodeOverloaded {
			t.Errorf("waiter %d was told %v", i, err)
		}
	}
	if err := w.write(t.Context(), insert(3)); clawr.CodeOf(err) != clawr.CodeOverloaded {
		t.Errorf("a write after the disk failed: %v", err)
	}
	if fatal.Load() != 1 {
		t.Errorf("Fatal was called %d times, want once", fatal.Load())
	}
	if n := count(t, db); n != 0 {
		t.Errorf("%d rows were acknowledged by a disk that failed", n)
	}
}

func TestStoppedWriterFinishesWhatItAccepted(t *testing.T) {
	db, conn := file(t)
	w := newWriter(&prepared{db: conn}, nil, func(err error) { t.Error(err) })
	release := make(chan struct{})
	first := blocked(w, release)
	second := make(chan error, 1)
	go func() { second <- w.write(context.Background(), insert(2)) }()
	for len(w.jobs) == 0 {
		time.Sleep(time.Millisecond)
	}
	stopped := make(chan struct{})
	go func() { w.stop(); close(stopped) }()
	close(release)
	<-stopped
	if err := errors.Join(<-first, <-second); err != nil {
		t.Error(err)
	}
	if err := w.write(t.Context(), insert(3)); !errors.Is(err, errClosed) {
		t.Errorf("a write after the end: %v", err)
	}
	if n := count(t, db); n != 2 {
		t.Errorf("%d rows, want 2", n)
	}
}

func TestCallerWhoLeftInTimeLeavesNothing(t *testing.T) {
	db, conn := file(t)
	w := newWriter(&prepared{db: conn}, nil, func(err error) { t.Error(err) })
	defer w.stop()
	release := make(chan struct{})
	first := blocked(w, release)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() { left <- w.write(ctx, insert(2)) }()
	for len(w.jobs) == 0 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("left with %v", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	if err := w.write(ctx, insert(3)); !errors.Is(err, context.Canceled) {
		t.Errorf("came cancelled: %v", err)
	}
	if n := count(t, db); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

func TestOldLibrariesAreRefused(t *testing.T) {
	for version, want := range map[string]bool{
		"3.51.3": true, "3.51.4": true, "3.52.0": true, "3.100.1": true, "4.0.0": true, "3.51.3.1": true,
		"3.51.2": false, "3.46.1": false, "2.99.9": false, "3.51": false, "": false, "3.x.9": false,
	} {
		if got := atLeast(version, oldest); got != want {
			t.Errorf("SQLite %q is new enough: %v, want %v", version, got, want)
		}
	}
}

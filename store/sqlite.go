package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver
	sqlite3 "modernc.org/sqlite/lib"
)

// oldest is the first SQLite without the bug that let a WAL reset drop
// committed transactions.
const oldest = "3.51.3"

// How much of the file its one writer and each of its readers keep, in KiB.
// Payments are found by keys that are random, so that a cache of any size is
// full soon, and finds little in a book that is much larger; the kernel has the
// rest. With more, memory grew for as long as the book did.
const (
	writerCache = 32 << 10
	readerCache = 4 << 10
)

// sqliteDB is the embedded engine: one file, one writer, many readers.
type sqliteDB struct {
	*writer
	writing *sql.DB
	conn    *sql.Conn // the only one of writing, the writer's
	reading *sql.DB
	reads   *prepared
	writes  *prepared
	damage  *clawr.Error // why nothing may be written; nil: the file is as it was left
}

// openSQLite opens the file at path, and creates it if it is missing. One that
// is not as it was left is opened to be read only, unless repair takes it for
// right as it is.
func openSQLite(ctx context.Context, path string, repair bool, log *slog.Logger, fatal func(error)) (_ *sqliteDB, err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	// SQLite would create it readable by everybody; it holds keys. Its WAL gets the same mode.
	f, err := os.OpenFile(abs, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, &clawr.Error{Code: clawr.CodeFile, Param: "data", Message: "the database cannot be opened: " + err.Error(), Fix: "make its directory writable for this user", Err: err}
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	d := &sqliteDB{}
	g, was, damage, err := inspect(abs, log)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.shut())
			if d.writer == nil {
				err = errors.Join(err, g.abandon())
			}
		}
	}()
	if damage == nil && was.head != nil {
		if damage, err = behind(ctx, abs, was.head); err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
	}
	mode := "rwc"
	if damage != nil && !repair {
		mode, d.damage = "ro", damaged(damage)
		log.ErrorContext(ctx, "the database is damaged: answers are given from it, and no payments are taken", "path", path, "err", damage)
	}
	// The guard alone copies the log into the main file: no automatic checkpoint.
	if d.writing, err = connectSQLite(abs, mode, "journal_mode(WAL)", "journal_size_limit(67108864)", "wal_autocheckpoint(0)", fmt.Sprintf("cache_size(-%d)", writerCache), "temp_store(MEMORY)"); err != nil {
		return nil, err
	}
	d.writing.SetMaxOpenConns(1)
	if err := checkSQLite(ctx, d.writing); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	if repair {
		if err := integrity(ctx, d.writing); err != nil {
			return nil, &clawr.Error{Code: clawr.CodeFile, Param: "data", Message: "the database is broken, and cannot be taken as it is: " + err.Error(), Fix: "clawr db restore BACKUP"}
		}
	}
	if d.damage == nil {
		if err := migrate(ctx, goose.DialectSQLite3, d.writing); err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		if err := g.begin(ctx, d.writing, was, repair); err != nil {
			return nil, fmt.Errorf("open %s: %w", path, err)
		}
		if g.copier, err = newCopier(abs); err != nil {
			return nil, err
		}
	}
	if d.reading, err = connectSQLite(abs, mode, "query_only(1)", fmt.Sprintf("cache_size(-%d)", readerCache)); err != nil {
		return nil, err
	}
	readers := max(4, 2*runtime.GOMAXPROCS(0))
	d.reading.SetMaxOpenConns(readers)
	d.reading.SetMaxIdleConns(readers)
	d.reads = &prepared{db: d.reading}
	if d.conn, err = d.writing.Conn(ctx); err != nil {
		return nil, err
	}
	d.writes = &prepared{db: d.conn}
	d.writer = newWriter(d.writes, g, fatal)
	return d, nil
}

// behind looks whether the database at path lacks commits that were
// acknowledged. It opens it to be read, and changes nothing.
func behind(ctx context.Context, path string, kept *head) (damage, err error) {
	db, err := connectSQLite(path, "ro", "query_only(1)")
	if err != nil {
		return nil, err
	}
	defer db.Close()
	h, err := readDBHead(ctx, db)
	if code := sqliteCode(err) & 0xff; code == sqlite3.SQLITE_NOTADB || code == sqlite3.SQLITE_CORRUPT {
		return err, nil
	}
	return headLost(h, kept), err
}

// write refuses where there is damage.
func (d *sqliteDB) write(ctx context.Context, fn transaction) error {
	if d.damage != nil {
		return errReadOnly
	}
	return d.writer.write(ctx, fn)
}

// busyTimeout is how long, in milliseconds, a connection waits for another.
const busyTimeout = 10_000

// connectSQLite opens a file with the settings that every connection needs.
// FULL makes each commit durable; NORMAL would lose the last ones in a power
// cut, and with them reservations that were acknowledged. The writer keeps what
// its savepoints need in memory: in a file it costs a tenth of everything.
func connectSQLite(path, mode string, pragmas ...string) (*sql.DB, error) {
	q := url.Values{"mode": {mode}, "_pragma": append([]string{fmt.Sprintf("busy_timeout(%d)", busyTimeout), "synchronous(FULL)", "foreign_keys(1)", "trusted_schema(0)"}, pragmas...)}
	if vfsName != "" {
		if err := registerVFS(); err != nil {
			return nil, err
		}
		q.Set("vfs", vfsName)
	}
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String())
}

// checkSQLite refuses a library that loses data, and a file on which WAL does
// not work.
func checkSQLite(ctx context.Context, db *sql.DB) error {
	var version, mode string
	if err := db.QueryRowContext(ctx, `SELECT sqlite_version()`).Scan(&version); err != nil {
		return notDatabase(err)
	}
	if !atLeast(version, oldest) {
		return &clawr.Error{Code: clawr.CodeInternal, Message: "SQLite " + version + " can lose committed transactions", Fix: "build clawr with SQLite " + oldest + " or later"}
	}
	if err := db.QueryRowContext(ctx, `PRAGMA journal_mode`).Scan(&mode); err != nil {
		return notDatabase(err)
	}
	if mode != "wal" {
		return &clawr.Error{Code: clawr.CodeFile, Param: "data", Message: "the database's file system has no shared memory, which the write-ahead log needs", Fix: "use a local disk"}
	}
	return nil
}

// notDatabase tells of a file that SQLite cannot read.
func notDatabase(err error) error {
	if sqliteCode(err) == sqlite3.SQLITE_NOTADB {
		return &clawr.Error{Code: clawr.CodeFile, Param: "data", Message: "the file is not a database", Fix: "choose another --data", Err: err}
	}
	return err
}

// atLeast compares versions such as 3.51.3 by number.
func atLeast(version, least string) bool {
	v, l := strings.Split(version, "."), strings.Split(least, ".")
	for i := range l {
		if i >= len(v) {
			return false
		}
		a, err1 := strconv.Atoi(v[i])
		b, err2 := strconv.Atoi(l[i])
		if err1 != nil || err2 != nil {
			return false
		}
		if a != b {
			return a > b
		}
	}
	return true
}

func (d *sqliteDB) reader() querier { return d.reads }

func (d *sqliteDB) close() error {
	d.writer.stop()
	var err error
	if d.damage == nil {
		// Readers first: they would keep the log from being copied to its end.
		err = errors.Join(d.reads.close(), d.reading.Close())
		d.reads, d.reading = nil, nil
		err = errors.Join(err, d.guard.close(context.Background(), d.writes))
	} else {
		err = d.guard.abandon()
	}
	return errors.Join(err, d.shut())
}

func (d *sqliteDB) shut() error {
	var errs []error
	for _, p := range []*prepared{d.reads, d.writes} {
		if p != nil {
			errs = append(errs, p.close())
		}
	}
	if d.reading != nil {
		errs = append(errs, d.reading.Close())
	}
	if d.conn != nil {
		errs = append(errs, d.conn.Close())
	}
	if d.writing != nil {
		errs = append(errs, d.writing.Close())
	}
	return errors.Join(errs...)
}

// lazily is write: one writer has no quicker way.
func (d *sqliteDB) lazily(ctx context.Context, fn transaction) error { return d.write(ctx, fn) }

// The data directory has one owner, so nobody else is to be told or waited for.
func (d *sqliteDB) notify(context.Context, querier) error                { return nil }
func (d *sqliteDB) tell(context.Context, string, string) error           { return nil }
func (d *sqliteDB) listen(ctx context.Context, _ string, _ func(string)) { <-ctx.Done() }
func (d *sqliteDB) poll() time.Duration                                  { return 200 * time.Millisecond }
func (d *sqliteDB) lockPayments(context.Context, querier) error          { return nil }
func (d *sqliteDB) soleOwner() bool                                      { return true }

// sqliteCode is err's extended result code, 0 if it is not SQLite's.
func sqliteCode(err error) int {
	if e, ok := errors.AsType[coded](err); ok {
		return e.Code()
	}
	return 0
}

// coded is *sqlite.Error, which cannot be made by hand, and what tests make.
type coded interface {
	error
	Code() int
}

// brokenPromise reports whether err means that data which the kernel had
// accepted may not be on the disk: after a failed fsync it is unknown what is,
// and asking again would be answered from memory.
func brokenPromise(err error) bool {
	code := sqliteCode(err)
	return code == sqlite3.SQLITE_IOERR_FSYNC || code == sqlite3.SQLITE_IOERR_DIR_FSYNC
}

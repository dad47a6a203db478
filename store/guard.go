package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/402claw/clawr"
)

// Once in so many commits the length of the log is looked at. What it has got is
// copied into the main file a little at a time, because commits wait for the
// disk while much is synced. Only to begin anew must all of it be copied, for
// which the writer stops: a log that long, of 33 MB, does.
const (
	lookEvery       = 16
	copyPages       = 2000
	checkpointPages = 8000
)

// guard watches over an SQLite file: it keeps the head of its commits and the
// sums of its pages. It belongs to the writer.
type guard struct {
	path    string
	head    head
	file    *headFile
	sums    *pageSums
	log     *wal     // what was read of the log so far
	copier  *copier  // nil: the log is copied at once
	copying *copying // that is under way; nil: none
	commits int
	again   int   // pages from which on it is tried once more to begin the log anew, if more: somebody read it for long
	changes int64 // rows that the connection had changed after the last commit
	logger  *slog.Logger
	warned  bool
}

// stage puts the next head into the transaction that is about to commit, or
// says that it changes nothing, so that its commit is nothing to the disk.
func (g *guard) stage(ctx context.Context, q querier) (next head, some bool, err error) {
	var changes int64
	if err := q.QueryRowContext(ctx, `SELECT total_changes()`).Scan(&changes); err != nil || changes == g.changes {
		return next, false, err
	}
	next = g.head.next()
	_, err = q.ExecContext(ctx, `UPDATE commit_head SET seq = $1, hash = $2 WHERE id = 1`, next.seq, next.hash)
	g.changes = changes + 1
	return next, true, err
}

// committed remembers a head that is durable. What is committed stays so if
// the file cannot be written: it only guards the commits before it then.
func (g *guard) committed(ctx context.Context, q querier, h head) {
	g.head = h
	err := g.file.write(h, time.Now(), false)
	if g.commits++; g.copying != nil || g.commits%lookEvery == 0 {
		err = errors.Join(err, g.tend(ctx, q))
	}
	if err != nil && !g.warned {
		g.logger.ErrorContext(ctx, "the database is not guarded against silent loss just now", "err", err)
	}
	g.warned = err != nil
}

// tend sees to it that the log does not grow too long: it is copied beside the
// writer, and when it is long the writer copies the little that came in addition.
func (g *guard) tend(ctx context.Context, q querier) error {
	if g.copying != nil {
		if !g.copying.ended() {
			return nil
		}
		pages, copied, err := logPages(ctx, q)
		if err != nil {
			return err
		}
		whole := pages >= g.long() || pages <= copied || g.copying.err != nil
		if whole { // before it may begin anew, whatever became of the copying
			if err := g.log.read(allFrames); err != nil {
				return fmt.Errorf("read the log: %w", err)
			}
		}
		err = g.copying.release()
		if g.copying = nil; !whole {
			return err // what is not copied keeps the log from beginning anew
		}
		return errors.Join(err, g.checkpoint(ctx, q))
	}
	pages, copied, err := logPages(ctx, q)
	switch {
	case err != nil:
		return err
	case pages <= copied || pages < g.long() && (g.copier == nil || pages-copied < copyPages):
	case g.copier == nil:
		return g.checkpoint(ctx, q)
	default:
		g.copying = g.copier.start(ctx, g.log, g.sums)
	}
	return nil
}

// long is from how many pages on the log is to begin anew.
func (g *guard) long() int { return max(checkpointPages, g.again) }

// logPages is how many pages the log has, and how many of them were copied.
func logPages(ctx context.Context, q querier) (pages, copied int, err error) {
	var busy int
	if err := q.QueryRowContext(ctx, `PRAGMA wal_checkpoint(NOOP)`).Scan(&busy, &pages, &copied); err != nil {
		return 0, 0, fmt.Errorf("look at the log: %w", err)
	}
	return pages, copied, nil
}

// patience is how long, in milliseconds, the writer waits for those who read an
// older state of the log: they are through in less, but for an export.
const patience = 20

// checkpoint copies the log into the main file, and takes over its sums if it
// was copied to its end.
func (g *guard) checkpoint(ctx context.Context, q querier) error {
	pages, copied, err := logPages(ctx, q)
	if err != nil {
		return err
	}
	// From before: every page that is copied is in it, and nobody adds any.
	if err := g.log.read(allFrames); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if copied < pages || pages >= g.long() {
		if pages, copied, err = g.restart(ctx, q); err != nil {
			return err
		}
	}
	if copied < pages {
		return nil // somebody reads an older state; next time
	}
	return g.sums.update(g.log)
}

// restart copies the rest of the log, and waits until nobody reads it, so that
// the next commit begins it anew. One that begins while somebody does goes on
// with the old one, and with many readers there is always somebody: the log
// grew until one day there was not.
func (g *guard) restart(ctx context.Context, q querier) (pages, copied int, err error) {
	if _, err := q.ExecContext(ctx, fmt.Sprintf(`PRAGMA busy_timeout(%d)`, patience)); err != nil {
		return 0, 0, err
	}
	var busy int
	err = q.QueryRowContext(ctx, `PRAGMA wal_checkpoint(RESTART)`).Scan(&busy, &pages, &copied)
	if _, back := q.ExecContext(ctx, fmt.Sprintf(`PRAGMA busy_timeout(%d)`, busyTimeout)); err != nil || back != nil {
		return 0, 0, fmt.Errorf("copy the log: %w", errors.Join(err, back))
	}
	if g.again = 0; busy != 0 { // a backup or an export: the writer does not wait for it at every turn
		g.again = pages + copyPages/2
	}
	return pages, copied, nil
}

// close leaves a log without anything that the main file does not have.
func (g *guard) close(ctx context.Context, q querier) error {
	return errors.Join(g.idle(), g.checkpoint(ctx, q), g.file.close(), g.log.close(), g.sums.close())
}

// abandon leaves everything as it is.
func (g *guard) abandon() error {
	return errors.Join(g.idle(), g.file.idle(), g.file.f.Close(), g.log.close(), g.sums.close())
}

// idle waits until nothing is copied any more.
func (g *guard) idle() (err error) {
	if g.copying != nil {
		err = g.copying.release()
		g.copying = nil
	}
	if g.copier != nil {
		err = errors.Join(err, g.copier.close())
		g.copier = nil
	}
	return err
}

// state is what is found of an SQLite file before anything is written.
type state struct {
	head *head // what the file beside it remembers
	sums bool  // there are sums of its pages
}

// inspect opens the guards of the database at path and holds its main file
// against them. damage says what is wrong with it.
func inspect(path string, log *slog.Logger) (g *guard, was state, damage, err error) {
	g = &guard{path: path, log: &wal{path: path}, logger: log}
	if g.file, was.head, err = openHead(path + headSuffix); err != nil {
		if !errors.Is(err, errHeadFile) {
			return nil, was, nil, err
		}
		damage = err
	}
	if g.sums, was.sums, err = openSums(path); err != nil {
		return nil, was, nil, errors.Join(err, g.file.close())
	}
	if damage != nil || !was.sums {
		return g, was, damage, nil
	}
	wal, err := readWAL(path)
	if err != nil {
		return nil, was, nil, errors.Join(err, g.file.close(), g.sums.close())
	}
	defer wal.close()
	return g, was, g.sums.verify(wal), nil
}

// readDBHead is the head that the database has; zero before its first commit.
func readDBHead(ctx context.Context, db *sql.DB) (h head, err error) {
	var there int
	if err := db.QueryRowContext(ctx, `SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'commit_head'`).Scan(&there); err != nil || there == 0 {
		return h, err
	}
	err = db.QueryRowContext(ctx, `SELECT seq, hash FROM commit_head WHERE id = 1`).Scan(&h.seq, &h.hash)
	return h, err
}

// integrity is SQLite's own opinion of a whole file.
func integrity(ctx context.Context, q querier) error {
	var first string
	rows, err := q.QueryContext(ctx, `PRAGMA integrity_check(1)`)
	err = each(rows, err, func(rows *sql.Rows) error { return rows.Scan(&first) })
	if err == nil && first != "ok" {
		err = errors.New(first)
	}
	return err
}

// begin guards a database that is found right, or taken for right: repaired
// begins a history that follows both that of the database and that of the file.
func (g *guard) begin(ctx context.Context, db *sql.DB, was state, repaired bool) error {
	var err error
	if g.head, err = readDBHead(ctx, db); err != nil {
		return err
	}
	if repaired {
		if was.head != nil && was.head.seq > g.head.seq {
			g.head.seq = was.head.seq
		}
		g.head = g.head.next()
		if _, err := db.ExecContext(ctx, `UPDATE commit_head SET seq = $1, hash = $2 WHERE id = 1`, g.head.seq, g.head.hash); err != nil {
			return err
		}
	}
	if repaired || !was.sums {
		var busy, pages, copied int
		if err := db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &pages, &copied); err != nil {
			return err
		}
		if busy != 0 {
			return &clawr.Error{Code: clawr.CodeLocked, Param: "data", Message: "another program reads the database", Fix: "end it and try again"}
		}
		if err := g.sums.baseline(); err != nil {
			return err
		}
	}
	return g.file.write(g.head, time.Now(), true)
}

// damaged tells whoever looks after a database what is wrong with it.
func damaged(why error) *clawr.Error {
	return &clawr.Error{Code: clawr.CodeReadOnly, Message: "the database has lost or changed something, and nothing is written to it",
		Fix: "stop clawr and whatever else has clawr.db open; then clawr db restore BACKUP, or, if it was only checkpointed, clawr db check --repair --rpc-url URL, which takes it as it is", Err: why}
}

// errReadOnly is what a write is refused with: callers of an API see it.
var errReadOnly = &clawr.Error{Code: clawr.CodeReadOnly, Message: "no payments are taken just now; nothing was charged", Fix: "try again later", RetryAfter: time.Minute}

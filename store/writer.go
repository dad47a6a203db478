package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	sqlite3 "modernc.org/sqlite/lib"
)

// maxBatch bounds how many jobs share a COMMIT, and so how long the first one
// waits for the last.
const maxBatch = 128

// careful is for how many batches every job gets a savepoint, after one was
// refused that had written something already.
const careful = 64

// writer is the only writer of an SQLite database. Jobs that arrive while a
// COMMIT is on its way to the disk share the next one: one fsync acknowledges
// them all. One that is refused takes nothing of its neighbours with it: most
// are before they wrote anything, and when one was not, the batch is done again
// with a savepoint for each, which costs a tenth of everything.
type writer struct {
	conn  querier // one connection
	guard *guard  // nil: nobody watches over the file
	rows  *channelRows
	fatal func(error)
	care  int // batches that are left to be careful with
	jobs  chan *job
	done  chan struct{} // closed when the last job was answered

	mu      sync.RWMutex // held shared while a job is handed over
	stopped bool
	broken  error // set by the loop once the disk broke its promise
}

// job is one transaction that somebody waits for.
type job struct {
	fn    transaction
	taken atomic.Bool // by the writer, or by the caller who no longer wants it
	err   error
	ready chan struct{}
}

func newWriter(conn querier, g *guard, fatal func(error)) *writer {
	w := &writer{conn: conn, guard: g, rows: new(channelRows), fatal: fatal, jobs: make(chan *job, maxBatch), done: make(chan struct{})}
	go w.loop()
	return w
}

// write hands fn to the writer. A caller whose context ends before its turn
// leaves; from then on it is told how it ended, within milliseconds.
func (w *writer) write(ctx context.Context, fn transaction) error {
	j := &job{fn: fn, ready: make(chan struct{})}
	if err := w.enqueue(ctx, j); err != nil {
		return err
	}
	select {
	case <-j.ready:
	case <-ctx.Done():
		if j.taken.CompareAndSwap(false, true) {
			return ctx.Err()
		}
		<-j.ready
	}
	return j.err
}

func (w *writer) enqueue(ctx context.Context, j *job) error {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.stopped {
		return unavailable(errClosed)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case w.jobs <- j:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop refuses new jobs and waits until those accepted are done.
func (w *writer) stop() {
	w.mu.Lock()
	if !w.stopped {
		w.stopped = true
		close(w.jobs)
	}
	w.mu.Unlock()
	<-w.done
}

func (w *writer) loop() {
	defer close(w.done)
	for j := range w.jobs {
		batch := w.run(j)
		for _, j := range batch {
			close(j.ready)
		}
	}
}

// run commits first and whatever else is waiting. Afterwards the err of every
// job that it returns says how it ended.
func (w *writer) run(first *job) []*job {
	batch, err := w.attempt(first)
	if err == nil {
		return batch
	}
	if brokenPromise(err) {
		w.fail(batch, err)
		return batch
	}
	// The transaction as a whole failed, perhaps because of one of them. Nothing
	// of it is left; each now has one of its own, and finds out for itself.
	for _, j := range batch {
		if w.broken != nil {
			j.err = unavailable(w.broken)
			continue
		}
		if err := w.alone(j); err != nil {
			w.fail([]*job{j}, err)
		}
	}
	return batch
}

// attempt runs one shared transaction. An error means that it failed as a
// whole and is rolled back.
func (w *writer) attempt(first *job) (batch []*job, err error) {
	ctx := context.Background() // a caller's end must not end the others' transaction
	if !first.taken.CompareAndSwap(false, true) {
		return nil, nil
	}
	batch = append(batch, first)
	if w.broken != nil {
		first.err = unavailable(w.broken)
		return batch, nil
	}
	if err := w.exec(ctx, "BEGIN IMMEDIATE"); err != nil {
		return batch, err
	}
	safe := w.care > 0
	w.care = max(w.care-1, 0)
	for next := first; next != nil; {
		run := w.item
		if !safe {
			run = w.bare
		}
		err := run(ctx, next, false)
		if err == errDirty {
			w.care = careful
			if err := w.rollback(ctx); err != nil {
				return batch, err
			}
			return batch, w.repeat(ctx, batch)
		}
		if err != nil {
			return batch, errors.Join(err, w.rollback(ctx))
		}
		if next = w.waiting(len(batch)); next != nil {
			batch = append(batch, next)
		}
	}
	if err := w.commit(ctx); err != nil {
		return batch, errors.Join(err, w.rollback(ctx))
	}
	return batch, nil
}

// repeat runs a batch that was rolled back once more, with savepoints.
func (w *writer) repeat(ctx context.Context, batch []*job) error {
	err := w.exec(ctx, "BEGIN IMMEDIATE")
	if err != nil {
		return err
	}
	for _, j := range batch {
		if err = w.item(ctx, j, false); err != nil {
			break
		}
	}
	if err == nil {
		err = w.commit(ctx)
	}
	if err != nil {
		return errors.Join(err, w.rollback(ctx))
	}
	return nil
}

// commit makes the transaction durable, with the head that says so.
func (w *writer) commit(ctx context.Context) error {
	var next head
	var some bool
	var err error
	if w.guard != nil {
		next, some, err = w.guard.stage(ctx, w.conn)
	}
	if err == nil {
		err = w.exec(ctx, "COMMIT")
	}
	if err != nil {
		return err
	}
	w.rows.commit()
	if some {
		w.guard.committed(ctx, w.conn, next)
	}
	return nil
}

// waiting takes the next job that somebody still wants, if one is there and
// the batch has room for it.
func (w *writer) waiting(size int) *job {
	for size < maxBatch {
		select {
		case j, ok := <-w.jobs:
			if !ok {
				return nil
			}
			if j.taken.CompareAndSwap(false, true) {
				return j
			}
		default:
			return nil
		}
	}
	return nil
}

// alone runs j in a transaction of its own, after a shared one failed.
func (w *writer) alone(j *job) error {
	ctx := context.Background()
	err := w.exec(ctx, "BEGIN IMMEDIATE")
	if err == nil {
		err = w.item(ctx, j, true)
		if err == nil {
			err = w.commit(ctx)
		}
		if err != nil {
			err = errors.Join(err, w.rollback(ctx))
		}
	}
	return err
}

// errDirty says that a job was refused after it had written something.
var errDirty = errors.New("store: refused, and not clean")

// bare runs one job without a savepoint. Its errors are item's, and errDirty.
func (w *writer) bare(ctx context.Context, j *job, again bool) error {
	q := dirty{querier: w.conn}
	if j.err = j.fn(ctx, &q, again); j.err == nil {
		return nil
	}
	if endsTransaction(j.err) {
		return j.err
	}
	if q.wrote {
		return errDirty
	}
	return nil
}

// dirty notes whether something may have been written.
type dirty struct {
	querier
	wrote bool
}

func (q *dirty) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	res, err := q.querier.ExecContext(ctx, query, args...)
	if err == nil && !q.wrote {
		n, err := res.RowsAffected()
		q.wrote = err != nil || n > 0
	}
	return res, err
}

func (q *dirty) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	q.wrote = q.wrote || !selects(query)
	return q.querier.QueryContext(ctx, query, args...)
}

func (q *dirty) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	q.wrote = q.wrote || !selects(query)
	return q.querier.QueryRowContext(ctx, query, args...)
}

// selects reports whether a statement only reads.
func selects(query string) bool {
	return strings.HasPrefix(strings.TrimLeft(query, " \t\n"), "SELECT")
}

// item runs one job inside a savepoint. The job's own error is kept in it; an
// error of item's means that the whole transaction is gone or of no use.
func (w *writer) item(ctx context.Context, j *job, again bool) error {
	j.err = nil
	if err := w.exec(ctx, "SAVEPOINT item"); err != nil {
		return err
	}
	if j.err = j.fn(ctx, w.conn, again); j.err != nil {
		if endsTransaction(j.err) {
			return j.err
		}
		if err := w.exec(ctx, "ROLLBACK TO item"); err != nil {
			return errors.Join(j.err, err)
		}
	}
	return w.exec(ctx, "RELEASE item")
}

// endsTransaction reports whether err is one of those after which SQLite may
// have rolled back by itself, and at any rate cannot be trusted to go on.
func endsTransaction(err error) bool {
	switch sqliteCode(err) & 0xff {
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_INTERRUPT,
		sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN:
		return true
	}
	return errors.Is(err, sql.ErrConnDone)
}

// rollback ends a failed transaction, which SQLite may have done by itself.
func (w *writer) rollback(ctx context.Context) error {
	w.rows.rollback()
	if err := w.exec(ctx, "ROLLBACK"); err != nil && sqliteCode(err)&0xff != sqlite3.SQLITE_ERROR {
		return fmt.Errorf("roll back: %w", err)
	}
	return nil
}

// fail answers jobs whose transaction failed for good, and ends the process if
// the disk can no longer be believed.
func (w *writer) fail(jobs []*job, err error) {
	for _, j := range jobs {
		j.err = unavailable(err)
	}
	if brokenPromise(err) {
		w.broken = err
		w.fatal(fmt.Errorf("store: the disk failed: %w", err))
	}
}

func (w *writer) exec(ctx context.Context, query string) error {
	_, err := w.conn.ExecContext(ctx, query)
	return err
}

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// copying is the long part of a checkpoint, which runs beside the writer: every
// payment would wait for it. What was committed meanwhile is copied too, in
// turns that are shorter each time, until little is left, which may be for the
// writer itself. More turns would sync the main file more often.
//
// Until then the log must not begin anew, or pages would be in the main file
// whose sums nobody has taken. SQLite begins it anew when all of it was copied
// and nobody reads from it: so a snapshot of it is held open.
type copying struct {
	done chan struct{} // closed when err is set
	err  error
	hold *sql.Tx
}

// A copying ends when no more than so many pages are left, or after so many
// turns, if the log grows as fast as it is copied.
const (
	leftPages = 400
	copyTurns = 3
)

// copier has the connections for that.
type copier struct{ db *sql.DB }

func newCopier(path string) (*copier, error) {
	db, err := connectSQLite(path, "rw", "wal_autocheckpoint(0)", "cache_size(-256)")
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(3) // two snapshots and what copies
	db.SetMaxIdleConns(3)
	return &copier{db}, nil
}

// start begins to copy the log, which is read into w, and to take over its sums.
// All three are the copying's until it is done.
func (c *copier) start(ctx context.Context, w *wal, s *pageSums) *copying {
	p := &copying{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = p.run(ctx, c.db, w, s)
	}()
	return p
}

func (p *copying) run(ctx context.Context, db *sql.DB, w *wal, s *pageSums) error {
	for left, turn := leftPages+1, 0; left > leftPages && turn < copyTurns; turn++ {
		var err error
		if left, err = p.turn(ctx, db, w, s); err != nil {
			return err
		}
	}
	return nil
}

// turn copies what the log has by now, and tells how many pages it has in
// addition when that is done.
func (p *copying) turn(ctx context.Context, db *sql.DB, w *wal, s *pageSums) (left int, err error) {
	if err := p.advance(ctx, db); err != nil {
		return 0, fmt.Errorf("hold the log: %w", err)
	}
	var busy, pages, copied int
	if err := db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &pages, &copied); err != nil {
		return 0, fmt.Errorf("copy the log: %w", err)
	}
	// What is copied is durable, and so may its sums be: the newest frames, which
	// a power cut may take yet, are left for the next time.
	if err := w.read(copied); err != nil {
		return 0, fmt.Errorf("read the log: %w", err)
	}
	if err := s.take(w); err != nil {
		return 0, fmt.Errorf("sum up the log: %w", err)
	}
	if pages, copied, err = logPages(ctx, db); err != nil {
		return 0, err
	}
	return pages - copied, nil
}

// advance holds a snapshot of the log as it is now, and lets go of the one that
// was held. Between the two the log cannot begin anew: there are pages in it
// that are not copied.
func (p *copying) advance(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	old := p.hold
	p.hold = tx
	var seq int64
	err = tx.QueryRowContext(ctx, `SELECT seq FROM commit_head`).Scan(&seq) // a snapshot begins with its first read
	if old != nil {
		err = errors.Join(err, old.Rollback())
	}
	return err
}

// ended reports whether the copying is over.
func (p *copying) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// release lets the log begin anew, and gives what went wrong.
func (p *copying) release() error {
	<-p.done
	if p.hold == nil {
		return p.err
	}
	return errors.Join(p.err, p.hold.Rollback())
}

func (c *copier) close() error { return c.db.Close() }

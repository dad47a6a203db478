package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
)

// copying is the long part of a checkpoint, which runs beside the writer: a
// log of 4,000 pages takes a tenth of a second to be read and copied, and every
// payment would wait for it. What was committed meanwhile is left for the
// writer itself, which takes over the sums of all of it and is quick.
//
// Until then the log must not begin anew, or pages would be in the main file
// whose sums nobody has taken. SQLite begins it anew when all of it was copied
// and nobody reads from it: so a snapshot of it is held open.
type copying struct {
	done chan struct{} // closed when err is set
	err  error
	hold *sql.Tx
}

// copier has the connections for that.
type copier struct{ db *sql.DB }

func newCopier(path string) (*copier, error) {
	db, err := sql.Open("sqlite", sqliteDSN(path, "rw", "wal_autocheckpoint(0)", "cache_size(-256)"))
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(2)
	db.SetMaxIdleConns(2)
	return &copier{db}, nil
}

// start begins to copy the log, and to read it into w, which is the copying's
// until it is done.
func (c *copier) start(ctx context.Context, w *wal) *copying {
	p := &copying{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = p.run(ctx, c.db, w)
	}()
	return p
}

func (p *copying) run(ctx context.Context, db *sql.DB, w *wal) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("hold the log: %w", err)
	}
	p.hold = tx
	var seq int64
	if err := tx.QueryRowContext(ctx, `SELECT seq FROM commit_head`).Scan(&seq); err != nil { // a snapshot begins with its first read
		return fmt.Errorf("hold the log: %w", err)
	}
	if err := w.read(); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	var busy, pages, copied int
	if err := db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &pages, &copied); err != nil {
		return fmt.Errorf("copy the log: %w", err)
	}
	return nil
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

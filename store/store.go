// Package store keeps everything durable: the directory of tenants, the book
// of payments, the facilitator's own book, and usage events. It speaks one SQL
// text to SQLite (one file, one writer with group commit, many readers) and to
// PostgreSQL 15 or later.
//
// The rule of the book is that every invariant is one conditional statement:
// INSERT … ON CONFLICT, or UPDATE … WHERE the row is as it must be. Zero rows
// mean that it was refused. Nothing reads first and writes afterwards, except
// in the directory, whose changes stand in one line behind its revision row.
//
// A method that returned an error may nevertheless have happened, when the
// database went away during COMMIT; asked again, it finds its own traces.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr"
)

// Options say where the database is. One of Path and URL must be set.
type Options struct {
	Path string // an SQLite file, created if missing; its directory must exist
	URL  string // postgres://…
	Node string // names this process; random if empty
	// Repair takes an SQLite file for right that is not as it was left.
	Repair bool
	Now    func() time.Time
	Log    *slog.Logger
	// Failpoint, if set, is called at the boundaries of the money path: t1, t2,
	// t3 and mined, and of refunds: repay and repaid, each with ".before" and ".after".
	Failpoint func(name string)
	// Fatal is called when the disk broke its promise (an fsync failed): what
	// was acknowledged may be lost, and only a new process may look. It should
	// not return; nil panics.
	Fatal func(error)
}

// DB is an open database. Its methods may be called at once by many.
type DB struct {
	engine
	node      string
	now       func() time.Time
	log       *slog.Logger
	failpoint func(name string)
	arrival   atomic.Int64 // the last usage_events.seq given out
	nodes     atomic.Int64 // how many serve, as Attend counted last
	sold      *known       // the keys of payments; nil where others write them, too
	opened    *known       // and of settlements
	closing   sync.Once
}

// engine is what differs between the two databases.
type engine interface {
	// write runs fn in a transaction of its own and returns its error, or nil
	// once everything fn did is durable. fn may run several times, so it must
	// leave no trace in variables when it fails, and it must end at its first
	// error, after which the transaction may be gone. again is true once an
	// earlier run may have been committed after all.
	write(ctx context.Context, fn transaction) error
	// lazily runs statements that nothing depends on: each by itself, not tried
	// again, and perhaps forgotten in a power cut.
	lazily(ctx context.Context, fn transaction) error
	// reader answers queries outside any transaction, each from one snapshot.
	reader() querier
	// notify tells the other processes about a change of the directory, once
	// the transaction that q belongs to is committed.
	notify(ctx context.Context, q querier) error
	// tell sends a payload to the processes that listen on a channel, now.
	tell(ctx context.Context, channel, payload string) error
	// listen calls heard with what arrives on a channel, until ctx ends.
	listen(ctx context.Context, channel string, heard func(payload string))
	// poll is how often Watch looks for itself.
	poll() time.Duration
	// lockPayments keeps new payments out until the transaction ends.
	lockPayments(ctx context.Context, q querier) error
	// check looks at what only this engine has.
	check(ctx context.Context) ([]Finding, error)
	// soleOwner reports whether no other process can use the database.
	soleOwner() bool
	close() error
}

type transaction func(ctx context.Context, q querier, again bool) error

// Open opens the database, creates what is missing and brings an older one up
// to date. It refuses one that a newer clawr wrote.
func Open(ctx context.Context, o Options) (*DB, error) {
	db := &DB{node: o.Node, now: o.Now, log: o.Log, failpoint: o.Failpoint}
	if db.node == "" {
		db.node = newID("node_")
	}
	if db.now == nil {
		db.now = time.Now
	}
	if db.log == nil {
		db.log = slog.New(slog.DiscardHandler)
	}
	fatal := o.Fatal
	if fatal == nil {
		fatal = func(err error) { panic(err) }
	}
	var err error
	switch {
	case (o.Path == "") == (o.URL == ""):
		return nil, &clawr.Error{Code: clawr.CodeUsage, Message: "a store needs a file or a database URL, and not both", Fix: "give --data or --database-url"}
	case o.Path != "":
		db.engine, err = openSQLite(ctx, o.Path, o.Repair, db.log, fatal)
	default:
		db.engine, err = openPostgres(ctx, o.URL, db.log)
	}
	if err != nil {
		return nil, err
	}
	var last sql.NullInt64
	if err := db.reader().QueryRowContext(ctx, `SELECT MAX(seq) FROM usage_events`).Scan(&last); err != nil {
		return nil, errors.Join(err, db.close())
	}
	db.arrival.Store(last.Int64)
	if s, ok := db.engine.(*sqliteDB); ok && s.damage == nil {
		if db.sold, err = newKnown(ctx, s.reading, "payments"); err == nil {
			db.opened, err = newKnown(ctx, s.reading, "settlements")
		}
		if err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	return db, nil
}

// Close waits for what was begun and closes the database. Writes that come
// later are refused. Closing it again does nothing.
func (db *DB) Close() error {
	var err error
	db.closing.Do(func() {
		db.sold.close()
		db.opened.close()
		err = db.close()
	})
	return err
}

// Damage is what is wrong with a database to which therefore nothing is
// written; nil if it is as it was left.
func (db *DB) Damage() error {
	if s, ok := db.engine.(*sqliteDB); ok && s.damage != nil {
		return s.damage
	}
	return nil
}

// Node names this process.
func (db *DB) Node() string { return db.node }

// SoleOwner reports whether no other process can write the database: it is an
// SQLite file, whose data directory is locked.
func (db *DB) SoleOwner() bool { return db.soleOwner() }

// at calls the failpoint.
func (db *DB) at(name string) {
	if db.failpoint != nil {
		db.failpoint(name)
	}
}

// micros is the time as the tables keep it.
func (db *DB) micros() int64 { return db.now().UnixMicro() }

// newID is a prefix and 16 hex digits that nobody can guess.
func newID(prefix string) string {
	var b [8]byte
	rand.Read(b[:])
	return prefix + hex.EncodeToString(b[:])
}

// unavailable wraps a failure of the database itself: nothing is known to be
// wrong with what was asked, and it may be asked again.
func unavailable(err error) error {
	return &clawr.Error{Code: clawr.CodeOverloaded, Message: "the database cannot be written just now", Fix: "retry the same request",
		RetryAfter: time.Second, Err: err}
}

// errUnknown is what remains when the connection broke during COMMIT and what
// was asked has no name by which its outcome could be looked up.
var errUnknown = errors.New("store: the outcome of a write is unknown")

// errClosed refuses writes after Close.
var errClosed = errors.New("store: closed")

package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/402claw/clawr"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

// Bounds of one write: how often it is tried, and how long all tries may take.
const (
	maxTries     = 10
	writeTimeout = 15 * time.Second
	maxConns     = 24
	lazyConns    = 8
)

// migrationLock keeps nodes that start together from migrating together.
const migrationLock = 0x636c617772 // "clawr"

// postgresDB is the engine of several nodes. Every statement is true at READ
// COMMITTED, the default.
type postgresDB struct {
	db   *sql.DB
	lazy *sql.DB // nothing is waited for that is done here
	conf *pgx.ConnConfig
	log  *slog.Logger

	mu      sync.RWMutex // held shared during a write, so that close waits
	stopped bool
}

func openPostgres(ctx context.Context, url string, log *slog.Logger) (*postgresDB, error) {
	conf, err := pgx.ParseConfig(url)
	if err != nil {
		// pgx hides the password in its message.
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "database-url", Message: "the database URL is wrong: " + err.Error(), Fix: "--database-url postgres://user@host:5432/name", Err: err}
	}
	for name, value := range map[string]string{
		"application_name":                    "clawr",
		"synchronous_commit":                  "on", // an acknowledged reservation must survive, whatever the server's default
		"idle_in_transaction_session_timeout": "15000",
		"lock_timeout":                        "10000",
	} {
		if _, set := conf.RuntimeParams[name]; !set {
			conf.RuntimeParams[name] = value
		}
	}
	p := &postgresDB{db: stdlib.OpenDB(*conf), conf: conf, log: log}
	p.db.SetMaxOpenConns(maxConns)
	p.db.SetMaxIdleConns(maxConns)
	p.db.SetConnMaxIdleTime(5 * time.Minute)
	lazy := conf.Copy()
	lazy.RuntimeParams["synchronous_commit"] = "off"
	p.lazy = stdlib.OpenDB(*lazy)
	p.lazy.SetMaxOpenConns(lazyConns)
	p.lazy.SetMaxIdleConns(lazyConns)
	p.lazy.SetConnMaxIdleTime(5 * time.Minute)
	if err := p.setUp(ctx); err != nil {
		return nil, errors.Join(err, p.db.Close(), p.lazy.Close())
	}
	return p, nil
}

// setUp checks the server and brings the schema up to date, one node at a time.
func (p *postgresDB) setUp(ctx context.Context) error {
	conn, err := p.db.Conn(ctx)
	if err != nil {
		return &clawr.Error{Code: clawr.CodeUnreachable, Param: "database-url", Message: "the database does not answer: " + err.Error(), Fix: "check --database-url, and that the server runs", Err: err}
	}
	defer conn.Close()
	var version int
	if err := conn.QueryRowContext(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		return err
	}
	if version < 150000 {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "database-url", Message: fmt.Sprintf("the database is PostgreSQL %d", version/10000), Fix: "use PostgreSQL 15 or later"}
	}
	for locked := false; !locked; {
		if err := conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, migrationLock).Scan(&locked); err != nil {
			return err
		}
		if !locked {
			if err := sleep(ctx, 20*time.Millisecond); err != nil {
				return err
			}
		}
	}
	defer conn.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, migrationLock)
	// SQLite's word for bytes is blob, Postgres's is bytea.
	_, err = conn.ExecContext(ctx, `DO $$ BEGIN IF to_regtype('blob') IS NULL THEN CREATE DOMAIN blob AS bytea; END IF; END $$`)
	if err != nil {
		return err
	}
	return migrate(ctx, goose.DialectPostgres, p.db)
}

// write runs fn in a transaction, again and again while the server asks for
// it. It does not end with the caller's context: a transaction cut short in
// its COMMIT would leave nobody knowing.
func (p *postgresDB) write(ctx context.Context, fn transaction) error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.stopped {
		return unavailable(errClosed)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	again := false
	for try := 0; ; try++ {
		unknown, err := p.once(ctx, fn, again)
		if err == nil {
			return nil
		}
		again = again || unknown
		if !unknown && !retryable(err) {
			return err
		}
		if try+1 == maxTries || pause(ctx, try) != nil {
			if again {
				err = errors.Join(errUnknown, err)
			}
			return unavailable(err)
		}
	}
}

// once runs fn in one transaction. unknown is true when the connection was
// lost during COMMIT: the server may have done it or not.
func (p *postgresDB) once(ctx context.Context, fn transaction, again bool) (unknown bool, err error) {
	tx, err := p.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return false, err
	}
	if err := fn(ctx, tx, again); err != nil {
		if rerr := tx.Rollback(); rerr != nil && !errors.Is(rerr, sql.ErrTxDone) {
			p.log.DebugContext(ctx, "roll back", "err", rerr)
		}
		return false, err
	}
	if err := tx.Commit(); err != nil {
		_, told := errors.AsType[*pgconn.PgError](err)
		return !told, err
	}
	return false, nil
}

// pause waits a little longer after each try, and never as long as another.
func pause(ctx context.Context, try int) error {
	return sleep(ctx, time.Duration(1+rand.IntN(2<<min(try, 6)))*time.Millisecond)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// retryable reports whether the transaction was rolled back for reasons that
// have nothing to do with what it asked for.
func retryable(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch e.Code {
		case "40001", "40P01", "55P03": // serialization, deadlock, lock timeout
			return true
		case "25006", "57P01", "57P02", "57P03", "25P03": // read-only or shutting down (fail-over), idle too long
			return true
		}
		return e.Code[:2] == "08" || e.Code[:2] == "53" // connection, resources
	}
	_, network := errors.AsType[net.Error](err)
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return network || connecting || pgconn.SafeToRetry(err) || errors.Is(err, sql.ErrConnDone) || lost(err)
}

// lost reports whether the connection ended in the middle of a statement.
func lost(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, driver.ErrBadConn)
}

func (p *postgresDB) lazily(ctx context.Context, fn transaction) error { return fn(ctx, p.lazy, false) }

func (p *postgresDB) reader() querier { return p.db }

func (p *postgresDB) notify(ctx context.Context, q querier) error {
	_, err := q.ExecContext(ctx, `SELECT pg_notify($1, '')`, directoryChannel)
	return err
}

// tell notifies in a transaction that nobody waits for the disk for: whoever
// hears it reads what was committed before.
func (p *postgresDB) tell(ctx context.Context, channel, payload string) error {
	_, err := p.db.ExecContext(ctx, `SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)`, channel, payload)
	return err
}

// listen holds a connection of its own, and a new one when it is lost.
func (p *postgresDB) listen(ctx context.Context, channel string, heard func(payload string)) {
	for ctx.Err() == nil {
		if err := p.listenOnce(ctx, channel, heard); ctx.Err() == nil {
			p.log.WarnContext(ctx, "lost the database's notifications, polling meanwhile", "channel", channel, "err", err)
			_ = sleep(ctx, time.Second)
		}
	}
}

func (p *postgresDB) listenOnce(ctx context.Context, channel string, heard func(payload string)) error {
	conn, err := pgx.ConnectConfig(ctx, p.conf.Copy())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `LISTEN `+channel); err != nil {
		return err
	}
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		heard(n.Payload)
	}
}

func (p *postgresDB) poll() time.Duration { return time.Second }

func (p *postgresDB) lockPayments(ctx context.Context, q querier) error {
	_, err := q.ExecContext(ctx, `LOCK TABLE payments IN SHARE ROW EXCLUSIVE MODE`)
	return err
}

func (p *postgresDB) soleOwner() bool { return false }

func (p *postgresDB) close() error {
	p.mu.Lock()
	p.stopped = true
	p.mu.Unlock()
	return errors.Join(p.db.Close(), p.lazy.Close())
}

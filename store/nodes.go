package store

import (
	"context"
	"time"
)

// How long a node counts without a sign of life, how often it gives one, and
// how long after their end leases are swept away that nobody returned.
const (
	nodeTerm   = 10 * time.Second
	nodeBeat   = nodeTerm / 4
	leaseGrace = time.Minute
)

// Nodes is how many nodes served when this one last looked, itself included.
func (db *DB) Nodes() int64 { return max(db.nodes.Load(), 1) }

// Attend says that this node serves, again and again, until ctx ends.
func (db *DB) Attend(ctx context.Context) error {
	tick := time.NewTicker(nodeBeat)
	defer tick.Stop()
	for {
		if err := db.Beat(ctx); err != nil && ctx.Err() == nil {
			db.log.WarnContext(ctx, "how many nodes serve is not known", "believed", db.Nodes(), "err", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if err := db.leave(ctx); err != nil {
				db.log.WarnContext(ctx, "this node counts until its time is over", "err", err)
			}
			return nil
		}
	}
}

// Beat is one sign of life of this node: it counts for ten seconds more, knows
// how many do, and has swept away what is over: nodes, rate buckets that are
// full, and leases that nobody returned, whose rest is lost to its callers.
func (db *DB) Beat(ctx context.Context) error {
	now, count := db.micros(), int64(0)
	err := db.lazily(ctx, func(ctx context.Context, q querier, _ bool) error {
		_, err := q.ExecContext(ctx, `INSERT INTO nodes(node, expires_at) VALUES ($1, $2) ON CONFLICT (node) DO UPDATE SET expires_at = excluded.expires_at`,
			db.node, now+nodeTerm.Microseconds())
		for _, sweep := range []struct {
			statement string
			before    int64
		}{
			{`DELETE FROM nodes WHERE expires_at < $1`, now},
			{`DELETE FROM counter_leases WHERE expires_at < $1`, now - leaseGrace.Microseconds()},
			{`DELETE FROM rate_buckets WHERE full_at < $1`, (now - leaseGrace.Microseconds()) * 1000},
		} {
			if err == nil {
				_, err = q.ExecContext(ctx, sweep.statement, sweep.before)
			}
		}
		if err != nil {
			return err
		}
		return q.QueryRowContext(ctx, `SELECT COUNT(*) FROM nodes`).Scan(&count)
	})
	if err == nil {
		db.nodes.Store(count)
	}
	return err
}

// leave says that this node serves no more.
func (db *DB) leave(ctx context.Context) error {
	return db.lazily(ctx, func(ctx context.Context, q querier, _ bool) error {
		_, err := q.ExecContext(ctx, `DELETE FROM nodes WHERE node = $1`, db.node)
		return err
	})
}

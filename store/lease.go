package store

import (
	"context"
	"time"

	"github.com/402claw/clawr/ledger"
)

// Lease takes a batch from every counter, at least one of each, or nothing:
// then it is a *ledger.Exceeded. A counter's Cost is how many are wanted; the
// nearer its cap is, the fewer are granted, a nodes-th of half of what is left
// at most, so that the last ones are taken one by one. What is granted is used
// as far as the counter knows (I11), whoever spends it, and when: a node that
// dies with it loses it to its callers. In the same transaction old leases of
// the same counters end, as ReturnLeases does it.
func (db *DB) Lease(ctx context.Context, list []ledger.Counter, nodes int64, life time.Duration, old ...ledger.Lease) ([]ledger.Lease, error) {
	if err := checkCounters(list); err != nil {
		return nil, err
	}
	until := fromMicros(db.micros() + life.Microseconds())
	out := make([]ledger.Lease, len(list))
	err := db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		if again {
			return errUnknown // it may be taken; twice would be too much
		}
		for _, i := range ordered(list) {
			for _, o := range old { // here, where its counter's turn is
				if o.Scope == list[i].Scope && o.Window == list[i].Window {
					if err := returnLeases(ctx, q, []ledger.Lease{o}); err != nil {
						return err
					}
				}
			}
			l, err := lease(ctx, q, list[i], nodes)
			if err != nil {
				return err
			}
			if l.Expires = until; l.Granted > 1 { // the only one is spent at once
				l.ID = newID("lse_")
				_, err = q.ExecContext(ctx, `INSERT INTO counter_leases(scope, window_start, node, lease_id, granted, expires_at) VALUES ($1, $2, $3, $4, $5, $6)`,
					l.Scope, l.Window, db.node, l.ID, l.Granted, until.UnixMicro())
			}
			if err != nil {
				return err
			}
			out[i] = l
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// lease takes between 1 and c.Cost from one counter. It locks the row to see
// how much is left; that no more is taken than that, take's condition ensures.
func lease(ctx context.Context, q querier, c ledger.Counter, nodes int64) (ledger.Lease, error) {
	var used int64
	_, err := found(q.QueryRowContext(ctx, `
		INSERT INTO counters(scope, window_start, used, cap) VALUES ($1, $2, 0, $3)
		ON CONFLICT (scope, window_start) DO UPDATE SET used = counters.used RETURNING used`, c.Scope, c.Window, c.Cap).Scan(&used))
	if err != nil {
		return ledger.Lease{}, err
	}
	c.Cost = max(min(c.Cost, (c.Cap-used)/(2*max(nodes, 1))), 1)
	got, err := take(ctx, q, []ledger.Counter{c})
	if err != nil {
		return ledger.Lease{}, err
	}
	return ledger.Lease{Counter: got[0], Granted: c.Cost, Left: c.Cost}, nil
}

// ReturnLeases ends leases and gives back what is Left of each. Doing it again
// does nothing, and a lease that was swept away gives nothing back: nobody
// knows any more what of it was spent.
func (db *DB) ReturnLeases(ctx context.Context, list []ledger.Lease) error {
	return db.write(ctx, func(ctx context.Context, q querier, _ bool) error { return returnLeases(ctx, q, list) })
}

func returnLeases(ctx context.Context, q querier, list []ledger.Lease) error {
	counters := make([]ledger.Counter, len(list))
	for i, l := range list {
		counters[i] = l.Counter
	}
	for _, i := range ordered(counters) {
		l := list[i]
		open, err := changed(q.ExecContext(ctx, `DELETE FROM counter_leases WHERE lease_id = $1 AND granted >= $2`, l.ID, l.Left))
		if err != nil || !open || l.Left <= 0 {
			if err != nil {
				return err
			}
			continue
		}
		l.Cost = l.Left
		if err := giveBack(ctx, q, []ledger.Counter{l.Counter}); err != nil {
			return err
		}
	}
	return nil
}

// Spend takes cost from a rate bucket that all nodes share, if no more than
// size is then owed: the generic cell rate algorithm of package meter, in one
// statement. It answers with when the bucket will be full. A bucket may be
// forgotten in a power cut, and is full then.
func (db *DB) Spend(ctx context.Context, bucket string, now time.Time, cost, size time.Duration) (full time.Time, ok bool, err error) {
	var at int64
	err = db.lazily(ctx, func(ctx context.Context, q querier, _ bool) (err error) {
		ok = cost <= size // the insert below cannot compare with what is not there yet
		if ok {
			ok, err = found(q.QueryRowContext(ctx, `
				INSERT INTO rate_buckets(bucket, full_at) VALUES ($1, CAST($2 AS BIGINT) + CAST($3 AS BIGINT))
				ON CONFLICT (bucket) DO UPDATE SET full_at = CAST($3 AS BIGINT) + CASE WHEN rate_buckets.full_at > $2 THEN rate_buckets.full_at ELSE $2 END
				WHERE rate_buckets.full_at + $3 <= CAST($2 AS BIGINT) + CAST($4 AS BIGINT)
				RETURNING full_at`, bucket, now.UnixNano(), int64(cost), int64(size)).Scan(&at))
		}
		if err == nil && !ok {
			at = now.UnixNano()
			_, err = found(q.QueryRowContext(ctx, `SELECT full_at FROM rate_buckets WHERE bucket = $1`, bucket).Scan(&at))
		}
		return err
	})
	return time.Unix(0, at), ok, err
}

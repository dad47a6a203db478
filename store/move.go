package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

// The moves below are those of ledger.Step, each as one conditional UPDATE on
// payments: the WHERE is the state that the move needs, and no row means that
// somebody else moved it: ledger.ErrFenced.

// leaseCode is the error code of work that nobody finished.
const leaseCode clawr.Code = "lease_expired"

// fenced is ErrFenced with what was tried.
func fenced(move ledger.Move, id string) error {
	return fmt.Errorf("%w: %s of %s", ledger.ErrFenced, move, id)
}

// TakeOver gives the unfinished work of a payment whose lease expired to owner,
// and fences the one who had it: the row's epoch is epoch+1 from now on.
func (db *DB) TakeOver(ctx context.Context, id string, epoch int64, owner string, lease time.Duration) (ledger.Payment, error) {
	now := db.micros()
	var out ledger.Payment
	err := db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		p, err := orNil(scanPayment(q.QueryRowContext(ctx, `
			UPDATE payments SET epoch = epoch + 1, owner = $3, lease_until = $4, updated_at = $5
			WHERE id = $1 AND epoch = $2 AND lease_until <= $5 AND work IN('pending','running')
			  AND (money = 'held' OR policy = 'settle_first' AND money IN('signed','mined','final'))
			RETURNING `+paymentColumns, id, epoch, owner, now+lease.Microseconds(), now)))
		if err != nil {
			return err
		}
		if p == nil {
			return fenced(ledger.MoveTakeOver, id)
		}
		out = *p
		return nil
	})
	if err != nil {
		return ledger.Payment{}, err
	}
	return out, nil
}

// Renew prolongs the lease of unfinished work, from now.
func (db *DB) Renew(ctx context.Context, id string, epoch int64, lease time.Duration) error {
	return db.move(ctx, ledger.MoveRenew, id, nil, `
		UPDATE payments SET lease_until = $3 WHERE id = $1 AND epoch = $2 AND work IN('pending','running')`,
		id, epoch, db.micros()+lease.Microseconds())
}

// VoidLeases ends all leases at once. An SQLite database has one owner, which
// calls this when it starts: whoever held them is gone. On PostgreSQL other
// nodes live, and it does nothing.
func (db *DB) VoidLeases(ctx context.Context) error {
	if !db.soleOwner() {
		return nil
	}
	return db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		now := db.micros()
		// Two statements, each with an index: one would read the whole book.
		for _, which := range []string{`money = 'held'`, `policy = 'settle_first'`} {
			if _, err := q.ExecContext(ctx, `UPDATE payments SET lease_until = $1 WHERE lease_until > $1 AND work IN('pending','running') AND `+which, now); err != nil {
				return err
			}
		}
		return nil
	})
}

// Done is T2: it stores the answer and the usage event, and the work is done.
// The event says settlement_pending and bills nothing until the money moves;
// under the async policy it is complete at once.
func (db *DB) Done(ctx context.Context, id string, epoch int64, a ledger.Answer, ev usage.Event) error {
	if ev.RequestID == "" {
		return fmt.Errorf("store: the event of %s has no request id", id)
	}
	db.at("t2.before")
	err := db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		var policy ledger.Policy
		var money ledger.Money
		ok, err := found(q.QueryRowContext(ctx, `
			UPDATE payments SET work = 'done', event_id = $4, updated_at = $3
			WHERE id = $1 AND epoch = $2 AND work = 'running'
			  AND (policy <> 'settle_first' AND money = 'held' OR policy = 'settle_first' AND money IN('signed','mined','final'))
			RETURNING policy, money`, id, epoch, db.micros(), ev.RequestID).Scan(&policy, &money))
		if err != nil {
			return err
		}
		if !ok {
			if again {
				return db.landed(ctx, q, ledger.MoveDone, id, `
					SELECT 1 FROM payments JOIN payment_responses ON payment_id = id
					WHERE id = $1 AND epoch = $2 AND work = 'done' AND body_sha256 = $3`, id, epoch, a.SHA256)
			}
			return fenced(ledger.MoveDone, id)
		}
		if err := insertAnswer(ctx, q, id, a); err != nil {
			return err
		}
		if policy == ledger.Async {
			money = ledger.Mined // as far as the event is concerned
		}
		charged(&ev, money)
		return db.paymentEvent(ctx, q, id, ev)
	})
	if err != nil {
		return err
	}
	db.at("t2.after")
	return nil
}

// Release gives a payment up that was never submitted: its work failed, or the
// preflight did. What its counters took is given back, and ev is its event (or
// what becomes of the event that Done wrote; none if it has no request id).
// Once it is submitted this is never possible again.
func (db *DB) Release(ctx context.Context, id string, epoch int64, why clawr.Code, ev usage.Event) error {
	ev.Billed, ev.Billable = 0, false
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		var counters []byte
		var event sql.NullString
		var policy ledger.Policy
		ok, err := found(q.QueryRowContext(ctx, `
			UPDATE payments SET money = 'released', work = CASE work WHEN 'done' THEN 'done' ELSE 'failed' END, error_code = $3,
				client_ref = CASE work WHEN 'done' THEN client_ref END, event_id = COALESCE(event_id, $5), updated_at = $4
			WHERE id = $1 AND epoch = $2 AND money = 'held'
			RETURNING counters, event_id, policy`, id, epoch, string(why), db.micros(), null(ev.RequestID)).Scan(&counters, &event, &policy))
		if err != nil {
			return err
		}
		if !ok {
			if again {
				return db.landed(ctx, q, ledger.MoveRelease, id, `SELECT 1 FROM payments WHERE id = $1 AND epoch = $2 AND money = 'released'`, id, epoch)
			}
			return fenced(ledger.MoveRelease, id)
		}
		if err := giveBackJSON(ctx, q, id, counters); err != nil {
			return err
		}
		if policy == ledger.Async {
			if err := exposed(ctx, q, id, ledger.Released); err != nil {
				return err
			}
		}
		if !event.Valid {
			return nil
		}
		if event.String == ev.RequestID {
			return db.paymentEvent(ctx, q, id, ev)
		}
		_, err = q.ExecContext(ctx, `
			UPDATE usage_events SET lifecycle = $3, status = $4, error = $5, countable = $6, billable = 0, amount = 0
			WHERE payment_id = $1 AND event_id = $2`, id, event.String, string(ev.Lifecycle), ev.Status, ev.Error, bit(ev.Countable))
		return err
	})
}

// Janitor releases payments whose work nobody finished, once their lease is
// over for longer than grace: until then a resend may take them over. It
// writes no events: whoever knew the request is gone.
func (db *DB) Janitor(ctx context.Context, grace time.Duration) (released int, err error) {
	const chunk = 100
	for {
		var ids, async []string
		var counters [][]byte
		err := db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
			ids, async, counters = nil, nil, nil
			now := db.micros()
			rows, err := q.QueryContext(ctx, `
				UPDATE payments SET money = 'released', work = 'failed', error_code = $1, updated_at = $2
				WHERE money = 'held' AND work IN('pending','running') AND lease_until <= $3 AND id IN(
					SELECT id FROM payments WHERE money = 'held' AND work IN('pending','running') AND lease_until <= $3 ORDER BY lease_until LIMIT $4)
				RETURNING id, counters, policy`, string(leaseCode), now, now-grace.Microseconds(), chunk)
			err = each(rows, err, func(rows *sql.Rows) error {
				var id string
				var taken []byte
				var policy ledger.Policy
				err := rows.Scan(&id, &taken, &policy)
				if policy == ledger.Async {
					async = append(async, id)
				}
				ids, counters = append(ids, id), append(counters, taken)
				return err
			})
			if err != nil {
				return err
			}
			// One sorted list: locking counter by counter, payment after payment, could meet another T1 crosswise.
			var all []ledger.Counter
			for i := range ids {
				var taken []ledger.Counter
				if err := json.Unmarshal(counters[i], &taken); err != nil {
					return fmt.Errorf("counters of %s: %w", ids[i], err)
				}
				all = append(all, taken...)
			}
			if err := giveBack(ctx, q, all); err != nil {
				return err
			}
			for _, id := range async {
				if err := exposed(ctx, q, id, ledger.Released); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return released, err
		}
		released += len(ids)
		if len(ids) < chunk {
			return released, nil
		}
	}
}

// Submit is to be called before the first request to a remote facilitator:
// from then on it holds the signature, and only the chain can say that the
// payment was not charged.
func (db *DB) Submit(ctx context.Context, id string, epoch int64, facilitatorURL string) error {
	if facilitatorURL == "" || facilitatorURL == "self" {
		return fmt.Errorf("store: submit %s to facilitator %q", id, facilitatorURL)
	}
	landed := `SELECT 1 FROM payments WHERE id = $1 AND epoch = $2 AND money = 'signed' AND facilitator = $3`
	return db.move(ctx, ledger.MoveSubmit, id, &landed, `
		UPDATE payments SET money = 'signed', facilitator = $3, updated_at = $4
		WHERE id = $1 AND epoch = $2 AND money = 'held'
		  AND (policy <> 'settle_first' AND work = 'done' OR policy = 'settle_first' AND work = 'pending')`,
		id, epoch, facilitatorURL, db.micros())
}

// move runs one conditional UPDATE. If it finds no row after a lost COMMIT,
// landed, which takes the first three arguments, says whether it was us.
func (db *DB) move(ctx context.Context, move ledger.Move, id string, landed *string, update string, args ...any) error {
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		ok, err := changed(q.ExecContext(ctx, update, args...))
		if err != nil || ok {
			return err
		}
		if again && landed != nil {
			return db.landed(ctx, q, move, id, *landed, args[:3]...)
		}
		return fenced(move, id)
	})
}

// landed is nil if query finds a row: what we asked for has happened.
func (db *DB) landed(ctx context.Context, q querier, move ledger.Move, id, query string, args ...any) error {
	var one int
	ok, err := found(q.QueryRowContext(ctx, query, args...).Scan(&one))
	if err != nil || ok {
		return err
	}
	return fenced(move, id)
}

func giveBackJSON(ctx context.Context, q querier, id string, counters []byte) error {
	var taken []ledger.Counter
	if err := json.Unmarshal(counters, &taken); err != nil {
		return fmt.Errorf("counters of %s: %w", id, err)
	}
	return giveBack(ctx, q, taken)
}

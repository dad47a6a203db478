package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

// The moves that only settle_first has: the money comes before the work.

// Start lets the work of a payment that was settled first begin.
func (db *DB) Start(ctx context.Context, id string, epoch int64) error {
	landed := `SELECT 1 FROM payments WHERE id = $1 AND epoch = $2 AND work = 'running' AND updated_at = $3`
	return db.move(ctx, ledger.MoveStart, id, &landed, `
		UPDATE payments SET work = 'running', updated_at = $3
		WHERE id = $1 AND epoch = $2 AND policy = 'settle_first' AND work = 'pending' AND money IN('mined','final')`,
		id, epoch, db.micros())
}

// Fail ends the work of a payment that was settled first and cannot be
// delivered. What was paid is owed: in the same transaction a refund is due,
// and ev, which bills nothing, is recorded (none if it has no request id).
func (db *DB) Fail(ctx context.Context, id string, epoch int64, why clawr.Code, ev usage.Event) error {
	ev.Billed, ev.Billable, ev.PaymentID = 0, false, id
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		var amount int64
		ok, err := found(q.QueryRowContext(ctx, `
			UPDATE payments SET work = 'failed', error_code = $3, updated_at = $4
			WHERE id = $1 AND epoch = $2 AND policy = 'settle_first' AND work = 'running' AND money IN('signed','mined','final')
			RETURNING amount`, id, epoch, string(why), db.micros()).Scan(&amount))
		if err != nil {
			return err
		}
		if !ok {
			if again {
				return db.landed(ctx, q, ledger.MoveFail, id, `SELECT 1 FROM payments WHERE id = $1 AND epoch = $2 AND work = 'failed' AND money <> 'released'`, id, epoch)
			}
			return fenced(ledger.MoveFail, id)
		}
		if err := db.owe(ctx, q, id, amount, why); err != nil || ev.RequestID == "" {
			return err
		}
		// It is no answer's event: nothing that becomes of the money completes it.
		_, err = q.ExecContext(ctx, insertEvent+`DO NOTHING`, db.eventArgs(ev)...)
		return err
	})
}

// owe writes down that a payment is to be refunded.
func (db *DB) owe(ctx context.Context, q querier, id string, amount int64, why clawr.Code) error {
	_, err := q.ExecContext(ctx, `
		INSERT INTO refunds(payment_id, amount, reason, state, created_at, updated_at) VALUES ($1, $2, $3, 'due', $4, $4)`,
		id, amount, string(why), db.micros())
	return err
}

// Owe ends the work of payments that were settled first, whose lease is over
// for longer than grace: until then a resend may take them over. What was paid
// is to be refunded (I13).
func (db *DB) Owe(ctx context.Context, grace time.Duration) (owed int, err error) {
	type due struct {
		id     string
		amount int64
	}
	var list []due
	err = db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		list = nil
		now := db.micros()
		rows, err := q.QueryContext(ctx, `
			UPDATE payments SET work = 'failed', error_code = $1, updated_at = $2
			WHERE policy = 'settle_first' AND money IN('mined','final') AND work IN('pending','running') AND lease_until <= $3
			RETURNING id, amount`, string(leaseCode), now, now-grace.Microseconds())
		err = each(rows, err, func(rows *sql.Rows) error {
			var d due
			err := rows.Scan(&d.id, &d.amount)
			list = append(list, d)
			return err
		})
		for _, d := range list {
			if err == nil {
				err = db.owe(ctx, q, d.id, d.amount, leaseCode)
			}
		}
		return err
	})
	return len(list), err
}

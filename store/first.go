package store

import (
	"context"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// The two moves that only settle_first has: the money comes before the work.

// Start lets the work of a payment that was settled first begin.
func (db *DB) Start(ctx context.Context, id string, epoch int64) error {
	landed := `SELECT 1 FROM payments WHERE id = $1 AND epoch = $2 AND work = 'running' AND updated_at = $3`
	return db.move(ctx, ledger.MoveStart, id, &landed, `
		UPDATE payments SET work = 'running', updated_at = $3
		WHERE id = $1 AND epoch = $2 AND policy = 'settle_first' AND work = 'pending' AND money IN('mined','final')`,
		id, epoch, db.micros())
}

// Fail ends the work of a payment that was settled first and cannot be
// delivered. What was paid is owed: in the same transaction a refund is due.
func (db *DB) Fail(ctx context.Context, id string, epoch int64, why clawr.Code) error {
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
		_, err = q.ExecContext(ctx, `
			INSERT INTO refunds(payment_id, amount, reason, state, created_at, updated_at) VALUES ($1, $2, $3, 'due', $4, $4)`,
			id, amount, string(why), db.micros())
		return err
	})
}

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// lostCode is the error code of a payment whose row was lost: the chain shows
// that it was charged, and the answer that it bought is not known.
const lostCode clawr.Code = "row_lost"

// Rebuild books a payment that the chain shows and the book has lost, or has
// lost the submission of. What it bought is not known any more, so that a
// refund is due, unless its answer is still there. It says what it did; empty
// if the book had it all.
//
// A buyer who sends such a payment again must not be asked for another one:
// the row stands in the way of that. What it did is in the audit log.
func (db *DB) Rebuild(ctx context.Context, k ledger.Key, payTo string, amount int64, e ledger.Evidence, by string) (did string, err error) {
	if e.Tx == "" || e.BlockHash == "" {
		return "", errors.New("store: rebuild without evidence")
	}
	err = db.inLine(ctx, func(ctx context.Context, q querier, _ bool) (err error) {
		if did, err = db.rebuild(ctx, q, k, payTo, amount, e); err != nil || did == "" {
			return err
		}
		p, err := paymentByKey(ctx, q, k)
		if err != nil {
			return err
		}
		return db.audit(ctx, q, by, "rebuild", p.ID, fmt.Sprintf(`{"did":%q,"tx":%q}`, did, e.Tx))
	})
	return did, err
}

func (db *DB) rebuild(ctx context.Context, q querier, k ledger.Key, payTo string, amount int64, e ledger.Evidence) (did string, err error) {
	p, err := paymentByKey(ctx, q, k)
	switch {
	case err != nil:
		return "", err
	case p == nil:
		return "rebuilt, refund due", db.rebuildLost(ctx, q, k, payTo, amount, e)
	case p.Money == ledger.Mined || p.Money == ledger.Final:
		return "", nil
	case p.PayTo != payTo || p.Amount != amount:
		return "", fmt.Errorf("store: %s is another transfer than %s of %s", p.ID, k.Nonce, k.Payer)
	case p.Work == ledger.Done && p.Money != ledger.Released && p.Money != ledger.Dead:
		if _, err := q.ExecContext(ctx, `UPDATE payments SET money = 'signed', updated_at = $2 WHERE id = $1 AND money IN('held','signed')`, p.ID, db.micros()); err != nil {
			return "", err
		}
		_, err := db.paid(ctx, q, k, e, payTo, amount)
		return "booked", err
	}
	// Its answer is not there, or was given up: charged all the same.
	_, err = q.ExecContext(ctx, `
		UPDATE payments SET policy = 'settle_first', work = 'failed', money = 'mined', tx_hash = $2, block_number = $3, block_hash = $4, log_index = $5,
			error_code = $6, updated_at = $7 WHERE id = $1`, p.ID, e.Tx, e.BlockNumber, e.BlockHash, e.LogIndex, string(lostCode), db.micros())
	if err != nil {
		return "", err
	}
	return "booked, refund due", db.oweRefund(ctx, q, p.ID, amount)
}

// rebuildLost makes the row of a payment that nothing is known of but its
// transfer. Its fingerprint is nobody's request.
func (db *DB) rebuildLost(ctx context.Context, q querier, k ledger.Key, payTo string, amount int64, e ledger.Evidence) error {
	var tenant string
	var version int64
	err := q.QueryRowContext(ctx, `SELECT id, current_version FROM tenants WHERE pay_to = $1 ORDER BY created_at, id LIMIT 1`, payTo).Scan(&tenant, &version)
	if errors.Is(err, sql.ErrNoRows) {
		err = q.QueryRowContext(ctx, `SELECT tenant_id, version FROM payments WHERE pay_to = $1 ORDER BY created_at LIMIT 1`, payTo).Scan(&tenant, &version)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return &clawr.Error{Code: clawr.CodeTenantNotFound, Message: "no tenant sells for " + payTo + ", which was paid", Fix: "clawr deploy it again, then repair again"}
	}
	if err != nil {
		return err
	}
	db.sold.add(k)
	id, now := newID("pay_"), db.micros()
	_, err = q.ExecContext(ctx, `
		INSERT INTO payments(id, tenant_id, version, route, scheme, network, asset, payer, auth_nonce, pay_to, amount, fingerprint, payload, payload_sha256, signature_sha256,
			policy, work, money, facilitator, tx_hash, block_number, block_hash, log_index, error_code, counters, created_at, updated_at)
		VALUES ($1, $2, $3, '', 'exact', $4, $5, $6, $7, $8, $9, '', $10, '', '', 'settle_first', 'failed', 'mined', 'self', $11, $12, $13, $14, $15, '[]', $16, $16)`,
		id, tenant, version, k.Network, k.Asset, k.Payer, k.Nonce, payTo, amount, []byte("{}"), e.Tx, e.BlockNumber, e.BlockHash, e.LogIndex, string(lostCode), now)
	if err != nil {
		return err
	}
	return db.oweRefund(ctx, q, id, amount)
}

func (db *DB) oweRefund(ctx context.Context, q querier, id string, amount int64) error {
	now := db.micros()
	_, err := q.ExecContext(ctx, `
		INSERT INTO refunds(payment_id, amount, reason, state, created_at, updated_at) VALUES ($1, $2, $3, 'due', $4, $4) ON CONFLICT (payment_id) DO NOTHING`,
		id, amount, string(lostCode), now)
	return err
}

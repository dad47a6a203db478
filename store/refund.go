package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/402claw/clawr/ledger"
)

// The life of a refund after it is due. Each move is one conditional UPDATE;
// whatever the chain shows of a transfer that is not final yet is its evidence,
// and no state.

const refundRows = `SELECT r.payment_id, p.network, p.asset, p.payer, p.auth_nonce, p.pay_to, r.amount, r.reason, r.state,
	COALESCE(r.auth_nonce, ''), COALESCE(r.valid_before, 0), r.payload, COALESCE(r.tx_hash, ''), COALESCE(r.block_number, 0), COALESCE(r.block_hash, ''), COALESCE(r.log_index, 0),
	COALESCE(r.proof, ''), r.created_at, r.updated_at FROM refunds r JOIN payments p ON p.id = r.payment_id `

func scanRefund(row scanner) (*ledger.Refund, error) {
	var r ledger.Refund
	var created, updated int64
	err := row.Scan(&r.PaymentID, &r.Payment.Network, &r.Payment.Asset, &r.Payment.Payer, &r.Payment.Nonce, &r.From, &r.Amount, &r.Reason, &r.State,
		&r.Nonce, &r.ValidBefore, &r.Payload, &r.Tx, &r.BlockNumber, &r.BlockHash, &r.LogIndex, &r.Proof, &created, &updated)
	r.Created, r.Updated = fromMicros(created), fromMicros(updated)
	return &r, err
}

// Refund is what is owed for a payment, nil if nothing is and nothing was.
func (db *DB) Refund(ctx context.Context, paymentID string) (*ledger.Refund, error) {
	return orNil(scanRefund(db.reader().QueryRowContext(ctx, refundRows+`WHERE r.payment_id = $1`, paymentID)))
}

// Refunds are those of the given payments, by their ids.
func (db *DB) Refunds(ctx context.Context, paymentIDs ...string) (map[string]ledger.Refund, error) {
	out := map[string]ledger.Refund{}
	for len(paymentIDs) > 0 {
		n := min(len(paymentIDs), 500)
		args, marks := make([]any, n), make([]string, n)
		for i, id := range paymentIDs[:n] {
			args[i], marks[i] = id, fmt.Sprintf("$%d", i+1)
		}
		list, err := db.refunds(ctx, `WHERE r.payment_id IN(`+strings.Join(marks, ",")+`)`, args...)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			out[r.PaymentID] = r
		}
		paymentIDs = paymentIDs[n:]
	}
	return out, nil
}

// OpenRefunds are those that are not final, oldest first: due ones, and signed
// ones whose transfer somebody has to see through.
func (db *DB) OpenRefunds(ctx context.Context, limit int) ([]ledger.Refund, error) {
	return db.refunds(ctx, `WHERE r.state <> 'final' ORDER BY r.created_at, r.payment_id LIMIT $1`, limit)
}

// A query of refunds begins with them, of which there are few, and not with what
// was paid on a network, which would be everything: SQLite has no statistics, and
// is kept from it by a column that no index has as it is here.
const onNetwork = `(p.network || '') = `

// SignedRefunds are those on a network that were signed and are not final, and
// may be charged as far as is known, oldest first, from the one after the given
// one on; zero begins with the oldest.
func (db *DB) SignedRefunds(ctx context.Context, network string, after ledger.Refund, limit int) ([]ledger.Refund, error) {
	return db.refunds(ctx, `WHERE r.state <> 'final' AND r.state = 'signed' AND r.proof IS NULL AND `+onNetwork+`$1 AND (r.created_at, r.payment_id) > ($2, $3)
		ORDER BY r.created_at, r.payment_id LIMIT $4`, network, after.Created.UnixMicro(), after.PaymentID, limit)
}

// RefundsOf are the refunds of what was paid to an address, oldest first.
func (db *DB) RefundsOf(ctx context.Context, network, asset, payTo string) ([]ledger.Refund, error) {
	return db.refunds(ctx, `WHERE p.network = $1 AND p.asset = $2 AND p.pay_to = $3 ORDER BY r.created_at, r.payment_id`, network, asset, payTo)
}

func (db *DB) refunds(ctx context.Context, where string, args ...any) ([]ledger.Refund, error) {
	var list []ledger.Refund
	rows, err := db.reader().QueryContext(ctx, refundRows+where, args...)
	err = each(rows, err, func(rows *sql.Rows) error {
		r, err := scanRefund(rows)
		list = append(list, *r)
		return err
	})
	return list, err
}

// Promised is what an address has signed refunds for that the chain does not
// show yet, in atomic units.
func (db *DB) Promised(ctx context.Context, network, asset, from string) (units int64, err error) {
	err = db.reader().QueryRowContext(ctx, `
		SELECT COALESCE(CAST(SUM(r.amount) AS BIGINT), 0) FROM refunds r JOIN payments p ON p.id = r.payment_id
		WHERE r.state <> 'final' AND r.state = 'signed' AND r.tx_hash IS NULL AND r.proof IS NULL AND `+onNetwork+`$1 AND p.asset = $2 AND p.pay_to = $3`, network, asset, from).Scan(&units)
	return units, err
}

// SignRefund stores the authorization that pays r, before anybody may send it.
// Only what is due is signed for, of a payment that is final: an earlier one may
// turn out to be unpaid yet. What was signed is signed for again only after the
// proof that it will never be charged, under the same nonce, and when no
// transaction that may be mined carries it. ErrFenced: it is signed already, or
// cannot be. Who signed is in the audit log.
func (db *DB) SignRefund(ctx context.Context, r ledger.Refund, by string) error {
	if r.Nonce != ledger.RefundNonce(r.Payment) || r.ValidBefore <= 0 || len(r.Payload) == 0 {
		return fmt.Errorf("store: the refund of %s is not signed for as it has to be", r.PaymentID)
	}
	k := r.Key()
	db.at("repay.before")
	err := db.inLine(ctx, func(ctx context.Context, q querier, again bool) error {
		ok, err := changed(q.ExecContext(ctx, `
			UPDATE refunds SET state = 'signed', auth_nonce = $3, valid_before = $4, payload = $5, proof = NULL, updated_at = $6
			WHERE payment_id = $1 AND amount = $2
			  AND EXISTS(SELECT 1 FROM payments p WHERE p.id = refunds.payment_id AND p.money = 'final' AND p.pay_to = $7 AND p.amount = refunds.amount)
			  AND (state = 'due' OR state = 'signed' AND auth_nonce = $3 AND proof IS NOT NULL AND tx_hash IS NULL AND valid_before < $4)
			  AND NOT EXISTS(SELECT 1 FROM settlements s JOIN settlement_items i ON i.settlement_id = s.id AND i.live = 1
				WHERE s.network = $8 AND s.asset = $9 AND s.payer = $7 AND s.auth_nonce = $3)`,
			r.PaymentID, r.Amount, r.Nonce, r.ValidBefore, r.Payload, db.micros(), k.Payer, k.Network, k.Asset))
		if err != nil {
			return err
		}
		if !ok {
			if again {
				return db.landed(ctx, q, moveRefund, r.PaymentID, `SELECT 1 FROM refunds WHERE payment_id = $1 AND state = 'signed' AND valid_before = $2 AND payload = $3`, r.PaymentID, r.ValidBefore, r.Payload)
			}
			return fenced(moveRefund, r.PaymentID)
		}
		// What the settler keeps of the one before, which is over.
		if _, err := q.ExecContext(ctx, `UPDATE settlements SET valid_before = $5, payload = $6 WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4`,
			k.Network, k.Asset, k.Payer, k.Nonce, r.ValidBefore, r.Payload); err != nil {
			return err
		}
		return db.audit(ctx, q, by, "refund", r.PaymentID, fmt.Sprintf(`{"units":%d,"from":%q,"to":%q,"nonce":%q,"validBefore":%d}`, r.Amount, r.From, r.Payment.Payer, r.Nonce, r.ValidBefore))
	})
	if err != nil {
		return err
	}
	db.at("repay.after")
	return nil
}

const moveRefund ledger.Move = "refund"

// RefundSeen notes where the chain shows the transfer of a refund, and whether
// that block is finalized. Nothing that is final moves: then ErrFenced.
func (db *DB) RefundSeen(ctx context.Context, paymentID string, e ledger.Evidence, final bool) error {
	if e.Tx == "" || e.BlockHash == "" {
		return errors.New("store: a refund without evidence")
	}
	db.at("repaid.before")
	seen := func(ctx context.Context, q querier, again bool) error {
		ok, err := changed(q.ExecContext(ctx, `
			UPDATE refunds SET state = CASE WHEN $6 = 1 THEN 'final' ELSE state END, tx_hash = $2, block_number = $3, block_hash = $4, log_index = $5, proof = NULL, updated_at = $7
			WHERE payment_id = $1 AND state = 'signed'`, paymentID, e.Tx, e.BlockNumber, e.BlockHash, e.LogIndex, bit(final), db.micros()))
		if err != nil {
			return err
		}
		if !ok {
			if again {
				return db.landed(ctx, q, moveRefund, paymentID, `SELECT 1 FROM refunds WHERE payment_id = $1 AND state = 'final' AND tx_hash = $2 AND block_hash = $3`, paymentID, e.Tx, e.BlockHash)
			}
			return fenced(moveRefund, paymentID)
		}
		if !final {
			return nil
		}
		return db.audit(ctx, q, "clawr", "refunded", paymentID, fmt.Sprintf(`{"tx":%q,"block":%d}`, e.Tx, e.BlockNumber))
	}
	write := db.write
	if final {
		write = db.inLine
	}
	if err := write(ctx, seen); err != nil {
		return err
	}
	db.at("repaid.after")
	return nil
}

// RefundLost takes back that the chain shows the transfer of a refund: the
// block with this hash is not on it any more. It may be charged at any moment.
func (db *DB) RefundLost(ctx context.Context, paymentID, blockHash string) error {
	landed := `SELECT 1 FROM refunds WHERE payment_id = $1 AND state = 'signed' AND tx_hash IS NULL AND $2 <> '' AND $3 > 0`
	return db.move(ctx, moveRefund, paymentID, &landed, `
		UPDATE refunds SET tx_hash = NULL, block_number = NULL, block_hash = NULL, log_index = NULL, updated_at = $3
		WHERE payment_id = $1 AND state = 'signed' AND block_hash = $2`, paymentID, blockHash, db.micros())
}

// RefundOver notes the proof that what was signed for a refund, valid before a
// moment, will never be charged.
func (db *DB) RefundOver(ctx context.Context, paymentID string, validBefore int64, proof string) error {
	if proof == "" {
		return errors.New("store: a refund is over without proof")
	}
	landed := `SELECT 1 FROM refunds WHERE payment_id = $1 AND state = 'signed' AND valid_before = $2 AND proof = $3`
	return db.move(ctx, moveRefund, paymentID, &landed, `
		UPDATE refunds SET proof = $3, updated_at = $4 WHERE payment_id = $1 AND state = 'signed' AND valid_before = $2 AND tx_hash IS NULL`,
		paymentID, validBefore, proof, db.micros())
}

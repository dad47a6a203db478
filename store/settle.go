package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/402claw/clawr/ledger"
)

// Paid books the evidence that the chain shows a submitted payment, and
// completes its usage event. Booking the same transaction in the same block
// twice is booking it once; another one is ErrFenced until Unmine took the
// first back.
func (db *DB) Paid(ctx context.Context, k ledger.Key, e ledger.Evidence) error {
	if e.Tx == "" || e.BlockHash == "" {
		return errors.New("store: paid without evidence")
	}
	return db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		ok, err := db.paid(ctx, q, k, e, "", 0)
		if err != nil || ok {
			return err
		}
		return db.landed(ctx, q, ledger.MovePaid, k.Nonce, `
			SELECT 1 FROM payments WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4
			   AND money IN('mined','final') AND tx_hash = $5 AND block_hash = $6`, k.Network, k.Asset, k.Payer, k.Nonce, e.Tx, e.BlockHash)
	})
}

// paid moves the payment with this key, if there is one and it is submitted.
// A payTo, if given, and its amount must be the payment's: the evidence is of
// exactly that transfer, and a payer may sign one nonce for two.
func (db *DB) paid(ctx context.Context, q querier, k ledger.Key, e ledger.Evidence, payTo string, amount int64) (bool, error) {
	list, err := scanMoved(q.QueryContext(ctx, `
		UPDATE payments SET money = 'mined', tx_hash = $5, block_number = $6, block_hash = $7, log_index = $8, updated_at = $9
		WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4 AND money = 'signed'
		  AND ($10 = '' OR pay_to = $10 AND amount = $11)
		RETURNING id, policy, network, asset, pay_to, payer, amount`, k.Network, k.Asset, k.Payer, k.Nonce, e.Tx, e.BlockNumber, e.BlockHash, e.LogIndex, db.micros(), payTo, amount))
	if err != nil || len(list) == 0 {
		return false, err
	}
	return true, completeMined(ctx, q, list)
}

// evidenced are the items i of a batch with evidence that their settlement s was paid.
const evidenced = `i.batch_id = $1 AND i.outcome IN('paid','used_elsewhere') AND i.tx_hash IS NOT NULL AND i.block_hash IS NOT NULL`

// minedPayments books the evidence of a batch's items, of which so many have
// some, with this book's payments among them: all by one statement, however
// many share the transaction.
func (db *DB) minedPayments(ctx context.Context, q querier, batchID string, shown int) error {
	list, err := scanMoved(q.QueryContext(ctx, `
		UPDATE payments SET money = 'mined', tx_hash = i.tx_hash, block_number = i.block_number, block_hash = i.block_hash, log_index = i.log_index, updated_at = $2
		FROM settlement_items i JOIN settlements s ON s.id = i.settlement_id
		WHERE `+evidenced+` AND payments.network = s.network AND payments.asset = s.asset AND payments.payer = s.payer AND payments.auth_nonce = s.auth_nonce
		  AND payments.pay_to = s.pay_to AND payments.amount = s.amount AND payments.money = 'signed'
		RETURNING payments.id, payments.policy, payments.network, payments.asset, payments.pay_to, payments.payer, payments.amount`, batchID, db.micros()))
	if err != nil {
		return err
	}
	if len(list) < shown {
		// The others are somebody else's payments, or Paid booked them first.
		rows, err := q.QueryContext(ctx, `
			SELECT p.id, p.money, i.tx_hash FROM settlement_items i JOIN settlements s ON s.id = i.settlement_id
				JOIN payments p ON p.network = s.network AND p.asset = s.asset AND p.payer = s.payer AND p.auth_nonce = s.auth_nonce
			WHERE `+evidenced+` AND p.money NOT IN('mined','final')`, batchID)
		err = each(rows, err, func(rows *sql.Rows) error {
			var id, money, tx string
			err := rows.Scan(&id, &money, &tx)
			db.log.ErrorContext(ctx, "the chain shows a payment that the book has given up", "payment", id, "money", money, "tx", tx)
			return err
		})
		if err != nil {
			return err
		}
	}
	return completeMined(ctx, q, list)
}

// moved is a payment that a statement has moved.
type moved struct {
	id     string
	policy ledger.Policy
	account
	amount int64
}

// scanMoved reads what RETURNING id, policy, network, asset, pay_to, payer,
// amount gave.
func scanMoved(rows *sql.Rows, err error) (list []moved, _ error) {
	err = each(rows, err, func(rows *sql.Rows) error {
		var m moved
		err := rows.Scan(&m.id, &m.policy, &m.network, &m.asset, &m.payTo, &m.payer, &m.amount)
		list = append(list, m)
		return err
	})
	return list, err
}

// completeMined is completeEvent for payments that are mined: it takes what
// async exposed from each account once.
func completeMined(ctx context.Context, q querier, list []moved) error {
	var async []moved
	for _, m := range list {
		if m.policy == ledger.Async {
			async = append(async, m)
		} else if err := chargedEvent(ctx, q, m.id, ledger.Mined); err != nil {
			return err
		}
	}
	return unexpose(ctx, q, async)
}

// Dead ends a submitted payment with the proof that it can never be charged:
// it was cancelled, or a finalized block is later than its validBefore and its
// authorization is unused. Its counters are given back, unless its answer was
// delivered all the same (async), and its event says settlement_failed. A refund
// that was due for it (settle_first) is not: nothing was paid.
func (db *DB) Dead(ctx context.Context, k ledger.Key, proof string) error {
	if proof == "" {
		return errors.New("store: dead without proof")
	}
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		var id string
		var policy ledger.Policy
		var counters []byte
		ok, err := found(q.QueryRowContext(ctx, `
			UPDATE payments SET money = 'dead', proof = $5, updated_at = $6
			WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4 AND money = 'signed'
			RETURNING id, policy, counters`, k.Network, k.Asset, k.Payer, k.Nonce, proof, db.micros()).Scan(&id, &policy, &counters))
		if err != nil {
			return err
		}
		if !ok {
			if again {
				return db.landed(ctx, q, ledger.MoveDead, k.Nonce, `
					SELECT 1 FROM payments WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4
					   AND money = 'dead' AND proof = $5`, k.Network, k.Asset, k.Payer, k.Nonce, proof)
			}
			return fenced(ledger.MoveDead, k.Nonce)
		}
		if policy != ledger.Async {
			if err := giveBackJSON(ctx, q, id, counters); err != nil {
				return err
			}
		}
		if policy == ledger.SettleFirst {
			if _, err := q.ExecContext(ctx, `DELETE FROM refunds WHERE payment_id = $1 AND state = 'due'`, id); err != nil {
				return err
			}
		}
		return completeEvent(ctx, q, id, ledger.Dead)
	})
}

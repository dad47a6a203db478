package store

import (
	"context"
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
	var id string
	ok, err := found(q.QueryRowContext(ctx, `
		UPDATE payments SET money = 'mined', tx_hash = $5, block_number = $6, block_hash = $7, log_index = $8, updated_at = $9
		WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4 AND money = 'signed'
		  AND ($10 = '' OR pay_to = $10 AND amount = $11)
		RETURNING id`, k.Network, k.Asset, k.Payer, k.Nonce, e.Tx, e.BlockNumber, e.BlockHash, e.LogIndex, db.micros(), payTo, amount).Scan(&id))
	if err != nil || !ok {
		return ok, err
	}
	return true, completeEvent(ctx, q, id, ledger.Mined)
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

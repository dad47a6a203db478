package store

import (
	"context"
	"fmt"

	"github.com/402claw/clawr/ledger"
)

// What becomes of evidence later: its block is finalized, or it is lost. The
// first two methods are for one payment, the others for a batch of our own
// facilitator with all payments in it.

// Final records that the evidence in this block is finalized.
func (db *DB) Final(ctx context.Context, k ledger.Key, blockHash string) error {
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		sums, _, err := scanFinal(q.QueryContext(ctx, `
			UPDATE payments SET money = 'final', updated_at = $6
			WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4 AND money = 'mined' AND block_hash = $5
			RETURNING network, asset, pay_to, payer, amount`,
			k.Network, k.Asset, k.Payer, k.Nonce, blockHash, db.micros()))
		if err != nil {
			return err
		}
		if len(sums) > 0 {
			return earn(ctx, q, sums)
		}
		if again {
			return db.landed(ctx, q, ledger.MoveFinal, k.Nonce, `
				SELECT 1 FROM payments WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4
				   AND money = 'final' AND block_hash = $5`, k.Network, k.Asset, k.Payer, k.Nonce, blockHash)
		}
		return fenced(ledger.MoveFinal, k.Nonce)
	})
}

// Unmine takes back the evidence in this block, which is no longer on the
// canonical chain: the payment is submitted, and may be charged at any moment.
// The row keeps the lost hashes until there are new ones.
func (db *DB) Unmine(ctx context.Context, k ledger.Key, blockHash string) error {
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		var id string
		ok, err := found(q.QueryRowContext(ctx, `
			UPDATE payments SET money = 'signed', updated_at = $6
			WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4 AND money = 'mined' AND block_hash = $5
			RETURNING id`, k.Network, k.Asset, k.Payer, k.Nonce, blockHash, db.micros()).Scan(&id))
		if err != nil {
			return err
		}
		if !ok {
			if again {
				return db.landed(ctx, q, ledger.MoveUnmine, k.Nonce, `
					SELECT 1 FROM payments WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4
					   AND money = 'signed' AND block_hash = $5`, k.Network, k.Asset, k.Payer, k.Nonce, blockHash)
			}
			return fenced(ledger.MoveUnmine, k.Nonce)
		}
		return completeEvent(ctx, q, id, ledger.Signed)
	})
}

// batchPayments joins a batch's items with this book's payments.
const batchPayments = ` FROM settlement_items i, settlements s
	WHERE i.batch_id = $1 AND s.id = i.settlement_id
	  AND payments.network = s.network AND payments.asset = s.asset AND payments.payer = s.payer AND payments.auth_nonce = s.auth_nonce
	  AND payments.money = 'mined' AND payments.block_hash = $2`

// FinalizeBatch records that the block that a batch was mined in is finalized.
func (db *DB) FinalizeBatch(ctx context.Context, batchID, blockHash string) error {
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		if ok, err := db.moveBatch(ctx, q, again, batchID, blockHash, `state = 'final'`, "final"); err != nil || !ok {
			return err
		}
		sums, _, err := scanFinal(q.QueryContext(ctx, `UPDATE payments SET money = 'final', updated_at = $3`+batchPayments+`
			RETURNING payments.network, payments.asset, payments.pay_to, payments.payer, payments.amount`, batchID, blockHash, db.micros()))
		if err != nil {
			return err
		}
		return earn(ctx, q, sums)
	})
}

// UnmineBatch takes back that a batch was mined in this block, which is no
// longer on the canonical chain: its transactions are to be broadcast again.
// An item that reverted there and is in a later batch by now stays with that.
func (db *DB) UnmineBatch(ctx context.Context, batchID, blockHash string) error {
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		ok, err := db.moveBatch(ctx, q, again, batchID, blockHash, `state = 'signed', mined_tx = NULL, block_number = NULL, block_hash = NULL`, "signed")
		if err != nil || !ok {
			return err
		}
		if err := reopenItems(ctx, q, batchID); err != nil {
			return err
		}
		lost, err := ids(q.QueryContext(ctx, `UPDATE payments SET money = 'signed', updated_at = $3`+batchPayments+` RETURNING payments.id`, batchID, blockHash, db.micros()))
		for _, id := range lost {
			if err == nil {
				err = completeEvent(ctx, q, id, ledger.Signed)
			}
		}
		return err
	})
}

// moveBatch moves a batch that was mined in this block. False without an error
// means that an earlier try of ours did all of it.
func (db *DB) moveBatch(ctx context.Context, q querier, again bool, batchID, blockHash, set, state string) (bool, error) {
	ok, err := changed(q.ExecContext(ctx, `UPDATE settlement_batches SET `+set+`, updated_at = $3 WHERE id = $1 AND state = 'mined' AND block_hash = $2`,
		batchID, blockHash, db.micros()))
	if err != nil || ok {
		return ok, err
	}
	if again {
		return false, db.landed(ctx, q, ledger.MoveFinal, batchID, `SELECT 1 FROM settlement_batches WHERE id = $1 AND state = $2`, batchID, state)
	}
	return false, fmt.Errorf("%w: batch %s is not mined in %s", ledger.ErrFenced, batchID, blockHash)
}

// OrphanBatch gives a batch up: a finalized block has used its signer's nonce
// for another transaction, so that none of the batch's own can be mined. Its
// settlements may go into another batch.
func (db *DB) OrphanBatch(ctx context.Context, batchID string) error {
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		ok, err := changed(q.ExecContext(ctx, `UPDATE settlement_batches SET state = 'orphaned', updated_at = $2 WHERE id = $1 AND state = 'signed'`, batchID, db.micros()))
		if err != nil {
			return err
		}
		if !ok {
			if again {
				return db.landed(ctx, q, ledger.MoveSign, batchID, `SELECT 1 FROM settlement_batches WHERE id = $1 AND state = 'orphaned'`, batchID)
			}
			return fmt.Errorf("%w: batch %s is not open", ledger.ErrFenced, batchID)
		}
		_, err = q.ExecContext(ctx, `UPDATE settlement_items SET live = 0 WHERE batch_id = $1`, batchID)
		return err
	})
}

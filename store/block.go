package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/402claw/clawr/ledger"
)

// What a watcher of the chain books, block by block: a block is finalized, or
// lost, with everything in it.

// Blocks lists the blocks from one number to another in which the book has
// something mined that is not final yet: payments, batches, and settlements
// that somebody else's transaction paid. The lowest comes first.
func (db *DB) Blocks(ctx context.Context, network string, from, to int64) ([]ledger.Block, error) {
	var list []ledger.Block
	rows, err := db.reader().QueryContext(ctx, `
		SELECT block_number, block_hash FROM payments WHERE network = $1 AND money = 'mined' AND block_number BETWEEN $2 AND $3
		UNION SELECT block_number, block_hash FROM settlement_batches WHERE network = $1 AND state = 'mined' AND block_number BETWEEN $2 AND $3
		UNION SELECT i.block_number, i.block_hash FROM settlement_batches b JOIN settlement_items i ON i.batch_id = b.id AND i.outcome = 'used_elsewhere'
			WHERE b.network = $1 AND b.state = 'mined' AND i.block_hash IS NOT NULL AND i.block_number BETWEEN $2 AND $3
		ORDER BY 1, 2`, network, from, to)
	err = each(rows, err, func(rows *sql.Rows) error {
		var b ledger.Block
		err := rows.Scan(&b.Number, &b.Hash)
		list = append(list, b)
		return err
	})
	return list, err
}

// finalAtOnce is how many payments become final in one transaction: a block may
// hold thousands, and calls wait behind it.
const finalAtOnce = 250

// FinalizeBlock records that b is finalized, and the chain too up to the
// number final: its payments, a part at a time, and then its batches are final.
// A batch one of whose settlements was paid by a later transaction waits for
// that one's block. After an error it is asked again, for the rest.
func (db *DB) FinalizeBlock(ctx context.Context, network string, b ledger.Block, final int64) (payments int, err error) {
	for n := 1; n > 0; payments += n {
		err := db.write(ctx, func(ctx context.Context, q querier, _ bool) (err error) {
			var sums map[account]int64
			sums, n, err = scanFinal(q.QueryContext(ctx, `
				UPDATE payments SET money = 'final', updated_at = $4 WHERE money = 'mined' AND id IN(
					SELECT id FROM payments WHERE network = $1 AND money = 'mined' AND block_number = $2 AND block_hash = $3 LIMIT $5)
				RETURNING network, asset, pay_to, payer, amount`,
				network, b.Number, b.Hash, db.micros(), finalAtOnce))
			if err != nil {
				return err
			}
			return earn(ctx, q, sums)
		})
		if err != nil {
			return payments, err
		}
	}
	return payments, db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		_, err := q.ExecContext(ctx, `
			UPDATE settlement_batches SET state = 'final', updated_at = $4
			WHERE network = $1 AND state = 'mined' AND block_number = $2 AND block_hash = $3 AND NOT EXISTS(
				SELECT 1 FROM settlement_items i WHERE i.batch_id = settlement_batches.id AND i.outcome = 'used_elsewhere' AND i.block_number > $5)`,
			network, b.Number, b.Hash, db.micros(), final)
		return err
	})
}

// UnmineBlock takes back all evidence in b, which is not on the canonical
// chain any more: its batches are to be broadcast again, its payments may be
// charged at any moment, and a settlement that somebody else's transaction
// paid there may go into another batch. The rows of payments keep the lost
// hashes until there are new ones. Nothing that is final moves.
func (db *DB) UnmineBlock(ctx context.Context, network string, b ledger.Block) (payments int, err error) {
	err = db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		now := db.micros()
		batches, err := ids(q.QueryContext(ctx, `
			UPDATE settlement_batches SET state = 'signed', mined_tx = NULL, block_number = NULL, block_hash = NULL, updated_at = $4
			WHERE network = $1 AND state = 'mined' AND block_number = $2 AND block_hash = $3 RETURNING id`, network, b.Number, b.Hash, now))
		if err != nil {
			return err
		}
		for _, id := range batches {
			if err := reopenItems(ctx, q, id); err != nil {
				return err
			}
		}
		if _, err := q.ExecContext(ctx, `
			UPDATE settlement_items SET outcome = 'reverted', live = 0, tx_hash = NULL, block_number = NULL, block_hash = NULL, log_index = NULL
			WHERE outcome = 'used_elsewhere' AND block_number = $2 AND block_hash = $3 AND batch_id IN(
				SELECT id FROM settlement_batches WHERE network = $1 AND state = 'mined')`, network, b.Number, b.Hash); err != nil {
			return err
		}
		lost, err := ids(q.QueryContext(ctx, `
			UPDATE payments SET money = 'signed', updated_at = $4
			WHERE network = $1 AND money = 'mined' AND block_number = $2 AND block_hash = $3 RETURNING id`, network, b.Number, b.Hash, now))
		if err != nil {
			return err
		}
		for _, id := range lost {
			if err := completeEvent(ctx, q, id, ledger.Signed); err != nil {
				return err
			}
		}
		payments = len(lost)
		return nil
	})
	return payments, err
}

// ids reads the one column of rows.
func ids(rows *sql.Rows, err error) ([]string, error) {
	var list []string
	err = each(rows, err, func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		list = append(list, id)
		return err
	})
	return list, err
}

// reopenItems makes the items of a batch open again, whose block was lost. One
// that reverted there and is in a later batch by now stays with that.
func reopenItems(ctx context.Context, q querier, batchID string) error {
	_, err := q.ExecContext(ctx, `
		UPDATE settlement_items SET outcome = NULL, tx_hash = NULL, block_number = NULL, block_hash = NULL, log_index = NULL,
			live = CASE WHEN EXISTS(SELECT 1 FROM settlement_items o WHERE o.settlement_id = settlement_items.settlement_id AND o.live = 1 AND o.batch_id <> $1) THEN 0 ELSE 1 END
		WHERE batch_id = $1`, batchID)
	return err
}

// Used books what the chain shows of authorizations, whoever submitted them:
// a payment among them that is submitted, and of exactly that transfer, is
// mined. Most are nobody's here, or were booked with their batch, so they are
// looked up before anything is written.
func (db *DB) Used(ctx context.Context, uses []ledger.Use) (payments int, err error) {
	var ours []ledger.Use
	known := map[ledger.Evidence]bool{} // transactions
	for _, u := range uses {
		if u.Tx == "" || u.BlockHash == "" {
			return 0, errors.New("store: used without evidence")
		}
		tx := ledger.Evidence{Tx: u.Tx, BlockNumber: u.BlockNumber, BlockHash: u.BlockHash}
		booked, ok := known[tx]
		if !ok {
			if booked, err = db.bookedWhole(ctx, u.Network, tx); err != nil {
				return 0, err
			}
			known[tx] = booked
		}
		if booked {
			continue
		}
		var one int
		ok, err := found(db.reader().QueryRowContext(ctx, `
			SELECT 1 FROM payments WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4 AND money = 'signed' AND pay_to = $5 AND amount = $6`,
			u.Network, u.Asset, u.Payer, u.Nonce, u.PayTo, u.Amount).Scan(&one))
		if err != nil {
			return 0, err
		}
		if ok {
			ours = append(ours, u)
		}
	}
	if len(ours) == 0 {
		return 0, nil
	}
	err = db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		payments = 0
		for _, u := range ours {
			ok, err := db.paid(ctx, q, u.Key, u.Evidence, u.PayTo, u.Amount)
			if err != nil {
				return err
			}
			payments += int(bit(ok))
		}
		return nil
	})
	return payments, err
}

// bookedWhole reports whether a transaction is a batch of ours that Mined booked
// in this block, with every one of its settlements paid: then it booked their
// payments, too.
func (db *DB) bookedWhole(ctx context.Context, network string, e ledger.Evidence) (bool, error) {
	var one int
	return found(db.reader().QueryRowContext(ctx, `
		SELECT 1 FROM settlement_batches b WHERE network = $1 AND state = 'mined' AND block_number = $2 AND block_hash = $3 AND mined_tx = $4
			AND NOT EXISTS(SELECT 1 FROM settlement_items i WHERE i.batch_id = b.id AND COALESCE(i.outcome, '') <> 'paid')`,
		network, e.BlockNumber, e.BlockHash, e.Tx).Scan(&one))
}

// Held is what the submitted and the reserved payments of an account come to,
// in the token's atomic units: what it will have less than the chain says.
func (db *DB) Held(ctx context.Context, network, asset, payer string) (int64, error) {
	var sum, async int64
	err := db.reader().QueryRowContext(ctx, `
		SELECT (SELECT COALESCE(CAST(SUM(amount) AS BIGINT), 0) FROM payments WHERE payer = $1 AND asset = $2 AND network = $3 AND money IN('held','signed') AND policy <> 'async'),
			(SELECT COALESCE(CAST(SUM(held) AS BIGINT), 0) FROM exposure WHERE payer = $1 AND asset = $2 AND network = $3)`,
		payer, asset, network).Scan(&sum, &async)
	return sum + async, err
}

// Cursor is how far a network's chain was followed, nil if it never was.
func (db *DB) Cursor(ctx context.Context, network string) (*ledger.Cursor, error) {
	var c ledger.Cursor
	var at int64
	ok, err := found(db.reader().QueryRowContext(ctx, `SELECT scanned_number, scanned_hash, final_number, final_time FROM chain_cursor WHERE network = $1`, network).
		Scan(&c.Scanned.Number, &c.Scanned.Hash, &c.Final, &at))
	if err != nil || !ok {
		return nil, err
	}
	c.FinalTime = fromMicros(at)
	return &c, nil
}

// SetCursor moves a network's cursor. Several nodes may move it, each to where
// it is itself: to follow a part of the chain twice does no harm.
func (db *DB) SetCursor(ctx context.Context, network string, c ledger.Cursor) error {
	var at int64
	if !c.FinalTime.IsZero() {
		at = c.FinalTime.UnixMicro()
	}
	return db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		_, err := q.ExecContext(ctx, `
			INSERT INTO chain_cursor(network, scanned_number, scanned_hash, final_number, final_time, updated_at) VALUES ($1, $2, $3, $4, $5, $6)
			ON CONFLICT (network) DO UPDATE SET scanned_number = excluded.scanned_number, scanned_hash = excluded.scanned_hash,
				final_number = excluded.final_number, final_time = excluded.final_time, updated_at = excluded.updated_at`,
			network, c.Scanned.Number, c.Scanned.Hash, c.Final, at, db.micros())
		return err
	})
}

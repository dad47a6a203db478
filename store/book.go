package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/402claw/clawr/ledger"
)

// OpenSettlement keeps what the facilitator is asked to settle, and answers
// with the row that stands for its authorization: s, or what was kept before,
// whose payTo, amount and payload the caller must compare. It carries its live
// batch, or its last one, and what that one did for it.
func (db *DB) OpenSettlement(ctx context.Context, s ledger.Settlement) (ledger.Settlement, error) {
	if s.ID == "" {
		s.ID = newID("stl_")
	}
	db.opened.add(s.Key)
	err := db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		_, err := insertSettlement(ctx, q, s, db.micros())
		return err
	})
	if err != nil {
		return ledger.Settlement{}, err
	}
	out, err := db.Settlement(ctx, s.Key)
	if err != nil {
		return ledger.Settlement{}, err
	}
	if out == nil {
		return ledger.Settlement{}, fmt.Errorf("store: settlement of %s is not there", s.Nonce)
	}
	return *out, nil
}

// insertSettlement writes s unless its authorization has a row. A payload that
// the payment's row has already, byte for byte, is not kept twice.
func insertSettlement(ctx context.Context, q querier, s ledger.Settlement, now int64) (bool, error) {
	return changed(q.ExecContext(ctx, `
		INSERT INTO settlements(id, network, asset, payer, auth_nonce, pay_to, amount, valid_before, payload, requested_by, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, CASE WHEN EXISTS(
				SELECT 1 FROM payments p WHERE p.network = $2 AND p.asset = $3 AND p.payer = $4 AND p.auth_nonce = $5 AND p.payload = CAST($9 AS blob))
			THEN CAST('' AS blob) ELSE CAST($9 AS blob) END, $10, $11) ON CONFLICT (network, asset, payer, auth_nonce) DO NOTHING`,
		s.ID, s.Network, s.Asset, s.Payer, s.Nonce, s.PayTo, s.Amount, s.ValidBefore, s.Payload, null(s.RequestedBy), now))
}

// settlementPayload is the payload of a settlement s: the payment's, if none is kept.
const settlementPayload = `CASE WHEN length(s.payload) > 0 THEN s.payload ELSE (SELECT p.payload FROM payments p
	WHERE p.network = s.network AND p.asset = s.asset AND p.payer = s.payer AND p.auth_nonce = s.auth_nonce) END`

// Settlement is what stands for an authorization in the facilitator's book,
// nil if it was never asked to settle it.
func (db *DB) Settlement(ctx context.Context, k ledger.Key) (*ledger.Settlement, error) {
	if db.opened.lacks(k) {
		return nil, nil
	}
	var s ledger.Settlement
	var batch string
	var created int64
	err := db.reader().QueryRowContext(ctx, `
		SELECT s.id, s.network, s.asset, s.payer, s.auth_nonce, s.pay_to, s.amount, s.valid_before, `+settlementPayload+`, COALESCE(s.requested_by, ''), s.created_at,
			COALESCE(i.batch_id, ''), COALESCE(i.outcome, ''), COALESCE(i.tx_hash, ''), COALESCE(i.block_number, 0), COALESCE(i.block_hash, ''), COALESCE(i.log_index, 0)
		FROM settlements s LEFT JOIN settlement_items i ON i.settlement_id = s.id LEFT JOIN settlement_batches b ON b.id = i.batch_id
		WHERE s.network = $1 AND s.asset = $2 AND s.payer = $3 AND s.auth_nonce = $4
		ORDER BY CASE WHEN i.outcome = 'paid' THEN 0 ELSE 1 END, COALESCE(i.live, 0) DESC, COALESCE(b.created_at, 0) DESC, COALESCE(b.signer_nonce, 0) DESC LIMIT 1`, k.Network, k.Asset, k.Payer, k.Nonce).
		Scan(&s.ID, &s.Network, &s.Asset, &s.Payer, &s.Nonce, &s.PayTo, &s.Amount, &s.ValidBefore, &s.Payload, &s.RequestedBy, &created,
			&batch, &s.Item, &s.Tx, &s.BlockNumber, &s.BlockHash, &s.LogIndex)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s.Created = fromMicros(created)
	if batch != "" {
		list, err := db.batches(ctx, `id = $1`, batch)
		if err != nil {
			return nil, err
		}
		s.Batch = &list[0]
	}
	return &s, nil
}

// Sign is T3: it stores a batch, its first signed transaction and its
// settlements before anything is broadcast, and in the same transaction moves
// this book's payments among them from held to signed. Settlements that the
// book does not have yet are given in opened. All of it, or nothing: ErrLive
// if a settlement is in a live batch already, or if the authorization of one
// of opened has a row by now; ErrFenced if one of them is a payment that may
// not be submitted (its answer is not stored, it was released, or it is another
// transfer: a payer may sign one nonce for two) or if the signer's nonce is
// taken. A settlement without a payments row is somebody else's payment, and a
// batch without settlements a call that moves no payment, such as a claim: it
// has a nonce like all others. What gives back money of a channel is signed only
// in b.Hold, whose epoch it raises, in the book and in b.Hold: ErrReleased if
// that hold was ended.
func (db *DB) Sign(ctx context.Context, b ledger.Batch, opened ...ledger.Settlement) error {
	return db.sign(ctx, nil, b, opened)
}

// sign is Sign in the term of a leader, whose fence is the first statement.
func (db *DB) sign(ctx context.Context, fence func(context.Context, querier) error, b ledger.Batch, opened []ledger.Settlement) error {
	if len(b.Txs) == 0 {
		return errors.New("store: a batch needs a transaction")
	}
	for i := range opened {
		db.opened.add(opened[i].Key)
	}
	db.at("t3.before")
	err := db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		if fence != nil {
			if err := fence(ctx, q); err != nil {
				return err
			}
		}
		now := db.micros()
		landed := func() error {
			return db.landed(ctx, q, ledger.MoveSign, b.ID, `SELECT 1 FROM settlement_batches JOIN settlement_txs ON batch_id = id
				WHERE id = $1 AND calldata_sha256 = $2 AND tx_hash = $3`, b.ID, b.CalldataSHA256, b.Txs[0].Hash)
		}
		if b.Hold != nil {
			ok, err := changed(q.ExecContext(ctx, `UPDATE channels SET epoch = epoch + 1, updated_at = $3 WHERE channel_id = $1 AND epoch = $2 AND reserved > 0`,
				b.Hold.Channel, b.Hold.Epoch, now))
			if err != nil {
				return err
			}
			if !ok {
				if again {
					return landed()
				}
				return ledger.ErrReleased
			}
			db.channelRows().stage(b.Hold.Channel, nil)
		}
		ok, err := changed(q.ExecContext(ctx, `
			INSERT INTO settlement_batches(id, network, signer, signer_nonce, calldata_sha256, item_count, state, created_at, updated_at)
			VALUES ($1, $2, $3, $4, $5, $6, 'signed', $7, $7) ON CONFLICT DO NOTHING`,
			b.ID, b.Network, b.Signer, b.Nonce, b.CalldataSHA256, max(len(b.Settlements), 1), now)) // a call that settles nothing is one, too
		if err != nil {
			return err
		}
		if !ok {
			if again {
				return landed()
			}
			return fmt.Errorf("%w: nonce %d of %s has a batch", ledger.ErrFenced, b.Nonce, b.Signer)
		}
		for _, tx := range b.Txs {
			if err := insertTx(ctx, q, b.ID, tx, now); err != nil {
				return err
			}
		}
		for _, s := range opened {
			ok, err := insertSettlement(ctx, q, s, now)
			if err != nil {
				return err
			}
			if !ok {
				return fmt.Errorf("%w: %s of %s was opened meanwhile", ledger.ErrLive, s.Nonce, s.Payer)
			}
		}
		for i, id := range b.Settlements {
			ok, err := changed(q.ExecContext(ctx, `
				INSERT INTO settlement_items(batch_id, idx, settlement_id, live) VALUES ($1, $2, $3, 1) ON CONFLICT DO NOTHING`, b.ID, i, id))
			if err != nil {
				return err
			}
			if !ok {
				return fmt.Errorf("%w: %s", ledger.ErrLive, id)
			}
		}
		return db.signPayments(ctx, q, b.ID, len(b.Settlements))
	})
	if err != nil {
		return err
	}
	db.at("t3.after")
	return nil
}

// signPayments moves the payments of a batch's settlements to signed, all by
// one statement. Where other processes write too and some settlements have none
// it first locks new ones out: a reservation that is under way then shows up,
// and one that comes later will see the live item.
func (db *DB) signPayments(ctx context.Context, q querier, batch string, settlements int) error {
	if !db.soleOwner() {
		var foreign int
		err := q.QueryRowContext(ctx, `
			SELECT COUNT(*) FROM settlement_items i JOIN settlements s ON s.id = i.settlement_id
				LEFT JOIN payments p ON p.network = s.network AND p.asset = s.asset AND p.payer = s.payer AND p.auth_nonce = s.auth_nonce
			WHERE i.batch_id = $1 AND p.id IS NULL`, batch).Scan(&foreign)
		if err != nil {
			return err
		}
		if foreign > 0 {
			if err := db.lockPayments(ctx, q); err != nil {
				return err
			}
		}
	}
	res, err := q.ExecContext(ctx, `
		UPDATE payments SET money = 'signed', batch_id = $1, facilitator = 'self', updated_at = $2
		FROM settlement_items i JOIN settlements s ON s.id = i.settlement_id
		WHERE i.batch_id = $1 AND payments.network = s.network AND payments.asset = s.asset AND payments.payer = s.payer AND payments.auth_nonce = s.auth_nonce
		  AND payments.pay_to = s.pay_to AND payments.amount = s.amount
		  AND (money = 'signed' OR money = 'held' AND (policy <> 'settle_first' AND work = 'done' OR policy = 'settle_first' AND work = 'pending'))`,
		batch, db.micros())
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == int64(settlements) {
		return err
	}
	var payment string
	ours, err := found(q.QueryRowContext(ctx, `
		SELECT p.id FROM settlement_items i JOIN settlements s ON s.id = i.settlement_id
			JOIN payments p ON p.network = s.network AND p.asset = s.asset AND p.payer = s.payer AND p.auth_nonce = s.auth_nonce
		WHERE i.batch_id = $1 AND COALESCE(p.batch_id, '') <> $1 LIMIT 1`, batch).Scan(&payment))
	if err == nil && ours {
		err = fenced(ledger.MoveSign, payment)
	}
	return err
}

func insertTx(ctx context.Context, q querier, batch string, tx ledger.Tx, now int64) error {
	_, err := q.ExecContext(ctx, `
		INSERT INTO settlement_txs(tx_hash, batch_id, attempt, raw_tx, max_fee_wei, tip_wei, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		tx.Hash, batch, tx.Attempt, tx.Raw, tx.MaxFee, tx.Tip, now)
	return err
}

// AddTx stores one more signed transaction of a batch, with higher fees,
// before it is broadcast. ErrFenced: the batch is mined or given up.
func (db *DB) AddTx(ctx context.Context, batchID string, tx ledger.Tx) error {
	return db.addTx(ctx, nil, batchID, tx)
}

func (db *DB) addTx(ctx context.Context, fence func(context.Context, querier) error, batchID string, tx ledger.Tx) error {
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		if fence != nil {
			if err := fence(ctx, q); err != nil {
				return err
			}
		}
		now := db.micros()
		ok, err := changed(q.ExecContext(ctx, `UPDATE settlement_batches SET updated_at = $2 WHERE id = $1 AND state = 'signed'`, batchID, now))
		if err != nil {
			return err
		}
		if !ok {
			return fmt.Errorf("%w: batch %s", ledger.ErrFenced, batchID)
		}
		if again {
			var one int
			if ok, err := found(q.QueryRowContext(ctx, `SELECT 1 FROM settlement_txs WHERE tx_hash = $1 AND batch_id = $2`, tx.Hash, batchID).Scan(&one)); err != nil || ok {
				return err
			}
		}
		return insertTx(ctx, q, batchID, tx, now)
	})
}

// Mined books how a mined batch ended for each of its settlements, and in the
// same transaction the evidence of this book's payments among them and their
// usage events. A reverted item leaves its settlement open for another batch,
// and its payment signed; so does one that was used elsewhere without
// evidence, which no other batch can change. Booking the same block twice is
// booking it once.
func (db *DB) Mined(ctx context.Context, batchID, tx string, blockNumber int64, blockHash string, results []ledger.ItemResult) error {
	db.at("mined.before")
	err := db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		var items int
		ok, err := found(q.QueryRowContext(ctx, `
			UPDATE settlement_batches SET state = 'mined', mined_tx = $2, block_number = $3, block_hash = $4, updated_at = $5
			WHERE id = $1 AND state = 'signed' AND EXISTS(SELECT 1 FROM settlement_txs t WHERE t.batch_id = settlement_batches.id AND t.tx_hash = $2)
			RETURNING (SELECT COUNT(*) FROM settlement_items i WHERE i.batch_id = settlement_batches.id)`, batchID, tx, blockNumber, blockHash, db.micros()).Scan(&items))
		if err != nil {
			return err
		}
		if !ok {
			return db.landed(ctx, q, ledger.MovePaid, batchID, `
				SELECT 1 FROM settlement_batches WHERE id = $1 AND state IN('mined','final') AND mined_tx = $2 AND block_hash = $3`, batchID, tx, blockHash)
		}
		if items != len(results) {
			return fmt.Errorf("store: %d results for the %d items of batch %s", len(results), items, batchID)
		}
		shown := 0
		for _, r := range results {
			if err := minedItem(ctx, q, batchID, r); err != nil {
				return err
			}
			shown += int(bit(r.Outcome != ledger.ItemReverted && r.Tx != "" && r.BlockHash != ""))
		}
		return db.minedPayments(ctx, q, batchID, shown)
	})
	if err != nil {
		return err
	}
	db.at("mined.after")
	return nil
}

func minedItem(ctx context.Context, q querier, batchID string, r ledger.ItemResult) error {
	ok, err := changed(q.ExecContext(ctx, `
		UPDATE settlement_items SET outcome = $3, tx_hash = $4, block_number = $5, block_hash = $6, log_index = $7,
			live = CASE WHEN $3 = 'reverted' THEN 0 ELSE live END
		WHERE batch_id = $1 AND settlement_id = $2 AND outcome IS NULL`,
		batchID, r.SettlementID, string(r.Outcome), null(r.Tx), r.BlockNumber, null(r.BlockHash), r.LogIndex))
	if err == nil && !ok {
		err = fmt.Errorf("store: %s is no open item of batch %s", r.SettlementID, batchID)
	}
	return err
}

// OpenBatches lists a signer's batches that are neither mined nor given up, by
// nonce, with every transaction that may be rebroadcast.
func (db *DB) OpenBatches(ctx context.Context, network, signer string) ([]ledger.Batch, error) {
	return db.batches(ctx, `network = $1 AND signer = $2 AND state = 'signed' ORDER BY signer_nonce`, network, signer)
}

// NextNonce is one more than the highest account nonce that a batch of signer
// has, 0 if it has none; the chain may know a higher one.
func (db *DB) NextNonce(ctx context.Context, network, signer string) (int64, error) {
	var n int64
	err := db.reader().QueryRowContext(ctx, `SELECT COALESCE(MAX(signer_nonce) + 1, 0) FROM settlement_batches WHERE network = $1 AND signer = $2`, network, signer).Scan(&n)
	return n, err
}

func (db *DB) batches(ctx context.Context, where string, args ...any) ([]ledger.Batch, error) {
	var list []ledger.Batch
	rows, err := db.reader().QueryContext(ctx, `
		SELECT id, network, signer, signer_nonce, calldata_sha256, state, COALESCE(mined_tx, ''), COALESCE(block_number, 0), COALESCE(block_hash, ''), created_at
		FROM settlement_batches WHERE `+where, args...)
	err = each(rows, err, func(rows *sql.Rows) error {
		var b ledger.Batch
		var created int64
		err := rows.Scan(&b.ID, &b.Network, &b.Signer, &b.Nonce, &b.CalldataSHA256, &b.State, &b.MinedTx, &b.BlockNumber, &b.BlockHash, &created)
		b.Created = fromMicros(created)
		list = append(list, b)
		return err
	})
	for i := range list {
		if err == nil {
			err = db.fillBatch(ctx, &list[i])
		}
	}
	return list, err
}

// fillBatch adds a batch's settlements and transactions, which never change
// but for transactions that are added.
func (db *DB) fillBatch(ctx context.Context, b *ledger.Batch) error {
	rows, err := db.reader().QueryContext(ctx, `SELECT settlement_id FROM settlement_items WHERE batch_id = $1 ORDER BY idx`, b.ID)
	err = each(rows, err, func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		b.Settlements = append(b.Settlements, id)
		return err
	})
	if err != nil {
		return err
	}
	rows, err = db.reader().QueryContext(ctx, `SELECT tx_hash, attempt, raw_tx, max_fee_wei, tip_wei FROM settlement_txs WHERE batch_id = $1 ORDER BY attempt`, b.ID)
	return each(rows, err, func(rows *sql.Rows) error {
		var tx ledger.Tx
		err := rows.Scan(&tx.Hash, &tx.Attempt, &tx.Raw, &tx.MaxFee, &tx.Tip)
		b.Txs = append(b.Txs, tx)
		return err
	})
}

package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/402claw/clawr/ledger"
)

// Step is one thing that happened to a payment.
type Step struct {
	At     time.Time // zero where the book does not say
	What   string    // a word: reserved, signed, broadcast, mined, final, released, dead, refund
	Detail string    // for people
}

// History is what the book knows of how a payment came to where it is, in
// order: every batch that carried it, every transaction of those, and the
// refund, if one is due.
func (db *DB) History(ctx context.Context, p *ledger.Payment) ([]Step, error) {
	steps := []Step{{At: p.Created, What: "reserved", Detail: "for version " + fmt.Sprint(p.Version) + ", " + string(p.Policy)}}
	if p.Facilitator != "self" {
		steps = append(steps, Step{What: "submitted", Detail: "to " + p.Facilitator})
	}
	rows, err := db.reader().QueryContext(ctx, `
		SELECT b.id, b.signer, b.signer_nonce, b.item_count, b.state, b.created_at, COALESCE(i.outcome, ''), COALESCE(i.tx_hash, ''), COALESCE(i.block_number, 0)
		FROM settlements s JOIN settlement_items i ON i.settlement_id = s.id JOIN settlement_batches b ON b.id = i.batch_id
		WHERE s.network = $1 AND s.asset = $2 AND s.payer = $3 AND s.auth_nonce = $4 ORDER BY b.created_at, b.signer_nonce`,
		p.Network, p.Asset, p.Payer, p.Nonce)
	type carrier struct{ id, ended string }
	var batches []carrier
	var signed []Step
	err = each(rows, err, func(rows *sql.Rows) error {
		var id, signer, state, outcome, tx string
		var nonce, items, created, block int64
		if err := rows.Scan(&id, &signer, &nonce, &items, &state, &created, &outcome, &tx, &block); err != nil {
			return err
		}
		ended := "batch " + id + " is " + state
		switch {
		case outcome != "" && tx != "":
			ended = fmt.Sprintf("%s by %s in block %d", outcome, tx, block)
		case outcome != "":
			ended = outcome + " in batch " + id
		}
		batches = append(batches, carrier{id, ended})
		signed = append(signed, Step{fromMicros(created), "signed", fmt.Sprintf("batch %s of %d, number %d of %s", id, items, nonce, signer)})
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i, b := range batches {
		steps = append(steps, signed[i])
		rows, err := db.reader().QueryContext(ctx, `
			SELECT tx_hash, attempt, max_fee_wei, tip_wei, created_at, COALESCE(first_broadcast_at, 0) FROM settlement_txs WHERE batch_id = $1 ORDER BY attempt`, b.id)
		err = each(rows, err, func(rows *sql.Rows) error {
			var hash, fee, tip string
			var attempt, created, sent int64
			if err := rows.Scan(&hash, &attempt, &fee, &tip, &created, &sent); err != nil {
				return err
			}
			at := created
			if sent > 0 {
				at = sent
			}
			steps = append(steps, Step{fromMicros(at), "broadcast", fmt.Sprintf("%s, attempt %d, at most %s wei a gas, tip %s", hash, attempt, fee, tip)})
			return nil
		})
		if err != nil {
			return nil, err
		}
		steps = append(steps, Step{What: "ended", Detail: b.ended})
	}
	last := Step{p.Updated, string(p.Money), ""}
	switch p.Money {
	case ledger.Mined, ledger.Final:
		last.Detail = fmt.Sprintf("%s in block %d, log %d", p.Tx, p.BlockNumber, p.LogIndex)
	case ledger.Released:
		last.Detail = "never submitted: " + string(p.ErrorCode)
	case ledger.Dead:
		last.Detail = p.Proof
	case ledger.Held:
		last.Detail = "work " + string(p.Work) + ", not submitted"
	case ledger.Signed:
		last.Detail = "may be charged at any moment"
	}
	steps = append(steps, last)
	r, err := db.Refund(ctx, p.ID)
	if err != nil || r == nil {
		return steps, err
	}
	return append(steps, refundSteps(r)...), nil
}

// refundSteps are what happened to a refund, as far as its row says.
func refundSteps(r *ledger.Refund) []Step {
	steps := []Step{{r.Created, "refund due", fmt.Sprintf("%d units: %s", r.Amount, r.Reason)}}
	if r.State == ledger.RefundDue {
		return steps
	}
	detail := fmt.Sprintf("%d units to %s, nonce %s, until %s", r.Amount, r.Payment.Payer, r.Nonce, time.Unix(r.ValidBefore, 0).UTC().Format(time.RFC3339))
	steps = append(steps, Step{What: "refund signed", Detail: detail})
	switch {
	case r.State == ledger.RefundFinal:
		return append(steps, Step{r.Updated, "refund final", fmt.Sprintf("%s in block %d, log %d", r.Tx, r.BlockNumber, r.LogIndex)})
	case r.Tx != "":
		return append(steps, Step{r.Updated, "refund mined", fmt.Sprintf("%s in block %d, log %d", r.Tx, r.BlockNumber, r.LogIndex)})
	case r.Proof != "":
		return append(steps, Step{r.Updated, "refund over", r.Proof + ": sign it again"})
	}
	return steps
}

// Charge is a payment that the book holds to be charged, and where.
type Charge struct {
	ID          string
	Payer       string
	Nonce       string
	Amount      int64 // atomic units
	Tx          string
	BlockNumber int64
	LogIndex    int64
}

// Charges are all payments to an address that are mined or final, by block.
func (db *DB) Charges(ctx context.Context, network, asset, payTo string) ([]Charge, error) {
	var list []Charge
	rows, err := db.reader().QueryContext(ctx, `
		SELECT id, payer, auth_nonce, amount, tx_hash, COALESCE(block_number, 0), COALESCE(log_index, 0) FROM payments
		WHERE network = $1 AND asset = $2 AND pay_to = $3 AND money IN('mined','final') ORDER BY block_number, log_index`, network, asset, payTo)
	err = each(rows, err, func(rows *sql.Rows) error {
		var c Charge
		err := rows.Scan(&c.ID, &c.Payer, &c.Nonce, &c.Amount, &c.Tx, &c.BlockNumber, &c.LogIndex)
		list = append(list, c)
		return err
	})
	return list, err
}

// Seller is an address that the book has payments to.
type Seller struct {
	Network, Asset, PayTo string
	Since                 time.Time // of the first of them
}

// Sellers are all addresses that were ever to be paid.
func (db *DB) Sellers(ctx context.Context) ([]Seller, error) {
	var list []Seller
	rows, err := db.reader().QueryContext(ctx, `SELECT network, asset, pay_to, MIN(created_at) FROM payments GROUP BY network, asset, pay_to ORDER BY network, asset, pay_to`)
	err = each(rows, err, func(rows *sql.Rows) error {
		var s Seller
		var since int64
		err := rows.Scan(&s.Network, &s.Asset, &s.PayTo, &since)
		s.Since = fromMicros(since)
		list = append(list, s)
		return err
	})
	return list, err
}

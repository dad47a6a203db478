package store

import (
	"cmp"
	"context"
	"database/sql"
	"maps"
	"slices"

	"github.com/402claw/clawr/ledger"
)

// The exposure of a seller is what was delivered under the async policy and is
// not charged yet, in the token's atomic units. It has a row for each payer,
// and one for all payers together, whose payer is total. A row holds the
// amounts of the async payments that are held or signed, and remembers as
// bad_debt those that ended uncharged although their answer was delivered: a
// debt uses up its room for good, or a payer who empties his account after each
// call could take the cap again and again.

// total is the payer of a seller's sum row.
const total = "*"

// room is the cap of a row: what its limit says, but no more than the credit
// that everybody has and a tenth of what this payer paid this seller in
// finalized blocks. Credit earned at one seller buys nothing at another.
const room = `CASE WHEN CAST($6 AS BIGINT) < CAST($7 AS BIGINT) + exposure.volume / 10 THEN CAST($6 AS BIGINT) ELSE CAST($7 AS BIGINT) + exposure.volume / 10 END`

// fits is I8: what is held, lost and added stays within the cap.
const fits = `exposure.held + exposure.bad_debt + CAST($5 AS BIGINT) <= ` + room

// expose takes p's amount from its payer's room and from its seller's, or from
// neither: false means that p may not be delivered before it is charged. The
// sum row comes first, as everywhere, so that two transactions never wait for
// each other crosswise; it is left alone if the payer has certainly no room.
func expose(ctx context.Context, q querier, p *ledger.Payment) (bool, error) {
	e, seller := p.Exposure, []any{p.Network, p.Asset, p.PayTo}
	initial := min(e.Payer, e.Credit)
	if p.Amount > e.Total || p.Amount > e.Payer {
		return false, nil
	}
	if p.Amount > initial {
		var one int
		ok, err := found(q.QueryRowContext(ctx, `
			SELECT 1 FROM exposure WHERE network = $1 AND asset = $2 AND pay_to = $3 AND payer = $4 AND `+fits,
			append(seller, p.Payer, p.Amount, e.Payer, e.Credit)...).Scan(&one))
		if err != nil || !ok {
			return false, err
		}
	}
	ok, err := hold(ctx, q, append(seller, total, p.Amount, e.Total, e.Total), true)
	if err != nil || !ok {
		return false, err
	}
	ok, err = hold(ctx, q, append(seller, p.Payer, p.Amount, e.Payer, e.Credit), p.Amount <= initial)
	if err != nil || ok {
		return ok, err
	}
	_, err = q.ExecContext(ctx, `UPDATE exposure SET held = held - $5, pending = pending - 1 WHERE network = $1 AND asset = $2 AND pay_to = $3 AND payer = $4`,
		append(seller, total, p.Amount)...)
	return false, err
}

// hold takes from one row. Where it fits a row that is not there yet, it is
// made.
func hold(ctx context.Context, q querier, args []any, first bool) (bool, error) {
	if first {
		return changed(q.ExecContext(ctx, `
			INSERT INTO exposure(network, asset, pay_to, payer, held, pending, cap) VALUES ($1, $2, $3, $4, CAST($5 AS BIGINT), 1, CAST($6 AS BIGINT))
			ON CONFLICT (network, asset, pay_to, payer) DO UPDATE SET held = exposure.held + excluded.held, pending = exposure.pending + 1, cap = `+room+` WHERE `+fits, args...))
	}
	return changed(q.ExecContext(ctx, `
		UPDATE exposure SET held = held + CAST($5 AS BIGINT), pending = pending + 1, cap = `+room+`
		WHERE network = $1 AND asset = $2 AND pay_to = $3 AND payer = $4 AND `+fits, args...))
}

// exposed follows an async payment's money in its seller's exposure, in the
// transaction that moved it: what is charged is exposed no more, and what ended
// uncharged is a debt if it was delivered. What a reorganisation has undone is
// exposed again, whatever the cap says, which then keeps all others out.
func exposed(ctx context.Context, q querier, paymentID string, money ledger.Money) error {
	set := `held = CASE WHEN exposure.held < p.amount THEN 0 ELSE exposure.held - p.amount END, pending = exposure.pending - 1`
	switch money {
	case ledger.Dead, ledger.Released:
		set += `, bad_debt = exposure.bad_debt + CASE WHEN p.work = 'done' THEN p.amount ELSE 0 END`
	case ledger.Signed:
		set = `held = exposure.held + p.amount, pending = exposure.pending + 1, cap = CASE WHEN exposure.cap < exposure.held + p.amount THEN exposure.held + p.amount ELSE exposure.cap END`
	}
	_, err := q.ExecContext(ctx, `UPDATE exposure SET `+set+` FROM payments p
		WHERE p.id = $1 AND p.policy = 'async' AND exposure.network = p.network AND exposure.asset = p.asset AND exposure.pay_to = p.pay_to
		  AND exposure.payer IN('`+total+`', p.payer)`, paymentID)
	return err
}

// unexpose is exposed for async payments that are mined, with one statement for
// an account, however many are its.
func unexpose(ctx context.Context, q querier, list []moved) error {
	sums, count := map[account]int64{}, map[account]int64{}
	for _, m := range list {
		all := m.account
		all.payer = total
		for _, a := range []account{all, m.account} {
			sums[a] += m.amount
			count[a]++
		}
	}
	for _, a := range inOrder(sums) {
		if _, err := q.ExecContext(ctx, `
			UPDATE exposure SET held = CASE WHEN held < CAST($5 AS BIGINT) THEN 0 ELSE held - CAST($5 AS BIGINT) END, pending = pending - CAST($6 AS BIGINT)
			WHERE network = $1 AND asset = $2 AND pay_to = $3 AND payer = $4`, a.network, a.asset, a.payTo, a.payer, sums[a], count[a]); err != nil {
			return err
		}
	}
	return nil
}

// account is a payer at a seller.
type account struct{ network, asset, payTo, payer string }

// scanFinal reads the rows of paid, which UPDATE … RETURNING network, asset,
// pay_to, payer, amount gave, sums them up by account, and counts them.
func scanFinal(rows *sql.Rows, err error) (sums map[account]int64, n int, _ error) {
	sums = map[account]int64{}
	err = each(rows, err, func(rows *sql.Rows) error {
		var a account
		var amount int64
		err := rows.Scan(&a.network, &a.asset, &a.payTo, &a.payer, &amount)
		sums[a] += amount
		n++
		return err
	})
	return sums, n, err
}

// inOrder is the accounts in the one order in which transactions lock them: a
// seller's sum row before its payers.
func inOrder(sums map[account]int64) []account {
	return slices.SortedFunc(maps.Keys(sums), func(a, b account) int {
		return cmp.Or(cmp.Compare(a.network, b.network), cmp.Compare(a.asset, b.asset), cmp.Compare(a.payTo, b.payTo), cmp.Compare(a.payer, b.payer))
	})
}

// earn adds to what payers have paid to sellers for good.
func earn(ctx context.Context, q querier, sums map[account]int64) error {
	for _, a := range inOrder(sums) {
		if _, err := q.ExecContext(ctx, `
			INSERT INTO exposure(network, asset, pay_to, payer, held, cap, volume) VALUES ($1, $2, $3, $4, 0, 0, $5)
			ON CONFLICT (network, asset, pay_to, payer) DO UPDATE SET volume = exposure.volume + excluded.volume`,
			a.network, a.asset, a.payTo, a.payer, sums[a]); err != nil {
			return err
		}
	}
	return nil
}

// ExposureOf is where a payer stands with a seller; payer "*" is all of them.
func (db *DB) ExposureOf(ctx context.Context, network, asset, payTo, payer string) (e ledger.Exposed, err error) {
	_, err = found(db.reader().QueryRowContext(ctx, `
		SELECT held, cap, bad_debt, volume FROM exposure WHERE network = $1 AND asset = $2 AND pay_to = $3 AND payer = $4`, network, asset, payTo, payer).
		Scan(&e.Held, &e.Cap, &e.BadDebt, &e.Volume))
	return e, err
}

// Backlog is what async has sold and nobody has settled yet.
func (db *DB) Backlog(ctx context.Context) (ledger.Backlog, error) {
	var b ledger.Backlog
	err := db.reader().QueryRowContext(ctx, `SELECT COALESCE(CAST(SUM(pending) AS BIGINT), 0) FROM exposure WHERE payer = '`+total+`'`).Scan(&b.Depth)
	if err != nil || b.Depth == 0 {
		return b, err
	}
	var created int64
	_, err = found(db.reader().QueryRowContext(ctx, `SELECT valid_before, created_at FROM payments
		WHERE money IN('held','signed') AND money = 'held' AND policy = 'async' AND work = 'done' ORDER BY valid_before, id LIMIT 1`).Scan(&b.Expiry, &created))
	b.Head = fromMicros(created)
	return b, err
}

// Unsettled lists answered payments under the async policy that were never
// submitted, the first to expire first, from after the one that expires at
// expiry and has this id.
func (db *DB) Unsettled(ctx context.Context, expiry int64, id string, limit int) ([]ledger.Payment, error) {
	return db.payments(ctx, `money IN('held','signed') AND money = 'held' AND policy = 'async' AND work = 'done'
		AND (valid_before, id) > ($1, $2) ORDER BY valid_before, id LIMIT $3`, expiry, id, limit)
}

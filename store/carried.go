package store

import (
	"context"
	"database/sql"

	"github.com/402claw/clawr/ledger"
)

// Settlements are the settlements that a batch carries, in the order of its
// calldata, without what became of them.
func (db *DB) Settlements(ctx context.Context, batchID string) ([]ledger.Settlement, error) {
	var list []ledger.Settlement
	rows, err := db.reader().QueryContext(ctx, `
		SELECT s.id, s.network, s.asset, s.payer, s.auth_nonce, s.pay_to, s.amount, s.valid_before, `+settlementPayload+`, COALESCE(s.requested_by, ''), s.created_at
		FROM settlement_items i JOIN settlements s ON s.id = i.settlement_id WHERE i.batch_id = $1 ORDER BY i.idx`, batchID)
	err = each(rows, err, func(rows *sql.Rows) error {
		var s ledger.Settlement
		var created int64
		err := rows.Scan(&s.ID, &s.Network, &s.Asset, &s.Payer, &s.Nonce, &s.PayTo, &s.Amount, &s.ValidBefore, &s.Payload, &s.RequestedBy, &created)
		s.Created = fromMicros(created)
		list = append(list, s)
		return err
	})
	return list, err
}

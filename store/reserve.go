package store

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// Reserve is T1: in one transaction it claims p's authorization for p's
// request and takes from every counter of p, or does nothing. It answers with
// the row, its counters' Used filled in, and the work leased to owner. Under
// async it takes p's amount from the exposure too; if there is no room for it,
// the row says settle_before_response instead.
//
// It is refused with a *ledger.Conflict that carries the standing row if the
// authorization (or the payment identifier, ClientRef) has one; with a
// *ledger.Exceeded if a counter is full; with CodeAlreadyUsed if our
// facilitator is settling the authorization for another server. Asked again
// with the same p.ID, it finds the row that it made.
func (db *DB) Reserve(ctx context.Context, p ledger.Payment, owner string, lease time.Duration) (ledger.Payment, error) {
	db.at("t1.before")
	state, err := ledger.Step(ledger.State{}, ledger.Event{Move: ledger.MoveReserve, Policy: p.Policy})
	if err != nil {
		return ledger.Payment{}, fmt.Errorf("reserve under policy %q: %w", p.Policy, err)
	}
	if err := checkCounters(p.Counters); err != nil {
		return ledger.Payment{}, err
	}
	taken, err := json.Marshal(p.Counters)
	if err != nil {
		return ledger.Payment{}, err
	}
	now := db.micros()
	p.Work, p.Money, p.Epoch, p.Owner, p.Facilitator = state.Work, state.Money, state.Epoch, owner, "self"
	p.Created, p.Updated = fromMicros(now), fromMicros(now)
	p.LeaseUntil = fromMicros(now + lease.Microseconds())
	p.BatchID, p.Evidence, p.Proof, p.ErrorCode = "", ledger.Evidence{}, "", ""
	db.sold.add(p.Key)
	var out ledger.Payment
	err = db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		ok, err := insertPayment(ctx, q, p, string(taken))
		if err != nil {
			return err
		}
		if !ok {
			standing, err := standing(ctx, q, p)
			if err == nil {
				out = *standing
				out.Counters, err = usedBy(ctx, q, out.Counters)
			}
			return err
		}
		if err := db.notElsewhere(ctx, q, p.Key); err != nil {
			return err
		}
		out = p
		if out.Counters, err = take(ctx, q, p.Counters); err != nil || p.Policy != ledger.Async {
			return err
		}
		if ok, err = expose(ctx, q, &p); err != nil || ok {
			return err
		}
		out.Policy = ledger.SettleBeforeResponse
		_, err = q.ExecContext(ctx, `UPDATE payments SET policy = $2 WHERE id = $1`, p.ID, string(out.Policy))
		return err
	})
	if err != nil {
		return ledger.Payment{}, err
	}
	db.at("t1.after")
	return out, nil
}

// insertPayment claims the authorization: false means that it, its id or its
// payment identifier has a row.
func insertPayment(ctx context.Context, q querier, p ledger.Payment, counters string) (bool, error) {
	return changed(q.ExecContext(ctx, `
		INSERT INTO payments(id, tenant_id, version, route, scheme, network, asset, payer, auth_nonce, pay_to,
			amount, valid_after, valid_before, fingerprint, payload, payload_sha256, signature_sha256, quote_sha256,
			client_addr_hash, client_ref, policy, work, money, epoch, owner, lease_until, facilitator, counters, created_at, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26, $27, $28, $29, $29)
		ON CONFLICT DO NOTHING`,
		p.ID, p.TenantID, p.Version, p.Route, p.Scheme, p.Network, p.Asset, p.Payer, p.Nonce, p.PayTo,
		p.Amount, p.ValidAfter, p.ValidBefore, p.Fingerprint, p.Payload, p.PayloadSHA256, p.SignatureSHA256, null(p.QuoteSHA256),
		null(p.ClientAddrHash), null(p.ClientRef), string(p.Policy), string(p.Work), string(p.Money), p.Epoch, p.Owner, p.LeaseUntil.UnixMicro(),
		p.Facilitator, counters, p.Created.UnixMicro()))
}

// standing explains why p was not inserted: nil if the row is p itself, from
// an earlier try; else a Conflict with the row that stood in its way.
func standing(ctx context.Context, q querier, p ledger.Payment) (*ledger.Payment, error) {
	row, err := paymentByKey(ctx, q, p.Key)
	if err != nil {
		return nil, err
	}
	if row == nil && p.ClientRef != "" {
		row, err = orNil(scanPayment(q.QueryRowContext(ctx, `SELECT `+paymentColumns+` FROM payments
			WHERE tenant_id = $1 AND payer = $2 AND client_ref = $3`, p.TenantID, p.Payer, p.ClientRef)))
		if err != nil {
			return nil, err
		}
	}
	switch {
	case row == nil:
		return nil, fmt.Errorf("store: the payment id %s is taken", p.ID)
	case row.ID != p.ID || row.Fingerprint != p.Fingerprint:
		return nil, &ledger.Conflict{Payment: row}
	}
	return row, nil
}

// notElsewhere refuses an authorization that our own facilitator has signed,
// or is paid, for somebody who is not this book: selling for it again would be
// selling twice. It runs after the row is inserted; Sign locks payments out
// before it looks for rows, so that one of the two sees the other.
func (db *DB) notElsewhere(ctx context.Context, q querier, k ledger.Key) error {
	if db.opened.lacks(k) {
		return nil
	}
	var id string
	ok, err := found(q.QueryRowContext(ctx, `
		SELECT s.id FROM settlements s JOIN settlement_items i ON i.settlement_id = s.id AND i.live = 1
		WHERE s.network = $1 AND s.asset = $2 AND s.payer = $3 AND s.auth_nonce = $4`, k.Network, k.Asset, k.Payer, k.Nonce).Scan(&id))
	if err != nil || !ok {
		return err
	}
	return &clawr.Error{Code: clawr.CodeAlreadyUsed, Message: "this authorization is being settled for another server, as " + id, Fix: "pay with a new authorization"}
}

// checkCounters refuses costs that would give instead of take, and caps so
// high that adding to them would not fit.
func checkCounters(list []ledger.Counter) error {
	for _, c := range list {
		if c.Scope == "" || c.Cost < 0 || c.Cap < 0 || c.Cap > math.MaxInt64/2 || c.Cost > math.MaxInt64/2 {
			return fmt.Errorf("store: counter %q takes %d of %d", c.Scope, c.Cost, c.Cap)
		}
	}
	return nil
}

// Take takes from every counter, or from none: then it is a *ledger.Exceeded.
// It answers with the counters' Used. What it took can be given back with
// Return.
func (db *DB) Take(ctx context.Context, list []ledger.Counter) ([]ledger.Counter, error) {
	if err := checkCounters(list); err != nil {
		return nil, err
	}
	var out []ledger.Counter
	err := db.write(ctx, func(ctx context.Context, q querier, again bool) (err error) {
		if again {
			return errUnknown // it may be taken; twice would be too much
		}
		out, err = take(ctx, q, list)
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Return gives back what Take took.
func (db *DB) Return(ctx context.Context, list []ledger.Counter) error {
	if err := checkCounters(list); err != nil {
		return err
	}
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		if again {
			return errUnknown
		}
		return giveBack(ctx, q, list)
	})
}

// Counters reads the counters of the given scopes, all windows, in order.
func (db *DB) Counters(ctx context.Context, scopes ...string) ([]ledger.Counter, error) {
	var list []ledger.Counter
	for _, scope := range scopes {
		rows, err := db.reader().QueryContext(ctx, `SELECT scope, window_start, used, cap FROM counters WHERE scope = $1 ORDER BY window_start`, scope)
		err = each(rows, err, func(rows *sql.Rows) error {
			var c ledger.Counter
			err := rows.Scan(&c.Scope, &c.Window, &c.Used, &c.Cap)
			list = append(list, c)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// ordered gives the indices of list in the one order in which transactions
// lock counters, so that two that share several never wait for each other.
func ordered(list []ledger.Counter) []int {
	order := make([]int, len(list))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(list[a].Scope, list[b].Scope), cmp.Compare(list[a].Window, list[b].Window))
	})
	return order
}

// take takes from every counter. The cap is the caller's, and may have
// changed since the window began; used is what all took. An error undoes all
// with the transaction.
func take(ctx context.Context, q querier, list []ledger.Counter) ([]ledger.Counter, error) {
	out := slices.Clone(list)
	for _, i := range ordered(list) {
		c := &out[i]
		ok := false
		if c.Cost <= c.Cap { // the insert below cannot compare with what is not there yet
			var err error
			ok, err = found(q.QueryRowContext(ctx, `
				INSERT INTO counters(scope, window_start, used, cap) VALUES ($1, $2, $3, $4)
				ON CONFLICT (scope, window_start) DO UPDATE SET used = counters.used + excluded.used, cap = excluded.cap
				WHERE counters.used + excluded.used <= excluded.cap
				RETURNING counters.used`, c.Scope, c.Window, c.Cost, c.Cap).Scan(&c.Used))
			if err != nil {
				return nil, err
			}
		}
		if !ok {
			full, err := usedBy(ctx, q, out[i:i+1])
			if err != nil {
				return nil, err
			}
			return nil, &ledger.Exceeded{Counter: full[0]}
		}
	}
	return out, nil
}

// giveBack undoes take. A window that is gone needs nothing back.
func giveBack(ctx context.Context, q querier, list []ledger.Counter) error {
	for _, i := range ordered(list) {
		c := list[i]
		if _, err := q.ExecContext(ctx, `UPDATE counters SET used = used - $3 WHERE scope = $1 AND window_start = $2 AND used >= $3`,
			c.Scope, c.Window, c.Cost); err != nil {
			return err
		}
	}
	return nil
}

// usedBy reads how much of each counter is used now.
func usedBy(ctx context.Context, q querier, list []ledger.Counter) ([]ledger.Counter, error) {
	out := slices.Clone(list)
	for i := range out {
		out[i].Used = 0
		if _, err := found(q.QueryRowContext(ctx, `SELECT used FROM counters WHERE scope = $1 AND window_start = $2`, out[i].Scope, out[i].Window).Scan(&out[i].Used)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

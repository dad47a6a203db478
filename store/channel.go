package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

// Channels are paid from by vouchers. A channel's row mirrors what the chain
// says of it and carries what was charged since; a voucher's row is one charge
// and the answer that it bought.

const channelColumns = `channel_id, network, asset, payer, pay_to, config, balance, total_claimed, withdrawal, withdraw_at, refund_nonce,
	onchain_synced_at, charged, signed_max, voucher_max, voucher_sig, forfeited, COALESCE(unclaimed_at, 0), reserved, COALESCE(holder, ''), lease_until, epoch, updated_at`

func scanChannel(row scanner) (*ledger.Channel, error) {
	var c ledger.Channel
	var synced, unclaimed, lease, updated int64
	err := row.Scan(&c.ID, &c.Network, &c.Asset, &c.Payer, &c.PayTo, &c.Config, &c.Balance, &c.Claimed, &c.Withdrawal, &c.WithdrawAt, &c.RefundNonce,
		&synced, &c.Charged, &c.Signed, &c.Allowed, &c.Signature, &c.Forfeited, &unclaimed, &c.Reserved, &c.Holder, &lease, &c.Epoch, &updated)
	if err != nil {
		return nil, err
	}
	c.Synced, c.Unclaimed, c.Lease, c.Updated = fromMicros(synced), fromMicros(unclaimed), fromMicros(lease), fromMicros(updated)
	return &c, nil
}

// Channel is the channel with this id, nil if nobody has paid from it here.
func (db *DB) Channel(ctx context.Context, id string) (*ledger.Channel, error) {
	if row := db.channelRows().find(id); row != nil {
		c := *row
		return &c, nil
	}
	return channelByID(ctx, db.reader(), id)
}

// channelRows are the rows that this process keeps; nil: others may change them.
func (db *DB) channelRows() *channelRows {
	if s, ok := db.engine.(*sqliteDB); ok && s.writer != nil {
		return s.rows
	}
	return nil
}

func channelByID(ctx context.Context, q querier, id string) (*ledger.Channel, error) {
	return orNil(scanChannel(q.QueryRowContext(ctx, `SELECT `+channelColumns+` FROM channels WHERE channel_id = $1`, id)))
}

// What becomes of a row when the chain speaks. What was ever charged is charged
// and forfeited together, and at least what is claimed; the balance covers it,
// or as much of it as was not withdrawn.
const (
	ever    = `CASE WHEN channels.charged + channels.forfeited < excluded.total_claimed THEN excluded.total_claimed ELSE channels.charged + channels.forfeited END`
	covered = `CASE WHEN (` + ever + `) < excluded.balance THEN (` + ever + `) ELSE excluded.balance END`
	allowed = `CASE WHEN channels.voucher_max < (` + ever + `) THEN (` + ever + `) ELSE channels.voucher_max END`
)

// SyncChannel writes down what the chain says of c (Balance, Claimed,
// Withdrawal, WithdrawAt, RefundNonce) at c.Synced, and gives the row. What the
// chain said before it said what the row knows is left out.
//
// Where the balance has fallen below what was charged, the payer has withdrawn
// it, or a reorganisation undid a deposit: the rest is forfeited, for as long as
// the balance is that low. A claim that is undone is due again. A refund that
// was made, which has raised RefundNonce, ends the hold that was for it.
func (db *DB) SyncChannel(ctx context.Context, c ledger.Channel) (ledger.Channel, error) {
	if c.Claimed < 0 || c.Claimed > c.Balance || c.Withdrawal < 0 {
		return c, fmt.Errorf("store: channel %s has claimed %d of %d", c.ID, c.Claimed, c.Balance)
	}
	var out ledger.Channel
	err := db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		if _, err := q.ExecContext(ctx, `
			INSERT INTO channels(channel_id, network, asset, payer, pay_to, config, balance, total_claimed, withdrawal, withdraw_at, refund_nonce,
				onchain_synced_at, charged, signed_max, created_at, updated_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $8, $8, $13, $13)
			ON CONFLICT (channel_id) DO UPDATE SET
				charged = `+covered+`, forfeited = (`+ever+`) - (`+covered+`),
				signed_max = CASE WHEN (`+allowed+`) < excluded.balance THEN (`+allowed+`) ELSE excluded.balance END,
				unclaimed_at = CASE WHEN (`+covered+`) > excluded.total_claimed THEN COALESCE(channels.unclaimed_at, excluded.updated_at) END,
				balance = excluded.balance, total_claimed = excluded.total_claimed, withdrawal = excluded.withdrawal, withdraw_at = excluded.withdraw_at,
				reserved = CASE WHEN channels.refund_nonce < excluded.refund_nonce THEN 0 ELSE channels.reserved END,
				refund_nonce = excluded.refund_nonce, onchain_synced_at = excluded.onchain_synced_at, updated_at = excluded.updated_at
			WHERE channels.onchain_synced_at <= excluded.onchain_synced_at`,
			c.ID, c.Network, c.Asset, c.Payer, c.PayTo, string(c.Config), c.Balance, c.Claimed, c.Withdrawal, c.WithdrawAt, c.RefundNonce,
			c.Synced.UnixMicro(), db.micros()); err != nil {
			return err
		}
		row, err := channelByID(ctx, q, c.ID)
		if err == nil && row == nil {
			err = errors.New("store: a channel that was written is not there")
		}
		if err == nil {
			out = *row
			db.channelRows().stage(c.ID, row)
		}
		return err
	})
	return out, err
}

// HoldChannel reserves a channel for one call, whose work must not be done
// twice: amount beyond base, which has to be what was charged. It gives the
// epoch that Charge or ReleaseChannel must name. Somebody else's hold ends with
// its lease. *ledger.ChannelBehind: the channel is busy, or not where the
// voucher thinks.
func (db *DB) HoldChannel(ctx context.Context, id string, base, amount int64, holder string, lease time.Duration) (epoch int64, err error) {
	err = db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		now := db.micros()
		ok, err := found(q.QueryRowContext(ctx, `
			UPDATE channels SET reserved = $3, holder = $4, lease_until = $5, epoch = epoch + 1, updated_at = $6
			WHERE channel_id = $1 AND `+chargedIs+` AND (reserved = 0 OR lease_until <= $6 OR holder = $4 AND reserved = $3)
			  AND $2 + $3 <= balance - withdrawal
			RETURNING epoch`, id, base, amount, holder, now+lease.Microseconds(), now).Scan(&epoch))
		if ok {
			db.channelRows().stage(id, nil)
		}
		if err != nil || ok {
			return err
		}
		return db.behind(ctx, q, id)
	})
	return epoch, err
}

// chargedIs holds for a channel of which $2 is charged: what its row says, or,
// before there is any voucher here, anything from what is claimed on: vouchers
// of ours that were lost are known to their payer alone, whose next one allows
// them all. From a channel with a debt nothing more is sold.
const chargedIs = `forfeited = 0 AND (charged = $2 OR voucher_sig IS NULL AND charged <= $2)`

// ReleaseChannel ends a hold whose call failed: nothing is charged.
func (db *DB) ReleaseChannel(ctx context.Context, id string, epoch int64) error {
	return db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		_, err := q.ExecContext(ctx, `
			UPDATE channels SET reserved = 0, holder = NULL, lease_until = 0, updated_at = $3 WHERE channel_id = $1 AND epoch = $2 AND reserved > 0`,
			id, epoch, db.micros())
		if err == nil {
			db.channelRows().stage(id, nil)
		}
		return err
	})
}

func (db *DB) behind(ctx context.Context, q querier, id string) error {
	row, err := channelByID(ctx, q, id)
	if err != nil {
		return err
	}
	if row == nil {
		return fmt.Errorf("store: no channel %s", id)
	}
	return &ledger.ChannelBehind{Channel: *row}
}

// Charge is the whole booking of a call that a voucher pays: the channel's
// charge moves on from v.MaxClaimable - v.Amount, the answer, its event and its
// counters are written, in one transaction, or nothing is. It gives the channel
// afterwards and the counters' Used.
//
// *ledger.ChannelBehind: another voucher was faster, or the balance is gone; a
// *ledger.Exceeded: a counter is full. Asked again with the same v.ID it finds
// what it wrote.
func (db *DB) Charge(ctx context.Context, v ledger.Voucher, a ledger.Answer, ev usage.Event) (ledger.Channel, []ledger.Counter, error) {
	if err := checkCounters(v.Counters); err != nil {
		return ledger.Channel{}, nil, err
	}
	if ev.RequestID == "" {
		return ledger.Channel{}, nil, fmt.Errorf("store: the event of %s has no request id", v.ID)
	}
	db.at("charge.before")
	var out ledger.Channel
	var counters []ledger.Counter
	err := db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		now := db.micros()
		row, err := db.chargeChannel(ctx, q, v, now)
		if err != nil {
			return err
		}
		if row == nil {
			if again {
				var one int
				ok, err := found(q.QueryRowContext(ctx, `SELECT 1 FROM vouchers WHERE channel_id = $1 AND max_claimable = $2 AND id = $3`, v.Channel, v.MaxClaimable, v.ID).Scan(&one))
				if err != nil {
					return err
				}
				if ok {
					if row, err = channelByID(ctx, q, v.Channel); err == nil {
						out = *row
						counters, err = usedBy(ctx, q, v.Counters)
					}
					if err == nil {
						db.channelRows().stage(v.Channel, row)
					}
					return err
				}
			}
			return db.behind(ctx, q, v.Channel)
		}
		out = *row
		if counters, err = take(ctx, q, v.Counters); err != nil {
			return err
		}
		if err := insertVoucher(ctx, q, v, a, ev.RequestID, now); err != nil {
			return err
		}
		charged(&ev, ledger.Final)
		ev.PaymentID = ""
		_, err = q.ExecContext(ctx, insertEvent+`DO NOTHING`, db.eventArgs(ev)...)
		if err == nil {
			db.channelRows().stage(v.Channel, row)
		}
		return err
	})
	if err != nil {
		return ledger.Channel{}, nil, err
	}
	db.at("charge.after")
	return out, counters, nil
}

// chargeOne moves a channel's charge on, if it is where the voucher begins,
// covers it, and nobody else holds it.
const chargeOne = `
	UPDATE channels SET unclaimed_at = COALESCE(unclaimed_at, $6), ` + chargeSets + `
	WHERE ` + chargeIf

// chargeMore is chargeOne for a channel with something to claim already. SQLite
// writes the index of those anew for every UPDATE that names unclaimed_at.
const chargeMore = `
	UPDATE channels SET ` + chargeSets + `
	WHERE unclaimed_at IS NOT NULL AND ` + chargeIf

const (
	chargeSets = `charged = $3, signed_max = $3, voucher_max = $3, voucher_sig = $4, reserved = 0, holder = NULL, lease_until = 0, updated_at = $6`
	chargeIf   = `channel_id = $1 AND ` + chargedIs + ` AND $3 <= balance - withdrawal
	  AND ($5 = 0 AND (reserved = 0 OR lease_until <= $6) OR $5 > 0 AND epoch = $5)`
)

// chargeChannel charges v, and gives the channel afterwards; nil: it was not
// charged. Of a row that is kept, everything that this changes is known.
func (db *DB) chargeChannel(ctx context.Context, q querier, v ledger.Voucher, now int64) (*ledger.Channel, error) {
	args := []any{v.Channel, v.MaxClaimable - v.Amount, v.MaxClaimable, v.Signature, v.Epoch, now}
	row := db.channelRows().view(v.Channel)
	if row == nil {
		return orNil(scanChannel(q.QueryRowContext(ctx, chargeOne+` RETURNING `+channelColumns, args...)))
	}
	charge := chargeOne
	if !row.Unclaimed.IsZero() {
		charge = chargeMore
	}
	if ok, err := changed(q.ExecContext(ctx, charge, args...)); err != nil || !ok {
		return nil, err
	}
	row.Charged, row.Signed, row.Allowed, row.Signature = v.MaxClaimable, v.MaxClaimable, v.MaxClaimable, v.Signature
	row.Reserved, row.Holder, row.Lease, row.Updated = 0, "", time.Time{}, fromMicros(now)
	if row.Unclaimed.IsZero() {
		row.Unclaimed = row.Updated
	}
	return row, nil
}

func insertVoucher(ctx context.Context, q querier, v ledger.Voucher, a ledger.Answer, event string, now int64) error {
	headers, body, err := answerColumns(a)
	if err != nil {
		return err
	}
	_, err = q.ExecContext(ctx, `
		INSERT INTO vouchers(channel_id, max_claimable, id, amount, tenant_id, version, route, fingerprint, signature_sha256, quote_sha256, client_addr_hash,
			event_id, status, headers, body, body_ref, body_sha256, body_len, expires_at, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)`,
		v.Channel, v.MaxClaimable, v.ID, v.Amount, v.TenantID, v.Version, v.Route, v.Fingerprint, v.SignatureSHA256, null(v.QuoteSHA256), null(v.ClientAddrHash),
		event, a.Status, headers, body, null(a.Ref), a.SHA256, a.Len, a.Expires.UnixMicro(), now)
	return err
}

// Voucher is a charge and its answer by the voucher that paid it; nil: it has
// bought nothing.
func (db *DB) Voucher(ctx context.Context, channel string, maxClaimable int64) (*ledger.Voucher, *ledger.Answer, error) {
	v := ledger.Voucher{Channel: channel, MaxClaimable: maxClaimable}
	var a ledger.Answer
	var headers []byte
	var expires, created int64
	err := db.reader().QueryRowContext(ctx, `
		SELECT id, amount, tenant_id, version, route, fingerprint, signature_sha256, COALESCE(quote_sha256, ''), COALESCE(client_addr_hash, ''),
			status, headers, body, COALESCE(body_ref, ''), body_sha256, body_len, expires_at, created_at
		FROM vouchers WHERE channel_id = $1 AND max_claimable = $2`, channel, maxClaimable).
		Scan(&v.ID, &v.Amount, &v.TenantID, &v.Version, &v.Route, &v.Fingerprint, &v.SignatureSHA256, &v.QuoteSHA256, &v.ClientAddrHash,
			&a.Status, &headers, &a.Body, &a.Ref, &a.SHA256, &a.Len, &expires, &created)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	v.Created = fromMicros(created)
	if err := readAnswer(&a, headers, expires); err != nil {
		return nil, nil, fmt.Errorf("headers of %s: %w", v.ID, err)
	}
	return &v, &a, nil
}

// DueChannels lists the channels of a network with something to claim, the one
// that waits longest first.
func (db *DB) DueChannels(ctx context.Context, network string, limit int) ([]ledger.Channel, error) {
	return db.channels(ctx, `network = $1 AND unclaimed_at IS NOT NULL ORDER BY unclaimed_at, channel_id LIMIT $2`, network, limit)
}

// ClaimedFor lists those for whom something was ever claimed on a network.
func (db *DB) ClaimedFor(ctx context.Context, network string) (list []ledger.Receiver, err error) {
	rows, err := db.reader().QueryContext(ctx, `SELECT DISTINCT pay_to, asset FROM channels WHERE network = $1 AND total_claimed > 0 ORDER BY pay_to, asset`, network)
	err = each(rows, err, func(rows *sql.Rows) error {
		var r ledger.Receiver
		err := rows.Scan(&r.Address, &r.Asset)
		list = append(list, r)
		return err
	})
	return list, err
}

// Channels lists channels, the one that was used last first; payer may be empty.
func (db *DB) Channels(ctx context.Context, payer string, limit int) ([]ledger.Channel, error) {
	return db.channels(ctx, `($1 = '' OR payer = $1) ORDER BY updated_at DESC, channel_id LIMIT $2`, payer, limit)
}

func (db *DB) channels(ctx context.Context, where string, args ...any) ([]ledger.Channel, error) {
	var list []ledger.Channel
	rows, err := db.reader().QueryContext(ctx, `SELECT `+channelColumns+` FROM channels WHERE `+where, args...)
	err = each(rows, err, func(rows *sql.Rows) error {
		c, err := scanChannel(rows)
		if err == nil {
			list = append(list, *c)
		}
		return err
	})
	return list, err
}

// ExpireVouchers removes the answers of vouchers that nobody can ask for any
// more, a thousand at most, and tells how many.
func (db *DB) ExpireVouchers(ctx context.Context) (int, error) {
	var n int64
	err := db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		res, err := q.ExecContext(ctx, `DELETE FROM vouchers WHERE id IN(SELECT id FROM vouchers WHERE expires_at < $1 ORDER BY expires_at LIMIT 1000)`, db.micros())
		if err != nil {
			return err
		}
		n, err = res.RowsAffected()
		return err
	})
	return int(n), err
}

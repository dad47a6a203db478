package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

// eventsPerWrite bounds one transaction of events, so that a long import does
// not keep payments waiting.
const eventsPerWrite = 500

// eventsPerRead is how many are read at once.
const eventsPerRead = 1000

const eventColumns = `at, event_id, tenant_id, COALESCE(payment_id, ''), api_id, route, owner, directory, consumer, status, latency_us,
	amount, price, units, bytes_out, lifecycle, billable, countable, error`

// insertEvent is the statement for one event; its end says what happens to one
// that is known already.
const insertEvent = `
	INSERT INTO usage_events(at, event_id, tenant_id, payment_id, api_id, route, owner, directory, consumer, status, latency_us,
		amount, price, units, bytes_out, lifecycle, billable, countable, error, seq)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)
	ON CONFLICT (api_id, event_id) `

func (db *DB) eventArgs(e usage.Event) []any {
	return []any{e.Time.UnixMicro(), e.RequestID, e.TenantID, null(e.PaymentID), e.API, e.Endpoint, e.Owner, e.Directory, e.Caller, e.Status,
		e.Latency.Microseconds(), int64(e.Billed), int64(e.Price), e.Units, e.BytesOut, string(e.Lifecycle), bit(e.Billable), bit(e.Countable), e.Error, db.arrive()}
}

// arrive is the next number in the order of arrival: it always rises, also
// across restarts, and follows the clock as far as that does.
func (db *DB) arrive() int64 {
	for {
		last := db.arrival.Load()
		next := max(last+1, db.micros())
		if db.arrival.CompareAndSwap(last, next) {
			return next
		}
	}
}

// Record keeps events. One whose (api, request id) is known is left as it is.
func (db *DB) Record(ctx context.Context, events []usage.Event) error {
	_, err := db.addEvents(ctx, events)
	return err
}

// ImportEvents keeps the events of somebody else, and tells how many were new:
// the first of each (api, request id) counts. They belong to no payment of this
// book. It may be repeated after an error.
func (db *DB) ImportEvents(ctx context.Context, events []usage.Event) (added int, err error) {
	events = slices.Clone(events)
	for i := range events {
		events[i].PaymentID = ""
	}
	return db.addEvents(ctx, events)
}

func (db *DB) addEvents(ctx context.Context, events []usage.Event) (added int, err error) {
	for chunk := range slices.Chunk(events, eventsPerWrite) {
		n := 0
		err := db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
			n = 0
			for _, e := range chunk {
				ok, err := changed(q.ExecContext(ctx, insertEvent+`DO NOTHING`, db.eventArgs(e)...))
				if err != nil {
					return err
				}
				n += int(bit(ok))
			}
			return nil
		})
		if err != nil {
			return added, err
		}
		added += n
	}
	return added, nil
}

// paymentEvent keeps e, the event that a payment's event_id names, in the
// transaction that stores its answer or gives it up. A request that was
// recorded meanwhile, because its caller did not wait, is overwritten.
func (db *DB) paymentEvent(ctx context.Context, q querier, paymentID string, e usage.Event) error {
	e.PaymentID = paymentID
	ok, err := changed(q.ExecContext(ctx, insertEvent+`DO UPDATE SET
			payment_id = excluded.payment_id, status = excluded.status, latency_us = excluded.latency_us, amount = excluded.amount,
			price = excluded.price, units = excluded.units, bytes_out = excluded.bytes_out, lifecycle = excluded.lifecycle,
			billable = excluded.billable, countable = excluded.countable, error = excluded.error
		WHERE usage_events.payment_id IS NULL OR usage_events.payment_id = excluded.payment_id`, db.eventArgs(e)...))
	if err != nil {
		return err
	}
	if !ok {
		return errors.New("store: the request id " + e.RequestID + " is another payment's")
	}
	return nil
}

// charged says what a payment's event becomes when its money moves.
func charged(e *usage.Event, money ledger.Money) {
	e.Lifecycle, e.Billed, e.Billable, e.Error = usage.Unsettled, 0, false, ""
	switch money {
	case ledger.Mined, ledger.Final:
		e.Lifecycle, e.Billed, e.Billable, e.Countable = usage.Success, e.Price, true, true
	case ledger.Dead:
		e.Lifecycle, e.Error = usage.SettleFailed, string(clawr.CodeSettlementFailed)
	}
}

// completeEvent follows a payment's money in its event, in the transaction
// that moved it (I10), and in its seller's exposure. A payment without an
// answer has no event yet.
func completeEvent(ctx context.Context, q querier, paymentID string, money ledger.Money) error {
	if err := exposed(ctx, q, paymentID, money); err != nil {
		return err
	}
	return chargedEvent(ctx, q, paymentID, money)
}

// chargedEvent is what becomes of a payment's event. That of an async payment
// was complete when its answer was stored, and only its death changes it.
func chargedEvent(ctx context.Context, q querier, paymentID string, money ledger.Money) error {
	var e usage.Event
	charged(&e, money)
	_, err := q.ExecContext(ctx, `
		UPDATE usage_events SET lifecycle = $2, error = $3, billable = $4, amount = price * $4,
			countable = CASE WHEN CAST($4 AS BIGINT) = 1 THEN 1 ELSE countable END
		WHERE payment_id = $1 AND event_id = (SELECT event_id FROM payments WHERE id = $1 AND (policy <> 'async' OR CAST($5 AS TEXT) = 'dead'))`,
		paymentID, string(e.Lifecycle), e.Error, bit(e.Billable), string(money))
	return err
}

// Events lists the last events to arrive, newest last.
func (db *DB) Events(ctx context.Context, limit int) ([]usage.Event, error) {
	var list []usage.Event
	rows, err := db.reader().QueryContext(ctx, `SELECT `+eventColumns+` FROM usage_events ORDER BY seq DESC, api_id DESC, event_id DESC LIMIT $1`, limit)
	err = each(rows, err, func(rows *sql.Rows) error {
		e, err := scanEvent(rows)
		list = append(list, e)
		return err
	})
	slices.Reverse(list)
	return list, err
}

// EachEvent calls fn for every event that happened in [from, to) and has
// arrived by now, in order of arrival, until fn fails. A zero time is no bound.
// Events are read a page at a time, each as it is when it is read: one read of
// them all would keep the log of SQLite from beginning anew for as long.
func (db *DB) EachEvent(ctx context.Context, from, to time.Time, fn func(usage.Event) error) error {
	var end int64
	if err := db.reader().QueryRowContext(ctx, `SELECT COALESCE(MAX(seq), 0) FROM usage_events`).Scan(&end); err != nil {
		return err
	}
	where, args := `seq <= $1 AND (seq, api_id, event_id) > ($2, $3, $4)`, []any{end, int64(math.MinInt64), "", ""}
	for _, bound := range []struct {
		op string
		at time.Time
	}{{">=", from}, {"<", to}} {
		if !bound.at.IsZero() {
			args = append(args, bound.at.UnixMicro())
			where += fmt.Sprintf(" AND at %s $%d", bound.op, len(args))
		}
	}
	query := fmt.Sprintf(`SELECT %s, seq FROM usage_events WHERE %s ORDER BY seq, api_id, event_id LIMIT %d`, eventColumns, where, eventsPerRead)
	for {
		var page []usage.Event
		var seq int64
		rows, err := db.reader().QueryContext(ctx, query, args...)
		err = each(rows, err, func(rows *sql.Rows) error {
			e, err := scanEvent(rows, &seq)
			page = append(page, e)
			return err
		})
		if err != nil {
			return err
		}
		for _, e := range page {
			if err := fn(e); err != nil {
				return err
			}
		}
		if len(page) < eventsPerRead {
			return nil
		}
		last := page[len(page)-1]
		args[1], args[2], args[3] = seq, last.API, last.RequestID
	}
}

func scanEvent(row scanner, more ...any) (usage.Event, error) {
	var e usage.Event
	var at, latency, billable, countable int64
	err := row.Scan(append([]any{&at, &e.RequestID, &e.TenantID, &e.PaymentID, &e.API, &e.Endpoint, &e.Owner, &e.Directory, &e.Caller, &e.Status, &latency,
		&e.Billed, &e.Price, &e.Units, &e.BytesOut, &e.Lifecycle, &billable, &countable, &e.Error}, more...)...)
	e.Time, e.Latency, e.Billable, e.Countable = time.UnixMicro(at).UTC(), time.Duration(latency)*time.Microsecond, billable == 1, countable == 1
	return e, err
}

package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/402claw/clawr/ledger"
)

// paymentColumns are in scanPayment's order.
const paymentColumns = `id, tenant_id, version, route, scheme, network, asset, payer, auth_nonce, pay_to,
	amount, COALESCE(valid_after, 0), COALESCE(valid_before, 0), fingerprint, payload, payload_sha256, signature_sha256,
	COALESCE(quote_sha256, ''), COALESCE(client_addr_hash, ''), COALESCE(client_ref, ''), policy, work, money, epoch,
	COALESCE(owner, ''), COALESCE(lease_until, 0), facilitator, COALESCE(batch_id, ''),
	COALESCE(tx_hash, ''), COALESCE(block_number, 0), COALESCE(block_hash, ''), COALESCE(log_index, 0),
	COALESCE(proof, ''), COALESCE(error_code, ''), counters, created_at, updated_at`

func scanPayment(row scanner) (*ledger.Payment, error) {
	var p ledger.Payment
	var lease, created, updated int64
	var counters []byte
	err := row.Scan(&p.ID, &p.TenantID, &p.Version, &p.Route, &p.Scheme, &p.Network, &p.Asset, &p.Payer, &p.Nonce, &p.PayTo,
		&p.Amount, &p.ValidAfter, &p.ValidBefore, &p.Fingerprint, &p.Payload, &p.PayloadSHA256, &p.SignatureSHA256,
		&p.QuoteSHA256, &p.ClientAddrHash, &p.ClientRef, &p.Policy, &p.Work, &p.Money, &p.Epoch,
		&p.Owner, &lease, &p.Facilitator, &p.BatchID, &p.Tx, &p.BlockNumber, &p.BlockHash, &p.LogIndex,
		&p.Proof, &p.ErrorCode, &counters, &created, &updated)
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(counters, &p.Counters); err != nil {
		return nil, fmt.Errorf("counters of %s: %w", p.ID, err)
	}
	p.LeaseUntil, p.Created, p.Updated = fromMicros(lease), fromMicros(created), fromMicros(updated)
	return &p, nil
}

// Find is the payment that an authorization has, nil if it has none.
func (db *DB) Find(ctx context.Context, k ledger.Key) (*ledger.Payment, error) {
	if db.sold.lacks(k) {
		return nil, nil
	}
	return paymentByKey(ctx, db.reader(), k)
}

// Payment is the payment with this id, nil if there is none.
func (db *DB) Payment(ctx context.Context, id string) (*ledger.Payment, error) {
	return paymentByID(ctx, db.reader(), id)
}

func paymentByKey(ctx context.Context, q querier, k ledger.Key) (*ledger.Payment, error) {
	return orNil(scanPayment(q.QueryRowContext(ctx, `SELECT `+paymentColumns+` FROM payments
		WHERE network = $1 AND asset = $2 AND payer = $3 AND auth_nonce = $4`, k.Network, k.Asset, k.Payer, k.Nonce)))
}

func paymentByID(ctx context.Context, q querier, id string) (*ledger.Payment, error) {
	return orNil(scanPayment(q.QueryRowContext(ctx, `SELECT `+paymentColumns+` FROM payments WHERE id = $1`, id)))
}

// orNil turns "no such row" into nil.
func orNil[T any](v *T, err error) (*T, error) {
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return v, err
}

// PaymentFilter selects payments; zero fields select all.
type PaymentFilter struct {
	Tenant string // a tenant's id
	Payer  string // lower-case address
	Money  ledger.Money
	Before time.Time // created before
	// BeforeID, with Before, also selects those created at that very moment with
	// a later id: the page after the payment with this id.
	BeforeID string
	Refund   ledger.RefundState // only those with a refund in this state
	Limit    int                // 0: 100
}

// Payments lists payments, newest first.
func (db *DB) Payments(ctx context.Context, f PaymentFilter) ([]ledger.Payment, error) {
	where, args := []string{"TRUE"}, []any{}
	and := func(condition string, arg any) {
		args = append(args, arg)
		where = append(where, fmt.Sprintf(condition, len(args)))
	}
	created := "created_at"
	if f.Tenant != "" {
		and("tenant_id = $%d", f.Tenant)
	}
	if f.Payer != "" {
		and("payer = $%d", f.Payer)
	}
	if f.Money != "" {
		and("money = $%d", string(f.Money))
	}
	if f.Money == ledger.Held || f.Money == ledger.Signed {
		// They are few and have an index. In that of created_at they come after all
		// that is settled: + has SQLite look elsewhere.
		where, created = append(where, "money IN('held','signed')"), "+created_at"
	}
	if f.Refund != "" {
		and("id IN(SELECT payment_id FROM refunds WHERE state = $%d)", string(f.Refund))
	}
	switch {
	case f.Before.IsZero():
	case f.BeforeID != "":
		args = append(args, f.Before.UnixMicro(), f.BeforeID)
		where = append(where, fmt.Sprintf("(%[2]s < $%[1]d OR %[2]s = $%[1]d AND id > $%[3]d)", len(args)-1, created, len(args)))
	default:
		and(created+" < $%d", f.Before.UnixMicro())
	}
	if f.Limit <= 0 {
		f.Limit = 100
	}
	args = append(args, f.Limit)
	return db.payments(ctx, fmt.Sprintf(`%s ORDER BY %s DESC, id LIMIT $%d`, strings.Join(where, " AND "), created, len(args)), args...)
}

// OpenPayments lists the payments that somebody has to carry on: those whose
// answer is stored and that wait to be submitted, and those that were
// submitted and have no evidence yet. The one that expires first comes first.
func (db *DB) OpenPayments(ctx context.Context, limit int) ([]ledger.Payment, error) {
	return db.payments(ctx, `money IN('held','signed') AND (money = 'signed' OR work = 'done') ORDER BY valid_before, id LIMIT $1`, limit)
}

func (db *DB) payments(ctx context.Context, where string, args ...any) ([]ledger.Payment, error) {
	var list []ledger.Payment
	rows, err := db.reader().QueryContext(ctx, `SELECT `+paymentColumns+` FROM payments WHERE `+where, args...)
	err = each(rows, err, func(rows *sql.Rows) error {
		p, err := scanPayment(rows)
		if err == nil {
			list = append(list, *p)
		}
		return err
	})
	return list, err
}

// Answer is the stored answer of a payment, nil if there is none.
func (db *DB) Answer(ctx context.Context, paymentID string) (*ledger.Answer, error) {
	var a ledger.Answer
	var headers []byte
	var expires int64
	err := db.reader().QueryRowContext(ctx, `
		SELECT status, headers, body, COALESCE(body_ref, ''), body_sha256, body_len, expires_at FROM payment_responses WHERE payment_id = $1`, paymentID).
		Scan(&a.Status, &headers, &a.Body, &a.Ref, &a.SHA256, &a.Len, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := readAnswer(&a, headers, expires); err != nil {
		return nil, fmt.Errorf("headers of %s: %w", paymentID, err)
	}
	return &a, nil
}

// readAnswer completes an answer whose other columns have been read.
func readAnswer(a *ledger.Answer, headers []byte, expires int64) error {
	if a.Body == nil && a.Ref == "" {
		a.Body = []byte{}
	}
	a.Expires = fromMicros(expires)
	return json.Unmarshal(headers, &a.Headers)
}

// insertAnswer stores a payment's answer.
func insertAnswer(ctx context.Context, q querier, paymentID string, a ledger.Answer) error {
	headers, body, err := answerColumns(a)
	if err != nil {
		return err
	}
	_, err = q.ExecContext(ctx, `
		INSERT INTO payment_responses(payment_id, status, headers, body, body_ref, body_sha256, body_len, expires_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		paymentID, a.Status, headers, body, null(a.Ref), a.SHA256, a.Len, a.Expires.UnixMicro())
	return err
}

// answerColumns are the headers as JSON, and the body, which is NULL where it
// is recomputed.
func answerColumns(a ledger.Answer) (headers string, body any, err error) {
	headers = "[]"
	if len(a.Headers) > 0 {
		raw, err := json.Marshal(a.Headers)
		if err != nil {
			return "", nil, err
		}
		headers = string(raw)
	}
	switch {
	case a.Ref != "":
	case a.Body == nil:
		body = []byte{} // empty, not missing
	default:
		body = a.Body
	}
	return headers, body, nil
}

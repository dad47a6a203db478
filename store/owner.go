package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/jackc/pgx/v5/pgconn"
	sqlite3 "modernc.org/sqlite/lib"
)

// Owner is somebody who publishes.
type Owner struct {
	ID      string // as in a manifest's owner, without "@"
	Name    string
	PayTo   string // lower-case address that their tenants are paid to by default; may be empty
	Created time.Time
}

// Token is an API token; only the hash of its secret is kept.
type Token struct {
	ID           string
	Owner        string // empty: a platform token
	Prefix       string // the first characters of the secret, to recognise it by
	SecretSHA256 string // 64 hex
	Scopes       []string
	Created      time.Time
	Expires      time.Time // zero: never
	Revoked      time.Time // zero: in use
}

// SetOwner adds an owner, or gives one another name and payTo. Setting what is
// so already changes nothing, and is not in the audit log.
func (db *DB) SetOwner(ctx context.Context, id, name, payTo, by string) error {
	if id == "" {
		return &clawr.Error{Code: clawr.CodeBadRequest, Param: "owner", Message: "an owner needs an id", Fix: "clawr owner set ID --pay-to 0x…"}
	}
	if payTo != "" {
		var err error
		if payTo, err = clawr.CheckAddress(payTo); err != nil {
			return err
		}
	}
	detail, err := json.Marshal(struct {
		Name  string `json:"name"`
		PayTo string `json:"payTo"`
	}{name, payTo})
	if err != nil {
		return err
	}
	return db.inLine(ctx, func(ctx context.Context, q querier, _ bool) error {
		ok, err := changed(q.ExecContext(ctx, `
			INSERT INTO owners(id, name, pay_to, created_at) VALUES ($1, $2, $3, $4)
			ON CONFLICT (id) DO UPDATE SET name = excluded.name, pay_to = excluded.pay_to
			WHERE owners.name <> excluded.name OR owners.pay_to <> excluded.pay_to`, id, name, payTo, db.micros()))
		if err != nil || !ok {
			return err
		}
		return db.audit(ctx, q, by, "owner", id, string(detail))
	})
}

// Owner is the owner with this id, or CodeNotFound.
func (db *DB) Owner(ctx context.Context, id string) (Owner, error) {
	o, err := scanOwner(db.reader().QueryRowContext(ctx, `SELECT id, name, pay_to, created_at FROM owners WHERE id = $1`, id))
	if errors.Is(err, sql.ErrNoRows) {
		return Owner{}, noOwner(id)
	}
	return o, err
}

// Owners lists all owners by id.
func (db *DB) Owners(ctx context.Context) ([]Owner, error) {
	var list []Owner
	rows, err := db.reader().QueryContext(ctx, `SELECT id, name, pay_to, created_at FROM owners ORDER BY id`)
	err = each(rows, err, func(rows *sql.Rows) error {
		o, err := scanOwner(rows)
		list = append(list, o)
		return err
	})
	return list, err
}

type scanner interface{ Scan(...any) error }

func scanOwner(row scanner) (Owner, error) {
	var o Owner
	var created int64
	if err := row.Scan(&o.ID, &o.Name, &o.PayTo, &created); err != nil {
		return Owner{}, err
	}
	o.Created = fromMicros(created)
	return o, nil
}

func noOwner(id string) error {
	return &clawr.Error{Code: clawr.CodeNotFound, Param: "owner", Message: fmt.Sprintf("there is no owner %q", id), Fix: "clawr owner set " + id}
}

// CreateToken keeps a token. Its id, prefix and hash must be new; the audit log
// has its id, and nothing of its secret.
func (db *DB) CreateToken(ctx context.Context, t Token, by string) error {
	for _, s := range t.Scopes {
		if s == "" || strings.ContainsAny(s, " \t\n") {
			return &clawr.Error{Code: clawr.CodeBadRequest, Param: "scope", Message: fmt.Sprintf("%q is not a scope", s), Fix: "use words such as events:read"}
		}
	}
	if t.Created.IsZero() {
		t.Created = db.now()
	}
	detail, err := json.Marshal(struct {
		Owner   string    `json:"owner,omitempty"`
		Scopes  []string  `json:"scopes"`
		Expires time.Time `json:"expiresAt,omitzero"`
	}{t.Owner, t.Scopes, t.Expires})
	if err != nil {
		return err
	}
	err = db.inLine(ctx, func(ctx context.Context, q querier, again bool) error {
		ok, err := changed(q.ExecContext(ctx, `
			INSERT INTO api_keys(id, owner_id, prefix, secret_sha256, scopes, created_at, expires_at, revoked_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING`,
			t.ID, null(t.Owner), t.Prefix, t.SecretSHA256, strings.Join(t.Scopes, " "), t.Created.UnixMicro(), nullTime(t.Expires), nullTime(t.Revoked)))
		if err != nil {
			return err
		}
		if ok {
			return db.audit(ctx, q, by, "token", t.ID, string(detail))
		}
		if again {
			var hash string
			if ok, err := found(q.QueryRowContext(ctx, `SELECT secret_sha256 FROM api_keys WHERE id = $1`, t.ID).Scan(&hash)); err != nil || ok && hash == t.SecretSHA256 {
				return err
			}
		}
		return &clawr.Error{Code: clawr.CodeConflict, Message: "a token with this id or prefix exists", Fix: "create it again, with another random secret"}
	})
	if isForeignKey(err) {
		return noOwner(t.Owner)
	}
	return err
}

// RevokeToken ends a token at once. Revoking it twice is revoking it once, in
// the audit log too.
func (db *DB) RevokeToken(ctx context.Context, id, by string) error {
	return db.inLine(ctx, func(ctx context.Context, q querier, _ bool) error {
		ok, err := changed(q.ExecContext(ctx, `UPDATE api_keys SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL`, id, db.micros()))
		if err != nil {
			return err
		}
		if ok {
			return db.audit(ctx, q, by, "revoke", id, "{}")
		}
		var known int
		if ok, err = found(q.QueryRowContext(ctx, `SELECT 1 FROM api_keys WHERE id = $1`, id).Scan(&known)); err == nil && !ok {
			return &clawr.Error{Code: clawr.CodeNotFound, Param: "token", Message: fmt.Sprintf("there is no token %q", id), Fix: "clawr token list shows them"}
		}
		return err
	})
}

const tokenColumns = `id, COALESCE(owner_id, ''), prefix, secret_sha256, scopes, created_at, COALESCE(expires_at, 0), COALESCE(revoked_at, 0)`

// Tokens lists all tokens, oldest first, revoked and expired ones included.
func (db *DB) Tokens(ctx context.Context) ([]Token, error) {
	var list []Token
	rows, err := db.reader().QueryContext(ctx, `SELECT `+tokenColumns+` FROM api_keys ORDER BY created_at, id`)
	err = each(rows, err, func(rows *sql.Rows) error {
		t, err := scanToken(rows)
		list = append(list, t)
		return err
	})
	return list, err
}

// TokenByHash finds the token by the SHA-256 (hex) of its secret. One that is
// revoked or expired is not found: CodeTokenMissing.
func (db *DB) TokenByHash(ctx context.Context, sha256hex string) (Token, error) {
	t, err := scanToken(db.reader().QueryRowContext(ctx, `SELECT `+tokenColumns+` FROM api_keys
		WHERE secret_sha256 = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $2)`, sha256hex, db.micros()))
	if errors.Is(err, sql.ErrNoRows) {
		return Token{}, &clawr.Error{Code: clawr.CodeTokenMissing, Message: "the token is unknown, expired or revoked", Fix: "clawr token create"}
	}
	return t, err
}

func scanToken(row scanner) (Token, error) {
	var t Token
	var scopes string
	var created, expires, revoked int64
	if err := row.Scan(&t.ID, &t.Owner, &t.Prefix, &t.SecretSHA256, &scopes, &created, &expires, &revoked); err != nil {
		return Token{}, err
	}
	t.Scopes = strings.Fields(scopes)
	t.Created, t.Expires, t.Revoked = fromMicros(created), fromMicros(expires), fromMicros(revoked)
	return t, nil
}

// isForeignKey reports whether a row named another that does not exist.
func isForeignKey(err error) bool {
	if e, ok := errors.AsType[*pgconn.PgError](err); ok {
		return e.Code == "23503"
	}
	return sqliteCode(err) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
}

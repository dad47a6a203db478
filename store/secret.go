package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
	"strconv"
	"time"
)

// Secret is a key that all nodes share: it signs what clients bring back, such
// as quotes and cursors.
type Secret struct {
	ID      string // "1", "2", … under its name; may be shown
	Value   []byte // 32 random bytes
	Created time.Time
	Retired time.Time // zero: sign with this one; else only check with it
}

// Secrets lists the secrets of a name, newest first. The first is the one to
// sign with. If there is none yet, one is made, the same for all nodes.
func (db *DB) Secrets(ctx context.Context, name string) ([]Secret, error) {
	list, err := db.secrets(ctx, name)
	if err != nil || len(list) > 0 {
		return list, err
	}
	if err := db.firstSecret(ctx, name); err != nil {
		return nil, err
	}
	return db.secrets(ctx, name)
}

// RotateSecret makes a new secret and retires the others, which go on being
// listed. It is in the audit log, without the secret.
func (db *DB) RotateSecret(ctx context.Context, name, by string) error {
	value := make([]byte, 32)
	rand.Read(value)
	return db.inLine(ctx, func(ctx context.Context, q querier, _ bool) error {
		var id int64
		err := q.QueryRowContext(ctx, `
			INSERT INTO secrets(name, id, value, created_at)
			SELECT CAST($1 AS TEXT), COALESCE(MAX(id), 0) + 1, CAST($2 AS BLOB), CAST($3 AS BIGINT) FROM secrets WHERE name = $1
			RETURNING id`, name, value, db.micros()).Scan(&id)
		if err != nil {
			return err
		}
		if _, err := q.ExecContext(ctx, `UPDATE secrets SET retired_at = $2 WHERE name = $1 AND retired_at IS NULL AND id < $3`, name, db.micros(), id); err != nil {
			return err
		}
		return db.audit(ctx, q, by, "rotate", name, fmt.Sprintf(`{"id":"%d"}`, id))
	})
}

// firstSecret makes a secret where there is none. Two nodes at once want the
// same id, and the second finds the first one's.
func (db *DB) firstSecret(ctx context.Context, name string) error {
	value := make([]byte, 32)
	rand.Read(value)
	return db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		_, err := q.ExecContext(ctx, `INSERT INTO secrets(name, id, value, created_at) VALUES ($1, 1, $2, $3) ON CONFLICT DO NOTHING`, name, value, db.micros())
		return err
	})
}

func (db *DB) secrets(ctx context.Context, name string) ([]Secret, error) {
	var list []Secret
	rows, err := db.reader().QueryContext(ctx, `SELECT id, value, created_at, COALESCE(retired_at, 0) FROM secrets WHERE name = $1 ORDER BY id DESC`, name)
	err = each(rows, err, func(rows *sql.Rows) error {
		var s Secret
		var id, created, retired int64
		if err := rows.Scan(&id, &s.Value, &created, &retired); err != nil {
			return err
		}
		s.ID, s.Created, s.Retired = strconv.FormatInt(id, 10), fromMicros(created), fromMicros(retired)
		list = append(list, s)
		return nil
	})
	return list, err
}

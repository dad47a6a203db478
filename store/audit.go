package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"fmt"
)

// CheckAudit follows the directory's chain from its first row and tells how
// many are sound. It fails at the first that was changed, or that is missing;
// rows cut off at the end it cannot miss.
func (db *DB) CheckAudit(ctx context.Context) (rows int, err error) {
	list, err := db.reader().QueryContext(ctx, `
		SELECT seq, prev_hash, hash, at, actor, action, subject, detail FROM audit_log WHERE chain = 'directory' ORDER BY seq`)
	last := ""
	err = each(list, err, func(row *sql.Rows) error {
		var seq, at int64
		var prev, hash, actor, action, subject, detail string
		if err := row.Scan(&seq, &prev, &hash, &at, &actor, &action, &subject, &detail); err != nil {
			return err
		}
		if seq != int64(rows)+1 || prev != last || hash != auditHash(seq, prev, at, actor, action, subject, detail) {
			return fmt.Errorf("store: the audit chain breaks at row %d", rows+1)
		}
		rows++
		last = hash
		return nil
	})
	return rows, err
}

// audit appends who did what to the directory's chain: each row's hash covers
// the one before (I12). It runs in line, which keeps the chain from forking.
// detail is for everybody who may read the database: no secret is in it.
func (db *DB) audit(ctx context.Context, q querier, actor, action, subject, detail string) error {
	var seq int64
	prev := ""
	if _, err := found(q.QueryRowContext(ctx, `SELECT seq, hash FROM audit_log WHERE chain = 'directory' ORDER BY seq DESC LIMIT 1`).Scan(&seq, &prev)); err != nil {
		return err
	}
	seq++
	at := db.micros()
	_, err := q.ExecContext(ctx, `
		INSERT INTO audit_log(chain, seq, prev_hash, hash, at, actor, action, subject, detail)
		VALUES ('directory', $1, $2, $3, $4, $5, $6, $7, $8)`,
		seq, prev, auditHash(seq, prev, at, actor, action, subject, detail), at, actor, action, subject, detail)
	return err
}

// auditHash covers every field; %q keeps one from running into the next.
func auditHash(seq int64, prev string, at int64, actor, action, subject, detail string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "directory %d %s %d %q %q %q %q", seq, prev, at, actor, action, subject, detail))
	return hex.EncodeToString(sum[:])
}

package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// audit appends who did what to the directory's chain: each row's hash covers
// the one before (I12). It runs inside a change, which keeps the chain from
// forking.
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

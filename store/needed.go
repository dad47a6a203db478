package store

import (
	"context"

	"github.com/402claw/clawr"
)

// Needed lists the versions whose data must stay: those on sale, the last
// history ones of every tenant that is not removed, for rollback, and those
// that a payment may still ask for: one that is not settled, or whose answer
// is kept.
func (db *DB) Needed(ctx context.Context, history int64) ([]clawr.Tenant, error) {
	return versions(ctx, db.reader(), `(v.version = t.current_version
		OR t.status <> 'removed' AND v.version > (SELECT MAX(n.version) FROM tenant_versions n WHERE n.tenant_id = t.id) - CAST($1 AS BIGINT)
		OR EXISTS(SELECT 1 FROM payments p LEFT JOIN payment_responses r ON r.payment_id = p.id
			WHERE p.tenant_id = t.id AND p.version = v.version AND (p.money IN('held','signed') OR r.expires_at > $2)))`, history, db.micros())
}

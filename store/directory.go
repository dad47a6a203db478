package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/402claw/clawr"
)

// inLine runs fn in a transaction that stands in line behind the directory's
// row on both engines, so fn sees what all earlier ones left, and may read
// before it writes. Whatever is in the audit log is done so.
func (db *DB) inLine(ctx context.Context, fn transaction) error {
	return db.write(ctx, func(ctx context.Context, q querier, again bool) error {
		if _, err := q.ExecContext(ctx, `UPDATE directory SET revision = revision WHERE id = 1`); err != nil {
			return err
		}
		return fn(ctx, q, again)
	})
}

// change runs fn as one change of the directory, in line, and tells the nodes.
func (db *DB) change(ctx context.Context, fn func(ctx context.Context, q querier) error) error {
	return db.inLine(ctx, func(ctx context.Context, q querier, _ bool) error {
		if _, err := q.ExecContext(ctx, `UPDATE directory SET revision = revision + 1 WHERE id = 1`); err != nil {
			return err
		}
		if err := fn(ctx, q); err != nil {
			return err
		}
		return db.notify(ctx, q)
	})
}

// Deploy puts t.Manifest on sale: as the first version of a new tenant, as a
// new version of t.Slug, or, if the tenant had exactly this manifest before,
// as that old version. A removed tenant comes back active; a paused one stays
// paused. t.Hosts, unless nil, replace the tenant's hosts; a host of another
// tenant that is not removed is CodeHostTaken. A payTo whose ledger is kept
// elsewhere is CodeLedgerHome. All of it happens, or nothing.
func (db *DB) Deploy(ctx context.Context, t clawr.Tenant, by string) (clawr.Tenant, error) {
	if err := clawr.CheckSlug(t.Slug); err != nil {
		return clawr.Tenant{}, err
	}
	for _, h := range t.Hosts {
		if err := clawr.CheckHost(h); err != nil {
			return clawr.Tenant{}, err
		}
	}
	manifest, err := json.Marshal(t.Manifest)
	if err != nil {
		return clawr.Tenant{}, err
	}
	newTenant := t.ID
	if newTenant == "" {
		newTenant = newID("tnt_")
	}
	var out clawr.Tenant
	err = db.change(ctx, func(ctx context.Context, q querier) error {
		if err := claimPayTo(ctx, q, t.PayTo, t.Home); err != nil {
			return err
		}
		var id string
		ok, err := found(q.QueryRowContext(ctx, `SELECT id FROM tenants WHERE slug = $1`, t.Slug).Scan(&id))
		switch {
		case err != nil:
			return err
		case !ok:
			id = newTenant
			if err := db.createTenant(ctx, q, id, t); err != nil {
				return err
			}
		case t.ID != "" && t.ID != id:
			return &clawr.Error{Code: clawr.CodeConflict, Param: "tenant", Message: fmt.Sprintf("the slug %q belongs to another tenant", t.Slug), Fix: "choose another --tenant"}
		}
		version, err := db.addVersion(ctx, q, id, manifest, by)
		if err != nil {
			return err
		}
		if err := db.activate(ctx, q, id, version, t.Manifest); err != nil {
			return err
		}
		if _, err := q.ExecContext(ctx, `UPDATE tenants SET status = 'active' WHERE id = $1 AND status = 'removed'`, id); err != nil {
			return err
		}
		if t.Hosts != nil {
			if err := claimHosts(ctx, q, id, t.Hosts); err != nil {
				return err
			}
		}
		if out, err = one(tenants(ctx, q, "t.id = $1", id))(t.Slug); err != nil {
			return err
		}
		return db.audit(ctx, q, by, "deploy", t.Slug, fmt.Sprintf(`{"version":%d}`, version))
	})
	if err != nil {
		return clawr.Tenant{}, err
	}
	return out, nil
}

// claimPayTo makes home the one authority for a payTo, or finds that it
// already is: two would each sell for the same authorization.
func claimPayTo(ctx context.Context, q querier, payTo string, home clawr.Home) error {
	if payTo == "" {
		return nil
	}
	if home == "" {
		home = "native"
	}
	ok, err := changed(q.ExecContext(ctx, `
		INSERT INTO ledger_homes(pay_to, home) VALUES ($1, $2)
		ON CONFLICT (pay_to) DO UPDATE SET home = excluded.home WHERE ledger_homes.home = excluded.home`, payTo, string(home)))
	if err != nil {
		return err
	}
	if !ok {
		where, fix := "at the edge", "use another --pay-to, or --publish to sell there"
		if home == clawr.HomeEdge {
			where, fix = "by this clawr's own nodes, which sell for it", "use another --pay-to"
		}
		return &clawr.Error{Code: clawr.CodeLedgerHome, Param: "pay-to", Message: "payments to " + payTo + " are booked " + where + ", and one address has one book",
			Fix: fix}
	}
	return nil
}

func (db *DB) createTenant(ctx context.Context, q querier, id string, t clawr.Tenant) error {
	ok, err := changed(q.ExecContext(ctx, `
		INSERT INTO tenants(id, slug, owner_id, pay_to, status, current_version, created_at, updated_at)
		VALUES ($1, $2, $3, $4, 'active', 0, $5, $5) ON CONFLICT DO NOTHING`, id, t.Slug, t.Owner, t.PayTo, db.micros()))
	if err == nil && !ok {
		return &clawr.Error{Code: clawr.CodeConflict, Param: "tenant", Message: fmt.Sprintf("tenant %s has another slug than %q, and slugs do not change", id, t.Slug), Fix: "deploy under the old slug, or as a new tenant"}
	}
	return err
}

// addVersion finds the version with this manifest, or adds it.
func (db *DB) addVersion(ctx context.Context, q querier, id string, manifest []byte, by string) (version int64, err error) {
	sum := sha256.Sum256(manifest)
	hash := hex.EncodeToString(sum[:])
	_, err = q.ExecContext(ctx, `
		INSERT INTO tenant_versions(tenant_id, version, manifest, manifest_sha256, created_by, created_at)
		SELECT CAST($1 AS TEXT), COALESCE(MAX(version), 0) + 1, CAST($2 AS TEXT), CAST($3 AS TEXT), CAST($4 AS TEXT), CAST($5 AS BIGINT)
		FROM tenant_versions WHERE tenant_id = $1
		ON CONFLICT (tenant_id, manifest_sha256) DO NOTHING`, id, string(manifest), hash, by, db.micros())
	if err != nil {
		return 0, err
	}
	return version, q.QueryRowContext(ctx, `SELECT version FROM tenant_versions WHERE tenant_id = $1 AND manifest_sha256 = $2`, id, hash).Scan(&version)
}

// activate puts a version on sale.
func (db *DB) activate(ctx context.Context, q querier, id string, version int64, m clawr.Manifest) error {
	_, err := q.ExecContext(ctx, `UPDATE tenants SET current_version = $2, owner_id = $3, pay_to = $4, updated_at = $5 WHERE id = $1`,
		id, version, m.Owner, m.PayTo, db.micros())
	return err
}

// claimHosts makes hosts the tenant's, and only those.
func claimHosts(ctx context.Context, q querier, id string, hosts []string) error {
	for _, h := range slices.Sorted(slices.Values(hosts)) {
		ok, err := changed(q.ExecContext(ctx, `
			INSERT INTO hosts(host, tenant_id) VALUES ($1, $2)
			ON CONFLICT (host) DO UPDATE SET tenant_id = excluded.tenant_id
			WHERE hosts.tenant_id = excluded.tenant_id
			   OR EXISTS (SELECT 1 FROM tenants WHERE tenants.id = hosts.tenant_id AND tenants.status = 'removed')`, h, id))
		if err != nil {
			return err
		}
		if !ok {
			var slug string
			if err := q.QueryRowContext(ctx, `SELECT slug FROM hosts JOIN tenants ON tenants.id = hosts.tenant_id WHERE host = $1`, h).Scan(&slug); err != nil {
				return err
			}
			return &clawr.Error{Code: clawr.CodeHostTaken, Param: "host", Message: fmt.Sprintf("the host %s belongs to tenant %q", h, slug), Fix: "choose another --host, or clawr rm " + slug}
		}
	}
	var gone []string
	rows, err := q.QueryContext(ctx, `SELECT host FROM hosts WHERE tenant_id = $1`, id)
	err = each(rows, err, func(rows *sql.Rows) error {
		var h string
		if err := rows.Scan(&h); err != nil {
			return err
		}
		if !slices.Contains(hosts, h) {
			gone = append(gone, h)
		}
		return nil
	})
	for _, h := range gone {
		if err == nil {
			_, err = q.ExecContext(ctx, `DELETE FROM hosts WHERE host = $1 AND tenant_id = $2`, h, id)
		}
	}
	return err
}

// SetStatus pauses, resumes or removes a tenant. One that was removed comes
// back by Deploy alone; setting a status twice is setting it once.
func (db *DB) SetStatus(ctx context.Context, slug string, status clawr.Status, by string) (clawr.Tenant, error) {
	switch status {
	case clawr.StatusActive, clawr.StatusPaused, clawr.StatusRemoved:
	default:
		return clawr.Tenant{}, &clawr.Error{Code: clawr.CodeBadRequest, Param: "status", Message: fmt.Sprintf("there is no status %q", status), Fix: "active, paused or removed"}
	}
	var out clawr.Tenant
	err := db.change(ctx, func(ctx context.Context, q querier) error {
		t, err := one(tenants(ctx, q, "t.slug = $1", slug))(slug)
		if err != nil {
			return err
		}
		if t.Status == clawr.StatusRemoved && status != clawr.StatusRemoved {
			return &clawr.Error{Code: clawr.CodeTenantNotFound, Param: "tenant", Message: fmt.Sprintf("tenant %q was removed", slug), Fix: "deploy it again: clawr deploy FILE --tenant " + slug}
		}
		if _, err := q.ExecContext(ctx, `UPDATE tenants SET status = $2, updated_at = $3 WHERE id = $1`, t.ID, string(status), db.micros()); err != nil {
			return err
		}
		out = t
		out.Status = status
		return db.audit(ctx, q, by, "status", slug, fmt.Sprintf(`{"from":%q,"to":%q}`, t.Status, status))
	})
	if err != nil {
		return clawr.Tenant{}, err
	}
	return out, nil
}

// Rollback puts version to on sale again; 0 means the one before the current.
// Hosts and status stay.
func (db *DB) Rollback(ctx context.Context, slug string, to int64, by string) (clawr.Tenant, error) {
	var out clawr.Tenant
	from := int64(0)
	err := db.change(ctx, func(ctx context.Context, q querier) error {
		t, err := one(tenants(ctx, q, "t.slug = $1 AND t.status <> 'removed'", slug))(slug)
		if err != nil {
			return err
		}
		if from == 0 {
			from = t.Version // a second run after a lost COMMIT must not go back twice
		}
		var version sql.NullInt64
		if err := q.QueryRowContext(ctx, `
			SELECT MAX(version) FROM tenant_versions
			WHERE tenant_id = $1 AND (version = $2 OR $2 = 0 AND version < $3)`, t.ID, to, from).Scan(&version); err != nil {
			return err
		}
		if !version.Valid {
			what := fmt.Sprintf("tenant %q has no version %d", slug, to)
			if to == 0 {
				what = fmt.Sprintf("tenant %q has no version before %d", slug, from)
			}
			return &clawr.Error{Code: clawr.CodeNotFound, Param: "to", Message: what, Fix: "clawr show " + slug + " lists its versions"}
		}
		if out, err = one(versions(ctx, q, "t.id = $1 AND v.version = $2", t.ID, version.Int64))(slug); err != nil {
			return err
		}
		// Its payTo may have moved its book since.
		if err := claimPayTo(ctx, q, out.PayTo, out.Home); err != nil {
			return err
		}
		if err := db.activate(ctx, q, t.ID, out.Version, out.Manifest); err != nil {
			return err
		}
		return db.audit(ctx, q, by, "rollback", slug, fmt.Sprintf(`{"from":%d,"to":%d}`, from, out.Version))
	})
	if err != nil {
		return clawr.Tenant{}, err
	}
	return out, nil
}

// Tenants lists all tenants with the version on sale, by slug, paused and
// removed ones included.
func (db *DB) Tenants(ctx context.Context) ([]clawr.Tenant, error) {
	return tenants(ctx, db.reader(), "TRUE")
}

// TenantVersion is a tenant with the given version's manifest.
func (db *DB) TenantVersion(ctx context.Context, tenantID string, version int64) (clawr.Tenant, error) {
	return one(versions(ctx, db.reader(), "t.id = $1 AND v.version = $2", tenantID, version))(fmt.Sprintf("%s version %d", tenantID, version))
}

// Versions lists every version of a tenant, newest first.
func (db *DB) Versions(ctx context.Context, slug string) ([]clawr.Tenant, error) {
	list, err := versions(ctx, db.reader(), "t.slug = $1", slug)
	if err == nil && len(list) == 0 {
		return nil, noTenant(slug)
	}
	return list, err
}

// Revision is a number that changes with the directory.
func (db *DB) Revision(ctx context.Context) (int64, error) {
	var n int64
	err := db.reader().QueryRowContext(ctx, `SELECT revision FROM directory WHERE id = 1`).Scan(&n)
	return n, err
}

func tenants(ctx context.Context, q querier, where string, args ...any) ([]clawr.Tenant, error) {
	return versions(ctx, q, "v.version = t.current_version AND "+where, args...)
}

// versions reads tenants with their manifests and hosts, in one snapshot.
func versions(ctx context.Context, q querier, where string, args ...any) ([]clawr.Tenant, error) {
	var list []clawr.Tenant
	rows, err := q.QueryContext(ctx, `
		SELECT t.id, t.slug, t.status, v.version, v.manifest, v.created_at, COALESCE(h.host, '')
		FROM tenants t JOIN tenant_versions v ON v.tenant_id = t.id LEFT JOIN hosts h ON h.tenant_id = t.id
		WHERE `+where+` ORDER BY t.slug, v.version DESC, h.host`, args...)
	err = each(rows, err, func(rows *sql.Rows) error {
		t := clawr.Tenant{Hosts: []string{}}
		var manifest []byte
		var created int64
		var host string
		if err := rows.Scan(&t.ID, &t.Slug, &t.Status, &t.Version, &manifest, &created, &host); err != nil {
			return err
		}
		if n := len(list) - 1; n < 0 || list[n].ID != t.ID || list[n].Version != t.Version {
			if err := json.Unmarshal(manifest, &t.Manifest); err != nil {
				return fmt.Errorf("manifest of %s version %d: %w", t.Slug, t.Version, err)
			}
			t.Created = fromMicros(created)
			list = append(list, t)
		}
		if last := &list[len(list)-1]; host != "" {
			last.Hosts = append(last.Hosts, host)
		}
		return nil
	})
	return list, err
}

// one is the only tenant of a list, or a CodeTenantNotFound that names it.
func one(list []clawr.Tenant, err error) func(name string) (clawr.Tenant, error) {
	return func(name string) (clawr.Tenant, error) {
		if err != nil {
			return clawr.Tenant{}, err
		}
		if len(list) == 0 {
			return clawr.Tenant{}, noTenant(name)
		}
		return list[0], nil
	}
}

func noTenant(name string) error {
	return &clawr.Error{Code: clawr.CodeTenantNotFound, Param: "tenant", Message: "there is no tenant " + strings.TrimSpace(name), Fix: "clawr list shows yours"}
}

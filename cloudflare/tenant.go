package cloudflare

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/402claw/clawr"
)

// TenantSpec is one version of a tenant as it shall be sold.
type TenantSpec struct {
	Namespace string
	Tenant    clawr.Tenant
	Modules   []Module // of its Worker, the first the main one
	Manifest  []byte   // manifest.json
	Rows      []byte   // rows.ndjson; empty when the rows are in Import
	Import    *Import  // fills a D1 database; nil for a small dataset
	CursorKey string   // hex
	// Discovery, if set, is how a path is asked, for those who list APIs: an
	// object with path and bazaar, which that path's challenges carry.
	Discovery any
	Edge      Edge // of the namespace's dispatcher
}

// keepFor is how long a version that is not sold any more can still be asked
// for the answers that it was paid for, and is therefore left where it is.
const keepFor = 25 * time.Hour

// keepLast is how many versions are left where they are however old.
const keepLast = 2

// WorkerName is the name of a version's Worker: each version has one of its
// own, so that a name never changes what it answers.
func WorkerName(t *clawr.Tenant) string { return fmt.Sprintf("tenant-%s-v%d", t.Slug, t.Version) }

// databaseName names a version's database. Names of other tenants, even of
// another clawr in the same account, differ in the id.
func databaseName(t *clawr.Tenant, version int64) string {
	return fmt.Sprintf("%s%d", databasePrefix(t.ID), version)
}

func databasePrefix(id string) string {
	return "clawr-" + strings.ToLower(strings.ReplaceAll(id, "_", "-")) + "-v"
}

// PlanTenant plans that a version of a tenant is sold. The order is what keeps
// a half-published version from being sold: its data first, then its Worker,
// and the directory last.
func (p *Publisher) PlanTenant(ctx context.Context, s TenantSpec) (*Plan, error) {
	plan := &Plan{}
	if p.API != nil {
		if err := p.API.needNamespace(ctx, s.Namespace); err != nil {
			return nil, err
		}
	}
	kv, err := p.directory(ctx, plan, s.Namespace)
	if err != nil {
		return nil, err
	}
	was, err := p.mine(ctx, kv, &s.Tenant)
	if err != nil {
		return nil, err
	}
	db, err := p.planData(ctx, plan, &s)
	if err != nil {
		return nil, err
	}
	if err := p.planWorker(ctx, plan, &s, db); err != nil {
		return nil, err
	}
	now, err := entryOf(s.Tenant, s.Discovery)
	if err != nil {
		return nil, err
	}
	old := p.succeed(now, was)
	if err := p.planEntry(ctx, plan, kv, now, was, s.Edge, false); err != nil {
		return nil, err
	}
	return plan, p.planTidy(ctx, plan, s.Namespace, &s.Tenant, old)
}

// mine reads a tenant's entry, and refuses names that are another's.
func (p *Publisher) mine(ctx context.Context, kv *resource, t *clawr.Tenant) (entry, error) {
	was, err := p.read(ctx, kv, slugKey(t.Slug))
	if err != nil {
		return nil, err
	}
	if was != nil && was.text("id") != t.ID {
		return nil, &clawr.Error{Code: CodeTaken, Param: "tenant", Message: fmt.Sprintf("%s is sold in this namespace by another clawr (its id there is %s)", t.Slug, printable(was.text("id"))),
			Fix: "choose another --tenant, or another --dispatch-namespace"}
	}
	for _, h := range t.Hosts {
		e, err := p.read(ctx, kv, hostKey(h))
		if err != nil {
			return nil, err
		}
		if e != nil && e.text("id") != t.ID {
			return nil, &clawr.Error{Code: clawr.CodeHostTaken, Param: "host", Message: fmt.Sprintf("the host %s belongs to tenant %q in this namespace", h, printable(e.text("slug"))), Fix: "choose another --host"}
		}
	}
	return was, nil
}

// planData plans that a large dataset's database is there and filled.
func (p *Publisher) planData(ctx context.Context, plan *Plan, s *TenantSpec) (*resource, error) {
	if s.Import == nil {
		return nil, nil
	}
	name := databaseName(&s.Tenant, s.Tenant.Version)
	db, err := p.database(ctx, plan, name)
	if err != nil {
		return nil, err
	}
	plan.willWrite(WorkerName(&s.Tenant)+".sql", s.Import.write)
	if db.id != "" {
		has, err := p.API.imported(ctx, db.id)
		if err != nil {
			return nil, err
		}
		if has == s.Import.Content {
			plan.keep("rows of "+s.Tenant.Slug+" in D1", "imported")
			return db, nil
		}
		if has != "" {
			return nil, &clawr.Error{Code: CodeTaken, Message: "the D1 database " + name + " holds other data", Fix: "delete it in the dashboard, then run the same command again"}
		}
	}
	plan.add("import", "rows of "+s.Tenant.Slug+" into D1", fmt.Sprintf("%d rows", s.Tenant.Rows), func(ctx context.Context) error { return p.API.fill(ctx, db.id, s.Import) })
	return db, nil
}

// worker is a version's Worker as it is uploaded, without tags.
func (s *TenantSpec) worker(db *resource) *Worker {
	modules := append(slices.Clone(s.Modules), Module{"manifest.json", TypeText, s.Manifest}, Module{"rows.ndjson", TypeText, s.Rows})
	w := &Worker{Name: WorkerName(&s.Tenant), Namespace: s.Namespace, Modules: modules, Secrets: map[string]string{}}
	if s.CursorKey != "" {
		w.Secrets["CURSOR_KEY"] = s.CursorKey
	}
	w.Metadata = Metadata{Main: s.Modules[0].Name, Compatibility: Compatibility, Keep: keptBindings, Limits: LimitsOf(s.Tenant.Effective()), Bindings: []Binding{}}
	if db != nil {
		w.Metadata.Bindings = append(w.Metadata.Bindings, Binding{Type: "d1", Name: "DB", Database: db.String()})
	}
	return w
}

func (p *Publisher) planWorker(ctx context.Context, plan *Plan, s *TenantSpec, db *resource) error {
	w := s.worker(db)
	if err := w.check(); err != nil {
		return err
	}
	plan.willUpload(w)
	secrets := w.secretsHash()
	if p.API != nil {
		old, err := p.API.settings(ctx, s.Namespace, w.Name)
		if err != nil {
			return err
		}
		if old != nil && !old.has(tagTenant+s.Tenant.ID) {
			return &clawr.Error{Code: CodeTaken, Param: "tenant", Message: "the Worker " + w.Name + " of the namespace was not deployed by this clawr", Fix: "choose another --tenant, or another --dispatch-namespace"}
		}
		if old != nil && (db == nil || db.id != "") && old.unchanged(w.Hash(), secrets) {
			plan.keep("Worker "+w.Name, describe(w))
			return nil
		}
	}
	plan.add("upload", "Worker "+w.Name, describe(w), func(ctx context.Context) error {
		w := s.worker(db)
		w.Metadata.Tags = tags(w.Hash(), secrets, tagTenant+s.Tenant.ID)
		return p.API.upload(ctx, w)
	})
	return nil
}

// planTidy plans that the Workers and databases of old versions go.
func (p *Publisher) planTidy(ctx context.Context, plan *Plan, namespace string, t *clawr.Tenant, old []entry) error {
	for _, e := range old {
		if err := p.planDelete(ctx, plan, namespace, e.text("workerName"), databaseName(t, e.number("version"))); err != nil {
			return err
		}
	}
	return nil
}

func (p *Publisher) planDelete(ctx context.Context, plan *Plan, namespace, worker, database string) error {
	if p.API == nil {
		return nil
	}
	old, err := p.API.settings(ctx, namespace, worker)
	if err != nil {
		return err
	}
	if old.has(tagOurs) {
		plan.add("delete", "Worker "+worker, "", func(ctx context.Context) error { return p.API.remove(ctx, namespace, worker) })
	}
	id, err := p.API.database(ctx, database)
	if err != nil {
		return err
	}
	if id != "" {
		plan.add("delete", "D1 database "+database, "", func(ctx context.Context) error { return p.API.removeDatabase(ctx, id) })
	}
	return nil
}

// PlanStatus plans that a tenant which is sold is paused, sold again or
// removed, without anything being uploaded. purge deletes the Workers and
// databases of a removed one at once, and with them what answers those who
// paid a moment ago and lost their answer.
func (p *Publisher) PlanStatus(ctx context.Context, namespace string, t clawr.Tenant, edge Edge, purge bool) (*Plan, error) {
	plan := &Plan{}
	if err := p.API.needNamespace(ctx, namespace); err != nil {
		return nil, err
	}
	kv, err := p.directory(ctx, plan, namespace)
	if err != nil {
		return nil, err
	}
	was, err := p.mine(ctx, kv, &clawr.Tenant{ID: t.ID, Slug: t.Slug})
	if err != nil {
		return nil, err
	}
	if was == nil && t.Status != clawr.StatusRemoved {
		return nil, &clawr.Error{Code: CodeMissing, Param: "tenant", Message: t.Slug + " is not published in this namespace", Fix: "clawr cloudflare-deploy-tenant " + t.Slug + " --dispatch-namespace " + namespace + " --execute"}
	}
	if was != nil {
		now := entry{}
		for k, v := range was {
			now[k] = v
		}
		now["status"] = string(t.Status)
		if err := p.planEntry(ctx, plan, kv, now, was, edge, t.Status != clawr.StatusActive); err != nil {
			return nil, err
		}
	}
	if t.Status != clawr.StatusRemoved || was != nil && !purge {
		return plan, nil
	}
	if purge && was != nil {
		plan.add("delete", "directory "+slugKey(t.Slug), "", func(ctx context.Context) error { return p.API.kvDelete(ctx, kv.id, []string{slugKey(t.Slug)}) })
	}
	workers, err := p.API.tenants(ctx, namespace, tagTenant+t.ID)
	if err != nil {
		return nil, err
	}
	for _, w := range workers {
		_, version, _ := strings.Cut(w.name(), "tenant-"+t.Slug+"-v")
		if err := p.planDelete(ctx, plan, namespace, w.name(), databasePrefix(t.ID)+version); err != nil {
			return nil, err
		}
	}
	return plan, nil
}

// Reach finds out whether a namespace can be published to.
func (p *Publisher) Reach(ctx context.Context, namespace string) error {
	return p.API.needNamespace(ctx, namespace)
}

// Check refuses what Cloudflare would refuse, without asking it.
func (p *Publisher) Check(ctx context.Context, s TenantSpec) error {
	if err := s.worker(nil).check(); err != nil {
		return err
	}
	if s.Import == nil {
		return nil
	}
	_, _, err := s.Import.measure(ctx)
	return err
}

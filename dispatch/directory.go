package dispatch

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/402claw/clawr"
)

// Worker does the work of one version of one tenant.
type Worker interface {
	// Plan is pure. It gives the canonical form of the request (equal for equal
	// questions), and the units that it costs: 0 is a free route. Its error is
	// what the request is answered with once it is known not to be charged.
	Plan(*http.Request) (canonical string, units int64, err error)
	// Check says whether what is asked for exists, before money is reserved.
	Check(context.Context, *http.Request) error
	// Serve answers, or returns an error and has written nothing.
	Serve(http.ResponseWriter, *http.Request) error
}

// Recomputer is a Worker whose answers are pure functions of the canonical
// request, so that the book stores that and not the bytes.
type Recomputer interface {
	// Answer gives the body that Serve wrote for canonical, byte for byte.
	Answer(ctx context.Context, canonical string) ([]byte, error)
}

// Tagger is a Worker that knows an answer's strong ETag without computing the
// answer.
type Tagger interface {
	ETag(canonical string) string
}

// Tenants is where versions come from when they are not on sale any more.
type Tenants interface {
	TenantVersion(ctx context.Context, tenantID string, version int64) (clawr.Tenant, error)
}

// Workers opens what does the work.
type Workers interface {
	// Open gives the worker of t's version. It may be called often.
	Open(ctx context.Context, t *clawr.Tenant) (Worker, error)
}

// Directory finds tenants. Look-ups read a snapshot: no lock, no query. The
// zero value knows nobody.
type Directory struct {
	snapshot atomic.Pointer[snapshot]
	versions sync.Map // versionKey → *entry, of versions that are not current
}

type versionKey struct {
	tenant  string
	version int64
}

type snapshot struct {
	byHost map[string]*entry
	bySlug map[string]*entry
	byID   map[string]*entry
}

// entry is a tenant's version with everything that does not change from one
// request to the next.
type entry struct {
	clawr.Tenant
	idHeader  []string // x-tenant-id, shared by all answers
	owner     string
	limited   bool // has rates, quotas or caps
	challenge atomic.Pointer[challenge]
	worker    atomic.Pointer[opened]
}

// opened is a worker with the optional interfaces that it has.
type opened struct {
	Worker
	recompute Recomputer // may be nil
	tag       Tagger     // may be nil
}

func newEntry(t clawr.Tenant) *entry {
	return &entry{Tenant: t, idHeader: []string{t.ID}, owner: "@" + t.Owner,
		limited: !t.Rate.PerCaller.IsZero() || !t.Rate.Global.IsZero() || t.Usage != (clawr.Quota{}) || t.Spend != (clawr.Caps{})}
}

// Load replaces the snapshot. Entries whose version did not change are kept
// with their workers. Paused and removed tenants are part of it; a removed
// one's hosts are not.
func (d *Directory) Load(tenants []clawr.Tenant) {
	old := d.snapshot.Load()
	s := &snapshot{byHost: map[string]*entry{}, bySlug: map[string]*entry{}, byID: map[string]*entry{}}
	for _, t := range tenants {
		e := newEntry(t)
		if old != nil {
			if was := old.byID[t.ID]; was != nil && was.Version == t.Version {
				e.worker.Store(was.worker.Load())
			}
		}
		s.byID[t.ID], s.bySlug[t.Slug] = e, e
		if t.Status != clawr.StatusRemoved {
			for _, h := range t.Hosts {
				s.byHost[h] = e
			}
		}
	}
	d.snapshot.Store(s)
}

// lookup finds the tenant that host and path mean, and the path that it sees.
// A host that belongs to a tenant is all the tenant's.
func (d *Directory) lookup(host, path string) (e *entry, rest string) {
	s := d.snapshot.Load()
	if s == nil {
		return nil, ""
	}
	if e := s.byHost[hostname(host)]; e != nil {
		return e, path
	}
	slug, ok := strings.CutPrefix(path, "/t/")
	if !ok {
		return nil, ""
	}
	rest = "/"
	if i := strings.IndexByte(slug, '/'); i >= 0 {
		slug, rest = slug[:i], slug[i:]
	}
	return s.bySlug[slug], rest
}

// version finds the entry of one version of a tenant, current or not.
func (d *Directory) version(ctx context.Context, from Tenants, tenant string, version int64) (*entry, error) {
	if s := d.snapshot.Load(); s != nil {
		if e := s.byID[tenant]; e != nil && e.Version == version {
			return e, nil
		}
	}
	key := versionKey{tenant, version}
	if e, ok := d.versions.Load(key); ok {
		return e.(*entry), nil
	}
	t, err := from.TenantVersion(ctx, tenant, version)
	if err != nil {
		return nil, err
	}
	e, _ := d.versions.LoadOrStore(key, newEntry(t))
	return e.(*entry), nil
}

// open gives e's worker, opened at its first request.
func (e *entry) open(ctx context.Context, ws Workers) (*opened, error) {
	if o := e.worker.Load(); o != nil {
		return o, nil
	}
	w, err := ws.Open(ctx, &e.Tenant)
	if err != nil {
		return nil, err
	}
	o := &opened{Worker: w}
	o.recompute, _ = w.(Recomputer)
	o.tag, _ = w.(Tagger)
	e.worker.Store(o)
	return o, nil
}

// hostname is host without its port, lower-case, without allocating for the
// hosts that clients usually send.
func hostname(host string) string {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && strings.IndexByte(host[i:], ']') < 0 {
		host = host[:i]
	}
	for i := 0; i < len(host); i++ {
		if 'A' <= host[i] && host[i] <= 'Z' {
			return strings.TrimSuffix(strings.ToLower(host), ".")
		}
	}
	return strings.TrimSuffix(host, ".")
}

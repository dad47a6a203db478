package dispatch

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// Tenants is where versions come from when they are not on sale any more.
type Tenants interface {
	TenantVersion(ctx context.Context, tenantID string, version int64) (clawr.Tenant, error)
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
	idHeader []string // x-tenant-id, shared by all answers
	owner    string
	policy   ledger.Policy
	// extensions are advertised in every challenge.
	extensions x402.Object
	limited    bool          // has rates, quotas or caps
	inFlight   *atomic.Int64 // paid calls of this tenant's, whatever the version
	channels   bool          // is sold by vouchers, too
	challenge  atomic.Pointer[challenge]
	worker     atomic.Pointer[opened]
}

func newEntry(t clawr.Tenant) *entry {
	return &entry{Tenant: t, idHeader: []string{t.ID}, owner: "@" + t.Owner, policy: policyOf(t.Settle), inFlight: new(atomic.Int64), extensions: x402.Object{x402.OfferIdentifier(t.RequirePaymentID)},
		channels: slices.Contains(t.Schemes, x402.SchemeChannel),
		limited:  !t.Rate.PerCaller.IsZero() || !t.Rate.Global.IsZero() || t.Usage != (clawr.Quota{}) || t.Spend != (clawr.Caps{})}
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
			if was := old.byID[t.ID]; was != nil {
				e.inFlight = was.inFlight
			}
			if was := old.byID[t.ID]; was != nil && was.Version == t.Version {
				e.worker.Store(was.worker.Load())
				e.challenge.Store(was.challenge.Load())
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

// lookup finds the tenant that host and path (escaped) mean, and the path that
// it sees. A host that belongs to a tenant is all the tenant's.
func (d *Directory) lookup(host, path string) (e *entry, rest string) {
	s := d.snapshot.Load()
	if s == nil {
		return nil, path
	}
	if e := s.byHost[hostname(host)]; e != nil {
		return e, path
	}
	slug, ok := strings.CutPrefix(path, "/t/")
	if !ok {
		return nil, path
	}
	rest = "/"
	if i := strings.IndexByte(slug, '/'); i >= 0 {
		slug, rest = slug[:i], slug[i:]
	}
	if e = s.bySlug[slug]; e == nil {
		return nil, path
	}
	return e, rest
}

// byID finds the current entry of a tenant, nil if there never was one.
func (d *Directory) byID(tenant string) *entry {
	if s := d.snapshot.Load(); s != nil {
		return s.byID[tenant]
	}
	return nil
}

// HasHost reports whether host is a tenant's.
func (d *Directory) HasHost(host string) bool {
	s := d.snapshot.Load()
	return s != nil && s.byHost[hostname(host)] != nil
}

// version finds the entry of one version of a tenant, current or not.
func (d *Directory) version(ctx context.Context, from Tenants, tenant string, version int64) (*entry, error) {
	if e := d.byID(tenant); e != nil && e.Version == version {
		return e, nil
	}
	key := versionKey{tenant, version}
	if e, ok := d.versions.Load(key); ok {
		return e.(*entry), nil
	}
	t, err := from.TenantVersion(ctx, tenant, version)
	if err != nil {
		return nil, err
	}
	old := newEntry(t)
	if current := d.byID(tenant); current != nil {
		old.inFlight = current.inFlight
	}
	e, _ := d.versions.LoadOrStore(key, old)
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
	o := newOpened(w)
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

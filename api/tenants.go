package api

import (
	"context"
	"fmt"
	"strings"

	"github.com/402claw/clawr"
)

// Tenant is a tenant and where it is called.
type Tenant struct {
	clawr.Tenant
	URL string `json:"url"`
}

type tenantList struct {
	Tenants []Tenant `json:"tenants"`
}

type versionList struct {
	Versions []clawr.Tenant `json:"versions"`
}

// Rollback names the version to put on sale again; 0 is the one before.
type Rollback struct {
	To int64 `json:"to"`
}

func (h *Handler) show(t clawr.Tenant) Tenant { return Tenant{t, tenantURL(h.PublicURL, &t)} }

// tenantURL is where callers reach t: on its host, or below the node's own.
func tenantURL(public string, t *clawr.Tenant) string {
	const path = "/v1/records"
	if len(t.Hosts) > 0 {
		return "https://" + t.Hosts[0] + path
	}
	return strings.TrimSuffix(public, "/") + "/t/" + t.Slug + path
}

func (h *Handler) listTenants(r *request) (any, error) {
	list, err := h.Tenants.Tenants(r.Context())
	if err != nil {
		return nil, err
	}
	out := tenantList{Tenants: []Tenant{}}
	all := r.URL.Query().Get("all") == "true"
	for _, t := range list {
		if all || t.Status != clawr.StatusRemoved {
			out.Tenants = append(out.Tenants, h.show(t))
		}
	}
	return out, nil
}

// find gives the tenant of a slug, removed or not, or nil.
func (h *Handler) find(ctx context.Context, slug string) (*clawr.Tenant, error) {
	list, err := h.Tenants.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	for i := range list {
		if list[i].Slug == slug {
			return &list[i], nil
		}
	}
	return nil, nil
}

// there gives the tenant that the path names, unless it was removed.
func (h *Handler) there(r *request) (*clawr.Tenant, error) {
	slug := r.PathValue("slug")
	t, err := h.find(r.Context(), slug)
	if err != nil {
		return nil, err
	}
	if t == nil || t.Status == clawr.StatusRemoved {
		return nil, noTenant(slug)
	}
	return t, nil
}

func noTenant(slug string) error {
	return &clawr.Error{Code: clawr.CodeTenantNotFound, Param: "tenant", Message: fmt.Sprintf("no tenant %q", printable(slug)), Fix: "clawr list shows yours"}
}

func (h *Handler) showTenant(r *request) (any, error) {
	t, err := h.there(r)
	if err != nil {
		return nil, err
	}
	return h.show(*t), nil
}

// versions shows the history of a removed tenant too: its payments name them.
func (h *Handler) versions(r *request) (any, error) {
	list, err := h.Tenants.Versions(r.Context(), r.PathValue("slug"))
	if clawr.CodeOf(err) == clawr.CodeTenantNotFound {
		return nil, noTenant(r.PathValue("slug"))
	}
	return versionList{orEmpty(list)}, err
}

func (h *Handler) pause(r *request) (any, error)  { return h.setStatus(r, clawr.StatusPaused) }
func (h *Handler) resume(r *request) (any, error) { return h.setStatus(r, clawr.StatusActive) }

// removeTenant frees the tenant's hosts for others. Its payments keep their
// answers, and deploying its slug again brings it back.
func (h *Handler) removeTenant(r *request) (any, error) { return h.setStatus(r, clawr.StatusRemoved) }

func (h *Handler) setStatus(r *request, s clawr.Status) (any, error) {
	if _, err := h.there(r); err != nil {
		return nil, err
	}
	return h.showing(h.Tenants.SetStatus(r.Context(), r.PathValue("slug"), s, r.By.Name))
}

func (h *Handler) rollback(r *request) (any, error) {
	var in Rollback
	if err := r.decode(&in, true); err != nil {
		return nil, err
	}
	if in.To < 0 {
		return nil, &clawr.Error{Code: clawr.CodeBadRequest, Param: "to", Message: fmt.Sprintf("%d is not a version", in.To), Fix: "--to N with one of clawr show " + printable(r.PathValue("slug"))}
	}
	if _, err := h.there(r); err != nil {
		return nil, err
	}
	return h.showing(h.Tenants.Rollback(r.Context(), r.PathValue("slug"), in.To, r.By.Name))
}

// showing shows what a change has made of a tenant.
func (h *Handler) showing(t clawr.Tenant, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return h.show(t), nil
}

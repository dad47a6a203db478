package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/402claw/clawr"
)

// Directory is the tenants as a dispatcher elsewhere reads them. It has two
// JSON forms, and reads both: {"tenants":[…]} and {"byHost":{…},"bySlug":{…}}.
type Directory struct {
	Entries []Entry // by slug
	// Maps makes it write the second form.
	Maps bool
}

// Entry is one tenant of a Directory.
type Entry struct {
	Slug       string       `json:"slug"`
	TenantID   string       `json:"tenantId"`
	WorkerName string       `json:"workerName"`
	Kind       clawr.Kind   `json:"kind"`
	Plan       clawr.Plan   `json:"plan"`
	Limits     clawr.Limits `json:"limits"` // those in force: the plan's with its overrides
	Hosts      []string     `json:"hosts"`
	Status     clawr.Status `json:"status"`
	Version    int64        `json:"version"`
	Owner      string       `json:"owner"`
	Directory  string       `json:"directory"`
	Price      clawr.Amount `json:"priceUsd"`
	X402       bool         `json:"x402Enabled"`
	PayTo      string       `json:"payTo,omitempty"`
	Network    string       `json:"network,omitempty"`
	Rate       clawr.Rates  `json:"rateLimit"`
	Usage      clawr.Quota  `json:"usageLimit"`
	Spend      clawr.Caps   `json:"spendLimit"`
}

// NewDirectory is the directory of tenants, without those that were removed.
func NewDirectory(tenants []clawr.Tenant) Directory {
	var d Directory
	for _, t := range tenants {
		if t.Status == clawr.StatusRemoved {
			continue
		}
		d.Entries = append(d.Entries, Entry{Slug: t.Slug, TenantID: t.ID, WorkerName: t.WorkerName, Kind: t.Kind, Plan: t.Plan, Limits: t.Effective(),
			Hosts: orEmpty(t.Hosts), Status: t.Status, Version: t.Version, Owner: t.Owner, Directory: t.Manifest.Directory, Price: t.Price, X402: t.X402,
			PayTo: t.PayTo, Network: t.Network, Rate: t.Rate, Usage: t.Usage, Spend: t.Spend})
	}
	return d
}

type (
	directoryList struct {
		Tenants []Entry `json:"tenants"`
	}
	directoryMaps struct {
		ByHost map[string]Entry `json:"byHost"`
		BySlug map[string]Entry `json:"bySlug"`
	}
)

// MarshalJSON writes the form that d.Maps says.
func (d Directory) MarshalJSON() ([]byte, error) {
	if !d.Maps {
		return json.Marshal(directoryList{orEmpty(d.Entries)})
	}
	m := directoryMaps{map[string]Entry{}, map[string]Entry{}}
	for _, e := range d.Entries {
		m.BySlug[e.Slug] = e
		for _, h := range e.Hosts {
			m.ByHost[h] = e
		}
	}
	return json.Marshal(m)
}

// UnmarshalJSON reads either form. In the second, a tenant may stand under its
// slug, its hosts, or both; the hosts that it stands under are its hosts too.
func (d *Directory) UnmarshalJSON(b []byte) error {
	var both struct {
		directoryMaps
		Tenants []Entry `json:"tenants"`
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&both); err != nil {
		return err
	}
	if both.Tenants != nil && (both.ByHost != nil || both.BySlug != nil) {
		return fmt.Errorf("a directory is either tenants, or byHost and bySlug")
	}
	bySlug := map[string]Entry{}
	add := func(slug string, e Entry, host string) error {
		if e.Slug == "" {
			e.Slug = slug
		}
		if slug != "" && e.Slug != slug {
			return fmt.Errorf("tenant %q stands under the slug %q", e.Slug, slug)
		}
		if err := clawr.CheckSlug(e.Slug); err != nil {
			return err
		}
		if known, ok := bySlug[e.Slug]; ok {
			known.Hosts = append(known.Hosts, e.Hosts...)
			e = known
		}
		if host != "" {
			e.Hosts = append(e.Hosts, host)
		}
		e.Hosts = orEmpty(slices.Compact(slices.Sorted(slices.Values(e.Hosts))))
		for _, h := range e.Hosts {
			if err := clawr.CheckHost(h); err != nil {
				return err
			}
		}
		bySlug[e.Slug] = e
		return nil
	}
	for _, e := range both.Tenants {
		if _, twice := bySlug[e.Slug]; twice {
			return fmt.Errorf("tenant %q stands twice in the directory", e.Slug)
		}
		if err := add("", e, ""); err != nil {
			return err
		}
	}
	for _, slug := range slices.Sorted(maps.Keys(both.BySlug)) {
		if err := add(slug, both.BySlug[slug], ""); err != nil {
			return err
		}
	}
	for _, host := range slices.Sorted(maps.Keys(both.ByHost)) {
		if err := add("", both.ByHost[host], host); err != nil {
			return err
		}
	}
	*d = Directory{Maps: both.Tenants == nil}
	whose := map[string]string{}
	for _, slug := range slices.Sorted(maps.Keys(bySlug)) {
		for _, h := range bySlug[slug].Hosts {
			if other, taken := whose[h]; taken {
				return fmt.Errorf("the host %s is both %s's and %s's", h, other, slug)
			}
			whose[h] = slug
		}
		d.Entries = append(d.Entries, bySlug[slug])
	}
	return nil
}

func (h *Handler) directory(r *request) (any, error) {
	form := r.URL.Query().Get("form")
	if form != "" && form != "tenants" && form != "maps" {
		return nil, refuse(clawr.CodeBadRequest, "form", fmt.Sprintf("there is no form %q", printable(form)), "--form tenants or maps")
	}
	list, err := h.Tenants.Tenants(r.Context())
	d := NewDirectory(list)
	d.Maps = form == "maps"
	return d, err
}

package cloudflare

import (
	"context"
	"slices"
	"strings"

	"github.com/402claw/clawr"
)

// Status is what of clawr's is in an account.
type Status struct {
	Namespace string         `json:"namespace"`
	Exists    bool           `json:"exists"`
	Script    string         `json:"script,omitempty"` // the dispatcher
	URL       string         `json:"url,omitempty"`
	Bundle    string         `json:"bundle,omitempty"` // the beginning of its hash
	Bindings  []string       `json:"bindings,omitempty"`
	Kept      []Upload       `json:"kept"` // versions that can be rolled back to, oldest first
	Tenants   []TenantStatus `json:"tenants"`
}

// TenantStatus is a tenant in the directory, and the Worker that it leads to.
type TenantStatus struct {
	Slug     string       `json:"slug"`
	ID       string       `json:"id"`
	Version  int64        `json:"version"`
	Status   clawr.Status `json:"status"`
	Revision int64        `json:"revision"`
	Hosts    []string     `json:"hosts"`
	Worker   string       `json:"workerName"`
	Uploaded bool         `json:"uploaded"` // the Worker is there
	Previous []int64      `json:"previous"` // versions that answer still
}

// Status looks at what is in a namespace. Without script it is the dispatcher
// that was last deployed from here.
func (p *Publisher) Status(ctx context.Context, namespace, script string) (*Status, error) {
	s := &Status{Namespace: namespace, Script: script, Kept: []Upload{}, Tenants: []TenantStatus{}}
	all, err := p.Shelf.History()
	if err != nil {
		return nil, err
	}
	last, err := p.Shelf.Serving(p.API.Account, namespace)
	if err != nil {
		return nil, err
	}
	if s.Script == "" && last != nil {
		s.Script = last.Script
	}
	if last != nil && last.Script == s.Script {
		s.URL = last.URL
	}
	for _, u := range all {
		if u.Account == p.API.Account && u.Script == s.Script && u.Namespace == "" {
			s.Kept = append(s.Kept, u)
		}
	}
	if s.Exists, err = p.API.namespace(ctx, namespace); err != nil {
		return nil, err
	}
	if s.Script != "" {
		d, err := p.API.settings(ctx, "", s.Script)
		if err != nil {
			return nil, err
		}
		if d != nil {
			s.Bundle = d.tagged(tagBundle)
			for _, b := range d.Bindings {
				s.Bindings = append(s.Bindings, b.Name)
			}
		}
	}
	if !s.Exists {
		return s, nil
	}
	return s, p.tenants(ctx, s)
}

func (p *Publisher) tenants(ctx context.Context, s *Status) error {
	id, err := p.API.kv(ctx, directoryTitle(s.Namespace))
	if err != nil || id == "" {
		return err
	}
	workers, err := p.API.tenants(ctx, s.Namespace, tagOurs)
	if err != nil {
		return err
	}
	var there []string
	for _, w := range workers {
		there = append(there, w.name())
	}
	keys, err := p.API.kvKeys(ctx, id, slugKey(""))
	if err != nil {
		return err
	}
	kv := &resource{id}
	for _, k := range keys {
		e, err := p.read(ctx, kv, k)
		if err != nil {
			return err
		}
		if e == nil {
			continue
		}
		t := TenantStatus{Slug: strings.TrimPrefix(k, slugKey("")), ID: e.text("id"), Version: e.number("version"), Status: clawr.Status(e.text("status")), Revision: e.number("revision"),
			Hosts: append([]string{}, e.hosts()...), Worker: e.text("workerName"), Previous: []int64{}}
		t.Uploaded = slices.Contains(there, t.Worker)
		for _, v := range e.previous() {
			t.Previous = append(t.Previous, v.number("version"))
		}
		s.Tenants = append(s.Tenants, t)
	}
	return nil
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"

	"github.com/402claw/clawr"
)

type controller struct {
	c    *http.Client
	base string
	done func()
}

func (n *node) controller() *controller {
	return &controller{&http.Client{Transport: inProcess{n.control()}}, "http://clawr", func() {}}
}
func (c *controller) deploy(ctx context.Context, slug string, m clawr.Manifest, hosts []string) (clawr.Tenant, error) {
	b, _ := json.Marshal(clawr.Tenant{Slug: slug, Hosts: hosts, Manifest: m})
	res, err := c.c.Post(c.base+"/deploy", "application/json", bytes.NewReader(b))
	if err != nil {
		return clawr.Tenant{}, err
	}
	defer res.Body.Close()
	var t clawr.Tenant
	return t, json.NewDecoder(res.Body).Decode(&t)
}
func (c *controller) close()                                            { c.done() }
func (c *controller) upload(ctx context.Context, id, path string) error { return nil }
func (c *controller) url(ctx context.Context, t clawr.Tenant) string {
	return "/t/" + t.Slug + "/v1/records"
}
func (e *env) openControl(ctx context.Context) (*controller, error) {
	c, base, done, err := e.connect(ctx)
	return &controller{c, base, done}, err
}
func (n *node) control() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var t clawr.Tenant
		json.NewDecoder(r.Body).Decode(&t)
		if t.PayTo == "" && n.set != nil {
			t.PayTo = n.set.payTo
		}
		out, err := n.db.Deploy(r.Context(), t, "me")
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		json.NewEncoder(w).Encode(out)
	})
}
func (n *node) adminHandler() http.Handler { return http.NotFoundHandler() }
func (n *node) platform() http.Handler     { return http.NotFoundHandler() }

type inProcess struct{ h http.Handler }

func (i inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	i.h.ServeHTTP(rec, r)
	return rec.Result(), nil
}

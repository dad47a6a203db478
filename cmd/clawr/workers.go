package main

import (
	"context"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dataset"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/worker"
	"github.com/402claw/clawr/x402"
)

// workers opens what does the tenants' work. Segments are shared by all.
type workers struct {
	node     *node
	segments *dataset.Cache
	cursor   []byte // keys the MAC of cursors
}

// newWorkers gives the workers of n, with a key for cursors that all nodes
// share and restarts keep: an answer that was paid for contains cursors.
func newWorkers(ctx context.Context, n *node) (*workers, error) {
	keys, err := n.db.Secrets(ctx, "cursor")
	if err != nil {
		return nil, err
	}
	files := n.files()
	segments := &dataset.Cache{Dir: files.dir}
	if files.shared != nil {
		segments.Fetch = files.fetch
	}
	return &workers{node: n, segments: segments, cursor: keys[len(keys)-1].Value}, nil
}

// Open gives the worker of one version of a tenant.
func (w *workers) Open(_ context.Context, t *clawr.Tenant) (dispatch.Worker, error) {
	if t.Kind != clawr.KindDataset {
		return nil, &clawr.Error{Code: clawr.CodeWorkerFailure, Message: "this kind of API cannot be served yet", Fix: "deploy a dataset"}
	}
	id, slug := t.ID, t.Slug
	return &worker.Dataset{
		Segments: w.segments, Content: t.Content, CPU: time.Duration(t.Effective().CPUMs) * time.Millisecond, CursorKey: w.cursor,
		Facts: dataset.Facts{Price: t.Price, Paid: t.Paid(), Network: w.node.set.asset.Network, Asset: w.node.set.asset, PayTo: t.PayTo,
			Scheme: x402.SchemeExact, Updated: t.Created, BasePath: "/t/" + slug},
		Versions: func(version string) (string, error) { return w.version(id, slug, version) },
	}, nil
}

// version finds the segment of another version of a tenant by the short name
// that cursors and version= carry.
func (w *workers) version(tenant, slug, short string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	all, err := w.node.db.Versions(ctx, slug)
	if err != nil {
		return "", err
	}
	for _, v := range all {
		if v.ID == tenant && len(short) >= 8 && strings.HasPrefix(v.Content, short) {
			return v.Content, nil
		}
	}
	return "", &clawr.Error{Code: clawr.CodeVersionGone, Param: "version", Message: "there is no such version of this dataset any more", Fix: "leave version out to ask the current one"}
}

// Package worker does the work of tenants: for a dataset it answers from the
// open segment of one version.
package worker

import (
	"context"
	"encoding/json"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr/dataset"
)

// Dataset is the worker of one version of a dataset tenant. It holds no file
// open itself: segments are taken from a cache for the time of a request.
type Dataset struct {
	Segments  *dataset.Cache
	Content   string // the segment's id
	Facts     dataset.Facts
	CPU       time.Duration // of one query; 0 = no limit
	CursorKey []byte        // of the MAC of cursors: the same on every node, for good
	// Versions, if set, gives the segment's id of another version that this
	// tenant still keeps, by the short form that cursors and version= have.
	Versions func(version string) (id string, err error)

	last atomic.Pointer[dataset.Handler]
}

// handler takes the segment and the handler that goes with it.
func (d *Dataset) handler() (*dataset.Handler, error) {
	s, err := d.Segments.Acquire(d.Content)
	if err != nil {
		return nil, err
	}
	if h := d.last.Load(); h != nil && h.Segment == s {
		return h, nil
	}
	h := &dataset.Handler{Segment: s, Facts: d.Facts, CPU: d.CPU, CursorKey: d.CursorKey}
	if d.Versions != nil {
		h.Versions = d.other
	}
	d.last.Store(h)
	return h, nil
}

func (d *Dataset) other(version string) (*dataset.Segment, func(), error) {
	id, err := d.Versions(version)
	if err != nil {
		return nil, nil, err
	}
	s, err := d.Segments.Acquire(id)
	if err != nil {
		return nil, nil, err
	}
	return s, func() { d.Segments.Release(s) }, nil
}

// Plan gives the canonical query and what it costs; see dataset.Handler.
func (d *Dataset) Plan(r *http.Request) (canonical string, units int64, err error) {
	h, err := d.handler()
	if err != nil {
		return "", 0, err
	}
	defer d.Segments.Release(h.Segment)
	return h.Plan(r)
}

// Check says whether the record that is asked for exists.
func (d *Dataset) Check(ctx context.Context, r *http.Request) error {
	h, err := d.handler()
	if err != nil {
		return err
	}
	defer d.Segments.Release(h.Segment)
	return h.Check(ctx, r)
}

// Serve answers, or returns an error and has written nothing.
func (d *Dataset) Serve(w http.ResponseWriter, r *http.Request) error {
	h, err := d.handler()
	if err != nil {
		return err
	}
	defer d.Segments.Release(h.Segment)
	return h.Serve(w, r)
}

// Answer gives the body that Serve wrote for a canonical query.
func (d *Dataset) Answer(ctx context.Context, canonical string) ([]byte, error) {
	h, err := d.handler()
	if err != nil {
		return nil, err
	}
	defer d.Segments.Release(h.Segment)
	return h.Answer(ctx, canonical)
}

// ETag is the strong validator of the answer to a canonical query; "" if the
// segment cannot be opened.
func (d *Dataset) ETag(canonical string) string {
	h, err := d.handler()
	if err != nil {
		return ""
	}
	defer d.Segments.Release(h.Segment)
	return h.ETag(canonical)
}

// Discovery says how records are asked for; see dataset.Handler.
func (d *Dataset) Discovery() (path string, bazaar json.RawMessage, err error) {
	h, err := d.handler()
	if err != nil {
		return "", nil, err
	}
	defer d.Segments.Release(h.Segment)
	return h.Discovery()
}

// ServeHTTP is Serve with errors written as JSON.
func (d *Dataset) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h, err := d.handler()
	if err != nil {
		dataset.WriteError(w, err)
		return
	}
	defer d.Segments.Release(h.Segment)
	h.ServeHTTP(w, r)
}

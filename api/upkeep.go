package api

import (
	"context"
	"net/http"
	"path/filepath"

	"github.com/402claw/clawr"
)

// Finding is one thing that a check of the database looked at.
type Finding struct {
	Name   string `json:"name"`
	What   string `json:"what"`
	State  string `json:"state"` // ok, warning, failed
	Detail string `json:"detail,omitempty"`
}

// Backup is a copy of the database, on the machine of the control plane.
type Backup struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes"`
}

// Upkeep looks after the database.
type Upkeep interface {
	// Backup writes a consistent copy to a new file.
	Backup(ctx context.Context, file string) (bytes int64, err error)
	Check(context.Context) ([]Finding, error)
}

type checked struct {
	Findings []Finding `json:"findings"`
}

func (h *Handler) backup(r *request) (any, error) {
	var in Backup
	if err := r.decode(&in, false); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(in.File) {
		return nil, refuse(clawr.CodeBadRequest, "file", "file is not an absolute path", "name a new file on the server's machine")
	}
	n, err := h.Upkeep.Backup(r.Context(), in.File)
	return Backup{in.File, n}, err
}

func (h *Handler) check(r *request) (any, error) {
	list, err := h.Upkeep.Check(r.Context())
	return checked{list}, err
}

// Backup has the control plane copy its database to a new file of its machine.
func (c *Client) Backup(ctx context.Context, file string) (out Backup, err error) {
	err = c.send(ctx, http.MethodPost, "/v1/backups", Backup{File: file}, &out)
	return out, err
}

// Check has the control plane check its database.
func (c *Client) Check(ctx context.Context) ([]Finding, error) {
	var out checked
	err := c.do(ctx, http.MethodPost, "/v1/check", nil, nil, 0, &out)
	return out.Findings, err
}

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/usage"
)

// Client speaks to a Handler. Its errors are the Handler's, code and fix and
// all; one that cannot be reached is clawr.CodeUnreachable.
type Client struct {
	HTTP *http.Client // its transport may carry a token, or lead to a socket
	Base string       // such as http://127.0.0.1:4021, without a slash at the end
}

// maxAnswer bounds what a client reads.
const maxAnswer = 256 << 20

// do sends a request and reads the answer into out, if that is not nil.
func (c *Client) do(ctx context.Context, method, path string, query url.Values, body io.Reader, size int64, out any) error {
	u := c.Base + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "server", Message: fmt.Sprintf("%q is not a URL", printable(c.Base)), Fix: "--server http://HOST:PORT", Err: err}
	}
	if size > 0 {
		req.ContentLength = size
	}
	unreachable := func(err error) error {
		return &clawr.Error{Code: clawr.CodeUnreachable, Message: "the control plane at " + c.Base + " cannot be reached", Fix: "check --server, and that clawr serve runs there with --admin-listen", Err: err}
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return unreachable(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return unreachable(err)
	}
	if res.StatusCode/100 != 2 {
		var p Problem
		if json.Unmarshal(b, &p) != nil || p.Error == "" {
			return unreachable(fmt.Errorf("it answered %s, and not as clawr does", res.Status))
		}
		e := &clawr.Error{Code: p.Error, Status: res.StatusCode, Message: printable(p.Message), Fix: printable(p.Fix), Param: printable(p.Param)}
		if n, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && n > 0 && n < 1<<31 {
			e.RetryAfter = time.Duration(n) * time.Second
		}
		if p.Error == clawr.CodeInternal {
			e.Message += " (request " + printable(p.RequestID) + ")"
		}
		return e
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return unreachable(fmt.Errorf("its answer is not clawr's: %w", err))
	}
	return nil
}

func (c *Client) get(ctx context.Context, path string, query url.Values, out any) error {
	return c.do(ctx, http.MethodGet, path, query, nil, 0, out)
}

func (c *Client) send(ctx context.Context, method, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return c.do(ctx, method, path, nil, bytes.NewReader(b), int64(len(b)), out)
}

// at is a path with one escaped name in it.
func at(prefix, name, suffix string) string { return prefix + url.PathEscape(name) + suffix }

// Tenants lists tenants by slug; removed ones too if all.
func (c *Client) Tenants(ctx context.Context, all bool) ([]Tenant, error) {
	q := url.Values{}
	if all {
		q.Set("all", "true")
	}
	var out tenantList
	err := c.get(ctx, "/v1/tenants", q, &out)
	return out.Tenants, err
}

// Tenant is the tenant of a slug.
func (c *Client) Tenant(ctx context.Context, slug string) (out Tenant, err error) {
	err = c.get(ctx, at("/v1/tenants/", slug, ""), nil, &out)
	return out, err
}

// Versions are all of a tenant's, newest first.
func (c *Client) Versions(ctx context.Context, slug string) ([]clawr.Tenant, error) {
	var out versionList
	err := c.get(ctx, at("/v1/tenants/", slug, "/versions"), nil, &out)
	return out.Versions, err
}

// Deploy puts a manifest on sale.
func (c *Client) Deploy(ctx context.Context, slug string, d Deploy) (out Tenant, err error) {
	err = c.send(ctx, http.MethodPost, at("/v1/tenants/", slug, "/deploys"), d, &out)
	return out, err
}

// Pause stops sales; payments keep their answers.
func (c *Client) Pause(ctx context.Context, slug string) (out Tenant, err error) {
	err = c.send(ctx, http.MethodPost, at("/v1/tenants/", slug, "/pause"), struct{}{}, &out)
	return out, err
}

// Resume sells again.
func (c *Client) Resume(ctx context.Context, slug string) (out Tenant, err error) {
	err = c.send(ctx, http.MethodPost, at("/v1/tenants/", slug, "/resume"), struct{}{}, &out)
	return out, err
}

// Remove takes a tenant off its hosts and off sale.
func (c *Client) Remove(ctx context.Context, slug string) (out Tenant, err error) {
	err = c.do(ctx, http.MethodDelete, at("/v1/tenants/", slug, ""), nil, nil, 0, &out)
	return out, err
}

// Rollback puts version to on sale again, the one before if to is 0.
func (c *Client) Rollback(ctx context.Context, slug string, to int64) (out Tenant, err error) {
	err = c.send(ctx, http.MethodPost, at("/v1/tenants/", slug, "/rollback"), Rollback{to}, &out)
	return out, err
}

// Owners lists owners by id.
func (c *Client) Owners(ctx context.Context) ([]Owner, error) {
	var out ownerList
	err := c.get(ctx, "/v1/owners", nil, &out)
	return out.Owners, err
}

// Owner is the owner with an id.
func (c *Client) Owner(ctx context.Context, id string) (out Owner, err error) {
	err = c.get(ctx, at("/v1/owners/", id, ""), nil, &out)
	return out, err
}

// SetOwner adds an owner or changes one.
func (c *Client) SetOwner(ctx context.Context, id string, s SetOwner) (out Owner, err error) {
	err = c.send(ctx, http.MethodPut, at("/v1/owners/", id, ""), s, &out)
	return out, err
}

// Tokens lists tokens, oldest first.
func (c *Client) Tokens(ctx context.Context) ([]Token, error) {
	var out tokenList
	err := c.get(ctx, "/v1/tokens", nil, &out)
	return out.Tokens, err
}

// CreateToken makes a token; the answer has its secret.
func (c *Client) CreateToken(ctx context.Context, in NewTokenRequest) (out NewTokenAnswer, err error) {
	err = c.send(ctx, http.MethodPost, "/v1/tokens", in, &out)
	return out, err
}

// RevokeToken ends a token at once.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	return c.do(ctx, http.MethodDelete, at("/v1/tokens/", id, ""), nil, nil, 0, nil)
}

// Events are the last to arrive, newest last.
func (c *Client) Events(ctx context.Context, limit int) ([]usage.Event, error) {
	var out eventList
	err := c.get(ctx, "/v1/events", url.Values{"limit": {strconv.Itoa(limit)}}, &out)
	return out.Events, err
}

// ImportEvents sends somebody else's events, at most 32 MB at a time.
func (c *Client) ImportEvents(ctx context.Context, r io.Reader) (out Imported, err error) {
	err = c.do(ctx, http.MethodPost, "/v1/events", nil, r, 0, &out)
	return out, err
}

// Analytics is the snapshot of one window; a zero now is the server's.
func (c *Client) Analytics(ctx context.Context, w usage.Window, top int, now time.Time) (out usage.Snapshot, err error) {
	q := reportValues(top, now)
	q.Set("window", string(w))
	err = c.get(ctx, "/v1/analytics", q, &out)
	return out, err
}

// AllAnalytics is the snapshots of all windows.
func (c *Client) AllAnalytics(ctx context.Context, top int, now time.Time) (out Reports, err error) {
	err = c.get(ctx, "/v1/analytics", reportValues(top, now), &out)
	return out, err
}

func reportValues(top int, now time.Time) url.Values {
	q := url.Values{"top": {strconv.Itoa(top)}}
	if !now.IsZero() {
		q.Set("now", now.UTC().Format(time.RFC3339Nano))
	}
	return q
}

// PaymentQuery selects payments; zero fields select all.
type PaymentQuery struct {
	Tenant string // slug
	Payer  string
	Money  string
	// Before and BeforeID are the creation and the id of the last payment of the
	// page before.
	Before   time.Time
	BeforeID string
	Refund   string // only those with a refund in this state
	Limit    int
}

// Payments lists payments, newest first.
func (c *Client) Payments(ctx context.Context, p PaymentQuery) ([]Payment, error) {
	q := url.Values{}
	for name, v := range map[string]string{"tenant": p.Tenant, "payer": p.Payer, "money": p.Money, "refund": p.Refund} {
		if v != "" {
			q.Set(name, v)
		}
	}
	if !p.Before.IsZero() {
		q.Set("before", p.Before.UTC().Format(time.RFC3339Nano))
	}
	if p.BeforeID != "" {
		q.Set("beforeId", p.BeforeID)
	}
	if p.Limit != 0 {
		q.Set("limit", strconv.Itoa(p.Limit))
	}
	var out paymentList
	err := c.get(ctx, "/v1/payments", q, &out)
	return out.Payments, err
}

// Payment is one payment, with what is known of its answer.
func (c *Client) Payment(ctx context.Context, id string) (out Payment, err error) {
	err = c.get(ctx, at("/v1/payments/", id, ""), nil, &out)
	return out, err
}

// Directory is the tenants for a dispatcher elsewhere, in the given form.
func (c *Client) Directory(ctx context.Context, form string) (out Directory, err error) {
	err = c.get(ctx, "/v1/directory", url.Values{"form": {form}}, &out)
	return out, err
}

// PutSegment uploads a dataset's file of size bytes.
func (c *Client) PutSegment(ctx context.Context, sha256 string, r io.Reader, size int64) error {
	return c.do(ctx, http.MethodPut, at("/v1/segments/", strings.ToLower(sha256), ""), nil, r, size, nil)
}

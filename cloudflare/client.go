// Package cloudflare publishes to Workers for Platforms: it plans what would
// change in an account, does it so that an interrupted run can be run again,
// and lists and rolls back what is there. It speaks the few endpoints of the
// API that this takes, and builds the Workers from their embedded sources.
package cloudflare

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/402claw/clawr"
)

// DefaultBase is the real API.
const DefaultBase = "https://api.cloudflare.com/client/v4"

// How requests are repeated: as wrangler does, which the API is used to.
const (
	attempts      = 3
	maxRetryAfter = 60 * time.Second
	maxAnswer     = 32 << 20 // bytes of an answer
)

// Client speaks to the API for one account. The token is sent to Base alone,
// and stands in no error, no log and no file.
type Client struct {
	Account string
	Token   string
	Base    string       // "": DefaultBase
	HTTP    *http.Client // nil: one that follows no redirect
	// Rate bounds the calls a second, because all calls of a token are refused
	// for five minutes once it has made 1,200 in five. 0: below 4 to the real API,
	// no bound elsewhere.
	Rate float64
	// Sleep waits; nil sleeps. Tests have better things to do.
	Sleep func(context.Context, time.Duration) error
	// Note, if set, hears of calls that are repeated.
	Note func(string)

	mu    sync.Mutex
	spent time.Time // when the token bucket is full again
}

// burst is how many calls may be made at once before Rate bounds them.
const burst = 20

// call is one request to the API.
type call struct {
	method, path string
	query        url.Values
	kind         string // content type
	body         []byte
	once         bool // not to be repeated when it may have been done
	raw          bool // the answer is a value, not an envelope
}

// envelope is what the API answers.
type envelope struct {
	Success    bool            `json:"success"`
	Errors     []Problem       `json:"errors"`
	Result     json.RawMessage `json:"result"`
	ResultInfo struct {
		Page       int    `json:"page"`
		TotalPages int    `json:"total_pages"`
		Cursor     string `json:"cursor"`
	} `json:"result_info"`
}

// Problem is an error of the API.
type Problem struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

// account is a path below the account.
func (c *Client) account(format string, args ...any) string {
	for i, a := range args {
		if s, ok := a.(string); ok {
			args[i] = url.PathEscape(s)
		}
	}
	return "/accounts/" + url.PathEscape(c.Account) + fmt.Sprintf(format, args...)
}

// get reads an object. It is false if there is none.
func (c *Client) get(ctx context.Context, path string, query url.Values, out any) (bool, error) {
	_, err := c.do(ctx, call{method: http.MethodGet, path: path, query: query}, out)
	if f, ok := errors.AsType[*failure](err); ok && f.missing() {
		return false, nil
	}
	return err == nil, err
}

// send sends in as JSON.
func (c *Client) send(ctx context.Context, method, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, call{method: method, path: path, kind: "application/json", body: b}, out)
	return err
}

// do makes a call, again if it fails in a way that may pass, and reads its
// result into out, if that is not nil.
func (c *Client) do(ctx context.Context, k call, out any) (*envelope, error) {
	var err error
	for try := 1; ; try++ {
		var env *envelope
		var wait time.Duration
		env, wait, err = c.try(ctx, k, out)
		if err == nil {
			return env, nil
		}
		f, ok := errors.AsType[*failure](err)
		if !ok || !f.passing() || k.once && f.Status != http.StatusTooManyRequests || try == attempts || ctx.Err() != nil {
			return nil, err
		}
		if c.Note != nil {
			c.Note(fmt.Sprintf("Cloudflare: %s; trying again in %s", f.short(), wait.Round(100*time.Millisecond)))
		}
		if serr := c.sleep(ctx, wait); serr != nil {
			return nil, serr
		}
	}
}

// try makes a call once. When it fails, wait says how long to leave the API
// alone before the next try.
func (c *Client) try(ctx context.Context, k call, out any) (*envelope, time.Duration, error) {
	if err := c.pace(ctx); err != nil {
		return nil, 0, err
	}
	u := c.base() + k.path
	if len(k.query) > 0 {
		u += "?" + k.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, k.method, u, bytes.NewReader(k.body))
	if err != nil {
		return nil, 0, &clawr.Error{Code: clawr.CodeUsage, Message: "CLOUDFLARE_API_BASE_URL is not a URL", Fix: "unset it, or set it to " + DefaultBase}
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	if k.kind != "" {
		req.Header.Set("Content-Type", k.kind)
	}
	jitter := 250*time.Millisecond + rand.N(250*time.Millisecond)
	res, err := c.http().Do(req)
	if err != nil {
		return nil, jitter, c.lost(ctx, k, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, jitter, c.lost(ctx, k, err)
	}
	ok := res.StatusCode/100 == 2
	if ok && k.raw {
		if p, is := out.(*[]byte); is {
			*p = b
		}
		return &envelope{Success: true}, 0, nil
	}
	env := new(envelope)
	jerr := json.Unmarshal(b, env) // what stands before the API answers in HTML
	if !ok || jerr != nil || !env.Success {
		f := &failure{Method: k.method, Path: k.path, Status: res.StatusCode, Problems: env.Errors, Ray: res.Header.Get("Cf-Ray")}
		if ok && jerr != nil {
			f.Status = http.StatusBadGateway
		}
		return nil, retryAfter(res, jitter), f
	}
	if out != nil {
		if err := json.Unmarshal(env.Result, out); err != nil {
			return nil, 0, fmt.Errorf("the answer to %s %s is not understood: %w", k.method, k.path, err)
		}
	}
	return env, 0, nil
}

// retryAfter is how long to wait after res: as it says, up to a minute and a
// little more than it says, or at least a second if there were too many calls.
func retryAfter(res *http.Response, jitter time.Duration) time.Duration {
	if n, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && n >= 0 {
		return min(time.Duration(n)*time.Second, maxRetryAfter) + jitter
	}
	if res.StatusCode == http.StatusTooManyRequests {
		return time.Second + jitter
	}
	return jitter
}

// lost is the failure of a call that got no answer. The cause is named
// without its URL, which may be signed.
func (c *Client) lost(ctx context.Context, k call, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return &failure{Method: k.method, Path: k.path, Cause: err, base: c.base()}
}

func (c *Client) base() string {
	if c.Base == "" {
		return DefaultBase
	}
	return strings.TrimRight(c.Base, "/")
}

// direct follows no redirect, because it would carry the token elsewhere. How
// long a body may take depends on its size, so only the answer is timed.
var direct = &http.Client{
	Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: 3 * time.Minute,
		IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (c *Client) http() *http.Client {
	if c.HTTP != nil {
		return c.HTTP
	}
	return direct
}

// pace waits until another call may be made.
func (c *Client) pace(ctx context.Context) error {
	rate := c.Rate
	if rate == 0 && c.base() == DefaultBase {
		rate = 3.9 // 20 at once and 3.9 a second are 1,190 in five minutes
	}
	if rate <= 0 {
		return ctx.Err()
	}
	each := time.Duration(float64(time.Second) / rate)
	c.mu.Lock()
	now := time.Now()
	if c.spent.Before(now) {
		c.spent = now
	}
	c.spent = c.spent.Add(each)
	wait := c.spent.Sub(now) - burst*each
	c.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	return c.sleep(ctx, wait)
}

func (c *Client) sleep(ctx context.Context, d time.Duration) error {
	if c.Sleep != nil {
		return c.Sleep(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// list reads all pages of a list.
func list[T any](ctx context.Context, c *Client, path string, query url.Values) ([]T, error) {
	var all []T
	for page := 1; ; page++ {
		q := url.Values{"per_page": {"100"}, "page": {strconv.Itoa(page)}}
		for k, v := range query {
			q[k] = v
		}
		var some []T
		env, err := c.do(ctx, call{method: http.MethodGet, path: path, query: q}, &some)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
		if page >= env.ResultInfo.TotalPages || len(some) == 0 {
			return all, nil
		}
	}
}

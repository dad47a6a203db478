package facilitator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// How long a Client waits for one answer, unless it is told.
const (
	DefaultVerifyTimeout = 5 * time.Second
	DefaultSettleTimeout = 25 * time.Second
	downFor              = 5 * time.Second // how long a facilitator that failed is asked last
)

// Remote is somebody else's facilitator. It comes from the configuration, and
// never from a client.
type Remote struct {
	URL   string // without /verify and /settle
	Token string // sent to this URL alone, as a bearer token; empty: none
}

// RemoteBook is the part of the book that a Client writes. Each method is one
// transaction.
type RemoteBook interface {
	// Submit moves a held payment to signed, before anything is sent. From
	// then on the facilitator holds the signature, and nothing but the chain
	// can say that the payment was not charged.
	Submit(ctx context.Context, paymentID string, epoch int64, facilitatorURL string) error
	Paid(ctx context.Context, key ledger.Key, e ledger.Evidence) error
	Dead(ctx context.Context, key ledger.Key, proof string) error
}

// Client settles payments by the facilitators of others, in the order in which
// they are given. What they say is a hint: paid is what our own chain shows,
// and so is not charged.
type Client struct {
	Network string
	Remotes []Remote // at least one; see Check
	Chain   Witness
	Book    RemoteBook

	HTTP          *http.Client // nil: one that follows no redirect and uses no proxy
	VerifyTimeout time.Duration
	SettleTimeout time.Duration
	Now           func() time.Time
	Log           *slog.Logger
	// Failpoint, if set, is called at "submit.before", "submit.after",
	// "post.before" and "post.after".
	Failpoint func(name string)

	clock  clock
	keys   keyLocks
	warned keySet
	once   sync.Once
	http   *http.Client
	mu     sync.Mutex
	down   map[string]time.Time      // by URL: when it failed last
	posts  map[ledger.Key]repetition // of payments whose end is not known
}

// repetition paces how often a payment is sent to its facilitator again.
type repetition struct {
	last time.Time
	wait time.Duration
}

// Check refuses remotes that cannot be used: what is no URL, carries secrets
// in it, or would send a token in the clear to another machine.
func (c *Client) Check() error {
	bad := func(u, why string) error {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "facilitator-url", Message: fmt.Sprintf("%q %s", u, why), Fix: "give one such as https://facilitator.example.com"}
	}
	if len(c.Remotes) == 0 {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "facilitator-url", Message: "there is no facilitator", Fix: "give --facilitator-url URL"}
	}
	for _, r := range c.Remotes {
		u, err := url.Parse(r.URL)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
			return bad(redacted(r.URL), "is not an http or https URL")
		case u.User != nil || u.RawQuery != "" || u.Fragment != "":
			return bad(redacted(r.URL), "has a user, a query or a fragment")
		case r.Token != "" && u.Scheme == "http" && !loopback(u.Hostname()):
			return bad(r.URL, "would get its token unencrypted")
		}
	}
	return nil
}

func redacted(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "the URL"
	}
	return u.Scheme + "://" + u.Host + u.Path
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// HeadTime is the time of the newest known block; zero until Run, or the
// first payment, has asked.
func (c *Client) HeadTime() time.Time { return c.clock.time() }

// Verify asks the facilitators in order. One that does not answer, or does not
// answer with a verdict, is passed over; if all are, that is an error and not
// a verdict.
func (c *Client) Verify(ctx context.Context, p *x402.PaymentPayload, r x402.Requirements) (x402.VerifyResponse, error) {
	who := payer(p)
	body, err := requestBody(p, r)
	if err != nil {
		return x402.VerifyResponse{}, err
	}
	timeout := c.VerifyTimeout
	if timeout <= 0 {
		timeout = DefaultVerifyTimeout
	}
	var failed []error
	for _, remote := range c.order() {
		status, answer, err := c.post(ctx, remote, "/verify", body, timeout)
		if err == nil {
			if v, ok := readVerify(status, answer, who); ok {
				c.works(remote.URL)
				return v, nil
			}
			err = fmt.Errorf("%s: no verdict, but HTTP %d", remote.URL, status)
		}
		if ctx.Err() != nil {
			return x402.VerifyResponse{}, down("the facilitator did not answer in time", err)
		}
		c.fails(remote.URL)
		failed = append(failed, err)
	}
	return x402.VerifyResponse{}, down("no facilitator gives a verdict", errors.Join(failed...))
}

// requestBody is the message for a facilitator. The quote is a bearer
// credential of the answer: a payload that still has it goes nowhere.
func requestBody(p *x402.PaymentPayload, r x402.Requirements) ([]byte, error) {
	if p.Accepted.Extra.Quote != "" || r.Extra.Quote != "" {
		return nil, &clawr.Error{Code: clawr.CodeInternal, Message: "a payment was to be sent to a facilitator with its quote"}
	}
	q := x402.VerifyRequest{Payload: *p, Requirements: r}
	return q.JSON(), nil
}

// order is the remotes as they are to be asked: those that failed lately last.
func (c *Client) order() []Remote {
	now := c.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	list := slices.Clone(c.Remotes)
	slices.SortStableFunc(list, func(a, b Remote) int {
		downA, downB := now.Sub(c.down[a.URL]) < downFor, now.Sub(c.down[b.URL]) < downFor
		switch {
		case downA && !downB:
			return 1
		case downB && !downA:
			return -1
		}
		return 0
	})
	return list
}

func (c *Client) fails(url string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down == nil {
		c.down = make(map[string]time.Time)
	}
	c.down[url] = c.now()
}

func (c *Client) works(url string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.down, url)
}

// post sends body and reads a bounded answer.
func (c *Client) post(ctx context.Context, r Remote, path string, body []byte, timeout time.Duration) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(r.URL, "/")+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	if r.Token != "" {
		req.Header.Set("Authorization", "Bearer "+r.Token)
	}
	resp, err := c.client().Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, x402.MaxBody+1))
	if err == nil && len(answer) > x402.MaxBody {
		err = fmt.Errorf("%s%s: the answer is too long", r.URL, path)
	}
	return resp.StatusCode, answer, err
}

func (c *Client) client() *http.Client {
	c.once.Do(func() {
		if c.http = c.HTTP; c.http == nil {
			c.http = &http.Client{Transport: &http.Transport{
				DialContext:         (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
				MaxIdleConnsPerHost: 64, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 5 * time.Second, ForceAttemptHTTP2: true,
				MaxResponseHeaderBytes: 64 << 10,
			}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		}
	})
	return c.http
}

func (c *Client) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Client) log() *slog.Logger {
	if c.Log != nil {
		return c.Log
	}
	return slog.Default()
}

func (c *Client) reached(point string) {
	if c.Failpoint != nil {
		c.Failpoint(point)
	}
}

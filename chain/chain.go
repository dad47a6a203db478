// Package chain is an Ethereum node seen over JSON-RPC, as far as payments by
// EIP-3009 need it: what a token is, whether an authorization would go
// through, transactions that are signed before anyone is told of them, and
// evidence of what was paid.
//
// The node is not trusted with memory: every answer is bounded in size and
// time, and nothing in it can make this package panic.
package chain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/402claw/clawr"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

const (
	callTimeout = 10 * time.Second // of one round trip
	maxAnswer   = 16 << 20         // bytes of one answer
)

// Client speaks to one node. Its methods may be called from many goroutines.
type Client struct {
	rpc *rpc.Client
	url string // without what may be secret
	id  int64

	// Now is the local clock, for the age of cached answers. nil means time.Now.
	Now func() time.Time

	mu     sync.Mutex
	fees   Fees
	feesAt time.Time
	assets map[string]assetEntry
	noSync bool // the node does not know eth_sendRawTransactionSync
}

// Dial connects to the node at an http or https URL and asks for its chain id.
// Errors have code unreachable, or usage if rawURL is not such a URL.
func Dial(ctx context.Context, rawURL string) (*Client, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Message: "the RPC URL is not an http or https URL", Param: "rpc-url",
			Fix: "give one such as https://sepolia.base.org or http://127.0.0.1:8545"}
	}
	c, err := rpc.DialOptions(ctx, rawURL, rpc.WithHTTPClient(&http.Client{Transport: newTransport()}))
	if err != nil {
		return nil, &clawr.Error{Code: clawr.CodeUnreachable, Message: "cannot use the RPC URL " + redact(rawURL), Param: "rpc-url", Err: err,
			Fix: "give one such as https://sepolia.base.org or http://127.0.0.1:8545"}
	}
	return New(ctx, c, rawURL)
}

// New is a client over an open connection to a node; url stands in its errors.
// It asks for the chain id, and closes the connection if that fails.
func New(ctx context.Context, conn *rpc.Client, url string) (*Client, error) {
	c := &Client{rpc: conn, url: redact(url), assets: make(map[string]assetEntry)}
	var id hexutil.Uint64
	if err := c.Ask(ctx, &id, "eth_chainId"); err != nil {
		conn.Close()
		return nil, err
	}
	if id == 0 || id > 1<<53 {
		conn.Close()
		return nil, &clawr.Error{Code: clawr.CodeUnreachable, Message: fmt.Sprintf("%s says its chain id is %d", c.url, uint64(id)), Param: "rpc-url",
			Fix: "give the URL of an Ethereum node's JSON-RPC"}
	}
	c.id = int64(id)
	return c, nil
}

// Close ends the connection.
func (c *Client) Close() { c.rpc.Close() }

// URL is the node's address without user, path and query, in which keys hide.
func (c *Client) URL() string { return c.url }

// ChainID is what the node answered when the client was made.
func (c *Client) ChainID() int64 { return c.id }

// Network is the chain's CAIP-2 name, such as eip155:8453.
func (c *Client) Network() string { return fmt.Sprintf("eip155:%d", c.id) }

// Expect is an error with code wrong_chain unless the node is on network.
func (c *Client) Expect(network string) error {
	if network == c.Network() {
		return nil
	}
	return &clawr.Error{Code: clawr.CodeWrongChain, Message: fmt.Sprintf("the node at %s is on %s, not on %s", c.url, c.Network(), network), Param: "network",
		Fix: fmt.Sprintf("use --network %s, or the --rpc-url of a node on %s", c.Network(), network)}
}

// newTransport bounds what a node may send, and keeps connections: a paid call
// should not wait for a handshake.
func newTransport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 64
	t.DialContext = (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	t.ResponseHeaderTimeout = 90 * time.Second // eth_sendRawTransactionSync takes its time; Ask has the shorter bound
	return bounded{t}
}

// bounded cuts answers off at maxAnswer.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &boundedBody{resp.Body, maxAnswer}
	return resp, nil
}

type boundedBody struct {
	io.ReadCloser
	left int
}

var errTooLong = errors.New("the answer is too long")

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// Ask makes one round trip, for any method. What the node answers as an error
// is an rpc.Error in the tree of the result; not being answered has code
// unreachable.
func (c *Client) Ask(ctx context.Context, result any, method string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.explain(ctx, method, c.rpc.CallContext(ctx, result, method, args...))
}

// batch makes one round trip for many calls. Their own errors are in the elements.
func (c *Client) batch(ctx context.Context, calls []rpc.BatchElem) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := c.explain(ctx, "batch", c.rpc.BatchCallContext(ctx, calls)); err != nil {
		return err
	}
	for i := range calls {
		calls[i].Error = c.explain(ctx, calls[i].Method, calls[i].Error)
	}
	return nil
}

// explain separates what the node answered (an rpc.Error stays in the tree of
// the result) from not being answered, which has code unreachable.
func (c *Client) explain(ctx context.Context, method string, err error) error {
	var answered rpc.Error
	var status rpc.HTTPError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &answered):
		return fmt.Errorf("%s: %w", method, err)
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%s: %w", method, context.Canceled)
	case errors.As(err, &status):
		fix := "see whether the URL is right and the provider is up"
		switch status.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			fix = "see whether the URL has a valid key"
		case http.StatusTooManyRequests:
			fix = "use a provider that allows more requests, or wait"
		}
		return &clawr.Error{Code: clawr.CodeUnreachable, Message: fmt.Sprintf("the node at %s answers HTTP %d", c.url, status.StatusCode), Param: "rpc-url",
			Fix: fix, Err: fmt.Errorf("%s: %w", method, httpStatus(status.StatusCode))}
	case errors.Is(err, context.DeadlineExceeded):
		return &clawr.Error{Code: clawr.CodeUnreachable, Message: "the node at " + c.url + " does not answer in time", Param: "rpc-url",
			Fix: "see whether the node is up, or use another --rpc-url", Err: fmt.Errorf("%s: %w", method, err)}
	case notNetwork(err):
		return &clawr.Error{Code: clawr.CodeUnreachable, Message: "what answers at " + c.url + " is not an Ethereum node", Param: "rpc-url",
			Fix: "give the URL of an Ethereum node's JSON-RPC", Err: fmt.Errorf("%s: %w", method, err)}
	}
	return &clawr.Error{Code: clawr.CodeUnreachable, Message: "cannot reach the node at " + c.url, Param: "rpc-url",
		Fix: "start the node, or use another --rpc-url", Err: fmt.Errorf("%s: %w", method, hideURL(err))}
}

// httpStatus is an answer without JSON-RPC in it. The body is left out: it may
// be long, and repeat the URL.
type httpStatus int

func (s httpStatus) Error() string { return fmt.Sprintf("HTTP %d", int(s)) }

// notNetwork reports whether something answered, but not as it should.
func notNetwork(err error) bool {
	var transport *url.Error
	var op net.Error
	return !errors.As(err, &transport) && !errors.As(err, &op) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, rpc.ErrClientQuit)
}

// hideURL takes the URL, whose path may be a secret, out of a transport error.
func hideURL(err error) error {
	var transport *url.Error
	if errors.As(err, &transport) {
		return transport.Err
	}
	return err
}

// redact keeps of a URL what cannot be a key.
func redact(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "the given URL"
	}
	s := u.Scheme + "://" + u.Host
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		s += "/…"
	}
	return s
}

func (c *Client) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

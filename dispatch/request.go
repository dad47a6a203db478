package dispatch

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

type urlCopy = url.URL

// maxPaymentHeader bounds PAYMENT-SIGNATURE (money.md, "Server defaults").
const maxPaymentHeader = 16 << 10

// header is a payment as it came: one of the two headers, once.
type header struct {
	value string
	v1    bool // X-PAYMENT
}

// paymentHeader finds the payment of a request. Two of them, of whatever kind,
// are refused: hops could disagree on which one counts.
func paymentHeader(h http.Header) (header, error) {
	v2, v1 := h["Payment-Signature"], h["X-Payment"]
	if len(v2)+len(v1) == 0 {
		return header{}, nil
	}
	if len(v2)+len(v1) > 1 {
		return header{}, &clawr.Error{Code: clawr.CodeBadHeader, Message: "more than one payment header", Fix: "send PAYMENT-SIGNATURE once"}
	}
	p := header{v1: len(v1) == 1}
	if p.v1 {
		p.value = v1[0]
	} else {
		p.value = v2[0]
	}
	if len(p.value) > maxPaymentHeader {
		return header{}, &clawr.Error{Code: clawr.CodeHeadersTooLarge, Message: "the payment header is over 16 KB", Fix: "send only what the challenge asks for"}
	}
	if p.value == "" {
		return header{}, &clawr.Error{Code: clawr.CodeBadHeader, Message: "the payment header is empty", Fix: "leave it out to be told the price"}
	}
	return p, nil
}

// maxEndpoint bounds the path in an event: strangers choose its length.
const maxEndpoint = 512

// rewrite makes c.Request what the tenant sees: the request, which came for
// path, at c.path. Both are escaped, and so is the path in the event: no byte
// of it can be one that a database refuses.
func (c *call) rewrite(path string) error {
	c.ev.Endpoint = c.path[:min(len(c.path), maxEndpoint)]
	c.Request = *c.in
	if c.path == path {
		return nil
	}
	c.byPath = true
	p, err := url.PathUnescape(c.path)
	if err != nil {
		return &clawr.Error{Code: clawr.CodeNotFound, Message: "no such path", Fix: "see /v1/schema"}
	}
	c.url = *c.in.URL
	c.url.Path, c.url.RawPath = p, ""
	if strings.Contains(c.path, "%") {
		c.url.RawPath = c.path
	}
	c.Request.URL = &c.url
	return nil
}

func (d *Dispatcher) maxBody() int64 {
	if d.MaxBody > 0 {
		return d.MaxBody
	}
	return 1 << 20
}

// boundBody bounds the body that a free route's worker may read.
func (d *Dispatcher) boundBody(c *call) error {
	if c.ContentLength > d.maxBody() {
		return d.bodyTooLarge()
	}
	if c.Body != nil && c.Body != http.NoBody {
		c.Body = http.MaxBytesReader(&c.w, c.Body, d.maxBody())
	}
	return nil
}

// readBody reads the body of a paid call, so that it can be hashed and then
// handed to the worker. It is read once it is known who pays for it, or who has
// paid: a stranger cannot make us hold his.
func (d *Dispatcher) readBody(c *call) error {
	var b []byte
	if c.in.Body != nil && c.in.Body != http.NoBody {
		var err error
		if b, err = io.ReadAll(http.MaxBytesReader(&c.w, c.in.Body, d.maxBody())); err != nil {
			if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
				return d.bodyTooLarge()
			}
			return &clawr.Error{Code: clawr.CodeBadRequest, Message: "the body ended early", Fix: "send it again", Err: err}
		}
	}
	if len(b) == 0 {
		c.Body = http.NoBody
	} else {
		c.Body = io.NopCloser(bytes.NewReader(b))
	}
	c.ContentLength = int64(len(b))
	c.bodySHA = hashHex(b)
	return nil
}

func (d *Dispatcher) bodyTooLarge() error {
	return &clawr.Error{Code: clawr.CodeBodyTooLarge, Message: "the body is over " + strconv.FormatInt(d.maxBody(), 10) + " bytes; nothing was charged", Fix: "send less"}
}

// fingerprint names the one request that a payment buys: a hash over tenant,
// version, method, host, path (as it was sent), canonical query and body. Each
// part is length prefixed, so that no two requests run together.
func (c *call) fingerprint(e *entry, canonical string) string {
	var room [1024]byte
	b := room[:0]
	for _, s := range [...]string{e.ID, strconv.FormatInt(e.Version, 10), c.Method, hostname(c.in.Host), c.in.URL.EscapedPath(), canonical, c.bodySHA} {
		b = strconv.AppendInt(b, int64(len(s)), 10)
		b = append(b, ':')
		b = append(b, s...)
	}
	return hashHex(b)
}

func hashHex(b []byte) string {
	s := sha256.Sum256(b)
	var digits [2 * len(s)]byte
	hex.Encode(digits[:], s[:])
	return string(digits[:])
}

// clientAddr names the peer: its address without the port. Of IPv6 it is the
// /64, which is what one client is given: within it, it can have any address
// that it likes.
func clientAddr(remote string) string {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	if strings.IndexByte(host, ':') < 0 {
		return host
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return host
	}
	if a = a.Unmap().WithZone(""); a.Is4() {
		return a.String()
	}
	p, _ := a.Prefix(64)
	return p.String()
}

// callerCache remembers the hashes of callers, because a free call should not
// cost an HMAC. It is emptied when it is full.
type callerCache struct {
	mu sync.RWMutex
	m  map[callerKey]string
}

type callerKey struct{ kind, value string }

// The kinds of callers.
const (
	addrCaller  = "addr:"
	payerCaller = "payer:"
)

const maxCallers = 1 << 16

// hash names a caller without giving it away: HMAC-SHA256 under salt, 16 hex.
func (c *callerCache) hash(salt []byte, kind, value string) string {
	key := callerKey{kind, value}
	c.mu.RLock()
	h, ok := c.m[key]
	c.mu.RUnlock()
	if ok {
		return h
	}
	m := hmac.New(sha256.New, salt)
	io.WriteString(m, kind)
	io.WriteString(m, value)
	h = hex.EncodeToString(m.Sum(nil)[:8])
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil || len(c.m) >= maxCallers {
		c.m = make(map[callerKey]string)
	}
	c.m[key] = h
	return h
}

// Header values that never change. They are shared: nobody may append to them.
var (
	corsAny      = []string{"*"}
	corsExpose   = []string{"PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE, X-Request-Id, X-Tenant-Id, Retry-After"}
	corsAllow    = []string{"PAYMENT-SIGNATURE, X-PAYMENT, SIGN-IN-WITH-X, Access-Control-Expose-Headers, Content-Type, If-None-Match"}
	corsMethods  = []string{"GET, HEAD, POST, OPTIONS"}
	corsMaxAge   = []string{"86400"}
	cachePrivate = []string{"private"}
	cacheNone    = []string{"private, no-store"}
	noStore      = []string{"no-store"}
	varyPayment  = []string{"PAYMENT-SIGNATURE, X-PAYMENT"}
	noSniff      = []string{"nosniff"}
	jsonType     = []string{"application/json"}
)

// ours reports whether a header of an answer is not its worker's to set: it
// belongs to the connection, to the payment, or to the dispatcher.
func ours(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Te", "Trailer", "Transfer-Encoding", "Upgrade",
		"Content-Length", "Date", "Cache-Control", "Set-Cookie", "X-Request-Id", "X-Tenant-Id", "Retry-After",
		x402.HeaderRequired, x402.HeaderSignature, x402.HeaderResponse, x402.HeaderPaymentV1, x402.HeaderResponseV1,
		"Extension-Responses", "Settlement-Overrides", "X-Clawr-Replayed":
		return true
	}
	return strings.HasPrefix(name, "Access-Control-") || strings.HasPrefix(name, http.TrailerPrefix)
}

// preflight answers OPTIONS, for which nobody can pay. Everybody is answered:
// the answers of a removed tenant are fetched from pages too.
func preflight(c *call) error {
	h := c.w.Header()
	h["Access-Control-Allow-Headers"] = corsAllow
	h["Access-Control-Allow-Methods"] = corsMethods
	h["Access-Control-Max-Age"] = corsMaxAge
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// writer notes what is answered.
type writer struct {
	http.ResponseWriter
	status int
	bytes  int64
	broken bool // the answer had begun when it failed
}

func (w *writer) WriteHeader(status int) {
	if w.status == 0 && status >= 200 { // 1xx come before the answer
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (w *writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }

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
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/402claw/clawr"
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

// rewrite makes c.Request what the tenant sees: the same request at path,
// which is escaped.
func (c *call) rewrite(path string) error {
	c.Request = *c.in
	if path != c.in.URL.EscapedPath() {
		c.url = *c.in.URL
		p, err := url.PathUnescape(path)
		if err != nil {
			return &clawr.Error{Code: clawr.CodeNotFound, Message: "no such path", Fix: "see /v1/schema"}
		}
		c.url.Path, c.url.RawPath = p, ""
		if strings.Contains(path, "%") {
			c.url.RawPath = path
		}
		c.Request.URL = &c.url
	}
	c.ev.Endpoint = c.URL.Path
	return nil
}

// readBody reads the body of a paid call, so that it can be hashed and then
// handed to the worker. The body of an unpaid call is never read.
func (d *Dispatcher) readBody(c *call) error {
	limit := d.MaxBody
	if limit <= 0 {
		limit = 1 << 20
	}
	var b []byte
	if c.in.Body != nil && c.in.Body != http.NoBody {
		var err error
		if b, err = io.ReadAll(http.MaxBytesReader(c.w, c.in.Body, limit)); err != nil {
			if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
				return &clawr.Error{Code: clawr.CodeBodyTooLarge, Message: "the body is over " + strconv.FormatInt(limit, 10) + " bytes", Fix: "send less"}
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

// fingerprint names the one request that a payment buys: a hash over tenant,
// version, method, host, path, canonical query and body. Each part is length
// prefixed, so that no two requests run together.
func (c *call) fingerprint(e *entry, canonical string) string {
	h := sha256.New()
	for _, s := range []string{e.ID, strconv.FormatInt(e.Version, 10), c.Method, hostname(c.in.Host), c.URL.EscapedPath(), canonical, c.bodySHA} {
		h.Write(strconv.AppendInt(nil, int64(len(s)), 10))
		h.Write([]byte{':'})
		io.WriteString(h, s)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func hashHex(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// clientAddr is the address of the peer, without its port.
func clientAddr(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return host
	}
	return r.RemoteAddr
}

// callerCache remembers the hashes of callers, because a free call should not
// cost an HMAC. It is emptied when it is full.
type callerCache struct {
	m    sync.Map // kind+value → hash
	size atomic.Int64
}

const maxCallers = 1 << 16

// hash names a caller without giving it away: HMAC-SHA256 under salt, 16 hex.
func (c *callerCache) hash(salt []byte, kind, value string) string {
	key := callerKey{kind, value}
	if h, ok := c.m.Load(key); ok {
		return h.(string)
	}
	m := hmac.New(sha256.New, salt)
	io.WriteString(m, kind)
	io.WriteString(m, value)
	h := hex.EncodeToString(m.Sum(nil)[:8])
	if c.size.Add(1) > maxCallers {
		c.m.Clear()
		c.size.Store(1)
	}
	c.m.Store(key, h)
	return h
}

type callerKey struct{ kind, value string }

// Header values that never change. They are shared: nobody may append to them.
var (
	corsAny      = []string{"*"}
	corsExpose   = []string{"PAYMENT-REQUIRED, PAYMENT-RESPONSE, X-PAYMENT-RESPONSE, X-Request-Id, X-Tenant-Id, Retry-After"}
	corsAllow    = []string{"PAYMENT-SIGNATURE, X-PAYMENT, SIGN-IN-WITH-X, Access-Control-Expose-Headers, Content-Type, If-None-Match"}
	corsMethods  = []string{"GET, HEAD, POST, OPTIONS"}
	corsMaxAge   = []string{"86400"}
	cachePrivate = []string{"private"}
	noStore      = []string{"no-store"}
	jsonType     = []string{"application/json"}
)

// preflight answers OPTIONS, for which nobody can pay.
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
}

func (w *writer) WriteHeader(status int) {
	if w.status == 0 {
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

// buffer is the bounded response that the work of a paid call is written to:
// nothing of it reaches the client before the money is settled.
type buffer struct {
	header http.Header
	status int
	body   []byte
	limit  int64
	over   bool
}

func (b *buffer) Header() http.Header { return b.header }

func (b *buffer) WriteHeader(status int) {
	if b.status == 0 {
		b.status = status
	}
}

func (b *buffer) Write(p []byte) (int, error) {
	if b.status == 0 {
		b.status = http.StatusOK
	}
	if int64(len(b.body)+len(p)) > b.limit {
		b.over = true
		return 0, errors.New("dispatch: the answer is too large")
	}
	b.body = append(b.body, p...)
	return len(p), nil
}

// Package dispatch is the dispatcher: it finds the tenant, admits the caller,
// takes the payment, has the work done, settles, answers and records. The
// order of its steps is architecture.md's "One paid request"; its rules about
// money are money.md's.
package dispatch

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/meter"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// Book keeps payments. Each method is one transaction.
type Book interface {
	// Find gives the payment of an authorization, nil if it has none.
	Find(context.Context, ledger.Key) (*ledger.Payment, error)
	// Answer gives a payment's stored answer, nil if it has none.
	Answer(ctx context.Context, paymentID string) (*ledger.Answer, error)
	// Reserve claims the authorization and takes every counter, or nothing:
	// *ledger.Conflict, *ledger.Exceeded. (T1)
	Reserve(ctx context.Context, p ledger.Payment, owner string, lease time.Duration) (ledger.Payment, error)
	// Done stores the answer and the event, if the payment is still at epoch. (T2)
	Done(ctx context.Context, id string, epoch int64, a ledger.Answer, ev usage.Event) error
	// Release ends a reservation that was never submitted.
	Release(ctx context.Context, id string, epoch int64, why clawr.Code, ev usage.Event) error
}

// Recovery is the book's side of what happens when an owner dies.
type Recovery interface {
	// TakeOver raises the epoch of a reservation whose lease has expired.
	TakeOver(ctx context.Context, id string, epoch int64, owner string, lease time.Duration) (ledger.Payment, error)
	// OpenPayments gives what is answered but not settled, oldest expiry first.
	OpenPayments(ctx context.Context, limit int) ([]ledger.Payment, error)
	// Janitor releases reservations that nobody works on any more.
	Janitor(ctx context.Context, olderThan time.Duration) (int, error)
}

// Payments verifies and settles: a facilitator in this process, or a client of
// remote ones. There is no other way to take a payment, and none that skips
// verification.
type Payments interface {
	Verify(context.Context, *x402.PaymentPayload, x402.Requirements) (x402.VerifyResponse, error)
	// Settle submits p, or finds out what became of it; asking twice is asking
	// once. An error means that nothing was submitted.
	Settle(context.Context, ledger.Payment) (ledger.Outcome, error)
	// HeadTime is the time of the chain's newest known block.
	HeadTime() time.Time
}

// Quotas takes from counters outside of a payment: the quota of a free call.
type Quotas interface {
	Take(context.Context, []ledger.Counter) ([]ledger.Counter, error)
}

// Recorder takes the events of requests that have no payment.
type Recorder interface {
	Record(usage.Event)
}

// Dispatcher answers for all tenants. All fields without a default are needed.
type Dispatcher struct {
	Directory *Directory
	Tenants   Tenants
	Workers   Workers
	Book      Book
	Recovery  Recovery
	Payments  Payments // nil: paid routes answer 503 facilitator_unavailable
	Quotas    Quotas
	Limiter   *meter.Limiter
	Usage     Recorder
	Log       *slog.Logger

	Asset     clawr.Asset   // what prices are paid in
	Quotes    *x402.Quotes  // mints and opens quotes
	Salt      []byte        // keys the hashes of callers
	Node      string        // this process, in leases
	PublicURL string        // scheme://host[:port] of /t/ URLs; empty: as the request came
	Scheme    string        // of tenant hosts; empty: https
	Docs      string        // base URL of the documentation named in errors
	Deadline  time.Duration // of a route, settlement included; 30 s
	MaxBody   int64         // of a request, bytes; 1 MB
	MaxAnswer int64         // of an answer, bytes; 64 MB
	MaxFlight int64         // paid calls at a time; 4096
	Now       func() time.Time
	// Failpoint, if not nil, is called at every numbered boundary of money.md.
	Failpoint func(name string)

	flights  flights
	inFlight atomic.Int64
	callers  callerCache
}

// slack is what a payment must live beyond the route's deadline: 10 s to
// settle and 2 s of clock difference (money.md, "Clock skew / expiry").
const slack = 12 * time.Second

// settleTime is how much longer than the deadline clients are asked to sign.
const settleTime = 60 * time.Second

func (d *Dispatcher) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

func (d *Dispatcher) deadline() time.Duration {
	if d.Deadline > 0 {
		return d.Deadline
	}
	return 30 * time.Second
}

// maxTimeoutSeconds is what challenges ask clients to sign for.
func (d *Dispatcher) maxTimeoutSeconds() int64 {
	return int64((d.deadline() + settleTime) / time.Second)
}

func (d *Dispatcher) reached(point string) {
	if d.Failpoint != nil {
		d.Failpoint(point)
	}
}

// call is one request on its way through the dispatcher.
type call struct {
	http.Request         // as the tenant sees it
	url          urlCopy // what Request.URL points at, if the path was rewritten
	in           *http.Request
	w            *writer
	e            *entry
	worker       *opened
	canonical    string
	units        int64
	planErr      error
	ev           usage.Event
	booked       bool // the event is in the book: do not record it again
	bodySHA      string
	addr         string
	start        time.Time
	receipt      *x402.SettleResponse // what an error's PAYMENT-RESPONSE says
	v1           bool                 // the payment came in version 1's header
}

func (d *Dispatcher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{in: r, start: d.now()}
	c.w = &writer{ResponseWriter: w}
	c.ev = usage.Event{Time: c.start, RequestID: newRequestID(), Endpoint: r.URL.Path}
	c.w.Header()["X-Request-Id"] = []string{c.ev.RequestID}
	if err := d.serve(c); err != nil {
		d.fail(c, err)
	}
	if c.booked {
		return
	}
	c.ev.Status, c.ev.BytesOut = c.w.status, c.w.bytes
	c.ev.Latency = d.now().Sub(c.start)
	if c.e != nil {
		if c.ev.Lifecycle == "" {
			c.ev.Lifecycle, c.ev.Countable = usage.Success, true
		}
		if c.ev.Caller == "" {
			c.ev.Caller = d.callers.hash(d.Salt, "addr:", c.addr)
		}
		d.Usage.Record(c.ev)
	}
}

// serve answers c, or returns the error that it is answered with.
func (d *Dispatcher) serve(c *call) error {
	r := c.in
	h := c.w.Header()
	h["Access-Control-Allow-Origin"] = corsAny
	h["Access-Control-Expose-Headers"] = corsExpose
	e, rest := d.Directory.lookup(r.Host, r.URL.EscapedPath())
	if r.Method == http.MethodOptions && e != nil {
		return preflight(c)
	}
	c.addr = clientAddr(r)
	payment, err := paymentHeader(r.Header)
	if err != nil {
		c.identify(e)
		return err
	}
	if e == nil && payment.value != "" {
		if done, err := d.orphan(c, payment); done || err != nil {
			return err
		}
	}
	if e == nil {
		return &clawr.Error{Code: clawr.CodeTenantNotFound, Message: "no tenant answers here", Fix: "check the host, or the name after /t/"}
	}
	c.identify(e)
	if err := c.rewrite(rest); err != nil {
		return err
	}
	h["X-Tenant-Id"] = e.idHeader
	if payment.value != "" {
		return d.paid(c, payment)
	}
	if err := e.available(); err != nil {
		return err
	}
	if c.worker, err = e.open(r.Context(), d.Workers); err != nil {
		return err
	}
	c.canonical, c.units, c.planErr = c.worker.Plan(&c.Request)
	if err := d.admit(c); err != nil {
		return err
	}
	if c.units == 0 || !e.Paid() {
		return d.free(c)
	}
	if c.notModified() {
		return nil
	}
	return d.challenge(c, clawr.CodeMissingPayment, "this call costs money")
}

// identify fills in whose event this is.
func (c *call) identify(e *entry) {
	if e == nil {
		return
	}
	c.e = e
	c.ev.TenantID, c.ev.API, c.ev.Owner, c.ev.Directory = e.ID, e.Slug, e.owner, e.Directory
	c.ev.Price = e.Price
}

// available says why a tenant does not take new calls.
func (e *entry) available() error {
	switch e.Status {
	case clawr.StatusRemoved:
		return &clawr.Error{Code: clawr.CodeTenantNotFound, Message: "this API was removed", Fix: "look for another one"}
	case clawr.StatusPaused:
		return &clawr.Error{Code: clawr.CodeTenantPaused, Message: "this API is paused by its owner; you were not charged", Fix: "try again later", RetryAfter: time.Minute}
	}
	return nil
}

// free does the work of a route that costs nothing.
func (d *Dispatcher) free(c *call) error {
	if c.planErr != nil {
		return c.planErr
	}
	c.ev.Units = c.units
	if c.e.limited {
		if err := d.takeQuota(c); err != nil {
			return err
		}
	}
	if c.notModified() {
		return nil
	}
	return d.guard(c, func() error { return c.worker.Serve(c.w, &c.Request) })
}

// guard turns a worker's panic into an error. What it says goes to the log.
func (d *Dispatcher) guard(c *call, work func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			d.Log.ErrorContext(c.in.Context(), "worker panicked", "tenant", c.e.Slug, "version", c.e.Version, "panic", p)
			err = &clawr.Error{Code: clawr.CodeWorkerFailure, Message: "the API failed; you were not charged", Fix: "try again later"}
		}
	}()
	return work()
}

// notModified answers 304 if the caller holds this very answer. It is free:
// the tag names the version and the question. "*" never matches.
func (c *call) notModified() bool {
	match := c.in.Header["If-None-Match"]
	if len(match) == 0 || c.worker.tag == nil || c.planErr != nil || c.Method != http.MethodGet && c.Method != http.MethodHead {
		return false
	}
	tag := c.worker.tag.ETag(c.canonical)
	if tag == "" {
		return false
	}
	for _, line := range match {
		for one := range strings.SplitSeq(line, ",") {
			if strings.TrimPrefix(strings.TrimSpace(one), "W/") == tag {
				h := c.w.Header()
				h["Etag"] = []string{tag}
				h["Cache-Control"] = cachePrivate
				c.w.WriteHeader(http.StatusNotModified)
				return true
			}
		}
	}
	return false
}

// newRequestID is for finding a request in a log. It is no secret, so the
// runtime's ChaCha8 will do.
func newRequestID() string {
	const hex = "0123456789abcdef"
	var b [20]byte
	copy(b[:], "req_")
	n := rand.Uint64()
	for i := range 16 {
		b[4+i] = hex[n&15]
		n >>= 4
	}
	return string(b[:])
}

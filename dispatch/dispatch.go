// Package dispatch is the dispatcher: it finds the tenant, admits the caller,
// takes the payment, has the work done, settles, answers and records. The
// order of its steps is architecture.md's "One paid request"; its rules about
// money are money.md's.
package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
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
	// Renew prolongs the lease of unfinished work, from now.
	Renew(ctx context.Context, id string, epoch int64, lease time.Duration) error
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
	Charged   Charged
	Queue     Queue
	Payments  Payments // nil: paid routes answer 503 facilitator_unavailable
	Till      *Till    // nil: nothing is sold by vouchers
	Quotas    Quotas
	Limiter   *meter.Limiter
	Rates     *Rates // of tenants, where several nodes share them; nil: Limiter's
	Usage     Recorder
	Log       *slog.Logger

	// Closed, if not nil, is what every new payment is answered with, before
	// anything is asked about it: the book may have lost the row of one that was
	// charged. Stored answers and free routes are given all the same.
	Closed *clawr.Error

	Asset     clawr.Asset   // what prices are paid in
	Quotes    *x402.Quotes  // mints and opens quotes
	Salt      []byte        // keys the hashes of callers
	Node      string        // this process, in leases
	PublicURL string        // scheme://host[:port] of /t/ URLs; empty: as the request came
	Scheme    string        // of other URLs that came without TLS; empty: PublicURL's, or http
	Docs      string        // base URL of the documentation named in errors
	Deadline  time.Duration // of a route, settlement included; 30 s
	MaxBody   int64         // of a request, bytes; 1 MB
	MaxAnswer int64         // of an answer, bytes; 64 MB
	MaxFlight int64         // paid calls at a time; 4096
	// Bare has the book keep of a payment only what it takes to settle it, and not
	// what its buyer echoes: our own facilitator needs nothing else, and a
	// payment is as many bytes to the disk five times over.
	Bare bool
	// Exposure bounds what async tenants deliver before it is charged; the zero
	// value gives nobody any credit.
	Exposure ledger.Exposure
	// Now is the clock, which moves as time does: deadlines are counted by it
	// once and then kept by the runtime. nil: time.Now.
	Now func() time.Time
	// Failpoint, if not nil, is called at every numbered boundary of money.md.
	Failpoint func(name string)

	backlog  backlog
	queue    queue
	alarmed  atomic.Bool // the queue's age was complained of
	flights  flights
	inFlight atomic.Int64
	crowded  atomic.Int64 // when a call was the last of a crowd, unix nanoseconds
	callers  callerCache
	numbers  numbers
	hashed   sync.Once   // domain is
	domain   x402.Domain // of the channels on Asset's network; zero: there are none
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
	w            writer
	path         string // escaped, as the tenant sees it
	byPath       bool   // routed by /t/{slug}/, and not by host
	e            *entry
	worker       *opened
	canonical    string
	units        int64
	planErr      error
	ev           usage.Event
	id           [1]string // the request id, as the value of its header
	booked       bool      // the event is in the book: do not record it again
	ended        bool      // it was answered
	bodySHA      string
	addr         string
	start        time.Time
	payment      bool                 // it carries one
	v1           bool                 // … in version 1's header
	receipt      *x402.SettleResponse // what an error's PAYMENT-RESPONSE says

	// Of a call that is paid by voucher.
	kept      *ledger.Channel      // the channel, as it was when the call came
	stored    *ledger.Answer       // what the voucher has bought already
	brings    *payment             // it, if it comes with a deposit
	deposit   *x402.SettleResponse // that was made for it
	extra     x402.Object          // of the receipt: the charge, and the channel
	corrected *ledger.Channel      // where the channel stands, for the challenge
}

func (d *Dispatcher) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{in: r, start: d.now()}
	c.w.ResponseWriter = w
	c.id[0] = d.newID("req_")
	c.ev.Time, c.ev.RequestID = c.start, c.id[0]
	w.Header()["X-Request-Id"] = c.id[:]
	defer d.end(c)
	if err := d.serve(c); err != nil {
		d.fail(c, err)
	}
	c.ended = true
}

// end records what c was. A panic of ours is answered as an internal error; an
// answer that was cut short is not allowed to look whole.
func (d *Dispatcher) end(c *call) {
	if p := recover(); p != nil {
		d.Log.ErrorContext(c.in.Context(), "panic", "requestId", c.ev.RequestID, "panic", p, "stack", string(debug.Stack()))
		d.fail(c, &clawr.Error{Code: clawr.CodeInternal})
	} else if !c.ended {
		return // runtime.Goexit: nobody was answered
	}
	d.record(c)
	if c.w.broken {
		panic(http.ErrAbortHandler)
	}
}

// record hands over the event of a call that has no row in the book to carry it.
func (d *Dispatcher) record(c *call) {
	if c.booked || c.e == nil {
		return
	}
	c.ev.Status, c.ev.BytesOut = max(c.w.status, http.StatusOK), c.w.bytes
	c.ev.Latency = d.now().Sub(c.start)
	if c.ev.Lifecycle == "" {
		c.ev.Lifecycle, c.ev.Countable = usage.Success, true
	}
	if c.ev.Caller == "" {
		c.ev.Caller = d.callers.hash(d.Salt, addrCaller, c.addr)
	}
	d.Usage.Record(c.ev)
}

// serve answers c, or returns the error that it is answered with.
func (d *Dispatcher) serve(c *call) error {
	r := c.in
	h := c.w.Header()
	h["Access-Control-Allow-Origin"] = corsAny
	h["Access-Control-Expose-Headers"] = corsExpose
	if r.Method == http.MethodOptions {
		return preflight(c)
	}
	path := r.URL.EscapedPath()
	e, rest := d.Directory.lookup(r.Host, path)
	c.addr, c.path = clientAddr(r.RemoteAddr), rest
	c.identify(e)
	if err := c.rewrite(path); err != nil {
		return err
	}
	pay, err := paymentHeader(r.Header)
	if err != nil {
		return err
	}
	if pay.value != "" {
		return d.paid(c, pay)
	}
	if e == nil {
		return errNoTenant
	}
	if err := e.available(); err != nil {
		return err
	}
	if c.worker, err = e.open(r.Context(), d.Workers); err != nil {
		return err
	}
	if err := d.plan(c); err != nil {
		return err
	}
	if err := d.admit(c); err != nil {
		return err
	}
	if c.units == 0 || !e.Paid() {
		return d.free(c)
	}
	if c.notModified() {
		return nil
	}
	if d.Closed != nil {
		return d.Closed
	}
	return d.challenge(c, clawr.CodeMissingPayment, "this call costs money")
}

// errNoTenant is what is said where no tenant answers.
var errNoTenant = &clawr.Error{Code: clawr.CodeTenantNotFound, Message: "no tenant answers here", Fix: "check the host, or the name after /t/"}

// identify fills in whose event this is.
func (c *call) identify(e *entry) {
	if e == nil {
		return
	}
	c.e = e
	c.w.Header()["X-Tenant-Id"] = e.idHeader
	c.ev.TenantID, c.ev.API, c.ev.Owner, c.ev.Directory = e.ID, e.Slug, e.owner, e.Directory
	c.ev.Price = e.Price
}

// plan asks c's worker what c is. The worker's opinion of the request is kept
// for later; an error is that it has none.
func (d *Dispatcher) plan(c *call) error {
	c.canonical, c.units, c.planErr = c.worker.Plan(&c.Request)
	if c.planErr == nil && c.units < 0 {
		c.planErr = errors.New("it costs a negative number of units")
	}
	if c.planErr != nil && !told(c.planErr) {
		return d.failed(c.in.Context(), c, c.planErr)
	}
	return nil
}

// available says why a tenant does not take new calls.
func (e *entry) available() error {
	if e.Home == clawr.HomeEdge { // whose ledger alone may sell for its address
		return &clawr.Error{Code: clawr.CodeTenantNotFound, Message: "this API is sold at the edge, and not by this node", Fix: "call it at its own address"}
	}
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
	if err := d.boundBody(c); err != nil {
		return err
	}
	if err := c.worker.Serve(&c.w, &c.Request); err != nil {
		return d.failed(c.in.Context(), c, err)
	}
	return nil
}

// notModified answers 304 if the caller holds this very answer. It is free:
// the tag names the version and the question. "*" never matches.
func (c *call) notModified() bool {
	match := c.in.Header["If-None-Match"]
	if len(match) == 0 || c.worker.tag == nil || c.planErr != nil || !idempotent(c.Method) {
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
				h["Vary"] = varyPayment
				c.w.WriteHeader(http.StatusNotModified)
				return true
			}
		}
	}
	return false
}

package dispatch

import (
	"context"
	"crypto/subtle"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// payment is a payment header taken apart.
type payment struct {
	*x402.PaymentPayload
	exact     *x402.Exact
	channel   *x402.ChannelPayload // instead of exact: it is paid by voucher
	domain    x402.Domain          // of channel
	channelID string               // its id, in hexadecimal
	forged    bool                 // its voucher is not signed by who may
	key       ledger.Key
	ref       string // its payment-identifier; empty: none
	contract  bool   // its signature is no key's: a contract has to know it
	v1        bool
	quote     string
	signature string // SHA-256, hex
	quoteSHA  string // SHA-256, hex; empty without a quote
}

// parse takes a header apart. What cannot be taken apart is a 400; nothing has
// been looked up by then.
func (d *Dispatcher) parse(h header) (*payment, error) {
	bad := func(err error) error {
		return &clawr.Error{Code: clawr.CodeBadHeader, Message: "the payment header cannot be read: " + reasonOf(err), Fix: "send base64 of the JSON that the challenge asks for; nothing was charged"}
	}
	decode := x402.ParsePayment
	if h.v1 {
		decode = x402.ParsePaymentV1
	}
	pp, err := decode(h.value)
	if err != nil {
		return nil, bad(err)
	}
	p := &payment{PaymentPayload: pp, v1: h.v1, quote: pp.Accepted.Extra.Quote}
	pp.Remember()
	if p.ref, err = pp.Identifier(); err != nil {
		return nil, err
	}
	if p.quote != "" {
		p.quoteSHA = hashHex([]byte(p.quote))
	}
	if pp.Accepted.Scheme == x402.SchemeChannel {
		if err := d.parseChannel(p); err != nil {
			return nil, bad(err)
		}
		return p, nil
	}
	if p.exact, err = x402.ParseExact(pp.Payload); err != nil {
		return nil, bad(err)
	}
	asset := pp.Accepted.Asset
	if pp.Version == 1 {
		asset = d.Asset.Address
	}
	p.key = ledger.Key{Network: pp.Accepted.Network, Asset: strings.ToLower(asset), Payer: p.exact.Payer(), Nonce: p.exact.Nonce.Hex()}
	p.signature = hashHex(p.exact.Signature)
	return p, nil
}

// validBefore is when the authorization is over, unix seconds.
func (p *payment) validBefore() int64 {
	t, _ := p.exact.ValidBefore.Int64()
	return t
}

// paid answers a call that carries a payment: by the row of its authorization,
// if that has one, and else by taking it. The row comes before everything that
// could refuse a new payment, because a settled payment would fail all of it,
// and before any tenant: the hosts of a removed one go, the answers that it
// sold do not.
func (d *Dispatcher) paid(c *call, h header) error {
	c.payment, c.v1 = true, h.v1
	p, err := d.parse(h)
	if err != nil {
		return err
	}
	if p.channel != nil {
		return d.byVoucher(c, p)
	}
	row, err := d.Book.Find(c.in.Context(), p.key)
	switch {
	case err != nil:
		return lookupFailed(err)
	case row != nil:
		return d.standing(c, p, row)
	case c.e == nil:
		return errNoTenant
	case d.Closed != nil:
		return d.Closed
	}
	return d.buy(c, p)
}

// standing answers a call whose payment is row.
func (d *Dispatcher) standing(c *call, p *payment, row *ledger.Payment) error {
	c.ev.Lifecycle = ""
	if !d.mayHave(c, p, row) {
		return &clawr.Error{Code: clawr.CodeAlreadyUsed, Message: "this authorization was used already, in another payment", Fix: "ask without a payment and sign a new one"}
	}
	// From here on it is the buyer who asks, and nobody else can use up what he
	// may ask for.
	c.ev.Caller = d.callers.hash(d.Salt, payerCaller, row.Payer)
	if got := d.Limiter.Allow("replay/"+row.ID, replayRate, c.start, 1); !got.OK {
		got.Headers(c.w.Header().Set)
		return got.Err()
	}
	elsewhere := &clawr.Error{Code: clawr.CodeBoundElsewhere, Message: "this payment bought another request", Fix: "send it to the request that it was made for, or sign a new one"}
	asked := c.e
	if c.e == nil || c.e.ID != row.TenantID {
		// A host may be nobody's by now, or another tenant's. The fingerprint names
		// host and path, and decides.
		current := d.Directory.byID(row.TenantID)
		if current == nil {
			return elsewhere
		}
		c.identify(current)
	}
	e, err := d.Directory.version(c.in.Context(), d.Tenants, row.TenantID, row.Version)
	if err != nil {
		return d.stuck(c, row, err)
	}
	if c.worker, err = e.open(c.in.Context(), d.Workers); err != nil {
		return d.stuck(c, row, err)
	}
	if err := d.readBody(c); err != nil {
		return err
	}
	c.canonical, c.units, c.planErr = c.worker.Plan(&c.Request)
	switch {
	case c.planErr != nil && !told(c.planErr):
		return d.stuck(c, row, c.planErr)
	case c.planErr != nil || c.fingerprint(e, c.canonical) != row.Fingerprint:
		c.identify(asked)
		return elsewhere
	}
	return d.follow(c, p, e, row)
}

// publicFor is how long a payment that was made without a quote answers the
// address that made it, once everybody can read it on the chain.
const publicFor = 10 * time.Minute

// mayHave reports whether whoever sent p may have row's answer. An
// authorization and its signature are public once they are settled, so that
// alone is not enough: the quote is what only the buyer has. A row without one
// answers only the address that paid, for ten minutes.
func (d *Dispatcher) mayHave(c *call, p *payment, row *ledger.Payment) bool {
	same := func(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
	if !same(p.signature, row.SignatureSHA256) || !same(p.quoteSHA, row.QuoteSHA256) {
		return false
	}
	if row.QuoteSHA256 != "" {
		return true
	}
	if !same(d.callers.hash(d.Salt, addrCaller, c.addr), row.ClientAddrHash) {
		return false
	}
	if row.Money != ledger.Mined && row.Money != ledger.Final {
		return true
	}
	// The row does not say when it was mined, only when it was moved last, which
	// finality does once more; but no chain mines an authorization that is over.
	mined := row.Updated
	if over := time.Unix(row.ValidBefore, 0); row.ValidBefore < endless && over.Before(mined) {
		mined = over
	}
	return c.start.Before(mined.Add(publicFor))
}

// follow brings row to its end, or to the deadline, and answers accordingly.
// Each turn of it waits for news, so it does not spin.
func (d *Dispatcher) follow(c *call, p *payment, e *entry, row *ledger.Payment) error {
	ctx, cancel := d.detached(c)
	defer cancel()
	for {
		switch {
		case row.Work == ledger.Done && (row.Policy == ledger.Async || row.Money == ledger.Mined || row.Money == ledger.Final):
			return d.replay(ctx, c, e, row)
		case row.Money == ledger.Released || row.Money == ledger.Dead:
			reason := row.ErrorCode
			if reason == "" {
				reason = clawr.CodeNotCharged
			}
			return d.refuse(c, reason, "this payment was not charged and can not be used any more; sign a new one")
		case row.Work == ledger.Failed:
			return d.refundDue(c, row)
		case d.flights.has(p.key):
			// Somebody in this process brings it to its end.
		case row.Work == ledger.Done:
			defer d.flights.begin(p.key)()
			return d.finish(ctx, c, p, e, row, nil)
		case !row.LeaseUntil.After(d.now()) && (idempotent(c.Method) || row.Policy == ledger.SettleFirst) && d.timeFor(ctx):
			if taken, err := d.takeOver(ctx, c, p, e, row); taken {
				return err
			} else if err != nil && !errors.Is(err, ledger.ErrFenced) {
				return d.stuck(c, row, err)
			}
		}
		if row.Money == ledger.Signed && row.Work != ledger.Done && !d.flights.has(p.key) {
			// Its owner is on another node; the chain can be asked by everybody.
			end := d.flights.begin(p.key)
			out, err := d.settle(ctx, row)
			end()
			if err != nil || out.State != ledger.Settled {
				return d.unsettled(ctx, c, p, e, row, out, err)
			}
		}
		var next *ledger.Payment
		var err error
		if d.flights.wait(ctx, c.in.Context(), p.key) {
			next, err = d.Book.Find(ctx, p.key)
		}
		switch {
		case ctx.Err() != nil || c.in.Context().Err() != nil:
			out := d.pending(c, row, row.Tx)
			out.Message = "this payment's request is still being worked on"
			return out
		case err != nil:
			return d.stuck(c, row, err)
		case next == nil:
			return d.stuck(c, row, errors.New("a payment disappeared from the book"))
		}
		row = next
	}
}

// timeFor reports whether a quarter of the deadline is left, for work that is
// begun late: with less it would be cut short, and the payment given up for it.
// Whoever sends the request again has all of the time.
func (d *Dispatcher) timeFor(ctx context.Context) bool {
	until, ok := ctx.Deadline()
	return !ok || time.Until(until) >= d.deadline()/4
}

// takeOver does the work again that somebody began and did not end, or, where
// it must not be done twice, ends it with a refund. It reports
// whether it did; an error without that leaves everything as it was.
func (d *Dispatcher) takeOver(ctx context.Context, c *call, p *payment, e *entry, row *ledger.Payment) (bool, error) {
	leave, err := d.enter(e)
	if err != nil {
		return true, err
	}
	defer leave()
	defer d.flights.begin(p.key)()
	taken, err := d.Recovery.TakeOver(ctx, row.ID, row.Epoch, d.Node, leaseTime)
	if err != nil {
		return false, err
	}
	if taken.Work == ledger.Running && !idempotent(c.Method) { // paid, begun, and not to be begun twice
		c.paidEvent(e, &taken)
		return true, d.owe(ctx, c, &taken, errors.New("its owner did not come back"))
	}
	return true, d.perform(ctx, c, p, e, &taken)
}

// buy takes a new payment: everything that can be refused without cost first,
// then the reservation, then the work.
func (d *Dispatcher) buy(c *call, p *payment) error {
	if err := c.e.available(); err != nil {
		return err
	}
	e, quoted, refusal := d.quoted(c, p)
	if refusal != nil && refusal.HTTPStatus() != http.StatusPaymentRequired {
		return refusal
	}
	var err error
	if c.worker, err = e.open(c.in.Context(), d.Workers); err != nil {
		return unavailable(err)
	}
	if err := d.plan(c); err != nil {
		return err
	}
	if err := d.admit(c); err != nil {
		return err
	}
	switch {
	case c.units == 0 || !e.Paid():
		return d.free(c)
	case c.notModified():
		return nil
	case c.planErr != nil:
		return c.planErr
	case c.in.ContentLength > d.maxBody():
		return d.bodyTooLarge()
	case e.RequirePaymentID && p.ref == "":
		return &clawr.Error{Code: clawr.CodeBadHeader, Param: x402.PaymentIdentifier, Message: "this API wants every payment to name itself; nothing was charged",
			Fix: "send the extension payment-identifier with an id of 16 to 128 letters, digits, - and _"}
	case refusal != nil:
		return d.refuse(c, refusal.Code, refusal.Message)
	}
	terms, err := d.terms(e, c.units)
	if err != nil {
		return err
	}
	if p.quote != "" && strconv.FormatInt(quoted, 10) != terms.Amount {
		return d.refuse(c, x402.ReasonValue, "the quote is for another amount")
	}
	if p.channel != nil {
		if !d.sellsByVoucher(e) {
			return d.refuse(c, x402.ReasonNoMatch, "this API is not sold by vouchers")
		}
		return d.voucher(c, p, e, terms)
	}
	if refusal := d.verify(c, p, e, &terms); refusal != nil {
		return d.refusedButKnown(c, p, refusal)
	}
	c.ev.Caller = d.callers.hash(d.Salt, payerCaller, p.key.Payer)
	if err := d.check(c); err != nil {
		return err
	}
	if err := d.readBody(c); err != nil {
		return err
	}
	return d.reserve(c, p, e, terms)
}

// quoted finds the version that p's quote promises, and its amount. Without a
// quote it is the current one. A quote that does not hold is a refusal, with
// status 402; any other is a failure to look it up.
func (d *Dispatcher) quoted(c *call, p *payment) (e *entry, units int64, refusal *clawr.Error) {
	if p.quote == "" {
		return c.e, 0, nil
	}
	q, err := d.Quotes.Open(c.e.ID, p.quote, c.start)
	if clawr.CodeOf(err) == x402.ReasonQuoteExpired && d.begun(c.in.Context(), p) {
		err = nil
	}
	if err != nil {
		return c.e, 0, asRefusal(err)
	}
	e, err = d.Directory.version(c.in.Context(), d.Tenants, c.e.ID, q.Version)
	switch {
	case clawr.CodeOf(err) == clawr.CodeTenantNotFound:
		return c.e, 0, &clawr.Error{Code: x402.ReasonQuoteForeign, Status: http.StatusPaymentRequired, Message: "the quote names a version that is gone"}
	case err != nil:
		return c.e, 0, unavailable(err)
	}
	return e, q.Units, nil
}

// verify checks p against terms: all that needs no chain here, the rest by the
// facilitator.
func (d *Dispatcher) verify(c *call, p *payment, e *entry, terms *x402.Requirements) *clawr.Error {
	if _, err := x402.Match([]x402.Requirements{*terms}, p.PaymentPayload); err != nil {
		return asRefusal(err)
	}
	if err := x402.CheckEcho(e.extensions, p.Extensions, nil); err != nil {
		return asRefusal(err)
	}
	// Time is the later of ours and the chain's: by either, the authorization
	// must outlive the work, the settlement and a doubt about the clocks.
	now := c.start
	if head := d.Payments.HeadTime(); head.After(now) {
		now = head
	}
	check := x402.Check{Now: now, Slack: d.deadline() + slack, Token: &d.Asset}
	_, err := x402.Verify(p.PaymentPayload, terms, check)
	if clawr.CodeOf(err) == x402.ReasonSignature && d.Limiter.Allow("contract/"+c.addr, contractRate, c.start, 1).OK {
		// It may be a contract's, of any length, whose code the facilitator asks.
		check.Contract, p.contract = true, true
		_, err = x402.Verify(p.PaymentPayload, terms, check)
	}
	if err != nil {
		return asRefusal(err)
	}
	ctx, cancel := context.WithTimeout(c.in.Context(), 10*time.Second)
	defer cancel()
	res, err := d.Payments.Verify(ctx, p.ForFacilitator(terms), *terms)
	switch {
	case err != nil:
		return unavailable(err)
	case !res.IsValid:
		reason := reasonFor(res.InvalidReason)
		message := "the payment was refused: " + string(reason)
		if reason == x402.ReasonSignature { // as x402.Verify says it of a key's
			message = "the signature is not the payer's for this authorization"
		}
		return &clawr.Error{Code: reason, Status: http.StatusPaymentRequired, Message: message}
	case !strings.EqualFold(res.Payer, p.key.Payer):
		return &clawr.Error{Code: clawr.CodeFacilitatorDown, Message: "the facilitator answered for another payer; you were not charged", Fix: "send the same request again", RetryAfter: 5 * time.Second}
	}
	return nil
}

// refusedButKnown answers a payment that failed verification. A twin of the
// request may have paid meanwhile, and that is why it failed: then the twin's
// answer counts, and no new payment is asked for.
func (d *Dispatcher) refusedButKnown(c *call, p *payment, refusal *clawr.Error) error {
	row, err := d.Book.Find(c.in.Context(), p.key)
	switch {
	case err != nil:
		return lookupFailed(err)
	case row != nil:
		return d.standing(c, p, row)
	case refusal.HTTPStatus() != http.StatusPaymentRequired:
		return refusal
	}
	return d.refuse(c, refusal.Code, refusal.Message)
}

// check asks the worker whether what is asked for exists. What does not is not
// charged, and has a budget, for the payer and for the address that he comes
// from: wallets are free.
func (d *Dispatcher) check(c *call) error {
	err := c.worker.Check(c.in.Context(), &c.Request)
	if err == nil {
		return nil
	}
	if clawr.CodeOf(err) != clawr.CodeRecordNotFound {
		return d.failed(c.in.Context(), c, err)
	}
	for _, who := range []string{c.ev.Caller, c.addr} {
		if got := d.Limiter.Allow("miss/"+c.e.ID+"/"+who, missRate, c.start, 1); !got.OK {
			got.Headers(c.w.Header().Set)
			return got.Err()
		}
	}
	return err
}

// refuse answers 402 with a fresh challenge for the current version, unless what
// came may be charged yet.
func (d *Dispatcher) refuse(c *call, reason clawr.Code, message string) error {
	if err := d.undecided(c); err != nil {
		return err
	}
	if err := c.e.available(); err != nil {
		return err
	}
	current, err := c.e.open(c.in.Context(), d.Workers)
	if err != nil {
		return unavailable(err)
	}
	if _, units, _ := current.Plan(&c.Request); units > 0 {
		c.units = units
	}
	if c.units == 0 || !c.e.Paid() {
		return &clawr.Error{Code: clawr.CodeAlreadyUsed, Message: "this payment was not charged and can not be used any more, and this call is free now", Fix: "ask without a payment"}
	}
	if c.ev.Lifecycle == "" {
		c.ev.Lifecycle = invalid
	}
	return d.challenge(c, reason, message)
}

func idempotent(method string) bool { return method == http.MethodGet || method == http.MethodHead }

package dispatch

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/meter"
	"github.com/402claw/clawr/usage"
)

const (
	challenged = usage.Challenged
	invalid    = usage.Invalid
)

// unavailable is what a failure behind us looks like to a caller whose payment
// it left untouched.
func unavailable(err error) *clawr.Error {
	if e, ok := errors.AsType[*clawr.Error](err); ok && e.Code != clawr.CodeInternal && e.Code != clawr.CodeUnreachable {
		return e
	}
	return &clawr.Error{Code: clawr.CodeFacilitatorDown, Message: "the payment cannot be checked right now; you were not charged",
		Fix: "send the same request again", RetryAfter: 2 * time.Second, Err: err}
}

// lookupFailed is what is said when it is not known whether the payment was
// made before: nothing about charges.
func lookupFailed(err error) *clawr.Error {
	return &clawr.Error{Code: clawr.CodeFacilitatorDown, Message: "payments cannot be looked up right now", Fix: "send the same PAYMENT-SIGNATURE again; do not sign a new one",
		RetryAfter: 2 * time.Second, Err: err}
}

// asRefusal makes an error of the protocol's rules a 402. Any other is our own
// failure, and refuses nothing.
func asRefusal(err error) *clawr.Error {
	e, ok := errors.AsType[*clawr.Error](err)
	if !ok || e.Code == clawr.CodeInternal {
		return unavailable(err)
	}
	out := *e
	out.Code, out.Status = reasonFor(e.Code), http.StatusPaymentRequired
	return &out
}

// reasonFor keeps of a reason what looks like one. Facilitators are strangers
// too, and what they say is put into headers that agents read.
func reasonFor(r clawr.Code) clawr.Code {
	for _, c := range []byte(r) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return clawr.CodePaymentRejected
		}
	}
	if r == "" || len(r) > 80 {
		return clawr.CodePaymentRejected
	}
	return r
}

func reasonOf(err error) string {
	if e, ok := errors.AsType[*clawr.Error](err); ok && e.Message != "" {
		return e.Message
	}
	return err.Error()
}

func statusOf(err error) int {
	if e, ok := errors.AsType[*clawr.Error](err); ok {
		return e.HTTPStatus()
	}
	return http.StatusInternalServerError
}

// problem is the one shape of errors.
type problem struct {
	OK        bool       `json:"ok"`
	Error     clawr.Code `json:"error"`
	Message   string     `json:"message"`
	Fix       string     `json:"fix,omitempty"`
	Param     string     `json:"param,omitempty"`
	Docs      string     `json:"docs,omitempty"`
	RequestID string     `json:"requestId"`
	Clawr     *advice    `json:"clawr,omitempty"`
}

// advice says what a person or an agent should do next.
type advice struct {
	Retry      string `json:"retry"` // new_payment | same_payment | after | never
	RetryAfter int64  `json:"retryAfter,omitempty"`
	Hint       string `json:"hint,omitempty"`
}

// fail answers with err and notes it in the event. An error that is not for
// strangers is logged, and they read "internal".
func (d *Dispatcher) fail(c *call, err error) {
	e, ok := errors.AsType[*clawr.Error](err)
	if !ok || e.Code == clawr.CodeInternal {
		d.Log.ErrorContext(c.in.Context(), "internal error", "requestId", c.ev.RequestID, "path", c.ev.Endpoint, "err", err)
		e = &clawr.Error{Code: clawr.CodeInternal, Message: "internal error", Fix: "try again later, and give the request id to the operator"}
	}
	status := e.HTTPStatus()
	if !c.booked {
		c.ev.Error = string(e.Code)
		if c.ev.Lifecycle == "" {
			c.ev.Lifecycle, c.ev.Countable = lifecycleOf(e.Code, status)
		}
	}
	if c.w.status != 0 {
		c.w.broken = true // the answer is on its way already
		return
	}
	h := c.w.Header()
	if c.receipt != nil {
		c.setReceipt(c.receipt)
	}
	p := problem{Error: e.Code, Message: e.Message, Fix: e.Fix, Param: e.Param, Docs: d.docs(e.Code), RequestID: c.ev.RequestID}
	p.Clawr = c.advice(e, status)
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(max(meter.Seconds(e.RetryAfter), 1), 10))
	}
	if status == http.StatusMethodNotAllowed {
		h.Set("Allow", "GET, HEAD, OPTIONS")
	}
	for _, k := range []string{"Etag", "Link", "Content-Encoding", "Vary"} {
		delete(h, k) // a worker's, who failed afterwards
	}
	h["Content-Type"] = jsonType
	h["Cache-Control"] = noStore
	h["X-Content-Type-Options"] = noSniff
	b, _ := json.Marshal(p)
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	c.w.WriteHeader(status)
	if c.in.Method != http.MethodHead {
		c.w.Write(b)
	}
}

// advice is what whoever got e should do next. The payment that came along, if
// any, decides: what may have been charged is sent again, what was given up is
// not.
func (c *call) advice(e *clawr.Error, status int) *advice {
	a := &advice{Retry: "never", RetryAfter: meter.Seconds(e.RetryAfter)}
	switch {
	case c.receipt != nil && c.receipt.ErrorReason == clawr.CodeNotCharged:
		if status >= 500 {
			a.Retry = "after"
		}
		a.Hint = "this payment was not charged and is given up; sign a new one to ask again"
	case e.Code == clawr.CodeRefundDue:
		a.Hint = "this payment was charged and is not delivered: a refund is due"
	case e.Code == clawr.CodeAlreadyUsed || e.Code == clawr.CodeIdentifierUsed || e.Code == clawr.CodeVersionGone:
		a.Retry = "new_payment"
	case status == http.StatusTooManyRequests && e.RetryAfter > 0, status >= 500:
		a.Retry = "after"
		if c.payment && e.RetryAfter <= worthKeeping {
			a.Retry, a.Hint = "same_payment", "send the same payment header again; do not sign a new one"
		}
	}
	return a
}

// worthKeeping is how long a payment is kept for another try: by default it is
// signed for 90 s, and must have half of them left.
const worthKeeping = 30 * time.Second

// lifecycleOf sorts a refusal or failure for the analytics, and says whether it
// counts as a call. What waits for its settlement counts by the event that its
// payment has in the book, and by no other.
func lifecycleOf(code clawr.Code, status int) (usage.Lifecycle, bool) {
	switch code {
	case clawr.CodeRateLimited:
		return usage.RateLimited, false
	case clawr.CodeQuotaExceeded:
		return usage.Quota, false
	case clawr.CodeCapExceeded:
		return usage.SpendCap, false
	case clawr.CodeSettlementPending:
		return usage.Unsettled, false
	case clawr.CodeTenantPaused, clawr.CodeOverloaded, clawr.CodeFacilitatorDown:
		return usage.Failure, false
	}
	if status < 500 && status != http.StatusTooManyRequests {
		return usage.Invalid, false
	}
	return usage.Failure, true
}

// docs is where an error is explained.
func (d *Dispatcher) docs(code clawr.Code) string {
	if d.Docs == "" {
		return ""
	}
	return strings.TrimSuffix(d.Docs, "/") + "/errors.md#" + string(code)
}

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

// asRefusal makes an error of the protocol's rules a 402.
func asRefusal(err error) *clawr.Error {
	e, ok := errors.AsType[*clawr.Error](err)
	if !ok {
		return &clawr.Error{Code: clawr.CodeInternal, Err: err}
	}
	out := *e
	out.Status = http.StatusPaymentRequired
	return &out
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
	if c.w.status != 0 {
		return // the answer is on its way already
	}
	status := e.HTTPStatus()
	c.ev.Error = string(e.Code)
	if c.ev.Lifecycle == "" {
		c.ev.Lifecycle, c.ev.Countable = lifecycleOf(e.Code, status)
	}
	h := c.w.Header()
	if c.receipt != nil {
		c.setReceipt(c.receipt)
	}
	p := problem{Error: e.Code, Message: e.Message, Fix: e.Fix, Param: e.Param, Docs: d.docs(e.Code), RequestID: c.ev.RequestID}
	p.Clawr = adviceFor(e, status)
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(max(meter.Seconds(e.RetryAfter), 1), 10))
	}
	if status == http.StatusMethodNotAllowed {
		h.Set("Allow", "GET, HEAD, OPTIONS")
	}
	h["Content-Type"] = jsonType
	h["Cache-Control"] = noStore
	h["X-Content-Type-Options"] = []string{"nosniff"}
	b, _ := json.Marshal(p)
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	c.w.WriteHeader(status)
	if c.in.Method != http.MethodHead {
		c.w.Write(b)
	}
}

func adviceFor(e *clawr.Error, status int) *advice {
	a := &advice{Retry: "never", RetryAfter: meter.Seconds(e.RetryAfter)}
	switch {
	case e.Code == clawr.CodeSettlementPending || e.Code == clawr.CodeFacilitatorDown:
		a.Retry, a.Hint = "same_payment", "send the same payment header again; do not sign a new one"
	case e.Code == clawr.CodeAlreadyUsed || e.Code == clawr.CodeVersionGone:
		a.Retry = "new_payment"
	case status == http.StatusTooManyRequests && e.RetryAfter > 0, status >= 500:
		a.Retry = "after"
	}
	return a
}

// lifecycleOf sorts a refusal or failure for the analytics.
func lifecycleOf(code clawr.Code, status int) (usage.Lifecycle, bool) {
	switch code {
	case clawr.CodeRateLimited:
		return usage.RateLimited, false
	case clawr.CodeQuotaExceeded:
		return usage.Quota, false
	case clawr.CodeCapExceeded:
		return usage.SpendCap, false
	case clawr.CodeSettlementPending:
		return usage.Unsettled, true
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
	return strings.TrimSuffix(d.Docs, "/") + "/errors#" + string(code)
}

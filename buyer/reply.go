package buyer

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// reply is an answer whose body is still to come.
type reply struct {
	status int
	header http.Header
	body   *watched
	at     time.Time
	read   []byte // the beginning of the body, once text was called
}

// text is the beginning of a body that is not handed on: a refusal's.
func (r *reply) text() []byte {
	if r.read == nil {
		r.body.hurry()
		r.read, _ = io.ReadAll(io.LimitReader(r.body, maxProblem)) // what can be read is all that matters
	}
	return r.read
}

// redirect is where r sends the call, if it does.
func (r *reply) redirect(at *url.URL, method string) (*url.URL, bool) {
	switch r.status {
	case http.StatusMovedPermanently, http.StatusFound:
		if method != http.MethodGet && method != http.MethodHead {
			return nil, false
		}
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		return nil, false
	}
	to, err := at.Parse(r.header.Get("Location"))
	if err != nil || r.header.Get("Location") == "" {
		return nil, false
	}
	to.Fragment = ""
	return to, true
}

// replayed reports whether the answer is a stored one.
func (r *reply) replayed() bool { return r.header.Get("X-Clawr-Replayed") == "true" }

// verdict is what an answer to a payment means.
type verdict struct {
	status  int
	reason  string // the server's code, cleaned; may be empty
	message string // its message, cleaned
	// answered: this is what was paid for. refused: it never will come for this
	// payment. Neither: send it again.
	answered, refused bool
	used              bool          // it says that the authorization was consumed before
	limited           bool          // it was not even looked at: too many requests
	after             time.Duration // when to send it again; 0: not said
	transaction       string        // what it names, cleaned

	settled  *x402.SettleResponse  // its PAYMENT-RESPONSE, if there is one that can be read
	required *x402.PaymentRequired // its challenge, likewise
}

// problem is what clawr and most other servers put into the body of a refusal.
type problem struct {
	Error   any `json:"error"`
	Message any `json:"message"`
}

// reasonNotCharged is clawr's word in a PAYMENT-RESPONSE for work that failed
// before its payment was submitted.
const reasonNotCharged = string(clawr.CodeNotCharged)

// judge reads an answer to a request that carried a payment. The rule behind
// it: what is not a plain yes or a plain no is neither.
func (r *reply) judge() *verdict {
	v := &verdict{status: r.status, after: retryAfter(r.header.Get("Retry-After"), r.at)}
	settled := r.settlement()
	v.settled = settled
	stated := ""
	if settled != nil {
		stated = clean(string(settled.ErrorReason), 80)
		v.transaction = txHash(settled.Transaction)
	}
	pending := stated == string(x402.ReasonPending)
	good := r.status >= 200 && r.status < 300
	if good && !pending || settled != nil && settled.Success {
		v.answered = true
		return v
	}
	v.explain(r, settled, stated)
	// A channel that is busy has not looked at the voucher yet.
	pending = pending || v.reason == string(x402.ReasonPending) || v.reason == string(x402.ReasonChannelBusy)
	v.used = v.reason == string(x402.ReasonNonceUsed)
	switch s := r.status; {
	case pending, s == http.StatusServiceUnavailable:
	case stated == reasonNotCharged:
		v.refused = true
	case s == http.StatusRequestTimeout, s == http.StatusTooEarly, s >= 500:
	case s == http.StatusTooManyRequests:
		v.limited = true
		v.refused = v.after == 0
	default:
		v.refused = true
	}
	return v
}

// settlement is the answer's PAYMENT-RESPONSE, or nil if there is none that
// can be read.
func (r *reply) settlement() *x402.SettleResponse {
	for _, name := range []string{x402.HeaderResponse, x402.HeaderResponseV1} {
		if values := r.header.Values(name); len(values) == 1 {
			if s, err := x402.ParseResponse(values[0]); err == nil {
				return s
			}
		}
	}
	return nil
}

// explain finds the server's reason: in the settlement, else in the challenge
// (version 2), else in the body.
func (v *verdict) explain(r *reply, settled *x402.SettleResponse, stated string) {
	var p problem
	json.Unmarshal(r.text(), &p) // not JSON: no reason
	code, _ := p.Error.(string)
	message, _ := p.Message.(string)
	v.reason, v.message = clean(code, 80), clean(message, 200)
	if values := r.header.Values(x402.HeaderRequired); len(values) == 1 {
		if c, err := x402.ParseRequired(values[0]); err == nil {
			v.required = c
			if c.Error != "" {
				v.reason = clean(c.Error, 80)
			}
		}
	}
	if stated != "" {
		v.reason = stated
		if settled.ErrorMessage != "" {
			v.message = clean(settled.ErrorMessage, 200)
		}
	}
}

// String is the answer in a few words.
func (v *verdict) String() string {
	s := strconv.Itoa(v.status)
	if v.reason != "" {
		s += " " + v.reason
	}
	if v.message != "" {
		s += fmt.Sprintf(" (%q)", v.message)
	}
	return s
}

// code is clawr's own code for a refusal; the server's is a stranger's word,
// and exit codes hang on ours.
func (v *verdict) code() clawr.Code {
	switch v.status {
	case http.StatusPaymentRequired, http.StatusPreconditionFailed:
		return clawr.CodePaymentRejected
	case http.StatusConflict:
		if v.reason == string(clawr.CodeBoundElsewhere) || v.reason == string(clawr.CodeAlreadyUsed) {
			return clawr.CodePaymentRejected
		}
		return clawr.CodeConflict
	case http.StatusNotFound:
		return clawr.CodeNotFound
	case http.StatusGone:
		return clawr.CodeVersionGone
	case http.StatusUnauthorized:
		return clawr.CodeTokenMissing
	case http.StatusForbidden:
		return clawr.CodeScopeMissing
	case http.StatusTooManyRequests:
		return clawr.CodeRateLimited
	case http.StatusBadGateway:
		return clawr.CodeWorkerFailure
	case http.StatusGatewayTimeout:
		return clawr.CodeWorkerTimeout
	}
	return CodeServer
}

// failure is the error of an unpaid call that was answered with a refusal.
func (r *reply) failure(cl *call) error {
	v := &verdict{status: r.status, after: retryAfter(r.header.Get("Retry-After"), r.at)}
	v.explain(r, nil, "")
	fix := "look at the URL and the request"
	switch {
	case v.after > 0:
		fix = fmt.Sprintf("%s  # after %s", cl.Again, v.after)
	case r.status >= 500:
		fix = cl.Again + "  # later"
	}
	return &clawr.Error{Code: v.code(), Message: fmt.Sprintf("%s answered %s; nothing was signed", cl.host, v), Fix: fix, RetryAfter: v.after}
}

// retryAfter reads the header, in seconds or as a date. 0 is none, or not one.
func retryAfter(s string, now time.Time) time.Duration {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return time.Duration(min(max(n, 0), int64(maxRetryAfter/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return min(max(t.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// txHash is s if it is a transaction's hash, and else nothing: it is shown as one.
func txHash(s string) string {
	if len(s) != 66 || s[:2] != "0x" {
		return ""
	}
	for _, c := range []byte(s[2:]) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return ""
		}
	}
	return s
}

// Package buyer is the paying client. It asks for a resource, reads what the
// 402 wants, holds that against the wallet's limits, signs one authorization,
// writes it down, sends it, and does not sign another for the same call while
// the first may still be charged: whatever the server does, and across
// restarts.
//
// Everything a server says is a stranger's word. It is bounded, checked before
// anything is signed, and never taken as proof that money did not move.
package buyer

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// The codes that only a buyer has. CodeQuoteOverLimit, CodePaymentRejected and
// CodePaymentUnknown are clawr's.
const (
	// CodeQuoteRefused says that no way to pay that the server offers is one
	// that this wallet takes; nothing was signed.
	CodeQuoteRefused clawr.Code = "quote_refused"
	// CodeBadQuote says that the server's challenge cannot be read; nothing was
	// signed.
	CodeBadQuote clawr.Code = "invalid_challenge"
	// CodeNoWallet says that there is no key to sign with.
	CodeNoWallet clawr.Code = "wallet_missing"
	// CodeBadWallet says that a file of the wallet cannot be trusted.
	CodeBadWallet clawr.Code = "wallet_damaged"
	// CodeWalletExists says that a key would have been overwritten.
	CodeWalletExists clawr.Code = "wallet_exists"
	// CodeBalance says that the wallet does not hold what the call costs;
	// nothing was signed.
	CodeBalance clawr.Code = "insufficient_balance"
	// CodeChannel says that a channel cannot be used as was asked.
	CodeChannel clawr.Code = "channel_unusable"
	// CodeServer says that the server failed, or refused for a reason that has
	// nothing to do with payment.
	CodeServer clawr.Code = "server_error"
)

// The bounds of what a server may make a buyer read or do.
const (
	maxAnswerHeader = 64 << 10         // all headers of an answer, bytes
	maxProblem      = x402.MaxBody     // the body of a refusal, bytes
	maxRedirects    = 5                // of the unpaid request, within its origin
	maxLifetime     = time.Hour        // of a signature, whatever the challenge allows
	maxRetryAfter   = 24 * time.Hour   // what a Retry-After is read as at most
	stall           = 60 * time.Second // without a byte of the answer
	refusalTime     = 10 * time.Second // for the whole body of a refusal
	sendMargin      = 30 * time.Second // past validBefore, in which a resend still makes sense
	closeMargin     = 10 * time.Minute // past validBefore, for clocks and chains that lag
	defaultTimeout  = 2 * time.Minute  // of resending
)

// Request is one call that may cost something.
type Request struct {
	Method string // empty: GET
	URL    string // absolute, http or https
	Header http.Header
	Body   []byte // sent again with every resend
	// ID is the payment-identifier, 16 to 128 of A-Z a-z 0-9 _ -. Calls with
	// different IDs are different calls, even if they ask for the same.
	ID string
	// Max is what this call may cost; nil leaves it to the wallet. It can always
	// lower the wallet's limit per call, and raise it only with Confirm. The
	// limit per day stands whatever they say.
	Max     *clawr.Amount
	Confirm bool
	// Deposit is what is put into a channel when a call needs it; nil lets the
	// server and the limits decide. Only a Client whose Scheme asks for channels
	// opens one.
	Deposit *clawr.Amount
	// New signs a new payment although an earlier one for the same call may
	// still be charged. Both count against the limits.
	New bool
	// Timeout bounds the resending of a payment; 0 is 2 minutes.
	Timeout time.Duration
	// Out takes the answer's body, as it comes; nil discards it. Bodies of
	// refusals do not go there.
	Out io.Writer
	// Again is the command that repeats this call, for errors' fixes; empty is
	// clawr pay with the URL.
	Again string
}

// Result is an answer that was delivered whole.
type Result struct {
	Status int
	Header http.Header // the server's: do not print unchecked
	Bytes  int64       // of the body
	// Paid says that the answer was paid for. It is false for a free one.
	Paid bool
	// Replayed says that the server gave a stored answer, Resumed that an
	// earlier call's payment was used: nothing was signed.
	Replayed, Resumed bool
	// Payment is what was paid; nil if nothing was.
	Payment *Payment
	// Channel is what it was paid from, as it is now; nil for an exact payment.
	Channel *Channel
}

// call is a Request that has been checked.
type call struct {
	Request
	url  *url.URL
	host string // what the server is called: url.Host, or the Host header
	key  string // names the call: method, URL, host, body and ID
	body string // its SHA-256, hex
}

func newCall(r Request) (*call, error) {
	bad := func(param, why, fix string) error {
		return &clawr.Error{Code: clawr.CodeUsage, Param: param, Message: why, Fix: fix}
	}
	u, err := url.Parse(r.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, bad("url", fmt.Sprintf("%q is not an http or https URL", clean(r.URL, 80)), "clawr pay https://…")
	}
	if u.User != nil {
		return nil, bad("url", "the URL has a password in it, which would be written down", "give it as a header: -H 'Authorization: …'")
	}
	u.Fragment, u.RawFragment = "", ""
	c := &call{Request: r, url: u, host: u.Host}
	if c.Method = strings.ToUpper(r.Method); c.Method == "" {
		c.Method = http.MethodGet
	}
	if strings.Trim(c.Method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ-") != "" || c.Method == http.MethodConnect {
		return nil, bad("request", fmt.Sprintf("%q is not a method", clean(r.Method, 20)), "-X GET, HEAD, POST, PUT, PATCH or DELETE")
	}
	for name := range r.Header {
		switch http.CanonicalHeaderKey(name) {
		case x402.HeaderSignature, x402.HeaderPaymentV1:
			return nil, bad("header", "the payment header is clawr's to write", "leave "+clean(name, 40)+" out")
		case "Host":
			c.host = r.Header.Get("Host")
		}
	}
	if r.ID != "" && !x402.ValidIdentifier(r.ID) {
		return nil, bad("id", "a payment identifier is 16 to 128 characters of A-Z a-z 0-9 _ -", "--id "+newID("id_"))
	}
	if r.Confirm && r.Max == nil {
		return nil, bad("confirm", "there is no amount to confirm", "--max USD --confirm")
	}
	if c.Timeout <= 0 {
		c.Timeout = defaultTimeout
	}
	if c.Again == "" {
		c.Again = "clawr pay " + quote(u.String())
	}
	sum := sha256.Sum256(r.Body)
	c.body = hex.EncodeToString(sum[:])
	c.key = hashed(c.Method, u.String(), c.host, c.body, c.ID)
	return c, nil
}

// hashed names a list of strings, none of which can hold a line end that would
// make it two.
func hashed(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s\n", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

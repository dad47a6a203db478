package dispatch

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// challenge is what the 402s of one version have in common, rendered once by
// x402's encoder and cut where they differ: at the reason, the URL and the
// quote. A 402 is the most frequent answer of all, and free.
type challenge struct {
	units     int64
	amount    int64     // atomic units of the token, for that many units
	header    [4]string // the JSON of PAYMENT-REQUIRED around reason, URL and the first quote
	second    string    // what stands between that and a second quote; empty: there is one offer
	path      string    // whose header ends with described, if that fits
	described string    // header[3] with the bazaar extension
	accepts   [3]string // the body's accepts around URL and quote; without a URL there, [0] is empty
}

// terms are what is asked for e's version: the requirements without a quote.
func (d *Dispatcher) terms(e *entry, units int64) (x402.Requirements, error) {
	if d.Payments == nil {
		return x402.Requirements{}, &clawr.Error{Code: clawr.CodeFacilitatorDown, Message: "this node has no facilitator, so it cannot take payments", Fix: "its operator must give clawr serve a facilitator"}
	}
	if e.Network != "" && e.Network != d.Asset.Network {
		return x402.Requirements{}, &clawr.Error{Code: clawr.CodeFacilitatorDown, Message: "this API is sold on " + e.Network + ", which this node does not serve", Fix: "its operator must run a node for that network"}
	}
	if int64(e.Price) > math.MaxInt64/units {
		return x402.Requirements{}, &clawr.Error{Code: clawr.CodeBadAmount, Message: "this call costs more than can be paid", Fix: "ask for less"}
	}
	atomic, err := (e.Price * clawr.Amount(units)).Atomic(d.Asset.Decimals)
	if err != nil {
		return x402.Requirements{}, err
	}
	return x402.Requirements{
		Scheme: x402.SchemeExact, Network: d.Asset.Network, Amount: strconv.FormatInt(atomic, 10), Asset: d.Asset.Address,
		PayTo: e.PayTo, MaxTimeoutSeconds: d.maxTimeoutSeconds(e.policy),
		Extra: x402.Extra{Name: d.Asset.Name, Version: d.Asset.Version},
	}, nil
}

// maxDescription bounds a tenant's description in a challenge, in bytes: the
// header has to fit what proxies take, about 4 KB.
const maxDescription = 300

// maxHeader bounds the JSON of a challenge with an extension: 4 KB in base64.
const maxHeader = 3071

// render makes the pieces for e.
func (d *Dispatcher) render(e *entry, units int64, w *opened) (*challenge, error) {
	r, err := d.terms(e, units)
	if err != nil {
		return nil, err
	}
	c := &challenge{units: units}
	c.amount, _ = strconv.ParseInt(r.Amount, 10, 64)
	mark := rand.Text() // no data of a tenant can hold it
	reason, url, quote := "reason"+mark, "url"+mark, "quote"+mark
	r.Extra.Quote = quote
	accepted := []x402.Requirements{r}
	if d.sellsByVoucher(e) {
		accepted = append(accepted, d.channelTerms(e, r))
	}
	required := x402.PaymentRequired{Version: x402.Version, Error: reason, Accepts: accepted,
		Resource:   x402.ResourceInfo{URL: url, Description: clip(e.Description, maxDescription), MimeType: "application/json"},
		Extensions: e.extensions}
	raw, err := base64.StdEncoding.DecodeString(required.Header())
	if err != nil {
		return nil, err
	}
	var ok1, ok2, ok3 bool
	c.header[0], c.header[1], ok1 = strings.Cut(string(raw), reason)
	c.header[1], c.header[2], ok2 = strings.Cut(c.header[1], url)
	c.header[2], c.header[3], ok3 = strings.Cut(c.header[2], quote)
	if len(accepted) > 1 {
		c.second, c.header[3], ok3 = strings.Cut(c.header[3], quote)
	}
	body := required
	body.Accepts = accepted[:1] // version 1's clients refuse the whole list for one entry that they do not know
	accepts := string(body.AppendAccepts(nil))
	if x402.V1Name(r.Network) != "" {
		c.accepts[0], accepts, _ = strings.Cut(accepts, url)
	}
	c.accepts[1], c.accepts[2], _ = strings.Cut(accepts, quote)
	if !ok1 || !ok2 || !ok3 {
		return nil, &clawr.Error{Code: clawr.CodeInternal, Message: "the challenge has another form than expected"}
	}
	path, bazaar, err := w.discovery()
	if err != nil { // it can be paid all the same
		d.Log.Error("worker does not describe itself", "tenant", e.Slug, "err", err)
	}
	if len(bazaar) > 0 {
		required.Extensions = append(slices.Clip(e.extensions), x402.Member{Name: "bazaar", Value: bazaar})
		if raw, err = base64.StdEncoding.DecodeString(required.Header()); err != nil {
			return nil, err
		}
		c.described = string(raw[strings.LastIndex(string(raw), quote)+len(quote):])
		c.path = path
	}
	return c, nil
}

// clip is s, or as much of it as fits n bytes.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// scratch is the memory of one challenge.
type scratch struct{ json, header, url []byte }

var scratches = sync.Pool{New: func() any {
	return &scratch{json: make([]byte, 0, 2048), header: make([]byte, 0, 2048), url: make([]byte, 0, 256)}
}}

// challenge answers 402 with what is to be paid and why. reason is one of the
// protocol's strings.
func (d *Dispatcher) challenge(c *call, reason clawr.Code, message string) error {
	ch := c.e.challenge.Load()
	if ch == nil || ch.units != c.units {
		var err error
		if ch, err = d.render(c.e, c.units, c.worker); err != nil {
			return err
		}
		c.e.challenge.Store(ch)
	}
	reason = reasonFor(reason)
	var room [x402.QuoteLen]byte
	quote := d.Quotes.Append(room[:0], c.e.ID, x402.Quote{Version: c.e.Version, Units: ch.amount,
		Expires: c.start.Add(time.Duration(d.maxTimeoutSeconds(c.e.policy)) * time.Second)})
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	s.url = d.appendURL(s.url[:0], c)

	b := append(s.json[:0], ch.header[0]...)
	b = append(append(b, reason...), ch.header[1]...)
	b = append(append(b, s.url...), ch.header[2]...)
	b = append(b, quote...)
	if ch.second != "" {
		b = append(append(b, ch.second...), quote...)
	}
	if ch.described != "" && len(b)+len(ch.described) <= maxHeader && c.path == ch.path {
		b = append(b, ch.described...)
	} else {
		b = append(b, ch.header[3]...)
	}
	if c.corrected != nil {
		var err error
		if b, err = d.correction(b[:0], c, reason, string(s.url), string(quote)); err != nil {
			return err
		}
	}
	s.header = base64.StdEncoding.AppendEncode(s.header[:0], b)
	h := c.w.Header()
	h[x402.HeaderRequired] = []string{string(s.header)}
	h["Cache-Control"] = noStore
	h["Content-Type"] = jsonType

	b = append(b[:0], `{"x402Version":2,"ok":false,"error":"`...)
	b = append(append(b, reason...), `","message":`...)
	b = appendString(b, message)
	b = append(b, `,"fix":"pay as accepts says: clawr pay URL, or any x402 client","docs":`...)
	b = appendString(b, d.docs(reason))
	b = append(append(b, `,"requestId":"`...), c.ev.RequestID...)
	b = append(b, `","accepts":`...)
	if ch.accepts[0] != "" {
		b = append(append(b, ch.accepts[0]...), s.url...)
	}
	b = append(append(b, ch.accepts[1]...), quote...)
	b = append(b, ch.accepts[2]...)
	b = append(b, `,"clawr":{"retry":"new_payment","hint":"sign a payment for one entry of accepts and send it as PAYMENT-SIGNATURE"}}`...)
	s.json = b
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	if reason == clawr.CodeMissingPayment {
		c.ev.Lifecycle = challenged
	}
	c.ev.Error = string(reason)
	c.w.WriteHeader(http.StatusPaymentRequired)
	if c.in.Method != http.MethodHead {
		c.w.Write(b)
	}
	d.reached("challenge.after")
	return nil
}

// maxURL bounds the URL in a challenge, which its sender can make as long as a
// request may be: what does not fit is left out, first of all the query.
const maxURL = 1024

// appendURL appends the URL that the caller asked for, as a client can ask
// again. The host is a tenant's, known to the directory, or the configured one.
// What has no place in a URL is escaped, so that the result needs no escaping
// in JSON.
func (d *Dispatcher) appendURL(b []byte, c *call) []byte {
	if d.PublicURL != "" && c.byPath {
		b = append(b, strings.TrimSuffix(d.PublicURL, "/")...)
	} else {
		b = append(append(b, d.scheme(c)...), "://"...)
		b = appendEscaped(b, c.in.Host[:min(len(c.in.Host), 255)])
	}
	if path := c.in.URL.EscapedPath(); len(b)+len(path) < maxURL {
		b = append(b, path...)
		if q := c.in.URL.RawQuery; q != "" && len(b)+len(q) < maxURL {
			b = appendEscaped(append(b, '?'), q)
		}
	}
	return b
}

// scheme is that of the URL by which c came.
func (d *Dispatcher) scheme(c *call) string {
	switch {
	case c.in.TLS != nil || d.Scheme == "" && strings.HasPrefix(d.PublicURL, "https:"):
		return "https"
	case d.Scheme == "":
		return "http"
	}
	return d.Scheme
}

// appendEscaped appends s with everything percent-encoded that stands in no
// URL: what is not printable ASCII, and the characters that JSON escapes.
func appendEscaped(b []byte, s string) []byte {
	const hex = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' {
			b = append(b, '%', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

// appendString appends s as a JSON string. Nearly all that come here are plain.
func appendString(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			q, _ := json.Marshal(s)
			return append(b, q...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

package dispatch

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// challenge is what the 402s of one version have in common, rendered once:
// only the quote, the URL, the request id and the reason differ. It is built
// from pieces, because a 402 is the most frequent answer of all, and free.
type challenge struct {
	units  int64
	amount string // atomic units for that many units
	head   string // header JSON from after the resource's URL up to the quote
	tail   string // … and from there to the end
	body   string // the same for the body, which version 1 clients read
	bodyV1 string // network as the body names it
}

// terms are what is asked for e's version: the requirements without a quote.
func (d *Dispatcher) terms(e *entry, units int64) (x402.Requirements, error) {
	if d.Payments == nil {
		return x402.Requirements{}, &clawr.Error{Code: clawr.CodeFacilitatorDown, Message: "this node has no facilitator, so it cannot take payments", Fix: "its operator must give clawr serve a facilitator"}
	}
	if e.Network != "" && e.Network != d.Asset.Network {
		return x402.Requirements{}, &clawr.Error{Code: clawr.CodeFacilitatorDown, Message: "this API is sold on " + e.Network + ", which this node does not serve", Fix: "its operator must run a node for that network"}
	}
	atomic, err := (e.Price * clawr.Amount(units)).Atomic(d.Asset.Decimals)
	if err != nil {
		return x402.Requirements{}, err
	}
	return x402.Requirements{
		Scheme: x402.SchemeExact, Network: d.Asset.Network, Amount: strconv.FormatInt(atomic, 10), Asset: d.Asset.Address,
		PayTo: e.PayTo, MaxTimeoutSeconds: d.maxTimeoutSeconds(),
		Extra: x402.Extra{Name: d.Asset.Name, Version: d.Asset.Version},
	}, nil
}

// render makes the pieces for e. What a tenant says of itself is JSON-quoted
// here, once.
func (d *Dispatcher) render(e *entry, units int64) (*challenge, error) {
	r, err := d.terms(e, units)
	if err != nil {
		return nil, err
	}
	q := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	c := &challenge{units: units, amount: r.Amount}
	resource := `,"mimeType":"application/json"`
	if e.Description != "" {
		resource = `,"description":` + q(e.Description) + resource
	}
	seconds := strconv.FormatInt(r.MaxTimeoutSeconds, 10)
	extra := `"extra":{"name":` + q(r.Extra.Name) + `,"version":` + q(r.Extra.Version) + `,"quote":"`
	terms := `"asset":` + q(r.Asset) + `,"payTo":` + q(r.PayTo) + `,"maxTimeoutSeconds":` + seconds + `,`
	c.head = resource + `},"accepts":[{"scheme":"exact","network":` + q(r.Network) + `,"amount":"` + r.Amount + `",` + terms + extra
	c.tail = `"}}]}`
	// The body serves version 1 clients too, so its entries carry both forms;
	// their schema refuses a network without a version 1 name anywhere.
	c.bodyV1 = x402.V1Name(r.Network)
	network := r.Network
	if c.bodyV1 != "" {
		network = c.bodyV1
	}
	c.body = `"accepts":[{"scheme":"exact","network":` + q(network) + `,"amount":"` + r.Amount + `","maxAmountRequired":"` + r.Amount + `","description":` + q(e.Description) +
		`,"mimeType":"application/json",` + terms + extra
	return c, nil
}

// challenge answers 402 with what is to be paid and why. reason is one of the
// protocol's strings.
func (d *Dispatcher) challenge(c *call, reason clawr.Code, message string) error {
	ch := c.e.challenge.Load()
	if ch == nil || ch.units != c.units {
		var err error
		if ch, err = d.render(c.e, c.units); err != nil {
			return err
		}
		c.e.challenge.Store(ch)
	}
	amount, _ := strconv.ParseInt(ch.amount, 10, 64)
	quote := d.Quotes.Mint(c.e.ID, x402.Quote{Version: c.e.Version, Units: amount,
		Expires: c.start.Add(time.Duration(d.maxTimeoutSeconds()) * time.Second)})
	url := d.resourceURL(c)

	buf := make([]byte, 0, 1024+2*len(url))
	buf = append(buf, `{"x402Version":2,"error":"`...)
	buf = append(buf, reason...)
	buf = append(buf, `","resource":{"url":`...)
	buf = appendString(buf, url)
	buf = append(buf, ch.head...)
	buf = append(buf, quote...)
	buf = append(buf, ch.tail...)
	h := c.w.Header()
	h[x402.HeaderRequired] = []string{base64.StdEncoding.EncodeToString(buf)}
	h["Cache-Control"] = noStore
	h["Content-Type"] = jsonType

	buf = append(buf[:0], `{"x402Version":2,"ok":false,"error":"`...)
	buf = append(buf, reason...)
	buf = append(buf, `","message":`...)
	buf = appendString(buf, message)
	buf = append(buf, `,"fix":"pay as accepts says: clawr pay URL, or any x402 client","docs":`...)
	buf = appendString(buf, d.docs(reason))
	buf = append(buf, `,"requestId":"`...)
	buf = append(buf, c.ev.RequestID...)
	buf = append(buf, `",`...)
	buf = append(buf, ch.body...)
	buf = append(buf, quote...)
	buf = append(buf, `"},"resource":`...)
	buf = appendString(buf, url)
	buf = append(buf, `}],"clawr":{"retry":"new_payment","hint":"sign a payment for one entry of accepts and send it as PAYMENT-SIGNATURE"}}`...)
	h["Content-Length"] = []string{strconv.Itoa(len(buf))}
	if reason == clawr.CodeMissingPayment {
		c.ev.Lifecycle = challenged
	}
	c.ev.Error = string(reason)
	c.w.WriteHeader(http.StatusPaymentRequired)
	if c.in.Method != http.MethodHead {
		c.w.Write(buf)
	}
	return nil
}

// resourceURL is the URL that the caller asked for, as a client can ask again.
// The host is a tenant's, known to the directory, or the configured one.
func (d *Dispatcher) resourceURL(c *call) string {
	u := c.in.URL
	path := u.EscapedPath()
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	scheme := d.Scheme
	switch {
	case d.PublicURL != "" && c.in.URL.Path != c.URL.Path:
		return strings.TrimSuffix(d.PublicURL, "/") + path
	case c.in.TLS != nil:
		scheme = "https"
	case scheme == "":
		scheme = "http"
	}
	return scheme + "://" + c.in.Host + path
}

// appendString appends s as a JSON string. Nearly all that come here are plain.
func appendString(b []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			q, _ := json.Marshal(s)
			return append(b, q...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

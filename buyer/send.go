package buyer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// NewTransport is what a Client sends with: like net/http's, but it reads no
// more than 64 KB of headers.
func NewTransport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxResponseHeaderBytes = maxAnswerHeader
	return t
}

// defaultTransport is shared, so that Clients without one keep connections.
var defaultTransport = NewTransport()

// exchange sends cl to at, with p's header if p is not nil, and waits for the
// headers of an answer. sent says that bytes may have left this machine.
// Redirects are never followed here: a payment goes nowhere but where it was
// meant to.
func (c *Client) exchange(ctx context.Context, cl *call, at *url.URL, p *Payment, wait time.Duration) (rep *reply, sent bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(wait, func() { cancel(fmt.Errorf("nothing for %s", wait)) })
	defer func() {
		if err != nil {
			timer.Stop()
			cancel(nil)
		}
	}()
	var gotConn atomic.Bool
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { gotConn.Store(true) }}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, trace), cl.Method, at.String(), bytes.NewReader(cl.Body))
	if err != nil {
		return nil, false, err
	}
	for name, values := range cl.Header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	req.Header.Del("Host")
	req.Host = cl.host
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "clawr")
	}
	if p != nil {
		req.Header.Set(p.HeaderName, p.Header)
	}
	t := c.Transport
	if t == nil {
		t = defaultTransport
	}
	res, err := t.RoundTrip(req)
	if err != nil {
		// Both are needed: the transport may have written to an idle connection
		// that turned out dead, and then failed to open another; and a transport
		// that is not net/http's does not tell of connections.
		sent := gotConn.Load() || !isDial(err)
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, sent, err
	}
	timer.Reset(stall)
	return &reply{status: res.StatusCode, header: res.Header, at: c.now(),
		body: &watched{body: res.Body, timer: timer, cancel: cancel, ctx: ctx}}, true, nil
}

// isDial reports whether no connection could be opened.
func isDial(err error) bool {
	e, ok := errors.AsType[*net.OpError](err)
	return ok && e.Op == "dial"
}

// watched is a body that must keep coming.
type watched struct {
	body   io.ReadCloser
	timer  *time.Timer
	cancel context.CancelCauseFunc
	ctx    context.Context
	short  bool
}

// hurry gives the rest of the body little time, however steadily it drips.
func (w *watched) hurry() {
	w.short = true
	w.timer.Reset(refusalTime)
}

func (w *watched) Read(b []byte) (int, error) {
	if !w.short {
		w.timer.Reset(stall)
	}
	n, err := w.body.Read(b)
	if cause := context.Cause(w.ctx); cause != nil && err != nil && err != io.EOF {
		err = cause
	}
	return n, err
}

func (w *watched) Close() error {
	w.timer.Stop()
	err := w.body.Close()
	w.cancel(nil)
	return err
}

// end is how the sending of a payment ended.
type end struct {
	kind   ending
	result *Result // answered
	// why is what there is to say otherwise, cleaned.
	why    string
	reply  *verdict // the answer that decided; nil if none came
	failed error    // the caller's Out would take no more
}

type ending int

const (
	unknown  ending = iota // it may have been charged
	unsent                 // it never left this machine
	answered               // the answer was delivered whole
	refused                // the server has given its last word, and it is no
)

// deliver sends p until it has an answer, a refusal, or no more time: the same
// header every time.
func (c *Client) deliver(ctx context.Context, cl *call, p *Payment, resumed bool) end {
	at, err := url.Parse(p.URL)
	if err != nil {
		return end{why: "its URL cannot be read"}
	}
	start := c.now()
	deadline := start.Add(cl.Timeout)
	if until := p.Expires().Add(sendMargin); until.After(start) && until.Before(deadline) {
		deadline = until
	}
	out := &output{w: cl.Out}
	sent := resumed
	for n := 0; ; n++ {
		wait := min(stall, max(deadline.Sub(c.now()), time.Second))
		rep, left, err := c.exchange(ctx, cl, at, p, wait)
		sent = sent || left
		var v *verdict
		why := ""
		if err != nil {
			why = clean(err.Error(), 200)
		} else {
			var done bool
			e := end{}
			if e, done = c.take(p, rep, out); done {
				return e
			}
			v, why = e.reply, e.why
		}
		e := end{kind: unknown, why: why, reply: v}
		if !sent {
			e.kind = unsent
		}
		delay := backoff(n, v)
		if v != nil && v.limited && c.now().Add(delay).After(deadline) {
			e.kind = refused
			return e
		}
		if ctx.Err() != nil || c.now().Add(delay).After(deadline) {
			return e
		}
		c.note("%s; the same payment is sent again in %s", why, delay.Round(10*time.Millisecond))
		select {
		case <-ctx.Done():
			return e
		case <-time.After(delay):
		}
	}
}

// take reads one answer to p. done is false if the payment is to be sent again.
func (c *Client) take(p *Payment, rep *reply, out *output) (e end, done bool) {
	defer rep.body.Close()
	v := rep.judge()
	if v.transaction != "" {
		p.Transaction = v.transaction
	}
	e = end{kind: refused, why: v.String(), reply: v}
	switch {
	case v.refused:
		return e, true
	case !v.answered:
		return e, false
	}
	err := out.copy(rep.body)
	if err == nil {
		p.Status = rep.status
		e = end{kind: answered, reply: v, result: &Result{Status: rep.status, Header: rep.header, Bytes: out.n, Paid: true, Replayed: rep.replayed()}}
		return e, true
	}
	e = end{kind: unknown, why: "the answer was cut: " + clean(err.Error(), 200), reply: v, failed: out.failed}
	return e, out.failed != nil || errors.Is(err, errChanged)
}

// backoff is how long to wait after attempt n: what the server asks for, or
// else longer every time. Chance is added so that buyers who were cut off
// together do not come back together.
func backoff(n int, v *verdict) time.Duration {
	d := min(250*time.Millisecond<<min(n, 10), 5*time.Second)
	if v != nil && v.after > 0 {
		d = v.after
	}
	return d + time.Duration(rand.Int64N(int64(d)/5+1))
}

// finish books how the sending of p ended. over says that p is proven not
// charged, and another payment for the call may be signed.
func (c *Client) finish(ctx context.Context, cl *call, p *Payment, e end, resumed bool) (res *Result, over bool, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	switch e.kind {
	case answered:
		if err := c.Wallet.close(ctx, p, Paid, ""); err != nil {
			return nil, false, err
		}
		e.result.Resumed, e.result.Payment = resumed, p
		return e.result, false, nil
	case unsent:
		if err := c.Wallet.close(ctx, p, NotCharged, "it was never sent"); err != nil {
			return nil, false, err
		}
		return nil, false, &clawr.Error{Code: clawr.CodeUnreachable, Param: "url", Message: "the payment could not be sent: " + e.why + "; nothing was charged", Fix: cl.Again}
	case refused:
		p.Refused = &Refusal{Status: e.reply.status, Reason: e.why, At: c.now().UTC().Truncate(time.Second)}
	}
	if err := c.Wallet.save(p); err != nil {
		return nil, false, err
	}
	if e.failed != nil {
		return nil, false, &clawr.Error{Code: clawr.CodeFile, Message: "the answer was paid for, but could not be written", Fix: cl.Again + "  # fetches the same answer, and pays nothing", Err: e.failed}
	}
	f, proof, err := c.ask(ctx, p)
	if err != nil {
		c.note("the chain could not be asked: %s", clean(err.Error(), 200))
	}
	return c.conclude(ctx, cl, p, e, f, proof)
}

// conclude says what remains of a payment that was not answered.
func (c *Client) conclude(ctx context.Context, cl *call, p *Payment, e end, f fate, proof string) (*Result, bool, error) {
	until := p.Expires().Format("15:04:05 MST")
	past := c.now().After(p.Expires().Add(closeMargin))
	switch {
	case f == dead:
		if err := c.Wallet.close(ctx, p, NotCharged, proof); err != nil {
			return nil, false, err
		}
		c.note("the payment of %s was not charged: %s", Dollars(p.Amount), proof)
		if e.kind == unknown {
			e.reply = nil
		}
		return nil, true, e.error(cl, "not charged, which is proven: "+proof, cl.Again+"  # pays anew")
	case f == used || e.reply != nil && e.reply.used:
		if proof == "" {
			proof = "the server says that the authorization is used"
		}
		return nil, false, c.lost(cl, p, e.why+"; it was charged ("+proof+"), but the answer was not delivered")
	case e.kind == refused && past:
		proof := fmt.Sprintf("refused (%s), and expired at %s by this machine's clock", e.why, until)
		if err := c.Wallet.close(ctx, p, Expired, proof); err != nil {
			return nil, false, err
		}
		return nil, false, e.error(cl, "likely not charged, and it can no longer be; --rpc-url would prove it", cl.Again+"  # pays anew")
	case e.kind == refused:
		fix := fmt.Sprintf("%s  # sends the same payment again until it expires at %s; with --new it signs another now", cl.Again, until)
		if e.reply.reason == string(x402.ReasonBalance) {
			fix = "clawr wallet fund; " + fix
		}
		return nil, false, e.error(cl, "not charged, says the server", fix)
	case past:
		return nil, false, c.lost(cl, p, fmt.Sprintf("%s; it expired at %s, so that it is likely not charged, but only --rpc-url can prove it", e.why, until))
	}
	return nil, false, c.lost(cl, p, fmt.Sprintf("%s; it may be charged until %s", e.why, until))
}

// lost is the error of a payment of which nobody knows whether it was charged,
// or that was and has no answer.
func (c *Client) lost(cl *call, p *Payment, why string) error {
	tx := ""
	if p.Transaction != "" {
		tx = " in transaction " + p.Transaction
	}
	return &clawr.Error{Code: clawr.CodePaymentUnknown, Message: fmt.Sprintf("the outcome of the payment of %s to %s%s is unknown: %s", Dollars(p.Amount), p.PayTo, tx, why),
		Fix: cl.Again + "  # sends the same payment again, never a second one"}
}

// error is the refusal e, with what it means for the money.
func (e end) error(cl *call, money, fix string) error {
	if e.reply == nil {
		return &clawr.Error{Code: clawr.CodePaymentRejected, Message: fmt.Sprintf("no answer from %s (%s); %s", cl.host, e.why, money), Fix: fix}
	}
	return &clawr.Error{Code: e.reply.code(), Message: fmt.Sprintf("%s answered %s; %s", cl.host, e.why, money), Fix: fix, RetryAfter: e.reply.after}
}

package facilitator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// The pace of a Client that waits for the end of a payment.
const (
	firstLook   = 20 * time.Millisecond
	lastLook    = time.Second
	firstRepeat = 5 * time.Second // before a payment is sent to its facilitator again
	lastRepeat  = 5 * time.Minute
	openWait    = 5 * time.Second // how long a payment from earlier is waited for
	bookShare   = 2 * time.Second // of the deadline, for the chain and the book after a slow answer
)

// Settle sends p to a facilitator and waits until our own chain shows it, or
// finds out what became of it. It goes to one facilitator only: once that may
// have it, no other is asked. An error means that nothing was sent.
func (c *Client) Settle(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	switch p.Money {
	case ledger.Mined, ledger.Final:
		return settled(p.Evidence), nil
	case ledger.Released, ledger.Dead:
		return notCharged(p.ErrorCode, p.Proof), nil
	}
	a, r, err := c.read(p)
	if err != nil {
		return submittedOr(p.Money == ledger.Signed, err)
	}
	unlock, err := c.keys.lock(ctx, p.Key)
	if err != nil {
		return unknown("", x402.ReasonPending, "the payment is being settled"), nil
	}
	defer unlock()
	if p.Money == ledger.Held {
		return c.first(ctx, p, a, r)
	}
	return c.again(ctx, p, a, r)
}

// read checks that p is what was reserved, and can be sent.
func (c *Client) read(p ledger.Payment) (*payment, Request, error) {
	r, err := fromRow(p, nil)
	if err != nil {
		return nil, r, err
	}
	asset := &clawr.Asset{Network: p.Network, Address: p.Asset, Name: r.Requirements.Extra.Name, Version: r.Requirements.Extra.Version}
	a, err := readPayment(r.Payload, &r.Requirements, asset, time.Time{})
	if err != nil {
		return nil, r, fmt.Errorf("payment %s: %w", p.ID, err)
	}
	return a, r, nil
}

// first submits a payment that nobody was sent.
func (c *Client) first(ctx context.Context, p ledger.Payment, a *payment, r Request) (ledger.Outcome, error) {
	now, err := c.clock.fresh(ctx, c.Chain, c.now())
	if err != nil {
		return ledger.Outcome{}, down("the chain cannot be asked just now", err)
	}
	used, err := c.Chain.Used(ctx, a.transfer, nil)
	if err != nil {
		return ledger.Outcome{}, down("the chain cannot be asked just now", err)
	}
	if used {
		v, err := look(ctx, c.Chain, a.transfer, p.Created)
		if err != nil {
			return ledger.Outcome{}, down("the chain cannot be asked just now", err)
		}
		return neverSubmitted(&c.warned, c.log(), a, v, x402.ReasonNonceUsed, errConsumed.Message), nil
	}
	if e, ok := refusal(a.window(now)); ok {
		return notCharged(e.Code, e.Message), nil
	}
	body, err := requestBody(r.Payload, r.Requirements)
	if err != nil {
		return ledger.Outcome{}, err
	}
	remote := c.order()[0]
	c.reached("submit.before")
	// Nothing may be in doubt about what the book knows when the request is on
	// its way.
	wctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTimeout)
	err = c.Book.Submit(wctx, p.ID, p.Epoch, remote.URL)
	cancel()
	if err != nil {
		// Fenced: somebody else released it or sent it. Anything else leaves it
		// open whether it is signed now; nothing was sent, and the next try will see.
		return ledger.Outcome{}, err
	}
	c.reached("submit.after")
	c.repeats(p.Key, firstRepeat)
	h := c.send(ctx, remote, body)
	return c.await(ctx, a, p, h, remote, body), nil
}

// again looks for the end of a payment that a facilitator may have, and sends
// it there again from time to time: it is the same payment, and can be
// charged once.
func (c *Client) again(ctx context.Context, p ledger.Payment, a *payment, r Request) (ledger.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, openWait)
	defer cancel()
	if out, ok := c.look(ctx, a, p.Created, ""); ok {
		return out, nil
	}
	i := c.remote(p.Facilitator)
	if i < 0 || !c.due(p.Key) {
		return unknown("", x402.ReasonPending, "the facilitator has not settled the payment yet"), nil
	}
	body, err := requestBody(r.Payload, r.Requirements)
	if err != nil {
		return unknown("", clawr.CodeInternal, err.Error()), nil
	}
	h := c.send(ctx, c.Remotes[i], body)
	return c.await(ctx, a, p, h, c.Remotes[i], body), nil
}

// remote is the index of the facilitator with a URL, -1 if it is not
// configured any more. A payment is only ever sent where it was sent first.
func (c *Client) remote(url string) int {
	for i := range c.Remotes {
		if c.Remotes[i].URL == url {
			return i
		}
	}
	return -1
}

// send posts a payment. The answer is awaited until a little before ctx ends.
func (c *Client) send(ctx context.Context, remote Remote, body []byte) heard {
	timeout := c.SettleTimeout
	if timeout <= 0 {
		timeout = DefaultSettleTimeout
	}
	if until, ok := ctx.Deadline(); ok {
		left := time.Until(until)
		timeout = min(timeout, left-min(bookShare, left/4))
	}
	c.reached("post.before")
	status, answer, err := c.post(ctx, remote, "/settle", body, timeout)
	c.reached("post.after")
	if err != nil {
		c.fails(remote.URL)
		c.log().WarnContext(ctx, "facilitator did not answer a settlement", "url", remote.URL, "err", err)
		return heard{}
	}
	h := readSettle(status, answer, c.Network)
	if h.said == saidNothing {
		c.log().WarnContext(ctx, "facilitator's answer to a settlement is not understood", "url", remote.URL, "status", status)
	}
	return h
}

// await looks at the chain until it shows how the payment ended, or ctx ends.
// body, if not nil, is sent once more to a facilitator that says it is still
// at it, as the reference's server does, and at a slow pace to one that does
// not say anything.
func (c *Client) await(ctx context.Context, a *payment, p ledger.Payment, h heard, remote Remote, body []byte) ledger.Outcome {
	repeated := false
	for pause := firstLook; ; pause = min(2*pause, lastLook) {
		if out, ok := c.look(ctx, a, p.Created, h.tx); ok {
			return out
		}
		if h.said == saidRejected {
			// It has the signature all the same: only the chain can prove it right.
			return unknown("", h.reason, "the facilitator says that it did not settle the payment")
		}
		soon := h.said == saidPending && !repeated && pause >= 4*firstLook
		if soon || h.said == saidNothing && c.due(p.Key) {
			repeated = true
			if more := c.send(ctx, remote, body); more.said != saidNothing {
				h = more
				continue
			}
		}
		select {
		case <-ctx.Done():
			reason := h.reason
			if reason == "" {
				reason = x402.ReasonPending
			}
			return unknown(h.tx, reason, "the chain does not show the payment yet")
		case <-time.After(pause):
		}
	}
}

// look asks our own chain whether the payment has ended, and books it.
func (c *Client) look(ctx context.Context, a *payment, since time.Time, tx string) (ledger.Outcome, bool) {
	// Reading and booking the end must not be cut off by a deadline that was
	// meant for waiting.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTimeout)
	defer cancel()
	if tx != "" {
		r, err := c.Chain.Receipt(ctx, tx, []Transfer{a.transfer})
		if err == nil && r != nil && len(r.Found) == 1 && r.Found[0].Use == Paid {
			c.clock.saw(r.Time)
			return c.paid(ctx, a, r.Found[0].Evidence), true
		}
	}
	v, err := look(ctx, c.Chain, a.transfer, since)
	switch {
	case err != nil:
		c.log().WarnContext(ctx, "a payment's end is not known", "payer", a.Payer, "nonce", a.Nonce, "err", err)
	case v.use == Paid:
		return c.paid(ctx, a, v.Evidence), true
	case v.proof != "":
		if err := c.Book.Dead(ctx, a.Key, v.proof); err != nil && !errors.Is(err, ledger.ErrFenced) {
			c.log().ErrorContext(ctx, "dead, but not booked", "payer", a.Payer, "nonce", a.Nonce, "err", err)
			break
		}
		c.forget(a.Key)
		return notCharged(x402.ReasonTransactionFailed, v.proof), true
	case v.doubt != nil:
		c.log().WarnContext(ctx, "whether a payment is dead is not known", "payer", a.Payer, "nonce", a.Nonce, "err", v.doubt)
	}
	return ledger.Outcome{}, false
}

func (c *Client) paid(ctx context.Context, a *payment, e ledger.Evidence) ledger.Outcome {
	if err := c.Book.Paid(ctx, a.Key, e); err != nil && !errors.Is(err, ledger.ErrFenced) {
		c.log().ErrorContext(ctx, "paid, but not booked", "payer", a.Payer, "nonce", a.Nonce, "tx", e.Tx, "err", err)
		return unknown(e.Tx, x402.ReasonPending, "the book does not answer")
	}
	c.forget(a.Key)
	return settled(e)
}

// repeats notes that a payment was sent.
func (c *Client) repeats(key ledger.Key, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.posts == nil {
		c.posts = make(map[ledger.Key]repetition)
	}
	c.posts[key] = repetition{c.now(), wait}
}

// due reports whether a payment may be sent again now, and counts it as sent.
func (c *Client) due(key ledger.Key) bool {
	c.mu.Lock()
	r, ok := c.posts[key]
	c.mu.Unlock()
	if ok && c.now().Sub(r.last) < r.wait {
		return false
	}
	c.repeats(key, min(max(2*r.wait, firstRepeat), lastRepeat))
	return true
}

func (c *Client) forget(key ledger.Key) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.posts, key)
}

// Run keeps the head's time fresh until ctx ends. Open payments are brought to
// their end by whoever calls Settle for them.
func (c *Client) Run(ctx context.Context) error {
	tick := time.NewTicker(runEvery)
	defer tick.Stop()
	for {
		if err := c.clock.ask(ctx, c.Chain, c.now()); err != nil && ctx.Err() == nil {
			c.log().WarnContext(ctx, "the chain's head is not known", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

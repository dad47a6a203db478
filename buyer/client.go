package buyer

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"crypto/rand"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// Client pays for calls from one wallet. Its methods may be called at the same
// time; equal calls wait for each other.
type Client struct {
	Wallet *Wallet
	Terms
	// Chain is a node of the network that is paid on; nil means none is asked.
	Chain Chain
	// Vault is the contract that holds channels, on the same node; nil likewise.
	Vault Vault
	// Transport sends requests; nil is NewTransport's.
	Transport http.RoundTripper
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	// Confirm, if set, is asked when a call costs more than the wallet's limit
	// per call and the request has no Max of its own. True pays.
	Confirm func(q *Quote, limit clawr.Amount) bool
	// Note, if set, takes what people may like to know on the way.
	Note func(format string, args ...any)
}

func (c *Client) now() time.Time {
	if c.Now != nil {
		return c.Now()
	}
	return time.Now()
}

func (c *Client) note(format string, args ...any) {
	if c.Note != nil {
		c.Note(format, args...)
	}
}

// Do makes a call, and pays for it if it must and may. It signs at most one
// payment. If an earlier Do of the same call left one that may still be
// charged, it sends that one again and signs none; only with proof that it was
// not charged, or with New, it goes on to another.
//
// Errors are *clawr.Error. quote_over_limit, quote_refused, invalid_challenge,
// insufficient_balance, unreachable: nothing was signed, or nothing that was
// signed left this machine. payment_rejected and others: the server says that
// it did not charge. payment_unknown: it may have; Do the same again.
func (c *Client) Do(ctx context.Context, r Request) (*Result, error) {
	cl, err := newCall(r)
	if err != nil {
		return nil, err
	}
	unlock, err := c.Wallet.lockCall(ctx, cl.key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	p, err := c.Wallet.find(cl.key)
	if err != nil {
		return nil, err
	}
	if p != nil {
		res, over, err := c.resume(ctx, cl, p)
		if !over {
			return res, err
		}
	}
	id, err := c.Wallet.channelOf(cl.key)
	if err != nil {
		return nil, err
	}
	if id != "" {
		res, over, err := c.redraw(ctx, cl, id)
		if !over {
			return res, err
		}
	}
	return c.buy(ctx, cl)
}

// Quote asks what a call costs, and signs nothing. A nil Quote is a free call,
// with the status that it was answered with. The error of a quote that is over
// the limits comes from Within.
func (c *Client) Quote(ctx context.Context, r Request) (*Quote, int, error) {
	cl, err := newCall(r)
	if err != nil {
		return nil, 0, err
	}
	rep, at, err := c.unpaid(ctx, cl)
	if err != nil {
		return nil, 0, err
	}
	defer rep.body.Close()
	if rep.status != http.StatusPaymentRequired {
		if rep.status >= 400 {
			return nil, 0, rep.failure(cl)
		}
		return nil, rep.status, nil
	}
	req, err := readChallenge(rep.header.Values(x402.HeaderRequired), rep.text())
	if err != nil {
		return nil, 0, err
	}
	q, err := c.choose(ctx, req, at, cl.host)
	return q, rep.status, err
}

// Within is nil if q is within what r allows per call, and else the error that
// Do would give.
func (c *Client) Within(q *Quote, r Request) error {
	l, err := c.Wallet.Limits()
	if err != nil {
		return err
	}
	limit := l.PerCall
	if r.Max != nil && (*r.Max <= limit || r.Confirm) {
		limit = *r.Max
	}
	if q.Amount <= limit {
		return nil
	}
	if r.Max == nil && c.Confirm != nil && c.Confirm(q, limit) {
		return nil
	}
	again := r.Again
	if again == "" {
		again = "clawr pay " + quote(r.URL)
	}
	fix := fmt.Sprintf("%s --max %s --confirm", again, q.Amount)
	if q.Amount > l.PerDay {
		fix = fmt.Sprintf("%s, after clawr wallet limits --per-day %s", fix, q.Amount)
	}
	return &clawr.Error{Code: clawr.CodeQuoteOverLimit, Param: "max",
		Message: fmt.Sprintf("this call costs %s, your limit is %s. Nothing was signed.", Dollars(q.Amount), Dollars(limit)), Fix: fix}
}

// buy makes a call for which no payment is open.
func (c *Client) buy(ctx context.Context, cl *call) (*Result, error) {
	rep, at, err := c.unpaid(ctx, cl)
	if err != nil {
		return nil, err
	}
	defer rep.body.Close()
	if rep.status != http.StatusPaymentRequired {
		return c.free(cl, rep)
	}
	req, err := readChallenge(rep.header.Values(x402.HeaderRequired), rep.text())
	if err != nil {
		return nil, err
	}
	rep.body.Close()
	if err := c.Wallet.needKey(); err != nil {
		return nil, err
	}
	q, err := c.choose(ctx, req, at, cl.host)
	if err != nil {
		return nil, err
	}
	if err := c.Within(q, cl.Request); err != nil {
		return nil, err
	}
	if q.Channel != "" {
		return c.draw(ctx, cl, q)
	}
	if err := c.checkBalance(ctx, q.Asset, q.Atomic, "this call costs"); err != nil {
		return nil, err
	}
	id := newID("pay_")
	p, err := c.Wallet.open(ctx, id, cl.key, q.Amount, func() (*Payment, error) { return c.sign(cl, q, id) })
	if err != nil {
		return nil, err
	}
	res, _, err := c.finish(ctx, cl, p, c.deliver(ctx, cl, p, false), false)
	return res, err
}

// resume sends an open payment again. over says that it is closed and the call
// may be paid anew; then there is nothing else to say.
func (c *Client) resume(ctx context.Context, cl *call, p *Payment) (res *Result, over bool, err error) {
	if cl.New {
		c.note("the payment of %s signed %s ago is given up; it may still be charged", Dollars(p.Amount), p.since(c.now()))
		err := c.Wallet.close(ctx, p, Abandoned, "a new one was asked for")
		return nil, err == nil, err
	}
	c.note("sending the payment of %s again that was signed %s ago; nothing new is signed", Dollars(p.Amount), p.since(c.now()))
	return c.finish(ctx, cl, p, c.deliver(ctx, cl, p, true), true)
}

// sign makes the payment for q.
func (c *Client) sign(cl *call, q *Quote, id string) (*Payment, error) {
	now := c.now()
	chain, _ := x402.ChainID(q.Asset.Network)
	e := x402.Exact{Authorization: x402.Authorization{
		From: common.HexToAddress(c.Wallet.address), To: common.HexToAddress(q.PayTo), Value: x402.Uint(uint64(q.Atomic)),
		ValidBefore: x402.Uint(uint64(now.Add(q.Lifetime).Unix())),
	}}
	rand.Read(e.Nonce[:]) // never fails: it ends the process instead
	if e.From != crypto.PubkeyToAddress(c.Wallet.key.PublicKey) {
		return nil, fmt.Errorf("the wallet's address is not its key's")
	}
	domain := x402.NewDomain(q.Asset.Name, q.Asset.Version, chain, common.HexToAddress(q.Asset.Address))
	var err error
	if e.Signature, err = e.Sign(c.Wallet.key, domain); err != nil {
		return nil, err
	}
	paid := x402.PaymentPayload{Version: q.required.Version, Accepted: q.offer, Payload: e.JSON()}
	name := x402.HeaderPaymentV1
	if paid.Version == x402.Version {
		name = x402.HeaderSignature
		paid.Resource = &q.required.Resource
		if paid.Extensions, err = identify(q.required.Extensions, cl.ID); err != nil {
			return nil, err
		}
	}
	header, err := checkHeader(&paid)
	if err != nil {
		return nil, err
	}
	return &Payment{ID: id, Call: cl.key, Method: cl.Method, URL: q.url.String(), BodySHA256: cl.body, Created: now.UTC().Truncate(time.Millisecond),
		HeaderName: name, Header: header, Network: q.Asset.Network, Asset: q.Asset.Address, PayTo: q.PayTo, Payer: c.Wallet.address,
		Nonce: e.Nonce.Hex(), Atomic: q.Atomic, Amount: q.Amount, ValidBefore: now.Add(q.Lifetime).Unix()}, nil
}

// identifier is the extension that carries a Request's ID.
const identifier = "payment-identifier"

// identify is what a payment echoes of the server's extensions: all of it, and
// the payment identifier where the server takes one. If it wants one and the
// caller has none, it gets a random one.
func identify(offered x402.Object, id string) (x402.Object, error) {
	raw := offered.Find(identifier)
	if raw == nil {
		return offered, nil
	}
	var ext map[string]json.RawMessage
	var info map[string]json.RawMessage
	if json.Unmarshal(raw, &ext) != nil || json.Unmarshal(ext["info"], &info) != nil || info == nil {
		return offered, nil // not in the form of the extension: echoed as it is
	}
	if id == "" && string(info["required"]) == "true" {
		id = newID("pay_")
	}
	if id == "" {
		return offered, nil
	}
	info["id"] = json.RawMessage(`"` + id + `"`) // has nothing to escape
	var err error
	if ext["info"], err = json.Marshal(info); err != nil {
		return nil, fmt.Errorf("encode extension: %w", err)
	}
	b, err := json.Marshal(ext)
	if err != nil {
		return nil, fmt.Errorf("encode extension: %w", err)
	}
	out := append(x402.Object(nil), offered...)
	for i := range out {
		if out[i].Name == identifier {
			out[i].Value = b
		}
	}
	return out, nil
}

// unpaid sends a call without a payment, and follows redirects within its
// origin. at is where the answer came from.
func (c *Client) unpaid(ctx context.Context, cl *call) (rep *reply, at *url.URL, err error) {
	at = cl.url
	for range maxRedirects + 1 {
		rep, _, err = c.exchange(ctx, cl, at, nil, min(cl.Timeout, stall))
		if err != nil {
			return nil, nil, &clawr.Error{Code: clawr.CodeUnreachable, Param: "url", Message: "no answer from " + at.Host + ": " + clean(err.Error(), 200) + "; nothing was signed",
				Fix: cl.Again, Err: nil}
		}
		next, ok := rep.redirect(at, cl.Method)
		if !ok {
			return rep, at, nil
		}
		rep.body.Close()
		if next.Scheme != at.Scheme || next.Host != at.Host || next.User != nil {
			return nil, nil, &clawr.Error{Code: CodeServer, Param: "url", Message: at.Host + " sends this call to another server: " + clean(next.Redacted(), 200),
				Fix: "clawr pay " + quote(clean(next.Redacted(), 2000)) + "  # if you trust it"}
		}
		at = next
	}
	return nil, nil, &clawr.Error{Code: CodeServer, Param: "url", Message: fmt.Sprintf("%s redirects more than %d times", at.Host, maxRedirects), Fix: "use the URL that it ends at"}
}

// free hands an answer on that cost nothing.
func (c *Client) free(cl *call, rep *reply) (*Result, error) {
	if rep.status >= 400 {
		return nil, rep.failure(cl)
	}
	out := output{w: cl.Out}
	if err := out.copy(rep.body); err != nil {
		return nil, &clawr.Error{Code: clawr.CodeUnreachable, Message: "the answer ended early: " + clean(err.Error(), 200), Fix: cl.Again}
	}
	return &Result{Status: rep.status, Header: rep.header, Bytes: out.n}, nil
}

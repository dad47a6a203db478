package buyer

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// maxVouchers bounds how often one call is paid anew after a correction.
const maxVouchers = 4

// channelOf is the channel that holds an open voucher for a call, or "".
func (w *Wallet) channelOf(call string) (id string, err error) {
	all, err := w.Channels()
	if err != nil {
		return "", err
	}
	for i := range all {
		if all[i].of(call) != nil {
			return all[i].ID, nil
		}
	}
	return "", nil
}

// draw pays for a call from the channel of q, which it opens if it has to.
func (c *Client) draw(ctx context.Context, cl *call, q *Quote) (*Result, error) {
	unlock, err := c.Wallet.lockChannel(ctx, q.Channel)
	if err != nil {
		return nil, err
	}
	defer unlock()
	ch, err := c.Wallet.Channel(q.Channel)
	if err != nil {
		return nil, err
	}
	isNew := ch == nil
	if isNew {
		ch = newChannel(q.config, q, c.now())
	}
	if isNew || ch.Closed || ch.Deposit != nil || ch.Withdrawal > 0 || ch.Charged > math.MaxInt64-q.Atomic || ch.Charged+q.Atomic > ch.Balance {
		if _, err := c.fresh(ctx, ch); err != nil {
			return nil, err
		}
		if !isNew { // what was given back counts no more, also if this call is refused
			if err := c.Wallet.saveChannel(ch); err != nil {
				return nil, err
			}
		}
	}
	switch {
	case ch.Withdrawal > 0:
		return nil, &clawr.Error{Code: CodeChannel, Message: fmt.Sprintf("the channel %s is being withdrawn since %s. Nothing was signed.", ch.ID, ch.WithdrawAt.Format(time.RFC3339)),
			Fix: "--scheme exact, or clawr channels withdraw " + ch.ID + " when it is due"}
	case len(ch.Open) >= maxOpenVouchers:
		return nil, &clawr.Error{Code: CodeChannel, Message: fmt.Sprintf("the outcome of %d calls that were paid from the channel %s is unknown. Nothing was signed.", len(ch.Open), ch.ID),
			Fix: "make one of them again: clawr channels show " + ch.ID}
	}
	return c.drawFrom(ctx, cl, q, ch, ch.Signed)
}

// drawFrom sends vouchers for one call until one is taken. None of them allows
// more than the price beyond start: what was signed before the call, ever. So a
// seller that says whatever it likes gets one price for one call.
func (c *Client) drawFrom(ctx context.Context, cl *call, q *Quote, ch *Channel, start int64) (*Result, error) {
	for n := 1; ; n++ {
		was := ch.clone()
		p, resent, err := c.voucher(ctx, cl, q, ch, start)
		if err != nil {
			return nil, err
		}
		t := turn{call: cl, ch: ch, was: was, q: q, p: p, start: start, resent: resent, last: n == maxVouchers}
		res, next, err := c.outcome(ctx, &t, c.deliver(ctx, cl, p, false))
		if next == nil {
			return res, err
		}
		q, start = next, t.start
	}
}

// redraw sends a call's open voucher again. over says that there is none any
// more, and the call may be paid anew.
func (c *Client) redraw(ctx context.Context, cl *call, id string) (res *Result, over bool, err error) {
	unlock, err := c.Wallet.lockChannel(ctx, id)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	ch, err := c.Wallet.Channel(id)
	if err != nil {
		return nil, false, err
	}
	var p *Payment
	if ch != nil {
		p = ch.of(cl.key)
	}
	if p == nil {
		return nil, true, nil
	}
	if cl.New {
		c.note("the voucher over %s signed %s ago is given up; it may still be charged", Dollars(p.Amount), p.since(c.now()))
		ch.drop(cl.key)
		err := c.Wallet.saveChannel(ch)
		return nil, err == nil, err
	}
	if err := c.Wallet.needKey(); err != nil {
		return nil, false, err
	}
	c.note("sending the voucher over %s again that was signed %s ago; nothing new is signed", Dollars(p.Amount), p.since(c.now()))
	sent := *p
	t := turn{call: cl, ch: ch, p: &sent, start: sent.Start, resumed: true}
	res, next, err := c.outcome(ctx, &t, c.deliver(ctx, cl, &sent, true))
	if next == nil {
		return res, false, err
	}
	res, err = c.drawFrom(ctx, cl, next, ch, t.start)
	return res, false, err
}

// voucher signs the voucher for q, with a deposit if the channel does not hold
// enough, counts both against the limits and writes them down. When it returns
// without an error all of it is on the disk, and may be sent. resent says that
// the deposit was signed before.
func (c *Client) voucher(ctx context.Context, cl *call, q *Quote, ch *Channel, start int64) (p *Payment, resent bool, err error) {
	if ch.Charged > start {
		return nil, false, fmt.Errorf("a voucher on top of %d would go beyond one call: %d were signed before it", ch.Charged, start)
	}
	if start > math.MaxInt64-q.Atomic {
		return nil, false, &clawr.Error{Code: CodeChannel, Message: "the channel " + ch.ID + " cannot count any further", Fix: "--scheme exact"}
	}
	l, err := c.Wallet.Limits()
	if err != nil {
		return nil, false, err
	}
	v := &x402.ChannelPayload{Kind: x402.ChannelVoucher, Config: ch.config, Voucher: x402.Voucher{Channel: ch.config.ID(ch.domain), MaxClaimable: ch.Charged + q.Atomic}}
	var usd clawr.Amount
	d := ch.Deposit
	if need := v.Voucher.MaxClaimable - ch.Balance; need > 0 {
		switch {
		case d != nil && d.again(c.now()) && d.Amount >= need:
			resent = true
		case d != nil && d.Amount >= need:
			d = nil // taken for made
		default:
			if d, usd, err = c.fund(ctx, cl, q, ch, need, l); err != nil {
				return nil, false, err
			}
			ch.Deposit = d
		}
	} else {
		d = nil
	}
	if d != nil {
		v.Kind, v.Deposit = x402.ChannelDeposit, d.wire()
	}
	if err := v.Voucher.Sign(c.Wallet.key, ch.domain); err != nil {
		return nil, false, err
	}
	if p, err = c.wrap(cl, q, v); err != nil {
		return nil, false, err
	}
	p.Channel, p.Max, p.Start = ch.ID, v.Voucher.MaxClaimable, start
	if d != nil {
		p.Deposit, p.Nonce = d.Amount, d.nonce(ch)
	}
	ch.drop(cl.key)
	ch.Open = append(ch.Open, *p)
	ch.Method, ch.URL, ch.Closed = cl.Method, q.url.String(), false
	rise := max(p.Max-ch.Signed, 0)
	ch.Signed += rise
	return p, resent, c.Wallet.record(ctx, ch, usd, ch.USD(rise), l)
}

// fund signs a deposit for a channel that does not hold enough.
func (c *Client) fund(ctx context.Context, cl *call, q *Quote, ch *Channel, need int64, l Limits) (*PendingDeposit, clawr.Amount, error) {
	out, _, err := c.Wallet.counted(ctx)
	if err != nil {
		return nil, 0, err
	}
	units, usd, err := c.size(cl, q, need, out, l)
	if err != nil {
		return nil, 0, err
	}
	if err := c.checkBalance(ctx, q.Asset, units, "this deposit is"); err != nil {
		return nil, 0, err
	}
	c.note("depositing %s into the channel %s with %s; what is left of it comes back by clawr channels refund, or without the seller after %s", Dollars(usd), short(ch.ID), ch.PayTo, ch.Delay())
	d, err := c.newDeposit(ch, q, units, usd)
	return d, usd, err
}

// wrap puts v into the header that answers q.
func (c *Client) wrap(cl *call, q *Quote, v *x402.ChannelPayload) (*Payment, error) {
	paid := x402.PaymentPayload{Version: x402.Version, Accepted: q.offer, Payload: v.JSON(), Resource: &q.required.Resource}
	var err error
	if paid.Extensions, err = identify(q.required.Extensions, cl.ID); err != nil {
		return nil, err
	}
	header, err := checkHeader(&paid)
	if err != nil {
		return nil, err
	}
	now := c.now()
	return &Payment{ID: newID("pay_"), Call: cl.key, Method: cl.Method, URL: q.url.String(), BodySHA256: cl.body, Created: now.UTC().Truncate(time.Millisecond),
		HeaderName: x402.HeaderSignature, Header: header, Network: q.Asset.Network, Asset: q.Asset.Address, PayTo: q.PayTo, Payer: c.Wallet.address,
		Atomic: q.Atomic, Amount: q.Amount, ValidBefore: now.Add(q.Lifetime).Unix()}, nil
}

// checkHeader is p as a header, if it can be sent.
func checkHeader(p *x402.PaymentPayload) (string, error) {
	header := p.Header()
	if len(header) > x402.MaxHeader {
		return "", &clawr.Error{Code: CodeBadQuote, Message: fmt.Sprintf("the server's challenge makes a payment of %d bytes, at most %d can be sent", len(header), x402.MaxHeader), Fix: "tell whoever runs the API; nothing was sent"}
	}
	return header, nil
}

// short is the beginning of a long hash.
func short(s string) string {
	if len(s) <= 14 {
		return s
	}
	return s[:8] + "…" + s[len(s)-4:]
}

package buyer

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// Refund is what a seller gave back.
type Refund struct {
	Transaction string // its word
	// Proven says that Balance is the chain's word, and not the seller's.
	Proven  bool
	Channel *Channel // as it is now
}

// Refund asks the seller of a channel to give back amount units of what is
// left, or all of it if amount is 0. It signs nothing that was not signed
// before, and what comes back comes to the payer: so it may be asked for as
// often as one likes. url is any call that the channel pays for; empty is the
// last one.
func (c *Client) Refund(ctx context.Context, id string, amount int64, at string) (*Refund, error) {
	ch, unlock, err := c.holdChannel(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	r := Request{Method: ch.Method, URL: ch.URL, Again: "clawr channels refund " + ch.ID}
	if at != "" {
		r.Method, r.URL = http.MethodGet, at
	}
	cl, err := newCall(r)
	if err != nil {
		return nil, err
	}
	rep, from, err := c.unpaid(ctx, cl)
	if err != nil {
		return nil, err
	}
	defer rep.body.Close()
	if rep.status != http.StatusPaymentRequired {
		return nil, &clawr.Error{Code: CodeChannel, Message: fmt.Sprintf("%s answers %d to %s %s, and does not ask for a payment", cl.host, rep.status, cl.Method, clean(from.String(), 200)), Fix: cl.Again + " --url URL  # of something that it sells"}
	}
	req, err := readChallenge(rep.header.Values(x402.HeaderRequired), rep.text())
	if err != nil {
		return nil, err
	}
	return c.askBack(ctx, cl, ch, req, from, amount)
}

// holdChannel is the wallet's channel id, which nobody else draws on until
// unlock.
func (c *Client) holdChannel(ctx context.Context, id string) (ch *Channel, unlock func(), err error) {
	if err := c.Wallet.needKey(); err != nil {
		return nil, nil, err
	}
	if unlock, err = c.Wallet.lockChannel(ctx, id); err != nil {
		return nil, nil, err
	}
	if ch, err = c.channel(ctx, id); err != nil {
		unlock()
		return nil, nil, err
	}
	return ch, unlock, nil
}

// channel is the wallet's channel id, as the chain says if there is a node.
func (c *Client) channel(ctx context.Context, id string) (*Channel, error) {
	ch, err := c.Wallet.Channel(id)
	if err != nil {
		return nil, err
	}
	if ch == nil {
		return nil, &clawr.Error{Code: clawr.CodeNotFound, Message: "the wallet has no channel " + clean(id, 70), Fix: "clawr channels list"}
	}
	if ch.Payer != c.Wallet.Address() {
		return nil, &clawr.Error{Code: CodeChannel, Message: fmt.Sprintf("the channel %s is paid from by %s, and this wallet is %s", ch.ID, ch.Payer, c.Wallet.Address()), Fix: "use the key of " + ch.Payer}
	}
	_, err = c.fresh(ctx, ch)
	return ch, err
}

// askBack sends the refund until there is an answer to it.
func (c *Client) askBack(ctx context.Context, cl *call, ch *Channel, req *x402.PaymentRequired, from *url.URL, amount int64) (*Refund, error) {
	before := ch.clone()
	for n := 1; ; n++ {
		q, err := c.sameChannel(ctx, req, from, cl, ch)
		if err != nil {
			return nil, err
		}
		v := &x402.ChannelPayload{Kind: x402.ChannelRefund, Config: ch.config, Amount: amount, Voucher: x402.Voucher{Channel: ch.config.ID(ch.domain), MaxClaimable: ch.Charged}}
		if err := v.Voucher.Sign(c.Wallet.key, ch.domain); err != nil {
			return nil, err
		}
		p, err := c.wrap(cl, q, v)
		if err != nil {
			return nil, err
		}
		e := c.deliver(ctx, cl, p, false)
		switch {
		case e.kind == answered:
			return c.refunded(ctx, ch, before, p, e.reply, amount)
		case e.kind != refused:
			return nil, &clawr.Error{Code: clawr.CodePaymentUnknown, Message: "it is not known whether the refund was made: " + e.why, Fix: cl.Again + "  # asking twice does no harm"}
		}
		if !c.rebaseRefund(ctx, ch, e.reply) || n == maxVouchers {
			return nil, &clawr.Error{Code: e.reply.code(), Message: fmt.Sprintf("%s refused the refund: %s", cl.host, e.why),
				Fix: fmt.Sprintf("clawr channels withdraw %s --rpc-url URL  # takes it out without the seller, after %s", ch.ID, ch.Delay())}
		}
		req = e.reply.required
	}
}

// sameChannel is the offer of req that ch pays for.
func (c *Client) sameChannel(ctx context.Context, req *x402.PaymentRequired, from *url.URL, cl *call, ch *Channel) (*Quote, error) {
	only := *c
	only.Scheme = x402.SchemeChannel
	q, err := only.choose(ctx, req, from, cl.host)
	if err != nil {
		return nil, err
	}
	if q.Channel != ch.ID {
		return nil, &clawr.Error{Code: CodeChannel, Message: fmt.Sprintf("%s sells %s from the channel %s now, not from %s", cl.host, clean(from.String(), 200), q.Channel, ch.ID),
			Fix: cl.Again + " --url URL  # of what it pays for, or clawr channels withdraw"}
	}
	return q, nil
}

// rebaseRefund follows a seller who says that another amount was charged, if it
// is no more than was ever signed.
func (c *Client) rebaseRefund(ctx context.Context, ch *Channel, v *verdict) bool {
	if v.reason != string(x402.ReasonCumulativeMismatch) && v.reason != string(x402.ReasonCumulativeBelow) || v.required == nil {
		return false
	}
	s := stateOf(v.required, ch)
	on, err := c.sync(ctx, ch)
	ch.Signed = max(ch.Signed, s.max)
	if err != nil || !s.stated || s.charged > ch.Signed || s.charged < on.Claimed || s.charged == ch.Charged {
		return false
	}
	ch.Charged = s.charged
	return true
}

// refunded books a refund: as the chain says, or else as was asked for.
func (c *Client) refunded(ctx context.Context, ch, before *Channel, p *Payment, v *verdict, amount int64) (*Refund, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	r := &Refund{Transaction: p.Transaction, Channel: ch}
	if c.Vault != nil {
		if _, err := c.fresh(ctx, ch); err != nil {
			return nil, err
		}
		r.Proven = true
	} else if v.settled != nil && v.settled.Success {
		back := ch.Left()
		if amount > 0 {
			back = min(back, amount)
		}
		ch.Balance -= back
	}
	ch.Closed = ch.Left() == 0 && ch.Deposit == nil
	if err := c.Wallet.saveChannel(ch); err != nil {
		return nil, err
	}
	if r.Proven && ch.Balance >= before.Balance {
		return nil, &clawr.Error{Code: clawr.CodePaymentUnknown, Message: fmt.Sprintf("the seller says that it gave the money back, and the chain does not show it: the channel holds %s", Dollars(ch.USD(ch.Left()))),
			Fix: "wait for the next block, then clawr channels show " + ch.ID}
	}
	return r, nil
}

// Withdrawal is a step of taking money out of a channel without its seller.
type Withdrawal struct {
	Step        string // begun, waiting or done
	Amount      int64  // units
	Due         time.Time
	Transaction string
	Channel     *Channel
}

// The steps.
const (
	WithdrawBegun   = "begun"
	WithdrawWaiting = "waiting"
	WithdrawDone    = "done"
)

// Withdraw takes the next step of a timed withdrawal: it begins one, says how
// long the one that was begun still takes, or ends it. What open vouchers may
// still be charged for stays in the channel: a call that is on its way is paid.
func (c *Client) Withdraw(ctx context.Context, id string) (*Withdrawal, error) {
	if err := c.Wallet.needKey(); err != nil { // before a node is asked for
		return nil, err
	}
	if c.Vault == nil || c.Chain == nil {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "rpc-url", Message: "a withdrawal is a transaction of the wallet's own", Fix: "--rpc-url URL of a node"}
	}
	ch, unlock, err := c.holdChannel(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	w := &Withdrawal{Channel: ch, Amount: ch.Withdrawal}
	switch due := ch.WithdrawAt.Add(ch.Delay()); {
	case ch.Withdrawal == 0:
		keep := ch.Charged
		if len(ch.Open) > 0 {
			keep = max(keep, ch.Signed)
		}
		if w.Amount = ch.Balance - keep; w.Amount <= 0 {
			err = &clawr.Error{Code: CodeChannel, Message: fmt.Sprintf("nothing is left in the channel %s: it holds %d units, and %d are owed", ch.ID, ch.Balance, keep), Fix: "clawr channels show " + ch.ID}
			break
		}
		w.Step = WithdrawBegun
		w.Transaction, err = c.Vault.Withdraw(ctx, ch.config, w.Amount)
	case c.now().Before(due) && ch.head.Before(due):
		w.Step, w.Due = WithdrawWaiting, due
	default:
		w.Step = WithdrawDone
		w.Transaction, err = c.Vault.Finalize(ctx, ch.config)
	}
	if err == nil && w.Transaction != "" {
		_, err = c.fresh(ctx, ch)
	}
	if err != nil {
		return nil, err
	}
	if w.Step == WithdrawBegun && ch.Withdrawal > 0 {
		w.Due = ch.WithdrawAt.Add(ch.Delay())
	}
	ch.Closed = ch.Closed || w.Step == WithdrawDone
	return w, c.Wallet.saveChannel(ch)
}

// Look brings a channel up to what the chain says, if there is a node to ask,
// and writes that down.
func (c *Client) Look(ctx context.Context, id string) (*Channel, error) {
	ch, err := c.Wallet.Channel(id)
	if ch == nil || err != nil || c.Vault == nil || c.Chain == nil || c.Chain.Network() != ch.Network {
		return ch, err
	}
	unlock, err := c.Wallet.lockChannel(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if ch, err = c.Wallet.Channel(id); err != nil || ch == nil {
		return nil, err
	}
	if _, err := c.fresh(ctx, ch); err != nil {
		return nil, err
	}
	return ch, c.Wallet.saveChannel(ch)
}

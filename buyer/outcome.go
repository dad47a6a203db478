package buyer

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// turn is one voucher that was sent for a call.
type turn struct {
	call *call
	ch   *Channel
	was  *Channel // before the voucher was signed; nil if it is an earlier call's
	q    *Quote   // likewise: what it was signed for
	p    *Payment
	// start is what was signed before the call: no voucher for it goes further
	// than its price beyond that.
	start   int64
	resumed bool // it is an earlier call's
	resent  bool // its deposit is an earlier voucher's
	last    bool // no other is signed for this call
}

// outcome books how a voucher ended. next, if it is not nil, is what another
// voucher for the same call may be signed for.
func (c *Client) outcome(ctx context.Context, t *turn, e end) (res *Result, next *Quote, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	switch e.kind {
	case answered:
		res, err = c.answered(t, e)
		return res, nil, err
	case unsent:
		*t.ch = *t.was
		if err := c.Wallet.saveChannel(t.ch); err != nil {
			return nil, nil, err
		}
		return nil, nil, &clawr.Error{Code: clawr.CodeUnreachable, Param: "url", Message: "the payment could not be sent: " + e.why + "; nothing was charged", Fix: t.call.Again}
	case refused:
		t.p.Refused = &Refusal{Status: e.reply.status, Reason: e.why, At: c.now().UTC().Truncate(time.Second)}
	}
	if e.failed != nil {
		err = &clawr.Error{Code: clawr.CodeFile, Message: "the answer was paid for, but could not be written", Fix: t.call.Again + "  # fetches the same answer, and pays nothing", Err: e.failed}
	} else if e.kind == unknown {
		err = c.lost(t.call, t.p, e.why+"; it may have been charged")
	}
	if err == nil {
		var isLost bool
		if next, isLost, err = c.correct(ctx, t, e.reply); err != nil {
			next = nil
		}
		if !isLost {
			t.ch.drop(t.p.Call)
		} else {
			t.keep()
		}
	} else {
		t.keep()
	}
	if next != nil && t.last {
		next, err = nil, &clawr.Error{Code: clawr.CodePaymentRejected, Message: fmt.Sprintf("%s refused %d vouchers for one call, the last with %s; not charged, says the server, and it can claim %s for the call at most",
			t.call.host, maxVouchers, e.why, Dollars(t.p.Amount)), Fix: t.call.Again + " --scheme exact"}
	}
	if saved := c.Wallet.saveChannel(t.ch); saved != nil {
		return nil, nil, saved
	}
	if next != nil || err != nil {
		return nil, next, err
	}
	fix := t.call.Again + "  # the next voucher takes the place of this one"
	switch e.reply.reason {
	case string(x402.ReasonDepositBalance):
		fix = "clawr wallet fund; " + fix
	case string(x402.ReasonDepositBelowMin):
		fix = t.call.Again + " --deposit USD  # more of it"
		if t.q != nil && t.q.hint > 0 {
			fix = fmt.Sprintf("%s --deposit %s", t.call.Again, t.ch.USD(t.q.hint))
		}
	case string(x402.ReasonCumulativeBalance), string(x402.ReasonChannelNotFound):
		if c.Vault == nil {
			fix = t.call.Again + " --rpc-url URL  # to look what the channel holds"
		}
	}
	return nil, nil, e.error(t.call, "not charged, says the server", fix)
}

// keep writes what became known of the voucher into the channel.
func (t *turn) keep() {
	if o := t.ch.of(t.p.Call); o != nil {
		*o = *t.p
	}
}

// answered books an answer.
func (c *Client) answered(t *turn, e end) (*Result, error) {
	ch, p := t.ch, t.p
	base := p.Max - p.Atomic
	charged := p.Max // what the seller does not say is taken for all of it
	if n, ok := chargedAmount(e.reply.settled); ok && n <= p.Atomic {
		charged = base + n
	}
	ch.made(p)
	ch.Charged = max(ch.Charged, charged)
	ch.drop(p.Call)
	if !t.resumed {
		// It was charged from base just now, so that vouchers for other calls that
		// began there, or further, were not; and this one took their place.
		for _, o := range t.was.Open {
			if o.Max-o.Atomic >= base {
				ch.drop(o.Call)
			}
		}
	}
	if err := c.Wallet.saveChannel(ch); err != nil {
		return nil, err
	}
	err := c.Wallet.log(ch, Draw{At: c.now().UTC().Truncate(time.Second), Method: p.Method, URL: p.URL, Amount: p.Amount, Charged: ch.Charged,
		Status: e.result.Status, Deposit: p.Deposit, Transaction: p.Transaction})
	if err != nil {
		return nil, err
	}
	e.result.Resumed, e.result.Payment, e.result.Channel = t.resumed, p, ch.clone()
	return e.result, nil
}

// made takes the deposit for made that p was sent with, or relied on.
func (ch *Channel) made(p *Payment) {
	d := ch.Deposit
	if d == nil || p.Deposit > 0 && d.nonce(ch) != p.Nonce || p.Deposit == 0 && p.Max <= ch.Balance {
		return
	}
	ch.Balance += d.Amount
	ch.Deposit = nil
}

// chargedAmount is what a receipt says a voucher was charged.
func chargedAmount(s *x402.SettleResponse) (int64, bool) {
	if s == nil {
		return 0, false
	}
	return digits(s.Extra.Find("chargedAmount"))
}

// digits reads an amount as the protocol writes it: decimal, in a string.
func digits(raw []byte) (int64, bool) {
	s, err := strconv.Unquote(string(raw))
	if err != nil {
		return 0, false
	}
	n, ok := x402.ParseUint(s)
	if !ok {
		return 0, false
	}
	return n.Int64()
}

// correct looks whether a refused voucher may be replaced by another for the
// same call. isLost says that the voucher may have been charged all the same.
func (c *Client) correct(ctx context.Context, t *turn, v *verdict) (next *Quote, isLost bool, err error) {
	if v.status != http.StatusPaymentRequired {
		return nil, false, nil
	}
	switch clawr.Code(v.reason) {
	case x402.ReasonCumulativeMismatch, x402.ReasonCumulativeBelow:
		return c.rebase(ctx, t, v)
	case x402.ReasonCumulativeBalance, x402.ReasonChannelNotFound:
		next, err = c.refill(ctx, t, v)
		return next, false, err
	case x402.ReasonDepositBelowMin:
		if t.ch.Deposit != nil {
			t.ch.Deposit.Tried = true // it will not be taken the next time either
		}
		return nil, false, nil
	}
	if t.resent && t.ch.Deposit != nil {
		t.ch.Deposit.Tried = true // what was made cannot be made again
	} else if !t.resumed {
		return nil, false, nil
	}
	if t.ch.Charged > t.start {
		return nil, true, c.lost(t.call, t.p, v.String()+"; another call was charged since")
	}
	next, err = c.offered(ctx, t, v)
	return next, false, err
}

// offered is what v asks for the call now, if it is to be paid from the same
// channel and within the limits.
func (c *Client) offered(ctx context.Context, t *turn, v *verdict) (*Quote, error) {
	if v.required == nil {
		return t.q, nil // nothing else is asked for
	}
	at, err := url.Parse(t.p.URL)
	if err != nil {
		return nil, err
	}
	q, err := c.choose(ctx, v.required, at, t.call.host)
	if err != nil || q.Channel != t.ch.ID {
		return nil, err
	}
	if err := c.Within(q, t.call.Request); err != nil {
		return nil, err
	}
	return q, nil
}

// refill looks why a channel does not hold what the seller was told it does. It
// is not the seller's word that makes us deposit more: the chain says what
// there is, or a deposit was not known to be made.
func (c *Client) refill(ctx context.Context, t *turn, v *verdict) (*Quote, error) {
	ch := t.ch
	had := ch.Balance
	doubtful := ch.Deposit != nil && t.p.Deposit == 0 && t.p.Max > ch.Balance
	if _, err := c.fresh(ctx, ch); err != nil {
		return nil, err
	}
	switch {
	case ch.Withdrawal > 0:
		return nil, &clawr.Error{Code: CodeChannel, Message: "the channel " + ch.ID + " is being withdrawn; not charged, says the server", Fix: "--scheme exact, or clawr channels withdraw " + ch.ID + " when it is due"}
	case doubtful:
		ch.Deposit = nil // it counts for its day all the same
	case t.resent && ch.Deposit != nil:
		ch.Deposit.Tried = true
	case c.Vault == nil || ch.Balance >= had || ch.Balance >= t.p.Max:
		return nil, nil
	}
	if ch.Charged > t.start {
		return nil, nil
	}
	return c.offered(ctx, t, v)
}

// state is what a correction says of a channel.
type state struct {
	charged, balance int64
	stated           bool  // charged was given
	max              int64 // by a voucher of ours that it shows; 0: it shows none
}

// stateOf reads what a correction says of ch. Only a voucher with our own
// signature is taken for one.
func stateOf(req *x402.PaymentRequired, ch *Channel) (s state) {
	if req == nil {
		return s
	}
	for i := range req.Accepts {
		o := &req.Accepts[i]
		if o.Scheme != x402.SchemeChannel || o.Network != ch.Network {
			continue
		}
		var on, voucher map[string]json.RawMessage
		json.Unmarshal(o.Extra.Rest.Find("channelState"), &on) // what cannot be read is not said
		json.Unmarshal(o.Extra.Rest.Find("voucherState"), &voucher)
		s.charged, s.stated = digits(on["chargedCumulativeAmount"])
		s.balance, _ = digits(on["balance"])
		sig, _ := strconv.Unquote(string(voucher["signature"]))
		if most, ok := digits(voucher["signedMaxClaimable"]); ok {
			proof := x402.Voucher{Channel: ch.config.ID(ch.domain), MaxClaimable: most, Signature: common.FromHex(sig)}
			if proof.SignedBy(ch.config.VoucherSigner(), ch.domain) {
				s.max = most
			}
		}
		return s
	}
	return s
}

// rebase follows a seller who says that the channel was charged otherwise. It is
// followed as far as something was signed before this call: by this wallet,
// whose files say so, or by another with the same key, which the seller has to
// prove by the signature or by a claim. Never because of this call's own
// voucher: that would be charged, without an answer.
func (c *Client) rebase(ctx context.Context, t *turn, v *verdict) (next *Quote, isLost bool, err error) {
	ch := t.ch
	s := stateOf(v.required, ch)
	ours := ch.Signed // by this wallet, this call's own vouchers included
	on, err := c.fresh(ctx, ch)
	if err != nil {
		return nil, true, err
	}
	ch.Signed = max(ch.Signed, s.max)
	if ch.Signed > ours && !t.resumed {
		t.start = ch.Signed
	}
	base := s.charged
	if !s.stated {
		base = ch.Charged
	}
	used := t.p.Max - t.p.Atomic
	switch {
	case on.Claimed > t.start:
		ch.Charged = max(ch.Charged, on.Claimed)
		return nil, true, c.lost(t.call, t.p, fmt.Sprintf("%s; it was charged, the chain says, but the answer was not delivered", v))
	case base < on.Claimed || base > ch.Signed:
		return nil, false, &clawr.Error{Code: clawr.CodePaymentRejected, Message: fmt.Sprintf("%s says that the channel %s was charged %d units, and cannot prove it: %d were signed, %d are claimed; no more was signed",
			t.call.host, ch.ID, base, ch.Signed, on.Claimed), Fix: t.call.Again + " --scheme exact; clawr channels withdraw " + ch.ID}
	case base > t.start:
		if c.Vault == nil {
			ch.made(t.p)
		}
		ch.Charged = max(ch.Charged, base)
		return nil, true, c.lost(t.call, t.p, fmt.Sprintf("%s; the server says that it was charged, but did not deliver the answer", v))
	case base == used && base == ch.Charged:
		return nil, false, nil // it asks for what it has refused
	}
	ch.Charged = base
	if c.Vault == nil && s.balance > 0 && ch.Balance == 0 && ch.Deposit == nil {
		ch.Balance = s.balance
	}
	c.note("%s says that the channel was charged %d units, not %d; %d were signed before this call", t.call.host, base, used, t.start)
	next, err = c.offered(ctx, t, v)
	return next, false, err
}

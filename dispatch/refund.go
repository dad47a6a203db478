package dispatch

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// refund gives back what is left of a channel, or what was asked for of it. The
// worker has nothing to do with it.
func (d *Dispatcher) refund(c *call, p *payment, terms x402.Requirements) error {
	ctx, cancel := d.detached(c)
	defer cancel()
	ch, err := d.sync(ctx, p)
	if err != nil {
		return unavailable(err)
	}
	v := p.channel.Voucher
	left := ch.Balance - ch.Charged
	switch {
	case v.MaxClaimable != ch.Charged:
		return d.behind(c, p, ch)
	case left <= 0 || ch.Forfeited > 0:
		return d.refuse(c, x402.ReasonRefundNoBalance, "nothing is left in the channel")
	}
	full := *p.channel
	full.Completed, full.RefundNonce = true, ch.RefundNonce
	if full.Amount == 0 || full.Amount > left {
		full.Amount = left
	}
	if full.Claims, err = claimOf(ch); err != nil {
		return err
	}
	// Nobody may charge meanwhile what is being given back: also not when this
	// process is gone and its transaction is in no block yet. So the hold lasts
	// longer than what the book knows of the channel is believed, and it ends
	// early only by an outcome.
	known := true
	var hold *ledger.Hold
	if room := ch.Room() - ch.Charged; room > 0 {
		d.reached("hold.before")
		epoch, err := d.Till.Holds.HoldChannel(ctx, ch.ID, ch.Charged, min(full.Amount, room), refundHold+strconv.FormatUint(ch.RefundNonce, 10),
			time.Duration(d.Till.delay())*time.Second)
		if b, ok := errors.AsType[*ledger.ChannelBehind](err); ok {
			return d.overtaken(ctx, c, p, &b.Channel, ch.Charged)
		}
		if err != nil {
			return unavailable(err)
		}
		d.reached("hold.after")
		hold = &ledger.Hold{Channel: ch.ID, Epoch: epoch}
		defer func() {
			if known {
				d.Till.Holds.ReleaseChannel(context.WithoutCancel(ctx), hold.Channel, hold.Epoch)
			}
		}()
	}
	if err := d.authorize(&full, p.domain); err != nil {
		return unavailable(err)
	}
	payload := *p.ForFacilitator(&terms)
	payload.Payload = full.JSON()
	known = false
	out, err := d.Till.Vault.RefundChannel(ctx, &payload, terms, hold)
	if err == nil && out.ErrorReason == x402.ReasonPending {
		return d.pending(c, &ledger.Payment{Key: p.key, Money: ledger.Signed}, out.Transaction)
	}
	// An earlier try may have given it back.
	after, unread := d.sync(ctx, p)
	known = unread == nil
	if err != nil {
		return unavailable(err)
	}
	if !out.Success {
		return d.refuse(c, out.ErrorReason, "the refund was not made")
	}
	if len(full.Claims) > 0 { // claimed with it, and not sent yet
		d.Till.unsent.add(ledger.Receiver{Address: ch.PayTo, Asset: ch.Asset}, d.now().Add(d.Till.quarter()))
	}
	if known {
		out.Extra = x402.Object{{Name: "channelState", Value: channelState(after)}}
	}
	c.setReceipt(&out)
	h := c.w.Header()
	h["Content-Type"], h["Cache-Control"] = jsonType, noStore
	body, _ := json.Marshal(map[string]string{"message": "Refund acknowledged", "channelId": strings.ToLower(v.Channel.Hex())})
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	c.ev.Lifecycle, c.ev.Countable = usage.Success, false
	c.w.WriteHeader(http.StatusOK)
	c.w.Write(body)
	return nil
}

// refundHold is how the hold of a refund begins, which any process may take up
// again: the nonce that follows lets it be made once.
const refundHold = "refund/"

// overtaken answers a voucher for which the book had no room. If its base is
// what is charged, it is not wrong, but early: somebody holds the channel.
func (d *Dispatcher) overtaken(ctx context.Context, c *call, p *payment, ch *ledger.Channel, base int64) error {
	if ch.Reserved == 0 || ch.Charged != base {
		return d.behind(c, p, ch)
	}
	if strings.HasPrefix(ch.Holder, refundHold) {
		if err := d.refunded(ctx, p); err != nil {
			return unavailable(err)
		}
	}
	return busy()
}

// refunded ends the hold of a refund that has come to its end. One that was made
// has raised the channel's nonce, and the book ends its hold when it hears of
// that. One that was not is over when no transaction can make it any more: none
// that names the channel is on its way, and the process that wanted to sign one
// had its time, or is gone. That has to be so for a while, for the sake of
// another node that is about to sign, and of one that is behind the block in
// which it was made.
func (d *Dispatcher) refunded(ctx context.Context, p *payment) error {
	moving, err := d.Till.Vault.Moving(ctx, p.channel.Config) // first: what is in a block by now is seen below
	if err != nil {
		return err
	}
	ch, err := d.sync(ctx, p)
	if err != nil {
		return err
	}
	if moving || ch.Reserved == 0 || !strings.HasPrefix(ch.Holder, refundHold) {
		d.Till.idle.forget(p.channel.Voucher.Channel)
		return nil
	}
	if now := d.now(); now.Sub(d.Till.idle.since(p.channel.Voucher.Channel, ch.Epoch, now)) < d.deadline()+signing {
		return nil
	}
	d.Log.WarnContext(ctx, "a refund was not made", "channel", ch.ID)
	d.Till.idle.forget(p.channel.Voucher.Channel)
	return d.Till.Holds.ReleaseChannel(context.WithoutCancel(ctx), ch.ID, ch.Epoch)
}

// signing is how much longer than its call a signature may take: the book is
// waited for.
const signing = 15 * time.Second

// idleHolds are the refunds' holds for which nothing was seen to happen, and
// since when.
type idleHolds struct {
	mu   sync.Mutex
	seen map[common.Hash]idleHold
}

type idleHold struct {
	epoch int64
	since time.Time
}

// maxIdle bounds what is remembered: one that is forgotten lasts a little longer.
const maxIdle = 1024

// since is when a hold was first seen to be idle.
func (h *idleHolds) since(channel common.Hash, epoch int64, now time.Time) time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	if it, ok := h.seen[channel]; ok && it.epoch == epoch {
		return it.since
	}
	if h.seen == nil || len(h.seen) >= maxIdle {
		h.seen = make(map[common.Hash]idleHold)
	}
	h.seen[channel] = idleHold{epoch, now}
	return now
}

func (h *idleHolds) forget(channel common.Hash) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.seen, channel)
}

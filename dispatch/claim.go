package dispatch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// How often channels are looked through, how many are looked at, and how many
// share one transaction.
const (
	claimEvery   = 3 * time.Second
	claimLook    = 5000
	claimAtOnce  = 100
	claimTime    = 2 * time.Minute
	defaultAbove = 1_000_000 // atomic units due in a channel
)

// collect watches the channels that owe something, and claims them all when one of
// them has to be: it owes too much, it has owed for a quarter of the time that a
// withdrawal takes, or its payer withdraws. It runs until ctx ends.
func (d *Dispatcher) collect(ctx context.Context) error {
	tick := time.NewTicker(claimEvery)
	defer tick.Stop()
	for {
		if _, err := d.Claim(ctx, false); err != nil && ctx.Err() == nil {
			d.Log.WarnContext(ctx, "channels not claimed", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Claim claims every channel that owes something, if one of them has to be
// claimed now, or in any case, and sends what was claimed to its receivers. It
// tells how many channels it claimed.
func (d *Dispatcher) Claim(ctx context.Context, now bool) (claimed int, err error) {
	if d.Till == nil {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	claimed, err = d.claimDue(ctx, now)
	return claimed, errors.Join(err, d.send(ctx, now))
}

func (d *Dispatcher) claimDue(ctx context.Context, now bool) (claimed int, err error) {
	due, err := d.Till.Channels.DueChannels(ctx, d.Asset.Network, claimLook)
	if err != nil || len(due) == 0 {
		return 0, err
	}
	if due, err = d.watched(ctx, due); err != nil {
		return 0, err
	}
	for i := range due {
		now = now || d.pressing(&due[i])
	}
	if !now {
		return 0, nil
	}
	var errs []error
	for len(due) > 0 {
		n := min(len(due), claimAtOnce)
		done, err := d.claimSome(ctx, due[:n])
		claimed, errs, due = claimed+done, append(errs, err), due[n:]
	}
	return claimed, errors.Join(errs...)
}

// unsent are the receivers of what was claimed and may not have been sent, and
// when it is to be. What an earlier process left is asked for once.
type unsent struct {
	asked atomic.Bool
	mu    sync.Mutex
	when  map[ledger.Receiver]time.Time
}

// add has something sent to r at a time, or before.
func (u *unsent) add(r ledger.Receiver, at time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if old, ok := u.when[r]; ok && old.Before(at) {
		return
	}
	if u.when == nil {
		u.when = map[ledger.Receiver]time.Time{}
	}
	u.when[r] = at
}

// take gives those whose time has come. Whoever is not sent his money is added
// again.
func (u *unsent) take(at time.Time, all bool) (list []ledger.Receiver) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for r, when := range u.when {
		if all || !when.After(at) {
			list = append(list, r)
			delete(u.when, r)
		}
	}
	return list
}

// send sends receivers what was claimed for them. A crash may have come between
// the two, so that whoever ever had something claimed is asked about once.
func (d *Dispatcher) send(ctx context.Context, all bool) error {
	u := &d.Till.unsent
	if d.Till.Receivers != nil && u.asked.CompareAndSwap(false, true) {
		list, err := d.Till.Receivers.ClaimedFor(ctx, d.Asset.Network)
		if err != nil {
			u.asked.Store(false)
			return err
		}
		for _, r := range list {
			u.add(r, d.now())
		}
	}
	var errs []error
	for _, r := range u.take(d.now(), all) {
		p := &x402.ChannelPayload{Kind: x402.ChannelSettle, Receiver: common.HexToAddress(r.Address), Token: common.HexToAddress(r.Asset)}
		if err := d.vault(ctx, p); err != nil {
			u.add(r, d.now())
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// pressing reports whether a channel has to be claimed now.
func (d *Dispatcher) pressing(ch *ledger.Channel) bool {
	above := d.Till.ClaimAbove
	if above <= 0 {
		above = defaultAbove
	}
	return ch.Due() >= above || ch.WithdrawAt > 0 || d.now().Sub(ch.Unclaimed) >= d.Till.quarter()
}

// watched reads those of due from the chain that were not read for a while: a
// withdrawal shows nowhere else.
func (d *Dispatcher) watched(ctx context.Context, due []ledger.Channel) ([]ledger.Channel, error) {
	out := due[:0:0]
	for _, ch := range due {
		if d.now().Sub(ch.Synced) > d.Till.fresh() {
			fresh, err := d.reread(ctx, ch)
			if err != nil {
				return nil, err
			}
			ch = fresh
		}
		if ch.Due() > 0 {
			out = append(out, ch)
		}
	}
	return out, nil
}

func (d *Dispatcher) reread(ctx context.Context, ch ledger.Channel) (ledger.Channel, error) {
	seen, err := d.Till.Vault.ReadChannel(ctx, common.HexToHash(ch.ID))
	if err != nil {
		return ch, err
	}
	ch.Balance, ch.Claimed, ch.Withdrawal, ch.WithdrawAt, ch.RefundNonce, ch.Synced = seen.Balance, seen.Claimed, seen.Withdrawal, seen.WithdrawAt, seen.RefundNonce, seen.Synced
	ch, err = d.Till.Channels.SyncChannel(ctx, ch)
	if err == nil {
		d.noticed(&ch)
	}
	return ch, err
}

// claimOf is what is due of a channel, with the voucher that allows it.
func claimOf(ch *ledger.Channel) ([]x402.Claim, error) {
	if ch.Due() == 0 {
		return nil, nil
	}
	config, err := x402.ParseChannelConfig(ch.Config)
	if err != nil {
		return nil, fmt.Errorf("the config of channel %s: %w", ch.ID, err)
	}
	return []x402.Claim{{Config: config, Total: ch.Charged,
		Voucher: x402.Voucher{Channel: common.HexToHash(ch.ID), MaxClaimable: ch.Allowed, Signature: ch.Signature}}}, nil
}

// claimSome claims channels by one transaction. If that fails, each half is
// tried by itself: one bad voucher must not hold up the others. It tells how
// many it claimed.
func (d *Dispatcher) claimSome(ctx context.Context, due []ledger.Channel) (claimed int, err error) {
	p := &x402.ChannelPayload{Kind: x402.ChannelClaim}
	for i := range due {
		c, err := claimOf(&due[i])
		if err != nil {
			return 0, err
		}
		p.Claims = append(p.Claims, c...)
	}
	err = d.vault(ctx, p)
	if err != nil && len(due) > 1 && ctx.Err() == nil {
		half := len(due) / 2
		n, err := d.claimSome(ctx, due[:half])
		m, err2 := d.claimSome(ctx, due[half:])
		return n + m, errors.Join(err, err2)
	}
	if err != nil {
		return 0, err
	}
	for i := range due {
		d.Till.unsent.add(ledger.Receiver{Address: due[i].PayTo, Asset: due[i].Asset}, d.now())
	}
	for i := range due {
		if _, err := d.reread(ctx, due[i]); err != nil {
			return len(due), err
		}
	}
	return len(due), nil
}

// vault has p done on the chain. That it is not in a block yet is an error too:
// it is asked for again, which is free if it is done by then.
func (d *Dispatcher) vault(ctx context.Context, p *x402.ChannelPayload) error {
	id, _ := x402.ChainID(d.Asset.Network)
	if err := d.authorize(p, x402.ChannelDomain(id)); err != nil {
		return err
	}
	terms := x402.Requirements{Scheme: x402.SchemeChannel, Network: d.Asset.Network, Amount: "0", Asset: d.Asset.Address}
	out, err := d.Till.Vault.SettleChannel(ctx, &x402.PaymentPayload{Version: x402.Version, Accepted: terms, Payload: p.JSON()}, terms)
	if err == nil && !out.Success && out.ErrorReason != x402.ReasonNothingToSettle {
		err = fmt.Errorf("%s of channels: %s: %s", p.Kind, out.ErrorReason, out.ErrorMessage)
	}
	return err
}

// authorize signs claims and refunds as their receiverAuthorizer.
func (d *Dispatcher) authorize(p *x402.ChannelPayload, domain x402.Domain) (err error) {
	if len(p.Claims) > 0 {
		digest := x402.ClaimDigest(domain, p.Claims)
		if p.ClaimAuthorization, err = d.Till.Authorizer.SignHash(digest[:]); err != nil {
			return err
		}
	}
	if p.Kind == x402.ChannelRefund {
		digest := x402.RefundDigest(domain, p.Voucher.Channel, p.RefundNonce, p.Amount)
		p.RefundAuthorization, err = d.Till.Authorizer.SignHash(digest[:])
	}
	return err
}

package dispatch

import (
	"context"
	"errors"
	"fmt"
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
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	receivers := map[[2]string]bool{}
	var errs []error
	for len(due) > 0 {
		n := min(len(due), claimAtOnce)
		if err := d.claimSome(ctx, due[:n]); err != nil {
			errs = append(errs, err)
		} else {
			claimed += n
			for i := range due[:n] {
				receivers[[2]string{due[i].PayTo, due[i].Asset}] = true
			}
		}
		due = due[n:]
	}
	for r := range receivers {
		p := &x402.ChannelPayload{Kind: x402.ChannelSettle, Receiver: common.HexToAddress(r[0]), Token: common.HexToAddress(r[1])}
		if err := d.vault(ctx, p); err != nil {
			errs = append(errs, err)
		}
	}
	return claimed, errors.Join(errs...)
}

// pressing reports whether a channel has to be claimed now.
func (d *Dispatcher) pressing(ch *ledger.Channel) bool {
	above := d.Till.ClaimAbove
	if above <= 0 {
		above = defaultAbove
	}
	quarter := time.Duration(d.Till.delay()) * time.Second / 4
	return ch.Due() >= above || ch.WithdrawAt > 0 || d.now().Sub(ch.Unclaimed) >= quarter
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
// tried by itself: one bad voucher must not hold up the others.
func (d *Dispatcher) claimSome(ctx context.Context, due []ledger.Channel) error {
	p := &x402.ChannelPayload{Kind: x402.ChannelClaim}
	for i := range due {
		c, err := claimOf(&due[i])
		if err != nil {
			return err
		}
		p.Claims = append(p.Claims, c...)
	}
	err := d.vault(ctx, p)
	if err != nil && len(due) > 1 && ctx.Err() == nil {
		half := len(due) / 2
		return errors.Join(d.claimSome(ctx, due[:half]), d.claimSome(ctx, due[half:]))
	}
	if err != nil {
		return err
	}
	for i := range due {
		if _, err := d.reread(ctx, due[i]); err != nil {
			return err
		}
	}
	return nil
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

package buyer

import (
	"context"
	"time"

	"github.com/402claw/clawr/x402"
)

// Vault is the contract that holds channels, seen through a node. With one,
// what a channel holds is known rather than believed, and what is left in it
// comes back without the seller.
type Vault interface {
	// Channel is what the chain says of a channel; one that nobody funded is zero.
	Channel(ctx context.Context, id string) (OnChain, error)
	// Withdraw starts to take amount out of a channel, and Finalize ends that
	// when the delay is over. The wallet pays for gas. Both wait for the block,
	// and name the transaction.
	Withdraw(ctx context.Context, c x402.ChannelConfig, amount int64) (tx string, err error)
	Finalize(ctx context.Context, c x402.ChannelConfig) (tx string, err error)
}

// OnChain is what the chain says of a channel, in the token's units.
type OnChain struct {
	Balance    int64 // deposited, less what came back
	Claimed    int64
	Withdrawal int64     // that was begun; 0: none
	WithdrawAt time.Time // when it was begun
	At         time.Time // of the block that says so
}

// sync has ch say what the chain says. Nobody can claim more than was signed,
// so what is claimed beyond that was signed by a wallet whose files are lost, or
// by another with the same key.
func (c *Client) sync(ctx context.Context, ch *Channel) (on OnChain, err error) {
	if c.Vault == nil {
		return on, nil
	}
	if err := c.onNetwork(ch.Network, "the channel is"); err != nil {
		return on, err
	}
	if on, err = c.Vault.Channel(ctx, ch.ID); err != nil {
		return on, err
	}
	ch.Balance, ch.Withdrawal, ch.WithdrawAt, ch.head = on.Balance, on.Withdrawal, time.Time{}, on.At
	if on.Withdrawal > 0 {
		ch.WithdrawAt = on.WithdrawAt.UTC()
	}
	ch.Charged, ch.Signed = max(ch.Charged, on.Claimed), max(ch.Signed, on.Claimed)
	return on, nil
}

// doubt finds out on the chain what became of a deposit of which no answer
// told. One that can never be made is given back to the limit of its day.
func (c *Client) doubt(ctx context.Context, ch *Channel) error {
	d := ch.Deposit
	if d == nil || c.Chain == nil || c.Vault == nil {
		return nil
	}
	f, _, err := c.ask(ctx, &Payment{Network: ch.Network, Asset: ch.Asset, Payer: ch.Payer, Nonce: d.nonce(ch), ValidBefore: d.ValidBefore})
	switch {
	case err != nil:
		return err
	case f == used:
		ch.Deposit = nil
	case f == dead:
		uncount(ch.Deposited, d.Day, d.USD)
		ch.Deposit = nil
	}
	return nil
}

// fresh brings ch up to what the chain says, if there is a node to ask: first
// the deposit, because one that is made counts in the balance.
func (c *Client) fresh(ctx context.Context, ch *Channel) (OnChain, error) {
	if err := c.doubt(ctx, ch); err != nil {
		return OnChain{}, err
	}
	return c.sync(ctx, ch)
}

// nonce is what the token knows the deposit by.
func (d *PendingDeposit) nonce(ch *Channel) string {
	id := ch.config.ID(ch.domain)
	return (&x402.Deposit{Salt: d.Salt}).Nonce(id).Hex()
}

package buyer

import (
	"context"
	"fmt"
	"math/big"
	"time"

	"github.com/402claw/clawr"
)

// Chain is a node of the network that is paid on. It is optional: with one the
// balance is checked before anything is signed, and what happened to a payment
// can be proven.
type Chain interface {
	// Network is the CAIP-2 name of the network that the node is on.
	Network() string
	// Asset is the token at address: its EIP-712 name and version, its decimals.
	Asset(ctx context.Context, address string) (clawr.Asset, error)
	// Balance is what holder has, in the token's units.
	Balance(ctx context.Context, asset, holder string) (*big.Int, error)
	// Used is EIP-3009's authorizationState: the authorization was charged, or
	// cancelled by its payer. It is as of the block with a hash, and of the head
	// if block is "". A block that the node does not have is an error.
	Used(ctx context.Context, asset, payer, nonce, block string) (bool, error)
	// Final is the last finalized block's hash and time.
	Final(context.Context) (block string, at time.Time, err error)
}

// checkBalance refuses to sign for what the wallet does not hold.
func (c *Client) checkBalance(ctx context.Context, a clawr.Asset, units int64, what string) error {
	if c.Chain == nil {
		return nil
	}
	have, err := c.Chain.Balance(ctx, a.Address, c.Wallet.Address())
	if err != nil {
		return err
	}
	if have.Cmp(big.NewInt(units)) >= 0 {
		return nil
	}
	usd, _ := ceil(units, a.Decimals)
	return &clawr.Error{Code: CodeBalance,
		Message: fmt.Sprintf("%s %s (%d units of the token), and %s has %s units on %s. Nothing was signed.", what, Dollars(usd), units, c.Wallet.Address(), have, a.Network),
		Fix:     "clawr wallet fund"}
}

// fate is what is known of an authorization without asking the server.
type fate int

const (
	undecided fate = iota // it may be charged at any moment
	used                  // it was charged (or cancelled by the payer's own hand)
	dead                  // it was not charged, and never can be
)

// ask finds out p's fate on the chain. Dead needs both: the last finalized
// block is past the authorization's end, so that no block to come can hold
// it, and the token says in that very block that it was not used. The head is
// no proof: behind a load balancer it may be another node's, and older.
func (c *Client) ask(ctx context.Context, p *Payment) (fate, string, error) {
	if c.Chain == nil {
		return undecided, "", nil
	}
	if err := c.onNetwork(p.Network, "the open payment is"); err != nil {
		return undecided, "", err
	}
	block, final, err := c.Chain.Final(ctx)
	if err != nil {
		return undecided, "", err
	}
	isUsed, err := c.Chain.Used(ctx, p.Asset, p.Payer, p.Nonce, "")
	if err == nil && !isUsed && final.Unix() >= p.ValidBefore {
		isUsed, err = c.Chain.Used(ctx, p.Asset, p.Payer, p.Nonce, block)
	}
	switch {
	case err != nil:
		return undecided, "", err
	case isUsed:
		return used, "the token says that the authorization is used", nil
	case final.Unix() >= p.ValidBefore:
		return dead, fmt.Sprintf("authorizationState is false, and the finalized block time %s is past validBefore", final.UTC().Format(time.RFC3339)), nil
	}
	return undecided, "", nil
}

// onNetwork is an error if the node is on another network.
func (c *Client) onNetwork(network, what string) error {
	if c.Chain == nil || c.Chain.Network() == network {
		return nil
	}
	return &clawr.Error{Code: clawr.CodeWrongChain, Param: "rpc-url", Message: fmt.Sprintf("%s on %s, and the node is on %s", what, network, c.Chain.Network()), Fix: "--rpc-url of a node of " + network}
}

// Prove looks at every open payment of this chain that is over by the clock
// and closes those that the chain proves not charged. It gives their amounts
// back. It returns what it closed.
func (c *Client) Prove(ctx context.Context) ([]Payment, error) {
	if c.Chain == nil {
		return nil, nil
	}
	all, err := c.Wallet.Open()
	if err != nil {
		return nil, err
	}
	var closed []Payment
	for i := range all {
		p := &all[i]
		if p.Network != c.Chain.Network() || c.now().Unix() < p.ValidBefore {
			continue
		}
		done, err := c.prove(ctx, p.Call)
		if err != nil {
			return closed, err
		}
		if done != nil {
			closed = append(closed, *done)
		}
	}
	return closed, nil
}

// prove closes the open payment of one call if it is dead. A call that a
// process works on is left to it.
func (c *Client) prove(ctx context.Context, call string) (*Payment, error) {
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	unlock, err := c.Wallet.lockCall(short, call)
	if err != nil {
		if clawr.CodeOf(err) == clawr.CodeLocked {
			err = nil
		}
		return nil, err
	}
	defer unlock()
	p, err := c.Wallet.find(call)
	if p == nil || err != nil {
		return nil, err
	}
	f, proof, err := c.ask(ctx, p)
	if f != dead || err != nil {
		return nil, err
	}
	return p, c.Wallet.close(ctx, p, NotCharged, proof)
}

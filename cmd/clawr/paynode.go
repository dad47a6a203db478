package main

import (
	"context"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/buyer"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/x402"
)

// nodeChain is a node as a buyer sees it.
type nodeChain struct{ *chain.Client }

func (n nodeChain) Asset(ctx context.Context, address string) (clawr.Asset, error) {
	return n.Client.Asset(ctx, common.HexToAddress(address))
}

func (n nodeChain) Balance(ctx context.Context, asset, holder string) (*big.Int, error) {
	return n.TokenBalance(ctx, common.HexToAddress(asset), common.HexToAddress(holder))
}

func (n nodeChain) Used(ctx context.Context, asset, payer, nonce, block string) (bool, error) {
	token, who, id := common.HexToAddress(asset), common.HexToAddress(payer), common.HexToHash(nonce)
	if block == "" {
		return n.AuthorizationState(ctx, token, who, id)
	}
	return n.AuthorizationStateAt(ctx, token, who, id, common.HexToHash(block))
}

func (n nodeChain) Final(ctx context.Context) (string, time.Time, error) {
	b, err := n.Finalized(ctx)
	return b.Hash.Hex(), b.Time, err
}

// nodeVault is the contract of channels as a buyer sees it, who pays for gas
// himself.
type nodeVault struct {
	node   *chain.Client
	wallet *buyer.Wallet
}

func (n nodeVault) Channel(ctx context.Context, id string) (buyer.OnChain, error) {
	head, err := n.node.Head(ctx)
	if err != nil {
		return buyer.OnChain{}, err
	}
	s, err := n.node.ChannelStates(ctx, common.HexToHash(id))
	if err != nil {
		return buyer.OnChain{}, err
	}
	out := buyer.OnChain{Balance: s[0].Balance, Claimed: s[0].TotalClaimed, Withdrawal: s[0].Withdrawal, At: head.Time}
	if s[0].WithdrawAt > 0 {
		out.WithdrawAt = time.Unix(s[0].WithdrawAt, 0)
	}
	return out, nil
}

func (n nodeVault) Withdraw(ctx context.Context, c x402.ChannelConfig, amount int64) (string, error) {
	return n.transact(ctx, chain.WithdrawCalldata(chain.ChannelConfig(c), amount))
}

func (n nodeVault) Finalize(ctx context.Context, c x402.ChannelConfig) (string, error) {
	return n.transact(ctx, chain.FinalizeCalldata(chain.ChannelConfig(c)))
}

// transact calls the channels with the wallet's key.
func (n nodeVault) transact(ctx context.Context, data []byte) (string, error) {
	key, err := chain.ParseKey(n.wallet.Reveal())
	if err != nil {
		return "", err
	}
	wei, err := n.node.Balance(ctx, key.Address())
	if err != nil {
		return "", err
	}
	if wei.Sign() == 0 {
		return "", &clawr.Error{Code: buyer.CodeBalance, Message: "a withdrawal is a transaction, and " + key.Address().Hex() + " has no ether to pay for its gas with", Fix: "send it a little ether on " + n.node.Network()}
	}
	to := common.HexToAddress(chain.ChannelsAddress)
	r, err := n.node.Transact(ctx, key, chain.Call{To: &to, Data: data})
	if err != nil {
		return "", err
	}
	return r.Tx.Hex(), nil
}

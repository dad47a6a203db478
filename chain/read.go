package chain

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/big"
	"time"

	"github.com/402claw/clawr"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

// FinalDepth is how many blocks behind the head a block counts as final on a
// node that names neither a finalized nor a safe block: 5 minutes of 2 s blocks.
const FinalDepth = 150

// Block is the part of a header that payments look at.
type Block struct {
	Number  int64
	Hash    common.Hash
	Parent  common.Hash
	Time    time.Time // whole seconds, UTC
	BaseFee *big.Int  // wei a gas; nil before EIP-1559
}

// Head is the newest block.
func (c *Client) Head(ctx context.Context) (Block, error) { return c.need(ctx, "latest") }

// Finalized is the newest block that will not be undone. Where the node names
// none it is the safe block, and failing that the one FinalDepth blocks
// behind the head.
func (c *Client) Finalized(ctx context.Context) (Block, error) {
	for _, name := range []string{"finalized", "safe"} {
		b, err := c.block(ctx, name)
		var answered rpc.Error
		switch {
		case err == nil && b != nil:
			return *b, nil
		case err != nil && !errors.As(err, &answered):
			return Block{}, err
		}
	}
	head, err := c.Head(ctx)
	if err != nil {
		return Block{}, err
	}
	return c.BlockAt(ctx, max(head.Number-FinalDepth, 0))
}

// BlockAt is the canonical block with a number. It is an error if there is none yet.
func (c *Client) BlockAt(ctx context.Context, number int64) (Block, error) {
	return c.need(ctx, hexutil.EncodeUint64(uint64(max(number, 0))))
}

// Canonical is the canonical block with a number, nil if there is none yet.
func (c *Client) Canonical(ctx context.Context, number int64) (*Block, error) {
	b, err := c.block(ctx, hexutil.EncodeUint64(uint64(max(number, 0))))
	if b != nil && b.Number != max(number, 0) {
		return nil, errors.New("the node sent another block than it was asked for")
	}
	return b, err
}

func (c *Client) need(ctx context.Context, name string) (Block, error) {
	b, err := c.block(ctx, name)
	if err != nil {
		return Block{}, err
	}
	if b == nil {
		return Block{}, fmt.Errorf("the node at %s has no block %s", c.url, name)
	}
	return *b, nil
}

// block is nil if the node has no such block.
func (c *Client) block(ctx context.Context, name string) (*Block, error) {
	var h *wireBlock
	if err := c.Ask(ctx, &h, "eth_getBlockByNumber", name, false); err != nil {
		return nil, err
	}
	return h.block()
}

// wireBlock is a block as nodes send it.
type wireBlock struct {
	Number    *hexutil.Uint64 `json:"number"`
	Hash      *common.Hash    `json:"hash"`
	Parent    common.Hash     `json:"parentHash"`
	Timestamp *hexutil.Uint64 `json:"timestamp"`
	BaseFee   *hexutil.Big    `json:"baseFeePerGas"`
}

func (w *wireBlock) block() (*Block, error) {
	if w == nil {
		return nil, nil
	}
	if w.Number == nil || w.Hash == nil || w.Timestamp == nil || *w.Number > math.MaxInt64 || *w.Timestamp > math.MaxUint32<<4 {
		return nil, errors.New("the node sent a block without number, hash or time")
	}
	return &Block{Number: int64(*w.Number), Hash: *w.Hash, Parent: w.Parent, Time: time.Unix(int64(*w.Timestamp), 0).UTC(), BaseFee: (*big.Int)(w.BaseFee)}, nil
}

// Balance is an account's ether in wei.
func (c *Client) Balance(ctx context.Context, who common.Address) (*big.Int, error) {
	var v hexutil.Big
	if err := c.Ask(ctx, &v, "eth_getBalance", who, "latest"); err != nil {
		return nil, err
	}
	return v.ToInt(), nil
}

// NeedFunds is an error with code signer_unfunded if who has less than wei.
func (c *Client) NeedFunds(ctx context.Context, who common.Address, wei *big.Int) error {
	have, err := c.Balance(ctx, who)
	if err != nil {
		return err
	}
	if have.Cmp(wei) >= 0 {
		return nil
	}
	return unfunded(c.Network(), who, nil)
}

func unfunded(network string, who common.Address, cause error) error {
	return &clawr.Error{Code: clawr.CodeUnfunded, Message: fmt.Sprintf("the signer %s has not enough ether on %s to pay for gas", lower(who), network), Err: cause,
		Fix: "send ether to " + lower(who) + " (on a development chain: clawr chain faucet " + lower(who) + ")"}
}

// Code is the bytecode at an address, empty for an account that has none. An
// account that delegates by EIP-7702 has code.
func (c *Client) Code(ctx context.Context, who common.Address) ([]byte, error) {
	var code hexutil.Bytes
	if err := c.Ask(ctx, &code, "eth_getCode", who, "latest"); err != nil {
		return nil, err
	}
	return code, nil
}

// NonceAt is the number of transactions of an account that are in blocks.
func (c *Client) NonceAt(ctx context.Context, who common.Address) (uint64, error) {
	var n hexutil.Uint64
	err := c.Ask(ctx, &n, "eth_getTransactionCount", who, "latest")
	return uint64(n), err
}

// PendingNonceAt is NonceAt and those that the node's pool holds.
func (c *Client) PendingNonceAt(ctx context.Context, who common.Address) (uint64, error) {
	var n hexutil.Uint64
	err := c.Ask(ctx, &n, "eth_getTransactionCount", who, "pending")
	return uint64(n), err
}

// FinalNonceAt is the number of transactions of an account that are in
// finalized blocks: those nonces are used for good.
func (c *Client) FinalNonceAt(ctx context.Context, who common.Address) (uint64, error) {
	final, err := c.Finalized(ctx)
	if err != nil {
		return 0, err
	}
	var n hexutil.Uint64
	err = c.Ask(ctx, &n, "eth_getTransactionCount", who, hexutil.EncodeUint64(uint64(final.Number)))
	return uint64(n), err
}

// TokenBalance is an account's balance in the token's atomic units.
func (c *Client) TokenBalance(ctx context.Context, asset, who common.Address) (*big.Int, error) {
	out, err := c.View(ctx, asset, pack(selBalanceOf, wordAddress(who)))
	if err != nil {
		return nil, err
	}
	if len(out) < 32 {
		return nil, noToken(c.Network(), asset, "it does not say what an account has")
	}
	return new(big.Int).SetBytes(out[:32]), nil
}

// AuthorizationState reports whether the token has seen the payer's nonce:
// whether the authorization was used or cancelled.
func (c *Client) AuthorizationState(ctx context.Context, asset, payer common.Address, nonce common.Hash) (bool, error) {
	return c.authorizationState(ctx, asset, payer, nonce, "latest")
}

// AuthorizationStateAt is AuthorizationState as of a canonical block. It is an
// error if the node does not have that block, or its state any more.
func (c *Client) AuthorizationStateAt(ctx context.Context, asset, payer common.Address, nonce, block common.Hash) (bool, error) {
	return c.authorizationState(ctx, asset, payer, nonce, rpc.BlockNumberOrHashWithHash(block, true)) // EIP-1898
}

func (c *Client) authorizationState(ctx context.Context, asset, payer common.Address, nonce common.Hash, at any) (bool, error) {
	var out hexutil.Bytes
	if err := c.Ask(ctx, &out, "eth_call", callObject{To: &asset, Input: pack(selAuthorizationState, wordAddress(payer), nonce)}, at); err != nil {
		return false, err
	}
	if len(out) < 32 {
		return false, noToken(c.Network(), asset, "it has no authorizationState (EIP-3009)")
	}
	return new(big.Int).SetBytes(out[:32]).Sign() != 0, nil
}

// View calls a contract at the head without a transaction.
func (c *Client) View(ctx context.Context, to common.Address, data []byte) ([]byte, error) {
	var out hexutil.Bytes
	err := c.Ask(ctx, &out, "eth_call", callObject{To: &to, Input: data}, "latest")
	return out, err
}

// callObject is the transaction object of eth_call. The input goes by its
// older name, data, which every node knows.
type callObject struct {
	From  *common.Address `json:"from,omitempty"`
	To    *common.Address `json:"to,omitempty"`
	Gas   hexutil.Uint64  `json:"gas,omitempty"`
	Value *hexutil.Big    `json:"value,omitempty"`
	Input hexutil.Bytes   `json:"data,omitempty"`
}

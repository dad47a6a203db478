package devchain

import (
	"context"
	"errors"
	"fmt"
	"math/big"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"
)

// maxGrant bounds one grant of ether, in wei: a million.
var maxGrant = new(big.Int).Exp(big.NewInt(10), big.NewInt(24), nil)

// Fund gives to an address wei of ether and units of the token (both may be
// zero, wei also nil) and returns when they are in a block.
func (c *Chain) Fund(ctx context.Context, to common.Address, wei *big.Int, units int64) error {
	if wei == nil {
		wei = new(big.Int)
	}
	if wei.Sign() < 0 || wei.Cmp(maxGrant) > 0 || units < 0 || to == (common.Address{}) {
		return &clawr.Error{Code: clawr.CodeBadAmount, Message: "the faucet gives up to 1,000,000 ether and a positive amount of the token, to a real address",
			Fix: "ask for less"}
	}
	last, err := c.grant(to, wei, units)
	if err != nil {
		return fmt.Errorf("fund %s: %w", lower(to), err)
	}
	for _, tx := range last {
		if err := c.await(ctx, tx); err != nil {
			return fmt.Errorf("fund %s: %w", lower(to), err)
		}
	}
	return nil
}

// grant puts the transactions of a grant into the pool.
func (c *Chain) grant(to common.Address, wei *big.Int, units int64) ([]common.Hash, error) {
	c.grants.Lock()
	defer c.grants.Unlock()
	if err := c.syncPool(); err != nil {
		return nil, err
	}
	nonce := c.pool.PoolNonce(c.faucet.Address())
	var sent []common.Hash
	send := func(to common.Address, value *big.Int, data []byte, gas uint64) error {
		fee := new(big.Int).Add(big.NewInt(tip), new(big.Int).Mul(c.bc.CurrentBlock().BaseFee, big.NewInt(10)))
		tx, err := chain.Sign(c.faucet, c.spec.ChainID, nonce, chain.Fees{Max: fee, Tip: big.NewInt(tip)},
			chain.Call{To: &to, Value: value, Data: data, Gas: gas})
		if err != nil {
			return err
		}
		decoded := new(types.Transaction)
		if err := decoded.UnmarshalBinary(tx.Raw); err != nil {
			return err
		}
		if err := c.pool.Add([]*types.Transaction{decoded}, true)[0]; err != nil {
			return err
		}
		nonce++
		sent = append(sent, tx.Hash)
		return nil
	}
	if wei.Sign() > 0 {
		if err := send(to, wei, nil, 100_000); err != nil { // a contract may take it
			return nil, err
		}
	}
	if units > 0 {
		if err := send(c.spec.Token, nil, MintCall(to, units), 200_000); err != nil {
			return nil, err
		}
	}
	return sent, nil
}

// MintCall is the call of the token that gives units to an account. Only its
// minter may make it.
func MintCall(to common.Address, units int64) []byte {
	data := common.FromHex("0x40c10f19") // mint(address,uint256)
	data = append(data, common.LeftPadBytes(to.Bytes(), 32)...)
	return append(data, common.LeftPadBytes(big.NewInt(units).Bytes(), 32)...)
}

// await returns when the transaction is in a block and succeeded.
func (c *Chain) await(ctx context.Context, hash common.Hash) error {
	for {
		next := c.heads.wait()
		r, _, err := c.receipt(hash)
		switch {
		case err != nil:
			return err
		case r != nil && r.Status == types.ReceiptStatusSuccessful:
			return nil
		case r != nil:
			return errors.New("the faucet's transaction was reverted")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next:
			if c.heads.ended() {
				return errors.New("the chain was closed")
			}
		}
	}
}

// clawrAPI is the clawr_ namespace: what a development chain has and others do not.
type clawrAPI struct{ c *Chain }

// Fund implements clawr_fund(address, wei, units), for clawr chain faucet and tests.
func (a *clawrAPI) Fund(ctx context.Context, to common.Address, wei *hexutil.Big, units hexutil.Uint64) (bool, error) {
	if units > 1<<62 {
		return false, errors.New("too many units of the token")
	}
	return true, a.c.Fund(ctx, to, wei.ToInt(), int64(units))
}

// Info implements clawr_info: the token and the address of the faucet.
func (a *clawrAPI) Info() map[string]any {
	return map[string]any{"asset": a.c.Asset(), "faucet": lower(a.c.faucet.Address()), "multicall": MulticallAddress}
}

// Fund asks the development chain served at url for a grant, as (*Chain).Fund.
func Fund(ctx context.Context, url string, to common.Address, wei *big.Int, units int64) error {
	cl, err := chain.Dial(ctx, url)
	if err != nil {
		return err
	}
	defer cl.Close()
	if wei == nil {
		wei = new(big.Int)
	}
	var ok bool
	err = cl.Ask(ctx, &ok, "clawr_fund", to, (*hexutil.Big)(wei), hexutil.Uint64(units))
	var answered rpc.Error
	if errors.As(err, &answered) && answered.ErrorCode() == -32601 {
		return &clawr.Error{Code: clawr.CodeUsage, Message: "the chain at " + cl.URL() + " is not clawr's own and has no faucet", Err: err, Param: "rpc-url",
			Fix: "give the URL that clawr chain serve printed"}
	}
	return err
}

package devchain

import (
	"context"
	"errors"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/state"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/eth/gasprice"
	"github.com/ethereum/go-ethereum/event"
	"github.com/ethereum/go-ethereum/params"
	"github.com/ethereum/go-ethereum/rpc"
)

// oracle answers eth_feeHistory with go-ethereum's own code.
type oracle struct{ *gasprice.Oracle }

func newOracle(c *Chain) *oracle {
	return &oracle{gasprice.NewOracle(oracleBackend{c}, gasprice.Config{Blocks: 20, Percentile: 60, MaxHeaderHistory: 1024, MaxBlockHistory: 1024},
		big.NewInt(tip))}
}

// oracleBackend is what the oracle reads.
type oracleBackend struct{ c *Chain }

func (b oracleBackend) HeaderByNumber(_ context.Context, n rpc.BlockNumber) (*types.Header, error) {
	h := (&ethAPI{b.c}).header(n)
	if h == nil {
		return nil, errors.New("header not found")
	}
	return h, nil
}

func (b oracleBackend) BlockByNumber(ctx context.Context, n rpc.BlockNumber) (*types.Block, error) {
	h, err := b.HeaderByNumber(ctx, n)
	if err != nil {
		return nil, err
	}
	return b.c.bc.GetBlockByHash(h.Hash()), nil
}

func (b oracleBackend) GetReceipts(_ context.Context, hash common.Hash) (types.Receipts, error) {
	return b.c.bc.GetReceiptsByHash(hash), nil
}

// Pending has no block: nothing is half made here.
func (b oracleBackend) Pending() (*types.Block, types.Receipts, *state.StateDB) { return nil, nil, nil }

func (b oracleBackend) ChainConfig() *params.ChainConfig { return b.c.bc.Config() }

func (b oracleBackend) SubscribeChainHeadEvent(ch chan<- core.ChainHeadEvent) event.Subscription {
	return b.c.bc.SubscribeChainHeadEvent(ch)
}

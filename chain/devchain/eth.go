package devchain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/state"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"
)

// ethAPI is the eth_ namespace, as far as clients of a payment chain use it:
// reading, calling and sending. The names and shapes are those of the
// Ethereum execution API.
type ethAPI struct{ c *Chain }

// tip is what the chain suggests to pay a producer that would take less.
const tip = 1_000_000 // wei a gas

// ChainId implements eth_chainId.
func (a *ethAPI) ChainId() hexutil.Uint64 { return hexutil.Uint64(a.c.spec.ChainID) }

// BlockNumber implements eth_blockNumber.
func (a *ethAPI) BlockNumber() hexutil.Uint64 {
	a.c.freshen()
	return hexutil.Uint64(a.c.bc.CurrentBlock().Number.Uint64())
}

// Syncing implements eth_syncing: a chain of one is never behind.
func (a *ethAPI) Syncing() bool { return false }

// Accounts implements eth_accounts: the chain signs for nobody.
func (a *ethAPI) Accounts() []common.Address { return []common.Address{} }

// GasPrice implements eth_gasPrice.
func (a *ethAPI) GasPrice() *hexutil.Big {
	h := a.c.bc.CurrentBlock()
	return (*hexutil.Big)(new(big.Int).Add(h.BaseFee, big.NewInt(tip)))
}

// MaxPriorityFeePerGas implements eth_maxPriorityFeePerGas.
func (a *ethAPI) MaxPriorityFeePerGas() *hexutil.Big { return (*hexutil.Big)(big.NewInt(tip)) }

// BlobBaseFee implements eth_blobBaseFee: blobs are not sold here.
func (a *ethAPI) BlobBaseFee() *hexutil.Big { return (*hexutil.Big)(big.NewInt(1)) }

// FeeHistory implements eth_feeHistory.
func (a *ethAPI) FeeHistory(ctx context.Context, blocks hexOrInt, newest rpc.BlockNumber, percentiles *[]float64) (map[string]any, error) {
	a.c.freshen()
	var p []float64
	if percentiles != nil {
		p = *percentiles
	}
	oldest, rewards, base, ratios, _, _, err := a.c.oracle.FeeHistory(ctx, uint64(blocks), newest, p)
	if err != nil {
		return nil, err
	}
	out := map[string]any{"oldestBlock": (*hexutil.Big)(oldest), "gasUsedRatio": ratios}
	if base != nil {
		out["baseFeePerGas"] = bigs(base)
	}
	if rewards != nil {
		all := make([][]*hexutil.Big, len(rewards))
		for i, r := range rewards {
			all[i] = bigs(r)
		}
		out["reward"] = all
	}
	return out, nil
}

// GetBalance implements eth_getBalance.
func (a *ethAPI) GetBalance(who common.Address, at *rpc.BlockNumberOrHash) (*hexutil.Big, error) {
	st, _, err := a.state(at)
	if err != nil {
		return nil, err
	}
	return (*hexutil.Big)(st.GetBalance(who).ToBig()), st.Error()
}

// GetCode implements eth_getCode.
func (a *ethAPI) GetCode(who common.Address, at *rpc.BlockNumberOrHash) (hexutil.Bytes, error) {
	st, _, err := a.state(at)
	if err != nil {
		return nil, err
	}
	return st.GetCode(who), st.Error()
}

// GetStorageAt implements eth_getStorageAt.
func (a *ethAPI) GetStorageAt(who common.Address, slot string, at *rpc.BlockNumberOrHash) (hexutil.Bytes, error) {
	key, ok := new(big.Int).SetString(slot, 0)
	if !ok || key.Sign() < 0 || key.BitLen() > 256 {
		return nil, fmt.Errorf("%q is not a storage slot", slot)
	}
	st, _, err := a.state(at)
	if err != nil {
		return nil, err
	}
	v := st.GetState(who, common.BigToHash(key))
	return v[:], st.Error()
}

// GetTransactionCount implements eth_getTransactionCount.
func (a *ethAPI) GetTransactionCount(who common.Address, at *rpc.BlockNumberOrHash) (hexutil.Uint64, error) {
	if at != nil && at.BlockNumber != nil && *at.BlockNumber == rpc.PendingBlockNumber {
		return hexutil.Uint64(a.c.pool.PoolNonce(who)), nil
	}
	st, _, err := a.state(at)
	if err != nil {
		return 0, err
	}
	return hexutil.Uint64(st.GetNonce(who)), st.Error()
}

// GetBlockByNumber implements eth_getBlockByNumber.
func (a *ethAPI) GetBlockByNumber(n rpc.BlockNumber, full bool) (map[string]any, error) {
	h := a.header(n)
	if h == nil {
		return nil, nil
	}
	return a.GetBlockByHash(h.Hash(), full)
}

// GetBlockByHash implements eth_getBlockByHash.
func (a *ethAPI) GetBlockByHash(hash common.Hash, full bool) (map[string]any, error) {
	b := a.c.bc.GetBlockByHash(hash)
	if b == nil || !a.c.visible(b.NumberU64()) {
		return nil, nil
	}
	return blockJSON(a.c.bc.Config(), b, full), nil
}

// GetBlockTransactionCountByNumber implements eth_getBlockTransactionCountByNumber.
func (a *ethAPI) GetBlockTransactionCountByNumber(n rpc.BlockNumber) *hexutil.Uint64 {
	h := a.header(n)
	if h == nil {
		return nil
	}
	b := a.c.bc.GetBlockByHash(h.Hash())
	if b == nil {
		return nil
	}
	count := hexutil.Uint64(len(b.Transactions()))
	return &count
}

// GetBlockReceipts implements eth_getBlockReceipts.
func (a *ethAPI) GetBlockReceipts(at rpc.BlockNumberOrHash) ([]map[string]any, error) {
	h, err := a.resolve(&at)
	if err != nil {
		return nil, err
	}
	b := a.c.bc.GetBlockByHash(h.Hash())
	if b == nil {
		return nil, nil
	}
	out := make([]map[string]any, 0, len(b.Transactions()))
	for i, r := range a.c.bc.GetReceiptsByHash(b.Hash()) {
		out = append(out, receiptJSON(a.c.bc.Config(), r, b.Transactions()[i]))
	}
	return out, nil
}

// GetTransactionByHash implements eth_getTransactionByHash.
func (a *ethAPI) GetTransactionByHash(hash common.Hash) (map[string]any, error) {
	if at, tx := a.c.transaction(hash); tx != nil {
		return transactionJSON(a.c.bc.Config(), tx, a.c.bc.GetHeaderByHash(at.BlockHash), at.Index), nil
	}
	if tx := a.c.pool.Get(hash); tx != nil {
		return transactionJSON(a.c.bc.Config(), tx, nil, 0), nil
	}
	return nil, nil
}

// GetTransactionReceipt implements eth_getTransactionReceipt.
func (a *ethAPI) GetTransactionReceipt(hash common.Hash) (map[string]any, error) {
	r, tx, err := a.c.receipt(hash)
	if r == nil || err != nil {
		return nil, err
	}
	return receiptJSON(a.c.bc.Config(), r, tx), nil
}

// SendRawTransaction implements eth_sendRawTransaction.
func (a *ethAPI) SendRawTransaction(raw hexutil.Bytes) (common.Hash, error) {
	tx := new(types.Transaction)
	if err := tx.UnmarshalBinary(raw); err != nil {
		return common.Hash{}, err
	}
	if !tx.Protected() {
		return common.Hash{}, errors.New("only replay-protected (EIP-155) transactions allowed over RPC")
	}
	if err := a.c.add(tx); err != nil {
		return common.Hash{}, err
	}
	return tx.Hash(), nil
}

// SendRawTransactionSync implements eth_sendRawTransactionSync (EIP-7966): it
// answers with the receipt, or with error 4 after timeout milliseconds.
func (a *ethAPI) SendRawTransactionSync(ctx context.Context, raw hexutil.Bytes, timeout *hexOrInt) (map[string]any, error) {
	wait := 2 * time.Second
	if timeout != nil {
		wait = min(time.Duration(min(*timeout, 60_000))*time.Millisecond, time.Minute)
	}
	next := a.c.heads.wait() // before the transaction, or its block may be missed
	hash, err := a.SendRawTransaction(raw)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		if r, err := a.GetTransactionReceipt(hash); r != nil || err != nil {
			return r, err
		}
		select {
		case <-ctx.Done():
			return nil, &syncTimeout{hash}
		case <-next:
			next = a.c.heads.wait()
		}
	}
}

// syncTimeout is EIP-7966's error for a transaction that is accepted but not mined.
type syncTimeout struct{ hash common.Hash }

func (e *syncTimeout) Error() string {
	return "the transaction was added to the pool but was not mined in time"
}
func (e *syncTimeout) ErrorCode() int { return 4 }
func (e *syncTimeout) ErrorData() any { return e.hash }

// header finds a block by number or by one of its names, nil if there is none.
func (a *ethAPI) header(n rpc.BlockNumber) *types.Header {
	switch n {
	case rpc.EarliestBlockNumber:
		return a.c.bc.Genesis().Header()
	case rpc.LatestBlockNumber, rpc.PendingBlockNumber, rpc.SafeBlockNumber, rpc.FinalizedBlockNumber:
		// There is one producer and it never goes back: a block is final when it
		// is made, and none is half made.
		a.c.freshen()
		return a.c.bc.CurrentBlock()
	}
	if n < 0 || !a.c.visible(uint64(n)) {
		return nil
	}
	return a.c.bc.GetHeaderByNumber(uint64(n))
}

func (a *ethAPI) resolve(at *rpc.BlockNumberOrHash) (*types.Header, error) {
	n := rpc.LatestBlockNumber
	if at != nil {
		if hash, ok := at.Hash(); ok {
			if h := a.c.bc.GetHeaderByHash(hash); h != nil && a.c.visible(h.Number.Uint64()) {
				return h, nil
			}
			return nil, errors.New("header not found")
		}
		if number, ok := at.Number(); ok {
			n = number
		}
	}
	if h := a.header(n); h != nil {
		return h, nil
	}
	return nil, errors.New("header not found")
}

func (a *ethAPI) state(at *rpc.BlockNumberOrHash) (*state.StateDB, *types.Header, error) {
	h, err := a.resolve(at)
	if err != nil {
		return nil, nil, err
	}
	st, err := a.c.bc.StateAt(h.Root, h.Number, h.Time)
	return st, h, err
}

// netAPI is the net_ namespace.
type netAPI struct{ c *Chain }

// Version implements net_version.
func (a *netAPI) Version() string { return fmt.Sprint(a.c.spec.ChainID) }

// Listening implements net_listening.
func (a *netAPI) Listening() bool { return true }

// PeerCount implements net_peerCount.
func (a *netAPI) PeerCount() hexutil.Uint { return 0 }

// web3API is the web3_ namespace.
type web3API struct{}

// ClientVersion implements web3_clientVersion.
func (a *web3API) ClientVersion() string { return "clawr-devchain" }

package devchain

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/consensus/misc/eip1559"
	"github.com/ethereum/go-ethereum/consensus/misc/eip4844"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/state"
	"github.com/ethereum/go-ethereum/core/txpool"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/core/vm"
	"github.com/holiman/uint256"
)

// blockGas is the gas limit of every block: about 600 USDC transfers.
const blockGas = 60_000_000

// watch turns the arrival of transactions into one signal. It does nothing
// else: the pool waits for its listeners, and block making waits for the pool.
func (c *Chain) watch(ctx context.Context, arrivals <-chan core.NewTxsEvent) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-arrivals:
			select {
			case c.ready <- struct{}{}:
			default:
			}
		}
	}
}

// produce makes blocks until ctx ends: at once when there are transactions, or
// one every BlockTime.
func (c *Chain) produce(ctx context.Context) {
	if c.opt.BlockTime > 0 {
		t := time.NewTicker(c.opt.BlockTime)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				c.mineAndLog(always)
			}
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.ready:
			for ctx.Err() == nil && c.mineAndLog(c.executable) {
			}
		}
	}
}

// Reasons to make a block, asked when nothing else is making one and the pool
// has caught up.
func always() bool { return true }

func (c *Chain) executable() bool {
	n, _ := c.pool.Stats()
	return n > 0
}

func (c *Chain) stale() bool {
	_, at := c.Head()
	return c.opt.Now().Sub(at) > StaleAfter
}

// freshen makes a block if the head is so old that its time misleads.
func (c *Chain) freshen() {
	if c.opt.BlockTime == 0 && c.stale() {
		c.mineAndLog(c.stale) // asked again: another request may have been faster
	}
}

// mineAndLog makes a block if there is reason to, and reports whether it had
// any transaction.
func (c *Chain) mineAndLog(reason func() bool) bool {
	n, err := c.mine(reason)
	if err != nil {
		c.opt.Log.Error("the development chain cannot make a block", "err", err)
	}
	return n > 0
}

// mine makes the next block and makes it the head. It returns the number of
// transactions inside.
func (c *Chain) mine(reason func() bool) (int, error) {
	c.mining.Lock()
	defer c.mining.Unlock()
	if c.closed {
		return 0, nil
	}
	if err := c.syncPool(); err != nil {
		return 0, err
	}
	if !reason() {
		return 0, nil
	}
	block, err := c.build()
	if err != nil {
		return 0, err
	}
	if _, err := c.bc.InsertChain(types.Blocks{block}); err != nil {
		return 0, fmt.Errorf("insert block %d: %w", block.NumberU64(), err)
	}
	c.heads.notify()
	return len(block.Transactions()), nil
}

// syncPool waits until the pool has caught up with the head. It does so in the
// background after each block, and until then offers transactions that are
// already in the chain. The pool forgets a caller of Sync when there is a second.
func (c *Chain) syncPool() error {
	c.syncing.Lock()
	defer c.syncing.Unlock()
	return c.pool.Sync()
}

// add puts a transaction into the pool. One that the pool refuses is offered
// again when it has caught up: the account may have got its money, or used its
// nonce, in a block that the sender has seen and the pool has not.
func (c *Chain) add(tx *types.Transaction) error {
	err := c.pool.Add([]*types.Transaction{tx}, false)[0]
	if err == nil || errors.Is(err, txpool.ErrAlreadyKnown) {
		return err
	}
	if err := c.syncPool(); err != nil {
		return err
	}
	return c.pool.Add([]*types.Transaction{tx}, false)[0]
}

// build executes what the pool offers on top of the head. InsertChain executes
// it again and refuses the block if the results differ.
func (c *Chain) build() (*types.Block, error) {
	parent := c.bc.CurrentBlock()
	h := c.header(parent)
	st, err := c.bc.StateAt(parent.Root, parent.Number, parent.Time)
	if err != nil {
		return nil, err
	}
	ctx, cfg := context.Background(), c.bc.Config()
	evm := vm.NewEVM(core.NewEVMBlockContext(h, c.bc, &h.Coinbase), st, cfg, vm.Config{})
	defer evm.Release()
	core.PreExecution(ctx, h.ParentBeaconRoot, parent, cfg, evm, h.Number, h.Time)

	body := &types.Body{Withdrawals: []*types.Withdrawal{}}
	receipts, err := c.execute(ctx, evm, st, h, body)
	if err != nil {
		return nil, err
	}
	var logs []*types.Log
	for _, r := range receipts {
		logs = append(logs, r.Logs...)
	}
	requests, _, err := core.PostExecution(ctx, cfg, h.Number, h.Time, logs, nil, evm, uint32(len(body.Transactions)+1))
	if err != nil {
		return nil, err
	}
	if requests != nil {
		hash := types.CalcRequestsHash(requests)
		h.RequestsHash = &hash
	}
	block := core.AssembleBlock(c.bc, h, st, body, receipts, nil)
	return block, st.Error()
}

func (c *Chain) header(parent *types.Header) *types.Header {
	cfg := c.bc.Config()
	h := &types.Header{ParentHash: parent.Hash(), Number: new(big.Int).Add(parent.Number, common.Big1), GasLimit: blockGas,
		Time: max(parent.Time, uint64(max(c.opt.Now().Unix(), 0))), Difficulty: new(big.Int), BaseFee: eip1559.CalcBaseFee(cfg, parent),
		BlobGasUsed: new(uint64), ParentBeaconRoot: new(common.Hash)}
	excess := eip4844.CalcExcessBlobGas(cfg, parent, h.Time)
	h.ExcessBlobGas = &excess
	rand.Read(h.MixDigest[:]) // prevrandao
	return h
}

// execute fills the body and h.GasUsed with the transactions that fit.
func (c *Chain) execute(ctx context.Context, evm *vm.EVM, st *state.StateDB, h *types.Header, body *types.Body) ([]*types.Receipt, error) {
	var receipts []*types.Receipt
	gas := core.NewGasPool(h.GasLimit)
	skip := make(map[common.Address]bool) // a sender's later transactions, once one of them is left out
	for _, p := range c.pending(h.BaseFee) {
		if skip[p.from] {
			continue
		}
		before, left := st.Snapshot(), gas.Snapshot()
		st.SetTxContext(p.tx.Hash(), len(body.Transactions), uint32(len(body.Transactions)+1))
		r, _, err := core.ApplyTransaction(ctx, evm, gas, st, h, p.tx)
		if err != nil {
			// Full block, or not executable after all: the pool drops or keeps it.
			st.RevertToSnapshot(before)
			gas.Set(left)
			skip[p.from] = true
			if !errors.Is(err, core.ErrGasLimitReached) {
				c.opt.Log.Warn("the development chain leaves a transaction out", "tx", p.tx.Hash(), "err", err)
			}
			continue
		}
		body.Transactions = append(body.Transactions, p.tx)
		receipts = append(receipts, r)
	}
	h.GasUsed = gas.Used()
	return receipts, st.Error()
}

// offered is a transaction in the order of arrival.
type offered struct {
	from common.Address
	tx   *types.Transaction
	at   time.Time // when it, and all earlier ones of its sender, had arrived
}

// pending gives the pool's executable transactions: first come, first served,
// as far as account nonces allow.
func (c *Chain) pending(baseFee *big.Int) []offered {
	fee := uint256.MustFromBig(baseFee)
	accounts, _ := c.pool.Pending(txpool.PendingFilter{BaseFee: fee})
	var all []offered
	for from, txs := range accounts {
		var at time.Time
		for _, lazy := range txs {
			tx := lazy.Resolve()
			if tx == nil {
				break
			}
			if lazy.Time.After(at) {
				at = lazy.Time
			}
			all = append(all, offered{from, tx, at})
		}
	}
	slices.SortFunc(all, func(a, b offered) int {
		return cmp.Or(a.at.Compare(b.at), a.from.Cmp(b.from), cmp.Compare(a.tx.Nonce(), b.tx.Nonce()))
	})
	return all
}

package facilitator_test

import (
	"context"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// still stops the chain: blocks are made by mine alone.
func (w *world) still() {
	w.Helper()
	w.ok(w.anvil.Call(w.Context(), nil, "evm_setAutomine", false))
}

// dear makes n blocks that ask a hundred times the fees of the moment, so that
// what was offered before is left out.
func (w *world) dear(n int) {
	w.Helper()
	for range n {
		w.ok(w.anvil.Call(w.Context(), nil, "anvil_setNextBlockBaseFeePerGas", "0x174876e800")) // 100 gwei
		w.mine(1)
	}
}

// open is the live batch of a row.
func (w *world) batchOf(row ledger.Payment) *ledger.Batch {
	w.Helper()
	s, err := w.db.Settlement(context.WithoutCancel(w.Context()), row.Key)
	w.ok(err)
	if s == nil {
		return nil
	}
	return s.Batch
}

func transaction(t testing.TB, tx ledger.Tx) *types.Transaction {
	t.Helper()
	out := new(types.Transaction)
	if err := out.UnmarshalBinary(tx.Raw); err != nil {
		t.Fatal(err)
	}
	return out
}

// Fifty payments at once; their transactions are stuck, since a block asks for
// more than they offer, and are replaced by the same calls for more. Then the
// block that has them is lost, and they are mined again. Each is paid once.
func TestMustPass14FiftySettlesAStuckTransactionAndAReorg(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	rows := w.buyers(50)
	v := w.watcher()
	w.look(v)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { w.fac.Run(ctx) })
	defer running.Wait()
	defer cancel()

	w.still()
	done := make(chan []ledger.Outcome, 1)
	go func() { done <- w.settleAll(rows...) }()
	w.until("every payment is signed", func() bool {
		for _, r := range rows {
			if w.row(r.Key).Money != ledger.Signed {
				return false
			}
		}
		return true
	})
	w.until("every transaction is replaced", func() bool {
		w.dear(1)
		time.Sleep(100 * time.Millisecond)
		for _, r := range rows {
			if b := w.batchOf(r); len(b.Txs) < 2 && b.State == ledger.BatchSigned {
				return false
			}
		}
		return true
	})
	var outs []ledger.Outcome
	w.until("every payment is settled", func() bool {
		w.mine(1)
		select {
		case outs = <-done:
			return true
		default:
			return false
		}
	})
	first := int64(1 << 62)
	for i, out := range outs {
		want(t, out, ledger.Settled, "")
		first = min(first, out.BlockNumber)
		b := w.batchOf(rows[i])
		for _, tx := range b.Txs {
			one, again := transaction(t, b.Txs[0]), transaction(t, tx)
			if string(one.Data()) != string(again.Data()) || *one.To() != *again.To() || one.Nonce() != again.Nonce() || one.Gas() != again.Gas() {
				t.Fatalf("attempt %d is another transaction", tx.Attempt)
			}
			if tx.Attempt > 1 && (again.GasFeeCap().Cmp(one.GasFeeCap()) <= 0 || again.GasTipCap().Cmp(one.GasTipCap()) <= 0) {
				t.Errorf("attempt %d offers no more", tx.Attempt)
			}
		}
	}
	w.look(v)
	w.audit(rows...)

	head, err := w.node.Head(t.Context())
	w.ok(err)
	w.reorg(int(head.Number - first + 1))
	w.look(v)
	for _, r := range rows {
		w.money(r.Key, ledger.Signed)
	}
	w.until("every payment is mined again", func() bool {
		w.mine(1)
		w.look(v)
		for _, r := range rows {
			if w.row(r.Key).Money != ledger.Mined {
				return false
			}
		}
		return true
	})
	w.audit(rows...)
	if n := w.units(w.payTo); n != 50_000 {
		t.Errorf("the shop has %d units, want 50000", n)
	}
}

// A transaction that the pools have lost is broadcast again.
func TestADroppedTransactionIsBroadcastAgain(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	row := w.reserved(w.payment())
	w.still()
	done := make(chan []ledger.Outcome, 1)
	go func() { done <- w.settleAll(row) }()
	w.until("it is in the pool", func() bool {
		b := w.batchOf(row)
		if b == nil {
			return false
		}
		var tx *struct{ Hash common.Hash }
		w.ok(w.anvil.Call(t.Context(), &tx, "eth_getTransactionByHash", b.Txs[0].Hash))
		return tx != nil
	})
	w.ok(w.anvil.Call(t.Context(), nil, "anvil_dropAllTransactions"))
	w.mine(1)
	var outs []ledger.Outcome
	w.until("it is settled", func() bool {
		w.mine(1)
		select {
		case outs = <-done:
			return true
		case <-time.After(200 * time.Millisecond):
			return false
		}
	})
	want(t, outs[0], ledger.Settled, "")
	w.audit(row)
}

// Somebody else with the signer's key takes the nonce of our transaction. The
// batch is given up once that is final, and its payments go into another.
func TestANonceThatAStrangerUsedOrphansTheBatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rows := w.buyers(3)
	var orphan string
	batches := 0
	var hook func()
	hook = func() {
		if batches++; batches == 1 { // that of the first payment
			w.at("t3.after", hook)
			return
		}
		orphan = w.batchOf(rows[0]).ID
		to := w.key().Address()
		for w.spent() < 1 {
			time.Sleep(time.Millisecond)
		}
		if _, err := w.node.Transact(context.WithoutCancel(w.Context()), w.node.Key, chain.Call{To: &to, Value: big.NewInt(1), Gas: 21_000}); err != nil {
			w.Error(err)
		}
	}
	w.at("t3.after", hook)
	outs := w.together(rows...)
	anew := map[string]bool{}
	for i, out := range outs {
		want(t, out, ledger.Settled, "")
		b := w.batchOf(rows[i])
		if b.ID == orphan || b.State != ledger.BatchMined {
			t.Errorf("settled by %s, which is %s; %s was orphaned", b.ID, b.State, orphan)
		}
		anew[b.ID] = true
	}
	w.audit(rows...)
	if open, err := w.db.OpenBatches(t.Context(), w.asset.Network, x402.Lower(w.node.Key.Address())); err != nil || len(open) > 0 {
		t.Errorf("open batches: %+v, %v", open, err)
	}
	// The first payment's, the stranger's, and those of the batches that carry
	// the orphaned ones now, each once and nothing else. How many that are, one to
	// three, is up to the scheduler: the end of the orphan wakes the three calls
	// together, each brings its payment to the settler by itself, and a settler
	// with nothing under way waits for no second payment.
	if n := w.spent(); int(n) != 2+len(anew) || w.units(w.payTo) != 4000 {
		t.Errorf("%d transactions for %d batches, the shop has %d units", n, len(anew), w.units(w.payTo))
	}
}

// Where there is no Multicall3 each payment has a transaction.
func TestAChainWithoutMulticallSettlesOneByOne(t *testing.T) {
	t.Parallel()
	w := newAnvilWorld(t)
	w.ok(w.anvil.Call(t.Context(), nil, "anvil_setCode", common.HexToAddress(chain.MulticallAddress), "0x"))
	rows := w.buyers(20)
	for _, out := range w.settleAll(rows...) {
		want(t, out, ledger.Settled, "")
	}
	w.audit(rows...)
	if w.spent() != 20 {
		t.Errorf("%d transactions, want 20", w.spent())
	}
}

// The process dies around the replacement of a transaction: the next one goes
// on with every attempt that the book has.
func TestACrashAroundAReplacementChargesOnce(t *testing.T) {
	t.Parallel()
	for _, point := range []string{"bump.before", "bump.after"} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			w := newAnvilWorld(t)
			row := w.reserved(w.payment())
			w.still()
			gone := make(chan struct{})
			w.at(point, func() { close(gone); select {} })
			go w.fac.Settle(context.Background(), row)
			w.until("it is signed", func() bool { return w.row(row.Key).Money == ledger.Signed })
			w.until(point, func() bool {
				w.dear(1)
				select {
				case <-gone:
					return true
				case <-time.After(200 * time.Millisecond):
					return false
				}
			})
			w.ok(w.db.Close())
			stopped := make(chan struct{})
			go func() { // blocks go on, for the fees that there were
				defer close(stopped)
				for t.Context().Err() == nil {
					w.anvil.Call(t.Context(), nil, "anvil_mine", "0x1")
					time.Sleep(50 * time.Millisecond)
				}
			}()
			w.open()
			want(t, w.settle(*w.row(row.Key)), ledger.Settled, "")
			if attempts := len(w.batchOf(row).Txs); attempts < 1 || point == "bump.after" && attempts < 2 {
				t.Errorf("%d attempts are in the book", attempts)
			}
			w.audit(row)
			if w.spent() != 1 || w.units(w.payTo) != 1000 {
				t.Errorf("%d transactions moved %d units", w.spent(), w.units(w.payTo))
			}
		})
	}
}

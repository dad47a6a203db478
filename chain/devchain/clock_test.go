package devchain

import (
	"math/big"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/sync/errgroup"
)

// payer pays with one account nonce after the other, as a facilitator does.
type payments struct {
	t      testing.TB
	c      *Chain
	cl     *chain.Client
	payer  *chain.Key
	signer *chain.Key
	shop   common.Address
	mu     sync.Mutex
	nonce  uint64
}

func newPayments(t testing.TB, opt Options) *payments {
	c, cl := open(t, opt)
	return &payments{t: t, c: c, cl: cl, payer: fund(t, c, key(t)), signer: fund(t, c, key(t)), shop: key(t).Address()}
}

// next signs a payment and its transaction.
func (p *payments) next() (chain.Transfer, chain.Tx) {
	p.t.Helper()
	fees, err := p.cl.Fees(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	n := p.nonce
	p.nonce++
	p.mu.Unlock()
	tr := transfer(p.t, p.c, p.payer, p.shop, 1)
	tr.Nonce = common.BigToHash(new(big.Int).SetUint64(n + 1))
	tr = sign(p.t, p.c, p.payer, tr, transferType)
	tx, err := p.cl.BuildTransfer(p.signer, n, fees, 150_000, tr)
	if err != nil {
		p.t.Fatal(err)
	}
	return tr, tx
}

func TestAThousandPaymentsDoNotMoveTheClock(t *testing.T) {
	p := newPayments(t, Options{Dir: t.TempDir()})
	count := 1000
	if testing.Short() {
		count = 200
	}
	start := time.Now()
	for i := range count {
		tr, tx := p.next()
		r, outcome, err := p.cl.Submit(t.Context(), tx, 5*time.Second)
		if err != nil || r == nil {
			t.Fatalf("payment %d: %v, %v, %v", i, r, outcome, err)
		}
		if i%100 == 0 && r.Find(tr).Use != chain.Paid {
			t.Fatalf("payment %d is not paid", i)
		}
	}
	n, at := p.c.Head()
	t.Logf("%d payments one after the other: %v, block %d, clock %v ahead", count, time.Since(start), n, time.Until(at))
	if ahead := time.Until(at); ahead > 0 {
		t.Errorf("the chain's clock is %v ahead, want 0", ahead)
	}
	if n < int64(count) {
		t.Errorf("the head is block %d after %d blocks", n, count)
	}
}

func TestParallelPaymentsShareBlocks(t *testing.T) {
	p := newPayments(t, Options{})
	before, _ := p.c.Head()
	var paid atomic.Int64
	var g errgroup.Group
	g.SetLimit(32)
	for range 300 {
		tr, tx := p.next()
		g.Go(func() error {
			r, _, err := p.cl.Submit(t.Context(), tx, 20*time.Second)
			if err == nil && r != nil && r.Find(tr).Use == chain.Paid {
				paid.Add(1)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if paid.Load() != 300 {
		t.Errorf("%d of 300 parallel payments were paid", paid.Load())
	}
	after, _ := p.c.Head()
	t.Logf("300 payments in %d blocks", after-before)
	if after-before >= 300 {
		t.Errorf("300 parallel payments made %d blocks, want them to share some", after-before)
	}
}

// clock is a wall clock that a test sets.
type clock struct{ unix atomic.Int64 }

func (c *clock) now() time.Time { return time.Unix(c.unix.Load(), 0) }

func TestBlockTimeFollowsTheWallClock(t *testing.T) {
	wall := new(clock)
	wall.unix.Store(1_900_000_000)
	c, cl := open(t, Options{Now: wall.now})
	who := key(t).Address()
	grant := func() (int64, int64) {
		t.Helper()
		if err := c.Fund(t.Context(), who, big.NewInt(1), 0); err != nil {
			t.Fatal(err)
		}
		n, at := c.Head()
		return n, at.Unix()
	}
	if n, at := grant(); n != 1 || at != 1_900_000_000 {
		t.Errorf("block %d at %d, want 1 at 1900000000", n, at)
	}
	if n, at := grant(); n != 2 || at != 1_900_000_000 {
		t.Errorf("block %d at %d, want 2 in the same second", n, at)
	}
	wall.unix.Add(-100)
	if _, at := grant(); at != 1_900_000_000 {
		t.Errorf("a block at %d after the wall clock was set back, want time to stand still", at)
	}
	wall.unix.Add(150)
	if _, at := grant(); at != 1_900_000_050 {
		t.Errorf("a block at %d, want the wall clock's 1900000050", at)
	}
	// Nothing happens for an hour. Who asks then sees a block of now.
	wall.unix.Add(3600)
	head, err := cl.Head(t.Context())
	if err != nil || head.Number != 5 || head.Time.Unix() != wall.unix.Load() {
		t.Errorf("the head is block %d at %v, %v, want an empty block 5 of now", head.Number, head.Time, err)
	}
	if again, err := cl.Head(t.Context()); err != nil || again.Hash != head.Hash {
		t.Errorf("asking again made another block: %+v, %v", again, err)
	}
}

func TestBlockTimeMakesEmptyBlocks(t *testing.T) {
	c, cl := open(t, Options{BlockTime: 20 * time.Millisecond})
	deadline := time.Now().Add(5 * time.Second)
	for n := int64(0); n < 3; n, _ = c.Head() {
		if time.Now().After(deadline) {
			t.Fatalf("block %d after 5s of 20ms blocks", n)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := cl.Head(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestBlockTimeHoldsTransactionsBack(t *testing.T) {
	c, cl := open(t, Options{BlockTime: time.Hour})
	faucet := c.faucet
	fees, err := cl.Fees(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	to := key(t).Address()
	tx, err := chain.Sign(faucet, c.ChainID(), 0, fees, chain.Call{To: &to, Value: big.NewInt(1), Gas: 21_000})
	if err != nil {
		t.Fatal(err)
	}
	r, outcome, err := cl.Submit(t.Context(), tx, 300*time.Millisecond)
	if r != nil || outcome != chain.Sent || err != nil {
		t.Errorf("%+v, %v, %v before the next block is due, want it sent and no receipt", r, outcome, err)
	}
	if again, err := cl.Broadcast(t.Context(), tx.Raw); again != chain.Known || err != nil {
		t.Errorf("the same bytes again: %v, %v, want known", again, err)
	}
	bumped, err := chain.Sign(faucet, c.ChainID(), 0, fees.Bump(), chain.Call{To: &to, Value: big.NewInt(1), Gas: 21_000})
	if err != nil {
		t.Fatal(err)
	}
	slightly := fees
	slightly.Max = new(big.Int).Add(fees.Max, big.NewInt(1))
	cheap, err := chain.Sign(faucet, c.ChainID(), 0, slightly, chain.Call{To: &to, Value: big.NewInt(1), Gas: 21_000})
	if err != nil {
		t.Fatal(err)
	}
	if o, err := cl.Broadcast(t.Context(), cheap.Raw); o != chain.Underpriced || err != nil {
		t.Errorf("a replacement for a wei more: %v, %v, want underpriced", o, err)
	}
	if o, err := cl.Broadcast(t.Context(), bumped.Raw); o != chain.Sent || err != nil {
		t.Errorf("a replacement with bumped fees: %v, %v, want sent", o, err)
	}
	if n, err := cl.NonceAt(t.Context(), faucet.Address()); n != 0 || err != nil {
		t.Errorf("nonce %d, %v in blocks, want 0", n, err)
	}
	if n, err := cl.PendingNonceAt(t.Context(), faucet.Address()); n != 1 || err != nil {
		t.Errorf("nonce %d, %v with the pool, want 1", n, err)
	}
}

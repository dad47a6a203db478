package main

import (
	"context"
	"errors"
	"math/big"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common/hexutil"
)

// weather has the chain do what k's boundary waits for, until calm: blocks
// that make others final, and a base fee that leaps, so that blocks pass a
// transaction by until it offers more. Afterwards gas is cheap again.
func (w *world) weather(ctx context.Context, k kill) (calm func() error) {
	if k.Boundary != final && k.Boundary != feeBump {
		return func() error { return nil }
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var failed error
	wg.Go(func() {
		tick := time.NewTicker(150 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			var err error
			if k.Boundary == feeBump && n%16 == 0 {
				err = w.baseFee(ctx, 200)
			}
			if err = errors.Join(err, w.node.Call(ctx, nil, "anvil_mine", "0x1")); err != nil && ctx.Err() == nil {
				failed = err
				return
			}
		}
	})
	return func() error {
		cancel()
		wg.Wait()
		if k.Boundary != feeBump || failed != nil {
			return failed
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return errors.Join(w.baseFee(ctx, 1), w.node.Call(ctx, nil, "anvil_mine", "0x1"))
	}
}

// baseFee sets that of the next block, in gwei.
func (w *world) baseFee(ctx context.Context, gwei int64) error {
	return w.node.Call(ctx, nil, "anvil_setNextBlockBaseFeePerGas", (*hexutil.Big)(new(big.Int).Mul(big.NewInt(gwei), big.NewInt(1e9))))
}

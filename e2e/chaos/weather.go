package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	done := make(chan struct{})
	var wg sync.WaitGroup
	var failed error
	wg.Go(func() {
		// A call is never cut off: the node may carry it out after it is calm.
		tick := time.NewTicker(150 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-done:
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
		close(done)
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

// sky says what the chain looks like to a transaction that is in no block.
func (w *world) sky(ctx context.Context) string {
	var head struct{ Number, BaseFeePerGas, Timestamp string }
	var pool json.RawMessage
	var coming struct{ BaseFeePerGas string }
	err := errors.Join(w.node.Call(ctx, &head, "eth_getBlockByNumber", "latest", false), w.node.Call(ctx, &coming, "eth_getBlockByNumber", "pending", false),
		w.node.Call(ctx, &pool, "txpool_inspect"))
	return fmt.Sprintf("the head is %+v, the next base fee %s, the pool %s (%v)", head, coming.BaseFeePerGas, pool, err)
}

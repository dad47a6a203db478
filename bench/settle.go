package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/x402"
)

// settleReport is the last line of stdout of `bench settle`.
type settleReport struct {
	PerSecond float64 `json:"settle_per_s_one_signer"`
	GasRatio  float64 `json:"gas_ratio_100"`
}

// How much is settled at a time, and by how many callers.
const (
	settleRounds  = 3
	settleWarm    = 200
	settleEach    = 2_000
	settleCallers = 512
)

// settle measures what one signer settles: POST /settle of clawr's facilitator,
// distinct presigned payments, each answered when its block is there; and what
// a payment in a batch of a hundred costs beside one that has a transaction.
// Each round has a chain of its own, on which nobody has paid yet.
func settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	var r settleReport
	var rates []float64
	rows := []string{"round\tsettled/s\tp50 ms\tp99 ms\tpayments a transaction\tclawr CPU ms\tanvil CPU ms"}
	for i := range settleRounds {
		err := in(ctx, func(w *world) error {
			if i == 0 {
				single, batched, err := w.gas(ctx)
				if err != nil {
					return err
				}
				r.GasRatio = math.Round(1000*batched/single) / 1000
				table("gas of a payment", "\tgas", fmt.Sprintf("a transaction each\t%.0f", single), fmt.Sprintf("in a batch of 100\t%.0f", batched), fmt.Sprintf("ratio\t%.3f", batched/single))
			}
			seller, err := newSeller()
			if err != nil {
				return err
			}
			ours, err := w.facilitator(ctx, seller)
			if err != nil {
				return err
			}
			if _, err := w.settleSome(ctx, ours, seller, settleWarm); err != nil {
				return err
			}
			got, err := w.settleSome(ctx, ours, seller, settleEach)
			if err != nil {
				return err
			}
			rates = append(rates, got.perSecond())
			n := float64(settleEach)
			rows = append(rows, fmt.Sprintf("%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.2f\t%.2f", i+1, got.perSecond(), ms(got.P50), ms(got.P99), n/float64(got.txs), ms(got.cpu)/n, ms(got.anvil)/n))
			return nil
		})
		if err != nil {
			return err
		}
	}
	r.PerSecond = round(median(rates))
	table(fmt.Sprintf("POST /settle, %d distinct payments by %d callers, one signer, one anvil that mines at once", settleEach, settleCallers), rows...)
	return json.NewEncoder(os.Stdout).Encode(r)
}

// in does something in a world of its own.
func in(ctx context.Context, do func(*world) error) (err error) {
	w, err := newWorld(ctx, 64)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	return do(w)
}

// settleRound is how a round of settlements went.
type settleRound struct {
	result
	txs        uint64 // transactions of the signer
	cpu, anvil time.Duration
}

// settleSome has n payments settled, and counts the money.
func (w *world) settleSome(ctx context.Context, p *process, seller common.Address, n int) (out settleRound, err error) {
	signer := w.signers[len(w.signers)-1]
	had, err := w.balance(ctx, seller)
	if err != nil {
		return out, err
	}
	nonce, err := w.node.Client.NonceAt(ctx, signer)
	if err != nil {
		return out, err
	}
	requests, err := w.verifications(p.addr, seller, n)
	if err != nil {
		return out, err
	}
	for i := range requests {
		requests[i] = []byte(strings.Replace(string(requests[i]), "POST /verify ", "POST /settle ", 1))
	}
	cpu, anvil := p.cpu(), cpuOf(nodePID())
	if out.result, err = fire(ctx, job{Addr: p.addr, Callers: settleCallers, Requests: requests, Status: 200, Contains: `"success":true`}); err != nil {
		return out, err
	}
	out.cpu, out.anvil = p.cpu()-cpu, cpuOf(nodePID())-anvil
	after, err := w.node.Client.NonceAt(ctx, signer)
	if err != nil {
		return out, err
	}
	out.txs = after - nonce
	if has, err := w.balance(ctx, seller); err != nil || has != had+int64(n)*price {
		return out, fmt.Errorf("%d payments were settled, and the seller has %d instead of %d: %w", n, has, had+int64(n)*price, err)
	}
	return out, nil
}

// gas is what a payment costs with a transaction of its own, and in a batch of
// a hundred: everything that its account pays for, of the same payers to a
// payee who has money already.
func (w *world) gas(ctx context.Context) (single, batched float64, err error) {
	reveal, err := w.signer(ctx)
	if err != nil {
		return 0, 0, err
	}
	key, err := chain.ParseKey(reveal)
	if err != nil {
		return 0, 0, err
	}
	seller, err := newSeller()
	if err != nil {
		return 0, 0, err
	}
	if err := w.node.Fund(ctx, seller, nil, 1); err != nil {
		return 0, 0, err
	}
	const some, many = 20, 100
	ts, err := w.transfers(seller, some+many)
	if err != nil {
		return 0, 0, err
	}
	send := func(call chain.Call) (float64, error) {
		r, err := w.node.Client.Transact(ctx, key, call)
		if err != nil {
			return 0, err
		}
		return float64(r.GasUsed), nil
	}
	for _, t := range ts[:some] {
		g, err := send(chain.Call{To: &t.Asset, Data: t.Calldata(), Gas: 150_000})
		if err != nil {
			return 0, 0, err
		}
		single += g / some
	}
	to := common.HexToAddress(chain.MulticallAddress)
	g, err := send(chain.Call{To: &to, Data: chain.Aggregate(ts[some:]), Gas: 16_000_000})
	if err != nil {
		return 0, 0, err
	}
	has, err := w.balance(ctx, seller)
	if err == nil && has != 1+(some+many)*price {
		err = fmt.Errorf("the batch moved %d units, of %d", has-1-some*price, many*price)
	}
	return single, g / many, err
}

// transfers are n payments as transactions carry them.
func (w *world) transfers(seller common.Address, n int) ([]chain.Transfer, error) {
	required := w.offer(seller)
	out := make([]chain.Transfer, n)
	for i := range out {
		paid, err := w.payers[i%len(w.payers)].sign(required)
		if err != nil {
			return nil, err
		}
		e, err := x402.ParseExact(paid.Payload)
		if err != nil {
			return nil, err
		}
		amount, _ := e.Value.Int64()
		after, _ := e.ValidAfter.Int64()
		before, _ := e.ValidBefore.Int64()
		out[i] = chain.Transfer{Asset: w.asset, Payer: e.From, PayTo: e.To, Amount: amount, ValidAfter: after, ValidBefore: before, Nonce: e.Nonce, Signature: e.Signature}
	}
	return out, nil
}

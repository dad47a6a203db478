package main

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/x402"
)

// fault is something that chains and payers do to a seller.
type fault struct {
	name string
	// do is it, once: while calls are being paid, again and again.
	do func(ctx context.Context, w *world, r *rand.Rand) error
	// calm puts an end to it.
	calm func(ctx context.Context, w *world) error
}

// chainDepth is how many blocks a chain of these tests keeps the right to
// take back.
const chainDepth = 10

var faults = []fault{
	{name: "reorganisation", do: reorganise, calm: mining},
	{name: "dropped transactions", do: dropped, calm: mining},
	{name: "no blocks", do: stopped, calm: mining},
	{name: "time leaps", do: leap},
	{name: "base fee leaps", do: dear, calm: cheap},
	{name: "drained payer", do: drain},
	{name: "cancelled authorizations", do: cancel},
	{name: "front-run", do: frontRun, calm: mining},
}

// reorganise takes blocks back. No transaction may make a block meanwhile:
// anvil would have it in two of them, which no chain can.
func reorganise(ctx context.Context, w *world, r *rand.Rand) error {
	if err := w.node.Call(ctx, nil, "evm_setAutomine", false); err != nil {
		return err
	}
	wait(ctx, 50*time.Millisecond) // for the block that is being made
	if err := w.node.Call(ctx, nil, "anvil_reorg", 1+r.IntN(chainDepth), []any{}); err != nil {
		return err
	}
	return mining(ctx, w)
}

func (w *world) mine(ctx context.Context, n int) error {
	return w.node.Call(ctx, nil, "anvil_mine", fmt.Sprintf("0x%x", n))
}

func mining(ctx context.Context, w *world) error {
	if err := w.node.Call(ctx, nil, "evm_setAutomine", true); err != nil {
		return err
	}
	return w.mine(ctx, 1)
}

// dropped forgets what waits for a block.
func dropped(ctx context.Context, w *world, r *rand.Rand) error {
	if err := w.node.Call(ctx, nil, "evm_setAutomine", false); err != nil {
		return err
	}
	if !wait(ctx, time.Duration(100+r.IntN(400))*time.Millisecond) {
		return nil
	}
	if err := w.node.Call(ctx, nil, "anvil_dropAllTransactions"); err != nil || one(r, 2) {
		return err
	}
	return mining(ctx, w)
}

func stopped(ctx context.Context, w *world, _ *rand.Rand) error {
	return w.node.Call(ctx, nil, "evm_setAutomine", false)
}

// leap moves the chain's clock, for everybody.
func leap(ctx context.Context, w *world, r *rand.Rand) error {
	return w.leap(ctx, 1+r.Int64N(20), 1)
}

func (w *world) leap(ctx context.Context, seconds int64, blocks int) error {
	if err := w.node.Call(ctx, nil, "evm_increaseTime", seconds); err != nil {
		return err
	}
	w.ahead.Add(seconds)
	return w.mine(ctx, blocks)
}

func dear(ctx context.Context, w *world, r *rand.Rand) error {
	if one(r, 4) {
		if err := w.baseFee(ctx, 1+r.Int64N(300)); err != nil {
			return err
		}
	}
	return w.mine(ctx, 1)
}

func cheap(ctx context.Context, w *world) error {
	if err := w.baseFee(ctx, 1); err != nil {
		return err
	}
	return w.mine(ctx, 1)
}

// drain takes a payer's money away, or gives him a little back.
func drain(ctx context.Context, w *world, r *rand.Rand) error {
	key := w.buyers[r.IntN(len(w.buyers))]
	who := crypto.PubkeyToAddress(key.PublicKey)
	have, err := w.node.Client.TokenBalance(ctx, w.asset, who)
	if err != nil {
		return err
	}
	if one(r, 2) || have.Sign() == 0 {
		return w.node.Fund(ctx, who, nil, 5*price)
	}
	if err := w.node.SetBalance(ctx, who, big.NewInt(1e18)); err != nil {
		return err
	}
	data := append(common.FromHex("0xa9059cbb"), word(common.Address{0xee}.Bytes())...)
	return w.transact(ctx, key, append(data, word(have.Bytes())...))
}

func word(b []byte) []byte { return common.LeftPadBytes(b, 32) }

// transact calls the token. That it reverts is the caller's bad luck.
func (w *world) transact(ctx context.Context, key *ecdsa.PrivateKey, data []byte) error {
	k, err := chain.ParseKey(hexutil.Encode(crypto.FromECDSA(key)))
	if err != nil {
		return err
	}
	_, _ = w.node.Client.Transact(ctx, k, chain.Call{To: &w.asset, Data: data, Gas: 200_000})
	return nil
}

// recent are authorizations that were signed a moment ago.
func (w *world) recent(r *rand.Rand, n int) (list []*authorization, keys []*ecdsa.PrivateKey) {
	w.selling.Lock()
	defer w.selling.Unlock()
	from := max(0, len(w.bought)-24)
	for _, i := range r.Perm(len(w.bought) - from) {
		p := w.bought[from+i]
		if len(list) < n && len(p.signed) > 0 {
			list, keys = append(list, p.signed[0]), append(keys, p.key)
		}
	}
	return list, keys
}

// cancel takes an authorization back, on the chain.
func cancel(ctx context.Context, w *world, r *rand.Rand) error {
	list, keys := w.recent(r, 1)
	if len(list) == 0 {
		return nil
	}
	if err := w.node.SetBalance(ctx, list[0].payer, big.NewInt(1e18)); err != nil {
		return err
	}
	id, _ := x402.ChainID(w.node.Asset.Network)
	domain := x402.NewDomain(w.node.Asset.Name, w.node.Asset.Version, id, w.asset)
	typed := crypto.Keccak256(crypto.Keccak256([]byte("CancelAuthorization(address authorizer,bytes32 nonce)")), word(list[0].payer.Bytes()), list[0].nonce[:])
	sig, err := crypto.Sign(crypto.Keccak256([]byte{0x19, 1}, domain[:], typed), keys[0])
	if err != nil {
		return err
	}
	data := common.FromHex("0x5a049a70") // cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)
	for _, b := range [][]byte{list[0].payer.Bytes(), list[0].nonce[:], {sig[64] + 27}, sig[:32], sig[32:64]} {
		data = append(data, word(b)...)
	}
	return w.transact(ctx, keys[0], data)
}

// frontRun sees transactions in the pool and submits what they carry first.
func frontRun(ctx context.Context, w *world, r *rand.Rand) error {
	if err := w.node.Call(ctx, nil, "evm_setAutomine", false); err != nil {
		return err
	}
	if !wait(ctx, 300*time.Millisecond) {
		return nil
	}
	var signed []string
	if err := w.each(ctx, `SELECT auth_nonce FROM payments WHERE money = 'signed'`, func(scan scanner) error {
		var nonce string
		err := scan(&nonce)
		signed = append(signed, nonce)
		return err
	}); err != nil {
		return err
	}
	list, _ := w.recent(r, 24)
	for _, a := range list {
		if !slices.Contains(signed, a.nonce.Hex()) || one(r, 2) {
			continue
		}
		if err := w.overtake(ctx, a); err != nil {
			return err
		}
	}
	return mining(ctx, w)
}

// overtake submits a payment as a stranger, for more gas than its own settler
// offers.
func (w *world) overtake(ctx context.Context, a *authorization) error {
	e, err := x402.ParseExact(a.payload.Payload)
	if err != nil {
		return err
	}
	stranger, err := chain.NewKey()
	if err != nil {
		return err
	}
	if err := w.node.SetBalance(ctx, stranger.Address(), big.NewInt(1e18)); err != nil {
		return err
	}
	fees, err := w.node.Client.Fees(ctx)
	if err != nil {
		return err
	}
	for range 12 {
		fees = fees.Bump()
	}
	before, _ := e.ValidBefore.Int64()
	t := chain.Transfer{Asset: w.asset, Payer: e.From, PayTo: e.To, Amount: price, ValidBefore: before, Nonce: e.Nonce, Signature: e.Signature}
	tx, err := w.node.Client.BuildTransfer(stranger, 0, fees, 150_000, t)
	if err != nil {
		return err
	}
	w.foreign[tx.Hash.Hex()] = true
	_, err = w.node.Client.Broadcast(ctx, tx.Raw)
	return err
}

// one reports whether something happens that does so once in n times.
func one(r *rand.Rand, n int) bool { return r.IntN(n) == 0 }

func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// suffer sells while f goes on, and then has time pass until nothing is open.
// Nobody is killed. Audit is what it was.
func (w *world) suffer(ctx context.Context, k kill, f fault) (result, error) {
	res := result{Index: k.Index, Seed: k.Seed, Engine: k.Engine, Policy: k.Policy, Boundary: f.name}
	r := rand.New(rand.NewPCG(k.Seed, 2))
	first := len(w.bought)
	during, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var failed error
	wg.Go(func() {
		rf := rand.New(rand.NewPCG(k.Seed, 3))
		for wait(during, time.Duration(50+rf.IntN(250))*time.Millisecond) {
			if err := f.do(during, w, rf); err != nil && during.Err() == nil {
				failed = fmt.Errorf("%s: %w", f.name, err)
				return
			}
		}
	})
	err := w.sell(ctx, k, r)
	cancel()
	wg.Wait()
	if failed != nil || err != nil {
		return res, errors.Join(failed, err)
	}
	if f.calm != nil {
		if err := f.calm(ctx, w); err != nil {
			return res, err
		}
	}
	w.since = time.Now()
	// Whoever was drained or has cancelled waits for the proof that he will not
	// be charged: that his authorization is over, in a finalized block.
	passing, stop := context.WithCancel(ctx)
	defer stop()
	pace := int64(40)
	if k.Policy == "async" { // signed for an hour, not for a minute
		pace = 600
	}
	wg.Go(func() {
		for wait(passing, 5*time.Second) {
			if err := w.leap(passing, pace, 3*chainDepth); err != nil && passing.Err() == nil {
				failed = err
				return
			}
		}
	})
	err = w.resend(ctx, w.bought[first:], false, &res)
	var open string
	if err == nil {
		err = w.mine(ctx, 3*chainDepth) // what is in them is final, or was lost
	}
	for err == nil {
		if open, err = w.open(ctx, "held", "signed", "mined"); open == "" || time.Since(w.since) > giveUp {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	stop()
	wg.Wait()
	if failed != nil || err != nil {
		return res, errors.Join(failed, err)
	}
	res.Reconciled = time.Since(w.since).Seconds()
	if open != "" {
		res.Violations = append(res.Violations, "not reconciled: "+open+"; "+w.sky(ctx))
	}
	return res, w.audit(ctx, &res)
}

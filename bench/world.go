package main

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/anvil"
)

// world is a chain that mines at once, and the programs that work on it.
type world struct {
	root    string
	data    string // a directory for the data of everybody, on a disk
	node    *anvil.Node
	asset   common.Address
	running []*process
	payers  []*payer
	signers []common.Address
	bought  []bought // since the token last forgot
	blocks  context.CancelFunc
}

// roomy makes blocks as large as a chain's that x402 is used on: Base's took 140
// million gas in 2025 (docs.base.org, "Block building"), and anvil's own 30
// million would be full with two batches, whose limits leave room for what a payer may do meanwhile.
var roomy = []string{"--gas-limit", "140000000"}

// funds is what every payer starts with, in atomic units.
const funds = 1_000_000_000_000

// newWorld starts a chain and funds the payers.
func newWorld(ctx context.Context, payers int) (*world, error) {
	return newWorldOn(ctx, payers, anvil.Options{})
}

func newWorldOn(ctx context.Context, payers int, chain anvil.Options) (_ *world, err error) {
	w := &world{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.root, err = root(); err != nil {
		return nil, err
	}
	if w.data, err = os.MkdirTemp("", "clawr-bench-"); err != nil {
		return nil, err
	}
	// The chain keeps no state of old blocks in memory for us.
	if w.node, err = anvil.Start(ctx, chain); err != nil {
		return nil, err
	}
	w.asset = common.HexToAddress(w.node.Asset.Address)
	if chain.BlockTime == 0 {
		ticking, cancel := context.WithCancel(ctx)
		w.blocks = cancel
		go w.tick(ticking)
	}
	for range payers {
		p, err := newPayer()
		if err != nil {
			return nil, err
		}
		if err := w.node.Fund(ctx, p.address, nil, funds); err != nil {
			return nil, err
		}
		w.payers = append(w.payers, p)
	}
	return w, nil
}

// tick makes an empty block now and then, beside those that transactions make.
// The official stack's client looks for a receipt when it sees a new block, and
// has been seen to wait for the next one for ever.
func (w *world) tick(ctx context.Context) {
	every := time.NewTicker(time.Second)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			w.node.Call(ctx, nil, "evm_mine")
		}
	}
}

// close ends everything. What clawr or the official stack complained of is an
// error: a number that was measured beside errors is none.
func (w *world) close() error {
	var errs []error
	for i := len(w.running) - 1; i >= 0; i-- {
		errs = append(errs, w.end(w.running[i]))
	}
	w.running = nil
	if w.blocks != nil {
		w.blocks()
	}
	if w.node != nil {
		errs = append(errs, w.node.Close())
		w.node = nil
	}
	if w.data != "" {
		errs = append(errs, os.RemoveAll(w.data))
	}
	return errors.Join(errs...)
}

func (w *world) end(p *process) error {
	said := p.stop()
	if code := p.cmd.ProcessState.ExitCode(); code > 0 && p.cmd.Args[0] != "node" {
		return fmt.Errorf("%s ended with %d: %s", name(p.cmd), code, said)
	}
	return nil
}

// run starts a program of this world.
func (w *world) run(ctx context.Context, cmd *exec.Cmd) (*process, error) {
	p, err := start(ctx, cmd)
	if err == nil {
		w.running = append(w.running, p)
	}
	return p, err
}

// signer is a key with money for gas, as programs are given it.
func (w *world) signer(ctx context.Context) (string, error) {
	k, err := chain.NewKey()
	if err != nil {
		return "", err
	}
	w.signers = append(w.signers, k.Address())
	wei := new(big.Int).Exp(big.NewInt(10), big.NewInt(21), nil)
	return k.Reveal(), w.node.SetBalance(ctx, k.Address(), wei)
}

// usedSlot is where the test token keeps which authorizations were used.
const usedSlot = 4

// forget takes the authorizations of what was bought so far out of the token's
// storage. For each block anvil hashes everything that the token has stored, so
// that after a thousand payments, whoever made them, the next one takes it six
// times as long. The blocks stay: a chain that is taken back is a
// reorganisation, and clawr would settle what was lost again.
func (w *world) forget(ctx context.Context) error {
	for _, b := range w.bought {
		inner := crypto.Keccak256(common.LeftPadBytes(b.payer[:], 32), common.BigToHash(big.NewInt(usedSlot)).Bytes())
		if err := w.node.Call(ctx, nil, "anvil_setStorageAt", w.asset, crypto.Keccak256Hash(b.nonce[:], inner), common.Hash{}); err != nil {
			return err
		}
	}
	w.bought = nil
	return nil
}

// bought is an authorization that was made for a server.
type bought struct {
	payer common.Address
	nonce common.Hash
}

// newSeller is an address that has nothing yet.
func newSeller() (common.Address, error) {
	k, err := chain.NewKey()
	if err != nil {
		return common.Address{}, err
	}
	return k.Address(), nil
}

// balance is what an account has of the token.
func (w *world) balance(ctx context.Context, who common.Address) (int64, error) {
	n, err := w.node.Client.TokenBalance(ctx, w.asset, who)
	if err != nil {
		return 0, err
	}
	return n.Int64(), nil
}

// network is the chain's CAIP-2 name.
func (w *world) network() string { return w.node.Asset.Network }

// facilitator starts clawr's facilitator for one payee.
func (w *world) facilitator(ctx context.Context, payTo common.Address, flags ...string) (*process, error) {
	key, err := w.signer(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(w.data, fmt.Sprintf("facilitator%d", len(w.running)))
	args := append([]string{"facilitator", "serve", "--listen", "127.0.0.1:0", "--data", dir, "--network", w.network(), "--asset", w.asset.Hex(),
		"--rpc-url", w.node.URL, "--allow-pay-to", payTo.Hex()}, flags...)
	return w.run(ctx, command(w.root, w.data, []string{"CLAWR_FACILITATOR_KEY=" + key}, args...))
}

// tsFacilitator starts the official facilitator.
func (w *world) tsFacilitator(ctx context.Context) (*process, error) {
	key, err := w.signer(ctx)
	if err != nil {
		return nil, err
	}
	env := []string{"RPC_URL=" + w.node.URL, "NETWORK=" + w.network(), "PRIVATE_KEY=" + key}
	if ms := os.Getenv("POLL_MS"); ms != "" {
		env = append(env, "POLL_MS="+ms)
	}
	return w.run(ctx, script(w.root, "ts-facilitator.mjs", env...))
}

// airports is the dataset that clawr sells.
const airports = "cmd/clawr/sample/airports.csv"

// price of a call at both servers, in atomic units of the token.
const price = 1000

// serve starts clawr with the dataset on sale, settling by itself.
func (w *world) serve(ctx context.Context, payTo common.Address, env []string, flags ...string) (*process, error) {
	return w.serveAs(ctx, payTo, nil, env, flags...)
}

// serveAs is serve with more flags of the deploy.
func (w *world) serveAs(ctx context.Context, payTo common.Address, deployed, env []string, flags ...string) (*process, error) {
	key, err := w.signer(ctx)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(w.data, fmt.Sprintf("serve%d", len(w.running)))
	deploy := command(w.root, w.data, nil, append([]string{"deploy", filepath.Join(w.root, airports), "--tenant", "airports", "--price", "0.001", "--x402",
		"--pay-to", payTo.Hex(), "--network", w.network(), "--data", dir}, deployed...)...)
	if out, err := deploy.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("deploy: %w: %s", err, out)
	}
	args := append([]string{"serve", "--listen", "127.0.0.1:0", "--data", dir, "--network", w.network(), "--asset", w.asset.Hex(), "--rpc-url", w.node.URL,
		"--pay-to", payTo.Hex()}, flags...)
	p, err := w.run(ctx, command(w.root, w.data, append([]string{"CLAWR_FACILITATOR_KEY=" + key}, env...), args...))
	if err == nil {
		p.data = dir
	}
	return p, err
}

// records is what callers ask clawr for.
const records = "/t/airports/v1/records?limit=1"

// tsServer starts the official server on a facilitator.
func (w *world) tsServer(ctx context.Context, facilitator *process, payTo common.Address) (*process, error) {
	return w.run(ctx, script(w.root, "express-server.mjs", "FACILITATOR_URL=http://"+facilitator.addr, "NETWORK="+w.network(), "ASSET="+w.asset.Hex(),
		"PAY_TO="+payTo.Hex(), fmt.Sprintf("AMOUNT=%d", price)))
}

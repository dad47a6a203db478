// Package anvil runs Foundry's development node for the tests and benchmarks
// that want a chain which is not clawr's own: with the test USDC, a
// Multicall3 and nothing else on it, and no well-known account.
package anvil

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/chain/devchain"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

// Options of a node. The zero value mines each transaction at once on chain 31337.
type Options struct {
	ChainID   int64         // 31337 if zero
	BlockTime time.Duration // whole seconds; zero mines at once
	// LikeBaseSepolia is chain id 84532 with the token at the address of Base Sepolia's USDC.
	LikeBaseSepolia bool
	// Args are more of anvil's own arguments, such as --no-mining.
	Args []string
}

// Node is a running anvil.
type Node struct {
	URL    string
	Asset  clawr.Asset
	Client *chain.Client

	minter *chain.Key
	rpc    *rpc.Client
	cmd    *exec.Cmd
	output *tail
	mu     sync.Mutex // one grant at a time
}

// Of is a development chain in this process, for what needs no method of
// anvil's: nothing can be called, and nobody be given anything, through it.
func Of(ctx context.Context, c *devchain.Chain) (*Node, error) {
	client, err := c.Client(ctx)
	return &Node{URL: c.URL(), Asset: c.Asset(), Client: client}, err
}

// Start runs anvil until Close, and puts the contracts on its chain. The
// binary is the one that make test installs below e2e/node_modules.
func Start(ctx context.Context, opt Options) (*Node, error) {
	bin, err := Binary()
	if err != nil {
		return nil, err
	}
	if opt.LikeBaseSepolia {
		opt.ChainID = 84532
	}
	if opt.ChainID == 0 {
		opt.ChainID = devchain.DefaultChainID
	}
	args := []string{"--host", "127.0.0.1", "--port", "0", "--accounts", "0", "--chain-id", strconv.FormatInt(opt.ChainID, 10),
		"--disable-default-create2-deployer"}
	if opt.BlockTime > 0 {
		args = append(args, "--block-time", strconv.FormatInt(int64(opt.BlockTime/time.Second), 10))
	}
	n := &Node{cmd: exec.Command(bin, append(args, opt.Args...)...), output: new(tail)}
	n.cmd.SysProcAttr = dieWithParent()
	if err := n.start(ctx); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	if err := n.populate(ctx, opt); err != nil {
		return nil, errors.Join(fmt.Errorf("put the contracts on anvil: %w", err), n.Close())
	}
	return n, nil
}

// start waits until the node says where it listens.
func (n *Node) start(ctx context.Context) error {
	out, err := n.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	n.cmd.Stderr = n.output
	if err := n.cmd.Start(); err != nil {
		return fmt.Errorf("start anvil: %w", err)
	}
	addr := make(chan string, 1)
	go func() {
		lines := bufio.NewScanner(io.TeeReader(out, n.output))
		for lines.Scan() {
			if a, ok := strings.CutPrefix(lines.Text(), "Listening on "); ok {
				addr <- a
			}
		}
		close(addr)
		io.Copy(io.Discard, out)
	}()
	select {
	case a, ok := <-addr:
		if !ok {
			return fmt.Errorf("anvil ended: %s", n.output)
		}
		n.URL = "http://" + a
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(20 * time.Second):
		return fmt.Errorf("anvil does not listen: %s", n.output)
	}
	if n.rpc, err = rpc.DialContext(ctx, n.URL); err != nil {
		return err
	}
	n.Client, err = chain.Dial(ctx, n.URL)
	return err
}

// populate puts the token on the chain, and the contracts of others.
func (n *Node) populate(ctx context.Context, opt Options) error {
	var err error
	if n.minter, err = chain.NewKey(); err != nil {
		return err
	}
	if err := n.SetBalance(ctx, n.minter.Address(), new(big.Int).Exp(big.NewInt(10), big.NewInt(24), nil)); err != nil {
		return err
	}
	for at, read := range map[string]func() (*devchain.Artifact, error){devchain.MulticallAddress: devchain.Multicall,
		chain.ChannelsAddress: devchain.Channels, chain.CollectorAddress: devchain.Collector} {
		a, err := read()
		if err == nil {
			err = n.Call(ctx, nil, "anvil_setCode", common.HexToAddress(at), a.Runtime)
		}
		if err != nil {
			return err
		}
	}
	token, err := devchain.TestUSD()
	if err != nil {
		return err
	}
	var at common.Address
	if opt.LikeBaseSepolia {
		at = common.HexToAddress("0x036cbd53842c5426634e7929541ec2318f3dcf7e")
		if err := n.Call(ctx, nil, "anvil_setCode", at, token.Runtime); err != nil {
			return err
		}
		minter := common.BytesToHash(n.minter.Address().Bytes())
		if err := n.Call(ctx, nil, "anvil_setStorageAt", at, "0x0", minter); err != nil {
			return err
		}
	} else if at, err = n.deploy(ctx, token); err != nil {
		return err
	}
	n.Asset, err = n.Client.Asset(ctx, at)
	return err
}

// deploy also works where blocks are not made by themselves.
func (n *Node) deploy(ctx context.Context, a *devchain.Artifact) (common.Address, error) {
	var auto bool
	if err := n.Call(ctx, &auto, "anvil_getAutomine"); err != nil {
		return common.Address{}, err
	}
	if !auto {
		var interval *int64 // seconds; nil: blocks are made when asked for
		if err := n.Call(ctx, &interval, "anvil_getIntervalMining"); err != nil {
			return common.Address{}, err
		}
		if err := n.Call(ctx, nil, "evm_setAutomine", true); err != nil {
			return common.Address{}, err
		}
		defer func() {
			if interval != nil {
				n.Call(ctx, nil, "evm_setIntervalMining", *interval)
				return
			}
			n.Call(ctx, nil, "evm_setAutomine", false)
		}()
	}
	return devchain.Deploy(ctx, n.Client, n.minter, a)
}

// Fund sets an account's ether to wei, if that is not nil, and gives it units of the token.
func (n *Node) Fund(ctx context.Context, to common.Address, wei *big.Int, units int64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if wei != nil {
		if err := n.SetBalance(ctx, to, wei); err != nil {
			return err
		}
	}
	if units == 0 {
		return nil
	}
	asset := common.HexToAddress(n.Asset.Address)
	_, err := n.Client.Transact(ctx, n.minter, chain.Call{To: &asset, Data: devchain.MintCall(to, units)})
	return err
}

// SetBalance sets an account's ether.
func (n *Node) SetBalance(ctx context.Context, who common.Address, wei *big.Int) error {
	return n.Call(ctx, nil, "anvil_setBalance", who, (*hexutil.Big)(wei))
}

// Call calls a method of the node, such as anvil_reorg.
func (n *Node) Call(ctx context.Context, result any, method string, args ...any) error {
	return n.rpc.CallContext(ctx, result, method, args...)
}

// Close ends the node.
func (n *Node) Close() error {
	if n.Client != nil {
		n.Client.Close()
	}
	if n.rpc != nil {
		n.rpc.Close()
	}
	if n.cmd == nil || n.cmd.Process == nil {
		return nil
	}
	n.cmd.Process.Kill()
	n.cmd.Wait()
	return nil
}

// Binary is the path of anvil: below e2e/node_modules of the work tree that
// the current directory is in, else on the PATH.
func Binary() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		bin := filepath.Join(dir, "e2e/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil")
		if _, err := os.Stat(bin); err == nil {
			return bin, nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	bin, err := exec.LookPath("anvil")
	if err != nil {
		return "", errors.New("anvil is not installed: npm --prefix e2e ci")
	}
	return bin, nil
}

// tail keeps the last part of what a process says, for its error.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p...)
	if len(t.buf) > 4096 {
		t.buf = t.buf[len(t.buf)-2048:]
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.buf))
}

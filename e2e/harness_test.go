// Package e2e runs the built clawr against the official x402 programs, on the
// development chain and on anvil. Everything here is a real process.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/chain/devchain"
	"github.com/402claw/clawr/e2e/anvil"
	"github.com/402claw/clawr/store/storetest"
)

// binary builds clawr once for all tests.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "clawr-e2e-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "clawr")
	out, err := exec.Command("go", "build", "-o", path, "../cmd/clawr").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := storetest.Main(m)
	if path, err := binary(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

// clawr is a command line of the built program, with an environment of its own.
func clawr(t testing.TB, env []string, args ...string) *exec.Cmd {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append([]string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH")}, env...)
	return cmd
}

// must runs a command line to its end and gives its standard output.
func must(t testing.TB, env []string, args ...string) string {
	t.Helper()
	cmd := clawr(t, env, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("clawr %s: %v\n%s%s", strings.Join(args, " "), err, out, errs.String())
	}
	return string(out)
}

// proc is a process that goes on.
type proc struct {
	*exec.Cmd
	t     testing.TB
	addr  string // that it listens on
	mu    sync.Mutex
	log   bytes.Buffer
	ended chan struct{}
}

var listening = regexp.MustCompile(`listening on (\S+)`)

// start runs cmd and waits until it says what it listens on.
func start(t testing.TB, cmd *exec.Cmd) *proc {
	t.Helper()
	p := &proc{Cmd: cmd, t: t, ended: make(chan struct{})}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan string, 1)
	go func() {
		defer close(p.ended)
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			p.mu.Lock()
			p.log.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				select {
				case ready <- m[1]:
				default:
				}
			}
		}
		cmd.Wait()
	}()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", strings.Join(cmd.Args[1:min(len(cmd.Args), 3)], " "), p.said())
		}
	})
	select {
	case p.addr = <-ready:
	case <-p.ended:
		t.Fatalf("%v ended early:\n%s", cmd.Args, p.said())
	case <-time.After(30 * time.Second):
		t.Fatalf("%v did not get ready:\n%s", cmd.Args, p.said())
	}
	return p
}

func (p *proc) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// kill ends p as kill -9 does.
func (p *proc) kill() {
	p.Process.Kill()
	<-p.ended
}

// net is a chain that tests pay on.
type testChain struct {
	name    string
	rpc     string
	network string
	asset   common.Address
	client  *chain.Client
	fund    func(t testing.TB, to common.Address, wei *big.Int, units int64)
}

// devChain starts clawr's own chain, as its users do.
func devChain(t testing.TB, flags ...string) *testChain {
	t.Helper()
	cmd := clawr(t, nil, append([]string{"chain", "serve", "--listen", "127.0.0.1:0", "--data", t.TempDir(), "--json"}, flags...)...)
	var out lockedBuffer
	cmd.Stdout = &out
	start(t, cmd)
	var info struct{ RPCURL, Network, Asset string }
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		err := json.Unmarshal(out.Bytes(), &info) // it may be on its way yet
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("chain serve printed %q: %v", out.Bytes(), err)
		}
	}
	return connect(t, "devchain", info.RPCURL, info.Network, common.HexToAddress(info.Asset), func(t testing.TB, to common.Address, wei *big.Int, units int64) {
		t.Helper()
		if err := devchain.Fund(t.Context(), info.RPCURL, to, wei, units); err != nil {
			t.Fatal(err)
		}
	})
}

func connect(t testing.TB, name, rpc, network string, asset common.Address, fund func(testing.TB, common.Address, *big.Int, int64)) *testChain {
	t.Helper()
	client, err := chain.Dial(t.Context(), rpc)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return &testChain{name: name, rpc: rpc, network: network, asset: asset, client: client, fund: fund}
}

// anvilChain starts anvil with the test token.
func anvilChain(t testing.TB, opt anvil.Options) *testChain {
	t.Helper()
	n, err := anvil.Start(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return connect(t, "anvil", n.URL, n.Asset.Network, common.HexToAddress(n.Asset.Address), func(t testing.TB, to common.Address, wei *big.Int, units int64) {
		t.Helper()
		if err := n.Fund(t.Context(), to, wei, units); err != nil {
			t.Fatal(err)
		}
	})
}

// sepolias runs a test on both chains that look like Base Sepolia, which is
// the only one where the unconfigured official clients pay.
func sepolias(t *testing.T, test func(t *testing.T, c *testChain)) {
	t.Run("devchain", func(t *testing.T) {
		t.Parallel()
		test(t, devChain(t, "--like-base-sepolia"))
	})
	t.Run("anvil", func(t *testing.T) {
		t.Parallel()
		test(t, anvilChain(t, anvil.Options{LikeBaseSepolia: true}))
	})
}

// everywhere runs a test on both chains with both databases.
func everywhere(t *testing.T, test func(t *testing.T, c *testChain, serveFlags ...string)) {
	sepolias(t, func(t *testing.T, c *testChain) {
		t.Run("sqlite", func(t *testing.T) { test(t, c) })
		t.Run("postgres", func(t *testing.T) { test(t, c, "--database-url", storetest.Postgres(t)) })
	})
}

// account makes a key with gas money and units of the token.
func (c *testChain) account(t testing.TB, units int64) *chain.Key {
	t.Helper()
	key, err := chain.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	c.fund(t, key.Address(), big.NewInt(1e18), units)
	return key
}

// balance is what an address holds of the token.
func (c *testChain) balance(t testing.TB, who common.Address) int64 {
	t.Helper()
	n, err := c.client.TokenBalance(t.Context(), c.asset, who)
	if err != nil {
		t.Fatal(err)
	}
	return n.Int64()
}

// lockedBuffer is a buffer that a process may still write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes())
}

// server is a running clawr serve and its data directory.
type server struct {
	*proc
	chain  *testChain
	dir    string
	url    string // http://host:port
	payTo  common.Address
	signer *chain.Key
	env    []string
	args   []string
}

// serve starts clawr serve on c, settling by itself, with a new data directory.
func serve(t testing.TB, c *testChain, flags ...string) *server {
	t.Helper()
	seller, err := chain.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	s := &server{chain: c, dir: t.TempDir(), payTo: seller.Address(), signer: c.account(t, 0)}
	s.env = []string{"CLAWR_FACILITATOR_KEY=" + s.signer.Reveal()}
	s.args = append([]string{"serve", "--listen", "127.0.0.1:0", "--data", s.dir, "--network", c.network, "--asset", c.asset.Hex(), "--rpc-url", c.rpc, "--pay-to", s.payTo.Hex()}, flags...)
	s.up(t)
	return s
}

// up starts the server, again after a kill: on the same address, because the
// URL is part of what a payment buys.
func (s *server) up(t testing.TB) {
	t.Helper()
	if s.proc != nil {
		for i, a := range s.args {
			if a == "--listen" {
				s.args[i+1] = s.addr
			}
		}
	}
	s.proc = start(t, clawr(t, s.env, s.args...))
	s.url = "http://" + s.addr
}

// deploy publishes a file at the server and gives the URL of its records.
func (s *server) deploy(t testing.TB, file, tenant string, flags ...string) string {
	t.Helper()
	args := append([]string{"deploy", file, "--tenant", tenant, "--data", s.dir}, flags...)
	must(t, nil, args...)
	u := s.url + "/t/" + tenant + "/v1/records"
	for range 100 { // it is visible within a second
		res, err := http.Get(u)
		if err == nil {
			res.Body.Close()
			if res.StatusCode != http.StatusNotFound {
				return u
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s was not visible after two seconds", u)
	return ""
}

// airports is a real dataset of the project's own.
const airports = "../cmd/clawr/sample/airports.csv"

// script runs one of the programs in clients/ with node and gives the JSON of
// its last line.
func script(t testing.TB, name string, env ...string) map[string]any {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", filepath.Join("clients", name))
	cmd.Env = append(os.Environ(), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var v map[string]any
	if jerr := json.Unmarshal([]byte(lines[len(lines)-1]), &v); jerr != nil {
		t.Fatalf("%s: %v %v\n%s%s", name, err, jerr, out, errs.String())
	}
	return v
}

// startScript runs a program of clients/ that serves, and gives its URL.
func startScript(t testing.TB, name string, env ...string) string {
	t.Helper()
	cmd := exec.Command("node", filepath.Join("clients", name))
	cmd.Env = append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		var ready struct{ Listening any }
		if json.Unmarshal(lines.Bytes(), &ready) == nil && ready.Listening != nil {
			go io.Copy(io.Discard, stdout)
			return fmt.Sprintf("http://127.0.0.1:%v", ready.Listening)
		}
	}
	t.Fatalf("%s did not get ready: %v", name, errors.Join(lines.Err(), cmd.Wait()))
	return ""
}

package main

import (
	"context"
	"crypto/ecdsa"
	"database/sql"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	_ "github.com/jackc/pgx/v5/stdlib" // the drivers of the audit
	_ "modernc.org/sqlite"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/chain/devchain"
	"github.com/402claw/clawr/e2e/anvil"
	"github.com/402claw/clawr/store/storetest"
)

// world is one chain, one server that is killed on it again and again, and
// those who buy from it. Nothing in it is ever put back: what one kill leaves
// behind is there when the next one comes.
type world struct {
	engine string
	bin    string
	dir    string
	data   string // the server's data directory
	node   *anvil.Node
	own    *devchain.Chain // what node is, if it is not anvil
	asset  common.Address
	payTo  common.Address
	signer *chain.Key
	buyers []*ecdsa.PrivateKey
	client *http.Client
	srv    *process
	since  time.Time // it listens
	addr   string    // the server's, before and after every restart: it is part of what a payment buys
	base   string    // URL of the database; empty: SQLite
	drop   func() error
	caps   []string
	db     *sql.DB       // open while the server is up
	ahead  atomic.Int64  // seconds by which the chain's clock is ahead
	clock  time.Duration // by which the server's is, from its next start on
	// selling is held while purchases are made: bought, and what was signed.
	selling sync.Mutex
	bought  []*purchase
	foreign map[string]bool // transactions of strangers
	kills   int
}

// price of a call, in µUSD and in units of the token.
const price = 1000

// serverDeadline of a route: short, because a lease on Postgres lasts longer
// than that, and a restarted node waits for it.
const serverDeadline = 5 * time.Second

// worldOptions are what worlds differ in.
type worldOptions struct {
	// own, if not nil, is clawr's own chain instead of anvil, whose blocks cost as
	// much as everything that was ever paid on it: it copies its state for each.
	own   *devchain.Options
	chain anvil.Options
	caps  []string // the server's flags for async
	final int      // a block is final when twice as many follow it
	// deploy puts APIs on sale; nil: one for every policy.
	deploy func(context.Context, *world) error
}

// smallCaps let a payer have some calls on credit, and then no more.
var smallCaps = []string{"--async-credit", "0.02", "--async-payer-cap", "0.05", "--async-total-cap", "0.1"}

// newWorld starts a chain and a server with an API for every policy.
func newWorld(ctx context.Context, bin, engine, admin string, opt worldOptions) (_ *world, err error) {
	w := &world{engine: engine, bin: bin, caps: opt.caps, foreign: map[string]bool{}, client: &http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.dir, err = os.MkdirTemp("", "clawr-chaos-"); err != nil {
		return nil, err
	}
	w.data = filepath.Join(w.dir, "data")
	if engine == "postgres" {
		if w.base, w.drop, err = storetest.Schema(admin); err != nil {
			return nil, err
		}
	}
	if err := w.begin(ctx, opt); err != nil {
		return nil, err
	}
	w.asset = common.HexToAddress(w.node.Asset.Address)
	seller, err := chain.NewKey()
	if err != nil {
		return nil, err
	}
	w.payTo = seller.Address()
	if w.signer, err = chain.NewKey(); err != nil {
		return nil, err
	}
	if err := w.fund(ctx, w.signer.Address(), new(big.Int).Mul(big.NewInt(1000), big.NewInt(1e18)), 0); err != nil {
		return nil, err
	}
	for range 4 {
		key, err := crypto.GenerateKey()
		if err != nil {
			return nil, err
		}
		w.buyers = append(w.buyers, key)
		if err := w.fund(ctx, crypto.PubkeyToAddress(key.PublicKey), nil, 1_000_000_000_000); err != nil {
			return nil, err
		}
	}
	// What there is so far is not to be taken back.
	if w.own == nil {
		if err := w.mine(ctx, 3*chainDepth); err != nil {
			return nil, err
		}
	}
	if err := w.up(""); err != nil {
		return nil, err
	}
	if opt.deploy != nil {
		return w, opt.deploy(ctx, w)
	}
	for _, policy := range policies {
		if err := w.deploy(ctx, policy); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func (w *world) close() error {
	var errs []error
	w.closeDB()
	if w.srv != nil {
		w.srv.kill()
	}
	if w.node != nil {
		errs = append(errs, w.node.Close())
	}
	if w.own != nil {
		errs = append(errs, w.own.Close())
	}
	if w.drop != nil {
		errs = append(errs, w.drop())
	}
	w.client.CloseIdleConnections()
	return errors.Join(append(errs, os.RemoveAll(w.dir))...)
}

// begin starts the chain.
func (w *world) begin(ctx context.Context, opt worldOptions) (err error) {
	if opt.own == nil {
		opt.chain.Args = append(opt.chain.Args, "--slots-in-an-epoch", strconv.Itoa(max(opt.final, 1)))
		w.node, err = anvil.Start(ctx, opt.chain)
		return err
	}
	own := *opt.own
	own.Dir = filepath.Join(w.dir, "chain")
	if w.own, err = devchain.Open(own); err != nil {
		return err
	}
	w.node, err = anvil.Of(ctx, w.own)
	return err
}

func (w *world) fund(ctx context.Context, who common.Address, wei *big.Int, units int64) error {
	if w.own != nil {
		return w.own.Fund(ctx, who, wei, units)
	}
	return w.node.Fund(ctx, who, wei, units)
}

// command is a command line of the built program, with an environment of its own.
func (w *world) command(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(w.bin, args...)
	cmd.Env = append([]string{"HOME=" + w.dir, "PATH=" + os.Getenv("PATH")}, env...)
	return cmd
}

// armed is the file that tells the server where to die.
func (w *world) armed() string { return filepath.Join(w.dir, "failpoint") }

// arm has the running server die when it reaches point for the nth time.
func (w *world) arm(point string, nth int) error {
	if point == "" {
		return os.WriteFile(w.armed(), nil, 0o600)
	}
	// A name that the server reads half is no failpoint.
	tmp := w.armed() + ".tmp"
	if err := os.WriteFile(tmp, fmt.Appendf(nil, "%s:%d", point, nth), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, w.armed())
}

// up starts the server, armed with point if that is not empty.
func (w *world) up(point string) error {
	if err := w.arm(point, 1); err != nil {
		return err
	}
	listen := w.addr
	if listen == "" {
		listen = "127.0.0.1:0"
	}
	args := []string{"serve", "--listen", listen, "--data", w.data, "--network", w.node.Asset.Network, "--asset", w.asset.Hex(), "--rpc-url", w.node.URL,
		"--pay-to", w.payTo.Hex(), "--deadline", serverDeadline.String()}
	args = append(args, w.caps...)
	if w.base != "" {
		args = append(args, "--database-url", w.base)
	}
	srv, err := start(w.command([]string{"CLAWR_FACILITATOR_KEY=" + w.signer.Reveal(), "CLAWR_FAILPOINT_FILE=" + w.armed(), "CLAWR_CLOCK_AHEAD=" + w.clock.String()}, args...))
	w.srv = srv
	if err != nil {
		return err
	}
	w.addr, w.since = srv.addr, time.Now()
	return w.openDB()
}

// down waits until the server is gone, by its own hand or by ours.
func (w *world) down() {
	w.closeDB() // a reader that stays would hide from the next process that the last one crashed
	w.srv.kill()
	w.client.CloseIdleConnections()
}

// openDB reads past the server, and only reads: whoever closes a database that
// was crashed in writes its log into it, behind the server's back.
func (w *world) openDB() (err error) {
	w.closeDB()
	if w.base != "" {
		w.db, err = sql.Open("pgx", w.base)
	} else {
		w.db, err = sql.Open("sqlite", "file:"+filepath.Join(w.data, "clawr.db")+"?mode=ro&_pragma=busy_timeout(10000)")
	}
	return err
}

func (w *world) closeDB() {
	if w.db != nil {
		w.db.Close()
		w.db = nil
	}
}

// slug is the name of the API that sells under a policy.
func slug(policy string) string { return strings.ReplaceAll(policy, "_", "-") }

// deploy puts the sample on sale under a policy, with a quota and a cap that
// every call takes from.
func (w *world) deploy(ctx context.Context, policy string) error {
	dir, err := root()
	if err != nil {
		return err
	}
	args := []string{"deploy", filepath.Join(dir, "cmd/clawr/sample/airports.csv"), "--tenant", slug(policy), "--data", w.data, "--x402",
		"--plan", "enterprise", "--quota-day", "1000000", "--spend-day", "100000"}
	switch policy {
	case vouchers:
		args = append(args, "--price", "0.25", "--schemes", "exact,batch-settlement")
	case "settle_before_response":
		args = append(args, "--price", "0.001")
	default:
		args = append(args, "--price", "0.001", "--settle", policy)
	}
	if out, err := w.command(nil, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("deploy: %w: %s", err, out)
	}
	for until := time.Now().Add(10 * time.Second); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url(policy, 1), nil)
		if err != nil {
			return err
		}
		res, err := w.client.Do(req)
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode == http.StatusPaymentRequired {
			return nil
		}
	}
	return fmt.Errorf("the API %s did not appear", slug(policy))
}

// url is a request that costs money.
func (w *world) url(policy string, limit int) string {
	return fmt.Sprintf("http://%s/t/%s/v1/records?limit=%d", w.addr, slug(policy), limit)
}

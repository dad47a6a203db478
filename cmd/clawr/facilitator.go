package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/facilitator/onchain"
)

// facilitator is who settles for n: this process, or the remote ones.
func (n *node) facilitator(ctx context.Context) (payments, error) {
	witness, more := n.set.signers()
	if len(n.set.remotes) > 0 {
		c := &facilitator.Client{Network: n.set.asset.Network, Chain: witness, Book: n.db, Log: n.log, Failpoint: failpoint(), Now: clock()}
		for _, u := range n.set.remotes {
			c.Remotes = append(c.Remotes, facilitator.Remote{URL: u, Token: n.set.apiKey})
		}
		n.watcher = n.watch(witness, []clawr.Asset{n.set.asset}, nil)
		return c, c.Check()
	}
	mirror := &facilitator.Mirror{Chain: witness}
	f := &facilitator.Facilitator{Network: n.set.asset.Network, Assets: []clawr.Asset{n.set.asset}, Chain: witness, Signers: more,
		Book: n.db, Ends: n.db, Mirror: mirror, Holds: n.db, Log: n.log, Failpoint: failpoint(), Now: clock()}
	n.settler = f
	n.watcher = n.watch(witness, f.Assets, mirror)
	if n.db.SoleOwner() {
		return f, f.Start(ctx)
	}
	s := n.share(f)
	return s, f.Start(ctx)
}

// signers are the chain as the first account that settles sees it, and the
// others.
func (s *settings) signers() (first *onchain.Node, more []facilitator.Sender) {
	first = &onchain.Node{Client: s.chain, Quorum: s.quorum}
	for i, k := range s.keys {
		if i == 0 {
			first.Key = k
		} else {
			more = append(more, &onchain.Node{Client: s.chain, Key: k, Quorum: s.quorum})
		}
	}
	return first, more
}

// share lets f settle only with those of its signers that this node leads:
// others may have the same keys.
func (n *node) share(f *facilitator.Facilitator) *shared { return newShared(n.db, f, n.log) }

// facilitatorFlags are what `clawr facilitator serve` is told.
type facilitatorFlags struct {
	listen, network, databaseURL string
	rpc, assets, payTo, keyFiles []string
	gas                          uint64
}

func newFacilitator(e *env) *cobra.Command {
	cmd := &cobra.Command{Use: "facilitator", Short: "Verify and settle x402 payments for other servers"}
	cmd.AddCommand(newFacilitatorServe(e), newFacilitatorSupported(e))
	return cmd
}

func newFacilitatorServe(e *env) *cobra.Command {
	f := &facilitatorFlags{}
	cmd := &cobra.Command{
		Use: "serve", Short: "Run a facilitator: POST /verify, POST /settle, GET /supported", Args: cobra.NoArgs,
		Long: `Run a facilitator with the keys in CLAWR_FACILITATOR_KEY. It pays gas for others,
so it settles only the assets that it is given, for recipients that are allowed
or callers with a token of scope ` + api.FacilitatorSettle + ` (clawr token create).`,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.facilitatorServe(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.listen, "listen", "127.0.0.1:4022", "`address` that servers reach")
	fl.StringSliceVar(&f.rpc, "rpc-url", nil, "`URL` of a node of the chain (repeatable: of three independent ones, two must agree)")
	fl.StringVar(&f.network, "network", "", "CAIP-2 `name` of the chain, such as eip155:8453")
	fl.StringSliceVar(&f.assets, "asset", nil, "`address` of a token that it settles (repeatable)")
	fl.StringSliceVar(&f.payTo, "allow-pay-to", nil, "`address` that may be paid (repeatable; default: whoever a token's holder names)")
	fl.StringArrayVar(&f.keyFiles, "facilitator-key-file", nil, "`file` with a key (repeatable; or CLAWR_FACILITATOR_KEY, several with commas)")
	fl.StringVar(&f.databaseURL, "database-url", "", "Postgres `URL`, instead of the data directory's SQLite file")
	fl.Uint64Var(&f.gas, "gas-cap", 0, "most gas of one transaction (default 150000, 500000 for a payer with code)")
	return cmd
}

// facilitatorServe runs a facilitator until ctx ends.
func (e *env) facilitatorServe(ctx context.Context, f *facilitatorFlags) error {
	log := slog.New(slog.NewJSONHandler(e.stderr, &slog.HandlerOptions{Level: e.level()}))
	if len(f.assets) == 0 {
		f.assets = []string{""}
	}
	var assets []clawr.Asset
	var set *settings
	for _, a := range f.assets {
		s, err := e.settings(ctx, &serveFlags{network: f.network, asset: a, rpc: f.rpc, keyFiles: f.keyFiles, deadline: 30 * time.Second, databaseURL: f.databaseURL}, log)
		if err != nil {
			return err
		}
		set = s
		assets = append(assets, s.asset)
	}
	var allowed []string
	for _, a := range f.payTo {
		address, err := clawr.CheckAddress(a)
		if err != nil {
			return withParam(err, "allow-pay-to")
		}
		allowed = append(allowed, address)
	}
	ln, err := listen(f.listen, "listen")
	if err != nil {
		return err
	}
	defer ln.Close()
	exposed := facilitator.CheckExposure(ln.Addr().String(), len(allowed) > 0, false)
	if _, err := os.Stat(filepath.Join(e.data, dbName)); errors.Is(err, fs.ErrNotExist) && f.databaseURL == "" && exposed != nil {
		return exposed // there are no tokens where there is nothing
	}
	n, err := e.own(ctx, set)
	if err != nil {
		return err
	}
	defer n.close()
	tokens, err := n.settleTokens(ctx)
	if err != nil {
		return err
	}
	if exposed != nil && tokens == 0 {
		return exposed
	}
	witness, more := set.signers()
	mirror := &facilitator.Mirror{Chain: witness}
	settler := &facilitator.Facilitator{Network: set.asset.Network, Assets: assets, Chain: witness, Signers: more,
		Book: n.db, Ends: n.db, Mirror: mirror, Gas: f.gas, ContractGas: f.gas, Log: log, Failpoint: failpoint(), Now: clock()}
	if len(allowed) > 0 {
		settler.AllowPayTo = func(a string) bool { return slices.Contains(allowed, a) }
	}
	running := settler.Run
	if !n.db.SoleOwner() {
		s := n.share(settler)
		s.carry = (&dispatch.Dispatcher{Payments: s, Book: n.db, Log: n.log}).Carry
		running = s.Run
	}
	if err := settler.Start(ctx); err != nil {
		return err
	}
	socket, err := listenSocket(e.data)
	if err != nil {
		return err
	}
	h := &facilitator.Handler{Facilitator: settler, Authorize: n.authorizeSettle, Log: log}
	g, ctx := errgroup.WithContext(ctx)
	serveUntil(ctx, g, newServer(h, log, 2*time.Minute), ln)
	serveUntil(ctx, g, newServer(n.control(), log, time.Minute), socket)
	g.Go(func() error { return running(ctx) })
	g.Go(func() error { return n.watch(witness, assets, mirror).Run(ctx) })
	for _, k := range set.keys {
		e.note("settling on %s as %s", set.asset.Network, k.Address().Hex())
	}
	e.note("listening on %s", ln.Addr())
	return g.Wait()
}

// settleTokens counts the tokens that may ask a facilitator.
func (n *node) settleTokens(ctx context.Context) (int, error) {
	all, err := n.db.Tokens(ctx)
	if err != nil {
		return 0, err
	}
	count := 0
	for _, t := range all {
		if slices.Contains(t.Scopes, api.FacilitatorSettle) && t.Revoked.IsZero() {
			count++
		}
	}
	return count, nil
}

// tokenCount remembers how many tokens there are: to count them for each
// verification would take a seventh of its time.
type tokenCount struct {
	mu    sync.Mutex
	asked time.Time
	n     int
}

// tokenAge is how long after the first token was made callers may do without.
const tokenAge = time.Second

// lately is the count of a moment ago.
func (t *tokenCount) lately(ctx context.Context, now time.Time, count func(context.Context) (int, error)) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if age := now.Sub(t.asked); age < 0 || age >= tokenAge {
		n, err := count(ctx)
		if err != nil {
			return 0, err
		}
		t.n, t.asked = n, now
	}
	return t.n, nil
}

// authorizeSettle names who asks a facilitator. Where tokens exist, one is
// needed; where there are none, the recipients or the loopback address protect it.
func (n *node) authorizeSettle(r *http.Request) (string, error) {
	if r.Header.Get("Authorization") == "" {
		if tokens, err := n.tokens.lately(r.Context(), n.clock(), n.settleTokens); err != nil || tokens == 0 {
			return "", err
		}
	}
	by, err := api.Bearer(book{n.db}, n.clock)(r)
	if err != nil {
		return "", err
	}
	if !by.Can(api.FacilitatorSettle) {
		return "", &clawr.Error{Code: clawr.CodeScopeMissing, Message: "the token lacks the scope " + api.FacilitatorSettle, Fix: "clawr token create --scope " + api.FacilitatorSettle}
	}
	return by.Name, nil
}

func newFacilitatorSupported(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "supported URL", Short: "Say what a facilitator takes", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkURL("url", args[0]); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(args[0], "/")+"/supported", nil)
			if err != nil {
				return err
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				if _, ok := errors.AsType[net.Error](err); ok {
					return &clawr.Error{Code: clawr.CodeUnreachable, Message: args[0] + " cannot be reached", Fix: "check the URL", Err: err}
				}
				return err
			}
			defer res.Body.Close()
			b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
			if err != nil {
				return err
			}
			if res.StatusCode != http.StatusOK {
				return &clawr.Error{Code: clawr.CodeFacilitatorDown, Message: args[0] + " answered " + res.Status, Fix: "check the URL"}
			}
			_, err = fmt.Fprintln(e.stdout, strings.TrimSpace(string(b)))
			return err
		},
	}
}

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/402claw/clawr"
)

// serveFlags are what `clawr serve` is told.
type serveFlags struct {
	listen, admin   string
	facilitators    []string
	network, asset  string
	rpc             []string
	payTo           string
	databaseURL     string
	blobURL         string
	keyFiles        []string
	publicURL       string
	publicAnalytics bool
	asyncPayer      string // USD
	asyncTotal      string
	asyncCredit     string
	deadline        time.Duration
	inFlight        int64
}

// defaultInFlight is how many paid calls a node has in work at a time.
const defaultInFlight = 4096

func newServe(e *env) *cobra.Command {
	f := &serveFlags{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Serve the tenants of a data directory and take their payments",
		Long: `Serve every tenant of the data directory. Payments are settled by this process
with the key in CLAWR_FACILITATOR_KEY (or --facilitator-key-file), or by the
facilitators named with --facilitator-url, in order.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.serve(cmd.Context(), f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.listen, "listen", "127.0.0.1:4020", "`address` that callers reach")
	fl.StringVar(&f.admin, "admin-listen", "", "`address` of control plane, facilitator and health checks (default: none but the data directory's socket)")
	fl.StringSliceVar(&f.facilitators, "facilitator-url", nil, "`URL` of a facilitator (repeatable, tried in order)")
	fl.StringVar(&f.network, "network", "", "CAIP-2 `name` of the chain, such as eip155:8453")
	fl.StringVar(&f.asset, "asset", "", "`address` of the token, such as USDC's")
	fl.StringSliceVar(&f.rpc, "rpc-url", nil, "`URL` of a node of that chain (repeatable: of three independent ones, two must agree)")
	fl.StringVar(&f.payTo, "pay-to", "", "`address` that earns where neither tenant nor owner has one")
	fl.StringVar(&f.databaseURL, "database-url", "", "Postgres `URL`, instead of the data directory's SQLite file")
	fl.StringVar(&f.blobURL, "blob-url", "", "`URL` of the dataset files of several nodes: file:///shared/directory or s3://bucket/prefix")
	fl.StringArrayVar(&f.keyFiles, "facilitator-key-file", nil, "`file` with a key that settles and pays gas (repeatable; or CLAWR_FACILITATOR_KEY, several with commas)")
	fl.StringVar(&f.publicURL, "public-url", "", "scheme and host that callers reach this node at, such as https://api.example.com")
	fl.BoolVar(&f.publicAnalytics, "public-analytics", false, "let everybody read /__platform/analytics")
	fl.StringVar(&f.asyncPayer, "async-payer-cap", defaultAsyncPayer, "`USD` that async tenants deliver to one payer before it is charged, at most")
	fl.StringVar(&f.asyncTotal, "async-total-cap", defaultAsyncTotal, "`USD` of all payers of one pay-to address together")
	fl.StringVar(&f.asyncCredit, "async-credit", "0", "`USD` of it that a payer has before any payment of his is final")
	fl.Int64Var(&f.inFlight, "max-in-flight", defaultInFlight, "paid calls that are in work at a time; more are answered 503, not charged")
	fl.DurationVar(&f.deadline, "deadline", 30*time.Second, "time that a call may take, settlement included")
	return cmd
}

// What async tenants may deliver before it is charged, unless the operator says
// otherwise.
const (
	defaultAsyncPayer = "1"
	defaultAsyncTotal = "10"
)

// serve runs until ctx ends. What can be found wrong without the data
// directory is found before it is touched.
func (e *env) serve(ctx context.Context, f *serveFlags) error {
	log := slog.New(slog.NewJSONHandler(e.stderr, &slog.HandlerOptions{Level: e.level()}))
	set, err := e.settings(ctx, f, log)
	if err != nil {
		return err
	}
	ln, err := listen(f.listen, "listen")
	if err != nil {
		return err
	}
	defer ln.Close()
	var admin net.Listener
	if f.admin != "" {
		if admin, err = listen(f.admin, "admin-listen"); err != nil {
			return err
		}
		defer admin.Close()
		e.note("admin on %s", admin.Addr())
	}
	n, err := e.own(ctx, set)
	if err != nil {
		return err
	}
	defer n.close()
	g, ctx := errgroup.WithContext(ctx)
	if err := n.start(ctx, g, ln, admin); err != nil {
		return err
	}
	e.note("listening on %s", ln.Addr())
	return g.Wait()
}

// own takes the data directory for this process and opens it.
func (e *env) own(ctx context.Context, set *settings) (*node, error) {
	unlock, err := lockDir(e.data)
	if err != nil {
		return nil, err
	}
	n, err := openNode(ctx, e, set, unlock)
	if err != nil {
		unlock()
	}
	return n, err
}

func (e *env) level() slog.Level {
	switch {
	case e.verbose:
		return slog.LevelDebug
	case e.quiet:
		return slog.LevelError
	}
	return slog.LevelWarn
}

// listen opens a TCP address that a flag names.
func listen(addr, flag string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: flag, Message: fmt.Sprintf("cannot listen on %q", addr), Fix: "--" + flag + " HOST:PORT with a free port; port 0 takes any", Err: err}
	}
	return ln, nil
}

// isLoopback reports whether only this machine can reach addr.
func isLoopback(addr net.Addr) bool {
	host, _, err := net.SplitHostPort(addr.String())
	ip := net.ParseIP(host)
	return err == nil && ip != nil && ip.IsLoopback()
}

// secretFromEnvOrFile reads a key that must not stand on the command line.
func (e *env) secretFromEnvOrFile(variable, file, flag string) (string, error) {
	if file == "" {
		return strings.TrimSpace(e.getenv(variable)), nil
	}
	st, err := os.Stat(file)
	if err == nil && st.Mode().Perm()&0o077 != 0 {
		return "", &clawr.Error{Code: clawr.CodeFile, Param: flag, Message: file + " can be read by others", Fix: "chmod 600 " + file}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", &clawr.Error{Code: clawr.CodeFile, Param: flag, Message: "the key file cannot be read", Fix: "--" + flag + " FILE, or " + variable, Err: err}
	}
	return strings.TrimSpace(string(b)), nil
}

// newServer is an HTTP server with the limits of money.md's "Server defaults".
func newServer(h http.Handler, log *slog.Logger, write time.Duration) *http.Server {
	return &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, ReadTimeout: time.Minute,
		WriteTimeout: write, MaxHeaderBytes: 32 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
}

// serveUntil serves h on ln until ctx ends, then lets the requests that are in work
// finish: a reserved payment is not abandoned for a restart. drained is closed
// when they have.
func serveUntil(ctx context.Context, g *errgroup.Group, srv *http.Server, ln net.Listener) (drained <-chan struct{}) {
	done := make(chan struct{})
	g.Go(func() error {
		if err := srv.Serve(ln); err != http.ErrServerClosed {
			return fmt.Errorf("serve %s: %w", ln.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		defer close(done)
		<-ctx.Done()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		return srv.Shutdown(drain)
	})
	return done
}

// health answers /health on the platform's own hosts.
func health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	io.WriteString(w, `{"ok":true}`+"\n")
}

func (e *env) segments() string { return filepath.Join(e.data, segmentDir) }

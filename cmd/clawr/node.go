package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dataset"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/meter"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// node is a data directory that this process owns. A command that manages
// tenants opens one without settings; serve and dev start it.
type node struct {
	env      *env
	set      *settings
	log      *slog.Logger
	db       *store.DB
	usage    *usage.Recorder
	dir      *dispatch.Directory
	dispatch *dispatch.Dispatcher
	payments payments
	tokens   tokenCount               // that may ask this process as a facilitator
	watcher  *facilitator.Watcher     // of the chain that payments settles on
	settler  *facilitator.Facilitator // in this process; nil: payments are settled elsewhere
	refunder *facilitator.Refunder    // of what is paid back; nil: nobody settles
	segments *dataset.Cache
	leases   *dispatch.Leases // nil: this node has every quota to itself
	unlock   func()
	public   string // base URL that callers reach
	closing  sync.Once
}

// payments is a facilitator, here or elsewhere, with a life of its own.
type payments interface {
	dispatch.Payments
	Run(context.Context) error
}

// openNode opens the database of a data directory whose lock the caller
// holds; close gives the lock back.
func openNode(ctx context.Context, e *env, set *settings, unlock func()) (*node, error) {
	n := &node{env: e, set: set, unlock: unlock, dir: &dispatch.Directory{}}
	n.log = slog.New(slog.NewJSONHandler(e.stderr, &slog.HandlerOptions{Level: e.level()}))
	opts := store.Options{Log: n.log, Failpoint: failpoint(), Now: clock()}
	if set != nil {
		opts.Repair = set.repair
	}
	if set != nil && set.databaseURL != "" {
		opts.URL = set.databaseURL
	} else {
		opts.Path = filepath.Join(e.data, dbName)
	}
	var err error
	if n.db, err = store.Open(ctx, opts); err != nil {
		return nil, err
	}
	return n, nil
}

func (n *node) close() {
	n.closing.Do(func() {
		if err := n.db.Close(); err != nil {
			n.log.Error("database not closed", "err", err)
		}
		n.unlock()
	})
}

// start makes n serve on ln, and its control plane on the data directory's
// socket and on admin, if that is not nil, until g's context ends.
func (n *node) start(ctx context.Context, g *errgroup.Group, ln, admin net.Listener) error {
	n.public = n.set.publicURL
	if n.public == "" {
		n.public = "http://" + ln.Addr().String()
	}
	if damage := n.db.Damage(); damage != nil {
		n.env.note("warning: %v", damage)
		if e, ok := errors.AsType[*clawr.Error](damage); ok {
			n.env.note("  fix: %s", e.Fix)
		}
	} else if err := n.db.VoidLeases(ctx); err != nil {
		return err
	}
	if err := n.assemble(ctx); err != nil {
		return err
	}
	if err := n.reload(ctx); err != nil {
		return err
	}
	socket, err := listenSocket(n.env.data)
	if err != nil {
		return err
	}
	write := n.set.deadline + 10*time.Second
	control := n.control()
	drained := serveUntil(ctx, g, newServer(n.handler(), n.log, write), ln)
	serveUntil(ctx, g, newServer(control, n.log, 10*time.Minute), socket)
	if admin != nil {
		serveUntil(ctx, g, newServer(n.adminHandler(), n.log, 10*time.Minute), admin)
	}
	g.Go(func() error { return n.usage.Run(ctx) })
	g.Go(func() error { return n.dispatch.Run(ctx) })
	g.Go(func() error { return n.tidy(ctx) })
	if n.leases != nil {
		n.attend(ctx, g, drained)
	}
	if n.payments != nil {
		// The calls that are in work when ctx ends need it until they are through.
		running, stop := context.WithCancel(context.WithoutCancel(ctx))
		g.Go(func() error { return n.payments.Run(running) })
		g.Go(func() error { return n.watcher.Run(running) })
		g.Go(func() error { return n.refunder.Run(running) })
		g.Go(func() error {
			<-drained
			stop()
			return nil
		})
	}
	g.Go(func() error {
		err := n.db.Watch(ctx, func() {
			if err := n.reload(ctx); err != nil && ctx.Err() == nil {
				n.log.Error("directory not reloaded", "err", err)
			}
		})
		if ctx.Err() != nil {
			return nil
		}
		return err
	})
	return nil
}

// attend shares quotas and rates with other nodes, until the last call is
// through.
func (n *node) attend(ctx context.Context, g *errgroup.Group, drained <-chan struct{}) {
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	g.Go(func() error { return n.leases.Run(running) })
	g.Go(func() error { return n.db.Attend(running) })
	g.Go(func() error {
		<-drained
		stop()
		return nil
	})
}

// headAge is from which age of the newest known block on a node is not ready.
const headAge = 2 * time.Minute

func (n *node) clock() time.Time { return clock()() }

// assemble builds the dispatcher from its parts.
func (n *node) assemble(ctx context.Context) error {
	quotes, err := n.quotes(ctx)
	if err != nil {
		return err
	}
	salt, err := n.db.Secrets(ctx, "caller")
	if err != nil {
		return err
	}
	// What a killed deploy left behind: nobody ingests before we listen.
	if err := n.files().sweep(); err != nil {
		return err
	}
	ws, err := newWorkers(ctx, n)
	if err != nil {
		return err
	}
	n.segments = ws.segments
	n.usage = &usage.Recorder{Sink: n.db, Log: n.log}
	if n.db.Damage() != nil {
		n.usage.Sink = nowhere{}
	}
	if n.payments, err = n.facilitator(ctx); err != nil {
		return err
	}
	n.refunder = n.newRefunder()
	n.dispatch = &dispatch.Dispatcher{
		Directory: n.dir, Tenants: n.db, Workers: ws, Book: n.db, Recovery: n.db, Charged: n.db, Queue: n.db, Quotas: n.db,
		Limiter: new(meter.Limiter), Usage: n.usage, Log: n.log, Asset: n.set.asset, Quotes: quotes, Salt: salt[0].Value,
		Node: n.db.Node(), PublicURL: n.set.publicURL, Deadline: n.set.deadline, MaxFlight: cmp.Or(n.set.inFlight, defaultInFlight), Failpoint: failpoint(), Now: clock(), Docs: docsURL, Exposure: n.set.exposure,
	}
	if !n.db.SoleOwner() { // other nodes may have the same callers
		n.dispatch.Rates = &dispatch.Rates{From: n.db, Local: n.dispatch.Limiter, Log: n.log}
		n.leases = &dispatch.Leases{From: n.db, Log: n.log}
		n.dispatch.Quotas = n.leases
	}
	if n.payments != nil {
		n.dispatch.Payments, n.dispatch.Bare = n.payments, n.settler != nil
	}
	if n.db.Damage() != nil {
		n.dispatch.Closed = &clawr.Error{Code: clawr.CodeReadOnly, Message: "no payments are taken just now; nothing was charged", Fix: "try again later; keep the payment, if you have sent one", RetryAfter: time.Minute}
	}
	if n.dispatch.Till, err = n.till(ctx); err != nil {
		return err
	}
	if s, ok := n.payments.(*shared); ok {
		s.carry = n.dispatch.Carry
	}
	return nil
}

// nowhere is where events go while nothing can be written.
type nowhere struct{}

func (nowhere) Record(context.Context, []usage.Event) error { return nil }

// quotes are made with keys that all nodes share and restarts keep.
func (n *node) quotes(ctx context.Context) (*x402.Quotes, error) {
	keys, err := n.db.Secrets(ctx, "quote")
	if err != nil {
		return nil, err
	}
	var values [][]byte
	for _, k := range keys {
		values = append(values, k.Value)
	}
	return x402.NewQuotes(values...)
}

// How often the files of old versions are looked through, how many of a
// tenant's last versions can be rolled back to, and how long a file that no
// version names may be on its way to one.
const (
	tidyEvery = time.Hour
	history   = 10
	tidyAge   = time.Hour
)

// tidy removes the files of versions that nothing needs any more, until ctx
// ends.
func (n *node) tidy(ctx context.Context) error {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		if err := n.collect(ctx, time.Now()); err != nil && ctx.Err() == nil {
			n.log.WarnContext(ctx, "old versions not removed", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (n *node) collect(ctx context.Context, now time.Time) error {
	needed, err := n.db.Needed(ctx, history)
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	for _, t := range needed {
		keep[t.Content] = true
	}
	removed, err := n.segments.Collect(func(id string) bool { return keep[id] }, now, tidyAge)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing was ever deployed
	}
	if len(removed) > 0 {
		n.log.InfoContext(ctx, "removed old versions", "count", len(removed))
	}
	return err
}

// reload gives the dispatcher the directory as it is now.
func (n *node) reload(ctx context.Context) error {
	tenants, err := n.db.Tenants(ctx)
	if err != nil {
		return err
	}
	n.dir.Load(tenants)
	return nil
}

// handler is what callers reach. It is no ServeMux: that would redirect paths
// which it finds unclean, and a redirect of a paid route is a way around it.
func (n *node) handler() http.Handler {
	platform, shop := n.platform(), &dataset.Packer{Next: n.dispatch}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case strings.HasPrefix(path, "/__platform/"):
			platform.ServeHTTP(w, r)
		case path == "/health" && !n.dir.HasHost(r.Host):
			health(w, r)
		default:
			shop.ServeHTTP(w, r)
		}
	})
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"os"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
)

// controller is the control plane as a command sees it, wherever it is.
type controller struct {
	*api.Client
	close func()
}

// openControl connects to the control plane that the command line means.
func (e *env) openControl(ctx context.Context) (*controller, error) {
	c, base, done, err := e.connect(ctx)
	if err != nil {
		return nil, err
	}
	return &controller{&api.Client{HTTP: c, Base: base}, done}, nil
}

// controller is n's own control plane, without a network between.
func (n *node) controller() *controller {
	return &controller{&api.Client{HTTP: &http.Client{Transport: inProcess{n.control()}}, Base: "http://clawr"}, func() {}}
}

// upload sends a segment, which the server checks against its hash.
func (c *controller) upload(ctx context.Context, id, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return c.PutSegment(ctx, id, f, st.Size())
}

// inProcess is a transport that has a handler answer without a network.
type inProcess struct{ h http.Handler }

func (t inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	in, out := io.Pipe()
	w := &pipeWriter{body: out, header: http.Header{}, ready: make(chan struct{})}
	go func() {
		defer out.Close()
		defer w.WriteHeader(http.StatusOK)
		t.h.ServeHTTP(w, r)
	}()
	select {
	case <-w.ready:
	case <-r.Context().Done():
		in.CloseWithError(r.Context().Err())
		return nil, r.Context().Err()
	}
	return &http.Response{StatusCode: w.status, Status: fmt.Sprint(w.status, " ", http.StatusText(w.status)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: in, ContentLength: -1, Request: r}, nil
}

// pipeWriter is the response of an inProcess request, read as it is written.
type pipeWriter struct {
	body         *io.PipeWriter
	header, sent http.Header
	status       int
	ready        chan struct{}
}

func (w *pipeWriter) Header() http.Header { return w.header }

func (w *pipeWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status, w.sent = status, w.header.Clone()
		close(w.ready)
	}
}

func (w *pipeWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(b)
}

// localURL is where a node is reached that does not run yet, if it will listen
// where it listens by default.
const localURL = "http://127.0.0.1:4020"

// control is the control plane for those who may do everything: the commands
// of whoever owns the data directory.
func (n *node) control() http.Handler {
	return n.plane(func(*http.Request) (api.Principal, error) { return api.Operator(), nil })
}

func (n *node) plane(authorize func(*http.Request) (api.Principal, error)) http.Handler {
	h := &api.Handler{Tenants: directory{n.db, n}, Owners: book{n.db}, Tokens: book{n.db}, Events: n.db, Payments: book{n.db}, Channels: till{n}, Refunds: repaying{n.db, n}, Upkeep: book{n.db}, Segments: n.files(),
		Authorize: authorize, PublicURL: n.public, Docs: docsURL, Log: n.log}
	if h.PublicURL == "" {
		h.PublicURL = localURL
	}
	if n.usage != nil {
		h.Flush = n.usage.Flush
	}
	if n.set != nil {
		h.Reconciler = n.reconciler()
		h.DefaultPayTo = n.set.payTo
		h.Assets = []clawr.Asset{n.set.asset}
	}
	return api.NewHandler(h)
}

// adminHandler is what the admin listener shows: the control plane by token,
// the facilitator, health, and profiles to whoever may do everything.
func (n *node) adminHandler() http.Handler {
	mux := http.NewServeMux()
	bearer := api.Bearer(book{n.db}, n.clock)
	mux.Handle("/v1/", n.plane(bearer))
	mux.HandleFunc("/healthz", health)
	mux.HandleFunc("/readyz", n.ready)
	if n.settler != nil {
		mux.Handle("/facilitator/", http.StripPrefix("/facilitator", &facilitator.Handler{Facilitator: n.settler, Authorize: n.authorizeSettle, Log: n.log}))
	}
	mux.HandleFunc("/debug/pprof/profile", func(w http.ResponseWriter, r *http.Request) {
		if by, err := bearer(r); err != nil || !by.Can(api.TokensWrite) {
			http.Error(w, "a token of scope "+api.TokensWrite+" is needed", http.StatusUnauthorized)
			return
		}
		pprof.Profile(w, r)
	})
	return mux
}

// ready says whether n can take payments: its database answers and its chain
// is not silent.
func (n *node) ready(w http.ResponseWriter, r *http.Request) {
	_, err := n.db.Revision(r.Context())
	err = errors.Join(err, n.db.Damage())
	if err == nil && n.payments != nil {
		if age := n.clock().Sub(n.payments.HeadTime()); age > headAge {
			err = fmt.Errorf("the newest known block is %s old", age.Round(1e9))
		}
	}
	if err != nil {
		n.log.WarnContext(r.Context(), "not ready", "err", err)
		http.Error(w, `{"ok":false}`, http.StatusServiceUnavailable)
		return
	}
	health(w, r)
}

// platform is /__platform/* on the public listener.
func (n *node) platform() http.Handler {
	return api.NewPlatform(&api.Platform{Events: n.db, Authorize: api.Bearer(book{n.db}, n.clock), Public: n.set.openReports, Flush: n.usage.Flush,
		Docs: docsURL, Log: n.log})
}

// directory is the store's, whose changes this process sells at once. Other
// processes hear of them within a second.
type directory struct {
	*store.DB
	node *node
}

func (d directory) Deploy(ctx context.Context, t clawr.Tenant, by string) (clawr.Tenant, error) {
	return d.changed(ctx)(d.DB.Deploy(ctx, t, by))
}

func (d directory) SetStatus(ctx context.Context, slug string, status clawr.Status, by string) (clawr.Tenant, error) {
	return d.changed(ctx)(d.DB.SetStatus(ctx, slug, status, by))
}

// Rollback refuses a version whose data was removed: see node.tidy.
func (d directory) Rollback(ctx context.Context, slug string, to int64, by string) (clawr.Tenant, error) {
	if to > 0 {
		all, err := d.Versions(ctx, slug)
		if err != nil {
			return clawr.Tenant{}, err
		}
		for _, t := range all {
			if t.Version != to || t.Content == "" {
				continue
			}
			if ok, err := d.node.files().Has(ctx, t.Content); err != nil || !ok {
				return clawr.Tenant{}, errors.Join(err, &clawr.Error{Code: clawr.CodeVersionGone, Param: "to", Message: fmt.Sprintf("the data of %s version %d is not kept any more", slug, to),
					Fix: "clawr deploy it again"})
			}
		}
	}
	return d.changed(ctx)(d.DB.Rollback(ctx, slug, to, by))
}

// changed reloads what is sold after a change. The change is done by then, so
// that a failure to reload is not its failure; Watch will try again.
func (d directory) changed(ctx context.Context) func(clawr.Tenant, error) (clawr.Tenant, error) {
	return func(t clawr.Tenant, err error) (clawr.Tenant, error) {
		if err == nil {
			if rerr := d.node.reload(ctx); rerr != nil {
				d.node.log.WarnContext(ctx, "directory not reloaded", "err", rerr)
			}
		}
		return t, err
	}
}

// book gives the store's rows as the control plane calls them.
type book struct{ *store.DB }

func (b book) Owner(ctx context.Context, id string) (api.Owner, error) {
	o, err := b.DB.Owner(ctx, id)
	return api.Owner(o), err
}

func (b book) Owners(ctx context.Context) ([]api.Owner, error) {
	all, err := b.DB.Owners(ctx)
	var out []api.Owner
	for _, o := range all {
		out = append(out, api.Owner(o))
	}
	return out, err
}

func (b book) CreateToken(ctx context.Context, t api.Token, by string) error {
	return b.DB.CreateToken(ctx, store.Token(t), by)
}

func (b book) Tokens(ctx context.Context) ([]api.Token, error) {
	all, err := b.DB.Tokens(ctx)
	var out []api.Token
	for _, t := range all {
		out = append(out, api.Token(t))
	}
	return out, err
}

func (b book) TokenByHash(ctx context.Context, sha256 string) (api.Token, error) {
	t, err := b.DB.TokenByHash(ctx, sha256)
	return api.Token(t), err
}

func (b book) Check(ctx context.Context) ([]api.Finding, error) {
	all, err := b.DB.Check(ctx)
	var out []api.Finding
	for _, f := range all {
		out = append(out, api.Finding{Name: f.Name, What: f.What, State: string(f.State), Detail: f.Detail})
	}
	return out, err
}

func (b book) History(ctx context.Context, p *ledger.Payment) ([]api.Step, error) {
	all, err := b.DB.History(ctx, p)
	var out []api.Step
	for _, s := range all {
		out = append(out, api.Step(s))
	}
	return out, err
}

func (b book) Payments(ctx context.Context, f api.PaymentFilter) ([]ledger.Payment, error) {
	return b.DB.Payments(ctx, store.PaymentFilter(f))
}

// docsURL is where errors are explained.
const docsURL = "https://github.com/402claw/clawr/blob/main/docs"

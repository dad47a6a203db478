package cloudflare

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/402claw/clawr"
)

// DispatcherSpec is a dispatcher as it shall be.
type DispatcherSpec struct {
	Script    string
	Namespace string
	Route     string // such as api.example.com/*; "": the account's workers.dev
	PublicURL string // scheme://host that it is reached at; "": what follows from the route or workers.dev
	Modules   []Module
	Vars      map[string]string // its plain text variables
	Secrets   map[string]string // those that are given now; others are kept
}

// made are secrets that nobody gives: they are made once, and kept at
// Cloudflare from then on.
var made = [...]string{"QUOTE_SECRETS", "CALLER_SALT"}

// kept are the kinds of bindings that an upload leaves as they are when it
// does not name them.
var keptBindings = []string{"secret_text", "secret_key"}

const ledgerTag = "v1"

// PlanDispatcher plans that the dispatcher is as s says.
func (p *Publisher) PlanDispatcher(ctx context.Context, s DispatcherSpec) (*Plan, error) {
	plan := &Plan{}
	there := false
	var err error
	if p.API != nil {
		if there, err = p.API.namespace(ctx, s.Namespace); err != nil {
			return nil, err
		}
	}
	if there {
		plan.keep("dispatch namespace "+s.Namespace, "")
	} else {
		plan.add("create", "dispatch namespace "+s.Namespace, "", func(ctx context.Context) error { return p.API.createNamespace(ctx, s.Namespace) })
	}
	directory, err := p.directory(ctx, plan, s.Namespace)
	if err != nil {
		return nil, err
	}
	events, err := p.database(ctx, plan, eventsName(s.Namespace))
	if err != nil {
		return nil, err
	}
	old, err := p.ours(ctx, s.Script, s.Namespace)
	if err != nil {
		return nil, err
	}
	w := s.worker(directory, events)
	given := w.secretsHash()
	for _, name := range made {
		if w.Secrets[name] == "" && !old.binds(name) {
			w.Secrets[name] = NewSecret()
		}
	}
	if err := w.check(); err != nil {
		return nil, err
	}
	if err := p.planMigration(ctx, w, old); err != nil {
		return nil, err
	}
	plan.willUpload(w)
	unchanged := directory.id != "" && events.id != "" && old.unchanged(w.Hash(), given)
	if unchanged {
		plan.keep("Worker "+s.Script, describe(w))
	} else {
		plan.add("upload", "Worker "+s.Script, describe(w), func(ctx context.Context) error {
			migrations := w.Metadata.Migrations
			secrets := w.Secrets
			w := s.worker(directory, events)
			w.Metadata.Migrations, w.Secrets = migrations, secrets
			return p.put(ctx, w, given, Upload{URL: plan.URL, Serves: s.Namespace, Asset: s.Vars["ASSET"]})
		})
	}
	if err := p.planAddress(ctx, plan, s); err != nil {
		return nil, err
	}
	if unchanged {
		return plan, p.planNote(plan, w, Upload{URL: plan.URL, Serves: s.Namespace, Asset: s.Vars["ASSET"]})
	}
	return plan, nil
}

// planNote plans that an upload which is there is remembered: the answer to it
// may have been lost, or its address may be another now.
func (p *Publisher) planNote(plan *Plan, w *Worker, u Upload) error {
	hash := w.Hash()
	last, err := p.Shelf.Serving(p.API.Account, u.Serves)
	if err != nil || last != nil && last.Script == w.Name && last.Bundle == hash && last.URL == u.URL {
		return err
	}
	plan.add("note", "Worker "+w.Name, "in the data directory", func(context.Context) error {
		if _, err := p.Shelf.Keep(w); err != nil {
			return err
		}
		return p.note(w, hash, u)
	})
	return nil
}

func (p *Publisher) note(w *Worker, hash string, u Upload) error {
	u.At, u.Account, u.Script, u.Bundle = p.Now().UTC(), p.API.Account, w.Name, hash
	return p.Shelf.Note(u)
}

// worker is the dispatcher as it is uploaded, without migrations and tags.
func (s *DispatcherSpec) worker(directory, events *resource) *Worker {
	w := &Worker{Name: s.Script, Modules: s.Modules, Secrets: maps.Clone(s.Secrets)}
	if w.Secrets == nil {
		w.Secrets = map[string]string{}
	}
	w.Metadata = Metadata{Main: s.Modules[0].Name, Compatibility: Compatibility, Keep: keptBindings, Observability: &Observed{Enabled: true}, Bindings: []Binding{
		{Type: "dispatch_namespace", Name: "DISPATCHER", Namespace: s.Namespace},
		{Type: "kv_namespace", Name: "DIRECTORY", NamespaceID: directory.String()},
		{Type: "durable_object_namespace", Name: "LEDGER", Class: "Ledger"},
		{Type: "d1", Name: "EVENTS", Database: events.String()},
	}}
	for _, name := range slices.Sorted(maps.Keys(s.Vars)) {
		if s.Vars[name] == "" {
			continue // an empty text is none
		}
		w.Metadata.Bindings = append(w.Metadata.Bindings, Binding{Type: "plain_text", Name: name, Text: s.Vars[name]})
	}
	return w
}

// ours finds a Worker of the account, and refuses one that clawr did not
// deploy, or that dispatches to another namespace.
func (p *Publisher) ours(ctx context.Context, script, namespace string) (*deployed, error) {
	if p.API == nil {
		return nil, nil
	}
	old, err := p.API.settings(ctx, "", script)
	if err != nil || old == nil {
		return nil, err
	}
	taken := func(why string) error {
		return &clawr.Error{Code: CodeTaken, Param: "script-name", Message: fmt.Sprintf("the Worker %s %s", script, why), Fix: "choose another --script-name; this one was left as it is"}
	}
	if !old.has(tagOurs) {
		return nil, taken("was not deployed by clawr")
	}
	if ns := old.tagged(tagNamespace); namespace != "" && ns != namespace {
		return nil, taken("is the dispatcher of the namespace " + printable(ns))
	}
	return old, nil
}

// planMigration declares the Durable Object's class the first time.
func (p *Publisher) planMigration(ctx context.Context, w *Worker, old *deployed) error {
	tag := ""
	if old != nil {
		var err error
		if tag, err = p.API.migrationTag(ctx, w.Name); err != nil {
			return err
		}
	}
	switch tag {
	case ledgerTag:
	case "":
		w.Metadata.Migrations = &Migrations{NewTag: ledgerTag, SQLite: []string{"Ledger"}}
	default:
		return &clawr.Error{Code: CodeTaken, Param: "script-name", Message: fmt.Sprintf("the Durable Objects of %s are at %q, which this clawr does not know", w.Name, printable(tag)),
			Fix: "use the clawr that deployed it, or choose another --script-name"}
	}
	return nil
}

// put uploads a Worker of the account with its tags, and remembers it.
func (p *Publisher) put(ctx context.Context, w *Worker, secrets string, u Upload) error {
	hash, err := p.Shelf.Keep(w)
	if err != nil {
		return err
	}
	w.Metadata.Tags = tags(hash, secrets, tagNamespace+u.Serves)
	err = p.API.upload(ctx, w)
	if f, ok := errors.AsType[*failure](err); ok && f.has(apiTagPre) && w.Metadata.Migrations != nil {
		// The first answer was lost, and the classes are there already.
		if tag, terr := p.API.migrationTag(ctx, w.Name); terr == nil && tag == w.Metadata.Migrations.NewTag {
			w.Metadata.Migrations = nil
			err = p.API.upload(ctx, w)
		}
	}
	if err != nil {
		return err
	}
	return p.note(w, hash, u)
}

// planAddress plans that requests reach the dispatcher.
func (p *Publisher) planAddress(ctx context.Context, plan *Plan, s DispatcherSpec) error {
	if s.Route != "" {
		host, _, _ := strings.Cut(s.Route, "/")
		plan.URL = "https://" + host // a pattern of many hosts comes with a PublicURL
		if p.API != nil {
			zone, id, err := p.API.route(ctx, s.Route, s.Script)
			if err != nil {
				return err
			}
			if id != "" {
				plan.keep("route "+s.Route, "")
			} else {
				plan.add("create", "route "+s.Route, "", func(ctx context.Context) error { return p.API.addRoute(ctx, zone, s.Route, s.Script) })
			}
		} else {
			plan.add("create", "route "+s.Route, "", func(context.Context) error { return nil })
		}
	} else {
		name, on := "(the account)", false
		if p.API != nil {
			var err error
			if name, err = p.API.subdomain(ctx); err != nil {
				return err
			}
			if name == "" {
				return explain(&failure{Method: http.MethodGet, Status: http.StatusNotFound, Problems: []Problem{{apiNoSubdomain, "the account has no workers.dev subdomain"}}}, "the dispatcher would have no address")
			}
			if on, err = p.API.onWorkersDev(ctx, s.Script); err != nil {
				return err
			}
		}
		plan.URL = "https://" + s.Script + "." + name + ".workers.dev"
		if on {
			plan.keep("address "+plan.URL, "")
		} else {
			plan.add("create", "address "+plan.URL, "", func(ctx context.Context) error { return p.API.workersDev(ctx, s.Script) })
		}
	}
	if s.PublicURL != "" {
		plan.URL = strings.TrimRight(s.PublicURL, "/")
	}
	return nil
}

// PlanRollback plans that a dispatcher is what it was before, or the version
// that begins with to. Its secrets, directory and ledger stay as they are.
func (p *Publisher) PlanRollback(ctx context.Context, script, to string) (*Plan, error) {
	old, err := p.ours(ctx, script, "")
	if err != nil {
		return nil, err
	}
	if old == nil {
		return nil, &clawr.Error{Code: CodeMissing, Param: "script-name", Message: "there is no Worker " + script, Fix: "clawr cloudflare-deploy-dispatcher --script-name " + script + " --dispatch-namespace N --execute"}
	}
	all, err := p.Shelf.History()
	if err != nil {
		return nil, err
	}
	now := ""
	var last Upload
	for _, u := range all {
		if u.Account == p.API.Account && u.Script == script && u.Namespace == "" {
			last = u
			if old.has(tagBundle + u.Bundle[:min(32, len(u.Bundle))]) {
				now = u.Bundle
			}
		}
	}
	hash, err := p.Shelf.before(p.API.Account, script, now, to)
	if err != nil {
		return nil, err
	}
	w, err := p.Shelf.Load(hash)
	if err != nil {
		return nil, err
	}
	if err := p.planMigration(ctx, w, old); err != nil {
		return nil, err
	}
	plan := &Plan{URL: last.URL}
	plan.willUpload(w)
	if hash == now {
		plan.keep("Worker "+script, "version "+hash[:12]+" is there already")
		return plan, nil
	}
	plan.add("upload", "Worker "+script, fmt.Sprintf("version %s, now %s; %s", hash[:12], dash(now[:min(12, len(now))]), describe(w)), func(ctx context.Context) error {
		last.Serves = old.tagged(tagNamespace)
		return p.put(ctx, w, old.tagged(tagSecrets), last)
	})
	return plan, nil
}

func dash(s string) string {
	if s == "" {
		return "unknown"
	}
	return s
}

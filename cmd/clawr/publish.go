package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/cloudflare"
	"github.com/402claw/clawr/dataset"
	"github.com/402claw/clawr/x402"
)

// tenantSpec is a version of a tenant as Cloudflare gets it: its segment as
// text in the Worker when it is small, and as SQL for a database when not.
// Close the segment when the plan was carried out.
func (e *env) tenantSpec(p *cloudflare.Publisher, t clawr.Tenant, path string, f *edgeFlags, edge cloudflare.Edge) (s cloudflare.TenantSpec, closer func() error, err error) {
	seg, err := dataset.Open(path)
	if err != nil {
		return s, nil, err
	}
	defer func() {
		if err != nil {
			seg.Close()
		}
	}()
	s = cloudflare.TenantSpec{Namespace: f.namespace, Tenant: t, Edge: edge}
	if s.Modules, err = cloudflare.Dataset(); err != nil {
		return s, nil, err
	}
	if s.CursorKey, err = e.edgeSecret("cursor-key", ""); err != nil {
		return s, nil, err
	}
	asset, err := edgeAsset(p, f.namespace, t.Network)
	if err != nil {
		return s, nil, err
	}
	h := &dataset.Handler{Segment: seg, Facts: dataset.Facts{Price: t.Price, Paid: t.Paid(), Network: asset.Network, Asset: asset, PayTo: t.PayTo, Scheme: x402.SchemeExact, Updated: t.Created, BasePath: "/t/" + t.Slug}}
	if s.Manifest, err = h.EdgeManifest(); err != nil {
		return s, nil, err
	}
	path, bazaar, err := h.Discovery()
	if err != nil {
		return s, nil, err
	}
	s.Discovery = map[string]any{"path": path, "bazaar": bazaar}
	if !seg.EdgeLarge() {
		var rows bytes.Buffer
		err = seg.WriteRows(&rows)
		s.Rows = rows.Bytes()
		return s, seg.Close, err
	}
	bar := e.progress("sending " + t.Slug)
	s.Import = &cloudflare.Import{Content: seg.ID(), Write: seg.WriteD1, Progress: func(sent, total int64) {
		bar.update(sent, total, sent*t.Rows/max(total, 1))
		if sent == total {
			bar.clear()
		}
	}}
	return s, seg.Close, nil
}

// edgeAsset is what a tenant's calls are paid in at the edge, for its free
// pages: the dispatcher's token, or the one that is usual on the network.
func edgeAsset(p *cloudflare.Publisher, namespace, network string) (a clawr.Asset, err error) {
	if p.API != nil {
		up, err := p.Shelf.Serving(p.API.Account, namespace)
		if err != nil {
			return a, err
		}
		if up != nil && json.Unmarshal([]byte(up.Asset), &a) == nil {
			if network != "" && network != a.Network {
				return a, &clawr.Error{Code: clawr.CodeNetworkUnsupported, Param: "network", Message: fmt.Sprintf("the dispatcher of %s is paid on %s, not on %s", namespace, a.Network, network),
					Fix: "leave --network out, or clawr cloudflare-deploy-dispatcher --network " + network + " --execute"}
			}
			return a, nil
		}
	}
	if network == "" {
		network = defaultNetwork
	}
	if a, ok := known[network]; ok {
		return a, nil
	}
	return clawr.Asset{Network: network}, nil
}

// publish has Cloudflare sell a version of a tenant whose segment is at path.
func (e *env) publish(ctx context.Context, p *cloudflare.Publisher, t clawr.Tenant, path string, f *edgeFlags, execute bool) (*cloudflare.Plan, error) {
	edge, err := e.edge(p, f.namespace)
	if err != nil {
		return nil, err
	}
	s, done, err := e.tenantSpec(p, t, path, f, edge)
	if err != nil {
		return nil, err
	}
	defer done()
	plan, err := p.PlanTenant(ctx, s)
	if err != nil {
		return nil, err
	}
	plan.URL = edgeURL(&t, edge)
	return plan, e.carryOut(ctx, plan, f, execute)
}

// edgeURL is where a tenant answers: on its host, or below the dispatcher.
func edgeURL(t *clawr.Tenant, edge cloudflare.Edge) string {
	switch {
	case len(t.Hosts) > 0:
		return "https://" + t.Hosts[0] + "/v1/records"
	case edge.URL != "":
		return edge.URL + "/t/" + t.Slug + "/v1/records"
	}
	return ""
}

// fits refuses a version that Cloudflare would not take, before anything is
// touched.
func (e *env) fits(ctx context.Context, p *cloudflare.Publisher, slug string, m clawr.Manifest, path string, f *edgeFlags) error {
	s, done, err := e.tenantSpec(p, clawr.Tenant{ID: "tnt_0", Slug: slug, Version: 1, Manifest: m}, path, f, cloudflare.Edge{})
	if err != nil {
		return err
	}
	defer done()
	return p.Check(ctx, s)
}

func newDeployTenant(e *env) *cobra.Command {
	f := &edgeFlags{}
	cmd := &cobra.Command{
		Use: "cloudflare-deploy-tenant TENANT", Short: "Publish an API that is deployed here to Cloudflare", Args: cobra.ExactArgs(1),
		Long: `Publish the version of an API that is on sale in the data directory: its data first,
then its Worker, and the directory entry last, so that nothing half-published is ever
called. What is there already is left as it is, and a run that was cut short goes on
where it stopped. Without --execute the plan is printed alone.

An API that the nodes sell can only move when its pay-to address has no book here:
clawr deploy FILE --publish --pay-to 0x… with another address publishes it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.settle(e); err != nil {
				return err
			}
			p, err := e.publisher(!f.execute)
			if err != nil {
				return err
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				t, err := tenant(ctx, ctl, args[0])
				if err != nil {
					return err
				}
				if t.Home != clawr.HomeEdge && f.execute {
					m := t.Manifest
					m.Home = clawr.HomeEdge
					if t, err = ctl.Deploy(ctx, t.Slug, api.Deploy{Manifest: m}); err != nil {
						return err
					}
				}
				return e.publishTenant(ctx, p, t.Tenant, f, f.execute)
			})
		},
	}
	f.add(e, cmd, true)
	return cmd
}

// publishTenant publishes a tenant of the data directory, and says where it
// is.
func (e *env) publishTenant(ctx context.Context, p *cloudflare.Publisher, t clawr.Tenant, f *edgeFlags, execute bool) error {
	if e.server != "" {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "server", Message: "the data of " + t.Slug + " is on the server, and cannot be published from here", Fix: "clawr deploy FILE --publish --server URL, or run this where the data directory is"}
	}
	plan, err := e.publish(ctx, p, t, dataset.Path(e.segments(), t.Content), f, execute)
	if err != nil {
		return err
	}
	return e.print(plan, func(w io.Writer) error {
		if execute && plan.URL != "" {
			fmt.Fprintln(w, plan.URL)
		}
		return nil
	})
}

// publishable adds --publish to a command that changes one tenant. With it the
// change happens at Cloudflare too: first there if it takes calls away, so that
// what failed can be run again.
func publishable(e *env, cmd *cobra.Command, to clawr.Status) *cobra.Command {
	f := &edgeFlags{}
	publish, purge := false, false
	fl := cmd.Flags()
	fl.BoolVar(&publish, "publish", false, "at Cloudflare too")
	fl.StringVar(&f.namespace, "dispatch-namespace", "", "`name` of the dispatch namespace (also CLOUDFLARE_DISPATCH_NAMESPACE)")
	if to == clawr.StatusRemoved {
		fl.BoolVar(&purge, "purge", false, "with --publish: delete its Workers and databases at once, with the answers that were paid for and not fetched yet")
	}
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		if !publish {
			if err := run(cmd, args); err != nil {
				return err
			}
			return e.managed(ctx, func(ctx context.Context, ctl *controller) error {
				all, err := ctl.Tenants(ctx, true)
				for _, t := range all {
					if t.Slug == args[0] && t.Home == clawr.HomeEdge {
						e.note("warning  %s is sold at Cloudflare, where nothing has changed: add --publish", t.Slug)
					}
				}
				return err
			})
		}
		if err := f.settle(e); err != nil {
			return err
		}
		p, err := e.publisher(false)
		if err != nil {
			return err
		}
		if to == clawr.StatusPaused || to == clawr.StatusRemoved {
			if err := e.edgeStatus(ctx, p, args[0], to, f, purge); err != nil {
				return err
			}
		}
		gone := false
		if err := run(cmd, args); err != nil {
			if gone = to == clawr.StatusRemoved && clawr.CodeOf(err) == clawr.CodeTenantNotFound; !gone {
				return err
			}
		}
		switch to {
		case clawr.StatusActive:
			return e.edgeStatus(ctx, p, args[0], to, f, false)
		case "": // another version
			return e.managed(ctx, func(ctx context.Context, ctl *controller) error {
				t, err := tenant(ctx, ctl, args[0])
				if err != nil {
					return err
				}
				if t.Home != clawr.HomeEdge {
					return &clawr.Error{Code: clawr.CodeLedgerHome, Message: fmt.Sprintf("version %d of %s was sold by the nodes, and is again; Cloudflare still sells the other", t.Version, t.Slug),
						Fix: "clawr rollback " + t.Slug + " --to with a version that was published, or clawr rm " + t.Slug + " --publish"}
				}
				_, err = e.publish(ctx, p, t.Tenant, dataset.Path(e.segments(), t.Content), f, true)
				return err
			})
		}
		return nil
	}
	return cmd
}

// edgeStatus pauses, resumes or removes a tenant at Cloudflare.
func (e *env) edgeStatus(ctx context.Context, p *cloudflare.Publisher, slug string, to clawr.Status, f *edgeFlags, purge bool) error {
	return e.managed(ctx, func(ctx context.Context, ctl *controller) error {
		all, err := ctl.Tenants(ctx, true)
		if err != nil {
			return err
		}
		for _, t := range all {
			if t.Slug != slug {
				continue
			}
			edge, err := e.edge(p, f.namespace)
			if err != nil {
				return err
			}
			t.Status = to
			plan, err := p.PlanStatus(ctx, f.namespace, t.Tenant, edge, purge)
			if err != nil {
				return err
			}
			if to == clawr.StatusRemoved && !purge {
				e.note("its Workers stay for a day, for answers that were paid for; after that, or with --purge, clawr rm %s --publish deletes them", slug)
			}
			return e.carryOut(ctx, plan, f, true)
		}
		_, err = tenant(ctx, ctl, slug)
		return err
	})
}

// publisher is who publishes, if that is asked for. The namespace is looked up
// before the file is read, because a wrong token is found sooner so.
func (f *deployFlags) publisher(ctx context.Context, e *env) (*cloudflare.Publisher, error) {
	if !f.publish {
		if f.edge.out != "" {
			return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "out", Message: "--out needs --publish --dry-run", Fix: "add them, or leave --out out"}
		}
		return nil, nil
	}
	if f.edge.out != "" && !f.edge.dryRun {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "out", Message: "--out is for a dry run", Fix: "add --dry-run, or leave --out out"}
	}
	if err := f.edge.settle(e); err != nil {
		return nil, err
	}
	p, err := e.publisher(f.edge.dryRun)
	if err != nil || p.API == nil {
		return p, err
	}
	return p, p.Reach(ctx, f.edge.namespace)
}

// publishDry says what would be published, as the version that would be next.
func (e *env) publishDry(ctx context.Context, ctl *controller, p *cloudflare.Publisher, slug string, m clawr.Manifest, path string, f *deployFlags) error {
	t := clawr.Tenant{ID: "(new)", Slug: slug, Status: clawr.StatusActive, Hosts: append([]string{}, f.hosts...), Version: 1, Manifest: m}
	all, err := ctl.Versions(ctx, slug)
	if err != nil && clawr.CodeOf(err) != clawr.CodeTenantNotFound {
		return err
	}
	for _, v := range all {
		t.ID, t.Version = v.ID, max(t.Version, v.Version+1)
	}
	plan, err := e.publish(ctx, p, t, path, &f.edge, false)
	if err != nil {
		return err
	}
	return e.print(plan, func(io.Writer) error { return nil })
}

package main

import (
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/dataset"
)

func newExplain(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "explain URL",
		Short: "Say which index answers a query, and how many rows it touches",
		Long: `Run a query of a dataset of the data directory, without a call and without
paying, and say how it is answered: which index ran, how many rows were looked
at, and what the edge would run for it.`,
		Example: "  clawr explain 'http://127.0.0.1:4020/t/airports/v1/records?state=CA&sort=-latitude'\n  clawr explain '/t/airports/v1/records?q=intl'",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return e.explain(cmd.Context(), args[0]) },
	}
}

func (e *env) explain(ctx context.Context, target string) error {
	u, err := url.Parse(target)
	if err != nil || u.Path == "" {
		return &clawr.Error{Code: clawr.CodeUsage, Message: fmt.Sprintf("%q is not a URL of an API", target), Fix: "clawr explain '/t/NAME/v1/records?…'"}
	}
	ctl, err := e.openControl(ctx)
	if err != nil {
		return err
	}
	defer ctl.close()
	all, err := ctl.Tenants(ctx, false)
	if err != nil {
		return err
	}
	t, path, err := tenantOf(all, u)
	if err != nil {
		return err
	}
	cache := &dataset.Cache{Dir: e.segments()}
	seg, err := cache.Acquire(t.Content)
	if err != nil {
		return err
	}
	defer cache.Release(seg)
	if u.RawQuery != "" {
		path += "?" + u.RawQuery
	}
	x, err := (&dataset.Handler{Segment: seg}).Explain(ctx, path)
	if err != nil {
		return err
	}
	return e.print(x, func(w io.Writer) error {
		plan := x.Plan
		if x.Column != "" {
			plan += " (" + x.Column + ")"
		}
		_, err := fmt.Fprintf(w, "query    %s\nplan     %s\nlooked   at %s of %s rows, %d answered, in %s\nedge     %s\n", x.Canonical, plan,
			thousands(int64(x.Touched)), thousands(int64(x.Total)), x.Rows, x.Time, x.SQL)
		return err
	})
}

// tenantOf finds the dataset that a URL means, and the path that it sees.
func tenantOf(all []api.Tenant, u *url.URL) (*api.Tenant, string, error) {
	slug, rest, ok := strings.Cut(strings.TrimPrefix(u.EscapedPath(), "/t/"), "/")
	onPath := ok && strings.HasPrefix(u.Path, "/t/")
	for i := range all {
		t := &all[i]
		switch {
		case t.Kind != clawr.KindDataset:
		case slices.Contains(t.Hosts, u.Hostname()):
			return t, u.EscapedPath(), nil
		case onPath && t.Slug == slug:
			return t, "/" + rest, nil
		}
	}
	return nil, "", &clawr.Error{Code: clawr.CodeTenantNotFound, Message: "no dataset of this directory answers there", Fix: "clawr list shows yours"}
}

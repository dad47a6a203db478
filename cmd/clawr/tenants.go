package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/ledger"
)

func newList(e *env) *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use: "list", Short: "List your APIs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				list, err := ctl.Tenants(ctx, all)
				if err != nil {
					return err
				}
				if len(list) == 0 && !e.json {
					e.note("no APIs yet: clawr deploy data.csv --tenant acme --price 0.001 --x402")
				}
				return e.print(struct {
					Tenants []api.Tenant `json:"tenants"`
				}{list}, func(w io.Writer) error { return tenantTable(w, list) })
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "removed ones too")
	return cmd
}

func tenantTable(w io.Writer, list []api.Tenant) error {
	if len(list) == 0 {
		return nil
	}
	var rows [][]string
	for _, t := range list {
		rows = append(rows, []string{t.Slug, string(t.Status), fmt.Sprint(t.Version), priceOf(&t.Manifest), string(t.Plan), t.Owner, thousands(t.Rows), t.URL})
	}
	return table(w, "TENANT STATUS VERSION PRICE PLAN OWNER ROWS URL", rows)
}

func priceOf(m *clawr.Manifest) string {
	if !m.Paid() {
		return "free"
	}
	return "$" + m.Price.String()
}

func newShow(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "show TENANT", Short: "Show one API and its versions", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				t, err := tenant(ctx, ctl, args[0])
				if err != nil {
					return err
				}
				versions, err := ctl.Versions(ctx, t.Slug)
				if err != nil {
					return err
				}
				return e.print(struct {
					api.Tenant
					Versions []clawr.Tenant `json:"versions"`
				}{t, versions}, func(w io.Writer) error { return showTenant(w, &t, versions) })
			})
		},
	}
}

// tenant finds what a command line names. What is no slug is not asked for:
// it would be another path.
func tenant(ctx context.Context, ctl *controller, slug string) (api.Tenant, error) {
	if clawr.CheckSlug(slug) != nil {
		return api.Tenant{}, &clawr.Error{Code: clawr.CodeTenantNotFound, Param: "tenant", Message: fmt.Sprintf("no tenant %q", slug), Fix: "clawr list shows yours"}
	}
	return ctl.Tenant(ctx, slug)
}

func showTenant(w io.Writer, t *api.Tenant, versions []clawr.Tenant) error {
	rate := func(r clawr.Rate) string {
		if r.IsZero() {
			return ""
		}
		s := fmt.Sprintf("%d/%ds", r.Requests, r.WindowSeconds)
		if r.Burst > 0 {
			s += fmt.Sprintf(", %d at once", r.Burst)
		}
		return s
	}
	number := func(n int64) string {
		if n == 0 {
			return ""
		}
		return thousands(n)
	}
	usd := func(a clawr.Amount) string {
		if a == 0 {
			return ""
		}
		return "$" + a.String()
	}
	limits := t.Effective()
	err := facts(w,
		"tenant", t.Slug+" ("+t.ID+")", "status", string(t.Status), "url", t.URL, "hosts", strings.Join(t.Hosts, ", "),
		"version", fmt.Sprintf("%d, deployed %s", t.Version, stamp(t.Created)), "owner", t.Owner, "directory", t.Directory,
		"description", t.Description, "license", t.License, "tags", strings.Join(t.Tags, ", "),
		"price", priceOf(&t.Manifest), "pay to", t.PayTo, "network", t.Network, "settles", settlesOf(&t.Manifest), "payment id", required(t.RequirePaymentID),
		"plan", fmt.Sprintf("%s (%d ms CPU, %d outbound calls)", t.Plan, limits.CPUMs, limits.SubRequests),
		"rate per caller", rate(t.Rate.PerCaller), "rate of all", rate(t.Rate.Global),
		"calls per day", number(t.Usage.Daily), "calls per month", number(t.Usage.Monthly),
		"spend per day", usd(t.Spend.Daily), "spend per month", usd(t.Spend.Monthly),
		"rows", thousands(t.Rows), "content", t.Content)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, v := range versions {
		mark := ""
		if v.Version == t.Version {
			mark = "on sale"
		}
		rows = append(rows, []string{fmt.Sprint(v.Version), stamp(v.Created), priceOf(&v.Manifest), thousands(v.Rows), short(v.Content), mark})
	}
	fmt.Fprintln(w)
	return table(w, "VERSION DEPLOYED PRICE ROWS CONTENT", rows)
}

// settlesOf says when a version's payments are settled, if it has any.
func settlesOf(m *clawr.Manifest) string {
	switch {
	case !m.Paid():
		return ""
	case m.Settle == "":
		return string(ledger.SettleBeforeResponse)
	}
	return m.Settle
}

func required(is bool) string {
	if is {
		return "required"
	}
	return ""
}

func newPause(e *env) *cobra.Command {
	return publishable(e, e.tenantCommand("pause TENANT", "Stop selling an API; its payments keep their answers", "paused",
		func(ctx context.Context, ctl *controller, slug string) (api.Tenant, error) {
			return ctl.Pause(ctx, slug)
		}), clawr.StatusPaused)
}

func newResume(e *env) *cobra.Command {
	return publishable(e, e.tenantCommand("resume TENANT", "Sell a paused API again", "active",
		func(ctx context.Context, ctl *controller, slug string) (api.Tenant, error) {
			return ctl.Resume(ctx, slug)
		}), clawr.StatusActive)
}

func newRemove(e *env) *cobra.Command {
	cmd := e.tenantCommand("rm TENANT", "Take an API off sale and free its hosts", "removed",
		func(ctx context.Context, ctl *controller, slug string) (api.Tenant, error) {
			return ctl.Remove(ctx, slug)
		})
	cmd.Long = `Take an API off sale and free its hosts for others. What was paid for is kept and
can still be fetched, and clawr deploy with the same name brings the API back.`
	return publishable(e, cmd, clawr.StatusRemoved)
}

func newRollback(e *env) *cobra.Command {
	var to int64
	cmd := e.tenantCommand("rollback TENANT", "Sell an earlier version again", "",
		func(ctx context.Context, ctl *controller, slug string) (api.Tenant, error) {
			return ctl.Rollback(ctx, slug, to)
		})
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cmd.Flags().Changed("to") && to < 1 {
			return &clawr.Error{Code: clawr.CodeUsage, Param: "to", Message: fmt.Sprintf("--to %d is not a version", to), Fix: "clawr show " + args[0] + " lists them"}
		}
		return run(cmd, args)
	}
	cmd.Flags().Int64Var(&to, "to", 0, "`version` to sell (default: the one before)")
	return publishable(e, cmd, "")
}

// tenantCommand changes one tenant and says what it is then.
func (e *env) tenantCommand(use, short, became string, change func(context.Context, *controller, string) (api.Tenant, error)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				if _, err := tenant(ctx, ctl, args[0]); err != nil {
					return err
				}
				t, err := change(ctx, ctl, args[0])
				if err != nil {
					return err
				}
				return e.print(t, func(w io.Writer) error {
					what := became
					if what == "" {
						what = fmt.Sprintf("version %d %s", t.Version, priceOf(&t.Manifest))
					}
					_, err := fmt.Fprintln(w, t.Slug, what)
					return err
				})
			})
		},
	}
}

func newExportDirectory(e *env) *cobra.Command {
	form := ""
	cmd := &cobra.Command{
		Use: "export-tenant-directory", Short: "Print the tenants as JSON for a dispatcher elsewhere", Args: cobra.NoArgs,
		Long: `Print the tenants as JSON, in one of the two forms that a dispatcher reads:
  tenants   {"tenants":[{"slug":…,"workerName":…,"plan":…,"hosts":[…]}]}
  maps      {"byHost":{…},"bySlug":{…}}`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if form != "tenants" && form != "maps" {
				return &clawr.Error{Code: clawr.CodeUsage, Param: "form", Message: fmt.Sprintf("there is no form %q", form), Fix: "--form tenants or maps"}
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				d, err := ctl.Directory(ctx, form)
				if err != nil {
					return err
				}
				return e.printJSON(d)
			})
		},
	}
	cmd.Flags().StringVar(&form, "form", "tenants", "tenants or maps")
	return cmd
}

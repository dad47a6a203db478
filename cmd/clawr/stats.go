package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/usage"
)

func newStats(e *env) *cobra.Command {
	var window, now string
	var top int
	cmd := &cobra.Command{
		Use: "stats [TENANT]", Short: "Show calls, earnings and the ranking of APIs", Args: cobra.MaximumNArgs(1),
		Long: `Show what was called and earned in a window (today from 00:00 UTC, week from 00:00
UTC six days ago, overall), and how the APIs rank. Without a window, in all three.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := statsQuery{top: top}
			if len(args) == 1 {
				q.tenant = args[0]
			}
			var err error
			if cmd.Flags().Changed("window") {
				if q.window, err = usage.ParseWindow(window); err != nil {
					return err
				}
			}
			if top < 1 || top > 10_000 {
				return &clawr.Error{Code: clawr.CodeUsage, Param: "top", Message: fmt.Sprintf("--top %d is not between 1 and 10000", top), Fix: "--top 25"}
			}
			if cmd.Flags().Changed("now") {
				if q.now, err = time.Parse(time.RFC3339, now); err != nil {
					return &clawr.Error{Code: clawr.CodeUsage, Param: "now", Message: fmt.Sprintf("--now %q is not a time", now), Fix: "--now 2026-01-31T12:00:00Z"}
				}
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error { return e.stats(ctx, ctl, q) })
		},
	}
	cmd.Flags().StringVar(&window, "window", "", "today, week or overall")
	cmd.Flags().IntVar(&top, "top", 25, "how many APIs to rank")
	cmd.Flags().StringVar(&now, "now", "", "`time` that the windows end at, RFC 3339 (default: now)")
	return cmd
}

type statsQuery struct {
	tenant string
	window usage.Window // empty: all
	top    int
	now    time.Time
}

// tenantStats is one API's figures in a window; nil if it was not called.
type tenantStats struct {
	Window usage.Window `json:"window"`
	Range  usage.Range  `json:"range"`
	API    *usage.API   `json:"api"` // its rank is among all
}

func (e *env) stats(ctx context.Context, ctl *controller, q statsQuery) error {
	if q.tenant != "" {
		return e.statsOf(ctx, ctl, q)
	}
	if q.window != "" {
		s, err := ctl.Analytics(ctx, q.window, q.top, q.now)
		if err != nil {
			return err
		}
		return e.print(s, func(w io.Writer) error { return showStats(w, []usage.Snapshot{s}) })
	}
	all, err := ctl.AllAnalytics(ctx, q.top, q.now)
	if err != nil {
		return err
	}
	return e.print(all, func(w io.Writer) error {
		var list []usage.Snapshot
		for _, window := range usage.Windows() {
			list = append(list, all.Windows[window])
		}
		return showStats(w, list)
	})
}

func (e *env) statsOf(ctx context.Context, ctl *controller, q statsQuery) error {
	_, known := tenant(ctx, ctl, q.tenant)
	windows := usage.Windows()
	if q.window != "" {
		windows = []usage.Window{q.window}
	}
	list := []tenantStats{}
	for _, window := range windows {
		s, err := ctl.Analytics(ctx, window, 1, q.now)
		if err != nil {
			return err
		}
		one := tenantStats{Window: window, Range: s.Range}
		for i := range s.All {
			if s.All[i].APIID == q.tenant {
				s.All[i].Rank = i + 1
				one.API = &s.All[i]
				known = nil // events may be of APIs that are not here
			}
		}
		list = append(list, one)
	}
	if known != nil {
		return known
	}
	return e.print(struct {
		Tenant  string        `json:"tenant"`
		Windows []tenantStats `json:"windows"`
	}{q.tenant, list}, func(w io.Writer) error {
		var rows [][]string
		for _, one := range list {
			row := []string{string(one.Window), "-", "0", "$0", "0", "-", "-", "-"}
			if a := one.API; a != nil {
				row = append([]string{string(one.Window)}, apiRow(a)...)
			}
			rows = append(rows, row)
		}
		return table(w, "WINDOW RANK CALLS REVENUE CALLERS P95 ERRORS SCORE", rows)
	})
}

// apiRow is rank, calls, revenue, callers, p95, errors and score.
func apiRow(a *usage.API) []string {
	return []string{fmt.Sprint(a.Rank), thousands(a.Calls), fmt.Sprintf("$%.2f", a.RevenueUSD), thousands(a.UniqueCallers),
		fmt.Sprintf("%dms", a.P95LatencyMs), fmt.Sprintf("%.2f%%", a.ErrorRatePct), fmt.Sprintf("%.2f", a.Score)}
}

// showStats shows the totals of each window, and the ranking of the last.
func showStats(w io.Writer, list []usage.Snapshot) error {
	var rows [][]string
	for _, s := range list {
		rows = append(rows, []string{string(s.Window), thousands(s.Hero.Calls), fmt.Sprintf("$%.2f", s.Hero.RevenueUSD), thousands(s.Hero.ActiveAgents),
			thousands(s.Hero.PublishedAPIs), thousands(s.Hero.Directories)})
	}
	if err := table(w, "WINDOW CALLS REVENUE CALLERS APIS DIRECTORIES", rows); err != nil {
		return err
	}
	last := list[len(list)-1]
	if len(last.Top) == 0 {
		return nil
	}
	rows = nil
	for i := range last.Top {
		a := &last.Top[i]
		rows = append(rows, append([]string{a.APIID}, apiRow(a)...))
	}
	fmt.Fprintln(w)
	return table(w, "API RANK CALLS REVENUE CALLERS P95 ERRORS SCORE", rows)
}

package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/cloudflare"
)

// dispatcherFlags are what the dispatcher is told.
type dispatcherFlags struct {
	edgeFlags
	script, route, publicURL    string
	network, asset, rpc         string
	facilitators                []string
	deadline                    time.Duration
	publicAnalytics, workersDev bool
	controlPlane                string
}

func newDeployDispatcher(e *env) *cobra.Command {
	f := &dispatcherFlags{}
	cmd := &cobra.Command{
		Use: "cloudflare-deploy-dispatcher", Short: "Deploy the dispatcher Worker to Cloudflare", Args: cobra.NoArgs,
		Long: `Deploy the Worker that finds tenants, takes payments and dispatches, with what it
needs: the dispatch namespace, a KV namespace for the directory, a D1 database for
events and a Durable Object for the ledger, each made where it is missing. Without
--execute the plan is printed alone.

Secrets come from the environment and are kept where they are when it has none:
CLAWR_FACILITATOR_API_KEY, CDP_API_KEY_ID with CDP_API_KEY_SECRET, CLAWR_RPC_URL.`,
		Example: `  clawr cloudflare-deploy-dispatcher --script-name clawr-dispatcher --dispatch-namespace prod
  clawr cloudflare-deploy-dispatcher --script-name clawr-dispatcher --dispatch-namespace prod --execute`,
		RunE: func(cmd *cobra.Command, _ []string) error { return e.deployDispatcher(cmd, f) },
	}
	f.add(e, cmd, true)
	fl := cmd.Flags()
	fl.StringVar(&f.script, "script-name", "", "`name` of the Worker")
	fl.StringVar(&f.route, "route", "", "`pattern` such as api.example.com/*, instead of workers.dev")
	fl.BoolVar(&f.workersDev, "workers-dev", true, "answer on the account's workers.dev subdomain, unless there is a --route")
	fl.StringVar(&f.publicURL, "public-url", "", "`URL` that callers reach the dispatcher at (default: the route's or workers.dev's)")
	fl.StringVar(&f.network, "network", "", "CAIP-2 `name` of the chain to be paid on (default eip155:8453, which is Base)")
	fl.StringVar(&f.asset, "asset", "", "`address` of the token (default: USDC on Base and Base Sepolia)")
	fl.StringVar(&f.rpc, "rpc-url", "", "`URL` of a node of the chain: settlements count when it shows them")
	fl.StringSliceVar(&f.facilitators, "facilitator-url", nil, "`URL` of who verifies and settles (repeatable, in order of preference)")
	fl.DurationVar(&f.deadline, "deadline", 30*time.Second, "how long a paid call may take, settlement included")
	fl.BoolVar(&f.publicAnalytics, "public-analytics", false, "analytics need no token")
	fl.StringVar(&f.controlPlane, "control-plane-url", "", "`URL` of a clawr that gets the events, instead of D1 (with its token in CLAWR_TOKEN)")
	return cmd
}

// defaultNetwork is where the edge is paid unless it is told otherwise: Base.
const defaultNetwork = "eip155:8453"

// known are the tokens that need not be looked up.
var known = map[string]clawr.Asset{
	"eip155:8453":  {Network: "eip155:8453", Address: "0x833589fcd6edb6e08f4c7c32d4f71b54bda02913", Name: "USD Coin", Version: "2", Decimals: 6},
	"eip155:84532": {Network: "eip155:84532", Address: "0x036cbd53842c5426634e7929541ec2318f3dcf7e", Name: "USDC", Version: "2", Decimals: 6},
}

// token finds what is paid with: one that is known, or what a node says of it.
func (f *dispatcherFlags) token(ctx context.Context) (a clawr.Asset, err error) {
	if f.network == "" {
		f.network = defaultNetwork
	}
	if err := clawr.CheckNetwork(f.network); err != nil {
		return a, err
	}
	address := f.asset
	if address != "" {
		if address, err = clawr.CheckAddress(address); err != nil {
			return a, withParam(err, "asset")
		}
	}
	if k, ok := known[f.network]; ok && (address == "" || address == k.Address) {
		return k, nil
	}
	for flag, v := range map[string]string{"asset": address, "rpc-url": f.rpc} {
		if v == "" {
			return a, &clawr.Error{Code: clawr.CodeUsage, Param: flag, Message: "the token on " + f.network + " is not known without --asset and --rpc-url", Fix: "--asset 0x… --rpc-url https://…"}
		}
	}
	c, err := chain.Dial(ctx, f.rpc)
	if err != nil {
		return a, err
	}
	defer c.Close()
	if err := c.Expect(f.network); err != nil {
		return a, err
	}
	return c.Asset(ctx, common.HexToAddress(address))
}

// isRoute matches the patterns that lead a whole host to the dispatcher, or all
// hosts below one: it reads tenants from the beginning of the path.
// https://developers.cloudflare.com/workers/configuration/routing/routes/
var isRoute = regexp.MustCompile(`^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])/\*$`)

// spec is the dispatcher that the flags and the environment ask for.
func (f *dispatcherFlags) spec(ctx context.Context, e *env) (s cloudflare.DispatcherSpec, err error) {
	bad := func(flag, message, fix string) error {
		return &clawr.Error{Code: clawr.CodeUsage, Param: flag, Message: message, Fix: fix}
	}
	switch {
	case f.script == "":
		return s, bad("script-name", "--script-name is missing", "--script-name clawr-dispatcher")
	case clawr.CheckSlug(f.script) != nil:
		return s, bad("script-name", fmt.Sprintf("%q is not a name for a Worker", f.script), "use lower-case letters, digits and inner hyphens, at most 63")
	case f.route == "" && !f.workersDev:
		return s, bad("workers-dev", "the dispatcher would have no address", "--route api.example.com/*, or leave --workers-dev=false out")
	case f.route != "" && !isRoute.MatchString(f.route):
		return s, bad("route", fmt.Sprintf("%q is not a route for a whole host", f.route), "--route 'api.example.com/*'")
	case strings.HasPrefix(f.route, "*") && f.publicURL == "":
		return s, bad("public-url", "many hosts lead to this route, and none of them is the dispatcher's own", "--public-url https://"+strings.Replace(strings.TrimSuffix(f.route, "/*"), "*", "api", 1))
	case f.deadline < 2*time.Second || f.deadline > 10*time.Minute:
		return s, bad("deadline", "--deadline is not between 2s and 10m", "--deadline 30s")
	}
	for flag, urls := range map[string][]string{"facilitator-url": f.facilitators, "public-url": {f.publicURL}, "rpc-url": {f.rpc}, "control-plane-url": {f.controlPlane}} {
		for _, u := range urls {
			if err := checkURL(flag, u); err != nil {
				return s, err
			}
		}
	}
	asset, err := f.token(ctx)
	if err != nil {
		return s, err
	}
	token, err := json.Marshal(asset)
	if err != nil {
		return s, err
	}
	if s.Modules, err = cloudflare.Dispatcher(); err != nil {
		return s, err
	}
	s.Script, s.Namespace, s.Route, s.PublicURL = f.script, f.namespace, f.route, strings.TrimRight(f.publicURL, "/")
	s.Vars = map[string]string{"ASSET": string(token), "FACILITATOR_URLS": strings.Join(f.facilitators, ","), "PUBLIC_URL": s.PublicURL, "DOCS_URL": docsURL,
		"DEADLINE_SECONDS": fmt.Sprint(int64(f.deadline / time.Second))}
	if f.publicAnalytics {
		s.Vars["ANALYTICS_PUBLIC"] = "true"
	}
	s.Secrets = map[string]string{}
	for name, from := range map[string]string{"FACILITATOR_API_KEY": "CLAWR_FACILITATOR_API_KEY", "CDP_API_KEY_ID": "CDP_API_KEY_ID", "CDP_API_KEY_SECRET": "CDP_API_KEY_SECRET"} {
		if v := e.getenv(from); v != "" {
			s.Secrets[name] = v
		}
	}
	if f.rpc != "" {
		s.Secrets["RPC_URL"] = f.rpc
	}
	if f.controlPlane != "" {
		s.Vars["CONTROL_PLANE_URL"] = strings.TrimRight(f.controlPlane, "/")
		if t := e.getenv("CLAWR_TOKEN"); t != "" {
			s.Secrets["CONTROL_PLANE_TOKEN"] = t
		}
	}
	return s, nil
}

// platformTokens are what the dispatcher takes orders by: this data
// directory's own token, of which it learns the hash.
func platformTokens(token string) (string, error) {
	sum := sha256.Sum256([]byte(token))
	b, err := json.Marshal([]map[string]any{{"sha256": hex.EncodeToString(sum[:]), "scopes": []string{api.TenantsWrite, api.EventsRead, api.AnalyticsRead}}})
	return string(b), err
}

func (e *env) deployDispatcher(cmd *cobra.Command, f *dispatcherFlags) error {
	if err := f.settle(e); err != nil {
		return err
	}
	p, err := e.publisher(!f.execute)
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	s, err := f.spec(ctx, e)
	if err != nil {
		return err
	}
	if f.execute {
		token, err := e.edgeSecret("platform-token", "clawr_")
		if err != nil {
			return err
		}
		if s.Secrets["PLATFORM_TOKENS"], err = platformTokens(token); err != nil {
			return err
		}
	}
	plan, err := p.PlanDispatcher(ctx, s)
	if err != nil {
		return err
	}
	if len(f.facilitators) == 0 {
		e.note("warning  no --facilitator-url: paid calls will be answered 503 facilitator_unavailable")
	}
	if err := e.carryOut(ctx, plan, &f.edgeFlags, f.execute); err != nil {
		return err
	}
	return e.print(plan, func(w io.Writer) error {
		if !f.execute {
			return nil
		}
		_, err := fmt.Fprintln(w, plan.URL)
		return err
	})
}

func newRollbackDispatcher(e *env) *cobra.Command {
	f := &edgeFlags{}
	script, to := "", ""
	cmd := &cobra.Command{
		Use: "cloudflare-rollback-dispatcher", Short: "Put the dispatcher that was there before back", Args: cobra.NoArgs,
		Long: `Upload the dispatcher again that was there before the present one. Uploads are kept
in the data directory, without secrets; the secrets, the directory and the ledger at
Cloudflare stay as they are.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if script == "" {
				return &clawr.Error{Code: clawr.CodeUsage, Param: "script-name", Message: "--script-name is missing", Fix: "--script-name clawr-dispatcher"}
			}
			p, err := e.publisher(false)
			if err != nil {
				return err
			}
			plan, err := p.PlanRollback(cmd.Context(), script, to)
			if err != nil {
				return err
			}
			if err := e.carryOut(cmd.Context(), plan, f, f.execute); err != nil {
				return err
			}
			return e.print(plan, func(w io.Writer) error {
				if f.execute {
					fmt.Fprintln(w, plan.URL)
				}
				return nil
			})
		},
	}
	f.add(e, cmd, true)
	cmd.Flags().StringVar(&script, "script-name", "", "`name` of the Worker")
	cmd.Flags().StringVar(&to, "to", "", "beginning of the `hash` of the version to put back (clawr cloudflare-status lists them)")
	return cmd
}

func newCloudflareStatus(e *env) *cobra.Command {
	f := &edgeFlags{}
	script := ""
	cmd := &cobra.Command{
		Use: "cloudflare-status", Short: "Show what of clawr's is at Cloudflare", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.settle(e); err != nil {
				return err
			}
			p, err := e.publisher(false)
			if err != nil {
				return err
			}
			s, err := p.Status(cmd.Context(), f.namespace, script)
			if err != nil {
				return err
			}
			return e.print(s, func(w io.Writer) error { return showStatus(w, s) })
		},
	}
	f.add(e, cmd, false)
	cmd.Flags().StringVar(&script, "script-name", "", "`name` of the dispatcher (default: the one deployed from here)")
	return cmd
}

func showStatus(w io.Writer, s *cloudflare.Status) error {
	there := "missing"
	if s.Exists {
		there = "there"
	}
	if err := facts(w, "namespace", s.Namespace+", "+there, "dispatcher", dash(s.Script), "version", dash(short(s.Bundle)), "url", s.URL, "bindings", strings.Join(s.Bindings, " ")); err != nil {
		return err
	}
	var rows [][]string
	for _, u := range s.Kept {
		mark := ""
		if s.Bundle != "" && strings.HasPrefix(u.Bundle, s.Bundle) {
			mark = "there now"
		}
		rows = append(rows, []string{u.Bundle[:12], stamp(u.At), mark})
	}
	fmt.Fprintln(w)
	if err := table(w, "KEPT UPLOADED NOTE", rows); err != nil {
		return err
	}
	rows = nil
	for _, t := range s.Tenants {
		worker := t.Worker
		if !t.Uploaded {
			worker += " (missing)"
		}
		rows = append(rows, []string{t.Slug, string(t.Status), fmt.Sprint(t.Version), worker, strings.Join(t.Hosts, " ")})
	}
	fmt.Fprintln(w)
	return table(w, "TENANT STATUS VERSION WORKER HOSTS", rows)
}

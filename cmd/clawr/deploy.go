package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/dataset"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/worker"
)

// deployFlags are what `clawr deploy` is told.
type deployFlags struct {
	tenant, owner, plan, price, directory string
	x402, publish                         bool
	hosts, tags                           []string
	payTo, network, description, license  string
	source, title                         string
	cpuMs, subRequests                    int64
	rateCaller, rateGlobal                string
	quotaDay, quotaMonth                  int64
	spendDay, spendMonth                  string
	settle                                string
	requirePaymentID                      bool
	schemes                               []string
	previewRows                           int
	types, index, search                  []string
	key, encoding, delimiter, format      string
	edge                                  edgeFlags
}

func newDeploy(e *env) *cobra.Command {
	f := &deployFlags{}
	cmd := &cobra.Command{
		Use:   "deploy FILE|URL|-",
		Short: "Publish a CSV, TSV, JSON or NDJSON file as an API",
		Long: `Publish a file as an API. It is read once, checked, and turned into an immutable
version; the version before it is kept (clawr rollback). Nothing is published
when anything is wrong with the file. A running clawr serve or dev on the same
data directory sells the new version within a second.`,
		Example: `  clawr deploy data.csv --tenant acme --price 0.001 --x402
  clawr deploy - --format ndjson --tenant acme < rows.ndjson`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.deploy(cmd, args[0], f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.tenant, "tenant", "", "`slug` of the API (default: the file's name, if that is one)")
	fl.StringVar(&f.owner, "owner", "", "user `id` of the publisher, whose profile has the pay-to address (default me)")
	fl.StringVar(&f.plan, "plan", "", "free, pro, business, enterprise or quarantine (default free)")
	fl.StringVar(&f.price, "price", "", "`USD` per call, at most 6 decimal places")
	fl.BoolVar(&f.x402, "x402", false, "take payments; without it calls are free")
	fl.StringSliceVar(&f.hosts, "host", nil, "`name` that is all this API's (repeatable)")
	fl.StringVar(&f.payTo, "pay-to", "", "`address` that earns, instead of the owner's")
	fl.StringVar(&f.network, "network", "", "CAIP-2 `name` of the chain to be paid on (default: the serving node's)")
	fl.StringVar(&f.directory, "directory", "", "category that it is listed under (default APIs)")
	fl.StringVar(&f.title, "title", "", "the dataset's name (default: the file's)")
	fl.StringVar(&f.description, "description", "", "what it is, in a sentence")
	fl.StringVar(&f.license, "license", "", "licence of the data")
	fl.StringVar(&f.source, "source", "", "where the data is from")
	fl.StringSliceVar(&f.tags, "tag", nil, "tag (repeatable, at most 5)")
	fl.Int64Var(&f.cpuMs, "cpu-ms", 0, "CPU milliseconds per call, instead of the plan's")
	fl.Int64Var(&f.subRequests, "subrequests", 0, "outbound calls per call, instead of the plan's")
	fl.StringVar(&f.rateCaller, "rate-limit-caller", "", "`requests/window` of one caller, such as 100/60s")
	fl.StringVar(&f.rateGlobal, "rate-limit-global", "", "`requests/window` of all callers together")
	fl.Int64Var(&f.quotaDay, "quota-day", 0, "calls a caller may make in a UTC day")
	fl.Int64Var(&f.quotaMonth, "quota-month", 0, "calls a caller may make in a UTC month")
	fl.StringVar(&f.spendDay, "spend-day", "", "`USD` a caller may spend in a UTC day")
	fl.StringVar(&f.spendMonth, "spend-month", "", "`USD` a caller may spend in a UTC month")
	fl.StringVar(&f.settle, "settle", "", "when payments are settled: settle_before_response, settle_first or async (default settle_before_response)")
	fl.BoolVar(&f.requirePaymentID, "require-payment-id", false, "refuse payments without the extension payment-identifier")
	fl.StringSliceVar(&f.schemes, "schemes", nil, "how it may be paid: `exact[,batch-settlement]`; with the second, by vouchers on a channel that the buyer funds once")
	fl.IntVar(&f.previewRows, "preview-rows", 0, "rows that are free to see (default 3; -1 for none)")
	fl.StringSliceVar(&f.types, "type", nil, "`column=type` instead of the guess (text, bool, int, float, date, datetime)")
	fl.StringVar(&f.key, "key", "", "`column` that /v1/records/{key} looks up")
	fl.StringSliceVar(&f.index, "index", nil, "`column` to index at the edge too")
	fl.StringSliceVar(&f.search, "search", nil, "`column` that q searches (default: all text)")
	fl.StringVar(&f.encoding, "encoding", "", "character encoding of the file (default UTF-8)")
	fl.StringVar(&f.delimiter, "delimiter", "", "field delimiter of a CSV file")
	fl.StringVar(&f.format, "format", "", "csv, tsv, json or ndjson (default: by name and content)")
	fl.BoolVar(&f.edge.dryRun, "dry-run", false, "read the file and say what would be published, and do nothing")
	fl.BoolVar(&f.publish, "publish", false, "publish to Cloudflare, which sells it from then on")
	fl.StringVar(&f.edge.namespace, "dispatch-namespace", "", "with --publish: `name` of the dispatch namespace (also CLOUDFLARE_DISPATCH_NAMESPACE)")
	fl.StringVar(&f.edge.out, "out", "", "with --publish --dry-run: `directory` that gets what would be uploaded")
	return cmd
}

// manifest checks what the flags say and gives it as a manifest.
func (f *deployFlags) manifest(cmd *cobra.Command) (m clawr.Manifest, err error) {
	m = clawr.Manifest{Kind: clawr.KindDataset, Owner: f.owner, Directory: f.directory, Description: f.description, License: f.license, Tags: f.tags,
		Plan: clawr.Plan(f.plan), Limits: clawr.Limits{CPUMs: f.cpuMs, SubRequests: f.subRequests}, X402: f.x402, Network: f.network,
		Usage: clawr.Quota{Daily: f.quotaDay, Monthly: f.quotaMonth}, Settle: f.settle, RequirePaymentID: f.requirePaymentID, Schemes: f.schemes}
	if m.Owner == "" {
		m.Owner = "me"
	}
	if m.Plan == "" {
		m.Plan = clawr.PlanFree
	}
	if m.Directory == "" {
		m.Directory = "APIs"
	}
	amounts := []struct {
		flag, text string
		to         *clawr.Amount
	}{{"price", f.price, &m.Price}, {"spend-day", f.spendDay, &m.Spend.Daily}, {"spend-month", f.spendMonth, &m.Spend.Monthly}}
	for _, a := range amounts {
		if !cmd.Flags().Changed(a.flag) && a.text == "" {
			continue
		}
		if *a.to, err = clawr.ParseAmount(a.text); err != nil {
			return m, withParam(err, a.flag)
		}
		if *a.to <= 0 || *a.to > clawr.MaxPrice {
			return m, &clawr.Error{Code: clawr.CodeBadAmount, Param: a.flag, Message: fmt.Sprintf("--%s %s is not between 0.000001 and %s", a.flag, a.text, clawr.MaxPrice),
				Fix: "--" + a.flag + " 0.001, or leave --price and --x402 out for a free API"}
		}
	}
	if f.x402 && m.Price == 0 {
		return m, &clawr.Error{Code: clawr.CodeBadAmount, Param: "price", Message: "--x402 needs a price", Fix: "--price 0.001"}
	}
	if m.Rate.PerCaller, err = optionalRate(f.rateCaller, "rate-limit-caller"); err != nil {
		return m, err
	}
	if m.Rate.Global, err = optionalRate(f.rateGlobal, "rate-limit-global"); err != nil {
		return m, err
	}
	for _, n := range []struct {
		flag string
		v    int64
	}{{"cpu-ms", f.cpuMs}, {"subrequests", f.subRequests}, {"quota-day", f.quotaDay}, {"quota-month", f.quotaMonth}} {
		if n.v < 0 || cmd.Flags().Changed(n.flag) && n.v == 0 {
			return m, &clawr.Error{Code: clawr.CodeUsage, Param: n.flag, Message: fmt.Sprintf("--%s %d is not a positive number", n.flag, n.v), Fix: "leave --" + n.flag + " out for the default"}
		}
	}
	switch ledger.Policy(f.settle) {
	case "", ledger.SettleBeforeResponse, ledger.SettleFirst, ledger.Async:
	default:
		return m, &clawr.Error{Code: clawr.CodeUsage, Param: "settle", Message: fmt.Sprintf("there is no policy %q", f.settle), Fix: "--settle settle_before_response, settle_first or async"}
	}
	if err := clawr.CheckSchemes(m.Schemes); err != nil {
		return m, err
	}
	if err := clawr.CheckPlan(m.Plan); err != nil {
		return m, err
	}
	if f.payTo != "" {
		if m.PayTo, err = clawr.CheckAddress(f.payTo); err != nil {
			return m, withParam(err, "pay-to")
		}
	}
	if f.network != "" {
		if err := clawr.CheckNetwork(f.network); err != nil {
			return m, err
		}
	}
	for _, h := range f.hosts {
		if err := clawr.CheckHost(h); err != nil {
			return m, err
		}
	}
	return m, nil
}

func optionalRate(s, flag string) (clawr.Rate, error) {
	if s == "" {
		return clawr.Rate{}, nil
	}
	r, err := clawr.ParseRate(s)
	if err != nil {
		return r, withParam(err, flag)
	}
	return r, nil
}

// withParam names the flag that an error is about.
func withParam(err error, flag string) error {
	e, ok := errors.AsType[*clawr.Error](err)
	if !ok {
		return err
	}
	out := *e
	out.Param = flag
	out.Message = "--" + flag + ": " + out.Message
	return &out
}

// slug is the tenant's, or the file's name if that is one.
func (f *deployFlags) slug(file string) (string, error) {
	if f.tenant != "" {
		return f.tenant, clawr.CheckSlug(f.tenant)
	}
	if file == "-" {
		return "", &clawr.Error{Code: clawr.CodeUsage, Param: "tenant", Message: "data from standard input needs a name", Fix: "--tenant NAME"}
	}
	return slugOf(file)
}

func slugOf(file string) (string, error) {
	base, _, _ := strings.Cut(baseName(file), ".")
	return base, clawr.CheckSlug(base)
}

func isURL(file string) bool {
	return strings.HasPrefix(file, "https://") || strings.HasPrefix(file, "http://")
}

// baseName is the last part of a path or of a URL's path.
func baseName(file string) string {
	if isURL(file) {
		if u, err := url.Parse(file); err == nil {
			return path.Base(u.Path)
		}
	}
	return filepath.Base(file)
}

func (f *deployFlags) options() (dataset.Options, error) {
	o := dataset.Options{Format: f.format, Encoding: f.encoding, Delimiter: f.delimiter, Key: f.key, Index: f.index, Search: f.search,
		PreviewRows: f.previewRows, Title: f.title, Description: f.description, License: f.license, Source: f.source}
	for _, t := range f.types {
		col, name, ok := strings.Cut(t, "=")
		if !ok {
			return o, &clawr.Error{Code: clawr.CodeUsage, Param: "type", Message: fmt.Sprintf("--type %q has no =", t), Fix: "--type column=text"}
		}
		ty, err := dataset.ParseType(name)
		if err != nil {
			return o, err
		}
		if o.Types == nil {
			o.Types = map[string]dataset.Type{}
		}
		o.Types[col] = ty
	}
	return o, nil
}

// deploy reads file and publishes it. Everything that the flags can be wrong
// about is found before the file is read.
func (e *env) deploy(cmd *cobra.Command, file string, f *deployFlags) error {
	m, err := f.manifest(cmd)
	if err != nil {
		return err
	}
	slug, err := f.slug(file)
	if err != nil {
		return err
	}
	opts, err := f.options()
	if err != nil {
		return err
	}
	ctx := cmd.Context()
	p, err := f.publisher(ctx, e)
	if err != nil {
		return err
	}
	if f.publish {
		m.Home = clawr.HomeEdge
	}
	in, size, err := e.openFile(ctx, file)
	if err != nil {
		return err
	}
	defer in.Close()
	if f.edge.dryRun && !f.publish {
		report, err := e.read(ctx, in, file, size, opts, "")
		if err != nil {
			return err
		}
		return e.print(report, func(w io.Writer) error { return quality(w, report.Schema) })
	}
	ctl, err := e.openControl(ctx)
	if err != nil {
		return err
	}
	defer ctl.close()
	dir, done, err := e.stage(f.edge.dryRun)
	if err != nil {
		return err
	}
	defer done()
	report, err := e.read(ctx, in, file, size, opts, dir)
	if err != nil {
		return err
	}
	m.Content, m.Rows = report.ID, report.Schema.Rows
	if f.publish {
		if err := e.fits(ctx, p, slug, m, report.Path, &f.edge); err != nil {
			return err
		}
		if f.edge.dryRun {
			return e.publishDry(ctx, ctl, p, slug, m, report.Path, f)
		}
	}
	if e.server != "" {
		if err := ctl.upload(ctx, report.ID, report.Path); err != nil {
			return err
		}
	}
	if was, err := ctl.Tenant(ctx, slug); err == nil && was.Home == clawr.HomeEdge && !f.publish {
		e.note("warning  Cloudflare goes on selling version %d: --publish replaces it there, clawr rm %s --publish removes it", was.Version, slug)
	}
	got, err := ctl.Deploy(ctx, slug, api.Deploy{Manifest: m, Hosts: f.hosts})
	if err != nil {
		return err
	}
	if got.Paid() {
		e.note("price    $%s per call to %s (owner %s)", got.Price, got.PayTo, got.Owner)
	} else {
		e.note("price    free")
	}
	if f.publish {
		plan, err := e.publish(ctx, p, got.Tenant, report.Path, &f.edge, true)
		if err != nil {
			e.note("version %d is not published: the edge goes on selling what it sold; clawr cloudflare-deploy-tenant %s --dispatch-namespace %s --execute goes on", got.Version, got.Slug, f.edge.namespace)
			return err
		}
		if got.URL = plan.URL; got.URL == "" {
			e.note("next     clawr cloudflare-deploy-dispatcher --script-name clawr-dispatcher --dispatch-namespace %s --execute", f.edge.namespace)
		}
	}
	kept := ""
	if got.Version > 1 {
		kept = fmt.Sprintf(" (version %d kept: clawr rollback %s)", got.Version-1, got.Slug)
	}
	e.note("✓ %s version %d live%s", got.Slug, got.Version, kept)
	return e.print(struct {
		api.Tenant
		Warnings []string `json:"warnings"`
	}{got, report.Warnings}, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, got.URL)
		return err
	})
}

// openFile opens what is to be deployed; "-" is standard input, and a URL is
// fetched, if it leads to the public Internet.
func (e *env) openFile(ctx context.Context, file string) (io.ReadCloser, int64, error) {
	if file == "-" {
		return io.NopCloser(e.stdin), 0, nil
	}
	if isURL(file) {
		body, _, err := new(worker.Guard).Fetch(ctx, file)
		return body, 0, err
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, &clawr.Error{Code: clawr.CodeFile, Message: "there is no file " + file, Fix: "check the path; clawr deploy FILE"}
	}
	if err != nil {
		return nil, 0, &clawr.Error{Code: clawr.CodeFile, Message: "the file cannot be opened", Fix: "check its permissions", Err: err}
	}
	st, err := f.Stat()
	if err == nil && st.IsDir() {
		f.Close()
		return nil, 0, &clawr.Error{Code: clawr.CodeFile, Message: file + " is a directory", Fix: "name one file in it"}
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

// stage is where a segment is written: the data directory's own, or a
// temporary one when it is to be uploaded, or forgotten.
func (e *env) stage(temporary bool) (dir string, done func(), err error) {
	if e.server == "" && !temporary {
		dir = filepath.Join(e.data, segmentDir)
		return dir, func() {}, os.MkdirAll(dir, 0o700)
	}
	dir, err = os.MkdirTemp("", "clawr-deploy-")
	return dir, func() { os.RemoveAll(dir) }, err
}

// read ingests in, with a progress bar if that takes a moment, and says what
// was found. Without a directory it only looks.
func (e *env) read(ctx context.Context, in io.Reader, file string, size int64, o dataset.Options, dir string) (*dataset.Report, error) {
	name := baseName(file)
	start := time.Now()
	bar := e.progress("reading " + name)
	o.Progress = func(bytes, rows int64) { bar.update(bytes, size, rows) }
	var report *dataset.Report
	var err error
	if dir == "" {
		report, err = dataset.Inspect(ctx, in, name, o)
	} else {
		report, err = dataset.Ingest(ctx, in, name, o, dir)
	}
	bar.clear()
	if err != nil {
		return nil, err
	}
	e.note("reading %s  %s rows · %s · %.1f s", name, thousands(report.Schema.Rows), byteSize(report.Bytes), time.Since(start).Seconds())
	var cols []string
	for _, c := range report.Schema.Columns {
		cols = append(cols, c.Name+" "+c.Type.String())
	}
	e.note("columns  %s", strings.Join(cols, " · "))
	for _, w := range report.Warnings {
		e.note("warning  %s", w)
	}
	return report, nil
}

// quality is what each column holds, for whoever decides whether to sell it.
func quality(w io.Writer, s *dataset.Schema) error {
	var rows [][]string
	for _, c := range s.Columns {
		use := ""
		switch {
		case c.Name == s.Key:
			use = "key"
		case c.Indexed:
			use = "indexed"
		}
		if slices.Contains(s.Search, c.Name) || len(s.Search) == 0 && c.Type == dataset.Text {
			use = strings.TrimPrefix(use+", searched", ", ")
		}
		rows = append(rows, []string{c.Name, c.Type.String(), thousands(c.Nulls), thousands(c.Empty), thousands(c.Distinct), bound(c.Min), bound(c.Max), use})
	}
	return table(w, "COLUMN TYPE NULLS EMPTY DISTINCT LEAST GREATEST USE", rows)
}

// bound is the least or greatest value of a column, on one short line.
func bound(v any) string {
	if v == nil {
		return ""
	}
	s, ok := v.(string)
	if !ok {
		b, _ := json.Marshal(v)
		return string(b)
	}
	line := []rune(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s))
	if len(line) > 24 {
		return string(line[:23]) + "…"
	}
	return string(line)
}

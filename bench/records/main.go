// Command records measures how fast a dataset is served, as a part of the speed
// at which the same bytes would be served as a constant, and how fast a file
// becomes a dataset. Tables go to stderr, one JSON object to stdout.
//
// The server is a process of its own on one core. Rates are requests per second
// of its CPU time, so that other work on the machine bends them little, and the
// two are measured in turn.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

func main() {
	rows := flag.Int("rows", 1_000_000, "rows of the dataset")
	rounds := flag.Int("rounds", 5, "rounds, of which the median counts")
	each := flag.Duration("each", 500*time.Millisecond, "time of one measurement")
	work := flag.String("dir", "", "directory for the data; a temporary one by default")
	serveID := flag.String("serve", "", "internal: serve this segment")
	binary := flag.String("clawr", "bin/clawr", "the program that serves many datasets; empty leaves that out")
	tenants := flag.Int("tenants", 10_000, "datasets that it serves")
	only := flag.String("only", "", "measure only this: tenants")
	ingestFile := flag.String("ingest", "", "internal: ingest this file")
	flag.Parse()
	var err error
	switch {
	case *serveID != "":
		err = serve(*work, *serveID)
	case *ingestFile != "":
		err = ingest(*ingestFile, *work)
	default:
		err = run(options{*rows, *rounds, *tenants, *each, *work, *binary, *only})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// options are what a run measures.
type options struct {
	rows, rounds, tenants int
	each                  time.Duration
	dir, clawr, only      string
}

func run(o options) error {
	if o.dir == "" {
		tmp, err := os.MkdirTemp("", "clawr-bench-records")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		o.dir = tmp
	}
	out := map[string]any{}
	if o.only != "tenants" {
		if err := measureOne(o, out); err != nil {
			return err
		}
	}
	if o.clawr != "" {
		if err := measureTenants(context.Background(), o.clawr, o.dir, o.tenants, out); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// measureOne is all that is measured of the one large dataset.
func measureOne(o options, out map[string]any) error {
	file := filepath.Join(o.dir, fmt.Sprintf("records-%d.csv", o.rows))
	if _, err := os.Stat(file); err != nil {
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		if err := generate(f, o.rows); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	id, err := measureIngest(file, o.dir, out)
	if err != nil {
		return err
	}
	s, err := startServer(o.dir, id)
	if err != nil {
		return err
	}
	defer s.stop()
	ratios, err := measureServe(s, o.rows, o.rounds, o.each)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(os.Stderr, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "query\tbytes\tconstant/s\tclawr/s\tratio\t")
	var all []float64
	for _, r := range ratios {
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%.0f\t%.2f\t\n", r.name, r.bytes, r.constant, r.ours, r.ratio)
		out[r.name] = round(r.ratio)
		all = append(all, r.ratio)
	}
	_ = t.Flush()
	slices.Sort(all)
	out["median"] = round(all[len(all)/2])
	if err := measureOpen(o.dir, id, out); err != nil {
		return err
	}
	if err := walk(s, o.rows, out); err != nil {
		return err
	}
	return measureReader(file, out)
}

func round(f float64) float64 { return float64(int(f*1000+0.5)) / 1000 }

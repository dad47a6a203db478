// Command records measures how fast a dataset is served, as a part of the speed
// at which the same bytes would be served as a constant, and how fast a file
// becomes a dataset. Tables go to stderr, one JSON object to stdout.
//
// The server is a process of its own on one core. Rates are requests per second
// of its CPU time, so that other work on the machine bends them little, and the
// two are measured in turn.
package main

import (
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
	ingestFile := flag.String("ingest", "", "internal: ingest this file")
	flag.Parse()
	var err error
	switch {
	case *serveID != "":
		err = serve(*work, *serveID)
	case *ingestFile != "":
		err = ingest(*ingestFile, *work)
	default:
		err = run(*rows, *rounds, *each, *work)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(rows, rounds int, each time.Duration, dir string) error {
	if dir == "" {
		tmp, err := os.MkdirTemp("", "clawr-bench-records")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		dir = tmp
	}
	file := filepath.Join(dir, fmt.Sprintf("records-%d.csv", rows))
	if _, err := os.Stat(file); err != nil {
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		if err := generate(f, rows); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	out := map[string]any{}
	id, err := measureIngest(file, dir, out)
	if err != nil {
		return err
	}
	s, err := startServer(dir, id)
	if err != nil {
		return err
	}
	defer s.stop()
	ratios, err := measureServe(s, rows, rounds, each)
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
	if err := measureOpen(dir, id, out); err != nil {
		return err
	}
	if err := measureReader(file, out); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func round(f float64) float64 { return float64(int(f*1000+0.5)) / 1000 }

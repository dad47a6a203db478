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
	peers := flag.String("peers", "bench/records/testdata/peers", "module of the other stores; empty leaves them out")
	plot := flag.String("plot", "", "file that gets the rates as SVG")
	ingestFile := flag.String("ingest", "", "internal: ingest this file")
	flag.Parse()
	var err error
	switch {
	case *serveID != "":
		err = serve(*work, *serveID)
	case *ingestFile != "":
		err = ingest(*ingestFile, *work)
	default:
		err = run(options{*rows, *rounds, *tenants, *each, *work, *binary, *only, *peers, *plot})
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
	peers, plot           string
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
	s, err := startServer("clawr", o.dir, id)
	if err != nil {
		return err
	}
	servers := []*server{s}
	defer func() {
		for _, s := range servers {
			s.stop()
		}
	}()
	if err := s.shapes(o.rows); err != nil {
		return err
	}
	if err := measureOpen(o.dir, id, out); err != nil {
		return err
	}
	if err := measureReader(file, out); err != nil {
		return err
	}
	rows := filepath.Join(o.dir, "rows.ndjson")
	if err := walk(s, o.rows, rows, out); err != nil {
		return err
	}
	if o.peers != "" {
		peers, err := startPeers(o.peers, rows, o.dir)
		servers = append(servers, peers...)
		if err != nil {
			return err
		}
		if err := sameRows(s, peers[0]); err != nil {
			return err
		}
		out["sqlite_ingest_ratio"] = round(peers[0].seconds / out["ingest_s"].(float64))
	}
	all, err := compare(append([]*server{s.constant()}, servers...), o.rounds, o.each)
	if err != nil {
		return err
	}
	if err := report(all, o.plot, out); err != nil || o.peers == "" {
		return err
	}
	workers, err := startWorkers(filepath.Join(o.peers, "node.mjs"), rows, o.dir, min(o.rows, 10_000))
	servers = append(servers, workers...)
	if err != nil {
		return err
	}
	few, err := compare(workers, o.rounds, o.each)
	if err != nil {
		return err
	}
	reportWorkers(few, out)
	return nil
}

func round(f float64) float64 { return float64(int(f*1000+0.5)) / 1000 }

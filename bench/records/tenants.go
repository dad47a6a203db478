package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dataset"
	"github.com/402claw/clawr/store"
)

// measureTenants starts a clawr serve that has n datasets of 100 rows, and one
// that has none. What an idle dataset takes is the difference of their
// anonymous memory; what a thousand that were asked take is all that is resident.
func measureTenants(ctx context.Context, clawrBinary, dir string, n int, out map[string]any) error {
	full, empty := filepath.Join(dir, "tenants"), filepath.Join(dir, "nobody")
	for d, count := range map[string]int{full: n, empty: 1} {
		if err := populate(ctx, d, count); err != nil {
			return err
		}
	}
	chain, err := launch(clawrBinary, "chain", "serve", "--listen", "127.0.0.1:0", "--data", filepath.Join(dir, "chain"))
	if err != nil {
		return err
	}
	defer chain.stop()
	serveDir := func(d string) (*program, error) {
		return launch(clawrBinary, "serve", "--listen", "127.0.0.1:0", "--data", d, "--network", "eip155:31337", "--asset", "0xc1a30000000000000000000000000000000005dc",
			"--rpc-url", "http://"+chain.addr, "--facilitator-url", "http://127.0.0.1:1")
	}
	none, err := serveDir(empty)
	if err != nil {
		return err
	}
	idle := none.memory("RssAnon")
	none.stop()
	all, err := serveDir(full)
	if err != nil {
		return err
	}
	defer all.stop()
	out["start_10k_s"] = round(all.took.Seconds())
	out["idle_kb"] = round(float64(all.memory("RssAnon")-idle) / 1024 / float64(n))
	for i := range min(n, 1000) {
		if err := ask(fmt.Sprintf("http://%s/t/set-%d/v1/records?limit=100&sort=-value", all.addr, i*(n/min(n, 1000)))); err != nil {
			return err
		}
	}
	out["rss_1000_mb"] = round(float64(all.memory("VmRSS")) / (1 << 20))
	fmt.Fprintf(os.Stderr, "%d datasets: start %.2f s, %.1f KB each while idle; after %d were asked %.0f MB resident, %.0f of them anonymous\n", n, all.took.Seconds(), out["idle_kb"],
		min(n, 1000), out["rss_1000_mb"], float64(all.memory("RssAnon"))/(1<<20))
	return nil
}

// populate fills a data directory with free APIs, each of data of its own.
func populate(ctx context.Context, dir string, n int) error {
	segments := filepath.Join(dir, "segments")
	if err := os.MkdirAll(segments, 0o700); err != nil {
		return err
	}
	db, err := store.Open(ctx, store.Options{Path: filepath.Join(dir, "clawr.db")})
	if err != nil {
		return err
	}
	defer db.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(32) // they share the book's commits
	for i := range n {
		g.Go(func() error {
			var text strings.Builder
			text.WriteString("id,name,value,day\n")
			for row := range 100 {
				fmt.Fprintf(&text, "%d,row %d of set %d,%d.%02d,2024-01-%02d\n", row+1, row, i, row*i%977, row, 1+row%28)
			}
			rep, err := dataset.Ingest(ctx, strings.NewReader(text.String()), "set.csv", dataset.Options{}, segments)
			if err != nil {
				return err
			}
			_, err = db.Deploy(ctx, clawr.Tenant{Slug: fmt.Sprintf("set-%d", i), Manifest: clawr.Manifest{Kind: clawr.KindDataset, Owner: "bench", Directory: "APIs", Plan: clawr.PlanFree,
				Content: rep.ID, Rows: rep.Schema.Rows}}, "bench")
			return err
		})
	}
	return g.Wait()
}

func ask(url string) error {
	r, err := http.Get(url)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err == nil && (r.StatusCode != http.StatusOK || len(b) < 1000) {
		err = fmt.Errorf("%s: %s %.200s", url, r.Status, b)
	}
	return err
}

// program is a clawr that serves.
type program struct {
	cmd  *exec.Cmd
	addr string
	took time.Duration // until it listened
}

func launch(path string, args ...string) (*program, error) {
	cmd := exec.Command(path, args...)
	cmd.SysProcAttr = dieWithParent()
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	said := ""
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if addr, ok := strings.CutPrefix(lines.Text(), "listening on "); ok {
			p := &program{cmd: cmd, addr: addr, took: time.Since(start)}
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			return p, nil
		}
		said += lines.Text() + "\n"
	}
	return nil, fmt.Errorf("%s ended early: %s", strings.Join(args, " "), said)
}

func (p *program) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
}

// memory is a line of the process's status, in bytes.
func (p *program) memory(line string) int64 { return memory(fmt.Sprint(p.cmd.Process.Pid), line) }

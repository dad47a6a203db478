package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/e2e/anvil"
	"github.com/402claw/clawr/store/storetest"
)

// nodesReport is the last line of `bench two-node`.
type nodesReport struct {
	Ratio      float64 `json:"two_node_ratio"`
	OnePerS    float64 `json:"one_node_per_s"`
	TwoPerS    float64 `json:"two_nodes_per_s"`
	OneCPU     float64 `json:"one_node_cpu_ms"` // a call
	TwoCPU     float64 `json:"two_nodes_cpu_ms"`
	InFlight   int     `json:"in_flight_per_node"`
	BlockTimeS int     `json:"block_time_s"`
}

// twoNodes compares one node with two on one Postgres, whose blocks take two
// seconds and whose nodes take so many paid calls at a time and no more: with
// settlement before the answer that cap, and not the processor, is what ends a
// node. Both settle with one key, so that one of them makes the transactions of
// both. Every call must have moved its money.
func twoNodes(ctx context.Context, args []string) (out nodesReport, err error) {
	f := flag.NewFlagSet("two-node", flag.ContinueOnError)
	inFlight := f.Int("in-flight", 256, "paid calls at a time, of each node")
	rounds := f.Int("rounds", 5, "calls of each caller")
	if err := f.Parse(args); err != nil {
		return out, err
	}
	out.InFlight, out.BlockTimeS = *inFlight, 2
	w, err := newWorldOn(ctx, 8, anvil.Options{BlockTime: 2 * time.Second, Args: roomy})
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	rows := []string{"\tcallers\tcalls\tseconds\tcalls/s\tp50 ms\tp99 ms\tCPU ms a call"}
	run := func(count int) (perSecond, cpuMs float64, err error) {
		url, stop, err := storetest.Start()
		if err != nil {
			return 0, 0, err
		}
		defer stop()
		nodes, seller, err := w.nodes(ctx, url, count, *inFlight)
		if err != nil {
			return 0, 0, err
		}
		defer func() {
			for _, p := range nodes {
				p.stop()
			}
		}()
		if _, _, err := w.share(ctx, seller, nodes, 32, 64); err != nil { // warms up
			return 0, 0, err
		}
		r, cpu, err := w.share(ctx, seller, nodes, *inFlight, *inFlight**rounds)
		if err != nil {
			return 0, 0, err
		}
		rows = append(rows, fmt.Sprintf("%d of clawr\t%d × %d\t%d\t%.1f\t%.1f\t%.0f\t%.0f\t%.2f", count, count, *inFlight, r.Good, r.Took.Seconds(), r.perSecond(), ms(r.P50), ms(r.P99), ms(cpu)/float64(r.Good)))
		return r.perSecond(), ms(cpu) / float64(r.Good), nil
	}
	if out.OnePerS, out.OneCPU, err = run(1); err != nil {
		return out, fmt.Errorf("one node: %w", err)
	}
	if out.TwoPerS, out.TwoCPU, err = run(2); err != nil {
		return out, fmt.Errorf("two nodes: %w", err)
	}
	out.Ratio = round(out.TwoPerS / out.OnePerS)
	out.OnePerS, out.TwoPerS, out.OneCPU, out.TwoCPU = round(out.OnePerS), round(out.TwoPerS), round(out.OneCPU), round(out.TwoCPU)
	table("a paid call, settled before the answer, one Postgres, one anvil with 2 s blocks", rows...)
	fmt.Fprintf(os.Stderr, "two nodes by one: %.2f (wanted: 1.5)\n", out.Ratio)
	return out, nil
}

// nodes starts several clawr on one database, with one key and one tenant.
func (w *world) nodes(ctx context.Context, database string, count, inFlight int) (list []*process, seller common.Address, err error) {
	if seller, err = newSeller(); err != nil {
		return nil, seller, err
	}
	key, err := w.signer(ctx)
	if err != nil {
		return nil, seller, err
	}
	blobs, err := os.MkdirTemp(w.data, "blobs")
	if err != nil {
		return nil, seller, err
	}
	for i := range count {
		dir, err := os.MkdirTemp(w.data, "node")
		if err != nil {
			return nil, seller, err
		}
		p, err := w.run(ctx, command(w.root, w.data, []string{"CLAWR_FACILITATOR_KEY=" + key}, "serve", "--listen", "127.0.0.1:0", "--data", dir, "--network", w.network(),
			"--asset", w.asset.Hex(), "--rpc-url", w.node.URL, "--pay-to", seller.Hex(), "--database-url", database, "--blob-url", "file://"+blobs,
			"--max-in-flight", fmt.Sprint((4*inFlight+2)/3))) // of which one tenant may have three quarters
		if err != nil {
			return nil, seller, err
		}
		list = append(list, p)
		if i > 0 {
			continue
		}
		deploy := command(w.root, w.data, nil, "deploy", filepath.Join(w.root, airports), "--tenant", "airports", "--price", "0.001", "--x402",
			"--pay-to", seller.Hex(), "--network", w.network(), "--data", dir)
		if out, err := deploy.CombinedOutput(); err != nil {
			return nil, seller, fmt.Errorf("deploy: %w: %s", err, out)
		}
	}
	return list, seller, nil
}

// share makes n presigned calls at each node at once, with so many callers each.
func (w *world) share(ctx context.Context, seller common.Address, nodes []*process, callers, n int) (sum result, cpu time.Duration, err error) {
	earned, err := w.balance(ctx, seller)
	if err != nil {
		return sum, 0, err
	}
	jobs := make([]job, len(nodes))
	for i, p := range nodes {
		requests, err := w.presigned(ctx, p.addr, records, n)
		if err != nil {
			return sum, 0, err
		}
		jobs[i] = job{Addr: p.addr, Callers: callers, Requests: requests, Status: 200, Contains: `"data"`}
	}
	side := &side{procs: nodes}
	before := side.cpu()
	results, errs := make([]result, len(nodes)), make([]error, len(nodes))
	var wait sync.WaitGroup
	for i, j := range jobs {
		wait.Go(func() { results[i], errs[i] = fire(ctx, j) })
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return sum, 0, err
	}
	for _, r := range results {
		sum.Good += r.Good
		sum.Took, sum.P50, sum.P99 = max(sum.Took, r.Took), max(sum.P50, r.P50), max(sum.P99, r.P99) // the worse one's
	}
	now, err := w.balance(ctx, seller)
	if err == nil && (now-earned)/price != int64(sum.Good) {
		err = fmt.Errorf("%d calls were answered, and %d are paid", sum.Good, (now-earned)/price)
	}
	return sum, side.cpu() - before, err
}

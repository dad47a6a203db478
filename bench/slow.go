package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/e2e/anvil"
)

// paid2s compares paid calls that are settled before the answer on a chain that
// makes a block every two seconds, as Base does: clawr, and the official stack
// at the number of callers at which it is fastest. Each payment must have
// moved its money; calls of the official stack that failed are left out.
func paid2s(ctx context.Context, args []string, out *bursts) (err error) {
	f := flag.NewFlagSet("paid-2s", flag.ContinueOnError)
	callers := f.Int("callers", 2048, "of clawr, at a time")
	rounds := f.Int("rounds", 5, "calls of each caller")
	crowds := f.String("crowds", "32,128,512", "callers of the official stack, the best of which counts; empty: without it")
	profile := f.String("profile", "", "`file` for clawr's CPU profile")
	if err := f.Parse(args); err != nil {
		return err
	}
	w, err := newWorldOn(ctx, 64, anvil.Options{BlockTime: 2 * time.Second, Args: roomy})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	sellers := make([]common.Address, 2)
	for i := range sellers {
		if sellers[i], err = newSeller(); err != nil {
			return err
		}
	}
	facilitator, err := w.tsFacilitator(ctx)
	if err != nil {
		return err
	}
	theirs, err := w.tsServer(ctx, facilitator, sellers[1])
	if err != nil {
		return err
	}
	rows := []string{"\tcallers\tcalls\tfailed\tseconds\tcalls/s\tp50 ms\tp99 ms\tCPU ms a call"}
	row := func(name string, callers int, r result, cpu time.Duration) {
		rows = append(rows, fmt.Sprintf("%s\t%d\t%d\t%d\t%.1f\t%.1f\t%.0f\t%.0f\t%.2f", name, callers, r.Good, r.Bad, r.Took.Seconds(), r.perSecond(), ms(r.P50), ms(r.P99), ms(cpu)/float64(max(r.Good, 1))))
	}
	best := 0.0
	for _, c := range strings.FieldsFunc(*crowds, func(r rune) bool { return r == ',' }) {
		n, err := strconv.Atoi(c)
		if err != nil {
			return err
		}
		r, cpu, err := w.slow(ctx, sellers[1], "/data", n, max(2*n, 64), true, theirs, facilitator)
		if err != nil {
			return fmt.Errorf("TypeScript: %w", err)
		}
		row("TypeScript", n, r, cpu)
		best = max(best, r.perSecond())
	}
	for _, p := range []*process{theirs, facilitator} { // it is clawr's turn
		p.stop()
		w.running = slices.DeleteFunc(w.running, func(q *process) bool { return q == p })
	}
	var flags []string
	if *profile != "" {
		flags = []string{"--cpu-profile", *profile}
	}
	ours, err := w.serve(ctx, sellers[0], nil, flags...)
	if err != nil {
		return err
	}
	if _, _, err := w.slow(ctx, sellers[0], records, 64, 128, false, ours); err != nil { // warms up
		return err
	}
	r, cpu, err := w.slow(ctx, sellers[0], records, *callers, *callers**rounds, false, ours)
	if err != nil {
		return fmt.Errorf("clawr: %w", err)
	}
	row("clawr", *callers, r, cpu)
	table("a paid call, settled before the answer, one anvil with 2 s blocks", rows...)
	out.SettledPerSecond = round(r.perSecond())
	if best > 0 {
		out.SettledRatio = round(r.perSecond() / best)
	}
	fmt.Fprintf(os.Stderr, "clawr by the official stack's best: %.1f\n", out.SettledRatio)
	return nil
}

// slow makes n presigned calls. Where some may fail, those that did not must
// still have been paid, and nothing besides them that could be.
func (w *world) slow(ctx context.Context, seller common.Address, path string, callers, n int, lenient bool, procs ...*process) (result, time.Duration, error) {
	earned, err := w.balance(ctx, seller)
	if err != nil {
		return result{}, 0, err
	}
	requests, err := w.presigned(ctx, procs[0].addr, path, n)
	if err != nil {
		return result{}, 0, err
	}
	side := &side{procs: procs}
	before := side.cpu()
	r, err := fire(ctx, job{Addr: procs[0].addr, Callers: callers, Requests: requests, Status: 200, Contains: `"data"`, Lenient: lenient})
	if err != nil {
		return r, 0, err
	}
	now, err := w.balance(ctx, seller)
	if err != nil {
		return r, 0, err
	}
	if paid := (now - earned) / price; paid < int64(r.Good) || !lenient && paid != int64(r.Good) {
		return r, 0, fmt.Errorf("%d calls were answered, and %d are paid", r.Good, paid)
	}
	return r, side.cpu() - before, nil
}

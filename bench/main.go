// Command bench measures what clawr adds to a call, beside the official
// TypeScript stack on the same machine and the same chain.
//
//	go run ./bench overhead                  everything, in under three minutes
//	go run ./bench overhead verify paid      some of it
//	go run ./bench money                     the next five, and their figures in one line
//	go run ./bench paid-async                a burst that is answered first and settled later; -seconds 60
//	go run ./bench paid-2s                   settled before the answer, with a block every 2 s; -callers 2048
//	go run ./bench vouchers                  calls paid by voucher, on 64 channels; ours: of clawr alone
//	go run ./bench settle                    payments that one signer settles
//	go run ./bench verify                    POST /verify alone, beside the official facilitator
//	go run ./bench two-node                  two nodes on one Postgres beside one; -in-flight 256
//
// Tables and profiles go to stderr, one JSON object is the last line of stdout.
// It wants bin/clawr and e2e/node_modules: make bench-overhead sees to both.
// Another clawr is measured with CLAWR_BIN, the official facilitator looks for
// its receipts every POLL_MS, and the profiles are kept in BENCH_PROFILES.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	// SIGPIPE too: whoever reads only the beginning leaves servers to be ended.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGPIPE)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		stop()
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("what? overhead [free] [challenge] [verify] [paid], verify, or settle")
	}
	switch args[0] {
	case "load": // the other process of a measurement
		return load(os.Stdin, os.Stdout)
	case "constant":
		return constant(os.Stdin, os.Stderr)
	case "money":
		seconds := "60"
		if len(args) > 1 {
			seconds = args[1]
		}
		return money(ctx, seconds)
	case "settle":
		return settle(ctx)
	case "vouchers":
		return vouchers(ctx, args[1:])
	case "verify":
		return verifyAlone(ctx)
	case "two-node":
		r, err := twoNodes(ctx, args[1:])
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	case "overhead":
		return overhead(ctx, args[1:])
	case "paid-async", "paid-2s":
		var b bursts
		run := paidAsync
		if args[0] == "paid-2s" {
			run = paid2s
		}
		if err := run(ctx, args[1:], &b); err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(b)
	}
	return fmt.Errorf("there is no benchmark %q, but overhead, money, paid-async, paid-2s, settle, two-node, verify and vouchers", args[0])
}

// report is the last line of stdout. Ratios are clawr's rate by its peer's;
// of several numbers of callers, the worse one counts.
type report struct {
	FreeOverheadUs float64 `json:"free_overhead_us"`
	FreeAllocs     float64 `json:"free_allocs"`
	ChallengeRatio float64 `json:"challenge_ratio"`
	VerifyPerS     float64 `json:"verify_per_s"` // with as many callers as are best for it
	VerifyRatio    float64 `json:"verify_ratio"`
	PaidRatio      float64 `json:"paid_ratio"`
}

// overhead runs the named parts, or all.
func overhead(ctx context.Context, only []string) error {
	parts := []struct {
		name string
		run  func(context.Context, *report) error
	}{{"free", free}, {"challenge", challenge}, {"verify", verify}, {"paid", paid}}
	known := map[string]bool{}
	for _, p := range parts {
		known[p.name] = true
	}
	want := map[string]bool{}
	for _, name := range only {
		if !known[name] {
			return fmt.Errorf("there is no part %q", name)
		}
		want[name] = true
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	var r report
	start := time.Now()
	for _, p := range parts {
		if len(want) > 0 && !want[p.name] {
			continue
		}
		if err := p.run(ctx, &r); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	r.limits(func(part string) bool { return len(want) == 0 || want[part] })
	fmt.Fprintf(os.Stderr, "\nall of it took %.0f s\n", time.Since(start).Seconds())
	return json.NewEncoder(os.Stdout).Encode(r)
}

// limits shows what was to be reached beside what was, of the parts that ran.
func (r *report) limits(ran func(part string) bool) {
	rows := []string{"\tmeasured\tlimit\t"}
	for _, l := range []struct {
		part, what string
		got, limit float64
		most       bool // the limit is the most that it may be
	}{
		{"free", "free call, µs more than the bare handler", r.FreeOverheadUs, 5, true},
		{"free", "free call, allocations more", r.FreeAllocs, 5, true},
		{"challenge", "402 by a constant answer", r.ChallengeRatio, 0.6, false},
		{"verify", "/verify by TypeScript", r.VerifyRatio, 5, false},
		{"paid", "paid call by TypeScript", r.PaidRatio, 3, false},
	} {
		if !ran(l.part) {
			continue
		}
		side, verdict := "≥", "reached"
		if l.most {
			side = "≤"
		}
		if l.most && l.got > l.limit || !l.most && l.got < l.limit {
			verdict = "missed"
		}
		rows = append(rows, fmt.Sprintf("%s\t%.2f\t%s %g\t%s", l.what, l.got, side, l.limit, verdict))
	}
	table("limits", rows...)
}

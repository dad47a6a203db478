package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// crowds are the numbers of callers that the stacks are compared at.
var crowds = []int{1, 16}

const (
	rounds = 7
	payers = 16
)

// verify compares POST /verify of the two facilitators, over one chain.
func verify(ctx context.Context, out *report) (err error) {
	w, err := newWorld(ctx, payers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	seller, err := newSeller()
	if err != nil {
		return err
	}
	ours, err := w.facilitator(ctx, seller)
	if err != nil {
		return err
	}
	theirs, err := w.tsFacilitator(ctx)
	if err != nil {
		return err
	}
	rows := []string{versus("TypeScript")}
	for i, callers := range crowds {
		c, err := compare(ctx, rounds, 600*time.Millisecond, w.verifier("clawr", ours, seller, callers), w.verifier("TypeScript", theirs, seller, callers))
		if err != nil {
			return err
		}
		rows = append(rows, c.row(callers))
		out.VerifyPerS = max(out.VerifyPerS, round(of(c.ours, rate)))
		if i == 0 || c.ratio() < out.VerifyRatio {
			out.VerifyRatio = round(c.ratio())
		}
	}
	table("POST /verify, distinct payments, one anvil", rows...)
	return w.profile(ctx, "POST /verify", func(flags ...string) (*process, error) { return w.facilitator(ctx, seller, flags...) },
		func(p *process) *side { return w.verifier("clawr", p, seller, 16) })
}

// verifyAlone prints what verify measures of POST /verify, and nothing else.
func verifyAlone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var r report
	if err := verify(ctx, &r); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(struct {
		PerSecond float64 `json:"verify_per_s"`
		Ratio     float64 `json:"verify_ratio"`
	}{r.VerifyPerS, r.VerifyRatio})
}

// verifier is a facilitator that is asked to verify payments, each another.
func (w *world) verifier(name string, p *process, payTo common.Address, callers int) *side {
	return &side{name: name, procs: []*process{p}, jobs: func(_ context.Context, n int) (job, error) {
		requests, err := w.verifications(p.addr, payTo, n)
		return job{Addr: p.addr, Callers: callers, Requests: requests, Status: 200, Contains: `"isValid":true`}, err
	}}
}

func round(v float64) float64 {
	var r float64
	fmt.Sscanf(fmt.Sprintf("%.2f", v), "%g", &r)
	return r
}

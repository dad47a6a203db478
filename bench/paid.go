package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// paid compares whole paid calls: clawr serve on SQLite, settling by itself,
// with express and the official facilitator. Both settle before they answer,
// and every call must have moved its money.
func paid(ctx context.Context, out *report) (err error) {
	w, err := newWorld(ctx, payers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	sellers := make([]common.Address, 3)
	for i := range sellers {
		if sellers[i], err = newSeller(); err != nil {
			return err
		}
	}
	ours, err := w.serve(ctx, sellers[0], nil)
	if err != nil {
		return err
	}
	facilitator, err := w.tsFacilitator(ctx)
	if err != nil {
		return err
	}
	theirs, err := w.tsServer(ctx, facilitator, sellers[1])
	if err != nil {
		return err
	}
	rows := []string{versus("TypeScript")}
	for i, callers := range crowds {
		c, err := compare(ctx, rounds, time.Second, w.seller("clawr", records, sellers[0], callers, ours),
			w.seller("TypeScript", "/data", sellers[1], callers, theirs, facilitator))
		if err != nil {
			return err
		}
		rows = append(rows, c.row(callers))
		if i == 0 || c.ratio() < out.PaidRatio {
			out.PaidRatio = round(c.ratio())
		}
	}
	table("a paid call, settled before the answer, one anvil that mines at once", rows...)
	return w.profile(ctx, "paid call", func(flags ...string) (*process, error) { return w.serve(ctx, sellers[2], nil, flags...) },
		func(p *process) *side { return w.seller("clawr", records, sellers[2], 16, p) })
}

// seller is a server that paid calls are made at. The first process is the one
// that callers reach.
func (w *world) seller(name, path string, payTo common.Address, callers int, procs ...*process) *side {
	var earned int64
	return &side{name: name, procs: procs,
		jobs: func(ctx context.Context, n int) (job, error) {
			err := w.forget(ctx)
			if err != nil {
				return job{}, err
			}
			if earned, err = w.balance(ctx, payTo); err != nil {
				return job{}, err
			}
			requests, err := w.purchases(ctx, procs[0].addr, path, n)
			return job{Addr: procs[0].addr, Callers: callers, Requests: requests, Status: 200, Contains: `"data"`}, err
		},
		check: func(ctx context.Context, good int) error {
			now, err := w.balance(ctx, payTo)
			if err != nil {
				return err
			}
			if want := earned + int64(good)*price; now != want {
				return fmt.Errorf("%s: %d calls were paid, and the seller has %d instead of %d", name, good, now, want)
			}
			return nil
		}}
}

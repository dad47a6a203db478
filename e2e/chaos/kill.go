package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// result is what one kill showed.
type result struct {
	Index      int
	Seed       uint64
	Engine     string
	Policy     string
	Boundary   string
	Kills      int  // of the server: two, if it died of the second failpoint as well
	Missed     bool // the failpoint was not reached: killed from outside instead
	Violations []string
	Double     int
	Fresh402   int
	Unserved   int
	// Overclaimed are channels of which more was claimed than charged or signed.
	Overclaimed int     `json:",omitempty"`
	Reconciled  float64 // seconds after the last restart until nothing was open
}

// How long after a restart everything has to be in order, and how long it is
// waited for when it is not.
const (
	mustReconcile = 30 * time.Second
	giveUp        = 90 * time.Second
)

// run makes one kill in the middle of a stream of paid calls, starts the server
// again, sends every payment again, waits until nothing is open, and checks
// everything that w's book and its chain can say.
func (w *world) run(ctx context.Context, k kill) (result, error) {
	res := result{Index: k.Index, Seed: k.Seed, Engine: k.Engine, Policy: k.Policy, Boundary: k.Boundary, Kills: 1}
	r := rand.New(rand.NewPCG(k.Seed, 1))
	first := len(w.bought)
	if err := w.arm(k.Point, k.Nth); err != nil {
		return res, err
	}
	calm := w.weather(ctx, k)
	err := w.stream(ctx, k, r, &res)
	if err := errors.Join(err, calm()); err != nil {
		return res, err
	}
	w.down()
	again, err := w.restart(k, &res)
	if err != nil {
		return res, err
	}
	if err := w.resend(ctx, w.bought[first:], again, &res); err != nil {
		return res, err
	}
	if again && res.Kills == 1 { // it did not come by yet
		if err := w.arm("", 0); err != nil {
			return res, err
		}
	}
	open, err := w.reconcile(ctx, again, &res)
	if err != nil {
		return res, err
	}
	took := time.Since(w.since)
	res.Reconciled = took.Seconds()
	if open != "" {
		res.Violations = append(res.Violations, "not reconciled: "+open+"; "+w.sky(ctx))
	} else if took > mustReconcile {
		res.Violations = append(res.Violations, fmt.Sprintf("reconciled after %.1f s", res.Reconciled))
	}
	w.replay(ctx, w.bought[first:], r)
	w.kills += res.Kills
	return res, w.audit(ctx, &res)
}

// stream sells, and waits for the server's end.
func (w *world) stream(ctx context.Context, k kill, r *rand.Rand, res *result) error {
	if k.Point == "" {
		wait := time.Duration(r.Int64N(int64(400 * time.Millisecond)))
		timer := time.AfterFunc(wait, func() { _ = w.srv.cmd.Process.Kill() })
		defer timer.Stop()
	}
	if err := w.sell(ctx, k, r); err != nil || k.Point == "" {
		return err
	}
	// What goes on after the answers, such as finality, is waited for a little.
	select {
	case <-w.srv.ended:
	case <-time.After(w.patience(k)):
		res.Missed = true
	}
	return ctx.Err()
}

// sell has callers buy until the server is dead, or has served them all.
func (w *world) sell(ctx context.Context, k kill, r *rand.Rand) error {
	var mu sync.Mutex
	var left atomic.Int64
	left.Store(int64(k.Calls))
	var wg sync.WaitGroup
	for range k.Concurrent {
		wg.Go(func() {
			for left.Add(-1) >= 0 && !w.srv.dead() && ctx.Err() == nil {
				mu.Lock()
				p := w.purchase(k.Policy, r)
				mu.Unlock()
				if err := p.ask(ctx, w.client); err != nil {
					continue // nothing is signed
				}
				w.selling.Lock()
				p.signed = append(p.signed, p.last())
				w.bought = append(w.bought, p)
				w.selling.Unlock()
				_, _ = p.send(ctx, w.client) // a lost answer is what this is about
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// purchase is one that a buyer is about to make.
func (w *world) purchase(policy string, r *rand.Rand) *purchase {
	return &purchase{policy: policy, url: w.url(policy, 1+r.IntN(5)), key: w.buyers[r.IntN(len(w.buyers))], ahead: &w.ahead}
}

// patience is how long a failpoint may be reached after the last answer: what
// is settled later, and what becomes final, takes its time.
func (w *world) patience(k kill) time.Duration {
	if k.Policy == "async" || k.Boundary == final || k.Boundary == feeBump {
		return 5 * time.Second
	}
	return time.Second
}

// restart starts the server again. It may be told to die once more while it
// puts things in order; dying before it listens is allowed then.
func (w *world) restart(k kill, res *result) (again bool, err error) {
	if k.Again == "" {
		return false, w.up("")
	}
	err = w.up(k.Again)
	if errors.Is(err, errEndedEarly) {
		res.Kills++
		return false, w.up("")
	}
	return true, err
}

// resend presents every payment again whose answer is not known, until all
// are. A server that dies meanwhile is started again.
func (w *world) resend(ctx context.Context, list []*purchase, again bool, res *result) error {
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	var mu sync.Mutex
	revive := func() error {
		mu.Lock()
		defer mu.Unlock()
		if !w.srv.dead() {
			return nil
		}
		if !again {
			return fmt.Errorf("the server died by itself:\n%s", w.srv.log())
		}
		again = false
		res.Kills++
		w.down()
		return w.up("")
	}
	room := make(chan struct{}, 16)
	errs := make(chan error, len(list))
	var wg sync.WaitGroup
	for _, p := range list {
		if p.served {
			continue
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			for pause := 10 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, 500*time.Millisecond) {
				done, err := p.send(ctx, w.client)
				if done {
					return
				}
				if err != nil {
					if err := revive(); err != nil {
						errs <- err
						return
					}
				}
				time.Sleep(pause)
			}
		})
	}
	wg.Wait()
	close(errs)
	return errors.Join(<-errs)
}

// reconcile waits until the book has nothing open, and tells what is left. The
// failpoint of a restart may be reached as late as this, once.
func (w *world) reconcile(ctx context.Context, again bool, res *result) (open string, err error) {
	for {
		if w.srv.dead() {
			if !again || res.Kills > 1 {
				return "", fmt.Errorf("the server died by itself:\n%s", w.srv.log())
			}
			res.Kills++
			w.down()
			if err := w.up(""); err != nil {
				return "", err
			}
		}
		if open, err = w.open(ctx, "held", "signed"); err != nil || open == "" || time.Since(w.since) > giveUp {
			return open, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// replay sends some payments once more, which must be answered as before, and
// one of them to another request, which must not.
func (w *world) replay(ctx context.Context, list []*purchase, r *rand.Rand) {
	for i, n := range r.Perm(len(list)) {
		p := list[n]
		if i == 4 || !p.served {
			break
		}
		if done, err := p.send(ctx, w.client); err != nil || !done || p.last().status != http.StatusOK {
			p.fault("I13", "the replay of a served payment: %v, %d", err, p.last().status)
		}
		if i > 0 {
			continue
		}
		other := w.url(p.policy, 17)
		if status, _, _, err := get(ctx, w.client, other, p.last().header); err != nil || status != http.StatusConflict {
			p.fault("I2", "a payment for one request, sent to another: %v, %d", err, status)
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/x402"
)

// vouchers is the API that is sold for vouchers, and the column of its kills.
const vouchers = "vouchers"

// canal is a world in which calls are paid by voucher, on many lanes.
type canal struct {
	*world
	domain   x402.Domain
	spending sync.Mutex // payers' own transactions, one at a time
	had      map[common.Address]int64

	mu    sync.Mutex
	lanes []*lane
	calls []*call
}

func newCanal(ctx context.Context, bin, engine, admin string, opt worldOptions) (*canal, error) {
	opt.deploy = func(ctx context.Context, w *world) error { return w.deploy(ctx, vouchers) }
	w, err := newWorld(ctx, bin, engine, admin, opt)
	if err != nil {
		return nil, err
	}
	id, _ := x402.ChainID(w.node.Asset.Network)
	c := &canal{world: w, domain: x402.ChannelDomain(id), had: map[common.Address]int64{}}
	for _, key := range w.buyers {
		who := crypto.PubkeyToAddress(key.PublicKey)
		have, err := w.node.Client.TokenBalance(ctx, w.asset, who)
		if err == nil {
			err = w.node.SetBalance(ctx, who, new(big.Int).Exp(big.NewInt(10), big.NewInt(20), nil))
		}
		if err != nil {
			return nil, errors.Join(err, w.close())
		}
		c.had[who] = have.Int64()
	}
	return c, nil
}

// How many lanes there are at a time; those that are closed or in debt are
// replaced.
const lanesAtOnce = 6

// lane picks one that a call can be paid from, or opens another.
func (w *canal) lane(r *rand.Rand, terms *x402.Requirements) (*lane, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var good []*lane
	for _, l := range w.lanes {
		if !l.dry() {
			good = append(good, l)
		}
	}
	if len(good) >= lanesAtOnce || len(good) > 0 && !one(r, 4) {
		return good[len(good)-1-r.IntN(min(len(good), lanesAtOnce))], nil
	}
	l, err := w.open(r, terms)
	if err == nil {
		w.lanes = append(w.lanes, l)
	}
	return l, err
}

// pass lets time go by: for the chain at once, for the server from its next
// start on.
func (w *canal) pass(ctx context.Context, d time.Duration) error {
	w.clock += d
	return w.leap(ctx, int64(d/time.Second), 2)
}

// run makes one kill in the middle of a stream of calls that are paid by
// voucher, starts the server again, has everything that was signed presented
// again, lets a debt grow old enough to be claimed, kills again where claims
// are what this kill is about, and checks all that book and chain can say.
func (w *canal) run(ctx context.Context, k kill) (result, error) {
	res := result{Index: k.Index, Seed: k.Seed, Engine: k.Engine, Policy: k.Policy, Boundary: k.Boundary}
	r := rand.New(rand.NewPCG(k.Seed, 1))
	first, late := len(w.calls), k.late()
	if !late {
		if err := w.arm(k.Point, k.Nth); err != nil {
			return res, err
		}
	}
	if err := w.stream(ctx, k, r, &res); err != nil {
		return res, err
	}
	w.down()
	if !late { // nothing was in work
		res.Kills++
	}
	again, err := w.restart(k, &res)
	if err != nil {
		return res, err
	}
	began := time.Now()
	w.goOn(ctx, first, r)
	if err := w.resend(ctx, first, &again, &res); err != nil {
		return res, err
	}
	if again { // it did not come by, or does so just now
		if err := w.arm("", 0); err != nil {
			return res, err
		}
	}
	if err := w.revive(&again, &res); err != nil {
		return res, err
	}
	answered := time.Since(began)
	w.replay(ctx, first, r)
	if err := w.claims(ctx, k, r, &res); err != nil {
		return res, err
	}
	res.Reconciled = max(answered.Seconds(), res.Reconciled)
	w.kills += res.Kills
	if err := w.audit(ctx, &res); err != nil {
		return res, err
	}
	return res, w.finalize(ctx)
}

// stream sells, and waits for the server's end.
func (w *canal) stream(ctx context.Context, k kill, r *rand.Rand, res *result) error {
	if k.Point == "" {
		wait := time.Duration(r.Int64N(int64(600 * time.Millisecond)))
		timer := time.AfterFunc(wait, func() { _ = w.srv.cmd.Process.Kill() })
		defer timer.Stop()
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	left := k.Calls
	next := func() (op string, c *call, apart bool) {
		mu.Lock()
		defer mu.Unlock()
		if left--; left < 0 || w.srv.dead() || ctx.Err() != nil {
			return "", nil, false
		}
		c = &call{}
		refunds := 12
		if k.Boundary == "refund" || k.Boundary == "reserve" {
			refunds = 3
		}
		if !one(r, refunds) {
			c.url = w.url(vouchers, 1+r.IntN(40))
		}
		op = "pay"
		if k.withdraws() && one(r, 6) {
			op = "withdraw"
		}
		return op, c, one(r, 5)
	}
	var failed error
	for range k.Concurrent {
		wg.Go(func() {
			for {
				op, c, apart := next()
				if c == nil {
					return
				}
				if err := w.one(ctx, op, c, apart, r, &mu); err != nil && ctx.Err() == nil && !w.srv.dead() {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if k.Point == "" || k.late() || ctx.Err() != nil {
		return errors.Join(failed, ctx.Err())
	}
	select {
	case <-w.srv.ended:
	case <-time.After(time.Second):
		res.Missed = true
	}
	return errors.Join(failed, ctx.Err())
}

// one makes a call, or has a payer begin to withdraw. Calls that are apart do
// not wait for the others of their lane.
func (w *canal) one(ctx context.Context, op string, c *call, apart bool, r *rand.Rand, mu *sync.Mutex) error {
	terms, err := w.offer(ctx, w.target(c))
	if err != nil {
		return nil // nothing is signed
	}
	mu.Lock()
	l, err := w.lane(r, terms)
	mu.Unlock()
	if err != nil {
		return err
	}
	if op == "withdraw" {
		mu.Lock()
		defer mu.Unlock()
		return w.withdraw(ctx, l, r)
	}
	if c.url == refundURL && l.charged == 0 {
		return nil
	}
	if !apart {
		l.one.Lock()
		defer l.one.Unlock()
	}
	c.lane = l
	if err := w.sign(c, terms); err != nil {
		return err
	}
	w.mu.Lock()
	w.calls = append(w.calls, c)
	w.mu.Unlock()
	for range 4 { // corrections, and turns of others
		done, err := w.send(ctx, c)
		if done || err != nil {
			return nil // a lost answer is what this is about
		}
	}
	return nil
}

// restart starts the server again. It may be told to die once more while it
// puts things in order; dying before it listens is allowed then.
func (w *canal) restart(k kill, res *result) (again bool, err error) {
	point := k.Again
	if point == "" {
		return false, w.up("")
	}
	if err = w.up(point); errors.Is(err, errEndedEarly) {
		res.Kills++
		return false, w.up("")
	}
	return true, err
}

// revive starts a server again that died where it was told to.
func (w *canal) revive(again *bool, res *result) error {
	if !w.srv.dead() {
		return nil
	}
	if !*again {
		return fmt.Errorf("the server died by itself:\n%s", w.srv.log())
	}
	*again = false
	res.Kills++
	w.down()
	return w.up("")
}

// resend presents every payload again whose answer is not known, until all
// are: at once, though the calls of a lane go one after the other.
func (w *canal) resend(ctx context.Context, first int, again *bool, res *result) error {
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	room := make(chan struct{}, 8)
	errs := make(chan error, len(w.calls)-first)
	for _, c := range w.calls[first:] {
		if c.served || c.given || c.url == refundURL && c.last().refused {
			continue
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			for pause := 10 * time.Millisecond; ctx.Err() == nil; pause = min(2*pause, 500*time.Millisecond) {
				done, err := w.send(ctx, c)
				if done {
					return
				}
				if err != nil {
					mu.Lock()
					err = w.revive(again, res)
					mu.Unlock()
				}
				if err != nil {
					errs <- err
					return
				}
				time.Sleep(pause)
			}
			c.fault("I13", "no answer to a payload within %v: %d", giveUp, c.last().status)
		})
	}
	wg.Wait()
	close(errs)
	return errors.Join(<-errs)
}

// replay sends some vouchers once more, which must be answered as before, and
// one of them to another request, which must not.
func (w *canal) replay(ctx context.Context, first int, r *rand.Rand) {
	list := w.calls[first:]
	sent := 0
	for _, n := range r.Perm(len(list)) {
		c := list[n]
		if !c.served || c.url == refundURL {
			continue
		}
		if sent++; sent > 4 {
			return
		}
		if done, err := w.send(ctx, c); err != nil || !done || c.last().status != 200 {
			c.fault("I13", "the replay of a served voucher: %v, %d %s", err, c.last().status, c.last().reason)
		}
		if sent > 1 {
			continue
		}
		if status, _, _, err := get(ctx, w.client, w.url(vouchers, 77), c.last().header); err != nil || status != 409 {
			c.fault("I2", "a voucher for one request, sent to another: %v, %d", err, status)
		}
	}
}

// claims has everything claimed that is due: the debt is old when the server
// starts again. Some sellers sleep longer than that, and wake to find that a
// payer has withdrawn.
func (w *canal) claims(ctx context.Context, k kill, r *rand.Rand, res *result) error {
	sleep := 301 * time.Second // more than is believed of a channel without asking, and a quarter of the delay
	long := k.withdraws() && k.Boundary != noticed && one(r, 2)
	if k.late() {
		if err := w.prime(ctx, k, r); err != nil {
			return err
		}
	}
	w.down()
	if long {
		if err := w.pass(ctx, x402.MinWithdrawDelay*time.Second+sleep); err != nil {
			return err
		}
		if err := w.finalize(ctx); err != nil {
			return err
		}
	} else if err := w.pass(ctx, sleep); err != nil {
		return err
	}
	armed := k.late()
	point := ""
	if armed {
		point = k.Point
		res.Missed = false
	}
	err := w.up(point)
	if errors.Is(err, errEndedEarly) && armed {
		armed = false
		res.Kills++
		err = w.up("")
	}
	if err != nil {
		return err
	}
	for began := time.Now(); ; {
		if w.srv.dead() {
			if err := w.revive(&armed, res); err != nil {
				return err
			}
			began = time.Now()
		}
		open, err := w.unclaimed(ctx)
		if err != nil {
			return err
		}
		took := time.Since(began)
		if open == "" {
			if res.Reconciled = took.Seconds(); took > mustReconcile {
				res.Violations = append(res.Violations, fmt.Sprintf("reconciled after %.1f s", took.Seconds()))
			}
			break
		}
		if took > giveUp {
			res.Violations = append(res.Violations, "not reconciled: "+open)
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if armed {
		res.Missed = true
		return w.arm("", 0)
	}
	return nil
}

// goOn has payers buy once more from the lanes of this kill before anything is
// sent again: what the dead process had begun to give back must not be sold.
// What is not answered at once is among what is sent again.
func (w *canal) goOn(ctx context.Context, first int, r *rand.Rand) {
	seen := map[*lane]bool{}
	for _, old := range w.calls[first:] {
		if seen[old.lane] || old.lane.dry() {
			continue
		}
		seen[old.lane] = true
		c := &call{lane: old.lane, url: w.url(vouchers, 1+r.IntN(40))}
		if terms, err := w.offer(ctx, c.url); err == nil && w.sign(c, terms) == nil {
			w.calls = append(w.calls, c)
			_, _ = w.send(ctx, c)
		}
	}
}

// buy makes one call, and waits for its answer. Without a lane it takes any.
func (w *canal) buy(ctx context.Context, l *lane, r *rand.Rand) (*call, error) {
	c := &call{lane: l, url: w.url(vouchers, 1+r.IntN(40))}
	terms, err := w.offer(ctx, c.url)
	if err != nil {
		return c, err
	}
	if c.lane == nil {
		if c.lane, err = w.lane(r, terms); err != nil {
			return c, err
		}
	}
	if err := w.sign(c, terms); err != nil {
		return c, err
	}
	w.calls = append(w.calls, c)
	for end := time.Now().Add(giveUp); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		if done, err := w.send(ctx, c); done || err != nil {
			return c, err
		}
	}
	c.fault("I13", "no answer to a payload within %v: %d", giveUp, c.last().status)
	return c, ctx.Err()
}

// prime sees to it that something is due, and that there is a withdrawal to be
// noticed, where that is what the kill waits for.
func (w *canal) prime(ctx context.Context, k kill, r *rand.Rand) error {
	for range 20 {
		c, err := w.buy(ctx, nil, r)
		switch {
		case err != nil:
			return err
		case c.served && k.Boundary == noticed:
			return w.withdraw(ctx, c.lane, r)
		case c.served:
			return nil
		}
	}
	return nil
}

// servedFrom is what was delivered for l's vouchers, ever.
func (w *canal) servedFrom(l *lane) (units int64) {
	for _, c := range w.calls {
		if c.lane == l && c.served && c.url != refundURL {
			units += perCall
		}
	}
	return units
}

// finalize has every payer whose delay is over take out what he may.
func (w *canal) finalize(ctx context.Context) error {
	for _, l := range w.lanes {
		if l.withdrawing == 0 || w.now().Unix() < l.withdrawing+x402.MinWithdrawDelay+2 {
			continue
		}
		s, err := w.node.Client.ChannelStates(ctx, l.id)
		if err != nil {
			return err
		}
		if s[0].WithdrawAt == 0 {
			continue
		}
		// What he was served and was not claimed is the most that may be lost.
		l.lost += max(0, w.servedFrom(l)-s[0].TotalClaimed)
		if err := w.transactAt(ctx, l.key, chain.FinalizeCalldata(chain.ChannelConfig(l.config))); err != nil {
			return err
		}
	}
	return nil
}

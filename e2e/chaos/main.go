// Command chaos kills clawr at every boundary of the money path, at the moment
// that a seed chooses, in a stream of paid calls on a real chain and a real
// database, starts it again, and holds what the buyers saw against the book
// and the chain, by the invariants of money.md.
//
//	go run ./e2e/chaos --each 50 --random 5000 --shard 1/8 --progress chaos.jsonl
//
// Every kill is the same for the same seed, as far as two processes and a
// kernel can do the same twice. A run that was cut short goes on where its
// progress file ends. The last line of the output is a JSON summary.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/402claw/clawr/store/storetest"
)

// options of a run.
type options struct {
	seed     uint64
	each     int
	random   int
	shard    shard
	progress string
	worlds   int
	only     string
	index    int
	verbose  bool
	suite    suite
	soak     time.Duration
	rate     int
	engine   string
	every    time.Duration
}

func main() {
	o := options{shard: shard{1, 1}, suite: exactSuite}
	flag.Uint64Var(&o.seed, "seed", 1, "what the run is made of")
	flag.IntVar(&o.each, "each", 50, "kills for each boundary, policy and engine")
	flag.IntVar(&o.random, "random", 5000, "kills at random moments")
	flag.Var(&o.shard, "shard", "i/n: the ith of n parts of the run")
	flag.StringVar(&o.progress, "progress", "", "file that remembers which kills are done")
	short := flag.Bool("short", false, "as few kills as show something: every boundary, policy and engine, 200 or more in all")
	flag.IntVar(&o.worlds, "worlds", 2, "chains and servers at a time, on SQLite; five times as many on Postgres, which wait for leases")
	flag.StringVar(&o.only, "only", "", "only kills at this failpoint")
	flag.IntVar(&o.index, "index", -1, "only this kill")
	flag.DurationVar(&o.soak, "soak", 0, "instead, sell for this long, and kill the server again and again")
	flag.IntVar(&o.rate, "rate", 300, "paid calls a second of a soak")
	flag.DurationVar(&o.every, "every", time.Minute, "time between two kills of a soak")
	flag.StringVar(&o.engine, "engine", "sqlite", "database of a soak: sqlite or postgres")
	flag.BoolVar(&o.verbose, "v", false, "say what is done")
	channels := flag.Bool("vouchers", false, "kill where calls are paid by voucher, instead of each by a transaction")
	flag.Parse()
	if *channels {
		o.suite = voucherSuite
	}
	if s := o.suite; *short {
		o.each, o.random = max(2, 180/(len(s.boundaries)*len(s.policies)*len(engines))), 40
		if s.channels {
			o.each, o.random = 2, 8
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := chaos(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		os.Exit(1)
	}
}

// chaos makes the kills of one run and fails if any of them broke anything.
func chaos(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "clawr-chaos-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin, err := build(dir)
	if err != nil {
		return err
	}
	admin, stop, err := storetest.Server()
	if err != nil {
		return err
	}
	defer stop()
	if o.soak > 0 {
		return soak(ctx, bin, o.engine, admin, o.rate, o.soak, o.every, os.Stdout)
	}
	sum, err := openSummary(o.suite, o.progress)
	if err != nil {
		return err
	}
	defer sum.close()
	queues := map[string]chan kill{}
	list := o.suite.plan(o.seed, o.each, o.random)
	for _, engine := range engines {
		queues[engine] = make(chan kill, len(list))
	}
	for _, k := range list {
		if o.shard.has(k) && (o.only == "" || o.only == k.Point) && (o.index < 0 || o.index == k.Index) && !sum.knows(k) {
			queues[k.Engine] <- k
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	errs := make(chan error, 6*o.worlds)
	for _, engine := range engines {
		close(queues[engine])
		number := o.worlds
		if engine == "postgres" {
			number *= 5
		}
		for i := range number {
			wg.Go(func() {
				if err := worker(ctx, o, bin, engine, admin, i, queues[engine], sum); err != nil {
					errs <- err
					cancel()
				}
			})
		}
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	sum.print(os.Stdout, fmt.Sprintf("seed %d, shard %s", o.seed, &o.shard))
	for _, name := range sum.unreached() {
		all = append(all, fmt.Errorf("no kill was made at its boundary: %s", name))
	}
	if sum.violations > 0 {
		all = append(all, fmt.Errorf("%d violations", sum.violations))
	}
	return errors.Join(all...)
}

// worldLife is how many kills a world goes through before its successor
// starts afresh: the audit reads all of it every time.
const worldLife = 40

// subject is what is killed again and again.
type subject interface {
	run(context.Context, kill) (result, error)
	age() int    // how often it was killed
	log() string // what its server said last
	close() error
}

func (w *world) age() int    { return w.kills }
func (w *world) log() string { return w.srv.log() }

// subject is a new one for a worker.
func (o options) subject(ctx context.Context, bin, engine, admin string, number int) (subject, error) {
	opt := worldOptions{caps: smallCaps}
	if number%2 == 1 {
		opt.chain.BlockTime = time.Second
	}
	if o.suite.channels {
		return newCanal(ctx, bin, engine, admin, opt)
	}
	return newWorld(ctx, bin, engine, admin, opt)
}

// worker makes the kills of a queue, one after the other, in worlds of its own.
func worker(ctx context.Context, o options, bin, engine, admin string, number int, queue <-chan kill, sum *summary) (err error) {
	var w subject
	defer func() {
		if w != nil {
			err = errors.Join(err, w.close())
		}
	}()
	for k := range queue {
		if ctx.Err() != nil {
			return nil
		}
		if w != nil && w.age() >= worldLife {
			err := w.close()
			if w = nil; err != nil {
				return err
			}
		}
		if w == nil {
			next, err := o.subject(ctx, bin, engine, admin, number)
			if err != nil {
				return err
			}
			w = next
		}
		began := time.Now()
		res, err := w.run(ctx, k)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%v: %w", k, err)
		}
		if o.verbose {
			fmt.Fprintf(os.Stderr, "%v: %.1f s, reconciled after %.1f s, missed %v\n", k, time.Since(began).Seconds(), res.Reconciled, res.Missed)
		}
		for _, v := range res.Violations {
			fmt.Fprintf(os.Stderr, "%v\n\t%s\n", k, v)
		}
		if len(res.Violations) > 0 {
			fmt.Fprintf(os.Stderr, "the server said:\n%s\n", w.log())
			if err := w.close(); err != nil { // what is broken is not to be counted again
				return err
			}
			w = nil
		}
		if err := sum.add(res); err != nil {
			return err
		}
	}
	return nil
}

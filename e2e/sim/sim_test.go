package sim

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/ledger"
)

var (
	runs    = flag.Int("sim.runs", 200, "lives of TestChaosSim")
	seed    = flag.Uint64("sim.seed", 1, "seed of the first; the others follow")
	summary = flag.String("sim.summary", "", "file for the summary as JSON")
)

// memory is a directory that does not wait for a disk, where there is one: the
// durability of the book is tried elsewhere.
func memory(t testing.TB) string {
	if _, err := os.Stat("/dev/shm"); err == nil {
		if dir, err := os.MkdirTemp("/dev/shm", "clawr-sim-"); err == nil {
			t.Cleanup(func() { os.RemoveAll(dir) })
			return dir
		}
	}
	return t.TempDir()
}

// spend is one life, in a bubble and with a book of its own. change, if not nil,
// is made to its world first.
func spend(t *testing.T, dir string, book []byte, seed uint64, wrong *counts, change func(*world)) (res result) {
	// A directory for each: beside a book lies what guards it, and a book that
	// took another's place would be found damaged, and sell nothing.
	dir, err := os.MkdirTemp(dir, "life-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "clawr.db")
	if err := os.WriteFile(path, book, 0o600); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w, err := newWorld(seed, path, wrong)
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(w)
		}
		res = w.live()
	})
	return res
}

// No facilitator and no node, however slow, silent, wrong or false, makes
// clawr ask for a second payment while the first may be charged, charge a
// buyer twice, or keep from him what he was charged for.
func TestChaosSim(t *testing.T) {
	dir, book := memory(t), template(t)
	var mu sync.Mutex
	var total result
	var wrong counts
	next := make(chan uint64)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed := range next {
				t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
					res := spend(t, dir, book, seed, &wrong, nil)
					mu.Lock()
					defer mu.Unlock()
					total.add(res)
					for _, f := range res.faults {
						t.Errorf("%s\n\tagain: go test ./e2e/sim -run TestChaosSim -sim.runs 1 -sim.seed %d", f, seed)
					}
				})
			}
		})
	}
	for i := range *runs {
		next <- *seed + uint64(i)
	}
	close(next)
	wg.Wait()
	for _, name := range slices.Sorted(maps.Keys(wrong.m)) {
		t.Logf("%6d %s", wrong.m[name], name)
	}
	line, _ := json.Marshal(map[string]any{"runs": *runs, "payments": total.payments, "charged": total.charged, "fresh_402": total.fresh402,
		"charged_twice": total.twice, "unserved": total.unserved, "violations": len(total.faults), "virtual_h": int(total.virtual.Hours())})
	t.Logf("%s", line)
	if *summary != "" {
		if err := os.WriteFile(*summary, append(line, '\n'), 0o600); err != nil {
			t.Error(err)
		}
	}
	// A simulation in which nothing goes wrong, or nothing right, shows nothing.
	if *runs >= 200 {
		for _, m := range manners {
			if wrong.m[m.name] == 0 {
				t.Errorf("no facilitator ever did this: %s", m.name)
			}
		}
		for _, name := range []string{"answered 200", "answered 402", "answered 503", "node down", "node silent", "stale head", "the buyer hung up", "cancelled by the buyer"} {
			if wrong.m[name] == 0 {
				t.Errorf("this never happened: %s", name)
			}
		}
		if total.charged == 0 || total.charged == total.payments {
			t.Errorf("%d of %d payments were charged", total.charged, total.payments)
		}
	}
}

// credulous believes what others say, where the production does not.
type credulous struct {
	dispatch.Payments
	as ledger.OutcomeState
}

func (c credulous) Settle(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	out, err := c.Payments.Settle(ctx, p)
	if err == nil && (out.State == ledger.Unknown || out.State == ledger.Broadcast) {
		out.State = c.as
		if c.as == ledger.Settled {
			out.Tx, out.BlockHash = hashOf("believed"), hashOf("block")
		}
	}
	return out, err
}

// A settlement whose end is not known, taken for a failure or for a success,
// is what this is all against: the simulation must see either, and not by
// chance.
func TestTheSimulationSeesWhoIsCredulous(t *testing.T) {
	const lives, enough = 100, 10
	dir, book := memory(t), template(t)
	for name, as := range map[string]ledger.OutcomeState{"takes silence for a failure": ledger.NotCharged, "takes silence for a success": ledger.Settled} {
		t.Run(name, func(t *testing.T) {
			noticed := 0
			for seed := range uint64(lives) {
				res := spend(t, dir, book, seed, new(counts), func(w *world) { w.dispatch.Payments = credulous{w.client, as} })
				if as == ledger.NotCharged && res.fresh402 > 0 && res.twice > 0 || as == ledger.Settled && len(res.faults) > 0 {
					if noticed++; noticed == enough {
						t.Logf("%d of %d lives noticed", noticed, seed+1)
						return
					}
				}
			}
			t.Errorf("%d of %d lives noticed, and %d should", noticed, lives, enough)
		})
	}
}

func (r *result) add(o result) {
	r.payments += o.payments
	r.charged += o.charged
	r.fresh402 += o.fresh402
	r.twice += o.twice
	r.unserved += o.unserved
	r.faults = append(r.faults, o.faults...)
	r.virtual += o.virtual
}

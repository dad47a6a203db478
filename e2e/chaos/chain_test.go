package main

import (
	"context"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/402claw/clawr/e2e/anvil"
)

var rounds = flag.Int("chain.rounds", 1, "of TestChainChaos, for each fault and policy")

// Whatever the chain and the payers do, the book ends equal to the chain, to
// the unit; nobody is charged twice, or for nothing, or asked for another
// payment while the first may be charged.
func TestChainChaos(t *testing.T) {
	bin, err := build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
			defer cancel()
			w, err := newWorld(ctx, bin, "sqlite", "", worldOptions{chain: anvil.Options{}, caps: smallCaps, final: chainDepth})
			if err != nil {
				t.Fatal(err)
			}
			defer w.close()
			seed := rand.Uint64()
			for n := range *rounds * len(policies) {
				k := kill{Index: n, Seed: seed + uint64(n), Engine: "sqlite", Policy: policies[n%len(policies)], Concurrent: 6, Calls: 24}
				res, err := w.suffer(ctx, k, f)
				if err != nil {
					t.Fatalf("seed %d: %v\n%s", k.Seed, err, w.srv.log())
				}
				for _, v := range res.Violations {
					t.Errorf("%s, seed %d: %s", k.Policy, k.Seed, v)
				}
				if t.Failed() {
					t.Fatal(w.srv.log())
				}
				t.Logf("%s: %d purchases, reconciled after %.1f s", k.Policy, len(w.bought), res.Reconciled)
			}
		})
	}
}

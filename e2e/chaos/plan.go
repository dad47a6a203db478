package main

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"strings"
)

// boundary is one of money.md's fourteen, and the failpoints on either side of
// it that a kill can be put at.
type boundary struct {
	name   string
	points []string
}

// boundaries are in the order in which a paid call meets them. "random" stands
// for a kill from outside, at a moment that no failpoint chose.
var boundaries = []boundary{
	{"challenge", []string{"challenge.after"}},
	{"verify", []string{"verify.after"}},
	{"reserve (T1)", []string{"t1.before", "t1.after"}},
	{"worker start", []string{"worker.before"}},
	{"worker end", []string{"worker.after"}},
	{"store answer (T2)", []string{"t2.before", "t2.after"}},
	{"preflight", []string{"preflight"}},
	{"batch build", []string{"batch.after"}},
	{"sign (T3)", []string{"t3.before", "t3.after"}},
	{"broadcast", []string{"broadcast.before", "broadcast.after"}},
	{feeBump, []string{"bump.before", "bump.after"}},
	{"mined", []string{"mined.before", "mined.after"}},
	{"respond", []string{"respond.before"}},
	{final, []string{"final.before", "final.after"}},
}

// The boundaries that the chain has to do something for, and random, that of
// kills at any moment.
const (
	feeBump = "fee bump"
	final   = "final"
	random  = "any moment"
)

// The policies of money.md that a tenant can choose, and the two engines.
var (
	policies = []string{"settle_before_response", "settle_first", "async"}
	engines  = []string{"sqlite", "postgres"}
)

// kill is one crash to be made, in full: the same kill is always the same.
type kill struct {
	Index    int
	Seed     uint64
	Engine   string
	Policy   string
	Boundary string
	Point    string // a failpoint; empty: from outside
	Nth      int    // hit of it, from when the stream begins
	// Again is a failpoint that the restarted process dies of too, if it comes
	// by; empty: none.
	Again      string
	AgainNth   int
	Concurrent int // callers at a time
	Calls      int // of the stream, at most
}

func (k kill) String() string {
	s := fmt.Sprintf("kill %d (seed %d): %s, %s, %s", k.Index, k.Seed, k.Engine, k.Policy, k.Boundary)
	if k.Point != "" {
		s += fmt.Sprintf(" %s:%d", k.Point, k.Nth)
	}
	if k.Again != "" {
		s += fmt.Sprintf(", and then %s:%d", k.Again, k.AgainNth)
	}
	return s
}

// plan is every kill of a run: each at every boundary, under every policy, on
// both engines, and others at random moments.
func (s suite) plan(seed uint64, each, others int) []kill {
	var list []kill
	add := func(engine, policy, name, point string) {
		k := kill{Index: len(list), Engine: engine, Policy: policy, Boundary: name, Point: point}
		h := fnv.New64a()
		fmt.Fprint(h, seed, "/", k.Index)
		k.Seed = h.Sum64()
		r := rand.New(rand.NewPCG(k.Seed, 0))
		k.Nth = 1 + r.IntN(8)
		switch name { // what is not passed by with every call
		case feeBump, final, "preflight", "batch build", "sign (T3)", "broadcast", "mined", "deposit build, sign", "deposit broadcast", "deposit mined":
			k.Nth = 1 + r.IntN(2)
		}
		if name == "reserve" || name == "refund" { // not even by that
			k.Nth = 1
		}
		k.Concurrent = []int{1, 4, 8, 16}[r.IntN(4)]
		k.Calls = 24
		if r.IntN(4) == 0 {
			b := s.boundaries[r.IntN(len(s.boundaries))]
			k.Again, k.AgainNth = b.points[r.IntN(len(b.points))], 1+r.IntN(3)
		}
		list = append(list, k)
	}
	// One of each kind before the second of any, so that a run that is cut
	// short has seen everything.
	for i := range each {
		for _, b := range s.boundaries {
			for _, policy := range s.policies {
				for _, engine := range engines {
					add(engine, policy, b.name, b.points[i%len(b.points)])
				}
			}
		}
	}
	for i := range others {
		add(engines[i%len(engines)], s.policies[i/len(engines)%len(s.policies)], random, "")
	}
	return list
}

// shard is one of several runs that make up a whole plan.
type shard struct{ i, n int }

func (s *shard) String() string { return fmt.Sprintf("%d/%d", s.i, s.n) }

// Set reads i/n, with 1 ≤ i ≤ n.
func (s *shard) Set(text string) error {
	a, b, ok := strings.Cut(text, "/")
	i, err1 := strconv.Atoi(a)
	n, err2 := strconv.Atoi(b)
	if !ok || err1 != nil || err2 != nil || i < 1 || i > n {
		return fmt.Errorf("%q is not a shard such as 1/4", text)
	}
	s.i, s.n = i, n
	return nil
}

// has goes by the seed, not by the index: engines and policies take turns by
// that, and every shard has its share of all of them.
func (s *shard) has(k kill) bool { return k.Seed%uint64(s.n) == uint64(s.i-1) }

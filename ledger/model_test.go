package ledger_test

import (
	"cmp"
	"fmt"
	"strings"
	"testing"
	"time"

	. "github.com/402claw/clawr/ledger"
)

// rule is one that the movers keep. A mutant is the model without one of them.
type rule uint8

const (
	none          rule = iota
	durable            // a reservation is in the book, not in a process
	fencing            // a write names the epoch that its writer owns
	swap               // a write names the state that it leaves
	persist            // what is broadcast is stored first
	submitFirst        // what a remote facilitator is sent is marked submitted first
	timeout503         // out of time says 503, not 402
	fingerprint        // an authorization answers the request that it bought
	answerFirst        // nothing is submitted before the answer is stored
	usedFails          // a used nonce and a revert are no failure
	receiptStatus      // a mined transaction is no payment, logs are
	reorgWatch         // lost evidence is taken back
	waitSettled        // settle_before_response answers once it is settled
	chainClock         // the local clock proves nothing
	finalized          // the head proves nothing
	secondFind         // a refused payment may have been a twin's
	refund             // paid work that failed is owed
	undoRefund         // what turns out to be unpaid is not
	oneLive            // one live batch carries a payment
)

// mutants are the rules with the policies that need them. Where the way to the
// violation is long, few faults keep the worlds beside it few.
var mutants = []struct {
	name   string
	off    rule
	policy Policy
	faults int // 0: as many as in the search without a mutant
}{
	{"durable reserve", durable, SettleBeforeResponse, 0},
	{"fencing", fencing, SettleBeforeResponse, 0},
	{"compare and swap", swap, SettleBeforeResponse, 0},
	{"persist before broadcast", persist, SettleBeforeResponse, 0},
	{"submitted before a remote facilitator has it", submitFirst, Async, 0},
	{"503 on time-out", timeout503, SettleBeforeResponse, 0},
	{"fingerprint", fingerprint, SettleBeforeResponse, 0},
	{"store the answer first", answerFirst, SettleBeforeResponse, 0},
	{"used is not failed", usedFails, SettleBeforeResponse, 0},
	{"mined is not paid", receiptStatus, SettleBeforeResponse, 0},
	{"reorg watch", reorgWatch, SettleBeforeResponse, 0},
	{"wait for settlement", waitSettled, SettleBeforeResponse, 0},
	{"chain clock", chainClock, SettleBeforeResponse, 0},
	{"finalized for dead", finalized, SettleBeforeResponse, 0},
	{"second look before a refusal", secondFind, SettleBeforeResponse, 0},
	{"refund", refund, SettleFirst, 0},
	{"no refund of the dead", undoRefund, SettleFirst, 1},
	{"one live batch", oneLive, SettleBeforeResponse, 0},
}

// model searches all worlds that can be reached, nearest first, so that the
// first violation that it meets has the shortest trace.
type model struct {
	policy Policy
	off    rule
	faults int // that a history may have
	bound  int // of states
	table  []stepped
	seen   map[world]struct{}
	worlds []world
	parent []int32
	at     int32
	edges  int
	out    int // steps that lead out of the world in hand
	label  func(what string, n int, w world)
}

// stepped is what ledger.Step answers; the model asks it once for everything
// that it may want to know, as a refusal formats an error.
type stepped struct {
	work, money, epoch uint8
	ok                 bool
}

// moveCodes are the moves as the table counts them.
var moveCodes = Moves()

const epochs = maxEpoch + 1

func (m *model) index(r row, move Move, epoch uint8, expired bool) int {
	i := ((int(r.work)*len(moneyCodes)+int(r.money))*epochs+int(r.epoch))*len(moveCodes) + int(code(moveCodes, move))
	i = (i*epochs + int(epoch)) * 2
	if expired {
		i++
	}
	return i
}

// ask fills the table from the production function.
func (m *model) ask() {
	m.table = make([]stepped, len(workCodes)*len(moneyCodes)*epochs*len(moveCodes)*epochs*2)
	for work, w := range workCodes {
		for money, mo := range moneyCodes {
			for epoch := range uint8(epochs) {
				for _, move := range Moves() {
					for named := range uint8(epochs) {
						for _, expired := range []bool{false, true} {
							s := State{Policy: m.policy, Work: w, Money: mo, Epoch: int64(epoch)}
							if money == mNone {
								s = State{}
							}
							next, err := Step(s, Event{Move: move, Policy: m.policy, Epoch: int64(named), Expired: expired})
							if err != nil || next.Epoch > maxEpoch {
								continue
							}
							r := row{work: uint8(work), money: uint8(money), epoch: epoch}
							m.table[m.index(r, move, named, expired)] = stepped{code(workCodes, next.Work), code(moneyCodes, next.Money), uint8(next.Epoch), true}
						}
					}
				}
			}
		}
	}
}

func code[T comparable](list []T, v T) uint8 {
	for i, x := range list {
		if x == v {
			return uint8(i)
		}
	}
	panic(fmt.Sprintf("no code for %v", v))
}

// next makes every step that anybody can make in w.
func (m *model) next(w *world) {
	m.client(w)
	for n := range w.nodes {
		m.dispatcher(w, n)
		m.settler(w, n)
		m.crash(w, n)
	}
	m.janitor(w)
	m.watcher(w)
	m.chain(w)
}

// to is given each world that a step leads to.
func (m *model) to(what string, n int, w *world) {
	m.edges++
	m.out++
	if m.label != nil {
		m.label(what, n, *w)
		return
	}
	x := w.named()
	if _, ok := m.seen[x]; ok {
		return
	}
	m.seen[x] = struct{}{}
	m.worlds = append(m.worlds, x)
	m.parent = append(m.parent, m.at)
}

// named gives the nodes their names: which is which makes no difference, so
// only one of two worlds that differ in it is searched.
func (w world) named() world {
	a, b := w.nodes[0], w.nodes[1]
	if key := func(n node) int { return int(n.pc)<<24 | int(n.send)<<16 | int(n.epoch)<<8 | int(n.look) }; key(a) < key(b) {
		w.nodes[0], w.nodes[1] = b, a
	}
	return w
}

// search looks at every world up to the bound. It gives what is violated and
// the way there, or "".
func (m *model) search() (violated, trace string) {
	m.ask()
	m.seen = map[world]struct{}{{}: {}}
	m.worlds, m.parent = []world{{}}, []int32{-1}
	for m.at = 0; int(m.at) < len(m.worlds); m.at++ {
		if int(m.at) >= m.bound {
			break
		}
		w := m.worlds[m.at]
		if violated = m.broken(&w); violated == "" {
			m.out = 0
			if m.next(&w); m.out == 0 {
				violated = m.stuck(&w)
			}
		}
		if violated != "" {
			return violated, m.trace(m.at)
		}
	}
	return "", ""
}

// trace tells the way to a world, by making the steps on it once more.
func (m *model) trace(at int32) string {
	var path []int32
	for i := at; i >= 0; i = m.parent[i] {
		path = append([]int32{i}, path...)
	}
	var b strings.Builder
	for i := 1; i < len(path); i++ {
		from, want := m.worlds[path[i-1]], m.worlds[path[i]]
		found := false
		m.label = func(what string, n int, w world) {
			if found || w.named() != want {
				return
			}
			found = true
			who := ""
			if n >= 0 {
				who = fmt.Sprintf("node %d: ", n)
			}
			fmt.Fprintf(&b, "%3d  %-52s %s/%s epoch %d\n", i, who+what, workCodes[w.row.work], moneyCodes[w.row.money], w.row.epoch)
		}
		m.next(&from)
	}
	m.label = nil
	fmt.Fprintf(&b, "     %+v\n", m.worlds[at])
	return b.String()
}

// What is searched: histories with up to so many faults of the chain, the
// clock and the processes, and of their worlds the nearest so many of each
// policy. All of them are tens of millions.
const (
	faults    = 3
	perPolicy = 900_000
	states    = 2_500_000 // of all policies; fewer mean that the model lost an actor or a fault
)

// TestModel searches the worlds that two nodes, three sends, two crashes and
// the chain's faults can bring about under each policy, nearest first, and
// finds none in which money.md's invariants do not hold. With -short or the
// race detector the bound is lower.
func TestModel(t *testing.T) {
	bound := perPolicy
	if testing.Short() || raced {
		bound = 50_000
	}
	total := 0
	for _, policy := range []Policy{SettleBeforeResponse, SettleFirst, Async} {
		begin := time.Now()
		m := &model{policy: policy, bound: bound, faults: faults}
		if violated, trace := m.search(); violated != "" {
			t.Fatalf("%s: %s, %d states searched:\n%s", policy, violated, m.at, trace)
		}
		t.Logf("%s: %d states, %d steps, %v", policy, m.at, m.edges, time.Since(begin).Round(time.Millisecond))
		total += int(m.at)
	}
	if bound == perPolicy && total < states {
		t.Errorf("%d states were searched, want %d", total, states)
	}
}

// TestMutants takes one rule away at a time, and wants the model to find out.
func TestMutants(t *testing.T) {
	for _, mutant := range mutants {
		m := &model{policy: mutant.policy, off: mutant.off, bound: perPolicy, faults: cmp.Or(mutant.faults, faults)}
		violated, trace := m.search()
		if violated == "" {
			t.Errorf("without %s nothing is violated in %d states", mutant.name, m.at)
			continue
		}
		t.Logf("without %s: %s (%d states)", mutant.name, violated, m.at)
		if testing.Verbose() {
			t.Logf("\n%s", trace)
		}
	}
}

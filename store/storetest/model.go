package storetest

import (
	"errors"
	"fmt"
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"pgregory.net/rapid"
)

// randomHistories makes random moves on a few payments, several at a time, and
// wants each group to end as if its moves had come one after another in some
// order, by ledger.Step; and afterwards the counters, answers and events that
// such a history leaves.
func randomHistories(f *fixture) {
	f.deploy()
	rapid.Check(f.T, func(t *rapid.T) {
		n := f.serial.Add(1)
		model := &histories{fixture: f, scope: fmt.Sprintf("histories-%d", n), payer: fmt.Sprintf("0x%040x", n), all: f.exposure("*")}
		for range rapid.IntRange(1, 2).Draw(t, "payments") {
			model.reserve(t)
		}
		for range rapid.IntRange(1, 12).Draw(t, "groups") {
			model.step(t, rapid.SampledFrom(model.list).Draw(t, "payment"))
		}
		model.check(t)
	})
}

// histories is the reference ledger: what every payment must be like.
type histories struct {
	*fixture
	scope string
	payer string
	all   ledger.Exposed // of all payers, when it began
	list  []*history
}

type history struct {
	*machine
	state    ledger.State
	answered bool // T2 happened
	released bool // or failed, before there was an answer: the event came with that
}

func (h *histories) reserve(t *rapid.T) {
	p := h.payment()
	p.Policy = rapid.SampledFrom([]ledger.Policy{ledger.SettleBeforeResponse, ledger.SettleBeforeResponse, ledger.Async, ledger.SettleFirst}).Draw(t, "policy")
	p.Payer = h.payer
	p.Counters = []ledger.Counter{{Scope: h.scope, Cost: 10, Cap: 1000}}
	p.Exposure = ledger.Exposure{Payer: 1 << 40, Credit: 1 << 40, Total: 1 << 40}
	row, err := h.Reserve(h.ctx(), p, "node", lease)
	if err != nil {
		t.Fatal(err)
	}
	state, err := ledger.Step(ledger.State{}, ledger.Event{Move: ledger.MoveReserve, Policy: p.Policy})
	if err != nil {
		t.Fatal(err)
	}
	h.list = append(h.list, &history{machine: &machine{fixture: h.fixture, p: row}, state: state})
}

// step makes one to three moves at once.
func (h *histories) step(t *rapid.T, p *history) {
	expired := rapid.Bool().Draw(t, "expired")
	var group []ledger.Event
	for range rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(t, "together") {
		e := ledger.Event{Move: rapid.SampledFrom(p.moves(t)).Draw(t, "move"), Policy: p.state.Policy, Expired: expired,
			Epoch: p.state.Epoch - rapid.SampledFrom([]int64{0, 0, 0, 0, 1}).Draw(t, "behind")}
		group = append(group, e)
	}
	if len(group) > 1 {
		group = concurrent(group)
	}
	p.lapse(expired)
	got := make([]error, len(group))
	atOnce(len(group), func(i int) { got[i] = p.make(group[i]) })
	for i, err := range got {
		if err != nil && !errors.Is(err, ledger.ErrFenced) {
			t.Fatalf("%s in %+v: %v", group[i].Move, p.state, err)
		}
	}
	after := p.now()
	if !p.explain(group, got, after) {
		t.Fatalf("from %+v, %+v together ended %v and left %+v; no order of theirs does", p.state, group, got, after)
	}
	p.lapse(false)
}

// moves are those to choose from: half of the time the legal ones, or most
// histories would end where they began.
func (p *history) moves(t *rapid.T) []ledger.Move {
	if rapid.Bool().Draw(t, "any") {
		return ledger.Moves()
	}
	var legal []ledger.Move
	for _, m := range ledger.Moves() {
		next, err := ledger.Step(p.state, ledger.Event{Move: m, Epoch: p.state.Epoch, Expired: true})
		if err == nil && next != p.state {
			legal = append(legal, m)
		}
	}
	if len(legal) == 0 {
		return ledger.Moves()
	}
	return legal
}

// event is the one event of p's request, nil if there is none.
func (p *history) event() *usage.Event {
	p.Helper()
	var found *usage.Event
	at := event(p.p).Time
	p.ok(p.EachEvent(p.ctx(), at, at.Add(time.Second), func(e usage.Event) error {
		if found != nil {
			p.Errorf("%s has two events", p.p.ID)
		}
		found = &e
		return nil
	}))
	return found
}

// concurrent leaves out what the machine's driver cannot do at once with
// others: batches have an order of their own, a lease that is renewed no
// longer lapses, and evidence may be booked twice.
func concurrent(group []ledger.Event) (out []ledger.Event) {
	for _, e := range group {
		switch e.Move {
		case ledger.MoveSign, ledger.MoveRenew, ledger.MovePaid, ledger.MoveTakeOver:
			continue
		}
		out = append(out, e)
	}
	return out
}

// explain looks for an order of the group that ends as it did, and goes there.
func (p *history) explain(group []ledger.Event, got []error, after ledger.State) bool {
	for _, order := range permutations(len(group)) {
		s, answered, released, fits := p.state, p.answered, p.released, true
		for _, i := range order {
			e := group[i]
			if e.Move == ledger.MoveLapse || e.Move == ledger.MoveOwe {
				e.Epoch = s.Epoch // the janitor reads it itself
			}
			next, err := ledger.Step(s, e)
			if e.Move == ledger.MovePaid && (s.Money == ledger.Mined || s.Money == ledger.Final) {
				err = nil // booked already
			}
			if (err == nil) != (got[i] == nil) {
				fits = false
				break
			}
			if err == nil {
				answered = answered || e.Move == ledger.MoveDone
				released = released || e.Move == ledger.MoveRelease || e.Move == ledger.MoveFail
			}
			s = next
		}
		if fits && s == after {
			p.state, p.answered, p.released = s, answered, released
			return true
		}
	}
	return false
}

func permutations(n int) [][]int {
	if n == 0 {
		return [][]int{{}}
	}
	var all [][]int
	for _, rest := range permutations(n - 1) {
		for at := range n {
			order := append(append(append([]int(nil), rest[:at]...), n-1), rest[at:]...)
			all = append(all, order)
		}
	}
	return all
}

// check compares what is left with the history.
func (h *histories) check(t *rapid.T) {
	used := int64(0)
	var own ledger.Exposed
	for _, p := range h.list {
		s := p.state
		switch {
		case s.Money == ledger.Final:
			own.Volume += 1000
		case s.Policy != ledger.Async:
		case s.Money == ledger.Held || s.Money == ledger.Signed:
			own.Held += 1000
		case s.Work == ledger.Done && (s.Money == ledger.Dead || s.Money == ledger.Released):
			own.BadDebt += 1000
		}
		if r, err := h.Refund(h.ctx(), p.p.ID); err != nil || (r != nil) != (s.Policy == ledger.SettleFirst && s.Work == ledger.Failed && s.Money != ledger.Dead && s.Money != ledger.Released) {
			t.Errorf("%+v, and the refund is %+v (%v)", s, r, err)
		}
		if s.Money != ledger.Released && (s.Money != ledger.Dead || s.Policy == ledger.Async) {
			used += 10
		}
		a, err := h.Answer(h.ctx(), p.p.ID)
		if err != nil || (a != nil) != p.answered || p.answered != (s.Work == ledger.Done) {
			t.Errorf("%+v, and the answer is %v (%v)", s, a, err)
		}
		e := p.event()
		there := e != nil
		if there != (p.answered || p.released) {
			t.Errorf("%+v, and its event is there: %v", s, there)
		}
		paid := s.Money == ledger.Mined || s.Money == ledger.Final
		if there && p.answered && s.Policy != ledger.Async && (e.Billed == 1000) != paid {
			t.Errorf("%+v, and %s are billed (%s)", s, e.Billed, e.Lifecycle)
		}
		if there && s.Money == ledger.Released && (e.Billed != 0 || e.Billable) {
			t.Errorf("%+v, and %s are billed", s, e.Billed)
		}
		if there && s.Money == ledger.Dead && s.Work != ledger.Failed && e.Lifecycle != usage.SettleFailed { // what failed has said so
			t.Errorf("%+v, and its event says %s", s, e.Lifecycle)
		}
	}
	is, all := h.exposure(h.payer), h.exposure("*")
	if is.Held != own.Held || is.BadDebt != own.BadDebt || is.Volume != own.Volume || all.Held-h.all.Held != own.Held || all.BadDebt-h.all.BadDebt != own.BadDebt {
		t.Errorf("the payer's exposure is %+v, all went from %+v to %+v; the payer's should be %+v", is, h.all, all, own)
	}
	c, err := h.Counters(h.ctx(), h.scope)
	if err != nil || len(c) != 1 || c[0].Used != used {
		t.Errorf("counters %+v (%v), want %d used", c, err, used)
	}
}

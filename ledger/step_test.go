package ledger_test

import (
	"errors"
	"testing"

	. "github.com/402claw/clawr/ledger"
	"pgregory.net/rapid"
)

var (
	works  = []Work{Pending, Running, Done, Failed}
	moneys = []Money{Held, Signed, Mined, Final, Released, Dead}
)

// TestStepTable lists every legal move; whatever is not listed must be refused.
func TestStepTable(t *testing.T) {
	type from struct {
		first bool // settle_first
		work  Work
		money Money
		move  Move
	}
	type to struct {
		work  Work
		money Money
	}
	legal := map[from]to{}
	add := func(first bool, w Work, m Money, move Move, w2 Work, m2 Money) {
		legal[from{first, w, m, move}] = to{w2, m2}
	}
	// The policies that deliver before or with the settlement.
	add(false, Running, Held, MoveTakeOver, Running, Held)
	add(false, Pending, Held, MoveTakeOver, Pending, Held)
	add(false, Running, Held, MoveDone, Done, Held)
	add(false, Running, Held, MoveRelease, Failed, Released)
	add(false, Pending, Held, MoveRelease, Failed, Released)
	add(false, Done, Held, MoveRelease, Done, Released)
	add(false, Failed, Held, MoveRelease, Failed, Released)
	add(false, Running, Held, MoveLapse, Failed, Released)
	add(false, Pending, Held, MoveLapse, Failed, Released)
	add(false, Done, Held, MoveSubmit, Done, Signed)
	add(false, Done, Held, MoveSign, Done, Signed)
	// settle_first.
	add(true, Pending, Held, MoveTakeOver, Pending, Held)
	add(true, Running, Held, MoveTakeOver, Running, Held)
	for _, m := range []Money{Signed, Mined, Final} {
		add(true, Pending, m, MoveTakeOver, Pending, m)
		add(true, Running, m, MoveTakeOver, Running, m)
		add(true, Running, m, MoveDone, Done, m)
		add(true, Running, m, MoveFail, Failed, m)
	}
	for _, m := range []Money{Mined, Final} {
		add(true, Pending, m, MoveOwe, Failed, m)
		add(true, Running, m, MoveOwe, Failed, m)
	}
	add(true, Pending, Mined, MoveStart, Running, Mined)
	add(true, Pending, Final, MoveStart, Running, Final)
	add(true, Pending, Held, MoveSubmit, Pending, Signed)
	add(true, Pending, Held, MoveSign, Pending, Signed)
	add(true, Pending, Held, MoveRelease, Failed, Released)
	add(true, Running, Held, MoveRelease, Failed, Released)
	add(true, Done, Held, MoveRelease, Done, Released)
	add(true, Failed, Held, MoveRelease, Failed, Released)
	add(true, Pending, Held, MoveLapse, Failed, Released)
	add(true, Running, Held, MoveLapse, Failed, Released)
	// The money, whatever the work.
	for _, first := range []bool{false, true} {
		for _, w := range works {
			add(first, w, Signed, MoveSign, w, Signed)
			add(first, w, Signed, MovePaid, w, Mined)
			add(first, w, Signed, MoveDead, w, Dead)
			add(first, w, Mined, MoveFinal, w, Final)
			add(first, w, Mined, MoveUnmine, w, Signed)
		}
		for _, m := range moneys {
			for _, w := range []Work{Pending, Running} {
				add(first, w, m, MoveRenew, w, m)
			}
		}
	}
	seen := 0
	for _, policy := range []Policy{SettleBeforeResponse, Async, SettleFirst} {
		for _, w := range works {
			for _, m := range moneys {
				for _, move := range Moves() {
					s := State{Policy: policy, Work: w, Money: m, Epoch: 3}
					got, err := Step(s, Event{Move: move, Policy: policy, Epoch: 3, Expired: true})
					want, ok := legal[from{policy == SettleFirst, w, m, move}]
					switch {
					case !ok && (!errors.Is(err, ErrFenced) || got != s):
						t.Errorf("%s: %s of %s, %s gave %s, %s (%v), want it refused", policy, move, w, m, got.Work, got.Money, err)
					case ok && (err != nil || got.Work != want.work || got.Money != want.money):
						t.Errorf("%s: %s of %s, %s gave %s, %s (%v), want %s, %s", policy, move, w, m, got.Work, got.Money, err, want.work, want.money)
					case ok:
						seen++
						if epoch := got.Epoch; (move == MoveTakeOver) != (epoch == 4) || epoch < 3 {
							t.Errorf("%s left the epoch at %d", move, epoch)
						}
					}
				}
			}
		}
	}
	if seen < len(legal) {
		t.Errorf("%d of %d legal moves were tried", seen, len(legal))
	}
}

func TestStepFences(t *testing.T) {
	s := State{Policy: SettleBeforeResponse, Work: Running, Money: Held, Epoch: 2}
	for _, move := range []Move{MoveTakeOver, MoveRenew, MoveDone, MoveRelease, MoveLapse} {
		if _, err := Step(s, Event{Move: move, Epoch: 2, Expired: true}); err != nil {
			t.Errorf("%s with the right epoch: %v", move, err)
		}
		for _, epoch := range []int64{0, 1, 3} {
			if _, err := Step(s, Event{Move: move, Epoch: epoch, Expired: true}); !errors.Is(err, ErrFenced) {
				t.Errorf("%s with epoch %d of 2: %v, want ErrFenced", move, epoch, err)
			}
		}
	}
	for _, move := range []Move{MoveTakeOver, MoveLapse} {
		if _, err := Step(s, Event{Move: move, Epoch: 2}); !errors.Is(err, ErrFenced) {
			t.Errorf("%s under a living lease: %v, want ErrFenced", move, err)
		}
	}
	if _, err := Step(State{}, Event{Move: MoveReserve, Policy: "later"}); !errors.Is(err, ErrFenced) {
		t.Errorf("an unknown policy was reserved: %v", err)
	}
}

// TestStepLaws walks the machine at random and checks what money.md promises
// of every history.
func TestStepLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := rapid.SampledFrom([]Policy{SettleBeforeResponse, Async, SettleFirst}).Draw(t, "policy")
		s, err := Step(State{}, Event{Move: MoveReserve, Policy: policy})
		if err != nil {
			t.Fatal(err)
		}
		submitted := false
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			e := Event{
				Move:    rapid.SampledFrom(Moves()).Draw(t, "move"),
				Epoch:   s.Epoch - rapid.SampledFrom([]int64{0, 0, 0, 1}).Draw(t, "behind"),
				Expired: rapid.Bool().Draw(t, "expired"),
			}
			next, err := Step(s, e)
			if err != nil {
				if next != s || !errors.Is(err, ErrFenced) {
					t.Fatalf("a refused %s changed %+v into %+v (%v)", e.Move, s, next, err)
				}
				continue
			}
			submitted = submitted || next.Money == Signed
			switch {
			case next.Epoch < s.Epoch:
				t.Fatalf("%s moved the epoch back", e.Move)
			case s.Money == Released && next.Money != Released, s.Money == Final && next.Money != Final, s.Money == Dead && next.Money != Dead:
				t.Fatalf("%s left the last state %s", e.Move, s.Money)
			case next.Money == Released && submitted:
				t.Fatalf("I4: %s released what was submitted", e.Move)
			case next.Money == Mined && !submitted:
				t.Fatalf("%s mined what was never submitted", e.Move)
			case policy != SettleFirst && next.Money != Held && next.Money != Released && next.Work != Done:
				t.Fatalf("I3: %s submitted before the answer was stored", e.Move)
			case s.Work == Done && next.Work != Done:
				t.Fatalf("%s lost the stored answer", e.Move)
			}
			s = next
		}
	})
}

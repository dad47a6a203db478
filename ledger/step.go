package ledger

import "fmt"

// State is the part of a payment that decides what may happen to it. The zero
// State is an authorization that has no row yet.
type State struct {
	Policy Policy
	Work   Work
	Money  Money
	Epoch  int64
}

// Move names a step of the machine.
type Move string

// The moves, and who makes them. Those of the dispatcher are fenced: they name
// the epoch that they read, and are refused once somebody took the row over.
// Those of the money are not: what the chain shows is true whoever looks.
const (
	// MoveReserve is T1: the row is written. Work begins at once, except under
	// settle_first, which waits for the money.
	MoveReserve Move = "reserve"
	// MoveStart lets the work begin under settle_first, once the money is mined.
	MoveStart Move = "start"
	// MoveTakeOver hands unfinished work whose lease expired to another process.
	MoveTakeOver Move = "take_over"
	// MoveRenew prolongs the lease of unfinished work.
	MoveRenew Move = "renew"
	// MoveDone is T2: the answer is stored.
	MoveDone Move = "done"
	// MoveRelease gives up an authorization that was never submitted.
	MoveRelease Move = "release"
	// MoveLapse is the janitor's release of unfinished work whose lease expired.
	MoveLapse Move = "lapse"
	// MoveFail ends work that failed after the buyer was charged (settle_first);
	// a refund is due.
	MoveFail Move = "fail"
	// MoveOwe is the janitor's MoveFail of paid work whose lease expired.
	MoveOwe Move = "owe"
	// MoveSubmit precedes the first request to a remote facilitator.
	MoveSubmit Move = "submit"
	// MoveSign is T3: a transaction that carries the payment is stored. It
	// repeats when an earlier batch ended without it.
	MoveSign Move = "sign"
	// MovePaid records the evidence on the canonical head.
	MovePaid Move = "paid"
	// MoveFinal records that the evidence is in a finalized block.
	MoveFinal Move = "final"
	// MoveUnmine takes the evidence back: a reorganisation lost it.
	MoveUnmine Move = "unmine"
	// MoveDead records the proof that the payment can never be charged.
	MoveDead Move = "dead"
)

// Moves lists every move, so that tests and model checkers leave none out.
func Moves() []Move {
	return []Move{MoveReserve, MoveStart, MoveTakeOver, MoveRenew, MoveDone, MoveRelease, MoveLapse, MoveFail, MoveOwe,
		MoveSubmit, MoveSign, MovePaid, MoveFinal, MoveUnmine, MoveDead}
}

// Event is one attempt to move a payment.
type Event struct {
	Move    Move
	Policy  Policy // for MoveReserve
	Epoch   int64  // for fenced moves: the epoch that the mover read
	Expired bool   // for MoveTakeOver, MoveLapse and MoveOwe: the lease is over
}

// fenced reports whether m must name the row's epoch.
func (m Move) fenced() bool {
	switch m {
	case MoveStart, MoveTakeOver, MoveRenew, MoveDone, MoveRelease, MoveLapse, MoveFail, MoveOwe, MoveSubmit:
		return true
	}
	return false
}

// Step is the whole payment machine of money.md: the state after e, or an
// error that is ErrFenced, and then nothing has changed. It is pure; the SQL
// of package store makes the same moves, and its tests hold it to this
// function.
func Step(s State, e Event) (State, error) {
	next := s
	if e.Move == MoveReserve {
		return reserve(s, e)
	}
	if s.Money == "" || e.Move.fenced() && e.Epoch != s.Epoch {
		return s, refused(s, e)
	}
	unfinished := s.Work == Pending || s.Work == Running
	first := s.Policy == SettleFirst
	ok := false
	switch e.Move {
	case MoveStart:
		ok = first && s.Work == Pending && s.Money.paid()
		next.Work = Running
	case MoveTakeOver:
		// Under settle_first the work may be taken over after the payment, and
		// runs again for free.
		ok = e.Expired && unfinished && (s.Money == Held || first && s.Money.submitted())
		next.Epoch++
	case MoveRenew:
		ok = unfinished
	case MoveDone:
		// A reorganisation may undo the payment while settle_first's work runs;
		// the answer is kept all the same, and is served once it is mined again.
		ok = s.Work == Running && (!first && s.Money == Held || first && s.Money.submitted())
		next.Work = Done
	case MoveRelease:
		ok = s.Money == Held
		next.release()
	case MoveLapse:
		ok = e.Expired && unfinished && s.Money == Held
		next.release()
	case MoveFail:
		ok = first && s.Work == Running && s.Money.submitted()
		next.Work = Failed
	case MoveOwe:
		ok = e.Expired && first && unfinished && s.Money.paid()
		next.Work = Failed
	case MoveSubmit:
		ok = s.mayBeSubmitted()
		next.Money = Signed
	case MoveSign:
		ok = s.mayBeSubmitted() || s.Money == Signed
		next.Money = Signed
	case MovePaid:
		ok = s.Money == Signed
		next.Money = Mined
	case MoveFinal:
		ok = s.Money == Mined
		next.Money = Final
	case MoveUnmine:
		ok = s.Money == Mined
		next.Money = Signed
	case MoveDead:
		ok = s.Money == Signed
		next.Money = Dead
	}
	if !ok {
		return s, refused(s, e)
	}
	return next, nil
}

func reserve(s State, e Event) (State, error) {
	if s.Money != "" {
		return s, refused(s, e)
	}
	switch e.Policy {
	case SettleFirst:
		return State{Policy: e.Policy, Work: Pending, Money: Held, Epoch: 1}, nil
	case SettleBeforeResponse, Async:
		return State{Policy: e.Policy, Work: Running, Money: Held, Epoch: 1}, nil
	}
	return s, refused(s, e)
}

// mayBeSubmitted is the rule that nothing is submitted before the answer is
// stored (I3), or before there is anything to lose, under settle_first.
func (s State) mayBeSubmitted() bool {
	if s.Policy == SettleFirst {
		return s.Money == Held && s.Work == Pending
	}
	return s.Money == Held && s.Work == Done
}

// release ends the money unsubmitted. An answer that is stored stays stored:
// what failed then was the preflight, not the work.
func (s *State) release() {
	s.Money = Released
	if s.Work != Done {
		s.Work = Failed
	}
}

// paid reports whether the chain shows the payment.
func (m Money) paid() bool { return m == Mined || m == Final }

// submitted reports whether the payment was charged or may be at any moment.
func (m Money) submitted() bool { return m == Signed || m.paid() }

func refused(s State, e Event) error {
	return fmt.Errorf("%w: %s of a payment that is %s, %s, epoch %d (expected %d)", ErrFenced, e.Move, s.Work, s.Money, s.Epoch, e.Epoch)
}

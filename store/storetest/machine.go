package storetest

import (
	"errors"
	"fmt"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// machine makes the moves of ledger.Step with the store's own methods.
type machine struct {
	*fixture
	p    ledger.Payment // as it was reserved
	live *ledger.Batch  // the batch that carries it
	over bool           // the lease is
}

// begin reserves a new payment.
func (f *fixture) begin(policy ledger.Policy) *machine {
	f.Helper()
	p := f.payment()
	p.Policy = policy
	p.Counters = []ledger.Counter{{Scope: "machine", Cost: 1, Cap: 1 << 40}}
	p.Exposure = ledger.Exposure{Payer: 1 << 40, Credit: 1 << 40, Total: 1 << 40}
	p, err := f.Reserve(f.ctx(), p, "node", lease)
	f.ok(err)
	return &machine{fixture: f, p: p}
}

// now is the payment's state as the store has it.
func (m *machine) now() ledger.State {
	m.Helper()
	p := m.reload(m.p)
	return ledger.State{Policy: p.Policy, Work: p.Work, Money: p.Money, Epoch: p.Epoch}
}

// lapse ends or restores the lease. Only unfinished work has one.
func (m *machine) lapse(over bool) {
	if over == m.over {
		return
	}
	m.over = over
	d := lease
	if over {
		d = expired
	}
	_ = m.Renew(m.ctx(), m.p.ID, m.now().Epoch, d)
}

// make tries one move.
func (m *machine) make(e ledger.Event) error {
	ctx, id := m.ctx(), m.p.ID
	switch e.Move {
	case ledger.MoveReserve:
		twin := m.payment()
		twin.Key = m.p.Key
		_, err := m.Reserve(ctx, twin, "node", lease)
		if conflict(err) != nil {
			return ledger.ErrFenced
		}
		return err
	case ledger.MoveStart:
		return m.Start(ctx, id, e.Epoch)
	case ledger.MoveTakeOver:
		_, err := m.TakeOver(ctx, id, e.Epoch, "node-2", lease)
		m.over = m.over && err != nil
		return err
	case ledger.MoveRenew:
		err := m.Renew(ctx, id, e.Epoch, lease)
		m.over = m.over && err != nil
		return err
	case ledger.MoveDone:
		return m.Done(ctx, id, e.Epoch, answer(), event(m.p))
	case ledger.MoveRelease:
		return m.Release(ctx, id, e.Epoch, clawr.CodeWorkerFailure, event(m.p))
	case ledger.MoveLapse:
		n, err := m.Janitor(ctx, 0)
		if err == nil && n == 0 {
			return ledger.ErrFenced
		}
		return err
	case ledger.MoveFail:
		return m.Fail(ctx, id, e.Epoch, clawr.CodeWorkerFailure, event(m.p))
	case ledger.MoveOwe:
		n, err := m.Owe(ctx, 0)
		if err == nil && n == 0 {
			return ledger.ErrFenced
		}
		return err
	case ledger.MoveSubmit:
		return m.Submit(ctx, id, e.Epoch, "https://facilitator.example.com")
	case ledger.MoveSign:
		return m.sign()
	case ledger.MovePaid:
		return m.Paid(ctx, m.p.Key, evidence("0x"+hash(id, "paid")))
	case ledger.MoveFinal:
		return m.Final(ctx, m.p.Key, evidence("").BlockHash)
	case ledger.MoveUnmine:
		return m.Unmine(ctx, m.p.Key, evidence("").BlockHash)
	case ledger.MoveDead:
		return m.Dead(ctx, m.p.Key, "proof")
	}
	return fmt.Errorf("no such move: %s", e.Move)
}

// sign puts the payment into a batch; one that is live must end first, as a
// nonce that went to another transaction ends it.
func (m *machine) sign() error {
	if m.live != nil {
		if err := m.OrphanBatch(m.ctx(), m.live.ID); err != nil {
			return err
		}
		m.live = nil
	}
	b := m.batch(m.settlement(m.p.Key))
	err := m.Sign(m.ctx(), b)
	if err == nil {
		m.live = &b
	}
	return err
}

// everyMove walks to every state that a payment can be in, tries every move
// there, with the right and a stale epoch, with a living and an expired lease,
// and wants what ledger.Step says.
func everyMove(f *fixture) {
	type node struct {
		state ledger.State
		path  []ledger.Event
	}
	tried, states := 0, 0
	for _, policy := range []ledger.Policy{ledger.SettleBeforeResponse, ledger.Async, ledger.SettleFirst} {
		first, err := ledger.Step(ledger.State{}, ledger.Event{Move: ledger.MoveReserve, Policy: policy})
		f.ok(err)
		seen := map[ledger.State]bool{first: true}
		for queue := []node{{state: first}}; len(queue) > 0; queue = queue[1:] {
			at := queue[0]
			states++
			m := f.walk(policy, at.path)
			for _, e := range attempts(at.state) {
				tried++
				m.lapse(e.Expired)
				next, want := ledger.Step(at.state, e)
				got := m.make(e)
				if (want == nil) != (got == nil) || got != nil && !errors.Is(got, ledger.ErrFenced) || m.now() != next {
					// Booking evidence that is booked already is not an error.
					if !(e.Move == ledger.MovePaid && (at.state.Money == ledger.Mined || at.state.Money == ledger.Final) && got == nil && m.now() == at.state) {
						f.Fatalf("%+v with %+v:\nthe store: %v, then %+v\nthe machine: %v, then %+v", at.state, e, got, m.now(), want, next)
					}
				}
				if want == nil && next != at.state {
					if !seen[next] && next.Epoch < 3 {
						seen[next] = true
						queue = append(queue, node{next, append(append([]ledger.Event(nil), at.path...), e)})
					}
					m = f.walk(policy, at.path)
				}
			}
			m.lapse(false)
		}
	}
	f.Logf("%d moves in %d states", tried, states)
	if states < 30 {
		f.Errorf("only %d states were reached", states)
	}
}

// attempts are all the events worth trying in s.
func attempts(s ledger.State) (list []ledger.Event) {
	for _, move := range ledger.Moves() {
		e := ledger.Event{Move: move, Policy: s.Policy, Epoch: s.Epoch}
		switch move {
		case ledger.MoveTakeOver, ledger.MoveLapse, ledger.MoveOwe:
			late := e
			late.Expired = true
			list = append(list, e, late)
		default:
			list = append(list, e)
		}
		switch move {
		case ledger.MoveReserve, ledger.MoveLapse, ledger.MoveOwe, ledger.MoveSign, ledger.MovePaid, ledger.MoveFinal, ledger.MoveUnmine, ledger.MoveDead:
		default:
			e.Epoch, e.Expired = s.Epoch-1, true
			list = append(list, e)
		}
	}
	return list
}

// walk brings a new payment to where path leads.
func (f *fixture) walk(policy ledger.Policy, path []ledger.Event) *machine {
	f.Helper()
	m := f.begin(policy)
	for _, e := range path {
		if e.Expired {
			m.lapse(true)
		}
		if err := m.make(e); err != nil {
			f.Fatalf("%s on the way %v: %v", e.Move, path, err)
		}
	}
	return m
}

package ledger_test

import . "github.com/402claw/clawr/ledger"

// The actors. Each method tries its actor's steps from w and hands every world
// that one step leads to to m.to. What a process reads and what it writes
// later are two steps wherever the others can come between.

// step moves the row by ledger.Step, and reports whether it was allowed.
func (m *model) step(w *world, move Move, epoch uint8) bool {
	r := &w.row
	// Without fencing, who holds an older epoch is let through as if it were the row's.
	wrong := m.off == fencing && epoch != r.epoch && epoch != 0
	if wrong {
		epoch = r.epoch
	}
	got := m.table[m.index(*r, move, epoch, r.lapsed)]
	if !got.ok {
		if m.off == swap && m.blind(move) {
			return m.write(w, move)
		}
		return false
	}
	r.work, r.money, r.epoch = got.work, got.money, got.epoch
	if wrong {
		w.foul = trespass
	}
	return true
}

// blind says which writes the mutant without compare-and-swap makes whatever
// the row says: the dispatcher's.
func (m *model) blind(move Move) bool { return move == MoveRelease || move == MoveDone }

func (m *model) write(w *world, move Move) bool {
	if move == MoveRelease {
		w.row.money = mReleased
	}
	w.row.work = wDone
	return true
}

// client sends; the two of the same request in order, as they are alike.
func (m *model) client(w *world) {
	for n := range w.nodes {
		if w.nodes[n].pc != idle {
			continue
		}
		for i := range w.sends {
			if w.sends[i] != unsent || i == 1 && w.sends[0] == unsent {
				continue
			}
			x := *w
			x.sends[i] = underWay
			x.nodes[n].send = uint8(i + 1)
			if w.row.money == mNone || m.off == durable && w.row.rows == 1 && !m.mine(w, n) {
				x.nodes[n].pc = verifying
				m.to("is sent a payment, and finds no row", n, &x)
				continue
			}
			m.standing(&x, n)
		}
	}
}

// tell ends node n's call with an answer. What was said wrongly is a foul; what
// must stay true is remembered.
func (m *model) tell(why string, w *world, n int, what told) {
	x := *w
	i := x.nodes[n].send - 1
	if f := m.says(&x, i, what); f != 0 {
		x.foul = f
	}
	x.refused = x.refused || (what == told402 || what == toldNotCharged) && x.row.money != mNone
	m.end(&x, n)
	m.to(why, n, &x)
}

// end forgets a call.
func (m *model) end(w *world, n int) {
	nd := &w.nodes[n]
	w.sends[nd.send-1] = over
	nd.pc, nd.send, nd.epoch = idle, 0, 0
}

// dispatcher makes the next step of node n's call. Work that is done and not
// stored yet is work: the owner may be paused there, too.
func (m *model) dispatcher(w *world, n int) {
	switch nd := w.nodes[n]; nd.pc {
	case verifying:
		m.verify(w, n)
	case reserving:
		m.reserve(w, n)
	case working:
		m.done(w, n)
		m.failed(w, n)
		if x := *w; w.row.lapsed && m.step(&x, MoveRenew, nd.epoch) {
			x.row.lapsed = false
			m.to("renews its lease", n, &x)
		}
	case waiting:
		m.wait(w, n)
	}
}

// mine reports whether the row is in node n's memory, for the mutant that
// keeps reservations there.
func (m *model) mine(w *world, n int) bool { return w.nodes[n].epoch != 0 || w.nodes[1-n].epoch == 0 }

// standing answers a call by the row of its authorization.
func (m *model) standing(w *world, n int) {
	r := &w.row
	i := w.nodes[n].send - 1
	switch {
	case r.print != resource(i) && m.off != fingerprint:
		m.tell("409: it bought another request", w, n, told409)
	case r.ended():
		m.tell("402: it was not charged", w, n, told402)
	case r.paid() && r.work == wDone:
		m.tell("200: the stored answer", w, n, told200)
	case m.policy == Async && r.work == wDone:
		m.tell("200: the stored answer", w, n, told200)
	default:
		x := *w
		x.nodes[n].pc, x.nodes[n].epoch = waiting, 0
		m.to("follows the row", n, &x)
	}
}

// verify judges a new payment by the chain's head and the later clock. A
// refusal looks for a twin's row once more.
func (m *model) verify(w *world, n int) {
	if w.head.use == unused && w.drained != 1 && w.head.time == 0 && !w.ahead {
		x := *w
		x.nodes[n].pc = reserving
		m.to("verified", n, &x)
		return
	}
	switch {
	case w.row.money == mNone:
		m.tell("402: refused", w, n, told402)
	case m.off == secondFind:
		m.tell("402: refused", w, n, told402)
	default:
		m.standing(w, n)
	}
}

func (m *model) reserve(w *world, n int) {
	x := *w
	if m.off == durable && !m.mine(w, n) {
		x.row.work, x.row.money, x.row.epoch = wNone, mNone, 0
	}
	if !m.step(&x, MoveReserve, 0) {
		m.standing(w, n) // somebody was faster
		return
	}
	nd := &x.nodes[n]
	x.row.print, x.row.lapsed = resource(nd.send-1), false
	x.row.exposure++
	x.row.rows++
	nd.epoch, nd.pc = x.row.epoch, working
	if m.policy == SettleFirst {
		nd.pc = waiting
	}
	m.to("T1: reserves", n, &x)
}

// done is T2; async answers at once, the others wait for the money.
func (m *model) done(w *world, n int) {
	x := *w
	nd := &x.nodes[n]
	if !m.step(&x, MoveDone, nd.epoch) {
		m.tell("503: fenced", w, n, toldUnknown)
		return
	}
	x.row.answer, x.row.lapsed = resource(nd.send-1), false
	x.row.events++
	if m.policy == Async || m.off == waitSettled {
		m.tell("T2, and 200", &x, n, told200)
		return
	}
	nd.pc, nd.epoch = waiting, 0
	m.to("T2: stores the answer", n, &x)
}

func (m *model) failed(w *world, n int) {
	x := *w
	epoch := x.nodes[n].epoch
	switch {
	case m.policy != SettleFirst && m.step(&x, MoveRelease, epoch):
		m.released(&x)
		m.tell("releases, 5xx: not charged", &x, n, toldNotCharged)
	case m.policy == SettleFirst && m.step(&x, MoveFail, epoch):
		x.row.refund = m.off != refund
		x.row.lapsed = false
		m.tell("fails, a refund is due", &x, n, toldFailed)
	default:
		m.tell("503: fenced", w, n, toldUnknown)
	}
}

// released gives back what T1 took; the event that T2 wrote stays one.
func (m *model) released(w *world) {
	w.row.exposure--
	w.row.lapsed = false
}

// wait brings a call to its end once its row has one, takes over work whose
// lease is over, or gives up waiting.
func (m *model) wait(w *world, n int) {
	r, nd := &w.row, w.nodes[n]
	first := m.policy == SettleFirst
	switch {
	case r.ended(), r.work == wDone && (r.paid() || m.policy == Async):
		m.standing(w, n)
		return
	case r.work == wFailed:
		m.tell("5xx: it failed, a refund is due", w, n, toldFailed)
		return
	}
	if m.off == timeout503 {
		m.tell("402: out of time", w, n, told402)
	}
	m.tell("503: out of time", w, n, toldUnknown)
	if first && nd.epoch != 0 && r.paid() {
		if x := *w; m.step(&x, MoveStart, nd.epoch) {
			x.nodes[n].pc = working
			m.to("starts the work", n, &x)
		}
	}
	if r.lapsed && r.epoch < maxEpoch {
		if x := *w; m.step(&x, MoveTakeOver, r.epoch) {
			x.row.lapsed = false
			x.nodes[n].epoch, x.nodes[n].pc = x.row.epoch, working
			if x.row.work == wPending {
				x.nodes[n].pc = waiting
			}
			m.to("takes the work over", n, &x)
		}
	}
}

// janitor ends leases and releases what nobody finished. That a lease ends
// says nothing of its owner: it may be paused, and go on later.
func (m *model) janitor(w *world) {
	if !w.row.unfinished() || w.row.ended() {
		return
	}
	x := *w
	if !w.row.lapsed {
		x.row.lapsed = true
		m.to("the lease is over", -1, &x)
		return
	}
	if m.step(&x, MoveLapse, x.row.epoch) {
		m.released(&x)
		m.to("the janitor releases", -1, &x)
		return
	}
	if m.step(&x, MoveOwe, x.row.epoch) {
		x.row.refund = m.off != refund
		x.row.lapsed = false
		m.to("the janitor owes a refund", -1, &x)
	}
}

// settler looks at the chain and signs, in two steps; what is stored, any node
// broadcasts again.
func (m *model) settler(w *world, n int) {
	r := &w.row
	x := *w
	nd := &x.nodes[n]
	switch nd.look {
	case lookNone:
		if !m.mayLook(w) {
			return
		}
		late := w.head.time == 1 || w.ahead
		switch {
		case w.head.use == unused && !late && w.drained != 1:
			nd.look = lookGood
			m.to("preflight passes", n, &x)
		case !w.head.paid() && r.money == mHeld:
			nd.look = lookBad
			m.to("preflight refuses", n, &x)
		}
	case lookGood:
		nd.look = lookNone
		m.sign(&x, n)
	case lookBad:
		nd.look = lookNone
		if m.step(&x, MoveRelease, x.row.epoch) {
			m.released(&x)
			m.to("releases what was never submitted", n, &x)
		} else {
			m.to("finds it moved", n, &x)
		}
	}
}

// mayLook says whether there is something to submit: an answer that is stored
// (first: a reservation), or a submitted payment that no live batch carries.
func (m *model) mayLook(w *world) bool {
	r := &w.row
	if r.money == mSigned {
		return w.batches[1] == batchNone && w.batches[0] != batchNone && (w.batches[0] != batchLive || m.off == oneLive)
	}
	if m.off == answerFirst && r.work == wRunning {
		return r.money == mHeld
	}
	return r.money == mHeld && (r.work == wDone || m.policy == SettleFirst && r.work == wPending)
}

// sign is T3, or, to a remote facilitator, Submit and the request.
func (m *model) sign(w *world, n int) {
	if m.off == persist && w.row.money == mHeld {
		x := *w
		x.leaked = true
		m.to("broadcasts, and has stored nothing", n, &x)
	}
	if x := *w; w.row.money == mHeld && m.step(&x, MoveSubmit, x.row.epoch) {
		x.leaked = true
		m.to("submits to a remote facilitator", n, &x)
	}
	if m.off == submitFirst && w.row.money == mHeld && !w.leaked {
		x := *w
		x.leaked = true
		m.to("sends to a remote facilitator first", n, &x)
	}
	x := *w
	slot := 0
	if x.batches[0] != batchNone {
		slot = 1
	}
	live := x.batches[0] == batchLive || x.batches[1] == batchLive
	ok := x.batches[slot] == batchNone && (!live || m.off == oneLive)
	if ok && m.off == answerFirst && x.row.work == wRunning && x.row.money == mHeld {
		x.row.money = mSigned
	} else {
		ok = ok && m.step(&x, MoveSign, 0)
	}
	if !ok {
		m.to("may not sign any more", n, &x)
		return
	}
	x.batches[slot] = batchLive
	m.to("T3: signs", n, &x)
}

// crash empties a node's memory. It is up again at once: one that stays down
// is one that makes no step.
func (m *model) crash(w *world, n int) {
	nd := w.nodes[n]
	if w.crashes == 2 || m.spent(w) || nd.pc == idle && nd.look == lookNone {
		return
	}
	x := *w
	x.crashes++
	if nd.send != 0 {
		m.end(&x, n)
	}
	x.nodes[n] = node{}
	m.to("crashes", n, &x)
}

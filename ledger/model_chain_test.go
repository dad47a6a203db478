package ledger_test

import . "github.com/402claw/clawr/ledger"

// watcher books what the chain shows. It also broadcasts what is stored, which
// any node does.
func (m *model) watcher(w *world) {
	for i, state := range w.batches {
		if state != batchLive && state != batchOpen {
			continue
		}
		if !w.pool[i] && w.head.incl[i] == inclNone {
			x := *w
			x.pool[i], x.leaked = true, true
			m.to("broadcasts what is stored", -1, &x)
		}
		if w.head.incl[i] != inclNone {
			m.mined(w, i)
		}
	}
	for i, state := range w.batches {
		if (state == batchPaid || state == batchReverted) && w.head.incl[i] == inclNone && m.off != reorgWatch {
			x := *w
			x.batches[i] = batchLive
			if x.batches[1-i] == batchLive {
				x.batches[i] = batchOpen
			}
			m.to("the watcher takes a batch back", -1, &x)
		}
	}
	if w.row.money == mSigned {
		m.look(w)
	}
	if w.row.money != mMined {
		return
	}
	// What counts is the block, by its hash: that blocks as high are finalized
	// by now says nothing, after a reorganisation.
	seen := w.final.paid() && w.final.in == w.row.ev
	if m.off == reorgWatch {
		seen = w.final == w.head
	}
	if x := *w; seen && m.step(&x, MoveFinal, 0) {
		m.to("the watcher sees it finalized", -1, &x)
	}
	if x := *w; m.off != reorgWatch && !(w.head.paid() && w.head.in == w.row.ev) && m.step(&x, MoveUnmine, 0) {
		x.row.ev = 0
		m.to("the watcher sees its block lost", -1, &x)
	}
}

// mined books a batch's receipt. That its item reverted says nothing of the
// payment: somebody else's transaction may have paid it.
func (m *model) mined(w *world, i int) {
	x := *w
	status := m.off == receiptStatus && w.head.incl[i] == inclReverted
	switch {
	case w.head.paid() || status:
		x.batches[i] = batchPaid
		if x.row.money == mSigned && m.step(&x, MovePaid, 0) {
			x.row.ev = w.head.in
			if status {
				x.row.ev = 1 + w.fork
			}
		}
		m.to("books a batch as paid", -1, &x)
	case m.off == usedFails:
		x.batches[i] = batchReverted
		m.dead(&x, "books a revert as the end")
	default:
		x.batches[i] = batchReverted
		m.to("books a batch as reverted", -1, &x)
	}
}

// look asks the chain alone what became of a submitted payment.
func (m *model) look(w *world) {
	if w.head.paid() {
		if m.off == usedFails && w.head.use == copied {
			x := *w
			m.dead(&x, "takes a used nonce for a failure")
		}
		if x := *w; m.step(&x, MovePaid, 0) {
			x.row.ev = w.head.in
			m.to("books the evidence", -1, &x)
		}
	}
	if w.stale && w.paidIn[0] {
		// Read before the reorganisation, written after it.
		if x := *w; m.step(&x, MovePaid, 0) {
			x.row.ev = 1
			m.to("books evidence that is lost by now", -1, &x)
		}
	}
	proof := w.final.use == cancelled || w.final.time == 1 && w.head.use == unused
	switch {
	case proof:
		x := *w
		m.dead(&x, "books the proof")
	case m.off == chainClock && w.ahead && w.head.use == unused:
		x := *w
		m.dead(&x, "takes its own clock for a proof")
	case m.off == finalized && (w.head.use == cancelled || w.head.time == 1 && w.head.use == unused):
		x := *w
		m.dead(&x, "takes the head for a proof")
	}
}

func (m *model) dead(x *world, why string) {
	if !m.step(x, MoveDead, 0) {
		return
	}
	x.row.proof, x.row.lapsed = true, false
	x.row.refund = x.row.refund && m.off == undoRefund
	if m.policy != Async {
		x.row.exposure--
	}
	m.to(why, -1, x)
}

// chain makes blocks, and everything that happens to a chain.
func (m *model) chain(w *world) {
	spent := m.spent(w)
	able := w.head.use == unused && w.head.time < 1 && w.drained != 1
	for i := range w.pool {
		if !w.pool[i] {
			continue
		}
		x := *w
		x.pool[i] = false
		x.head.incl[i] = inclReverted
		if able {
			x.head.incl[i] = inclPaid
			x.use(ours)
		}
		m.to("a block has the transaction", -1, &x)
		if w.drops == 0 && !spent {
			y := *w
			y.pool[i] = false
			y.drops++
			m.to("the mempool drops the transaction", -1, &y)
		}
	}
	if able && !spent {
		x := *w
		if w.leaked {
			x.use(copied)
			m.to("somebody else submits the authorization", -1, &x)
		} else {
			x.use(own)
			m.to("the payer submits the authorization", -1, &x)
		}
	}
	if w.head.use == unused && w.head.time < 1 && !spent {
		x := *w
		x.use(cancelled)
		m.to("the payer cancels", -1, &x)
	}
	if w.head.time < 1 {
		x := *w
		x.head.time++
		m.to("the chain's time passes", -1, &x)
	}
	if w.head != w.final {
		x := *w
		x.final, x.stale = w.head, false
		m.to("the head is finalized", -1, &x)
		m.reorg(w)
	}
	if w.drained == 1 || w.drained == 0 && !spent {
		x := *w
		x.drained++
		m.to("the payer's balance changes", -1, &x)
	}
	if !w.ahead && !spent {
		x := *w
		x.ahead = true
		m.to("the nodes' clocks run ahead", -1, &x)
	}
}

// reorg takes the chain back to its finalized block, once. The transactions
// return to the mempool, which may drop them.
func (m *model) reorg(w *world) {
	if w.fork == 1 || m.spent(w) {
		return
	}
	x := *w
	x.fork, x.head = 1, w.final
	x.stale = w.head.paid() && !w.final.paid()
	for i := range x.pool {
		x.pool[i] = w.pool[i] || w.head.incl[i] != inclNone && w.final.incl[i] == inclNone
	}
	m.to("a reorganisation", -1, &x)
}

func (w *world) use(use uint8) {
	w.head.use, w.head.in = use, 1+w.fork
	if w.head.paid() {
		w.paidIn[w.fork] = true
	}
}

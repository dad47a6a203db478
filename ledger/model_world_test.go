package ledger_test

import . "github.com/402claw/clawr/ledger"

// The world of the model: one authorization, the row that two nodes keep of
// it, what both nodes have in memory, the chain with its finalized part, and
// what the client sent and was told. Small numbers only: a world is a map key.
type world struct {
	row     row
	nodes   [2]node
	sends   [3]uint8 // see unsent; the last asks for another resource
	refused bool     // the client was told that it was not charged and will not be
	batches [2]uint8 // see batchNone
	pool    [2]bool  // the batch's transaction is in the mempool

	head, final view
	fork        uint8   // 1 after the reorganisation
	stale       bool    // somebody may still hold a receipt of the lost fork
	paidIn      [2]bool // the transfer was on the canonical head in this fork, ever
	leaked      bool    // others have seen the authorization: we sent it to a chain or a facilitator
	drained     uint8   // 1: the payer's balance is gone, 2: it came back
	ahead       bool    // the nodes' clocks are past validBefore
	crashes     uint8   // that happened
	drops       uint8   // transactions that were dropped
	foul        foul    // a ghost: the last step broke a promise that no state shows
}

// row is the durable part: what ledger.State decides on, as codes, and what
// the book writes beside it in the same transaction.
type row struct {
	work, money, epoch uint8
	lapsed             bool  // its lease is over
	print              uint8 // the resource that it buys
	answer             uint8 // the resource whose answer is stored
	ev                 uint8 // 1+fork of the evidence
	proof              bool
	refund             bool
	events             uint8 // usage events that it has
	exposure           uint8 // what its counters hold, in payments
	rows               uint8 // reservations that succeeded
}

// node is what a process loses in a crash.
type node struct {
	pc    uint8
	send  uint8 // 1+index of the send that it answers
	epoch uint8 // of the row that it owns; 0: it follows somebody else's
	look  uint8 // what its settler saw before it signs, see lookNone
}

// view is the chain as far as it concerns the authorization.
type view struct {
	use  uint8    // see unused
	in   uint8    // 1+fork of the block of the use
	time uint8    // 1: past validBefore
	incl [2]uint8 // of each batch's transaction, see inclNone
}

// The states of a batch, as the book has them. One that is open carries
// nothing live (a later one does), and its transaction may be mined all the same.
const (
	batchNone = iota
	batchLive
	batchPaid
	batchReverted
	batchOpen
)

const (
	inclNone = iota
	inclPaid
	inclReverted
)

// What the chain shows of the authorization. Copied means that somebody
// carried it who saw ours; own, that the payer did before anybody saw it.
const (
	unused = iota
	ours
	copied
	own
	cancelled
)

const (
	lookNone = iota
	lookGood
	lookBad
)

// Where a dispatcher is with its call.
const (
	idle      = iota
	verifying // the book had no row
	reserving // it was verified
	working
	waiting // for the money
)

// What became of a send.
const (
	unsent = iota
	underWay
	over // answered, or its answer is lost
)

// told is what the client is told. Unknown is a 503, a lost answer or a crash:
// the client has to send the same again, and knows nothing.
type told uint8

const (
	toldUnknown    told = iota
	told200             // the answer
	told402             // a fresh challenge
	told409             // the authorization bought something else
	toldNotCharged      // 5xx that says so
	toldFailed          // 5xx that says that a refund is due
)

// foul is a promise that is broken at a moment, not by a state.
type foul uint8

const (
	trespass foul = iota + 1
	otherAnswer
	noEvent
	unpaid
	mayBeCharged
	wrong409
	noRefund
)

func (f foul) String() string {
	return [...]string{"", "fencing: a process wrote a row that another one owns", "I2: the answer of another request",
		"I10: delivered without its one usage event", "I3: 200, and the transfer was never on the chain",
		"I14: 402 or not charged while the payment may be charged", "409 to the request that was paid for",
		"told of a refund that is not due"}[f]
}

// says judges what is told for send i in w.
func (m *model) says(w *world, i uint8, what told) foul {
	r := &w.row
	switch {
	case what == told200 && (r.print != resource(i) || r.answer != r.print):
		return otherAnswer
	case what == told200 && r.events != 1:
		return noEvent
	case what == told200 && m.policy != Async && !w.paidIn[0] && !w.paidIn[1]:
		return unpaid
	case what == told402 && r.money != mNone && !r.ended(), what == toldNotCharged && !r.ended():
		return mayBeCharged
	case what == told409 && (r.money == mNone || r.print == resource(i)):
		return wrong409
	case what == toldFailed && !r.refund:
		return noRefund
	}
	return 0
}

// The codes of the row's columns; "" is no row.
var (
	workCodes  = []Work{"", Pending, Running, Done, Failed}
	moneyCodes = []Money{"", Held, Released, Signed, Mined, Final, Dead}
)

const (
	wNone = iota
	wPending
	wRunning
	wDone
	wFailed
)

const (
	mNone = iota
	mHeld
	mReleased
	mSigned
	mMined
	mFinal
	mDead
)

// maxEpoch bounds how often a row is taken over; crashes bound it, too.
const maxEpoch = 3

// resource is what send i asks for.
func resource(i uint8) uint8 {
	if i == 2 {
		return 2
	}
	return 1
}

func (v view) paid() bool    { return v.use == ours || v.use == copied || v.use == own }
func (v view) charged() bool { return v.use == ours || v.use == copied }
func (r row) paid() bool     { return r.money == mMined || r.money == mFinal }
func (r row) ended() bool    { return r.money == mReleased || r.money == mDead }
func (r row) unfinished() bool {
	return r.work == wPending || r.work == wRunning
}
func (r row) submitted() bool { return r.money == mSigned || r.paid() }

// spent reports whether a history has had all the faults that it may have. A
// paused process, a lost answer and a stale read are none: they are what
// happens between any two steps.
func (m *model) spent(w *world) bool {
	n := int(w.crashes + w.drops + w.fork)
	for _, happened := range []bool{w.drained > 0, w.ahead, w.head.use == cancelled, w.head.use == copied || w.head.use == own} {
		if happened {
			n++
		}
	}
	return n >= m.faults
}

// broken names the first invariant of money.md that w does not keep, or "".
func (m *model) broken(w *world) string {
	r := &w.row
	first, async := m.policy == SettleFirst, m.policy == Async
	charged := w.head.charged()
	stored := r.answer != 0 && r.answer == r.print
	switch {
	case r.rows > 1:
		return "I1: two reservations of one authorization"
	case w.foul != 0:
		return w.foul.String()
	case w.refused && (charged || !r.ended()):
		return "I4, I6, I14: told that it was not charged, and it may be"
	case w.leaked && (r.money == mNone || r.money == mHeld || r.money == mReleased):
		return "I4: held or released, and others have the authorization from us"
	case charged && r.ended():
		return "I4, I6: given up, and charged"
	case r.paid() && (r.ev == 0 || !w.paidIn[r.ev-1]):
		return "I5: paid without evidence"
	case r.money == mFinal && (!w.final.paid() || w.final.in != r.ev):
		return "I5: final, and the finalized chain does not show it"
	case r.ended() && r.refund:
		return "I13: a refund is due for what was not charged"
	case r.money == mDead && !r.proof:
		return "I6: dead without proof"
	case w.batches[0] == batchLive && w.batches[1] == batchLive:
		return "I7: two live batches carry one payment"
	case r.exposure > 1:
		return "I8: exposure above the cap"
	case r.money != mNone && (r.exposure == 1) == (r.money == mReleased || r.money == mDead && !async):
		return "I8: exposure is not what is held"
	case r.events > 1 || r.work == wDone && r.events != 1:
		return "I10: not one usage event"
	case r.submitted() && !first && !stored:
		return "I3, I13: submitted before the answer is stored"
	case charged && !stored && !(first && (r.unfinished() || r.work == wFailed && r.refund)):
		return "I13: charged, and neither an answer nor a refund"
	}
	return ""
}

// stuck names what is wrong with an end of the world: a state that nothing
// leads out of, every fault behind it and the chain final.
func (m *model) stuck(w *world) string {
	switch {
	case w.row.money == mNone, w.row.ended(), w.row.money == mFinal:
		return ""
	case w.row.money == mHeld && w.head.use == own:
		return "" // consumed before we submitted it: an operator's case
	}
	return "stuck: nobody brings this payment to its end"
}

package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/x402"
)

// audit holds what the payers saw, what the book says and what the chain shows
// of channels against each other. Everything is claimed when it is called. It
// trusts none of the server's code.
func (w *canal) audit(ctx context.Context, res *result) error {
	book, err := w.read(ctx)
	if err != nil {
		return fmt.Errorf("read the book: %w", err)
	}
	bed, err := w.look(ctx)
	if err != nil {
		return err
	}
	a := voucherAuditor{res: res, book: book, bed: bed, lanes: w.lanes, calls: w.calls, had: w.had}
	a.run()
	return nil
}

type voucherAuditor struct {
	res   *result
	book  *voucherBook
	bed   *bed
	lanes []*lane
	calls []*call
	had   map[common.Address]int64
}

func (a *voucherAuditor) breaks(invariant, format string, args ...any) {
	if len(a.res.Violations) < 50 {
		a.res.Violations = append(a.res.Violations, invariant+": "+fmt.Sprintf(format, args...))
	}
}

func (a *voucherAuditor) run() {
	a.payers()
	a.increments()
	for _, l := range a.lanes {
		a.channel(l)
	}
	a.sums()
	inner := auditor{res: a.res, book: &book{audit: a.book.audit}}
	inner.links()
}

// increment is one step of a channel.
type increment struct {
	channel string
	max     int64
}

// rows are the charges, by increment.
func (a *voucherAuditor) rows() map[increment]*voucherRow {
	rows := map[increment]*voucherRow{}
	for i := range a.book.bought {
		v := &a.book.bought[i]
		rows[increment{v.channel, v.max}] = v
	}
	return rows
}

// payers checks what those who paid saw: one charge for one call, one call for
// one increment, an answer for every charge, and no 402 for what was charged or
// deposited all the same.
func (a *voucherAuditor) payers() {
	rows := a.rows()
	owner := map[increment]*call{}
	for _, c := range a.calls {
		for _, f := range c.faults {
			invariant, what, _ := strings.Cut(f, ": ")
			a.breaks(invariant, "%s", what)
		}
		c.faults = nil
		charges := 0
		for _, t := range c.tries {
			at := increment{c.lane.id.Hex(), t.max}
			row := rows[at]
			mine := row != nil && c.url != refundURL && row.quote == t.quote
			if mine {
				charges++
				if other := owner[at]; other != nil && other != c {
					a.breaks("I2", "increment %d of %s bought %s and %s", t.max, at.channel[:10], other.url, c.url)
				}
				owner[at] = c
				if t.status == 200 && row.body != hex.EncodeToString(c.body[:]) {
					a.breaks("I2", "the answer that %s bought is not the one that was given", row.id)
				}
			}
			if t.refused && mine {
				a.res.Fresh402++
				a.breaks("I14", "voucher %d of %s was answered 402 (%s), and is charged", t.max, at.channel[:10], t.reason)
			}
			if t.refused && t.deposit > 0 && a.bed.used[key{lower(c.lane.config.Payer), t.nonce.Hex()}] && !corrective(t.reason) {
				a.res.Fresh402++
				a.breaks("I14", "a deposit of %d into %s was answered 402 (%s), and was made", t.deposit, at.channel[:10], t.reason)
			}
			if t.status == 200 && c.url != refundURL && !mine {
				a.breaks("unpaid", "an answer was given for %d of %s, which is not charged for it", t.max, at.channel[:10])
			}
		}
		if charges > 1 {
			a.res.Double++
			a.breaks("charged twice", "%s by %d vouchers", c.url, charges)
		}
		if charges > 0 && !c.served {
			a.res.Unserved++
			a.breaks("I13", "charged and not served: %s, last answer %d", c.url, c.last().status)
		}
	}
	for at, row := range rows {
		if owner[at] == nil {
			a.breaks("I1", "%s charged %d to %s, for which nobody asked", row.id, row.amount, at.channel[:10])
		}
	}
}

// corrective are the refusals of a voucher whose deposit may have been made: it
// is the payer's, in his channel.
func corrective(reason string) bool {
	return reason == string(x402.ReasonCumulativeMismatch) || reason == string(x402.ReasonCumulativeBalance)
}

// increments checks that charges go up without a gap, each has one event that
// bills it, and counters took all of them.
func (a *voucherAuditor) increments() {
	at := map[string]int64{}
	for _, v := range a.book.bought {
		if v.amount != perCall || v.max-v.amount != at[v.channel] {
			a.breaks("I9", "%s charges %s from %d to %d, where it stood at %d", v.id, v.channel[:10], v.max-v.amount, v.max, at[v.channel])
		}
		at[v.channel] = v.max
		if e, ok := a.book.events[v.event]; !ok || !e.billable || !e.countable || e.amount != v.amount {
			a.breaks("I10", "%s has the event %+v", v.id, e)
		}
	}
	if a.book.billable != len(a.book.bought) {
		a.breaks("I10", "%d events are billed for %d charges", a.book.billable, len(a.book.bought))
	}
	if want := int64(len(a.book.bought)) * (1 + perCall); a.book.counted != want {
		a.breaks("I11", "counters have %d, the charges took %d", a.book.counted, want)
	}
	for id, ch := range a.book.channels {
		if ch.charged+ch.forfeited != at[id] {
			a.breaks("I9", "%s has charged %d and forfeited %d, its vouchers %d", id[:10], ch.charged, ch.forfeited, at[id])
		}
	}
}

// channel checks I9 in the book and on the chain, and that they agree.
func (a *voucherAuditor) channel(l *lane) {
	id := l.id.Hex()
	row, on := a.book.channels[id], a.bed.channels[id]
	if on == nil {
		on = &bedRow{}
	}
	if on.claimed > on.balance {
		a.breaks("I9", "%s: the chain has claimed %d of %d", id[:10], on.claimed, on.balance)
	}
	if on.claimed > l.signed {
		a.res.Overclaimed++
		a.breaks("I9", "%s: %d are claimed, the payer signed for %d", id[:10], on.claimed, l.signed)
	}
	if row == nil {
		if on.claimed != 0 {
			a.breaks("I1", "%s: %d are claimed, and it has no row", id[:10], on.claimed)
		}
		return
	}
	if row.claimed > row.charged || row.charged > row.signed || row.signed > row.balance || row.charged > l.signed {
		a.breaks("I9", "%s: claimed %d, charged %d, signed %d (%d by its payer), balance %d", id[:10], row.claimed, row.charged, row.signed, l.signed, row.balance)
	}
	if on.claimed > row.charged {
		a.res.Overclaimed++
		a.breaks("I9", "%s: %d are claimed of %d that were charged", id[:10], on.claimed, row.charged)
	}
	if on.claimed != row.charged || row.claimed != on.claimed {
		a.breaks("drift", "%s: charged %d, claimed %d by the book and %d by the chain", id[:10], row.charged, row.claimed, on.claimed)
	}
	if row.forfeited > l.lost {
		a.breaks("loss", "%s: %d are lost, %d were not claimed when the payer withdrew%s", id[:10], row.forfeited, l.lost, a.history(l))
	}
}

// history is what l's payer did, and was told.
func (a *voucherAuditor) history(l *lane) string {
	var b strings.Builder
	for _, c := range a.calls {
		if c.lane != l {
			continue
		}
		for _, t := range c.tries {
			fmt.Fprintf(&b, "\n\t\t%s at %d, deposit %d: %d %s", t.kind, t.max, t.deposit, t.status, t.reason)
		}
	}
	return b.String()
}

// sums checks that book and chain agree to the unit, over all channels.
func (a *voucherAuditor) sums() {
	claimed, left := int64(0), int64(0)
	spent := map[common.Address]int64{}
	for _, l := range a.lanes {
		if on := a.bed.channels[l.id.Hex()]; on != nil {
			claimed, left = claimed+on.claimed, left+on.balance-on.claimed
			spent[l.config.Payer] += on.balance
		}
	}
	booked := int64(0)
	for _, ch := range a.book.channels {
		booked += ch.charged
	}
	if booked != a.bed.earned || claimed != a.bed.earned || a.bed.sent != a.bed.earned {
		a.breaks("sum", "the book has %d units, the chain claimed %d and sent %d, the seller has %d", booked, claimed, a.bed.sent, a.bed.earned)
	}
	if left != a.bed.held {
		a.breaks("sum", "the channels hold %d, their contract %d", left, a.bed.held)
	}
	for who, had := range a.had {
		if a.bed.has[who] != had-spent[who] {
			a.breaks("sum", "%s has %d units, and should have %d", lower(who), a.bed.has[who], had-spent[who])
		}
	}
	for tx, what := range a.bed.moved {
		if !a.book.txs[tx] {
			a.breaks("I7", "a %s was made by %s, which no batch has", what, tx)
		}
	}
}

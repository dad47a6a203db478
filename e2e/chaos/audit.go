package main

import (
	"context"
	"fmt"
	"time"
)

// audit holds what the buyers saw, what the book says and what the chain shows
// against each other, by the invariants of money.md. It trusts none of the
// server's code.
func (w *world) audit(ctx context.Context, res *result) error {
	b, err := w.read(ctx)
	if err != nil {
		return fmt.Errorf("read the book: %w", err)
	}
	g, err := w.look(ctx)
	if err != nil {
		return err
	}
	a := auditor{res: res, book: b, ground: g, payTo: lower(w.payTo), bought: w.bought, foreign: w.foreign, now: time.Now()}
	a.run()
	return nil
}

// auditor writes what it finds into res.
type auditor struct {
	res     *result
	book    *book
	ground  *ground
	payTo   string
	bought  []*purchase
	foreign map[string]bool // transactions of strangers
	now     time.Time
}

func (a *auditor) run() {
	a.buyers()
	for i := range a.book.payments {
		a.payment(&a.book.payments[i])
	}
	a.batches()
	a.sums()
	a.limits()
	a.links()
}

func (a *auditor) breaks(invariant, format string, args ...any) {
	if len(a.res.Violations) < 50 {
		a.res.Violations = append(a.res.Violations, invariant+": "+fmt.Sprintf(format, args...))
	}
}

// charged reports whether the chain took the money.
func (a *auditor) charged(k key) bool {
	_, ok := a.ground.used[k]
	return ok
}

// buyers checks what those who paid saw.
func (a *auditor) buyers() {
	prints := map[string]string{}
	for _, p := range a.bought {
		for _, f := range p.faults {
			a.breaks(f[:min(len(f), 2)], "%s", f)
		}
		p.faults = nil
		charges, owed := 0, false
		for _, auth := range p.auths {
			k := key{lower(auth.payer), auth.nonce.Hex()}
			row := a.book.byKey[k]
			charged := a.charged(k)
			if charged {
				charges++
			}
			if row != nil {
				if other, ok := prints[row.id]; ok && other != p.url {
					a.breaks("I2", "%s bought %s and %s", row.id, other, p.url)
				}
				prints[row.id] = p.url
				owed = owed || a.book.refunds[row.id]
			}
			if auth.refused && (charged || row != nil && row.money != "released" && row.money != "dead") {
				a.res.Fresh402++
				a.breaks("I14", "%s was answered 402, and is %s", k.nonce, money(row, charged))
			}
			if auth.status == 200 && !charged && (row == nil || row.policy != "async") {
				a.breaks("I3", "%s has its answer, and the chain no transfer (%s)", k.nonce, money(row, charged))
			}
			if auth.status == 200 && row == nil {
				a.breaks("I1", "%s has its answer and no row", k.nonce)
			}
		}
		if charges > 1 {
			a.res.Double++
			a.breaks("charged twice", "%s by %d authorizations", p.url, charges)
		}
		if charges > 0 && !p.served && !owed {
			a.res.Unserved++
			a.breaks("I13", "charged and not served: %s, last answer %d", p.last().nonce.Hex(), p.last().status)
		}
	}
}

func money(row *row, charged bool) string {
	if row == nil {
		return fmt.Sprintf("in no row (charged: %v)", charged)
	}
	return fmt.Sprintf("%s, %s (charged: %v)", row.work, row.money, charged)
}

// payment checks one row against the chain.
func (a *auditor) payment(p *row) {
	used, charged := a.ground.used[p.key]
	transfer, paid := a.ground.paid(p.key, p.payTo, p.amount)
	items := a.book.items[p.key]
	switch p.money {
	case "released":
		if charged || len(items) > 0 || p.tx != "" || p.batch != "" {
			a.breaks("I4", "%s is released, but was submitted (charged: %v, batches: %d)", p.id, charged, len(items))
		}
	case "mined", "final":
		switch {
		case p.tx == "" || p.block == "":
			a.breaks("I5", "%s is %s without evidence", p.id, p.money)
		case !paid:
			a.breaks("I5", "%s is %s, the chain does not show both logs", p.id, p.money)
		case p.tx != used.tx || p.block != used.block || p.logIndex != transfer.index:
			a.breaks("I5", "%s has evidence %s %s %d, the chain %s %s %d", p.id, p.tx, p.block, p.logIndex, used.tx, used.block, transfer.index)
		}
	case "dead":
		if p.proof == "" || paid {
			a.breaks("I6", "%s is dead (proof %q), charged: %v", p.id, p.proof, charged)
		}
	}
	if charged && p.money != "mined" && p.money != "final" {
		a.breaks("I5", "%s was charged, and is %s, %s", p.id, p.work, p.money)
	}
	// The answer of what was charged is kept for a day, and until it could not
	// be charged any more.
	if kept, ok := a.book.answers[p.id]; charged && !a.book.refunds[p.id] {
		least := max(a.now.Add(23*time.Hour).Unix(), p.validBefore)
		if !ok || kept.expires/1_000_000 < least {
			a.breaks("I13", "%s was charged, its answer is kept: %v, until %d", p.id, ok, kept.expires)
		}
	}
	a.events(p)
}

// events checks that a delivered call has one usage event of its own.
func (a *auditor) events(p *row) {
	own, billed, amount := 0, 0, int64(0)
	for _, e := range a.book.events[p.id] {
		if e.lifecycle == "replayed" {
			if e.billable || e.countable || e.amount != 0 {
				a.breaks("I10", "%s: replay %s counts", p.id, e.id)
			}
			continue
		}
		if e.id == p.event {
			own++
		}
		if e.billable {
			billed++
		}
		amount += e.amount
	}
	if p.work == "done" && own != 1 {
		a.breaks("I10", "%s is answered and has %d events", p.id, own)
	}
	wantBilled, wantAmount := 0, int64(0)
	if p.money == "mined" || p.money == "final" || p.policy == "async" && p.work == "done" && p.money != "dead" && p.money != "released" {
		wantBilled, wantAmount = 1, p.amount // µUSD and units are the same for this token
	}
	if (p.money == "mined" || p.money == "final") && p.work != "done" {
		wantBilled, wantAmount = billed, amount // the refund's business
	}
	if billed != wantBilled || amount != wantAmount {
		a.breaks("I10", "%s (%s, %s) has %d billed events of %d in all, want %d of %d", p.id, p.work, p.money, billed, amount, wantBilled, wantAmount)
	}
}

// batches checks the facilitator's own book: every transaction that moved
// money was in it first, and nothing is in two live batches.
func (a *auditor) batches() {
	for k, items := range a.book.items {
		live := 0
		for _, it := range items {
			if it.live {
				live++
			}
		}
		if live > 1 {
			a.breaks("I7", "%s is in %d live batches", k.nonce, live)
		}
	}
	for k, used := range a.ground.used {
		if !a.book.txs[used.tx] && !a.foreign[used.tx] {
			a.breaks("I7", "%s was charged by %s, which no batch has", k.nonce, used.tx)
		}
		if a.book.byKey[k] == nil {
			a.breaks("I1", "%s was charged and has no row", k.nonce)
		}
	}
}

// sums checks that book and chain agree to the unit.
func (a *auditor) sums() {
	booked := int64(0)
	for _, p := range a.book.payments {
		if p.money == "mined" || p.money == "final" {
			booked += p.amount
		}
	}
	if booked != a.ground.earned {
		a.breaks("sum", "the book has %d units, the chain %d", booked, a.ground.earned)
	}
}

// limits checks that counters and exposure are what the rows took, no more and
// no less, and below their caps by the schema's own constraint.
func (a *auditor) limits() {
	want, held := map[counter]int64{}, map[string]int64{}
	for _, p := range a.book.payments {
		if p.money == "released" || p.money == "dead" && p.policy != "async" {
			continue
		}
		costs, err := p.costs()
		if err != nil {
			a.breaks("I11", "%s: %v", p.id, err)
		}
		for _, c := range costs {
			want[counter{c.Scope, c.Window}] += c.Cost
		}
		if p.policy == "async" && (p.money == "held" || p.money == "signed") {
			held[p.payer] += p.amount
			held["*"] += p.amount
		}
	}
	for c, used := range a.book.counters {
		if used != want[c] {
			a.breaks("I11", "%s has used %d, the payments took %d", c.scope, used, want[c])
		}
	}
	for _, e := range a.book.exposure {
		if e.held > e.cap || e.held != held[e.payer] {
			a.breaks("I8", "%s holds %d of %d, the payments %d", e.payer, e.held, e.cap, held[e.payer])
		}
	}
}

// links checks that the audit log has neither fork nor gap.
func (a *auditor) links() {
	last := link{}
	for _, l := range a.book.audit {
		if l.chain != last.chain {
			last = link{chain: l.chain}
		}
		if l.seq != last.seq+1 || l.prev != last.hash {
			a.breaks("I12", "row %d of %s does not follow row %d", l.seq, l.chain, last.seq)
		}
		last = l
	}
}

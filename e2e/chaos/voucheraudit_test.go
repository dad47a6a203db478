package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/x402"
)

// soundChannels is two channels of one payer: three served calls, of which one
// was refused once before, and one whose seller slept through a withdrawal; all
// of it claimed and sent.
func soundChannels() *voucherAuditor {
	who := common.HexToAddress(buyer)
	a := &voucherAuditor{res: &result{}, had: map[common.Address]int64{who: 100 * perCall},
		book: &voucherBook{channels: map[string]*channelRow{}, events: map[string]event{}, txs: map[string]bool{}, audit: []link{{"directory", "", "a", 1}, {"directory", "a", "b", 2}}},
		bed:  &bed{channels: map[string]*bedRow{}, used: map[key]bool{}, has: map[common.Address]int64{}, moved: map[string]string{}}}
	for i := range 2 {
		l := &lane{config: x402.ChannelConfig{Payer: who}, id: common.Hash{byte(i + 1)}, signed: 2 * perCall}
		id := l.id.Hex()
		a.lanes = append(a.lanes, l)
		a.book.channels[id] = &channelRow{id: id, balance: 5 * perCall, claimed: 2 * perCall, charged: 2 * perCall, signed: 2 * perCall, allowed: 2 * perCall}
		a.bed.channels[id] = &bedRow{balance: 5 * perCall, claimed: 2 * perCall}
		for n := range int64(2) {
			body := sha256.Sum256(fmt.Append(nil, i, n))
			v := voucherRow{channel: id, id: fmt.Sprintf("pay_%d%d", i, n), quote: fmt.Sprint("quote", i, n), event: fmt.Sprintf("req%d%d", i, n), body: hex.EncodeToString(body[:]),
				max: (n + 1) * perCall, amount: perCall}
			a.book.bought = append(a.book.bought, v)
			a.book.events[v.event] = event{id: v.event, billable: true, countable: true, amount: perCall}
			c := &call{lane: l, url: fmt.Sprint("http://x/", i, n), served: true, body: body}
			c.tries = []*try{{kind: x402.ChannelVoucher, max: v.max, quote: v.quote, status: 200}}
			if i == 0 && n == 1 {
				c.tries = append([]*try{{kind: x402.ChannelVoucher, max: perCall, quote: "his own", status: 402, refused: true, reason: string(x402.ReasonCumulativeMismatch)}}, c.tries...)
			}
			if n == 0 {
				c.tries[0].kind, c.tries[0].deposit, c.tries[0].nonce = x402.ChannelDeposit, 5*perCall, common.Hash{byte(i), 9}
				a.bed.used[key{lower(who), c.tries[0].nonce.Hex()}] = true
			}
			a.calls = append(a.calls, c)
		}
	}
	// The second one's payer has withdrawn what his last call was owed.
	lost := a.lanes[1].id.Hex()
	a.lanes[1].lost = perCall
	*a.book.channels[lost] = channelRow{id: lost, balance: perCall, claimed: perCall, charged: perCall, signed: perCall, allowed: 2 * perCall, forfeited: perCall}
	*a.bed.channels[lost] = bedRow{balance: perCall, claimed: perCall}
	a.book.billable, a.book.counted = 4, 4*(1+perCall)
	a.bed.earned, a.bed.sent, a.bed.held = 3*perCall, 3*perCall, 3*perCall
	a.bed.has[who] = 94 * perCall
	for _, what := range []string{"deposit", "claim", "settle"} {
		a.bed.moved["tx of a "+what], a.book.txs["tx of a "+what] = what, true
	}
	return a
}

func TestSoundChannelsBreakNothing(t *testing.T) {
	a := soundChannels()
	if a.run(); len(a.res.Violations) > 0 || a.res.Double+a.res.Fresh402+a.res.Unserved+a.res.Overclaimed > 0 {
		t.Errorf("%+v", a.res)
	}
}

// Each of these is a way to lose or to steal what is paid by voucher, that the
// audit must see.
func TestTheAuditSeesEachBrokenChannel(t *testing.T) {
	first := func(a *voucherAuditor) *channelRow { return a.book.channels[a.lanes[0].id.Hex()] }
	chain := func(a *voucherAuditor) *bedRow { return a.bed.channels[a.lanes[0].id.Hex()] }
	for name, broken := range map[string]struct {
		invariant string
		by        func(a *voucherAuditor)
	}{
		"an increment that buys two answers": {"I2", func(a *voucherAuditor) {
			twin := *a.calls[0]
			twin.url = "http://x/other"
			a.calls = append(a.calls, &twin)
		}},
		"another answer than was given":        {"I2", func(a *voucherAuditor) { a.book.bought[0].body = "00" }},
		"two answers to one voucher":           {"I2", func(a *voucherAuditor) { a.calls[0].fault("I2", "two answers") }},
		"an answer that is not charged":        {"unpaid", func(a *voucherAuditor) { a.book.bought[0].quote = "somebody else's" }},
		"a charge for which nobody asked":      {"I1", func(a *voucherAuditor) { a.calls = a.calls[1:] }},
		"a claim from a channel without a row": {"I1", func(a *voucherAuditor) { delete(a.book.channels, a.lanes[0].id.Hex()) }},
		"charged twice for one call":           {"charged twice", func(a *voucherAuditor) { a.calls[0].tries = append(a.calls[0].tries, a.calls[1].tries[1]) }},
		"charged and not served":               {"I13", func(a *voucherAuditor) { a.calls[0].served = false }},
		"a 402 to a charged voucher":           {"I14", func(a *voucherAuditor) { a.calls[0].tries[0].refused = true }},
		"a 402 to a deposit that was made": {"I14", func(a *voucherAuditor) {
			t := *a.calls[0].tries[0]
			t.quote, t.refused, t.status = "", true, 402
			a.calls[2].tries = append(a.calls[2].tries, &t)
		}},
		"claimed beyond what was charged":         {"I9", func(a *voucherAuditor) { chain(a).claimed += perCall }},
		"claimed beyond what was signed":          {"I9", func(a *voucherAuditor) { a.lanes[0].signed = perCall }},
		"claimed beyond the balance":              {"I9", func(a *voucherAuditor) { chain(a).balance = perCall }},
		"charged beyond what was signed":          {"I9", func(a *voucherAuditor) { first(a).signed = perCall }},
		"signed beyond the balance":               {"I9", func(a *voucherAuditor) { first(a).balance = perCall }},
		"a gap between vouchers":                  {"I9", func(a *voucherAuditor) { a.book.bought[1].max += perCall }},
		"an increment of more than the price":     {"I9", func(a *voucherAuditor) { a.book.bought[0].amount++ }},
		"a charge without its voucher":            {"I9", func(a *voucherAuditor) { a.book.bought = append(a.book.bought[:1:1], a.book.bought[2:]...) }},
		"a claim that the book does not know":     {"drift", func(a *voucherAuditor) { first(a).claimed = perCall }},
		"a debt that was not claimed":             {"drift", func(a *voucherAuditor) { chain(a).claimed = perCall }},
		"a loss where nobody withdrew":            {"loss", func(a *voucherAuditor) { a.lanes[1].lost = perCall - 1 }},
		"no event":                                {"I10", func(a *voucherAuditor) { delete(a.book.events, "req00") }},
		"an event of another amount":              {"I10", func(a *voucherAuditor) { e := a.book.events["req00"]; e.amount++; a.book.events["req00"] = e }},
		"an event too many":                       {"I10", func(a *voucherAuditor) { a.book.billable++ }},
		"a counter that forgot one":               {"I11", func(a *voucherAuditor) { a.book.counted-- }},
		"an audit log with a gap":                 {"I12", func(a *voucherAuditor) { a.book.audit[1].seq = 3 }},
		"a transaction that was not stored first": {"I7", func(a *voucherAuditor) { delete(a.book.txs, "tx of a claim") }},
		"claimed and not sent":                    {"sum", func(a *voucherAuditor) { a.bed.sent-- }},
		"a unit too little for the seller":        {"sum", func(a *voucherAuditor) { a.bed.earned-- }},
		"a unit that left the contract":           {"sum", func(a *voucherAuditor) { a.bed.held-- }},
		"a unit that left a payer":                {"sum", func(a *voucherAuditor) { a.bed.has[common.HexToAddress(buyer)]-- }},
	} {
		t.Run(name, func(t *testing.T) {
			a := soundChannels()
			broken.by(a)
			a.run()
			sees(t, a.res, broken.invariant)
		})
	}
}

// Every boundary of paying by voucher is in the plan, on both engines.
func TestThePlanOfVouchersHasEveryBoundary(t *testing.T) {
	seen := map[string]bool{}
	for _, k := range voucherSuite.plan(7, 6, 4) {
		seen[k.Engine+" "+k.Point] = true
	}
	for _, b := range voucherBoundaries {
		for _, point := range b.points {
			for _, engine := range engines {
				if !seen[engine+" "+point] {
					t.Errorf("nobody is killed at %s on %s", point, engine)
				}
			}
		}
	}
}

package main

import (
	"bytes"
	"fmt"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

const (
	seller = "0x00000000000000000000000000000000000000bb"
	buyer  = "0x00000000000000000000000000000000000000cc"
)

// sound is two served purchases, one that was released, one that is dead, and a
// chain and a book that agree about them.
func sound() *auditor {
	now := time.Now()
	a := &auditor{res: &result{}, payTo: seller, now: now,
		book: &book{byKey: map[key]*row{}, events: map[string][]event{}, answers: map[string]answer{}, refunds: map[string]bool{}, items: map[key][]item{},
			txs: map[string]bool{}, counters: map[counter]int64{{"quota", 0}: 2}, audit: []link{{"directory", "", "a", 1}, {"directory", "a", "b", 2}},
			exposure: []exposure{{seller, buyer, 0, 10, 0}}},
		ground: &ground{used: map[key]log{}, canceled: map[key]bool{}, moved: map[place]log{}, earned: 2000, blocks: map[string]bool{}}}
	for i, money := range []string{"mined", "final", "released", "dead"} {
		nonce := common.BigToHash(big.NewInt(int64(i + 1)))
		auth := &authorization{payer: common.HexToAddress(buyer), nonce: nonce, status: 402, refused: true}
		p := row{id: fmt.Sprint("pay_", i), payTo: seller, policy: "settle_before_response", work: "done", money: money, event: "own", taken: `[{"scope":"quota","window":0,"cost":1}]`,
			key: key{buyer, nonce.Hex()}, amount: price, validBefore: now.Unix() + 90, logIndex: -1}
		events := []event{{id: "own"}, {id: "again", lifecycle: "replayed"}}
		if i < 2 {
			auth.status, auth.refused = 200, false
			p.tx, p.block, p.logIndex, p.batch = fmt.Sprint("tx", i), fmt.Sprint("block", i), 1, fmt.Sprint("bat_", i)
			events[0].billable, events[0].countable, events[0].amount = true, true, price
			a.ground.used[p.key] = log{tx: p.tx, block: p.block, index: 0}
			a.ground.moved[place{p.block, 1}] = log{tx: p.tx, block: p.block, index: 1, from: buyer, to: seller, amount: big.NewInt(price)}
			a.book.answers[p.id] = answer{"sha", now.Add(24 * time.Hour).UnixMicro()}
			a.book.items[p.key] = []item{{batch: p.batch, state: "mined", outcome: "paid", live: true, tx: p.tx}}
			a.book.txs[p.tx] = true
		}
		if money == "dead" {
			p.proof = `{"why":"expired unused"}`
		}
		a.book.events[p.id] = events
		a.book.payments = append(a.book.payments, p)
		a.bought = append(a.bought, &purchase{policy: p.policy, url: fmt.Sprint("http://x/", i), auths: []*authorization{auth}, served: i < 2})
	}
	for i := range a.book.payments {
		a.book.byKey[a.book.payments[i].key] = &a.book.payments[i]
	}
	return a
}

func TestASoundBookBreaksNothing(t *testing.T) {
	a := sound()
	if a.run(); len(a.res.Violations) > 0 || a.res.Double+a.res.Fresh402+a.res.Unserved > 0 {
		t.Errorf("%+v", a.res)
	}
}

// Each of these is a way to lose or to steal money that the audit must see.
func TestTheAuditSeesEachBrokenInvariant(t *testing.T) {
	mined, released, dead := 0, 2, 3
	for name, broken := range map[string]struct {
		invariant string
		by        func(a *auditor)
	}{
		"an answer without a row":      {"I1", func(a *auditor) { delete(a.book.byKey, a.book.payments[mined].key) }},
		"two answers to one payment":   {"I2", func(a *auditor) { a.bought[mined].fault("I2", "two answers") }},
		"an answer without a transfer": {"I3", func(a *auditor) { delete(a.ground.used, a.book.payments[mined].key) }},
		"released in a batch":          {"I4", func(a *auditor) { a.book.items[a.book.payments[released].key] = []item{{batch: "bat_9"}} }},
		"released and charged":         {"I4", func(a *auditor) { a.ground.used[a.book.payments[released].key] = log{tx: "tx0", block: "block0"} }},
		"mined without evidence":       {"I5", func(a *auditor) { a.book.payments[mined].block = "" }},
		"evidence of another block":    {"I5", func(a *auditor) { a.book.payments[mined].block = "block7" }},
		"mined without a transfer":     {"I5", func(a *auditor) { delete(a.ground.moved, place{"block0", 1}) }},
		"a transfer of less":           {"I5", func(a *auditor) { a.ground.moved[place{"block0", 1}].amount.SetInt64(price - 1) }},
		"charged and only signed":      {"I5", func(a *auditor) { a.book.payments[mined].money = "signed" }},
		"dead without proof":           {"I6", func(a *auditor) { a.book.payments[dead].proof = "" }},
		"two live batches": {"I7", func(a *auditor) {
			k := a.book.payments[mined].key
			a.book.items[k] = append(a.book.items[k], item{live: true})
		}},
		"a transaction that was not stored first": {"I7", func(a *auditor) { delete(a.book.txs, "tx0") }},
		"exposure over its cap":                   {"I8", func(a *auditor) { a.book.exposure[0].held = 11 }},
		"no event":                                {"I10", func(a *auditor) { a.book.events["pay_0"] = nil }},
		"an event twice":                          {"I10", func(a *auditor) { a.book.events["pay_0"] = append(a.book.events["pay_0"], a.book.events["pay_0"][0]) }},
		"a replay that is billed":                 {"I10", func(a *auditor) { a.book.events["pay_0"][1].billable = true }},
		"a released call that is billed":          {"I10", func(a *auditor) { a.book.events["pay_2"][0].billable = true }},
		"a counter that forgot one":               {"I11", func(a *auditor) { a.book.counters[counter{"quota", 0}] = 1 }},
		"an audit log with a gap":                 {"I12", func(a *auditor) { a.book.audit[1].seq = 3 }},
		"an audit log with a fork":                {"I12", func(a *auditor) { a.book.audit[1].prev = "z" }},
		"charged and not served":                  {"I13", func(a *auditor) { a.bought[mined].served = false }},
		"an answer that is not kept":              {"I13", func(a *auditor) { a.book.answers["pay_0"] = answer{"sha", a.now.Add(time.Hour).UnixMicro()} }},
		"a 402 to a charged payment":              {"I14", func(a *auditor) { a.bought[mined].auths[0].refused = true }},
		"charged twice":                           {"charged twice", func(a *auditor) { a.bought[mined].auths = append(a.bought[mined].auths, a.bought[1].auths[0]) }},
		"a unit too much on the chain":            {"sum", func(a *auditor) { a.ground.earned++ }},
		"a row too much in the book":              {"sum", func(a *auditor) { a.book.payments[dead].money = "mined" }},
	} {
		t.Run(name, func(t *testing.T) {
			a := sound()
			broken.by(a)
			a.run()
			sees(t, a.res, broken.invariant)
		})
	}
}

// sees checks that an audit found an invariant broken.
func sees(t *testing.T, res *result, invariant string) {
	t.Helper()
	if !slices.ContainsFunc(res.Violations, func(v string) bool { return strings.HasPrefix(v, invariant+": ") }) {
		t.Errorf("%v, want %s", res.Violations, invariant)
	}
}

// A shard is a part of the whole, and all of them are all of it.
func TestShardsMakeUpThePlan(t *testing.T) {
	list := exactSuite.plan(7, 2, 10)
	if want := 2*len(boundaries)*len(policies)*len(engines) + 10; len(list) != want {
		t.Fatalf("%d kills, want %d", len(list), want)
	}
	seen := map[int]int{}
	for i := range 3 {
		var s shard
		if err := s.Set(fmt.Sprintf("%d/3", i+1)); err != nil {
			t.Fatal(err)
		}
		for _, k := range exactSuite.plan(7, 2, 10) {
			if s.has(k) {
				if k != list[k.Index] {
					t.Errorf("kill %d is not always the same", k.Index)
				}
				seen[k.Index]++
			}
		}
	}
	for _, k := range list {
		if seen[k.Index] != 1 {
			t.Errorf("kill %d is in %d shards", k.Index, seen[k.Index])
		}
	}
	// Also where what takes turns does so in step with the shards.
	for i := range 4 {
		has := map[string]bool{}
		for _, k := range exactSuite.plan(7, 2, 100) {
			if s := (shard{i + 1, 4}); s.has(k) {
				has[k.Engine], has[k.Policy] = true, true
			}
		}
		if len(has) != len(engines)+len(policies) {
			t.Errorf("shard %d/4 has only %v", i+1, has)
		}
	}
	for _, bad := range []string{"", "0/3", "4/3", "1", "a/b", "1/3x"} {
		if err := new(shard).Set(bad); err == nil {
			t.Errorf("%q is a shard", bad)
		}
	}
}

// A run that was cut short knows what it has done, also when its last line is
// half of one.
func TestProgressIsRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "progress")
	s, err := openSummary(exactSuite, path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := s.add(result{Index: i, Seed: uint64(i), Boundary: "mined", Kills: 1, Reconciled: float64(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.file.WriteString(`{"Index":3,"Kil`); err != nil {
		t.Fatal(err)
	}
	s.close()
	if s, err = openSummary(exactSuite, path); err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var out bytes.Buffer
	s.print(&out, "again")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if want := `{"kills":3,"violations":0,"double_charges":0,"fresh_402":0,"unserved":0,"max_reconcile_s":2}`; lines[len(lines)-1] != want || !s.knows(kill{Index: 2, Seed: 2}) || s.knows(kill{Index: 2, Seed: 9}) || s.knows(kill{Index: 3, Seed: 3}) {
		t.Errorf("%s, want %s", out.String(), want)
	}
}

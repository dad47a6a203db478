package facilitator

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/402claw/clawr/ledger"
)

func waiting(payTo string, before int64, most int) *order {
	return newOrder(item{Settlement: ledger.Settlement{PayTo: payTo, ValidBefore: before}}, nil, most, time.Time{})
}

// What is taken is what was put, each once; no batch is larger than any of its
// payments allows; a line is served in the order in which its payments end; and
// no payee waits for more batches than there are other payees.
func TestLawOfTheIntake(t *testing.T) {
	const payees = 5
	rapid.Check(t, func(t *rapid.T) {
		var q intake
		var put, seen []*order
		in := map[*order]bool{}
		passed := map[string]int{} // payments of others since a payee's line was not empty
		taking := func() {
			most := rapid.IntRange(1, 8).Draw(t, "most")
			lines := map[string]bool{}
			for o := range in {
				lines[o.PayTo] = true
			}
			got := q.take(most)
			if len(in) > 0 && len(got) == 0 || len(got) > most {
				t.Fatalf("%d taken of %d, at most %d", len(got), len(in), most)
			}
			served := map[string]int{}
			for _, o := range got {
				if !in[o] || o.stage.Load() != taken || len(got) > o.most {
					t.Fatalf("took %+v in a batch of %d", o.Settlement, len(got))
				}
				delete(in, o)
				for other := range in {
					if other.PayTo == o.PayTo && other.ValidBefore < o.ValidBefore {
						t.Fatalf("%d of %s before %d", o.ValidBefore, o.PayTo, other.ValidBefore)
					}
				}
				served[o.PayTo]++
			}
			for i := range payees {
				switch l := fmt.Sprint("payee", i); {
				case served[l] > 0 || !lines[l]:
					passed[l] = 0
				default:
					if passed[l]++; passed[l] >= payees {
						t.Fatalf("%s was passed over by %d batches, of %d payees", l, passed[l], payees)
					}
				}
			}
			if rapid.IntRange(0, 3).Draw(t, "back") == 0 {
				q.putBack(got)
				for _, o := range got {
					in[o] = true
				}
				for l := range lines {
					passed[l] = 0 // the turns begin anew
				}
				return
			}
			seen = append(seen, got...)
		}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				o := waiting(fmt.Sprint("payee", rapid.IntRange(0, payees-1).Draw(t, "payee")), rapid.Int64Range(0, 9).Draw(t, "before"), rapid.SampledFrom([]int{1, 2, 8, 8, 8}).Draw(t, "most"))
				q.put(o)
				put, in[o] = append(put, o), true
			},
			"take": func(*rapid.T) { taking() },
			"withdraw": func(t *rapid.T) {
				if len(put) == 0 {
					return
				}
				o := rapid.SampledFrom(put).Draw(t, "order")
				was := in[o]
				if got := q.withdraw(o); was && !got {
					t.Fatal("what waits cannot be withdrawn")
				}
				delete(in, o)
			},
			"": func(t *rapid.T) {
				if q.waiting() != len(in) {
					t.Fatalf("%d wait, want %d", q.waiting(), len(in))
				}
			},
		})
		for len(in) > 0 {
			taking()
		}
		slices.SortFunc(seen, func(a, b *order) int { return int(a.seq - b.seq) })
		for i := 1; i < len(seen); i++ {
			if seen[i] == seen[i-1] {
				t.Fatal("one payment was taken twice")
			}
		}
	})
}

// A flood of one payee's payments, however large, costs another payee one
// batch: a thousand times over.
func TestMustPass19NoAttemptToStarveAPayeeSucceeds(t *testing.T) {
	var q intake
	end := int64(0)
	flood := func(n int) {
		for range n {
			end++
			q.put(waiting("0xflood", end-1_000_000, 200)) // all of them more urgent
		}
	}
	flood(5_000)
	starved := 0
	for i := range 1_000 {
		victim := waiting(fmt.Sprint("0xvictim", i%7), 1_000_000, 200)
		q.put(victim)
		flood(150)
		if !slices.Contains(q.take(100), victim) {
			starved++
		}
	}
	if starved > 0 {
		t.Errorf("%d of 1000 payments were not in the next batch", starved)
	}
}

// Nothing is lost when everybody leaves, and no memory is held.
func TestWithdrawnPaymentsLeaveNoTrace(t *testing.T) {
	var q intake
	var all []*order
	for i := range 1_000 {
		o := waiting(fmt.Sprint(i%10), int64(i%17), 8)
		q.put(o)
		all = append(all, o)
	}
	for _, o := range all {
		if !q.withdraw(o) {
			t.Fatal("not withdrawn")
		}
	}
	if q.waiting() != 0 || len(q.lines) != 0 || len(q.turns) != 0 || len(q.take(10)) != 0 {
		t.Errorf("%d wait in %d lines", q.waiting(), len(q.lines))
	}
}

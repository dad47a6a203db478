package dispatch

import (
	"regexp"
	"sync"
	"testing"
)

func TestNumbersAreGivenOnceAndNeighboursFollowEachOther(t *testing.T) {
	const callers, each = 8, 3 * run
	var n numbers
	lists := make([][]uint64, callers)
	var wait sync.WaitGroup
	for i := range lists {
		wait.Go(func() {
			for range each {
				lists[i] = append(lists[i], n.take())
			}
		})
	}
	wait.Wait()
	given, runs := map[uint64]bool{}, map[uint64]bool{}
	for _, list := range lists {
		for _, n := range list {
			if given[n] {
				t.Fatalf("%x was given twice", n)
			}
			given[n], runs[n/run] = true, true
		}
	}
	if want := callers * each / run; len(runs) != want {
		t.Errorf("%d numbers are of %d runs, want %d", len(given), len(runs), want)
	}
}

func TestIDsAreInTheOrderOfTheirNumbers(t *testing.T) {
	d := &Dispatcher{numbers: numbers{next: 0x0123456789abcd00 + 1}}
	a, b := d.newID("req_"), d.newID("pay_")
	if a != "req_0123456789abcd01" || b != "pay_0123456789abcd02" {
		t.Errorf("%s, %s", a, b)
	}
	other := new(Dispatcher)
	if id := other.newID("req_"); !regexp.MustCompile(`^req_[0-9a-f]{16}$`).MatchString(id) || id == new(Dispatcher).newID("req_") {
		t.Errorf("%s", id)
	}
}

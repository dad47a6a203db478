package dataset

import (
	"context"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
)

func gcPercent() int {
	p := debug.SetGCPercent(100)
	debug.SetGCPercent(p)
	return p
}

func TestIngestsLeaveTheCollectorAsItWas(t *testing.T) {
	for _, was := range []int{100, 37, 5, -1} {
		before := debug.SetGCPercent(was)
		during := was
		if was < 0 || was > 10 {
			during = 10
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				_, _ = Inspect(context.Background(), strings.NewReader("a\n1\n"), "x.csv", Options{})
			})
		}
		wg.Wait()
		first, second := tight.begin(), tight.begin()
		for _, end := range []func(){first, second} {
			if got := gcPercent(); got != during {
				t.Errorf("while something is ingested, the setting %d is %d, want %d", was, got, during)
			}
			end()
		}
		if _, err := Inspect(context.Background(), strings.NewReader("a\n"), "x.csv", Options{}); err == nil {
			t.Error("an empty file is a dataset")
		}
		if got := debug.SetGCPercent(before); got != was {
			t.Errorf("the setting was %d and is %d", was, got)
		}
	}
}

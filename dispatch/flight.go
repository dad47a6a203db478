package dispatch

import (
	"context"
	"sync"
	"time"

	"github.com/402claw/clawr/ledger"
)

// flights are the payments that this process works on right now, so that a
// second presentation of one waits for the first instead of asking the book in
// a loop. Other nodes' are found by asking.
type flights struct {
	mu sync.Mutex
	m  map[ledger.Key]*flight
}

type flight struct {
	n    int // calls that work on it
	done chan struct{}
}

// begin says that this call works on key, until end is called. Calling end
// twice is calling it once.
func (f *flights) begin(key ledger.Key) (end func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil {
		f.m = map[ledger.Key]*flight{}
	}
	fl := f.m[key]
	if fl == nil {
		fl = &flight{done: make(chan struct{})}
		f.m[key] = fl
	}
	fl.n++
	return sync.OnceFunc(func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if fl.n--; fl.n == 0 {
			delete(f.m, key)
			close(fl.done)
		}
	})
}

// wait returns when there may be news about key, and false when the time or
// the client is gone.
func (f *flights) wait(ctx, client context.Context, key ledger.Key) bool {
	f.mu.Lock()
	var done chan struct{}
	if fl := f.m[key]; fl != nil {
		done = fl.done
	}
	f.mu.Unlock()
	pause := time.NewTimer(100 * time.Millisecond)
	defer pause.Stop()
	if done != nil {
		pause.Reset(2 * time.Second)
	}
	select {
	case <-done:
		return true
	case <-pause.C:
		return true
	case <-ctx.Done():
		return false
	case <-client.Done():
		return false
	}
}

// has reports whether somebody in this process works on key right now.
func (f *flights) has(key ledger.Key) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m[key] != nil
}

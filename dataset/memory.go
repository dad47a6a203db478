package dataset

import (
	"runtime/debug"
	"sync"
)

// tight is the collector's setting, which a process has once: while anything
// is ingested, the heap may hold a tenth of garbage rather than as much again.
// Ingest keeps a whole file in few large pieces without pointers, so that
// looking for garbage costs little and garbage would cost the file's size.
var tight thrifty

// thrifty counts who wants little garbage.
type thrifty struct {
	mu     sync.Mutex
	users  int
	before int // the setting that the first of them found
}

// begin makes the collector thrifty; the last of those who call what it gives
// makes it what it was. A setting that is lower already stays.
func (t *thrifty) begin() (end func()) {
	const percent = 10
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.users == 0 {
		t.before = debug.SetGCPercent(percent)
		if t.before >= 0 && t.before < percent {
			debug.SetGCPercent(t.before)
		}
	}
	t.users++
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.users--; t.users == 0 {
			debug.SetGCPercent(t.before)
		}
	}
}

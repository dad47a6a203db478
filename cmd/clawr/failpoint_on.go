//go:build failpoint

package main

import (
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// failpoint is what every part of this process calls at its boundaries. It
// ends the process, as kill -9 does, when the boundary that
// CLAWR_FAILPOINT=name[:n] names is reached for the nth time.
// CLAWR_FAILPOINT_FILE names a file that says the same of a process that runs
// already: it is read at every boundary, and counting begins with its text.
var failpoint = sync.OnceValue(func() func(string) {
	text, file := os.Getenv("CLAWR_FAILPOINT"), os.Getenv("CLAWR_FAILPOINT_FILE")
	if text == "" && file == "" {
		return nil
	}
	var mu sync.Mutex
	hits := int64(0)
	return func(at string) {
		mu.Lock()
		defer mu.Unlock()
		if file != "" {
			if b, err := os.ReadFile(file); err == nil && string(b) != text {
				text, hits = string(b), 0
			}
		}
		name, count, _ := strings.Cut(strings.TrimSpace(text), ":")
		if at != name {
			return
		}
		n, err := strconv.ParseInt(count, 10, 64)
		if err != nil {
			n = 1
		}
		if hits++; hits == n {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
})

// clock is ahead of the machine's by CLAWR_CLOCK_AHEAD, so that what takes a
// quarter of an hour, such as a withdrawal, can be over for a process that is
// started again.
var clock = sync.OnceValue(func() func() time.Time {
	ahead, _ := time.ParseDuration(os.Getenv("CLAWR_CLOCK_AHEAD"))
	return func() time.Time { return time.Now().Add(ahead) }
})

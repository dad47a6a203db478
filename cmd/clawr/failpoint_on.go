//go:build failpoint

package main

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// failpoint ends this process, as kill -9 does, when the boundary that
// CLAWR_FAILPOINT=name[:n] names is reached for the nth time.
func failpoint() func(string) {
	name, count, _ := strings.Cut(os.Getenv("CLAWR_FAILPOINT"), ":")
	if name == "" {
		return nil
	}
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		n = 1
	}
	var hits atomic.Int64
	return func(at string) {
		if at == name && hits.Add(1) == n {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
}

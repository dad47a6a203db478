//go:build !linux

package dataset

import "time"

var epoch = time.Now()

// threadCPU falls back to time on the wall, which bounds CPU time from above.
func threadCPU() time.Duration { return time.Since(epoch) }

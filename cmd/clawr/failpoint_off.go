//go:build !failpoint

package main

import "time"

// failpoint is nil in every build but those of the crash tests, so that the
// boundaries of the money path cost a comparison.
func failpoint() func(string) { return nil }

// clock is the time that this process goes by.
func clock() func() time.Time { return time.Now }

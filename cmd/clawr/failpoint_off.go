//go:build !failpoint

package main

// failpoint is nil in every build but those of the crash tests, so that the
// boundaries of the money path cost a comparison.
func failpoint() func(string) { return nil }

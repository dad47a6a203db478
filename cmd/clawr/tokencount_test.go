package main

import (
	"context"
	"errors"
	"testing"
	"time"
)

// The tokens are counted once a second, and an error is not remembered.
func TestTokensAreCountedOnceASecond(t *testing.T) {
	var c tokenCount
	now, asked, n := time.Unix(1000, 0), 0, 0
	var fails error
	lately := func() (int, error) {
		return c.lately(t.Context(), now, func(context.Context) (int, error) { asked++; return n, fails })
	}
	for range 5 {
		if got, err := lately(); got != 0 || err != nil {
			t.Fatalf("%d, %v", got, err)
		}
	}
	n = 1
	now = now.Add(time.Second)
	if got, _ := lately(); got != 1 || asked != 2 {
		t.Errorf("%d tokens after a second, asked %d times", got, asked)
	}
	now, fails = now.Add(time.Second), errors.New("x")
	if _, err := lately(); err == nil {
		t.Error("an error was taken for no tokens")
	}
	fails = nil
	if got, err := lately(); got != 1 || err != nil {
		t.Errorf("after an error: %d, %v", got, err)
	}
}

package dataset

import (
	"context"
	"runtime"
	"time"

	"github.com/402claw/clawr"
)

// meter bounds the CPU time of one query. It counts steps (a row tested, or a
// few tens of bytes looked at) and every few thousand of them reads the CPU
// clock of its thread, to which the goroutine is tied from the first reading
// on. So a query that touches little pays nothing for being bounded, and one
// that waits for a CPU is not charged for waiting.
type meter struct {
	ctx    context.Context
	limit  time.Duration // 0 = none
	steps  int
	start  time.Duration
	locked bool
	err    error // once it has been stopped
}

// sampleSteps take 5 to 50 µs, whichever the steps are; what ran before the
// first sample is not counted.
const sampleSteps = 8192

// spend counts n steps. Its error is the context's, or cpu_limit.
func (m *meter) spend(n int) error {
	if m.steps += n; m.steps < sampleSteps {
		return m.err
	}
	return m.sample()
}

func (m *meter) sample() error {
	m.steps = 0
	if m.err == nil {
		m.err = m.check()
	}
	return m.err
}

func (m *meter) check() error {
	if err := m.ctx.Err(); err != nil {
		return err
	}
	if m.limit <= 0 {
		return nil
	}
	if !m.locked {
		runtime.LockOSThread()
		m.locked, m.start = true, threadCPU()
		return nil
	}
	if used := threadCPU() - m.start; used > m.limit {
		return &clawr.Error{Code: clawr.CodeCPULimit, Message: "the query needs more than the " + m.limit.String() + " of CPU time that this API's plan allows; you were not charged",
			Fix: "filter by an indexed column, ask for fewer rows, or leave out count=exact", RetryAfter: time.Second}
	}
	return nil
}

// done unties the goroutine.
func (m *meter) done() {
	if m.locked {
		runtime.UnlockOSThread()
		m.locked = false
	}
}

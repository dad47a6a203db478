package dispatch

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/402claw/clawr/ledger"
)

// leaseTime is how long a reservation is left alone after its owner was last
// heard of, and beat how often it is heard of (money.md, "Named cases").
const (
	leaseTime = 15 * time.Second
	beat      = leaseTime / 3
)

// A heart renews one lease. Most calls are over before it beats once.
type heart struct {
	cancel context.CancelFunc
	mu     sync.Mutex // held during a beat, so that stop waits for it
	timer  *time.Timer
	over   bool
}

// keep renews row's lease until stop is called, which may be done twice, or
// until somebody else has the row. A process that is paused does not renew
// anything: when it goes on, its writes are fenced.
func (d *Dispatcher) keep(ctx context.Context, row *ledger.Payment) (stop func()) {
	h := &heart{}
	ctx, h.cancel = context.WithCancel(ctx)
	id, epoch := row.ID, row.Epoch
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = time.AfterFunc(beat, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.over {
			return
		}
		if err := d.Recovery.Renew(ctx, id, epoch, leaseTime); err != nil {
			if errors.Is(err, ledger.ErrFenced) {
				return
			}
			if ctx.Err() == nil {
				d.Log.WarnContext(ctx, "lease not renewed", "payment", id, "err", err)
			}
		}
		h.timer.Reset(beat)
	})
	return h.stop
}

func (h *heart) stop() {
	h.cancel()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
	h.timer.Stop()
}

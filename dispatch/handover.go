package dispatch

import (
	"context"

	"github.com/402claw/clawr/ledger"
)

// Carry brings a payment to its end whose answer is stored, for the node that
// answered it and does not settle: it is settled, or released if it was never
// submitted and cannot be. It returns at the deadline at the latest.
func (d *Dispatcher) Carry(ctx context.Context, p ledger.Payment) {
	if d.Payments == nil || d.flights.has(p.Key) {
		return
	}
	d.settleOpen(ctx, p)
}

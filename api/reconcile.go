package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// Step is one thing that happened to a payment.
type Step struct {
	At     time.Time `json:"at,omitzero"` // zero where the book does not say
	What   string    `json:"what"`
	Detail string    `json:"detail,omitempty"`
}

// Reconciler asks the chain what the book should say.
type Reconciler interface {
	// Reconcile finds out from the chain, by payer and nonce, what became of a
	// payment that may have been submitted, books it, and gives the outcome.
	Reconcile(context.Context, ledger.Payment) (ledger.Outcome, error)
	// Compare holds what the book says was charged against the transfers that
	// the chain shows to the same addresses.
	Compare(context.Context) ([]Account, error)
}

// Account is what an address earned of a token, as the book and as the chain
// have it. Units are the token's atomic ones.
type Account struct {
	Network     string       `json:"network"`
	Asset       string       `json:"asset"`
	PayTo       string       `json:"payTo"`
	FromBlock   int64        `json:"fromBlock"`
	ToBlock     int64        `json:"toBlock"`
	Payments    int          `json:"payments"`
	Transfers   int          `json:"transfers"`
	Booked      int64        `json:"booked"`    // units that the book says were charged
	Shown       int64        `json:"shown"`     // units that the chain shows
	Drift       int64        `json:"drift"`     // shown − booked
	Explained   int64        `json:"explained"` // of Drift, by what the differences name
	Refunds     int          `json:"refunds"`   // that the book says the chain shows
	Refunded    int64        `json:"refunded"`  // units of those
	Returned    int64        `json:"returned"`  // units of refunds that the chain shows
	Differences []Difference `json:"differences"`
}

// Difference names one payment or transfer that the other side does not have.
type Difference struct {
	// Kind is not_booked (an authorization that the book has no charge for),
	// not_ours (a transfer without an authorization: somebody just paid),
	// not_on_chain (a charge without its transfer) or amount (both, unequal); or,
	// of what was paid back, refund_not_on_chain (one without its transfer) or
	// refund_not_booked (a transfer whose refund the book takes for unpaid).
	Kind        string `json:"kind"`
	Payment     string `json:"payment,omitempty"`
	Payer       string `json:"payer,omitempty"`
	Nonce       string `json:"nonce,omitempty"`
	Transaction string `json:"transaction"`
	LogIndex    int64  `json:"logIndex"`
	Booked      int64  `json:"booked"`
	Shown       int64  `json:"shown"`
}

// The kinds of differences.
const (
	NotBooked  = "not_booked"
	NotOurs    = "not_ours"
	NotOnChain = "not_on_chain"
	Amounts    = "amount"

	RefundNotOnChain = "refund_not_on_chain"
	RefundNotBooked  = "refund_not_booked"
)

// Reconciled is what became of one payment when the chain was asked.
type Reconciled struct {
	Outcome string     `json:"outcome"` // charged, not_charged, pending, unknown
	Reason  clawr.Code `json:"reason,omitempty"`
	Payment Payment    `json:"payment"` // afterwards
}

type comparison struct {
	Accounts []Account `json:"accounts"`
}

var noChain = &clawr.Error{Code: clawr.CodeFacilitatorDown, Status: http.StatusServiceUnavailable, Message: "nobody here knows the chain",
	Fix: "run it while clawr serve or clawr dev has the data directory"}

func (h *Handler) reconcilePayment(r *request) (any, error) {
	id := r.PathValue("id")
	p, err := h.Payments.Payment(r.Context(), id)
	switch {
	case clawr.CodeOf(err) == clawr.CodeNotFound || err == nil && p == nil:
		return nil, refuse(clawr.CodeNotFound, "payment", fmt.Sprintf("no payment %q", printable(id)), "clawr payments list shows them")
	case err != nil:
		return nil, err
	}
	out := Reconciled{Outcome: "not_charged", Reason: p.ErrorCode}
	// Of what was never submitted, and of what is dead, the chain has nothing to say.
	switch p.Money {
	case ledger.Signed, ledger.Mined, ledger.Final:
		if h.Reconciler == nil {
			return nil, noChain
		}
		got, err := h.Reconciler.Reconcile(r.Context(), *p)
		if err != nil {
			return nil, err
		}
		out.Reason = got.Reason
		switch got.State {
		case ledger.Settled:
			out.Outcome, out.Reason = "charged", ""
		case ledger.NotCharged:
			out.Outcome = "not_charged"
		case ledger.Broadcast:
			out.Outcome = "pending"
		default:
			out.Outcome = "unknown"
		}
		if p, err = h.Payments.Payment(r.Context(), id); err != nil {
			return nil, err
		}
	case ledger.Held:
		out.Outcome, out.Reason = "pending", "not_submitted"
	}
	slugs, err := h.slugs(r)
	if err != nil {
		return nil, err
	}
	out.Payment = h.payment(p, slugs)
	return out, nil
}

func (h *Handler) compare(r *request) (any, error) {
	if h.Reconciler == nil {
		return nil, noChain
	}
	list, err := h.Reconciler.Compare(r.Context())
	if list == nil {
		list = []Account{}
	}
	return comparison{list}, err
}

// Reconcile asks the chain about one payment.
func (c *Client) Reconcile(ctx context.Context, id string) (out Reconciled, err error) {
	err = c.do(ctx, http.MethodPost, at("/v1/payments/", id, "/reconcile"), nil, nil, 0, &out)
	return out, err
}

// Compare holds the book against the chain.
func (c *Client) Compare(ctx context.Context) ([]Account, error) {
	var out comparison
	err := c.do(ctx, http.MethodPost, "/v1/reconcile", nil, nil, 0, &out)
	return out.Accounts, err
}

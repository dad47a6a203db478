package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/x402"
)

// repaying is n's refunds as the control plane sees them.
type repaying struct {
	*store.DB
	n *node
}

// refunder sees n's signed refunds through; nil where nobody settles.
func (n *node) newRefunder() *facilitator.Refunder {
	if n.payments == nil {
		return nil
	}
	witness, _ := n.set.signers()
	r := &facilitator.Refunder{Network: n.set.asset.Network, Book: n.db, Settle: n.payments.Settle, Chain: witness, Now: clock(), Log: n.log}
	switch s, ok := n.payments.(*shared); {
	case len(n.set.remotes) > 0:
		r.Via = n.set.remotes[0]
	case ok:
		// What another node leads, that one sees through: it has no payment that
		// could be waited for.
		r.Settle, r.Leads = n.settler.Settle, func() bool { return len(s.able()) > 0 }
	}
	return r
}

// Repay checks a signature as a facilitator checks a payment: that it is the
// seller's, that he has the money beside what he has signed already, and that
// somebody pays for gas. Then it is stored, and seen through by Run.
func (r repaying) Repay(ctx context.Context, f ledger.Refund, validBefore int64, signature []byte, by string) error {
	n := r.n
	if n.refunder == nil {
		return &clawr.Error{Code: clawr.CodeFacilitatorDown, Status: http.StatusServiceUnavailable, Message: "nobody here settles", Fix: "run it while clawr serve or clawr dev has the data directory"}
	}
	asset := n.set.asset
	if f.Payment.Network != asset.Network || f.Payment.Asset != asset.Address {
		return &clawr.Error{Code: clawr.CodeWrongChain, Status: http.StatusConflict, Param: "payment", Message: fmt.Sprintf("%s was paid with %s on %s, and %s on %s is settled here", f.PaymentID, f.Payment.Asset, f.Payment.Network, asset.Address, asset.Network),
			Fix: fmt.Sprintf("run it while clawr serve --network %s --asset %s has the data directory", f.Payment.Network, f.Payment.Asset)}
	}
	p, err := n.db.Payment(ctx, f.PaymentID)
	switch {
	case err != nil:
		return err
	case p == nil || p.Money != ledger.Final:
		return &clawr.Error{Code: clawr.CodeConflict, Status: http.StatusConflict, Param: "payment", Message: f.PaymentID + " is not final yet: a reorganisation may take back that it was charged", Fix: "try again in some minutes; clawr payments show " + f.PaymentID + " says when it is final"}
	}
	auth, terms := facilitator.Repayment(&f, asset, validBefore)
	payload := facilitator.SignedRepayment(auth, terms, signature)
	if err := r.foretell(ctx, &f, payload, terms); err != nil {
		return err
	}
	f.Nonce, f.ValidBefore, f.Payload = ledger.RefundNonce(f.Payment), validBefore, payload.JSON()
	if err := n.db.SignRefund(ctx, f, by); errors.Is(err, ledger.ErrFenced) {
		now, rerr := n.db.Refund(ctx, f.PaymentID)
		if rerr != nil || now != nil && !now.Payable() { // somebody else signed it meanwhile
			return rerr
		}
		return &clawr.Error{Code: clawr.CodeConflict, Status: http.StatusConflict, Param: "payment", Message: "a transaction with what was signed before for " + f.PaymentID + " is in no block yet", Fix: "try again in a minute"}
	} else if err != nil {
		return err
	}
	n.refunder.Poke()
	return nil
}

// foretell is an error if what is signed for f would not go through now.
func (r repaying) foretell(ctx context.Context, f *ledger.Refund, payload *x402.PaymentPayload, terms x402.Requirements) error {
	n := r.n
	v, err := n.payments.Verify(ctx, payload, terms)
	if err != nil {
		if e, ok := errors.AsType[*clawr.Error](errors.Unwrap(err)); ok && e.Code == clawr.CodeUnfunded {
			return e
		}
		return err
	}
	refused := func(message, fix string) error {
		return &clawr.Error{Code: v.InvalidReason, Status: http.StatusConflict, Param: "payment", Message: message, Fix: fix}
	}
	switch {
	case v.IsValid || v.InvalidReason == x402.ReasonNonceUsed && f.Proof == "":
		// One that is used already was paid before this book knew of it: what is
		// signed finds its transfer, and moves nothing.
	case v.InvalidReason == x402.ReasonBalance:
		return refused(f.From+" has too little to pay "+f.PaymentID+" back", fmt.Sprintf("send %d units of %s to %s", f.Amount, f.Payment.Asset, f.From))
	case v.InvalidReason == x402.ReasonSignature:
		return refused("the signature is not that of "+f.From+", who was paid for "+f.PaymentID, "set CLAWR_PAY_TO_KEY to the key of "+f.From)
	case v.InvalidReason == x402.ReasonNonceUsed:
		return refused("the seller cancelled what pays "+f.PaymentID+" back, or used its nonce for something else: it cannot be paid by clawr any more", "pay the buyer by hand, if he was not")
	default:
		return refused("the chain would not carry it out: "+v.InvalidMessage, "clawr payments show "+f.PaymentID)
	}
	if !v.IsValid {
		return nil
	}
	// A mirror of the chain is half a second old, and knows of payments alone.
	promised, err := n.db.Promised(ctx, f.Payment.Network, f.Payment.Asset, f.From)
	if err != nil {
		return err
	}
	has, err := n.set.chain.TokenBalance(ctx, common.HexToAddress(f.Payment.Asset), common.HexToAddress(f.From))
	if err != nil {
		return err
	}
	if has.IsInt64() && has.Int64()-promised < f.Amount {
		v.InvalidReason = x402.ReasonBalance
		return refused(fmt.Sprintf("%s has %s units, of which %d are signed back already: too little to pay %s back", f.From, has, promised, f.PaymentID),
			fmt.Sprintf("send %d units of %s to %s", f.Amount-(has.Int64()-promised), f.Payment.Asset, f.From))
	}
	return nil
}

// refundValid is how long what a seller signs for a refund can be charged.
const refundValid = 24 * time.Hour

package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/402claw/clawr"
)

// RefundState is where a refund stands.
type RefundState string

// A refund is due until the seller signed an authorization to pay it, which is
// stored before anybody may send it; then signed until a finalized block has
// its transfer. What of it is mined and not final yet is its Evidence.
const (
	RefundDue    RefundState = "due"
	RefundSigned RefundState = "signed"
	RefundFinal  RefundState = "final"
)

// Refund is what is owed for a payment that was charged and not delivered, and
// the authorization that pays it back: from the payment's payTo to its payer.
type Refund struct {
	PaymentID string
	Payment   Key    // the authorization that was charged; its payer is paid back
	From      string // who was paid, and pays; lower-case address
	Amount    int64  // atomic units
	Reason    clawr.Code
	State     RefundState

	Nonce       string // RefundNonce of Payment; empty while it is due
	ValidBefore int64  // unix seconds
	Payload     []byte // the PaymentPayload as JSON
	Evidence           // empty: the chain did not show it yet
	Proof       string // why what was signed will never be charged; then it may be signed again
	Created     time.Time
	Updated     time.Time
}

// Key is the identity of the authorization that pays r.
func (r *Refund) Key() Key {
	return Key{Network: r.Payment.Network, Asset: r.Payment.Asset, Payer: r.From, Nonce: RefundNonce(r.Payment)}
}

// Payable reports whether r may be signed for: it never was, or what was
// signed will never be charged.
func (r *Refund) Payable() bool {
	return r.State == RefundDue || r.State == RefundSigned && r.Proof != ""
}

// RefundNonce is the nonce of the authorization that pays back what k paid. It
// is made of k alone: whoever signs a refund, however often, after a crash or
// in a book that was restored from an old copy or rebuilt from the chain, signs
// the same nonce, and a token moves the money of a nonce once.
func RefundNonce(k Key) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "clawr refund %q %q %q %q", k.Network, k.Asset, k.Payer, k.Nonce))
	return "0x" + hex.EncodeToString(sum[:])
}

package facilitator

import (
	"strconv"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// Repayment is what the seller signs to pay r back in the token a until a
// moment, in unix seconds, and the terms that a facilitator settles it by. All
// of it follows from the book: whoever asks for it can only sign it, or not.
func Repayment(r *ledger.Refund, a clawr.Asset, validBefore int64) (x402.Authorization, x402.Requirements) {
	auth := x402.Authorization{From: common.HexToAddress(r.From), To: common.HexToAddress(r.Payment.Payer), Value: x402.Uint(uint64(r.Amount)),
		ValidBefore: x402.Uint(uint64(validBefore)), Nonce: common.HexToHash(ledger.RefundNonce(r.Payment))}
	terms := x402.Requirements{Scheme: x402.SchemeExact, Network: r.Payment.Network, Amount: strconv.FormatInt(r.Amount, 10), Asset: r.Payment.Asset,
		PayTo: r.Payment.Payer, MaxTimeoutSeconds: 60, Extra: x402.Extra{Name: a.Name, Version: a.Version}}
	return auth, terms
}

// RepaymentDigest is what the seller's key signs of a Repayment.
func RepaymentDigest(auth x402.Authorization, terms x402.Requirements) (common.Hash, bool) {
	id, ok := x402.ChainID(terms.Network)
	return auth.Digest(x402.NewDomain(terms.Extra.Name, terms.Extra.Version, id, common.HexToAddress(terms.Asset))), ok
}

// SignedRepayment is a Repayment with its signature, as it is stored and sent.
func SignedRepayment(auth x402.Authorization, terms x402.Requirements, signature []byte) *x402.PaymentPayload {
	e := x402.Exact{Authorization: auth, Signature: signature}
	return &x402.PaymentPayload{Version: 2, Accepted: terms, Payload: e.JSON()}
}

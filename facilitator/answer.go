package facilitator

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// said is what a remote facilitator's answer to POST /settle amounts to. None
// of it is believed: it says where to look, and how long.
type said int

const (
	saidNothing  said = iota // no answer, or one that cannot be understood
	saidPaid                 // success, with a transaction on our network
	saidPending              // it is being settled
	saidRejected             // it says that it was not settled
)

// heard is a remote facilitator's answer, made of the forms in which
// facilitators give it.
type heard struct {
	said   said
	tx     string // a transaction hash, lower case; empty: none
	reason clawr.Code
}

// readSettle reads an answer to POST /settle. Pending comes in three forms:
// the reference's errorReason settlement_pending with a transaction, with
// status 200 or 500; success false with a paymentId, to be asked about later;
// and status 202. A success without a transaction, or for another network, is
// no success.
func readSettle(status int, body []byte, network string) heard {
	var hint struct {
		PaymentID   string `json:"paymentId"`
		Transaction string `json:"transaction"`
		Success     any    `json:"success"`
	}
	hinted := json.Unmarshal(body, &hint) == nil
	r, err := x402.ParseSettleResponse(body)
	switch {
	case status == http.StatusAccepted, hinted && hint.PaymentID != "" && hint.Success != true:
		return heard{said: saidPending, tx: txHash(hint.Transaction), reason: x402.ReasonPending}
	case err != nil:
		return heard{tx: txHash(hint.Transaction)}
	}
	h := heard{tx: txHash(r.Transaction), reason: reasonOf(r.ErrorReason)}
	ok := status >= 200 && status <= 299
	switch {
	case r.Success && ok && h.tx != "" && sameNetwork(r.Network, network):
		h.said = saidPaid
	case r.Success:
		// A success that cannot be looked up, or of something else.
	case r.ErrorReason == x402.ReasonPending:
		h.said = saidPending
	case ok || status >= 400 && status <= 499:
		h.said = saidRejected
	}
	return h
}

// readVerify reads an answer to POST /verify. Not ok means that it is no
// verdict, and another facilitator has to be asked: isValid must be a boolean,
// a valid payment is answered with 2xx, and for the payer who signed it.
func readVerify(status int, body []byte, payer string) (v x402.VerifyResponse, ok bool) {
	r, err := x402.ParseVerifyResponse(body)
	if err != nil {
		return v, false
	}
	success := status >= 200 && status <= 299
	switch {
	case r.IsValid && success && (r.Payer == "" || strings.EqualFold(r.Payer, payer)):
		return x402.VerifyResponse{IsValid: true, Payer: payer}, true
	case r.IsValid:
		return v, false
	case success || verdictStatus(status):
		return x402.VerifyResponse{InvalidReason: reasonOf(r.InvalidReason), Payer: payer}, true
	}
	return v, false
}

// verdictStatus reports whether a 4xx is about the payment, and not about us.
func verdictStatus(status int) bool {
	switch status {
	case http.StatusBadRequest, http.StatusPaymentRequired, http.StatusPreconditionFailed, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// sameNetwork compares the network of an answer, which version 1 names by a word.
func sameNetwork(got, want string) bool { return got == want || x402.FromV1(got) == want }

// txHash is a transaction hash in lower case, or "".
func txHash(s string) string {
	s = strings.ToLower(s)
	digits, ok := strings.CutPrefix(s, "0x")
	if !ok || len(digits) != 64 || strings.Trim(digits, "0123456789abcdef") != "" || strings.Trim(digits, "0") == "" {
		return ""
	}
	return s
}

// reasonOf keeps of a stranger's reason what looks like one: it is shown to
// buyers, and to the agents that read for them.
func reasonOf(r clawr.Code) clawr.Code {
	if r == "" || len(r) > 80 || strings.Trim(string(r), "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
		return clawr.CodePaymentRejected
	}
	return r
}

package buyer

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// Payment is one signed authorization and the call that it is for. While it is
// open (it may still be charged, or its answer is still owed) it is a file in
// open/ named after the call; afterwards a receipt.
type Payment struct {
	ID         string    `json:"id"`   // pay_ + 32 hex
	Call       string    `json:"call"` // names the call
	Method     string    `json:"method"`
	URL        string    `json:"url"` // where it is sent: after redirects within the origin
	BodySHA256 string    `json:"bodySha256"`
	Created    time.Time `json:"created"`

	HeaderName string `json:"headerName,omitempty"` // Payment-Signature or X-Payment
	// Header is the signed payment and the challenge that it accepted. It has
	// the quote in it: whoever knows it can fetch the answer.
	Header string `json:"header,omitempty"`

	Network     string       `json:"network"` // CAIP-2
	Asset       string       `json:"asset"`
	PayTo       string       `json:"payTo"`
	Payer       string       `json:"payer"`
	Nonce       string       `json:"nonce"`
	Atomic      int64        `json:"amount,string"` // the token's units
	Amount      clawr.Amount `json:"amountUsd"`     // rounded up
	ValidBefore int64        `json:"validBefore"`   // unix seconds

	// Of a voucher, which is kept with its channel: the channel, what it allows
	// in all, what all vouchers before its call allowed, and the deposit that is
	// sent along. A voucher has no nonce and no end; ValidBefore is the quote's.
	Channel string `json:"channel,omitempty"`
	Max     int64  `json:"maxClaimable,string,omitempty"`
	Start   int64  `json:"signedBefore,string,omitempty"`
	Deposit int64  `json:"deposit,string,omitempty"`

	// Transaction is what the server named last; only its word.
	Transaction string `json:"transaction,omitempty"`
	// Refused is the last answer that gave nothing for the payment. It is not
	// proof that the payment was not, or will not be, charged.
	Refused *Refusal `json:"refused,omitempty"`

	Outcome Outcome   `json:"outcome,omitempty"` // of a receipt
	Proof   string    `json:"proof,omitempty"`   // why it is over, if it was not paid
	Status  int       `json:"status,omitempty"`  // of the answer
	Closed  time.Time `json:"closed,omitzero"`
}

// Refusal is what a server said instead of giving the answer.
type Refusal struct {
	Status int       `json:"status"`
	Reason string    `json:"reason"` // cleaned
	At     time.Time `json:"at"`
}

// Outcome is how a payment ended.
type Outcome string

// The outcomes. Only NotCharged, which needs proof, gives the amount back to
// the limit of its day.
const (
	Paid       Outcome = "paid"        // the answer was delivered
	NotCharged Outcome = "not_charged" // proven, or it was never sent
	Expired    Outcome = "expired"     // refused, and no longer chargeable by the clock: likely not charged
	Abandoned  Outcome = "abandoned"   // replaced by order; it may have been charged
)

// Expires is when the authorization ends.
func (p *Payment) Expires() time.Time { return time.Unix(p.ValidBefore, 0).UTC() }

// decodePayment reads a file of open/. What it returns has a header that says
// what its fields say, so that a resend cannot pay anything else.
func decodePayment(b []byte) (*Payment, error) {
	p := new(Payment)
	if err := strict(b, p); err != nil {
		return nil, err
	}
	u, err := url.Parse(p.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("its url is not one")
	}
	if !isID(p.ID, "pay_") || !isID(p.Call, "") || p.Atomic <= 0 || p.Amount < 0 || p.Amount > clawr.MaxPrice || p.Outcome != "" {
		return nil, errors.New("its id, call or amount is not one")
	}
	var paid *x402.PaymentPayload
	switch p.HeaderName {
	case x402.HeaderSignature:
		paid, err = x402.ParsePayment(p.Header)
	case x402.HeaderPaymentV1:
		paid, err = x402.ParsePaymentV1(p.Header)
	default:
		err = errors.New("its headerName is not one")
	}
	if err != nil {
		return nil, err
	}
	e, err := x402.ParseExact(paid.Payload)
	if err != nil {
		return nil, err
	}
	until, _ := e.ValidBefore.Int64()
	if e.Payer() != p.Payer || e.Nonce.Hex() != p.Nonce || until != p.ValidBefore || e.Value != x402.Uint(uint64(p.Atomic)) ||
		x402.Lower(e.To) != p.PayTo || paid.Accepted.Network != p.Network {
		return nil, errors.New("its header is of another payment")
	}
	return p, nil
}

func (p *Payment) encode() ([]byte, error) {
	b, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode payment %s: %w", p.ID, err)
	}
	return append(b, '\n'), nil
}

// isID reports whether s is prefix and 32 hexadecimal digits: fit for a name
// of a file.
func isID(s, prefix string) bool {
	s, ok := strings.CutPrefix(s, prefix)
	return ok && len(s) == 32 && strings.Trim(s, "0123456789abcdef") == ""
}

// Package x402 is the x402 payment protocol as bytes and rules, without I/O:
// the types and header codecs of version 2 and of version 1, how a payment is
// matched with what was offered, the exact scheme on EVM chains with EIP-3009
// (digest, signature, checks in the order and with the reasons of the
// reference SDK), and clawr's quote.
//
// Everything it reads comes from strangers. Decoders are bounded in size,
// depth and number of members, refuse repeated members and invalid UTF-8, and
// never panic. They keep what they do not know where the protocol compares or
// echoes it.
package x402

import "github.com/402claw/clawr"

// Version is the protocol version that clawr speaks; it understands 1 too.
const Version = 2

// SchemeExact is the scheme in which the payer signs for exactly the price.
const SchemeExact = "exact"

// The headers, in net/http's canonical form. Header names are not case
// sensitive; the protocol writes them in capitals.
const (
	HeaderRequired   = "Payment-Required"   // 402: what may be paid
	HeaderSignature  = "Payment-Signature"  // request: the payment
	HeaderResponse   = "Payment-Response"   // its settlement
	HeaderPaymentV1  = "X-Payment"          // request: the payment, version 1
	HeaderResponseV1 = "X-Payment-Response" // its settlement, version 1
)

// The bounds on what is read, in bytes of JSON or header, and in levels.
const (
	MaxHeader  = 16 << 10  // a header, as base64
	MaxBody    = 256 << 10 // a message of a facilitator, or the body of a 402; a claim from 100 channels has 90 KB
	MaxDepth   = 64        // nesting of objects and arrays
	maxMembers = 64        // members of an object that this package takes apart
)

// ResourceInfo says what is sold.
type ResourceInfo struct {
	URL         string
	Description string
	MimeType    string
	ServiceName string   // 1 to 32 printable ASCII characters, or empty
	Tags        []string // at most 5 of the same form
	IconURL     string
}

// Requirements is one way to pay: an entry of accepts, or what a payment says
// it accepted. In version 1 Amount travels as maxAmountRequired; Network is
// CAIP-2 here even then, if the name is known.
type Requirements struct {
	Scheme            string
	Network           string // CAIP-2, such as eip155:8453
	Amount            string // atomic units, decimal
	Asset             string // the token's address, as its sender spells it
	PayTo             string
	MaxTimeoutSeconds int64
	Extra             Extra
	Rest              Object // members that this package does not know, in order
}

// Extra is the part of Requirements that belongs to the scheme, and clawr's
// quote.
type Extra struct {
	Name    string // EIP-712 domain name of the token
	Version string // EIP-712 domain version of the token
	Quote   string // see Quotes; a bearer credential: never log it
	Rest    Object // everything else, and the above if it is not a string
}

// PaymentRequired is the challenge of a 402.
type PaymentRequired struct {
	Version    int    // 2; 1 if it was read from a version 1 body
	Error      string // why: a reason string
	Resource   ResourceInfo
	Accepts    []Requirements
	Extensions Object
}

// PaymentPayload is what a buyer sends. A version 1 payload names only scheme
// and network of what it accepted.
type PaymentPayload struct {
	Version    int // 2, or 1 for the version 1 form
	Resource   *ResourceInfo
	Accepted   Requirements
	Payload    []byte // the scheme's own JSON object: see ParseExact
	Extensions Object

	signer *signer // who signed it, once that is known; nil: see Remember
}

// VerifyRequest is the body of POST /verify.
type VerifyRequest struct {
	Payload      PaymentPayload
	Requirements Requirements
}

// SettleRequest is the body of POST /settle: the same.
type SettleRequest = VerifyRequest

// VerifyResponse is a facilitator's answer to POST /verify.
type VerifyResponse struct {
	IsValid        bool
	InvalidReason  clawr.Code
	InvalidMessage string
	Payer          string
	Extensions     Object
	Extra          Object
}

// SettleResponse is a facilitator's answer to POST /settle, and the content of
// PAYMENT-RESPONSE. Transaction is empty if there is none.
type SettleResponse struct {
	Success      bool
	ErrorReason  clawr.Code
	ErrorMessage string
	Payer        string
	Transaction  string
	Network      string // CAIP-2, or version 1's name if the payment was of version 1
	Amount       string // atomic units; empty for exact
	Extensions   Object
	Extra        Object
}

// SupportedResponse is a facilitator's answer to GET /supported.
type SupportedResponse struct {
	Kinds      []SupportedKind
	Extensions []string
	Signers    map[string][]string // by CAIP-2 family, such as eip155:*
}

// SupportedKind is one combination that a facilitator takes.
type SupportedKind struct {
	Version int
	Scheme  string
	Network string // CAIP-2 in version 2, a name such as base-sepolia in version 1
	Extra   Object
}

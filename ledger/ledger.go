// Package ledger is the payment state machine: what a payment is, which steps
// it may take, and nothing else. It does no I/O; store keeps its rows, the
// dispatcher and the facilitator move them.
package ledger

import (
	"time"

	"github.com/402claw/clawr"
)

// Work is how far the answer is; the dispatcher moves it.
type Work string

// Money is where the authorization is; the facilitator moves it.
type Money string

// Policy is the order of work and settlement.
type Policy string

// The states, as money.md's machine names them.
const (
	Pending Work = "pending"
	Running Work = "running"
	Done    Work = "done"
	Failed  Work = "failed"

	Held     Money = "held"     // reserved, never submitted
	Released Money = "released" // never submitted, and never will be
	Signed   Money = "signed"   // may be charged at any moment
	Mined    Money = "mined"    // evidence on the canonical head
	Final    Money = "final"    // evidence in a finalized block
	Dead     Money = "dead"     // provably can never be charged

	SettleBeforeResponse Policy = "settle_before_response"
	SettleFirst          Policy = "settle_first"
	Async                Policy = "async"
)

// Key names one authorization: a payment's identity on its chain and, by
// UNIQUE, in the book. All lower-case.
type Key struct {
	Network string // CAIP-2
	Asset   string // 0x + 40 hex
	Payer   string // 0x + 40 hex
	Nonce   string // 0x + 64 hex
}

// Payment is one row of payments: an authorization, the one request that it
// buys, and how far both are. Times are whole microseconds, UTC.
type Payment struct {
	ID       string // pay_ + 16 hex
	TenantID string
	Version  int64
	Route    string // the path that the tenant sees, for the operator
	Scheme   string // exact
	Key
	PayTo       string
	Amount      int64 // atomic units
	ValidAfter  int64 // unix seconds
	ValidBefore int64 // unix seconds
	// Fingerprint is the SHA-256 (hex) of tenant, version, method, host, path,
	// canonical query and body hash: the one request that this payment buys.
	Fingerprint     string
	Payload         []byte // the PaymentPayload as JSON, its quote removed: what a facilitator is sent
	PayloadSHA256   string
	SignatureSHA256 string
	QuoteSHA256     string // empty: reserved without a quote (v1)
	ClientAddrHash  string
	ClientRef       string // payment-identifier id; empty: none
	Policy          Policy
	Work            Work
	Money           Money
	Epoch           int64     // fences writers: every move names the epoch that it read
	Owner           string    // the process that works on it
	LeaseUntil      time.Time // until then nobody else may take it over
	Facilitator     string    // "self", or the URL that was sent it
	BatchID         string
	Evidence
	Proof     string // why it can never be charged (dead)
	ErrorCode clawr.Code
	Counters  []Counter // what T1 took, given back on release
	Exposure  Exposure  // for T1 under async: not part of the row
	Created   time.Time
	Updated   time.Time
}

// Evidence is where the chain shows the payment: AuthorizationUsed and the
// Transfer of exactly the amount to payTo, in the same call.
type Evidence struct {
	Tx          string // transaction hash
	BlockNumber int64
	BlockHash   string
	LogIndex    int64 // of the Transfer
}

// Counter is one exact limit that a reservation takes from: it succeeds only
// while used+Cost <= Cap.
type Counter struct {
	Scope  string     `json:"scope"`  // such as "spend-day/tnt_…/caller"
	Window int64      `json:"window"` // the window's start, unix seconds
	Cost   int64      `json:"cost"`
	Cap    int64      `json:"cap"`
	Code   clawr.Code `json:"code"` // what the caller is told when it is refused
	Used   int64      `json:"-"`    // filled in by the book: used afterwards, or at the refusal
}

// Lease is a batch of a counter that one node has taken at once, to spend one
// by one without asking. The counter holds all of it to be used.
type Lease struct {
	Counter
	ID      string // empty: of one, which is spent
	Granted int64
	Left    int64 // not spent yet; the node's to keep
	Expires time.Time
}

// Exposure bounds what async may deliver before it is charged, in atomic units.
// A payer's room is the least of Payer and Credit plus a tenth of what he has
// paid to this seller in finalized blocks: wallets are free, so without Credit
// new ones start at 0, and Total bounds the loss by all of them together.
type Exposure struct {
	Payer  int64 // most of one payer
	Credit int64 // what everybody has without a history
	Total  int64 // most of all payers of one payTo
}

// Exposed is where a payer stands with a seller, in atomic units.
type Exposed struct {
	Held    int64 // delivered or in work, and not charged yet
	Cap     int64 // as it was when Held was raised last
	BadDebt int64 // delivered, and never to be charged
	Volume  int64 // charged, in finalized blocks
}

// Backlog is what a book has yet to settle of what async sold.
type Backlog struct {
	Depth  int64     // async payments that are held or signed
	Expiry int64     // ValidBefore of the first that async delivered and nobody submitted, unix seconds; 0: none
	Head   time.Time // when that one was reserved
}

// Answer is a stored answer: the bytes, or what they are recomputed from.
type Answer struct {
	Status  int
	Headers [][2]string // in order; only those that belong to the answer
	Body    []byte
	Ref     string // a dataset's canonical request, from which Body is recomputed; then Body is nil
	SHA256  string // of the body, hex
	Len     int64
	Expires time.Time
}

// Outcome is what is known of a settlement. What is not recognised is Unknown.
type Outcome struct {
	State OutcomeState
	Evidence
	Reason  clawr.Code // the protocol's reason string
	Message string     // for the log
}

// OutcomeState tells the four ways in which a settlement can stand.
type OutcomeState int

// Unknown and Broadcast both mean: it may still be charged; say 503, never 402.
const (
	Unknown    OutcomeState = iota // sent, nothing known
	Broadcast                      // sent, Evidence.Tx known, not mined yet
	Settled                        // mined, Evidence complete
	NotCharged                     // never submitted (released), or dead with proof
)

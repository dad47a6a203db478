// Package facilitator verifies and settles payments: in this process over a
// chain and a book (Facilitator), for others over HTTP (Handler), and by
// others' facilitators (Client).
//
// Three rules hold everywhere. A signed transaction is in the book before any
// node sees it. Paid means that the chain shows the transfer, and not charged
// means that there is proof; everything else is unknown, and said so. And no
// failure of a node is ever a verdict on a payment.
package facilitator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// The reasons that are clawr's own: what a facilitator will not spend gas on.
const (
	ReasonAsset clawr.Code = "asset_not_allowed"
	ReasonPayTo clawr.Code = "pay_to_not_allowed"
)

// The defaults of a Facilitator. A transfer of USDC takes 86,000 gas.
const (
	DefaultGas         = 150_000 // for a payer without code
	DefaultContractGas = 500_000 // for one with code
	DefaultInFlight    = 16      // transactions of one account that pools take for granted
)

// Book keeps what a facilitator was asked to settle and what it signed. Each
// method is one transaction.
type Book interface {
	// Settlement gives the row of an authorization, with its live or last batch
	// and its evidence; nil if it was never signed for.
	Settlement(ctx context.Context, k ledger.Key) (*ledger.Settlement, error)
	// Sign stores a signed batch before anybody sees it, with those of its
	// settlements that are new, and moves the payments that it carries to
	// signed. (T3) ErrLive and ErrFenced: nothing was written.
	Sign(ctx context.Context, b ledger.Batch, opened ...ledger.Settlement) error
	// Mined stores how a batch ended for each of its settlements, and moves the
	// payments that it paid to mined.
	Mined(ctx context.Context, batchID, tx string, blockNumber int64, blockHash string, results []ledger.ItemResult) error
	// OpenBatches are the signed batches that are not mined, lowest nonce first.
	OpenBatches(ctx context.Context, network, signer string) ([]ledger.Batch, error)
	// NextNonce is the account nonce after the highest that was ever signed.
	NextNonce(ctx context.Context, network, signer string) (int64, error)
}

// Ends is the part of the book that records what becomes of signed batches, and
// how submitted payments ended without one. Each method is one transaction.
type Ends interface {
	// Paid moves a signed payment to mined. ErrFenced: there is none.
	Paid(ctx context.Context, key ledger.Key, e ledger.Evidence) error
	// Dead moves a signed payment to dead, with proof that it can never be
	// charged. ErrFenced: there is none.
	Dead(ctx context.Context, key ledger.Key, proof string) error
	// Settlements are the settlements of a batch, in the order of its calldata.
	Settlements(ctx context.Context, batchID string) ([]ledger.Settlement, error)
	// AddTx stores one more signed transaction of a batch, with higher fees,
	// before anybody sees it. ErrFenced: the batch is mined or given up.
	AddTx(ctx context.Context, batchID string, tx ledger.Tx) error
	// OrphanBatch gives a batch up whose nonce somebody else's transaction has
	// used: its settlements may go into another. ErrFenced: it is not signed.
	OrphanBatch(ctx context.Context, batchID string) error
}

// Holds is the part of the book that knows what payers have promised.
type Holds interface {
	// Held is what an account's reserved and submitted payments come to.
	Held(ctx context.Context, network, asset, payer string) (int64, error)
}

// Facilitator verifies and settles exact payments by EIP-3009 on one network,
// with the accounts that pay for gas. Start it before it is used, and Run it
// while it is.
type Facilitator struct {
	Network string        // CAIP-2
	Assets  []clawr.Asset // the only tokens whose code is ever called, all on Network
	// AllowPayTo says who may be paid, by lower-case address; nil: anybody.
	AllowPayTo func(address string) bool
	Chain      Chain
	Book       Book
	Ends       Ends
	// Signers are more accounts that settle, beside Chain's: each has
	// transactions under way of its own. One without ether signs nothing, and
	// what it signed before is seen through.
	Signers []Sender
	// Mirror, if set, answers Verify from memory; a Watcher keeps it true. nil:
	// the chain is asked for every payment.
	Mirror *Mirror
	// Authorizer, if set, answers for channels that name it as their
	// receiverAuthorizer: then batch-settlement is offered to others.
	Authorizer Authorizer
	// Holds says what payers have promised already; nil: nothing.
	Holds Holds

	Gas         uint64 // most gas of a transaction for a payer without code; 0: DefaultGas
	ContractGas uint64 // and for one with code; 0: DefaultContractGas
	InFlight    int    // signed transactions of an account that are in no block, at most; 0: DefaultInFlight
	Batch       int    // payments of one transaction, at most; 0: DefaultBatch
	Bump        int64  // blocks that may pass a transaction by before it offers more; 0: DefaultBump
	// Leads says whether this process may sign with a signer, whose key other
	// processes have too; nil: it is the only one. What it does not lead it
	// verifies for, and signs nothing. The Book refuses what is signed by a
	// process that wrongly believes that it leads.
	Leads func(signer string) bool
	Now   func() time.Time
	Log   *slog.Logger
	// Failpoint, if set, is called at "preflight", at "batch.after", when a batch
	// is made up, and before and after t3, broadcast, mined and bump:
	// "t3.before", "t3.after", … What is done with a channel is also at "build",
	// "signed" and the latter points by its own name: "claim.signed", …
	Failpoint func(name string)

	clock    clock
	keys     keyLocks
	intake   intake
	once     sync.Once
	all      []*settler
	turn     atomic.Int64 // whose turn it is
	running  atomic.Bool
	warned   keySet
	promised promises
	signers  x402.Signers
}

// Request is one payment that somebody wants settled.
type Request struct {
	Payload      *x402.PaymentPayload
	Requirements x402.Requirements
	RequestedBy  string // a token's id; "self" in process

	// submitted says that the payment may have been submitted before, by
	// whomever: then nothing short of proof is "not charged".
	submitted bool
	created   time.Time // when it was first heard of; zero: now
	again     bool      // its last batch failed as a whole: it may go into another at once
}

// HeadTime is the time of the newest known block; zero before Start.
func (f *Facilitator) HeadTime() time.Time { return f.clock.time() }

// Supported is what GET /supported answers.
func (f *Facilitator) Supported() x402.SupportedResponse {
	s := x402.SupportedResponse{Extensions: []string{},
		Kinds:   []x402.SupportedKind{{Version: 2, Scheme: x402.SchemeExact, Network: f.Network}},
		Signers: map[string][]string{"eip155:*": {}}}
	for _, a := range f.settlers() {
		s.Signers["eip155:*"] = append(s.Signers["eip155:*"], a.from.Signer().Hex())
	}
	if name := x402.V1Name(f.Network); name != "" {
		s.Kinds = append(s.Kinds, x402.SupportedKind{Version: 1, Scheme: x402.SchemeExact, Network: name})
	}
	if f.Authorizer != nil {
		s.Kinds = append(s.Kinds, x402.SupportedKind{Version: 2, Scheme: x402.SchemeChannel, Network: f.Network,
			Extra: x402.Object{{Name: "receiverAuthorizer", Value: []byte(`"` + f.Authorizer.Address().Hex() + `"`)}}})
	}
	return s
}

func (f *Facilitator) now() time.Time {
	if f.Now != nil {
		return f.Now()
	}
	return time.Now()
}

func (f *Facilitator) log() *slog.Logger {
	if f.Log != nil {
		return f.Log
	}
	return slog.Default()
}

func (f *Facilitator) reached(point string) {
	if f.Failpoint != nil {
		f.Failpoint(point)
	}
}

func (f *Facilitator) gas(contract bool) uint64 {
	switch {
	case contract && f.ContractGas > 0:
		return f.ContractGas
	case contract:
		return DefaultContractGas
	case f.Gas > 0:
		return f.Gas
	}
	return DefaultGas
}

// settled is the outcome of a payment that the chain shows.
func settled(e ledger.Evidence) ledger.Outcome {
	return ledger.Outcome{State: ledger.Settled, Evidence: e}
}

// notCharged is the outcome of a payment that was never submitted, or is dead.
func notCharged(reason clawr.Code, message string) ledger.Outcome {
	return ledger.Outcome{State: ledger.NotCharged, Reason: reason, Message: message}
}

// unknown is the outcome of a payment that may be charged yet.
func unknown(tx string, reason clawr.Code, message string) ledger.Outcome {
	o := ledger.Outcome{State: ledger.Unknown, Reason: reason, Message: message}
	if tx != "" {
		o.State, o.Tx = ledger.Broadcast, tx
	}
	return o
}

// refuse is a verdict against a payment.
func refuse(reason clawr.Code, message string) *clawr.Error {
	return &clawr.Error{Code: reason, Status: 402, Message: message, Fix: "sign a new payment"}
}

// refusal is the verdict in err's tree; anything else is a failure to judge.
func refusal(err error) (*clawr.Error, bool) {
	e, ok := errors.AsType[*clawr.Error](err)
	return e, ok && e.Status == 402
}

// down is the error of a facilitator that cannot judge or submit just now.
func down(message string, err error) error {
	return &clawr.Error{Code: clawr.CodeFacilitatorDown, Message: message, Fix: "send the same request again", RetryAfter: 2 * time.Second, Err: err}
}

// newID is a prefix and 16 hex digits that nobody can guess.
func newID(prefix string) string {
	var b [8]byte
	rand.Read(b[:])
	return prefix + hex.EncodeToString(b[:])
}

// laterID is a prefix, the time in microseconds and 11 hex digits that nobody
// can guess: what is made together lies together in the indexes, and a book of
// millions writes one page for many.
func laterID(prefix string, now time.Time) string {
	var b [8]byte
	rand.Read(b[:])
	return fmt.Sprintf("%s%013x%s", prefix, now.UnixMicro(), hex.EncodeToString(b[:])[:11])
}

// clock is the time of the newest block that anybody told us of.
type clock struct {
	at     atomic.Int64 // unix seconds of the newest known block; 0: none
	number atomic.Int64 // of the block that was asked for last
	asked  atomic.Int64 // unix nanoseconds, local: when it was asked for
}

func (c *clock) time() time.Time {
	if at := c.at.Load(); at > 0 {
		return time.Unix(at, 0).UTC()
	}
	return time.Time{}
}

// saw notes the time of a block that was found; it is not always the newest.
func (c *clock) saw(t time.Time) {
	for at := c.at.Load(); t.Unix() > at; at = c.at.Load() {
		if c.at.CompareAndSwap(at, t.Unix()) {
			return
		}
	}
}

// headAge is how old the known head may be when a payment's window is judged.
const headAge = 2 * time.Second

// fresh is the later of now and the head's time, which is asked for if it was
// not lately.
func (c *clock) fresh(ctx context.Context, w Witness, now time.Time) (time.Time, error) {
	if now.Sub(time.Unix(0, c.asked.Load())).Abs() > headAge {
		if err := c.ask(ctx, w, now); err != nil {
			return now, err
		}
	}
	if head := c.time(); head.After(now) {
		return head, nil
	}
	return now, nil
}

// ask asks for the head.
func (c *clock) ask(ctx context.Context, w Witness, now time.Time) error {
	b, err := w.Head(ctx)
	if err != nil {
		return err
	}
	c.at.Store(b.Time.Unix())
	c.number.Store(b.Number)
	c.asked.Store(now.UnixNano())
	return nil
}

// keyLocks lets one at a time work on an authorization.
type keyLocks struct {
	mu   sync.Mutex
	held map[ledger.Key]chan struct{}
}

func (k *keyLocks) lock(ctx context.Context, key ledger.Key) (unlock func(), err error) {
	for {
		k.mu.Lock()
		wait, taken := k.held[key]
		if !taken {
			done := make(chan struct{})
			if k.held == nil {
				k.held = make(map[ledger.Key]chan struct{})
			}
			k.held[key] = done
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, key)
				k.mu.Unlock()
				close(done)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

package facilitator

import (
	"context"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// Chain is the node that a facilitator works on. An error of any of its
// methods says that the node gave no answer; it is never a verdict on a
// payment.
type Chain interface {
	Prober
	Sender
	Witness
}

// Prober foretells what a transfer would do.
type Prober interface {
	// Probe carries t out at the head without a transaction, as the signer
	// would send it, with at most gas, in one round trip. An asset that is no
	// EIP-3009 token is an error with code asset_without_code.
	Probe(ctx context.Context, t Transfer, gas uint64) (Probe, error)
	// ProbeAll is Probe for many transfers, in as few round trips as may be.
	// They are carried out one after the other. What makes an error of Probe for
	// one of them alone is in its probe.
	ProbeAll(ctx context.Context, ts []Transfer, gas uint64) ([]Probe, error)
	// HasCode reports whether an account has code at the head, be it a contract's
	// or delegated to one (EIP-7702).
	HasCode(ctx context.Context, who common.Address) (bool, error)
	// ValidSignature asks a payer with code by ERC-1271, strictly: only the
	// magic value, alone in a whole word, is a yes.
	ValidSignature(ctx context.Context, payer common.Address, digest common.Hash, signature []byte, gas uint64) (bool, error)
}

// Wallet is an account that pays for gas.
type Wallet interface {
	// Signer is the account's address.
	Signer() common.Address
	// Nonce is the account's next nonce, after what the node's pool holds.
	Nonce(context.Context) (int64, error)
	// FinalNonce is the first nonce that no finalized block has used.
	FinalNonce(context.Context) (int64, error)
	// Affords is an error with code signer_unfunded if the account cannot pay
	// for a transaction of so much gas.
	Affords(ctx context.Context, gas uint64) error
}

// Sender is an account that signs transactions.
type Sender interface {
	Wallet
	// Batches reports whether one transaction may carry many transfers, each of
	// which may fail by itself: whether the chain has Multicall3.
	Batches(context.Context) (bool, error)
	// Sign makes the transaction number nonce, with at most gas, at the fees of
	// the moment. It tells nobody.
	Sign(ctx context.Context, nonce int64, gas uint64, ts []Transfer) (tx ledger.Tx, calldataSHA256 string, err error)
	// Replace signs last again with fees that a pool accepts in its place, and
	// nothing else changed. It tells nobody.
	Replace(ctx context.Context, last ledger.Tx) (ledger.Tx, error)
	// Submit broadcasts tx and waits for its receipt until ctx ends. No receipt
	// and no error mean that it was not seen in a block; neither of these, nor
	// an error, is the last word. An account that cannot pay for gas is an
	// error with code signer_unfunded.
	Submit(ctx context.Context, tx ledger.Tx, ts []Transfer) (*Receipt, error)
}

// Witness says what the chain shows.
type Witness interface {
	Head(context.Context) (Block, error)
	// Finalized is the newest block that cannot be undone.
	Finalized(context.Context) (Block, error)
	// Used reports whether the nonce of t was used or cancelled, as of a block;
	// nil is the head. It is an error if the node cannot say so of that block.
	Used(ctx context.Context, t Transfer, at *Block) (bool, error)
	// Find looks for a use of t's authorization, by whomever, in the blocks
	// since a moment.
	Find(ctx context.Context, t Transfer, since time.Time) (Finding, error)
	// Receipt is what a transaction of the canonical chain did with each of ts;
	// nil while it is in no block.
	Receipt(ctx context.Context, tx string, ts []Transfer) (*Receipt, error)
}

// Block is a block of the canonical chain.
type Block struct {
	Number int64
	Hash   common.Hash
	Parent common.Hash
	Time   time.Time // whole seconds, UTC
}

// Transfer is an EIP-3009 authorization and its signature, as a transaction
// carries it out.
type Transfer struct {
	Asset       common.Address
	Payer       common.Address
	PayTo       common.Address
	Amount      int64 // atomic units of the token
	ValidAfter  int64 // unix seconds, exclusive
	ValidBefore int64 // unix seconds, exclusive
	Nonce       common.Hash
	Signature   []byte // 65 bytes r, s, v, or what a contract takes
}

// Probe is what a node foretells of a transfer.
type Probe struct {
	Contract bool       // the payer has code
	Used     bool       // the nonce was used or cancelled
	Refusal  clawr.Code // why the transfer would fail, in the protocol's words; empty: it would go through
	Message  string     // the token's own words, bounded
	Gas      uint64     // that it took; 0: not known
	Err      error      // of ProbeAll
}

// Use is what became of an authorization.
type Use int

// The uses of an authorization.
const (
	Unused    Use = iota // nothing was found
	Paid                 // it moved the amount to the payee
	Elsewhere            // its nonce was used for something else
	Cancelled            // the payer took it back
)

// Finding is a use of an authorization and where it stands. LogIndex is set
// for Paid alone.
type Finding struct {
	Use Use
	ledger.Evidence
	Time time.Time // of the block
}

// Receipt is a transaction in a block. OK says that it was not reverted as a
// whole, and nothing about any payment: Found does, one for each transfer that
// was asked about.
type Receipt struct {
	Tx          string
	BlockNumber int64
	BlockHash   string
	Time        time.Time // of the block
	OK          bool
	GasUsed     uint64
	Found       []Finding
}

package ledger

import (
	"errors"
	"fmt"
	"time"

	"github.com/402claw/clawr"
)

// Settlement is one authorization that a facilitator was asked to settle, by
// clawr's own dispatcher or by somebody else's server. It is keyed as payments
// are: asking twice is asking once.
type Settlement struct {
	ID string // stl_ + 16 hex
	Key
	PayTo       string
	Amount      int64 // atomic units
	ValidBefore int64 // unix seconds
	Payload     []byte
	RequestedBy string // a token's id; "self" in process
	Created     time.Time
	// Batch is the live batch that carries it, or the last one; nil: none yet.
	Batch *Batch
	// Item is how that batch ended for this settlement.
	Item ItemOutcome
	Evidence
}

// BatchState is where a batch stands.
type BatchState string

// A batch is signed until one of its transactions is mined, then final. It is
// orphaned when its signer nonce was consumed by a transaction that is not ours.
const (
	BatchSigned   BatchState = "signed"
	BatchMined    BatchState = "mined"
	BatchFinal    BatchState = "final"
	BatchOrphaned BatchState = "orphaned"
)

// ItemOutcome is how a mined batch ended for one of its settlements.
type ItemOutcome string

// UsedElsewhere means that another transaction consumed the authorization.
const (
	ItemOpen      ItemOutcome = ""
	ItemPaid      ItemOutcome = "paid"
	ItemElsewhere ItemOutcome = "used_elsewhere"
	ItemReverted  ItemOutcome = "reverted"
)

// Batch is one (signer, account nonce): the unit that can be mined once. Its
// calldata never changes; a replacement only pays higher fees.
type Batch struct {
	ID             string // bat_ + 16 hex
	Network        string
	Signer         string // lower-case address
	Nonce          int64  // the signer's account nonce
	CalldataSHA256 string
	State          BatchState
	Settlements    []string // ids, in calldata order
	Txs            []Tx     // every signed attempt, oldest first
	MinedTx        string
	BlockNumber    int64
	BlockHash      string
	Created        time.Time

	Hold *Hold // that has to be there when the batch is stored; nil: none has to
}

// Hold is what a process keeps of a channel, by its epoch. Whoever signs for
// what it holds takes the next epoch with the signature: nobody who looked
// before can end the hold any more, and one that was ended signs nothing.
type Hold struct {
	Channel string // id; 0x and lower-case hex
	Epoch   int64
}

// Tx is one signed transaction of a batch, stored before it is broadcast.
type Tx struct {
	Hash    string
	Attempt int64 // 1, 2, …
	Raw     []byte
	MaxFee  string // wei
	Tip     string // wei
}

// ItemResult is what a mined batch did for one settlement.
type ItemResult struct {
	SettlementID string
	Outcome      ItemOutcome
	Evidence     // for paid and used_elsewhere
}

// ErrFenced says that somebody else moved the row: its epoch or state is no
// longer what the caller read. It is never a client's error.
var ErrFenced = errors.New("ledger: moved by somebody else")

// ErrReleased says that the hold of a channel was ended, and nothing is signed
// for it.
var ErrReleased = errors.New("ledger: the hold of the channel was ended")

// ErrLive says that a settlement is in a live batch already (I7).
var ErrLive = errors.New("ledger: in a live batch already")

// Conflict says that the authorization has a row already (I1).
type Conflict struct{ Payment *Payment }

func (c *Conflict) Error() string { return "ledger: authorization known as " + c.Payment.ID }

// Exceeded says which counter refused a reservation; nothing was taken.
type Exceeded struct{ Counter Counter }

func (e *Exceeded) Error() string {
	return fmt.Sprintf("ledger: %s: %d of %d used, %d more refused", e.Counter.Scope, e.Counter.Used, e.Counter.Cap, e.Counter.Cost)
}

// Code is what the caller is told.
func (e *Exceeded) Code() clawr.Code { return e.Counter.Code }

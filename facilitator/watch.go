package facilitator

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// Follower shows a chain block by block. An error of any of its methods says
// that there was no answer.
type Follower interface {
	Head(context.Context) (Block, error)
	// Finalized is the newest block that cannot be undone.
	Finalized(context.Context) (Block, error)
	// At is the canonical block with a number, nil if there is none yet.
	At(ctx context.Context, number int64) (*Block, error)
	// Blocks are the canonical blocks from one number on, as many up to the
	// other as are given at once, with everything that the tokens did in them.
	Blocks(ctx context.Context, from, to int64, assets []common.Address) ([]Seen, error)
	// Range is the same for finalized blocks, without those in which nothing
	// was done and without times, up to the number reached.
	Range(ctx context.Context, from, to int64, assets []common.Address) (list []Seen, reached int64, err error)
}

// Seen is a block and what the tokens did in it.
type Seen struct {
	Block
	Uses  []Used
	Moves []Move
}

// Used is what a transaction did with an authorization, whoever's it is.
type Used struct {
	Asset    common.Address
	Payer    common.Address
	Nonce    common.Hash
	Use      Use
	PayTo    common.Address // if Paid
	Amount   int64          // atomic units, if Paid; -1: more than a payment can be
	Tx       string
	LogIndex int64
}

// Move is a transfer of a token.
type Move struct {
	Asset, From, To common.Address
	Amount          int64 // atomic units; -1: more than a payment can be
}

// Watched is what the book holds to be on a chain. Each method is one
// transaction, but for FinalizeBlock, which may end after a part of its block;
// doing it twice is doing it once.
type Watched interface {
	// Blocks lists the blocks, from one number to another, in which the book
	// has something mined that is not final.
	Blocks(ctx context.Context, network string, from, to int64) ([]ledger.Block, error)
	// FinalizeBlock makes everything mined in b final; final is the number of
	// the newest finalized block.
	FinalizeBlock(ctx context.Context, network string, b ledger.Block, final int64) (payments int, err error)
	// UnmineBlock takes back everything mined in b, which was lost.
	UnmineBlock(ctx context.Context, network string, b ledger.Block) (payments int, err error)
	// Used makes those submitted payments mined that a use is of.
	Used(ctx context.Context, uses []ledger.Use) (payments int, err error)
}

// Cursors keeps how far a chain was followed.
type Cursors interface {
	// Cursor is nil if a chain never was.
	Cursor(ctx context.Context, network string) (*ledger.Cursor, error)
	SetCursor(ctx context.Context, network string, c ledger.Cursor) error
}

// Watcher follows the canonical chain of one network, from where the book's
// cursor stands. It books payments that anybody's transactions made, takes
// evidence back that a reorganisation lost, however deep, and makes final what
// is in a finalized block. It moves a row only by what it has seen of the
// row's own block: the same height is not the same block.
//
// One goroutine uses it. Several watchers, of several nodes, may follow one
// chain for one book.
type Watcher struct {
	Network string
	Assets  []clawr.Asset
	Chain   Follower
	Book    Watched
	Cursors Cursors
	Mirror  *Mirror       // told of everything; may be nil
	Every   time.Duration // between two looks; 0: DefaultEvery
	Now     func() time.Time
	Log     *slog.Logger
	// Failpoint, if set, is called before and after what is finalized:
	// "final.before", "final.after"; and taken back: "unmine.before", "unmine.after".
	Failpoint func(name string)

	started bool
	ring    []Block // the last blocks that were followed, without gaps, newest last
	final   Block   // the newest finalized block that is known
	kept    ledger.Cursor
	dropped map[string]bool // hashes that a reorganisation dropped
	suspect time.Time       // until when evidence may be booked from a lost branch
	above   int64           // the block that the last reorganisations left standing
	seen    atomic.Int64    // number of the newest followed block
}

// How often a Watcher looks, how many blocks it remembers, how long it goes on
// to look for evidence of a branch that was lost (somebody may have read it
// before, and be slow to book it), and from which distance on it reads
// finalized blocks without their headers.
const (
	DefaultEvery  = 500 * time.Millisecond
	ringSize      = 512
	suspicion     = time.Minute
	rangeDistance = 64
	maxRewinds    = 4 // in one look
)

// Run looks every Every until ctx ends.
func (w *Watcher) Run(ctx context.Context) error {
	every := w.Every
	if every <= 0 {
		every = DefaultEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	var told time.Time
	for {
		if err := w.Look(ctx); err != nil && ctx.Err() == nil && time.Since(told) > 10*time.Second {
			told = time.Now()
			w.log().WarnContext(ctx, "the chain is not followed just now", "network", w.Network, "block", w.seen.Load(), "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Followed is the number of the newest block that was followed.
func (w *Watcher) Followed() int64 { return w.seen.Load() }

// Look follows the chain to its head and books what it shows. An error leaves
// the rest to the next look.
func (w *Watcher) Look(ctx context.Context) error {
	asked := w.now()
	head, err := w.Chain.Head(ctx)
	if err != nil {
		return err
	}
	if !w.started {
		if err := w.start(ctx, head); err != nil {
			return err
		}
	}
	if err := w.follow(ctx, head); err != nil {
		return err
	}
	if w.now().Before(w.suspect) {
		if err := w.recheck(ctx); err != nil {
			return err
		}
	}
	if w.Mirror != nil && w.tip().Hash == head.Hash {
		w.Mirror.confirm(head, asked)
	}
	if err := w.finalize(ctx); err != nil {
		return err
	}
	return w.keep(ctx)
}

func (w *Watcher) tip() Block { return w.ring[len(w.ring)-1] }

// start takes the cursor up. What has happened since then up to the finalized
// block is read without looking for forks. What was followed beyond that may
// have been lost while nobody looked: it is followed again, and all evidence
// in it is looked at.
func (w *Watcher) start(ctx context.Context, head Block) error {
	c, err := w.Cursors.Cursor(ctx, w.Network)
	if err != nil {
		return err
	}
	final, err := w.Chain.Finalized(ctx)
	if err != nil {
		return err
	}
	from := head.Number // nothing was submitted before there was a cursor
	if c != nil {
		w.kept = *c
		from = min(c.Final, final.Number, head.Number)
	}
	for until := final.Number - rangeDistance; from < until; {
		list, reached, err := w.Chain.Range(ctx, from+1, until, w.addresses())
		if err != nil {
			return err
		}
		for _, s := range list {
			if err := w.book(ctx, s); err != nil {
				return err
			}
		}
		from = reached
	}
	at, err := w.Chain.At(ctx, from)
	if err != nil {
		return err
	}
	if at == nil {
		return fmt.Errorf("the chain has no block %d", from)
	}
	w.ring, w.started = []Block{*at}, true
	w.suspects(min(from, final.Number))
	return nil
}

// follow reads every block from the tip to head.
func (w *Watcher) follow(ctx context.Context, head Block) error {
	for rewinds := 0; rewinds < maxRewinds; {
		tip := w.tip()
		if head.Number <= tip.Number {
			if head == tip || head.Hash == tip.Hash {
				return nil
			}
			// A shorter chain, or a node that lags behind.
			if i := w.index(head.Number); i >= 0 && w.ring[i].Hash == head.Hash {
				return nil
			}
			rewinds++
			if err := w.rewind(ctx); err != nil {
				return err
			}
			continue
		}
		list, err := w.Chain.Blocks(ctx, tip.Number+1, head.Number, w.addresses())
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return nil // not there yet, from where we read
		}
		for _, s := range list {
			if s.Number != w.tip().Number+1 {
				return fmt.Errorf("block %d came after %d", s.Number, w.tip().Number)
			}
			if s.Parent != w.tip().Hash {
				rewinds++
				if err := w.rewind(ctx); err != nil {
					return err
				}
				break
			}
			if err := w.book(ctx, s); err != nil {
				return err
			}
			w.push(s.Block)
			if w.Mirror != nil {
				w.Mirror.apply(s)
			}
		}
	}
	return fmt.Errorf("the chain changes too fast above block %d", w.tip().Number)
}

func (w *Watcher) push(b Block) {
	if len(w.ring) >= 2*ringSize {
		w.ring = slices.Clone(w.ring[len(w.ring)-ringSize:])
	}
	w.ring = append(w.ring, b)
	w.seen.Store(b.Number)
}

// index is where a number is in the ring, -1 if it is not.
func (w *Watcher) index(number int64) int {
	i := int(number - w.ring[0].Number)
	if i < 0 || i >= len(w.ring) {
		return -1
	}
	return i
}

// rewind goes back to the newest block that is still canonical, and takes back
// all evidence after it. A chain that contradicts a finalized block is not
// believed: it is another chain, or a node that was set back.
func (w *Watcher) rewind(ctx context.Context) error {
	keep := len(w.ring) - 1
	for ; keep >= 0; keep-- {
		b, err := w.Chain.At(ctx, w.ring[keep].Number)
		if err != nil {
			return err
		}
		if b != nil && b.Hash == w.ring[keep].Hash {
			break
		}
		if w.ring[keep].Number <= w.final.Number {
			return fmt.Errorf("the node contradicts the finalized block %d: it is on another chain, or was set back", w.ring[keep].Number)
		}
	}
	lost := slices.Clone(w.ring[keep+1:])
	if len(lost) == 0 {
		return nil
	}
	if keep >= 0 {
		w.ring = w.ring[:keep+1]
	} else {
		// Deeper than what we remember, and not finalized: begin where nothing can be undone.
		final, err := w.Chain.Finalized(ctx)
		if err != nil {
			return err
		}
		w.ring = []Block{final}
	}
	w.seen.Store(w.tip().Number)
	if w.Mirror != nil {
		w.Mirror.forget()
	}
	w.log().WarnContext(ctx, "the chain was reorganised", "network", w.Network, "from", w.tip().Number, "blocks", len(lost))
	if w.dropped == nil || len(w.dropped) > 4*ringSize {
		w.dropped = make(map[string]bool)
	}
	for _, b := range lost {
		w.dropped[hexOf(b.Hash)] = true
	}
	w.suspects(w.tip().Number)
	return w.recheck(ctx)
}

// suspects has all evidence above a block looked at, now and for a while.
func (w *Watcher) suspects(above int64) {
	now := w.now()
	if !now.Before(w.suspect) || above < w.above {
		w.above = above
	}
	w.suspect = now.Add(suspicion)
}

// recheck takes back what is booked in blocks that are not canonical.
func (w *Watcher) recheck(ctx context.Context) error {
	list, err := w.Book.Blocks(ctx, w.Network, w.above+1, math.MaxInt64)
	if err != nil {
		return err
	}
	for _, b := range list {
		on, err := w.canonical(ctx, b)
		if err != nil {
			return err
		}
		if on == no {
			if err := w.unmine(ctx, b); err != nil {
				return err
			}
		}
	}
	return nil
}

type answered int

const (
	yes answered = iota
	no
	later // the chain is not that long: it cannot be told yet
)

// canonical reports whether a booked block is on the chain.
func (w *Watcher) canonical(ctx context.Context, b ledger.Block) (answered, error) {
	if i := w.index(b.Number); i >= 0 && hexOf(w.ring[i].Hash) == b.Hash {
		return yes, nil
	}
	at, err := w.Chain.At(ctx, b.Number)
	switch {
	case err != nil:
		return later, err
	case at == nil && w.dropped[b.Hash]:
		return no, nil
	case at == nil:
		return later, nil
	case hexOf(at.Hash) == b.Hash:
		return yes, nil
	}
	return no, nil
}

func (w *Watcher) unmine(ctx context.Context, b ledger.Block) error {
	w.reached("unmine.before")
	n, err := w.Book.UnmineBlock(ctx, w.Network, b)
	if err != nil {
		return err
	}
	w.reached("unmine.after")
	w.log().WarnContext(ctx, "a block with payments is not on the chain any more", "network", w.Network, "block", b.Number, "hash", b.Hash, "payments", n)
	return nil
}

// book tells the book of every payment that somebody's transaction made.
func (w *Watcher) book(ctx context.Context, s Seen) error {
	var uses []ledger.Use
	for _, u := range s.Uses {
		if u.Use != Paid || u.Amount <= 0 {
			continue
		}
		uses = append(uses, ledger.Use{
			Key:   ledger.Key{Network: w.Network, Asset: x402.Lower(u.Asset), Payer: x402.Lower(u.Payer), Nonce: u.Nonce.Hex()},
			PayTo: x402.Lower(u.PayTo), Amount: u.Amount,
			Evidence: ledger.Evidence{Tx: u.Tx, BlockNumber: s.Number, BlockHash: hexOf(s.Hash), LogIndex: u.LogIndex}})
	}
	if len(uses) == 0 {
		return nil
	}
	_, err := w.Book.Used(ctx, uses)
	return err
}

// finalize makes final what is in finalized blocks, each by its own hash, and
// takes back what is not in them after all.
func (w *Watcher) finalize(ctx context.Context) error {
	final, err := w.Chain.Finalized(ctx)
	if err != nil {
		return err
	}
	if tip := w.tip(); final.Number > tip.Number { // then what we have followed is final, if it is on that chain
		at, err := w.Chain.At(ctx, tip.Number)
		if err != nil {
			return err
		}
		if at == nil || at.Hash != tip.Hash {
			return nil
		}
		final = tip
	}
	if final.Number < w.final.Number {
		return nil // a node that lags behind
	}
	if i := w.index(final.Number); i >= 0 && w.ring[i].Hash != final.Hash {
		return nil // a reorganisation between two answers: the next look sees it
	}
	w.final = final
	list, err := w.Book.Blocks(ctx, w.Network, 0, final.Number)
	if err != nil {
		return err
	}
	for _, b := range list {
		on, err := w.canonical(ctx, b)
		switch {
		case err != nil:
			return err
		case on == no:
			err = w.unmine(ctx, b)
		case on == yes:
			w.reached("final.before")
			_, err = w.Book.FinalizeBlock(ctx, w.Network, b, final.Number)
			w.reached("final.after")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keep moves the cursor to where the watcher is.
func (w *Watcher) keep(ctx context.Context) error {
	tip := w.tip()
	c := ledger.Cursor{Scanned: ledger.Block{Number: tip.Number, Hash: hexOf(tip.Hash)}, Final: min(w.final.Number, tip.Number), FinalTime: w.final.Time}
	if c == w.kept {
		return nil
	}
	if err := w.Cursors.SetCursor(ctx, w.Network, c); err != nil {
		return err
	}
	w.kept = c
	return nil
}

func (w *Watcher) addresses() []common.Address {
	list := make([]common.Address, len(w.Assets))
	for i, a := range w.Assets {
		list[i] = common.HexToAddress(a.Address)
	}
	return list
}

func (w *Watcher) now() time.Time {
	if w.Now != nil {
		return w.Now()
	}
	return time.Now()
}

func (w *Watcher) log() *slog.Logger {
	if w.Log != nil {
		return w.Log
	}
	return slog.Default()
}

func (w *Watcher) reached(point string) {
	if w.Failpoint != nil {
		w.Failpoint(point)
	}
}

// hexOf is a hash as the book has it.
func hexOf(h common.Hash) string { return h.Hex() }

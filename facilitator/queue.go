package facilitator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// item is one settlement on its way into a batch.
type item struct {
	ledger.Settlement
	transfer Transfer
	opened   bool // the book does not have it yet
}

func transfers(its []item) []Transfer {
	ts := make([]Transfer, len(its))
	for i := range its {
		ts[i] = its[i].transfer
	}
	return ts
}

// queue owns the account's nonces: it makes one batch at a time, and the next
// only when the book has the one before. So nonces have no gaps, except when
// the book or the process dies between the two, and then the chain and the
// book are asked again.
type queue struct {
	mu    sync.Mutex
	next  int64
	known bool // next is right

	slots sync.Mutex
	room  chan struct{}   // one token for each transaction that is in no block
	held  map[string]bool // the batches that hold a token
}

// errUnsigned is in the tree of errors after which certainly nothing is signed.
var errUnsigned = errors.New("nothing was signed")

// sign makes a batch of its items, signs it with the account's next nonce and
// stores it. Nobody has seen it when it returns. With errUnsigned in its tree
// an error says that there is no such batch; with any other, only the book
// knows.
func (q *queue) sign(ctx context.Context, f *Facilitator, its []item, gas uint64) (ledger.Batch, error) {
	if !f.leads() {
		return ledger.Batch{}, errors.Join(errUnsigned, down("another process settles with this signer", nil))
	}
	if err := f.funds.check(ctx, f); err != nil {
		return ledger.Batch{}, errors.Join(errUnsigned, err)
	}
	if err := q.take(ctx, f); err != nil {
		return ledger.Batch{}, errors.Join(errUnsigned, err)
	}
	b, err := q.make(ctx, f, its, gas)
	q.slots.Lock()
	defer q.slots.Unlock()
	if err != nil {
		<-q.room
		return b, err
	}
	if q.held == nil {
		q.held = make(map[string]bool)
	}
	q.held[b.ID] = true
	return b, nil
}

// make tries again when another process with the same signer took the nonce.
func (q *queue) make(ctx context.Context, f *Facilitator, its []item, gas uint64) (b ledger.Batch, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for tried := int64(-1); ; tried = b.Nonce {
		if rerr := q.resume(ctx, f); rerr != nil {
			if err == nil {
				err = errors.Join(errUnsigned, down("the signer's nonce is not known just now", rerr))
			}
			return b, err
		}
		if q.next <= tried {
			return b, err // fenced, and not for its nonce
		}
		if b, err = q.attempt(ctx, f, its, gas); !errors.Is(err, ledger.ErrFenced) {
			return b, err
		}
	}
}

// attempt signs one batch with the next nonce and stores it.
func (q *queue) attempt(ctx context.Context, f *Facilitator, its []item, gas uint64) (ledger.Batch, error) {
	tx, calldata, err := f.Chain.Sign(ctx, q.next, gas, transfers(its))
	if err != nil {
		return ledger.Batch{}, errors.Join(errUnsigned, down("the transaction cannot be made just now", err))
	}
	b := ledger.Batch{ID: newID("bat_"), Network: f.Network, Signer: f.signer(), Nonce: q.next, CalldataSHA256: calldata,
		State: ledger.BatchSigned, Txs: []ledger.Tx{tx}, Created: f.now()}
	var opened []ledger.Settlement
	for _, it := range its {
		b.Settlements = append(b.Settlements, it.ID)
		if it.opened {
			opened = append(opened, it.Settlement)
		}
	}
	f.reached("t3.before")
	// From here on the caller's end must not leave in doubt what is stored.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTimeout)
	defer cancel()
	if err := f.Book.Sign(ctx, b, opened...); err != nil {
		q.known = false // another process may have taken the nonce, or this batch has it after all
		return b, err
	}
	f.reached("t3.after")
	q.next++
	return b, nil
}

// resume finds the next nonce: after what the chain has seen, and after what
// was signed and may be seen yet.
func (q *queue) resume(ctx context.Context, f *Facilitator) error {
	if q.known {
		return nil
	}
	seen, err := f.Chain.Nonce(ctx)
	if err != nil {
		return err
	}
	signed, err := f.Book.NextNonce(ctx, f.Network, f.signer())
	if err != nil {
		return err
	}
	q.next, q.known = max(seen, signed), true
	return nil
}

// take waits until one more transaction may be under way.
func (q *queue) take(ctx context.Context, f *Facilitator) error {
	q.slots.Lock()
	if q.room == nil {
		n := f.InFlight
		if n <= 0 {
			n = DefaultInFlight
		}
		q.room = make(chan struct{}, n)
	}
	room := q.room
	q.slots.Unlock()
	select {
	case room <- struct{}{}:
		return nil
	case <-ctx.Done():
		return down(fmt.Sprintf("%d transactions are waiting for a block, and no more may", cap(room)), ctx.Err())
	}
}

// done says that a batch is in a block, or never will be.
func (q *queue) done(batchID string) {
	q.slots.Lock()
	defer q.slots.Unlock()
	if q.held[batchID] {
		delete(q.held, batchID)
		<-q.room
	}
}

// carries reports whether a batch was signed by this process and is under way.
func (q *queue) carries(batchID string) bool {
	q.slots.Lock()
	defer q.slots.Unlock()
	return q.held[batchID]
}

// signer is the account as the book names it.
func (f *Facilitator) signer() string { return strings.ToLower(f.Chain.Signer().Hex()) }

// behind refuses to start on a chain that has not seen what the book says it
// has: transactions with later nonces would wait for ever.
func (f *Facilitator) behind(ctx context.Context, open []ledger.Batch) error {
	seen, err := f.Chain.Nonce(ctx)
	if err != nil {
		return err
	}
	next, err := f.Book.NextNonce(ctx, f.Network, f.signer())
	if err != nil {
		return err
	}
	for _, b := range open {
		if b.Nonce >= seen {
			next = min(next, b.Nonce)
		}
	}
	if next <= seen {
		return nil
	}
	return &clawr.Error{Code: clawr.CodeWrongChain, Param: "rpc-url",
		Message: fmt.Sprintf("the chain has %d transactions of the signer %s, the data directory remembers %d: the node lags behind, or is of another chain", seen, f.signer(), next),
		Fix:     "wait until the node has caught up, or use another signer key"}
}

package facilitator

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// nonces owns an account's nonces: one batch is made at a time, and the next
// only when the book has the one before. So nonces have no gaps, except when
// the book or the process dies between the two, and then the chain and the
// book are asked again.
type nonces struct {
	mu    sync.Mutex
	next  int64
	known bool // next is right
}

// errUnsigned is in the tree of errors after which certainly nothing is signed.
var errUnsigned = errors.New("nothing was signed")

func isUnsigned(err error) bool { return errors.Is(err, errUnsigned) }

// isRefused reports whether the book took nothing because of a settlement.
func isRefused(err error) bool {
	return errors.Is(err, ledger.ErrLive) || errors.Is(err, ledger.ErrFenced)
}

// sign makes a batch of its items, has tx sign it with the account's next nonce
// and stores it. Nobody has seen it when it returns. With errUnsigned in its
// tree an error says that there is no such batch; with any other, only the book
// knows. It tries again when another process with the same signer took the
// nonce.
func (s *settler) sign(ctx context.Context, hold *ledger.Hold, its []item, tx signature) (b ledger.Batch, err error) {
	n := &s.nonces
	n.mu.Lock()
	defer n.mu.Unlock()
	for tried := int64(-1); ; tried = b.Nonce {
		if rerr := n.resume(ctx, s); rerr != nil {
			if err == nil {
				err = errors.Join(errUnsigned, down("the signer's nonce is not known just now", rerr))
			}
			return b, err
		}
		if n.next <= tried {
			return b, err // fenced, and not for its nonce
		}
		if b, err = n.attempt(ctx, s, hold, its, tx); !errors.Is(err, ledger.ErrFenced) {
			return b, err
		}
	}
}

// signature makes the transaction with a nonce, and tells nobody.
type signature func(nonce int64) (tx ledger.Tx, calldataSHA256 string, err error)

// attempt signs one batch with the next nonce and stores it.
func (n *nonces) attempt(ctx context.Context, s *settler, hold *ledger.Hold, its []item, sign signature) (ledger.Batch, error) {
	f := s.f
	tx, calldata, err := sign(n.next)
	if err != nil {
		return ledger.Batch{}, errors.Join(errUnsigned, down("the transaction cannot be made just now", err))
	}
	b := ledger.Batch{ID: newID("bat_"), Network: f.Network, Signer: s.address, Nonce: n.next, CalldataSHA256: calldata,
		State: ledger.BatchSigned, Txs: []ledger.Tx{tx}, Created: f.now(), Hold: hold}
	var opened []ledger.Settlement
	for _, it := range its {
		if !it.apart {
			b.Settlements = append(b.Settlements, it.ID)
		}
		if it.opened {
			opened = append(opened, it.Settlement)
		}
	}
	f.reached("t3.before")
	// From here on nobody's end must leave in doubt what is stored.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTimeout)
	defer cancel()
	err = f.Book.Sign(ctx, b, opened...)
	if errors.Is(err, ledger.ErrReleased) {
		return b, errors.Join(errUnsigned, down("the channel was let go before its refund was signed", err))
	}
	if err != nil {
		n.known = false // another process may have taken the nonce, or this batch has it after all
		return b, err
	}
	f.reached("t3.after")
	if hold != nil {
		hold.Epoch++
	}
	n.next++
	return b, nil
}

// resume finds the next nonce: after what the chain has seen, and after what
// was signed and may be seen yet.
func (n *nonces) resume(ctx context.Context, s *settler) error {
	if n.known {
		return nil
	}
	seen, err := s.from.Nonce(ctx)
	if err != nil {
		return err
	}
	signed, err := s.f.Book.NextNonce(ctx, s.f.Network, s.address)
	if err != nil {
		return err
	}
	n.next, n.known = max(seen, signed), true
	return nil
}

// behind refuses to start on a chain that has not seen what the book says it
// has: transactions with later nonces would wait for ever.
func (s *settler) behind(ctx context.Context, open []ledger.Batch) error {
	seen, err := s.from.Nonce(ctx)
	if err != nil {
		return err
	}
	next, err := s.f.Book.NextNonce(ctx, s.f.Network, s.address)
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
		Message: fmt.Sprintf("the chain has %d transactions of the signer %s, the data directory remembers %d: the node lags behind, or is of another chain", seen, s.address, next),
		Fix:     "wait until the node has caught up, or use another signer key"}
}

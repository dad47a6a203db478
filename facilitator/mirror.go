package facilitator

import (
	"container/list"
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// Peeker reads what a chain says of an account.
type Peeker interface {
	// Account reads it at a block, in one round trip; the zero Block is the
	// newest. It is an error if the block is not canonical there.
	Account(ctx context.Context, asset, payer common.Address, nonce common.Hash, at Block) (Account, error)
}

// Account is what a chain said at one block about a payer.
type Account struct {
	Contract bool          // there is code at its address
	Balance  int64         // atomic units; MaxInt64: more than a payment can be
	Used     bool          // the nonce that was asked for was used or cancelled
	Past     []common.Hash // nonces that are known to have been used or cancelled before
}

// The defaults of a Mirror.
const (
	DefaultMirrorSize = 1 << 16 // payers, about 300 bytes each
	DefaultMirrorAge  = 5 * time.Second
)

// renewAfter is how long a payer is believed to be what it was when it was
// read: an account may get code by EIP-7702, and a token may change a balance
// without an event. The preflight asks again for every payment.
const renewAfter = 10 * time.Minute

// usedSize bounds the nonces that are remembered, in each of two generations.
const usedSize = 1 << 16

// Mirror answers for the chain, from memory: whether a payer has code, what it
// has, and which of its nonces were used. A payer is read once, when it is
// first seen; from then on a Watcher tells of every transfer and every use in
// every block. A reorganisation makes it forget everything.
//
// What it says is the chain's word as of the newest block that the Watcher has
// followed. It says nothing when that was not confirmed for longer than Age:
// then the chain has to be asked. The zero value with a Chain is ready to use.
type Mirror struct {
	Chain Peeker
	Size  int           // payers that are remembered, at most; 0: DefaultMirrorSize
	Age   time.Duration // for which a block that was confirmed is the newest; 0: DefaultMirrorAge

	mu        sync.Mutex
	head      Block
	confirmed time.Time // when the head was asked for; local
	payers    map[who]*list.Element
	order     list.List // of *mirrored, the last asked for first
	used, old map[nonceOf]struct{}
}

type who struct{ asset, payer common.Address }

type nonceOf struct {
	who
	nonce common.Hash
}

// mirrored is a payer, or one that is being read.
type mirrored struct {
	who
	contract bool
	balance  int64 // while it is being read: what came and went meanwhile
	unsure   bool  // the balance cannot be followed any more
	read     time.Time
	ready    chan struct{} // closed when it was read, or could not be
	failed   bool
}

// reflection is what the mirror says of a payment.
type reflection struct {
	Contract bool
	Used     bool
	Balance  int64
}

// errStale says that the mirror does not know how the chain stands.
var errStale = errors.New("the mirror is not up to date")

// look says how the chain stands on a payment. Whoever asks first for a payer
// waits for the chain, once; with him wait those who ask meanwhile.
func (m *Mirror) look(ctx context.Context, t *Transfer, now time.Time) (reflection, error) {
	w := who{t.Asset, t.Payer}
	m.mu.Lock()
	if !m.fresh(now) {
		m.mu.Unlock()
		return reflection{}, errStale
	}
	el, ok := m.payers[w]
	if ok {
		e := el.Value.(*mirrored)
		select {
		case <-e.ready:
			if !e.unsure && now.Sub(e.read) < renewAfter {
				m.order.MoveToFront(el)
				r := m.reflect(e, t.Nonce)
				m.mu.Unlock()
				return r, nil
			}
			m.remove(el)
		default:
			m.mu.Unlock()
			select {
			case <-e.ready:
				return m.again(e, t.Nonce)
			case <-ctx.Done():
				return reflection{}, ctx.Err()
			}
		}
	}
	e := &mirrored{who: w, ready: make(chan struct{}), read: now}
	head := m.head
	m.insert(e)
	m.mu.Unlock()
	a, err := m.Chain.Account(ctx, t.Asset, t.Payer, t.Nonce, head)
	m.mu.Lock()
	defer m.mu.Unlock()
	defer close(e.ready)
	el, ok = m.payers[w]
	stands := ok && el.Value == e // else it was forgotten meanwhile, and not told of every block
	if err != nil || !stands {
		e.failed = true
		if stands {
			m.remove(el)
		}
		if err == nil {
			err = errStale
		}
		return reflection{}, err
	}
	e.contract = a.Contract
	e.add(a.Balance)
	for _, n := range a.Past {
		m.remember(nonceOf{w, n})
	}
	if a.Used {
		m.remember(nonceOf{w, t.Nonce})
	}
	return m.reflect(e, t.Nonce), nil
}

// again is look for a payer that somebody else has just read.
func (m *Mirror) again(e *mirrored, nonce common.Hash) (reflection, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e.failed || e.unsure {
		return reflection{}, errStale
	}
	return m.reflect(e, nonce), nil
}

func (m *Mirror) reflect(e *mirrored, nonce common.Hash) reflection {
	n := nonceOf{e.who, nonce}
	_, used := m.used[n]
	if !used {
		_, used = m.old[n]
	}
	return reflection{Contract: e.contract, Used: used, Balance: e.balance}
}

// fresh reports whether the head was confirmed lately.
func (m *Mirror) fresh(now time.Time) bool {
	age := m.Age
	if age <= 0 {
		age = DefaultMirrorAge
	}
	since := now.Sub(m.confirmed)
	return !m.confirmed.IsZero() && since < age && since > -age
}

// Head is the newest block that was followed, and whether that was lately.
func (m *Mirror) Head(now time.Time) (Block, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.head, m.fresh(now)
}

// drop forgets a payer, so that the chain is asked again.
func (m *Mirror) drop(t *Transfer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if el, ok := m.payers[who{t.Asset, t.Payer}]; ok {
		m.remove(el)
	}
}

func (m *Mirror) insert(e *mirrored) {
	if m.payers == nil {
		m.payers = make(map[who]*list.Element)
	}
	size := m.Size
	if size <= 0 {
		size = DefaultMirrorSize
	}
	for len(m.payers) >= size {
		m.remove(m.order.Back())
	}
	m.payers[e.who] = m.order.PushFront(e)
}

func (m *Mirror) remove(el *list.Element) {
	delete(m.payers, el.Value.(*mirrored).who)
	m.order.Remove(el)
}

func (m *Mirror) remember(n nonceOf) {
	if m.used == nil || len(m.used) >= usedSize {
		m.old, m.used = m.used, make(map[nonceOf]struct{})
	}
	m.used[n] = struct{}{}
}

// apply adds a block that follows the one before it.
func (m *Mirror) apply(s Seen) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range s.Moves {
		for _, side := range []struct {
			payer common.Address
			sign  int64
		}{{v.From, -1}, {v.To, 1}} {
			el, ok := m.payers[who{v.Asset, side.payer}]
			if !ok {
				continue
			}
			e := el.Value.(*mirrored)
			if v.Amount < 0 {
				e.unsure = true
			} else {
				e.add(side.sign * v.Amount)
			}
		}
	}
	for _, u := range s.Uses {
		w := who{u.Asset, u.Payer}
		if _, ok := m.payers[w]; ok {
			m.remember(nonceOf{w, u.Nonce})
		}
	}
	m.head = s.Block
}

// add moves the balance. One that was too large to be counted stays so.
func (e *mirrored) add(n int64) {
	switch {
	case e.balance == math.MaxInt64 || n == math.MaxInt64:
		e.balance = math.MaxInt64
	case n > 0 && e.balance > math.MaxInt64-n || n < 0 && e.balance < math.MinInt64-n:
		e.unsure = true
	default:
		e.balance += n
	}
}

// confirm says that head was the newest block at a moment.
func (m *Mirror) confirm(head Block, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.head, m.confirmed = head, at
}

// forget forgets everything: the chain is another one now.
func (m *Mirror) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.head, m.confirmed = Block{}, time.Time{}
	m.payers, m.used, m.old = nil, nil, nil
	m.order.Init()
}

package facilitator

import (
	"sync"
	"time"
)

// promises remember what the book said payers had promised, so that it is not
// asked for each payment of one who has far more. What was verified since then
// is counted as promised too, whether it was or not: so the sum errs against
// the payer, and when it says that there is no room the book is asked. What
// other nodes reserve meanwhile is not in it; for so long as that, and no
// longer, a payer may be believed to have it still. The preflight is exact.
type promises struct {
	mu sync.Mutex
	m  map[who]*promise
}

type promise struct {
	held int64 // by the book, and by what was verified since
	read time.Time
}

// For how long what the book said is believed, and of how many payers.
const (
	promiseAge   = time.Second
	promiseCount = 1 << 14
)

// room reports whether a fits into balance beside everything that may be
// promised, and counts it in if so.
func (p *promises) room(a *payment, balance int64, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.m[a.who()]
	if e == nil || now.Sub(e.read).Abs() >= promiseAge || balance-e.held < a.transfer.Amount {
		return false
	}
	e.held += a.transfer.Amount
	return true
}

// learn notes what the book says.
func (p *promises) learn(a *payment, held int64, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil || len(p.m) >= promiseCount {
		p.m = map[who]*promise{}
	}
	p.m[a.who()] = &promise{held, now}
}

// add counts a in.
func (p *promises) add(a *payment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.m[a.who()]; e != nil {
		e.held += a.transfer.Amount
	}
}

func (a *payment) who() who { return who{a.transfer.Asset, a.transfer.Payer} }

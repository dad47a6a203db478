package facilitator

import (
	"context"
	"sync"
	"time"

	"github.com/402claw/clawr"
)

// money remembers whether an account can pay for gas.
type money struct {
	mu    sync.Mutex
	err   error     // why it cannot
	asked time.Time // local
}

// How long an account is believed to have money, and to have none.
const (
	fundsAge = 30 * time.Second
	brokeAge = 2 * time.Second
)

// check is an error while the account cannot pay for gas.
func (m *money) check(ctx context.Context, s *settler) error {
	now := s.f.now()
	m.mu.Lock()
	err, age := m.err, now.Sub(m.asked)
	m.mu.Unlock()
	if age < 0 || age > fundsAge || err != nil && age > brokeAge {
		if err = s.from.Affords(ctx, s.f.gas(true)); err != nil && clawr.CodeOf(err) != clawr.CodeUnfunded {
			return down("the chain cannot be asked just now", err)
		}
		m.mu.Lock()
		m.err, m.asked = err, now
		m.mu.Unlock()
	}
	if err != nil {
		return down("the facilitator cannot pay for gas", err)
	}
	return nil
}

// heard notes what a node said of the account's money.
func (m *money) heard(err error) {
	if clawr.CodeOf(err) != clawr.CodeUnfunded {
		return
	}
	m.mu.Lock()
	m.err = err
	m.mu.Unlock()
}

// short reports whether the account had no money when it was last asked.
func (m *money) short() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err != nil
}

// solvent is an error while none of the accounts can pay for gas.
func (f *Facilitator) solvent(ctx context.Context) (err error) {
	for _, s := range f.settlers() {
		if err = s.money.check(ctx, s); err == nil {
			return nil
		}
	}
	return err
}

// Short reports whether an account could not pay for gas when it was last asked
// about, for whatever reason.
func (f *Facilitator) Short(signer string) bool {
	s := f.settlerOf(signer)
	return s == nil || s.money.short()
}

// CheckFunds asks the chain whether an account can pay for gas, if that is due.
// What it does not answer stays as it was.
func (f *Facilitator) CheckFunds(ctx context.Context, signer string) {
	if s := f.settlerOf(signer); s != nil {
		_ = s.money.check(ctx, s)
	}
}

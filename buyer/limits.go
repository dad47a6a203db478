package buyer

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/402claw/clawr"
)

// Limits are what a wallet may spend without being asked.
type Limits struct {
	PerCall clawr.Amount `json:"perCallUsd"`
	PerDay  clawr.Amount `json:"perDayUsd"` // per UTC day
}

// DefaultLimits are a new wallet's: $0.10 a call, $1 a day.
func DefaultLimits() Limits { return Limits{PerCall: 100_000, PerDay: 1_000_000} }

// Limits are the wallet's, or the default. A file that cannot be read is an
// error: guessing would spend somebody's money.
func (w *Wallet) Limits() (Limits, error) {
	path := w.path(limitsName)
	b, err := readFile(path)
	if err != nil {
		return Limits{}, err
	}
	if b == nil {
		return DefaultLimits(), nil
	}
	var l Limits
	if err := strict(b, &l); err != nil {
		return Limits{}, damaged(path, err)
	}
	return l, nil
}

// SetLimits changes what may be spent from now on.
func (w *Wallet) SetLimits(l Limits) error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("encode limits: %w", err)
	}
	return writeFile(w.path(limitsName), append(b, '\n'))
}

// spend is what counts against the limit per day. A payment counts from before
// it is signed; it is given back only if it is proven that it was not charged.
type spend struct {
	Days map[string]clawr.Amount `json:"days"` // by UTC day, such as 2026-01-31
	Held map[string]hold         `json:"held"` // the part of it that open payments are, by payment
}

type hold struct {
	Day    string       `json:"day"`
	Amount clawr.Amount `json:"amountUsd"`
	Call   string       `json:"call"` // whose open payment it is
}

// maxSpent is above every limit per day, and far below an overflow.
const maxSpent = 1000 * clawr.MaxPrice

// keepDays is how many days are remembered, so that a clock that is set back
// finds its day again.
const keepDays = 8

func dayOf(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// Spent is what counts against today's limit: payments, and the more of what
// was deposited into channels and what was bought from them.
func (w *Wallet) Spent(ctx context.Context) (clawr.Amount, error) {
	out, bought, err := w.counted(ctx)
	return max(out, bought), err
}

// counted is what went out of the account today, and what was bought.
func (w *Wallet) counted(ctx context.Context) (out, bought clawr.Amount, err error) {
	err = w.withSpend(ctx, func(s *spend) error {
		day := dayOf(w.now())
		deposited, drawn, err := w.today(day)
		out, bought = s.Days[day]+deposited, s.Days[day]+drawn
		return err
	}, nil)
	return out, bought, err
}

// withSpend runs change on the spending, alone among all processes, and keeps
// what it leaves if it succeeds. Then, still alone, it runs then if it is set.
func (w *Wallet) withSpend(ctx context.Context, change func(*spend) error, then func() error) error {
	unlock, err := lockFile(ctx, w.path(spendLock))
	if err != nil {
		return err
	}
	defer unlock()
	path := w.path(spendName)
	was, err := readFile(path)
	if err != nil {
		return err
	}
	s := &spend{}
	if was != nil {
		if err := strict(was, s); err != nil {
			return damaged(path, err)
		}
	}
	if s.Days == nil {
		s.Days = map[string]clawr.Amount{}
	}
	if s.Held == nil {
		s.Held = map[string]hold{}
	}
	if err := s.check(); err != nil {
		return damaged(path, err)
	}
	if err := change(s); err != nil {
		return err
	}
	if err := w.saveSpend(s, was); err != nil || then == nil {
		return err
	}
	return then()
}

func (s *spend) check() error {
	for day, n := range s.Days {
		if n < 0 || n > maxSpent {
			return fmt.Errorf("$%s cannot have been spent on %s", n, clean(day, 10))
		}
	}
	for id, h := range s.Held {
		if h.Amount < 0 || h.Amount > maxSpent || !isID(h.Call, "") {
			return fmt.Errorf("%s cannot hold $%s", clean(id, 40), h.Amount)
		}
	}
	return nil
}

// saveSpend writes s if it is not what stands there. Maps are encoded in the
// order of their keys, so equal spending has equal bytes.
func (w *Wallet) saveSpend(s *spend, was []byte) error {
	oldest := dayOf(w.now().AddDate(0, 0, -keepDays))
	for day := range s.Days {
		if day < oldest {
			delete(s.Days, day)
		}
	}
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode spending: %w", err)
	}
	if bytes.Equal(b, was) {
		return nil
	}
	return writeFile(w.path(spendName), b)
}

// within is nil if amount more than spent is within the limit of a day.
func within(spent, amount clawr.Amount, l Limits, what string) error {
	if spent <= l.PerDay && amount <= l.PerDay-spent {
		return nil
	}
	return &clawr.Error{Code: clawr.CodeQuoteOverLimit, Param: "per-day",
		Message: fmt.Sprintf("%s %s, and %s of your limit of %s a day are spent. Nothing was signed.", what, Dollars(amount), Dollars(spent), Dollars(l.PerDay)),
		Fix:     "clawr wallet limits --per-day " + (spent + amount).String()}
}

// take counts amount for the payment id of a call, or refuses. also is what
// counts on that day and stands elsewhere.
func (s *spend) take(id, call, day string, amount, also clawr.Amount, l Limits) error {
	if err := within(s.Days[day]+also, amount, l, "this call costs"); err != nil {
		return err
	}
	s.Days[day] += amount
	s.Held[id] = hold{Day: day, Amount: amount, Call: call}
	return nil
}

// keep makes what the payment id counts final.
func (s *spend) keep(id string) { delete(s.Held, id) }

// giveBack uncounts the payment id. Once is enough, and twice is as once.
func (s *spend) giveBack(id string) {
	h, ok := s.Held[id]
	if !ok {
		return
	}
	delete(s.Held, id)
	if s.Days[h.Day] -= h.Amount; s.Days[h.Day] <= 0 {
		delete(s.Days, h.Day)
	}
}

// strict decodes one JSON value that has no member that into does not have.
func strict(b []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return fmt.Errorf("there is more than one value")
	}
	return nil
}

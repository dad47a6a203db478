package buyer

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
)

var errCrash = errors.New("the process ended here")

// signed makes a payment of amount as Client.sign would, for one call.
func signed(t testing.TB, w *Wallet, id, call string, amount clawr.Amount) func() (*Payment, error) {
	return func() (*Payment, error) {
		c := &Client{Wallet: w, Now: w.now}
		s := newSeller(t, nil)
		s.price = int64(amount)
		cl, err := newCall(Request{URL: "http://shop.test/" + call})
		if err != nil {
			return nil, err
		}
		req := s.required(httpRequest(cl.url.String()))
		q, err := c.choose(t.Context(), req, cl.url, cl.host)
		if err != nil {
			return nil, err
		}
		cl.key = call
		return c.sign(cl, q, id)
	}
}

func callName(n int) string { return hashed("call", string(rune('a'+n))) }

func TestTheDayLimitHoldsAmongProcesses(t *testing.T) {
	dir := t.TempDir()
	first := wallet(t, dir)
	if err := first.SetLimits(Limits{PerCall: usd("1"), PerDay: usd("0.010")}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	ok, refused := 0, 0
	for i := range 16 {
		wg.Go(func() {
			w, err := OpenWallet(first.Dir(), "") // as another process would
			if err != nil {
				t.Error(err)
				return
			}
			id, call := newID("pay_"), callName(i)
			_, err = w.open(t.Context(), id, call, 1000, signed(t, w, id, call, 1000))
			mu.Lock()
			defer mu.Unlock()
			switch clawr.CodeOf(err) {
			case clawr.CodeQuoteOverLimit:
				refused++
			default:
				if err != nil {
					t.Error(err)
				}
				ok++
			}
		})
	}
	wg.Wait()
	if ok != 10 || refused != 6 {
		t.Errorf("%d payments of $0.001 were signed and %d refused under a limit of $0.01 a day, want 10 and 6", ok, refused)
	}
	if n, err := first.Spent(t.Context()); err != nil || n != usd("0.01") {
		t.Errorf("spent %v %v", n, err)
	}
}

// TestSpendingIsCountedOnceAndGivenBackOnce compares the wallet with a plain
// account, through payments, endings, crashes between any two writes, and days.
func TestSpendingIsCountedOnceAndGivenBackOnce(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(scratch(), "wallet")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		w := wallet(t, dir)
		now := time.Date(2026, 1, 1, 23, 0, 0, 0, time.UTC)
		w.Now = func() time.Time { return now }
		limit := usd("0.005")
		if err := w.SetLimits(Limits{PerCall: limit, PerDay: limit}); err != nil {
			rt.Fatal(err)
		}
		model := map[string]clawr.Amount{} // by day
		type held struct {
			day    string
			amount clawr.Amount
			p      *Payment
		}
		open := map[string]held{} // by call
		rt.Repeat(map[string]func(*rapid.T){
			"open": func(rt *rapid.T) {
				call := callName(rapid.IntRange(0, 4).Draw(rt, "call"))
				if _, ok := open[call]; ok {
					rt.Skip("it is open")
				}
				amount := clawr.Amount(rapid.IntRange(1, 3000).Draw(rt, "amount"))
				id := newID("pay_")
				p, err := w.open(t.Context(), id, call, amount, signed(t, w, id, call, amount))
				if model[dayOf(now)]+amount > limit {
					if clawr.CodeOf(err) != clawr.CodeQuoteOverLimit {
						rt.Fatalf("%v over the limit: %v", amount, err)
					}
					return
				}
				if err != nil {
					rt.Fatal(err)
				}
				model[dayOf(now)] += amount
				open[call] = held{dayOf(now), amount, p}
			},
			"crash between counting and writing down": func(rt *rapid.T) {
				call := callName(rapid.IntRange(5, 7).Draw(rt, "call"))
				id := newID("pay_")
				_, err := w.open(t.Context(), id, call, 1, func() (*Payment, error) { return nil, errCrash })
				if err != errCrash && clawr.CodeOf(err) != clawr.CodeQuoteOverLimit {
					rt.Fatal(err)
				}
			},
			"close": func(rt *rapid.T) {
				for call, h := range open {
					how := rapid.SampledFrom([]Outcome{Paid, NotCharged, Expired, Abandoned}).Draw(rt, "how")
					times := rapid.IntRange(1, 2).Draw(rt, "times") // a crash before the file is gone makes it twice
					for range times {
						p := *h.p
						if err := w.close(t.Context(), &p, how, ""); err != nil {
							rt.Fatal(err)
						}
					}
					if how == NotCharged {
						model[h.day] -= h.amount
					}
					delete(open, call)
					return
				}
			},
			"tomorrow": func(rt *rapid.T) { now = now.Add(12 * time.Hour) },
			"": func(rt *rapid.T) {
				// What a crash left counted is given back by the next payment.
				if err := w.withSpend(t.Context(), w.forget, nil); err != nil {
					rt.Fatal(err)
				}
				got, err := w.Spent(t.Context())
				if err != nil || got != model[dayOf(now)] {
					rt.Fatalf("spent %v (%v), want %v", got, err, model[dayOf(now)])
				}
				all, err := w.Open()
				if err != nil || len(all) != len(open) {
					rt.Fatalf("%d open payments (%v), want %d", len(all), err, len(open))
				}
			},
		})
	})
}

func TestDamagedSpendingStopsPayments(t *testing.T) {
	for _, bad := range []string{"{", `{"days":{"2026-01-01":"-5"}}`, `{"days":{"2026-01-01":"900000000000"}}`, `{"held":{"pay_1":{"day":"2026-01-01","amountUsd":"1","call":"../../x"}}}`, `{"dayz":{}}`} {
		w := wallet(t, t.TempDir())
		if err := os.WriteFile(filepath.Join(w.Dir(), spendName), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		id, call := newID("pay_"), callName(0)
		if _, err := w.open(t.Context(), id, call, 1, signed(t, w, id, call, 1)); clawr.CodeOf(err) != CodeBadWallet {
			t.Errorf("%s: %v, want %s", bad, err, CodeBadWallet)
		}
	}
}

func TestALockIsGivenBackAndItsFileGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "locks", "x")
	var inside, n atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				unlock, err := lockFile(t.Context(), path)
				if err != nil {
					t.Error(err)
					return
				}
				if at := inside.Add(1); at != 1 {
					t.Errorf("%d hold the lock", at)
				}
				runtime.Gosched()
				inside.Add(-1)
				n.Add(1)
				unlock()
			}
		})
	}
	wg.Wait()
	if n.Load() != 160 {
		t.Errorf("%d of 160 turns", n.Load())
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the lock file is still there: %v", err)
	}
	unlock, err := lockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := contextFor(t, 50*time.Millisecond)
	defer cancel()
	if _, err := lockFile(ctx, path); clawr.CodeOf(err) != clawr.CodeLocked {
		t.Errorf("a lock that is held: %v, want %s", err, clawr.CodeLocked)
	}
}

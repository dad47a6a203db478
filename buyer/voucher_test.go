package buyer

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// get makes one call, which must be answered.
func get(t testing.TB, c *Client, url string) *Result {
	t.Helper()
	var out bytes.Buffer
	res, err := c.Do(t.Context(), Request{URL: url, Out: &out})
	if err != nil || !res.Paid || out.Len() == 0 {
		t.Fatalf("got %+v, %q, %v", res, out.String(), err)
	}
	return res
}

func TestVouchersGoUpByThePriceAndTheChannelIsToppedUp(t *testing.T) {
	s := newTill(t)
	s.minDeposit = 10_000
	w := wallet(t, t.TempDir())
	c := channelBuyer(t, s, w)
	for i := range 12 {
		res := get(t, c, shop)
		if want := int64(1000 * (i + 1)); res.Channel.Charged != want || s.vouchers[i].Voucher.MaxClaimable != want {
			t.Fatalf("call %d: %d charged, signed %d, want %d", i, res.Channel.Charged, s.vouchers[i].Voucher.MaxClaimable, want)
		}
		if deposits := res.Payment.Deposit > 0; deposits != (i%10 == 0) {
			t.Errorf("call %d deposited %d", i, res.Payment.Deposit)
		}
	}
	ch := only(t, w)
	if ch.Balance != 20_000 || s.balance != 20_000 || ch.Charged != 12_000 || ch.Signed != 12_000 || len(ch.Open) != 0 || ch.Deposit != nil {
		t.Errorf("the wallet knows %+v", ch)
	}
	if spent, err := w.Spent(t.Context()); spent != usd("0.02") || err != nil {
		t.Errorf("%s counts as spent (%v), want the deposits", spent, err)
	}
	draws, err := w.Draws(ch.ID, 3)
	if err != nil || len(draws) != 3 || draws[0].Charged != 12_000 || draws[1].Deposit != 10_000 {
		t.Errorf("the log says %+v, %v", draws, err)
	}
}

// What an honest seller charges less than a voucher allows is not owed.
func TestAChargeBelowTheVoucherIsBelieved(t *testing.T) {
	s := newTill(t)
	w := wallet(t, t.TempDir())
	c := channelBuyer(t, s, w)
	s.before = func(w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) bool {
		if n == 0 {
			s.collect(p)
			s.charged = 400
			s.receipt(w, 400)
			io.WriteString(w, "cheap")
		}
		return n == 0
	}
	get(t, c, shop)
	if ch := only(t, w); ch.Charged != 400 || ch.Signed != 1000 {
		t.Errorf("%d charged, %d signed", ch.Charged, ch.Signed)
	}
	if res := get(t, c, shop+"&n=2"); res.Channel.Charged != 1400 || s.highest != 1400 {
		t.Errorf("then %d charged, %d signed", res.Channel.Charged, s.highest)
	}
}

// Whatever a seller answers to vouchers, it can claim one price more than before
// the call, and not a unit of it unseen by the wallet.
func TestASellerGetsOnePriceForOneCall(t *testing.T) {
	type hook = func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int)
	tests := []struct {
		name string
		do   hook
		want clawr.Code
		says string
		open int
	}{
		{"claims that more was charged than was signed", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) {
			s.correct(w, r, p.Voucher.MaxClaimable+5000, p.Voucher.MaxClaimable+5000, nil)
		}, clawr.CodePaymentRejected, "cannot prove it", 0},
		{"proves more by a signature that is not ours", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) {
			s.correct(w, r, p.Voucher.MaxClaimable+5000, p.Voucher.MaxClaimable+5000, bytes.Repeat([]byte{1}, 65))
		}, clawr.CodePaymentRejected, "cannot prove it", 0},
		{"proves more by our signature for less", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) {
			s.correct(w, r, p.Voucher.MaxClaimable+5000, p.Voucher.MaxClaimable+5000, p.Voucher.Signature)
		}, clawr.CodePaymentRejected, "cannot prove it", 0},
		{"says that each voucher was charged, and proves it by that voucher", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) {
			s.correct(w, r, p.Voucher.MaxClaimable, p.Voucher.MaxClaimable, p.Voucher.Signature)
		}, clawr.CodePaymentUnknown, "did not deliver the answer", 1},
		{"charges a little of it, without an answer", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) {
			s.correct(w, r, p.Voucher.MaxClaimable-1, p.Voucher.MaxClaimable, p.Voucher.Signature)
		}, clawr.CodePaymentUnknown, "did not deliver the answer", 1},
		{"repeats the same correction for ever", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) {
			s.correct(w, r, 2000, 2000, s.sig)
		}, clawr.CodePaymentRejected, "402", 0},
		{"corrects for ever, each time otherwise", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) {
			s.correct(w, r, int64(n%3)*1000, 3000, s.sig)
		}, clawr.CodePaymentRejected, "refused 4 vouchers", 0},
		{"has no money in the channel, for ever", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) {
			s.challenge(w, r, string(x402.ReasonCumulativeBalance))
		}, clawr.CodePaymentRejected, "exceeds_balance", 0},
		{"is busy for ever", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) {
			s.challenge(w, r, string(x402.ReasonChannelBusy))
		}, clawr.CodePaymentUnknown, "channel_busy", 1},
		{"raises the price when it refuses", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) {
			s.price = 200_000
			s.correct(w, r, 2000, 3000, s.sig)
		}, clawr.CodeQuoteOverLimit, "your limit is $0.10", 0},
		{"says nothing", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) { abort(w) }, clawr.CodePaymentUnknown, "may have been charged", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTill(t)
				s.minDeposit = 50_000
				w := wallet(t, t.TempDir())
				c := channelBuyer(t, s, w)
				for i := range 3 {
					get(t, c, fmt.Sprint(shop, i))
				}
				first := s.sent
				s.before = func(w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) bool {
					tt.do(s, w, r, p, n-first)
					return true
				}
				_, err := c.Do(t.Context(), Request{URL: shop})
				if clawr.CodeOf(err) != tt.want || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %v, want %s saying %q", err, tt.want, tt.says)
				}
				ch := only(t, w)
				if s.highest > 4000 || ch.Signed != s.highest {
					t.Errorf("the seller can claim %d, at most 4000 are for the calls; the wallet knows of %d", s.highest, ch.Signed)
				}
				if len(ch.Open) != tt.open {
					t.Errorf("%d vouchers are open, want %d", len(ch.Open), tt.open)
				}
				if len(s.used) != 1 || ch.Deposit != nil {
					t.Errorf("%d deposits, %+v is in doubt", len(s.used), ch.Deposit)
				}
				if drawn := ch.Drawn[dayOf(time.Now())]; drawn != ch.USD(ch.Signed) {
					t.Errorf("%s counts against the day, %s can be claimed", drawn, ch.USD(ch.Signed))
				}
				// Another call is paid for all the same.
				s.before, s.price = nil, 1000
				if res := get(t, c, shop+"&other"); s.highest != res.Channel.Signed || s.highest > 5000 {
					t.Errorf("after another call %d can be claimed, the wallet knows of %d", s.highest, res.Channel.Signed)
				}
			})
		})
	}
}

// A process that ends between signing and sending leaves the voucher to the
// next, which sends the very same.
func TestAVoucherThatWasSignedBeforeACrashIsSentAfterIt(t *testing.T) {
	for _, when := range []string{"before it is sent", "after it is charged"} {
		t.Run(when, func(t *testing.T) {
			s := newTill(t)
			s.keeps = true
			w := wallet(t, t.TempDir())
			c := channelBuyer(t, s, w)
			get(t, c, shop+"&first")
			var header string
			dying := func(r *http.Request) (*http.Response, error) {
				if header = r.Header.Get(x402.HeaderSignature); header == "" {
					return s.RoundTrip(r)
				}
				if when == "after it is charged" {
					s.RoundTrip(r)
				}
				runtime.Goexit()
				return nil, nil
			}
			var wg sync.WaitGroup
			wg.Go(func() {
				dead := *c
				dead.Transport = roundTrip(dying)
				dead.Do(t.Context(), Request{URL: shop})
				t.Error("the process did not die")
			})
			wg.Wait()
			if ch := only(t, w); ch.Signed != 2000 || len(ch.Open) != 1 || ch.Open[0].Header != header {
				t.Fatalf("after the crash the wallet knows %+v", ch)
			}
			again, err := OpenWallet(w.Dir(), "")
			if err != nil {
				t.Fatal(err)
			}
			c.Wallet = again
			res := get(t, c, shop)
			if !res.Resumed || res.Payment.Header != header || s.highest != 2000 || s.charged != 2000 {
				t.Errorf("resumed %v, %d signed, %d charged", res.Resumed, s.highest, s.charged)
			}
			if ch := only(t, w); len(ch.Open) != 0 || ch.Charged != 2000 {
				t.Errorf("the wallet knows %+v", ch)
			}
		})
	}
}

// lose charges the n-th payload, and cuts the answer.
func (s *till) lose(n int) {
	s.before = func(w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, at int) bool {
		if at == n {
			s.serve(w, r, r.Header.Get(x402.HeaderSignature), p)
			abort(w)
		}
		return false
	}
}

func TestAnAnswerLostAfterTheChargeIsGivenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTill(t)
		s.keeps = true
		s.lose(0)
		w := wallet(t, t.TempDir())
		res := get(t, channelBuyer(t, s, w), shop)
		if !res.Replayed || s.sent != 2 || s.charged != 1000 || s.highest != 1000 || len(s.used) != 1 {
			t.Errorf("%+v after %d payloads: %d charged, %d signed, %d deposits", res, s.sent, s.charged, s.highest, len(s.used))
		}
		if ch := only(t, w); ch.Charged != 1000 || ch.Balance != s.balance || ch.Deposit != nil {
			t.Errorf("the wallet knows %+v", ch)
		}
	})
}

// The reference server keeps no answers: what it charged and did not deliver is
// owed and known, and never paid twice unasked.
func TestAnAnswerThatIsNotKeptIsNotPaidTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTill(t)
		s.lose(0)
		w := wallet(t, t.TempDir())
		c := channelBuyer(t, s, w)
		for range 2 {
			_, err := c.Do(t.Context(), Request{URL: shop})
			if clawr.CodeOf(err) != clawr.CodePaymentUnknown || !strings.Contains(err.Error(), "charged") {
				t.Fatalf("got %v", err)
			}
		}
		if ch := only(t, w); ch.Charged != 1000 || ch.Signed != 1000 || ch.Balance != s.balance || len(ch.Open) != 1 {
			t.Errorf("the wallet knows %+v", ch)
		}
		sent := s.sent
		if res := get(t, c, shop+"&other"); s.sent != sent+1 || res.Channel.Charged != 2000 {
			t.Errorf("another call took %d payloads, and %d are charged", s.sent-sent, res.Channel.Charged)
		}
		var out bytes.Buffer
		if res, err := c.Do(t.Context(), Request{URL: shop, New: true, Out: &out}); err != nil || res.Resumed || s.charged != 3000 {
			t.Errorf("with New: %+v, %v, %d charged", res, err, s.charged)
		}
	})
}

// A call that was never charged gives its place to the next one.
func TestAVoucherThatBoughtNothingCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTill(t)
		w := wallet(t, t.TempDir())
		c := channelBuyer(t, s, w)
		get(t, c, shop+"&first")
		s.before = func(w http.ResponseWriter, _ *http.Request, _ *x402.ChannelPayload, _ int) bool {
			abort(w)
			return true
		}
		if _, err := c.Do(t.Context(), Request{URL: shop}); clawr.CodeOf(err) != clawr.CodePaymentUnknown {
			t.Fatalf("got %v", err)
		}
		s.before = nil
		get(t, c, shop+"&other")
		if ch := only(t, w); ch.Signed != 2000 || ch.Charged != 2000 || len(ch.Open) != 0 {
			t.Errorf("the wallet knows %+v", ch)
		}
		if res := get(t, c, shop); res.Resumed || s.charged != 3000 {
			t.Errorf("the first call: resumed %v, %d charged in all", res.Resumed, s.charged)
		}
	})
}

func TestTwoProcessesDrawOnOneChannel(t *testing.T) {
	s := newTill(t)
	s.minDeposit = 10_000
	w := wallet(t, t.TempDir())
	channelBuyer(t, s, w)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			mine, err := OpenWallet(w.Dir(), "") // as another process does
			if err != nil {
				t.Error(err)
				return
			}
			c := &Client{Wallet: mine, Transport: s, Terms: Terms{Scheme: x402.SchemeChannel}}
			for j := range 4 {
				get(t, c, fmt.Sprint(shop, i, j))
			}
		})
	}
	wg.Wait()
	ch := only(t, w)
	if s.sent != 32 || s.charged != 32_000 || ch.Charged != 32_000 || ch.Signed != 32_000 || ch.Balance != s.balance || s.balance != 40_000 {
		t.Errorf("%d payloads, %d charged of %d; the wallet knows %+v", s.sent, s.charged, s.balance, ch)
	}
}

// Another wallet with the same key is met by what the seller proves.
func TestALostWalletFindsItsChannelAgain(t *testing.T) {
	for _, node := range []bool{false, true} {
		t.Run(fmt.Sprintf("with a node %v", node), func(t *testing.T) {
			s := newTill(t)
			s.minDeposit = 10_000
			w := wallet(t, t.TempDir())
			c := channelBuyer(t, s, w)
			for i := range 3 {
				get(t, c, fmt.Sprint(shop, i))
			}
			lost, err := OpenWallet(t.TempDir(), w.Reveal())
			if err != nil {
				t.Fatal(err)
			}
			c = channelBuyer(t, s, lost)
			if node {
				asking(c, s)
			}
			res := get(t, c, shop)
			if s.charged != 4000 || s.highest != 4000 || res.Channel.Charged != 4000 {
				t.Errorf("%d charged, %d signed; the wallet knows %+v", s.charged, s.highest, res.Channel)
			}
			if node && (len(s.used) != 1 || res.Channel.Balance != s.balance) {
				t.Errorf("%d deposits, and a balance of %d is known of %d", len(s.used), res.Channel.Balance, s.balance)
			}
			// Its first voucher counts too, though the other wallet's were higher.
			if drawn := res.Channel.Drawn[dayOf(time.Now())]; drawn != usd("0.002") {
				t.Errorf("%s counts against its day", drawn)
			}
		})
	}
}

// Without being told to, a wallet locks no money up; and it uses what is.
func TestNoChannelIsOpenedUnasked(t *testing.T) {
	s := newTill(t)
	s.both()
	w := wallet(t, t.TempDir())
	c := channelBuyer(t, s, w)
	c.Scheme = ""
	if res := get(t, c, shop); res.Channel != nil {
		t.Errorf("a channel was opened: %+v", res.Channel)
	}
	c.Scheme = x402.SchemeChannel
	get(t, c, shop)
	c.Scheme = ""
	if res := get(t, c, shop); res.Channel == nil || res.Channel.Charged != 2000 {
		t.Errorf("the channel was not used: %+v", res)
	}
	c.Scheme = x402.SchemeExact
	if res := get(t, c, shop); res.Channel != nil {
		t.Errorf("the channel was used: %+v", res.Channel)
	}
	s.change = func(r *x402.PaymentRequired) { r.Accepts[0].Scheme = x402.SchemeChannel }
	if _, err := c.Do(t.Context(), Request{URL: shop}); clawr.CodeOf(err) != CodeQuoteRefused {
		t.Errorf("got %v", err)
	}
}

// A channel whose file cannot be read stops everything that counts with it.
func TestADamagedChannelStopsTheWallet(t *testing.T) {
	for name, spoil := range map[string]func(string) string{
		"cut":           func(s string) string { return s[:len(s)/2] },
		"less signed":   func(s string) string { return strings.Replace(s, `"signed": "1000"`, `"signed": "0"`, 1) },
		"another payer": func(s string) string { return strings.Replace(s, `"payer": "0x`, `"payer": "0xff`, 1) },
		"a member more": func(s string) string { return strings.Replace(s, "{", `{"more": 1,`, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newTill(t)
			s.both()
			w := wallet(t, t.TempDir())
			c := channelBuyer(t, s, w)
			get(t, c, shop)
			path := w.channelPath(only(t, w).ID)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			bad := spoil(string(b))
			if bad == string(b) {
				t.Fatal("nothing was spoilt")
			}
			if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, scheme := range []string{x402.SchemeExact, x402.SchemeChannel, ""} {
				c.Scheme = scheme
				if _, err := c.Do(context.Background(), Request{URL: shop}); clawr.CodeOf(err) != CodeBadWallet {
					t.Errorf("scheme %q: got %v", scheme, err)
				}
			}
			if s.highest != 1000 {
				t.Errorf("%d were signed", s.highest)
			}
		})
	}
}

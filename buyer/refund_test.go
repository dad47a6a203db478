package buyer

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// opened is a channel of $0.05 from which three calls were paid.
func opened(t *testing.T, s *till) (*Client, *Channel) {
	t.Helper()
	s.minDeposit = 50_000
	w := wallet(t, t.TempDir())
	c := channelBuyer(t, s, w)
	for _, n := range []string{"&1", "&2", "&3"} {
		get(t, c, shop+n)
	}
	return c, only(t, w)
}

func TestARefundBringsBackWhatIsLeft(t *testing.T) {
	for _, node := range []bool{false, true} {
		s := newTill(t)
		c, ch := opened(t, s)
		if node {
			asking(c, s)
		}
		r, err := c.Refund(t.Context(), ch.ID, 7000, "")
		if err != nil || r.Channel.Left() != 40_000 || r.Channel.Closed || r.Proven != node || s.balance != 43_000 || r.Transaction != tx {
			t.Fatalf("a part: %+v, %v", r, err)
		}
		if res := get(t, c, shop); res.Channel.Charged != 4000 || s.highest != 4000 {
			t.Errorf("a call after it: %+v", res.Channel)
		}
		r, err = c.Refund(t.Context(), ch.ID, 0, shop)
		if err != nil || r.Channel.Left() != 0 || !r.Channel.Closed || s.balance != 4000 || s.highest != 4000 {
			t.Errorf("the rest: %+v, %v; %d are in the channel, %d signed", r, err, s.balance, s.highest)
		}
		if kept := only(t, c.Wallet); !kept.Closed || kept.Balance != 4000 {
			t.Errorf("the wallet knows %+v", kept)
		}
	}
}

// A refund asks again until the channel is free, and follows a seller who has
// charged an answer that was lost, as far as it was signed.
func TestARefundSignsNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTill(t)
		c, ch := opened(t, s)
		s.lose(3)
		if _, err := c.Do(t.Context(), Request{URL: shop, Timeout: time.Millisecond}); clawr.CodeOf(err) != clawr.CodePaymentUnknown {
			t.Fatal(err)
		}
		s.before = func(w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) bool {
			if n < 7 {
				s.challenge(w, r, string(x402.ReasonChannelBusy))
			}
			return n < 7
		}
		r, err := c.Refund(t.Context(), ch.ID, 0, "")
		if err != nil || r.Channel.Charged != 4000 || s.balance != 4000 || s.highest != 4000 {
			t.Errorf("%+v, %v; %d are in the channel, %d signed", r, err, s.balance, s.highest)
		}
		for _, v := range s.vouchers[4:] {
			if v.Kind != x402.ChannelRefund || v.Voucher.MaxClaimable > 4000 {
				t.Errorf("it sent %s over %d", v.Kind, v.Voucher.MaxClaimable)
			}
		}
	})
}

func TestARefundThatIsRefusedNamesTheWayOut(t *testing.T) {
	type hook = func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload)
	tests := []struct {
		name string
		do   hook
		node bool
		want clawr.Code
		says string
	}{
		{"no", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload) {
			refuse(w, 402, "no_refunds")
		}, false, clawr.CodePaymentRejected, "no_refunds"},
		{"nothing left", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload) {
			s.challenge(w, r, string(x402.ReasonRefundNoBalance))
		}, false, clawr.CodePaymentRejected, "refund_no_balance"},
		{"more was charged than signed", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload) {
			s.correct(w, r, 50_000, 50_000, p.Voucher.Signature)
		}, true, clawr.CodePaymentRejected, "mismatch"},
		{"less, then more, for ever", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload) {
			s.correct(w, r, 3000-p.Voucher.MaxClaimable, 3000, s.sig)
		}, false, clawr.CodePaymentRejected, "mismatch"},
		{"yes, but the chain does not show it", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload) { settled(w, "{}") }, true, clawr.CodePaymentUnknown, "the chain does not show it"},
		{"no answer", func(s *till, w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload) { abort(w) }, false, clawr.CodePaymentUnknown, "not known"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTill(t)
				c, ch := opened(t, s)
				if tt.node {
					asking(c, s)
				}
				s.before = func(w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) bool {
					tt.do(s, w, r, p)
					return true
				}
				r, err := c.Refund(t.Context(), ch.ID, 0, "")
				if r != nil || clawr.CodeOf(err) != tt.want || !strings.Contains(err.Error(), tt.says) {
					t.Errorf("got %+v, %v", r, err)
				}
				if s.highest != 3000 {
					t.Errorf("%d were signed", s.highest)
				}
				if kept := only(t, c.Wallet); kept.Left() != 47_000 {
					t.Errorf("the wallet knows %+v", kept)
				}
			})
		})
	}
}

// A withdrawal waits for its delay, and leaves what a call on its way may cost.
func TestAWithdrawalLeavesWhatIsOnItsWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTill(t)
		s.keeps = true
		c, ch := opened(t, s)
		asking(c, s)
		if _, err := (&Client{Wallet: c.Wallet}).Withdraw(t.Context(), ch.ID); clawr.CodeOf(err) != clawr.CodeUsage {
			t.Errorf("without a node: %v", err)
		}
		s.before = func(w http.ResponseWriter, _ *http.Request, _ *x402.ChannelPayload, _ int) bool {
			abort(w)
			return true
		}
		if _, err := c.Do(t.Context(), Request{URL: shop}); clawr.CodeOf(err) != clawr.CodePaymentUnknown {
			t.Fatalf("got %v", err)
		}
		wd, err := c.Withdraw(t.Context(), ch.ID)
		if err != nil || wd.Step != WithdrawBegun || wd.Amount != 46_000 || s.withdraw != 46_000 {
			t.Fatalf("%+v, %v", wd, err)
		}
		if wd, err = c.Withdraw(t.Context(), ch.ID); err != nil || wd.Step != WithdrawWaiting || time.Until(wd.Due) > 900*time.Second {
			t.Errorf("%+v, %v", wd, err)
		}
		// The voucher that was on its way is charged all the same.
		s.before = nil
		if res := get(t, c, shop); !res.Resumed || s.charged != 4000 {
			t.Errorf("%+v, %d charged", res, s.charged)
		}
		// Nothing else is paid from it meanwhile.
		sent := s.sent
		if _, err := c.Do(t.Context(), Request{URL: shop + "&more"}); clawr.CodeOf(err) != CodeChannel || s.sent != sent {
			t.Errorf("got %v", err)
		}
		time.Sleep(901 * time.Second)
		if wd, err = c.Withdraw(t.Context(), ch.ID); err != nil || wd.Step != WithdrawDone || s.balance != 4000 || !wd.Channel.Closed {
			t.Errorf("%+v, %v; %d are left in the channel", wd, err, s.balance)
		}
		if _, err := c.Withdraw(t.Context(), ch.ID); clawr.CodeOf(err) != CodeChannel {
			t.Errorf("a second one: %v", err)
		}
	})
}

// A call that is on its way holds the channel: a withdrawal of another process
// waits for it.
func TestAWithdrawalWaitsForACallInFlight(t *testing.T) {
	s := newTill(t)
	c, ch := opened(t, s)
	asking(c, s)
	arrived, goOn := make(chan bool), make(chan bool)
	s.before = func(http.ResponseWriter, *http.Request, *x402.ChannelPayload, int) bool {
		close(arrived)
		s.mu.Unlock()
		<-goOn
		s.mu.Lock()
		return false
	}
	answered := make(chan error)
	go func() {
		_, err := c.Do(t.Context(), Request{URL: shop})
		answered <- err
	}()
	<-arrived
	ctx, cancel := contextFor(t, 50*time.Millisecond)
	defer cancel()
	if _, err := c.Withdraw(ctx, ch.ID); clawr.CodeOf(err) != clawr.CodeLocked {
		t.Errorf("beside a call: %v", err)
	}
	close(goOn)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	if wd, err := c.Withdraw(t.Context(), ch.ID); err != nil || wd.Amount != 46_000 {
		t.Errorf("%+v, %v", wd, err)
	}
}

// Deposits and vouchers are within the limits, like payments.
func TestDepositsAndVouchersAreWithinTheLimits(t *testing.T) {
	limits := func(call, day string) Limits { return Limits{PerCall: usd(call), PerDay: usd(day)} }
	tests := []struct {
		name    string
		limits  Limits
		hint    int64
		deposit string // --deposit
		price   int64
		want    int64 // deposited; 0: refused
		says    string
	}{
		{"five calls, if the server says nothing", limits("0.1", "1"), 0, "", 1000, 5000, ""},
		{"what the server asks for", limits("0.1", "1"), 20_000, "", 1000, 20_000, ""},
		{"at most a hundred calls", limits("0.1", "1"), 900_000, "", 1000, 100_000, ""},
		{"at most five times the limit per call", limits("0.002", "1"), 90_000, "", 1000, 10_000, ""},
		{"at most what the day has left", limits("0.1", "0.007"), 90_000, "", 1000, 7000, ""},
		{"a hint below the price is none", limits("0.1", "1"), 10, "", 1000, 5000, ""},
		{"what was asked for", limits("0.1", "1"), 90_000, "0.25", 1000, 250_000, ""},
		{"not more than the day's limit, whatever was asked for", limits("0.1", "1"), 0, "1.01", 1000, 0, "your limit of $1.00 a day"},
		{"not less than the call", limits("0.1", "1"), 0, "0.0005", 1000, 0, "needs a deposit of $0.001 at least"},
		{"not a call above the limit", limits("0.0009", "1"), 0, "", 1000, 0, "your limit is $0.0009"},
		{"not a call above the day's", limits("0.1", "0.0005"), 0, "", 1000, 0, "a day"},
		{"nothing at all", limits("0.1", "0"), 0, "0.01", 1000, 0, "your limit of $0.00 a day"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newTill(t)
			s.minDeposit, s.price = tt.hint, tt.price
			w := wallet(t, t.TempDir())
			c := channelBuyer(t, s, w)
			if err := w.SetLimits(tt.limits); err != nil {
				t.Fatal(err)
			}
			r := Request{URL: shop}
			if tt.deposit != "" {
				r.Deposit = amountOf(tt.deposit)
			}
			_, err := c.Do(t.Context(), r)
			if tt.want > 0 && (err != nil || s.balance != tt.want) {
				t.Errorf("%d were deposited, want %d: %v", s.balance, tt.want, err)
			}
			if tt.want == 0 && (clawr.CodeOf(err) != clawr.CodeQuoteOverLimit || !strings.Contains(err.Error(), tt.says) || s.sent != 0) {
				t.Errorf("got %v after %d payloads, want a refusal that says %q", err, s.sent, tt.says)
			}
		})
	}
}

// The day's limit holds for what is deposited and for what is bought, beside
// what is paid exactly; neither is counted twice.
func TestADayHoldsDepositsAndPurchases(t *testing.T) {
	s := newTill(t)
	s.both()
	w := wallet(t, t.TempDir())
	c := channelBuyer(t, s, w)
	clock := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	w.Now = func() time.Time { return clock }
	c.Now = w.Now
	set := func(day string) {
		t.Helper()
		if err := w.SetLimits(Limits{PerCall: usd("0.1"), PerDay: usd(day)}); err != nil {
			t.Fatal(err)
		}
	}
	pay := func(scheme string) error {
		c.Scheme = scheme
		var out bytes.Buffer
		_, err := c.Do(t.Context(), Request{URL: shop, Out: &out})
		return err
	}
	set("0.006")
	for _, scheme := range []string{x402.SchemeChannel, x402.SchemeChannel, x402.SchemeExact} { // 5000 deposited, 2000 bought, 1000 paid
		if err := pay(scheme); err != nil {
			t.Fatal(err)
		}
	}
	if err := pay(x402.SchemeExact); clawr.CodeOf(err) != clawr.CodeQuoteOverLimit {
		t.Errorf("an exact payment beyond the day's deposits and payments: %v", err)
	}
	if err := pay(x402.SchemeChannel); err != nil {
		t.Errorf("a voucher on what is deposited already: %v", err)
	}
	clock = clock.Add(24 * time.Hour)
	set("0.001")
	if err := pay(x402.SchemeChannel); err != nil {
		t.Errorf("a voucher on the next day: %v", err)
	}
	if err := pay(x402.SchemeChannel); clawr.CodeOf(err) != clawr.CodeQuoteOverLimit {
		t.Errorf("a second one: %v", err)
	}
	if s.highest != 4000 {
		t.Errorf("%d were signed", s.highest)
	}
}

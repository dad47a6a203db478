package buyer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// A deposit that was refused, or of which no answer told, is not signed again
// while it can still be made: the very same goes along with the next voucher.
func TestADepositInDoubtIsSentAgainAndNotSignedAgain(t *testing.T) {
	for _, made := range []bool{false, true} {
		for _, node := range []bool{false, true} {
			t.Run(fmt.Sprintf("made %v, a node to ask %v", made, node), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := newTill(t)
					w := wallet(t, t.TempDir())
					c := channelBuyer(t, s, w)
					if node {
						asking(c, s)
					}
					s.before = func(w http.ResponseWriter, _ *http.Request, p *x402.ChannelPayload, _ int) bool {
						if made && len(s.used) == 0 {
							s.collect(p)
						}
						refuse(w, 402, "something")
						return true
					}
					if _, err := c.Do(t.Context(), Request{URL: shop}); clawr.CodeOf(err) != clawr.CodePaymentRejected {
						t.Fatalf("got %v", err)
					}
					if ch := only(t, w); ch.Deposit == nil || ch.Deposited[dayOf(time.Now())] != usd("0.005") {
						t.Fatalf("the wallet knows %+v", ch)
					}
					s.before = nil
					res := get(t, c, shop)
					if len(s.used) != 1 || s.balance != 5000 || s.highest != 1000 || res.Channel.Balance != 5000 || res.Channel.Deposit != nil {
						t.Errorf("%d deposits, %d in the channel, %d signed; the wallet knows %+v", len(s.used), s.balance, s.highest, res.Channel)
					}
					if spent, err := w.Spent(t.Context()); spent != usd("0.005") || err != nil {
						t.Errorf("%s counts (%v)", spent, err)
					}
				})
			})
		}
	}
}

// One that can no longer be made is given back to its day if the chain proves
// it; without a node it counts, and another is signed when a voucher without it
// was refused.
func TestADepositThatCanNoLongerBeMadeIsReplaced(t *testing.T) {
	for _, node := range []bool{false, true} {
		t.Run(fmt.Sprintf("a node to ask %v", node), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newTill(t)
				w := wallet(t, t.TempDir())
				c := channelBuyer(t, s, w)
				if node {
					asking(c, s)
				}
				s.before = func(w http.ResponseWriter, _ *http.Request, _ *x402.ChannelPayload, _ int) bool {
					refuse(w, 402, "something")
					return true
				}
				if _, err := c.Do(t.Context(), Request{URL: shop}); err == nil {
					t.Fatal("it was answered")
				}
				s.before = nil
				time.Sleep(2 * time.Minute)
				if node { // what is given back makes room
					if err := w.SetLimits(Limits{PerCall: usd("0.1"), PerDay: usd("0.005")}); err != nil {
						t.Fatal(err)
					}
				}
				res := get(t, c, shop)
				counts := usd("0.01")
				if node {
					counts = usd("0.005")
				}
				if spent, err := w.Spent(t.Context()); spent != counts || err != nil {
					t.Errorf("%s counts, want %s (%v)", spent, counts, err)
				}
				if s.balance != 5000 || res.Channel.Balance != 5000 || s.highest != 1000 {
					t.Errorf("%d in the channel, %d known, %d signed", s.balance, res.Channel.Balance, s.highest)
				}
			})
		})
	}
}

// A server that takes no deposit as small as the limits allow is told by name
// how much it wants, and gets it when it is asked for.
func TestADepositThatIsTooSmallIsReplacedByTheOneAskedFor(t *testing.T) {
	s := newTill(t)
	s.minDeposit = 800_000
	c := channelBuyer(t, s, wallet(t, t.TempDir()))
	s.before = func(w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, _ int) bool {
		if p.Kind != x402.ChannelDeposit || p.Deposit.Amount >= s.minDeposit {
			return false
		}
		s.challenge(w, r, string(x402.ReasonDepositBelowMin))
		return true
	}
	_, err := c.Do(t.Context(), Request{URL: shop})
	e, ok := errors.AsType[*clawr.Error](err)
	if !ok || e.Code != clawr.CodePaymentRejected || !strings.HasSuffix(e.Fix, "--deposit 0.8") {
		t.Fatalf("got %v", err)
	}
	var out bytes.Buffer
	res, err := c.Do(t.Context(), Request{URL: shop, Deposit: amountOf("0.8"), Out: &out})
	if err != nil || s.balance != 800_000 || res.Channel.Balance != 800_000 || s.highest != 1000 {
		t.Errorf("%+v, %v; %d in the channel, %d signed", res, err, s.balance, s.highest)
	}
}

// A wallet that does not have the money signs nothing, if it can ask.
func TestADepositNeedsTheMoney(t *testing.T) {
	s := newTill(t)
	c := asking(channelBuyer(t, s, wallet(t, t.TempDir())), s)
	c.Chain.(*fakeChain).balance = 4999
	if _, err := c.Do(t.Context(), Request{URL: shop}); clawr.CodeOf(err) != CodeBalance || s.sent != 0 {
		t.Errorf("got %v after %d payloads", err, s.sent)
	}
}

// What was not sent was not signed: it counts for nothing.
func TestAVoucherThatWasNotSentCountsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTill(t)
		s.both()
		w := wallet(t, t.TempDir())
		c := channelBuyer(t, s, w)
		c.Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.Header.Get(x402.HeaderSignature) != "" {
				return nil, &net.OpError{Op: "dial", Err: errors.New("refused")}
			}
			return s.RoundTrip(r)
		})
		if _, err := c.Do(t.Context(), Request{URL: shop, Timeout: time.Second}); clawr.CodeOf(err) != clawr.CodeUnreachable {
			t.Fatalf("got %v", err)
		}
		if spent, err := w.Spent(t.Context()); spent != 0 || err != nil {
			t.Errorf("%s counts (%v)", spent, err)
		}
		c.Transport, c.Scheme = s, ""
		if res := get(t, c, shop); res.Channel != nil {
			t.Errorf("a channel that was never opened is used: %+v", res.Channel)
		}
	})
}

// Whatever sellers do, and however calls are repeated: the seller can never
// claim more than one price for each call that was begun, and the wallet knows
// how much that is and has counted it.
func TestNoSellerGetsMoreThanItsPrices(t *testing.T) {
	strict := t
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(scratch(), "clawr-law-")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		w, err := CreateWallet(context.Background(), filepath.Join(dir, "wallet"))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.SetLimits(Limits{PerCall: usd("0.1"), PerDay: usd("5")}); err != nil {
			t.Fatal(err)
		}
		s := newTill(strict)
		s.keeps = rapid.Bool().Draw(t, "keeps answers")
		c := &Client{Wallet: w, Transport: s, Terms: Terms{Scheme: x402.SchemeChannel}}
		if rapid.Bool().Draw(t, "node") {
			asking(c, s)
		}
		begun := map[string]int{}
		t.Repeat(map[string]func(*rapid.T){
			"": func(t *rapid.T) {
				most := 0
				for _, n := range begun {
					most += n
				}
				all, err := w.Channels()
				if err != nil {
					t.Fatal(err)
				}
				for _, ch := range all {
					if s.highest > ch.Signed || ch.Signed > int64(1000*most) || ch.Charged > ch.Signed || ch.Drawn[dayOf(time.Now())] != ch.USD(ch.Signed) {
						t.Fatalf("%d can be claimed after %d calls; the wallet knows %+v", s.highest, most, ch)
					}
				}
			},
			"call": func(t *rapid.T) {
				url := shop + rapid.StringMatching("&[a-d]").Draw(t, "call")
				lies := rapid.SliceOfN(rapid.IntRange(0, 7), 1, 6).Draw(t, "answers")
				base := rapid.Int64Range(0, 6000).Draw(t, "base")
				first := s.sent
				s.before = func(w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) bool {
					if p.Kind == x402.ChannelDeposit && n-first < len(lies) && lies[n-first]%2 == 0 {
						if _, done := s.used[p.Deposit.Nonce(p.Voucher.Channel).Hex()]; !done {
							s.collect(p)
						}
					}
					if n-first >= len(lies) {
						return false
					}
					switch lies[n-first] {
					case 0:
						return false
					case 1:
						abort(w)
					case 2:
						s.serve(w, r, r.Header.Get(x402.HeaderSignature), p)
						abort(w)
					case 3:
						s.correct(w, r, base, base, nil)
					case 4:
						s.correct(w, r, p.Voucher.MaxClaimable, p.Voucher.MaxClaimable, p.Voucher.Signature)
					case 5:
						s.correct(w, r, base/1000*1000, s.max, s.sig)
					case 6:
						refuse(w, 402, "something")
					case 7:
						s.challenge(w, r, string(x402.ReasonCumulativeBalance))
					}
					return true
				}
				id, err := w.channelOf(keyOf(t, url))
				if err != nil {
					t.Fatal(err)
				}
				renew := rapid.Bool().Draw(t, "new")
				if id == "" || renew {
					begun[url]++
				}
				var out bytes.Buffer
				c.Do(context.Background(), Request{URL: url, Out: &out, New: renew, Timeout: time.Millisecond})
			},
		})
	})
}

// keyOf names the call of url.
func keyOf(t *rapid.T, url string) string {
	cl, err := newCall(Request{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	return cl.key
}

// FuzzChannelFile reads any file as a channel's: what is taken agrees with
// itself, and is the same after it was written.
func FuzzChannelFile(f *testing.F) {
	s := newTill(f)
	w := wallet(f, f.TempDir())
	c := channelBuyer(f, s, w)
	s.before = func(w http.ResponseWriter, _ *http.Request, _ *x402.ChannelPayload, n int) bool { return n == 1 }
	get(f, c, shop)
	ch := only(f, w)
	b, err := os.ReadFile(w.channelPath(ch.ID))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(bytes.Replace(b, []byte(`"charged": "1000"`), []byte(`"charged": "1001"`), 1))
	f.Add([]byte(`{"id":"0x","network":"eip155:1","config":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		ch, err := decodeChannel(b)
		if err != nil {
			return
		}
		if ch.Charged < 0 || ch.Charged > ch.Signed || ch.config.ID(ch.domain).Hex() != ch.ID {
			t.Errorf("it took %+v", ch)
		}
		again, err := ch.encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeChannel(again); err != nil || back.Signed != ch.Signed || len(back.Open) != len(ch.Open) {
			t.Errorf("written and read it is %+v, %v", back, err)
		}
	})
}

// FuzzCorrection reads any challenge as a correction: nothing but our own
// signature proves that more was signed.
func FuzzCorrection(f *testing.F) {
	s := newTill(f)
	w := wallet(f, f.TempDir())
	c := channelBuyer(f, s, w)
	get(f, c, shop)
	ch := only(f, w)
	sig := fmt.Sprintf("0x%x", s.sig)
	f.Add([]byte(`{"chargedCumulativeAmount":"1000","balance":"5000"}`), []byte(`{"signedMaxClaimable":"1000","signature":"`+sig+`"}`))
	f.Add([]byte(`{"chargedCumulativeAmount":"-1"}`), []byte(`{"signedMaxClaimable":"1001","signature":"`+sig+`"}`))
	f.Add([]byte(`[]`), []byte(`{"signedMaxClaimable":1000,"signature":"0x"}`))
	f.Fuzz(func(t *testing.T, state, voucher []byte) {
		req := s.required(httpRequest(shop))
		o := &req.Accepts[0]
		o.Extra.Rest = append(o.Extra.Rest, x402.Member{Name: "channelState", Value: state}, x402.Member{Name: "voucherState", Value: voucher})
		if got := stateOf(req, ch); got.max != 0 && got.max != 1000 || got.charged < 0 || got.balance < 0 {
			t.Errorf("it read %+v", got)
		}
	})
}

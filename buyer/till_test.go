package buyer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// till is a seller by voucher with the chain behind it. Unless its test says
// otherwise it is honest: it checks every payload for real, takes deposits
// once, charges a voucher that goes up by exactly the price, keeps what it
// answered, and corrects who has lost count.
type till struct {
	*seller
	authorizer common.Address
	minDeposit int64
	keeps      bool // stored answers are given again, as clawr does and the reference server does not

	mu       sync.Mutex
	balance  int64 // of the one channel
	charged  int64
	claimed  int64
	max      int64 // of the newest voucher that was charged
	sig      []byte
	answers  map[string]string // by header
	used     map[string]bool   // nonces of deposits that were made
	highest  int64             // that was ever signed for it
	vouchers []x402.ChannelPayload
	withdraw int64 // that the payer began to take out
	began    time.Time

	// before may answer a payload itself, by true. The channel's state is its to
	// change.
	before func(w http.ResponseWriter, r *http.Request, p *x402.ChannelPayload, n int) bool
}

func newTill(t testing.TB) *till {
	s := &till{seller: newSeller(t, nil), authorizer: common.HexToAddress("0xa1"), answers: map[string]string{}, used: map[string]bool{}}
	s.change = func(r *x402.PaymentRequired) {
		o := &r.Accepts[0]
		o.Scheme = x402.SchemeChannel
		o.Extra.Rest = x402.Object{{Name: "receiverAuthorizer", Value: quoted(s.authorizer.Hex())}, {Name: "withdrawDelay", Value: []byte("900")}}
		if s.minDeposit > 0 {
			o.Extra.Rest = append(o.Extra.Rest, x402.Member{Name: "minDeposit", Value: quoted(fmt.Sprint(s.minDeposit))})
		}
	}
	return s
}

func quoted(s string) []byte { return strconv.AppendQuote(nil, s) }

// both offers the exact scheme first.
func (s *till) both() {
	only := s.change
	s.change = func(r *x402.PaymentRequired) {
		exact := r.Accepts[0]
		only(r)
		r.Accepts = append([]x402.Requirements{exact}, r.Accepts...)
	}
}

var tillDomain = x402.ChannelDomain(84532)

// correct answers with the state that is claimed, and its proof.
func (s *till) correct(w http.ResponseWriter, r *http.Request, charged, max int64, sig []byte) {
	req := s.required(r)
	req.Error = string(x402.ReasonCumulativeMismatch)
	o := &req.Accepts[len(req.Accepts)-1]
	state, _ := json.Marshal(map[string]any{"channelId": "0x", "balance": fmt.Sprint(s.balance), "totalClaimed": fmt.Sprint(s.claimed), "withdrawRequestedAt": 0, "refundNonce": "0", "chargedCumulativeAmount": fmt.Sprint(charged)})
	o.Extra.Rest = append(o.Extra.Rest, x402.Member{Name: "channelState", Value: state})
	if sig != nil {
		proof, _ := json.Marshal(map[string]string{"signedMaxClaimable": fmt.Sprint(max), "signature": "0x" + common.Bytes2Hex(sig)})
		o.Extra.Rest = append(o.Extra.Rest, x402.Member{Name: "voucherState", Value: proof})
	}
	w.Header()[x402.HeaderRequired] = []string{req.Header()}
	w.WriteHeader(402)
}

// deliver charges p, and answers.
func (s *till) deliver(w http.ResponseWriter, header string, p *x402.ChannelPayload) {
	s.charged, s.max, s.sig = p.Voucher.MaxClaimable, p.Voucher.MaxClaimable, p.Voucher.Signature
	s.answers[header] = fmt.Sprintf("answer %d", len(s.answers))
	s.receipt(w, s.price)
	io.WriteString(w, s.answers[header])
}

func (s *till) receipt(w http.ResponseWriter, amount int64) {
	state, _ := json.Marshal(map[string]string{"chargedCumulativeAmount": fmt.Sprint(s.charged)})
	r := x402.SettleResponse{Success: true, Network: usdc.Network, Extra: x402.Object{{Name: "chargedAmount", Value: quoted(fmt.Sprint(amount))}, {Name: "channelState", Value: state}}}
	w.Header()[x402.HeaderResponse] = []string{r.Header()}
}

func (s *till) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := r.Header.Get(x402.HeaderSignature)
	if header == "" {
		s.challenge(w, r, "")
		return
	}
	paid, err := x402.ParsePayment(header)
	if err != nil {
		s.t.Errorf("a payment that cannot be read: %v", err)
		return
	}
	if paid.Accepted.Scheme == x402.SchemeExact {
		settled(w, "exact")
		return
	}
	p, err := x402.ParseChannel(paid.Payload, tillDomain)
	offer := s.required(r).Accepts
	if err == nil {
		_, err = x402.Match(offer, paid)
	}
	if err == nil {
		err = p.Matches(&offer[len(offer)-1])
	}
	if err != nil || !p.Voucher.SignedBy(p.Config.Payer, tillDomain) {
		s.t.Errorf("a payment that is not good for what was asked: %v", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.sent
	s.sent++
	s.vouchers = append(s.vouchers, *p)
	s.highest = max(s.highest, p.Voucher.MaxClaimable)
	if s.before != nil && s.before(w, r, p, n) {
		return
	}
	s.serve(w, r, header, p)
}

// serve is what an honest seller does.
func (s *till) serve(w http.ResponseWriter, r *http.Request, header string, p *x402.ChannelPayload) {
	v := p.Voucher
	if answer, ok := s.answers[header]; ok && s.keeps {
		w.Header().Set("X-Clawr-Replayed", "true")
		s.receipt(w, s.price)
		io.WriteString(w, answer)
		return
	}
	price := s.price
	if p.Kind == x402.ChannelRefund {
		price = 0
	}
	if v.MaxClaimable != s.charged+price {
		s.correct(w, r, s.charged, s.max, s.sig)
		return
	}
	if p.Kind == x402.ChannelRefund {
		if p.Amount == 0 || p.Amount > s.balance-s.charged {
			p.Amount = s.balance - s.charged
		}
		s.balance, s.claimed = s.balance-p.Amount, s.charged
		settled(w, `{"message":"Refund acknowledged"}`)
		return
	}
	if p.Kind == x402.ChannelDeposit {
		if !s.collect(p) {
			refuse(w, 402, string(x402.ReasonDepositSimulation))
			return
		}
	}
	if v.MaxClaimable > s.balance {
		s.challenge(w, r, string(x402.ReasonCumulativeBalance))
		return
	}
	s.deliver(w, header, p)
}

// collect makes the deposit of p, once.
func (s *till) collect(p *x402.ChannelPayload) bool {
	id := p.Voucher.Channel
	nonce := p.Deposit.Nonce(id)
	token := x402.NewDomain(usdc.Name, usdc.Version, 84532, common.HexToAddress(usdc.Address))
	if who, ok := x402.Recover(p.Deposit.Digest(token, p.Config.Payer, id), p.Deposit.Signature); !ok || who != p.Config.Payer {
		s.t.Errorf("a deposit that its payer did not sign")
	}
	if s.used[nonce.Hex()] {
		return false
	}
	s.used[nonce.Hex()] = true
	s.balance += p.Deposit.Amount
	return true
}

// RoundTrip serves in memory, for tests in which time is not real.
func (s *till) RoundTrip(r *http.Request) (*http.Response, error) { return inMemory(s, r) }

// channelBuyer is a client that opens channels.
func channelBuyer(t testing.TB, s *till, w *Wallet) *Client {
	t.Helper()
	if err := w.SetLimits(Limits{PerCall: 100_000, PerDay: 5_000_000}); err != nil {
		t.Fatal(err)
	}
	return &Client{Wallet: w, Transport: s, Terms: Terms{Scheme: x402.SchemeChannel}}
}

// only is the wallet's one channel.
func only(t testing.TB, w *Wallet) *Channel {
	t.Helper()
	all, err := w.Channels()
	if err != nil || len(all) != 1 {
		t.Fatalf("%d channels, %v; want 1", len(all), err)
	}
	return &all[0]
}

func amountOf(s string) *clawr.Amount { a := usd(s); return &a }

// vault is the contract of the till's channel.
type vault struct{ s *till }

func (v vault) Channel(context.Context, string) (OnChain, error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	return OnChain{Balance: v.s.balance, Claimed: v.s.claimed, Withdrawal: v.s.withdraw, WithdrawAt: v.s.began, At: time.Now()}, nil
}

func (v vault) Withdraw(_ context.Context, _ x402.ChannelConfig, amount int64) (string, error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	v.s.withdraw, v.s.began = amount, time.Now()
	return tx, nil
}

func (v vault) Finalize(context.Context, x402.ChannelConfig) (string, error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	if time.Since(v.s.began) < 900*time.Second {
		return "", errors.New("the delay is not over")
	}
	v.s.balance -= min(v.s.withdraw, v.s.balance-v.s.claimed)
	v.s.withdraw = 0
	return tx, nil
}

// asking is c with a node to ask about s.
func asking(c *Client, s *till) *Client {
	c.Chain = &fakeChain{network: usdc.Network, token: usdc, balance: 1 << 40, final: time.Now, used: func(nonce string) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.used[nonce]
	}}
	c.Vault = vault{s}
	return c
}

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/x402"
)

// perCall is what a call by voucher costs: a quarter of a dollar, so that four
// of them are claimed without waiting for a fifth.
const perCall = 250_000

// lane is one payment channel, as its payer knows it. He behaves as the
// official client does: he believes a correction that proves itself by his own
// signature, deposits when the channel is empty, and signs again after a 402.
type lane struct {
	key    *ecdsa.PrivateKey
	config x402.ChannelConfig
	id     common.Hash

	one sync.Mutex // most of his calls go one by one

	mu      sync.Mutex
	charged int64 // as far as he knows
	balance int64 // as far as he knows
	signed  int64 // the most that any voucher of his allows

	// Withdrawing is since when, in unix seconds of the chain, and lost what was
	// charged and not claimed when he had it: the most that the seller may lose.
	withdrawing int64
	lost        int64
}

// call is one thing that somebody wants to have once, and pays from a lane; or
// a refund, if url is empty.
type call struct {
	lane   *lane
	url    string
	tries  []*try
	served bool
	body   [32]byte
	given  bool // up: he has no money in the channel and may not deposit
	faults []string
}

// try is one payload that was signed for a call, and what was said of it.
type try struct {
	header  string
	kind    x402.ChannelKind
	max     int64
	quote   string // SHA-256, hex
	nonce   common.Hash
	deposit int64
	status  int // of the last answer; 0: none arrived
	reason  string
	refused bool // answered 402: he may sign again
}

func (c *call) last() *try { return c.tries[len(c.tries)-1] }

func (c *call) fault(invariant, format string, args ...any) {
	c.faults = append(c.faults, invariant+": "+fmt.Sprintf(format, args...)+fmt.Sprintf(" (%s at %d)", c.lane.id.Hex()[:10], c.last().max))
}

// refund says what a payer asks back; the kind of a call without url.
const refundURL = ""

// offer asks for a challenge, and gives the terms of paying by voucher.
func (w *canal) offer(ctx context.Context, url string) (*x402.Requirements, error) {
	status, header, _, err := get(ctx, w.client, url, "")
	if err != nil {
		return nil, err
	}
	if status != http.StatusPaymentRequired {
		return nil, fmt.Errorf("the challenge is %d", status)
	}
	return voucherTerms(header.Get(x402.HeaderRequired))
}

func voucherTerms(header string) (*x402.Requirements, error) {
	required, err := x402.ParseRequired(header)
	if err != nil {
		return nil, err
	}
	for i := range required.Accepts {
		if required.Accepts[i].Scheme == x402.SchemeChannel {
			return &required.Accepts[i], nil
		}
	}
	return nil, errors.New("nothing is offered by voucher")
}

// open is a new lane of one of the payers.
func (w *canal) open(r *mrand.Rand, terms *x402.Requirements) (*lane, error) {
	authorizer, err := strconv.Unquote(string(terms.Extra.Rest.Find("receiverAuthorizer")))
	if err != nil {
		return nil, err
	}
	key := w.buyers[r.IntN(len(w.buyers))]
	who := crypto.PubkeyToAddress(key.PublicKey)
	l := &lane{key: key, config: x402.ChannelConfig{Payer: who, PayerAuthorizer: who, Receiver: w.payTo, ReceiverAuthorizer: common.HexToAddress(authorizer),
		Token: w.asset, WithdrawDelay: x402.MinWithdrawDelay}}
	rand.Read(l.config.Salt[:])
	l.id = l.config.ID(w.domain)
	return l, nil
}

// sign makes the next payload of a call by terms.
func (w *canal) sign(c *call, terms *x402.Requirements) error {
	l := c.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &x402.ChannelPayload{Kind: x402.ChannelVoucher, Config: l.config, Voucher: x402.Voucher{Channel: l.id, MaxClaimable: l.charged + perCall}}
	t := &try{}
	switch {
	case c.url == refundURL:
		p.Kind, p.Voucher.MaxClaimable = x402.ChannelRefund, l.charged
	case l.balance < p.Voucher.MaxClaimable && l.withdrawing == 0:
		p.Kind = x402.ChannelDeposit
		p.Deposit = &x402.Deposit{Amount: p.Voucher.MaxClaimable - l.balance + 2*perCall, ValidBefore: x402.Uint(uint64(w.now().Unix() + 3000))}
		rand.Read(p.Deposit.Salt[:])
		id, _ := x402.ChainID(terms.Network)
		if err := p.Deposit.Sign(l.key, x402.NewDomain(terms.Extra.Name, terms.Extra.Version, id, w.asset), l.id); err != nil {
			return err
		}
		t.deposit, t.nonce = p.Deposit.Amount, p.Deposit.Nonce(l.id)
	}
	if err := p.Voucher.Sign(l.key, w.domain); err != nil {
		return err
	}
	l.signed = max(l.signed, p.Voucher.MaxClaimable)
	sent := &x402.PaymentPayload{Version: x402.Version, Accepted: *terms, Payload: p.JSON()}
	t.kind, t.max, t.header = p.Kind, p.Voucher.MaxClaimable, sent.Header()
	if q := terms.Extra.Quote; q != "" {
		sum := sha256.Sum256([]byte(q))
		t.quote = hex.EncodeToString(sum[:])
	}
	c.tries = append(c.tries, t)
	return nil
}

func (w *canal) now() time.Time { return time.Now().Add(time.Duration(w.ahead.Load()) * time.Second) }

// target is where a call, or a refund, is sent.
func (w *canal) target(c *call) string {
	if c.url == refundURL {
		return w.url(vouchers, 1)
	}
	return c.url
}

// send presents the last payload once. Done means that there is an answer which
// is not "later".
func (w *canal) send(ctx context.Context, c *call) (done bool, err error) {
	t := c.last()
	status, header, body, err := get(ctx, w.client, w.target(c), t.header)
	if err != nil {
		return false, err
	}
	t.status = status
	switch status {
	case http.StatusOK:
		if c.url == refundURL {
			c.served = true
			return true, w.ask(ctx, c.lane)
		}
		sum := sha256.Sum256(body)
		if c.served && sum != c.body {
			c.fault("I2", "two answers to one voucher, the second %.200s", body)
		}
		c.served, c.body = true, sum
		c.lane.paid(t.max)
		if t.deposit > 0 {
			err = w.ask(ctx, c.lane)
		}
		return true, err
	case http.StatusPaymentRequired:
		t.refused = true
		return w.refused(ctx, c, header.Get(x402.HeaderRequired))
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return false, nil
	}
	c.fault("I13", "answered %d: %.300s", status, body)
	return true, nil
}

func (l *lane) paid(max int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if max > l.charged {
		l.charged = max
	}
}

// refused reads a 402, and signs again, unless nothing more is to be had.
func (w *canal) refused(ctx context.Context, c *call, header string) (done bool, err error) {
	required, err := x402.ParseRequired(header)
	if err != nil {
		c.fault("wire", "a 402 without a challenge: %v", err)
		return true, nil
	}
	c.last().reason = required.Error
	terms, err := voucherTerms(header)
	if err != nil {
		c.fault("wire", "%v", err)
		return true, nil
	}
	if err := c.correct(w, terms); err != nil {
		c.fault("wire", "%v", err)
		return true, nil
	}
	if c.url == refundURL {
		return true, w.ask(ctx, c.lane) // he has it already, or there is nothing
	}
	if err := w.ask(ctx, c.lane); err != nil {
		return false, err
	}
	if len(c.tries) >= 12 || c.lane.dry() {
		c.given = true
		return true, nil
	}
	return false, w.sign(c, terms)
}

// correct believes what a corrective 402 proves.
func (c *call) correct(w *canal, terms *x402.Requirements) error {
	raw := terms.Extra.Rest.Find("channelState")
	if raw == nil {
		return nil
	}
	var state struct {
		ID      string `json:"channelId"`
		Charged string `json:"chargedCumulativeAmount"`
	}
	var proof struct {
		Max string `json:"signedMaxClaimable"`
		Sig string `json:"signature"`
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return err
	}
	charged, err := strconv.ParseInt(state.Charged, 10, 64)
	if err != nil || common.HexToHash(state.ID) != c.lane.id {
		return fmt.Errorf("a correction of another channel, or by no number: %s", raw)
	}
	l := c.lane
	l.mu.Lock()
	defer l.mu.Unlock()
	if raw := terms.Extra.Rest.Find("voucherState"); raw != nil {
		if err := json.Unmarshal(raw, &proof); err != nil {
			return err
		}
		most, err := strconv.ParseInt(proof.Max, 10, 64)
		v := x402.Voucher{Channel: l.id, MaxClaimable: most, Signature: common.FromHex(proof.Sig)}
		if err != nil || charged > most || !v.SignedBy(l.config.PayerAuthorizer, w.domain) {
			return fmt.Errorf("the proof of a correction is none: %s for %d", raw, charged)
		}
	} else if charged != 0 && charged > l.balance {
		return fmt.Errorf("a correction to %d without proof", charged)
	}
	l.charged = charged
	return nil
}

// ask reads the lane from the chain, as clients do that are not sure.
func (w *canal) ask(ctx context.Context, l *lane) error {
	s, err := w.node.Client.ChannelStates(ctx, l.id)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.balance = s[0].Balance
	return nil
}

// dry reports whether nothing more can be paid from the lane: its payer
// withdraws, and does not deposit any more.
func (l *lane) dry() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.withdrawing != 0
}

// withdraw has the payer begin to take everything out that he can.
func (w *canal) withdraw(ctx context.Context, l *lane, r *mrand.Rand) error {
	s, err := w.node.Client.ChannelStates(ctx, l.id)
	if err != nil {
		return err
	}
	most := s[0].Balance - s[0].TotalClaimed
	if most <= 0 || s[0].WithdrawAt != 0 {
		return nil
	}
	if err := w.transactAt(ctx, l.key, chain.WithdrawCalldata(chain.ChannelConfig(l.config), 1+r.Int64N(most))); err != nil {
		return err
	}
	if s, err = w.node.Client.ChannelStates(ctx, l.id); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.withdrawing = s[0].WithdrawAt // 0: a claim was faster, and the chain said no
	return nil
}

// transactAt calls the channels as a payer. That it reverts is his bad luck.
func (w *canal) transactAt(ctx context.Context, key *ecdsa.PrivateKey, data []byte) error {
	k, err := chain.ParseKey(hex.EncodeToString(crypto.FromECDSA(key)))
	if err != nil {
		return err
	}
	to := x402.ChannelsAddress
	w.spending.Lock()
	defer w.spending.Unlock()
	_, _ = w.node.Client.Transact(ctx, k, chain.Call{To: &to, Data: data, Gas: 300_000})
	return nil
}

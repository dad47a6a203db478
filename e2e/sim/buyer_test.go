package sim

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/x402"
)

// purchase is one thing that a buyer wants once. He behaves as the official
// client does: a 402 makes him sign anew, everything else send again.
type purchase struct {
	w      *world
	r      *rand.Rand
	shop   string
	path   string
	key    *ecdsa.PrivateKey
	auths  []*auth
	served string // the answer
	left   bool   // he has had enough
}

// auth is an authorization and what was said of it.
type auth struct {
	payload *x402.PaymentPayload
	nonce   common.Hash
	refused []string // reasons of the 402s that it was answered with
	served  bool
	status  int
}

func (p *purchase) who() common.Address { return crypto.PubkeyToAddress(p.key.PublicKey) }

func (a *auth) key(p *purchase) key { return key{p.who(), a.nonce} }

// reply is an answer that has arrived.
type reply struct {
	status int
	header http.Header
	body   string
}

// ask sends one request. Nil: the caller hung up first.
func (p *purchase) ask(ctx context.Context, path, payment string, patience time.Duration) *reply {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req := httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil)
	req.Host, req.RemoteAddr = "api.example.com", "192.0.2.1:1234"
	if payment != "" {
		req.Header.Set(x402.HeaderSignature, payment)
	}
	rec, done := httptest.NewRecorder(), make(chan struct{})
	p.w.serving.Go(func() {
		defer close(done)
		p.w.dispatch.ServeHTTP(rec, req)
	})
	select {
	case <-done:
		return &reply{rec.Code, rec.Header(), rec.Body.String()}
	case <-ctx.Done():
		return nil
	}
}

// sign pays what a 402 asks for.
func (p *purchase) sign(a *reply) error {
	required, err := x402.ParseRequired(a.header.Get(x402.HeaderRequired))
	if err != nil {
		return err
	}
	n := &auth{}
	for i := range n.nonce {
		n.nonce[i] = byte(p.r.Uint32())
	}
	n.payload, err = x402.Pay(p.key, required, &required.Accepts[0], n.nonce, time.Now())
	p.auths = append(p.auths, n)
	return err
}

func (p *purchase) last() *auth { return p.auths[len(p.auths)-1] }

// buy goes on until there is an answer, or the buyer has had enough.
func (p *purchase) buy(ctx context.Context) {
	if sleep(ctx, time.Duration(p.r.IntN(20_000))*time.Millisecond) != nil {
		return
	}
	end := time.Now().Add(10 * time.Minute)
	if one(p.r, 30) {
		end = time.Now().Add(time.Duration(p.r.IntN(120)) * time.Second)
	}
	for len(p.auths) == 0 {
		a := p.ask(ctx, p.path, "", time.Minute)
		if a == nil || ctx.Err() != nil {
			return
		}
		if a.status != http.StatusPaymentRequired {
			p.w.breaks("a challenge was answered %d: %s", a.status, a.body)
			return
		}
		if err := p.sign(a); err != nil {
			p.w.breaks("sign: %v", err)
			return
		}
	}
	if one(p.r, 4) {
		cancels := p.last()
		p.w.others.Go(func() { p.cancel(ctx, cancels) })
	}
	for time.Now().Before(end) && ctx.Err() == nil {
		patience := time.Minute
		if one(p.r, 20) {
			patience = time.Duration(1+p.r.IntN(20)) * time.Second
		}
		if p.send(ctx, patience) {
			return
		}
		if sleep(ctx, time.Duration(500+p.r.IntN(5000))*time.Millisecond) != nil {
			return
		}
	}
	p.left = true
}

// cancel takes an authorization back on the chain, after a while.
func (p *purchase) cancel(ctx context.Context, a *auth) {
	if sleep(ctx, time.Duration(p.r.IntN(30))*time.Second) != nil {
		return
	}
	t, err := transferOf(a.payload)
	if err != nil {
		p.w.breaks("cancel: %v", err)
		return
	}
	p.w.wrong.add("cancelled by the buyer")
	p.w.chain.add(&tx{hash: hashOf("cancel", t.Nonce), t: t, cancel: true})
}

// send presents the last payment once, and reports whether that was the end.
func (p *purchase) send(ctx context.Context, patience time.Duration) (done bool) {
	a := p.last()
	got := p.ask(ctx, p.path, a.payload.Header(), patience)
	if got == nil {
		p.w.wrong.add("the buyer hung up")
		return false
	}
	a.status = got.status
	p.w.wrong.add("answered " + strconv.Itoa(got.status))
	switch got.status {
	case http.StatusOK:
		if a.served && p.served != got.body {
			p.w.breaks("%s: two answers to one payment: %q, %q", a.nonce.Hex(), p.served, got.body)
		}
		if p.shop != "async" && !p.w.chain.ever(a.key(p)) {
			p.w.breaks("%s has its answer, and no block has charged it yet", a.nonce.Hex())
		}
		a.served, p.served = true, got.body
		return true
	case http.StatusPaymentRequired:
		a.refused = append(a.refused, got.header.Get(x402.HeaderResponse)+" "+got.body)
		if err := p.sign(got); err != nil {
			p.w.breaks("sign: %v", err)
			return true
		}
		return len(p.auths) > 20
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		if got.header.Get(x402.HeaderRequired) != "" {
			p.w.breaks("%s: a %d that asks for a payment", a.nonce.Hex(), got.status)
		}
		return false
	}
	p.w.breaks("%s: answered %d: %s", a.nonce.Hex(), got.status, got.body)
	return true
}

func (p *purchase) String() string { return fmt.Sprintf("%s by %s", p.path, p.who()) }

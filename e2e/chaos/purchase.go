package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/x402"
)

// purchase is one thing that somebody wants to have once. He behaves as the
// official client does: a 402 makes him sign a new authorization.
type purchase struct {
	policy string
	url    string
	key    *ecdsa.PrivateKey
	ahead  *atomic.Int64 // seconds by which the chain's clock is ahead of ours
	auths  []*authorization
	signed []*authorization // the first of them, for who watches meanwhile
	body   [32]byte         // SHA-256 of the answer
	served bool
	faults []string // what no answer may be
}

// authorization is a payment that was signed, and what was said of it.
type authorization struct {
	header  string
	payload *x402.PaymentPayload
	payer   common.Address
	nonce   common.Hash
	status  int // of the last answer; 0: none arrived
	refused bool
	tx      string
}

func (p *purchase) last() *authorization { return p.auths[len(p.auths)-1] }

// sign answers a challenge.
func (p *purchase) sign(header string) error {
	required, err := x402.ParseRequired(header)
	if err != nil {
		return err
	}
	a := &authorization{payer: crypto.PubkeyToAddress(p.key.PublicKey)}
	rand.Read(a.nonce[:])
	signed, err := x402.Pay(p.key, required, &required.Accepts[0], a.nonce, time.Now().Add(time.Duration(p.ahead.Load())*time.Second))
	if err != nil {
		return err
	}
	a.header, a.payload = signed.Header(), signed
	p.auths = append(p.auths, a)
	return nil
}

// ask gets a challenge and signs it. It does not pay yet.
func (p *purchase) ask(ctx context.Context, client *http.Client) error {
	status, header, _, err := get(ctx, client, p.url, "")
	if err != nil {
		return err
	}
	if status != http.StatusPaymentRequired {
		return fmt.Errorf("the challenge is %d", status)
	}
	return p.sign(header.Get(x402.HeaderRequired))
}

// send presents the last payment once. Done means that there is an answer
// which is not "later".
func (p *purchase) send(ctx context.Context, client *http.Client) (done bool, err error) {
	a := p.last()
	status, header, body, err := get(ctx, client, p.url, a.header)
	if err != nil {
		return false, err
	}
	a.status = status
	if r, err := x402.ParseResponse(header.Get(x402.HeaderResponse)); err == nil && r.Transaction != "" {
		a.tx = r.Transaction // a later one may be another: of higher fees, or after a reorganisation
	}
	switch status {
	case http.StatusOK:
		sum := sha256.Sum256(body)
		if p.served && sum != p.body {
			p.fault("I2", "two answers to one payment, the second %.200s", body)
		}
		p.served, p.body = true, sum
		return true, nil
	case http.StatusPaymentRequired:
		a.refused = true
		if len(p.auths) == 10 { // he has no money, and sees it
			return true, nil
		}
		return false, p.sign(header.Get(x402.HeaderRequired))
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return false, nil
	}
	p.fault("I13", "answered %d: %.300s", status, body)
	return true, nil
}

func (p *purchase) fault(invariant, format string, args ...any) {
	p.faults = append(p.faults, invariant+": "+fmt.Sprintf(format, args...)+" ("+p.last().nonce.Hex()+")")
}

// get is one request, with a payment if header is not empty.
func get(ctx context.Context, client *http.Client, url, header string) (int, http.Header, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, nil, err
	}
	if header != "" {
		req.Header.Set(x402.HeaderSignature, header)
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, nil, nil, err
	}
	return res.StatusCode, res.Header, body, nil
}

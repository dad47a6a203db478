package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/x402"
)

// payer is an account that buys.
type payer struct {
	key     *ecdsa.PrivateKey
	address common.Address
}

func newPayer() (*payer, error) {
	key, err := crypto.GenerateKey()
	if err != nil {
		return nil, err
	}
	return &payer{key, crypto.PubkeyToAddress(key.PublicKey)}, nil
}

// sign pays the first offer of a challenge.
func (p *payer) sign(required *x402.PaymentRequired) (*x402.PaymentPayload, error) {
	var nonce common.Hash
	rand.Read(nonce[:])
	return x402.Pay(p.key, required, &required.Accepts[0], nonce, time.Now())
}

// ask gets one challenge of the server at addr for path.
func ask(ctx context.Context, client *http.Client, addr, path string) (*x402.PaymentRequired, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusPaymentRequired {
		return nil, fmt.Errorf("%s%s answered %s without a payment", addr, path, res.Status)
	}
	return x402.ParseRequired(res.Header.Get(x402.HeaderRequired))
}

// purchases are n requests for path at addr, each with a payment for a
// challenge of its own.
func (w *world) purchases(ctx context.Context, addr, path string, n int) ([][]byte, error) {
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	list := make([][]byte, n)
	for i := range list {
		required, err := ask(ctx, client, addr, path)
		if err != nil {
			return nil, err
		}
		paid, err := w.payers[i%len(w.payers)].sign(required)
		if err != nil {
			return nil, err
		}
		if e, err := x402.ParseExact(paid.Payload); err == nil {
			w.bought = append(w.bought, bought{e.From, e.Nonce})
		}
		list[i] = get(addr, path, "PAYMENT-SIGNATURE: "+paid.Header())
	}
	return list, nil
}

// verifications are n requests to verify a payment of its own each.
func (w *world) verifications(addr string, payTo common.Address, n int) ([][]byte, error) {
	required := w.offer(payTo)
	list := make([][]byte, n)
	for i := range list {
		paid, err := w.payers[i%len(w.payers)].sign(required)
		if err != nil {
			return nil, err
		}
		body := (&x402.VerifyRequest{Payload: *paid, Requirements: required.Accepts[0]}).JSON()
		list[i] = fmt.Appendf(nil, "POST /verify HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", addr, len(body), body)
	}
	return list, nil
}

// offer is what a seller asks for.
func (w *world) offer(payTo common.Address) *x402.PaymentRequired {
	return &x402.PaymentRequired{Resource: x402.ResourceInfo{URL: "http://127.0.0.1/data"}, Accepts: []x402.Requirements{{
		Scheme: x402.SchemeExact, Network: w.network(), Amount: fmt.Sprint(price), Asset: w.asset.Hex(), PayTo: payTo.Hex(), MaxTimeoutSeconds: 300,
		Extra: x402.Extra{Name: w.node.Asset.Name, Version: w.node.Asset.Version}}}}
}

// get is a request as it goes over the wire.
func get(addr, path string, headers ...string) []byte {
	b := fmt.Appendf(nil, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: application/json\r\n", path, addr)
	for _, h := range headers {
		b = append(append(b, h...), "\r\n"...)
	}
	return append(b, "\r\n"...)
}

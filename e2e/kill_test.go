package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/anvil"
	"github.com/402claw/clawr/store/storetest"
	"github.com/402claw/clawr/x402"
)

// purchase is one paid call of a buyer who keeps the header.
type purchase struct {
	header string
	nonce  common.Hash
	status int
	body   string
	tx     string
}

// buy asks for a challenge and signs it. It does not send the payment.
func buy(ctx context.Context, client *http.Client, url string, key *ecdsa.PrivateKey) (*purchase, error) {
	res, err := client.Get(url)
	if err != nil {
		return nil, err
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
	if res.StatusCode != http.StatusPaymentRequired {
		return nil, fmt.Errorf("the challenge is %s", res.Status)
	}
	required, err := x402.ParseRequired(res.Header.Get(x402.HeaderRequired))
	if err != nil {
		return nil, err
	}
	p := &purchase{}
	rand.Read(p.nonce[:])
	signed, err := x402.Pay(key, required, &required.Accepts[0], p.nonce, time.Now())
	if err != nil {
		return nil, err
	}
	p.header = signed.Header()
	return p, nil
}

// send presents the payment once and keeps the answer.
func (p *purchase) send(client *http.Client, url string) error {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set(x402.HeaderSignature, p.header)
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	p.status, p.body = res.StatusCode, string(b)
	if r, err := x402.ParseResponse(res.Header.Get(x402.HeaderResponse)); err == nil {
		p.tx = r.Transaction
	}
	return nil
}

// kills is how often each engine is killed: 3 times in all suffice for every
// commit, CLAWR_KILLS=20 is for a thorough run by hand.
func kills(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("CLAWR_KILLS")); err == nil && n > 0 {
		return n
	}
	return 3
}

// A server that is killed in a stream of paid calls and started again charges
// every authorization once or not at all, and every charged one gets its
// answer.
func TestKilledInAStreamOfPayments(t *testing.T) {
	for name, database := range map[string]func(*testing.T) []string{
		"sqlite": func(*testing.T) []string { return nil },
		"postgres": func(t *testing.T) []string {
			return []string{"--database-url", storetest.Postgres(t), "--deadline", "10s"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := anvilChain(t, anvil.Options{})
			s := serve(t, c, database(t)...)
			url := s.deploy(t, airports, "airports", "--price", "0.001", "--x402") + "?limit=1"
			key := c.account(t, 1_000_000_000)
			private, err := crypto.HexToECDSA(key.Reveal()[2:])
			if err != nil {
				t.Fatal(err)
			}
			n := kills(t)
			if name == "postgres" {
				n = max(1, n/3)
			}
			sold := int64(0)
			for range n {
				sold += killOnce(t, s, url, private, 500)
				if got := c.balance(t, s.payTo); got != sold*1000 {
					t.Fatalf("the seller has %d, but %d calls were answered", got, sold)
				}
			}
		})
	}
}

// killOnce streams count payments, kills the server at a random moment of it,
// starts it again, resends everything, and returns how many were answered.
func killOnce(t *testing.T, s *server, url string, key *ecdsa.PrivateKey, count int) (answered int64) {
	t.Helper()
	client := &http.Client{Timeout: 60 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	victim := 1 + mrand.IntN(count-1)
	var mu sync.Mutex
	var all []*purchase
	up := make(chan struct{})
	var once sync.Once
	kill := func() {
		once.Do(func() {
			time.Sleep(mrand.N(20 * time.Millisecond))
			s.kill()
			s.up(t)
			close(up)
		})
	}
	var wg sync.WaitGroup
	next := make(chan int)
	for range 16 {
		wg.Go(func() {
			for i := range next {
				p, err := buy(ctx, client, url, key)
				for err != nil && ctx.Err() == nil { // it is down: nothing is signed yet
					time.Sleep(20 * time.Millisecond)
					p, err = buy(ctx, client, url, key)
				}
				if err != nil {
					return
				}
				mu.Lock()
				all = append(all, p)
				mu.Unlock()
				if i == victim {
					go kill()
				}
				_ = p.send(client, url) // a lost reply is what this is about
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	wg.Wait()
	<-up
	restarted := time.Now()
	slots := make(chan struct{}, 16)
	for _, p := range all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			for ctx.Err() == nil {
				if err := p.send(client, url); err == nil && p.status != http.StatusServiceUnavailable {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		})
	}
	wg.Wait()
	t.Logf("killed at payment %d of %d; all %d settled %.1f s after the restart", victim, count, len(all), time.Since(restarted).Seconds())
	payer := crypto.PubkeyToAddress(key.PublicKey)
	for _, p := range all {
		used, err := s.chain.client.AuthorizationState(ctx, s.chain.asset, payer, p.nonce)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case p.status == http.StatusOK && used && strings.Contains(p.body, `"data":[{`):
			// A transaction may carry many payments; this one has to be among them.
			found, err := s.chain.client.Evidence(ctx, common.HexToHash(p.tx), chain.Transfer{Asset: s.chain.asset, Payer: payer, PayTo: s.payTo, Amount: 1000, Nonce: p.nonce})
			if err != nil || found.Use != chain.Paid {
				t.Errorf("payment %s is not in the transaction %q that its receipt names: %v, %v", p.nonce, p.tx, found.Use, err)
			}
			answered++
		case p.status == http.StatusPaymentRequired && !used:
		default:
			t.Errorf("payment %s: charged %v, answered %d, transaction %q: %.200s", p.nonce, used, p.status, p.tx, p.body)
		}
	}
	return answered
}

package buyer

import (
	"context"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

const (
	payTo = "0x00000000000000000000000000000000000a11ce"
	tx    = "0x1111111111111111111111111111111111111111111111111111111111111111"
)

var usdc, _ = KnownAsset("eip155:84532", "")

// seller is a server that sells every URL for the same price, and does with a
// payment what its test says. It checks each payment for real.
type seller struct {
	t     testing.TB
	price int64 // atomic units
	life  int64 // maxTimeoutSeconds
	v1    bool
	now   func() time.Time
	// paid answers the n-th request (from 0) that carries a payment.
	paid func(w http.ResponseWriter, r *http.Request, n int)
	// change, if set, spoils the challenge.
	change func(*x402.PaymentRequired)

	mu      sync.Mutex
	unpaid  int
	sent    int
	headers map[string]int         // every payment header seen
	auths   map[string]*x402.Exact // by nonce
	tried   []*x402.PaymentPayload // in order of arrival
}

func newSeller(t testing.TB, paid func(w http.ResponseWriter, r *http.Request, n int)) *seller {
	return &seller{t: t, price: 1000, life: 90, paid: paid, now: time.Now, headers: map[string]int{}, auths: map[string]*x402.Exact{}}
}

func (s *seller) required(r *http.Request) *x402.PaymentRequired {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	req := &x402.PaymentRequired{Version: 2, Error: string(clawr.CodeMissingPayment),
		Resource: x402.ResourceInfo{URL: scheme + "://" + r.Host + r.URL.RequestURI()},
		Accepts: []x402.Requirements{{Scheme: "exact", Network: usdc.Network, Amount: fmt.Sprint(s.price), Asset: usdc.Address, PayTo: payTo, MaxTimeoutSeconds: s.life,
			Extra: x402.Extra{Name: usdc.Name, Version: usdc.Version, Quote: "q1"}}}}
	if s.change != nil {
		s.change(req)
	}
	return req
}

// challenge answers 402.
func (s *seller) challenge(w http.ResponseWriter, r *http.Request, reason string) {
	req := s.required(r)
	if reason != "" {
		req.Error = reason
	}
	if s.v1 {
		w.WriteHeader(402)
		b := append([]byte(`{"x402Version":1,"error":"`+req.Error+`","accepts":`), req.AppendAccepts(nil)...)
		w.Write(append(b, '}'))
		return
	}
	w.Header()[x402.HeaderRequired] = []string{req.Header()}
	w.WriteHeader(402)
	io.WriteString(w, `{"ok":false,"error":"`+req.Error+`"}`)
}

func (s *seller) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header, parse := r.Header.Get(x402.HeaderSignature), x402.ParsePayment
	if s.v1 {
		header, parse = r.Header.Get(x402.HeaderPaymentV1), x402.ParsePaymentV1
	}
	if header == "" {
		s.mu.Lock()
		s.unpaid++
		s.mu.Unlock()
		s.challenge(w, r, "")
		return
	}
	p, err := parse(header)
	if err != nil {
		s.t.Errorf("a payment that cannot be read: %v", err)
		return
	}
	want := s.required(r).Accepts[0]
	e, err := x402.Verify(p, &want, x402.Check{Now: time.Unix(0, 0)})
	if err != nil {
		s.t.Errorf("a payment that is not good for what was asked: %v", err)
		return
	}
	s.mu.Lock()
	n := s.sent
	s.sent++
	s.headers[header]++
	s.auths[e.Nonce.Hex()] = e
	s.tried = append(s.tried, p)
	s.mu.Unlock()
	s.paid(w, r, n)
}

// RoundTrip serves in memory, for tests in which time is not real.
func (s *seller) RoundTrip(r *http.Request) (*http.Response, error) { return inMemory(s, r) }

func inMemory(s http.Handler, r *http.Request) (res *http.Response, err error) {
	defer func() {
		if p := recover(); p == http.ErrAbortHandler {
			res, err = nil, io.ErrUnexpectedEOF
		} else if p != nil {
			panic(p)
		}
	}()
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	rec := httptest.NewRecorder()
	in := r.Clone(r.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	if in.Host == "" {
		in.Host = in.URL.Host
	}
	s.ServeHTTP(rec, in)
	res = rec.Result()
	res.Request = r
	return res, nil
}

// settled gives the answer that was paid for.
func settled(w http.ResponseWriter, body string) {
	r := x402.SettleResponse{Success: true, Transaction: tx, Network: usdc.Network}
	w.Header()[x402.HeaderResponse] = []string{r.Header()}
	io.WriteString(w, body)
}

// refuse answers with a PAYMENT-RESPONSE that names a reason.
func refuse(w http.ResponseWriter, status int, reason string) {
	r := x402.SettleResponse{Success: false, ErrorReason: clawr.Code(reason), Network: usdc.Network}
	w.Header()[x402.HeaderResponse] = []string{r.Header()}
	w.WriteHeader(status)
	io.WriteString(w, `{"ok":false,"error":"`+reason+`"}`)
}

// abort cuts the connection.
func abort(http.ResponseWriter) { panic(http.ErrAbortHandler) }

// wallet is a new one in dir with generous limits.
func wallet(t testing.TB, dir string) *Wallet {
	t.Helper()
	w, err := CreateWallet(context.Background(), filepath.Join(dir, "wallet"))
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// notes collects what a client says on the way.
type notes struct {
	mu sync.Mutex
	b  strings.Builder
}

func (n *notes) note(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	fmt.Fprintf(&n.b, format+"\n", args...)
}

func usd(s string) clawr.Amount {
	a, err := clawr.ParseAmount(s)
	if err != nil {
		panic(err)
	}
	return a
}

// fakeChain is a chain whose state a test sets.
type fakeChain struct {
	network string
	token   clawr.Asset
	balance int64
	used    func(nonce string) bool
	final   func() time.Time
	behind  bool // the head is older than the finalized block
	err     error
}

func (f *fakeChain) Network() string { return f.network }
func (f *fakeChain) Asset(context.Context, string) (clawr.Asset, error) {
	return f.token, f.err
}
func (f *fakeChain) Balance(context.Context, string, string) (*big.Int, error) {
	return big.NewInt(f.balance), f.err
}
func (f *fakeChain) Used(_ context.Context, _, _, nonce, block string) (bool, error) {
	if block == "" && f.behind {
		return false, f.err
	}
	return f.used != nil && f.used(nonce), f.err
}
func (f *fakeChain) Final(context.Context) (string, time.Time, error) {
	return "final", f.final(), f.err
}

func httpRequest(url string) *http.Request { return httptest.NewRequest("GET", url, nil) }

func contextFor(t testing.TB, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

// scratch is where laws keep their many wallets: memory, where there is a
// folder of it, since every step waits for the disk otherwise.
func scratch() string {
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() {
		return "/dev/shm"
	}
	return ""
}

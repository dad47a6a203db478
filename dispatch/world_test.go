package dispatch_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/meter"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

func TestMain(m *testing.M) {
	// A random life costs a hundred commits; -rapid.checks=1000 lives more of them.
	_ = flag.Set("rapid.checks", "30")
	os.Exit(storetest.Main(m))
}

const (
	price = 1000 // µUSD, and units of the token
	payTo = "0x00000000000000000000000000000000000000a1"
)

// usdc is a token whose network version 1 has a name for.
var usdc = clawr.Asset{Network: "eip155:84532", Address: "0x036cbd53842c5426634e7929541ec2318f3dcf7e", Name: "USDC", Version: "2", Decimals: 6}

// world is a dispatcher on a real book, with a till for a facilitator and a
// shop that does the work.
type world struct {
	testing.TB
	db   *store.DB
	d    *dispatch.Dispatcher
	till *till
	shop *shop
	rec  *usage.Recorder
	log  *logged

	ahead atomic.Int64 // seconds by which the clock is ahead
	mu    sync.Mutex
	point map[string]func()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOn(t, store.Options{Path: filepath.Join(t.TempDir(), "clawr.db")})
}

func newWorldOn(t testing.TB, o store.Options) *world {
	t.Helper()
	w := &world{TB: t, log: &logged{}, point: map[string]func(){}}
	o.Now = w.now
	o.Fatal = func(err error) { t.Errorf("book: %v", err) }
	db, err := store.Open(t.Context(), o)
	w.ok(err)
	t.Cleanup(func() { db.Close() })
	w.db = db
	w.till = newTill(db, w.now)
	w.shop = &shop{runs: map[string]int{}}
	w.rec = &usage.Recorder{Sink: db}
	w.d = w.dispatcher("node-1")
	w.deploy(clawr.Tenant{Slug: "acme", Hosts: []string{"acme.example.com"}})
	return w
}

// dispatcher is one more process on the same book.
func (w *world) dispatcher(node string) *dispatch.Dispatcher {
	quotes, err := x402.NewQuotes([]byte("0123456789abcdef0123456789abcdef"))
	w.ok(err)
	return &dispatch.Dispatcher{Directory: &dispatch.Directory{}, Tenants: w.db, Workers: w.shop, Book: w.db, Recovery: w.db, Charged: w.db, Queue: w.db, Payments: w.till,
		Quotas: w.db, Limiter: new(meter.Limiter), Usage: w.rec, Log: slog.New(slog.NewJSONHandler(w.log, nil)), Asset: usdc, Quotes: quotes,
		Salt: []byte("salt"), Node: node, Deadline: 3 * time.Second, Now: w.now, Failpoint: w.reached}
}

// deploy puts a tenant on sale, at the price and by the owner of all tests
// unless t says something else, and tells the dispatchers.
func (w *world) deploy(t clawr.Tenant, nodes ...*dispatch.Dispatcher) clawr.Tenant {
	w.Helper()
	if t.Kind == "" {
		t.Kind = clawr.KindDataset
	}
	if t.PayTo == "" {
		t.PayTo = payTo
	}
	if t.Price == 0 && !t.X402 {
		t.Price, t.X402 = price, true
	}
	t.Owner, t.Directory, t.Plan = "ann", "APIs", clawr.PlanPro
	out, err := w.db.Deploy(context.WithoutCancel(w.Context()), t, "test")
	w.ok(err)
	w.reload(nodes...)
	return out
}

func (w *world) status(slug string, s clawr.Status) {
	w.Helper()
	_, err := w.db.SetStatus(w.Context(), slug, s, "test")
	w.ok(err)
	w.reload()
}

func (w *world) reload(nodes ...*dispatch.Dispatcher) {
	w.Helper()
	tenants, err := w.db.Tenants(context.WithoutCancel(w.Context()))
	w.ok(err)
	for _, d := range append(nodes, w.d) {
		d.Directory.Load(tenants)
	}
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) now() time.Time       { return time.Now().Add(time.Duration(w.ahead.Load()) * time.Second) }
func (w *world) pass(d time.Duration) { w.ahead.Add(int64(d / time.Second)) }

// at has do run once, when a dispatcher reaches a failpoint.
func (w *world) at(point string, do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.point[point] = do
}

func (w *world) reached(point string) {
	w.mu.Lock()
	do := w.point[point]
	delete(w.point, point)
	w.mu.Unlock()
	if do != nil {
		do()
	}
}

// request is what a test sends; its fields that are empty are the usual ones.
type request struct {
	method, host, path string
	header             http.Header
	body               string
	chunked            bool   // the body's length is not said
	from               string // address, without a port
	pay                string // PAYMENT-SIGNATURE
	v1                 bool   // … as X-PAYMENT
	ctx                context.Context
	node               *dispatch.Dispatcher
}

func (q request) http() *http.Request {
	path := or(q.path, "/t/acme/v1/records?limit=1")
	u, err := url.ParseRequestURI(path)
	if err != nil { // what most servers would refuse themselves
		u = new(url.URL)
		u.Path, u.RawQuery, _ = strings.Cut(path, "?")
	}
	r := &http.Request{Method: or(q.method, "GET"), URL: u, RequestURI: path, Host: or(q.host, "api.example.com"), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: http.NoBody, RemoteAddr: or(q.from, "192.0.2.1") + ":1234"}
	if strings.Contains(q.from, ":") {
		r.RemoteAddr = "[" + q.from + "]:1234"
	}
	for k, v := range q.header {
		r.Header[k] = v
	}
	if q.body != "" {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(q.body)), int64(len(q.body))
		if q.chunked {
			r.ContentLength = -1
		}
	}
	switch {
	case q.pay != "" && q.v1:
		r.Header.Set("X-PAYMENT", q.pay)
	case q.pay != "":
		r.Header.Set("PAYMENT-SIGNATURE", q.pay)
	}
	if q.ctx != nil {
		r = r.WithContext(q.ctx)
	}
	return r
}

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

// answer is what a dispatcher said.
type answer struct {
	*httptest.ResponseRecorder
	t testing.TB
	q request
}

func (w *world) send(q request) *answer {
	d := w.d
	if q.node != nil {
		d = q.node
	}
	a := &answer{httptest.NewRecorder(), w.TB, q}
	d.ServeHTTP(a.ResponseRecorder, q.http())
	return a
}

func (w *world) get(path string) *answer { return w.send(request{path: path}) }

// is checks status and error code.
func (a *answer) is(status int, code clawr.Code) *answer {
	a.t.Helper()
	if a.Code != status || a.error() != string(code) && a.q.method != "HEAD" {
		a.t.Fatalf("%s %s: %d %s, want %d %s\n%v\n%s", a.q.method, a.q.path, a.Code, a.error(), status, code, a.Header(), a.Body)
	}
	return a
}

func (a *answer) error() string {
	var p struct{ Error string }
	if a.Code >= 400 {
		_ = json.Unmarshal(a.Body.Bytes(), &p)
	}
	return p.Error
}

// has checks headers, given as name, value, …; "" is absent, "*" is anything.
func (a *answer) has(pairs ...string) *answer {
	a.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		got, want := strings.Join(a.Header().Values(pairs[i]), "|"), pairs[i+1]
		if want == "*" && got == "" || want != "*" && got != want {
			a.t.Errorf("%s %s (%d): %s is %q, want %q", a.q.method, a.q.path, a.Code, pairs[i], got, want)
		}
	}
	return a
}

// receipt is what PAYMENT-RESPONSE says.
func (a *answer) receipt() x402.SettleResponse {
	a.t.Helper()
	r, err := x402.ParseResponse(a.Header().Get(x402.HeaderResponse))
	if err != nil {
		a.t.Fatalf("PAYMENT-RESPONSE of a %d: %v", a.Code, err)
	}
	return *r
}

// required is the challenge of a 402.
func (a *answer) required() *x402.PaymentRequired {
	a.t.Helper()
	r, err := x402.ParseRequired(a.Header().Get(x402.HeaderRequired))
	if err != nil {
		a.t.Fatalf("PAYMENT-REQUIRED of a %d: %v", a.Code, err)
	}
	return r
}

func key(t testing.TB) *ecdsa.PrivateKey {
	k, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func address(k *ecdsa.PrivateKey) string { return x402.Lower(crypto.PubkeyToAddress(k.PublicKey)) }

// signed answers a challenge.
func (w *world) signed(k *ecdsa.PrivateKey, required *x402.PaymentRequired) *x402.PaymentPayload {
	w.Helper()
	var nonce common.Hash
	rand.Read(nonce[:])
	p, err := x402.Pay(k, required, &required.Accepts[0], nonce, w.now())
	w.ok(err)
	return p
}

// buyer is a new key's payment for what path asks.
func (w *world) payment(q request) request {
	w.Helper()
	q.pay = ""
	q.pay = w.signed(key(w), w.send(q).is(402, clawr.CodeMissingPayment).required()).Header()
	return q
}

// paymentV1 is the same by a client of version 1.
func (w *world) paymentV1(q request) request {
	w.Helper()
	a := w.send(q).is(402, clawr.CodeMissingPayment)
	required := a.required()
	required.Version = 1
	required.Accepts[0].Extra.Quote = ""
	q.pay, q.v1 = w.signed(key(w), required).Header(), true
	return q
}

// row is the payment that q carries, as the book has it; nil if it has none.
func (w *world) row(q request) *ledger.Payment {
	w.Helper()
	p, err := x402.ParsePayment(q.pay)
	if q.v1 {
		p, err = x402.ParsePaymentV1(q.pay)
	}
	w.ok(err)
	e, err := x402.ParseExact(p.Payload)
	w.ok(err)
	row, err := w.db.Find(context.WithoutCancel(w.Context()), ledger.Key{Network: usdc.Network, Asset: usdc.Address, Payer: e.Payer(), Nonce: e.Nonce.Hex()})
	w.ok(err)
	return row
}

// state checks where q's payment stands in the book.
func (w *world) state(q request, work ledger.Work, money ledger.Money) *ledger.Payment {
	w.Helper()
	row := w.row(q)
	if row == nil {
		w.Fatalf("no payment in the book, want %s, %s", work, money)
	}
	if row.Work != work || row.Money != money {
		w.Fatalf("payment is %s, %s, want %s, %s", row.Work, row.Money, work, money)
	}
	return row
}

// events are those of all requests so far, in the order in which they came in.
func (w *world) events() []usage.Event { return w.eventsSince(time.Time{}) }

func (w *world) eventsSince(from time.Time) []usage.Event {
	w.Helper()
	ctx := context.WithoutCancel(w.Context())
	w.ok(w.rec.Flush(ctx))
	var all []usage.Event
	w.ok(w.db.EachEvent(ctx, from, time.Time{}, func(e usage.Event) error { all = append(all, e); return nil }))
	slices.SortStableFunc(all, func(a, b usage.Event) int { return a.Time.Compare(b.Time) })
	return all
}

// event is the one of an answer's request.
func (w *world) event(a *answer) usage.Event {
	w.Helper()
	var found []usage.Event
	for _, e := range w.events() {
		if e.RequestID == a.Header().Get("X-Request-Id") {
			found = append(found, e)
		}
	}
	if len(found) != 1 {
		w.Fatalf("%d events for one request (status %d)", len(found), a.Code)
	}
	return found[0]
}

// forged is a payment in its parts, each of which a test may change before it
// is signed and sent.
type forged struct {
	*x402.PaymentPayload
	key    *ecdsa.PrivateKey
	auth   x402.Authorization
	domain x402.Domain
	sign   func(sig []byte) []byte // what becomes of the signature; nil: nothing
	json   func(payload string) string
}

// forge pays for q, as a buyer does who changes something.
func (w *world) forge(q request, change func(*forged)) request {
	w.Helper()
	q.pay = ""
	required := w.send(q).is(402, clawr.CodeMissingPayment).required()
	terms := required.Accepts[0]
	f := &forged{key: key(w), PaymentPayload: &x402.PaymentPayload{Version: 2, Resource: &required.Resource, Accepted: terms},
		auth:   x402.Authorization{To: common.HexToAddress(payTo), Value: x402.Uint(price), ValidBefore: x402.Uint(uint64(w.now().Unix() + terms.MaxTimeoutSeconds))},
		domain: x402.NewDomain(usdc.Name, usdc.Version, 84532, common.HexToAddress(usdc.Address))}
	rand.Read(f.auth.Nonce[:])
	f.auth.From = crypto.PubkeyToAddress(f.key.PublicKey)
	change(f)
	digest := f.auth.Digest(f.domain)
	sig, err := crypto.Sign(digest[:], f.key)
	w.ok(err)
	sig[64] += 27
	if f.sign != nil {
		sig = f.sign(sig)
	}
	exact := x402.Exact{Authorization: f.auth, Signature: sig}
	f.Payload = exact.JSON()
	if f.json != nil {
		f.Payload = []byte(f.json(string(f.Payload)))
	}
	q.pay = f.Header()
	return q
}

// untouched checks that nothing was sold, charged or even reserved.
func (w *world) untouched() {
	w.Helper()
	rows, err := w.db.Payments(context.WithoutCancel(w.Context()), store.PaymentFilter{})
	w.ok(err)
	if n := len(w.till.transfers()); n > 0 || len(rows) > 0 || w.shop.total() > 0 {
		w.Errorf("%d transfers, %d payments, %d runs; want none", n, len(rows), w.shop.total())
	}
}

// sold checks how many transfers and runs there were.
func (w *world) sold(transfers, runs int) {
	w.Helper()
	if n := len(w.till.transfers()); n != transfers || w.shop.total() != runs {
		w.Errorf("%d transfers and %d runs, want %d and %d", n, w.shop.total(), transfers, runs)
	}
}

// served sends q until it is answered with 200. Nothing but 503 comes before.
func (w *world) served(q request) *answer {
	w.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		a := w.send(q)
		if a.Code == 200 {
			return a
		}
		if a.Code != 503 || time.Now().After(end) {
			w.Fatalf("%d %s", a.Code, a.Body)
		}
	}
}

// record sends r as it is.
func (w *world) record(r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	w.d.ServeHTTP(rec, r)
	return rec
}

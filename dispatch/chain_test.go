package dispatch_test

import (
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/chain/devchain"
	dataset1 "github.com/402claw/clawr/dataset"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/facilitator/onchain"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/worker"
	"github.com/402claw/clawr/x402"
)

// onChain is a world with nothing scripted in it: a chain, a facilitator that
// settles there, and a dataset for sale.
type onChain struct {
	*world
	chain *devchain.Chain
	node  *onchain.Node
	fac   *facilitator.Facilitator
	path  string
	buyer *ecdsa.PrivateKey
}

func newChainWorld(t *testing.T) *onChain {
	t.Helper()
	c := &onChain{path: filepath.Join(t.TempDir(), "clawr.db")}
	c.world = newWorldOn(t, store.Options{Path: c.path})
	quiet := slog.New(slog.DiscardHandler)
	var err error
	c.chain, err = devchain.Open(devchain.Options{Now: c.now, Log: quiet, LikeBaseSepolia: true})
	c.ok(err)
	t.Cleanup(func() { c.chain.Close() })
	client, err := chain.Dial(t.Context(), c.chain.URL())
	c.ok(err)
	t.Cleanup(client.Close)
	client.Now = c.now
	signer, err := chain.NewKey()
	c.ok(err)
	c.node = &onchain.Node{Client: client, Key: signer}
	c.ok(c.chain.Fund(t.Context(), signer.Address(), big.NewInt(1e18), 0))
	c.buyer = c.funded(1_000_000)

	segments := &dataset1.Cache{Dir: t.TempDir()}
	t.Cleanup(segments.Close)
	report, err := dataset1.Ingest(t.Context(), strings.NewReader("id,metal,usd\n1,gold,2411\n2,silver,29\n3,tin,17\n"), "metals.csv", dataset1.Options{}, segments.Dir)
	c.ok(err)
	c.d.Workers = datasets{segments}
	c.d.Asset = c.chain.Asset()
	c.d.Deadline = 10 * time.Second
	c.start()
	c.deploy(clawr.Tenant{Slug: "metals", Manifest: clawr.Manifest{Content: report.ID, Price: price, X402: true}})
	return c
}

// start makes a facilitator on the book as it is, and gives it to the dispatcher.
func (c *onChain) start() {
	c.Helper()
	c.fac = &facilitator.Facilitator{Network: c.chain.Network(), Assets: []clawr.Asset{c.chain.Asset()}, Chain: c.node, Book: c.db, Ends: c.db,
		AllowPayTo: func(a string) bool { return a == payTo }, Now: c.now, Log: slog.New(slog.DiscardHandler), Failpoint: c.reached}
	c.ok(c.fac.Start(c.Context()))
	c.d.Payments = c.fac
}

type datasets struct{ cache *dataset1.Cache }

func (d datasets) Open(_ context.Context, t *clawr.Tenant) (dispatch.Worker, error) {
	return &worker.Dataset{Segments: d.cache, Content: t.Content, CPU: time.Second, CursorKey: []byte("0123456789abcdef")}, nil
}

func (c *onChain) funded(units int64) *ecdsa.PrivateKey {
	c.Helper()
	k := key(c)
	c.ok(c.chain.Fund(c.Context(), crypto.PubkeyToAddress(k.PublicKey), big.NewInt(1e18), units))
	return k
}

func (c *onChain) buy(path string) request { return c.buyWith(c.buyer, path) }

func (c *onChain) buyWith(k *ecdsa.PrivateKey, path string) request {
	c.Helper()
	q := request{path: path}
	q.pay = c.signed(k, c.send(q).is(402, clawr.CodeMissingPayment).required()).Header()
	return q
}

// units is what an address has of the token.
func (c *onChain) units(address string) int64 {
	c.Helper()
	n, err := c.node.TokenBalance(context.WithoutCancel(c.Context()), common.HexToAddress(c.d.Asset.Address), common.HexToAddress(address))
	c.ok(err)
	return n.Int64()
}

const records = "/t/metals/v1/records?metal=gold"

// A CSV file, a payment, a block: what the buyer pays is what the owner gets,
// and what the file says is what the buyer gets.
func TestAPaidCallOnAChain(t *testing.T) {
	c := newChainWorld(t)
	q := c.buy(records)
	a := c.send(q).is(200, "").has("Cache-Control", "private", "ETag", "*", "Content-Type", "application/json")
	if !strings.Contains(a.Body.String(), `"usd":2411`) || strings.Contains(a.Body.String(), "silver") {
		t.Errorf("sold %s", a.Body)
	}
	if got := c.units(payTo); got != price {
		t.Errorf("the owner has %d units, want %d", got, price)
	}
	row := c.state(q, ledger.Done, ledger.Mined)
	if r := a.receipt(); r.Transaction != row.Tx || r.Network != c.chain.Network() || r.Payer != address(c.buyer) {
		t.Errorf("PAYMENT-RESPONSE %+v", r)
	}
	receipt, err := c.node.Client.Receipt(t.Context(), common.HexToHash(row.Tx))
	if err != nil || receipt == nil || strings.ToLower(receipt.Hash.Hex()) != row.BlockHash {
		t.Errorf("the chain has %+v, %v; the book %+v", receipt, err, row.Evidence)
	}
	stored, err := c.db.Answer(t.Context(), row.ID)
	if err != nil || stored.Body != nil || stored.Ref == "" {
		t.Errorf("a dataset's answer is stored as %+v, %v", stored, err)
	}
	same := q
	same.path = "/t/metals/v1/records?metal=gol%64"
	b := c.send(same).is(200, "").has("X-Clawr-Replayed", "true", "ETag", a.Header().Get("ETag"))
	if b.Body.String() != a.Body.String() {
		t.Errorf("again: %s", b.Body)
	}
	c.send(request{path: records, header: http.Header{"If-None-Match": {a.Header().Get("ETag")}}}).is(304, "")
	c.send(c.buy("/t/metals/v1/records?colour=red")).is(400, "unknown_parameter")
	c.send(c.buy("/t/metals/v1/records/9")).is(404, clawr.CodeRecordNotFound)
	c.send(c.buy("/t/metals/v1/records/2")).is(200, "")
	if got := c.units(payTo); got != 2*price {
		t.Errorf("the owner has %d units, want %d", got, 2*price)
	}
}

func TestMustPass01OnAChain(t *testing.T) {
	c := newChainWorld(t)
	q := c.buy(records)
	qs := make([]request, 20)
	for i := range qs {
		qs[i] = q
	}
	for _, a := range c.atOnce(qs...) {
		a.is(200, "")
	}
	if got := c.units(payTo); got != price {
		t.Errorf("20 concurrent presentations moved %d units, want %d", got, price)
	}
}

func TestMustPass04OnAChain(t *testing.T) {
	c := newChainWorld(t)
	c.send(c.buyWith(c.funded(price-1), records)).is(402, x402.ReasonBalance)
	poor := c.funded(price)
	q := c.buyWith(poor, records)
	c.at("worker.after", func() { c.spend(poor, price) }) // elsewhere, after it was verified
	a := c.send(q).is(402, x402.ReasonBalance)
	if strings.Contains(a.Body.String(), "2411") {
		t.Errorf("given away: %s", a.Body)
	}
	c.state(q, ledger.Done, ledger.Released)
	if got := c.units(payTo); got != 0 {
		t.Errorf("the owner has %d units", got)
	}
}

// spend moves units of k's to nowhere in particular.
func (c *onChain) spend(k *ecdsa.PrivateKey, units int64) {
	c.Helper()
	var data []byte
	data = append(data, crypto.Keccak256([]byte("transfer(address,uint256)"))[:4]...)
	data = append(data, common.LeftPadBytes(common.HexToAddress("0xdead").Bytes(), 32)...)
	data = append(data, common.LeftPadBytes(big.NewInt(units).Bytes(), 32)...)
	token := common.HexToAddress(c.d.Asset.Address)
	c.transact(k, chain.Call{To: &token, Data: data, Gas: 100_000})
}

func (c *onChain) transact(k *ecdsa.PrivateKey, call chain.Call) *chain.Receipt {
	c.Helper()
	from, err := chain.ParseKey(hex.EncodeToString(crypto.FromECDSA(k)))
	c.ok(err)
	r, err := c.node.Client.Transact(context.WithoutCancel(c.Context()), from, call)
	c.ok(err)
	return r
}

// Whatever is on the chain is public: the attacker reads it from the
// transaction itself.
func TestMustPass15WhatIsOnTheChainFetchesNothing(t *testing.T) {
	c := newChainWorld(t)
	q := c.buy(records)
	c.send(q).is(200, "")
	var tx *types.Transaction
	c.ok(c.node.Ask(t.Context(), &tx, "eth_getTransactionByHash", c.row(q).Tx))
	in := tx.Data()[4:] // from, to, value, validAfter, validBefore, nonce, v, r, s
	word := func(i int) []byte { return in[32*i : 32*i+32] }
	e := x402.Exact{Authorization: x402.Authorization{From: common.BytesToAddress(word(0)), To: common.BytesToAddress(word(1)), Value: x402.Uint256(word(2)),
		ValidAfter: x402.Uint256(word(3)), ValidBefore: x402.Uint256(word(4)), Nonce: common.BytesToHash(word(5))},
		Signature: append(append(append([]byte{}, word(7)...), word(8)...), word(6)[31])}
	required := c.get(records).required()
	attack := x402.PaymentPayload{Version: 2, Resource: &required.Resource, Accepted: required.Accepts[0], Payload: e.JSON()}
	for name, quote := range map[string]string{"his own quote": attack.Accepted.Extra.Quote, "no quote": ""} {
		attack.Accepted.Extra.Quote = quote
		for _, path := range []string{records, "/t/metals/v1/records?metal=silver"} {
			for _, from := range []string{"192.0.2.1", "198.51.100.1"} {
				a := c.send(request{path: path, pay: attack.Header(), from: from})
				if a.Code != 409 || strings.Contains(a.Body.String(), `"usd":`) {
					t.Errorf("%s at %s: %d %s", name, path, a.Code, a.Body)
				}
			}
		}
	}
	if n := c.units(payTo); n != price {
		t.Errorf("the owner has %d units", n)
	}
}

// submitFor sends q's authorization to the chain in somebody else's name.
func (c *onChain) submitFor(q request) *chain.Receipt {
	c.Helper()
	p, err := x402.ParsePayment(q.pay)
	c.ok(err)
	e, err := x402.ParseExact(p.Payload)
	c.ok(err)
	amount, _ := e.Value.Int64()
	after, _ := e.ValidAfter.Int64()
	before, _ := e.ValidBefore.Int64()
	token := common.HexToAddress(c.d.Asset.Address)
	call := chain.Transfer{Asset: token, Payer: e.From, PayTo: e.To, Amount: amount, ValidAfter: after, ValidBefore: before, Nonce: e.Nonce, Signature: e.Signature}.Calldata()
	return c.transact(c.funded(0), chain.Call{To: &token, Data: call, Gas: 200_000})
}

// Somebody else submits the buyer's authorization: that pays, if it was ours by
// then; and if it was not, it may have bought something elsewhere.
func TestAnAuthorizationSubmittedByAThirdParty(t *testing.T) {
	t.Run("after we signed", func(t *testing.T) {
		c := newChainWorld(t)
		q := c.buy(records)
		c.at("t3.after", func() { c.submitFor(q) })
		a := c.send(q)
		for range 5 {
			if a.Code != 503 {
				break
			}
			a = c.send(q)
		}
		a.is(200, "")
		c.state(q, ledger.Done, ledger.Mined)
		if n := c.units(payTo); n != price {
			t.Errorf("the owner has %d units, want %d", n, price)
		}
	})
	t.Run("before we did", func(t *testing.T) {
		c := newChainWorld(t)
		q := c.buy(records)
		c.at("t2.after", func() { c.submitFor(q) })
		a := c.send(q).is(503, clawr.CodeSettlementPending).has("PAYMENT-REQUIRED", "")
		if strings.Contains(a.Body.String(), `"usd":`) {
			t.Errorf("given away: %s", a.Body)
		}
		c.pass(10 * time.Minute)
		c.round(c.d)
		c.state(q, ledger.Done, ledger.Held)
		c.send(q).is(503, clawr.CodeSettlementPending).has("PAYMENT-REQUIRED", "") // an operator's case: no answer, and no new payment
	})
	t.Run("before it was presented", func(t *testing.T) {
		c := newChainWorld(t)
		q := c.buy(records)
		c.submitFor(q)
		c.send(q).is(402, x402.ReasonNonceUsed)
		if c.row(q) != nil {
			t.Error("sold for what had been spent")
		}
	})
}

// The process dies around the broadcast; the next one finds out from the
// chain, by payer and nonce, what became of the payment.
func TestMustPass24CrashAroundTheBroadcast(t *testing.T) {
	for _, point := range []string{"preflight", "batch.after", "t3.before", "t3.after", "broadcast.before", "broadcast.after", "mined.before", "mined.after", "settle.after"} {
		for _, by := range []string{"resend", "recovery"} {
			t.Run(point+", by the "+by, func(t *testing.T) {
				c := newChainWorld(t)
				q := c.buy(records)
				c.crashAll(point, q)
				switch by {
				case "resend":
					c.send(q).is(200, "")
				case "recovery":
					ctx, cancel := context.WithCancel(t.Context())
					var wg sync.WaitGroup
					wg.Go(func() { c.fac.Run(ctx) })
					for end := time.Now().Add(20 * time.Second); c.row(q).Money != ledger.Mined && time.Now().Before(end); {
						c.round(c.d)
					}
					cancel()
					wg.Wait()
				}
				c.state(q, ledger.Done, ledger.Mined)
				a := c.send(q).is(200, "").has("X-Clawr-Replayed", "true")
				if !strings.Contains(a.Body.String(), "2411") {
					t.Errorf("%s", a.Body)
				}
				if n := c.units(payTo); n != price {
					t.Errorf("the owner has %d units, want %d", n, price)
				}
				if n, billed := c.countable(q); n != 1 || billed != price {
					t.Errorf("%d events count, %s is billed", n, billed)
				}
			})
		}
	}
}

// crashAll is crash for a world whose facilitator dies too, and whose book is
// closed under it.
func (c *onChain) crashAll(point string, q request) {
	c.Helper()
	workers, asset := c.d.Workers, c.d.Asset
	c.crash(point, q)
	c.ok(c.db.Close())
	db, err := store.Open(c.Context(), store.Options{Path: c.path, Now: c.now})
	c.ok(err)
	c.Cleanup(func() { db.Close() })
	c.db, c.rec.Sink = db, db
	c.restart()
	c.d.Workers, c.d.Asset, c.d.Deadline = workers, asset, 10*time.Second
	c.start()
}

// A remote facilitator, in every shape in which it fails or lies. Whatever it
// says, the dispatcher sells for what the chain shows, and asks for no other
// payment while this one may be charged.
func TestMustPass06HostileRemoteFacilitator(t *testing.T) {
	settled := func(tx, network string) string {
		return fmt.Sprintf(`{"success":true,"transaction":%q,"network":%q,"payer":"0x00"}`, tx, network)
	}
	some := "0x" + strings.Repeat("ab", 32)
	type shape struct {
		verify, settle string // bodies; "" is the real one's
		status         int    // of both; 0: 200
		pays           bool   // it really settles
		want           int    // first answer
		last           int    // after the payer has been charged, or never
	}
	for name, s := range map[string]shape{
		"honest":                         {pays: true, want: 200, last: 200},
		"verify 500":                     {verify: `{"error":"x"}`, status: 500, want: 503, last: 503},
		"verify garbage":                 {verify: `<html>`, want: 503, last: 503},
		`verify isValid "true"`:          {verify: `{"isValid":"true"}`, want: 503, last: 503},
		`verify isValid "false"`:         {verify: `{"isValid":"false"}`, want: 503, last: 503},
		"verify invalid":                 {verify: `{"isValid":false,"invalidReason":"invalid_exact_evm_insufficient_balance"}`, want: 402, last: 402},
		"verify for somebody else":       {verify: `{"isValid":true,"payer":"0x00000000000000000000000000000000000000cc"}`, want: 503, last: 503},
		"settle garbage":                 {settle: `<html>`, want: 503, last: 503},
		"settle empty":                   {settle: `{}`, want: 503, last: 503},
		"settle without a transaction":   {settle: settled("", "eip155:84532"), want: 503, last: 503},
		"settle on another network":      {settle: settled(some, "eip155:1"), want: 503, last: 503},
		"settle with an invented hash":   {settle: settled(some, "eip155:84532"), want: 503, last: 503},
		`settle success "true"`:          {settle: `{"success":"true","transaction":"` + some + `","network":"eip155:84532"}`, want: 503, last: 503},
		"settle refused, without proof":  {settle: `{"success":false,"errorReason":"insufficient_funds","transaction":"","network":"eip155:84532"}`, want: 503, last: 503},
		"settle pending":                 {settle: `{"success":false,"errorReason":"settlement_pending","transaction":"` + some + `","network":"eip155:84532"}`, want: 503, last: 503},
		"settle pending by a payment id": {settle: `{"success":false,"paymentId":"p1","status":"pending"}`, want: 503, last: 503},
		"settled, and says garbage":      {settle: `<html>`, pays: true, want: 200, last: 200},
		"settled, and says refused":      {settle: `{"success":false,"errorReason":"x","transaction":"","network":"eip155:84532"}`, pays: true, want: 200, last: 200},
		"settled, and drops the reply":   {settle: "drop", pays: true, want: 200, last: 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newChainWorld(t)
			real := &facilitator.Handler{Facilitator: c.remoteFacilitator(), Log: slog.New(slog.DiscardHandler)}
			server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if strings.Contains(string(body), `"quote"`) {
					t.Errorf("the quote was sent to a facilitator: %s", body)
				}
				r.Body = io.NopCloser(strings.NewReader(string(body)))
				rec := httptest.NewRecorder()
				said := s.verify
				if r.URL.Path == "/settle" {
					said = s.settle
				}
				if said == "" || r.URL.Path == "/settle" && s.pays {
					real.ServeHTTP(rec, r)
				}
				switch {
				case said == "drop":
					panic(http.ErrAbortHandler)
				case said != "":
					rw.WriteHeader(max(s.status, 200))
					io.WriteString(rw, said)
				default:
					rw.WriteHeader(rec.Code)
					rw.Write(rec.Body.Bytes())
				}
			}))
			server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			t.Cleanup(server.Close)
			c.d.Payments = &facilitator.Client{Network: c.chain.Network(), Remotes: []facilitator.Remote{{URL: server.URL}}, Chain: c.node, Book: c.db, Now: c.now, Log: slog.New(slog.DiscardHandler)}
			if s.want == 503 {
				c.d.Deadline = 5 * time.Second // room for the work on a busy machine
			}
			q := c.buy(records)
			a := c.send(q)
			if a.Code != s.want || (a.Code == 200) != strings.Contains(a.Body.String(), "2411") {
				t.Fatalf("%d %s, want %d", a.Code, a.Body, s.want)
			}
			if a.Code == 503 && a.Header().Get("PAYMENT-REQUIRED") != "" {
				t.Errorf("a 503 that asks for another payment: %v", a.Header())
			}
			b := c.send(q)
			if b.Code != s.last {
				t.Errorf("resent: %d %s, want %d", b.Code, b.Body, s.last)
			}
			charged := c.units(payTo)
			if charged != map[bool]int64{true: price}[s.pays] {
				t.Errorf("charged %d", charged)
			}
		})
	}
}

// remoteFacilitator is another server's, with its own book.
func (c *onChain) remoteFacilitator() *facilitator.Facilitator {
	c.Helper()
	db, err := store.Open(c.Context(), store.Options{Path: filepath.Join(c.TempDir(), "facilitator.db"), Now: c.now})
	c.ok(err)
	c.Cleanup(func() { db.Close() })
	f := &facilitator.Facilitator{Network: c.chain.Network(), Assets: []clawr.Asset{c.chain.Asset()}, Chain: c.node, Book: db, Ends: db, Now: c.now, Log: slog.New(slog.DiscardHandler)}
	c.ok(f.Start(c.Context()))
	return f
}

// What the chain and the book say is the same to the unit.
func TestTheBookAgreesWithTheChain(t *testing.T) {
	c := newChainWorld(t)
	var qs []request
	for i := range 12 {
		qs = append(qs, c.buy(fmt.Sprintf("/t/metals/v1/records?limit=%d", i%3+1)))
	}
	for _, a := range c.atOnce(append(qs, qs...)...) {
		a.is(200, "")
	}
	rows, err := c.db.Payments(t.Context(), store.PaymentFilter{Money: ledger.Mined})
	c.ok(err)
	var booked, billed int64
	for _, r := range rows {
		booked += r.Amount
	}
	for _, e := range c.events() {
		billed += int64(e.Billed)
	}
	if onChain := c.units(payTo); onChain != 12*price || booked != onChain || billed != onChain {
		t.Errorf("%d units on the chain, %d in the book, %d billed; want %d", onChain, booked, billed, 12*price)
	}
}

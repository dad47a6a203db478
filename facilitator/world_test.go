package facilitator_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/chain/devchain"
	"github.com/402claw/clawr/e2e/anvil"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/facilitator/onchain"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// world is a real chain, a real book, a funded facilitator and a funded buyer.
type world struct {
	testing.TB
	chain    *devchain.Chain
	anvil    *anvil.Node // instead of chain
	node     *onchain.Node
	believed *onchain.Node // what the facilitator sees, if that is not node
	db       *store.DB
	fac      *facilitator.Facilitator
	asset    clawr.Asset
	payer    *chain.Key
	payTo    string
	tenant   clawr.Tenant
	path     string // of the book

	ahead  atomic.Int64 // seconds by which every clock is ahead
	mu     sync.Mutex
	points map[string]func()
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldWith(t, devchain.Options{})
}

func newWorldWith(t testing.TB, opt devchain.Options) *world {
	t.Helper()
	w := emptyWorld(t)
	quiet := slog.New(slog.DiscardHandler)
	opt.Now, opt.Log = w.now, quiet
	var err error
	w.chain, err = devchain.Open(opt)
	w.ok(err)
	t.Cleanup(func() { w.chain.Close() })
	w.asset = w.chain.Asset()
	w.populate(w.chain.URL())
	return w
}

func emptyWorld(t testing.TB) *world {
	return &world{TB: t, path: filepath.Join(t.TempDir(), "clawr.db"), points: map[string]func(){}}
}

// populate gives a chain the accounts and the book that a world has.
func (w *world) populate(url string) {
	w.Helper()
	client, err := chain.Dial(w.Context(), url)
	w.ok(err)
	w.Cleanup(client.Close)
	client.Now = w.now
	w.payTo = x402.Lower(w.key().Address())
	w.payer = w.key()
	signer := w.key()
	w.fund(signer, 0)
	w.fund(w.payer, 1_000_000)
	w.node = &onchain.Node{Client: client, Key: signer}
	w.open()
	w.tenant, err = w.db.Deploy(w.Context(), clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Kind: clawr.KindDataset, Owner: "ann",
		Directory: "APIs", Plan: clawr.PlanFree, Price: 1000, X402: true, PayTo: w.payTo, Network: w.asset.Network}}, "test")
	w.ok(err)
}

// open opens the book and starts a facilitator on it, as a process does.
func (w *world) open() {
	w.Helper()
	var err error
	w.db, err = store.Open(w.Context(), store.Options{Path: w.path, Now: w.now, Fatal: func(err error) { w.Errorf("book: %v", err) }})
	w.ok(err)
	w.Cleanup(func() { w.db.Close() })
	w.fac = w.facilitator()
	w.ok(w.fac.Start(w.Context()))
}

func (w *world) facilitator() *facilitator.Facilitator {
	chain := w.node
	if w.believed != nil {
		chain = w.believed
	}
	return &facilitator.Facilitator{Network: w.asset.Network, Assets: []clawr.Asset{w.asset}, Chain: chain, Book: w.db, Ends: w.db,
		AllowPayTo: func(a string) bool { return a == w.payTo }, Now: w.now, Log: slog.New(slog.DiscardHandler), Failpoint: w.reached}
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) now() time.Time {
	return time.Now().Add(time.Duration(w.ahead.Load()) * time.Second)
}

// at has do run once, when the facilitator reaches a failpoint.
func (w *world) at(point string, do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.points[point] = do
}

func (w *world) reached(point string) {
	w.mu.Lock()
	do := w.points[point]
	delete(w.points, point)
	w.mu.Unlock()
	if do != nil {
		do()
	}
}

func (w *world) key() *chain.Key {
	k, err := chain.NewKey()
	w.ok(err)
	return k
}

// fund gives an account an ether and units of the token.
func (w *world) fund(k *chain.Key, units int64) {
	w.Helper()
	if w.anvil != nil {
		w.ok(w.anvil.Fund(w.Context(), k.Address(), big.NewInt(1e18), units))
		return
	}
	w.ok(w.chain.Fund(w.Context(), k.Address(), big.NewInt(1e18), units))
}

// terms are what the shop asks for.
func (w *world) terms() x402.Requirements {
	return x402.Requirements{Scheme: x402.SchemeExact, Network: w.asset.Network, Amount: "1000", Asset: w.asset.Address, PayTo: w.payTo,
		MaxTimeoutSeconds: 90, Extra: x402.Extra{Name: w.asset.Name, Version: w.asset.Version}}
}

// authorization pays what the shop asks for.
func (w *world) authorization() x402.Authorization {
	a := x402.Authorization{From: w.payer.Address(), To: common.HexToAddress(w.payTo), Value: x402.Uint(1000),
		ValidBefore: x402.Uint(uint64(w.now().Unix() + 90))}
	rand.Read(a.Nonce[:])
	return a
}

// signed is a as a payment for terms.
func (w *world) signed(a x402.Authorization, terms x402.Requirements) *x402.PaymentPayload {
	w.Helper()
	id, _ := x402.ChainID(terms.Network)
	digest := a.Digest(x402.NewDomain(terms.Extra.Name, terms.Extra.Version, id, common.HexToAddress(terms.Asset)))
	sig, err := w.payer.SignHash(digest[:])
	w.ok(err)
	return w.carrying(a, sig, terms)
}

func (w *world) carrying(a x402.Authorization, sig []byte, terms x402.Requirements) *x402.PaymentPayload {
	e := x402.Exact{Authorization: a, Signature: sig}
	return &x402.PaymentPayload{Version: 2, Accepted: terms, Payload: e.JSON()}
}

func (w *world) payment() *x402.PaymentPayload { return w.signed(w.authorization(), w.terms()) }

// reservation is the row of a payment that is to be reserved.
func (w *world) reservation(p *x402.PaymentPayload) ledger.Payment {
	w.Helper()
	e, err := x402.ParseExact(p.Payload)
	w.ok(err)
	value, _ := e.Value.Int64()
	before, _ := e.ValidBefore.Int64()
	raw := p.JSON()
	var id [8]byte
	rand.Read(id[:])
	return ledger.Payment{ID: "pay_" + hex.EncodeToString(id[:]), TenantID: w.tenant.ID, Version: w.tenant.Version,
		Route: "/v1/records", Scheme: x402.SchemeExact, PayTo: x402.Lower(e.To), Amount: value, ValidBefore: before,
		Key:         ledger.Key{Network: w.asset.Network, Asset: strings.ToLower(p.Accepted.Asset), Payer: e.Payer(), Nonce: e.Nonce.Hex()},
		Fingerprint: sum(raw), Payload: raw, PayloadSHA256: sum(raw), SignatureSHA256: sum(e.Signature), Policy: ledger.SettleBeforeResponse}
}

// reserved is a payment whose answer is stored: what the dispatcher settles.
func (w *world) reserved(p *x402.PaymentPayload) ledger.Payment {
	w.Helper()
	row, err := w.db.Reserve(w.Context(), w.reservation(p), "test", time.Minute)
	w.ok(err)
	w.ok(w.db.Done(w.Context(), row.ID, row.Epoch, ledger.Answer{Status: 200, Body: []byte("{}"), SHA256: sum([]byte("{}")), Len: 2, Expires: w.now().Add(24 * time.Hour)},
		usage.Event{Time: w.now(), RequestID: "req_" + row.ID[4:], TenantID: w.tenant.ID, PaymentID: row.ID, API: "acme", Endpoint: row.Route, Owner: "@ann",
			Directory: "APIs", Caller: "c0ffee", Status: 200, Price: 1000, Units: 1, Lifecycle: usage.Success, Countable: true}))
	return *w.row(row.Key)
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func (w *world) row(k ledger.Key) *ledger.Payment {
	w.Helper()
	p, err := w.db.Find(context.WithoutCancel(w.Context()), k)
	w.ok(err)
	if p == nil {
		w.Fatalf("no payment for %v", k)
	}
	return p
}

// settle settles p within seconds.
func (w *world) settle(p ledger.Payment) ledger.Outcome {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), 20*time.Second)
	defer cancel()
	out, err := w.fac.Settle(ctx, p)
	w.ok(err)
	return out
}

// units is what an address has of the token.
func (w *world) units(address string) int64 {
	w.Helper()
	n, err := w.node.TokenBalance(context.WithoutCancel(w.Context()), common.HexToAddress(w.asset.Address), common.HexToAddress(address))
	w.ok(err)
	return n.Int64()
}

// spent is the number of transactions that the facilitator has in blocks.
func (w *world) spent() uint64 {
	w.Helper()
	n, err := w.node.NonceAt(w.Context(), w.node.Key.Address())
	w.ok(err)
	return n
}

// call makes a transaction of k's account.
func (w *world) call(k *chain.Key, to string, signature string, args ...common.Hash) *chain.Receipt {
	w.Helper()
	address := common.HexToAddress(to)
	r, err := w.node.Transact(w.Context(), k, chain.Call{To: &address, Data: calldata(signature, args...), Gas: 400_000})
	w.ok(err)
	return r
}

func number(n int64) common.Hash           { return common.BigToHash(big.NewInt(n)) }
func address(a common.Address) common.Hash { return common.BytesToHash(a[:]) }
func addressOf(a string) common.Hash       { return address(common.HexToAddress(a)) }

// hostile deploys a contract of testdata/Hostile.sol.
func (w *world) hostile(name string, args ...common.Hash) string {
	w.Helper()
	var artifact struct {
		SourceSHA256 string            `json:"sourceSha256"`
		Bytecode     map[string]string `json:"bytecode"`
	}
	b, err := os.ReadFile("testdata/Hostile.json")
	w.ok(err)
	w.ok(json.Unmarshal(b, &artifact))
	source, err := os.ReadFile("testdata/Hostile.sol")
	w.ok(err)
	if sum(source) != artifact.SourceSHA256 {
		w.Fatal("Hostile.json is not of this Hostile.sol: node facilitator/testdata/compile.mjs")
	}
	code, err := hex.DecodeString(strings.TrimPrefix(artifact.Bytecode[name], "0x"))
	w.ok(err)
	var params []byte
	for _, a := range args {
		params = append(params, a[:]...)
	}
	k := w.stranger()
	at, err := devchain.Deploy(w.Context(), w.node.Client, k, &devchain.Artifact{Contract: name, Bytecode: code}, params...)
	w.ok(err)
	return x402.Lower(at)
}

// want checks an outcome.
func want(t testing.TB, out ledger.Outcome, state ledger.OutcomeState, reason clawr.Code) {
	t.Helper()
	names := [...]string{"unknown", "broadcast", "settled", "not charged"}
	if out.State != state || reason != "" && out.Reason != reason {
		t.Fatalf("outcome %s (%s: %s), want %s (%s)", names[out.State], out.Reason, out.Message, names[state], reason)
	}
	if state == ledger.Settled && (out.Tx == "" || out.BlockHash == "") {
		t.Fatalf("settled without evidence: %+v", out)
	}
}

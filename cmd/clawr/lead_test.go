package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/chain/devchain"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/facilitator/onchain"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// fleet is several nodes on one Postgres and one chain, all with the same two
// signers.
type fleet struct {
	*testing.T
	chain  *devchain.Chain
	client *chain.Client
	url    string
	keys   [2]*chain.Key
	payer  *chain.Key
	payTo  common.Address
	tenant clawr.Tenant
	began  time.Time // the time of the book, which stands still: no term ends by itself
}

// newFleet has ether for every key but the poor ones.
func newFleet(t *testing.T, poor ...int) *fleet {
	f := &fleet{T: t, url: storetest.Postgres(t), began: time.Now()}
	var err error
	f.chain, err = devchain.Open(devchain.Options{Log: slog.New(slog.DiscardHandler)})
	f.ok(err)
	t.Cleanup(func() { f.chain.Close() })
	f.client, err = chain.Dial(t.Context(), f.chain.URL())
	f.ok(err)
	t.Cleanup(f.client.Close)
	for i, k := range []**chain.Key{&f.keys[0], &f.keys[1], &f.payer} {
		*k, err = chain.NewKey()
		f.ok(err)
		if slices.Contains(poor, i) {
			continue
		}
		f.ok(f.chain.Fund(t.Context(), (*k).Address(), big.NewInt(1e18), 1_000_000))
	}
	f.payTo = common.HexToAddress("0x00000000000000000000000000000000000000a1")
	return f
}

func (f *fleet) ok(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func (f *fleet) signer(i int) string { return strings.ToLower(f.keys[i].Address().Hex()) }

// node is one more process.
func (f *fleet) node(name string) *shared {
	f.Helper()
	quiet := slog.New(slog.DiscardHandler)
	db, err := store.Open(f.Context(), store.Options{URL: f.url, Node: name, Now: func() time.Time { return f.began }, Log: quiet, Fatal: func(err error) { f.Errorf("book: %v", err) }})
	f.ok(err)
	f.Cleanup(func() { db.Close() })
	fac := &facilitator.Facilitator{Network: f.chain.Asset().Network, Assets: []clawr.Asset{f.chain.Asset()}, Book: db, Ends: db, Log: quiet,
		Chain:   &onchain.Node{Client: f.client, Key: f.keys[0]},
		Signers: []facilitator.Sender{&onchain.Node{Client: f.client, Key: f.keys[1]}}}
	s := newShared(db, fac, quiet)
	s.carry = (&dispatch.Dispatcher{Payments: s, Book: db, Log: quiet}).Carry
	if f.tenant.ID == "" {
		f.tenant, err = db.Deploy(f.Context(), clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Kind: clawr.KindDataset, Owner: "ann", Directory: "APIs",
			Plan: clawr.PlanFree, Price: 1000, X402: true, PayTo: x402.Lower(f.payTo), Network: f.chain.Asset().Network}}, "test")
		f.ok(err)
	}
	f.ok(fac.Start(f.Context()))
	return s
}

// answered is a payment whose answer a node has stored.
func (f *fleet) answered(s *shared) ledger.Payment {
	f.Helper()
	asset := f.chain.Asset()
	a := x402.Authorization{From: f.payer.Address(), To: f.payTo, Value: x402.Uint(1000), ValidBefore: x402.Uint(uint64(time.Now().Unix() + 600))}
	rand.Read(a.Nonce[:])
	id, _ := x402.ChainID(asset.Network)
	digest := a.Digest(x402.NewDomain(asset.Name, asset.Version, id, common.HexToAddress(asset.Address)))
	sig, err := f.payer.SignHash(digest[:])
	f.ok(err)
	e := x402.Exact{Authorization: a, Signature: sig}
	p := x402.PaymentPayload{Version: 2, Payload: e.JSON(), Accepted: x402.Requirements{Scheme: x402.SchemeExact, Network: asset.Network, Amount: "1000",
		Asset: asset.Address, PayTo: x402.Lower(f.payTo), MaxTimeoutSeconds: 600, Extra: x402.Extra{Name: asset.Name, Version: asset.Version}}}
	raw := p.JSON()
	hash := sha256.Sum256(raw)
	sum := hex.EncodeToString(hash[:])
	row, err := s.db.Reserve(f.Context(), ledger.Payment{ID: "pay_" + hex.EncodeToString(a.Nonce[:8]), TenantID: f.tenant.ID, Version: f.tenant.Version,
		Route: "/v1/records", Scheme: x402.SchemeExact, PayTo: x402.Lower(f.payTo), Amount: 1000, ValidBefore: time.Now().Unix() + 600,
		Key:         ledger.Key{Network: asset.Network, Asset: strings.ToLower(asset.Address), Payer: e.Payer(), Nonce: e.Nonce.Hex()},
		Fingerprint: sum, Payload: raw, PayloadSHA256: sum, SignatureSHA256: sum, Policy: ledger.SettleBeforeResponse}, s.db.Node(), time.Minute)
	f.ok(err)
	f.ok(s.db.Done(f.Context(), row.ID, row.Epoch, ledger.Answer{Status: 200, Body: []byte("{}"), SHA256: sum, Len: 2, Expires: time.Now().Add(time.Hour)},
		usage.Event{Time: time.Now(), RequestID: "req_" + row.ID[4:], TenantID: f.tenant.ID, PaymentID: row.ID, API: "acme", Endpoint: row.Route, Owner: "@ann",
			Directory: "APIs", Caller: "c0ffee", Status: 200, Price: 1000, Units: 1, Lifecycle: usage.Success, Countable: true}))
	got, err := s.db.Payment(f.Context(), row.ID)
	f.ok(err)
	return *got
}

// settledBy settles p on a node, and gives the signer that paid the gas.
func (f *fleet) settledBy(s *shared, p ledger.Payment) string {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), time.Minute)
	defer cancel()
	out, err := s.Settle(ctx, p)
	if err != nil || out.State != ledger.Settled {
		f.Errorf("settled as %+v, %v", out, err)
		return ""
	}
	st, err := s.db.Settlement(f.Context(), p.Key)
	if err != nil || st == nil || st.Batch == nil {
		f.Errorf("settlement %+v, %v", st, err)
		return ""
	}
	return st.Batch.Signer
}

// A process with several signers leads each of them by itself: of two nodes
// each may lead one, and signs with that one alone; a third, which leads none,
// has its payments settled by both.
func TestANodeLeadsEachOfItsSignersByItself(t *testing.T) {
	f := newFleet(t)
	a, b, c := f.node("node_a"), f.node("node_b"), f.node("node_c")
	for i, s := range []*shared{a, b} {
		if leads, err := s.leaders[f.signer(i)].Stand(t.Context()); err != nil || !leads {
			t.Fatal(leads, err)
		}
	}
	for name, n := range map[string]struct {
		s    *shared
		want [2]bool
	}{"the first": {a, [2]bool{true, false}}, "the second": {b, [2]bool{false, true}}, "the third": {c, [2]bool{}}} {
		for i := range f.keys {
			if got := n.s.Facilitator.Leads(f.signer(i)); got != n.want[i] {
				t.Errorf("%s node leads signer %d: %v, want %v", name, i, got, n.want[i])
			}
		}
		if n.s.Facilitator.Leads(strings.ToLower(f.payTo.Hex())) {
			t.Errorf("%s node leads a signer that it has not", name)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	for _, s := range []*shared{a, b, c} {
		running.Go(func() {
			if err := s.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	const each = 6
	for i, s := range []*shared{a, b} {
		for range each {
			if by := f.settledBy(s, f.answered(s)); by != f.signer(i) {
				t.Errorf("the node that leads signer %d alone settled with %q, want %q", i, by, f.signer(i))
			}
		}
	}
	var calls sync.WaitGroup
	var mu sync.Mutex
	by := map[string]int{}
	const handed = 24
	for range handed {
		p := f.answered(c)
		calls.Go(func() {
			signer := f.settledBy(c, p)
			mu.Lock()
			defer mu.Unlock()
			by[signer]++
		})
	}
	calls.Wait()
	if by[f.signer(0)] == 0 || by[f.signer(1)] == 0 || by[f.signer(0)]+by[f.signer(1)] != handed {
		t.Errorf("handed over to %v, want some of %d to each of two", fmt.Sprint(by), handed)
	}
	got, err := f.client.TokenBalance(t.Context(), common.HexToAddress(f.chain.Asset().Address), f.payTo)
	f.ok(err)
	if got.Int64() != (2*each+handed)*1000 {
		t.Errorf("the seller has %v units, want %d", got, (2*each+handed)*1000)
	}
	stop()
	running.Wait()
	for i := range f.keys { // nobody else is left
		if leads, err := c.leaders[f.signer(i)].Stand(t.Context()); err != nil || !leads || !c.Facilitator.Leads(f.signer(i)) {
			t.Errorf("signer %d is not taken over: %v, %v", i, leads, err)
		}
	}
}

// A node that leads a signer without ether gives it up, if another node has one
// that can pay: that node leads both, settles what the first has sold, and what
// others hand over. Once the account has ether again it is settled with again.
func TestASignerWithoutEtherIsHandedOver(t *testing.T) {
	f := newFleet(t, 0)
	a, b, c := f.node("node_a"), f.node("node_b"), f.node("node_c")
	for i, s := range []*shared{a, b} {
		if leads, err := s.leaders[f.signer(i)].Stand(t.Context()); err != nil || !leads {
			t.Fatal(leads, err)
		}
	}
	said := new(bytes.Buffer) // a alone writes it, and is waited for
	a.log = slog.New(slog.NewTextHandler(said, nil))
	stops := map[*shared]func(){}
	for _, s := range []*shared{a, b, c} {
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			if err := s.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		stops[s] = sync.OnceFunc(func() { stop(); running.Wait() })
		defer stops[s]()
	}
	for name, s := range map[string]*shared{"that leads the poor one": a, "that leads the rich one": b, "that leads none": c} {
		for range 4 {
			if by := f.settledBy(s, f.answered(s)); by != f.signer(1) {
				t.Errorf("the node %s settled with %q, want the signer that has ether, %q", name, by, f.signer(1))
			}
		}
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not in a minute: %s", what)
			}
		}
	}
	until("who has the signer with ether leads both", func() bool { return b.leads(f.signer(0)) && b.leads(f.signer(1)) })
	if len(a.led()) > 0 || len(c.led()) > 0 {
		t.Errorf("%v and %v are led without ether", a.led(), c.led())
	}
	f.ok(f.chain.Fund(t.Context(), f.keys[0].Address(), big.NewInt(1e18), 0))
	stops[b]()
	until("somebody leads the signer that has ether again", func() bool { return a.leads(f.signer(0)) || c.leads(f.signer(0)) })
	by := map[string]bool{}
	until("both settle again", func() bool {
		by[f.settledBy(a, f.answered(a))] = true
		by[f.settledBy(c, f.answered(c))] = true
		return by[f.signer(0)] && by[f.signer(1)]
	})
	stops[a]()
	if n := strings.Count(said.String(), "a signer has no ether: another node takes it over"); n != 1 {
		t.Errorf("the node said %d times that it gives its signer up:\n%s", n, said)
	}
}

package e2e

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math/big"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	nouns "github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
	"github.com/402claw/clawr/usage"
)

// owe makes a book in which a payment of 1000 units was charged and could not be
// delivered: for good if final.
func owe(t *testing.T, o store.Options, c *testChain, seller, buyer common.Address, final bool) {
	t.Helper()
	ctx := t.Context()
	db, err := store.Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lower := func(a common.Address) string { return strings.ToLower(a.Hex()) }
	tenant, err := db.Deploy(ctx, nouns.Tenant{Slug: "acme", Manifest: nouns.Manifest{Owner: "ann", PayTo: lower(seller)}}, "ann")
	if err != nil {
		t.Fatal(err)
	}
	var nonce [32]byte
	rand.Read(nonce[:])
	p := ledger.Payment{ID: "pay_" + hex.EncodeToString(nonce[:8]), TenantID: tenant.ID, Version: tenant.Version, Scheme: "exact", PayTo: lower(seller), Amount: 1000, ValidBefore: time.Now().Unix() + 600,
		Key:         ledger.Key{Network: c.network, Asset: lower(c.asset), Payer: lower(buyer), Nonce: "0x" + hex.EncodeToString(nonce[:])},
		Fingerprint: "f", Payload: []byte("{}"), PayloadSHA256: "p", SignatureSHA256: "s", Policy: ledger.SettleFirst}
	p, err = db.Reserve(ctx, p, "test", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	at := ledger.Evidence{Tx: "0x" + strings.Repeat("1", 64), BlockNumber: 1, BlockHash: "0x" + strings.Repeat("2", 64)}
	err = errors.Join(db.Submit(ctx, p.ID, p.Epoch, "https://facilitator.example.com"), db.Paid(ctx, p.Key, at), db.Start(ctx, p.ID, p.Epoch),
		db.Fail(ctx, p.ID, p.Epoch, nouns.CodeWorkerFailure, usage.Event{}))
	if final {
		err = errors.Join(err, db.Final(ctx, p.Key, at.BlockHash))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// A server that is killed at any step of a refund and started again pays it
// once: the chain shows one transfer, of exactly what is owed.
func TestKilledAtEachStepOfARefund(t *testing.T) {
	crashing := filepath.Join(t.TempDir(), "clawr")
	if out, err := exec.Command("go", "build", "-tags", "failpoint", "-o", crashing, "../cmd/clawr").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	c := devChain(t)
	steps := []string{"repay.before", "repay.after", "preflight", "batch.after", "t3.before", "t3.after", "broadcast.before", "broadcast.after", "mined.before", "mined.after", "repaid.before", "repaid.after"}
	t.Run("sqlite", func(t *testing.T) {
		for _, step := range steps {
			t.Run(step, func(t *testing.T) {
				killInRefund(t, c, crashing, step, func(s *server) store.Options { return store.Options{Path: filepath.Join(s.dir, "clawr.db")} })
			})
		}
	})
	t.Run("postgres", func(t *testing.T) {
		var all sync.WaitGroup
		defer all.Wait()
		room := make(chan struct{}, 6) // each waits until the dead leader's term is over
		for _, step := range steps {
			room <- struct{}{}
			all.Go(func() {
				defer func() { <-room }()
				t.Run(step, func(t *testing.T) {
					killInRefund(t, c, crashing, step, func(s *server) store.Options {
						url := storetest.Postgres(t)
						s.args = append(s.args, "--database-url", url)
						return store.Options{URL: url}
					})
				})
			})
		}
	})
}

// Of two nodes one leads the signer. What is signed at the other one is seen
// through all the same, and both say so.
func TestARefundIsSignedAtAnyNode(t *testing.T) {
	c := devChain(t)
	seller, buyer, signer := c.account(t, 2000), c.account(t, 0), c.account(t, 0)
	url := storetest.Postgres(t)
	var list []*server
	for range 2 {
		s := &server{chain: c, dir: t.TempDir(), payTo: seller.Address(), signer: signer, env: []string{"CLAWR_FACILITATOR_KEY=" + signer.Reveal()}}
		s.args = []string{"serve", "--listen", "127.0.0.1:0", "--data", s.dir, "--network", c.network, "--asset", c.asset.Hex(), "--rpc-url", c.rpc, "--pay-to", s.payTo.Hex(),
			"--database-url", url, "--public-url", "http://api.test", "--blob-url", "file://" + t.TempDir()}
		s.up(t)
		list = append(list, s)
	}
	for i, s := range list {
		owe(t, store.Options{URL: url}, c, seller.Address(), buyer.Address(), true)
		out := must(t, []string{"CLAWR_PAY_TO_KEY=" + seller.Reveal()}, "payments", "refund", "--all-due", "--data", s.dir, "--json")
		if strings.Count(out, `"transaction":"0x`) != 1 {
			t.Errorf("node %d says %s", i, out)
		}
	}
	moved, _, err := c.client.Transfers(t.Context(), c.asset, buyer.Address(), 0)
	if err != nil || len(moved) != 2 || c.balance(t, seller.Address()) != 0 {
		t.Errorf("the chain shows %+v, %v", moved, err)
	}
}

// What a reorganisation may undo is not paid back, and who has no ether pays
// nothing back until somebody sends some: then once.
func TestARefundWaitsForFinalityAndForGas(t *testing.T) {
	c := devChain(t)
	seller, buyer, rich := c.account(t, 1000), c.account(t, 0), c.account(t, 0)
	url := storetest.Postgres(t)
	s := &server{chain: c, dir: t.TempDir(), payTo: seller.Address(), signer: c.account(t, 0)}
	s.env = []string{"CLAWR_FACILITATOR_KEY=" + s.signer.Reveal()}
	s.args = []string{"serve", "--listen", "127.0.0.1:0", "--data", s.dir, "--network", c.network, "--asset", c.asset.Hex(), "--rpc-url", c.rpc, "--pay-to", s.payTo.Hex(), "--database-url", url}
	owe(t, store.Options{URL: url}, c, seller.Address(), buyer.Address(), false)
	s.up(t)
	refund := func(flags ...string) (int, string) {
		cmd := clawr(t, []string{"CLAWR_PAY_TO_KEY=" + seller.Reveal()}, append([]string{"payments", "refund", "--all-due", "--data", s.dir}, flags...)...)
		out, _ := cmd.CombinedOutput()
		return cmd.ProcessState.ExitCode(), string(out)
	}
	if code, out := refund(); code != 6 || !strings.Contains(out, "is not final yet: a reorganisation may take back that it was charged") {
		t.Errorf("before it is final: exit code %d, %s", code, out)
	}
	db, err := store.Open(t.Context(), store.Options{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	list, err := db.Payments(t.Context(), store.PaymentFilter{Refund: ledger.RefundDue})
	if err != nil || len(list) != 1 {
		t.Fatalf("due: %+v, %v", list, err)
	}
	for { // the server looks for that block, and takes it back: be faster
		err := db.Paid(t.Context(), list[0].Key, list[0].Evidence)
		if err == nil || errors.Is(err, ledger.ErrFenced) {
			err = db.Final(t.Context(), list[0].Key, list[0].BlockHash)
		}
		if err == nil {
			break
		}
		if !errors.Is(err, ledger.ErrFenced) {
			t.Fatal(err)
		}
	}

	to := rich.Address()
	if _, err := c.client.Transact(t.Context(), s.signer, chain.Call{To: &to, Value: big.NewInt(1e18 - 15e13), Gas: 21_000}); err != nil {
		t.Fatal(err)
	}
	if code, out := refund("--wait", "1s"); code != 1 && code != 9 {
		t.Errorf("without ether: exit code %d, %s", code, out)
	}
	if got := c.balance(t, buyer.Address()); got != 0 {
		t.Errorf("without ether the buyer was paid %d units back", got)
	}
	c.fund(t, s.signer.Address(), big.NewInt(1e18), 0)
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		refund("--wait", "1s")
		r, err := db.Refund(t.Context(), list[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		if r.State == ledger.RefundFinal {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("with ether again the refund is %+v", r)
		}
	}
	if got := c.balance(t, buyer.Address()); got != 1000 {
		t.Errorf("the buyer was paid %d units back, want 1000", got)
	}
}

func killInRefund(t *testing.T, c *testChain, crashing, step string, book func(*server) store.Options) {
	seller, buyer := c.account(t, 5000), c.account(t, 0)
	s := &server{chain: c, dir: t.TempDir(), payTo: seller.Address(), signer: c.account(t, 0)}
	s.env = []string{"CLAWR_FACILITATOR_KEY=" + s.signer.Reveal()}
	s.args = []string{"serve", "--listen", "127.0.0.1:0", "--data", s.dir, "--network", c.network, "--asset", c.asset.Hex(), "--rpc-url", c.rpc, "--pay-to", s.payTo.Hex()}
	owe(t, book(s), c, seller.Address(), buyer.Address(), true)

	cmd := clawr(t, append(s.env, "CLAWR_FAILPOINT="+step), s.args...)
	cmd.Path = crashing
	doomed := start(t, cmd)
	refund := func() *exec.Cmd {
		return clawr(t, []string{"CLAWR_PAY_TO_KEY=" + seller.Reveal()}, "payments", "refund", "--all-due", "--data", s.dir, "--json")
	}
	first := refund()
	if err := first.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-doomed.ended:
	case <-time.After(60 * time.Second):
		t.Fatalf("%s is not reached:\n%s", step, doomed.said())
	}
	first.Process.Kill()
	first.Wait()

	s.up(t)
	var got struct {
		Payments []struct {
			Refund struct{ Transaction string }
		}
	}
	for deadline := time.Now().Add(90 * time.Second); len(got.Payments) == 0; time.Sleep(100 * time.Millisecond) {
		refund().Run() // whether it is due yet or signed, to ask again does no harm
		out := must(t, nil, "payments", "list", "--refund", "final", "--data", s.dir, "--json")
		if err := json.Unmarshal([]byte(out), &got); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a kill at %s the refund is not final: %s", step, must(t, nil, "payments", "list", "--data", s.dir, "--json"))
		}
	}
	refund().Run()
	s.kill()

	moved, _, err := c.client.Transfers(t.Context(), c.asset, buyer.Address(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(moved) != 1 || moved[0].Amount != 1000 || moved[0].From != seller.Address() || moved[0].Tx != got.Payments[0].Refund.Transaction {
		t.Errorf("the chain shows %+v, the book %+v", moved, got.Payments)
	}
	if left := c.balance(t, seller.Address()); left != 4000 {
		t.Errorf("the seller has %d units left of 5000", left)
	}
}

package anvil_test

import (
	"math/big"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/anvil"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// authorization signs a transfer of a test USDC on any chain.
func authorization(t testing.TB, n *anvil.Node, payer *chain.Key, to common.Address, amount int64, nonce int64) chain.Transfer {
	t.Helper()
	tr := chain.Transfer{Asset: common.HexToAddress(n.Asset.Address), Payer: payer.Address(), PayTo: to, Amount: amount,
		ValidBefore: time.Now().Unix() + 3600, Nonce: common.BigToHash(big.NewInt(nonce))}
	word := func(v int64) []byte { return common.BigToHash(big.NewInt(v)).Bytes() }
	addr := func(a common.Address) []byte { return common.LeftPadBytes(a[:], 32) }
	domain := crypto.Keccak256(
		crypto.Keccak256([]byte("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")),
		crypto.Keccak256([]byte(n.Asset.Name)), crypto.Keccak256([]byte(n.Asset.Version)), word(n.Client.ChainID()), addr(tr.Asset))
	s := crypto.Keccak256(
		crypto.Keccak256([]byte("TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)")),
		addr(tr.Payer), addr(tr.PayTo), word(amount), word(0), word(tr.ValidBefore), tr.Nonce[:])
	sig, err := payer.SignHash(crypto.Keccak256([]byte{0x19, 1}, domain, s))
	if err != nil {
		t.Fatal(err)
	}
	tr.Signature = sig
	return tr
}

func node(t testing.TB, opt anvil.Options) (*anvil.Node, *chain.Key) {
	t.Helper()
	n, err := anvil.Start(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	k, err := chain.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Fund(t.Context(), k.Address(), big.NewInt(1e18), 1_000_000_000); err != nil {
		t.Fatal(err)
	}
	return n, k
}

// What clawr reads from go-ethereum it reads from anvil, which says it in its own words.
func TestAnvilsWords(t *testing.T) {
	n, k := node(t, anvil.Options{})
	ctx := t.Context()
	shop := common.HexToAddress("0x00000000000000000000000000000000000000aa")
	poor, err := chain.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	fees, err := n.Client.Fees(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tr := authorization(t, n, k, shop, 10, 1)
	if r, err := n.Client.Simulate(ctx, poor.Address(), tr, 150_000); r != nil || err != nil {
		t.Errorf("a good authorization: %+v, %v", r, err)
	}
	if r, err := n.Client.Simulate(ctx, poor.Address(), tr, 40_000); err != nil || r == nil || r.Reason != chain.OutOfGas {
		t.Errorf("with too little gas: %+v, %v", r, err)
	}
	tx, err := n.Client.BuildTransfer(k, 0, fees, 150_000, tr)
	if err != nil {
		t.Fatal(err)
	}
	r, outcome, err := n.Client.Submit(ctx, tx, 5*time.Second)
	if err != nil || outcome != chain.Sent || r == nil || r.Find(tr).Use != chain.Paid {
		t.Fatalf("%+v, %v, %v", r, outcome, err)
	}
	if f, err := n.Client.FindEvidence(ctx, tr, 0); err != nil || f.Use != chain.Paid || *f.Evidence != *r.Find(tr).Evidence {
		t.Errorf("%+v, %v, want what the receipt has", f, err)
	}
	if r, err := n.Client.Simulate(ctx, poor.Address(), tr, 150_000); err != nil || r == nil || r.Reason != chain.NonceUsed {
		t.Errorf("a used nonce: %+v, %v", r, err)
	}
	if r, err := n.Client.Simulate(ctx, poor.Address(), authorization(t, n, poor, shop, 10, 1), 150_000); err != nil || r == nil || r.Reason != chain.Balance {
		t.Errorf("an empty account: %+v, %v", r, err)
	}
	if o, err := n.Client.Broadcast(ctx, tx.Raw); err != nil || o != chain.NonceTooLow && o != chain.Known {
		t.Errorf("a transaction that is in a block: %v, %v", o, err)
	}
	unpaid, err := n.Client.BuildTransfer(poor, 0, fees, 150_000, tr)
	if err != nil {
		t.Fatal(err)
	}
	if _, o, err := n.Client.Submit(ctx, unpaid, time.Second); o != chain.Refused || clawr.CodeOf(err) != clawr.CodeUnfunded {
		t.Errorf("a signer without ether: %v, %v", o, err)
	}
	if b, err := n.Client.Finalized(ctx); err != nil || b.Hash == (common.Hash{}) {
		t.Errorf("finalized: %+v, %v", b, err)
	}
}

func TestAnvilHoldsTransactionsBack(t *testing.T) {
	n, k := node(t, anvil.Options{})
	ctx := t.Context()
	if err := n.Call(ctx, nil, "evm_setAutomine", false); err != nil {
		t.Fatal(err)
	}
	fees, err := n.Client.Fees(ctx)
	if err != nil {
		t.Fatal(err)
	}
	tr := authorization(t, n, k, common.HexToAddress("0x00000000000000000000000000000000000000aa"), 10, 1)
	tx, err := n.Client.BuildTransfer(k, 0, fees, 150_000, tr)
	if err != nil {
		t.Fatal(err)
	}
	if r, o, err := n.Client.Submit(ctx, tx, 300*time.Millisecond); r != nil || o != chain.Sent || err != nil {
		t.Errorf("%+v, %v, %v, want it sent and no receipt", r, o, err)
	}
	if o, err := n.Client.Broadcast(ctx, tx.Raw); o != chain.Known || err != nil {
		t.Errorf("the same bytes: %v, %v, want known", o, err)
	}
	cheap, err := n.Client.BuildTransfer(k, 0, fees, 150_001, tr)
	if err != nil {
		t.Fatal(err)
	}
	if o, err := n.Client.Broadcast(ctx, cheap.Raw); o != chain.Underpriced || err != nil {
		t.Errorf("a replacement for the same fee: %v, %v, want underpriced", o, err)
	}
	dear, err := n.Client.BuildTransfer(k, 0, fees.Bump(), 150_000, tr)
	if err != nil {
		t.Fatal(err)
	}
	if o, err := n.Client.Broadcast(ctx, dear.Raw); o != chain.Sent || err != nil {
		t.Errorf("a replacement with bumped fees: %v, %v, want sent", o, err)
	}
	if err := n.Call(ctx, nil, "evm_mine"); err != nil {
		t.Fatal(err)
	}
	if r, err := n.Client.Wait(ctx, dear.Hash); err != nil || r.Find(tr).Use != chain.Paid {
		t.Errorf("%+v, %v, want the replacement to have paid", r, err)
	}
	if r, err := n.Client.Receipt(ctx, tx.Hash); r != nil || err != nil {
		t.Errorf("the replaced transaction has a receipt: %+v, %v", r, err)
	}
}

// BenchmarkPayment is what a paid call asks of the chain, one after the other:
// simulate, sign, submit, find the evidence.
func BenchmarkPayment(b *testing.B) {
	n, k := node(b, anvil.Options{})
	shop := common.HexToAddress("0x00000000000000000000000000000000000000aa")
	var nonce uint64
	var sim, send time.Duration
	for b.Loop() {
		tr := authorization(b, n, k, shop, 10, int64(nonce)+1)
		start := time.Now()
		if r, err := n.Client.Simulate(b.Context(), k.Address(), tr, 150_000); r != nil || err != nil {
			b.Fatal(r, err)
		}
		sim += time.Since(start)
		start = time.Now()
		fees, err := n.Client.Fees(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		tx, err := n.Client.BuildTransfer(k, nonce, fees, 150_000, tr)
		if err != nil {
			b.Fatal(err)
		}
		r, outcome, err := n.Client.Submit(b.Context(), tx, 5*time.Second)
		if err != nil || r == nil {
			b.Fatal(r, outcome, err)
		}
		if f := r.Find(tr); f.Use != chain.Paid {
			b.Fatalf("%+v", f)
		}
		send += time.Since(start)
		nonce++
	}
	b.ReportMetric(float64(sim.Microseconds())/float64(b.N), "µs-simulate/op")
	b.ReportMetric(float64(send.Microseconds())/float64(b.N), "µs-settle/op")
}

package anvil_test

import (
	"math/big"
	"testing"
	"time"

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

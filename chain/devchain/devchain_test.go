package devchain

import (
	"context"
	"math/big"
	"testing"
	"time"

	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// open gives a chain that ends with the test, and a client of it over HTTP.
func open(t testing.TB, opt Options) (*Chain, *chain.Client) {
	t.Helper()
	c, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	cl, err := chain.Dial(t.Context(), c.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return c, cl
}

func key(t testing.TB) *chain.Key {
	t.Helper()
	k, err := chain.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// domain is the token's EIP-712 domain separator.
func domain(c *Chain) []byte {
	return crypto.Keccak256(
		crypto.Keccak256([]byte("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")),
		crypto.Keccak256([]byte(c.Asset().Name)), crypto.Keccak256([]byte(c.Asset().Version)),
		common.BigToHash(big.NewInt(c.ChainID())).Bytes(), common.LeftPadBytes(common.FromHex(c.Asset().Address), 32))
}

// digest is the EIP-712 digest of a struct of the token.
func digest(c *Chain, typeName string, words ...[]byte) []byte {
	s := crypto.Keccak256([]byte(typeName))
	for _, w := range words {
		s = append(s, common.LeftPadBytes(w, 32)...)
	}
	return crypto.Keccak256([]byte{0x19, 1}, domain(c), crypto.Keccak256(s))
}

const (
	transferType = "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
	receiveType  = "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
	cancelType   = "CancelAuthorization(address authorizer,bytes32 nonce)"
)

// transfer is an authorization of payer's, signed, valid for an hour of the chain's time.
func transfer(t testing.TB, c *Chain, payer *chain.Key, to common.Address, amount int64) chain.Transfer {
	t.Helper()
	_, head := c.Head()
	tr := chain.Transfer{Asset: common.HexToAddress(c.Asset().Address), Payer: payer.Address(), PayTo: to, Amount: amount,
		ValidBefore: head.Unix() + 3600, Nonce: common.BytesToHash(crypto.Keccak256([]byte(t.Name()), big.NewInt(time.Now().UnixNano()).Bytes()))}
	return sign(t, c, payer, tr, transferType)
}

func sign(t testing.TB, c *Chain, payer *chain.Key, tr chain.Transfer, typeName string) chain.Transfer {
	t.Helper()
	n := func(v int64) []byte { return big.NewInt(v).Bytes() }
	sig, err := payer.SignHash(digest(c, typeName, tr.Payer[:], tr.PayTo[:], n(tr.Amount), n(tr.ValidAfter), n(tr.ValidBefore), tr.Nonce[:]))
	if err != nil {
		t.Fatal(err)
	}
	tr.Signature = sig
	return tr
}

// fund gives an account both kinds of money.
func fund(t testing.TB, c *Chain, k *chain.Key) *chain.Key {
	t.Helper()
	if err := c.Fund(t.Context(), k.Address(), big.NewInt(1e18), 1_000_000_000); err != nil {
		t.Fatal(err)
	}
	return k
}

func TestAPaymentFromSignatureToEvidence(t *testing.T) {
	c, cl := open(t, Options{})
	payer, signer := fund(t, c, key(t)), fund(t, c, key(t))
	shop := key(t).Address()
	tr := transfer(t, c, payer, shop, 1000)
	if r, err := cl.Simulate(t.Context(), signer.Address(), tr, 150_000); r != nil || err != nil {
		t.Fatalf("simulate: %+v, %v", r, err)
	}
	fees, err := cl.Fees(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tx, err := cl.BuildTransfer(signer, 0, fees, 150_000, tr)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	r, outcome, err := cl.Submit(t.Context(), tx, 5*time.Second)
	if err != nil || r == nil {
		t.Fatalf("submit: %v, %v, %v", r, outcome, err)
	}
	t.Logf("mined in %v", time.Since(start))
	f := r.Find(tr)
	if f.Use != chain.Paid || f.Evidence.Tx != tx.Hash || f.Evidence.From != signer.Address() {
		t.Fatalf("found %+v in the payment's own receipt", f)
	}
	again, err := cl.FindEvidence(context.Background(), tr, 0)
	if err != nil || again.Use != chain.Paid || *again.Evidence != *f.Evidence {
		t.Errorf("FindEvidence gives %+v, %v; the receipt gave %+v", again.Evidence, err, f.Evidence)
	}
	got, err := cl.TokenBalance(t.Context(), tr.Asset, shop)
	if err != nil || got.Int64() != 1000 {
		t.Errorf("the shop has %v, %v, want 1000", got, err)
	}
}

package chain_test

import (
	"encoding/json"
	"math/big"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// mintQuiet gives units of a QuietUSD, which anyone may mint.
func mintQuiet(t *testing.T, w *world, token common.Address, units int64) {
	t.Helper()
	data := crypto.Keccak256([]byte("mint(address,uint256)"))[:4]
	data = append(data, common.LeftPadBytes(w.payer.Address().Bytes(), 32)...)
	data = append(data, common.BigToHash(big.NewInt(units)).Bytes()...)
	if _, err := w.cl.Transact(t.Context(), w.signer, chain.Call{To: &token, Data: data}); err != nil {
		t.Fatal(err)
	}
}

// A token that does not revert on a used nonce lets a simulation through a
// second time, and logs nothing then. Probe says that the nonce is used, and
// the receipt of the second transaction, whose status is 1, is no payment.
func TestATokenThatSaysNothing(t *testing.T) {
	w := newWorld(t)
	quiet := deploy(t, w, "QuietUSD")
	mintQuiet(t, w, quiet, 1000)
	tr := w.transfer(t, 10, 1)
	tr.Asset = quiet
	if p, err := w.cl.Probe(t.Context(), w.signer.Address(), tr, 150_000); err != nil || p.Used || p.Contract || p.Rejection != nil {
		t.Errorf("before: %+v, %v", p, err)
	}
	first, _, err := w.cl.Submit(t.Context(), w.build(t, w.cl, tr), 5*time.Second)
	if err != nil || first.Find(tr).Use != chain.Paid {
		t.Fatalf("%+v, %v", first, err)
	}
	if p, err := w.cl.Probe(t.Context(), w.signer.Address(), tr, 150_000); err != nil || !p.Used || p.Rejection != nil {
		t.Errorf("after: %+v, %v, want used and no rejection", p, err)
	}
	second, _, err := w.cl.Submit(t.Context(), w.build(t, w.cl, tr), 5*time.Second)
	if err != nil || !second.OK || second.Find(tr).Use != chain.Unused {
		t.Errorf("sent again: %+v, %v, want a receipt without a payment", second, err)
	}
	if f, err := w.cl.FindEvidence(t.Context(), tr, 0); err != nil || f.Use != chain.Paid || f.Tx != first.Tx {
		t.Errorf("%+v, %v, want the first transaction", f, err)
	}
}

func TestProbe(t *testing.T) {
	w := newWorld(t)
	n := proxy(t, w.URL(), nil)
	cl := dial(t, n.URL)
	noop := deploy(t, w, "NoopUSD")
	used := w.transfer(t, 10, 1)
	if _, _, err := w.cl.Submit(t.Context(), w.build(t, w.cl, used), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	tampered := w.transfer(t, 10, 2)
	tampered.Nonce[0] ^= 1
	contract := w.transfer(t, 10, 3)
	contract.Payer = noop
	account := w.transfer(t, 10, 4)
	account.Asset = w.shop
	reason := func(p chain.Probe) string {
		if p.Rejection == nil {
			return ""
		}
		return p.Rejection.Reason.String()
	}
	for _, test := range []struct {
		name           string
		tr             chain.Transfer
		used, contract bool
		reason         string
		trips          int64
	}{
		{"good", w.transfer(t, 10, 5), false, false, "", 1},
		{"used", used, true, false, "nonce used", 1},
		{"tampered", tampered, false, false, "reverted", 2},
		{"too much", w.transfer(t, 5_000_000, 6), false, false, "balance", 2},
		{"from a contract, which has no money either", contract, false, true, "balance", 2},
	} {
		before := n.calls.Load()
		p, err := cl.Probe(t.Context(), w.signer.Address(), test.tr, 150_000)
		trips := n.calls.Load() - before
		if err != nil || p.Used != test.used || p.Contract != test.contract || reason(p) != test.reason || trips != test.trips {
			t.Errorf("%s: %+v (%s), %v, in %d round trips, want %+v", test.name, p, reason(p), err, trips, test)
		}
	}
	if _, err := cl.Probe(t.Context(), w.signer.Address(), account, 150_000); clawr.CodeOf(err) != clawr.CodeNoContract {
		t.Errorf("an asset without code: %v, want code %s", err, clawr.CodeNoContract)
	}
	broke := dial(t, proxy(t, w.URL(), map[string]func([]json.RawMessage) (any, int, string){"eth_call": refuse(-32005, "limit exceeded")}).URL)
	if p, err := broke.Probe(t.Context(), w.signer.Address(), used, 150_000); err == nil {
		t.Errorf("a provider that refuses: %+v, want an error", p)
	}
}

func TestIsValidSignature(t *testing.T) {
	w := newWorld(t)
	wallet := deployWallet(t, w)
	digest := crypto.Keccak256Hash([]byte("x"))
	sig, err := w.payer.SignHash(digest[:])
	if err != nil {
		t.Fatal(err)
	}
	other, err := w.signer.SignHash(digest[:])
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		who  common.Address
		sig  []byte
		want bool
	}{
		{"the owner's", wallet, sig, true},
		{"another's", wallet, other, false},
		{"none", wallet, nil, false},
		{"an account without code", w.shop, sig, false},
		{"a contract that reverts", w.asset, sig, false},
	} {
		if ok, err := w.cl.IsValidSignature(t.Context(), test.who, digest, test.sig, 150_000); ok != test.want || err != nil {
			t.Errorf("%s: %v, %v, want %v", test.name, ok, err, test.want)
		}
	}
}

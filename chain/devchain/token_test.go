package devchain

import (
	"math/big"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
	"pgregory.net/rapid"
)

const simGas = 200_000

// settle carries a transfer out and gives its receipt.
func settle(t testing.TB, cl *chain.Client, signer *chain.Key, tr chain.Transfer) *chain.Receipt {
	t.Helper()
	r, err := cl.Transact(t.Context(), signer, chain.Call{To: &tr.Asset, Data: tr.Calldata(), Gas: simGas})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// artifact is one of the contracts that only tests use.
func artifact(t testing.TB, name string) *Artifact {
	t.Helper()
	b, err := os.ReadFile("contracts/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	a, err := ParseArtifact(b)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestTokenRefuses(t *testing.T) {
	c, cl := open(t, Options{})
	payer, poor, signer, shop := fund(t, c, key(t)), key(t), fund(t, c, key(t)), key(t).Address()
	good := transfer(t, c, payer, shop, 1000)
	_, head := c.Head()

	used := transfer(t, c, payer, shop, 1000)
	settle(t, cl, signer, used)
	cancelled := transfer(t, c, payer, shop, 1000)
	cancel(t, c, cl, signer, payer, cancelled.Nonce)

	// s' = n - s with the other v recovers the same signer: a second spelling of one authorization.
	highS := good
	highS.Signature = append([]byte(nil), good.Signature...)
	n := crypto.S256().Params().N
	s := new(big.Int).Sub(n, new(big.Int).SetBytes(highS.Signature[32:64]))
	s.FillBytes(highS.Signature[32:64])
	highS.Signature[64] ^= 27 ^ 28

	change := func(f func(*chain.Transfer)) chain.Transfer {
		tr := good
		tr.Signature = append([]byte(nil), good.Signature...)
		f(&tr)
		return tr
	}
	resigned := func(f func(*chain.Transfer)) chain.Transfer { return sign(t, c, payer, change(f), transferType) }
	for _, test := range []struct {
		name   string
		tr     chain.Transfer
		reason chain.Reason
		says   string
	}{
		{"used nonce", used, chain.NonceUsed, "used or canceled"},
		{"cancelled nonce", cancelled, chain.NonceUsed, "used or canceled"},
		{"expired", resigned(func(tr *chain.Transfer) { tr.ValidBefore = head.Unix() }), chain.Reverted, "expired"},
		{"not yet valid", resigned(func(tr *chain.Transfer) { tr.ValidAfter = head.Unix() + 60 }), chain.Reverted, "not yet valid"},
		{"more than the payer has", resigned(func(tr *chain.Transfer) { tr.Amount = 2_000_000_000 }), chain.Balance, "exceeds balance"},
		{"empty account", transfer(t, c, poor, shop, 1), chain.Balance, "exceeds balance"},
		{"zero address", resigned(func(tr *chain.Transfer) { tr.PayTo = common.Address{} }), chain.Reverted, "zero address"},
		{"another amount", change(func(tr *chain.Transfer) { tr.Amount++ }), chain.Reverted, "invalid signature"},
		{"another payee", change(func(tr *chain.Transfer) { tr.PayTo = signer.Address() }), chain.Reverted, "invalid signature"},
		{"another nonce", change(func(tr *chain.Transfer) { tr.Nonce[0] ^= 1 }), chain.Reverted, "invalid signature"},
		{"another window", change(func(tr *chain.Transfer) { tr.ValidBefore++ }), chain.Reverted, "invalid signature"},
		{"another payer", change(func(tr *chain.Transfer) { tr.Payer = signer.Address() }), chain.Reverted, "invalid signature"},
		{"high s", highS, chain.Reverted, "'s' value"},
		{"v of 29", change(func(tr *chain.Transfer) { tr.Signature[64] = 29 }), chain.Reverted, "'v' value"},
		{"zero r", change(func(tr *chain.Transfer) { clear(tr.Signature[:32]) }), chain.Reverted, "invalid signature"},
		{"64 bytes", change(func(tr *chain.Transfer) { tr.Signature = tr.Signature[:64] }), chain.Reverted, "signature length"},
		{"66 bytes", change(func(tr *chain.Transfer) { tr.Signature = append(tr.Signature, 0) }), chain.Reverted, "signature length"},
		{"no signature", change(func(tr *chain.Transfer) { tr.Signature = nil }), chain.Reverted, "signature length"},
		{"a receiveWithAuthorization", sign(t, c, payer, good, receiveType), chain.Reverted, "invalid signature"},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := cl.Simulate(t.Context(), signer.Address(), test.tr, simGas)
			if err != nil || r == nil || r.Reason != test.reason || !strings.Contains(r.Message, test.says) {
				t.Errorf("simulating gives %+v, %v, want %v with %q", r, err, test.reason, test.says)
			}
		})
	}
	if r, err := cl.Simulate(t.Context(), signer.Address(), good, simGas); r != nil || err != nil {
		t.Errorf("the untouched authorization is refused: %+v, %v", r, err)
	}
}

// cancel withdraws an authorization of payer's.
func cancel(t *testing.T, c *Chain, cl *chain.Client, signer, payer *chain.Key, nonce common.Hash) *chain.Receipt {
	t.Helper()
	a := payer.Address()
	sig, err := payer.SignHash(digest(c, cancelType, a[:], nonce[:]))
	if err != nil {
		t.Fatal(err)
	}
	data := common.FromHex("0x5a049a70") // cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)
	for _, w := range [][]byte{a[:], nonce[:], sig[64:], sig[:32], sig[32:64]} {
		data = append(data, common.LeftPadBytes(w, 32)...)
	}
	asset := common.HexToAddress(c.Asset().Address)
	r, err := cl.Transact(t.Context(), signer, chain.Call{To: &asset, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTokenAnswersForContractWallets(t *testing.T) {
	c, cl := open(t, Options{})
	owner, other, signer, shop := key(t), key(t), fund(t, c, key(t)), key(t).Address()
	wallet, err := Deploy(t.Context(), cl, signer, artifact(t, "ContractWallet"), common.LeftPadBytes(owner.Address().Bytes(), 32)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Fund(t.Context(), wallet, nil, 5000); err != nil {
		t.Fatal(err)
	}
	authorize := func(by *chain.Key, tail ...byte) chain.Transfer {
		tr := transfer(t, c, owner, shop, 1000)
		tr.Payer = wallet
		tr = sign(t, c, by, tr, transferType)
		tr.Signature = append(tr.Signature, tail...)
		return tr
	}
	for name, test := range map[string]struct {
		tr chain.Transfer
		ok bool
	}{
		"the owner's signature, 65 bytes":                       {authorize(owner), true},
		"the owner's signature, and more bytes than v, r and s": {authorize(owner, 1, 2, 3), true},
		"a stranger's": {authorize(other), false},
	} {
		r, err := cl.Simulate(t.Context(), signer.Address(), test.tr, simGas)
		if err != nil || (r == nil) != test.ok {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		if test.ok {
			if f := settle(t, cl, signer, test.tr).Find(test.tr); f.Use != chain.Paid {
				t.Errorf("%s: found %v", name, f.Use)
			}
		}
	}
}

func TestTokenIsAnERC20(t *testing.T) {
	c, cl := open(t, Options{})
	a, b := fund(t, c, key(t)), fund(t, c, key(t))
	asset := common.HexToAddress(c.Asset().Address)
	word := func(v int64) []byte { return common.LeftPadBytes(big.NewInt(v).Bytes(), 32) }
	addr := func(k *chain.Key) []byte { return common.LeftPadBytes(k.Address().Bytes(), 32) }
	do := func(by *chain.Key, signature string, args ...[]byte) error {
		data := crypto.Keccak256([]byte(signature))[:4]
		for _, w := range args {
			data = append(data, w...)
		}
		_, err := cl.Transact(t.Context(), by, chain.Call{To: &asset, Data: data})
		return err
	}
	for _, step := range []struct {
		name string
		err  error
		ok   bool
	}{
		{"transfer", do(a, "transfer(address,uint256)", addr(b), word(100)), true},
		{"transferFrom without allowance", do(b, "transferFrom(address,address,uint256)", addr(a), addr(b), word(1)), false},
		{"approve", do(a, "approve(address,uint256)", addr(b), word(10)), true},
		{"transferFrom", do(b, "transferFrom(address,address,uint256)", addr(a), addr(b), word(7)), true},
		{"transferFrom beyond what is left", do(b, "transferFrom(address,address,uint256)", addr(a), addr(b), word(4)), false},
		{"mint by a stranger", do(a, "mint(address,uint256)", addr(a), word(1)), false},
		{"transfer of more than there is", do(a, "transfer(address,uint256)", addr(b), word(1<<40)), false},
	} {
		if (step.err == nil) != step.ok {
			t.Errorf("%s: %v", step.name, step.err)
		}
	}
	for k, want := range map[*chain.Key]int64{a: 1_000_000_000 - 107, b: 1_000_000_000 + 107} {
		if got, err := cl.TokenBalance(t.Context(), asset, k.Address()); err != nil || got.Int64() != want {
			t.Errorf("balance %v, %v, want %d", got, err, want)
		}
	}
}

// A payee may take a payment itself; nobody else can then pre-empt it.
func TestReceiveWithAuthorizationIsForThePayee(t *testing.T) {
	c, cl := open(t, Options{})
	payer, shop, other := fund(t, c, key(t)), fund(t, c, key(t)), fund(t, c, key(t))
	tr := sign(t, c, payer, transfer(t, c, payer, shop.Address(), 1000), receiveType)
	data := tr.Calldata()
	copy(data, common.FromHex("0xef55bec6")) // receiveWithAuthorization(…,uint8,bytes32,bytes32)
	if _, err := cl.Transact(t.Context(), other, chain.Call{To: &tr.Asset, Data: data}); err == nil {
		t.Error("a stranger could take the payment")
	}
	r, err := cl.Transact(t.Context(), shop, chain.Call{To: &tr.Asset, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	if f := r.Find(tr); f.Use != chain.Paid {
		t.Errorf("found %v, want paid", f.Use)
	}
}

// Whatever is transferred, nothing is made or lost, and the chain's evidence
// agrees with the balances.
func TestBalancesAndEvidenceAgree(t *testing.T) {
	c, cl := open(t, Options{})
	signer := fund(t, c, key(t))
	keys := []*chain.Key{key(t), key(t), key(t)}
	have := map[common.Address]int64{}
	for _, k := range keys {
		if err := c.Fund(t.Context(), k.Address(), nil, 1000); err != nil {
			t.Fatal(err)
		}
		have[k.Address()] = 1000
	}
	rapid.Check(t, func(r *rapid.T) {
		from, to := keys[rapid.IntRange(0, 2).Draw(r, "from")], keys[rapid.IntRange(0, 2).Draw(r, "to")]
		tr := transfer(t, c, from, to.Address(), rapid.Int64Range(1, 700).Draw(r, "amount"))
		receipt, err := cl.Transact(t.Context(), signer, chain.Call{To: &tr.Asset, Data: tr.Calldata(), Gas: simGas})
		if can := have[tr.Payer] >= tr.Amount; can != (err == nil) {
			r.Fatalf("%d of %d: %v", tr.Amount, have[tr.Payer], err)
		}
		if err == nil {
			have[tr.Payer] -= tr.Amount
			have[tr.PayTo] += tr.Amount
			if f := receipt.Find(tr); f.Use != chain.Paid {
				r.Fatalf("found %v", f.Use)
			}
		}
		for who, want := range have {
			if got, err := cl.TokenBalance(t.Context(), tr.Asset, who); err != nil || got.Int64() != want {
				r.Fatalf("balance %v, %v, want %d", got, err, want)
			}
		}
	})
}

func TestAggregateLetsTheOthersThrough(t *testing.T) {
	c, cl := open(t, Options{})
	payer, signer, shop := fund(t, c, key(t)), fund(t, c, key(t)), key(t).Address()
	batch := []chain.Transfer{transfer(t, c, payer, shop, 1), transfer(t, c, key(t), shop, 2), transfer(t, c, payer, shop, 3)}
	batch = append(batch, batch[0]) // the same authorization again
	fees, err := cl.Fees(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	nonce, err := cl.NonceAt(t.Context(), signer.Address())
	if err != nil {
		t.Fatal(err)
	}
	tx, err := cl.BuildBatch(signer, nonce, fees, 1_000_000, batch)
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := cl.Submit(t.Context(), tx, 5*time.Second)
	if err != nil || r == nil || !r.OK {
		t.Fatalf("%+v, %v", r, err)
	}
	for i, want := range []chain.Use{chain.Paid, chain.Unused, chain.Paid, chain.Paid} {
		if f := r.Find(batch[i]); f.Use != want {
			t.Errorf("transfer %d: %v, want %v", i, f.Use, want)
		}
	}
	if got, err := cl.TokenBalance(t.Context(), batch[0].Asset, shop); err != nil || got.Int64() != 4 {
		t.Errorf("the shop has %v, %v, want 4", got, err)
	}
}

// The functions of Multicall3 that clients read with.
func TestMulticallReads(t *testing.T) {
	c, cl := open(t, Options{})
	who := fund(t, c, key(t)).Address()
	at := common.HexToAddress(MulticallAddress)
	call := func(signature string, args ...[]byte) []byte {
		data := crypto.Keccak256([]byte(signature))[:4]
		for _, a := range args {
			data = append(data, a...)
		}
		return data
	}
	word := func(v int64) []byte { return common.LeftPadBytes(big.NewInt(v).Bytes(), 32) }
	// One call of balanceOf, as (address target, bytes callData)[] from its length on.
	balance := call("balanceOf(address)", common.LeftPadBytes(who[:], 32))
	asset := common.HexToAddress(c.Asset().Address)
	one := append(word(1), word(32)...)
	one = append(one, common.LeftPadBytes(asset[:], 32)...)
	one = append(one, word(64)...)
	one = append(one, word(36)...)
	one = append(one, append(balance, make([]byte, 28)...)...)
	want := hexutil.Encode(word(1_000_000_000))[2:]
	for name, test := range map[string]struct {
		data []byte
		in   string
	}{
		"getEthBalance": {call("getEthBalance(address)", common.LeftPadBytes(who[:], 32)), hexutil.Encode(word(1e18))[2:]},
		"getChainId":    {call("getChainId()"), hexutil.Encode(word(31337))[2:]},
		"aggregate":     {call("aggregate((address,bytes)[])", word(32), one), want},
		"tryAggregate":  {call("tryAggregate(bool,(address,bytes)[])", word(1), word(64), one), want},
	} {
		out, err := cl.View(t.Context(), at, test.data)
		if err != nil || !strings.Contains(hexutil.Encode(out), test.in) {
			t.Errorf("%s gives %x, %v, want %s in it", name, out, err, test.in)
		}
	}
}

package facilitator_test

import (
	"bytes"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// refused asserts that p is invalid for reason, that settling it is not a
// charge, and that neither spent anything.
func (w *world) refused(t *testing.T, p *x402.PaymentPayload, terms x402.Requirements, reason clawr.Code) {
	t.Helper()
	before := w.spent()
	v, err := w.fac.Verify(t.Context(), p, terms)
	if err != nil || v.IsValid || v.InvalidReason != reason {
		t.Errorf("verify: valid %v, %q (%s), %v; want %q", v.IsValid, v.InvalidReason, v.InvalidMessage, err, reason)
	}
	out, err := w.fac.SettleFor(t.Context(), facilitator.Request{Payload: p, Requirements: terms, RequestedBy: "test"})
	if err != nil || out.State != ledger.NotCharged || out.Reason != reason {
		t.Errorf("settle: state %d, %q (%s), %v; want not charged, %q", out.State, out.Reason, out.Message, err, reason)
	}
	if after := w.spent(); after != before {
		t.Errorf("%d transactions were made", after-before)
	}
}

// accepted asserts that p is valid and settles.
func (w *world) accepted(t *testing.T, p *x402.PaymentPayload, terms x402.Requirements) {
	t.Helper()
	if v, err := w.fac.Verify(t.Context(), p, terms); err != nil || !v.IsValid {
		t.Errorf("verify: %+v, %v", v, err)
	}
	out, err := w.fac.SettleFor(t.Context(), facilitator.Request{Payload: p, Requirements: terms, RequestedBy: "test"})
	if err != nil || out.State != ledger.Settled {
		t.Errorf("settle: %+v, %v", out, err)
	}
}

func TestMustPass3BadAuthorizations(t *testing.T) {
	w := newWorld(t)
	now := uint64(w.now().Unix())
	stranger := w.key().Address()
	for _, c := range []struct {
		name   string
		change func(a *x402.Authorization)
		reason clawr.Code
	}{
		{"another payee", func(a *x402.Authorization) { a.To = stranger }, x402.ReasonRecipient},
		{"too little", func(a *x402.Authorization) { a.Value = x402.Uint(999) }, x402.ReasonValue},
		{"too much", func(a *x402.Authorization) { a.Value = x402.Uint(1001) }, x402.ReasonValue},
		{"over", func(a *x402.Authorization) { a.ValidBefore = x402.Uint(now - 1) }, x402.ReasonValidBefore},
		{"over within 6 s", func(a *x402.Authorization) { a.ValidBefore = x402.Uint(now + 4) }, x402.ReasonValidBefore},
		{"not yet valid", func(a *x402.Authorization) { a.ValidAfter = x402.Uint(now + 30) }, x402.ReasonValidAfter},
		{"somebody else's", func(a *x402.Authorization) { a.From = stranger }, x402.ReasonSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := w.authorization()
			c.change(&a)
			w.refused(t, w.signed(a, w.terms()), w.terms(), c.reason)
		})
	}
	t.Run("every field is signed", func(t *testing.T) {
		a := w.authorization()
		for name, change := range map[string]func(*x402.Exact){
			"nonce":       func(e *x402.Exact) { e.Nonce[31]++ },
			"validBefore": func(e *x402.Exact) { e.ValidBefore = x402.Uint(now + 80) },
			"validAfter":  func(e *x402.Exact) { e.ValidAfter = x402.Uint(1) },
			"from":        func(e *x402.Exact) { e.From[3]++ },
			"r":           func(e *x402.Exact) { e.Signature[7]++ },
			"s":           func(e *x402.Exact) { e.Signature[40]++ },
			"v":           func(e *x402.Exact) { e.Signature[64] ^= 7 },
			"shorter":     func(e *x402.Exact) { e.Signature = e.Signature[:64] },
			"longer":      func(e *x402.Exact) { e.Signature = append(e.Signature, 0) },
		} {
			e, err := x402.ParseExact(w.signed(a, w.terms()).Payload)
			w.ok(err)
			change(e)
			t.Run(name, func(t *testing.T) {
				w.refused(t, w.carrying(e.Authorization, e.Signature, w.terms()), w.terms(), x402.ReasonSignature)
			})
		}
	})
	t.Run("high s", func(t *testing.T) {
		e, err := x402.ParseExact(w.payment().Payload)
		w.ok(err)
		s := new(big.Int).Sub(crypto.S256().Params().N, new(big.Int).SetBytes(e.Signature[32:64]))
		s.FillBytes(e.Signature[32:64])
		e.Signature[64] ^= 7 // 27 and 28
		w.refused(t, w.carrying(e.Authorization, e.Signature, w.terms()), w.terms(), x402.ReasonSignature)
	})
	t.Run("v 0 or 1", func(t *testing.T) { // another spelling of the same signature
		e, err := x402.ParseExact(w.payment().Payload)
		w.ok(err)
		e.Signature[64] -= 27
		w.accepted(t, w.carrying(e.Authorization, e.Signature, w.terms()), w.terms())
	})
}

func TestMustPass3WrongDomains(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name   string
		change func(r *x402.Requirements)
		reason clawr.Code
	}{
		{"chain", func(r *x402.Requirements) { r.Network = "eip155:1" }, x402.ReasonSignature},
		{"token", func(r *x402.Requirements) { r.Asset = w.payTo }, x402.ReasonSignature},
		{"name", func(r *x402.Requirements) { r.Extra.Name = "USD Coin" }, x402.ReasonSignature},
		{"version", func(r *x402.Requirements) { r.Extra.Version = "1" }, x402.ReasonSignature},
	} {
		t.Run("signed for another "+c.name, func(t *testing.T) {
			other := w.terms()
			c.change(&other)
			p := w.signed(w.authorization(), other)
			p.Accepted = w.terms()
			w.refused(t, p, w.terms(), c.reason)
		})
	}
	for _, c := range []struct {
		name   string
		change func(r *x402.Requirements)
		reason clawr.Code
	}{
		{"scheme", func(r *x402.Requirements) { r.Scheme = "upto" }, x402.ReasonScheme},
		{"network", func(r *x402.Requirements) { r.Network = "eip155:1" }, x402.ReasonNetwork},
		{"no name", func(r *x402.Requirements) { r.Extra.Name = "" }, x402.ReasonDomain},
		{"no version", func(r *x402.Requirements) { r.Extra.Version = "" }, x402.ReasonDomain},
		{"name", func(r *x402.Requirements) { r.Extra.Name = "USD Coin" }, x402.ReasonTokenName},
		{"version", func(r *x402.Requirements) { r.Extra.Version = "1" }, x402.ReasonTokenVersion},
		{"asset", func(r *x402.Requirements) { r.Asset = w.payTo }, facilitator.ReasonAsset},
		{"payee", func(r *x402.Requirements) { r.PayTo = r.Asset }, x402.ReasonRecipient},
	} {
		t.Run("asked for another "+c.name, func(t *testing.T) {
			terms := w.terms()
			c.change(&terms)
			p := w.signed(w.authorization(), terms)
			w.refused(t, p, terms, c.reason)
		})
	}
	t.Run("accepted another network", func(t *testing.T) {
		p := w.payment()
		p.Accepted.Network = "eip155:1"
		w.refused(t, p, w.terms(), x402.ReasonNetwork)
	})
	t.Run("accepted another scheme", func(t *testing.T) {
		p := w.payment()
		p.Accepted.Scheme = "upto"
		w.refused(t, p, w.terms(), x402.ReasonScheme)
	})
}

func TestMustPass11Amounts(t *testing.T) {
	w := newWorld(t)
	for _, amount := range []string{"", "0", "-1000", "0.001", "1e3", "01000", " 1000", "1000 ", "+1000", "0x3e8", "１０００", "1000000000000000",
		"9223372036854775808", "115792089237316195423570985008687907853269984665640564039457584007913129639936", strings.Repeat("9", 300)} {
		terms := w.terms()
		terms.Amount = amount
		w.refused(t, w.signed(w.authorization(), terms), terms, x402.ReasonValue)
	}
	// A zero authorization for a zero price moves nothing, and is no payment.
	a := w.authorization()
	a.Value = x402.Uint(0)
	terms := w.terms()
	terms.Amount = "0"
	w.refused(t, w.signed(a, terms), terms, x402.ReasonValue)
}

func TestWindowsWithoutEnd(t *testing.T) {
	w := newWorld(t)
	var forever x402.Uint256
	for i := range forever {
		forever[i] = 0xff
	}
	for _, c := range []struct {
		after, before x402.Uint256
		reason        clawr.Code
	}{
		{x402.Uint(0), forever, x402.ReasonValidBefore},
		{x402.Uint(0), x402.Uint(1<<63 - 1), x402.ReasonValidBefore},
		{forever, x402.Uint(uint64(w.now().Unix() + 90)), x402.ReasonValidBefore},
		{x402.Uint(1<<40 - 1), x402.Uint(1 << 40), x402.ReasonValidAfter},
	} {
		a := w.authorization()
		a.ValidAfter, a.ValidBefore = c.after, c.before
		p := w.signed(a, w.terms())
		if v, err := w.fac.Verify(t.Context(), p, w.terms()); err != nil || v.IsValid {
			t.Errorf("%s–%s: %+v, %v", c.after, c.before, v, err)
		}
		if out, err := w.fac.SettleFor(t.Context(), request(p)); err != nil || out.State != ledger.NotCharged {
			t.Errorf("%s–%s: %+v, %v", c.after, c.before, out, err)
		}
	}
}

func TestPayloadsOfOtherKinds(t *testing.T) {
	w := newWorld(t)
	for _, raw := range []string{`{}`, `{"signature":"0x00"}`, `{"authorization":{}}`, `{"permit2Authorization":{},"signature":"0x00"}`,
		`{"signature":"0x00","authorization":[]}`, `{"signature":1,"authorization":{}}`} {
		w.refused(t, &x402.PaymentPayload{Version: 2, Accepted: w.terms(), Payload: []byte(raw)}, w.terms(), x402.ReasonPayloadType)
	}
}

// A node that does not answer is no verdict.
func TestAChainFailureIsNoVerdict(t *testing.T) {
	w := newWorld(t)
	p := w.payment()
	row := w.reserved(p)
	w.chain.Close()
	w.ahead.Add(5) // the head is not fresh any more
	v, err := w.fac.Verify(t.Context(), p, w.terms())
	if e, ok := errors.AsType[*clawr.Error](err); !ok || e.HTTPStatus() != 503 {
		t.Errorf("verify: %+v, %v, want a 503", v, err)
	}
	out, err := w.fac.Settle(t.Context(), row)
	if e, ok := errors.AsType[*clawr.Error](err); !ok || e.HTTPStatus() != 503 {
		t.Errorf("settle: %+v, %v, want a 503", out, err)
	}
	if got := w.row(row.Key).Money; got != ledger.Held {
		t.Errorf("the payment is %s", got)
	}
}

func TestMustPass13AllowLists(t *testing.T) {
	w := newWorld(t)
	other := w.terms()
	other.PayTo = x402.Lower(w.key().Address())
	a := w.authorization()
	a.To = common.HexToAddress(other.PayTo)
	w.refused(t, w.signed(a, other), other, facilitator.ReasonPayTo)

	token := w.hostile("HostileUSD", number(0))
	foreign := w.terms()
	foreign.Asset = token
	w.refused(t, w.signed(w.authorization(), foreign), foreign, facilitator.ReasonAsset)

	for _, c := range []struct {
		listen        string
		payTo, tokens bool
		ok            bool
	}{
		{"127.0.0.1:4022", false, false, true}, {"[::1]:4022", false, false, true}, {"localhost:0", false, false, true},
		{"0.0.0.0:4022", false, false, false}, {":4022", false, false, false}, {"[::]:4022", false, false, false}, {"192.168.1.5:4022", false, false, false},
		{"example.com:80", false, false, false}, {"0.0.0.0:4022", true, false, true}, {":4022", false, true, true}, {"nonsense", true, true, false},
	} {
		if err := facilitator.CheckExposure(c.listen, c.payTo, c.tokens); (err == nil) != c.ok {
			t.Errorf("listen %s, payTo %v, tokens %v: %v", c.listen, c.payTo, c.tokens, err)
		}
	}
}

// hostileTerms has the facilitator allow a hostile token, as a careless
// operator would.
func (w *world) hostileTerms(mode int64) x402.Requirements {
	w.Helper()
	token := w.hostile("HostileUSD", number(mode))
	k := w.stranger()
	w.call(k, token, "mint(address,uint256)", address(w.payer.Address()), number(1_000_000))
	asset := w.asset
	asset.Address = token
	w.fac.Assets = append(w.fac.Assets, asset)
	terms := w.terms()
	terms.Asset = token
	return terms
}

// What a token does in a transaction is not what it did when it was asked.
func TestMustPass13HostileTokens(t *testing.T) {
	t.Parallel()
	const ( // of Hostile.sol
		honest = iota
		burn
		reverts
		nothing
		less
		elsewhere
		apart
		alwaysBurn
		alwaysBomb
	)
	for _, c := range []struct {
		name   string
		mode   int64
		reason clawr.Code
	}{
		{"burns gas", burn, x402.ReasonTransactionFailed},
		{"reverts", reverts, x402.ReasonTransactionFailed},
		{"does nothing", nothing, x402.ReasonTransferEvent},
		{"transfers less", less, ""},
		{"transfers elsewhere", elsewhere, ""},
		{"uses another nonce", apart, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			terms := w.hostileTerms(c.mode)
			p := w.signed(w.authorization(), terms)
			ether := w.ether()
			out, err := w.fac.SettleFor(t.Context(), request(p))
			if err != nil || out.State == ledger.Settled {
				t.Fatalf("%+v, %v", out, err)
			}
			if c.reason != "" && out.Reason != c.reason {
				t.Errorf("reason %s, want %s", out.Reason, c.reason)
			}
			if w.spent() != 1 {
				t.Errorf("%d transactions", w.spent())
			}
			most := new(big.Int).Mul(big.NewInt(facilitator.DefaultGas), big.NewInt(5e9)) // far above the test chain's price
			if cost := new(big.Int).Sub(ether, w.ether()); cost.Cmp(most) > 0 {
				t.Errorf("it cost %s wei, at most %s is the cap's worth", cost, most)
			}
		})
	}
	t.Run("honest", func(t *testing.T) {
		w := newWorld(t)
		terms := w.hostileTerms(honest)
		w.accepted(t, w.signed(w.authorization(), terms), terms)
	})
	for name, mode := range map[string]int64{"burns gas always": alwaysBurn, "answers with a bomb": alwaysBomb} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			terms := w.hostileTerms(mode)
			w.refused(t, w.signed(w.authorization(), terms), terms, x402.ReasonSimulation)
		})
	}
	t.Run("no code", func(t *testing.T) {
		w := newWorld(t)
		asset := w.asset
		asset.Address = x402.Lower(w.key().Address())
		w.fac.Assets = append(w.fac.Assets, asset)
		terms := w.terms()
		terms.Asset = asset.Address
		w.refused(t, w.signed(w.authorization(), terms), terms, x402.ReasonNoContract)
	})
}

func (w *world) ether() *big.Int {
	w.Helper()
	n, err := w.node.Balance(w.Context(), w.node.Key.Address())
	w.ok(err)
	return n
}

// wallet deploys a hostile wallet and gives it money of a token that believes
// any signature: what is refused then is refused by the facilitator.
func (w *world) wallet(mode int64) (x402.Authorization, x402.Requirements) {
	w.Helper()
	terms := w.hostileTerms(0)
	at := w.hostile("HostileWallet", number(mode))
	w.call(w.stranger(), terms.Asset, "mint(address,uint256)", addressOf(at), number(1000))
	a := w.authorization()
	a.From = common.HexToAddress(at)
	return a, terms
}

func TestMustPass13ContractPayersAreAskedStrictly(t *testing.T) {
	t.Parallel()
	for mode, name := range []string{"magic", "no", "true", "at the wrong end", "short", "dirty", "reverts", "burns gas", "empty", "bomb"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a, terms := w.wallet(int64(mode))
			p := w.carrying(a, bytes.Repeat([]byte{7}, 80), terms)
			if mode == 0 {
				w.accepted(t, p, terms)
				return
			}
			w.refused(t, p, terms, x402.ReasonSignature)
		})
	}
	t.Run("no fallback to a key", func(t *testing.T) {
		// The wallet says no, whoever signed.
		w := newWorld(t)
		a, terms := w.wallet(1)
		w.refused(t, w.signed(a, terms), terms, x402.ReasonSignature)
	})
	t.Run("a refused signature leaves no settlement behind", func(t *testing.T) {
		w := newWorld(t)
		a, terms := w.wallet(1)
		w.refused(t, w.carrying(a, bytes.Repeat([]byte{7}, 65), terms), terms, x402.ReasonSignature)
		s, err := w.db.Settlement(t.Context(), ledger.Key{Network: terms.Network, Asset: terms.Asset, Payer: x402.Lower(a.From), Nonce: a.Nonce.Hex()})
		if s != nil || err != nil {
			t.Errorf("settlement %+v, %v", s, err)
		}
	})
}

func TestMustPass13UndeployedWalletsAreRefusedWithoutCallingTheirFactory(t *testing.T) {
	w := newWorld(t)
	factory := w.hostile("Factory")
	// abi.encode(factory, calldata, signature) ‖ magic
	var sig []byte
	for _, word := range []common.Hash{addressOf(factory), number(0x60), number(0xa0), number(4), {0xde, 0xad, 0xbe, 0xef}, number(65), {}, {}, {}} {
		sig = append(sig, word[:]...)
	}
	sig = append(sig, bytes.Repeat([]byte{0x64, 0x92}, 16)...)
	a := w.authorization()
	a.From = w.key().Address()
	w.refused(t, w.carrying(a, sig, w.terms()), w.terms(), x402.ReasonFactory)
	got, err := w.node.Code(t.Context(), a.From)
	if err != nil || len(got) != 0 {
		t.Errorf("the payer has code: %x, %v", got, err)
	}
	// A wallet that is deployed needs no wrapper either.
	b, terms := w.wallet(0)
	w.refused(t, w.carrying(b, sig, terms), terms, x402.ReasonFactory)
}

// An account that delegates to code (EIP-7702) is asked like a contract: its
// key alone says nothing any more.
func TestMustPass13DelegatedAccountsHaveNoFallbackToTheirKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	terms := w.hostileTerms(0) // a token that believes any signature
	p := w.signed(w.authorization(), terms)
	if v, err := w.fac.Verify(t.Context(), p, terms); err != nil || !v.IsValid {
		t.Fatalf("before it delegates: %+v, %v", v, err)
	}
	w.fund(w.payer, 0)
	w.delegate(w.hostile("HostileWallet", number(1)))
	w.refused(t, p, terms, x402.ReasonSignature)
	w.delegate(w.hostile("HostileWallet", number(0)))
	w.accepted(t, p, terms)
}

// delegate has the payer's account run the code at an address.
func (w *world) delegate(to string) {
	w.Helper()
	key, err := crypto.HexToECDSA(w.payer.Reveal()[2:])
	w.ok(err)
	nonce, err := w.node.NonceAt(w.Context(), w.payer.Address())
	w.ok(err)
	id := uint256.NewInt(uint64(w.node.ChainID()))
	auth, err := types.SignSetCode(key, types.SetCodeAuthorization{ChainID: *id, Address: common.HexToAddress(to), Nonce: nonce + 1})
	w.ok(err)
	tx, err := types.SignNewTx(key, types.LatestSignerForChainID(id.ToBig()), &types.SetCodeTx{ChainID: id, Nonce: nonce, GasTipCap: uint256.NewInt(1e9),
		GasFeeCap: uint256.NewInt(20e9), Gas: 200_000, To: common.HexToAddress(w.payTo), AuthList: []types.SetCodeAuthorization{auth}})
	w.ok(err)
	raw, err := tx.MarshalBinary()
	w.ok(err)
	_, err = w.node.Broadcast(w.Context(), raw)
	w.ok(err)
	r, err := w.node.Wait(w.Context(), tx.Hash())
	if err != nil || !r.OK {
		w.Fatalf("%+v, %v", r, err)
	}
}

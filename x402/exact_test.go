package x402

import (
	"crypto/ecdsa"
	"encoding/hex"
	"math/big"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"pgregory.net/rapid"

	"github.com/402claw/clawr"
)

// testKey signs in tests only.
func testKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := crypto.ToECDSA(secret(7))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var testTime = time.Unix(1_800_000_000, 0)

func testOffer() Requirements {
	return Requirements{Scheme: SchemeExact, Network: "eip155:84532", Amount: "1000", Asset: "0x036cbd53842c5426634e7929541ec2318f3dcf7e",
		PayTo: "0x209693bc6afc0c5328ba36faf03c514ef312287c", MaxTimeoutSeconds: 90, Extra: Extra{Name: "USDC", Version: "2"}}
}

func testChallenge(offers ...Requirements) *PaymentRequired {
	return &PaymentRequired{Version: 2, Resource: ResourceInfo{URL: "https://api.example.com/t/prices/v1/records?limit=1", MimeType: "application/json"}, Accepts: offers}
}

func pay(t testing.TB, r *PaymentRequired) *PaymentPayload {
	t.Helper()
	p, err := Pay(testKey(t), r, &r.Accepts[0], common.Hash{31: 9}, testTime)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPaidAndVerified(t *testing.T) {
	offer := testOffer()
	p, err := ParsePayment(pay(t, testChallenge(offer)).Header())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Match([]Requirements{offer}, p); err != nil {
		t.Fatal(err)
	}
	e, err := Verify(p, &offer, Check{Now: testTime, Slack: 42 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if want := Lower(crypto.PubkeyToAddress(testKey(t).PublicKey)); e.Payer() != want {
		t.Errorf("payer is %s, want %s", e.Payer(), want)
	}
}

// TestBadAuthorizations: each wrong thing has its reason, and nothing wrong
// passes.
func TestBadAuthorizations(t *testing.T) {
	offer := testOffer()
	word := func(n int64) Uint256 { return Uint(uint64(n)) }
	signed := func(change func(*Exact)) []byte {
		e, err := ParseExact(pay(t, testChallenge(offer)).Payload)
		if err != nil {
			t.Fatal(err)
		}
		change(e)
		token, _ := parseAddress(offer.Asset)
		if e.Signature, err = e.Sign(testKey(t), NewDomain("USDC", "2", 84532, token)); err != nil {
			t.Fatal(err)
		}
		return e.JSON()
	}
	unsigned := func(change func(*Exact)) []byte {
		e, err := ParseExact(pay(t, testChallenge(offer)).Payload)
		if err != nil {
			t.Fatal(err)
		}
		change(e)
		return e.JSON()
	}
	n, now := testTime.Unix(), testTime
	for _, c := range []struct {
		name    string
		payload []byte
		offer   func(*Requirements)
		check   Check
		want    clawr.Code
	}{
		{"as agreed", signed(func(*Exact) {}), nil, Check{}, ""},
		{"v 0 or 1", unsigned(func(e *Exact) { e.Signature[64] -= 27 }), nil, Check{}, ""},
		{"v 29", unsigned(func(e *Exact) { e.Signature[64] = 29 }), nil, Check{}, ReasonSignature},
		{"v 2", unsigned(func(e *Exact) { e.Signature[64] = 2 }), nil, Check{}, ReasonSignature},
		{"the other v", unsigned(func(e *Exact) { e.Signature[64] = 55 - e.Signature[64] }), nil, Check{}, ReasonSignature},
		{"high s", unsigned(func(e *Exact) { e.Signature = highS(e.Signature) }), nil, Check{}, ReasonSignature},
		{"64 bytes", unsigned(func(e *Exact) { e.Signature = e.Signature[:64] }), nil, Check{}, ReasonSignature},
		{"66 bytes", unsigned(func(e *Exact) { e.Signature = append(e.Signature, 0) }), nil, Check{}, ReasonSignature},
		{"zero signature", unsigned(func(e *Exact) { clear(e.Signature[:64]) }), nil, Check{}, ReasonSignature},
		{"EIP-6492", unsigned(func(e *Exact) {
			e.Signature = append(e.Signature, common.FromHex("6492649264926492649264926492649264926492649264926492649264926492")...)
		}), nil, Check{}, ReasonFactory},
		{"contract's signature is not judged", unsigned(func(e *Exact) { e.Signature = []byte{1, 2, 3} }), nil, Check{Contract: true}, ""},
		{"contract's terms are", signed(func(e *Exact) { e.Value = word(999) }), nil, Check{Contract: true}, ReasonValue},
		{"somebody else's", unsigned(func(e *Exact) { e.From[0] ^= 1 }), nil, Check{}, ReasonSignature},
		{"nonce changed", unsigned(func(e *Exact) { e.Nonce[0] ^= 1 }), nil, Check{}, ReasonSignature},
		{"to changed", unsigned(func(e *Exact) { e.To[0] ^= 1 }), nil, Check{}, ReasonSignature},
		{"value changed", unsigned(func(e *Exact) { e.Value = word(1001) }), nil, Check{}, ReasonSignature},
		{"window changed", unsigned(func(e *Exact) { e.ValidBefore = word(n + 1e6) }), nil, Check{}, ReasonSignature},
		{"another recipient", signed(func(e *Exact) { e.To[0] ^= 1 }), nil, Check{}, ReasonRecipient},
		{"one unit less", signed(func(e *Exact) { e.Value = word(999) }), nil, Check{}, ReasonValue},
		{"one unit more", signed(func(e *Exact) { e.Value = word(1001) }), nil, Check{}, ReasonValue},
		{"2^64 more", signed(func(e *Exact) { e.Value[23] = 1 }), nil, Check{}, ReasonValue},
		{"ends in 6 s", signed(func(e *Exact) { e.ValidBefore = word(n + 6) }), nil, Check{}, ""},
		{"ends in 5 s", signed(func(e *Exact) { e.ValidBefore = word(n + 5) }), nil, Check{}, ReasonValidBefore},
		{"ends in 41 s of 42", signed(func(e *Exact) { e.ValidBefore = word(n + 41) }), nil, Check{Slack: 42 * time.Second}, ReasonValidBefore},
		{"ends in 42 s of 41.5", signed(func(e *Exact) { e.ValidBefore = word(n + 42) }), nil, Check{Slack: 41500 * time.Millisecond}, ""},
		{"the chain's clock is ahead", signed(func(e *Exact) { e.ValidBefore = word(n + 60) }), nil, Check{Now: now.Add(55 * time.Second)}, ReasonValidBefore},
		{"never ends", signed(func(e *Exact) { e.ValidBefore[0] = 255 }), nil, Check{}, ""},
		{"begins now", signed(func(e *Exact) { e.ValidAfter = word(n) }), nil, Check{}, ""},
		{"begins in 1 s", signed(func(e *Exact) { e.ValidAfter = word(n + 1) }), nil, Check{}, ReasonValidAfter},
		{"begins never", signed(func(e *Exact) { e.ValidAfter[0] = 1 }), nil, Check{}, ReasonValidAfter},
		{"another chain", signed(func(*Exact) {}), func(r *Requirements) { r.Network = "eip155:8453" }, Check{}, ReasonNetwork},
		{"not a chain", signed(func(*Exact) {}), func(r *Requirements) { r.Network = "solana:1" }, Check{}, ReasonNetwork},
		{"another scheme", signed(func(*Exact) {}), func(r *Requirements) { r.Scheme = "upto" }, Check{}, ReasonScheme},
		{"no name", signed(func(*Exact) {}), func(r *Requirements) { r.Extra.Name = "" }, Check{}, ReasonDomain},
		{"no version", signed(func(*Exact) {}), func(r *Requirements) { r.Extra.Version = "" }, Check{}, ReasonDomain},
		{"another name", signed(func(*Exact) {}), func(r *Requirements) { r.Extra.Name = "USD Coin" }, Check{}, ReasonSignature},
		{"another version", signed(func(*Exact) {}), func(r *Requirements) { r.Extra.Version = "1" }, Check{}, ReasonSignature},
		{"another token", signed(func(*Exact) {}), func(r *Requirements) { r.Asset = offer.PayTo }, Check{}, ReasonSignature},
		{"not a token", signed(func(*Exact) {}), func(r *Requirements) { r.Asset = "USDC" }, Check{}, ReasonNoContract},
		{"not the token's name", signed(func(*Exact) {}), nil, Check{Token: &clawr.Asset{Name: "USD Coin", Version: "2"}}, ReasonTokenName},
		{"not the token's version", signed(func(*Exact) {}), nil, Check{Token: &clawr.Asset{Name: "USDC", Version: "1"}}, ReasonTokenVersion},
		{"the price is 0", signed(func(e *Exact) { e.Value = word(0) }), func(r *Requirements) { r.Amount = "0" }, Check{}, ReasonValue},
		{"the price is 2^63", signed(func(e *Exact) { e.Value = Uint(1 << 63) }), func(r *Requirements) { r.Amount = "9223372036854775808" }, Check{}, ReasonValue},
		{"the price is padded", signed(func(*Exact) {}), func(r *Requirements) { r.Amount = "01000" }, Check{}, ReasonValue},
		{"not a recipient", signed(func(*Exact) {}), func(r *Requirements) { r.PayTo = "me" }, Check{}, ReasonRecipient},
	} {
		p := pay(t, testChallenge(offer))
		p.Payload = c.payload
		r := offer
		if c.offer != nil {
			c.offer(&r)
		}
		if c.check.Now.IsZero() {
			c.check.Now = now
		}
		e, err := Verify(p, &r, c.check)
		if err == nil && c.want != "" || err != nil && clawr.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if e == nil {
			t.Errorf("%s: the payer is not named", c.name)
		}
	}
}

// highS is the other form of the same signature.
func highS(sig []byte) []byte {
	s := new(big.Int).Sub(crypto.S256().Params().N, new(big.Int).SetBytes(sig[32:64]))
	out := append([]byte(nil), sig...)
	s.FillBytes(out[32:64])
	out[64] = 55 - out[64]
	return out
}

func TestHighSRecoversWithoutTheRule(t *testing.T) {
	digest := common.Hash{1}
	sig, err := crypto.Sign(digest[:], testKey(t))
	if err != nil {
		t.Fatal(err)
	}
	sig[64] += 27
	high := highS(sig)
	high[64] -= 27
	if key, err := crypto.SigToPub(digest[:], high); err != nil || !testKey(t).PublicKey.Equal(key) {
		t.Fatalf("the test's high-s form is no signature: %v", err)
	}
	high[64] += 27
	if who, ok := Recover(digest, high); ok {
		t.Errorf("a high-s signature was taken as that of %s", who)
	}
}

func TestUnreadablePayloads(t *testing.T) {
	good := string(pay(t, testChallenge(testOffer())).Payload)
	e, err := ParseExact([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	sig := "0x" + hex.EncodeToString(e.Signature)
	for _, c := range []struct {
		name, old, new string
		want           clawr.Code
	}{
		{"no authorization", `"authorization"`, `"permit2Authorization"`, ReasonPayloadType},
		{"no signature", `"signature"`, `"sig"`, ReasonSignature},
		{"signature is a number", `"` + sig + `"`, `1`, ReasonPayloadType},
		{"signature is not hex", sig, "0xzz", ReasonSignature},
		{"signature has odd digits", sig, sig[:len(sig)-1], ReasonSignature},
		{"signature without 0x", sig, sig[2:], ReasonSignature},
		{"empty signature", sig, "0x", ReasonSignature},
		{"value is a number", `"1000"`, `1000`, ReasonPayloadType},
		{"value is missing", `"value"`, `"amount"`, ReasonPayloadType},
		{"value twice", `"value":"1000"`, `"value":"1000","value":"1"`, ReasonPayloadType},
		{"decimal point", `"1000"`, `"0.01"`, ReasonValue},
		{"negative", `"1000"`, `"-1000"`, ReasonValue},
		{"plus", `"1000"`, `"+1000"`, ReasonValue},
		{"exponent", `"1000"`, `"1e3"`, ReasonValue},
		{"leading zero", `"1000"`, `"01000"`, ReasonValue},
		{"hexadecimal", `"1000"`, `"0x3e8"`, ReasonValue},
		{"white space", `"1000"`, `" 1000"`, ReasonValue},
		{"2^256", `"1000"`, `"115792089237316195423570985008687907853269984665640564039457584007913129639936"`, ReasonValue},
		{"validAfter", `"validAfter":"0"`, `"validAfter":"soon"`, ReasonValidAfter},
		{"validBefore", `"validBefore":"1`, `"validBefore":"x`, ReasonValidBefore},
		{"from is short", `"from":"0x`, `"from":"0`, ReasonSignature},
		{"to is short", `"to":"0x`, `"to":"0`, ReasonRecipient},
		{"nonce is short", `"nonce":"0x00`, `"nonce":"0x`, ReasonSignature},
	} {
		s := replace1(good, c.old, c.new)
		if s == good {
			t.Fatalf("%s: %q is not in %s", c.name, c.old, good)
		}
		if err := checkJSON([]byte(s)); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		if _, err := ParseExact([]byte(s)); clawr.CodeOf(err) != c.want {
			t.Errorf("%s: %v, want %s", c.name, err, c.want)
		}
	}
}

func drawUint(t *rapid.T, label string) (u Uint256) {
	copy(u[:], rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, label))
	return u
}

func TestUintLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := drawUint(t, "a"), drawUint(t, "b")
		x, y := new(big.Int).SetBytes(a[:]), new(big.Int).SetBytes(b[:])
		if a.String() != x.String() {
			t.Fatalf("%x is %s, math/big says %s", a, a, x)
		}
		if back, ok := ParseUint(a.String()); !ok || back != a {
			t.Fatalf("%s came back as %s", a, back)
		}
		if a.Cmp(b) != x.Cmp(y) {
			t.Fatalf("%s compared with %s", a, b)
		}
		small := Uint(rapid.Uint64().Draw(t, "small"))
		n, ok := small.Int64()
		want := new(big.Int).SetBytes(small[:])
		if ok != want.IsInt64() || ok && n != want.Int64() {
			t.Fatalf("%s is %d, %v as an int64", small, n, ok)
		}
		s := rapid.StringMatching(`[0-9]{0,80}`).Draw(t, "s")
		u, ok := ParseUint(s)
		z, zok := new(big.Int).SetString(s, 10)
		if want := zok && z.BitLen() <= 256 && z.String() == s; ok != want || ok && u.String() != s {
			t.Fatalf("ParseUint(%q) = %s, %v", s, u, ok)
		}
	})
}

// TestSignatureLaws: who signs is recovered, and no altered authorization or
// domain has the same signer.
func TestSignatureLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "key")
		key, err := crypto.ToECDSA(d)
		if err != nil {
			t.Skip("not a key")
		}
		a := Authorization{From: crypto.PubkeyToAddress(key.PublicKey), Value: drawUint(t, "value"), ValidAfter: drawUint(t, "after"),
			ValidBefore: drawUint(t, "before"), Nonce: common.Hash(drawUint(t, "nonce"))}
		copy(a.To[:], rapid.SliceOfN(rapid.Byte(), 20, 20).Draw(t, "to"))
		name, version, chain := rapid.String().Draw(t, "name"), rapid.String().Draw(t, "version"), rapid.Uint64().Draw(t, "chain")
		dom := NewDomain(name, version, chain, a.To)
		sig, err := a.Sign(key, dom)
		if err != nil {
			t.Fatal(err)
		}
		if who, ok := Recover(a.Digest(dom), sig); !ok || who != a.From {
			t.Fatalf("signed by %s, recovered %s", a.From, who)
		}
		b, other := a, dom
		bit := byte(1) << rapid.IntRange(0, 7).Draw(t, "bit")
		at := rapid.IntRange(0, 19).Draw(t, "at")
		switch rapid.IntRange(0, 9).Draw(t, "field") {
		case 0:
			b.To[at] ^= bit
		case 1:
			b.Value[at] ^= bit
		case 2:
			b.ValidAfter[at] ^= bit
		case 3:
			b.ValidBefore[at] ^= bit
		case 4:
			b.Nonce[at] ^= bit
		case 5:
			other = NewDomain(name+"x", version, chain, a.To)
		case 6:
			other = NewDomain(name, version+"x", chain, a.To)
		case 7:
			other = NewDomain(name, version, chain^uint64(bit), a.To)
		case 8:
			other[at] ^= bit
		case 9:
			b.From[at] ^= bit
		}
		if who, ok := Recover(b.Digest(other), sig); ok && who == b.From {
			t.Fatalf("the signature of %+v is good for %+v", a, b)
		}
		e := Exact{Authorization: a, Signature: sig}
		if back, err := ParseExact(e.JSON()); err != nil || back.Authorization != a || string(back.Signature) != string(sig) {
			t.Fatalf("%s came back as %+v, %v", e.JSON(), back, err)
		}
	})
}

func TestSignWantsThePayersKey(t *testing.T) {
	a := Authorization{From: common.Address{1}}
	if _, err := a.Sign(testKey(t), Domain{}); err == nil {
		t.Error("a key signed for another address")
	}
}

func FuzzExact(f *testing.F) {
	f.Add(pay(f, testChallenge(testOffer())).Payload)
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"signature":"0x00","authorization":{"from":"0x","to":"","value":"0","validAfter":"","validBefore":"","nonce":""}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if checkJSON(data) != nil || kind(data) != '{' {
			return
		}
		e, err := ParseExact(data)
		if err != nil {
			if clawr.CodeOf(err) == clawr.CodeInternal {
				t.Fatalf("%q: %v has no reason", data, err)
			}
			return
		}
		back, err := ParseExact(e.JSON())
		if err != nil || back.Authorization != e.Authorization || string(back.Signature) != string(e.Signature) {
			t.Fatalf("%+v came back as %+v, %v", e, back, err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	offer := testOffer()
	header := pay(b, testChallenge(offer)).Header()
	c := Check{Now: testTime}
	b.Run("header", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := ParsePayment(header); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("all", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			p, err := ParsePayment(header)
			if err != nil {
				b.Fatal(err)
			}
			r, err := Match([]Requirements{offer}, p)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := Verify(p, r, c); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Remember must not make a signature good for anything but what it signs.
func TestARememberedSignerIsOfOneAuthorization(t *testing.T) {
	key, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	terms := Requirements{Scheme: SchemeExact, Network: "eip155:84532", Amount: "1000", Asset: "0x036cbd53842c5426634e7929541ec2318f3dcf7e",
		PayTo: "0x00000000000000000000000000000000000000a1", MaxTimeoutSeconds: 60, Extra: Extra{Name: "USDC", Version: "2"}}
	now := time.Now()
	p, err := Pay(key, &PaymentRequired{Version: 2, Resource: ResourceInfo{URL: "https://api.example.com/"}, Accepts: []Requirements{terms}}, &terms, common.Hash{1}, now)
	if err != nil {
		t.Fatal(err)
	}
	p.Remember()
	var all Signers
	for range 2 {
		if _, err := Verify(p, &terms, Check{Now: now}); err != nil {
			t.Fatal(err)
		}
	}
	if who, ok := all.find(p.signer.last.Load().digest, &p.signer.last.Load().sig); ok {
		t.Fatalf("%s is remembered where nobody was told", who)
	}
	p = p.RememberedIn(&all)
	read, err := ParsePayload(p.JSON())
	if err != nil {
		t.Fatal(err)
	}
	read = read.RememberedIn(&all)
	if _, err := Verify(read, &terms, Check{Now: now}); err != nil {
		t.Fatal(err)
	}
	if read.signer.last.Load() != nil {
		t.Error("a payment that was verified before was recovered again")
	}
	for name, change := range map[string]func(p *PaymentPayload, r *Requirements){
		"another nonce": func(p *PaymentPayload, _ *Requirements) {
			e, _ := ParseExact(p.Payload)
			e.Nonce[0]++
			p.Payload = e.JSON()
		},
		"another signature": func(p *PaymentPayload, _ *Requirements) {
			e, _ := ParseExact(p.Payload)
			e.Signature[3]++
			p.Payload = e.JSON()
		},
		"another token": func(_ *PaymentPayload, r *Requirements) { r.Extra.Name = "USD Coin" },
	} {
		copied, asked := *p.RememberedIn(&all), terms // the copy remembers too
		change(&copied, &asked)
		if _, err := Verify(&copied, &asked, Check{Now: now}); clawr.CodeOf(err) != ReasonSignature {
			t.Errorf("%s: %v, want %s", name, err, ReasonSignature)
		}
	}
}

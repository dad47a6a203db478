package x402

import (
	"encoding/base64"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
)

// replace1 replaces the first old in s.
func replace1(s, old, new string) string { return strings.Replace(s, old, new, 1) }

// Generators of messages as they can be on the wire. Text is what JSON can
// carry; an empty optional is an absent one.
func drawText(t *rapid.T, label string) string {
	return rapid.StringMatching(`[ -~é世\n\t"\\\x00]{1,12}`).Draw(t, label)
}

func drawMaybe(t *rapid.T, label string) string {
	return rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[ -~é世]{1,8}`)).Draw(t, label)
}

func drawObject(t *rapid.T, label string) Object {
	names := rapid.SliceOfNDistinct(rapid.StringMatching(`x[a-z"é]{0,6}`), 0, 4, rapid.ID[string]).Draw(t, label)
	var o Object
	for _, n := range names {
		v := rapid.SampledFrom([]string{`1`, `"s"`, `true`, `{"a":[1,{"b":2}]}`, `[]`, `-0.5e3`, `"\u00e9\n"`}).Draw(t, label+" value")
		o = append(o, Member{n, []byte(v)})
	}
	return o
}

func drawLabel(t *rapid.T, label string) string {
	return rapid.StringMatching(`[ -~]{1,32}`).Draw(t, label)
}

func drawResource(t *rapid.T) ResourceInfo {
	r := ResourceInfo{URL: drawText(t, "url"), Description: drawMaybe(t, "description"), MimeType: drawMaybe(t, "mimeType"), IconURL: drawMaybe(t, "iconUrl")}
	if rapid.Bool().Draw(t, "named") {
		r.ServiceName = drawLabel(t, "serviceName")
	}
	for range rapid.IntRange(0, 5).Draw(t, "tags") {
		r.Tags = append(r.Tags, drawLabel(t, "tag"))
	}
	return r
}

func drawRequirements(t *rapid.T) Requirements {
	return Requirements{Scheme: drawText(t, "scheme"), Network: "eip155:" + drawText(t, "network"), Amount: drawText(t, "amount"), Asset: drawText(t, "asset"),
		PayTo: drawText(t, "payTo"), MaxTimeoutSeconds: rapid.Int64Range(1, 1<<53).Draw(t, "seconds"), Rest: drawObject(t, "rest"),
		Extra: Extra{Name: drawMaybe(t, "name"), Version: drawMaybe(t, "version"), Quote: drawMaybe(t, "quote"), Rest: drawObject(t, "extra")}}
}

func drawPayload(t *rapid.T) PaymentPayload {
	p := PaymentPayload{Version: 2, Accepted: drawRequirements(t), Payload: []byte(`{"signature":"0x00","x":{}}`), Extensions: drawObject(t, "extensions")}
	if rapid.Bool().Draw(t, "resource") {
		r := drawResource(t)
		p.Resource = &r
	}
	return p
}

// TestEncodedComesBack: decoding undoes encoding, for every message.
func TestEncodedComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		same := func(what string, got any, err error, want any) {
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Fatalf("%s came back as %+v, %v; want %+v", what, got, err, want)
			}
		}
		p := drawPayload(t)
		back, err := ParsePayment(p.Header())
		same("payment", back, err, &p)
		back, err = ParsePayload(p.JSON())
		same("payload", back, err, &p)

		r := PaymentRequired{Version: 2, Error: drawMaybe(t, "error"), Resource: drawResource(t), Accepts: []Requirements{drawRequirements(t)}, Extensions: drawObject(t, "extensions")}
		req, err := ParseRequired(r.Header())
		same("challenge", req, err, &r)

		q := VerifyRequest{Payload: p, Requirements: drawRequirements(t)}
		qback, err := ParseRequest(q.JSON())
		same("request", qback, err, &q)

		v := VerifyResponse{IsValid: rapid.Bool().Draw(t, "valid"), InvalidReason: clawr.Code(drawMaybe(t, "reason")), InvalidMessage: drawMaybe(t, "message"),
			Payer: drawMaybe(t, "payer"), Extensions: drawObject(t, "extensions"), Extra: drawObject(t, "extra")}
		vback, err := ParseVerifyResponse(v.JSON())
		same("verify response", vback, err, &v)

		s := SettleResponse{Success: rapid.Bool().Draw(t, "success"), ErrorReason: clawr.Code(drawMaybe(t, "reason")), ErrorMessage: drawMaybe(t, "message"), Payer: drawMaybe(t, "payer"),
			Transaction: drawMaybe(t, "transaction"), Network: drawMaybe(t, "network"), Amount: drawMaybe(t, "amount"), Extensions: drawObject(t, "extensions"), Extra: drawObject(t, "extra")}
		sback, err := ParseSettleResponse(s.JSON())
		same("settle response", sback, err, &s)
		sback, err = ParseResponse(s.Header())
		same("PAYMENT-RESPONSE", sback, err, &s)

		k := SupportedResponse{Kinds: []SupportedKind{{Version: 2, Scheme: drawMaybe(t, "scheme"), Network: drawMaybe(t, "network"), Extra: drawObject(t, "extra")}, {Version: 1}},
			Extensions: []string{drawMaybe(t, "extension")}, Signers: map[string][]string{drawText(t, "family"): {drawMaybe(t, "signer")}, "eip155:*": {"0x"}}}
		kback, err := ParseSupported(k.JSON())
		same("supported", kback, err, &k)
	})
}

func TestQuoteIsStripped(t *testing.T) {
	offer := testOffer()
	offer.Extra.Quote = "secret-quote"
	p := pay(t, testChallenge(offer))
	if p.Accepted.Extra.Quote == "" {
		t.Fatal("the client does not echo the quote")
	}
	plain := offer.WithoutQuote()
	sent := VerifyRequest{Payload: *p.ForFacilitator(&plain), Requirements: plain}
	if strings.Contains(string(sent.JSON()), "quote") {
		t.Errorf("a facilitator would see the quote: %s", sent.JSON())
	}
	if p.Accepted.Extra.Quote == "" || offer.Extra.Quote == "" {
		t.Error("stripping the copy changed the original")
	}
	if _, err := Verify(&sent.Payload, &sent.Requirements, Check{Now: testTime}); err != nil {
		t.Errorf("without its quote the payment is refused: %v", err)
	}
	// Nor does our own need what the buyer only repeats.
	sent.Payload.Extensions = Object{{"bazaar", []byte(`{"info":{}}`)}}
	bare, err := ParsePayload(sent.Payload.Bare().JSON())
	if err != nil || bare.Resource != nil || bare.Extensions != nil || sent.Payload.Extensions == nil {
		t.Fatalf("bare it is %+v, %v", bare, err)
	}
	if _, err := Verify(bare, &sent.Requirements, Check{Now: testTime}); err != nil {
		t.Errorf("bare, the payment is refused: %v", err)
	}
	// What is not a string is no quote, and must not get through either.
	p.Accepted.Extra = Extra{Name: "USDC", Version: "2", Rest: Object{{"quote", []byte(`{"q":1}`)}, {"more", []byte(`1`)}}}
	if got := string(p.ForFacilitator(&plain).JSON()); strings.Contains(got, "quote") || !strings.Contains(got, `"more":1`) {
		t.Errorf("a facilitator would see %s", got)
	}
}

func TestVersion1IsForwardedAsVersion2(t *testing.T) {
	offer := testOffer()
	v1 := *pay(t, testChallenge(offer))
	v1.Version = 1
	p, err := ParsePaymentV1(v1.Header())
	if err != nil {
		t.Fatal(err)
	}
	if p.Version != 1 || p.Accepted.Network != offer.Network || p.Accepted.Amount != "" {
		t.Fatalf("version 1 was read as %+v", p)
	}
	r := VerifyRequest{Payload: *p, Requirements: offer}
	back, err := ParseRequest(r.JSON())
	if err != nil {
		t.Fatal(err)
	}
	if back.Payload.Version != 2 || !reflect.DeepEqual(back.Payload.Accepted, offer) {
		t.Errorf("it was forwarded as %+v", back.Payload)
	}
	if _, err := Verify(&back.Payload, &back.Requirements, Check{Now: testTime}); err != nil {
		t.Error(err)
	}
}

func TestVersion1Headers(t *testing.T) {
	payload := `{"signature":"0x00","authorization":{}}`
	for _, c := range []struct {
		json string
		ok   bool
	}{
		{`{"x402Version":1,"scheme":"exact","network":"base-sepolia","payload":` + payload + `}`, true},
		{`{"x402Version":2,"scheme":"exact","network":"base-sepolia","payload":` + payload + `}`, true},
		{`{"x402Version":1,"scheme":"exact","network":"eip155:84532","payload":` + payload + `}`, true},
		{`{"x402Version":3,"scheme":"exact","network":"base-sepolia","payload":` + payload + `}`, false},
		{`{"scheme":"exact","network":"base-sepolia","payload":` + payload + `}`, false},
		{`{"x402Version":1,"network":"base-sepolia","payload":` + payload + `}`, false},
		{`{"x402Version":1,"scheme":"exact","payload":` + payload + `}`, false},
		{`{"x402Version":1,"scheme":"exact","network":"base-sepolia"}`, false},
		{`{"x402Version":1,"scheme":"exact","network":"base-sepolia","payload":[]}`, false},
		{`{"x402Version":1,"scheme":"exact","scheme":"exact","network":"base-sepolia","payload":` + payload + `}`, false},
		{`[]`, false},
	} {
		p, err := ParsePaymentV1(base64.StdEncoding.EncodeToString([]byte(c.json)))
		if (err == nil) != c.ok {
			t.Errorf("%s: %v, want taken = %v", c.json, err, c.ok)
		}
		if err == nil && p.Accepted.Network != "eip155:84532" {
			t.Errorf("%s: network %s", c.json, p.Accepted.Network)
		}
	}
}

func TestHeaderBounds(t *testing.T) {
	json := func(n int) string { // base64 of a payment that is n characters long
		good := pay(t, testChallenge(testOffer())).JSON()
		size := n / 4 * 3
		return base64.StdEncoding.EncodeToString(append(good, strings.Repeat(" ", size-len(good))...))
	}
	if h := json(MaxHeader); len(h) != MaxHeader {
		t.Fatalf("the test made %d bytes", len(h))
	} else if _, err := ParsePayment(h); err != nil {
		t.Errorf("%d bytes: %v", len(h), err)
	}
	if _, err := ParsePayment(json(MaxHeader + 4)); clawr.CodeOf(err) != clawr.CodeBadHeader {
		t.Errorf("%d bytes: %v", MaxHeader+4, err)
	}
	if _, err := ParseRequest([]byte(strings.Repeat(" ", MaxBody+1))); clawr.CodeOf(err) != clawr.CodeBadRequest {
		t.Errorf("a body beyond MaxBody: %v", err)
	}
}

// TestVersionsShareOneBody: what the body of a 402 lists for version 1's
// clients, which refuse a list with one network that they do not know.
func TestVersionsShareOneBody(t *testing.T) {
	dev, upto := testOffer(), testOffer()
	dev.Network, upto.Scheme = "eip155:31337", "upto"
	for _, c := range []struct {
		offers []Requirements
		want   string
	}{
		{[]Requirements{dev, testOffer(), upto}, "base-sepolia"},
		{[]Requirements{dev, upto}, "eip155:31337 eip155:84532"},
		{[]Requirements{dev}, "eip155:31337"},
		{nil, ""},
	} {
		body := testChallenge(c.offers...).AppendAccepts(nil)
		if err := checkJSON(body); err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		list, err := array(body)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range list {
			got = append(got, text(member(e, "network")))
			if member(e, "outputSchema") != nil {
				t.Errorf("%s has an outputSchema", e)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("networks %q, want %q", got, c.want)
		}
	}
	body := fmt.Sprintf(`{"x402Version":1,"error":"x","accepts":%s}`, testChallenge(testOffer()).AppendAccepts(nil))
	r, err := ParseRequiredBody([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if r.Version != 1 || r.Accepts[0].Network != "eip155:84532" || r.Accepts[0].Amount != "1000" || r.Resource.URL == "" {
		t.Errorf("as a version 1 challenge it is %+v", r)
	}
	if p := pay(t, r); p.Version != 1 {
		t.Errorf("it was answered with version %d", p.Version)
	}
}

func TestNetworkNames(t *testing.T) {
	for _, n := range v1Networks {
		if FromV1(n.name) != n.network {
			t.Errorf("%s is %s, want %s", n.name, FromV1(n.name), n.network)
		}
		want := ""
		if n.known {
			want = n.name
		}
		if got := V1Name(n.network); got != want {
			t.Errorf("version 1 calls %s %q, want %q", n.network, got, want)
		}
		if _, ok := ChainID(n.network); !ok {
			t.Errorf("%s has no chain id", n.network)
		}
	}
	for s, want := range map[string]uint64{"eip155:1": 1, "eip155:9007199254740991": 1<<53 - 1, "eip155:9007199254740992": 0, "eip155:0": 0, "eip155:01": 0, "eip155:": 0,
		"eip155:+1": 0, "eip155:1 ": 0, "eip155:0x1": 0, "solana:1": 0, "1": 0, "": 0} {
		if id, ok := ChainID(s); id != want && want != 0 || ok != (want != 0) {
			t.Errorf("ChainID(%q) = %d, %v", s, id, ok)
		}
	}
}

func TestEchoMayExcludeDynamicMembers(t *testing.T) {
	advertised := Object{{"sign-in-with-x", []byte(`{"info":{"nonce":"1","domain":"a"}}`)}}
	sent := Object{{"sign-in-with-x", []byte(`{"info":{"nonce":"2","domain":"a"}}`)}}
	if err := CheckEcho(advertised, sent, nil); clawr.CodeOf(err) != ReasonEchoMismatch {
		t.Errorf("another nonce: %v", err)
	}
	if err := CheckEcho(advertised, sent, map[string][]string{"sign-in-with-x": {"nonce"}}); err != nil {
		t.Errorf("another nonce, which is dynamic: %v", err)
	}
}

func FuzzParsePayment(f *testing.F) {
	p := pay(f, testChallenge(testOffer()))
	f.Add(p.Header())
	p.Version = 1
	f.Add(p.Header())
	f.Add(string(p.JSON()))
	f.Add("e30=")
	f.Fuzz(func(t *testing.T, header string) {
		if strings.HasPrefix(header, "{") { // so that mutations reach what base64 hides
			header = base64.StdEncoding.EncodeToString([]byte(header))
		}
		for _, parse := range []func(string) (*PaymentPayload, error){ParsePayment, ParsePaymentV1} {
			p, err := parse(header)
			if err != nil {
				if clawr.CodeOf(err) != clawr.CodeBadHeader {
					t.Fatalf("%q: %v", header, err)
				}
				continue
			}
			again, err := parse(p.Header())
			if err != nil || again.Header() != p.Header() {
				t.Fatalf("%+v came back as %+v, %v", p, again, err)
			}
			_, _ = p.Identifier()
			_, _ = Verify(p, &p.Accepted, Check{Now: testTime})
		}
	})
}

func FuzzParseRequired(f *testing.F) {
	f.Add(testChallenge(testOffer()).Header())
	f.Add(`{"x402Version":2,"resource":{"url":"u"},"accepts":[{"scheme":"exact","network":"eip155:8453","amount":"1","asset":"a","payTo":"p","maxTimeoutSeconds":1}]}`)
	f.Add("e30=")
	f.Fuzz(func(t *testing.T, header string) {
		if strings.HasPrefix(header, "{") {
			header = base64.StdEncoding.EncodeToString([]byte(header))
		}
		r, err := ParseRequired(header)
		if err != nil {
			return
		}
		if again, err := ParseRequired(r.Header()); err != nil || again.Header() != r.Header() {
			t.Fatalf("%+v came back as %+v, %v", r, again, err)
		}
		if err := checkJSON(r.AppendAccepts(nil)); err != nil {
			t.Fatalf("%+v has a body that is no JSON: %v", r, err)
		}
	})
}

// FuzzMessages: whatever a facilitator or a server sends, nothing panics, and
// what is taken survives being sent on.
func FuzzMessages(f *testing.F) {
	offer := testOffer()
	r := VerifyRequest{Payload: *pay(f, testChallenge(offer)), Requirements: offer}
	f.Add(r.JSON())
	f.Add([]byte(`{"isValid":true,"success":true,"transaction":"","network":"","kinds":[{"x402Version":1,"scheme":"","network":""}],"signers":{"a":["b"]}}`))
	f.Add([]byte(`{"x402Version":1,"accepts":[{"scheme":"exact","network":"base","maxAmountRequired":"1","resource":"r","asset":"a","payTo":"p","maxTimeoutSeconds":1}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		var sent [][]byte
		if r, err := ParseRequest(body); err == nil {
			sent = append(sent, r.JSON())
			if _, err := ParseRequest(r.JSON()); err != nil && r.Payload.Version == 2 {
				t.Fatalf("%s cannot be read again: %v", r.JSON(), err)
			}
		}
		if r, err := ParseVerifyResponse(body); err == nil {
			sent = append(sent, r.JSON())
		}
		if r, err := ParseSettleResponse(body); err == nil {
			sent = append(sent, r.JSON())
		}
		if r, err := ParseSupported(body); err == nil {
			sent = append(sent, r.JSON())
		}
		if r, err := ParsePayload(body); err == nil {
			sent = append(sent, r.JSON())
		}
		if r, err := ParseRequiredBody(body); err == nil {
			sent = append(sent, r.AppendAccepts(nil))
		}
		for _, b := range sent {
			if err := checkJSON(b); err != nil {
				t.Fatalf("%q was sent on as %q: %v", body, b, err)
			}
		}
	})
}

func BenchmarkChallenge(b *testing.B) {
	r := testChallenge(testOffer())
	r.Error = "missing_payment_signature"
	r.Accepts[0].Extra.Quote = strings.Repeat("q", QuoteLen)
	b.ReportAllocs()
	for b.Loop() {
		_ = r.Header()
	}
}

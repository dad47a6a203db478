package x402

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr"
)

// The vectors are what the official SDK did: e2e/vectors/generate.mjs writes
// them. A case's clawr says where and why we judge otherwise.

func vectors(t *testing.T, name string, into any) {
	t.Helper()
	b, err := os.ReadFile("../testdata/vectors/x402/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

// sameJSON compares as JavaScript would, and null like absence.
func sameJSON(t *testing.T, got, want []byte) bool {
	t.Helper()
	var x, y any
	if err := json.Unmarshal(got, &x); err != nil {
		t.Fatalf("%s: %v", got, err)
	}
	if err := json.Unmarshal(want, &y); err != nil {
		t.Fatalf("%s: %v", want, err)
	}
	return reflect.DeepEqual(x, y)
}

func TestVectorsPayments(t *testing.T) {
	var v struct {
		Now int64
		V2  []struct {
			Name, Key, Payer, Challenge, Header, Digest string
			Required, Payload                           json.RawMessage
		}
		V1 []struct {
			Name, Payer, Header string
			Required, Accepts   json.RawMessage
		}
	}
	vectors(t, "payments", &v)
	now := time.Unix(v.Now, 0)
	for _, c := range v.V2 {
		t.Run(c.Name, func(t *testing.T) {
			required, err := ParseRequired(c.Challenge)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := ParseRequired(required.Header()); err != nil || !reflect.DeepEqual(again, required) {
				t.Errorf("the challenge came back as %+v, %v", again, err)
			}
			p, err := ParsePayment(c.Header)
			if err != nil {
				t.Fatal(err)
			}
			if got := p.JSON(); !sameJSON(t, got, c.Payload) {
				t.Errorf("the payload came back as\n%s, want\n%s", got, c.Payload)
			}
			offer, err := Match(required.Accepts, p)
			if err != nil {
				t.Fatal(err)
			}
			if err := CheckEcho(required.Extensions, p.Extensions, nil); err != nil {
				t.Error(err)
			}
			e, err := Verify(p, offer, Check{Now: now})
			if err != nil {
				t.Fatal(err)
			}
			if e.Payer() != strings.ToLower(c.Payer) {
				t.Errorf("payer %s, want %s", e.Payer(), c.Payer)
			}
			chain, _ := ChainID(offer.Network)
			token, _ := parseAddress(offer.Asset)
			if got := e.Digest(NewDomain(offer.Extra.Name, offer.Extra.Version, chain, token)); got != common.HexToHash(c.Digest) {
				t.Errorf("digest %s, want %s", got, c.Digest)
			}
			// Our client signs the same: secp256k1 signatures are deterministic (RFC 6979).
			key, err := crypto.ToECDSA(common.FromHex(c.Key))
			if err != nil {
				t.Fatal(err)
			}
			mine, err := Pay(key, required, offer, e.Nonce, now)
			if err != nil {
				t.Fatal(err)
			}
			if id, err := p.Identifier(); err != nil {
				t.Error(err)
			} else if id != "" && !mine.Identify(id) {
				t.Error("our client cannot name its payment")
			}
			if got := mine.JSON(); !sameJSON(t, got, c.Payload) {
				t.Errorf("our client sends\n%s, the SDK's\n%s", got, c.Payload)
			}
		})
	}
	for _, c := range v.V1 {
		t.Run(c.Name, func(t *testing.T) {
			required, err := decodeRequired(c.Required)
			if err != nil {
				t.Fatal(err)
			}
			if got := required.AppendAccepts(nil); !sameJSON(t, got, c.Accepts) {
				t.Errorf("accepts is\n%s, the client took\n%s", got, c.Accepts)
			}
			p, err := ParsePaymentV1(c.Header)
			if err != nil {
				t.Fatal(err)
			}
			offer, err := Match(required.Accepts, p)
			if err != nil {
				t.Fatal(err)
			}
			e, err := Verify(p, offer, Check{Now: now})
			if err != nil || e.Payer() != strings.ToLower(c.Payer) {
				t.Errorf("%+v, %v", e, err)
			}
			if _, err := Verify(p.ForFacilitator(offer), offer, Check{Now: now}); err != nil {
				t.Errorf("as version 2: %v", err)
			}
		})
	}
}

type headerCase struct{ Name, Header, SDK, Clawr string }

// judgement is what must be said of a case: the SDK's, unless we differ.
func (c headerCase) taken() bool { return c.SDK == "taken" && c.Clawr == "" }

func TestVectorsHeaders(t *testing.T) {
	var v struct {
		Signature, Challenges []headerCase
		Settled               []struct {
			Name, Header string
			Response     json.RawMessage
		}
	}
	vectors(t, "headers", &v)
	for _, c := range v.Signature {
		p, err := ParsePayment(c.Header)
		if (err == nil) != c.taken() {
			t.Errorf("payment, %s: %v; the SDK has it %s %s", c.Name, err, c.SDK, c.Clawr)
		}
		if err != nil && clawr.CodeOf(err) != clawr.CodeBadHeader {
			t.Errorf("payment, %s: code %s", c.Name, clawr.CodeOf(err))
		}
		if err == nil {
			if again, err := ParsePayment(p.Header()); err != nil || !reflect.DeepEqual(again, p) {
				t.Errorf("payment, %s: came back as %+v, %v; want %+v", c.Name, again, err, p)
			}
		}
	}
	for _, c := range v.Challenges {
		r, err := ParseRequired(c.Header)
		if (err == nil) != c.taken() {
			t.Errorf("challenge, %s: %v; the SDK has it %s %s", c.Name, err, c.SDK, c.Clawr)
		}
		if err == nil {
			if again, err := ParseRequired(r.Header()); err != nil || !reflect.DeepEqual(again, r) {
				t.Errorf("challenge, %s: came back as %+v, %v; want %+v", c.Name, again, err, r)
			}
		}
	}
	for _, c := range v.Settled {
		r, err := ParseResponse(c.Header)
		if err != nil {
			t.Errorf("response, %s: %v", c.Name, err)
			continue
		}
		if !sameJSON(t, r.JSON(), c.Response) {
			t.Errorf("response, %s: came back as %s, want %s", c.Name, r.JSON(), c.Response)
		}
	}
}

func TestVectorsMatching(t *testing.T) {
	var v struct {
		Matches []struct {
			Name     string
			Offers   []json.RawMessage
			Accepted json.RawMessage
			SDK      int
			Clawr    *int
		}
		Echoes []struct {
			Name             string
			Advertised, Sent json.RawMessage
			SDK              clawr.Code
		}
		Identifiers []struct {
			Name      string
			Extension json.RawMessage
			SDK       *string
		}
	}
	vectors(t, "matching", &v)
	for _, c := range v.Matches {
		var offers []Requirements
		for _, raw := range c.Offers {
			r, err := decodeRequirements(raw)
			if err != nil {
				t.Fatal(err)
			}
			offers = append(offers, r)
		}
		accepted, err := decodeRequirements(c.Accepted)
		if err != nil {
			t.Fatal(err)
		}
		want, got := c.SDK, -1
		if c.Clawr != nil {
			want = *c.Clawr
		}
		found, err := Match(offers, &PaymentPayload{Version: 2, Accepted: accepted})
		for i := range offers {
			if found == &offers[i] {
				got = i
			}
		}
		if got != want || (err == nil) != (got >= 0) {
			t.Errorf("%s: offer %d, %v; want %d", c.Name, got, err, want)
		}
	}
	for _, c := range v.Echoes {
		advertised, err := object(c.Advertised)
		if err != nil {
			t.Fatal(err)
		}
		sent, err := object(c.Sent)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckEcho(advertised, sent, nil); err == nil && c.SDK != "taken" || err != nil && clawr.CodeOf(err) != c.SDK {
			t.Errorf("%s: %v, want %s", c.Name, err, c.SDK)
		}
	}
	for _, c := range v.Identifiers {
		p := PaymentPayload{Extensions: Object{{PaymentIdentifier, c.Extension}}}
		id, err := p.Identifier()
		if c.SDK == nil && err == nil || c.SDK != nil && (err != nil || id != *c.SDK) {
			t.Errorf("%s: %q, %v", c.Name, id, err)
		}
	}
}

func TestVectorsVerify(t *testing.T) {
	type request struct {
		Name       string
		Request    json.RawMessage
		SDK, Clawr clawr.Code
		Why        string
	}
	var v struct {
		Now    int64
		V2, V1 []request
	}
	vectors(t, "verifying", &v)
	for version, cases := range map[string][]request{"v2": v.V2, "v1": v.V1} {
		for _, c := range cases {
			r, err := ParseRequest(c.Request)
			if err != nil {
				t.Errorf("%s, %s: %v", version, c.Name, err)
				continue
			}
			want := c.SDK
			if c.Clawr != "" {
				want = c.Clawr
			}
			if _, err := Verify(&r.Payload, &r.Requirements, Check{Now: time.Unix(v.Now, 0)}); err == nil && want != "valid" || err != nil && clawr.CodeOf(err) != want {
				t.Errorf("%s, %s: %v, want %s %s", version, c.Name, err, want, c.Why)
			}
		}
	}
}

func TestVectorsAnswers(t *testing.T) {
	type answer struct{ Name, Body, SDK, Clawr string }
	var v struct{ Verify, Settle, Supported []answer }
	vectors(t, "answers", &v)
	for _, k := range []struct {
		of    string
		cases []answer
		parse func([]byte) ([]byte, error)
	}{
		{"verify", v.Verify, func(b []byte) ([]byte, error) {
			r, err := ParseVerifyResponse(b)
			if err != nil {
				return nil, err
			}
			return r.JSON(), nil
		}},
		{"settle", v.Settle, func(b []byte) ([]byte, error) {
			r, err := ParseSettleResponse(b)
			if err != nil {
				return nil, err
			}
			return r.JSON(), nil
		}},
		{"supported", v.Supported, func(b []byte) ([]byte, error) {
			r, err := ParseSupported(b)
			if err != nil {
				return nil, err
			}
			return r.JSON(), nil
		}},
	} {
		for _, c := range k.cases {
			again, err := k.parse([]byte(c.Body))
			if (err == nil) != (c.SDK == "taken" || c.Clawr != "") {
				t.Errorf("%s, %s: %v; the SDK has it %s %s: %s", k.of, c.Name, err, c.SDK, c.Clawr, c.Body)
			}
			if err == nil && c.Name == "good" && !sameJSON(t, again, []byte(c.Body)) {
				t.Errorf("%s came back as %s, want %s", k.of, again, c.Body)
			}
		}
	}
}

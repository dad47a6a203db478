package x402

import (
	"bytes"
	"encoding/hex"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
)

// Exact is the content of a payment by the exact scheme with EIP-3009.
type Exact struct {
	Authorization
	Signature []byte // as it was sent: r ‖ s ‖ v of an account, else what a contract checks
}

// Payer is who pays, in lower case.
func (e *Exact) Payer() string { return Lower(e.From) }

// MinSlack is how long the SDK wants an authorization to stay valid. It does
// not think of the time that the work takes.
const MinSlack = 6 * time.Second

// Check bounds what Verify accepts.
type Check struct {
	// Now is the later of the local clock and the time of the chain's head.
	Now time.Time
	// Slack is how long after Now the authorization must stay valid: the
	// deadline of the work and of the settlement. At least MinSlack.
	Slack time.Duration
	// Token, if set, is what the chain says of the asset: requirements with
	// another name or version are refused.
	Token *clawr.Asset
	// Contract says that the payer has code. Its own isValidSignature decides
	// then, never the key (EIP-7702 accounts have both): Verify leaves the
	// signature to the caller.
	Contract bool
}

// Verify checks everything about p that needs no chain, in the SDK's order:
// scheme, domain, network, signature, recipient, window, value. The Exact is
// returned as soon as p can be read, so that a refusal can name its payer.
// Errors are reasons of the protocol.
//
// What is left to whoever has a chain: that asset and payer are what they are
// taken for, the nonce, the balance, and that the transfer succeeds.
func Verify(p *PaymentPayload, r *Requirements, c Check) (*Exact, error) {
	e, unreadable := ParseExact(p.Payload)
	if p.Accepted.Scheme != SchemeExact || r.Scheme != SchemeExact {
		return e, refuse(ReasonScheme, "the scheme is not exact")
	}
	if r.Extra.Name == "" || r.Extra.Version == "" {
		return e, refuse(ReasonDomain, "the requirements do not name the token's EIP-712 domain")
	}
	chain, ok := ChainID(r.Network)
	if !ok || p.Accepted.Network != r.Network {
		return e, refuse(ReasonNetwork, "the payment is for network %q, not %q", clip(p.Accepted.Network), clip(r.Network))
	}
	if unreadable != nil {
		return e, unreadable
	}
	token, ok := parseAddress(r.Asset)
	if !ok {
		return e, refuse(ReasonNoContract, "%q is not the address of a token", clip(r.Asset))
	}
	if err := e.signed(NewDomain(r.Extra.Name, r.Extra.Version, chain, token), c.Contract, p.signer); err != nil {
		return e, err
	}
	if err := e.terms(p.Version, r, c); err != nil {
		return e, err
	}
	if c.Token != nil && c.Token.Name != r.Extra.Name {
		return e, refuse(ReasonTokenName, "the token's name is %q", c.Token.Name)
	}
	if c.Token != nil && c.Token.Version != r.Extra.Version {
		return e, refuse(ReasonTokenVersion, "the token's version is %q", c.Token.Version)
	}
	return e, nil
}

// signed checks that the payer signed e in domain d.
func (e *Exact) signed(d Domain, contract bool, s *signer) error {
	if contract {
		return nil
	}
	if wrapped(e.Signature) {
		return refuse(ReasonFactory, "the payer is a contract that is not deployed yet")
	}
	if who, ok := s.recover(e.Digest(d), e.Signature); !ok || who != e.From {
		return refuse(ReasonSignature, "the signature is not the payer's for this authorization")
	}
	return nil
}

// terms checks that e pays what r asks, in time.
func (e *Exact) terms(version int, r *Requirements, c Check) error {
	if to, ok := parseAddress(r.PayTo); !ok || to != e.To {
		return refuse(ReasonRecipient, "the authorization pays %s", Lower(e.To))
	}
	now := c.Now.Unix()
	slack := int64((max(c.Slack, MinSlack) + time.Second - 1) / time.Second)
	if until, _ := e.ValidBefore.Int64(); until < now+slack {
		return refuse(ReasonValidBefore, "the authorization ends in %d s, it must last %d s", until-now, slack)
	}
	if from, _ := e.ValidAfter.Int64(); from > now {
		return refuse(ReasonValidAfter, "the authorization is not valid yet")
	}
	if want, ok := Units(r.Amount); !ok || e.Value != Uint(uint64(want)) {
		reason := ReasonValue
		if version == 1 {
			reason = ReasonValueV1
		}
		return refuse(reason, "the authorization is of %s, the price is %s", e.Value, clip(r.Amount))
	}
	return nil
}

// ParseExact reads the scheme's part of a payment. A field that cannot be read
// is refused with the reason that a wrong one would be.
func ParseExact(payload []byte) (*Exact, error) {
	f := open("payload", payload)
	sig := f.optional("signature")
	inner := f.take("authorization")
	if f.err != nil || kind(inner) != '{' {
		return nil, refuse(ReasonPayloadType, "the payload has no EIP-3009 authorization and signature")
	}
	f = open("authorization", inner)
	from, to := f.required("from"), f.required("to")
	value, after, before := f.required("value"), f.required("validAfter"), f.required("validBefore")
	nonce := f.required("nonce")
	if f.err != nil {
		return nil, refuse(ReasonPayloadType, "%v", f.err)
	}
	e := new(Exact)
	var ok bool
	if e.From, ok = parseAddress(from); !ok {
		return nil, refuse(ReasonSignature, "authorization: from is not an address")
	}
	if !parseHex(e.Nonce[:], nonce) {
		return e, refuse(ReasonSignature, "authorization: nonce is not 0x and 64 hexadecimal digits")
	}
	if e.Signature = readSignature(sig); e.Signature == nil {
		return e, refuse(ReasonSignature, "the signature is missing or not hexadecimal")
	}
	if e.To, ok = parseAddress(to); !ok {
		return e, refuse(ReasonRecipient, "authorization: to is not an address")
	}
	if e.ValidBefore, ok = ParseUint(before); !ok {
		return e, refuse(ReasonValidBefore, "authorization: validBefore is not a plain decimal number")
	}
	if e.ValidAfter, ok = ParseUint(after); !ok {
		return e, refuse(ReasonValidAfter, "authorization: validAfter is not a plain decimal number")
	}
	if e.Value, ok = ParseUint(value); !ok {
		return e, refuse(ReasonValue, "authorization: value is not a plain decimal number")
	}
	return e, nil
}

// JSON is e as the scheme's part of a payment.
func (e *Exact) JSON() []byte {
	b := builder{b: make([]byte, 0, 512)}
	b.open()
	b.string("signature", "0x"+hex.EncodeToString(e.Signature))
	b.name("authorization")
	b.open()
	b.string("from", e.From.Hex())
	b.string("to", e.To.Hex())
	b.string("value", e.Value.String())
	b.string("validAfter", e.ValidAfter.String())
	b.string("validBefore", e.ValidBefore.String())
	b.string("nonce", e.Nonce.Hex())
	b.close()
	b.close()
	return b.b
}

// wrapped reports whether sig is an EIP-6492 signature: one that carries how
// to deploy its signer.
func wrapped(sig []byte) bool {
	magic := bytes.Repeat([]byte{0x64, 0x92}, 16)
	return len(sig) > 65 && bytes.HasSuffix(sig, magic)
}

func parseAddress(s string) (a common.Address, ok bool) {
	ok = parseHex(a[:], s)
	return a, ok
}

// parseHex fills dst from 0x and exactly its length in hexadecimal.
func parseHex(dst []byte, s string) bool {
	if len(s) != 2+2*len(dst) || s[0] != '0' || s[1] != 'x' {
		return false
	}
	for i := range dst {
		hi, lo := s[2+2*i], s[3+2*i]
		if !isHex(hi) || !isHex(lo) {
			return false
		}
		dst[i] = hexDigit(hi)<<4 | hexDigit(lo)
	}
	return true
}

// hexDigit is the value of a character that isHex.
func hexDigit(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

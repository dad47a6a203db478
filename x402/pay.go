package x402

import (
	"crypto/ecdsa"
	"fmt"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// Pay signs the payment of choice, one of required's Accepts, as the SDK's
// client does: from now on for the time that the server gives, for exactly the
// amount; what was offered, with resource and extensions, is sent back as it
// came. nonce must be random and new: it is what makes the payment unique.
//
// Whoever has the result can move the money: what choice says must have been
// agreed to before.
func Pay(key *ecdsa.PrivateKey, required *PaymentRequired, choice *Requirements, nonce common.Hash, now time.Time) (*PaymentPayload, error) {
	if choice.Scheme != SchemeExact {
		return nil, refuse(ReasonScheme, "the scheme is %q, only exact can be paid", clip(choice.Scheme))
	}
	if m := choice.Extra.Rest.Find("assetTransferMethod"); m != nil && string(m) != `"eip3009"` {
		return nil, refuse(ReasonPayloadType, "the token is moved by %s, only eip3009 can be paid", clip(string(m)))
	}
	chain, ok := ChainID(choice.Network)
	if !ok {
		return nil, refuse(ReasonNetwork, "%q is not an EVM network", clip(choice.Network))
	}
	if choice.Extra.Name == "" || choice.Extra.Version == "" {
		return nil, refuse(ReasonDomain, "the offer does not name the token's EIP-712 domain")
	}
	token, ok := parseAddress(choice.Asset)
	if !ok {
		return nil, refuse(ReasonNoContract, "%q is not the address of a token", clip(choice.Asset))
	}
	to, ok := parseAddress(choice.PayTo)
	if !ok {
		return nil, refuse(ReasonRecipient, "%q is not an address", clip(choice.PayTo))
	}
	amount, ok := Units(choice.Amount)
	if !ok {
		return nil, refuse(ReasonValue, "%q is not an amount", clip(choice.Amount))
	}
	e := &Exact{Authorization: Authorization{From: crypto.PubkeyToAddress(key.PublicKey), To: to, Value: Uint(uint64(amount)),
		ValidBefore: Uint(uint64(now.Unix() + choice.MaxTimeoutSeconds)), Nonce: nonce}}
	if required.Version == 1 { // as version 1's client: its tokens knew no 0
		e.ValidAfter = Uint(uint64(max(0, now.Unix()-600)))
	}
	var err error
	if e.Signature, err = e.Sign(key, NewDomain(choice.Extra.Name, choice.Extra.Version, chain, token)); err != nil {
		return nil, fmt.Errorf("pay: %w", err)
	}
	p := &PaymentPayload{Version: required.Version, Accepted: *choice, Payload: e.JSON()}
	if p.Version != 1 {
		p.Version = Version
		p.Resource = &required.Resource
		p.Extensions = required.Extensions
	}
	return p, nil
}

// Identify names the payment in the extension payment-identifier, if the
// server advertised it and id is valid; it reports whether it did.
func (p *PaymentPayload) Identify(id string) bool {
	ext := p.Extensions.Find(PaymentIdentifier)
	info := member(ext, "info")
	if kind(info) != '{' || !ValidIdentifier(id) {
		return false
	}
	named := builder{}
	named.open()
	named.raw("info", withMember(info, "id", appendString(nil, id)))
	o, err := object(ext)
	if err != nil {
		return false
	}
	for _, m := range o {
		if m.Name != "info" {
			named.raw(m.Name, m.Value)
		}
	}
	named.close()
	p.Extensions = append(Object(nil), p.Extensions...) // the server's own is not ours to change
	for i := range p.Extensions {
		if p.Extensions[i].Name == PaymentIdentifier {
			p.Extensions[i].Value = named.b
		}
	}
	return true
}

// withMember is a checked object with one member set.
func withMember(raw []byte, name string, value []byte) []byte {
	raw = without(raw, []string{name})
	o, err := object(raw)
	if err != nil {
		return raw
	}
	b := builder{}
	b.open()
	b.members(o)
	b.raw(name, value)
	b.close()
	return b.b
}

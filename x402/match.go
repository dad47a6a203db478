package x402

import (
	"github.com/402claw/clawr"
)

// Match is the first of offers that p accepted, as the SDK's
// findMatchingRequirements has it: everything but extra equal, whatever the
// order of members; every member of the offer's extra there and equal, objects
// within it likewise, while the client may have more. The quote is not
// compared: its MAC speaks for it. A version 1 payment names scheme and
// network alone.
func Match(offers []Requirements, p *PaymentPayload) (*Requirements, error) {
	for i := range offers {
		if matches(&offers[i], p) {
			return &offers[i], nil
		}
	}
	return nil, refuse(ReasonNoMatch, "no matching payment requirements")
}

func matches(o *Requirements, p *PaymentPayload) bool {
	a := &p.Accepted
	if o.Scheme != a.Scheme || o.Network != a.Network {
		return false
	}
	if p.Version == 1 {
		return true
	}
	return o.Amount == a.Amount && o.Asset == a.Asset && o.PayTo == a.PayTo &&
		o.MaxTimeoutSeconds == a.MaxTimeoutSeconds && sameObject(o.Rest, a.Rest) && o.Extra.in(&a.Extra)
}

// in reports whether a has everything of e but its quote.
func (e *Extra) in(a *Extra) bool {
	if e.Name != "" && e.Name != a.Name || e.Version != "" && e.Version != a.Version {
		return false
	}
	for _, m := range e.Rest {
		if m.Name == "quote" {
			continue
		}
		got := a.Rest.Find(m.Name)
		if got == nil || !containsJSON(m.Value, got) {
			return false
		}
	}
	return true
}

func sameObject(a, b Object) bool {
	if len(a) != len(b) {
		return false
	}
	for _, m := range a {
		got := b.Find(m.Name)
		if got == nil || !equalJSON(m.Value, got) {
			return false
		}
	}
	return true
}

// CheckEcho applies the SDK's validateExtensions to what a client sent of the
// extensions that were advertised: of each that it sends, the info must still
// say everything that was advertised, except for the members that dynamic
// names for that extension (nonces and times of the server's own). Extensions
// that were not advertised are let through, unless they claim what only a
// server may say.
func CheckEcho(advertised, sent Object, dynamic map[string][]string) error {
	for _, m := range sent {
		info := extensionInfo(m.Value)
		offered := advertised.Find(m.Name)
		if offered != nil && !echoes(without(extensionInfo(offered), dynamic[m.Name]), without(info, dynamic[m.Name])) {
			return refuse(ReasonEchoMismatch, "extension %q is not what was advertised", clip(m.Name))
		}
		// builder-code credits an app with the payment: only the server names it.
		if m.Name == "builder-code" && kind(info) == '{' {
			claimed := member(info, "a")
			if claimed != nil && (offered == nil || !equalJSON(member(extensionInfo(offered), "a"), claimed)) {
				return refuse(ReasonEchoMismatch, "extension %q names an app that was not advertised", m.Name)
			}
		}
	}
	return nil
}

func echoes(offered, sent []byte) bool { return containsJSON(offered, sent) }

// extensionInfo is the member info of an extension, or all of it.
func extensionInfo(ext []byte) []byte {
	if info := member(ext, "info"); info != nil {
		return info
	}
	return ext
}

// member is a member of a checked value, or nil if that is not an object that
// has it.
func member(raw []byte, name string) []byte {
	o, err := object(raw)
	if err != nil {
		return nil
	}
	return o.Find(name)
}

// without is a checked value without some of its members.
func without(raw []byte, names []string) []byte {
	if len(names) == 0 {
		return raw
	}
	o, err := object(raw)
	if err != nil {
		return raw
	}
	b := builder{}
	b.open()
	for _, m := range o {
		drop := false
		for _, n := range names {
			drop = drop || n == m.Name
		}
		if !drop {
			b.raw(m.Name, m.Value)
		}
	}
	b.close()
	return b.b
}

// PaymentIdentifier is the extension with which a client names a payment.
const PaymentIdentifier = "payment-identifier"

// OfferIdentifier is the extension as a server advertises it, with the SDK's
// schema: what a client adds is info.id.
func OfferIdentifier(required bool) Member {
	info := `{"required":false}`
	if required {
		info = `{"required":true}`
	}
	return Member{Name: PaymentIdentifier, Value: []byte(`{"info":` + info + `,"schema":{"$schema":"https://json-schema.org/draft/2020-12/schema","type":"object",` +
		`"properties":{"required":{"type":"boolean"},"id":{"type":"string","minLength":16,"maxLength":128,"pattern":"^[a-zA-Z0-9_-]+$"}},"required":["required"]}}`)}
}

// Identifier is the id that a payment names itself by in the extension
// payment-identifier, or "" if it has none. An extension of another shape than
// the SDK's validatePaymentIdentifier takes, or an id that is not 16 to 128 of
// [A-Za-z0-9_-], is refused with 400.
func (p *PaymentPayload) Identifier() (string, error) {
	ext := p.Extensions.Find(PaymentIdentifier)
	if ext == nil || string(ext) == "null" {
		return "", nil
	}
	bad := func(why string) (string, error) {
		return "", &clawr.Error{Code: clawr.CodeBadHeader, Param: PaymentIdentifier, Message: "payment-identifier: " + why,
			Fix: "send info {required, id} with an id of 16 to 128 letters, digits, - and _"}
	}
	info := member(ext, "info")
	if kind(info) != '{' {
		return bad("info is missing")
	}
	if r := member(info, "required"); string(r) != "true" && string(r) != "false" {
		return bad("info.required is not true or false")
	}
	id := member(info, "id")
	if id == nil {
		return "", nil
	}
	if kind(id) != '"' || !ValidIdentifier(text(id)) {
		return bad("the id is malformed")
	}
	return text(id), nil
}

// ValidIdentifier reports whether id is 16 to 128 of [A-Za-z0-9_-].
func ValidIdentifier(id string) bool {
	for i := range len(id) {
		c := id[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return len(id) >= 16 && len(id) <= 128
}

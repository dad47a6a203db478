package x402

import (
	"fmt"
	"slices"
	"sort"

	"github.com/402claw/clawr"
)

// ParseRequest reads the body of POST /verify and POST /settle, of either
// version. Its errors have the code invalid_request.
func ParseRequest(body []byte) (*VerifyRequest, error) {
	r, err := decodeBody(body, decodeRequest)
	if err != nil {
		return nil, err
	}
	return &r, nil
}

// ParseVerifyResponse reads a facilitator's answer. isValid must be a boolean.
func ParseVerifyResponse(body []byte) (*VerifyResponse, error) {
	r, err := decodeBody(body, decodeVerify)
	if err != nil {
		return nil, err
	}
	return &r, nil
}

// ParseSettleResponse reads a facilitator's answer. It judges its form alone:
// a success without a transaction, or for another network, is for the caller
// to doubt.
func ParseSettleResponse(body []byte) (*SettleResponse, error) {
	r, err := decodeBody(body, decodeSettle)
	if err != nil {
		return nil, err
	}
	return &r, nil
}

// ParseSupported reads a facilitator's answer to GET /supported.
func ParseSupported(body []byte) (*SupportedResponse, error) {
	r, err := decodeBody(body, decodeSupported)
	if err != nil {
		return nil, err
	}
	return &r, nil
}

// decodeBody bounds and checks body before decode takes it apart.
func decodeBody[T any](body []byte, decode func([]byte) (T, error)) (v T, err error) {
	if len(body) > MaxBody {
		err = fmt.Errorf("it has %d bytes, at most %d are read", len(body), MaxBody)
	} else if err = checkJSON(body); err == nil {
		v, err = decode(body[space(body, 0):])
	}
	if err != nil {
		err = &clawr.Error{Code: clawr.CodeBadRequest, Message: "cannot read the message: " + err.Error(),
			Fix: "send the JSON object that the x402 protocol describes"}
	}
	return v, err
}

func decodeRequest(raw []byte) (r VerifyRequest, err error) {
	f := open("request", raw)
	if v := f.take("paymentPayload"); v == nil {
		f.fail("paymentPayload", "is missing")
	} else if r.Payload, err = decodePayload(v); err != nil && f.err == nil {
		f.err = err
	}
	if f.integer("x402Version") != int64(r.Payload.Version) {
		f.fail("x402Version", "is not that of the payload")
	}
	if v := f.take("paymentRequirements"); v == nil {
		f.fail("paymentRequirements", "is missing")
	} else {
		if r.Payload.Version == 1 {
			r.Requirements, _, err = decodeRequirementsV1(v)
		} else {
			r.Requirements, err = decodeRequirements(v)
		}
		if err != nil && f.err == nil {
			f.err = err
		}
	}
	return r, f.err
}

func decodeVerify(raw []byte) (r VerifyResponse, err error) {
	f := open("verify response", raw)
	r.IsValid = f.boolean("isValid")
	r.InvalidReason = clawr.Code(f.optional("invalidReason"))
	r.InvalidMessage = f.optional("invalidMessage")
	r.Payer = f.optional("payer")
	r.Extensions = f.members("extensions")
	r.Extra = f.members("extra")
	return r, f.err
}

func decodeSettle(raw []byte) (r SettleResponse, err error) {
	f := open("settle response", raw)
	r.Success = f.boolean("success")
	r.ErrorReason = clawr.Code(f.optional("errorReason"))
	r.ErrorMessage = f.optional("errorMessage")
	r.Payer = f.optional("payer")
	r.Transaction = f.empty("transaction")
	r.Network = f.empty("network")
	r.Amount = f.optional("amount")
	r.Extensions = f.members("extensions")
	r.Extra = f.members("extra")
	return r, f.err
}

// empty is a string that must be there but may be empty.
func (f *fields) empty(name string) string {
	if kind(f.left.Find(name)) != '"' {
		f.fail(name, "is not a string")
	}
	return f.optional(name)
}

func decodeSupported(raw []byte) (r SupportedResponse, err error) {
	f := open("supported response", raw)
	if kind(f.left.Find("kinds")) != '[' {
		f.fail("kinds", "is missing")
	}
	for _, v := range f.entries("kinds") {
		k := open("kind", v)
		r.Kinds = append(r.Kinds, SupportedKind{Version: int(k.integer("x402Version")),
			Scheme: k.empty("scheme"), Network: k.empty("network"), Extra: k.members("extra")})
		if k.err != nil && f.err == nil {
			f.err = k.err
		}
	}
	r.Extensions = f.texts("extensions")
	for _, m := range f.members("signers") {
		s := &fields{of: "signers", left: Object{m}}
		if r.Signers == nil {
			r.Signers = map[string][]string{}
		}
		r.Signers[m.Name] = s.texts(m.Name)
		if s.err != nil && f.err == nil {
			f.err = s.err
		}
	}
	return r, f.err
}

// JSON is r as the body of POST /verify and POST /settle. It is of version 2
// whatever the payment came as: what the buyer signed is the same.
func (r *VerifyRequest) JSON() []byte {
	p := &r.Payload
	if p.Version == 1 {
		p = p.ForFacilitator(&r.Requirements)
	}
	b := builder{b: make([]byte, 0, 2048)}
	b.open()
	b.int("x402Version", Version)
	b.name("paymentPayload")
	b.payload(p)
	b.name("paymentRequirements")
	b.requirements(&r.Requirements)
	b.close()
	return b.b
}

// JSON is r as a facilitator answers it.
func (r *VerifyResponse) JSON() []byte {
	b := builder{b: make([]byte, 0, 256)}
	b.open()
	b.bool("isValid", r.IsValid)
	b.some("invalidReason", string(r.InvalidReason))
	b.some("invalidMessage", r.InvalidMessage)
	b.some("payer", r.Payer)
	b.object("extensions", r.Extensions)
	b.object("extra", r.Extra)
	b.close()
	return b.b
}

// JSON is r as a facilitator answers it.
func (r *SettleResponse) JSON() []byte {
	b := builder{b: make([]byte, 0, 256)}
	b.settled(r)
	return b.b
}

// JSON is r as a facilitator answers it; all three members are always there.
func (r *SupportedResponse) JSON() []byte {
	b := builder{b: make([]byte, 0, 512)}
	b.open()
	b.name("kinds")
	b.b = append(b.b, '[')
	for i := range r.Kinds {
		if i > 0 {
			b.b = append(b.b, ',')
		}
		k := &r.Kinds[i]
		b.open()
		b.int("x402Version", int64(k.Version))
		b.string("scheme", k.Scheme)
		b.string("network", k.Network)
		b.object("extra", k.Extra)
		b.close()
	}
	b.b = append(b.b, ']')
	b.comma = true
	b.texts("extensions", r.Extensions)
	b.name("signers")
	b.open()
	families := make([]string, 0, len(r.Signers))
	for family := range r.Signers {
		families = append(families, family)
	}
	sort.Strings(families)
	for _, family := range families {
		b.texts(family, r.Signers[family])
	}
	b.close()
	b.close()
	return b.b
}

// JSON is p as it travels inside a header or a message: the form in which a
// payment is kept.
func (p *PaymentPayload) JSON() []byte {
	b := builder{b: make([]byte, 0, 1024)}
	b.payload(p)
	return b.b
}

// ParsePayload reads what JSON wrote.
func ParsePayload(raw []byte) (*PaymentPayload, error) {
	p, err := decodeBody(raw, decodePayload)
	if err != nil {
		return nil, err
	}
	return &p, nil
}

// ForFacilitator is p as a facilitator may see it: of version 2, with what the
// buyer accepted (for version 1, the requirements that it was matched with),
// and without the quote, which is a bearer credential of the answer.
func (p *PaymentPayload) ForFacilitator(r *Requirements) *PaymentPayload {
	out := *p
	if p.Version == 1 {
		out.Version = Version
		out.Accepted = *r
	}
	out.Accepted = out.Accepted.WithoutQuote()
	return &out
}

// Bare is p without what its buyer only repeats, the resource and the
// extensions: a facilitator that catalogues nothing needs none of it. A dataset's
// extensions alone are three times as long as all the rest.
func (p *PaymentPayload) Bare() *PaymentPayload {
	out := *p
	out.Resource, out.Extensions = nil, nil
	return &out
}

// WithoutQuote is r as a facilitator may see it.
func (r Requirements) WithoutQuote() Requirements {
	r.Extra.Quote = ""
	if r.Extra.Rest.Find("quote") != nil { // somebody's, and not a string
		r.Extra.Rest = slices.DeleteFunc(slices.Clone(r.Extra.Rest), func(m Member) bool { return m.Name == "quote" })
	}
	return r
}

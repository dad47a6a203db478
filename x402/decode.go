package x402

import (
	"fmt"

	"github.com/402claw/clawr"
)

// fields takes the members of an object out one by one and remembers the
// first thing that was wrong. What nobody took is rest.
type fields struct {
	of   string // what is being read, for messages
	left Object
	err  error
}

func open(of string, raw []byte) *fields {
	o, err := object(raw)
	f := &fields{of: of, left: o}
	if err != nil {
		f.err = fmt.Errorf("%s %w", of, err)
	}
	return f
}

func (f *fields) fail(name, why string) {
	if f.err == nil {
		f.err = fmt.Errorf("%s: %s %s", f.of, name, why)
	}
}

// take is a member's value and removes it; nil if it is absent or null, which
// the protocol does not distinguish.
func (f *fields) take(name string) []byte {
	for i := range f.left {
		if f.left[i].Name == name {
			v := f.left[i].Value
			f.left = append(f.left[:i], f.left[i+1:]...)
			if string(v) == "null" {
				return nil
			}
			return v
		}
	}
	return nil
}

// optional is a string that may be missing.
func (f *fields) optional(name string) string {
	v := f.take(name)
	if v == nil {
		return ""
	}
	if kind(v) != '"' {
		f.fail(name, "is not a string")
		return ""
	}
	return text(v)
}

// required is a string that must be there and not be empty.
func (f *fields) required(name string) string {
	s := f.optional(name)
	if s == "" {
		f.fail(name, "is missing")
	}
	return s
}

func (f *fields) integer(name string) int64 {
	v := f.take(name)
	if v == nil {
		f.fail(name, "is missing")
		return 0
	}
	n, ok := whole(v)
	if !ok {
		f.fail(name, "is not a whole number")
	}
	return n
}

func (f *fields) boolean(name string) bool {
	switch v := f.take(name); string(v) {
	case "true":
		return true
	case "false":
	default: // a string "false" is not false: facilitators were seen to send it
		f.fail(name, "is not true or false")
	}
	return false
}

func (f *fields) members(name string) Object {
	v := f.take(name)
	if v == nil {
		return nil
	}
	o, err := object(v)
	if err != nil {
		f.fail(name, err.Error())
	}
	return o
}

func (f *fields) entries(name string) [][]byte {
	v := f.take(name)
	if v == nil {
		return nil
	}
	a, err := array(v)
	if err != nil {
		f.fail(name, err.Error())
	}
	return a
}

func (f *fields) texts(name string) []string {
	var out []string
	for _, v := range f.entries(name) {
		if kind(v) != '"' {
			f.fail(name, "has an entry that is not a string")
			return nil
		}
		out = append(out, text(v))
	}
	return out
}

// rest is what was not taken, or nil.
func (f *fields) rest() Object {
	if len(f.left) == 0 {
		return nil
	}
	return f.left
}

// decodeResource applies the SDK's ResourceInfoSchema.
func decodeResource(raw []byte) (r ResourceInfo, err error) {
	f := open("resource", raw)
	r.URL = f.required("url")
	r.Description = f.optional("description")
	r.MimeType = f.optional("mimeType")
	if v := f.take("serviceName"); v != nil {
		if kind(v) != '"' || !label(text(v)) {
			f.fail("serviceName", "is not 1 to 32 printable ASCII characters")
		} else {
			r.ServiceName = text(v)
		}
	}
	r.Tags = f.texts("tags")
	for _, t := range r.Tags {
		if !label(t) {
			f.fail("tags", "has one that is not 1 to 32 printable ASCII characters")
		}
	}
	if len(r.Tags) > 5 {
		f.fail("tags", "has more than 5 entries")
	}
	if r.IconURL = f.optional("iconUrl"); len(r.IconURL) > 2048 {
		f.fail("iconUrl", "is longer than 2048")
	}
	return r, f.err
}

func label(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return len(s) >= 1 && len(s) <= 32
}

// decodeRequirements applies PaymentRequirementsV2Schema, except that
// maxTimeoutSeconds must be whole.
func decodeRequirements(raw []byte) (r Requirements, err error) {
	f := open("payment requirements", raw)
	r.Scheme = f.required("scheme")
	r.Network = f.required("network")
	if !caip2(r.Network) {
		f.fail("network", "is not a CAIP-2 name")
	}
	r.Amount = f.required("amount")
	r.common(f)
	return r, f.err
}

// common reads what both versions have, and closes f.
func (r *Requirements) common(f *fields) {
	r.Asset = f.required("asset")
	r.PayTo = f.required("payTo")
	if r.MaxTimeoutSeconds = f.integer("maxTimeoutSeconds"); r.MaxTimeoutSeconds <= 0 {
		f.fail("maxTimeoutSeconds", "is not positive")
	}
	if v := f.take("extra"); v != nil {
		var err error
		if r.Extra, err = decodeExtra(v); err != nil && f.err == nil {
			f.err = err
		}
	}
	r.Rest = f.rest()
}

func decodeExtra(raw []byte) (e Extra, err error) {
	o, err := object(raw)
	if err != nil {
		return e, fmt.Errorf("extra %w", err)
	}
	for _, m := range o {
		to := &e.Quote
		switch m.Name {
		case "name":
			to = &e.Name
		case "version":
			to = &e.Version
		case "quote":
		default:
			to = nil
		}
		if s := m.Value; to != nil && kind(s) == '"' && len(s) > 2 {
			*to = text(s)
		} else {
			e.Rest = append(e.Rest, m)
		}
	}
	return e, nil
}

// decodeRequirementsV1 applies PaymentRequirementsV1Schema. The resource it
// names is returned beside it, since version 2 keeps that elsewhere.
func decodeRequirementsV1(raw []byte) (r Requirements, res ResourceInfo, err error) {
	f := open("payment requirements", raw)
	r.Scheme = f.required("scheme")
	r.Network = FromV1(f.required("network"))
	r.Amount = f.required("maxAmountRequired")
	res.URL = f.required("resource")
	res.Description = f.optional("description")
	res.MimeType = f.optional("mimeType")
	f.take("outputSchema")
	r.common(f)
	return r, res, f.err
}

// decodePayload applies PaymentPayloadSchema, by the version that raw states.
func decodePayload(raw []byte) (p PaymentPayload, err error) {
	f := open("payment payload", raw)
	switch v := f.integer("x402Version"); v {
	case 1:
		p.Version = 1
		p.form1(f)
	case 2:
		p.Version = 2
		if v := f.take("resource"); v != nil {
			r, err := decodeResource(v)
			if err != nil && f.err == nil {
				f.err = err
			}
			p.Resource = &r
		}
		if v := f.take("accepted"); v == nil {
			f.fail("accepted", "is missing")
		} else if p.Accepted, err = decodeRequirements(v); err != nil && f.err == nil {
			f.err = err
		}
		p.scheme(f)
		p.Extensions = f.members("extensions")
	default:
		f.fail("x402Version", "is neither 1 nor 2")
	}
	return p, f.err
}

// form1 reads the version 1 form.
func (p *PaymentPayload) form1(f *fields) {
	p.Accepted.Scheme = f.required("scheme")
	p.Accepted.Network = FromV1(f.required("network"))
	p.scheme(f)
}

func (p *PaymentPayload) scheme(f *fields) {
	switch p.Payload = f.take("payload"); kind(p.Payload) {
	case '{':
	case 0:
		f.fail("payload", "is missing")
	default:
		f.fail("payload", "is not an object")
	}
}

// decodeRequired applies PaymentRequiredSchema.
func decodeRequired(raw []byte) (r PaymentRequired, err error) {
	f := open("payment required", raw)
	v := f.integer("x402Version")
	if v != 1 && v != 2 {
		f.fail("x402Version", "is neither 1 nor 2")
	}
	r.Version = int(v)
	r.Error = f.optional("error")
	if v == 2 {
		if res := f.take("resource"); res == nil {
			f.fail("resource", "is missing")
		} else if r.Resource, err = decodeResource(res); err != nil && f.err == nil {
			f.err = err
		}
		r.Extensions = f.members("extensions")
	}
	for _, e := range f.entries("accepts") {
		var q Requirements
		if v == 2 {
			q, err = decodeRequirements(e)
		} else {
			q, r.Resource, err = decodeRequirementsV1(e)
		}
		if err != nil && f.err == nil {
			f.err = err
		}
		r.Accepts = append(r.Accepts, q)
	}
	if len(r.Accepts) == 0 {
		f.fail("accepts", "is empty")
	}
	return r, f.err
}

// refuse is a reason of the protocol, which is answered with 402.
func refuse(reason clawr.Code, format string, args ...any) error {
	return &clawr.Error{Code: reason, Status: 402, Message: fmt.Sprintf(format, args...),
		Fix: "take the PAYMENT-REQUIRED of this answer and sign a new payment"}
}

package x402

import (
	"strconv"
	"unicode/utf8"
)

// builder appends JSON without reflection: a 402 is the answer that everybody
// gets for nothing, so it must cost nothing.
type builder struct {
	b     []byte
	comma bool
}

func (b *builder) open()  { b.b = append(b.b, '{'); b.comma = false }
func (b *builder) close() { b.b = append(b.b, '}'); b.comma = true }

func (b *builder) name(s string) {
	if b.comma {
		b.b = append(b.b, ',')
	}
	b.b = appendString(b.b, s)
	b.b = append(b.b, ':')
	b.comma = true
}

func (b *builder) string(name, v string) {
	b.name(name)
	b.b = appendString(b.b, v)
}

// some writes the member only if it is not empty.
func (b *builder) some(name, v string) {
	if v != "" {
		b.string(name, v)
	}
}

func (b *builder) int(name string, v int64) {
	b.name(name)
	b.b = strconv.AppendInt(b.b, v, 10)
}

func (b *builder) bool(name string, v bool) {
	b.name(name)
	b.b = strconv.AppendBool(b.b, v)
}

func (b *builder) raw(name string, v []byte) {
	b.name(name)
	b.b = append(b.b, v...)
}

// members writes o's members into the object that is open.
func (b *builder) members(o Object) {
	for _, m := range o {
		b.raw(m.Name, m.Value)
	}
}

// object writes the member only if o is not nil.
func (b *builder) object(name string, o Object) {
	if o == nil {
		return
	}
	b.name(name)
	b.open()
	b.members(o)
	b.close()
}

func (b *builder) texts(name string, v []string) {
	b.name(name)
	b.b = append(b.b, '[')
	for i, s := range v {
		if i > 0 {
			b.b = append(b.b, ',')
		}
		b.b = appendString(b.b, s)
	}
	b.b = append(b.b, ']')
}

// appendString appends s as JSON. What is not UTF-8 becomes U+FFFD.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			if r, n := utf8.DecodeRuneInString(s[i:]); r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
			dst = append(append(dst, s[from:i]...), "\ufffd"...)
		} else {
			dst = append(dst, s[from:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
		}
		i++
		from = i
	}
	return append(append(dst, s[from:]...), '"')
}

func (b *builder) resource(r *ResourceInfo) {
	b.open()
	b.string("url", r.URL)
	b.some("description", r.Description)
	b.some("mimeType", r.MimeType)
	b.some("serviceName", r.ServiceName)
	if len(r.Tags) > 0 {
		b.texts("tags", r.Tags)
	}
	b.some("iconUrl", r.IconURL)
	b.close()
}

func (b *builder) requirements(r *Requirements) {
	b.open()
	b.string("scheme", r.Scheme)
	b.string("network", r.Network)
	b.string("amount", r.Amount)
	b.tail(r)
	b.close()
}

// tail is what both versions have.
func (b *builder) tail(r *Requirements) {
	b.string("asset", r.Asset)
	b.string("payTo", r.PayTo)
	b.int("maxTimeoutSeconds", r.MaxTimeoutSeconds)
	if e := &r.Extra; e.Name != "" || e.Version != "" || e.Quote != "" || e.Rest != nil {
		b.name("extra")
		b.open()
		b.some("name", e.Name)
		b.some("version", e.Version)
		b.members(e.Rest)
		b.some("quote", e.Quote)
		b.close()
	}
	b.members(r.Rest)
}

// v1 is an entry for both versions' readers: see AppendAccepts.
func (b *builder) v1(r *Requirements, name string, res *ResourceInfo) {
	b.open()
	b.string("scheme", r.Scheme)
	b.string("network", name)
	b.string("amount", r.Amount)
	b.string("maxAmountRequired", r.Amount)
	b.string("resource", res.URL)
	b.string("description", res.Description)
	b.string("mimeType", res.MimeType)
	b.tail(r)
	b.close()
}

func (b *builder) required(r *PaymentRequired) {
	b.open()
	b.int("x402Version", Version)
	b.some("error", r.Error)
	b.name("resource")
	b.resource(&r.Resource)
	b.name("accepts")
	b.b = append(b.b, '[')
	for i := range r.Accepts {
		if i > 0 {
			b.b = append(b.b, ',')
		}
		b.requirements(&r.Accepts[i])
	}
	b.b = append(b.b, ']')
	b.comma = true
	b.object("extensions", r.Extensions)
	b.close()
}

func (b *builder) payload(p *PaymentPayload) {
	b.open()
	if p.Version == 1 {
		b.int("x402Version", 1)
		b.string("scheme", p.Accepted.Scheme)
		b.string("network", orV1(p.Accepted.Network))
		b.raw("payload", p.Payload)
		b.close()
		return
	}
	b.int("x402Version", Version)
	if p.Resource != nil {
		b.name("resource")
		b.resource(p.Resource)
	}
	b.name("accepted")
	b.requirements(&p.Accepted)
	b.raw("payload", p.Payload)
	b.object("extensions", p.Extensions)
	b.close()
}

func (b *builder) settled(r *SettleResponse) {
	b.open()
	b.bool("success", r.Success)
	b.some("errorReason", string(r.ErrorReason))
	b.some("errorMessage", r.ErrorMessage)
	b.some("payer", r.Payer)
	b.string("transaction", r.Transaction)
	b.string("network", r.Network)
	b.some("amount", r.Amount)
	b.object("extensions", r.Extensions)
	b.object("extra", r.Extra)
	b.close()
}

func orV1(network string) string {
	if name := V1Name(network); name != "" {
		return name
	}
	return network
}

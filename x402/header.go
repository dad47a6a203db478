package x402

import (
	"encoding/base64"
	"fmt"

	"github.com/402claw/clawr"
)

// ParsePayment reads PAYMENT-SIGNATURE. Its errors have the code
// invalid_payment_header and the status 400.
func ParsePayment(header string) (*PaymentPayload, error) {
	raw, err := fromHeader(HeaderSignature, header)
	if err != nil {
		return nil, err
	}
	p, err := decodePayload(raw)
	if err == nil && p.Version != 2 {
		err = fmt.Errorf("payment payload: x402Version is not 2")
	}
	if err != nil {
		return nil, badHeader("PAYMENT-SIGNATURE", err)
	}
	return &p, nil
}

// ParsePaymentV1 reads X-PAYMENT. Version 1's own client copies x402Version
// from the body of the 402, so that it says 2 to a server that speaks both;
// the form is version 1's all the same. Errors are those of ParsePayment.
func ParsePaymentV1(header string) (*PaymentPayload, error) {
	raw, err := fromHeader(HeaderPaymentV1, header)
	if err != nil {
		return nil, err
	}
	f := open("payment payload", raw)
	if v := f.integer("x402Version"); v != 1 && v != 2 {
		f.fail("x402Version", "is neither 1 nor 2")
	}
	p := &PaymentPayload{Version: 1}
	p.form1(f)
	if f.err != nil {
		return nil, badHeader("X-PAYMENT", f.err)
	}
	return p, nil
}

// ParseRequired reads PAYMENT-REQUIRED.
func ParseRequired(header string) (*PaymentRequired, error) {
	raw, err := fromHeader(HeaderRequired, header)
	if err != nil {
		return nil, err
	}
	r, err := decodeRequired(raw)
	if err == nil && r.Version != 2 {
		err = fmt.Errorf("payment required: x402Version is not 2")
	}
	if err != nil {
		return nil, badHeader("PAYMENT-REQUIRED", err)
	}
	return &r, nil
}

// ParseRequiredBody reads the body of a 402 whose server speaks version 1
// alone. A server of version 2 sends the header.
func ParseRequiredBody(body []byte) (*PaymentRequired, error) {
	r, err := decodeBody(body, decodeRequired)
	if err != nil {
		return nil, err
	}
	return &r, nil
}

// ParseResponse reads PAYMENT-RESPONSE or X-PAYMENT-RESPONSE.
func ParseResponse(header string) (*SettleResponse, error) {
	raw, err := fromHeader(HeaderResponse, header)
	if err != nil {
		return nil, err
	}
	r, err := decodeSettle(raw)
	if err != nil {
		return nil, badHeader("PAYMENT-RESPONSE", err)
	}
	return &r, nil
}

// Header is r as PAYMENT-REQUIRED.
func (r *PaymentRequired) Header() string {
	b := builder{b: make([]byte, 0, 1024)}
	b.required(r)
	return toHeader(b.b)
}

// Header is p as PAYMENT-SIGNATURE, or as X-PAYMENT if its version is 1.
func (p *PaymentPayload) Header() string {
	b := builder{b: make([]byte, 0, 1024)}
	b.payload(p)
	return toHeader(b.b)
}

// Header is r as PAYMENT-RESPONSE.
func (r *SettleResponse) Header() string {
	b := builder{b: make([]byte, 0, 256)}
	b.settled(r)
	return toHeader(b.b)
}

// AppendAccepts appends the accepts array of a 402's body. The header is for
// version 2; the body serves version 1's clients, which refuse a list with any
// network that they do not know. So if any entry has a name there, only those
// are listed, with both versions' fields, and else all as version 2 has them.
// There is no outputSchema: null is not allowed where it may be missing.
func (r *PaymentRequired) AppendAccepts(dst []byte) []byte {
	b := builder{b: append(dst, '[')}
	empty := len(b.b)
	for i := range r.Accepts {
		q := &r.Accepts[i]
		name := V1Name(q.Network)
		if name == "" || q.Scheme != SchemeExact {
			continue
		}
		if len(b.b) > empty {
			b.b = append(b.b, ',')
		}
		b.v1(q, name, &r.Resource)
	}
	if len(b.b) == empty {
		for i := range r.Accepts {
			if i > 0 {
				b.b = append(b.b, ',')
			}
			b.requirements(&r.Accepts[i])
		}
	}
	return append(b.b, ']')
}

// toHeader encodes in the spare room of json, so that a header costs the
// string and, if json did not fit, nothing else.
func toHeader(json []byte) string {
	n := len(json)
	b := base64.StdEncoding.AppendEncode(json, json)
	return string(b[n:])
}

// fromHeader undoes base64 (the standard alphabet, padded, canonical: what is
// signed and replayed must have one spelling) and checks the JSON.
func fromHeader(name, header string) ([]byte, error) {
	if len(header) > MaxHeader {
		return nil, badHeader(name, fmt.Errorf("it has %d bytes, at most %d are read", len(header), MaxHeader))
	}
	if header == "" {
		return nil, badHeader(name, fmt.Errorf("it is empty"))
	}
	for i := range len(header) { // DecodeString would skip line ends
		if header[i] < 0x20 {
			return nil, badHeader(name, fmt.Errorf("it is not standard base64: control character at byte %d", i))
		}
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(header)
	if err != nil {
		return nil, badHeader(name, fmt.Errorf("it is not standard base64: %w", err))
	}
	if err := checkJSON(raw); err != nil {
		return nil, badHeader(name, fmt.Errorf("it is not JSON: %w", err))
	}
	return raw[space(raw, 0):], nil
}

func badHeader(name string, err error) error {
	return &clawr.Error{Code: clawr.CodeBadHeader, Param: name, Message: "cannot read " + name + ": " + err.Error(),
		Fix: "send base64 (standard alphabet, padded) of the JSON object that protocol version 2 describes"}
}

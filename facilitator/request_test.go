package facilitator_test

import (
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/x402"
)

// request asks for what p's buyer accepted.
func request(p *x402.PaymentPayload) facilitator.Request {
	return facilitator.Request{Payload: p, Requirements: p.Accepted, RequestedBy: "test"}
}

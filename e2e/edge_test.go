package e2e

import (
	"net/http"
	"testing"
)

// The official client pays at the edge, by path and by host, and its resend is
// answered with the same bytes.
func TestEdgeIsPaidByTheOfficialClient(t *testing.T) {
	t.Parallel()
	c := devChain(t, "--like-base-sepolia")
	e, url := shop(t, c, nil)
	buyer := c.account(t, 1_000_000)
	got := report(t, script(t, "fetch-v2.mjs", "URL="+url+"?limit=1", "PRIVATE_KEY="+buyer.Reveal(), "COUNT=2", "REPLAY=2"))
	for _, p := range append(got.Payments, got.Replays...) {
		if p.Status != http.StatusOK || len(p.Body.Data) != 1 || p.PaymentResponse == nil || !p.PaymentResponse.Success {
			t.Fatalf("a paid call was answered %+v", p)
		}
		transferred(t, c, p.PaymentResponse.Transaction, buyer.Address(), e.payTo, 1000)
	}
	if earned := c.balance(t, e.payTo); earned != 2000 {
		t.Errorf("the seller has %d, want 2000", earned)
	}
}

package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
)

// payer takes any signature of 65 ones, as main takes the seller's.
type payer struct{ *store.DB }

func (p payer) Repay(ctx context.Context, r ledger.Refund, validBefore int64, signature []byte, by string) error {
	if !bytes.Equal(signature, bytes.Repeat([]byte{1}, 65)) {
		return &clawr.Error{Code: "invalid_exact_evm_signature", Status: http.StatusConflict, Message: "the signature is not the seller's", Fix: "use the seller's key"}
	}
	r.Nonce, r.ValidBefore, r.Payload = ledger.RefundNonce(r.Payment), validBefore, []byte(`{"secret":"payload"}`)
	return p.SignRefund(ctx, r, by)
}

// owed is a payment of 1000 units that was charged for good, and whose work failed.
func (w *world) owed() ledger.Payment {
	w.t.Helper()
	ctx := w.t.Context()
	tenant, err := w.db.Deploy(ctx, clawr.Tenant{Slug: "gold", Manifest: clawr.Manifest{Owner: "ann", PayTo: someone}}, "ann")
	if err != nil {
		w.t.Fatal(err)
	}
	p := ledger.Payment{ID: "pay_0123456789abcdef", TenantID: tenant.ID, Version: tenant.Version, Scheme: "exact", PayTo: someone, Amount: 1000, ValidBefore: 2_000_000_000,
		Key:         ledger.Key{Network: "eip155:31337", Asset: someone, Payer: "0x00000000000000000000000000000000000000b1", Nonce: "0x" + strings.Repeat("1", 64)},
		Fingerprint: "f", Payload: []byte(`{"secret":"payload"}`), PayloadSHA256: "p", SignatureSHA256: "s", Policy: ledger.SettleFirst}
	p, err = w.db.Reserve(ctx, p, "node", time.Minute)
	if err != nil {
		w.t.Fatal(err)
	}
	at := ledger.Evidence{Tx: "0x1", BlockNumber: 1, BlockHash: "0x2"}
	err = errors.Join(w.db.Submit(ctx, p.ID, p.Epoch, "https://facilitator.example.com"), w.db.Paid(ctx, p.Key, at), w.db.Start(ctx, p.ID, p.Epoch),
		w.db.Fail(ctx, p.ID, p.Epoch, clawr.CodeWorkerFailure, usage.Event{}), w.db.Final(ctx, p.Key, at.BlockHash))
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func TestRefundsAreShownAndSignedForOnce(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.Handler.Assets = []clawr.Asset{{Network: "eip155:31337", Address: someone, Name: "USDC", Version: "2", Decimals: 6}}
	p := w.owed()
	list, err := w.Client.OpenRefunds(ctx, 10)
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	r := list[0]
	if r.Payment != p.ID || r.From != someone || r.To != p.Payer || r.Amount != "1000" || r.AmountUSD != "0.001" || r.State != ledger.RefundDue || !r.Payable ||
		r.Charged != p.Nonce || r.Nonce != ledger.RefundNonce(p.Key) || r.Token == nil || r.Token.Name != "USDC" {
		t.Errorf("due as %+v", r)
	}
	ones := bytes.Repeat([]byte{1}, 65)
	_, err = w.Client.Repay(ctx, p.ID, 1000, bytes.Repeat([]byte{2}, 65))
	wantCode(t, err, "invalid_exact_evm_signature", "seller's key")
	first, err := w.Client.Repay(ctx, p.ID, 1000, ones)
	if err != nil || first.State != ledger.RefundSigned || first.Payable || first.ValidBefore.Unix() != 1000 {
		t.Errorf("signed as %+v, %v", first, err)
	}
	again, err := w.Client.Repay(ctx, p.ID, 2000, ones)
	if err != nil || again.ValidBefore.Unix() != 1000 {
		t.Errorf("signed again as %+v, %v", again, err)
	}
	for state, want := range map[string]int{"due": 0, "signed": 1, "final": 0} {
		list, err := w.Client.Payments(ctx, PaymentQuery{Refund: state})
		if err != nil || len(list) != want || want == 1 && list[0].Refund.State != ledger.RefundSigned {
			t.Errorf("%s: %+v, %v", state, list, err)
		}
	}
	if err := w.db.RefundSeen(ctx, p.ID, ledger.Evidence{Tx: "0x3", BlockNumber: 3, BlockHash: "0x4"}, true); err != nil {
		t.Fatal(err)
	}
	shown, err := w.Client.Payment(ctx, p.ID)
	if err != nil || shown.Refund == nil || shown.Refund.State != ledger.RefundFinal || shown.Refund.Transaction != "0x3" || shown.History[len(shown.History)-1].What != "refund final" {
		t.Errorf("final as %+v, %v", shown, err)
	}
	if list, err := w.Client.OpenRefunds(ctx, 10); err != nil || len(list) != 0 {
		t.Errorf("open: %+v, %v", list, err)
	}
	if b, _ := json.Marshal(shown); strings.Contains(string(b), "secret") {
		t.Errorf("it shows %s", b)
	}
}

func TestRefundsThatNobodyIsOwed(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	p := w.owed()
	for _, c := range []struct {
		method, path, body string
		status             int
		code               string
	}{
		{"GET", "/v1/payments/pay_none/refund", "", 404, "not_found"},
		{"POST", "/v1/payments/pay_none/refund", `{"validBefore":1,"signature":"0x` + strings.Repeat("01", 65) + `"}`, 404, "not_found"},
		{"POST", "/v1/payments/" + p.ID + "/refund", `{"validBefore":1,"signature":"0x01"}`, 400, "invalid_request"},
		{"POST", "/v1/payments/" + p.ID + "/refund", `{"validBefore":1,"signature":"0x` + strings.Repeat("0+", 65) + `"}`, 400, "invalid_request"},
		{"POST", "/v1/payments/" + p.ID + "/refund", `{"amount":"1"}`, 400, "invalid_request"},
		{"GET", "/v1/refunds?limit=0", "", 400, "invalid_request"},
		{"GET", "/v1/payments?refund=lost", "", 400, "invalid_request"},
	} {
		if status, _, body := w.call(c.method, c.path, c.body); status != c.status || body["error"] != c.code || body["fix"] == "" {
			t.Errorf("%s %s: %d %v, want %d %s", c.method, c.path, status, body, c.status, c.code)
		}
	}
	other := p
	other.ID, other.Nonce, other.Policy = "pay_fedcba9876543210", "0x"+strings.Repeat("2", 64), ledger.SettleBeforeResponse
	if _, err := w.db.Reserve(ctx, other, "node", time.Minute); err != nil {
		t.Fatal(err)
	}
	_, err := w.Client.Refund(ctx, other.ID)
	wantCode(t, err, clawr.CodeConflict, "clawr payments show")
	reader := Principal{Name: "reader", Scopes: []string{PaymentsRead}}
	w.as = &reader
	_, err = w.Client.Repay(ctx, p.ID, 1000, bytes.Repeat([]byte{1}, 65))
	wantCode(t, err, clawr.CodeScopeMissing, FacilitatorSettle)
	if _, err := w.Client.Refund(ctx, p.ID); err != nil {
		t.Error(err)
	}
}

package facilitator

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
)

const (
	ours   = "eip155:84532"
	aHash  = "0x00000000000000000000000000000000000000000000000000000000000000a1"
	aPayer = "0x00000000000000000000000000000000000000aa"
)

func TestTransactionHashes(t *testing.T) {
	for s, want := range map[string]string{
		aHash: aHash, strings.ToUpper(aHash): aHash, "": "", "0x": "", aHash[2:]: "", aHash + "0": "", aHash[:65] + "g": "",
		"0x" + strings.Repeat("0", 64): "", " " + aHash[1:]: "",
	} {
		if got := txHash(s); got != want {
			t.Errorf("%q is read as %q, want %q", s, got, want)
		}
	}
}

func TestAnswersOnVersion1sNetwork(t *testing.T) {
	h := readSettle(200, []byte(`{"success":true,"transaction":"`+aHash+`","network":"base-sepolia"}`), ours)
	if h.said != saidPaid || h.tx != aHash {
		t.Errorf("%+v", h)
	}
}

// Whatever a facilitator makes of its answer, success needs all four: a 2xx,
// the boolean, a transaction, our network.
func TestLawNothingButACompleteSuccessIsOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		status := rapid.SampledFrom([]int{200, 201, 202, 302, 400, 402, 500}).Draw(t, "status")
		success := rapid.SampledFrom([]string{"true", "false", `"true"`, "1", "null"}).Draw(t, "success")
		tx := rapid.SampledFrom([]string{aHash, "", "0x", "done"}).Draw(t, "tx")
		network := rapid.SampledFrom([]string{ours, "base-sepolia", "eip155:1", ""}).Draw(t, "network")
		reason := rapid.SampledFrom([]string{"", "settlement_pending", "insufficient_funds", "Pay <b>me</b>"}).Draw(t, "reason")
		id := rapid.SampledFrom([]string{"", `,"paymentId":"p"`}).Draw(t, "id")
		body := `{"success":` + success + `,"transaction":"` + tx + `","network":"` + network + `","errorReason":"` + reason + `"` + id + `}`
		h := readSettle(status, []byte(body), ours)
		whole := (status == 200 || status == 201) && success == "true" && tx == aHash && (network == ours || network == "base-sepolia")
		if (h.said == saidPaid) != whole {
			t.Fatalf("%d %s is %+v", status, body, h)
		}
		if h.said == saidRejected && success != "false" {
			t.Fatalf("%d %s is a rejection", status, body)
		}
		if strings.Contains(string(h.reason), "<") {
			t.Fatalf("%d %s: a stranger's words come through: %s", status, body, h.reason)
		}
	})
}

func FuzzReadSettle(f *testing.F) {
	for _, s := range []string{`{"success":true,"transaction":"` + aHash + `","network":"` + ours + `"}`, `{"success":false,"paymentId":"p"}`, `{}`, `null`, `[`,
		`{"success":"true","transaction":null}`, `{"success":true,"success":false}`} {
		f.Add(200, []byte(s))
	}
	f.Add(202, []byte{})
	f.Add(500, []byte(`{"success":false,"errorReason":"settlement_pending","transaction":"`+aHash+`","network":""}`))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		h := readSettle(status, body, ours)
		if h.tx != "" && len(h.tx) != 66 {
			t.Errorf("transaction %q", h.tx)
		}
		if h.said != saidPaid {
			return
		}
		var r struct {
			Success     bool
			Transaction string
			Network     string
		}
		if err := json.Unmarshal(body, &r); err != nil || !r.Success || status < 200 || status > 299 || h.tx != strings.ToLower(r.Transaction) {
			t.Errorf("%d %q is a success: %+v, %v", status, body, h, err)
		}
	})
}

func FuzzReadVerify(f *testing.F) {
	for _, s := range []string{`{"isValid":true}`, `{"isValid":"false"}`, `{"isValid":false,"invalidReason":"x"}`, `{"isValid":true,"payer":"` + aPayer + `"}`, `[]`, `{"isValid":1}`} {
		f.Add(200, []byte(s))
		f.Add(400, []byte(s))
	}
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		v, ok := readVerify(status, body, aPayer)
		if !ok && v.IsValid {
			t.Errorf("%d %q is valid and no verdict", status, body)
		}
		if !ok {
			return
		}
		var r struct{ IsValid *bool }
		if err := json.Unmarshal(body, &r); err != nil || r.IsValid == nil || *r.IsValid != v.IsValid || v.IsValid && (status < 200 || status > 299) {
			t.Errorf("%d %q is %+v, %v", status, body, v, err)
		}
		if !v.IsValid && v.InvalidReason == "" || v.Payer != aPayer {
			t.Errorf("%d %q is %+v", status, body, v)
		}
	})
}

func TestReasonsAreWordsOfTheProtocol(t *testing.T) {
	for s, want := range map[clawr.Code]clawr.Code{
		"invalid_exact_evm_signature": "invalid_exact_evm_signature", "": clawr.CodePaymentRejected, "Bad thing": clawr.CodePaymentRejected,
		"x\ny": clawr.CodePaymentRejected, clawr.Code(strings.Repeat("a", 81)): clawr.CodePaymentRejected,
	} {
		if got := reasonOf(s); got != want {
			t.Errorf("%q becomes %q", s, got)
		}
	}
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusTooManyRequests, http.StatusRequestTimeout} {
		if verdictStatus(status) {
			t.Errorf("%d is taken for a verdict on the payment", status)
		}
	}
}

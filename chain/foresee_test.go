package chain_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"os"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
)

func TestForeseeIsOfItsSource(t *testing.T) {
	var a struct{ SourceSHA256 string }
	b, err := os.ReadFile("contracts/Foresee.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &a); err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("contracts/Foresee.sol")
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(source); hex.EncodeToString(sum[:]) != a.SourceSHA256 {
		t.Error("Foresee.json is not of this Foresee.sol: node chain/contracts/compile.mjs")
	}
}

// Many transfers are probed in one round trip, and each as it would be alone.
func TestManyTransfersAreProbedInOneRoundTrip(t *testing.T) {
	w := newWorld(t)
	n := proxy(t, w.URL(), nil)
	cl := dial(t, n.URL)
	used := w.transfer(t, 10, 1)
	if _, _, err := w.cl.Submit(t.Context(), w.build(t, w.cl, used), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	tampered := w.transfer(t, 10, 2)
	tampered.Nonce[0] ^= 1
	contract := w.transfer(t, 10, 3)
	contract.Payer = deploy(t, w, "NoopUSD")
	account := w.transfer(t, 10, 4)
	account.Asset = w.shop
	low := w.transfer(t, 10, 5)
	low.Signature[64] -= 27
	ts := []chain.Transfer{w.transfer(t, 10, 6), used, tampered, w.transfer(t, 5_000_000, 7), contract, account, low}
	for i := range 200 {
		ts = append(ts, w.transfer(t, 10, int64(100+i)))
	}
	before := n.calls.Load()
	ps, err := cl.ProbeAll(t.Context(), w.signer.Address(), ts, 150_000)
	if err != nil {
		t.Fatal(err)
	}
	if trips := n.calls.Load() - before; trips != 1 {
		t.Errorf("%d round trips, want 1", trips)
	}
	for i, p := range ps {
		reason := ""
		if p.Rejection != nil {
			reason = p.Rejection.Reason.String()
		}
		want := map[int]string{1: "nonce used", 2: "reverted", 3: "balance", 4: "balance"}[i]
		if i == 5 {
			if clawr.CodeOf(p.Err) != clawr.CodeNoContract {
				t.Errorf("an asset without code: %v", p.Err)
			}
			continue
		}
		if reason != want || p.Used != (i == 1) || p.Contract != (i == 4) || p.Err != nil {
			t.Errorf("number %d: %+v (%s), want %q", i, p, reason, want)
		}
		if want == "" && (p.Gas < 25_000 || p.Gas > 100_000) {
			t.Errorf("number %d took %d gas", i, p.Gas)
		}
		if p.Rejection != nil && i < 4 {
			alone, err := cl.Probe(t.Context(), w.signer.Address(), ts[i], 150_000)
			if err != nil || alone.Rejection == nil || alone.Rejection.Message != p.Rejection.Message && i != 1 {
				t.Errorf("number %d says %q, alone %+v, %v", i, p.Rejection.Message, alone.Rejection, err)
			}
		}
	}
}

// Each transfer finds what the ones before it left: two that a payer can
// afford one of are not both foretold to go through.
func TestProbesOfABatchAddUp(t *testing.T) {
	w := newWorld(t)
	have, err := w.cl.TokenBalance(t.Context(), w.asset, w.payer.Address())
	if err != nil {
		t.Fatal(err)
	}
	ts := []chain.Transfer{w.transfer(t, have.Int64(), 1), w.transfer(t, 1, 2), w.transfer(t, have.Int64(), 3)}
	ps, err := w.cl.ProbeAll(t.Context(), w.signer.Address(), ts, 150_000)
	if err != nil || ps[0].Rejection != nil || ps[1].Rejection == nil || ps[2].Rejection == nil {
		t.Fatalf("%+v, %v", ps, err)
	}
	if ps[1].Rejection.Reason != chain.Balance {
		t.Errorf("the second is refused for %s", ps[1].Rejection.Reason)
	}
}

// A node that answers calls with anything else is asked for each by itself.
func TestANodeWithoutForesightIsAskedForEach(t *testing.T) {
	w := newWorld(t)
	plain := func(params []json.RawMessage) (any, int, string) {
		var call struct{ To *string }
		if json.Unmarshal(params[0], &call) == nil && call.To == nil {
			return nil, -32602, "to is missing"
		}
		return forward(w, "eth_call", params)
	}
	cl := dial(t, proxy(t, w.URL(), map[string]func([]json.RawMessage) (any, int, string){"eth_call": plain}).URL)
	ps, err := cl.ProbeAll(t.Context(), w.signer.Address(), []chain.Transfer{w.transfer(t, 10, 1), w.transfer(t, 5_000_000, 2)}, 150_000)
	if err != nil || ps[0].Rejection != nil || ps[1].Rejection == nil || ps[1].Rejection.Reason != chain.Balance {
		t.Errorf("%+v, %v", ps, err)
	}
	if _, err := dial(t, proxy(t, w.URL(), map[string]func([]json.RawMessage) (any, int, string){"eth_call": refuse(-32005, "limit exceeded")}).URL).
		ProbeAll(t.Context(), w.signer.Address(), []chain.Transfer{w.transfer(t, 10, 1), w.transfer(t, 10, 2)}, 150_000); err == nil {
		t.Error("a provider that refuses everything gives probes")
	}
}

// forward has the chain answer.
func forward(w *world, method string, params []json.RawMessage) (any, int, string) {
	body, _ := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
	resp, err := http.Post(w.URL(), "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, -32000, err.Error()
	}
	defer resp.Body.Close()
	var out struct {
		Result any
		Error  *struct {
			Code    int
			Message string
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return nil, -32000, err.Error()
	}
	if out.Error != nil {
		return nil, out.Error.Code, out.Error.Message
	}
	return out.Result, 0, ""
}

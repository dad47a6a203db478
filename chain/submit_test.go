package chain_test

import (
	"bytes"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum/common"
)

func TestAPaidCallTakesTwoRoundTrips(t *testing.T) {
	w := newWorld(t)
	n := proxy(t, w.URL(), nil)
	cl := dial(t, n.URL)
	if _, err := cl.Fees(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := n.calls.Load()
	tr := w.transfer(t, 10, 1)
	if r, err := cl.Simulate(t.Context(), w.signer.Address(), tr, 150_000); r != nil || err != nil {
		t.Fatal(r, err)
	}
	fees, err := cl.Fees(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tx, err := cl.BuildTransfer(w.signer, 0, fees, 150_000, tr)
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := cl.Submit(t.Context(), tx, 5*time.Second)
	if err != nil || r.Find(tr).Use != chain.Paid || r.Time.IsZero() {
		t.Fatalf("%+v, %v", r, err)
	}
	if got := n.calls.Load() - before; got != 2 {
		t.Errorf("%d round trips, want 2: the simulation and the transaction", got)
	}
}

func TestSubmitToANodeWithoutSync(t *testing.T) {
	w := newWorld(t)
	n := int64(0)
	for name, answer := range map[string]func([]json.RawMessage) (any, int, string){
		"by its code":        refuse(-32601, "the method eth_sendRawTransactionSync does not exist/is not available"),
		"in words":           refuse(-32000, "Unsupported method: eth_sendRawTransactionSync"),
		"a limit of its own": refuse(4, "the transaction was added to the pool but was not mined in time"),
	} {
		cl := dial(t, proxy(t, w.URL(), map[string]func([]json.RawMessage) (any, int, string){
			"eth_sendRawTransactionSync": func(p []json.RawMessage) (any, int, string) {
				result, code, message := answer(p)
				if code == 4 { // it did take the transaction
					var raw string
					json.Unmarshal(p[0], &raw)
					if err := w.cl.Ask(t.Context(), new(common.Hash), "eth_sendRawTransaction", raw); err != nil {
						return nil, -32000, "nonce too low: it is in a block"
					}
				}
				return result, code, message
			}}).URL)
		for range 2 {
			n++
			tr := w.transfer(t, 10, n)
			tx := w.build(t, cl, tr)
			r, outcome, err := cl.Submit(t.Context(), tx, 5*time.Second)
			if err != nil || outcome != chain.Sent || r == nil || r.Find(tr).Use != chain.Paid {
				t.Fatalf("%s: %+v, %v, %v", name, r, outcome, err)
			}
			// Again: it is in a block, and that is what the answer says; or that it is
			// in the pool, which hears of the block a moment later.
			r, outcome, err = cl.Submit(t.Context(), tx, 5*time.Second)
			if err != nil || outcome != chain.NonceTooLow && outcome != chain.Known || r == nil || r.Find(tr).Use != chain.Paid {
				t.Fatalf("%s, again: %+v, %v, %v", name, r, outcome, err)
			}
		}
	}
}

// A gateway may answer HTTP 403 to a method that it does not let through.
func TestSubmitThroughAGateway(t *testing.T) {
	w := newWorld(t)
	var sync atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if bytes.Contains(body, []byte("eth_sendRawTransactionSync")) {
			sync.Add(1)
			http.Error(rw, "no", http.StatusForbidden)
			return
		}
		resp, err := http.Post(w.URL(), "application/json", bytes.NewReader(body))
		if err != nil {
			http.Error(rw, "", http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		io.Copy(rw, resp.Body)
	}))
	t.Cleanup(s.Close)
	cl := dial(t, s.URL)
	for n := range int64(2) {
		tr := w.transfer(t, 10, n+1)
		r, outcome, err := cl.Submit(t.Context(), w.build(t, cl, tr), 5*time.Second)
		if err != nil || outcome != chain.Sent || r == nil || r.Find(tr).Use != chain.Paid {
			t.Fatalf("%+v, %v, %v", r, outcome, err)
		}
	}
	if sync.Load() != 1 {
		t.Errorf("the gateway was asked %d times for what it does not let through, want once", sync.Load())
	}
}

func TestBroadcastOutcomes(t *testing.T) {
	w := newWorld(t)
	tr := w.transfer(t, 10, 1)
	tx := w.build(t, w.cl, tr)
	said := ""
	n := proxy(t, w.URL(), map[string]func([]json.RawMessage) (any, int, string){
		"eth_sendRawTransaction": func([]json.RawMessage) (any, int, string) { return nil, -32000, said }})
	cl := dial(t, n.URL)
	for message, want := range map[string]chain.Outcome{
		"already known":                                                       chain.Known,
		"transaction already imported":                                        chain.Known,
		"AlreadyKnown":                                                        chain.Known,
		"nonce too low: next nonce 5, tx nonce 4":                             chain.NonceTooLow,
		"replacement transaction underpriced":                                 chain.Underpriced,
		"transaction underpriced: gas tip cap 0, minimum needed 1":            chain.Underpriced,
		"max fee per gas less than block base fee: address 0x1, maxFeePerGas": chain.Underpriced,
		"insufficient funds for gas * price + value: balance 0":               chain.Refused,
		"exceeds block gas limit":                                             chain.Refused,
	} {
		said = message
		o, err := cl.Broadcast(t.Context(), tx.Raw)
		if o != want || (err != nil) != (want == chain.Refused) {
			t.Errorf("%q: %v, %v, want %v", message, o, err, want)
		}
		if strings.HasPrefix(message, "insufficient funds") &&
			(clawr.CodeOf(err) != clawr.CodeUnfunded || !strings.Contains(err.Error(), strings.ToLower(w.signer.Address().Hex()))) {
			t.Errorf("%q: %v, want code %s and the signer", message, err, clawr.CodeUnfunded)
		}
	}
	n.CloseClientConnections()
	n.Listener.Close()
	if o, err := cl.Broadcast(t.Context(), tx.Raw); o != chain.Unanswered || clawr.CodeOf(err) != clawr.CodeUnreachable {
		t.Errorf("the node is gone: %v, %v, want unanswered", o, err)
	}
}

func TestUnfundedSigner(t *testing.T) {
	w := newWorld(t)
	w.signer = newKey(t)
	tr := w.transfer(t, 10, 1)
	tx := w.build(t, w.cl, tr)
	if r, o, err := w.cl.Submit(t.Context(), tx, 5*time.Second); r != nil || o != chain.Refused || clawr.CodeOf(err) != clawr.CodeUnfunded {
		t.Errorf("%v, %v, %v, want code %s", r, o, err, clawr.CodeUnfunded)
	}
	if err := w.cl.NeedFunds(t.Context(), w.signer.Address(), big.NewInt(1)); clawr.CodeOf(err) != clawr.CodeUnfunded {
		t.Errorf("%v, want code %s", err, clawr.CodeUnfunded)
	}
	if err := w.cl.NeedFunds(t.Context(), w.payer.Address(), big.NewInt(1)); err != nil {
		t.Error(err)
	}
}

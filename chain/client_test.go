package chain_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/chain/devchain"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/rpc"
)

// world is a development chain with a payer and a signer who have money.
type world struct {
	*devchain.Chain
	cl            *chain.Client
	payer, signer *chain.Key
	asset, shop   common.Address
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOn(t, devchain.Options{})
}

// newStillWorld is one whose chain's clock stands still: it makes no block
// because the last is old, so that its head is the same until somebody pays.
func newStillWorld(t testing.TB) *world {
	t.Helper()
	now := time.Now()
	return newWorldOn(t, devchain.Options{Now: func() time.Time { return now }})
}

func newWorldOn(t testing.TB, o devchain.Options) *world {
	t.Helper()
	c, err := devchain.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	w := &world{Chain: c, cl: dial(t, c.URL()), payer: newKey(t), signer: newKey(t),
		asset: common.HexToAddress(c.Asset().Address), shop: newKey(t).Address()}
	for _, k := range []*chain.Key{w.payer, w.signer} {
		if err := c.Fund(t.Context(), k.Address(), big.NewInt(1e18), 1_000_000); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

func dial(t testing.TB, url string) *chain.Client {
	t.Helper()
	cl, err := chain.Dial(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func newKey(t testing.TB) *chain.Key {
	t.Helper()
	k, err := chain.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// transfer is a signed authorization with nonce n.
func (w *world) transfer(t testing.TB, amount, n int64) chain.Transfer {
	t.Helper()
	_, head := w.Head()
	tr := chain.Transfer{Asset: w.asset, Payer: w.payer.Address(), PayTo: w.shop, Amount: amount, ValidBefore: head.Unix() + 600,
		Nonce: common.BigToHash(big.NewInt(n))}
	word := func(v int64) []byte { return common.BigToHash(big.NewInt(v)).Bytes() }
	addr := func(a common.Address) []byte { return common.BytesToHash(a[:]).Bytes() }
	domain := crypto.Keccak256(
		crypto.Keccak256([]byte("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")),
		crypto.Keccak256([]byte("USDC")), crypto.Keccak256([]byte("2")), word(w.ChainID()), addr(w.asset))
	s := crypto.Keccak256(
		crypto.Keccak256([]byte("TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)")),
		addr(tr.Payer), addr(tr.PayTo), word(amount), word(0), word(tr.ValidBefore), tr.Nonce[:])
	sig, err := w.payer.SignHash(crypto.Keccak256([]byte{0x19, 1}, domain, s))
	if err != nil {
		t.Fatal(err)
	}
	tr.Signature = sig
	return tr
}

func (w *world) build(t testing.TB, cl *chain.Client, tr chain.Transfer) chain.Tx {
	t.Helper()
	nonce, err := cl.NonceAt(t.Context(), w.signer.Address())
	if err != nil {
		t.Fatal(err)
	}
	fees, err := cl.Fees(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tx, err := cl.BuildTransfer(w.signer, nonce, fees, 150_000, tr)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// node is a node between a client and the chain that answers some methods itself.
type node struct {
	*httptest.Server
	answers map[string]func(params []json.RawMessage) (result any, code int, message string)
	calls   atomic.Int64 // round trips
}

func proxy(t testing.TB, upstream string, answers map[string]func([]json.RawMessage) (any, int, string)) *node {
	n := &node{answers: answers}
	type request struct {
		ID     json.RawMessage   `json:"id"`
		Method string            `json:"method"`
		Params []json.RawMessage `json:"params"`
	}
	one := func(raw []byte) json.RawMessage {
		var req request
		json.Unmarshal(raw, &req)
		if f := n.answers[req.Method]; f != nil {
			result, code, message := f(req.Params)
			out := map[string]any{"jsonrpc": "2.0", "id": req.ID, "result": result}
			if code != 0 {
				delete(out, "result")
				out["error"] = map[string]any{"code": code, "message": message}
			}
			b, _ := json.Marshal(out)
			return b
		}
		resp, err := http.Post(upstream, "application/json", bytes.NewReader(raw))
		if err != nil {
			return json.RawMessage(`{}`)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return b
	}
	n.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.calls.Add(1)
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		var batch []json.RawMessage
		if json.Unmarshal(body, &batch) != nil {
			w.Write(one(body))
			return
		}
		for i := range batch {
			batch[i] = one(batch[i])
		}
		json.NewEncoder(w).Encode(batch)
	}))
	t.Cleanup(n.Close)
	return n
}

func refuse(code int, message string) func([]json.RawMessage) (any, int, string) {
	return func([]json.RawMessage) (any, int, string) { return nil, code, message }
}

func TestDialFailsWithAFix(t *testing.T) {
	answer := func(status int, body string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	hangUp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }))
	t.Cleanup(hangUp.Close)
	for _, test := range []struct {
		name, url string
		code      clawr.Code
		says      string
	}{
		{"nothing listens", "http://127.0.0.1:1/v2/SECRET?key=SECRET", clawr.CodeUnreachable, "http://127.0.0.1:1/…"},
		{"no such host", "http://SECRET@clawr.invalid/SECRET", clawr.CodeUnreachable, "clawr.invalid"},
		{"not a URL", "127.0.0.1:8545", clawr.CodeUsage, "not an http"},
		{"a websocket", "ws://127.0.0.1:8545", clawr.CodeUsage, "not an http"},
		{"empty", "", clawr.CodeUsage, "not an http"},
		{"a web page", answer(200, "<html>hello</html>"), clawr.CodeUnreachable, "not an Ethereum node"},
		{"HTTP 500", answer(500, "SECRET"), clawr.CodeUnreachable, "HTTP 500"},
		{"HTTP 401", answer(401, ""), clawr.CodeUnreachable, "HTTP 401"},
		{"HTTP 429", answer(429, ""), clawr.CodeUnreachable, "HTTP 429"},
		{"an empty answer", answer(200, ""), clawr.CodeUnreachable, ""},
		{"no result", answer(200, `{"jsonrpc":"2.0","id":1}`), clawr.CodeUnreachable, ""},
		{"another type", answer(200, `{"jsonrpc":"2.0","id":1,"result":{"a":1}}`), clawr.CodeUnreachable, ""},
		{"chain id 0", answer(200, `{"jsonrpc":"2.0","id":1,"result":"0x0"}`), clawr.CodeUnreachable, "chain id"},
		{"an immense chain id", answer(200, `{"jsonrpc":"2.0","id":1,"result":"0xffffffffffffffff"}`), clawr.CodeUnreachable, "chain id"},
		{"an endless answer", answer(200, `{"jsonrpc":"2.0","id":1,"result":"`+strings.Repeat("x", 17<<20)), clawr.CodeUnreachable, ""},
		{"the line is cut", hangUp.URL, clawr.CodeUnreachable, "cannot reach"},
	} {
		cl, err := chain.Dial(t.Context(), test.url)
		e, ok := errors.AsType[*clawr.Error](err)
		if !ok || e.Code != test.code || !strings.Contains(e.Message, test.says) || e.Fix == "" || e.Param != "rpc-url" {
			t.Errorf("%s: %#v, want code %s with %q and a fix", test.name, err, test.code, test.says)
		}
		if err != nil && strings.Contains(err.Error(), "SECRET") {
			t.Errorf("%s: the error tells the key: %v", test.name, err)
		}
		if err == nil {
			cl.Close()
		}
	}
}

func TestANodeThatDoesNotAnswer(t *testing.T) {
	stop := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { <-stop }))
	t.Cleanup(func() { close(stop); s.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := chain.Dial(ctx, s.URL); clawr.CodeOf(err) != clawr.CodeUnreachable || !strings.Contains(err.Error(), "in time") {
		t.Errorf("%v, want code unreachable", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := chain.Dial(ctx, s.URL); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want the caller's own cancellation", err)
	}
}

func TestExpect(t *testing.T) {
	w := newWorld(t)
	if err := w.cl.Expect("eip155:31337"); err != nil {
		t.Error(err)
	}
	err := w.cl.Expect("eip155:8453")
	if clawr.CodeOf(err) != clawr.CodeWrongChain || !strings.Contains(err.Error(), "eip155:31337") {
		t.Errorf("%v, want code %s", err, clawr.CodeWrongChain)
	}
}

// deploy puts one of the contracts that only tests use on the chain.
func deploy(t *testing.T, w *world, name string, args ...byte) common.Address {
	t.Helper()
	b, err := os.ReadFile("devchain/contracts/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	a, err := devchain.ParseArtifact(b)
	if err != nil {
		t.Fatal(err)
	}
	at, err := devchain.Deploy(t.Context(), w.cl, w.signer, a, args...)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// deployWallet is a contract that payer owns.
func deployWallet(t *testing.T, w *world) common.Address {
	t.Helper()
	return deploy(t, w, "ContractWallet", common.LeftPadBytes(w.payer.Address().Bytes(), 32)...)
}

func TestAsset(t *testing.T) {
	w := newWorld(t)
	quiet, noop := deploy(t, w, "QuietUSD"), deploy(t, w, "NoopUSD")
	for at, want := range map[common.Address]clawr.Asset{
		w.asset: {Name: "USDC", Version: "2", Decimals: 6},
		quiet:   {Name: "Quiet USD", Version: "1", Decimals: 6}, // by EIP-5267
		noop:    {Name: "Noop", Version: "1", Decimals: 6},
	} {
		want.Network, want.Address = "eip155:31337", strings.ToLower(at.Hex())
		if got, err := w.cl.Asset(t.Context(), at); got != want || err != nil {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	for name, at := range map[string]common.Address{"an account": w.shop, "another contract": common.HexToAddress(chain.MulticallAddress)} {
		if _, err := w.cl.Asset(t.Context(), at); clawr.CodeOf(err) != clawr.CodeNoContract {
			t.Errorf("%s: %v, want code %s", name, err, clawr.CodeNoContract)
		}
	}
}

func TestAssetIsAskedOnce(t *testing.T) {
	w := newWorld(t)
	n := proxy(t, w.URL(), nil)
	cl := dial(t, n.URL)
	now := time.Unix(1e9, 0)
	cl.Now = func() time.Time { return now }
	ask := func() int64 {
		before := n.calls.Load()
		if _, err := cl.Asset(t.Context(), w.asset); err != nil {
			t.Fatal(err)
		}
		return n.calls.Load() - before
	}
	if first, second := ask(), ask(); first != 1 || second != 0 {
		t.Errorf("%d and %d round trips, want 1 and 0", first, second)
	}
	now = now.Add(16 * time.Minute)
	if later := ask(); later != 1 {
		t.Errorf("%d round trips after 16 minutes, want 1", later)
	}
}

func TestSimulateGivesTheReason(t *testing.T) {
	w := newWorld(t)
	noop := deploy(t, w, "NoopUSD")
	used := w.transfer(t, 10, 1)
	if _, _, err := w.cl.Submit(t.Context(), w.build(t, w.cl, used), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	broken := w.transfer(t, 10, 2)
	broken.Amount++
	elsewhere := w.transfer(t, 10, 3)
	elsewhere.Asset = common.HexToAddress(chain.MulticallAddress)
	moved := w.transfer(t, 10, 4)
	moved.Asset = noop
	for _, test := range []struct {
		name string
		tr   chain.Transfer
		gas  uint64
		want string
	}{
		{"good", w.transfer(t, 10, 5), 150_000, ""},
		{"used", used, 150_000, "nonce used"},
		{"too much", w.transfer(t, 2_000_000, 6), 150_000, "balance"},
		{"tampered", broken, 150_000, "reverted"},
		{"no gas", w.transfer(t, 10, 7), 30_000, "out of gas"},
		{"less gas than a transaction has to have", w.transfer(t, 10, 8), 10_000, "out of gas"},
		{"a contract that is no token", elsewhere, 150_000, "reverted"},
		{"a token that does nothing, which only its logs give away", moved, 150_000, ""},
	} {
		r, err := w.cl.Simulate(t.Context(), w.signer.Address(), test.tr, test.gas)
		got := ""
		if r != nil {
			got = r.Reason.String()
		}
		if got != test.want || err != nil {
			t.Errorf("%s: %+v, %v, want %q", test.name, r, err, test.want)
		}
	}
	broke := dial(t, proxy(t, w.URL(), map[string]func([]json.RawMessage) (any, int, string){"eth_call": refuse(-32005, "limit exceeded")}).URL)
	if r, err := broke.Simulate(t.Context(), w.signer.Address(), broken, 150_000); r != nil || err == nil {
		t.Errorf("a provider that refuses: %+v, %v, want an error and no rejection", r, err)
	}
}

func TestFindEvidenceOnAProviderThatLimitsRanges(t *testing.T) {
	w := newWorld(t)
	tr := w.transfer(t, 10, 1)
	r, _, err := w.cl.Submit(t.Context(), w.build(t, w.cl, tr), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	other := w.transfer(t, 10, 2)
	var ranges atomic.Int64
	cl := dial(t, proxy(t, w.URL(), map[string]func([]json.RawMessage) (any, int, string){
		"eth_getLogs": func(params []json.RawMessage) (any, int, string) {
			var q struct{ FromBlock, ToBlock string }
			json.Unmarshal(params[0], &q)
			from, to := new(big.Int), new(big.Int)
			from.SetString(q.FromBlock, 0)
			to.SetString(q.ToBlock, 0)
			if ranges.Add(1) < 4 {
				return nil, -32602, "query exceeds max block range 500"
			}
			c, err := rpc.Dial(w.URL())
			if err != nil {
				return nil, -32000, err.Error()
			}
			defer c.Close()
			var out json.RawMessage
			if err := c.Call(&out, "eth_getLogs", params[0]); err != nil {
				return nil, -32000, err.Error()
			}
			return out, 0, ""
		}}).URL)
	if f, err := cl.FindEvidence(t.Context(), tr, 0); err != nil || f.Use != chain.Paid || f.Tx != r.Tx {
		t.Errorf("%+v, %v, want the payment", f, err)
	}
	if ranges.Load() != 4 {
		t.Errorf("%d queries, want 3 refused and one answered", ranges.Load())
	}
	if f, err := cl.FindEvidence(t.Context(), other, 0); err != nil || f.Use != chain.Unused {
		t.Errorf("an authorization that was never sent: %+v, %v", f, err)
	}
	if f, err := cl.FindEvidence(t.Context(), tr, r.Block+1); err != nil || f.Use != chain.Unused {
		t.Errorf("searched after its block: %+v, %v, want unused", f, err)
	}
	if used, err := cl.AuthorizationState(t.Context(), w.asset, w.payer.Address(), tr.Nonce); !used || err != nil {
		t.Errorf("authorization state %v, %v, want used", used, err)
	}
	if used, err := cl.AuthorizationState(t.Context(), w.asset, w.payer.Address(), other.Nonce); used || err != nil {
		t.Errorf("authorization state %v, %v, want unused", used, err)
	}
	if _, err := cl.AuthorizationState(t.Context(), w.shop, w.payer.Address(), tr.Nonce); clawr.CodeOf(err) != clawr.CodeNoContract {
		t.Errorf("authorization state of no token: %v, want code %s", err, clawr.CodeNoContract)
	}
}

// A receipt whose block is not the canonical one of its number is no receipt.
func TestEvidenceIsOnTheCanonicalChain(t *testing.T) {
	w := newWorld(t)
	tr := w.transfer(t, 10, 1)
	r, _, err := w.cl.Submit(t.Context(), w.build(t, w.cl, tr), 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	forged := func(params []json.RawMessage) (any, int, string) {
		return map[string]any{"number": fmt.Sprintf("0x%x", r.Block), "hash": common.Hash{0xbb}, "timestamp": "0x1"}, 0, ""
	}
	cl := dial(t, proxy(t, w.URL(), map[string]func([]json.RawMessage) (any, int, string){"eth_getBlockByNumber": forged}).URL)
	if f, err := cl.Evidence(t.Context(), r.Tx, tr); err != nil || f.Use != chain.Unused {
		t.Errorf("%+v, %v, want nothing", f, err)
	}
	if f, err := w.cl.Evidence(t.Context(), r.Tx, tr); err != nil || f.Use != chain.Paid {
		t.Errorf("%+v, %v, want the payment", f, err)
	}
	if f, err := w.cl.Evidence(t.Context(), common.Hash{1}, tr); err != nil || f.Use != chain.Unused {
		t.Errorf("an unknown transaction: %+v, %v", f, err)
	}
}

func TestFinalizedFallsBack(t *testing.T) {
	w := newWorld(t)
	block := func(n int64) any {
		return map[string]any{"number": fmt.Sprintf("0x%x", n), "hash": common.BigToHash(big.NewInt(n)), "timestamp": "0x65"}
	}
	for _, test := range []struct {
		name   string
		named  map[string]any // nil: an error
		number int64
	}{
		{"finalized", map[string]any{"finalized": block(900), "safe": block(950), "latest": block(1000)}, 900},
		{"safe", map[string]any{"safe": block(950), "latest": block(1000)}, 950},
		{"a depth", map[string]any{"latest": block(1000)}, 1000 - chain.FinalDepth},
		{"the first block", map[string]any{"latest": block(10)}, 0},
	} {
		cl := dial(t, proxy(t, w.URL(), map[string]func([]json.RawMessage) (any, int, string){
			"eth_getBlockByNumber": func(params []json.RawMessage) (any, int, string) {
				var name string
				json.Unmarshal(params[0], &name)
				if b := test.named[name]; b != nil {
					return b, 0, ""
				}
				if n, ok := new(big.Int).SetString(name, 0); ok {
					return block(n.Int64()), 0, ""
				}
				return nil, -39001, "'" + name + "' block not found"
			}}).URL)
		if b, err := cl.Finalized(t.Context()); err != nil || b.Number != test.number {
			t.Errorf("%s: block %d, %v, want %d", test.name, b.Number, err, test.number)
		}
	}
	if b, err := w.cl.Finalized(t.Context()); err != nil || b.Number == 0 {
		t.Errorf("the development chain: %+v, %v", b, err)
	}
	if _, err := w.cl.BlockAt(t.Context(), 1<<40); err == nil {
		t.Error("a block of the future was found")
	}
}

func TestFeesAreReused(t *testing.T) {
	w := newWorld(t)
	n := proxy(t, w.URL(), map[string]func([]json.RawMessage) (any, int, string){"eth_maxPriorityFeePerGas": refuse(-32601, "no such method")})
	cl := dial(t, n.URL)
	now := time.Unix(1e9, 0)
	cl.Now = func() time.Time { return now }
	before := n.calls.Load()
	first, err := cl.Fees(t.Context())
	if err != nil || first.Tip.Sign() <= 0 || first.Max.Cmp(first.Tip) <= 0 {
		t.Fatalf("%+v, %v", first, err)
	}
	first.Max.SetInt64(0) // what a caller does to it stays with the caller
	again, err := cl.Fees(t.Context())
	if err != nil || again.Max.Sign() == 0 {
		t.Errorf("%+v, %v", again, err)
	}
	now = now.Add(3 * time.Second)
	if _, err := cl.Fees(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := n.calls.Load() - before; got != 2 {
		t.Errorf("%d round trips for three askings, want 2", got)
	}
	b := again.Bump()
	for _, x := range [][2]*big.Int{{again.Max, b.Max}, {again.Tip, b.Tip}} {
		if new(big.Int).Mul(x[1], big.NewInt(10)).Cmp(new(big.Int).Mul(x[0], big.NewInt(11))) < 0 {
			t.Errorf("bumped from %v to %v, want 10%% more at least", x[0], x[1])
		}
	}
}

func TestAKeyIsNotPrinted(t *testing.T) {
	k := newKey(t)
	secret := strings.TrimPrefix(k.Reveal(), "0x")
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", k)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", k)
	text, err := json.Marshal(map[string]any{"key": k, "pointer": &k})
	if err != nil {
		t.Fatal(err)
	}
	all := log.String() + string(text) + k.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		all += fmt.Sprintf(verb, k) + fmt.Sprintf(verb, struct{ K *chain.Key }{k}) + fmt.Sprintf(verb, []*chain.Key{k})
	}
	n, _ := new(big.Int).SetString(secret, 16)
	for _, form := range []string{secret, strings.ToUpper(secret), n.String()} {
		if strings.Contains(all, form) {
			t.Fatal("a key was printed")
		}
	}
	again, err := chain.ParseKey(k.Reveal())
	if err != nil || again.Address() != k.Address() {
		t.Errorf("a revealed key is parsed as %v, %v, want %v", again, err, k)
	}
	for _, bad := range []string{"", "0x", secret[1:], secret + "0", strings.Repeat("0", 64), strings.Repeat("f", 64), "z" + secret[1:]} {
		if _, err := chain.ParseKey(bad); clawr.CodeOf(err) != clawr.CodeUsage || bad != "" && strings.Contains(err.Error(), bad) && len(bad) > 2 {
			t.Errorf("a bad key: %v", err)
		}
	}
}

func TestInProcess(t *testing.T) {
	w := newWorld(t)
	cl, err := w.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	tr := w.transfer(t, 10, 1)
	r, _, err := cl.Submit(t.Context(), w.build(t, cl, tr), 5*time.Second)
	if err != nil || r.Find(tr).Use != chain.Paid {
		t.Fatalf("%+v, %v", r, err)
	}
	if b, err := cl.Balance(t.Context(), w.payer.Address()); err != nil || b.Sign() == 0 {
		t.Errorf("%v, %v", b, err)
	}
}

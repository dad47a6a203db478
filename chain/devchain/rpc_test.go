package devchain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/ethclient"
	"github.com/google/go-cmp/cmp"
)

// go-ethereum's own client is strict about fields: what it decodes and hashes
// to the same block, the others understand.
func TestAnotherClientUnderstandsTheChain(t *testing.T) {
	c, cl := open(t, Options{})
	ec, err := ethclient.DialContext(t.Context(), c.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer ec.Close()
	ctx := t.Context()
	payer := fund(t, c, key(t))
	tr := transfer(t, c, payer, key(t).Address(), 9)
	r := settle(t, cl, payer, tr)

	block, err := ec.BlockByNumber(ctx, big.NewInt(r.Block))
	if err != nil {
		t.Fatal(err)
	}
	if block.Hash() != r.Hash || len(block.Transactions()) != 1 {
		t.Errorf("block %d decodes to %v with %d transactions, want %v with one", r.Block, block.Hash(), len(block.Transactions()), r.Hash)
	}
	if h, err := ec.HeaderByHash(ctx, r.Hash); err != nil || h.Hash() != r.Hash {
		t.Errorf("the header by hash: %v, %v", h, err)
	}
	tx, pending, err := ec.TransactionByHash(ctx, r.Tx)
	if err != nil || pending || tx.Hash() != r.Tx {
		t.Errorf("the transaction: %v, pending %v, %v", tx, pending, err)
	}
	if from, err := ec.TransactionSender(ctx, tx, r.Hash, 0); err != nil || from != payer.Address() {
		t.Errorf("the sender: %v, %v", from, err)
	}
	receipt, err := ec.TransactionReceipt(ctx, r.Tx)
	if err != nil || receipt.Status != 1 || receipt.GasUsed != r.GasUsed || len(receipt.Logs) != 2 || receipt.BlockHash != r.Hash {
		t.Errorf("the receipt: %+v, %v", receipt, err)
	}
	all, err := ec.BlockReceipts(ctx, blockRef(r.Block))
	if err != nil || len(all) != 1 || all[0].TxHash != r.Tx {
		t.Errorf("the block's receipts: %v, %v", all, err)
	}
	if _, _, err := ec.TransactionByHash(ctx, common.Hash{1}); err != ethereum.NotFound {
		t.Errorf("an unknown transaction: %v, want not found", err)
	}
	if _, err := ec.TransactionReceipt(ctx, common.Hash{1}); err != ethereum.NotFound {
		t.Errorf("an unknown receipt: %v, want not found", err)
	}
	if _, err := ec.BlockByNumber(ctx, big.NewInt(1<<40)); err != ethereum.NotFound {
		t.Errorf("a block of the future: %v, want not found", err)
	}
	fees, err := ec.FeeHistory(ctx, 4, nil, []float64{10, 50})
	if err != nil || len(fees.BaseFee) != len(fees.GasUsedRatio)+1 || len(fees.Reward) == 0 {
		t.Errorf("fee history: %+v, %v", fees, err)
	}
	if price, err := ec.SuggestGasPrice(ctx); err != nil || price.Sign() <= 0 {
		t.Errorf("gas price: %v, %v", price, err)
	}
	if id, err := ec.NetworkID(ctx); err != nil || id.Int64() != 31337 {
		t.Errorf("network id: %v, %v", id, err)
	}
	// Minter is storage slot 0.
	if slot, err := ec.StorageAt(ctx, tr.Asset, common.Hash{}, nil); err != nil || common.BytesToAddress(slot) != c.faucet.Address() {
		t.Errorf("storage: %x, %v", slot, err)
	}
	if sync, err := ec.SyncProgress(ctx); err != nil || sync != nil {
		t.Errorf("syncing: %v, %v", sync, err)
	}
	gas, err := ec.EstimateGas(ctx, ethereum.CallMsg{From: payer.Address(), To: &tr.PayTo, Value: big.NewInt(1)})
	if err != nil || gas != 21_000 {
		t.Errorf("gas of a plain payment: %d, %v", gas, err)
	}
	if _, err := ec.EstimateGas(ctx, ethereum.CallMsg{From: payer.Address(), To: &tr.Asset, Data: tr.Calldata()}); err == nil ||
		!strings.Contains(err.Error(), "used or canceled") {
		t.Errorf("estimating a call that reverts: %v", err)
	}
	for name, q := range map[string]struct {
		q    ethereum.FilterQuery
		want int
	}{
		"by address":              {ethereum.FilterQuery{Addresses: []common.Address{tr.Asset}}, 4}, // Mint, Transfer, AuthorizationUsed, Transfer
		"by another address":      {ethereum.FilterQuery{Addresses: []common.Address{tr.PayTo}}, 0},
		"by topic":                {ethereum.FilterQuery{Topics: [][]common.Hash{nil, {common.BytesToHash(tr.Payer[:])}, {tr.Nonce}}}, 1},
		"by block hash":           {ethereum.FilterQuery{BlockHash: &r.Hash}, 2},
		"of the first block":      {ethereum.FilterQuery{FromBlock: new(big.Int), ToBlock: new(big.Int)}, 0},
		"of blocks of the future": {ethereum.FilterQuery{FromBlock: big.NewInt(r.Block), ToBlock: big.NewInt(r.Block + 100)}, 2},
	} {
		if q.q.BlockHash == nil && q.q.FromBlock == nil {
			q.q.FromBlock = new(big.Int)
		}
		logs, err := ec.FilterLogs(ctx, q.q)
		if err != nil || len(logs) != q.want {
			t.Errorf("logs %s: %d, %v, want %d", name, len(logs), err, q.want)
		}
		for _, l := range logs {
			if l.BlockHash == (common.Hash{}) || l.TxHash == (common.Hash{}) {
				t.Errorf("logs %s: a log does not say where it is from: %+v", name, l)
			}
		}
	}
	legacy, err := types.SignNewTx(keyOf(t, payer), types.HomesteadSigner{}, &types.LegacyTx{Nonce: 1, GasPrice: big.NewInt(2e9), Gas: 21_000, To: &tr.PayTo})
	if err != nil {
		t.Fatal(err)
	}
	if err := ec.SendTransaction(ctx, legacy); err == nil {
		t.Error("a transaction that is valid on every chain was accepted")
	}
}

func TestSendRawTransactionSyncTimesOut(t *testing.T) {
	c, _ := open(t, Options{BlockTime: time.Hour})
	to := key(t).Address()
	tx, err := chain.Sign(c.faucet, c.ChainID(), 0, chain.Fees{Max: big.NewInt(2e9), Tip: big.NewInt(1)}, chain.Call{To: &to, Gas: 21_000})
	if err != nil {
		t.Fatal(err)
	}
	_, body := post(t, c.URL(), nil, fmt.Sprintf(`{"jsonrpc":"2.0","id":1,"method":"eth_sendRawTransactionSync","params":["0x%x",20]}`, tx.Raw))
	var got struct {
		Error struct {
			Code int
			Data common.Hash
		}
	}
	if err := json.Unmarshal(body, &got); err != nil || got.Error.Code != 4 || got.Error.Data != tx.Hash {
		t.Errorf("%s, want error 4 with the hash %v", body, tx.Hash)
	}
}

func post(t *testing.T, url string, header http.Header, body string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Content-Type", "application/json")
	if h := header.Get("Host"); h != "" {
		req.Host = h
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, b
}

func TestTheDoor(t *testing.T) {
	c, _ := open(t, Options{})
	const ask = `{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}`
	for _, test := range []struct {
		origin, host string
		status       int
	}{
		{"", "", 200},
		{"http://localhost:5173", "", 200},
		{"http://127.0.0.1:3000", "", 200},
		{"http://[::1]:3000", "", 200},
		{"https://evil.example", "", 403},
		{"http://localhost.evil.example", "", 403},
		{"null", "", 403},
		{"", "evil.example", 403}, // a name made to resolve to loopback
		{"", "localhost:1234", 200},
	} {
		h := http.Header{}
		if test.origin != "" {
			h.Set("Origin", test.origin)
		}
		if test.host != "" {
			h.Set("Host", test.host)
		}
		resp, body := post(t, c.URL(), h, ask)
		allowed := resp.Header.Get("Access-Control-Allow-Origin")
		if resp.StatusCode != test.status || test.status == 200 && (!bytes.Contains(body, []byte(`"0x7a69"`)) || allowed != test.origin) {
			t.Errorf("origin %q host %q: %d %s, allowed %q, want %d", test.origin, test.host, resp.StatusCode, body, allowed, test.status)
		}
	}
	for method, want := range map[string]int{"OPTIONS": 204, "GET": 405, "DELETE": 405} {
		req, err := http.NewRequestWithContext(t.Context(), method, c.URL(), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Origin", "http://localhost:1")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", method, resp.StatusCode, want)
		}
	}
}

func TestRequestsAreBounded(t *testing.T) {
	c, _ := open(t, Options{})
	const ask = `{"jsonrpc":"2.0","id":1,"method":"eth_chainId"}`
	batch := func(n int) string { return "[" + strings.Repeat(ask+",", n-1) + ask + "]" }
	if _, body := post(t, c.URL(), nil, batch(100)); bytes.Count(body, []byte("0x7a69")) != 100 {
		t.Errorf("a batch of 100 gives %d answers", bytes.Count(body, []byte("0x7a69")))
	}
	if _, body := post(t, c.URL(), nil, batch(101)); !bytes.Contains(body, []byte("batch too large")) {
		t.Errorf("a batch of 101: %.100s", body)
	}
	if resp, _ := post(t, c.URL(), nil, `{"x":"`+strings.Repeat("x", 1<<20)+`"}`); resp.StatusCode != 413 {
		t.Errorf("a body of 1 MB: %d, want 413", resp.StatusCode)
	}
	for _, method := range []string{"debug_setHead", "admin_stopHTTP", "personal_unlockAccount", "eth_sign", "txpool_content"} {
		if _, body := post(t, c.URL(), nil, `{"jsonrpc":"2.0","id":1,"method":"`+method+`"}`); !bytes.Contains(body, []byte("-32601")) {
			t.Errorf("%s: %s, want method not found", method, body)
		}
	}
	// An endless loop ends with its gas, and a call with overrides sees them: JUMPDEST PUSH1 0 JUMP.
	_, body := post(t, c.URL(), nil, `{"jsonrpc":"2.0","id":1,"method":"eth_call","params":[{"to":"0x00000000000000000000000000000000000000ff","gas":"0x100000"},"latest",
		{"0x00000000000000000000000000000000000000ff":{"code":"0x5b600056"}}]}`)
	if !bytes.Contains(body, []byte("out of gas")) {
		t.Errorf("an endless loop: %s", body)
	}
}

func TestFaucet(t *testing.T) {
	c, cl := open(t, Options{})
	to := key(t).Address()
	asset := common.HexToAddress(c.Asset().Address)
	if err := Fund(t.Context(), c.URL(), to, big.NewInt(5), 7); err != nil {
		t.Fatal(err)
	}
	if err := Fund(t.Context(), c.URL(), to, nil, 1); err != nil {
		t.Fatal(err)
	}
	wei, err := cl.Balance(t.Context(), to)
	if err != nil || wei.Int64() != 5 {
		t.Errorf("%v wei, %v, want 5", wei, err)
	}
	units, err := cl.TokenBalance(t.Context(), asset, to)
	if err != nil || units.Int64() != 8 {
		t.Errorf("%v units, %v, want 8", units, err)
	}
	for name, err := range map[string]error{
		"a negative amount":        c.Fund(t.Context(), to, nil, -1),
		"ether without end":        c.Fund(t.Context(), to, new(big.Int).Lsh(maxGrant, 1), 0),
		"the zero address":         c.Fund(t.Context(), common.Address{}, big.NewInt(1), 0),
		"an overflow over the RPC": Fund(t.Context(), c.URL(), to, new(big.Int).Lsh(maxGrant, 1), 0),
	} {
		if err == nil {
			t.Errorf("the faucet gave %s", name)
		}
	}
	if err := Fund(t.Context(), "http://127.0.0.1:1", to, nil, 1); clawr.CodeOf(err) != clawr.CodeUnreachable {
		t.Errorf("no chain: %v, want code %s", err, clawr.CodeUnreachable)
	}
	want := clawr.Asset{Network: "eip155:31337", Address: TokenAddress, Name: "USDC", Version: "2", Decimals: 6}
	got, err := cl.Asset(t.Context(), asset)
	if diff := cmp.Diff(want, got); diff != "" || err != nil || c.Asset() != want {
		t.Errorf("the token: %v %s", err, diff)
	}
}

func TestLikeBaseSepolia(t *testing.T) {
	c, cl := open(t, Options{LikeBaseSepolia: true})
	want := clawr.Asset{Network: "eip155:84532", Address: "0x036cbd53842c5426634e7929541ec2318f3dcf7e", Name: "USDC", Version: "2", Decimals: 6}
	got, err := cl.Asset(t.Context(), common.HexToAddress("0x036CbD53842c5426634e7929541eC2318f3dCF7e"))
	if diff := cmp.Diff(want, got); diff != "" || err != nil || c.Asset() != want {
		t.Errorf("the token: %v %s", err, diff)
	}
	payer := fund(t, c, key(t))
	tr := transfer(t, c, payer, key(t).Address(), 9)
	if f := settle(t, cl, payer, tr).Find(tr); f.Use != chain.Paid {
		t.Errorf("found %v", f.Use)
	}
}

func TestCloseEndsWaiters(t *testing.T) {
	c, err := Open(Options{BlockTime: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Fund(t.Context(), common.Address{1}, big.NewInt(1), 0) }()
	time.Sleep(20 * time.Millisecond)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("a grant in no block was said to be there")
		}
	case <-time.After(5 * time.Second):
		t.Error("Close left somebody waiting")
	}
	if err := c.Close(); err != nil {
		t.Errorf("the second Close: %v", err)
	}
}

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/anvil"
)

// paid is what a client of clients/ reports of one call.
type paid struct {
	Status          int
	Body            struct{ Data []map[string]any }
	PaymentResponse *struct {
		Success     bool
		Transaction string
		Network     string
		Payer       string
	}
	Headers map[string]string
}

// report reads what a client printed.
func report(t *testing.T, v map[string]any) (out struct {
	paid
	Payments []paid
	Replays  []paid
	Error    string
}) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if out.Error != "" {
		t.Fatalf("the client failed: %s", out.Error)
	}
	return out
}

// transferred checks that tx moved exactly amount from payer to payTo.
func transferred(t *testing.T, c *testChain, tx string, payer, payTo common.Address, amount int64) {
	t.Helper()
	r, err := c.client.Receipt(t.Context(), common.HexToHash(tx))
	if err != nil || r == nil || !r.OK {
		t.Fatalf("receipt of %s: %+v, %v", tx, r, err)
	}
	topic := common.HexToHash("0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef") // Transfer(address,address,uint256)
	n := 0
	for _, l := range r.Logs {
		if l.Address == c.asset && len(l.Topics) == 3 && l.Topics[0] == topic {
			n++
			if got := common.BytesToHash(l.Data).Big().Int64(); got != amount || l.Topics[1] != common.BytesToHash(payer.Bytes()) || l.Topics[2] != common.BytesToHash(payTo.Bytes()) {
				t.Errorf("%s moved %d from %s to %s, want %d from %s to %s", tx, got, l.Topics[1], l.Topics[2], amount, payer, payTo)
			}
		}
	}
	if n != 1 {
		t.Errorf("%s has %d transfers, want 1", tx, n)
	}
}

// checkPayments holds what a client reports of COUNT payments and their replays
// against the chain.
func checkPayments(t *testing.T, c *testChain, s *server, buyer *chain.Key, v map[string]any, count int) {
	t.Helper()
	got := report(t, v)
	if len(got.Payments) != count {
		t.Fatalf("%d payments, want %d: %v", len(got.Payments), count, v)
	}
	seen := map[string]bool{}
	for _, p := range got.Payments {
		if p.Status != http.StatusOK || len(p.Body.Data) != 1 || p.PaymentResponse == nil || !p.PaymentResponse.Success {
			t.Fatalf("a paid call was answered %+v", p)
		}
		if !strings.EqualFold(p.PaymentResponse.Payer, buyer.Address().Hex()) || seen[p.PaymentResponse.Transaction] {
			t.Errorf("receipt %+v", p.PaymentResponse)
		}
		seen[p.PaymentResponse.Transaction] = true
		transferred(t, c, p.PaymentResponse.Transaction, buyer.Address(), s.payTo, 1000)
	}
	for _, p := range got.Replays {
		if p.Status != http.StatusOK || len(p.Body.Data) != 1 || p.Headers["x-clawr-replayed"] != "true" || p.PaymentResponse.Transaction != got.PaymentResponse.Transaction {
			t.Errorf("a resend was answered %+v", p)
		}
	}
	if earned := c.balance(t, s.payTo); earned != int64(count)*1000 {
		t.Errorf("the seller has %d, want %d", earned, count*1000)
	}
}

func TestOfficialClientPays(t *testing.T) {
	everywhere(t, func(t *testing.T, c *testChain, flags ...string) {
		s := serve(t, c, flags...)
		url := s.deploy(t, airports, "airports", "--price", "0.001", "--x402")
		buyer := c.account(t, 1_000_000)
		checkPayments(t, c, s, buyer, script(t, "fetch-v2.mjs", "URL="+url+"?limit=1", "PRIVATE_KEY="+buyer.Reveal(), "COUNT=3", "REPLAY=2"), 3)
	})
}

func TestOfficialVersion1ClientPays(t *testing.T) {
	everywhere(t, func(t *testing.T, c *testChain, flags ...string) {
		s := serve(t, c, flags...)
		url := s.deploy(t, airports, "airports", "--price", "0.001", "--x402", "true")
		buyer := c.account(t, 1_000_000)
		checkPayments(t, c, s, buyer, script(t, "fetch-v1.mjs", "URL="+url+"?limit=1", "PRIVATE_KEY="+buyer.Reveal(), "COUNT=2", "REPLAY=2"), 2)
	})
}

// On a chain that it does not know the client pays once its limits are lifted.
func TestOfficialClientPaysOnAnotherChain(t *testing.T) {
	for name, start := range map[string]func(*testing.T) *testChain{
		"devchain": func(t *testing.T) *testChain { return devChain(t) },
		"anvil":    func(t *testing.T) *testChain { return anvilChain(t, anvil.Options{}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := start(t)
			s := serve(t, c)
			url := s.deploy(t, airports, "airports", "--price", "0.001", "--x402")
			buyer := c.account(t, 1_000_000)
			checkPayments(t, c, s, buyer, script(t, "fetch-v2.mjs", "URL="+url+"?limit=1", "PRIVATE_KEY="+buyer.Reveal(), "ANY_ASSET=1", "REPLAY=1"), 1)
		})
	}
}

// facilitate starts clawr's facilitator alone, for recipient.
func facilitate(t testing.TB, c *testChain, recipient common.Address) string {
	t.Helper()
	key := c.account(t, 0)
	p := start(t, clawr(t, []string{"CLAWR_FACILITATOR_KEY=" + key.Reveal()}, "facilitator", "serve", "--listen", "127.0.0.1:0", "--data", t.TempDir(),
		"--network", c.network, "--asset", c.asset.Hex(), "--rpc-url", c.rpc, "--allow-pay-to", recipient.Hex()))
	return "http://" + p.addr
}

func requirements(c *testChain, payTo common.Address) string {
	return fmt.Sprintf(`{"scheme":"exact","network":%q,"amount":"1000","asset":%q,"payTo":%q,"maxTimeoutSeconds":90,"extra":{"name":"USDC","version":"2"}}`,
		c.network, c.asset.Hex(), payTo.Hex())
}

func TestOfficialFacilitatorClientDrivesOurs(t *testing.T) {
	sepolias(t, func(t *testing.T, c *testChain) {
		seller, err := chain.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		url := facilitate(t, c, seller.Address())
		buyer := c.account(t, 1_000_000)
		got := script(t, "facilitator-client.mjs", "FACILITATOR_URL="+url, "REQUIREMENTS="+requirements(c, seller.Address()), "PRIVATE_KEY="+buyer.Reveal())
		b, _ := json.Marshal(got)
		var out struct {
			Supported struct {
				Kinds []struct {
					X402Version     int
					Scheme, Network string
				}
			}
			Verify struct{ IsValid bool }
			Settle struct {
				Success              bool
				Transaction, Network string
			}
		}
		if err := json.Unmarshal(b, &out); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if len(out.Supported.Kinds) != 2 || !out.Verify.IsValid || !out.Settle.Success || out.Settle.Network != c.network {
			t.Fatalf("the official client saw %s", b)
		}
		transferred(t, c, out.Settle.Transaction, buyer.Address(), seller.Address(), 1000)
	})
}

func TestOurBuyerPaysAnOfficialServer(t *testing.T) {
	sepolias(t, func(t *testing.T, c *testChain) {
		seller, err := chain.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		fac := facilitate(t, c, seller.Address())
		url := startScript(t, "express-server.mjs", "FACILITATOR_URL="+fac, "NETWORK="+c.network, "ASSET="+c.asset.Hex(), "PAY_TO="+seller.Address().Hex())
		buyer := c.account(t, 1_000_000)
		out := must(t, []string{"CLAWR_WALLET_KEY=" + buyer.Reveal()}, "pay", url+"/data", "--rpc-url", c.rpc, "--json", "--data", t.TempDir())
		var got struct {
			Status      int
			Transaction string
		}
		if err := json.Unmarshal([]byte(out), &got); err != nil || got.Status != http.StatusOK {
			t.Fatalf("clawr pay printed %s: %v", out, err)
		}
		transferred(t, c, got.Transaction, buyer.Address(), seller.Address(), 1000)
	})
}

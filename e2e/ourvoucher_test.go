package e2e

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/anvil"
)

// bought is one line of clawr pay --json.
type bought struct {
	Status                         int
	Paid, Replayed, Resumed        bool
	Transaction, Channel           string
	Deposit, Charged, Left, Amount string
}

// payer is a wallet that pays by vouchers.
type payer struct {
	t   *testing.T
	c   *testChain
	dir string
	env []string
	key *chain.Key
}

func newPayer(t *testing.T, c *testChain, units int64) *payer {
	t.Helper()
	p := &payer{t: t, c: c, dir: t.TempDir(), key: c.account(t, units)}
	p.env = []string{"CLAWR_WALLET_KEY=" + p.key.Reveal()}
	p.run("wallet", "limits", "--per-day", "5")
	return p
}

func (p *payer) run(args ...string) string {
	p.t.Helper()
	return must(p.t, p.env, append(args, "--data", p.dir)...)
}

// pay makes calls and gives what was said of each.
func (p *payer) pay(url string, flags ...string) []bought {
	p.t.Helper()
	var out []bought
	for line := range strings.Lines(p.run(append([]string{"pay", url, "--json"}, flags...)...)) {
		var b bought
		if err := json.Unmarshal([]byte(line), &b); err != nil {
			p.t.Fatalf("clawr pay printed %s: %v", line, err)
		}
		if b.Status != http.StatusOK || !b.Paid || b.Channel == "" {
			p.t.Fatalf("a call was answered %s", line)
		}
		out = append(out, b)
	}
	return out
}

// voucherShops are the servers that clawr pays by voucher: the official one with
// the official facilitator, and clawr's own. calls is how many are worth the
// time there: each server answers a thousand on one of the chains.
func voucherShops(t *testing.T, test func(t *testing.T, c *testChain, url string, payTo common.Address, calls int)) {
	sepolias(t, func(t *testing.T, c *testChain) {
		calls := map[string]int{"anvil": 1000, "devchain": 40}
		t.Run("official", func(t *testing.T) {
			seller, err := chain.NewKey()
			if err != nil {
				t.Fatal(err)
			}
			gas := c.account(t, 0)
			fac := startScript(t, "ts-facilitator.mjs", "RPC_URL="+c.rpc, "NETWORK="+c.network, "PRIVATE_KEY="+gas.Reveal())
			url := startScript(t, "express-server.mjs", "FACILITATOR_URL="+fac, "NETWORK="+c.network, "ASSET="+c.asset.Hex(), "PAY_TO="+seller.Address().Hex(), "SCHEME=batch-settlement")
			test(t, c, url+"/data", seller.Address(), calls[c.name])
		})
		t.Run("clawr", func(t *testing.T) {
			s := serve(t, c)
			url := s.deploy(t, airports, "airports", "--price", "0.001", "--x402", "--schemes", "exact,batch-settlement")
			test(t, c, url+"?limit=1", s.payTo, 1040-calls[c.name])
		})
	})
}

// onChain is what the chain says of a channel.
func (p *payer) onChain(id string) chain.ChannelState {
	p.t.Helper()
	on, err := p.c.client.ChannelStates(p.t.Context(), common.HexToHash(id))
	if err != nil {
		p.t.Fatal(err)
	}
	return on[0]
}

// clawr pay opens a channel, makes a thousand calls from it, tops it up when it
// is empty, some of them from several processes at once, and has the rest
// refunded: at an official server and at clawr's own. Every figure is what the
// chain says, to the unit.
func TestOurBuyerPaysByVoucher(t *testing.T) {
	voucherShops(t, func(t *testing.T, c *testChain, url string, payTo common.Address, calls int) {
		const price, funds, processes, each = 1000, 10_000_000, 3, 4
		deposit := calls * price * 3 / 10
		p := newPayer(t, c, funds)
		usd := strconv.FormatFloat(float64(deposit)/1e6, 'f', -1, 64)
		first := p.pay(url, "--deposit", usd)[0]
		if first.Deposit != strconv.Itoa(deposit) || first.Charged != strconv.Itoa(price) || first.Transaction == "" {
			t.Fatalf("the first call: %+v", first)
		}
		rest := p.pay(url, "--deposit", usd, "--times", strconv.Itoa(calls-1-processes*each))
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range processes {
			wg.Go(func() {
				out := p.pay(url, "--times", strconv.Itoa(each))
				mu.Lock()
				defer mu.Unlock()
				rest = append(rest, out...)
			})
		}
		wg.Wait()
		deposits, held, charges := 0, 0, map[string]bool{}
		for _, b := range append(rest, first) {
			if n, _ := strconv.Atoi(b.Deposit); n > 0 {
				deposits, held = deposits+1, held+n
			}
			if b.Channel != first.Channel || b.Resumed || b.Replayed || charges[b.Charged] {
				t.Fatalf("a call: %+v", b)
			}
			charges[b.Charged] = true
		}
		if len(charges) != calls || !charges[strconv.Itoa(calls*price)] || deposits != 4 {
			t.Errorf("%d charges of %d calls, up to %d: %v, from %d deposits, want 4", len(charges), calls, calls*price, charges[strconv.Itoa(calls*price)], deposits)
		}
		if on := p.onChain(first.Channel); on.Balance != int64(held) {
			t.Errorf("the chain holds %+v after deposits of %d", on, held)
		}
		var shown struct{ State, Balance, Charged, Signed, Left string }
		if err := json.Unmarshal([]byte(p.run("channels", "show", first.Channel, "--rpc-url", c.rpc, "--json")), &shown); err != nil {
			t.Fatal(err)
		}
		owed, left := strconv.Itoa(calls*price), strconv.Itoa(held-calls*price)
		if shown.State != "open" || shown.Balance != strconv.Itoa(held) || shown.Charged != owed || shown.Signed != owed || shown.Left != left {
			t.Errorf("clawr shows %+v, want %s charged and signed, %s left", shown, owed, left)
		}
		var refund struct {
			Refunded, Transaction string
			Proven                bool
			Channel               struct{ State, Left string }
		}
		if err := json.Unmarshal([]byte(p.run("channels", "refund", first.Channel, "--rpc-url", c.rpc, "--json")), &refund); err != nil {
			t.Fatal(err)
		}
		if !refund.Proven || refund.Refunded != left || refund.Transaction == "" || refund.Channel.State != "closed" || refund.Channel.Left != "0" {
			t.Errorf("the refund: %+v, want %s", refund, left)
		}
		if on := p.onChain(first.Channel); on.Balance != int64(calls*price) || on.TotalClaimed != int64(calls*price) {
			t.Errorf("after the refund the chain says %+v", on)
		}
		if has := c.balance(t, p.key.Address()); has != funds-int64(calls*price) {
			t.Errorf("the buyer has %d, want %d", has, funds-calls*price)
		}
		if claimed, _, err := c.client.Claimed(t.Context(), payTo, c.asset); err != nil || claimed != int64(calls*price) {
			t.Errorf("%d was claimed for the seller (%v), want %d", claimed, err, calls*price)
		}
	})
}

// Without its seller's help a wallet gets back what is left, when the channel's
// delay is over, and what was bought stays for the seller.
func TestOurBuyerWithdraws(t *testing.T) {
	c := anvilChain(t, anvil.Options{LikeBaseSepolia: true})
	s := serve(t, c)
	url := s.deploy(t, airports, "airports", "--price", "0.001", "--x402", "--schemes", "exact,batch-settlement") + "?limit=1"
	p := newPayer(t, c, 1_000_000)
	calls := p.pay(url, "--deposit", "0.05", "--times", "3")
	s.kill()
	id := calls[2].Channel
	step := func() (out struct{ Step, Amount, Transaction string }) {
		if err := json.Unmarshal([]byte(p.run("channels", "withdraw", id, "--rpc-url", c.rpc, "--json")), &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if w := step(); w.Step != "begun" || w.Amount != "47000" || w.Transaction == "" {
		t.Fatalf("the first step: %+v", w)
	}
	if w := step(); w.Step != "waiting" || w.Amount != "47000" {
		t.Fatalf("the second step: %+v", w)
	}
	if on := p.onChain(id); on.Withdrawal != 47000 || on.Balance != 50000 {
		t.Errorf("the chain says %+v", on)
	}
	if err := c.client.Ask(t.Context(), nil, "evm_increaseTime", 901); err != nil {
		t.Fatal(err)
	}
	if err := c.client.Ask(t.Context(), nil, "evm_mine"); err != nil {
		t.Fatal(err)
	}
	if w := step(); w.Step != "done" || w.Transaction == "" {
		t.Fatalf("the last step: %+v", w)
	}
	if on := p.onChain(id); on.Withdrawal != 0 || on.Balance != 3000 {
		t.Errorf("the chain says %+v", on)
	}
	if has := c.balance(t, p.key.Address()); has != 1_000_000-3000 {
		t.Errorf("the buyer has %d, want %d", has, 1_000_000-3000)
	}
}

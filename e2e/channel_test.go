package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"strconv"
	"testing"

	"github.com/ethereum/go-ethereum/common"
)

// channelReport is what clients/channel-v2.mjs prints.
type channelReport struct {
	Calls        int
	Last, First  json.RawMessage
	Transactions []string
	Replays      []struct {
		Status          int
		Headers         map[string]string
		PaymentResponse *channelReceipt
	}
	Refund  *channelReceipt
	Error   string
	Seconds float64
}

type channelReceipt struct {
	Success                      bool
	Transaction, Amount, Network string
	Extra                        struct {
		ChargedAmount string
		ChannelState  struct{ ChannelID, Balance, TotalClaimed, ChargedCumulativeAmount string }
	}
}

func channelClient(t *testing.T, env ...string) channelReport {
	t.Helper()
	b, err := json.Marshal(script(t, "channel-v2.mjs", env...))
	if err != nil {
		t.Fatal(err)
	}
	var r channelReport
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if r.Error != "" {
		t.Fatalf("the client failed: %s", r.Error)
	}
	return r
}

// calls is how many calls the official client makes on one channel: 1,000 and
// one with CLAWR_VOUCHERS=1000, so that the last deposit, which pays for ten,
// leaves something to be refunded.
func calls(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("CLAWR_VOUCHERS"))
	if err != nil {
		return 64
	}
	if n%10 == 0 {
		n++
	}
	return n
}

// The official client opens a channel, pays many calls from it, tops it up when
// it is empty, forgets it and finds it again, and has the rest refunded. What
// the seller claims is to the unit what was charged.
func TestOfficialClientPaysByVoucher(t *testing.T) {
	everywhere(t, func(t *testing.T, c *testChain, flags ...string) {
		s := serve(t, c, flags...)
		url := s.deploy(t, airports, "airports", "--price", "0.001", "--x402", "--schemes", "exact,batch-settlement")
		buyer := c.account(t, 10_000_000)
		n := calls(t)
		got := channelClient(t, "URL="+url+"?limit=1", "PRIVATE_KEY="+buyer.Reveal(), "RPC_URL="+c.rpc, "COUNT="+strconv.Itoa(n), "REPLAY=2", "FORGET=1", "REFUND=all")
		if got.Calls != n {
			t.Fatalf("%d calls, want %d", got.Calls, n)
		}
		// A deposit pays for ten calls: the SDK's own suggestion.
		if want := (n + 9) / 10; len(got.Transactions) != want {
			t.Errorf("%d deposits for %d calls, want %d", len(got.Transactions), n, want)
		}
		for _, r := range got.Replays {
			if r.Status != http.StatusOK || r.Headers["x-clawr-replayed"] != "true" || r.PaymentResponse.Extra.ChargedAmount != "1000" {
				t.Errorf("a resend was answered %+v", r)
			}
		}
		if got.Refund == nil || !got.Refund.Success || got.Refund.Transaction == "" {
			t.Fatalf("refund: %+v", got.Refund)
		}
		state := got.Refund.Extra.ChannelState
		if spent := strconv.Itoa(1000 * n); state.Balance != spent || state.TotalClaimed != spent {
			t.Errorf("after %d calls and a refund the channel is %+v", n, state)
		}
		id := common.HexToHash(state.ChannelID)
		on, err := c.client.ChannelStates(t.Context(), id)
		if err != nil || on[0].TotalClaimed != int64(1000*n) || on[0].Balance != int64(1000*n) {
			t.Errorf("the chain says %+v, %v", on, err)
		}
		if left := c.balance(t, buyer.Address()); left != 10_000_000-int64(1000*n) {
			t.Errorf("the buyer has %d, want %d", left, 10_000_000-1000*n)
		}
		t.Logf("%d calls in %.1f s, %d deposits", n, got.Seconds, len(got.Transactions))
	})
}

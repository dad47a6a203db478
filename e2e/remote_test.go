package e2e

import (
	"testing"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/anvil"
)

// serveBy starts clawr serve on c, with settlements by the facilitator at url.
func serveBy(t testing.TB, c *testChain, seller *chain.Key, url string) *server {
	t.Helper()
	s := &server{chain: c, dir: t.TempDir(), payTo: seller.Address()}
	s.args = []string{"serve", "--listen", "127.0.0.1:0", "--data", s.dir, "--network", c.network, "--asset", c.asset.Hex(), "--rpc-url", c.rpc,
		"--pay-to", s.payTo.Hex(), "--facilitator-url", url}
	s.up(t)
	return s
}

// A node that leaves settlement to a facilitator sells as one that settles by
// itself: with clawr's, and with the official one.
func TestRemoteFacilitatorsSettle(t *testing.T) {
	for name, start := range map[string]func(*testing.T, *testChain, *chain.Key) string{
		"clawr": func(t *testing.T, c *testChain, seller *chain.Key) string { return facilitate(t, c, seller.Address()) },
		"official": func(t *testing.T, c *testChain, _ *chain.Key) string {
			return startScript(t, "ts-facilitator.mjs", "RPC_URL="+c.rpc, "NETWORK="+c.network, "PRIVATE_KEY="+c.account(t, 0).Reveal())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := anvilChain(t, anvil.Options{LikeBaseSepolia: true})
			seller, err := chain.NewKey()
			if err != nil {
				t.Fatal(err)
			}
			s := serveBy(t, c, seller, start(t, c, seller))
			url := s.deploy(t, airports, "airports", "--price", "0.001", "--x402")
			buyer := c.account(t, 1_000_000)
			checkPayments(t, c, s, buyer, script(t, "fetch-v2.mjs", "URL="+url+"?limit=1", "PRIVATE_KEY="+buyer.Reveal(), "COUNT=2", "REPLAY=2"), 2)
		})
	}
}

package anvil_test

import (
	"math/big"
	"testing"
	"time"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/anvil"
	"github.com/ethereum/go-ethereum/common"
)

func TestStart(t *testing.T) {
	for _, opt := range []anvil.Options{{}, {LikeBaseSepolia: true}, {BlockTime: time.Second}, {Args: []string{"--no-mining"}}} {
		start := time.Now()
		n, err := anvil.Start(t.Context(), opt)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v: ready in %v, asset %+v", opt, time.Since(start), n.Asset)
		t.Cleanup(func() { n.Close() })
		if len(opt.Args) > 0 {
			continue
		}
		who, err := chain.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Fund(t.Context(), who.Address(), big.NewInt(5), 7); err != nil {
			t.Fatal(err)
		}
		wei, err := n.Client.Balance(t.Context(), who.Address())
		if err != nil || wei.Int64() != 5 {
			t.Errorf("the account has %v wei, %v, want 5", wei, err)
		}
		units, err := n.Client.TokenBalance(t.Context(), common.HexToAddress(n.Asset.Address), who.Address())
		if err != nil || units.Int64() != 7 {
			t.Errorf("the account has %v units, %v, want 7", units, err)
		}
	}
}

package devchain

import (
	"math/big"
	"testing"
	"time"

	"github.com/402claw/clawr/chain"
)

// BenchmarkOpen is what clawr dev waits for: a new chain, in memory and in a
// directory.
func BenchmarkOpen(b *testing.B) {
	for name, dir := range map[string]func() string{"memory": func() string { return "" }, "directory": b.TempDir} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				c, err := Open(Options{Dir: dir()})
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := c.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkTransaction is a transaction from its bytes to its receipt, over HTTP.
func BenchmarkTransaction(b *testing.B) {
	c, cl := open(b, Options{Dir: b.TempDir()})
	to, nonce := key(b).Address(), uint64(0)
	for b.Loop() {
		tx, err := chain.Sign(c.faucet, c.ChainID(), nonce, chain.Fees{Max: big.NewInt(2e9), Tip: big.NewInt(1)},
			chain.Call{To: &to, Value: big.NewInt(1), Gas: 21_000})
		if err != nil {
			b.Fatal(err)
		}
		if r, o, err := cl.Submit(b.Context(), tx, 5*time.Second); err != nil || r == nil {
			b.Fatal(r, o, err)
		}
		nonce++
	}
}

package store_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
)

func BenchmarkSQLite(b *testing.B) { benchmark(b, func(b *testing.B) *store.DB { return sqlite(b) }) }
func BenchmarkPostgres(b *testing.B) {
	benchmark(b, func(b *testing.B) *store.DB { return postgres(b) })
}

// benchmark measures the durable part of a paid call: T1 alone, and T1 with T2,
// each with a spend cap, at several numbers of concurrent callers.
func benchmark(b *testing.B, open func(*testing.B) *store.DB) {
	for _, steps := range []string{"T1", "T1+T2"} {
		for _, callers := range []int{1, 16, 64} {
			b.Run(fmt.Sprintf("%s/%d", steps, callers), func(b *testing.B) {
				db := open(b)
				t, err := db.Deploy(b.Context(), clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Owner: "ann"}}, "bench")
				if err != nil {
					b.Fatal(err)
				}
				var serial atomic.Int64
				pay := func() error {
					n := serial.Add(1)
					id := fmt.Sprintf("%016x", n)
					p := ledger.Payment{
						ID: "pay_" + id, TenantID: t.ID, Version: 1, Route: "/v1/records", Scheme: "exact", Policy: ledger.SettleBeforeResponse,
						Key:   ledger.Key{Network: "eip155:31337", Asset: fmt.Sprintf("0x%040x", 1), Payer: fmt.Sprintf("0x%040x", n%100), Nonce: fmt.Sprintf("0x%064x", n*7919)},
						PayTo: fmt.Sprintf("0x%040x", 2), Amount: 1000, ValidBefore: 2_000_000_000, Fingerprint: fmt.Sprintf("%064x", n), Payload: make([]byte, 700),
						PayloadSHA256: fmt.Sprintf("%064x", n), SignatureSHA256: fmt.Sprintf("%064x", n), QuoteSHA256: fmt.Sprintf("%064x", n),
						Counters: []ledger.Counter{{Scope: fmt.Sprintf("spend/%d", n%100), Cost: 1000, Cap: 1 << 60}},
					}
					if _, err := db.Reserve(b.Context(), p, "bench", time.Minute); err != nil || steps == "T1" {
						return err
					}
					return db.Done(b.Context(), p.ID, 1, ledger.Answer{Status: 200, Ref: "/v1/records?limit=10", SHA256: fmt.Sprintf("%064x", n), Expires: time.Now()},
						usage.Event{Time: time.Now(), RequestID: "req_" + id, TenantID: t.ID, API: "acme", Price: 1000})
				}
				b.ResetTimer()
				left := atomic.Int64{}
				left.Store(int64(b.N))
				errs := make(chan error, callers)
				for range callers {
					go func() {
						for left.Add(-1) >= 0 {
							if err := pay(); err != nil {
								errs <- err
								return
							}
						}
						errs <- nil
					}()
				}
				for range callers {
					if err := <-errs; err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "payments/s")
			})
		}
	}
}

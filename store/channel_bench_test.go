package store_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
)

// BenchmarkVouchers measures what a call paid by voucher writes: the charge, the
// answer and the event, at 64 channels that are each paid from by one caller.
func BenchmarkVouchers(b *testing.B) {
	for name, open := range map[string]func(*testing.B) *store.DB{"sqlite": func(b *testing.B) *store.DB { return sqlite(b) }, "postgres": func(b *testing.B) *store.DB { return postgres(b) }} {
		b.Run(name, func(b *testing.B) { benchmarkVouchers(b, open(b)) })
	}
}

func benchmarkVouchers(b *testing.B, db *store.DB) {
	t, err := db.Deploy(b.Context(), clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Owner: "ann"}}, "bench")
	if err != nil {
		b.Fatal(err)
	}
	const channels = 64
	var list [channels]ledger.Channel
	for i := range list {
		c := ledger.Channel{ID: fmt.Sprintf("0x%064x", rand.Uint64()), Network: "eip155:31337", Asset: fmt.Sprintf("0x%040x", 1), Payer: fmt.Sprintf("0x%040x", i), PayTo: fmt.Sprintf("0x%040x", 2),
			Config: fmt.Appendf(nil, `{"salt":"0x%0320x"}`, i), Balance: 1 << 60, Synced: time.Now()}
		if list[i], err = db.SyncChannel(b.Context(), c); err != nil {
			b.Fatal(err)
		}
	}
	var left atomic.Int64
	var ids atomic.Uint64
	ids.Store(rand.Uint64())
	left.Store(int64(b.N))
	var wait sync.WaitGroup
	var times [channels][]time.Duration
	b.ResetTimer()
	before := used()
	for i := range list {
		wait.Go(func() {
			c := list[i]
			for n := left.Add(-1); n >= 0; n = left.Add(-1) {
				id := fmt.Sprintf("%016x", ids.Add(1))
				v := ledger.Voucher{ID: "pay_" + id, Channel: c.ID, MaxClaimable: c.Charged + 1000, Amount: 1000, Signature: make([]byte, 65), TenantID: t.ID, Version: 1, Route: "/v1/records",
					Fingerprint: fmt.Sprintf("%064x", n), SignatureSHA256: fmt.Sprintf("%064x", n), QuoteSHA256: fmt.Sprintf("%064x", n), ClientAddrHash: id}
				now := time.Now()
				a := ledger.Answer{Status: 200, Ref: "/v1/records?limit=1", Len: 400, SHA256: v.Fingerprint, Expires: now.Add(24 * time.Hour), Headers: [][2]string{{"Content-Type", "application/json"}, {"Etag", `"0123456789abcdef"`}}}
				ev := usage.Event{Time: now, RequestID: "req_" + id, TenantID: t.ID, API: "acme", Endpoint: "/v1/records", Owner: "ann", Directory: "clawr", Caller: id, Status: 200, BytesOut: 400, Price: 1000, Units: 1}
				if _, err := db.Channel(b.Context(), c.ID); err != nil {
					b.Error(err)
					return
				}
				start := time.Now()
				var err error
				if c, _, err = db.Charge(b.Context(), v, a, ev); err != nil {
					b.Error(err)
					return
				}
				times[i] = append(times[i], time.Since(start))
			}
		})
	}
	wait.Wait()
	if all := slices.Sorted(slices.Values(slices.Concat(times[:]...))); len(all) > 0 {
		b.ReportMetric(float64(all[len(all)*99/100].Microseconds())/1000, "p99-ms")
	}
	b.ReportMetric(float64((used()-before).Microseconds())/float64(b.N), "cpu-µs/call")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// used is the processor time of this process: of a loaded machine it says more
// than the clock.
func used() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

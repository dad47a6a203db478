package store_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
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

// BenchmarkAsync measures everything that the book does for a payment under the
// async policy, from its reservation until it is final: 64 callers, 64 payers,
// and batches of 128.
func BenchmarkAsync(b *testing.B) {
	for name, open := range map[string]func(*testing.B) *store.DB{"sqlite": func(b *testing.B) *store.DB { return sqlite(b) }, "postgres": func(b *testing.B) *store.DB { return postgres(b) }} {
		for _, payload := range []int{700, 2100} {
			b.Run(fmt.Sprintf("%s/%d", name, payload), func(b *testing.B) { benchmarkAsync(b, open(b), payload) })
		}
	}
}

func benchmarkAsync(b *testing.B, db *store.DB, payload int) {
	const callers, together = 64, 128
	t, err := db.Deploy(b.Context(), clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Owner: "ann"}}, "bench")
	if err != nil {
		b.Fatal(err)
	}
	const asset, network = "0x00000000000000000000000000000000000000aa", "eip155:31337"
	signer, payTo, hash := fmt.Sprintf("0x%040x", 3), fmt.Sprintf("0x%040x", 2), func(n uint64) string { return fmt.Sprintf("%016x%048x", n*0x9e3779b97f4a7c15, n) }
	var ids, left atomic.Int64
	ids.Store(1 << 40)
	left.Store(int64(b.N))
	sold := make(chan ledger.Payment, b.N)
	var wait sync.WaitGroup
	before, wrote := used(), written()
	b.ResetTimer()
	for i := range callers {
		wait.Go(func() {
			for left.Add(-1) >= 0 {
				n := uint64(ids.Add(1))
				id, now := fmt.Sprintf("%016x", n), time.Now()
				p := ledger.Payment{ID: "pay_" + id, TenantID: t.ID, Version: 1, Route: "/v1/records", Scheme: "exact", Policy: ledger.Async,
					Key:   ledger.Key{Network: network, Asset: asset, Payer: fmt.Sprintf("0x%040x", i), Nonce: "0x" + hash(rand.Uint64())},
					PayTo: payTo, Amount: 1000, ValidBefore: now.Unix() + 3600, Fingerprint: hash(n), Payload: bytes.Repeat([]byte("a"), payload),
					PayloadSHA256: hash(n), SignatureSHA256: hash(n), QuoteSHA256: hash(n), ClientAddrHash: id, Exposure: ledger.Exposure{Payer: 1 << 50, Credit: 1 << 50, Total: 1 << 50}}
				p, err := db.Reserve(b.Context(), p, "bench", time.Minute)
				if err == nil {
					err = db.Done(b.Context(), p.ID, p.Epoch, ledger.Answer{Status: 200, Ref: "/v1/records?limit=1", Len: 400, SHA256: p.Fingerprint, Expires: now.Add(24 * time.Hour), Headers: [][2]string{{"Content-Type", "application/json"}, {"Etag", `"0123456789abcdef"`}}},
						usage.Event{Time: now, RequestID: "req_" + id, TenantID: t.ID, API: "acme", Endpoint: "/v1/records", Owner: "ann", Directory: "clawr", Caller: id, Status: 200, BytesOut: 400, Price: 1000, Units: 1})
				}
				if err != nil {
					b.Error(err)
					return
				}
				sold <- p
			}
		})
	}
	go func() {
		wait.Wait()
		close(sold)
	}()
	nonce := int64(0)
	for more := true; more; nonce++ {
		batch := ledger.Batch{ID: fmt.Sprintf("bat_%016x", nonce), Network: network, Signer: signer, Nonce: nonce, CalldataSHA256: hash(uint64(nonce)),
			Txs: []ledger.Tx{{Hash: "0x" + hash(uint64(nonce)), Attempt: 1, MaxFee: "1", Tip: "1"}}}
		block := ledger.Block{Number: nonce, Hash: "0x" + hash(uint64(nonce)+1)}
		var opened []ledger.Settlement
		var results []ledger.ItemResult
		for len(opened) < together && more {
			p, ok := <-sold
			if more = ok; !ok {
				break
			}
			id := fmt.Sprintf("stl_%016x", ids.Add(1))
			opened = append(opened, ledger.Settlement{ID: id, Key: p.Key, PayTo: p.PayTo, Amount: p.Amount, ValidBefore: p.ValidBefore, Payload: p.Payload, RequestedBy: "self", Created: time.Now()})
			batch.Settlements = append(batch.Settlements, id)
			results = append(results, ledger.ItemResult{SettlementID: id, Outcome: ledger.ItemPaid, Evidence: ledger.Evidence{Tx: batch.Txs[0].Hash, BlockNumber: block.Number, BlockHash: block.Hash, LogIndex: int64(len(opened))}})
		}
		if len(opened) == 0 {
			break
		}
		batch.Txs[0].Raw = make([]byte, 460*len(opened))
		err := db.Sign(b.Context(), batch, opened...)
		if err == nil {
			err = db.Mined(b.Context(), batch.ID, batch.Txs[0].Hash, block.Number, block.Hash, results)
		}
		if err == nil {
			_, err = db.FinalizeBlock(b.Context(), network, block, nonce)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((used()-before).Microseconds())/float64(b.N), "cpu-µs/payment")
	b.ReportMetric(float64(written()-wrote)/float64(b.N)/1024, "KB/payment")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "payments/s")
}

// written is how many bytes this process had written to files, as the kernel
// counts its blocks.
func written() int64 {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return u.Oublock * 512
}

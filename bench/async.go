package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"

	"github.com/402claw/clawr/e2e/anvil"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
)

// bursts is what `paid-async` and `paid-2s` say on the last line of stdout.
type bursts struct {
	AsyncPerSecond   float64 `json:"async_per_s,omitempty"`
	AsyncP99         float64 `json:"async_p99_ms,omitempty"`
	SettledPerSecond float64 `json:"settled_2s_per_s,omitempty"`
	SettledRatio     float64 `json:"settled_2s_ratio,omitempty"`
}

// asyncCallers is how many call at a time under async.
const asyncCallers = 64

// paidAsync measures paid calls of an async tenant in one burst of presigned
// payments, under caps that the operator sets, then lets the queue drain and
// compares the book with the chain's logs, to the unit.
func paidAsync(ctx context.Context, args []string, out *bursts) (err error) {
	f := flag.NewFlagSet("paid-async", flag.ContinueOnError)
	seconds := f.Float64("seconds", 60, "length of the burst")
	guess := f.Float64("guess", 3600, "calls in a second that payments are signed for")
	drain := f.Duration("drain", 20*time.Minute, "time to settle all of it")
	profile := f.String("profile", "", "`file` for clawr's CPU profile of the burst")
	if err := f.Parse(args); err != nil {
		return err
	}
	w, err := newWorldOn(ctx, payers, anvil.Options{BlockTime: time.Second, Args: roomy})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	seller, err := newSeller()
	if err != nil {
		return err
	}
	flags := []string{"--async-payer-cap", "100000", "--async-credit", "100000", "--async-total-cap", "1000000"}
	if *profile != "" {
		flags = append(flags, "--cpu-profile", *profile)
	}
	p, err := w.serveAs(ctx, seller, []string{"--settle", "async"}, nil, flags...)
	if err != nil {
		return err
	}
	// A short burst warms everything up, and says how much is to be signed.
	warm, err := w.burst(ctx, p, seller, records, 2000, asyncCallers)
	if err != nil {
		return err
	}
	n := int(max(warm.perSecond(), *guess) * *seconds)
	fmt.Fprintf(os.Stderr, "warmed up at %.0f/s; signing %d payments\n", warm.perSecond(), n)
	before, node := p.cpu(), cpuOf(nodePID())
	r, err := w.burst(ctx, p, seller, records, n, asyncCallers)
	if err != nil {
		return err
	}
	cpu := (p.cpu() - before) / time.Duration(r.Good)
	out.AsyncPerSecond, out.AsyncP99 = round(r.perSecond()), round(ms(r.P99))
	table("paid calls under async, answered before they are settled",
		"callers\tcalls\tseconds\tcalls/s\tp50 ms\tp99 ms\tclawr CPU ms a call\tnode CPU s",
		fmt.Sprintf("%d\t%d\t%.1f\t%.0f\t%.2f\t%.2f\t%.3f\t%.1f", asyncCallers, r.Good, r.Took.Seconds(), r.perSecond(), ms(r.P50), ms(r.P99), ms(cpu), (cpuOf(nodePID())-node).Seconds()))
	start, all := time.Now(), int64(warm.Good+r.Good)*price
	if err := w.drained(ctx, seller, all, *drain); err != nil {
		return err
	}
	took := time.Since(start)
	if err := booked(ctx, p.data, *drain); err != nil {
		return err
	}
	whole := (p.cpu() - before) / time.Duration(r.Good)
	fmt.Fprintf(os.Stderr, "\ndrained in %.0f s, %.0f settlements/s; clawr CPU ms a call until it is settled: %.3f\n", took.Seconds(), float64(r.Good)/took.Seconds(), ms(whole))
	dir := p.data
	w.running = w.running[:len(w.running)-1]
	if err := w.end(p); err != nil {
		return err
	}
	return w.audit(ctx, dir, seller, all)
}

// burst has callers make n presigned calls, each once.
func (w *world) burst(ctx context.Context, p *process, seller common.Address, path string, n, callers int) (result, error) {
	requests, err := w.presigned(ctx, p.addr, path, n)
	if err != nil {
		return result{}, err
	}
	return fire(ctx, job{Addr: p.addr, Callers: callers, Requests: requests, Status: 200, Contains: `"data"`})
}

// presigned are n requests with a payment each. Challenges are shared, as a
// quote is for a version and a price: asking for each would take longer than
// the burst.
func (w *world) presigned(ctx context.Context, addr, path string, n int) ([][]byte, error) {
	required, err := ask(ctx, http.DefaultClient, addr, path)
	if err != nil {
		return nil, err
	}
	list := make([][]byte, n)
	errs := make([]error, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	for k := range errs {
		wg.Go(func() {
			for i := k; i < n && errs[k] == nil; i += len(errs) {
				paid, err := w.payers[i%len(w.payers)].sign(required)
				if errs[k] = err; err == nil {
					list[i] = get(addr, path, "PAYMENT-SIGNATURE: "+paid.Header())
				}
			}
		})
	}
	wg.Wait()
	return list, errors.Join(errs...)
}

// drained waits until the seller has everything.
func (w *world) drained(ctx context.Context, seller common.Address, want int64, within time.Duration) error {
	for end := time.Now().Add(within); ; {
		have, err := w.balance(ctx, seller)
		if err != nil {
			return err
		}
		if have == want {
			return nil
		}
		if have > want || time.Now().After(end) {
			return fmt.Errorf("the seller has %d of %d after %v", have, want, within)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// booked waits until the book in dir has what the chain has: the last batch is
// in a block before it is in the book.
func booked(ctx context.Context, dir string, within time.Duration) error {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "clawr.db")+"?mode=ro")
	if err != nil {
		return err
	}
	defer db.Close()
	for end := time.Now().Add(within); ; time.Sleep(200 * time.Millisecond) {
		var open int
		err := db.QueryRowContext(ctx, `SELECT COUNT(*) FROM payments WHERE money IN('held','signed')`).Scan(&open)
		if err != nil || open == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d payments are not booked after %v", open, within)
		}
	}
}

// transferEvent is the topic of Transfer(address,address,uint256).
const transferEvent = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"

// audit compares the book in dir, whose process has ended, with the chain: the
// transfers to the seller, and the payments that the book says are mined.
func (w *world) audit(ctx context.Context, dir string, seller common.Address, want int64) error {
	tip, err := w.node.Client.Head(ctx)
	if err != nil {
		return err
	}
	head := uint64(tip.Number)
	logged := new(big.Int)
	for from := uint64(0); from <= head; from += 100 {
		var logs []struct {
			Data hexutil.Bytes `json:"data"`
		}
		query := map[string]any{"fromBlock": hexutil.Uint64(from), "toBlock": hexutil.Uint64(min(from+99, head)), "address": w.asset,
			"topics": []any{transferEvent, nil, common.BytesToHash(seller[:])}}
		if err := w.node.Call(ctx, &logs, "eth_getLogs", query); err != nil {
			return err
		}
		for _, l := range logs {
			logged.Add(logged, new(big.Int).SetBytes(l.Data))
		}
	}
	db, err := store.Open(ctx, store.Options{Path: filepath.Join(dir, "clawr.db")})
	if err != nil {
		return err
	}
	defer db.Close()
	booked, rest := int64(0), 0
	for _, money := range []ledger.Money{ledger.Held, ledger.Signed, ledger.Dead, ledger.Released, ledger.Mined, ledger.Final} {
		list, err := db.Payments(ctx, store.PaymentFilter{Money: money, Limit: 10_000_000})
		if err != nil {
			return err
		}
		for _, p := range list {
			if money == ledger.Mined || money == ledger.Final {
				booked += p.Amount
			} else {
				rest++
			}
		}
	}
	fmt.Fprintf(os.Stderr, "the chain's logs say %s, the book %d, the calls %d; %d payments are in another state\n", logged, booked, want, rest)
	if !logged.IsInt64() || logged.Int64() != booked || booked != want || rest > 0 {
		return errors.New("the book is not what the chain shows")
	}
	return nil
}

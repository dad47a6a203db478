package store_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
	"github.com/402claw/clawr/usage"
)

// A wire stands between the store and the server, and cuts the connection at
// the next COMMIT: before it reaches the server, or after.
type wire struct {
	net.Listener
	server string
	mu     sync.Mutex
	cut    string // "", "before", "after"
	cuts   int
}

// newWire is a wire to the server of a new database, and that database's URL
// through it.
func newWire(t *testing.T) (w *wire, through string) {
	t.Helper()
	u, err := url.Parse(storetest.Postgres(t))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w = &wire{Listener: l, server: u.Host}
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { w.carry(ctx, c) })
		}
	})
	t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	u.Host = l.Addr().String()
	return w, u.String()
}

func (w *wire) next(cut string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
}

// take reports how to cut if message is a COMMIT and one is to be cut.
func (w *wire) take(message []byte) string {
	if !bytes.Contains(message, []byte("commit\x00")) {
		return ""
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	cut := w.cut
	w.cut = ""
	if cut != "" {
		w.cuts++
	}
	return cut
}

func (w *wire) carry(ctx context.Context, client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", w.server)
	if err != nil {
		return
	}
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	var drop atomic.Bool
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		defer client.Close()
		buf := make([]byte, 64<<10)
		for {
			n, err := server.Read(buf)
			if err != nil || drop.Load() {
				return // the server has done it, and nobody hears so
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		if err != nil {
			return
		}
		cut := w.take(buf[:n])
		if cut == "before" {
			return
		}
		drop.Store(cut == "after")
		if _, err := server.Write(buf[:n]); err != nil {
			return
		}
		if cut == "after" {
			<-answered
			return
		}
	}
}

// TestLostCommitIsLookedUp cuts the connection during the COMMIT of every
// write of a payment's life. Whether the server had done it or not, the caller
// learns that it is done, and it is done once.
func TestLostCommitIsLookedUp(t *testing.T) {
	for _, cut := range []string{"before", "after"} {
		t.Run(cut, func(t *testing.T) {
			t.Parallel()
			w, through := newWire(t)
			db := open(t, store.Options{URL: through})
			ctx := t.Context()
			tenant, err := db.Deploy(ctx, clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Owner: "ann"}}, "ann")
			must(t, err)
			cuts := 0
			lose := func(what string, err error) {
				t.Helper()
				cuts++
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if w.cuts != cuts {
					t.Fatalf("%s: %d commits were cut, want %d", what, w.cuts, cuts)
				}
				w.next(cut)
			}
			reserve := func(n int, policy ledger.Policy) ledger.Payment {
				p, err := db.Reserve(ctx, payment(tenant.ID, n, policy), "node", time.Minute)
				lose("reserve", err)
				return p
			}
			done := func(p ledger.Payment) {
				lose("done", db.Done(ctx, p.ID, 1, ledger.Answer{Status: 200, Ref: "x", SHA256: "aa", Expires: time.Now()}, usage.Event{RequestID: p.ID, API: "acme", Price: 7}))
			}
			const block = "0xb"
			evidence := ledger.Evidence{Tx: "0x1", BlockNumber: 1, BlockHash: block}
			w.next(cut)
			lose("deploy", second(db.Deploy(ctx, clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Owner: "ann", Price: 5}}, "ann")))
			lose("roll back", second(db.Rollback(ctx, "acme", 0, "ann")))
			lose("secret", second(db.Secrets(ctx, "quote")))
			lose("owner", db.SetOwner(ctx, "ann", "Ann", "", "test"))
			lose("token", db.CreateToken(ctx, store.Token{ID: "t", Prefix: "p", SecretSHA256: string(bytes.Repeat([]byte("a"), 64))}, "test"))
			lose("revoke", db.RevokeToken(ctx, "t", "test"))
			if _, err := db.CheckAudit(ctx); err != nil {
				t.Error(err)
			}

			p := reserve(1, ledger.SettleBeforeResponse)
			done(p)
			s, err := db.OpenSettlement(ctx, ledger.Settlement{Key: p.Key, PayTo: p.PayTo, Amount: p.Amount, ValidBefore: 2, Payload: []byte("x")})
			lose("open", err)
			b := ledger.Batch{ID: "bat_1", Network: p.Network, Signer: p.PayTo, Settlements: []string{s.ID}, Txs: []ledger.Tx{{Hash: "0x1", Attempt: 1, Raw: []byte{1}}}}
			lose("sign", db.Sign(ctx, b))
			lose("fee bump", db.AddTx(ctx, b.ID, ledger.Tx{Hash: "0x2", Attempt: 2, Raw: []byte{2}}))
			lose("mined", db.Mined(ctx, b.ID, "0x1", 1, block, []ledger.ItemResult{{SettlementID: s.ID, Outcome: ledger.ItemPaid, Evidence: evidence}}))
			lose("unmine batch", db.UnmineBatch(ctx, b.ID, block))
			lose("mined again", db.Mined(ctx, b.ID, "0x1", 1, block, []ledger.ItemResult{{SettlementID: s.ID, Outcome: ledger.ItemPaid, Evidence: evidence}}))
			lose("final", db.FinalizeBatch(ctx, b.ID, block))

			p = reserve(2, ledger.SettleBeforeResponse)
			done(p)
			lose("submit", db.Submit(ctx, p.ID, 1, "https://facilitator.example.com"))
			lose("paid", db.Paid(ctx, p.Key, evidence))
			lose("unmine", db.Unmine(ctx, p.Key, block))
			lose("dead", db.Dead(ctx, p.Key, "proof"))

			p = reserve(3, ledger.SettleBeforeResponse)
			lose("renew", db.Renew(ctx, p.ID, 1, time.Hour))
			lose("release", db.Release(ctx, p.ID, 1, clawr.CodeWorkerFailure, usage.Event{RequestID: "r3", API: "acme"}))

			p = reserve(4, ledger.SettleFirst)
			lose("submit", db.Submit(ctx, p.ID, 1, "https://facilitator.example.com"))
			lose("paid", db.Paid(ctx, p.Key, evidence))
			lose("start", db.Start(ctx, p.ID, 1))
			lose("final", db.Final(ctx, p.Key, block))
			lose("fail", db.Fail(ctx, p.ID, 1, clawr.CodeWorkerFailure, usage.Event{}))

			lose("record", db.Record(ctx, []usage.Event{{RequestID: "free", API: "acme"}}))
			w.next("")
			if c, err := db.Counters(ctx, "spend"); err != nil || c[0].Used != 2 {
				t.Errorf("counters %+v, %v; want 2 used: payments 1 and 4", c, err)
			}
			if list, err := db.Events(ctx, 100); err != nil || len(list) != 4 {
				t.Errorf("%d events, %v; want 4", len(list), err)
			}
		})
	}
}

// TestLostCommitWithoutAName cuts where the outcome cannot be looked up:
// what may have been taken must not be taken twice.
func TestLostCommitWithoutAName(t *testing.T) {
	w, through := newWire(t)
	db := open(t, store.Options{URL: through})
	counter := []ledger.Counter{{Scope: "quota", Cost: 1, Cap: 10}}
	w.next("after")
	_, err := db.Take(t.Context(), counter)
	if err == nil {
		t.Error("an unknown outcome was told as done")
	}
	if c, err := db.Counters(t.Context(), "quota"); err != nil || c[0].Used != 1 {
		t.Errorf("taken %+v, %v; want once", c, err)
	}
	p := reserve(t, db, 1, ledger.SettleBeforeResponse)
	must(t, db.Renew(t.Context(), p.ID, 1, -time.Second))
	w.next("after")
	if _, err := db.TakeOver(t.Context(), p.ID, 1, "node", time.Minute); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("taken over: %v; want nobody to work until the lease is over", err)
	}
}

// TestServerRestartIsSurvived ends every connection of the server's.
func TestServerRestartIsSurvived(t *testing.T) {
	direct := storetest.Postgres(t)
	db := open(t, store.Options{URL: direct + "&application_name=to_be_ended"})
	raw, err := sql.Open("pgx", direct)
	must(t, err)
	defer raw.Close()
	reserve(t, db, 1, ledger.SettleBeforeResponse)
	for n := 2; n < 6; n++ {
		execute(t, raw, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'to_be_ended'`)
		reserve(t, db, n, ledger.SettleBeforeResponse)
	}
	if c, err := db.Counters(t.Context(), "spend"); err != nil || c[0].Used != 5 {
		t.Errorf("counters %+v, %v; want 5 used", c, err)
	}
}

func second[T any](_ T, err error) error { return err }

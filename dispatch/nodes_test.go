package dispatch_test

import (
	"context"
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
)

// Two nodes, each with connections of its own to one Postgres, sell to one
// payer all at once. What he may spend in a day holds five calls and one unit
// less than a sixth: five are sold, under every policy, whoever sells them.
func TestTwoNodesOnOnePostgresDoNotOverspendACapByOneUnit(t *testing.T) {
	const calls, room = 24, 5
	for _, policy := range []ledger.Policy{ledger.SettleBeforeResponse, ledger.SettleFirst, ledger.Async} {
		t.Run(string(policy), func(t *testing.T) {
			t.Parallel()
			u := storetest.Postgres(t)
			w := newWorldOn(t, store.Options{URL: u})
			second, err := store.Open(t.Context(), store.Options{URL: u, Now: w.now, Fatal: func(err error) { t.Errorf("book: %v", err) }})
			w.ok(err)
			t.Cleanup(func() { second.Close() })
			other := w.dispatcher("node-2")
			other.Tenants, other.Book, other.Recovery, other.Charged, other.Queue, other.Quotas = second, second, second, second, second, second
			w.d.Deadline, other.Deadline = time.Minute, time.Minute // the machine is busy
			w.d.Exposure, other.Exposure = rich, rich
			w.deploy(clawr.Tenant{Slug: "capped", Manifest: clawr.Manifest{Settle: string(policy), Spend: clawr.Caps{Daily: (room+1)*price - 1}}}, other)

			payer := key(t)
			qs := make([]request, calls)
			for i := range qs {
				qs[i].path = "/t/capped/v1/records?limit=1"
				qs[i].pay = w.signed(payer, w.send(qs[i]).is(402, clawr.CodeMissingPayment).required()).Header()
				if i%2 == 1 {
					qs[i].node = other
				}
			}
			sold := 0
			var counter ledger.Counter
			for i, a := range w.atOnce(qs...) {
				row := w.row(qs[i])
				if a.Code != 200 {
					a.is(429, clawr.CodeCapExceeded).has("PAYMENT-REQUIRED", "")
					if row != nil {
						t.Errorf("a call that was refused is %s, %s in the book", row.Work, row.Money)
					}
					continue
				}
				sold++
				if row.Policy != policy || len(row.Counters) != 1 || row.Counters[0].Cost != price {
					t.Fatalf("sold under %s, from %+v", row.Policy, row.Counters)
				}
				counter = row.Counters[0]
			}
			if sold != room || w.shop.total() != room {
				t.Errorf("%d calls were sold and %d worked on, want %d", sold, w.shop.total(), room)
			}
			if n := len(w.till.transfers()); n != room && policy != ledger.Async {
				t.Errorf("%d transfers, want %d", n, room)
			}
			got, err := w.db.Counters(t.Context(), counter.Scope)
			w.ok(err)
			if len(got) != 1 || got[0].Used != room*price {
				t.Errorf("the book has spent %+v, want %d units of one day", got, room*price)
			}
		})
	}
}

// A line carries a database's connections, until it is cut.
type line struct {
	server string
	at     string // where it listens

	mu    sync.Mutex
	l     net.Listener // nil: it is cut
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func newLine(t *testing.T, server string) *line {
	t.Helper()
	l := &line{server: server, at: "127.0.0.1:0", conns: map[net.Conn]bool{}}
	l.mend(t)
	l.at = l.l.Addr().String()
	t.Cleanup(func() { l.cut(); l.wg.Wait() })
	return l
}

// mend has the line carry connections, at the same address as before.
func (l *line) mend(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", l.at)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	l.l = ln
	l.mu.Unlock()
	l.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			l.wg.Go(func() { l.carry(c) })
		}
	})
}

// cut ends every connection, and takes no more.
func (l *line) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.l != nil {
		l.l.Close()
	}
	l.l = nil
	for c := range l.conns {
		c.Close()
	}
}

func (l *line) carry(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", l.server)
	if err != nil {
		return
	}
	defer server.Close()
	l.mu.Lock()
	up := l.l != nil
	l.conns[client], l.conns[server] = true, true
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.conns, client)
		delete(l.conns, server)
	}()
	if !up {
		return
	}
	l.wg.Go(func() { defer client.Close(); _, _ = io.Copy(client, server) })
	_, _ = io.Copy(server, client)
}

// While the database cannot be reached, a paid call is told 503 and to send the
// same payment again: the facilitator is not asked about it, no work is done
// and nothing is charged. It buys, once, when the database is back. The same
// holds if the database goes between the verification and the reservation.
func TestAnUnreachableDatabaseIs503BeforeAPaymentIsVerifiedOrReserved(t *testing.T) {
	for _, policy := range []ledger.Policy{ledger.SettleBeforeResponse, ledger.SettleFirst, ledger.Async} {
		for _, when := range []string{"before the call", "after it was verified"} {
			t.Run(string(policy)+" "+when, func(t *testing.T) {
				t.Parallel()
				u, err := url.Parse(storetest.Postgres(t))
				if err != nil {
					t.Fatal(err)
				}
				db := newLine(t, u.Host)
				u.Host = db.at
				w := newWorldOn(t, store.Options{URL: u.String()})
				w.d.Deadline = time.Minute // the machine is busy
				w.d.Exposure = rich
				w.deploy(clawr.Tenant{Slug: "capped", Manifest: clawr.Manifest{Settle: string(policy), Spend: clawr.Caps{Daily: price}}})
				q := w.payment(request{path: "/t/capped/v1/records?limit=1"})

				verified := 0
				if when == "before the call" {
					db.cut()
				} else {
					verified = 1
					w.at("verify.after", db.cut)
				}
				a := w.send(q)
				if a.Code != 503 {
					t.Fatalf("without a database: %d %s", a.Code, a.Body)
				}
				a.has("PAYMENT-REQUIRED", "", "PAYMENT-RESPONSE", "", "Retry-After", "*")
				if w.till.verifies != verified || w.till.settles != 0 {
					t.Errorf("the facilitator was asked %d times to verify and %d times to settle, want %d and none", w.till.verifies, w.till.settles, verified)
				}
				w.sold(0, 0)

				db.mend(t)
				deadline := time.Now().Add(time.Minute)
				for { // connections that are dead are found so when they are used
					if _, err := w.db.Revision(t.Context()); err == nil {
						break
					} else if time.Now().After(deadline) {
						t.Fatal(err)
					}
				}
				if row := w.row(q); row != nil {
					t.Errorf("the payment is %s, %s in the book", row.Work, row.Money)
				}
				for a = w.send(q); a.Code == 503 && time.Now().Before(deadline); a = w.send(q) {
					time.Sleep(50 * time.Millisecond)
				}
				a.is(200, "")
				row := w.row(q)
				got, err := w.db.Counters(context.WithoutCancel(t.Context()), row.Counters[0].Scope)
				w.ok(err)
				if len(got) != 1 || got[0].Used != price {
					t.Errorf("the cap has spent %+v, want %d", got, price)
				}
				w.send(q).is(200, "").has("X-Clawr-Replayed", "true")
				if policy != ledger.Async {
					w.sold(1, 1)
				}
			})
		}
	}
}

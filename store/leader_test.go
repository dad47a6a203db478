package store_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
)

const (
	testNetwork = "eip155:31337"
	testSigner  = "0x00000000000000000000000000000000000000dd"
)

// clock is a time that tests move.
type clock struct{ at atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.at.Store(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()).UTC() }
func (c *clock) forward(d time.Duration) { c.at.Add(int64(d)) }

// two opens one Postgres as two nodes do.
func two(t *testing.T, c *clock) (a, b *store.DB) {
	t.Helper()
	url := storetest.Postgres(t)
	return open(t, store.Options{URL: url, Node: "node_a", Now: c.now}), open(t, store.Options{URL: url, Node: "node_b", Now: c.now})
}

// One node leads a signer at a time, another begins when its term is over, and
// each change of hands raises the epoch.
func TestLeadersTakeTurns(t *testing.T) {
	c := newClock()
	dbA, dbB := two(t, c)
	a, b := dbA.Leader(testNetwork, testSigner), dbB.Leader(testNetwork, testSigner)
	stand := func(l *store.Leader, want bool, epoch int64) {
		t.Helper()
		leads, err := l.Stand(t.Context())
		must(t, err)
		if leads != want || l.Leads() != want || want && l.Epoch() != epoch {
			t.Fatalf("it leads: %v, %v, epoch %d; want %v, %d", leads, l.Leads(), l.Epoch(), want, epoch)
		}
	}
	stand(a, true, 1)
	stand(b, false, 0)
	c.forward(store.LeaderTerm / 2)
	stand(a, true, 1)
	c.forward(store.LeaderTerm - time.Millisecond)
	stand(b, false, 0)
	c.forward(time.Millisecond)
	if a.Leads() {
		t.Error("a node believes that it leads after its term")
	}
	stand(b, true, 2)
	stand(a, false, 0)
	must(t, b.Resign(t.Context()))
	if b.Leads() {
		t.Error("a node leads that resigned")
	}
	stand(a, true, 3)
	stand(dbB.Leader(testNetwork, "0x00000000000000000000000000000000000000ee"), true, 1)
}

// What a leader signs after another one's term has begun is refused, whatever
// it believes: the epoch is looked at in the transaction that writes.
func TestAPausedLeaderCannotSign(t *testing.T) {
	c := newClock()
	dbA, dbB := two(t, c)
	a, b := dbA.Leader(testNetwork, testSigner), dbB.Leader(testNetwork, testSigner)
	p := answered(t, dbA, 1)
	s := unopened(p)
	if _, err := a.Stand(t.Context()); err != nil || !a.Leads() {
		t.Fatal("the first node does not lead", err)
	}
	must(t, a.Book().Sign(t.Context(), batchOf(0, unopenedOf(t, dbA, 7)), unopenedOf(t, dbA, 7)))
	c.forward(store.LeaderTerm)
	if leads, err := b.Stand(t.Context()); err != nil || !leads {
		t.Fatal("the second node does not lead", err)
	}
	c.forward(-store.LeaderTerm) // the first one's clock stands still
	if !a.Leads() {
		t.Fatal("the test needs a leader who believes in himself")
	}
	if err := a.Book().Sign(t.Context(), batchOf(1, s), s); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("a fenced leader's signature: %v, want ErrFenced", err)
	}
	if err := a.Book().AddTx(t.Context(), batchOf(0).ID, ledger.Tx{Hash: "0xaa", Attempt: 2, Raw: []byte{1}, MaxFee: "2", Tip: "2"}); !errors.Is(err, ledger.ErrFenced) {
		t.Errorf("a fenced leader's replacement: %v, want ErrFenced", err)
	}
	if row, err := dbA.Payment(t.Context(), p.ID); err != nil || row.Money != ledger.Held {
		t.Errorf("a refused signature moved a payment: %+v, %v", row, err)
	}
	if n, err := dbB.NextNonce(t.Context(), testNetwork, testSigner); err != nil || n != 1 {
		t.Errorf("a refused signature took a nonce: %d, %v", n, err)
	}
	must(t, b.Book().Sign(t.Context(), batchOf(1, s), s))
}

// A book of several signers holds each signature against the term of its own
// signer: to lead one is no leave to sign with another.
func TestASignatureNeedsTheTermOfItsOwnSigner(t *testing.T) {
	c := newClock()
	dbA, dbB := two(t, c)
	const second = "0x00000000000000000000000000000000000000ee"
	leaders := func(db *store.DB) (first, other *store.Leader, book *store.LedBook) {
		first, other = db.Leader(testNetwork, testSigner), db.Leader(testNetwork, second)
		return first, other, db.Led(first, other)
	}
	a1, a2, bookA := leaders(dbA)
	b1, b2, bookB := leaders(dbB)
	for l, want := range map[*store.Leader]bool{a1: true, b2: true} {
		if leads, err := l.Stand(t.Context()); err != nil || leads != want {
			t.Fatal(leads, err)
		}
	}
	for l, want := range map[*store.Leader]bool{a2: false, b1: false} {
		if leads, err := l.Stand(t.Context()); err != nil || leads != want {
			t.Fatal(leads, err)
		}
	}
	by := func(signer string, n int) (ledger.Batch, ledger.Settlement) {
		s := unopenedOf(t, dbA, n)
		b := batchOf(int64(n), s)
		b.Signer = signer
		return b, s
	}
	for i, x := range []struct {
		book   *store.LedBook
		signer string
		fenced bool
	}{{bookA, testSigner, false}, {bookA, second, true}, {bookB, second, false}, {bookB, testSigner, true},
		{bookA, "0x00000000000000000000000000000000000000ff", true}, {a1.Book(), second, true}} {
		b, s := by(x.signer, 20+i)
		if err := x.book.Sign(t.Context(), b, s); errors.Is(err, ledger.ErrFenced) != x.fenced || !x.fenced && err != nil {
			t.Errorf("signature %d by %s: %v, refused: want %v", i, x.signer, err, x.fenced)
		}
		if x.fenced {
			continue
		}
		tx := ledger.Tx{Hash: b.ID + "-2", Attempt: 2, Raw: []byte{1}, MaxFee: "2", Tip: "2"}
		other := map[*store.LedBook]*store.LedBook{bookA: bookB, bookB: bookA}[x.book]
		if err := other.AddTx(t.Context(), b.ID, tx); !errors.Is(err, ledger.ErrFenced) {
			t.Errorf("a replacement by who does not lead %s: %v, want ErrFenced", x.signer, err)
		}
		must(t, x.book.AddTx(t.Context(), b.ID, tx))
	}
}

// unopenedOf is the settlement of the nth payment, which has its answer.
func unopenedOf(t *testing.T, db *store.DB, n int) ledger.Settlement {
	t.Helper()
	k := payment("", n, ledger.SettleBeforeResponse).Key
	p, err := db.Find(t.Context(), k)
	must(t, err)
	if p == nil {
		fresh := answered(t, db, n)
		p = &fresh
	}
	return unopened(*p)
}

// Of leaders that stand and sign at once, each believing that it leads, the
// signatures of one epoch never follow those of a later one.
func TestNoSignatureAfterALaterEpoch(t *testing.T) {
	c := newClock()
	url := storetest.Postgres(t)
	var mu sync.Mutex
	var epochs []int64 // in the order of their commits: the next nonce is taken under the row's lock
	var wg sync.WaitGroup
	setup := open(t, store.Options{URL: url, Now: c.now})
	const nodes, each = 3, 15
	for i := range nodes * each {
		answered(t, setup, 100+i)
	}
	var next atomic.Int64
	next.Store(100)
	for range nodes {
		db := open(t, store.Options{URL: url, Now: c.now})
		l := db.Leader(testNetwork, testSigner)
		wg.Go(func() {
			for range each {
				if _, err := l.Stand(t.Context()); err != nil {
					t.Error(err)
				}
				s := unopenedOf(t, db, int(next.Add(1)-1))
				for {
					epoch := l.Epoch()
					n, err := db.NextNonce(t.Context(), testNetwork, testSigner)
					if err != nil {
						t.Error(err)
						return
					}
					err = l.Book().Sign(t.Context(), batchOf(n, s), s)
					if err == nil {
						mu.Lock()
						for int64(len(epochs)) <= n {
							epochs = append(epochs, 0)
						}
						epochs[n] = epoch
						mu.Unlock()
						break
					}
					if !errors.Is(err, ledger.ErrFenced) {
						t.Error(err)
						return
					}
					c.forward(store.LeaderTerm) // the others' terms are over
					if _, err := l.Stand(t.Context()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	if len(epochs) != nodes*each {
		t.Fatalf("%d signatures, want %d", len(epochs), nodes*each)
	}
	for n := 1; n < len(epochs); n++ {
		if epochs[n] < epochs[n-1] {
			t.Errorf("nonce %d was signed in epoch %d, after nonce %d in epoch %d", n, epochs[n], n-1, epochs[n-1])
		}
	}
	t.Logf("%d signatures over %d epochs", len(epochs), epochs[len(epochs)-1])
}

// News reach every node, and the payments that nobody told of are found.
func TestNewsOfPayments(t *testing.T) {
	c := newClock()
	a, b := two(t, c)
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan store.News, 64)
	var wg sync.WaitGroup
	wg.Go(func() {
		b.Hear(ctx, func(n store.News) {
			select {
			case heard <- n:
			default:
			}
		})
	})
	defer wg.Wait()
	defer cancel()
	var ids []string
	for i := range 650 {
		ids = append(ids, payment("", i, ledger.Async).ID)
	}
	got := map[string]bool{}
	for deadline := time.Now().Add(20 * time.Second); len(got) < len(ids); {
		must(t, a.Tell(t.Context(), store.News{Signer: testSigner, IDs: ids})) // again: it may not listen yet
		timeout := time.After(200 * time.Millisecond)
		for waiting := true; waiting; {
			select {
			case n := <-heard:
				for _, id := range n.IDs {
					got[id] = n.Signer == testSigner
				}
			case <-timeout:
				waiting = false
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("heard of %d of %d payments", len(got), len(ids))
		}
	}

	p := answered(t, a, 1) // by "node", which is neither
	answered(t, a, 2)
	reserve(t, a, 3, ledger.SettleBeforeResponse)
	rows, err := b.Unsubmitted(t.Context(), c.now(), 10)
	must(t, err)
	if len(rows) != 2 {
		t.Errorf("%d payments wait to be submitted, want 2", len(rows))
	}
	if rows, err = b.Unsubmitted(t.Context(), c.now().Add(-time.Second), 10); err != nil || len(rows) != 0 {
		t.Errorf("%d payments were left alone for a second, %v, want none", len(rows), err)
	}
	byID, err := b.PaymentsByID(t.Context(), append([]string{p.ID, "pay_unknown"}, ids[2:320]...))
	must(t, err)
	if len(byID) != 3 {
		t.Errorf("%d of the payments exist, want 3", len(byID))
	}
}

// An SQLite database has one owner, and a leader there is as good as none.
func TestALeaderOnSQLite(t *testing.T) {
	db := open(t, store.Options{Path: filepath.Join(t.TempDir(), "clawr.db")})
	l := db.Leader(testNetwork, testSigner)
	if leads, err := l.Stand(t.Context()); err != nil || !leads {
		t.Fatal(leads, err)
	}
	s := unopenedOf(t, db, 1)
	must(t, l.Book().Sign(t.Context(), batchOf(1, s), s))
}

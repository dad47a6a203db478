package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	sqlite3 "modernc.org/sqlite/lib"
)

// What is kept in memory of a channel is never other than its row: whatever is
// done to it, by whoever, in whichever transactions, refused or not.
func TestWhatIsKeptOfAChannelIsItsRow(t *testing.T) {
	db, err := Open(t.Context(), Options{Path: filepath.Join(t.TempDir(), "clawr.db")})
	must(t, err)
	t.Cleanup(func() { must(t, db.Close()) })
	tenant, err := db.Deploy(t.Context(), clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Owner: "ann"}}, "test")
	must(t, err)
	const channels, callers, rounds, steps = 3, 6, 12, 15
	id := func(n int) string { return fmt.Sprintf("0x%064x", n) }
	seen := func(n int, second int64, balance, claimed int64) ledger.Channel {
		return ledger.Channel{ID: id(n), Network: "eip155:31337", Asset: "0xa", Payer: "0xb", PayTo: "0xc", Config: []byte(`{}`), Balance: balance, Claimed: claimed,
			Synced: time.Unix(1_700_000_000+second, 0)}
	}
	for n := range channels {
		_, err := db.SyncChannel(t.Context(), seen(n, 0, 1_000_000, 0))
		must(t, err)
	}
	kept := 0
	for round := range rounds {
		ended := make(chan error, callers)
		for who := range callers {
			random := rand.New(rand.NewPCG(uint64(round), uint64(who)))
			go func() {
				ended <- func() error {
					for step := range steps {
						n := random.IntN(channels)
						was, err := db.Channel(t.Context(), id(n))
						if err != nil {
							return err
						}
						switch random.IntN(8) {
						case 0:
							_, err = db.SyncChannel(t.Context(), seen(n, int64(round*steps+step), 1_000_000+int64(step), min(was.Charged, int64(random.IntN(5000)))))
						case 1:
							var epoch int64
							if epoch, err = db.HoldChannel(t.Context(), id(n), was.Charged, 10, "me", time.Millisecond); err == nil && random.IntN(2) == 0 {
								err = db.ReleaseChannel(t.Context(), id(n), epoch)
							}
						default:
							serial := fmt.Sprintf("%08x%08x", who, round*steps+step)
							v := ledger.Voucher{ID: "pay_" + serial, Channel: id(n), MaxClaimable: was.Charged + 10, Amount: 10, Signature: []byte(serial), TenantID: tenant.ID, Version: 1}
							if random.IntN(10) == 0 { // refused when the channel was charged already
								v.Counters = []ledger.Counter{{Scope: "spend", Cost: 1, Cap: 0}}
							}
							var after ledger.Channel
							after, _, err = db.Charge(t.Context(), v, ledger.Answer{Status: 200, Ref: "/"}, usage.Event{RequestID: "req_" + serial, API: "acme", Lifecycle: usage.Success})
							if err == nil && (after.Charged != v.MaxClaimable || string(after.Signature) != serial) {
								err = fmt.Errorf("charged %d, and the channel is %+v", v.MaxClaimable, after)
							}
						}
						var behind *ledger.ChannelBehind
						if err != nil && !errors.As(err, &behind) && !errors.As(err, new(*ledger.Exceeded)) {
							return err
						}
					}
					return nil
				}()
			}()
		}
		for range callers {
			must(t, <-ended)
		}
		for n := range channels {
			got, err := db.Channel(t.Context(), id(n))
			must(t, err)
			row, err := channelByID(t.Context(), db.reader(), id(n))
			must(t, err)
			if !reflect.DeepEqual(got, row) {
				t.Fatalf("kept: %+v\nrow:  %+v", got, row)
			}
			if due := row.Charged > row.Claimed; due == row.Unclaimed.IsZero() {
				t.Fatalf("%d of %d are claimed, and it is due since %v", row.Claimed, row.Charged, row.Unclaimed)
			}
			if db.channelRows().find(id(n)) != nil {
				kept++
			}
		}
	}
	if kept == 0 {
		t.Error("nothing was kept, so nothing was tried")
	}
}

// What a transaction would have made of a channel is not told before it is
// committed, and never if it is not.
func TestWhatIsNotCommittedIsNotKept(t *testing.T) {
	_, conn := file(t)
	w := newWriter(&faulty{conn, "COMMIT", code(sqlite3.SQLITE_IOERR_WRITE)}, nil, func(err error) { t.Error(err) })
	t.Cleanup(w.stop)
	w.rows.committed = map[string]*ledger.Channel{"d": {}} // its row may be another one now
	err := w.write(t.Context(), func(ctx context.Context, q querier, again bool) error {
		if again { // after the COMMIT that failed
			return nil
		}
		w.rows.stage("c", &ledger.Channel{Charged: 1})
		if w.rows.view("c").Charged != 1 || w.rows.find("c") != nil {
			t.Error("the transaction does not see what it does, or others do")
		}
		return nil
	})
	if err != nil || w.rows.find("c") != nil || w.rows.find("d") != nil {
		t.Errorf("%v, and kept are %+v", err, w.rows.committed)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

package store_test

import (
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
)

// A fail-over forgets what the standby did not have. Whether there is one that
// has every payment is looked up in the server, with real ones.
func TestCheckKnowsWhetherAStandbyHasEveryPayment(t *testing.T) {
	p := storetest.NewPair(t)
	db := open(t, store.Options{URL: p.URL})
	// is waits until the server says so: a standby connects, catches up and is
	// missed in its own time.
	is := func(db *store.DB, want store.State, detail string) {
		t.Helper()
		var got store.Finding
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			list, err := db.Check(t.Context())
			must(t, err)
			for _, f := range list {
				if f.Name == "standby" {
					got = f
				}
				if f.Name == "durability" && f.State != store.Sound {
					t.Fatalf("a server that syncs: %+v", f)
				}
			}
			if got.State == want && strings.Contains(got.Detail, detail) {
				return
			}
		}
		t.Fatalf("the standby is %s: %s; want %s: …%s…", got.State, got.Detail, want, detail)
	}

	is(db, store.Warning, "there is no standby")
	p.Follow("mirror")
	is(db, store.Warning, "1 standbys, and none is synchronous")
	p.Set("synchronous_standby_names", "FIRST 1 (mirror)")
	is(db, store.Sound, "1 standbys, 1 synchronous")
	reserve(t, db, 1, "settle_before_response") // which the standby has now
	p.Set("synchronous_standby_names", "ANY 1 (mirror, other)")
	is(db, store.Sound, "1 standbys, 1 synchronous")
	p.Set("synchronous_standby_names", "somebody_else")
	is(db, store.Failed, "none of 1 standbys is in sync")
	p.Set("synchronous_standby_names", "mirror")
	is(db, store.Sound, "1 standbys, 1 synchronous")
	p.Lose()
	is(db, store.Failed, "none of 0 standbys is in sync: every write waits")
	// Nothing can be written, and the check can still be asked for.
	is(open(t, store.Options{URL: p.URL}), store.Failed, "every write waits")
	// Whoever gives up the standby says so.
	p.Set("synchronous_standby_names", "")
	is(db, store.Warning, "there is no standby")
	reserve(t, db, 2, "settle_before_response")
}

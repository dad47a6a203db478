package store

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/402claw/clawr/usage"
)

// A long log is copied beside the writer. Whenever the process is killed
// meanwhile, what it leaves is right, and has everything that was acknowledged.
func TestTheLogIsCopiedBesideTheWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clawr.db")
	db, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s := db.engine.(*sqliteDB)
	reading, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	defer readers.Wait()
	defer stop()
	for range 2 { // they hold up the copying, and must not spoil it
		readers.Go(func() {
			for reading.Err() == nil {
				var n int
				_ = db.reader().QueryRowContext(reading, `SELECT COUNT(*) FROM usage_events WHERE event_id > 'req_5'`).Scan(&n)
			}
		})
	}
	const each = 100
	copies, acknowledged := 0, 0
	looked := 0
	for i := 0; copies < 2 || looked < 3; i++ {
		events := make([]usage.Event, each)
		for k := range events {
			events[k] = usage.Event{Time: time.Unix(int64(i), 0), RequestID: fmt.Sprintf("req_%x", (i*each+k)*2654435761), API: "api", Endpoint: strings.Repeat("x", 900)}
		}
		was := s.guard.copying
		if err := db.Record(t.Context(), events); err != nil {
			t.Fatal(err)
		}
		acknowledged += each
		now := s.guard.copying
		if now == nil && was != nil {
			copies++
		}
		if now == nil || i%3 > 0 || looked > 5 {
			continue
		}
		looked++
		killed := filepath.Join(t.TempDir(), "clawr.db")
		err := db.write(t.Context(), func(context.Context, querier, bool) error { // nothing is committed meanwhile
			for _, suffix := range []string{"", walSuffix, headSuffix, sumsSuffix} {
				b, err := os.ReadFile(path + suffix)
				if err == nil {
					err = os.WriteFile(killed+suffix, b, 0o600)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		again, err := Open(t.Context(), Options{Path: killed})
		if err != nil || again.Damage() != nil {
			t.Fatalf("after %d events: %v, %v", acknowledged, err, again.Damage())
		}
		var n int
		if err := again.reader().QueryRowContext(t.Context(), `SELECT COUNT(*) FROM usage_events`).Scan(&n); err != nil || n != acknowledged {
			t.Errorf("%d of %d events are there: %v", n, acknowledged, err)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	readers.Wait()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path + walSuffix); err == nil && st.Size() > 0 {
		t.Errorf("a closed database has a log of %d bytes", st.Size())
	}
	again, err := Open(t.Context(), Options{Path: path})
	if err != nil || again.Damage() != nil {
		t.Fatal(err, again.Damage())
	}
	again.Close()
}

// Though somebody reads at every moment, the log begins anew: it is as long as what
// is copied at once, and not as what was ever written.
func TestReadersDoNotLetTheLogGrow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clawr.db")
	db, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	reading, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	defer readers.Wait()
	defer stop()
	reader := db.engine.(*sqliteDB).reading
	readers.Go(func() { // one begins before the last one ends
		var last *sql.Tx
		for reading.Err() == nil {
			tx, err := reader.BeginTx(context.WithoutCancel(reading), nil)
			if err == nil {
				var n int
				err = tx.QueryRow(`SELECT COUNT(*) FROM (SELECT 1 FROM usage_events LIMIT 1)`).Scan(&n)
			}
			if err != nil {
				t.Error(err)
				return
			}
			if last != nil {
				last.Rollback()
			}
			last = tx
			time.Sleep(5 * time.Millisecond)
		}
		last.Rollback()
	})
	const each, pages = 100, 30_000
	for i, written := 0, 0; written < pages; i++ {
		events := make([]usage.Event, each)
		for k := range events {
			events[k] = usage.Event{Time: time.Unix(int64(i), 0), RequestID: fmt.Sprintf("req_%x", (i*each+k)*2654435761), API: "api", Endpoint: strings.Repeat("x", 900)}
		}
		if err := db.Record(t.Context(), events); err != nil {
			t.Fatal(err)
		}
		written += each / 4 // at least: four events fill a page
		if i%50 > 0 {
			continue
		}
		info, err := os.Stat(path + walSuffix)
		if err != nil {
			t.Fatal(err)
		}
		if long := int(info.Size()) / 4120; long > 3*checkpointPages {
			t.Fatalf("after %d pages the log has %d", written, long)
		}
	}
}

// A log that is read while it grows gives what one that is read at once gives.
func TestALogIsReadOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clawr.db")
	db, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s := db.engine.(*sqliteDB)
	on := &wal{path: path}
	defer on.close()
	for i := range 60 {
		if err := db.SetOwner(t.Context(), fmt.Sprintf("owner-%d", i), fmt.Sprint(i), "", "test"); err != nil {
			t.Fatal(err)
		}
		if i%7 == 3 {
			if err := s.guard.checkpoint(t.Context(), s.writes); err != nil { // the next commit begins the log anew
				t.Fatal(err)
			}
		}
		if i%2 == 0 {
			continue
		}
		until := 5 * i // of a generation that may be shorter
		was := on.at
		if err := on.read(until); err != nil {
			t.Fatal(err)
		}
		if frames := (on.at - walHeader) / int64(frameHeader+on.size); on.at > was && frames > int64(until) {
			t.Fatalf("commit %d: %d frames were read, %d were to be", i, frames, until)
		}
		if err := on.read(allFrames); err != nil {
			t.Fatal(err)
		}
		once, err := readWAL(path)
		if err != nil {
			t.Fatal(err)
		}
		once.close()
		if on.at != once.at || len(on.last) != len(once.last) {
			t.Fatalf("commit %d: read on to %d with %d pages, at once to %d with %d", i, on.at, len(on.last), once.at, len(once.last))
		}
		for n, sum := range once.last {
			if on.last[n] != sum {
				t.Fatalf("commit %d: page %d differs", i, n)
			}
		}
	}
}

// Nothing is being read of the book while a caller looks at an event: one who
// takes his time would keep the log from beginning anew.
func TestWhoLooksAtEventsHoldsNoSnapshot(t *testing.T) {
	db, err := Open(t.Context(), Options{Path: filepath.Join(t.TempDir(), "clawr.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	events := make([]usage.Event, 2*eventsPerRead+1)
	for i := range events {
		events[i] = usage.Event{Time: time.Unix(int64(i), 0), RequestID: fmt.Sprintf("req_%x", i), API: "api"}
	}
	if err := db.Record(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	seen := 0
	err = db.EachEvent(t.Context(), time.Time{}, time.Time{}, func(e usage.Event) error {
		if e.RequestID != events[seen].RequestID {
			t.Fatalf("event %d is %s", seen, e.RequestID)
		}
		if n := db.engine.(*sqliteDB).reading.Stats().InUse; n > 0 {
			t.Fatalf("at event %d %d connections are reading", seen, n)
		}
		if seen++; seen%eventsPerRead == 0 { // arrives later than the report began, and is not in it
			return db.Record(t.Context(), []usage.Event{{Time: time.Unix(1, 0), RequestID: fmt.Sprintf("late_%d", seen), API: "api"}})
		}
		return nil
	})
	if err != nil || seen != len(events) {
		t.Fatalf("%d events of %d, %v", seen, len(events), err)
	}
}

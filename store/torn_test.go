package store_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
)

// When the power fails, the end of the write-ahead log is whatever the disk
// had got to: cut anywhere, full of zeros, or of another file. All of that is
// behind what was synced, and every reservation that was acknowledged is in
// front of it.
func TestATornLogKeepsWhatWasAcknowledged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "clawr.db")
	db, err := store.Open(t.Context(), store.Options{Path: path})
	must(t, err)
	defer db.Close()
	var synced []int // length of the log after each acknowledgement
	var ids []string
	for n := range 20 {
		ids = append(ids, reserve(t, db, n+1, ledger.SettleBeforeResponse).ID)
		st, err := os.Stat(path + "-wal")
		must(t, err)
		synced = append(synced, int(st.Size()))
	}
	main, err := os.ReadFile(path)
	must(t, err)
	log, err := os.ReadFile(path + "-wal")
	must(t, err)
	if len(log) < synced[len(synced)-1] || synced[0] == 0 {
		t.Fatalf("the log has %d bytes, %v were synced: it was taken into the database meanwhile", len(log), synced)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 60 {
		last := r.IntN(len(synced) - 1)
		from, to := synced[last], synced[last+1]
		if to <= from { // a log that begins anew overwrites its beginning
			continue
		}
		cut := from + r.IntN(to-from)
		torn := append([]byte(nil), log[:cut]...)
		switch n % 3 {
		case 1:
			torn = append(torn, make([]byte, to-cut)...)
		case 2:
			for range to - cut {
				torn = append(torn, byte(r.Uint32()))
			}
		}
		copied := filepath.Join(t.TempDir(), "clawr.db")
		must(t, os.WriteFile(copied, main, 0o600))
		must(t, os.WriteFile(copied+"-wal", torn, 0o600))
		again, err := store.Open(t.Context(), store.Options{Path: copied})
		must(t, err)
		for i, id := range ids[:last+2] {
			p, err := again.Payment(t.Context(), id)
			must(t, err)
			switch {
			case p == nil && i <= last:
				t.Errorf("torn at %d, way %d: reservation %d of %d that were acknowledged is gone", cut, n%3, i+1, last+1)
			case p != nil && i > last:
				t.Errorf("torn at %d, way %d: reservation %d was made of half a log", cut, n%3, i+1)
			}
		}
		reserve(t, again, 1000+n, ledger.SettleBeforeResponse) // and it goes on
		must(t, again.Close())
	}
}

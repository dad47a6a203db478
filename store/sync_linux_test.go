package store

import (
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr/usage"
	"golang.org/x/sys/unix"
)

// Each commit is synced by fdatasync, once, and one that the disk did not take
// is not acknowledged, nor is any after it.
func TestACommitIsSyncedByFdatasync(t *testing.T) {
	var synced, interrupted atomic.Int32
	var broken atomic.Bool
	path := filepath.Join(t.TempDir(), "clawr.db")
	real := fdatasync
	defer func() { fdatasync = real }()
	fdatasync = func(fd int) error {
		if name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); err != nil || name != path+"-wal" {
			return real(fd)
		}
		if broken.Load() {
			return unix.EIO
		}
		if interrupted.Add(1)%2 > 0 {
			return unix.EINTR
		}
		synced.Add(1)
		return real(fd)
	}
	var fatal atomic.Int32
	db, err := Open(t.Context(), Options{Path: path, Fatal: func(error) { fatal.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	record := func(id string) error {
		return db.Record(t.Context(), []usage.Event{{Time: time.Unix(1, 0), RequestID: id, API: "api"}})
	}
	for i := range 20 {
		before := synced.Load()
		if err := record("req_" + strconv.Itoa(i)); err != nil {
			t.Fatal(err)
		}
		if n := synced.Load() - before; n != 1 && i > 0 { // the first begins the log, and so syncs its header too
			t.Fatalf("commit %d was synced %d times", i, n)
		}
	}
	broken.Store(true)
	if err := record("req_lost"); err == nil || fatal.Load() != 1 {
		t.Fatalf("a commit that is not on the disk: %v, and the end of the process was wanted %d times", err, fatal.Load())
	}
	broken.Store(false)
	if err := record("req_after"); err == nil {
		t.Fatal("a commit was acknowledged after one that was lost")
	}
}

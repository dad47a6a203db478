package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/402claw/clawr"
)

// acknowledged writes n commits, each with a row that says which, and gives
// the database as a killed process leaves it: its files, copied while it is
// open.
func acknowledged(t *testing.T, n int, checkpointed bool) map[string][]byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clawr.db")
	db, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for i := range n {
		if err := db.SetOwner(t.Context(), fmt.Sprintf("owner-%d", i), fmt.Sprintf("Owner number %d", i*7919), "", "test"); err != nil {
			t.Fatal(err)
		}
		if checkpointed && i == n/2 {
			s := db.engine.(*sqliteDB)
			err := s.writer.write(t.Context(), func(context.Context, querier, bool) error { return nil })
			if err == nil {
				err = s.guard.checkpoint(t.Context(), s.writes)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	files := map[string][]byte{}
	for _, suffix := range []string{"", walSuffix, headSuffix, sumsSuffix} {
		b, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		files[suffix] = b
	}
	return files
}

// laid is a copy of files in a new directory, with one bit flipped.
func laid(t testing.TB, dir string, files map[string][]byte, in string, bit int) string {
	t.Helper()
	path := filepath.Join(dir, "clawr.db")
	os.Remove(path + shmSuffix)
	for suffix, b := range files {
		if suffix == in {
			b = slices.Clone(b)
			b[bit/8] ^= 1 << (bit % 8)
		}
		if err := os.WriteFile(path+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// whole reports whether every acknowledged row is there as it was written.
func whole(t testing.TB, db *DB, n int) bool {
	all, err := db.Owners(t.Context())
	if err != nil || len(all) != n {
		return false
	}
	names := map[string]string{}
	for _, o := range all {
		names[o.ID] = o.Name
	}
	for i := range n {
		if names[fmt.Sprintf("owner-%d", i)] != fmt.Sprintf("Owner number %d", i*7919) {
			return false
		}
	}
	return true
}

// Of bits that rot in the log, in the main file or beside it, none is silent:
// the database is refused for writing, or has everything that was
// acknowledged.
func TestNoBitRotsSilently(t *testing.T) {
	const rows = 60
	tries := 60
	if testing.Short() {
		tries = 25
	}
	r := rand.New(rand.NewPCG(4, 2))
	detected, harmless, silent := 0, 0, 0
	for _, checkpointed := range []bool{false, true} {
		files := acknowledged(t, rows, checkpointed)
		dir := t.TempDir()
		for _, in := range []string{"", walSuffix, headSuffix, sumsSuffix} {
			found := 0
			for range tries {
				bit := r.IntN(8 * len(files[in]))
				path := laid(t, dir, files, in, bit)
				db, err := Open(t.Context(), Options{Path: path, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
				switch {
				case err != nil:
					found++
				case db.Damage() != nil:
					found++
					if err := db.SetOwner(t.Context(), "x", "x", "", "test"); clawr.CodeOf(err) != clawr.CodeReadOnly {
						t.Errorf("a damaged database was written to: %v", err)
					}
				case whole(t, db, rows):
					harmless++
				default:
					silent++
					t.Errorf("bit %d of %q rotted, and nothing was noticed (checkpointed %v)", bit, in, checkpointed)
				}
				if err == nil {
					if err := db.Close(); err != nil {
						t.Fatal(err)
					}
				}
			}
			detected += found
			t.Logf("%q, checkpointed %v: %d of %d bits detected", in, checkpointed, found, tries)
		}
	}
	t.Logf("%d detected, %d harmless, %d silent", detected, harmless, silent)
}

// What a killed process left is right, and is written to again; so is what was
// closed.
func TestWhatAKillLeavesIsRight(t *testing.T) {
	for _, checkpointed := range []bool{false, true} {
		files := acknowledged(t, 40, checkpointed)
		path := laid(t, t.TempDir(), files, "none", 0)
		for i := range 3 {
			db, err := Open(t.Context(), Options{Path: path})
			if err != nil || db.Damage() != nil {
				t.Fatalf("open %d: %v, %v", i, err, db.Damage())
			}
			if !whole(t, db, 40+i) {
				t.Fatalf("open %d lacks rows", i)
			}
			if err := db.SetOwner(t.Context(), fmt.Sprintf("owner-%d", 40+i), fmt.Sprintf("Owner number %d", (40+i)*7919), "", "test"); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Many checkpoints under load leave sums that are right.
func TestCheckpointsKeepTheSums(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clawr.db")
	for range 3 {
		db, err := Open(t.Context(), Options{Path: path})
		if err != nil || db.Damage() != nil {
			t.Fatal(err, db.Damage())
		}
		s := db.engine.(*sqliteDB)
		s.guard.commits = 1
		for i := range 200 {
			if err := db.SetOwner(t.Context(), fmt.Sprintf("owner-%d", i%17), fmt.Sprint(i), "", "test"); err != nil {
				t.Fatal(err)
			}
			if i%10 == 0 {
				if err := s.guard.checkpoint(t.Context(), s.writes); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	db, err := Open(t.Context(), Options{Path: path})
	if err != nil || db.Damage() != nil {
		t.Fatal(err, db.Damage())
	}
	db.Close()
}

// An older copy of the database under a newer head is found, and is taken for
// right only when somebody says so.
func TestAnOlderCopyIsFoundAndRepaired(t *testing.T) {
	files, older := acknowledged(t, 30, false), acknowledged(t, 10, false)
	older[headSuffix] = files[headSuffix]
	path := laid(t, t.TempDir(), older, "none", 0)
	db, err := Open(t.Context(), Options{Path: path, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if clawr.CodeOf(db.Damage()) != clawr.CodeReadOnly {
		t.Fatalf("the damage is %v", db.Damage())
	}
	if !whole(t, db, 10) {
		t.Error("a damaged database cannot be read")
	}
	db.Close()
	if db, err = Open(t.Context(), Options{Path: path, Repair: true}); err != nil || db.Damage() != nil {
		t.Fatal(err, db.Damage())
	}
	db.Close()
	if db, err = Open(t.Context(), Options{Path: path}); err != nil || db.Damage() != nil {
		t.Fatal(err, db.Damage())
	}
	if err := db.SetOwner(t.Context(), "x", "x", "", "test"); err != nil {
		t.Error(err)
	}
	db.Close()
}

// A program that opens the file last and closes it, as the sqlite3 shell does,
// copies the log into it behind the guard's back. Whoever looks after the
// database is told that this may be all, and can take it as it is. One that
// only reads it does no harm.
func TestAnotherProgramsCheckpointIsNamedAndCanBeTakenAsItIs(t *testing.T) {
	const rows = 40
	files := acknowledged(t, rows, true)
	look := func(path, mode string) {
		t.Helper()
		other, err := sql.Open("sqlite", "file:"+path+"?mode="+mode)
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if err := other.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM owners`).Scan(&n); err != nil || n != rows {
			t.Fatal(n, err)
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
	}
	reopen := func(path string, repair bool) *DB {
		t.Helper()
		db, err := Open(t.Context(), Options{Path: path, Repair: repair, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		return db
	}
	read := laid(t, t.TempDir(), files, "none", 0)
	look(read, "ro")
	if db := reopen(read, false); db.Damage() != nil {
		t.Errorf("a program that only read did harm: %v", db.Damage())
	}

	path := laid(t, t.TempDir(), files, "none", 0)
	look(path, "rw")
	db := reopen(path, false)
	e, ok := errors.AsType[*clawr.Error](db.Damage())
	if !ok || !strings.Contains(e.Error(), "sqlite3 shell") || !strings.Contains(e.Fix, "if it was only checkpointed, clawr db check --repair") {
		t.Fatalf("the damage is %v, and its fix is missing", db.Damage())
	}
	findings, err := db.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range findings {
		if guard := f.Name == "guard"; guard != (f.State == Failed) || guard && !strings.Contains(f.Detail, "sqlite3 shell") {
			t.Errorf("the check says %+v", f)
		}
	}
	db.Close()
	db = reopen(path, true)
	if db.Damage() != nil || !whole(t, db, rows) {
		t.Errorf("taken as it is, it lacks rows, or is damaged: %v", db.Damage())
	}
	db.Close()
	if db = reopen(path, false); db.Damage() != nil {
		t.Errorf("after the repair: %v", db.Damage())
	}
}

package store_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
)

func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }

func TestSQLite(t *testing.T) { storetest.Run(t, func(t *testing.T) *store.DB { return sqlite(t) }) }
func TestPostgres(t *testing.T) {
	storetest.Run(t, func(t *testing.T) *store.DB { return postgres(t) })
}

func sqlite(t testing.TB) *store.DB {
	return open(t, store.Options{Path: filepath.Join(t.TempDir(), "clawr.db")})
}

func postgres(t testing.TB) *store.DB {
	return open(t, store.Options{URL: storetest.Postgres(t)})
}

func open(t testing.TB, o store.Options) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

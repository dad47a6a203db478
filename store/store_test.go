package store_test

import (
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
)

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

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// payment is the nth authorization of one buyer.
func payment(tenant string, n int, policy ledger.Policy) ledger.Payment {
	hash := fmt.Sprintf("%064x", n)
	return ledger.Payment{
		ID: fmt.Sprintf("pay_%016x", n), TenantID: tenant, Version: 1, Route: "/v1/records", Scheme: "exact", Policy: policy,
		Key:   ledger.Key{Network: "eip155:31337", Asset: "0x00000000000000000000000000000000000000aa", Payer: "0x00000000000000000000000000000000000000cc", Nonce: "0x" + hash},
		PayTo: "0x00000000000000000000000000000000000000bb", Amount: 1000, ValidBefore: 2_000_000_000, Fingerprint: hash, Payload: []byte("{}"),
		PayloadSHA256: hash, SignatureSHA256: hash, QuoteSHA256: hash,
		Counters: []ledger.Counter{{Scope: "spend", Window: 1, Cost: 1, Cap: 1 << 40}},
	}
}

// reserve deploys a tenant if there is none and reserves its nth payment.
func reserve(t testing.TB, db *store.DB, n int, policy ledger.Policy) ledger.Payment {
	t.Helper()
	tenant, err := db.Deploy(t.Context(), clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Owner: "ann"}}, "ann")
	must(t, err)
	p, err := db.Reserve(t.Context(), payment(tenant.ID, n, policy), "node", time.Minute)
	must(t, err)
	return p
}

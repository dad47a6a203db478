package store

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/402claw/clawr/ledger"
)

// No key that has a row is ever said to have none: neither one that was there
// before, nor one that came. Of others few are not denied.
func TestAKnownKeyIsNeverDenied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "clawr.db")
	db, err := Open(t.Context(), Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	key := func(i int) ledger.Key {
		return ledger.Key{Network: "eip155:84532", Asset: fmt.Sprintf("0x%040x", i%3), Payer: fmt.Sprintf("0x%040x", i%17), Nonce: fmt.Sprintf("0x%064x", i)}
	}
	const n = 30_000
	for i := range n {
		k := key(i)
		if db.opened.lacks(k) == false && i%1000 == 0 {
			t.Errorf("an empty table has %v", k)
		}
		if i%100 == 0 {
			if _, err := db.OpenSettlement(t.Context(), ledger.Settlement{Key: k, PayTo: "0x01", Amount: 1, ValidBefore: 1, Payload: []byte("{}")}); err != nil {
				t.Fatal(err)
			}
			if db.opened.lacks(k) {
				t.Fatalf("%v was opened, and is denied", k)
			}
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(t.Context(), Options{Path: path}); err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for end := time.Now().Add(time.Minute); !db.opened.ready.Load(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the table is not read")
		}
	}
	wrong := 0
	for i := range n {
		switch lacks := db.opened.lacks(key(i)); {
		case i%100 == 0 && lacks:
			t.Fatalf("%v has a row, and is denied", key(i))
		case i%100 > 0 && !lacks:
			wrong++
		}
	}
	if wrong > n/100 {
		t.Errorf("%d of %d keys without a row are not denied", wrong, n)
	}
}

// As many keys as it was made for, and all pages of the table.
func TestKnownReadsAllPages(t *testing.T) {
	db, err := Open(t.Context(), Options{Path: filepath.Join(t.TempDir(), "clawr.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	s := db.engine.(*sqliteDB)
	err = s.writer.write(t.Context(), func(ctx context.Context, q querier, _ bool) error {
		_, err := q.ExecContext(ctx, `
			WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 25000)
			INSERT INTO settlements(id, network, asset, payer, auth_nonce, pay_to, amount, valid_before, payload, created_at)
			SELECT 'stl_' || i, 'eip155:1', '0xa', printf('0x%040x', i % 5), printf('0x%064x', i), '0x1', 1, 1, '{}', 1 FROM n`)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	k, err := newKnown(t.Context(), s.reading, "settlements")
	if err != nil {
		t.Fatal(err)
	}
	k.done.Wait()
	if !k.ready.Load() {
		t.Fatal("the table is not read")
	}
	for i := 1; i <= 25000; i++ {
		if key := (ledger.Key{Network: "eip155:1", Asset: "0xa", Payer: fmt.Sprintf("0x%040x", i%5), Nonce: fmt.Sprintf("0x%064x", i)}); k.lacks(key) {
			t.Fatalf("%v is denied", key)
		}
	}
	k.close()
}

package store

import (
	"context"
	"database/sql"
	"hash/maphash"
	"math/bits"
	"sync"
	"sync/atomic"

	"github.com/402claw/clawr/ledger"
)

// known says of most authorizations that have no row in a table that they have
// none, without a look into the database: every paid call asks that of the
// payments and every settlement of the settlements, and each commit has made
// the readers forget what they had read. It is a Bloom filter of every key in
// the table, with 8 bits of some 20 for each. What it does not deny is read. It
// is for the one process that writes the table, and adds to it before every
// INSERT.
type known struct {
	table string
	seed  maphash.Seed
	words []atomic.Uint64
	ready atomic.Bool // every row that was there before is in it
	stop  context.CancelFunc
	done  sync.WaitGroup
}

// The bits for each of the rows that are there and the least that there may be,
// and how many of them a key sets.
const (
	knownBits  = 20
	knownLeast = 1 << 20
	knownSets  = 8
)

// newKnown begins to read the table.
func newKnown(ctx context.Context, db *sql.DB, table string) (*known, error) {
	var rows int64 // at most: COUNT would read a whole index
	if err := db.QueryRowContext(ctx, `SELECT COALESCE(MAX(rowid), 0) FROM `+table).Scan(&rows); err != nil {
		return nil, err
	}
	size := 1 << bits.Len64(uint64(max(2*rows, knownLeast)*knownBits/64))
	k := &known{table: table, seed: maphash.MakeSeed(), words: make([]atomic.Uint64, size)}
	if rows == 0 {
		k.ready.Store(true)
		return k, nil
	}
	ctx, k.stop = context.WithCancel(context.WithoutCancel(ctx))
	k.done.Go(func() {
		if k.fill(ctx, db) == nil {
			k.ready.Store(true)
		}
	})
	return k, nil
}

// fill adds what is in the table. It reads the index, page by page, so that it
// holds no state of the log for long.
func (k *known) fill(ctx context.Context, db *sql.DB) error {
	var last ledger.Key
	for {
		n := 0
		rows, err := db.QueryContext(ctx, `
			SELECT network, asset, payer, auth_nonce FROM `+k.table+` WHERE (network, asset, payer, auth_nonce) > ($1, $2, $3, $4)
			ORDER BY network, asset, payer, auth_nonce LIMIT 10000`, last.Network, last.Asset, last.Payer, last.Nonce)
		err = each(rows, err, func(rows *sql.Rows) error {
			err := rows.Scan(&last.Network, &last.Asset, &last.Payer, &last.Nonce)
			k.add(last)
			n++
			return err
		})
		if err != nil || n == 0 {
			return err
		}
	}
}

// places calls each with the bits of a key, until it says no.
func (k *known) places(key ledger.Key, each func(word *atomic.Uint64, bit uint64) bool) bool {
	at := maphash.Comparable(k.seed, key)
	step := bits.RotateLeft64(at, 32) | 1
	for range knownSets {
		if !each(&k.words[at>>6&uint64(len(k.words)-1)], 1<<(at&63)) {
			return false
		}
		at += step
	}
	return true
}

// add is to be called before the row can be seen.
func (k *known) add(key ledger.Key) {
	if k == nil {
		return
	}
	k.places(key, func(word *atomic.Uint64, bit uint64) bool { word.Or(bit); return true })
}

// lacks reports that key certainly has no row.
func (k *known) lacks(key ledger.Key) bool {
	return k != nil && k.ready.Load() && !k.places(key, func(word *atomic.Uint64, bit uint64) bool { return word.Load()&bit != 0 })
}

func (k *known) close() {
	if k == nil {
		return
	}
	if k.stop != nil {
		k.stop()
	}
	k.done.Wait()
}

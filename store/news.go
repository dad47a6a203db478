package store

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/402claw/clawr/ledger"
)

// The channels on which nodes tell each other things. The directory's carries
// no payload; the payments' carries News.
const (
	directoryChannel = "clawr_directory"
	paymentsChannel  = "clawr_payments"
)

// News is about payments that another node should look at. It is a hint: it
// may be lost, or come twice, or be of another installation in the same
// database.
type News struct {
	// Signer is who should settle them ("0x…", lower case): they are answered,
	// and their node does not lead. Empty: they have moved, and whoever waits
	// for them should look.
	Signer string
	IDs    []string
}

// newsMax is how many ids fit into one notification, which Postgres bounds at
// 8,000 bytes.
const newsMax = 300

// Tell sends news to every node. It is not durable, and so costs no sync.
func (db *DB) Tell(ctx context.Context, n News) error {
	for ids := n.IDs; len(ids) > 0; {
		some := ids[:min(len(ids), newsMax)]
		ids = ids[len(some):]
		if err := db.tell(ctx, paymentsChannel, n.Signer+" "+strings.Join(some, " ")); err != nil {
			return err
		}
	}
	return nil
}

// Hear calls heard with the news of other nodes, and of this one, one after
// the other, until ctx ends. An SQLite database has none.
func (db *DB) Hear(ctx context.Context, heard func(News)) {
	db.listen(ctx, paymentsChannel, func(payload string) {
		signer, rest, _ := strings.Cut(payload, " ")
		if ids := strings.Fields(rest); len(ids) > 0 {
			heard(News{Signer: signer, IDs: ids})
		}
	})
}

// PaymentsByID are those of the given payments that exist, in no order.
func (db *DB) PaymentsByID(ctx context.Context, ids []string) ([]ledger.Payment, error) {
	var list []ledger.Payment
	for len(ids) > 0 {
		// Numbers of parameters that are few, so that few statements are prepared:
		// what is left over repeats the last id.
		size := min(len(ids), newsMax)
		some := ids[:size]
		ids = ids[size:]
		for _, step := range []int{1, 8, 64, newsMax} {
			if size <= step {
				size = step
				break
			}
		}
		marks := make([]string, size)
		args := make([]any, size)
		for i := range args {
			marks[i] = "$" + strconv.Itoa(i+1)
			args[i] = some[min(i, len(some)-1)]
		}
		got, err := db.payments(ctx, `id IN(`+strings.Join(marks, ", ")+`)`, args...)
		if err != nil {
			return list, err
		}
		list = append(list, got...)
	}
	return list, nil
}

// Unsubmitted lists the payments of other nodes whose answer is stored, which
// nobody has submitted, and which nobody has moved since a moment: their node
// died, or its news was lost. The one that expires first comes first.
func (db *DB) Unsubmitted(ctx context.Context, since time.Time, limit int) ([]ledger.Payment, error) {
	return db.payments(ctx, `money = 'held' AND (work = 'done' OR policy = 'settle_first' AND work = 'pending') AND updated_at <= $1 AND owner <> $2 ORDER BY valid_before, id LIMIT $3`,
		since.UnixMicro(), db.node, limit)
}

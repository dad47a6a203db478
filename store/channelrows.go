package store

import (
	"sync"

	"github.com/402claw/clawr/ledger"
)

// maxChannelRows bounds the rows that are kept, of about a kilobyte each.
const maxChannelRows = 10_000

// channelRows keeps the rows of channels in memory, so that a call that draws on
// one neither reads it nor asks its UPDATE what it has become. It belongs to the
// writer of an SQLite file, through which every change of a row goes: what is
// kept is what is committed, and never more. Postgres has writers elsewhere, and
// keeps none.
//
// It decides nothing. The statement that charges a channel is conditional on the
// row in the database, as if there were no other copy of it.
//
// Every change of channels ends with stage, which nothing that can fail may
// follow in its transaction.
type channelRows struct {
	// changed are the rows as the transaction under way leaves them, nil for one
	// of which that is not known. The writer's own: a transaction that is rolled
	// back takes them with it.
	changed map[string]*ledger.Channel

	mu        sync.RWMutex
	committed map[string]*ledger.Channel // nobody changes a row that is in here
}

// find is a channel as it was committed last, nil if it is not kept.
func (r *channelRows) find(id string) *ledger.Channel {
	if r == nil {
		return nil
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.committed[id]
}

// view is a copy of a channel as the transaction under way sees it, nil if that
// is not known. Only the writer may call it, and stage.
func (r *channelRows) view(id string) *ledger.Channel {
	if r == nil {
		return nil
	}
	row, ok := r.changed[id]
	if !ok {
		row = r.find(id)
	}
	if row == nil {
		return nil
	}
	c := *row
	return &c
}

// stage says what a channel becomes if the transaction is committed; a nil row:
// nobody knows without reading it.
func (r *channelRows) stage(id string, row *ledger.Channel) {
	if r == nil {
		return
	}
	if row != nil {
		c := *row
		row = &c
	}
	if r.changed == nil {
		r.changed = map[string]*ledger.Channel{}
	}
	r.changed[id] = row
}

// commit shows what was staged to everybody. It comes before anybody is told
// that the transaction is committed.
func (r *channelRows) commit() {
	if len(r.changed) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.committed == nil || len(r.committed)+len(r.changed) > maxChannelRows {
		r.committed = map[string]*ledger.Channel{}
	}
	for id, row := range r.changed {
		if row == nil {
			delete(r.committed, id)
		} else {
			r.committed[id] = row
		}
	}
	clear(r.changed)
}

// rollback forgets what was staged, and all the rest too: after a COMMIT that
// failed, what the database has is what it says when it is asked.
func (r *channelRows) rollback() {
	clear(r.changed)
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.committed)
}

package store

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr/ledger"
)

// How long a leader leads without a sign of life, and how often it gives one.
const (
	LeaderTerm = 6 * time.Second
	renewEvery = LeaderTerm / 3
)

// Leader is this node's claim to a signer, of which several nodes have the
// key: one of them leads, and makes the transactions of all. It leads by the
// clock, which may be wrong, and the process may be paused; so every write
// that only the leader may make names the epoch of its term, and is refused in
// the same transaction once somebody else has a later one.
type Leader struct {
	db     *DB
	name   string
	signer string
	epoch  atomic.Int64
	until  atomic.Int64 // unix nanoseconds by our clock; 0: another leads
}

// Leader is a claim to a signer. Run stands for it.
func (db *DB) Leader(network, signer string) *Leader {
	return &Leader{db: db, name: "signer/" + network + "/" + signer, signer: signer}
}

// Leads reports whether this node believes that it leads. Nothing may be
// signed on this belief alone: see Book.
func (l *Leader) Leads() bool {
	until := l.until.Load()
	return until > 0 && l.db.now().UnixNano() < until
}

// Epoch is that of the term that this node has, or had last.
func (l *Leader) Epoch() int64 { return l.epoch.Load() }

// Stand tries to become the leader, or to remain it, for one LeaderTerm from
// now. Each change of hands raises the epoch by one.
func (l *Leader) Stand(ctx context.Context) (leads bool, err error) {
	// From before the request: what the database counts from is later.
	now := l.db.now()
	var epoch int64
	err = l.db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		ok, err := found(q.QueryRowContext(ctx, `
			INSERT INTO leader(name, node, epoch, expires_at) VALUES ($1, $2, 1, $3)
			ON CONFLICT (name) DO UPDATE SET node = excluded.node, expires_at = excluded.expires_at,
				epoch = CASE WHEN leader.node = excluded.node THEN leader.epoch ELSE leader.epoch + 1 END
			WHERE leader.node = excluded.node OR leader.expires_at <= $4
			RETURNING epoch`, l.name, l.db.node, now.Add(LeaderTerm).UnixMicro(), now.UnixMicro()).Scan(&epoch))
		leads = ok
		return err
	})
	switch {
	case err != nil:
		return l.Leads(), err
	case !leads:
		l.until.Store(0)
		return false, nil
	}
	l.epoch.Store(epoch)
	l.until.Store(now.Add(LeaderTerm).UnixNano())
	return true, nil
}

// Resign ends the term, so that another node need not wait for its end.
func (l *Leader) Resign(ctx context.Context) error {
	l.until.Store(0)
	return l.db.write(ctx, func(ctx context.Context, q querier, _ bool) error {
		_, err := q.ExecContext(ctx, `UPDATE leader SET expires_at = 0 WHERE name = $1 AND node = $2 AND epoch = $3`, l.name, l.db.node, l.epoch.Load())
		return err
	})
}

// Run stands again and again until ctx ends, then resigns. elected is called
// whenever this node begins a term. While yields is true it leaves the signer to
// others: it resigns, and does not stand.
func (l *Leader) Run(ctx context.Context, yields func() bool, elected func()) error {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		before := l.Leads()
		leads, err := false, error(nil)
		switch yield := yields(); {
		case !yield:
			leads, err = l.Stand(ctx)
		case before:
			err = l.Resign(ctx)
		}
		switch {
		case err != nil && ctx.Err() == nil:
			l.db.log.WarnContext(ctx, "who leads is not known", "name", l.name, "err", err)
		case leads && !before:
			l.db.log.InfoContext(ctx, "this node leads", "name", l.name, "epoch", l.Epoch())
			elected()
		case before && !leads:
			l.db.log.WarnContext(ctx, "this node leads no more", "name", l.name)
		}
		select {
		case <-ctx.Done():
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if !l.Leads() {
				return nil
			}
			if err := l.Resign(ctx); err != nil {
				l.db.log.WarnContext(ctx, "not resigned; another node takes over when the term is over", "name", l.name, "err", err)
			}
			return nil
		case <-tick.C:
		}
	}
}

// fence holds the term's row until the transaction ends, or refuses: nobody
// else begins a term before what follows is committed, and nothing is
// committed after somebody has.
func (l *Leader) fence(ctx context.Context, q querier) error {
	ok, err := changed(q.ExecContext(ctx, `UPDATE leader SET expires_at = expires_at WHERE name = $1 AND node = $2 AND epoch = $3`,
		l.name, l.db.node, l.epoch.Load()))
	if err == nil && !ok {
		err = fmt.Errorf("%w: %w", ledger.ErrFenced, errNotLeader)
	}
	return err
}

// errNotLeader is why a signature was refused.
var errNotLeader = errors.New("another node leads this signer")

// LedBook is the book of leaders of one chain: a DB in which Sign and AddTx are
// refused, with ledger.ErrFenced, once another node leads the batch's signer.
type LedBook struct {
	*DB
	leaders map[string]*Leader // by signer
}

// Led is what a facilitator writes in that has these signers.
func (db *DB) Led(leaders ...*Leader) *LedBook {
	b := &LedBook{db, make(map[string]*Leader)}
	for _, l := range leaders {
		b.leaders[l.signer] = l
	}
	return b
}

// Book is what the facilitator of this signer alone writes in.
func (l *Leader) Book() *LedBook { return l.db.Led(l) }

// Sign is DB.Sign within the term of the leader of the batch's signer.
func (b *LedBook) Sign(ctx context.Context, batch ledger.Batch, opened ...ledger.Settlement) error {
	fence := func(ctx context.Context, q querier) error { return b.fence(ctx, q, batch.Signer) }
	return b.DB.sign(ctx, fence, batch, opened)
}

// AddTx is DB.AddTx within the term of the leader of the batch's signer.
func (b *LedBook) AddTx(ctx context.Context, batchID string, tx ledger.Tx) error {
	fence := func(ctx context.Context, q querier) error {
		var signer string
		if _, err := found(q.QueryRowContext(ctx, `SELECT signer FROM settlement_batches WHERE id = $1`, batchID).Scan(&signer)); err != nil {
			return err
		}
		return b.fence(ctx, q, signer)
	}
	return b.DB.addTx(ctx, fence, batchID, tx)
}

func (b *LedBook) fence(ctx context.Context, q querier, signer string) error {
	l := b.leaders[signer]
	if l == nil {
		return fmt.Errorf("%w: %w", ledger.ErrFenced, errNotLeader)
	}
	return l.fence(ctx, q)
}

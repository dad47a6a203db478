package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// book is what the server's database says, read past the server.
type book struct {
	payments []row
	byKey    map[key]*row
	events   map[string][]event // by payment
	answers  map[string]answer  // by payment
	refunds  map[string]bool
	items    map[key][]item // of the facilitator's own book
	txs      map[string]bool
	counters map[counter]int64
	audit    []link
	exposure []exposure
}

// key is one authorization.
type key struct{ payer, nonce string }

type row struct {
	id, tenant, network, asset, payTo     string
	fingerprint, policy, work, money      string
	batch, tx, block, proof, event, taken string
	key
	amount, validBefore, logIndex int64
}

type event struct {
	id, lifecycle      string
	billable           bool
	countable          bool
	amount, priced, at int64
}

type answer struct {
	sha     string
	expires int64 // µs
}

type item struct {
	batch, state, outcome, tx string
	live                      bool
}

type counter struct {
	scope  string
	window int64
}

type link struct {
	chain, prev, hash string
	seq               int64
}

type exposure struct {
	payTo, payer   string
	held, cap, bad int64
}

// read takes everything that the invariants speak of.
func (w *world) read(ctx context.Context) (*book, error) {
	b := &book{byKey: map[key]*row{}, events: map[string][]event{}, answers: map[string]answer{}, refunds: map[string]bool{}, items: map[key][]item{},
		txs: map[string]bool{}, counters: map[counter]int64{}}
	err := w.each(ctx, `SELECT id, tenant_id, network, asset, payer, auth_nonce, pay_to, amount, COALESCE(valid_before, 0), fingerprint, policy, work, money,
		COALESCE(batch_id, ''), COALESCE(tx_hash, ''), COALESCE(block_hash, ''), COALESCE(log_index, -1), COALESCE(proof, ''), COALESCE(event_id, ''), counters FROM payments`, func(scan scanner) error {
		var p row
		err := scan(&p.id, &p.tenant, &p.network, &p.asset, &p.payer, &p.nonce, &p.payTo, &p.amount, &p.validBefore, &p.fingerprint, &p.policy, &p.work, &p.money,
			&p.batch, &p.tx, &p.block, &p.logIndex, &p.proof, &p.event, &p.taken)
		b.payments = append(b.payments, p)
		return err
	})
	if err != nil {
		return nil, err
	}
	for i := range b.payments {
		b.byKey[b.payments[i].key] = &b.payments[i]
	}
	err = w.each(ctx, `SELECT payment_id, event_id, lifecycle, billable, countable, amount, price, at FROM usage_events WHERE payment_id IS NOT NULL`, func(scan scanner) error {
		var id string
		var e event
		var billable, countable int64
		err := scan(&id, &e.id, &e.lifecycle, &billable, &countable, &e.amount, &e.priced, &e.at)
		e.billable, e.countable = billable == 1, countable == 1
		b.events[id] = append(b.events[id], e)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = w.each(ctx, `SELECT payment_id, body_sha256, expires_at FROM payment_responses`, func(scan scanner) error {
		var id string
		var a answer
		err := scan(&id, &a.sha, &a.expires)
		b.answers[id] = a
		return err
	})
	if err != nil {
		return nil, err
	}
	err = w.each(ctx, `SELECT payment_id FROM refunds`, func(scan scanner) error {
		var id string
		err := scan(&id)
		b.refunds[id] = true
		return err
	})
	if err != nil {
		return nil, err
	}
	err = w.each(ctx, `SELECT s.payer, s.auth_nonce, i.batch_id, b.state, i.live, COALESCE(i.outcome, ''), COALESCE(i.tx_hash, '') FROM settlements s
		JOIN settlement_items i ON i.settlement_id = s.id JOIN settlement_batches b ON b.id = i.batch_id`, func(scan scanner) error {
		var k key
		var it item
		var live int64
		err := scan(&k.payer, &k.nonce, &it.batch, &it.state, &live, &it.outcome, &it.tx)
		it.live = live == 1
		b.items[k] = append(b.items[k], it)
		return err
	})
	if err != nil {
		return nil, err
	}
	return b, w.readRest(ctx, b)
}

func (w *world) readRest(ctx context.Context, b *book) error {
	if err := w.readTxs(ctx, b.txs); err != nil {
		return err
	}
	err := w.each(ctx, `SELECT scope, window_start, used FROM counters`, func(scan scanner) error {
		var c counter
		var used int64
		err := scan(&c.scope, &c.window, &used)
		b.counters[c] = used
		return err
	})
	if err != nil {
		return err
	}
	if b.audit, err = w.readAudit(ctx); err != nil {
		return err
	}
	return w.each(ctx, `SELECT pay_to, payer, held, cap, bad_debt FROM exposure`, func(scan scanner) error {
		var e exposure
		err := scan(&e.payTo, &e.payer, &e.held, &e.cap, &e.bad)
		b.exposure = append(b.exposure, e)
		return err
	})
}

// readTxs notes the transactions that were stored before they were sent.
func (w *world) readTxs(ctx context.Context, txs map[string]bool) error {
	return w.each(ctx, `SELECT tx_hash FROM settlement_txs`, func(scan scanner) error {
		var tx string
		err := scan(&tx)
		txs[tx] = true
		return err
	})
}

func (w *world) readAudit(ctx context.Context) (list []link, err error) {
	err = w.each(ctx, `SELECT chain, seq, prev_hash, hash FROM audit_log ORDER BY chain, seq`, func(scan scanner) error {
		var l link
		err := scan(&l.chain, &l.seq, &l.prev, &l.hash)
		list = append(list, l)
		return err
	})
	return list, err
}

type scanner func(...any) error

func (w *world) each(ctx context.Context, query string, row func(scanner) error) error {
	rows, err := w.db.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// open says what the book has in some states, which are not yet the end, and
// which batches are in no block; empty: nothing.
func (w *world) open(ctx context.Context, states ...string) (string, error) {
	var list []string
	err := w.each(ctx, `SELECT id, policy, work, money, epoch, COALESCE(valid_before, 0), COALESCE(tx_hash, '') FROM payments WHERE money IN('`+strings.Join(states, `','`)+`') ORDER BY id`, func(scan scanner) error {
		var id, policy, work, money, tx string
		var epoch, before int64
		err := scan(&id, &policy, &work, &money, &epoch, &before, &tx)
		list = append(list, fmt.Sprintf("%s (%s, valid before %d) is %s, %s at epoch %d, in %.10s", id, policy, before, work, money, epoch, tx))
		return err
	})
	if err != nil {
		return "", err
	}
	batches, err := w.unmined(ctx)
	list = append(list, batches...)
	if len(list) > 5 {
		list = append(list[:5], fmt.Sprintf("%d more", len(list)-5))
	}
	return strings.Join(list, "; "), err
}

// unmined says which batches are in no block.
func (w *world) unmined(ctx context.Context) (list []string, err error) {
	err = w.each(ctx, `SELECT id FROM settlement_batches WHERE state = 'signed'`, func(scan scanner) error {
		var id string
		err := scan(&id)
		list = append(list, fmt.Sprintf("batch %s is signed", id))
		return err
	})
	return list, err
}

// cost is one of the counters that a payment took from.
type cost struct {
	Scope  string
	Window int64
	Cost   int64
}

func (r *row) costs() (list []cost, err error) {
	err = json.Unmarshal([]byte(r.taken), &list)
	return list, err
}

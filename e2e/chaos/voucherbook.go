package main

import (
	"context"
	"fmt"
	"math/big"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/x402"
)

// voucherBook is what the server's database says of channels, read past the
// server.
type voucherBook struct {
	channels map[string]*channelRow
	bought   []voucherRow     // by channel, upwards
	events   map[string]event // by id
	billable int
	counted  int64 // what counters took, in calls and in µUSD
	txs      map[string]bool
	audit    []link
}

type channelRow struct {
	id                                                              string
	balance, claimed, charged, signed, allowed, forfeited, reserved int64
}

type voucherRow struct {
	channel, id, signature, quote, event, body string
	max, amount                                int64
}

func (w *canal) read(ctx context.Context) (*voucherBook, error) {
	b := &voucherBook{channels: map[string]*channelRow{}, events: map[string]event{}, txs: map[string]bool{}}
	err := w.each(ctx, `SELECT channel_id, balance, total_claimed, charged, signed_max, voucher_max, forfeited, reserved FROM channels`, func(scan scanner) error {
		var c channelRow
		err := scan(&c.id, &c.balance, &c.claimed, &c.charged, &c.signed, &c.allowed, &c.forfeited, &c.reserved)
		b.channels[c.id] = &c
		return err
	})
	if err != nil {
		return nil, err
	}
	err = w.each(ctx, `SELECT channel_id, id, signature_sha256, COALESCE(quote_sha256, ''), event_id, body_sha256, max_claimable, amount FROM vouchers
		ORDER BY channel_id, max_claimable`, func(scan scanner) error {
		var v voucherRow
		err := scan(&v.channel, &v.id, &v.signature, &v.quote, &v.event, &v.body, &v.max, &v.amount)
		b.bought = append(b.bought, v)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = w.each(ctx, `SELECT event_id, lifecycle, billable, countable, amount FROM usage_events`, func(scan scanner) error {
		var e event
		var billable, countable int64
		err := scan(&e.id, &e.lifecycle, &billable, &countable, &e.amount)
		e.billable, e.countable = billable == 1, countable == 1
		if e.billable {
			b.billable++
		}
		b.events[e.id] = e
		return err
	})
	if err != nil {
		return nil, err
	}
	err = w.each(ctx, `SELECT used FROM counters`, func(scan scanner) error {
		var used int64
		err := scan(&used)
		b.counted += used
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := w.readTxs(ctx, b.txs); err != nil {
		return nil, err
	}
	b.audit, err = w.readAudit(ctx)
	return b, err
}

// unclaimed says what is due and not claimed, claimed and not sent, or signed
// and in no block; empty: nothing.
func (w *canal) unclaimed(ctx context.Context) (string, error) {
	var list []string
	err := w.each(ctx, `SELECT channel_id, charged, total_claimed FROM channels WHERE unclaimed_at IS NOT NULL ORDER BY channel_id`, func(scan scanner) error {
		var id string
		var charged, claimed int64
		err := scan(&id, &charged, &claimed)
		list = append(list, fmt.Sprintf("channel %s has %d of %d claimed", id[:10], claimed, charged))
		return err
	})
	if err != nil {
		return "", err
	}
	batches, err := w.unmined(ctx)
	list = append(list, batches...)
	if err != nil || len(list) > 0 {
		return strings.Join(list[:min(len(list), 5)], "; "), err
	}
	claimed, sent, err := w.node.Client.Claimed(ctx, w.payTo, w.asset)
	if err == nil && claimed != sent {
		return fmt.Sprintf("of %d claimed %d are sent", claimed, sent), nil
	}
	return "", err
}

// bed is what the chain's logs show of channels, read past the server.
type bed struct {
	channels map[string]*bedRow
	used     map[key]bool // AuthorizationUsed: deposits that were made
	earned   int64        // sum of the Transfers to the seller
	sent     int64        // sum of Settled
	held     int64        // units that the contract has
	has      map[common.Address]int64
	moved    map[string]string // what the server's transactions did, by hash
}

// bedRow is one channel: Balance is what was deposited, less what was given
// back and withdrawn.
type bedRow struct{ balance, claimed int64 }

var (
	topicDeposited = crypto.Keccak256Hash([]byte("Deposited(bytes32,address,uint128,uint128)"))
	topicClaimed   = crypto.Keccak256Hash([]byte("Claimed(bytes32,address,uint128,uint128)"))
	topicSettled   = crypto.Keccak256Hash([]byte("Settled(address,address,address,uint128)"))
	topicRefunded  = crypto.Keccak256Hash([]byte("Refunded(bytes32,address,uint128)"))
	topicWithdrawn = crypto.Keccak256Hash([]byte("WithdrawFinalized(bytes32,address,uint128)"))
)

func (w *canal) look(ctx context.Context) (*bed, error) {
	b := &bed{channels: map[string]*bedRow{}, used: map[key]bool{}, has: map[common.Address]int64{}, moved: map[string]string{}}
	g, err := w.world.look(ctx)
	if err != nil {
		return nil, err
	}
	b.earned = g.earned
	for k := range g.used {
		b.used[k] = true
	}
	var logs []struct {
		Topics          []common.Hash
		Data            hexutil.Bytes
		TransactionHash common.Hash
	}
	if err := w.node.Call(ctx, &logs, "eth_getLogs", map[string]any{"fromBlock": "0x0", "toBlock": "latest", "address": x402.ChannelsAddress}); err != nil {
		return nil, fmt.Errorf("the channels' logs: %w", err)
	}
	for _, l := range logs {
		amount := int64(0)
		if len(l.Data) >= 32 {
			amount = new(big.Int).SetBytes(l.Data[:32]).Int64()
		}
		id := l.Topics[1].Hex()
		if b.channels[id] == nil && l.Topics[0] != topicSettled {
			b.channels[id] = &bedRow{}
		}
		what := ""
		switch l.Topics[0] {
		case topicDeposited:
			what = "deposit"
			b.channels[id].balance += amount
		case topicClaimed:
			what = "claim"
			b.channels[id].claimed += amount
		case topicRefunded:
			what = "refund"
			b.channels[id].balance -= amount
		case topicWithdrawn:
			b.channels[id].balance -= amount
		case topicSettled:
			what = "settle"
			b.sent += amount
		}
		if what != "" {
			b.moved[l.TransactionHash.Hex()] = what
		}
	}
	held, err := w.node.Client.TokenBalance(ctx, w.asset, x402.ChannelsAddress)
	if err != nil {
		return nil, err
	}
	b.held = held.Int64()
	for who := range w.had {
		units, err := w.node.Client.TokenBalance(ctx, w.asset, who)
		if err != nil {
			return nil, err
		}
		b.has[who] = units.Int64()
	}
	return b, nil
}

package chain

import (
	"context"
	"errors"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

// Evidence is what proves a payment: in one transaction of the canonical chain
// the token logged AuthorizationUsed(payer, nonce), and with it
// Transfer(payer, payTo, amount).
type Evidence struct {
	Tx        common.Hash
	Block     int64
	BlockHash common.Hash
	LogIndex  int64          // of the Transfer, in the block
	Time      time.Time      // of the block
	From      common.Address // who submitted the transaction
}

// Use is what the chain says of an authorization.
type Use int

// The uses of an authorization.
const (
	Unused    Use = iota // nothing was found
	Paid                 // it moved the amount to the payee; there is Evidence
	Elsewhere            // its nonce was used for something else
	Cancelled            // the payer took it back
)

func (u Use) String() string { return [...]string{"unused", "paid", "used elsewhere", "cancelled"}[u] }

// Finding is the result of looking for an authorization.
type Finding struct {
	Use Use
	// Evidence is set if and only if Use is Paid.
	Evidence *Evidence
	// Tx is the transaction of every use but Unused.
	Tx common.Hash
}

// Find says what a transaction did with the authorization of t. A transaction
// that was reverted, or has nothing to do with it, leaves it Unused.
//
// Whether a nonce was used is not enough, nor is a transfer: a payer may send
// the amount once and use two authorizations beside it. So every transfer is
// paired with one authorization at most, see pair.
func (r *Receipt) Find(t Transfer) Finding { return r.FindAll([]Transfer{t})[0] }

// FindAll is Find for each of many transfers.
func (r *Receipt) FindAll(ts []Transfer) []Finding {
	out := make([]Finding, len(ts))
	if !r.OK {
		return out
	}
	seen := make(map[common.Address]*tokenUses)
	for i, t := range ts {
		if seen[t.Asset] == nil {
			seen[t.Asset] = usesOf(tokenLogs(r.Logs, t.Asset))
		}
		out[i] = r.find(seen[t.Asset], t)
	}
	return out
}

// tokenUses are the events of one token, and where each authorization is in them.
type tokenUses struct {
	logs    []tokenLog
	partner []int
	at      map[authorization][]int
}

type authorization struct {
	who   common.Address
	nonce common.Hash
}

func usesOf(logs []tokenLog) *tokenUses {
	u := &tokenUses{logs: logs, partner: pair(logs), at: make(map[authorization][]int)}
	for i, l := range logs {
		if l.kind == used || l.kind == canceled {
			k := authorization{l.who, l.nonce}
			u.at[k] = append(u.at[k], i)
		}
	}
	return u
}

func (r *Receipt) find(u *tokenUses, t Transfer) Finding {
	f := Finding{}
	for _, i := range u.at[authorization{t.Payer, t.Nonce}] {
		l := u.logs[i]
		switch l.kind {
		case canceled:
			f.Use, f.Tx = Cancelled, r.Tx
		case used:
			f.Use, f.Tx = Elsewhere, r.Tx
			if p := u.partner[i]; p >= 0 && u.logs[p].to == t.PayTo && u.logs[p].amount == t.Amount && t.Amount > 0 {
				f.Use = Paid
				f.Evidence = &Evidence{Tx: r.Tx, Block: r.Block, BlockHash: r.Hash, LogIndex: u.logs[p].index, Time: r.Time, From: r.From}
				return f
			}
		}
	}
	return f
}

// Evidence says what the transaction hash did with the authorization of t. It
// is Unused while the transaction is in no block.
func (c *Client) Evidence(ctx context.Context, hash common.Hash, t Transfer) (Finding, error) {
	r, err := c.Receipt(ctx, hash)
	if r == nil || err != nil {
		return Finding{}, err
	}
	return r.Find(t), nil
}

// spans of blocks that a search asks for; a node that refuses one is asked for less.
const (
	firstSpan = 1 << 20
	lastSpan  = 100
)

// FindEvidence searches the blocks from a number on for a use of t's
// authorization in whatever transaction, the node's head last. Unused means
// that the searched blocks have none.
func (c *Client) FindEvidence(ctx context.Context, t Transfer, from int64) (Finding, error) {
	head, err := c.Head(ctx)
	if err != nil {
		return Finding{}, err
	}
	span := int64(firstSpan)
	for from = max(from, 0); from <= head.Number; {
		to := min(from+span-1, head.Number)
		txs, err := c.uses(ctx, t, from, to)
		if span > lastSpan && refused(err) {
			span = max(span/8, lastSpan) // the provider limits the range
			continue
		}
		if err != nil {
			return Finding{}, err
		}
		for _, tx := range txs {
			if f, err := c.Evidence(ctx, tx, t); err != nil || f.Use != Unused {
				return f, err
			}
		}
		from = to + 1
	}
	return Finding{}, nil
}

// refused reports whether the node answered, and did not want to: providers
// differ in how they say that a range is too long.
func refused(err error) bool {
	var answered rpc.Error
	var status httpStatus
	return errors.As(err, &answered) || errors.As(err, &status) && (status == 400 || status == 413)
}

// uses lists the transactions in which the token logged the payer's nonce.
func (c *Client) uses(ctx context.Context, t Transfer, from, to int64) ([]common.Hash, error) {
	var logs []wireLog
	err := c.Ask(ctx, &logs, "eth_getLogs", map[string]any{
		"fromBlock": hexutil.EncodeUint64(uint64(from)), "toBlock": hexutil.EncodeUint64(uint64(to)), "address": t.Asset,
		"topics": []any{[]string{topicUsed, topicCanceled}, wordAddress(t.Payer), t.Nonce}})
	if err != nil {
		return nil, err
	}
	var txs []common.Hash
	for _, l := range logs {
		if l.Tx != nil && !l.Removed && len(txs) < 100 {
			txs = append(txs, *l.Tx)
		}
	}
	return txs, nil
}

// The events of a token that matter here.
type eventKind int

const (
	used eventKind = iota + 1
	canceled
	moved
)

type tokenLog struct {
	kind   eventKind
	index  int64
	who    common.Address // authorizer, or the one who pays
	nonce  common.Hash    // of used and canceled
	to     common.Address // of moved
	amount int64          // of moved, -1 if it is too large to be a payment
}

// tokenLogs are the events of the token in order, without those that are none
// of the three.
func tokenLogs(logs []Log, asset common.Address) []tokenLog {
	var out []tokenLog
	for _, l := range logs {
		if l.Address != asset || len(l.Topics) != 3 {
			continue
		}
		e := tokenLog{index: l.Index, who: common.BytesToAddress(l.Topics[1][:])}
		switch l.Topics[0] {
		case common.HexToHash(topicUsed):
			e.kind, e.nonce = used, l.Topics[2]
		case common.HexToHash(topicCanceled):
			e.kind, e.nonce = canceled, l.Topics[2]
		case common.HexToHash(topicTransfer):
			e.kind, e.to, e.amount = moved, common.BytesToAddress(l.Topics[2][:]), amount(l.Data)
		default:
			continue
		}
		out = append(out, e)
	}
	return out
}

// pair gives for each used authorization the transfer of the same call, -1 if
// there is none. A token logs the two next to each other and always in the
// same order; USDC logs the authorization first. So one order is chosen for
// the whole transaction, the first in which every authorization has its
// transfer by the authorizer: no transfer then serves two authorizations,
// whatever a payer puts into one transaction.
func pair(logs []tokenLog) []int {
	out := make([]int, len(logs))
	for _, step := range []int{1, -1} {
		whole := true
		for i, l := range logs {
			out[i] = -1
			if l.kind != used {
				continue
			}
			if p := i + step; p >= 0 && p < len(logs) && logs[p].kind == moved && logs[p].who == l.who {
				out[i] = p
			} else {
				whole = false
			}
		}
		if whole {
			return out
		}
	}
	for i := range out {
		out[i] = -1
	}
	return out
}

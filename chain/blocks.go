package chain

import (
	"context"
	"errors"
	"math"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

// BlockLogs is what some tokens did in one block of the canonical chain.
type BlockLogs struct {
	Block
	Uses  []TokenUse
	Moves []Move
}

// TokenUse is what a transaction did with an authorization, whoever's it is:
// Paid, Elsewhere (used, and no transfer belongs to it) or Cancelled.
type TokenUse struct {
	Asset    common.Address
	Payer    common.Address
	Nonce    common.Hash
	Use      Use
	PayTo    common.Address // of its transfer, if Paid
	Amount   int64          // of its transfer; -1 if it is too large to be a payment
	Tx       common.Hash
	LogIndex int64 // of the Transfer if Paid, else of the event itself
}

// Move is a transfer of a token, by an authorization or without one.
type Move struct {
	Asset, From, To common.Address
	Amount          int64 // atomic units; -1 if it is too large to be a payment
}

// MaxBlocks bounds how many blocks one call of Blocks reads.
const MaxBlocks = 32

// Blocks reads the canonical blocks from one number to another, at most
// MaxBlocks, and what the tokens did in each, in two round trips. It asks for
// the logs by the block's hash: a node that does not have this very block says
// so, where one that is asked by number keeps quiet about what it has not seen
// yet. Blocks that the node does not have end the list early.
func (c *Client) Blocks(ctx context.Context, from, to int64, assets []common.Address) ([]BlockLogs, error) {
	n := int(min(to-from+1, MaxBlocks))
	if n <= 0 || from < 0 {
		return nil, nil
	}
	heads := make([]*wireBlock, n)
	calls := make([]rpc.BatchElem, n)
	for i := range calls {
		calls[i] = rpc.BatchElem{Method: "eth_getBlockByNumber", Args: []any{hexutil.EncodeUint64(uint64(from + int64(i))), false}, Result: &heads[i]}
	}
	if err := c.batch(ctx, calls); err != nil {
		return nil, err
	}
	var list []BlockLogs
	for i := range calls {
		if calls[i].Error != nil {
			return nil, calls[i].Error
		}
		b, err := heads[i].block()
		if err != nil {
			return nil, err
		}
		if b == nil {
			break
		}
		if b.Number != from+int64(i) {
			return nil, errors.New("the node sent another block than it was asked for")
		}
		list = append(list, BlockLogs{Block: *b})
	}
	logs := make([][]wireLog, len(list))
	calls = calls[:len(list)]
	for i := range list {
		calls[i] = rpc.BatchElem{Method: "eth_getLogs", Result: &logs[i], Args: []any{map[string]any{
			"blockHash": list[i].Hash, "address": assets, "topics": tokenTopics()}}}
	}
	if len(calls) == 0 {
		return nil, nil
	}
	if err := c.batch(ctx, calls); err != nil {
		return nil, err
	}
	for i := range list {
		if calls[i].Error != nil {
			return nil, calls[i].Error
		}
		for _, l := range logs[i] {
			if l.BlockHash != nil && *l.BlockHash != list[i].Hash {
				return nil, errors.New("the node sent logs of another block than it was asked for")
			}
		}
		if err := list[i].read(logs[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// firstRange is how many finalized blocks a search begins with.
const firstRange = 2000

// Range reads what the tokens did in finalized blocks from a number on, up to
// reached, which is to if the node gives as much at once. Blocks without any
// of it are left out, and those in the list have no time and no parent: only
// where nothing can be undone any more is that enough.
func (c *Client) Range(ctx context.Context, from, to int64, assets []common.Address) (list []BlockLogs, reached int64, err error) {
	var logs []wireLog
	for span := int64(firstRange); ; span = max(span/8, 1) {
		reached = min(from+span-1, to)
		logs = nil
		err := c.Ask(ctx, &logs, "eth_getLogs", map[string]any{"fromBlock": hexutil.EncodeUint64(uint64(max(from, 0))),
			"toBlock": hexutil.EncodeUint64(uint64(max(reached, 0))), "address": assets, "topics": tokenTopics()})
		if err == nil {
			break
		}
		if span == 1 || !refused(err) && !errors.Is(err, errTooLong) {
			return nil, from - 1, err
		}
	}
	for len(logs) > 0 {
		first := logs[0]
		if first.Number == nil || first.BlockHash == nil || int64(*first.Number) < from || int64(*first.Number) > reached || *first.Number > math.MaxInt64 {
			return nil, from - 1, errors.New("the node sent logs that it was not asked for")
		}
		n := 1
		for n < len(logs) && logs[n].BlockHash != nil && *logs[n].BlockHash == *first.BlockHash {
			n++
		}
		b := BlockLogs{Block: Block{Number: int64(*first.Number), Hash: *first.BlockHash}}
		if err := b.read(logs[:n]); err != nil {
			return nil, from - 1, err
		}
		list, logs = append(list, b), logs[n:]
	}
	return list, reached, nil
}

func tokenTopics() []any { return []any{[]string{topicUsed, topicCanceled, topicTransfer}} }

// read sorts the logs of one block into b. Uses are paired with transfers by
// transaction and token, as Receipt.Find does it.
func (b *BlockLogs) read(logs []wireLog) error {
	if len(logs) > maxLogs {
		return errors.New("the node sent more logs than a block can have")
	}
	type source struct {
		tx    common.Hash
		asset common.Address
	}
	var order []source
	of := make(map[source][]Log)
	last := int64(-1)
	for _, l := range logs {
		if l.Index == nil || l.Address == nil || l.Tx == nil || *l.Index > math.MaxInt64 || int64(*l.Index) <= last || len(l.Topics) > 4 {
			return errors.New("the node sent logs that cannot be")
		}
		if l.Removed {
			return errors.New("the node sent logs of a block that is no longer canonical")
		}
		last = int64(*l.Index)
		s := source{*l.Tx, *l.Address}
		if of[s] == nil {
			order = append(order, s)
		}
		of[s] = append(of[s], Log{Index: last, Address: *l.Address, Topics: l.Topics, Data: l.Data})
	}
	for _, s := range order {
		events := tokenLogs(of[s], s.asset)
		partner := pair(events)
		for i, e := range events {
			switch e.kind {
			case moved:
				b.Moves = append(b.Moves, Move{Asset: s.asset, From: e.who, To: e.to, Amount: e.amount})
			case canceled:
				b.Uses = append(b.Uses, TokenUse{Asset: s.asset, Payer: e.who, Nonce: e.nonce, Use: Cancelled, Tx: s.tx, LogIndex: e.index})
			case used:
				u := TokenUse{Asset: s.asset, Payer: e.who, Nonce: e.nonce, Use: Elsewhere, Tx: s.tx, LogIndex: e.index}
				if p := partner[i]; p >= 0 {
					u.Use, u.PayTo, u.Amount, u.LogIndex = Paid, events[p].to, events[p].amount, events[p].index
				}
				b.Uses = append(b.Uses, u)
			}
		}
	}
	return nil
}

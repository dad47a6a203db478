package main

import (
	"context"
	"fmt"
	"math/big"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"
)

// ground is what the canonical chain shows, read past the server.
type ground struct {
	used     map[key]log // AuthorizationUsed, by authorization
	canceled map[key]bool
	moved    map[place]log // Transfer
	earned   int64         // sum of the Transfers to payTo
	blocks   map[string]bool
}

// place is a position in a block; logs of one call stand next to each other.
type place struct {
	block string
	index int64
}

type log struct {
	tx, block string
	index     int64
	from, to  string
	amount    *big.Int
}

var (
	topicUsed     = crypto.Keccak256Hash([]byte("AuthorizationUsed(address,bytes32)"))
	topicCanceled = crypto.Keccak256Hash([]byte("AuthorizationCanceled(address,bytes32)"))
	topicTransfer = crypto.Keccak256Hash([]byte("Transfer(address,address,uint256)"))
)

// look reads every log of the token.
func (w *world) look(ctx context.Context) (*ground, error) {
	g := &ground{used: map[key]log{}, canceled: map[key]bool{}, moved: map[place]log{}, blocks: map[string]bool{}}
	var logs []struct {
		Topics          []common.Hash
		Data            hexutil.Bytes
		TransactionHash common.Hash
		BlockHash       common.Hash
		LogIndex        hexutil.Uint64
	}
	if err := w.node.Call(ctx, &logs, "eth_getLogs", map[string]any{"fromBlock": "0x0", "toBlock": "latest", "address": w.asset}); err != nil {
		return nil, fmt.Errorf("the chain's logs: %w", err)
	}
	payTo := lower(w.payTo)
	for _, l := range logs {
		if len(l.Topics) != 3 {
			continue
		}
		at := log{tx: l.TransactionHash.Hex(), block: l.BlockHash.Hex(), index: int64(l.LogIndex)}
		who := strings.ToLower(common.BytesToAddress(l.Topics[1][:]).Hex())
		g.blocks[at.block] = true
		switch l.Topics[0] {
		case topicUsed:
			g.used[key{who, l.Topics[2].Hex()}] = at
		case topicCanceled:
			g.canceled[key{who, l.Topics[2].Hex()}] = true
		case topicTransfer:
			at.from, at.to, at.amount = who, lower(common.BytesToAddress(l.Topics[2][:])), new(big.Int).SetBytes(l.Data)
			g.moved[place{at.block, at.index}] = at
			if at.to == payTo {
				g.earned += at.amount.Int64()
			}
		}
	}
	return g, nil
}

// paid is the Transfer that belongs to an authorization's use, if that paid
// amount to payTo: the token logs it directly afterwards.
func (g *ground) paid(k key, payTo string, amount int64) (log, bool) {
	used, ok := g.used[k]
	if !ok {
		return log{}, false
	}
	m, ok := g.moved[place{used.block, used.index + 1}]
	ok = ok && m.tx == used.tx && m.from == k.payer && m.to == payTo && m.amount.IsInt64() && m.amount.Int64() == amount
	return m, ok
}

func lower(a common.Address) string { return strings.ToLower(a.Hex()) }

package chain

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/big"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

// maxLogs bounds the logs of a receipt that are looked at: the cap of 2^24 gas
// a transaction allows 45,000.
const maxLogs = 50_000

// Receipt is a transaction in a block.
type Receipt struct {
	Tx      common.Hash
	Block   int64
	Hash    common.Hash // of the block
	Time    time.Time   // of the block; zero if the node did not say
	From    common.Address
	Created common.Address // by a deployment
	OK      bool           // not reverted as a whole; says nothing about a payment
	GasUsed uint64
	Logs    []Log
}

// Log is an event of a contract.
type Log struct {
	Index   int64 // in the block
	Address common.Address
	Topics  []common.Hash
	Data    []byte
}

// wireReceipt is a receipt as nodes send it. Chains add fields of their own;
// what is not needed here is not read.
type wireReceipt struct {
	Tx        *common.Hash    `json:"transactionHash"`
	BlockHash *common.Hash    `json:"blockHash"`
	Number    *hexutil.Uint64 `json:"blockNumber"`
	From      common.Address  `json:"from"`
	Created   *common.Address `json:"contractAddress"`
	Status    *hexutil.Uint64 `json:"status"`
	GasUsed   hexutil.Uint64  `json:"gasUsed"`
	Logs      []wireLog       `json:"logs"`
}

type wireLog struct {
	Index     *hexutil.Uint64 `json:"logIndex"`
	Address   *common.Address `json:"address"`
	Topics    []common.Hash   `json:"topics"`
	Data      hexutil.Bytes   `json:"data"`
	Removed   bool            `json:"removed"`
	Timestamp *hexutil.Uint64 `json:"blockTimestamp"`
	Tx        *common.Hash    `json:"transactionHash"`
	Number    *hexutil.Uint64 `json:"blockNumber"`
	BlockHash *common.Hash    `json:"blockHash"`
}

// receipt checks what the node sent about the transaction hash. It is nil for
// one that is not in a block.
func (w *wireReceipt) receipt(hash common.Hash) (*Receipt, error) {
	if w == nil || w.BlockHash == nil || w.Number == nil {
		return nil, nil
	}
	if w.Tx == nil || *w.Tx != hash {
		return nil, errors.New("the node sent the receipt of another transaction")
	}
	if w.Status == nil || *w.Number > math.MaxInt64 || len(w.Logs) > maxLogs {
		return nil, errors.New("the node sent a receipt that cannot be")
	}
	r := &Receipt{Tx: hash, Block: int64(*w.Number), Hash: *w.BlockHash, From: w.From, OK: *w.Status == 1, GasUsed: uint64(w.GasUsed),
		Logs: make([]Log, 0, len(w.Logs))}
	if w.Created != nil {
		r.Created = *w.Created
	}
	last := int64(-1)
	for _, l := range w.Logs {
		if l.Index == nil || l.Address == nil || *l.Index > math.MaxInt64 || int64(*l.Index) <= last || len(l.Topics) > 4 {
			return nil, errors.New("the node sent logs that cannot be")
		}
		if l.Removed {
			return nil, nil // of a block that is no longer canonical
		}
		if l.Timestamp != nil && *l.Timestamp > 0 && *l.Timestamp < math.MaxUint32<<4 {
			r.Time = time.Unix(int64(*l.Timestamp), 0).UTC()
		}
		last = int64(*l.Index)
		r.Logs = append(r.Logs, Log{Index: last, Address: *l.Address, Topics: l.Topics, Data: l.Data})
	}
	return r, nil
}

// Receipt is what became of a transaction, nil while it is in no block. A node
// answers from the chain it holds to be canonical. The time of the block is
// always set.
func (c *Client) Receipt(ctx context.Context, hash common.Hash) (*Receipt, error) {
	var w *wireReceipt
	var head *wireBlock
	calls := []rpc.BatchElem{
		{Method: "eth_getTransactionReceipt", Args: []any{hash}, Result: &w},
		{Method: "eth_getBlockByNumber", Args: []any{"latest", false}, Result: &head},
	}
	if err := c.batch(ctx, calls); err != nil {
		return nil, err
	}
	if calls[0].Error != nil {
		return nil, notIndexed(calls[0].Error)
	}
	r, err := w.receipt(hash)
	if r == nil || err != nil {
		return nil, err
	}
	b, err := head.block()
	if err != nil {
		return nil, err
	}
	if b == nil || b.Number != r.Block {
		if b, err = c.block(ctx, hexutil.EncodeUint64(uint64(r.Block))); b == nil || err != nil {
			return nil, err
		}
	}
	if b.Hash != r.Hash {
		return nil, nil // a reorganization between the two answers: ask again
	}
	r.Time = b.Time
	return r, nil
}

// notIndexed takes the answer of a node that is still building its index of
// transactions for what it is: not known yet.
func notIndexed(err error) error {
	var answered rpc.Error
	if errors.As(err, &answered) && strings.Contains(answered.Error(), "indexing is in progress") {
		return nil
	}
	return err
}

// Waiting for a block: often at first, because a development chain answers in
// milliseconds, and ever more seldom.
const (
	firstPoll = 2 * time.Millisecond
	lastPoll  = 250 * time.Millisecond
)

// Wait polls for the receipt of a transaction until ctx ends. A node that does
// not answer is asked again.
func (c *Client) Wait(ctx context.Context, hash common.Hash) (*Receipt, error) {
	for pause := firstPoll; ; pause = min(2*pause, lastPoll) {
		r, err := c.Receipt(ctx, hash)
		if r != nil {
			return r, nil
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = context.Cause(ctx)
			}
			return nil, fmt.Errorf("wait for %s: %w", hash.Hex(), err)
		case <-time.After(pause):
		}
	}
}

// syncWait is the shortest wait for which Submit leaves the waiting to the
// node, whose own limit is 2 s by EIP-7966's advice.
const syncWait = 3 * time.Second

// Submit broadcasts a transaction and waits up to the given time for its
// receipt: in one round trip where the node knows eth_sendRawTransactionSync
// (EIP-7966), else by polling. The receipt is nil if the time is over first,
// or if the outcome is that the transaction was not accepted, which is not the
// last word. The error is as Broadcast's.
func (c *Client) Submit(ctx context.Context, tx Tx, wait time.Duration) (*Receipt, Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	c.mu.Lock()
	sync := !c.noSync && wait >= syncWait
	c.mu.Unlock()
	if sync {
		r, outcome, err := c.submitSync(ctx, tx)
		if outcome == Unanswered { // also by a provider that drops what it does not know
			c.mu.Lock()
			c.noSync = true
			c.mu.Unlock()
		}
		if !errors.Is(err, errNoSync) {
			return r, outcome, err
		}
	}
	outcome, err := c.Broadcast(ctx, tx.Raw)
	if err != nil || outcome == Underpriced {
		return nil, outcome, err
	}
	r, _ := c.Wait(ctx, tx.Hash) // an error is the end of the time: no receipt yet
	return r, outcome, nil
}

var errNoSync = errors.New("the node does not know eth_sendRawTransactionSync")

func (c *Client) submitSync(ctx context.Context, tx Tx) (*Receipt, Outcome, error) {
	var w *wireReceipt
	// The limit is left to the node: anvil refuses a second parameter.
	err := c.explain(ctx, "eth_sendRawTransactionSync", c.rpc.CallContext(ctx, &w, "eth_sendRawTransactionSync", hexutil.Bytes(tx.Raw)))
	var answered rpc.Error
	outcome := Sent
	switch {
	case unknownMethod(err):
		return nil, Unanswered, errNoSync
	case errors.As(err, &answered) && !inTime(answered): // in the pool, says the node
	case err != nil:
		if outcome, err = c.outcome(tx.Raw, err); err != nil || outcome == Underpriced {
			return nil, outcome, err
		}
		// Known, or a nonce too low: perhaps it is this one that is in a block.
	default:
		r, err := w.receipt(tx.Hash)
		if err != nil || r != nil && !r.Time.IsZero() {
			return r, Sent, err
		}
	}
	r, _ := c.Wait(ctx, tx.Hash)
	return r, outcome, nil
}

// unknownMethod reports whether a node says that it does not know the method,
// or a gateway in front of it that it may not be used.
func unknownMethod(err error) bool {
	var answered rpc.Error
	if errors.As(err, &answered) {
		said := strings.ToLower(answered.Error())
		return answered.ErrorCode() == -32601 || strings.Contains(said, "method") &&
			(strings.Contains(said, "not supported") || strings.Contains(said, "unsupported") || strings.Contains(said, "not found") ||
				strings.Contains(said, "not exist") || strings.Contains(said, "not available") || strings.Contains(said, "not allowed"))
	}
	var status httpStatus
	return errors.As(err, &status) && status >= 400 && status < 500 && status != 429
}

// inTime is false for EIP-7966's error of a transaction that was accepted and
// is in no block yet.
func inTime(answered rpc.Error) bool {
	said := strings.ToLower(answered.Error())
	return answered.ErrorCode() != 4 && !strings.Contains(said, "timeout") && !strings.Contains(said, "timed out") &&
		!strings.Contains(said, "not mined in time")
}

// amount reads a 32-byte amount that fits a payment, -1 if it does not.
func amount(b []byte) int64 {
	n := new(big.Int).SetBytes(b)
	if len(b) != 32 || !n.IsInt64() {
		return -1
	}
	return n.Int64()
}

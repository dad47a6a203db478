package chain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"
)

// Fees are the EIP-1559 fields of a transaction, in wei a gas.
type Fees struct {
	Max *big.Int // base fee and tip together
	Tip *big.Int
}

// feesTTL is how long fees are reused. Max has room for the base fee to
// double, which takes six full blocks.
const feesTTL = 2 * time.Second

// Fees is what a transaction should offer now: the node's tip, and twice the
// base fee. It asks at most once in two seconds.
func (c *Client) Fees(ctx context.Context) (Fees, error) {
	c.mu.Lock()
	f, at := c.fees, c.feesAt
	c.mu.Unlock()
	if age := c.now().Sub(at); f.Max != nil && age >= 0 && age < feesTTL {
		return f.clone(), nil
	}
	var tip hexutil.Big
	var head *wireBlock
	calls := []rpc.BatchElem{
		{Method: "eth_maxPriorityFeePerGas", Result: &tip},
		{Method: "eth_getBlockByNumber", Args: []any{"latest", false}, Result: &head},
	}
	if err := c.batch(ctx, calls); err != nil {
		return Fees{}, err
	}
	if calls[1].Error != nil {
		return Fees{}, calls[1].Error
	}
	b, err := head.block()
	if err != nil {
		return Fees{}, err
	}
	if b == nil || b.BaseFee == nil || b.BaseFee.BitLen() > 128 {
		return Fees{}, fmt.Errorf("the node at %s names no base fee: the chain is older than EIP-1559", c.url)
	}
	if calls[0].Error != nil || tip.ToInt().Sign() < 0 || tip.ToInt().BitLen() > 128 {
		tip = hexutil.Big(*big.NewInt(1_000_000)) // 0.001 gwei: the method is optional
	}
	f = Fees{Tip: new(big.Int).Set(tip.ToInt())}
	f.Max = new(big.Int).Lsh(b.BaseFee, 1)
	f.Max.Add(f.Max, f.Tip)
	c.mu.Lock()
	c.fees, c.feesAt = f, c.now()
	c.mu.Unlock()
	return f.clone(), nil
}

func (f Fees) clone() Fees { return Fees{Max: new(big.Int).Set(f.Max), Tip: new(big.Int).Set(f.Tip)} }

// Bump is an offer that a pool accepts in place of f: an eighth and a wei more.
func (f Fees) Bump() Fees {
	up := func(n *big.Int) *big.Int {
		m := new(big.Int).Rsh(n, 3)
		return m.Add(m, n).Add(m, big.NewInt(1))
	}
	return Fees{Max: up(f.Max), Tip: up(f.Tip)}
}

// Call is what a transaction does.
type Call struct {
	To    *common.Address // nil deploys Data
	Value *big.Int        // wei, nil for none
	Data  []byte
	Gas   uint64
}

// Tx is a signed transaction. It exists when it is signed, not when it is
// broadcast: whoever holds the bytes can send it.
type Tx struct {
	Hash common.Hash
	Raw  []byte
}

// Sign makes the transaction number nonce of key's account, without telling anyone.
func Sign(key *Key, chainID int64, nonce uint64, fees Fees, call Call) (Tx, error) {
	id := big.NewInt(chainID)
	value := call.Value
	if value == nil {
		value = new(big.Int)
	}
	tx, err := types.SignNewTx(key.private, types.LatestSignerForChainID(id), &types.DynamicFeeTx{ChainID: id, Nonce: nonce,
		GasTipCap: fees.Tip, GasFeeCap: fees.Max, Gas: call.Gas, To: call.To, Value: value, Data: call.Data})
	if err != nil {
		return Tx{}, fmt.Errorf("sign a transaction: %w", err)
	}
	raw, err := tx.MarshalBinary()
	if err != nil {
		return Tx{}, fmt.Errorf("encode a transaction: %w", err)
	}
	return Tx{Hash: tx.Hash(), Raw: raw}, nil
}

// Replace signs the transaction in raw again, with other fees and nothing else
// changed: whichever of the two is mined, the account's nonce is used once.
func Replace(key *Key, raw []byte, fees Fees) (Tx, error) {
	old := new(types.Transaction)
	if err := old.UnmarshalBinary(raw); err != nil {
		return Tx{}, fmt.Errorf("read a transaction: %w", err)
	}
	return Sign(key, old.ChainId().Int64(), old.Nonce(), fees, Call{To: old.To(), Value: old.Value(), Data: old.Data(), Gas: old.Gas()})
}

// Over is an offer that a pool accepts in place of last, and no less than f.
func (f Fees) Over(last Fees) Fees {
	b := last.Bump()
	if f.Max.Cmp(b.Max) > 0 {
		b.Max = f.Max
	}
	if f.Tip.Cmp(b.Tip) > 0 {
		b.Tip = f.Tip
	}
	return b.clone()
}

// GasLimit is the gas that the transaction in raw may take at most, 0 if it
// cannot be read.
func GasLimit(raw []byte) uint64 {
	tx := new(types.Transaction)
	if tx.UnmarshalBinary(raw) != nil {
		return 0
	}
	return tx.Gas()
}

// BuildTransfer signs the transaction that carries one transfer out.
func (c *Client) BuildTransfer(key *Key, nonce uint64, fees Fees, gas uint64, t Transfer) (Tx, error) {
	return Sign(key, c.id, nonce, fees, Call{To: &t.Asset, Data: t.Calldata(), Gas: gas})
}

// BuildBatch signs the transaction that carries many transfers out by Multicall3.
func (c *Client) BuildBatch(key *Key, nonce uint64, fees Fees, gas uint64, ts []Transfer) (Tx, error) {
	to := common.HexToAddress(MulticallAddress)
	return Sign(key, c.id, nonce, fees, Call{To: &to, Data: Aggregate(ts), Gas: gas})
}

// Outcome is what a node said to a transaction. None of them is the last word:
// only the chain says what became of it.
type Outcome int

// The outcomes of a broadcast.
const (
	Sent        Outcome = iota // accepted
	Known                      // the node has it already, in its pool or in a block
	NonceTooLow                // the account has used the nonce: by this transaction or by another
	Underpriced                // too little for the pool, or for replacing the one it has
	Refused                    // any other reason, in the error; another node may think otherwise
	Unanswered                 // the node was not reached or did not answer: it may have the transaction
)

func (o Outcome) String() string {
	return [...]string{"sent", "known", "nonce too low", "underpriced", "refused", "unanswered"}[o]
}

// Broadcast hands a transaction to the node. A nil error goes with the first
// four outcomes. With Refused the error is the node's, with code
// signer_unfunded if the account cannot pay; with Unanswered it has code
// unreachable.
func (c *Client) Broadcast(ctx context.Context, raw []byte) (Outcome, error) {
	var hash common.Hash
	return c.outcome(raw, c.Ask(ctx, &hash, "eth_sendRawTransaction", hexutil.Bytes(raw)))
}

func (c *Client) outcome(raw []byte, err error) (Outcome, error) {
	if err == nil {
		return Sent, nil
	}
	var answered rpc.Error
	if !errors.As(err, &answered) {
		return Unanswered, err
	}
	said := strings.ToLower(answered.Error())
	has := func(parts ...string) bool {
		for _, p := range parts {
			if strings.Contains(said, p) {
				return true
			}
		}
		return false
	}
	switch {
	case has("already known", "already imported", "known transaction", "alreadyknown"):
		return Known, nil
	case has("nonce too low", "nonce is too low", "invalid nonce", "old nonce"):
		return NonceTooLow, nil
	case has("underpriced", "less than block base fee", "fee too low", "gas price too low", "max fee per gas less"):
		return Underpriced, nil
	case has("insufficient funds", "insufficient balance"):
		return Refused, unfunded(c.Network(), sender(raw), err)
	}
	return Refused, err
}

// sender is the account that signed raw, zero if that cannot be told.
func sender(raw []byte) common.Address {
	tx := new(types.Transaction)
	if tx.UnmarshalBinary(raw) != nil {
		return common.Address{}
	}
	from, err := types.Sender(types.LatestSignerForChainID(tx.ChainId()), tx)
	if err != nil {
		return common.Address{}
	}
	return from
}

// Transact signs and sends a transaction of an account that nothing else uses,
// and waits for its receipt. Gas 0 is estimated. A reverted transaction is an
// error. It is for setting things up: a payment's transaction is stored
// between signing and sending.
func (c *Client) Transact(ctx context.Context, key *Key, call Call) (*Receipt, error) {
	nonce, err := c.PendingNonceAt(ctx, key.Address())
	if err != nil {
		return nil, err
	}
	fees, err := c.Fees(ctx)
	if err != nil {
		return nil, err
	}
	if call.Gas == 0 {
		if call.Gas, err = c.EstimateGas(ctx, key.Address(), call); err != nil {
			return nil, err
		}
		call.Gas += call.Gas / 5
	}
	tx, err := Sign(key, c.id, nonce, fees, call)
	if err != nil {
		return nil, err
	}
	r, _, err := c.Submit(ctx, tx, callTimeout)
	if err == nil && r == nil {
		r, err = c.Wait(ctx, tx.Hash)
	}
	if err != nil {
		return nil, err
	}
	if !r.OK {
		return nil, &clawr.Error{Code: clawr.CodeInternal, Message: "the transaction " + tx.Hash.Hex() + " was reverted"}
	}
	return r, nil
}

// EstimateGas is the gas that a call needs now. A call that would be reverted
// is an error whose tree has the node's.
func (c *Client) EstimateGas(ctx context.Context, from common.Address, call Call) (uint64, error) {
	var gas hexutil.Uint64
	err := c.Ask(ctx, &gas, "eth_estimateGas", callObject{From: &from, To: call.To, Value: (*hexutil.Big)(call.Value), Input: call.Data})
	return uint64(gas), err
}

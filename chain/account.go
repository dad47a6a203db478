package chain

import (
	"context"
	"fmt"
	"math"
	"math/big"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

// Account is what a chain said at one block about somebody who pays with a token.
type Account struct {
	Contract bool          // there is code at the address
	Balance  int64         // atomic units; MaxInt64 if it is more than a payment can be
	Used     bool          // the nonce that was asked for was used or cancelled
	Past     []common.Hash // nonces that were used or cancelled in the blocks before
}

// pastBlocks is how far back an account's used nonces are looked for: an hour
// of 2 s blocks, which is how long the official client's payments are valid.
const pastBlocks = 1800

// Account reads all of it in one round trip, at the block at. Nodes that do not
// give logs of so many blocks leave Past empty. It is an error if at is not on
// the node's canonical chain. The zero Block is the newest, without a Past.
func (c *Client) Account(ctx context.Context, asset, who common.Address, nonce common.Hash, at Block) (Account, error) {
	tag := hexutil.EncodeUint64(uint64(max(at.Number, 0)))
	newest := at.Hash == (common.Hash{})
	if newest {
		tag = "latest"
	}
	var head *wireBlock
	var code, balance, state hexutil.Bytes
	var past []wireLog
	calls := []rpc.BatchElem{
		{Method: "eth_getCode", Result: &code, Args: []any{who, tag}},
		{Method: "eth_call", Result: &balance, Args: []any{callObject{To: &asset, Input: pack(selBalanceOf, wordAddress(who))}, tag}},
		{Method: "eth_call", Result: &state, Args: []any{callObject{To: &asset, Input: pack(selAuthorizationState, wordAddress(who), nonce)}, tag}},
		{Method: "eth_getLogs", Result: &past, Args: []any{map[string]any{"fromBlock": hexutil.EncodeUint64(uint64(max(at.Number-pastBlocks, 0))), "toBlock": tag,
			"address": asset, "topics": []any{[]string{topicUsed, topicCanceled}, wordAddress(who)}}}},
		{Method: "eth_getBlockByNumber", Result: &head, Args: []any{tag, false}},
	}
	if newest {
		calls = calls[:3]
	}
	if err := c.batch(ctx, calls); err != nil {
		return Account{}, err
	}
	for i := range calls {
		if calls[i].Error != nil && i != 3 {
			return Account{}, calls[i].Error
		}
	}
	b, err := head.block()
	if err != nil {
		return Account{}, err
	}
	if !newest && (b == nil || b.Hash != at.Hash) {
		return Account{}, fmt.Errorf("the node at %s does not have block %s", c.url, at.Hash.Hex())
	}
	if len(balance) < 32 || len(state) < 32 {
		return Account{}, noToken(c.Network(), asset, "it has no balanceOf, or no authorizationState (EIP-3009)")
	}
	a := Account{Contract: len(code) > 0, Balance: math.MaxInt64, Used: new(big.Int).SetBytes(state[:32]).Sign() != 0}
	if units := new(big.Int).SetBytes(balance[:32]); units.IsInt64() {
		a.Balance = units.Int64()
	}
	if !newest && calls[3].Error == nil {
		for _, l := range past {
			if len(l.Topics) == 3 && !l.Removed && len(a.Past) < maxLogs {
				a.Past = append(a.Past, l.Topics[2])
			}
		}
	}
	return a, nil
}

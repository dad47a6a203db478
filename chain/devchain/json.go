package devchain

import (
	"encoding/json"
	"math/big"
	"strconv"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/params"
)

// fields is v as a JSON object of hexadecimal fields, as go-ethereum writes it.
func fields(v any) map[string]any {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // headers and transactions of our own chain
	}
	out := make(map[string]any)
	if err := json.Unmarshal(b, &out); err != nil {
		panic(err)
	}
	return out
}

func blockJSON(cfg *params.ChainConfig, b *types.Block, full bool) map[string]any {
	h := b.Header()
	out := fields(h)
	txs := make([]any, len(b.Transactions()))
	for i, tx := range b.Transactions() {
		if full {
			txs[i] = transactionJSON(cfg, tx, h, uint64(i))
		} else {
			txs[i] = tx.Hash()
		}
	}
	out["transactions"] = txs
	out["uncles"] = []common.Hash{}
	out["withdrawals"] = b.Withdrawals()
	out["size"] = hexutil.Uint64(b.Size())
	return out
}

// transactionJSON describes tx as number index of the block h, or as pending if h is nil.
func transactionJSON(cfg *params.ChainConfig, tx *types.Transaction, h *types.Header, index uint64) map[string]any {
	out := fields(tx)
	if from, err := types.Sender(types.LatestSigner(cfg), tx); err == nil {
		out["from"] = from
	}
	out["blockHash"], out["blockNumber"], out["transactionIndex"] = nil, nil, nil
	out["gasPrice"] = (*hexutil.Big)(tx.GasFeeCap())
	if h != nil {
		out["blockHash"], out["blockNumber"] = h.Hash(), (*hexutil.Big)(h.Number)
		out["blockTimestamp"], out["transactionIndex"] = hexutil.Uint64(h.Time), hexutil.Uint64(index)
		out["gasPrice"] = (*hexutil.Big)(effectivePrice(tx, h.BaseFee))
	}
	return out
}

func effectivePrice(tx *types.Transaction, baseFee *big.Int) *big.Int {
	price := new(big.Int).Add(tx.GasTipCap(), baseFee)
	if price.Cmp(tx.GasFeeCap()) > 0 {
		return tx.GasFeeCap()
	}
	return price
}

func receiptJSON(cfg *params.ChainConfig, r *types.Receipt, tx *types.Transaction) map[string]any {
	from, _ := types.Sender(types.LatestSigner(cfg), tx)
	out := map[string]any{
		"blockHash": r.BlockHash, "blockNumber": (*hexutil.Big)(r.BlockNumber),
		"transactionHash": tx.Hash(), "transactionIndex": hexutil.Uint(r.TransactionIndex),
		"from": from, "to": tx.To(), "contractAddress": nil, "type": hexutil.Uint(tx.Type()),
		"gasUsed": hexutil.Uint64(r.GasUsed), "cumulativeGasUsed": hexutil.Uint64(r.CumulativeGasUsed),
		"effectiveGasPrice": (*hexutil.Big)(r.EffectiveGasPrice),
		"status":            hexutil.Uint64(r.Status), "logsBloom": r.Bloom, "logs": r.Logs,
	}
	if r.Logs == nil {
		out["logs"] = []*types.Log{}
	}
	if tx.To() == nil {
		out["contractAddress"] = r.ContractAddress
	}
	return out
}

func bigs(in []*big.Int) []*hexutil.Big {
	out := make([]*hexutil.Big, len(in))
	for i, n := range in {
		out[i] = (*hexutil.Big)(n)
	}
	return out
}

// hexOrInt is a small number that clients send as 10, "10" or "0xa".
type hexOrInt uint64

// UnmarshalJSON implements json.Unmarshaler.
func (n *hexOrInt) UnmarshalJSON(b []byte) error {
	v, err := strconv.ParseUint(strings.Trim(string(b), `"`), 0, 32)
	if err != nil {
		return err
	}
	*n = hexOrInt(v)
	return nil
}

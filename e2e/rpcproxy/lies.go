package rpcproxy

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strconv"
	"strings"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// The lies that a provider may tell about payments. Each is consistent with
// itself, and holds until Honest.

// Forged is a payment that never was.
type Forged struct {
	Asset, Payer, PayTo common.Address
	Amount              int64
	Nonce               common.Hash
}

// Honest takes every rule and the door away.
func (p *Proxy) Honest() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rules, p.door = map[string]Rule{}, nil
}

type object = map[string]any

// named reports whether a block is asked for by a name, such as latest.
func named(params []json.RawMessage) (string, bool) {
	var tag string
	if len(params) == 0 || json.Unmarshal(params[0], &tag) != nil {
		return "", false
	}
	return tag, !strings.HasPrefix(tag, "0x")
}

// StaleHead has the chain end at a block.
func (p *Proxy) StaleHead(number int64) {
	p.On("eth_getBlockByNumber", func(params []json.RawMessage, ask func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		tag, byName := named(params)
		if n, err := strconv.ParseInt(strings.TrimPrefix(tag, "0x"), 16, 64); !byName && err == nil && n > number {
			return nil, nil
		}
		if byName {
			return ask(fmt.Sprintf("0x%x", number), false)
		}
		return ask()
	})
	none := func([]json.RawMessage, func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		return nil, nil
	}
	p.On("eth_getTransactionReceipt", none)
	p.On("eth_getLogs", func([]json.RawMessage, func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		return json.RawMessage("[]"), nil
	})
	p.state(false)
}

// FalseFinal calls a block finalized that is so many seconds in the future.
func (p *Proxy) FalseFinal(seconds int64) {
	p.On("eth_getBlockByNumber", func(params []json.RawMessage, ask func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		tag, byName := named(params)
		if byName && tag != "finalized" && tag != "safe" {
			return ask()
		}
		raw, err := ask()
		if err != nil || !byName && raw != nil && string(raw) != "null" {
			return raw, err
		}
		if raw, err = ask("latest", false); err != nil {
			return nil, err
		}
		return changed(raw, func(b object) {
			at := number(b["timestamp"])
			b["timestamp"] = fmt.Sprintf("0x%x", at+seconds)
			b["number"] = fmt.Sprintf("0x%x", number(b["number"])+1_000_000)
			b["hash"] = crypto.Keccak256Hash([]byte("a block that is not there"))
		})
	})
}

// WrongHashes gives every block another hash, in headers, receipts and logs.
func (p *Proxy) WrongHashes() {
	other := func(v any) any {
		s, ok := v.(string)
		if !ok {
			return v
		}
		return crypto.Keccak256Hash([]byte(s)).Hex()
	}
	rule := func(_ []json.RawMessage, ask func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		raw, err := ask()
		if err != nil || raw == nil || string(raw) == "null" {
			return raw, err
		}
		return changed(raw, func(b object) {
			for _, k := range []string{"hash", "parentHash", "blockHash"} {
				if b[k] != nil {
					b[k] = other(b[k])
				}
			}
		})
	}
	p.On("eth_getBlockByNumber", rule)
	p.On("eth_getTransactionReceipt", rule)
}

// Forge has every transaction be one that made a payment, in the newest block,
// with logs and state to match.
func (p *Proxy) Forge(f Forged) {
	logs := func(tx string) ([]object, object, error) {
		raw, err := p.ask("eth_getBlockByNumber", []any{"latest", false})
		if err != nil {
			return nil, nil, err
		}
		var b object
		if err := json.Unmarshal(raw, &b); err != nil {
			return nil, nil, err
		}
		amount := common.BigToHash(big.NewInt(f.Amount))
		log := func(i int, data string, topics ...string) object {
			return object{"address": f.Asset, "topics": topics, "data": data, "logIndex": fmt.Sprintf("0x%x", i), "transactionHash": tx,
				"blockNumber": b["number"], "blockHash": b["hash"], "removed": false}
		}
		payer := common.BytesToHash(f.Payer[:]).Hex()
		return []object{
			log(0, "0x", crypto.Keccak256Hash([]byte("AuthorizationUsed(address,bytes32)")).Hex(), payer, f.Nonce.Hex()),
			log(1, amount.Hex(), crypto.Keccak256Hash([]byte("Transfer(address,address,uint256)")).Hex(), payer, common.BytesToHash(f.PayTo[:]).Hex()),
		}, b, nil
	}
	p.On("eth_getTransactionReceipt", func(params []json.RawMessage, _ func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		var tx string
		json.Unmarshal(params[0], &tx)
		list, b, err := logs(tx)
		if err != nil {
			return nil, err
		}
		return json.Marshal(object{"transactionHash": tx, "blockNumber": b["number"], "blockHash": b["hash"], "from": f.PayTo, "status": "0x1", "gasUsed": "0x5208", "logs": list})
	})
	p.On("eth_getLogs", func(params []json.RawMessage, ask func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		list, b, err := logs(crypto.Keccak256Hash([]byte("a transaction that is not there")).Hex())
		if err != nil {
			return nil, err
		}
		var filter struct{ BlockHash string }
		json.Unmarshal(params[0], &filter)
		if filter.BlockHash != "" && filter.BlockHash != b["hash"] {
			return ask()
		}
		return json.Marshal(list)
	})
	p.state(true)
}

// Deny says that nothing was ever paid.
func (p *Proxy) Deny() {
	p.On("eth_getTransactionReceipt", func([]json.RawMessage, func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		return nil, nil
	})
	p.On("eth_getLogs", func([]json.RawMessage, func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		return json.RawMessage("[]"), nil
	})
	p.state(false)
}

// Swallow takes every transaction and passes none on.
func (p *Proxy) Swallow() {
	hash := func(params []json.RawMessage, _ func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		var raw string
		json.Unmarshal(params[0], &raw)
		return json.Marshal(crypto.Keccak256Hash(common.FromHex(raw)))
	}
	p.On("eth_sendRawTransaction", hash)
	p.On("eth_sendRawTransactionSync", func([]json.RawMessage, func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		return nil, &Error{Code: 4, Message: "The transaction was added to the mempool but wasn't processed in 6s."}
	})
}

// state answers authorizationState(address,bytes32).
func (p *Proxy) state(used bool) {
	p.On("eth_call", func(params []json.RawMessage, ask func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
		if !strings.Contains(string(params[0]), "0xe94a0102") {
			return ask()
		}
		n := int64(0)
		if used {
			n = 1
		}
		return json.Marshal(common.BigToHash(big.NewInt(n)))
	})
}

func changed(raw json.RawMessage, change func(object)) (json.RawMessage, error) {
	var b object
	if err := json.Unmarshal(raw, &b); err != nil {
		return nil, err
	}
	change(b)
	return json.Marshal(b)
}

func number(v any) int64 {
	s, _ := v.(string)
	n, _ := strconv.ParseInt(strings.TrimPrefix(s, "0x"), 16, 64)
	return n
}

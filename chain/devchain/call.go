package devchain

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/state"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/core/vm"
	"github.com/ethereum/go-ethereum/eth/gasestimator"
	"github.com/ethereum/go-ethereum/rpc"
	"github.com/holiman/uint256"
)

const (
	callGas  = 50_000_000 // the most gas that a call may burn
	callTime = 5 * time.Second
)

// callArgs is the transaction object of eth_call and eth_estimateGas. Fees
// are ignored but for gasprice inside the call: calling is free.
type callArgs struct {
	From       *common.Address              `json:"from"`
	To         *common.Address              `json:"to"`
	Gas        *hexutil.Uint64              `json:"gas"`
	GasPrice   *hexutil.Big                 `json:"gasPrice"`
	MaxFee     *hexutil.Big                 `json:"maxFeePerGas"`
	Tip        *hexutil.Big                 `json:"maxPriorityFeePerGas"`
	Value      *hexutil.Big                 `json:"value"`
	Data       *hexutil.Bytes               `json:"data"`
	Input      *hexutil.Bytes               `json:"input"`
	AccessList types.AccessList             `json:"accessList"`
	AuthList   []types.SetCodeAuthorization `json:"authorizationList"`
}

// message is what the EVM executes. It pays no fee, so that anyone may call.
func (a *callArgs) message() (*core.Message, error) {
	m := &core.Message{To: a.To, GasLimit: callGas, Value: new(uint256.Int), GasPrice: new(uint256.Int),
		GasFeeCap: new(uint256.Int), GasTipCap: new(uint256.Int), AccessList: a.AccessList, SetCodeAuthorizations: a.AuthList}
	if a.From != nil {
		m.From = *a.From
	}
	if a.Gas != nil && uint64(*a.Gas) < callGas {
		m.GasLimit = uint64(*a.Gas)
	}
	if a.Value != nil && m.Value.SetFromBig(a.Value.ToInt()) {
		return nil, errors.New("value is larger than 256 bits")
	}
	switch {
	case a.Input != nil && a.Data != nil && string(*a.Input) != string(*a.Data):
		return nil, errors.New(`both "data" and "input" are set and not equal. Please use "input" to pass transaction call data`)
	case a.Input != nil:
		m.Data = *a.Input
	case a.Data != nil:
		m.Data = *a.Data
	}
	return m.SkipNonceCheck().SkipEOACheck().SkipGasLimitCapCheck(), nil
}

// Call implements eth_call. State overrides are applied as far as balance,
// nonce, code and storage go.
func (a *ethAPI) Call(ctx context.Context, args callArgs, at *rpc.BlockNumberOrHash, overrides *overrides) (hexutil.Bytes, error) {
	st, h, err := a.state(at)
	if err != nil {
		return nil, err
	}
	if err := overrides.apply(st); err != nil {
		return nil, err
	}
	m, err := args.message()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	block := core.NewEVMBlockContext(h, a.c.bc, nil)
	block.BaseFee = new(big.Int) // or a free call could not be executed
	evm := vm.NewEVM(block, st, a.c.bc.Config(), vm.Config{NoBaseFee: true})
	defer evm.Release()
	defer context.AfterFunc(ctx, evm.Cancel)()
	result, err := core.ApplyMessage(evm, m, core.NewGasPool(callGas))
	switch {
	case evm.Cancelled():
		return nil, fmt.Errorf("execution aborted (timeout = %v)", callTime)
	case st.Error() != nil:
		return nil, st.Error()
	case err != nil:
		return nil, fmt.Errorf("err: %w (supplied gas %d)", err, m.GasLimit)
	case errors.Is(result.Err, vm.ErrExecutionReverted):
		return nil, newReverted(result.Revert())
	}
	return result.Return(), result.Err
}

// EstimateGas implements eth_estimateGas.
func (a *ethAPI) EstimateGas(ctx context.Context, args callArgs, at *rpc.BlockNumberOrHash, overrides *overrides) (hexutil.Uint64, error) {
	st, h, err := a.state(at)
	if err != nil {
		return 0, err
	}
	if err := overrides.apply(st); err != nil {
		return 0, err
	}
	m, err := args.message()
	if err != nil {
		return 0, err
	}
	if args.Gas == nil {
		m.GasLimit = 0 // the estimator's own limit
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	gas, revert, err := gasestimator.Estimate(ctx, m, &gasestimator.Options{Config: a.c.bc.Config(), Chain: a.c.bc, Header: h,
		State: st, ErrorRatio: 0.015}, callGas)
	if errors.Is(err, vm.ErrExecutionReverted) {
		return 0, newReverted(revert)
	}
	return hexutil.Uint64(gas), err
}

// reverted is the error of a call that the contract refused: JSON-RPC error 3
// with the contract's own bytes as data.
type reverted struct {
	why  string
	data hexutil.Bytes
}

func newReverted(data []byte) *reverted {
	r := &reverted{why: vm.ErrExecutionReverted.Error(), data: data}
	if reason, err := abi.UnpackRevert(data); err == nil {
		r.why += ": " + reason
	}
	return r
}

func (e *reverted) Error() string  { return e.why }
func (e *reverted) ErrorCode() int { return 3 }
func (e *reverted) ErrorData() any { return e.data }

// overrides change accounts for the time of one call.
type overrides map[common.Address]struct {
	Nonce     *hexutil.Uint64             `json:"nonce"`
	Code      *hexutil.Bytes              `json:"code"`
	Balance   *hexutil.Big                `json:"balance"`
	State     map[common.Hash]common.Hash `json:"state"`
	StateDiff map[common.Hash]common.Hash `json:"stateDiff"`
}

func (o *overrides) apply(st *state.StateDB) error {
	if o == nil {
		return nil
	}
	for who, x := range *o {
		if x.Nonce != nil {
			st.SetNonce(who, uint64(*x.Nonce), 0)
		}
		if x.Code != nil {
			st.SetCode(who, *x.Code, 0)
		}
		if x.Balance != nil {
			v, overflow := uint256.FromBig(x.Balance.ToInt())
			if overflow {
				return errors.New("a balance is larger than 256 bits")
			}
			st.SetBalance(who, v, 0)
		}
		if x.State != nil {
			st.SetStorage(who, x.State)
		}
		for slot, v := range x.StateDiff {
			st.SetState(who, slot, v)
		}
	}
	return nil
}

package chain_test

import (
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/rpcproxy"
)

// One of three makes nobody rich, poor, a contract or dear: whatever it says of
// accounts, channels and fees.
func TestOneLiarOfThreeSaysNothingOfAccounts(t *testing.T) {
	w := newStillWorld(t)
	used := w.transfer(t, 10, 1)
	w.pay(t, used)
	q, list := w.providers(t, 3)
	at, err := w.cl.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	truth, err := w.cl.Account(t.Context(), used.Asset, used.Payer, used.Nonce, at)
	if err != nil || truth.Contract || !truth.Used || len(truth.Past) != 1 {
		t.Fatalf("%+v, %v", truth, err)
	}
	honest, err := w.cl.Fees(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	channel := common.Hash{31: 7}
	says := func(v any) rpcproxy.Rule {
		return func([]json.RawMessage, func(...any) (json.RawMessage, error)) (json.RawMessage, error) {
			return json.Marshal(v)
		}
	}
	all := lies(w, used)
	all["rich"] = func(p *rpcproxy.Proxy) {
		p.On("eth_call", says("0x"+strings.Repeat("00", 24)+strings.Repeat("ff", 40)))
	}
	all["poor"] = func(p *rpcproxy.Proxy) {
		p.On("eth_call", says("0x"+strings.Repeat("00", 64)))
		p.On("eth_getBalance", says("0x0"))
	}
	all["a contract"] = func(p *rpcproxy.Proxy) { p.On("eth_getCode", says("0x6001")) }
	all["without code"] = func(p *rpcproxy.Proxy) { p.On("eth_getCode", says("0x")) }
	all["dear"] = func(p *rpcproxy.Proxy) { p.On("eth_maxPriorityFeePerGas", says("0xffffffffffff")) }
	all["no logs"] = func(p *rpcproxy.Proxy) { p.On("eth_getLogs", says([]any{})) }
	for name, lie := range all {
		for i, p := range list {
			t.Run(fmt.Sprintf("%s %d", name, i), func(t *testing.T) {
				lie(p)
				defer p.Honest()
				got, err := q.Account(t.Context(), used.Asset, used.Payer, used.Nonce, at)
				if err != nil || got.Contract != truth.Contract || got.Balance != truth.Balance || got.Used != truth.Used || len(got.Past) > 1 {
					t.Errorf("the account is %+v, %v; want %+v", got, err, truth)
				}
				if err := q.NeedFunds(t.Context(), w.signer.Address(), big.NewInt(1)); err != nil {
					t.Errorf("the signer has nothing: %v", err)
				}
				if err := q.NeedFunds(t.Context(), w.signer.Address(), new(big.Int).Lsh(big.NewInt(1), 200)); clawr.CodeOf(err) != clawr.CodeUnfunded {
					t.Errorf("the signer has everything: %v", err)
				}
				for who, want := range map[common.Address]bool{common.HexToAddress(chain.MulticallAddress): true, used.Payer: false} {
					if code, err := q.HasCode(t.Context(), who); err != nil || code != want {
						t.Errorf("%s has code: %v, %v", who, code, err)
					}
				}
				states, err := q.ChannelStates(t.Context(), channel)
				if err != nil || states[0] != (chain.ChannelState{}) {
					t.Errorf("the channel is %+v, %v", states, err)
				}
				if claimed, settled, err := q.Claimed(t.Context(), used.PayTo, used.Asset); claimed != 0 || settled != 0 || err != nil {
					t.Errorf("claimed are %d, %d, %v", claimed, settled, err)
				}
				fees, err := q.Fees(t.Context())
				if err != nil || fees.Max.Cmp(honest.Bump().Max) > 0 {
					t.Errorf("offered are %v, %v; honest is %v", fees.Max, err, honest.Max)
				}
			})
		}
	}
	list[0].Door(rpcproxy.Down)
	list[1].On("eth_getCode", says("0x6001"))
	if got, err := q.Account(t.Context(), used.Asset, used.Payer, used.Nonce, at); clawr.CodeOf(err) != clawr.CodeUnreachable {
		t.Errorf("what two do not agree on is %+v, %v", got, err)
	}
}

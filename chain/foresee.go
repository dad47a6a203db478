package chain

import (
	"context"
	_ "embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/402claw/clawr"
	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

//go:embed contracts/Foresee.json
var foreseeArtifact []byte

// foreseeCode is what contracts/compile.mjs made of Foresee.sol, whose comment
// says what goes in and what comes out.
var foreseeCode = sync.OnceValue(func() []byte {
	var a struct {
		Bytecode hexutil.Bytes `json:"bytecode"`
	}
	if err := json.Unmarshal(foreseeArtifact, &a); err != nil || len(a.Bytecode) == 0 {
		panic(fmt.Sprintf("chain: contracts/Foresee.json: %v", err))
	}
	return a.Bytecode
})

// The limits of one call. Initial code is bounded by EIP-3860, and a call's
// gas by the nodes, each in its own way: what is not run within it is asked
// for again.
const (
	foreseeItem   = 181
	foreseeMost   = 256        // transfers: 47 kB of initial code of at most 48
	foreseeGas    = 30_000_000 // of one call
	foreseeWords  = 160        // bytes of answer for each
	probesAtATime = 16
)

// ProbeAll is Probe for many transfers, in one round trip. Those of accounts
// are carried out one after the other: each finds what the ones before it left.
// With that comes the gas that each takes. Where a node cannot do that, and
// for what is signed by contracts, each is probed by itself.
func (c *Client) ProbeAll(ctx context.Context, from common.Address, ts []Transfer, gas uint64) ([]Probe, error) {
	out := make([]Probe, len(ts))
	var together, apart []int
	for i, t := range ts {
		if len(ts) > 1 && len(t.Signature) == 65 && t.Amount >= 0 && t.ValidAfter >= 0 && t.ValidBefore >= 0 {
			together = append(together, i)
		} else {
			apart = append(apart, i)
		}
	}
	for len(together) > 0 {
		n := min(len(together), foreseeMost)
		left, err := c.foresee(ctx, from, ts, together[:n], gas, out)
		if err != nil {
			return nil, err
		}
		apart = append(apart, left...)
		together = together[n:]
	}
	return out, c.probeEach(ctx, from, ts, apart, gas, out)
}

// probeEach probes the transfers with these indices by themselves.
func (c *Client) probeEach(ctx context.Context, from common.Address, ts []Transfer, which []int, gas uint64, out []Probe) error {
	errs := make([]error, len(which))
	var work sync.WaitGroup
	room := make(chan struct{}, probesAtATime)
	for k, i := range which {
		room <- struct{}{}
		work.Go(func() {
			defer func() { <-room }()
			out[i], errs[k] = c.Probe(ctx, from, ts[i], gas)
		})
	}
	work.Wait()
	for k, err := range errs {
		if clawr.CodeOf(err) == clawr.CodeNoContract {
			out[which[k]].Err, errs[k] = err, nil
		}
	}
	return errors.Join(errs...)
}

// foresee fills in the probes of the transfers with these indices. It gives
// those that have to be probed by themselves.
func (c *Client) foresee(ctx context.Context, from common.Address, ts []Transfer, which []int, gas uint64, out []Probe) (left []int, err error) {
	data := append([]byte(nil), foreseeCode()...)
	for _, i := range which {
		data = appendForesee(data, ts[i])
	}
	tail := word{}
	binary.BigEndian.PutUint64(tail[8:], uint64(len(which)))
	binary.BigEndian.PutUint64(tail[24:], gas)
	data = append(data, tail[:]...)
	limit := min(uint64(len(which))*(gas+60_000)+uint64(len(data))*16+500_000, foreseeGas)

	var raw hexutil.Bytes
	err = c.Ask(ctx, &raw, "eth_call", callObject{From: &from, Gas: hexutil.Uint64(limit), Input: data}, "latest")
	var answered rpc.Error
	if err != nil && !errors.As(err, &answered) {
		return nil, err
	}
	seen := foreseen(err)
	if len(seen) != len(which)*foreseeWords {
		return which, nil // a node that does not do this, or not for so much gas
	}
	for k, i := range which {
		p, ok := readForeseen(seen[k*foreseeWords:][:foreseeWords], gas)
		if !ok {
			left = append(left, i)
			continue
		}
		out[i] = p
		if seen[k*foreseeWords+31]&8 != 0 {
			out[i].Err = noToken(c.Network(), ts[i].Asset, "it has no authorizationState (EIP-3009)")
		}
	}
	return left, nil
}

// foreseen is the data with which the call was reverted. It is longer than
// what any token may say.
func foreseen(err error) []byte {
	var with rpc.DataError
	if !errors.As(err, &with) {
		return nil
	}
	s, _ := with.ErrorData().(string)
	b, _ := hexutil.Decode(s)
	return b
}

func appendForesee(out []byte, t Transfer) []byte {
	out = append(out, t.Asset[:]...)
	out = append(out, t.Payer[:]...)
	out = append(out, t.PayTo[:]...)
	for _, n := range []int64{t.Amount, t.ValidAfter, t.ValidBefore} {
		out = binary.BigEndian.AppendUint64(out, uint64(n))
	}
	out = append(out, t.Nonce[:]...)
	out = append(out, t.v())
	return append(out, t.Signature[:64]...)
}

// readForeseen reads the words about one transfer. It is false if the transfer
// was not run.
func readForeseen(b []byte, gas uint64) (Probe, bool) {
	flags := b[31]
	if flags&32 != 0 {
		return Probe{}, false
	}
	p := Probe{Used: flags&2 != 0, Contract: flags&4 != 0, Gas: uint64(binary.BigEndian.Uint32(b[27:31]))}
	if flags&1 != 0 {
		return p, true
	}
	said := b[32 : 32+min(int(b[26]), 128)]
	r := &Rejection{Message: "execution reverted", Data: said}
	if why, err := abi.UnpackRevert(said); err == nil {
		r.Message = clip(why)
	} else if why, ok := cutReason(said); ok {
		r.Message = clip(why)
	}
	switch {
	case p.Used:
		r.Reason = NonceUsed
	case len(said) == 0 && p.Gas >= gas:
		r.Reason, r.Message = OutOfGas, "out of gas"
	case flags&16 != 0:
		r.Reason = Balance
	}
	p.Rejection = r
	return p, true
}

// cutReason is the beginning of an Error(string) that was cut off.
func cutReason(said []byte) (string, bool) {
	if len(said) < 4+64 || binary.BigEndian.Uint32(said) != 0x08c379a0 {
		return "", false
	}
	n, ok := small(said[4:], 32)
	if !ok || n == 0 {
		return "", false
	}
	text := said[4+64:]
	return string(text[:min(n, len(text))]), true
}

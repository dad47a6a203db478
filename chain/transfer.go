package chain

import (
	"encoding/binary"

	"github.com/ethereum/go-ethereum/common"
)

// MulticallAddress is where Multicall3 stands on every chain that has it.
const MulticallAddress = "0xca11bde05977b3631167028862be2a173976ca11"

// Transfer is an EIP-3009 authorization to pay, and its signature.
type Transfer struct {
	Asset       common.Address
	Payer       common.Address
	PayTo       common.Address
	Amount      int64 // atomic units of the token
	ValidAfter  int64 // unix seconds, exclusive
	ValidBefore int64 // unix seconds, exclusive
	Nonce       common.Hash
	Signature   []byte // 65 bytes r, s, v, or what a contract wallet takes
}

// Calldata is the call of the token that carries the transfer out: the form
// with v, r and s for a signature of 65 bytes, else the form with bytes.
func (t Transfer) Calldata() []byte {
	args := []word{wordAddress(t.Payer), wordAddress(t.PayTo), wordInt(t.Amount), wordInt(t.ValidAfter), wordInt(t.ValidBefore), t.Nonce}
	if len(t.Signature) == 65 {
		return pack(selTransferVRS, append(args, wordInt(int64(t.v())), word(t.Signature[:32]), word(t.Signature[32:64]))...)
	}
	args = append(args, wordInt(7*32), wordInt(int64(len(t.Signature))))
	return padded(pack(selTransferBytes, args...), t.Signature)
}

// v is the last byte of a signature of 65 bytes.
func (t Transfer) v() byte {
	v := t.Signature[64]
	if v < 27 {
		v += 27 // 0 and 1 are another spelling of 27 and 28
	}
	return v
}

// Aggregate is the call of Multicall3 that carries many transfers out, each of
// which may fail by itself (aggregate3 with allowFailure).
func Aggregate(transfers []Transfer) []byte {
	n := len(transfers)
	out := binary.BigEndian.AppendUint32(nil, selAggregate3)
	put := func(w word) { out = append(out, w[:]...) }
	put(wordInt(32))
	put(wordInt(int64(n)))
	calls := make([][]byte, n)
	at := 32 * n // offsets are counted from the first offset on
	for i, t := range transfers {
		put(wordInt(int64(at)))
		calls[i] = t.Calldata()
		at += 4*32 + (len(calls[i])+31)/32*32
	}
	for i, t := range transfers {
		put(wordAddress(t.Asset))
		put(wordInt(1)) // allowFailure
		put(wordInt(3 * 32))
		put(wordInt(int64(len(calls[i]))))
		out = padded(out, calls[i])
	}
	return out
}

package chain

import (
	"encoding/binary"
	"math/big"
	"strings"
	"unicode/utf8"

	"github.com/ethereum/go-ethereum/common"
)

// word is 32 bytes of ABI encoding.
type word = common.Hash

// Function selectors of EIP-20, EIP-3009, EIP-5267 and Multicall3, and topics
// of the events. The tests hold them against keccak of the signatures.
const (
	selBalanceOf          = 0x70a08231 // balanceOf(address)
	selAuthorizationState = 0xe94a0102 // authorizationState(address,bytes32)
	selName               = 0x06fdde03 // name()
	selVersion            = 0x54fd4d50 // version()
	selDecimals           = 0x313ce567 // decimals()
	selDomain             = 0x84b0196e // eip712Domain()
	selTransferVRS        = 0xe3ee160e // transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)
	selTransferBytes      = 0xcf092995 // transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)
	selAggregate3         = 0x82ad56cb // aggregate3((address,bool,bytes)[])

	topicTransfer = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef" // Transfer(address,address,uint256)
	topicUsed     = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5" // AuthorizationUsed(address,bytes32)
	topicCanceled = "0x1cdd46ff242716cdaa72d159d339a485b3438398348d68f09d7c8c0a59353d81" // AuthorizationCanceled(address,bytes32)
)

func wordAddress(a common.Address) word { return common.BytesToHash(a[:]) }

func wordInt(n int64) word { return common.BigToHash(big.NewInt(n)) }

// pack is a call with arguments of fixed size.
func pack(selector uint32, args ...word) []byte {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, 4+32*len(args)), selector)
	for _, a := range args {
		out = append(out, a[:]...)
	}
	return out
}

// padded appends b, filled up with zeros to whole words.
func padded(out, b []byte) []byte {
	out = append(out, b...)
	return append(out, make([]byte, (32-len(b)%32)%32)...)
}

// maxName bounds the names that a token may give itself.
const maxName = 256

// unpackString reads the string whose offset is word number i of an answer, or
// the whole answer as a bytes32, as old tokens give their name.
func unpackString(out []byte, i int) (string, bool) {
	if i == 0 && len(out) == 32 {
		return text(out)
	}
	at, ok := small(out, 32*i)
	if !ok {
		return "", false
	}
	n, ok := small(out, at)
	if !ok || n > maxName || len(out) < at+32+n {
		return "", false
	}
	s := string(out[at+32 : at+32+n])
	return s, s != "" && utf8.ValidString(s)
}

func text(b []byte) (string, bool) {
	s := strings.TrimRight(string(b), "\x00")
	return s, s != "" && utf8.ValidString(s) && !strings.ContainsRune(s, 0)
}

// small reads the word at offset at if it is there and below 2^31.
func small(out []byte, at int) (int, bool) {
	if at < 0 || at > len(out)-32 {
		return 0, false
	}
	w := out[at : at+32]
	for _, b := range w[:28] {
		if b != 0 {
			return 0, false
		}
	}
	n := binary.BigEndian.Uint32(w[28:])
	return int(n), n < 1<<31
}

// lower is an address as clawr writes it.
func lower(a common.Address) string { return strings.ToLower(a.Hex()) }

package chain

import (
	"bytes"
	"encoding/binary"
	"math/big"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"pgregory.net/rapid"
)

func TestSelectorsAndTopics(t *testing.T) {
	const window = "address,address,uint256,uint256,uint256,bytes32"
	for sig, want := range map[string]uint32{
		"balanceOf(address)": selBalanceOf, "authorizationState(address,bytes32)": selAuthorizationState,
		"name()": selName, "version()": selVersion, "decimals()": selDecimals, "eip712Domain()": selDomain,
		"transferWithAuthorization(" + window + ",uint8,bytes32,bytes32)": selTransferVRS,
		"transferWithAuthorization(" + window + ",bytes)":                 selTransferBytes,
		"aggregate3((address,bool,bytes)[])":                              selAggregate3,
	} {
		if got := binary.BigEndian.Uint32(crypto.Keccak256([]byte(sig))); got != want {
			t.Errorf("%s has selector %#08x, not %#08x", sig, got, want)
		}
	}
	for sig, want := range map[string]string{
		"Transfer(address,address,uint256)": topicTransfer, "AuthorizationUsed(address,bytes32)": topicUsed,
		"AuthorizationCanceled(address,bytes32)": topicCanceled,
	} {
		if got := crypto.Keccak256Hash([]byte(sig)).Hex(); got != want {
			t.Errorf("%s has topic %s, not %s", sig, got, want)
		}
	}
}

const transferABI = `[
 {"type":"function","name":"vrs","inputs":[{"type":"address","name":"a"},{"type":"address","name":"b"},{"type":"uint256","name":"c"},{"type":"uint256","name":"d"},{"type":"uint256","name":"e"},{"type":"bytes32","name":"f"},{"type":"uint8","name":"g"},{"type":"bytes32","name":"h"},{"type":"bytes32","name":"i"}]},
 {"type":"function","name":"bytes","inputs":[{"type":"address","name":"a"},{"type":"address","name":"b"},{"type":"uint256","name":"c"},{"type":"uint256","name":"d"},{"type":"uint256","name":"e"},{"type":"bytes32","name":"f"},{"type":"bytes","name":"g"}]},
 {"type":"function","name":"aggregate3","inputs":[{"type":"tuple[]","name":"calls","components":[{"type":"address","name":"target"},{"type":"bool","name":"allowFailure"},{"type":"bytes","name":"callData"}]}]}]`

// drawTransfer makes transfers of every size of signature.
func drawTransfer(r *rapid.T) Transfer {
	word := func(name string, n int) []byte { return rapid.SliceOfN(rapid.Byte(), n, n).Draw(r, name) }
	length := rapid.SampledFrom([]int{0, 1, 31, 32, 64, 65, 65, 65, 66, 96, 97, 500}).Draw(r, "length")
	t := Transfer{Asset: common.Address(word("asset", 20)), Payer: common.Address(word("payer", 20)), PayTo: common.Address(word("payTo", 20)),
		Amount: rapid.Int64Min(0).Draw(r, "amount"), ValidAfter: rapid.Int64Min(0).Draw(r, "after"), ValidBefore: rapid.Int64Min(0).Draw(r, "before"),
		Nonce: common.Hash(word("nonce", 32)), Signature: word("signature", length)}
	if length == 65 {
		t.Signature[64] = rapid.SampledFrom([]byte{0, 1, 27, 28}).Draw(r, "v")
	}
	return t
}

// The hand-written encoding is go-ethereum's.
func TestCalldataIsTheABI(t *testing.T) {
	parsed, err := abi.JSON(strings.NewReader(transferABI))
	if err != nil {
		t.Fatal(err)
	}
	pack := func(name string, selector uint32, args ...any) []byte {
		t.Helper()
		b, err := parsed.Methods[name].Inputs.Pack(args...)
		if err != nil {
			t.Fatal(err)
		}
		return append(binary.BigEndian.AppendUint32(nil, selector), b...)
	}
	big := func(n int64) *big.Int { return big.NewInt(n) }
	want := func(t Transfer) []byte {
		if len(t.Signature) != 65 {
			return pack("bytes", selTransferBytes, t.Payer, t.PayTo, big(t.Amount), big(t.ValidAfter), big(t.ValidBefore), t.Nonce, t.Signature)
		}
		v := t.Signature[64]
		if v < 2 {
			v += 27
		}
		return pack("vrs", selTransferVRS, t.Payer, t.PayTo, big(t.Amount), big(t.ValidAfter), big(t.ValidBefore), t.Nonce,
			v, [32]byte(t.Signature[:32]), [32]byte(t.Signature[32:64]))
	}
	type call struct {
		Target       common.Address
		AllowFailure bool
		CallData     []byte
	}
	rapid.Check(t, func(r *rapid.T) {
		ts := rapid.SliceOfN(rapid.Custom(drawTransfer), 0, 5).Draw(r, "transfers")
		calls := []call{}
		for _, x := range ts {
			if got := x.Calldata(); !bytes.Equal(got, want(x)) {
				r.Fatalf("calldata\n%x, want\n%x", got, want(x))
			}
			calls = append(calls, call{x.Asset, true, want(x)})
		}
		if got, want := Aggregate(ts), pack("aggregate3", selAggregate3, calls); !bytes.Equal(got, want) {
			r.Fatalf("aggregate\n%x, want\n%x", got, want)
		}
	})
}

func FuzzUnpackString(f *testing.F) {
	str, err := abi.NewType("string", "", nil)
	if err != nil {
		f.Fatal(err)
	}
	good, err := abi.Arguments{{Type: str}, {Type: str}}.Pack("USD Coin", "2")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, 0)
	f.Add(good[:60], 1)
	f.Add(append([]byte("MKR"), make([]byte, 29)...), 0)
	f.Add(bytes.Repeat([]byte{0xff}, 96), 0)
	f.Fuzz(func(t *testing.T, b []byte, i int) {
		s, ok := unpackString(b, i&3)
		if ok && (s == "" || len(s) > maxName || len(s) > len(b)) {
			t.Errorf("%x gives %q", b, s)
		}
	})
}

func TestUnpackString(t *testing.T) {
	str, err := abi.NewType("string", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := abi.Arguments{{Type: str}, {Type: str}}.Pack("USD Coin", "2")
	if err != nil {
		t.Fatal(err)
	}
	long, err := abi.Arguments{{Type: str}}.Pack(strings.Repeat("x", maxName+1))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		b    []byte
		i    int
		want string
	}{
		{"the first of two", pair, 0, "USD Coin"},
		{"the second of two", pair, 1, "2"},
		{"a bytes32", append([]byte("Maker"), make([]byte, 27)...), 0, "Maker"},
		{"cut off", pair[:len(pair)-32], 1, ""},
		{"nothing", nil, 0, ""},
		{"too long", long, 0, ""},
		{"not UTF-8", append([]byte{0xff}, make([]byte, 31)...), 0, ""},
		{"an offset beyond the end", bytes.Repeat([]byte{0, 0, 0, 0, 0, 0, 0, 1}, 8), 0, ""},
	} {
		if got, ok := unpackString(test.b, test.i); got != test.want && ok || ok != (test.want != "") {
			t.Errorf("%s: %q, %v, want %q", test.name, got, ok, test.want)
		}
	}
}

package devchain

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"testing"

	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/rpc"
)

func keyOf(t *testing.T, k *chain.Key) *ecdsa.PrivateKey {
	t.Helper()
	p, err := crypto.HexToECDSA(k.Reveal()[2:])
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func blockRef(n int64) rpc.BlockNumberOrHash {
	return rpc.BlockNumberOrHashWithNumber(rpc.BlockNumber(n))
}

// An artifact names the source that it was compiled from; make contracts
// compiles it again.
func TestArtifactsAreOfTheirSources(t *testing.T) {
	for _, name := range []string{"TestUSD", "Multicall", "Channels", "ERC3009Collector", "ContractWallet", "QuietUSD", "NoopUSD"} {
		a := artifact(t, name)
		src, err := os.ReadFile("contracts/" + a.Source)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(src); hex.EncodeToString(sum[:]) != a.SourceSHA256 {
			t.Errorf("%s.json was not compiled from the %s that is here: make contracts", name, a.Source)
		}
	}
}

// The functions that the official clients and facilitators call.
func TestTheTokenHasTheFunctionsOfUSDC(t *testing.T) {
	a, err := TestUSD()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := abi.JSON(bytes.NewReader(a.ABI))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, m := range parsed.Methods {
		have[m.Sig] = true
	}
	const window = "address,address,uint256,uint256,uint256,bytes32"
	for _, sig := range []string{
		"name()", "version()", "symbol()", "decimals()", "totalSupply()", "balanceOf(address)", "DOMAIN_SEPARATOR()",
		"allowance(address,address)", "approve(address,uint256)", "transfer(address,uint256)", "transferFrom(address,address,uint256)",
		"authorizationState(address,bytes32)",
		"transferWithAuthorization(" + window + ",uint8,bytes32,bytes32)", "transferWithAuthorization(" + window + ",bytes)",
		"receiveWithAuthorization(" + window + ",uint8,bytes32,bytes32)", "receiveWithAuthorization(" + window + ",bytes)",
		"cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)", "cancelAuthorization(address,bytes32,bytes)",
	} {
		if !have[sig] {
			t.Errorf("the token has no %s", sig)
		}
	}
}

// What is deployed by a transaction is what the genesis puts there.
func TestDeployGivesTheRuntime(t *testing.T) {
	c, cl := open(t, Options{})
	signer := fund(t, c, key(t))
	a, err := TestUSD()
	if err != nil {
		t.Fatal(err)
	}
	at, err := Deploy(t.Context(), cl, signer, a)
	if err != nil {
		t.Fatal(err)
	}
	code, err := cl.Code(t.Context(), at)
	if err != nil || !bytes.Equal(code, a.Runtime) {
		t.Errorf("%d bytes at the deployed address, %v, want the %d of the artifact", len(code), err, len(a.Runtime))
	}
	if _, err := cl.Transact(t.Context(), signer, chain.Call{To: &at, Data: MintCall(signer.Address(), 3)}); err != nil {
		t.Fatal(err)
	}
	if got, err := cl.TokenBalance(t.Context(), at, signer.Address()); err != nil || got.Int64() != 3 {
		t.Errorf("minted %v, %v, want 3", got, err)
	}
	for _, b := range []string{"", "{", `{"contract":"X"}`, `{"bytecode":"0xzz"}`} {
		if _, err := ParseArtifact([]byte(b)); err == nil {
			t.Errorf("%q was taken for an artifact", b)
		}
	}
}

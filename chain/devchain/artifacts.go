package devchain

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"

	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
)

//go:embed contracts/TestUSD.json
var testUSD []byte

//go:embed contracts/Multicall.json
var multicall []byte

//go:embed contracts/Channels.json
var channels []byte

//go:embed contracts/ERC3009Collector.json
var collector []byte

// Artifact is a compiled contract, as contracts/compile.mjs writes it.
type Artifact struct {
	Contract     string          `json:"contract"`
	Source       string          `json:"source"`       // file in contracts/
	SourceSHA256 string          `json:"sourceSha256"` // hex; a test holds it against the file
	Compiler     string          `json:"compiler"`
	ABI          json.RawMessage `json:"abi"`
	Bytecode     hexutil.Bytes   `json:"bytecode"` // what a transaction deploys
	Runtime      hexutil.Bytes   `json:"runtime"`  // what then stands at the address
}

// TestUSD is the compiled token of the development chain.
func TestUSD() (*Artifact, error) { return ParseArtifact(testUSD) }

// Multicall is the compiled contract at MulticallAddress.
func Multicall() (*Artifact, error) { return ParseArtifact(multicall) }

// Channels is the compiled contract at chain.ChannelsAddress.
func Channels() (*Artifact, error) { return ParseArtifact(channels) }

// Collector is the compiled contract at chain.CollectorAddress.
func Collector() (*Artifact, error) { return ParseArtifact(collector) }

// ParseArtifact reads a file that contracts/compile.mjs wrote.
func ParseArtifact(b []byte) (*Artifact, error) {
	a := new(Artifact)
	if err := json.Unmarshal(b, a); err != nil {
		return nil, fmt.Errorf("read the artifact of a contract: %w", err)
	}
	if len(a.Bytecode) == 0 {
		return nil, fmt.Errorf("the artifact of %q has no bytecode", a.Contract)
	}
	return a, nil
}

// Deploy deploys a on any chain by an ordinary transaction of key's account,
// with the ABI-encoded arguments of its constructor, and waits for the block.
// Nothing else may use the account meanwhile. The token's minter is the account.
func Deploy(ctx context.Context, c *chain.Client, key *chain.Key, a *Artifact, args ...byte) (common.Address, error) {
	r, err := c.Transact(ctx, key, chain.Call{Data: append(append([]byte(nil), a.Bytecode...), args...)})
	if err != nil {
		return common.Address{}, fmt.Errorf("deploy %s: %w", a.Contract, err)
	}
	return r.Created, nil
}

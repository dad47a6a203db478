package devchain

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"strings"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core"
	"github.com/ethereum/go-ethereum/core/rawdb"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/ethdb"
	"github.com/ethereum/go-ethereum/ethdb/leveldb"
	"github.com/ethereum/go-ethereum/params"
)

// Where the contracts stand.
const (
	// TokenAddress is the test USDC of a chain that is not like Base Sepolia.
	TokenAddress = "0xc1a30000000000000000000000000000000005dc"
	// MulticallAddress is the same on every chain that has Multicall3.
	MulticallAddress = "0xca11bde05977b3631167028862be2a173976ca11"

	baseSepoliaID   = 84532
	baseSepoliaUSDC = "0x036cbd53842c5426634e7929541ec2318f3dcf7e"
)

// spec is what a directory remembers of its chain, in chain.json.
type spec struct {
	ChainID int64          `json:"chainId"`
	Token   common.Address `json:"token"`
	Genesis uint64         `json:"genesisTime"` // unix seconds
}

// genesis is the first block, or nil if the database has one already.
func (c *Chain) genesis() (*core.Genesis, error) {
	want := spec{ChainID: c.opt.ChainID, Token: common.HexToAddress(TokenAddress), Genesis: uint64(c.opt.Now().Unix())}
	if c.opt.LikeBaseSepolia {
		want.Token = common.HexToAddress(baseSepoliaUSDC)
	}
	c.spec = want
	if rawdb.ReadHeadBlockHash(c.db) != (common.Hash{}) {
		have, err := readSpec(c.opt.Dir)
		if err != nil {
			return nil, err
		}
		if have.ChainID != want.ChainID || have.Token != want.Token {
			return nil, &clawr.Error{Code: clawr.CodeWrongChain, Param: "chain-id",
				Message: fmt.Sprintf("%s holds a development chain eip155:%d with its token at %s, not eip155:%d with %s",
					c.opt.Dir, have.ChainID, lower(have.Token), want.ChainID, lower(want.Token)),
				Fix: "use another --data directory, or the options it was made with"}
		}
		c.spec = have
		return nil, nil
	}
	if err := writeSpec(c.opt.Dir, want); err != nil {
		return nil, err
	}
	alloc, err := c.alloc()
	if err != nil {
		return nil, err
	}
	return &core.Genesis{Config: chainConfig(c.spec.ChainID), Timestamp: c.spec.Genesis, GasLimit: blockGas,
		BaseFee: big.NewInt(params.InitialBaseFee), Difficulty: new(big.Int), Alloc: alloc}, nil
}

// alloc puts the token, the contracts of others that clawr uses, and the
// faucet's ether into the first block.
func (c *Chain) alloc() (types.GenesisAlloc, error) {
	token, err := TestUSD()
	if err != nil {
		return nil, err
	}
	alloc := maps.Clone(core.SystemContractAllocs())
	alloc[c.faucet.Address()] = types.Account{Balance: new(big.Int).Mul(big.NewInt(1e12), big.NewInt(params.Ether))}
	alloc[c.spec.Token] = types.Account{Code: token.Runtime, Nonce: 1, Balance: new(big.Int),
		// Slot 0 is the minter.
		Storage: map[common.Hash]common.Hash{{}: common.BytesToHash(c.faucet.Address().Bytes())}}
	for address, read := range map[string]func() (*Artifact, error){MulticallAddress: Multicall, chain.ChannelsAddress: Channels, chain.CollectorAddress: Collector} {
		a, err := read()
		if err != nil {
			return nil, err
		}
		alloc[common.HexToAddress(address)] = types.Account{Code: a.Runtime, Nonce: 1, Balance: new(big.Int)}
	}
	return alloc, nil
}

// chainConfig has every fork up to Osaka from the first block on, as Base has,
// with its cap of 2^24 gas a transaction.
func chainConfig(id int64) *params.ChainConfig {
	zero := func() *uint64 { return new(uint64) }
	n := func() *big.Int { return new(big.Int) }
	return &params.ChainConfig{
		ChainID: big.NewInt(id), HomesteadBlock: n(), EIP150Block: n(), EIP155Block: n(), EIP158Block: n(), ByzantiumBlock: n(),
		ConstantinopleBlock: n(), PetersburgBlock: n(), IstanbulBlock: n(), MuirGlacierBlock: n(), BerlinBlock: n(), LondonBlock: n(),
		ArrowGlacierBlock: n(), GrayGlacierBlock: n(), TerminalTotalDifficulty: n(),
		ShanghaiTime: zero(), CancunTime: zero(), PragueTime: zero(), OsakaTime: zero(),
		BlobScheduleConfig: &params.BlobScheduleConfig{Cancun: params.DefaultCancunBlobConfig, Prague: params.DefaultPragueBlobConfig},
	}
}

// openDatabase opens the store in dir, or one in memory. LevelDB writes each
// batch to the file before it returns, so that a kill loses nothing; only a
// loss of power can cost the last blocks.
func openDatabase(dir string) (ethdb.Database, error) {
	if dir == "" {
		return rawdb.NewMemoryDatabase(), nil
	}
	kv, err := leveldb.New(filepath.Join(dir, "blocks"), 16, 16, "", false)
	if err != nil {
		e := &clawr.Error{Code: clawr.CodeFile, Message: "cannot open the development chain in " + dir, Err: err,
			Fix: "see that the directory can be written, or use another --data directory"}
		if strings.Contains(err.Error(), "resource temporarily unavailable") || strings.Contains(err.Error(), "used by another process") {
			e.Code, e.Fix = clawr.CodeLocked, "stop the other process, or use another --data directory"
			e.Message = "another process has the development chain in " + dir + " open"
		}
		return nil, e
	}
	return rawdb.NewDatabase(kv), nil
}

func readSpec(dir string) (spec, error) {
	var s spec
	b, err := os.ReadFile(filepath.Join(dir, "chain.json"))
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil && (s.ChainID <= 0 || s.Token == common.Address{}) {
		err = errors.New("fields are missing")
	}
	if err != nil {
		return s, &clawr.Error{Code: clawr.CodeFile, Message: "cannot read " + filepath.Join(dir, "chain.json"), Err: err,
			Fix: "restore it, or delete the directory to begin a new development chain"}
	}
	return s, nil
}

func writeSpec(dir string, s spec) error {
	if dir == "" {
		return nil
	}
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "chain.json"), append(b, '\n'), 0o600); err != nil {
		return &clawr.Error{Code: clawr.CodeFile, Message: "cannot write " + filepath.Join(dir, "chain.json"), Err: err,
			Fix: "see that the directory can be written, or use another --data directory"}
	}
	return nil
}

// lower is an address as clawr writes it.
func lower(a common.Address) string { return strings.ToLower(a.Hex()) }

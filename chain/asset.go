package chain

import (
	"context"
	"fmt"
	"time"

	"github.com/402claw/clawr"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"
)

// assetTTL is how long a token is believed to stay what it is: most are proxies.
const assetTTL = 15 * time.Minute

type assetEntry struct {
	asset clawr.Asset
	until time.Time
}

// Asset asks the chain what the token at an address is: the domain that its
// authorizations are signed for, and its decimals. The name and version come
// from name() and version(), and where those are missing from eip712Domain()
// (EIP-5267). It is one round trip, and none for 15 minutes afterwards.
// Errors have code asset_without_code if nothing, or no such token, is there.
func (c *Client) Asset(ctx context.Context, address common.Address) (clawr.Asset, error) {
	key := lower(address)
	c.mu.Lock()
	e, ok := c.assets[key]
	c.mu.Unlock()
	if ok && c.now().Before(e.until) {
		return e.asset, nil
	}
	a, err := c.readAsset(ctx, address)
	if err != nil {
		return clawr.Asset{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.assets) >= 1024 { // strangers may ask about any address
		clear(c.assets)
	}
	c.assets[key] = assetEntry{a, c.now().Add(assetTTL)}
	return a, nil
}

func (c *Client) readAsset(ctx context.Context, address common.Address) (clawr.Asset, error) {
	var code hexutil.Bytes
	calls := []rpc.BatchElem{{Method: "eth_getCode", Args: []any{address, "latest"}, Result: &code}}
	answers := make([]hexutil.Bytes, 4)
	for i, selector := range []uint32{selName, selVersion, selDecimals, selDomain} {
		calls = append(calls, rpc.BatchElem{Method: "eth_call", Result: &answers[i],
			Args: []any{callObject{To: &address, Input: pack(selector)}, "latest"}})
	}
	if err := c.batch(ctx, calls); err != nil {
		return clawr.Asset{}, err
	}
	if calls[0].Error != nil {
		return clawr.Asset{}, calls[0].Error
	}
	if len(code) == 0 {
		return clawr.Asset{}, noToken(c.Network(), address, "there is no contract at that address")
	}
	a := clawr.Asset{Network: c.Network(), Address: lower(address)}
	name, nameOK := unpackString(answers[0], 0)
	version, versionOK := unpackString(answers[1], 0)
	if !nameOK || !versionOK {
		// (bytes1 fields, string name, string version, …)
		name, nameOK = unpackString(answers[3], 1)
		version, versionOK = unpackString(answers[3], 2)
	}
	decimals, decimalsOK := small(answers[2], 0)
	switch {
	case !nameOK || !versionOK:
		return clawr.Asset{}, noToken(c.Network(), address, "it has neither name() and version() nor eip712Domain()")
	case !decimalsOK || decimals > 77:
		return clawr.Asset{}, noToken(c.Network(), address, "it does not say how many decimals it has")
	}
	a.Name, a.Version, a.Decimals = name, version, decimals
	return a, nil
}

func noToken(network string, address common.Address, why string) error {
	return &clawr.Error{Code: clawr.CodeNoContract, Message: fmt.Sprintf("%s is not a token with EIP-3009 on %s: %s", lower(address), network, why), Param: "asset",
		Fix: "give the --asset address of USDC, or of another EIP-3009 token, on that network"}
}

package buyer

import (
	"strings"

	"github.com/402claw/clawr"
)

// known are the dollar tokens that a wallet pays without being told to: those
// with EIP-3009 among the default assets of the reference client (@x402/evm
// 2.27, defaultAssets.ts, and x402 1.2.0 for Avalanche Fuji and Polygon Amoy).
// A challenge that spells their EIP-712 domain otherwise is refused: the
// signature would be void, or for something else.
var known = [...]clawr.Asset{
	{Network: "eip155:8453", Address: "0x833589fcd6edb6e08f4c7c32d4f71b54bda02913", Name: "USD Coin", Version: "2", Decimals: 6},
	{Network: "eip155:84532", Address: "0x036cbd53842c5426634e7929541ec2318f3dcf7e", Name: "USDC", Version: "2", Decimals: 6},
	{Network: "eip155:1", Address: "0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48", Name: "USD Coin", Version: "2", Decimals: 6},
	{Network: "eip155:43114", Address: "0xb97ef9ef8734c71904d8002f8b6bc66dd9c48a6e", Name: "USD Coin", Version: "2", Decimals: 6},
	{Network: "eip155:43113", Address: "0x5425890298aed601595a70ab815c96711a31bc65", Name: "USD Coin", Version: "2", Decimals: 6},
	{Network: "eip155:137", Address: "0x3c499c542cef5e3811e1192ce70d8cc03d5c3359", Name: "USD Coin", Version: "2", Decimals: 6},
	{Network: "eip155:80002", Address: "0x41e94eb019c0762f9bfcf9fb1e58725bfb0e7582", Name: "USDC", Version: "2", Decimals: 6},
	{Network: "eip155:42161", Address: "0xaf88d065e77c8cc2239327c5edb3a432268e5831", Name: "USD Coin", Version: "2", Decimals: 6},
	{Network: "eip155:421614", Address: "0x75faf114eafb1bdbe2f0316df893fd58ce46aa4d", Name: "USD Coin", Version: "2", Decimals: 6},
	{Network: "eip155:143", Address: "0x754704bc059f8c67012fed69bc8a327a5aafb603", Name: "USDC", Version: "2", Decimals: 6},
	{Network: "eip155:50", Address: "0xfa2958cb79b0491cc627c1557f441ef849ca8eb1", Name: "USDC", Version: "2", Decimals: 6},
	{Network: "eip155:42220", Address: "0xceba9300f2b948710d2653dd7b07f33a8b32118c", Name: "USDC", Version: "2", Decimals: 6},
	{Network: "eip155:1329", Address: "0xe15fc38f6d8c56af07bbcbe3baf5708a2bf42392", Name: "USDC", Version: "2", Decimals: 6},
	{Network: "eip155:1328", Address: "0x4fcf1784b31630811181f670aea7a7bef803eaed", Name: "USDC", Version: "2", Decimals: 6},
}

// KnownAsset is the dollar token at address on network, or the network's only
// one if address is empty.
func KnownAsset(network, address string) (clawr.Asset, bool) {
	for _, a := range known {
		if a.Network == network && (address == "" || strings.EqualFold(a.Address, address)) {
			return a, true
		}
	}
	return clawr.Asset{}, false
}

// development reports whether network is one on which every developer has
// their own chain, and tokens are worth nothing: any of them may be paid.
func development(network string) bool { return network == "eip155:31337" || network == "eip155:1337" }

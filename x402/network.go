package x402

import (
	"strconv"
	"strings"
)

// caip2 is the SDK's NetworkSchemaV2.
func caip2(s string) bool { return len(s) >= 3 && strings.IndexByte(s, ':') >= 0 }

// ChainID is the number in eip155:N. It is at most 2^53, as in the SDK.
func ChainID(network string) (id uint64, ok bool) {
	digits, ok := strings.CutPrefix(network, "eip155:")
	if !ok || digits == "" || digits[0] < '1' || digits[0] > '9' {
		return 0, false
	}
	id, err := strconv.ParseUint(digits, 10, 53)
	return id, err == nil
}

// The networks that version 1 had names for. Its own clients (npm x402-fetch
// 1.2.0) know those marked known; one name that they do not know anywhere in a
// 402's list makes them refuse the whole list. The others were added by the
// SDK of version 2 for payments that arrive.
var v1Networks = [...]struct {
	name, network string
	known         bool
}{
	{"base", "eip155:8453", true},
	{"base-sepolia", "eip155:84532", true},
	{"abstract", "eip155:2741", true},
	{"abstract-testnet", "eip155:11124", true},
	{"avalanche", "eip155:43114", true},
	{"avalanche-fuji", "eip155:43113", true},
	{"educhain", "eip155:41923", true},
	{"iotex", "eip155:4689", true},
	{"peaq", "eip155:3338", true},
	{"polygon", "eip155:137", true},
	{"polygon-amoy", "eip155:80002", true},
	{"sei", "eip155:1329", true},
	{"sei-testnet", "eip155:1328", true},
	{"skale-base-sepolia", "eip155:324705682", true},
	{"story", "eip155:1514", true},
	{"celo", "eip155:42220", false},
	{"ethereum", "eip155:1", false},
	{"flare", "eip155:14", false},
	{"megaeth", "eip155:4326", false},
	{"monad", "eip155:143", false},
	{"sepolia", "eip155:11155111", false},
	{"stable", "eip155:988", false},
	{"stable-testnet", "eip155:2201", false},
}

// V1Name is what version 1's clients call network, or "" if they cannot.
func V1Name(network string) string {
	for i := range v1Networks {
		if v1Networks[i].known && v1Networks[i].network == network {
			return v1Networks[i].name
		}
	}
	return ""
}

// FromV1 is the CAIP-2 name of a version 1 network, and name itself if it is
// not known.
func FromV1(name string) string {
	for i := range v1Networks {
		if v1Networks[i].name == name {
			return v1Networks[i].network
		}
	}
	return name
}

// Package clawr names the things that the rest of clawr is about: tenants and
// the plans that bound them, amounts of money, and errors that have a code for
// machines and a fix for people. It does no I/O and imports nothing of ours.
package clawr

import (
	"fmt"
	"math/big"
	"strings"
)

// Amount is money in micro-USD (1e-6 USD). Prices, caps and usage events are
// Amounts; payments themselves are counted in the token's atomic units.
type Amount int64

// MaxPrice bounds a price per call: 1,000,000 USD.
const MaxPrice Amount = 1_000_000_000_000

// ParseAmount reads a decimal number of US dollars such as "0.001" or "$5",
// with at most 6 decimal places and no sign or exponent.
func ParseAmount(s string) (Amount, error) {
	in := s
	s = strings.TrimPrefix(s, "$")
	whole, frac, dotted := strings.Cut(s, ".")
	bad := func(why string) error {
		return &Error{Code: CodeBadAmount, Message: fmt.Sprintf("%q is not an amount in USD: %s", in, why),
			Fix: "write a decimal number with at most 6 places, such as 0.001"}
	}
	if whole == "" || dotted && frac == "" {
		return 0, bad("digits are missing")
	}
	if len(frac) > 6 {
		return 0, bad("it has more than 6 decimal places")
	}
	if len(whole) > 12 {
		return 0, bad("it is too large")
	}
	var n int64
	for _, c := range whole + frac + "000000"[len(frac):] {
		if c < '0' || c > '9' {
			return 0, bad("only digits and one point may stand there")
		}
		n = n*10 + int64(c-'0')
	}
	return Amount(n), nil
}

// String gives a as decimal US dollars without a sign for the currency and
// without trailing zeros: "0.001", "5".
func (a Amount) String() string {
	sign := ""
	n := uint64(a)
	if a < 0 {
		sign, n = "-", uint64(-a)
	}
	s := fmt.Sprintf("%s%d.%06d", sign, n/1e6, n%1e6)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

// Atomic converts a into the smallest units of a token with the given number
// of decimals. It is an error if that is not a whole positive number, or does
// not fit the 63 bits in which payments are stored.
func (a Amount) Atomic(decimals int) (int64, error) {
	n := big.NewInt(int64(a))
	ten := big.NewInt(10)
	if decimals >= 6 {
		n.Mul(n, new(big.Int).Exp(ten, big.NewInt(int64(decimals-6)), nil))
	} else {
		rest := new(big.Int)
		n.QuoRem(n, new(big.Int).Exp(ten, big.NewInt(int64(6-decimals)), nil), rest)
		if rest.Sign() != 0 {
			return 0, &Error{Code: CodeBadAmount, Message: fmt.Sprintf("$%s is not a whole number of units of a token with %d decimals", a, decimals),
				Fix: "choose a price with fewer decimal places"}
		}
	}
	if n.Sign() <= 0 || !n.IsInt64() {
		return 0, &Error{Code: CodeBadAmount, Message: fmt.Sprintf("$%s cannot be paid in a token with %d decimals", a, decimals),
			Fix: "choose a price above 0 whose amount in the token's units is below 2^63"}
	}
	return n.Int64(), nil
}

// AmountOf converts atomic units of a token into micro-USD, rounding down.
func AmountOf(atomic int64, decimals int) Amount {
	n := big.NewInt(atomic)
	ten := big.NewInt(10)
	if decimals >= 6 {
		n.Quo(n, new(big.Int).Exp(ten, big.NewInt(int64(decimals-6)), nil))
	} else {
		n.Mul(n, new(big.Int).Exp(ten, big.NewInt(int64(6-decimals)), nil))
	}
	return Amount(n.Int64())
}

// Asset is a token that payments are made in.
type Asset struct {
	Network  string `json:"network"`  // CAIP-2, such as eip155:8453
	Address  string `json:"address"`  // lower-case 0x hex
	Name     string `json:"name"`     // EIP-712 domain name
	Version  string `json:"version"`  // EIP-712 domain version
	Decimals int    `json:"decimals"` // 6 for USDC
}

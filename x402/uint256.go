package x402

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
)

// Uint256 is an unsigned integer as the EVM has it: 32 bytes, big-endian.
// Equal numbers are == each other.
type Uint256 [32]byte

// Uint is n as a Uint256.
func Uint(n uint64) (u Uint256) {
	binary.BigEndian.PutUint64(u[24:], n)
	return u
}

// ParseUint reads a decimal number of at most 256 bits, without sign, leading
// zeros, exponent or white space. JavaScript's BigInt takes more; a number
// that has several spellings is one that two parsers can disagree about.
func ParseUint(s string) (u Uint256, ok bool) {
	if s == "" || len(s) > 78 || s[0] == '0' && len(s) > 1 {
		return u, false
	}
	var limbs [4]uint64 // the least significant first
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return u, false
		}
		carry := uint64(s[i] - '0')
		for j := range limbs {
			hi, lo := bits.Mul64(limbs[j], 10)
			lo, c := bits.Add64(lo, carry, 0)
			limbs[j], carry = lo, hi+c
		}
		if carry != 0 {
			return Uint256{}, false
		}
	}
	for j, limb := range limbs {
		binary.BigEndian.PutUint64(u[24-8*j:], limb)
	}
	return u, true
}

// String is u in decimal.
func (u Uint256) String() string {
	var digits [78]byte
	i := len(digits)
	for {
		var rest uint64
		zero := true
		for j := 0; j < 32; j += 8 {
			limb := binary.BigEndian.Uint64(u[j:])
			limb, rest = bits.Div64(rest, limb, 10)
			zero = zero && limb == 0
			binary.BigEndian.PutUint64(u[j:], limb)
		}
		i--
		digits[i] = '0' + byte(rest)
		if zero {
			return string(digits[i:])
		}
	}
}

// Int64 is u as an int64, and the largest int64 and false if u does not fit:
// money must be refused then, and a time is for ever.
func (u Uint256) Int64() (int64, bool) {
	n := binary.BigEndian.Uint64(u[24:])
	for _, b := range u[:24] {
		if b != 0 {
			return math.MaxInt64, false
		}
	}
	if n > math.MaxInt64 {
		return math.MaxInt64, false
	}
	return int64(n), true
}

// Cmp is -1, 0 or 1 as u is less than, equal to or more than v.
func (u Uint256) Cmp(v Uint256) int { return bytes.Compare(u[:], v[:]) }

// Units reads an amount of a token's atomic units: positive, and small enough
// for the 63 bits in which payments are stored.
func Units(s string) (int64, bool) {
	u, ok := ParseUint(s)
	if !ok {
		return 0, false
	}
	n, ok := u.Int64()
	return n, ok && n > 0
}

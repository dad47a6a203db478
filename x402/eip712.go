package x402

import (
	"bytes"
	"crypto/ecdsa"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// Authorization is an EIP-3009 TransferWithAuthorization: from allows anybody
// to move value to to, once, while validAfter < block time < validBefore
// (unix seconds).
type Authorization struct {
	From, To    common.Address
	Value       Uint256
	ValidAfter  Uint256
	ValidBefore Uint256
	Nonce       common.Hash
}

// Domain is an EIP-712 domain separator.
type Domain common.Hash

// The type hashes of EIP-712 and EIP-3009.
var (
	domainType        = crypto.Keccak256Hash([]byte("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"))
	authorizationType = crypto.Keccak256Hash([]byte("TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"))
)

// NewDomain is the domain of a token with the given EIP-712 name and version.
func NewDomain(name, version string, chainID uint64, token common.Address) Domain {
	var b [5 * 32]byte
	id := Uint(chainID)
	copy(b[0:], domainType[:])
	copy(b[32:], crypto.Keccak256([]byte(name)))
	copy(b[64:], crypto.Keccak256([]byte(version)))
	copy(b[96:], id[:])
	copy(b[128+12:], token[:])
	return Domain(crypto.Keccak256Hash(b[:]))
}

// Digest is what the payer signs: keccak256(0x1901 ‖ d ‖ hash of a).
func (a *Authorization) Digest(d Domain) common.Hash {
	var b [7 * 32]byte
	copy(b[0:], authorizationType[:])
	copy(b[32+12:], a.From[:])
	copy(b[64+12:], a.To[:])
	copy(b[96:], a.Value[:])
	copy(b[128:], a.ValidAfter[:])
	copy(b[160:], a.ValidBefore[:])
	copy(b[192:], a.Nonce[:])
	message := crypto.Keccak256Hash(b[:])
	var t [2 + 2*32]byte
	t[0], t[1] = 0x19, 0x01
	copy(t[2:], d[:])
	copy(t[34:], message[:])
	return crypto.Keccak256Hash(t[:])
}

// Sign signs a in domain d. The signature is r ‖ s ‖ v with v 27 or 28 and s
// in the lower half, as tokens want it. key must be a.From's.
func (a *Authorization) Sign(key *ecdsa.PrivateKey, d Domain) ([]byte, error) {
	if crypto.PubkeyToAddress(key.PublicKey) != a.From {
		return nil, fmt.Errorf("the key is not that of %s", Lower(a.From))
	}
	digest := a.Digest(d)
	sig, err := crypto.Sign(digest[:], key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	sig[64] += 27
	return sig, nil
}

// halfOrder is half the order of secp256k1. (r, s) and (r, n-s) sign the same;
// tokens and EIP-2 take the lower s, so that a signature has one form.
var halfOrder = common.FromHex("7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0")

// Recover is who signed digest. sig must be 65 bytes, r ‖ s ‖ v, with v 27, 28,
// 0 or 1 and s in the lower half.
func Recover(digest common.Hash, sig []byte) (who common.Address, ok bool) {
	if len(sig) != 65 || bytes.Compare(sig[32:64], halfOrder) > 0 {
		return who, false
	}
	s := [65]byte(sig)
	if s[64] >= 27 {
		s[64] -= 27
	}
	if s[64] > 1 {
		return who, false
	}
	key, err := crypto.Ecrecover(digest[:], s[:])
	if err != nil {
		return who, false
	}
	h := crypto.Keccak256Hash(key[1:])
	return common.Address(h[12:]), true
}

// Lower is a as lower-case hex, the form in which everything is stored.
func Lower(a common.Address) string {
	const hex = "0123456789abcdef"
	var b [42]byte
	b[0], b[1] = '0', 'x'
	for i, c := range a {
		b[2+2*i], b[3+2*i] = hex[c>>4], hex[c&15]
	}
	return string(b[:])
}

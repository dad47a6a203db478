package chain

import (
	"crypto/ecdsa"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"

	"github.com/402claw/clawr"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// Key is the private key of an account. No verb of fmt, no logger and no
// encoder prints it; only Reveal does.
type Key struct {
	private *ecdsa.PrivateKey
	address common.Address
}

// ParseKey reads 64 hexadecimal digits, with or without 0x. Its errors do not
// repeat what they were given.
func ParseKey(s string) (*Key, error) {
	s = strings.TrimPrefix(strings.TrimPrefix(s, "0x"), "0X")
	private, err := crypto.HexToECDSA(s)
	if err != nil {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Message: "that is not a private key",
			Fix: "give 64 hexadecimal digits; clawr wallet new makes a key"}
	}
	return newKey(private), nil
}

// NewKey makes a random key.
func NewKey() (*Key, error) {
	private, err := crypto.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return newKey(private), nil
}

func newKey(private *ecdsa.PrivateKey) *Key {
	return &Key{private: private, address: crypto.PubkeyToAddress(private.PublicKey)}
}

// Address is the account.
func (k *Key) Address() common.Address { return k.address }

// SignHash signs a 32-byte digest: 65 bytes r, s, v with v 27 or 28 and low s,
// as contracts recover it.
func (k *Key) SignHash(digest []byte) ([]byte, error) {
	sig, err := crypto.Sign(digest, k.private)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	sig[64] += 27
	return sig, nil
}

// Reveal is the secret, for the file that keeps it.
func (k *Key) Reveal() string { return "0x" + hex.EncodeToString(crypto.FromECDSA(k.private)) }

// String names the account, not the secret.
func (k *Key) String() string { return "key of " + strings.ToLower(k.address.Hex()) }

// Format implements fmt.Formatter, so that %+v and %#v say no more than String.
func (k *Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }

// LogValue implements slog.LogValuer.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText implements encoding.TextMarshaler, so that JSON has String.
func (k *Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

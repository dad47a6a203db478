package buyer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// The files of a wallet's directory.
const (
	keyName      = "key"
	limitsName   = "limits.json"
	spendName    = "spend.json"
	spendLock    = "spend.lock"
	openFolder   = "open"     // payments that may still be charged or answered, one file each
	lockFolder   = "locks"    // of calls in work
	recordFolder = "receipts" // payments that are over, one file each
)

// Wallet is a directory with a key, limits, and what was paid. Any number of
// processes may use one at a time.
type Wallet struct {
	// Now is the clock; nil is time.Now.
	Now func() time.Time

	dir     string
	key     *ecdsa.PrivateKey // nil: there is none
	address string
}

// OpenWallet opens the wallet in dir. Its key is the hex in fromEnv, or if
// that is empty what dir holds; the error of neither is wallet_missing. A key
// file that others may read is refused.
func OpenWallet(dir, fromEnv string) (*Wallet, error) {
	w := &Wallet{dir: dir}
	if fromEnv != "" {
		key, err := parseKey([]byte(fromEnv))
		if err != nil {
			return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "CLAWR_WALLET_KEY", Message: "CLAWR_WALLET_KEY is not a private key", Fix: "set it to 64 hexadecimal digits, or unset it to use the wallet's file", Err: err}
		}
		w.use(key)
		return w, nil
	}
	path := w.path(keyName)
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, w.needKey()
	}
	if err != nil {
		return nil, fileError(path, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, &clawr.Error{Code: CodeBadWallet, Message: fmt.Sprintf("others can read the key in %s (mode %04o)", path, info.Mode().Perm()), Fix: "chmod 600 " + quote(path)}
	}
	b, err := readFile(path)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, damaged(path, err)
	}
	w.use(key)
	return w, nil
}

// Keyless is a wallet that cannot sign: it looks at prices and fetches what is
// free, within the limits that dir holds.
func Keyless(dir string) *Wallet { return &Wallet{dir: dir} }

// CreateWallet makes a wallet with a new random key in dir, with the default
// limits. One that is there is never overwritten.
func CreateWallet(ctx context.Context, dir string) (*Wallet, error) {
	w := &Wallet{dir: dir}
	unlock, err := lockFile(ctx, w.path(spendLock))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Lstat(w.path(keyName)); !errors.Is(err, fs.ErrNotExist) {
		return nil, &clawr.Error{Code: CodeWalletExists, Message: "there is a wallet in " + dir + " already", Fix: "clawr wallet show"}
	}
	key, err := crypto.GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	w.use(key)
	b, err := json.MarshalIndent(keyFile{Address: w.address, PrivateKey: w.Reveal()}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	if err := writeFile(w.path(keyName), append(b, '\n')); err != nil {
		return nil, err
	}
	return w, nil
}

// keyFile is the JSON form of a key file; the other form is bare hex.
type keyFile struct {
	Address    string `json:"address"`
	PrivateKey string `json:"privateKey"`
}

func parseKey(b []byte) (*ecdsa.PrivateKey, error) {
	s := string(bytes.TrimSpace(b))
	var want string
	if strings.HasPrefix(s, "{") {
		var f keyFile
		if json.Unmarshal([]byte(s), &f) != nil { // its error may quote the key
			return nil, errors.New("it is not the JSON of a key")
		}
		s, want = f.PrivateKey, f.Address
	}
	s = strings.TrimPrefix(s, "0x")
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != 32 {
		return nil, errors.New("it is not 64 hexadecimal digits")
	}
	key, err := crypto.ToECDSA(raw)
	if err != nil {
		return nil, errors.New("it is not a key of the curve secp256k1")
	}
	if got := x402.Lower(crypto.PubkeyToAddress(key.PublicKey)); want != "" && !strings.EqualFold(got, want) {
		return nil, fmt.Errorf("its key is that of %s, not of %s", got, clean(want, 42))
	}
	return key, nil
}

func (w *Wallet) use(key *ecdsa.PrivateKey) {
	w.key, w.address = key, x402.Lower(crypto.PubkeyToAddress(key.PublicKey))
}

// Address is the payer's address in lower case, or empty without a key.
func (w *Wallet) Address() string { return w.address }

// Dir is the wallet's directory.
func (w *Wallet) Dir() string { return w.dir }

// Reveal is the private key in hex, or empty without one. Whoever has it has
// the money.
func (w *Wallet) Reveal() string {
	if w.key == nil {
		return ""
	}
	return "0x" + hex.EncodeToString(crypto.FromECDSA(w.key))
}

// needKey is the error of a wallet that cannot sign, or nil.
func (w *Wallet) needKey() error {
	if w.key != nil {
		return nil
	}
	return &clawr.Error{Code: CodeNoWallet, Message: "there is no wallet in " + w.dir + ", and CLAWR_WALLET_KEY is not set", Fix: "clawr wallet create"}
}

// String keeps the key out of logs that print the wallet.
func (w *Wallet) String() string { return "wallet " + w.address }

// GoString is String.
func (w *Wallet) GoString() string { return w.String() }

func (w *Wallet) path(names ...string) string {
	return filepath.Join(append([]string{w.dir}, names...)...)
}

func (w *Wallet) now() time.Time {
	if w.Now != nil {
		return w.Now()
	}
	return time.Now()
}

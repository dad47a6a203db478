package devchain

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
)

// keyring holds the keys of a chain's directory, each in keys/NAME, readable
// by its owner alone. Well-known keys are never used: what is signed with them
// anyone could have signed.
type keyring struct {
	dir string
	mu  sync.Mutex
	all map[string]*chain.Key
}

func (k *keyring) key(name string) (*chain.Key, error) {
	if name == "" || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz") != "" {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Message: "the name of a key is made of lower-case letters", Fix: "choose a name such as buyer"}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if key := k.all[name]; key != nil {
		return key, nil
	}
	key, err := k.load(name)
	if err != nil {
		return nil, err
	}
	if k.all == nil {
		k.all = make(map[string]*chain.Key)
	}
	k.all[name] = key
	return key, nil
}

func (k *keyring) load(name string) (*chain.Key, error) {
	if k.dir == "" {
		return chain.NewKey()
	}
	path := filepath.Join(k.dir, "keys", name)
	b, err := os.ReadFile(path)
	switch {
	case err == nil:
		key, err := chain.ParseKey(strings.TrimSpace(string(b)))
		if err != nil {
			return nil, &clawr.Error{Code: clawr.CodeFile, Message: path + " does not hold a private key", Err: err,
				Fix: "restore the file; a chain cannot be used without its keys"}
		}
		return key, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, keyFileError(path, err)
	}
	key, err := chain.NewKey()
	if err != nil {
		return nil, err
	}
	return key, writeKey(path, key)
}

// writeKey leaves either the whole key or no file at path.
func writeKey(path string, key *chain.Key) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return keyFileError(path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return keyFileError(path, err)
	}
	_, err = f.WriteString(key.Reveal() + "\n")
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return keyFileError(path, err)
	}
	return nil
}

func keyFileError(path string, err error) error {
	return &clawr.Error{Code: clawr.CodeFile, Message: "cannot use the key file " + path, Err: err,
		Fix: "see that the directory can be written, or use another --data directory"}
}

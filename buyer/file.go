package buyer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/402claw/clawr"
)

// maxFile bounds what is read from the wallet's directory.
const maxFile = 256 << 10

// readFile reads a file of the wallet; a missing one is nil, nil.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fileError(path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fileError(path, err)
	}
	if len(b) > maxFile {
		return nil, damaged(path, fmt.Errorf("it is larger than %d bytes", maxFile))
	}
	return b, nil
}

// writeFile replaces path by data, so that a crash leaves the old file or the
// new one, and the new one survives the loss of power once it returns.
func writeFile(path string, data []byte) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fileError(dir, err)
	}
	f, err := os.CreateTemp(dir, ".new-*") // mode 0600
	if err != nil {
		return fileError(path, err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fileError(path, err)
	}
	return nil
}

// removeFile removes path for good; a missing one is fine.
func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fileError(path, err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fileError(path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockFile takes the lock of path, which other processes and other goroutines
// respect and the end of the process gives back. The file is removed with the
// lock: whoever waited for the removed one notices, and takes the new one's.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fileError(path, err)
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fileError(path, err)
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && sameFile(f, path) {
			return func() { os.Remove(path); f.Close() }, nil
		}
		f.Close()
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return nil, fileError(path, err)
		}
		select {
		case <-ctx.Done():
			return nil, &clawr.Error{Code: clawr.CodeLocked, Message: "another clawr pay holds the lock " + path, Fix: "wait for it to end, then try again", Err: ctx.Err()}
		case <-time.After(wait):
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

func fileError(path string, err error) error {
	return &clawr.Error{Code: clawr.CodeFile, Message: "the wallet's file " + path + " cannot be used", Fix: "make it readable and writable for you, or choose another --data DIR", Err: err}
}

// damaged is a file that was read but cannot be believed. Nothing is guessed
// from it: money may depend on it.
func damaged(path string, err error) error {
	return &clawr.Error{Code: CodeBadWallet, Message: "the wallet's file " + path + " is damaged", Fix: "look at it, repair it or move it away: " + quote(path), Err: err}
}

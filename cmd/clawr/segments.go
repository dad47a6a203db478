package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/blob"
	"github.com/402claw/clawr/dataset"
)

// segments are the dataset files of a node: those of its data directory, and
// the ones that it shares with others.
type segments struct {
	dir    string
	shared blob.Store // nil: nobody shares
}

// files are n's.
func (n *node) files() segments {
	s := segments{dir: n.env.segments()}
	if n.set != nil {
		s.shared = n.set.blobs
	}
	return s
}

// Has reports whether every node can have the file. One that was made here, as
// a deploy on the data directory does, is shared now: the control plane asks
// before the directory names it.
func (s segments) Has(ctx context.Context, id string) (bool, error) {
	path := dataset.Path(s.dir, id)
	_, err := os.Stat(path)
	here := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if s.shared == nil {
		return here, nil
	}
	there, err := s.shared.Has(ctx, id)
	if err != nil || there || !here {
		return there, sharedError(err)
	}
	return true, sharedError(s.shared.Put(ctx, id, path))
}

// sharedError is what an owner is told when the shared storage fails.
func sharedError(err error) error {
	if err == nil {
		return nil
	}
	return &clawr.Error{Code: clawr.CodeUnreachable, Status: 503, Message: "the shared storage of dataset files does not answer", Fix: "try again; see --blob-url of clawr serve", Err: err}
}

// fetchTime bounds how long a call waits for a file of another node.
const fetchTime = 20 * time.Second

// fetch brings a file that another node shared.
func (s segments) fetch(id, path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTime)
	defer cancel()
	return blob.Fetch(ctx, s.shared, id, path, dataset.Verify)
}

// sweep removes what a killed process left half written.
func (s segments) sweep() error {
	left, err := filepath.Glob(filepath.Join(s.dir, blob.TempPrefix+"*"))
	for _, p := range left {
		err = errors.Join(err, os.Remove(p))
	}
	return errors.Join(err, dataset.Sweep(s.dir))
}

// Put keeps what r gives if it is what id names: written beside, synced, and
// renamed when it is.
func (s segments) Put(ctx context.Context, id string, r io.Reader) (err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, ".upload-")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	// What is opened later was checked when it was made; an upload was not.
	if err := dataset.Verify(f.Name(), id); err != nil {
		return &clawr.Error{Code: clawr.CodeBadRequest, Param: "sha256", Message: "the upload is not what its name says", Fix: "deploy again", Err: err}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	path := filepath.Clean(dataset.Path(s.dir, id))
	if err := os.Rename(f.Name(), path); err != nil || s.shared == nil {
		return err
	}
	return sharedError(s.shared.Put(ctx, id, path))
}

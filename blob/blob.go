// Package blob keeps the files of datasets where every node reaches them: in a
// shared directory, or in S3-compatible storage. A file's name is the hash of
// what it says, so it never changes, and whoever fetches one can tell whether
// it is the right one.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/402claw/clawr"
)

// Store is where the files are. It is safe for concurrent use.
type Store interface {
	// Has reports whether the file is there.
	Has(ctx context.Context, id string) (bool, error)
	// Put keeps what is in the local file, whose id the caller has checked. Once
	// it returns the other nodes can have it.
	Put(ctx context.Context, id, path string) error
	// Get gives the file; fs.ErrNotExist is in the tree of the error if there is none.
	Get(ctx context.Context, id string) (io.ReadCloser, error)
}

// Open gives the storage at a URL: file:///a/shared/directory, or
// s3://bucket/prefix, for which getenv says the rest:
//
//	AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL   of other storage than Amazon's, such as R2 or MinIO
//	AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
//	AWS_REGION                                us-east-1 if empty
//
// It asks nobody: see Check.
func Open(rawURL string, getenv func(string) string) (Store, error) {
	u, err := url.Parse(rawURL)
	wrong := func(message string) error {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "blob-url", Message: message, Fix: "--blob-url file:///srv/clawr or s3://bucket/prefix"}
	}
	switch {
	case err != nil:
		return nil, wrong(fmt.Sprintf("%q is not a URL", rawURL))
	case u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path):
		return directory{filepath.Clean(u.Path)}, nil
	case u.Scheme == "file":
		return nil, wrong(fmt.Sprintf("%q names no absolute directory", rawURL))
	case u.Scheme == "s3" && u.Host != "" && u.User == nil && u.RawQuery == "":
		return openBucket(u.Host, strings.Trim(u.Path, "/"), getenv)
	}
	return nil, wrong(fmt.Sprintf("%q is neither a directory nor a bucket", rawURL))
}

// Check is an error for the one who starts a node whose storage does not
// answer.
func Check(ctx context.Context, s Store) error {
	_, err := s.Has(ctx, strings.Repeat("0", 64))
	if err == nil {
		return nil
	}
	return &clawr.Error{Code: clawr.CodeUnreachable, Param: "blob-url", Message: "the storage of dataset files does not answer", Fix: "check --blob-url, its credentials and its endpoint", Err: err}
}

// Fetch brings the file to path, which it writes beside, syncs, and renames
// once verify finds that it is what id names. What is there is left alone if
// it fails.
func Fetch(ctx context.Context, s Store, id, path string, verify func(path, id string) error) (err error) {
	r, err := s.Get(ctx, id)
	if errors.Is(err, fs.ErrNotExist) {
		return &clawr.Error{Code: clawr.CodeFile, Status: 503, Message: "the file " + id + " of a dataset is neither on this node nor in the shared storage",
			Fix: "clawr deploy it again, or copy it to --blob-url", Err: err}
	}
	if err != nil {
		return fmt.Errorf("fetch %s: %w", id, err)
	}
	defer r.Close()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return write(path, func(f *os.File) error {
		if _, err := io.Copy(f, r); err != nil {
			return fmt.Errorf("fetch %s: %w", id, err)
		}
		if err := verify(f.Name(), id); err != nil {
			return &clawr.Error{Code: clawr.CodeSegmentCorrupt, Message: "the shared storage has something else under " + id,
				Fix: "remove it from --blob-url and clawr deploy it again", Err: err}
		}
		return nil
	})
}

// TempPrefix begins the names of files that are being written.
const TempPrefix = ".fetch-"

// write makes the file at path of what fill writes, all of it or nothing,
// durably.
func write(path string, fill func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), TempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := fill(f); err != nil {
		return err
	}
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// directory is one that all nodes have mounted.
type directory struct{ dir string }

func (d directory) Has(_ context.Context, id string) (bool, error) {
	if _, err := os.Stat(d.dir); err != nil {
		return false, err // not mounted is not empty
	}
	_, err := os.Stat(filepath.Join(d.dir, id))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (d directory) Put(_ context.Context, id, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	return write(filepath.Join(d.dir, id), func(f *os.File) error {
		_, err := io.Copy(f, in)
		return err
	})
}

func (d directory) Get(_ context.Context, id string) (io.ReadCloser, error) {
	return os.Open(filepath.Join(d.dir, id))
}

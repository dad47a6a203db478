package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/402claw/clawr"
)

// A data directory has one owner: the process that holds DIR/clawr.lock. It
// listens on DIR/clawr.sock, and every other command goes through that.
const (
	lockName   = "clawr.lock"
	socketName = "clawr.sock"
	dbName     = "clawr.db"
	segmentDir = "segments"
)

// lockDir makes dir where it is missing and takes its lock. The lock goes with
// the process, however it ends.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, &clawr.Error{Code: clawr.CodeFile, Param: "data", Message: "the data directory cannot be made", Fix: "--data DIR with a directory that you may write to", Err: err}
	}
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, &clawr.Error{Code: clawr.CodeFile, Param: "data", Message: "the data directory cannot be locked", Fix: "--data DIR with a directory that you may write to", Err: err}
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, &clawr.Error{Code: clawr.CodeLocked, Param: "data", Message: "another clawr owns the data directory " + dir,
			Fix: "stop it, or choose another --data DIR", Err: err}
	}
	return func() { f.Close() }, nil
}

// connect gives an HTTP client and a base URL for the control plane that this
// command line means: --server, the process that owns the data directory, or
// this process, which then owns it until done is called.
func (e *env) connect(ctx context.Context) (c *http.Client, base string, done func(), err error) {
	if e.server != "" {
		return e.connectServer()
	}
	for deadline := time.Now().Add(3 * time.Second); ; {
		n, err := e.own(ctx, nil)
		if err == nil {
			return &http.Client{Transport: inProcess{n.control()}}, "http://clawr", n.close, nil
		}
		if clawr.CodeOf(err) != clawr.CodeLocked {
			return nil, "", nil, err
		}
		socket := filepath.Join(e.data, socketName)
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		}
		conn, derr := dial(ctx, "", "")
		if derr == nil {
			conn.Close()
			return &http.Client{Transport: &http.Transport{DialContext: dial}}, "http://clawr", func() {}, nil
		}
		// The owner may be a command that is about to end, or a serve that is
		// about to listen: both are over within moments.
		if time.Now().After(deadline) {
			return nil, "", nil, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func (e *env) connectServer() (*http.Client, string, func(), error) {
	token := e.getenv("CLAWR_TOKEN")
	if e.tokenFile != "" {
		b, err := os.ReadFile(e.tokenFile)
		if err != nil {
			return nil, "", nil, &clawr.Error{Code: clawr.CodeFile, Param: "token-file", Message: "the token cannot be read", Fix: "--token-file FILE, or CLAWR_TOKEN", Err: err}
		}
		token = strings.TrimSpace(string(b))
	}
	return &http.Client{Transport: bearer{token}}, strings.TrimRight(e.server, "/"), func() {}, nil
}

// bearer adds a token to every request.
type bearer struct{ token string }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	if b.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+b.token)
	}
	return http.DefaultTransport.RoundTrip(r)
}

// listenSocket serves h to this machine's own commands on DIR/clawr.sock. The
// caller holds the lock, so a socket that is there already is a dead one.
func listenSocket(dir string) (net.Listener, error) {
	path := filepath.Join(dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove %s: %w", path, err)
	}
	old := syscall.Umask(0o177)
	defer syscall.Umask(old)
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return ln, nil
}

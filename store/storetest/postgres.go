package storetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// DatabaseEnv names the variable with the URL of a PostgreSQL database in which
// tests may create schemas. Without it, they start a server of their own.
const DatabaseEnv = "CLAWR_TEST_DATABASE_URL"

// Postgres makes an empty schema for one test and returns the URL of a database
// that has nothing else (a database of its own for each would take ten times as
// long). Where there is no PostgreSQL the test is skipped, except in continuous
// integration.
func Postgres(t testing.TB) string {
	t.Helper()
	admin, err := server()
	if errors.Is(err, errNoServer) && os.Getenv("CI") == "" {
		t.Skip("no PostgreSQL 15 here; set " + DatabaseEnv + " to test on it")
	}
	if err != nil {
		t.Fatal(err)
	}
	u, drop, err := Schema(admin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(); err != nil {
			t.Error(err)
		}
	})
	return u
}

// Server is the URL of a running server for a program that is no test: that
// of DatabaseEnv, or of one that it starts, until stop.
func Server() (admin string, stop func(), err error) {
	admin, err = server()
	return admin, cluster.stop, err
}

// Schema makes an empty schema and gives the URL of a database that has
// nothing else.
func Schema(admin string) (database string, drop func() error, err error) {
	u, err := url.Parse(admin)
	if err != nil {
		return "", nil, err
	}
	var b [6]byte
	rand.Read(b[:])
	name := "clawr_test_" + hex.EncodeToString(b[:])
	if err := adminExec(admin, `CREATE SCHEMA `+name); err != nil {
		return "", nil, err
	}
	q := u.Query()
	q.Set("search_path", name)
	u.RawQuery = q.Encode()
	return u.String(), func() error { return dropSchema(admin, name) }, nil
}

// dropSchema locks one table after the other, in its own order: what another
// session does at its end, or autovacuum, may hold one and want another. The
// one that the server then ends may be ours.
func dropSchema(admin, name string) (err error) {
	for range 10 {
		err = adminExec(admin, `DROP SCHEMA `+name+` CASCADE`)
		if e, ok := errors.AsType[*pgconn.PgError](err); !ok || e.Code != "40P01" { // deadlock_detected
			return err
		}
	}
	return err
}

// Start starts a server for a program that is no test, and gives the URL of an
// empty database. Its data is worth nothing: it never syncs.
func Start() (url string, stop func(), err error) {
	c := &throwaway{}
	if url, err = c.start(); err != nil {
		c.stop()
		return "", nil, err
	}
	return url, c.stop, nil
}

func adminExec(admin, statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, statement)
	return err
}

// Main runs a package's tests and then stops the server that they started. A
// package that calls Postgres has:
//
//	func TestMain(m *testing.M) { os.Exit(storetest.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	cluster.stop()
	return code
}

var errNoServer = errors.New("storetest: no PostgreSQL server programs found")

// cluster is the server of this test process.
var cluster throwaway

// server is the administrator's URL of a running server.
func server() (string, error) {
	if u := os.Getenv(DatabaseEnv); u != "" {
		return u, nil
	}
	cluster.once.Do(func() { cluster.url, cluster.err = cluster.start() })
	return cluster.url, cluster.err
}

// throwaway is a server whose data is worth nothing: it dies with the process
// that started it, however that dies.
type throwaway struct {
	sync bool // it syncs, which it has no reason to
	once sync.Once
	url  string
	err  error
	dir  string
	end  func()
}

func (c *throwaway) start() (string, error) {
	return c.run("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
}

// run makes the data by one of PostgreSQL's programs, and serves them.
func (c *throwaway) run(program string, args ...string) (string, error) {
	bin, err := programs()
	if err != nil {
		return "", err
	}
	if c.dir, err = os.MkdirTemp("", "clawr-postgres-"); err != nil {
		return "", err
	}
	attr, err := c.account()
	if err != nil {
		return "", err
	}
	data := filepath.Join(c.dir, "data")
	create := exec.Command(filepath.Join(bin, program), append([]string{"-D", data}, args...)...)
	create.SysProcAttr, create.Dir = attr, c.dir
	if out, err := create.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", program, err, out)
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	flags := []string{"-D", data, "-h", "127.0.0.1", "-p", strconv.Itoa(port), "-k", c.dir, "-c", "autovacuum=off", "-c", "max_connections=1000",
		"-c", "shared_buffers=64MB", "-c", "deadlock_timeout=200ms"}
	if !c.sync {
		flags = append(flags, "-c", "fsync=off", "-c", "full_page_writes=off")
	}
	cmd := exec.Command(filepath.Join(bin, "postgres"), flags...)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = &log, &log, c.dir
	cmd.SysProcAttr = dieWithParent(attr)
	exited, err := startHere(cmd)
	if err != nil {
		return "", err
	}
	c.end = func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		<-exited
		_ = os.RemoveAll(c.dir)
	}
	admin := fmt.Sprintf("postgres://postgres@127.0.0.1:%d/postgres?sslmode=disable", port)
	for deadline := time.Now().Add(30 * time.Second); ; {
		err := adminExec(admin, `SELECT 1`)
		if err == nil {
			return admin, nil
		}
		select {
		case <-exited:
			return "", fmt.Errorf("postgres ended:\n%s", log.Bytes())
		case <-time.After(30 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return "", fmt.Errorf("postgres does not answer: %w", err)
		}
	}
}

func (c *throwaway) stop() {
	if c.end != nil {
		c.end()
	}
}

// account gives the cluster's directory to the user postgres if we are root,
// as whom PostgreSQL refuses to run.
func (c *throwaway) account() (*syscall.SysProcAttr, error) {
	if os.Geteuid() != 0 {
		return &syscall.SysProcAttr{}, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, fmt.Errorf("%w: PostgreSQL does not run as root, and there is no user postgres", errNoServer)
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err := errors.Join(err1, err2, os.Chown(c.dir, uid, gid)); err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}

// startHere starts cmd from a thread that lives as long as cmd: the kernel
// sends the parent-death signal when the thread ends, not the process.
func startHere(cmd *exec.Cmd) (exited chan struct{}, err error) {
	exited = make(chan struct{})
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer close(exited)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	return exited, <-started
}

// programs is the directory of the newest server's programs.
func programs() (string, error) {
	if p, err := exec.LookPath("postgres"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil { // its other programs are beside it, and may not be on the path
			return filepath.Dir(p), nil
		}
	}
	best, newest := "", 0
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	for _, dir := range dirs {
		v, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		if err != nil || v < 15 || v <= newest {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, "postgres")); err == nil {
			best, newest = dir, v
		}
	}
	if best == "" {
		return "", errNoServer
	}
	return best, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

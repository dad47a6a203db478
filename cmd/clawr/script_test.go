package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/store/storetest"
)

func TestMain(m *testing.M) {
	testscript.Main(served{m}, map[string]func(){"clawr": main})
}

// served are tests that may need a database server, which is stopped after them.
type served struct{ *testing.M }

func (s served) Run() int { return storetest.Main(s.M) }

// TestScripts runs the product as its users do: every testdata/*.txtar is a
// session in a shell. Beside clawr itself they may use
//
//	up NAME COMMAND…     start a command, wait until it says "listening on ADDR", set $NAME to ADDR
//	                     and $NAME_SAID to the file that collects its stderr
//	down NAME [SIGNAL]   end it (TERM, or KILL)
//	get [-status N] [-H 'Name: value'] URL   GET; the head goes to stdout with the body behind it
//	post URL FILE        POST a file, likewise
//	head URL             HEAD, likewise
//	waitfor FILE REGEXP  until the file matches, at most 15 s
//	until REGEXP COMMAND…   run a command again until its output matches, at most 30 s
//	env-from FILE NAME REGEXP   set $NAME to the first group's match in the file
//	key NAME             make a key: $NAME is the secret, $NAME_ADDR the address
//	write FILE TEXT      write a file that nobody else can read
//	exits N COMMAND…     run a command, which must end with exit code N
//	lossy NAME ADDR N    a proxy before ADDR, at $NAME, that passes on the next N requests with a payment but cuts the
//	                     connection instead of replying
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: false,
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("NO_COLOR", "1")
			s := &session{procs: map[string]*exec.Cmd{}}
			e.Values[sessionKey{}] = s
			e.Defer(s.end)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"up": cmdUp, "down": cmdDown, "get": cmdGet, "post": cmdPost, "head": cmdHead, "waitfor": cmdWaitFor, "env-from": cmdEnvFrom, "key": cmdKey, "write": cmdWrite, "until": cmdUntil, "lossy": cmdLossy, "exits": cmdExits,
		},
	})
}

// session is what a script has running.
type session struct {
	mu    sync.Mutex
	procs map[string]*exec.Cmd
	ends  []func()
}

type sessionKey struct{}

func (s *session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.procs {
		c.Process.Kill()
		c.Wait()
	}
	for _, f := range s.ends {
		f()
	}
}

func of(ts *testscript.TestScript) *session { return ts.Value(sessionKey{}).(*session) }

var saysListening = regexp.MustCompile(`listening on (\S+?);?(\s|$)`)

func cmdUp(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: up NAME COMMAND…")
	}
	name := args[0]
	cmd := exec.Command(args[1], args[2:]...)
	if args[1] == "clawr" {
		if path, err := lookPath(ts.Getenv("PATH"), "clawr"); err == nil {
			cmd.Path = path
		}
	}
	cmd.Dir = ts.Getenv("WORK")
	for _, k := range []string{"HOME", "PATH", "WORK", "NO_COLOR", "TMPDIR", "CLAWR_FACILITATOR_KEY", "CLAWR_WALLET_KEY", "CLAWR_FAILPOINT"} {
		if v := ts.Getenv(k); v != "" {
			cmd.Env = append(cmd.Env, k+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := os.Create(ts.MkAbs(name + ".out"))
	ts.Check(err)
	said, err := os.Create(ts.MkAbs(name + ".err"))
	ts.Check(err)
	cmd.Stdout = out
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	s := of(ts)
	s.mu.Lock()
	s.procs[name] = cmd
	s.mu.Unlock()
	ready, gone := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(gone)
		lines := bufio.NewScanner(io.TeeReader(stderr, said))
		for lines.Scan() {
			if m := saysListening.FindStringSubmatch(lines.Text()); m != nil {
				select {
				case ready <- m[1]:
				default:
				}
			}
		}
	}()
	select {
	case addr := <-ready:
		ts.Setenv(name, addr)
		ts.Setenv(name+"_SAID", said.Name())
		ts.Setenv(name+"_OUT", out.Name())
	case <-gone:
		b, _ := os.ReadFile(said.Name())
		ts.Fatalf("%s ended early:\n%s", name, b)
	case <-time.After(30 * time.Second):
		ts.Fatalf("%s did not get ready", name)
	}
}

func lookPath(path, name string) (string, error) {
	for dir := range strings.SplitSeq(path, string(os.PathListSeparator)) {
		if st, err := os.Stat(dir + "/" + name); err == nil && !st.IsDir() {
			return dir + "/" + name, nil
		}
	}
	return "", os.ErrNotExist
}

func cmdDown(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: down NAME [KILL]")
	}
	s := of(ts)
	s.mu.Lock()
	c := s.procs[args[0]]
	delete(s.procs, args[0])
	s.mu.Unlock()
	if c == nil {
		ts.Fatalf("%s is not up", args[0])
	}
	sig := syscall.SIGTERM
	if len(args) > 1 && args[1] == "KILL" {
		sig = syscall.SIGKILL
	}
	c.Process.Signal(sig)
	err := c.Wait()
	if sig == syscall.SIGTERM && err != nil {
		ts.Fatalf("%s did not end well: %v", args[0], err)
	}
}

func request(ts *testscript.TestScript, method string, args []string, body io.Reader) {
	want := 0
	h := http.Header{}
	for len(args) > 2 {
		switch args[0] {
		case "-status":
			n, err := strconv.Atoi(args[1])
			ts.Check(err)
			want = n
		case "-H":
			k, v, _ := strings.Cut(args[1], ":")
			h.Add(k, strings.TrimSpace(v))
		default:
			ts.Fatalf("unknown flag %s", args[0])
		}
		args = args[2:]
	}
	if len(args) != 1 {
		ts.Fatalf("one URL, please")
	}
	req, err := http.NewRequest(method, args[0], body)
	ts.Check(err)
	req.Header = h
	if host := h.Get("Host"); host != "" {
		req.Host = host
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	ts.Check(err)
	defer res.Body.Close()
	fmt.Fprintf(ts.Stdout(), "%s\n", res.Status)
	res.Header.Write(ts.Stdout())
	fmt.Fprintln(ts.Stdout())
	io.Copy(ts.Stdout(), res.Body)
	fmt.Fprintln(ts.Stdout())
	if want != 0 && res.StatusCode != want {
		ts.Fatalf("%s %s: %s, want %d", method, args[0], res.Status, want)
	}
}

func cmdGet(ts *testscript.TestScript, _ bool, args []string) {
	request(ts, http.MethodGet, args, nil)
}

func cmdHead(ts *testscript.TestScript, _ bool, args []string) {
	request(ts, http.MethodHead, args, nil)
}

func cmdPost(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: post URL FILE")
	}
	f, err := os.Open(ts.MkAbs(args[len(args)-1]))
	ts.Check(err)
	defer f.Close()
	request(ts, http.MethodPost, args[:len(args)-1], f)
}

func cmdWaitFor(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: waitfor FILE REGEXP")
	}
	re, err := regexp.Compile(args[1])
	ts.Check(err)
	for deadline := time.Now().Add(15 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && re.Match(b) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s does not match %s:\n%s", args[0], args[1], b)
		}
	}
}

func cmdEnvFrom(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: env-from FILE NAME REGEXP")
	}
	m := regexp.MustCompile(args[2]).FindStringSubmatch(ts.ReadFile(args[0]))
	if len(m) < 2 {
		ts.Fatalf("%s does not match %s", args[0], args[2])
	}
	ts.Setenv(args[1], m[1])
}

func cmdKey(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: key NAME")
	}
	k, err := chain.NewKey()
	ts.Check(err)
	ts.Setenv(args[0], k.Reveal())
	ts.Setenv(args[0]+"_ADDR", k.Address().Hex())
}

func cmdUntil(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until REGEXP COMMAND…")
	}
	re, err := regexp.Compile(args[0])
	ts.Check(err)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		ts.Check(ts.Exec(args[1], args[2:]...))
		if re.MatchString(strings.TrimSpace(ts.ReadFile("stdout"))) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the output does not become %s", args[0])
		}
	}
}

func cmdWrite(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: write FILE TEXT")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(args[1]+"\n"), 0o600))
}

func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N COMMAND…")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// cmdLossy starts a proxy that loses replies to paid requests.
func cmdLossy(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: lossy NAME ADDR N")
	}
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	l := &lossy{backend: args[1], lose: n}
	srv := &http.Server{Handler: l, ReadHeaderTimeout: 5 * time.Second}
	go srv.Serve(ln)
	s := of(ts)
	s.mu.Lock()
	s.ends = append(s.ends, func() { srv.Close() })
	s.mu.Unlock()
	ts.Setenv(args[0], ln.Addr().String())
}

// lossy passes requests on, and loses the replies to the first paid ones.
type lossy struct {
	backend string
	mu      sync.Mutex
	lose    int
}

func (l *lossy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	out := r.Clone(r.Context())
	out.RequestURI = ""
	out.URL.Scheme, out.URL.Host = "http", l.backend
	res, err := http.DefaultTransport.RoundTrip(out)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer res.Body.Close()
	l.mu.Lock()
	lost := l.lose > 0 && r.Header.Get("Payment-Signature") != ""
	if lost {
		l.lose--
	}
	l.mu.Unlock()
	if lost {
		io.Copy(io.Discard, res.Body)
		panic(http.ErrAbortHandler)
	}
	for k, v := range res.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(res.StatusCode)
	io.Copy(w, res.Body)
}

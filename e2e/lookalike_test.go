package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// lookalike is a running look-alike of Cloudflare's API, and of the edge
// behind it.
type lookalike struct {
	*exec.Cmd
	api, edge string // URLs
	dir       string
	ended     chan struct{}
	errs      *lockedBuffer
}

// What the look-alike's account is known by. The second account is somebody
// else's.
const (
	cfAccount   = "0123456789abcdef0123456789abcdef"
	cfOther     = "fedcba9876543210fedcba9876543210"
	cfToken     = "a-token-that-may-edit-everything"
	cfReader    = "a-token-that-may-read-everything"
	cfRouteless = "a-token-that-may-edit-all-but-routes"
	cfForeign   = "a-token-of-the-other-account"
)

// foreignWorker is one that clawr did not upload.
const foreignWorker = `{"main":"index.js","date":"2026-01-01","flags":[],"bindings":[],"tags":[],"classes":[],"tag":null,"dev":true,"etag":"e","at":1,"created":1,
	"modules":[{"name":"index.js","kind":"ESModule","contents":{"$b64":"ZXhwb3J0IGRlZmF1bHQgeyBmZXRjaCgpIHsgcmV0dXJuIG5ldyBSZXNwb25zZSgiaGkiKTsgfSB9"}}]}`

// startLookalike starts one that knows the namespace "live". rate is how many
// calls it takes in five minutes.
func startLookalike(t testing.TB, rate int) *lookalike {
	t.Helper()
	l := &lookalike{dir: t.TempDir()}
	l.up(t, rate)
	return l
}

func (l *lookalike) up(t testing.TB, rate int) {
	t.Helper()
	port := func(u string) string { return u[strings.LastIndexByte(u, ':')+1:] }
	api, edge := "0", "0"
	if l.api != "" {
		api, edge = port(strings.TrimSuffix(l.api, "/client/v4")), port(l.edge)
	}
	config := fmt.Sprintf(`{"dir":%q,"port":%s,"edgePort":%s,"rate":%d,
		"accounts":{%q:{"subdomain":"acme","namespaces":["live"],"zones":{"z1":{"name":"402claw.dev"}},"scripts":{"somebody-elses":%s}},%q:{"subdomain":null}},
		"tokens":{%q:{"accounts":[%q],"write":["scripts","kv","d1","routes"]},%q:{"accounts":[%q],"write":["scripts","kv","d1"]},%q:{"accounts":[%q],"write":[]},%q:{"accounts":[%q],"write":["scripts","kv","d1","routes"]}}}`,
		l.dir, api, edge, rate, cfAccount, foreignWorker, cfOther, cfToken, cfAccount, cfRouteless, cfAccount, cfReader, cfAccount, cfForeign, cfOther)
	l.Cmd = exec.Command("node", filepath.Join("lookalike", "server.mjs"), config)
	l.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	l.errs = &lockedBuffer{}
	l.Stderr = l.errs
	stdout, err := l.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start(); err != nil {
		t.Fatal(err)
	}
	l.ended = make(chan struct{})
	ready := make(chan struct{ API, Edge string }, 1)
	go func() {
		defer close(l.ended)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var r struct{ API, Edge string }
			if json.Unmarshal(lines.Bytes(), &r) == nil && r.API != "" {
				ready <- r
			}
		}
		l.Wait()
	}()
	t.Cleanup(func() {
		l.down()
		if t.Failed() {
			t.Logf("the look-alike said:\n%s", l.errs.Bytes())
		}
	})
	select {
	case r := <-ready:
		l.api, l.edge = r.API, r.Edge
	case <-l.ended:
		t.Fatalf("the look-alike ended early:\n%s", l.errs.Bytes())
	case <-time.After(time.Minute):
		t.Fatalf("the look-alike did not get ready:\n%s", l.errs.Bytes())
	}
}

// down ends it with the workerd that it started.
func (l *lookalike) down() {
	l.Process.Signal(syscall.SIGTERM)
	select {
	case <-l.ended:
	case <-time.After(20 * time.Second):
		l.Process.Kill()
		<-l.ended
	}
}

// control asks the look-alike itself for something.
func (l *lookalike) control(t testing.TB, what string, in, out any) {
	t.Helper()
	b, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(strings.TrimSuffix(l.api, "/client/v4")+"/__lookalike/"+what, "application/json", bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err = io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s %v %s", what, res.Status, err, b)
	}
	if out == nil {
		return
	}
	if err := json.Unmarshal(b, out); err != nil {
		t.Fatalf("%s: %v in %s", what, err, b)
	}
}

// fault is something that goes wrong on the way to the API: see faults.mjs.
type fault struct {
	Match      string `json:"match"`
	Kind       string `json:"kind"`
	Times      int    `json:"times,omitempty"`
	Skip       int    `json:"skip,omitempty"`
	RetryAfter *int   `json:"retryAfter,omitempty"`
	Ms         int    `json:"ms,omitempty"` // that a call is held
}

func (l *lookalike) fail(t testing.TB, faults ...fault) {
	t.Helper()
	if faults == nil {
		faults = []fault{}
	}
	l.control(t, "faults", faults, nil)
}

// calls are those that were made since the first n.
func (l *lookalike) calls(t testing.TB, n int) (lines []string) {
	t.Helper()
	var log []struct{ Line string }
	l.control(t, "log", nil, &log)
	for _, c := range log[n:] {
		lines = append(lines, c.Line)
	}
	return lines
}

// env is how clawr finds the look-alike.
func (l *lookalike) env() []string {
	return []string{"CLOUDFLARE_ACCOUNT_ID=" + cfAccount, "CLOUDFLARE_API_TOKEN=" + cfToken, "CLOUDFLARE_API_BASE_URL=" + l.api, "CLOUDFLARE_DISPATCH_NAMESPACE=live"}
}

// run runs a command line and gives what it printed, and its exit code.
func run(t testing.TB, env []string, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := clawr(t, env, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// setenv is env with some variables changed.
func setenv(env []string, change ...string) []string {
	return append(append([]string{}, env...), change...)
}

// sample is a small dataset of ours.
func sample(t testing.TB, rows string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "sample.csv")
	if err := os.WriteFile(file, []byte("name,people\n"+rows), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

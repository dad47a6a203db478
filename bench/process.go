package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program under test that serves on addr.
type process struct {
	cmd   *exec.Cmd
	addr  string
	data  string      // its data directory, if it is clawr's
	said  chan string // its whole standard error, once it has ended
	ended chan struct{}
}

var listening = regexp.MustCompile(`listening on (\S+)`)

// start runs cmd until its stop, and returns once it listens: a line "listening
// on HOST:PORT" on stderr, or {"listening":PORT} on stdout.
func start(ctx context.Context, cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, said: make(chan string, 1), ended: make(chan struct{})}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ready := make(chan string, 2)
	go lines(stdout, func(line string) {
		var v struct{ Listening int }
		if json.Unmarshal([]byte(line), &v) == nil && v.Listening > 0 {
			ready <- fmt.Sprintf("127.0.0.1:%d", v.Listening)
		}
	})
	go func() {
		var said strings.Builder
		lines(stderr, func(line string) {
			if said.Len() < 64<<10 {
				said.WriteString(line + "\n")
			}
			if m := listening.FindStringSubmatch(line); m != nil {
				ready <- m[1]
			}
		})
		p.said <- said.String()
		close(p.said) // to stop it twice is to stop it once
		cmd.Wait()
		close(p.ended)
	}()
	select {
	case p.addr = <-ready:
		return p, nil
	case <-p.ended:
		return nil, fmt.Errorf("%s ended early: %s", name(cmd), <-p.said)
	case <-time.After(30 * time.Second):
		cmd.Process.Kill()
		return nil, fmt.Errorf("%s does not listen", name(cmd))
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func name(cmd *exec.Cmd) string { return strings.Join(cmd.Args[:min(len(cmd.Args), 3)], " ") }

func lines(r io.Reader, each func(string)) {
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		each(s.Text())
	}
	io.Copy(io.Discard, r)
}

// stop ends p as an operator does, and gives what it complained of.
func (p *process) stop() string {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(20 * time.Second):
		p.cmd.Process.Kill()
		<-p.ended
	}
	return <-p.said
}

// cpu is the processor time that the process has used, of all its threads, in
// user and kernel mode. The kernel counts it in hundredths of a second.
func (p *process) cpu() time.Duration { return cpuOf(p.cmd.Process.Pid) }

func cpuOf(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * 10 * time.Millisecond
}

// root is the directory of the work tree.
func root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("run it in the work tree of clawr")
		}
		dir = filepath.Dir(dir)
	}
}

// command is a command line of bin/clawr, or of CLAWR_BIN.
func command(dir, home string, env []string, args ...string) *exec.Cmd {
	bin := os.Getenv("CLAWR_BIN")
	if bin == "" {
		bin = filepath.Join(dir, "bin", "clawr")
	}
	cmd := exec.Command(bin, args...)
	cmd.Env = append([]string{"HOME=" + home, "PATH=" + os.Getenv("PATH")}, env...)
	return cmd
}

// script is one of the programs of the official stack in e2e/clients.
func script(dir, file string, env ...string) *exec.Cmd {
	cmd := exec.Command("node", filepath.Join("clients", file))
	cmd.Dir = filepath.Join(dir, "e2e")
	cmd.Env = append(os.Environ(), append([]string{"NODE_ENV=production"}, env...)...)
	return cmd
}

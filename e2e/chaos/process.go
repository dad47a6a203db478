package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
)

// process is a program that is going to be killed.
type process struct {
	cmd   *exec.Cmd
	addr  string // that it listens on
	ended chan struct{}
	mu    sync.Mutex
	said  []string // the last lines of its standard error
}

var listening = regexp.MustCompile(`listening on (\S+)`)

// startup is how long a program may take until it listens, on a machine that
// has other things to do.
const startup = 60 * time.Second

// errEndedEarly says that a program was gone before it listened.
var errEndedEarly = errors.New("ended before it listened")

// start runs cmd and returns when it says where it listens.
func start(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, ended: make(chan struct{})}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ready := make(chan string, 1)
	go func() {
		defer close(p.ended)
		lines := bufio.NewScanner(stderr)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			p.hear(lines.Text())
			if m := listening.FindStringSubmatch(lines.Text()); m != nil {
				select {
				case ready <- m[1]:
				default:
				}
			}
		}
		_ = cmd.Wait()
	}()
	select {
	case p.addr = <-ready:
		return p, nil
	case <-p.ended:
		return p, fmt.Errorf("%s %w:\n%s", filepath.Base(cmd.Path), errEndedEarly, p.log())
	case <-time.After(startup):
		p.kill()
		return p, fmt.Errorf("%s did not listen after %v:\n%s", cmd.Path, startup, p.log())
	}
}

func (p *process) hear(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.said = append(p.said, line); len(p.said) > 200 {
		p.said = p.said[100:]
	}
}

func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.said, "\n")
}

// kill ends p as kill -9 does.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

func (p *process) dead() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// build compiles clawr with its failpoints in it.
func build(dir string) (string, error) {
	path := filepath.Join(dir, "clawr")
	out, err := exec.Command("go", "build", "-tags", "failpoint", "-o", path, "github.com/402claw/clawr/cmd/clawr").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return path, nil
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
			return "", errors.New("run it in the work tree of clawr")
		}
		dir = filepath.Dir(dir)
	}
}

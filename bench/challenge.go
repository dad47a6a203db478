package main

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// frozen is an answer that a constant server gives for ever.
type frozen struct {
	Status int
	Header http.Header
	Body   []byte
}

// challenge compares a 402 of clawr serve with a net/http handler that answers
// the same header and body and does nothing else. Each server has one
// processor, so that the generator on the other one is not what is measured.
func challenge(ctx context.Context, out *report) (err error) {
	w, err := newWorld(ctx, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	seller, err := newSeller()
	if err != nil {
		return err
	}
	ours, err := w.serve(ctx, seller, []string{"GOMAXPROCS=1"})
	if err != nil {
		return err
	}
	f, err := freeze(ctx, "http://"+ours.addr+records)
	if err != nil {
		return err
	}
	theirs, err := w.constant(ctx, f)
	if err != nil {
		return err
	}
	// Many short rounds: what else the machine does seldom changes between the
	// two of one.
	const callers = 16
	c := comparison{}
	for r := range 31 {
		for k := range 2 {
			p, list := ours, &c.ours
			if (k+r)%2 == 1 {
				p, list = theirs, &c.theirs
			}
			m, err := asker(p, callers, 250*time.Millisecond).shoot(ctx, 0)
			if err != nil {
				return err
			}
			if r > 0 { // the first is to warm up
				*list = append(*list, m)
			}
		}
	}
	out.ChallengeRatio = round(c.ratio())
	r := c.ratios()
	table(fmt.Sprintf("402 challenge, %d callers, one processor for each server, %d bytes of header and %d of body", callers, size(f.Header), len(f.Body)),
		"server\trequests/s\tCPU µs\tp50 µs\tp99 µs",
		fmt.Sprintf("clawr serve\t%.0f\t%.1f\t%.0f\t%.0f", of(c.ours, rate), 1000*of(c.ours, cpu), 1000*of(c.ours, p50), 1000*of(c.ours, p99)),
		fmt.Sprintf("constant net/http\t%.0f\t%.1f\t%.0f\t%.0f", of(c.theirs, rate), 1000*of(c.theirs, cpu), 1000*of(c.theirs, p50), 1000*of(c.theirs, p99)),
		fmt.Sprintf("ratio\t%.2f\t%.2f\tworst %.2f\tbest %.2f", c.ratio(), of(c.theirs, cpu)/of(c.ours, cpu), r[0], r[len(r)-1]))
	return w.profile(ctx, "402", func(flags ...string) (*process, error) {
		return w.serve(ctx, seller, []string{"GOMAXPROCS=1"}, flags...)
	},
		func(p *process) *side { return asker(p, callers, time.Second) })
}

// asker is a server that is asked for nothing but challenges, for so long.
func asker(p *process, callers int, each time.Duration) *side {
	return &side{name: "402", procs: []*process{p}, jobs: func(context.Context, int) (job, error) {
		return job{Addr: p.addr, Callers: callers, Requests: [][]byte{get(p.addr, records)}, Repeat: each, Status: http.StatusPaymentRequired}, nil
	}}
}

// freeze takes an answer that must be a 402.
func freeze(ctx context.Context, url string) (f frozen, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return f, err
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return f, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusPaymentRequired {
		return f, fmt.Errorf("%s answered %s", url, res.Status)
	}
	f.Status, f.Header = res.StatusCode, res.Header
	f.Body, err = io.ReadAll(res.Body)
	f.Header.Del("Date") // net/http sends its own
	f.Header.Set("Content-Length", strconv.Itoa(len(f.Body)))
	return f, err
}

func size(h http.Header) (n int) {
	for k, v := range h {
		n += len(k) + len(v[0]) + len(": \r\n")
	}
	return n
}

// constant starts a server of f in a process of its own.
func (w *world) constant(ctx context.Context, f frozen) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, "constant")
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	go gob.NewEncoder(in).Encode(f)
	return w.run(ctx, cmd)
}

// constant is that server: it reads what to answer and serves it until it is killed.
func constant(in io.Reader, log io.Writer) error {
	var f frozen
	if err := gob.NewDecoder(in).Decode(&f); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(log, "listening on", ln.Addr())
	return http.Serve(ln, &f)
}

func (f *frozen) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	maps.Copy(w.Header(), f.Header)
	w.WriteHeader(f.Status)
	w.Write(f.Body)
}

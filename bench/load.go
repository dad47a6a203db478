package main

import (
	"bytes"
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// job is what a load generator does: it sends the requests over Callers
// connections that stay open, each when the answer to the one before is there.
type job struct {
	Addr     string
	Callers  int
	Requests [][]byte
	Lanes    bool          // caller i of n sends the requests i, i+n, i+2n, … in this order
	Repeat   time.Duration // send Requests[0] again and again for so long
	Status   int           // that a good answer has
	Contains string        // that a good answer's body has somewhere
	Lenient  bool          // answers that are not good are no error
}

// result is how a job went.
type result struct {
	Good     int
	Bad      int
	FirstBad string // an answer that was not good, or an error
	Took     time.Duration
	P50, P99 time.Duration
	CPU      time.Duration // of the load generator, in user and kernel mode
}

func (r result) perSecond() float64 { return float64(r.Good) / r.Took.Seconds() }

// fire has a job done in a process of its own, so that the generator's work
// and garbage are nobody else's. Anything but good answers is an error.
func fire(ctx context.Context, j job) (result, error) {
	self, err := os.Executable()
	if err != nil {
		return result{}, err
	}
	cmd := exec.CommandContext(ctx, self, "load")
	var in, out bytes.Buffer
	if err := gob.NewEncoder(&in).Encode(j); err != nil {
		return result{}, err
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, os.Stderr
	if err := cmd.Run(); err != nil {
		return result{}, fmt.Errorf("load generator: %w", err)
	}
	var r result
	if err := gob.NewDecoder(&out).Decode(&r); err != nil {
		return r, fmt.Errorf("load generator: %w", err)
	}
	r.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if r.Bad > 0 && !j.Lenient {
		return r, fmt.Errorf("%d of %d answers of %s are not as they should be, such as: %s", r.Bad, r.Bad+r.Good, j.Addr, r.FirstBad)
	}
	return r, nil
}

// load is the load generator: a job on in, its result on out. One processor is
// enough for it; with more it would spend more, waking them up, and leave less
// to the servers.
func load(in io.Reader, out io.Writer) error {
	runtime.GOMAXPROCS(1)
	var j job
	if err := gob.NewDecoder(in).Decode(&j); err != nil {
		return err
	}
	callers := make([]*caller, j.Callers)
	for i := range callers {
		c, err := net.Dial("tcp", j.Addr)
		if err != nil {
			return err
		}
		defer c.Close()
		callers[i] = &caller{conn: c, buf: make([]byte, 128<<10)}
	}
	var next atomic.Int64
	start := time.Now()
	until := start.Add(j.Repeat)
	var wait sync.WaitGroup
	for i, c := range callers {
		wait.Go(func() {
			for turn := i; ; turn += len(callers) {
				request := j.Requests[0]
				if j.Lanes {
					if turn >= len(j.Requests) {
						return
					}
					request = j.Requests[turn]
				} else if j.Repeat == 0 {
					n := next.Add(1) - 1
					if n >= int64(len(j.Requests)) {
						return
					}
					request = j.Requests[n]
				} else if time.Now().After(until) {
					return
				}
				if !c.call(&j, request) {
					return
				}
			}
		})
	}
	wait.Wait()
	r := result{Took: time.Since(start)}
	var times []time.Duration
	for _, c := range callers {
		r.Good += len(c.times)
		r.Bad += c.bad
		if r.FirstBad == "" {
			r.FirstBad = c.firstBad
		}
		times = append(times, c.times...)
	}
	if len(times) > 0 {
		slices.Sort(times)
		r.P50, r.P99 = times[len(times)/2], times[len(times)*99/100]
	}
	return gob.NewEncoder(out).Encode(r)
}

// caller is one connection.
type caller struct {
	conn     net.Conn
	buf      []byte
	renew    time.Time // its deadline, which is a minute later
	times    []time.Duration
	bad      int
	firstBad string
}

// call sends one request and reads its answer; false ends the connection.
func (c *caller) call(j *job, request []byte) bool {
	start := time.Now()
	if start.After(c.renew) {
		c.conn.SetDeadline(start.Add(2 * time.Minute))
		c.renew = start.Add(time.Minute)
	}
	if _, err := c.conn.Write(request); err != nil {
		return c.failed(err.Error())
	}
	status, body, err := c.read()
	if err != nil {
		return c.failed(err.Error())
	}
	if status != j.Status || !bytes.Contains(body, []byte(j.Contains)) {
		c.failed(fmt.Sprintf("%d %s", status, body[:min(len(body), 400)]))
		return true
	}
	c.times = append(c.times, time.Since(start))
	return true
}

func (c *caller) failed(why string) bool {
	c.bad++
	if c.firstBad == "" {
		c.firstBad = why
	}
	return false
}

var (
	headerEnd     = []byte("\r\n\r\n")
	contentLength = []byte("\r\nContent-Length: ")
)

// read takes one answer off the connection. It understands what the servers
// under test send and nothing else: a status and a Content-Length.
func (c *caller) read() (status int, body []byte, err error) {
	n := 0
	end, total := 0, 0
	for total == 0 || n < total {
		if n == len(c.buf) {
			return 0, nil, errors.New("an answer is too long")
		}
		m, err := c.conn.Read(c.buf[n:])
		if err != nil {
			return 0, nil, err
		}
		n += m
		if total > 0 {
			continue
		}
		i := bytes.Index(c.buf[:n], headerEnd)
		if i < 0 {
			continue
		}
		head := c.buf[:i+2]
		end = i + 4
		at := bytes.Index(head, contentLength)
		if at < 0 || len(head) < 12 {
			return 0, nil, fmt.Errorf("an answer without a length: %q", head)
		}
		digits := head[at+len(contentLength):]
		length, err := strconv.Atoi(string(digits[:bytes.IndexByte(digits, '\r')]))
		if err != nil {
			return 0, nil, err
		}
		if status, err = strconv.Atoi(string(head[9:12])); err != nil {
			return 0, nil, err
		}
		total = end + length
	}
	if n > total {
		return 0, nil, errors.New("more was answered than was asked")
	}
	return status, c.buf[end:total], nil
}

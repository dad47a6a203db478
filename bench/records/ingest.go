package main

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/402claw/clawr/dataset"
)

// ingested is what the process that ingests reports.
type ingested struct {
	ID   string
	Wall float64 // seconds
	CPU  float64
	Peak int64 // bytes of anonymous memory
}

// ingest makes a segment of a file as clawr deploy does, in a process whose
// memory is nobody else's.
func ingest(file, dir string) error {
	stop, done := make(chan struct{}), make(chan int64)
	go func() {
		peak := int64(0)
		for {
			select {
			case <-stop:
				done <- peak
				return
			case <-time.After(10 * time.Millisecond):
				peak = max(peak, anonymous())
			}
		}
	}()
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	start, used := time.Now(), cpu(syscall.RUSAGE_SELF)
	rep, err := dataset.Ingest(context.Background(), f, file, dataset.Options{}, dir)
	if err != nil {
		return err
	}
	out := ingested{ID: rep.ID, Wall: time.Since(start).Seconds(), CPU: (cpu(syscall.RUSAGE_SELF) - used).Seconds()}
	close(stop)
	out.Peak = <-done
	return json.NewEncoder(os.Stdout).Encode(out)
}

// anonymous is RssAnon of this process.
func anonymous() int64 { return memory("self", "RssAnon") }

// memory is a line of /proc/PID/status, in bytes.
func memory(pid, line string) int64 {
	b, _ := os.ReadFile("/proc/" + pid + "/status")
	_, rest, _ := strings.Cut(string(b), line+":")
	var kb int64
	_, _ = fmt.Sscan(rest, &kb)
	return kb << 10
}

func measureIngest(file, dir string, out map[string]any) (string, error) {
	cmd, err := self("-ingest", file, "-dir", dir)
	if err != nil {
		return "", err
	}
	b, err := cmd.Output()
	if err != nil {
		return "", err
	}
	var r ingested
	if err := json.Unmarshal(b, &r); err != nil {
		return "", err
	}
	st, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	out["ingest_s"], out["ingest_cpu_s"], out["ingest_peak_ratio"] = round(r.Wall), round(r.CPU), round(float64(r.Peak)/float64(st.Size()))
	fmt.Fprintf(os.Stderr, "ingest of %d MB: %.1f s, %.1f s of CPU, peak %d MB of anonymous memory\n", st.Size()>>20, r.Wall, r.CPU, r.Peak>>20)
	return r.ID, nil
}

// measureOpen opens and closes a segment that is known, and counts what an open
// one keeps on the heap.
func measureOpen(dir, id string, out map[string]any) error {
	c := &dataset.Cache{Dir: dir, Max: 1}
	s, err := c.Acquire(id)
	if err != nil {
		return err
	}
	c.Release(s)
	const n = 200
	other := &dataset.Cache{Dir: dir}
	start := time.Now()
	for range n {
		c.Close()
		if s, err = c.Acquire(id); err != nil {
			return err
		}
		c.Release(s)
	}
	out["reopen_ms"] = round(time.Since(start).Seconds() / n * 1e3)
	var before, after runtime.MemStats
	c.Close()
	runtime.GC()
	runtime.ReadMemStats(&before)
	if s, err = other.Acquire(id); err != nil {
		return err
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	out["open_kb"] = round((float64(after.HeapAlloc) - float64(before.HeapAlloc)) / 1024)
	other.Release(s)
	return nil
}

// measureReader compares the CSV reader with encoding/csv by what Inspect and
// csv.Reader need for one core's second.
func measureReader(file string, out map[string]any) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	b = b[:min(len(b), 64<<20)]
	b = b[:bytes.LastIndexByte(b, '\n')+1]
	used := cpu(syscall.RUSAGE_SELF)
	rows, err := dataset.CountCSV(bytes.NewReader(b))
	if err != nil {
		return err
	}
	ours := cpu(syscall.RUSAGE_SELF) - used
	used = cpu(syscall.RUSAGE_SELF)
	r := csv.NewReader(bytes.NewReader(b))
	r.ReuseRecord = true
	std := 0
	for ; ; std++ {
		if _, err := r.Read(); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
	}
	theirs := cpu(syscall.RUSAGE_SELF) - used
	if std != rows {
		return fmt.Errorf("%d rows here, %d in encoding/csv", rows, std)
	}
	out["csv_mb_s"], out["csv_ratio"] = round(float64(len(b))/1e6/ours.Seconds()), round(theirs.Seconds()/ours.Seconds())
	return nil
}

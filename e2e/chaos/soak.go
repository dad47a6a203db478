package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr/chain/devchain"
)

// soaked is the last line of a soak.
type soaked struct {
	Seconds  int     `json:"duration_s"`
	Calls    int64   `json:"calls"`
	PerS     float64 `json:"calls_per_s"`
	Answered int64   `json:"answered"`
	Unserved int64   `json:"unserved"` // gave up without an answer
	Refused  int64   `json:"fresh_402"`
	Kills    int     `json:"kills"`
	Restart  float64 `json:"restart_s"` // the longest
	P50      float64 `json:"p50_ms"`    // of calls, those that waited for a restart too
	P99      float64 `json:"p99_ms"`
	RSS      float64 `json:"rss_mb"` // at the end of the first third of the server's lives
	RSSDrift float64 `json:"rss_drift_pct"`
	FDs      float64 `json:"fds"` // without connections, of which there are as many as a burst needed
	FDDrift  float64 `json:"fds_drift_pct"`
	Oldest   float64 `json:"oldest_open_s"` // the longest that any payment was not charged
	Drift    int64   `json:"drift_units"`   // chain minus book
}

// How long a buyer of a soak asks for his answer, how often the server is
// looked at, and how old it is at least by then.
const (
	soakPatience = 2 * time.Minute
	sampleEvery  = 2 * time.Second
	warm         = 20 * time.Second
)

// soak sells rate calls a second for a time, under async, and kills the server
// every minute.
func soak(ctx context.Context, bin, engine, admin string, rate int, length, every time.Duration, out io.Writer) error {
	w, err := newWorld(ctx, bin, engine, admin, worldOptions{
		own:  &devchain.Options{BlockTime: time.Second},
		caps: []string{"--async-credit", "100000", "--async-payer-cap", "100000", "--async-total-cap", "1000000"},
	})
	if err != nil {
		return err
	}
	// As many connections as a proxy in front of the server would keep, at the
	// most: how many of them a life has is what its first burst needed.
	w.client.Transport.(*http.Transport).MaxConnsPerHost = 64
	s := &soaking{w: w}
	err = s.run(ctx, rate, length, every)
	if err == nil {
		err = s.report(ctx, out)
	}
	return errors.Join(err, w.close())
}

// soaking is one soak while it goes on.
type soaking struct {
	w       *world
	up      sync.RWMutex // held while the server is replaced
	res     soaked
	mu      sync.Mutex
	took    []time.Duration
	rss     []float64 // MB: the median of each life
	fds     []float64
	oldest  atomic.Int64 // µs
	samples samples      // of this life
}

// samples are what a process looked like.
type samples struct {
	rss, fds []float64
	callers  int // connections at the most
	node     int
}

func (s *soaking) run(ctx context.Context, rate int, length, every time.Duration) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	var buyers, others sync.WaitGroup
	var failed error
	others.Go(func() {
		if failed = s.sample(ctx); failed != nil {
			cancel()
		}
	})
	kills := time.NewTicker(every)
	defer kills.Stop()
	pace := time.NewTicker(10 * time.Millisecond)
	defer pace.Stop()
	r := rand.New(rand.NewPCG(1, 1))
	for time.Since(began) < length && ctx.Err() == nil {
		select {
		case <-kills.C:
			if length-time.Since(began) < every/2 {
				continue // the last life is a whole one
			}
			if err := s.kill(); err != nil {
				return err
			}
		case <-pace.C:
		case <-ctx.Done():
		}
		for due := int64(time.Since(began).Seconds() * float64(rate)); s.res.Calls < due; s.res.Calls++ {
			p := s.w.purchase("async", r)
			buyers.Go(func() { s.buy(ctx, p) })
		}
	}
	s.res.Seconds = int(time.Since(began).Seconds())
	buyers.Wait()
	err := s.drain(ctx)
	cancel()
	others.Wait() // failed is why drain was cut short, if it is anything
	return errors.Join(failed, err)
}

// buy gets one answer, however often the server dies.
func (s *soaking) buy(ctx context.Context, p *purchase) {
	began := time.Now()
	for time.Since(began) < soakPatience && ctx.Err() == nil {
		if len(p.auths) == 0 {
			if err := p.ask(ctx, s.w.client); err != nil {
				time.Sleep(50 * time.Millisecond)
				continue
			}
		}
		if done, _ := p.send(ctx, s.w.client); done {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.served {
		s.res.Answered++
		s.took = append(s.took, time.Since(began))
	} else {
		s.res.Unserved++
	}
	if len(p.auths) > 1 {
		s.res.Refused++
	}
}

// kill replaces the server, and keeps what it looked like.
func (s *soaking) kill() error {
	s.up.Lock()
	defer s.up.Unlock()
	s.life()
	s.res.Kills++
	s.w.closeDB()
	s.w.srv.kill()
	began := time.Now()
	err := s.w.up("")
	took := time.Since(began)
	s.res.Restart = max(s.res.Restart, round(took.Seconds(), 2))
	fmt.Fprintf(os.Stderr, "kill %d after %d calls: up again in %v\n", s.res.Kills, s.res.Calls, took.Round(time.Millisecond))
	return err
}

func (s *soaking) life() {
	if n := len(s.samples.rss); n > 0 {
		s.rss, s.fds = append(s.rss, median(s.samples.rss)), append(s.fds, median(s.samples.fds))
		fmt.Fprintf(os.Stderr, "memory %.0f MB (last %.0f), descriptors %.0f (last %.0f), at most %d connections of callers and %d to the node\n", median(s.samples.rss), s.samples.rss[n-1], median(s.samples.fds), s.samples.fds[n-1], s.samples.callers, s.samples.node)
	}
	s.samples = samples{}
}

func median(list []float64) float64 {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}

// sample looks at the process and at its oldest open payment now and then.
func (s *soaking) sample(ctx context.Context) error {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.look(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

func (s *soaking) look(ctx context.Context) error {
	s.up.RLock()
	defer s.up.RUnlock()
	var since int64
	// Not the index of created_at, in which all that is settled comes first: while
	// this reads the log cannot begin anew.
	if err := s.w.db.QueryRowContext(ctx, `SELECT COALESCE(MIN(+created_at), 0) FROM payments WHERE money IN('held','signed')`).Scan(&since); err != nil {
		return err
	}
	if since > 0 {
		if age := time.Now().UnixMicro() - since; age > s.oldest.Load() {
			s.oldest.Store(age)
		}
	}
	if time.Since(s.w.since) < warm {
		return nil
	}
	pid := s.w.srv.cmd.Process.Pid
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return err
	}
	has, err := descriptors(pid, s.w.addr, strings.TrimPrefix(s.w.node.URL, "http://"))
	if err != nil {
		return err
	}
	pages, err := strconv.ParseFloat(strings.Fields(string(b))[1], 64)
	s.samples.rss = append(s.samples.rss, pages*float64(os.Getpagesize())/1e6)
	s.samples.fds = append(s.samples.fds, float64(has.files))
	s.samples.callers, s.samples.node = max(s.samples.callers, has.callers), max(s.samples.node, has.node)
	return err
}

// drain waits until everything is charged.
func (s *soaking) drain(ctx context.Context) error {
	for end := time.Now().Add(6 * time.Minute); ; time.Sleep(time.Second) {
		open, err := s.w.open(ctx, "held", "signed")
		if err != nil || open == "" {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("still open: %s", open)
		}
	}
}

// report compares the first third of the server's lives with the last, and the
// book with the chain.
func (s *soaking) report(ctx context.Context, out io.Writer) error {
	s.life()
	r := &s.res
	r.PerS = round(float64(r.Answered)/float64(r.Seconds), 1)
	slices.Sort(s.took)
	if n := len(s.took); n > 0 {
		r.P50, r.P99 = round(float64(s.took[n/2].Microseconds())/1000, 1), round(float64(s.took[n*99/100].Microseconds())/1000, 1)
	}
	r.RSS, r.RSSDrift = drift(s.rss)
	r.FDs, r.FDDrift = drift(s.fds)
	r.Oldest = round(float64(s.oldest.Load())/1e6, 1)
	booked, earned := int64(0), int64(0)
	if err := s.w.db.QueryRowContext(ctx, `SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM payments WHERE money IN('mined','final')`).Scan(&booked); err != nil {
		return err
	}
	have, err := s.w.node.Client.TokenBalance(ctx, s.w.asset, s.w.payTo)
	if err != nil {
		return err
	}
	earned = have.Int64()
	r.Drift = earned - booked
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%s\n", b)
	var bad []error
	if r.Drift != 0 || r.Unserved > 0 || r.Refused > 0 || r.Oldest > 300 {
		bad = append(bad, errors.New("the soak broke something"))
	}
	if max(r.RSSDrift, -r.RSSDrift) > 5 || max(r.FDDrift, -r.FDDrift) > 5 {
		bad = append(bad, errors.New("memory or file descriptors are not flat"))
	}
	return errors.Join(bad...)
}

// drift is what lives were like at first, and by how many percent they are
// different in the end.
func drift(lives []float64) (first, percent float64) {
	third := len(lives) / 3
	if third == 0 {
		return 0, 0
	}
	first = median(lives[:third])
	return round(first, 1), round(100*(median(lives[len(lives)-third:])-first)/first, 1)
}

func round(f float64, digits int) float64 {
	f, _ = strconv.ParseFloat(strconv.FormatFloat(f, 'f', digits, 64), 64)
	return f
}

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// side is one of the two that are compared.
type side struct {
	name  string
	procs []*process // whose processor time is its own
	// jobs makes the work of one round: n requests.
	jobs func(ctx context.Context, n int) (job, error)
	// check, if set, is called after each round with the number of good answers.
	check func(ctx context.Context, good int) error
	// most is how many requests a round has at most; 0: 5000.
	most int
}

// measure is one round of one side.
type measure struct {
	result
	cpu  time.Duration // of the side's processes, a request
	node time.Duration // of the chain's node, a request
	load time.Duration // of the load generator, a request

	callers int
}

// shoot runs one round.
func (s *side) shoot(ctx context.Context, n int) (m measure, err error) {
	j, err := s.jobs(ctx, n)
	if err != nil {
		return m, fmt.Errorf("%s: %w", s.name, err)
	}
	node := nodePID()
	before, nodeBefore := s.cpu(), cpuOf(node)
	if m.result, err = fire(ctx, j); err != nil {
		return m, fmt.Errorf("%s: %w", s.name, err)
	}
	good := time.Duration(max(m.Good, 1))
	m.cpu, m.node, m.load, m.callers = (s.cpu()-before)/good, (cpuOf(node)-nodeBefore)/good, m.CPU/good, j.Callers
	if s.check != nil {
		err = s.check(ctx, m.Good)
	}
	return m, err
}

func (s *side) cpu() (sum time.Duration) {
	for _, p := range s.procs {
		sum += p.cpu()
	}
	return sum
}

// comparison is what the rounds of two sides say.
type comparison struct {
	ours, theirs []measure
}

// compare warms both sides up and runs rounds of about the given time of each,
// by turns, so that whatever else the machine does is done to both.
func compare(ctx context.Context, rounds int, each time.Duration, ours, theirs *side) (c comparison, err error) {
	sides := []*side{ours, theirs}
	var n [2]int
	for i, s := range sides {
		if n[i], err = s.calibrate(ctx, each); err != nil {
			return c, err
		}
	}
	for r := range rounds {
		for k := range sides {
			i := (k + r) % 2
			m, err := sides[i].shoot(ctx, n[i])
			if err != nil {
				return c, err
			}
			if i == 0 {
				c.ours = append(c.ours, m)
			} else {
				c.theirs = append(c.theirs, m)
			}
		}
	}
	return c, nil
}

// calibrate warms a side up and says how many requests take it so long.
func (s *side) calibrate(ctx context.Context, each time.Duration) (int, error) {
	n := 64
	for range 2 {
		m, err := s.shoot(ctx, n)
		if err != nil {
			return 0, err
		}
		most := s.most
		if most == 0 {
			most = 5000
		}
		n = min(max(int(m.perSecond()*each.Seconds()), 32), most)
	}
	return n, nil
}

// ratios are ours by theirs, round by round, in order of size.
func (c *comparison) ratios() []float64 {
	list := make([]float64, len(c.ours))
	for i := range list {
		list[i] = c.ours[i].perSecond() / c.theirs[i].perSecond()
	}
	slices.Sort(list)
	return list
}

// ratio is the median of the rounds' ratios.
func (c *comparison) ratio() float64 { return median(c.ratios()) }

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	n := len(list)
	if n == 0 {
		return 0
	}
	return (list[(n-1)/2] + list[n/2]) / 2
}

// of is the median of something over the rounds of one side.
func of(list []measure, what func(measure) float64) float64 {
	var v []float64
	for _, m := range list {
		v = append(v, what(m))
	}
	return median(v)
}

func rate(m measure) float64 { return m.perSecond() }
func p50(m measure) float64  { return ms(m.P50) }
func p99(m measure) float64  { return ms(m.P99) }
func cpu(m measure) float64  { return ms(m.cpu) }
func node(m measure) float64 { return ms(m.node) }

func generator(m measure) float64 { return ms(m.load) }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// table writes lines of cells, tab separated, to stderr.
func table(title string, rows ...string) {
	fmt.Fprintf(os.Stderr, "\n%s\n", title)
	w := tabwriter.NewWriter(os.Stderr, 2, 0, 2, ' ', tabwriter.AlignRight)
	for _, r := range rows {
		io.WriteString(w, r+"\t\n")
	}
	w.Flush()
}

// versus is a table's header for a comparison, and row one line of it.
func versus(peer string) string {
	return fmt.Sprintf("callers\tclawr/s\t%s/s\tratio\tworst\tbest\tclawr p50 ms\tp99\t%s p50 ms\tp99\tclawr CPU ms\t%s CPU ms\tnode CPU ms\tnode CPU ms (%s)", peer, peer, peer, peer)
}

func (c *comparison) row(callers int) string {
	r := c.ratios()
	return fmt.Sprintf("%d\t%.0f\t%.0f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.2f\t%.3f\t%.3f\t%.3f\t%.3f", callers, of(c.ours, rate), of(c.theirs, rate), c.ratio(), r[0], r[len(r)-1],
		of(c.ours, p50), of(c.ours, p99), of(c.theirs, p50), of(c.theirs, p99), of(c.ours, cpu), of(c.theirs, cpu), of(c.ours, node), of(c.theirs, node))
}

// nodePID finds the chain's node among this process's children, 0 if there is none.
func nodePID() int {
	stats, _ := filepath.Glob("/proc/self/task/*/children")
	for _, file := range stats {
		b, _ := os.ReadFile(file)
		for _, f := range strings.Fields(string(b)) {
			comm, _ := os.ReadFile("/proc/" + f + "/comm")
			if strings.TrimSpace(string(comm)) == "anvil" {
				pid, _ := strconv.Atoi(f)
				return pid
			}
		}
	}
	return 0
}

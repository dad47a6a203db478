package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"text/tabwriter"
)

// summary is what a run has shown so far. It is written down after every
// kill, so that a run that is cut short can go on.
type summary struct {
	suite
	mu         sync.Mutex
	file       *os.File // may be nil
	results    map[int]result
	violations int
}

// openSummary reads what an earlier run wrote down.
func openSummary(of suite, path string) (*summary, error) {
	s := &summary{suite: of, results: map[int]result{}}
	if path == "" {
		return s, nil
	}
	var err error
	if s.file, err = os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(s.file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r result
		if json.Unmarshal(lines.Bytes(), &r) == nil { // the last line may be half of one
			s.keep(r)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	_, err = s.file.WriteString("\n") // what follows must not belong to half a line
	return s, err
}

func (s *summary) close() {
	if s.file != nil {
		s.file.Close()
	}
}

// knows reports whether k is done. The kills of another seed are others.
func (s *summary) knows(k kill) bool {
	r, ok := s.results[k.Index]
	return ok && r.Seed == k.Seed
}

func (s *summary) keep(r result) {
	s.results[r.Index] = r
	s.violations += len(r.Violations)
}

// add keeps a result, in memory and in the file.
func (s *summary) add(r result) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(r)
	if s.file == nil {
		return nil
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = s.file.Write(append(b, '\n'))
	return err
}

// unreached are the boundaries whose failpoints nothing came by, however often
// it was tried: those kills prove nothing.
func (s *summary) unreached() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	tried, reached := map[string]bool{}, map[string]bool{}
	for _, r := range s.results {
		tried[r.Boundary] = true
		reached[r.Boundary] = reached[r.Boundary] || !r.Missed
	}
	for _, b := range s.boundaries {
		if tried[b.name] && !reached[b.name] {
			names = append(names, b.name)
		}
	}
	return names
}

// total is the last line of a run.
type total struct {
	Kills       int     `json:"kills"`
	Violations  int     `json:"violations"`
	Double      int     `json:"double_charges"`
	Fresh402    int     `json:"fresh_402"`
	Unserved    int     `json:"unserved"`
	Reconcile   float64 `json:"max_reconcile_s"`
	Overclaimed *int    `json:"overclaimed,omitempty"` // of channels
}

func (t *total) count(r result) {
	t.Kills += r.Kills
	t.Violations += len(r.Violations)
	t.Double += r.Double
	t.Fresh402 += r.Fresh402
	t.Unserved += r.Unserved
	t.Reconcile = max(t.Reconcile, r.Reconciled)
	if t.Overclaimed != nil {
		*t.Overclaimed += r.Overclaimed
	}
}

// print writes one table, a line for each boundary, and the total as JSON.
func (s *summary) print(out io.Writer, head string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all total
	if s.channels {
		all.Overclaimed = new(int)
	}
	lines, missed, cells := map[string]*total{}, map[string]int{}, map[string]map[string]int{}
	for _, r := range s.results {
		if lines[r.Boundary] == nil {
			lines[r.Boundary], cells[r.Boundary] = &total{}, map[string]int{}
		}
		lines[r.Boundary].count(r)
		cells[r.Boundary][r.Engine+"/"+r.Policy] += r.Kills
		if r.Missed {
			missed[r.Boundary]++
		}
		all.count(r)
	}
	fmt.Fprintln(out, head)
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "boundary\tkills")
	for _, engine := range engines {
		for _, policy := range s.policies {
			fmt.Fprintf(t, "\t%s %s", engine, s.short[policy])
		}
	}
	fmt.Fprint(t, "\tnot reached\tviolations\tcharged twice\tfresh 402\tunserved\treconciled after\n")
	names := []string{}
	for _, b := range s.boundaries {
		names = append(names, b.name)
	}
	for _, name := range append(names, random) {
		l := lines[name]
		if l == nil {
			continue
		}
		fmt.Fprintf(t, "%s\t%d", name, l.Kills)
		for _, engine := range engines {
			for _, policy := range s.policies {
				fmt.Fprintf(t, "\t%d", cells[name][engine+"/"+policy])
			}
		}
		fmt.Fprintf(t, "\t%d\t%d\t%d\t%d\t%d\t%.1f s\n", missed[name], l.Violations, l.Double, l.Fresh402, l.Unserved, l.Reconcile)
	}
	t.Flush()
	all.Reconcile = float64(int(all.Reconcile*10+0.5)) / 10
	b, _ := json.Marshal(all)
	fmt.Fprintf(out, "%s\n", b)
}

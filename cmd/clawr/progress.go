package main

import (
	"fmt"
	"strings"
	"time"
)

// bar is a progress bar on a terminal. Elsewhere it is nothing.
type bar struct {
	e     *env
	label string
	start time.Time
	last  time.Time
	shown bool
}

func (e *env) progress(label string) *bar {
	return &bar{e: e, label: label, start: time.Now()}
}

// update draws the bar, at most ten times a second and not in the first 200 ms.
// A total of 0 is unknown.
func (b *bar) update(done, total, rows int64) {
	now := time.Now()
	if b.e.quiet || !b.e.terminal(b.e.stderr) || now.Sub(b.start) < 200*time.Millisecond || now.Sub(b.last) < 100*time.Millisecond {
		return
	}
	b.last, b.shown = now, true
	if total <= 0 {
		fmt.Fprintf(b.e.stderr, "\r%s  %s · %s rows\x1b[K", b.label, byteSize(done), thousands(rows))
		return
	}
	const width = 30
	full := int(min(done*width/total, width))
	fmt.Fprintf(b.e.stderr, "\r%s  %s%s %3d%% · %s rows\x1b[K", b.label, strings.Repeat("█", full), strings.Repeat("░", width-full), min(done*100/total, 100), thousands(rows))
}

func (b *bar) clear() {
	if b.shown {
		fmt.Fprint(b.e.stderr, "\r\x1b[K")
	}
}

// thousands writes n with commas.
func thousands(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// byteSize writes n bytes in the unit that reads best.
func byteSize(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%d KB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}

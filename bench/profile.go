package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// profileTime is for how long a profile is taken.
const profileTime = 4 * time.Second

// profile starts one more clawr with --cpu-profile, loads it, and prints where
// its processor time went. The numbers above it are measured without.
func (w *world) profile(ctx context.Context, title string, run func(flags ...string) (*process, error), load func(*process) *side) error {
	file := filepath.Join(w.data, "cpu.prof")
	p, err := run("--cpu-profile", file)
	if err != nil {
		return err
	}
	s := load(p)
	n, err := s.calibrate(ctx, profileTime)
	if err != nil {
		return err
	}
	m, err := s.shoot(ctx, n)
	if err != nil {
		return err
	}
	w.running = w.running[:len(w.running)-1]
	if err := w.end(p); err != nil {
		return err
	}
	if keep := os.Getenv("BENCH_PROFILES"); keep != "" {
		name := strings.NewReplacer(" ", "-", "/", "").Replace(title) + ".prof"
		if err := copyFile(filepath.Join(keep, name), file); err != nil {
			return err
		}
	}
	top, err := exec.CommandContext(ctx, "go", "tool", "pprof", "-top", "-nodecount=15", file).Output()
	if err != nil {
		return fmt.Errorf("pprof: %w", err)
	}
	fmt.Fprintf(os.Stderr, "\nprofile of clawr, %s, %d callers, %.0f/s\n%s", title, m.callers, m.perSecond(), top)
	return nil
}

func copyFile(to, from string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

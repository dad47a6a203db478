package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dataset"
)

// Old versions' files go when no rollback and no payment needs them; those
// that are kept can be rolled back to, and the others are refused clearly.
func TestOldVersionsAreCollected(t *testing.T) {
	var stderr bytes.Buffer
	dir := t.TempDir()
	e := &env{stdout: &bytes.Buffer{}, stderr: &stderr, getenv: func(string) string { return "" }, data: dir, quiet: true}
	deploy := func(i int) {
		file := filepath.Join(t.TempDir(), "d.csv")
		if err := os.WriteFile(file, fmt.Appendf(nil, "a\n%d\n", i), 0o600); err != nil {
			t.Fatal(err)
		}
		run1 := *e
		run1.args = []string{"deploy", file, "--tenant", "acme", "--data", dir}
		if code := run(t.Context(), &run1); code != 0 {
			t.Fatalf("deploy %d: exit %d: %s", i, code, stderr.String())
		}
	}
	for i := range history + 3 {
		deploy(i)
	}
	count := func() int {
		files, err := filepath.Glob(dataset.Path(filepath.Join(dir, segmentDir), "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	if count() != history+3 {
		t.Fatalf("%d segments before", count())
	}
	unlock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	n, err := openNode(context.Background(), e, nil, unlock)
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	n.segments = &dataset.Cache{Dir: e.segments()}
	if err := n.collect(t.Context(), time.Now()); err != nil || count() != history+3 {
		t.Fatalf("young files were removed: %d left, %v", count(), err)
	}
	if err := n.collect(t.Context(), time.Now().Add(2*tidyAge)); err != nil || count() != history {
		t.Fatalf("%d segments are left, want %d: %v", count(), history, err)
	}
	ctl := n.controller()
	if _, err := ctl.Rollback(t.Context(), "acme", 1); clawr.CodeOf(err) != clawr.CodeVersionGone {
		t.Errorf("rollback to a collected version: %v", err)
	}
	if got, err := ctl.Rollback(t.Context(), "acme", history+3-2); err != nil || got.Version != history+1 {
		t.Errorf("rollback to a kept version: %+v, %v", got.Version, err)
	}
}

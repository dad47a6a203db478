package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Whatever docs/failures.md says can go wrong is tried by a test that exists,
// and no row of it goes without one.
func TestEveryFailureHasItsTest(t *testing.T) {
	b, err := os.ReadFile("../../docs/failures.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z0-9/]+)\\.((?:Test)?[A-Za-z0-9]+)`")
	rows := 0
	for _, line := range strings.Split(string(b), "\n") {
		found := named.FindAllStringSubmatch(line, -1)
		if cells := strings.Split(line, "|"); len(cells) > 4 && !strings.HasPrefix(line, "|---") && !strings.HasPrefix(line, "| #") && !strings.HasPrefix(line, "| What goes wrong |") {
			if rows++; len(found) == 0 {
				t.Errorf("nothing tries this: %s", line)
			}
		}
		for _, f := range found {
			if !exists(t, filepath.Join("../..", f[1]), f[2]) {
				t.Errorf("there is no test %s.%s", f[1], f[2])
			}
		}
	}
	if rows < 30 {
		t.Errorf("%d rows were read", rows)
	}
}

// exists looks for a test of a package, or for a part of a contract.
func exists(t *testing.T, dir, name string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if strings.HasPrefix(name, "Test") && !strings.HasSuffix(path, "_test.go") {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("\nfunc "+name+"(")) {
			return true
		}
	}
	return false
}

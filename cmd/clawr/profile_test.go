package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A profile is written also when the command fails, and is nobody's business
// who reads the help.
func TestCPUProfile(t *testing.T) {
	for _, command := range []string{"serve", "facilitator serve"} {
		t.Run(command, func(t *testing.T) {
			try := func(args ...string) (code int, out string) {
				var b bytes.Buffer
				e := &env{args: append(strings.Fields(command), args...), stdin: strings.NewReader(""), stdout: &b, stderr: &b,
					getenv: func(name string) string { return map[string]string{"HOME": t.TempDir()}[name] }}
				return run(context.Background(), e), b.String()
			}
			file := filepath.Join(t.TempDir(), "cpu.prof")
			if code, out := try("--cpu-profile", file); code != exitUsage { // nothing says which chain
				t.Errorf("exit code %d: %s", code, out)
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			z, err := gzip.NewReader(f)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(z); err != nil || len(b) == 0 {
				t.Errorf("a profile of %d bytes, %v", len(b), err)
			}
			if code, out := try("--cpu-profile", filepath.Join(t.TempDir(), "none", "cpu.prof")); code != exitFailure || !strings.Contains(out, "--cpu-profile FILE") {
				t.Errorf("without the directory: exit code %d: %s", code, out)
			}
			if code, out := try("--help"); code != 0 || strings.Contains(out, "cpu-profile") {
				t.Errorf("help: %d: %s", code, out)
			}
		})
	}
}

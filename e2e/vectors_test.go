package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestVectorsAreTheSDKs: testdata/vectors/x402 is what the installed official
// packages say today, byte for byte: nobody edited an outcome.
func TestVectorsAreTheSDKs(t *testing.T) {
	t.Parallel()
	made := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "node", "vectors/generate.mjs", made).CombinedOutput(); err != nil {
		t.Fatalf("generate: %v\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(made, "*.json"))
	if err != nil || len(files) != 6 {
		t.Fatalf("it made %d files, %v; want 6", len(files), err)
	}
	for _, f := range files {
		got, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join("../testdata/vectors/x402", filepath.Base(f)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs from what the SDK says; make vectors-x402 writes it again", filepath.Base(f))
		}
	}
}

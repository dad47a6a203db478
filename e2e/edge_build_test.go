package e2e

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tsc checks a project with the strict compiler.
func tsc(t *testing.T, project string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "node", filepath.Join("node_modules", "typescript", "bin", "tsc"), "-p", project).CombinedOutput()
	if err != nil {
		t.Errorf("tsc -p %s: %v\n%s", project, err, out)
	}
}

// The edge's sources have no type error that the strict compiler finds.
func TestEdgeIsStrictTypeScript(t *testing.T) {
	t.Parallel()
	tsc(t, filepath.Join("..", "cloudflare", "edge"))
}

// Every query of the vectors means at the edge what it means natively, is
// compiled to the same SQL, and is answered with the same bytes, by D1 and from
// memory.
func TestEdgeRecordsAnswerAsTheVectorsSay(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join("edge", "records.mjs"))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var got struct{ Cases, Differences int }
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if jerr := json.Unmarshal([]byte(lines[len(lines)-1]), &got); jerr != nil {
		t.Fatalf("%v %v\n%s%s", err, jerr, out, errs.String())
	}
	if got.Cases < 300 || got.Differences != 0 {
		t.Errorf("%d of %d answers differ:\n%s", got.Differences, got.Cases, errs.String())
	}
}

package e2e

import (
	"bytes"
	"encoding/json"
	"os"
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
	var got struct{ Cases, Differences int }
	said := edgeScript(t, "records.mjs", &got)
	if got.Cases < 300 || got.Differences != 0 {
		t.Errorf("%d of %d answers differ:\n%s", got.Differences, got.Cases, said)
	}
}

// The tokens that the edge makes of CDP keys, of both kinds, verify.
func TestEdgeSignsForCDP(t *testing.T) {
	t.Parallel()
	var got struct{ Checked int }
	if said := edgeScript(t, "jwt.mjs", &got); got.Checked != 4 {
		t.Errorf("%d of 4 tokens verify:\n%s", got.Checked, said)
	}
}

// Only the finalized block's own state is proof that a payment was never
// charged: the head may be an older node's.
func TestEdgeReadsTheProofOfDeathInTheFinalizedBlock(t *testing.T) {
	t.Parallel()
	var got struct {
		Checked int
		Wrong   []string
	}
	if said := edgeScript(t, "death.mjs", &got); got.Checked != 5 || len(got.Wrong) > 0 {
		t.Errorf("%d of 5 cases, wrong: %q\n%s", got.Checked, got.Wrong, said)
	}
}

// The benchmark of the edge runs, and the bundle is as small as it has to be;
// its times are taken by make bench-edge, on a machine that does nothing else.
func TestEdgeBenchRuns(t *testing.T) {
	t.Parallel()
	var got struct {
		Bundle    float64 `json:"bundle_gzip_kb"`
		Challenge float64 `json:"challenge_cpu_ratio"`
		Paid      float64 `json:"paid_overhead_ms"`
	}
	said := edgeScript(t, "bench.mjs", &got, "ROUNDS=1", "REQUESTS=500", "PAID=5")
	if got.Bundle <= 0 || got.Bundle > 60 || got.Challenge <= 0 || got.Paid <= 0 {
		t.Errorf("%+v\n%s", got, said)
	}
}

// edgeScript runs a program of edge/, whose last line is JSON, and gives what it
// said besides.
func edgeScript(t *testing.T, name string, into any, env ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "node", filepath.Join("edge", name))
	cmd.Env = append(os.Environ(), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if jerr := json.Unmarshal([]byte(lines[len(lines)-1]), into); jerr != nil {
		t.Fatalf("%s: %v %v\n%s%s", name, err, jerr, out, errs.String())
	}
	return errs.String()
}

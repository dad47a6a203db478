package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
)

// Everything that docs/cloudflare.md tells people to type is typed, in one
// shell, against the look-alike: only where the API, the chain and the
// facilitator are differs.
func TestTheCloudflareGuideWorks(t *testing.T) {
	text, err := os.ReadFile("../docs/cloudflare.md")
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```").FindAllStringSubmatch(string(text), -1) {
		blocks = append(blocks, m[1])
	}
	if len(blocks) < 6 {
		t.Fatalf("only %d blocks of commands were found", len(blocks))
	}
	payTo := regexp.MustCompile(`--pay-to (0x[0-9A-Fa-f]{40})`).FindStringSubmatch(string(text))
	if payTo == nil {
		t.Fatal("the guide names no address that earns")
	}
	l := newLive(t, common.HexToAddress(payTo[1]))
	if l.like == nil {
		t.Skip("the guide is tried with the look-alike alone")
	}
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	// A paid call's event is delivered by the ledger's alarm, a moment later: the
	// reports, which come last, are asked for until it is there.
	reports := blocks[len(blocks)-1]
	if !strings.Contains(reports, "/__platform/events") {
		t.Fatalf("the last block does not ask for events: %s", reports)
	}
	again := "for try in {1..300}; do\nREPORTS=$(\n" + reports + ")\nif [[ $REPORTS == *dispatch_success* ]]; then break; fi\nsleep 0.2\ndone\nprintf '%s\\n' \"$REPORTS\"\n"
	cmd := exec.Command("bash", "-c", "set -euo pipefail\n"+strings.Join(blocks, "\n")+"\n"+again)
	cmd.Dir = t.TempDir()
	cmd.Env = append([]string{"HOME=" + t.TempDir(), "PATH=" + filepath.Dir(path) + ":" + os.Getenv("PATH"), "CLAWR_WALLET_KEY=" + l.buyer}, l.env...)
	cmd.Env = append(cmd.Env, "CLOUDFLARE_API_TOKEN=", "CLOUDFLARE_ACCOUNT_ID=", "CLOUDFLARE_DISPATCH_NAMESPACE=")
	cmd.Stdin = strings.NewReader(cfToken + "\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"402 Payment Required", "paid $0.001", "cities version 2 live", "cities removed", "payment_challenged", "dispatch_success", "rows.ndjson"} {
		if want == "rows.ndjson" {
			if _, err := os.Stat(filepath.Join(cmd.Dir, "would-be", "tenant-cities-v1", want)); err != nil {
				t.Error(err)
			}
			continue
		}
		if !strings.Contains(string(out), want) {
			t.Errorf("it never said %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", out)
	}
}

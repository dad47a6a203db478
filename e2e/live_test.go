package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/x402"
)

// live is an account that a run publishes to: the look-alike's, or whatever
// CLOUDFLARE_API_BASE_URL leads to.
type live struct {
	t      *testing.T
	like   *lookalike // nil elsewhere
	chain  *testChain // nil elsewhere: the facilitator's is the public one
	env    []string   // of clawr
	data   string
	ns     string
	script string
	base   string // URL of the dispatcher
	buyer  string // key
	payTo  common.Address
}

// newLive starts everything that the run needs, or takes it from the
// environment:
//
//	CLOUDFLARE_API_BASE_URL CLOUDFLARE_ACCOUNT_ID CLOUDFLARE_API_TOKEN CLOUDFLARE_DISPATCH_NAMESPACE
//	CLAWR_FACILITATOR_URL   who verifies and settles on CLAWR_NETWORK (eip155:84532)
//	CLAWR_RPC_URL           a node of that network
//	CLAWR_PAY_TO            who earns
//	CLAWR_WALLET_KEY        who pays, with test USDC
//
// payTo earns; if it is zero, somebody new does.
func newLive(t *testing.T, payTo common.Address) *live {
	t.Helper()
	if os.Getenv("CLOUDFLARE_API_BASE_URL") != "" {
		return elsewhere(t)
	}
	c := devChain(t, "--like-base-sepolia")
	if payTo == (common.Address{}) {
		seller, err := chain.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		payTo = seller.Address()
	}
	like := startLookalike(t, 1200)
	l := &live{t: t, like: like, chain: c, data: t.TempDir(), ns: "live", script: "clawr-dispatcher", base: like.edge, buyer: c.account(t, 1_000_000).Reveal(), payTo: payTo}
	l.env = append(like.env(), "CLAWR_NETWORK="+c.network, "CLAWR_RPC_URL="+c.rpc, "CLAWR_FACILITATOR_URL="+facilitate(t, c, payTo), "CLAWR_PUBLIC_URL="+like.edge, "CLAWR_DATA="+l.data)
	return l
}

func elsewhere(t *testing.T) *live {
	t.Helper()
	l := &live{t: t, data: t.TempDir(), ns: os.Getenv("CLOUDFLARE_DISPATCH_NAMESPACE"), script: "clawr-dispatcher", buyer: os.Getenv("CLAWR_WALLET_KEY"), payTo: common.HexToAddress(os.Getenv("CLAWR_PAY_TO"))}
	l.env = []string{"CLAWR_DATA=" + l.data}
	for _, name := range []string{"CLOUDFLARE_API_BASE_URL", "CLOUDFLARE_ACCOUNT_ID", "CLOUDFLARE_API_TOKEN", "CLOUDFLARE_DISPATCH_NAMESPACE", "CLAWR_FACILITATOR_URL", "CLAWR_RPC_URL", "CLAWR_PAY_TO", "CLAWR_WALLET_KEY"} {
		v := os.Getenv(name)
		if v == "" {
			t.Fatalf("CLOUDFLARE_API_BASE_URL is set, so the run goes there; %s is missing", name)
		}
		if name != "CLAWR_PAY_TO" && name != "CLAWR_WALLET_KEY" {
			l.env = append(l.env, name+"="+v)
		}
	}
	network := os.Getenv("CLAWR_NETWORK")
	if network == "" {
		network = "eip155:84532"
	}
	l.env = append(l.env, "CLAWR_NETWORK="+network)
	return l
}

// do runs a command line of the live check and gives what it printed.
func (l *live) do(args ...string) string {
	l.t.Helper()
	out, errs, code := run(l.t, l.env, args...)
	if code != 0 {
		l.t.Fatalf("clawr %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return strings.TrimSpace(out)
}

// get asks the edge, by a host if that is not empty, until the status is the
// wanted one: what was published or removed is seen within a minute.
func (l *live) get(host, path string, status int) (http.Header, string) {
	l.t.Helper()
	client := &http.Client{Timeout: 30 * time.Second}
	u := l.base + path
	if host != "" {
		u = "http://" + host + path
		through, err := url.Parse(l.like.edge)
		if err != nil {
			l.t.Fatal(err)
		}
		client.Transport = &http.Transport{Proxy: http.ProxyURL(through)}
	}
	last := ""
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		res, err := client.Get(u)
		if err != nil {
			last = err.Error()
			continue
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode == status && err == nil {
			return res.Header, string(b)
		}
		last = res.Status + " " + string(b)
	}
	l.t.Fatalf("GET %s: %.500s, want %d", u, last, status)
	return nil, ""
}

// challenged holds the 402 of an unpaid call against what it must say.
func (l *live) challenged(host, path, amount string) {
	l.t.Helper()
	h, body := l.get(host, path, http.StatusPaymentRequired)
	var b struct {
		X402Version int
		Error       string
	}
	required, err := x402.ParseRequired(h.Get(x402.HeaderRequired))
	if json.Unmarshal([]byte(body), &b) != nil || b.X402Version != 2 || b.Error != "missing_payment_signature" || err != nil || h.Get("Cache-Control") != "no-store" {
		l.t.Fatalf("the challenge of %s%s is %s (header: %v)", host, path, body, err)
	}
	if a := required.Accepts[0]; a.Amount != amount || !strings.EqualFold(a.PayTo, l.payTo.Hex()) {
		l.t.Errorf("it asks for %s to %s, want %s to %s", a.Amount, a.PayTo, amount, l.payTo)
	}
}

// settled checks that a receipt's transaction moved the money.
func (l *live) settled(tx string, amount int64) {
	l.t.Helper()
	if l.chain == nil {
		if len(tx) != 66 {
			l.t.Errorf("transaction %q", tx)
		}
		return
	}
	key, err := chain.ParseKey(l.buyer)
	if err != nil {
		l.t.Fatal(err)
	}
	transferred(l.t, l.chain, tx, key.Address(), l.payTo, amount)
}

// official pays by the official client, by host if there is one, and has the
// payment sent again.
func (l *live) official(host, path string, amount int64) {
	l.t.Helper()
	u, env := l.base+path, []string{"PRIVATE_KEY=" + l.buyer, "REPLAY=1"}
	if host != "" {
		resolve, err := filepath.Abs(filepath.Join("lookalike", "resolve.mjs"))
		if err != nil {
			l.t.Fatal(err)
		}
		u = "http://" + host + l.like.edge[strings.LastIndexByte(l.like.edge, ':'):] + path
		env = append(env, "NODE_OPTIONS=--import file://"+resolve)
	}
	got := report(l.t, script(l.t, "fetch-v2.mjs", append(env, "URL="+u)...))
	if got.Status != http.StatusOK || len(got.Body.Data) != 1 || got.PaymentResponse == nil || !got.PaymentResponse.Success {
		l.t.Fatalf("the official client got %+v", got)
	}
	l.settled(got.PaymentResponse.Transaction, amount)
	if len(got.Replays) != 1 || got.Replays[0].Status != http.StatusOK || got.Replays[0].PaymentResponse.Transaction != got.PaymentResponse.Transaction {
		l.t.Errorf("sent again: %+v", got.Replays)
	}
}

// pay pays by clawr pay.
func (l *live) pay(host, path string, amount int64) string {
	l.t.Helper()
	u, env := l.base+path, append(l.env, "CLAWR_WALLET_KEY="+l.buyer)
	if host != "" {
		u, env = "http://"+host+path, append(env, "HTTP_PROXY="+l.like.edge)
	}
	out, errs, code := run(l.t, env, "pay", u, "--json", "--data", filepath.Join(l.data, "buyer"))
	var got struct {
		Status      int
		Transaction string
		Body        json.RawMessage
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 || got.Status != http.StatusOK {
		l.t.Fatalf("clawr pay %s: exit %d\n%s%s", u, code, out, errs)
	}
	l.settled(got.Transaction, amount)
	return out
}

// The run that must always work: publish, deploy the dispatcher, be
// challenged, pay, get a receipt whose transaction is on the chain; then
// update, roll back and remove. Everything is a real process, and where
// CLOUDFLARE_API_BASE_URL is not set Cloudflare's is the look-alike.
func TestLiveCheck(t *testing.T) {
	l := newLive(t, common.Address{})
	const tenant, host = "livecheck", "livecheck.api.402claw.dev"
	file := sample(t, "Oslo,709037\nBergen,291940\nTromsø,77992\n")
	const path = "/t/" + tenant + "/v1/records?limit=1"
	deploy := func(price string) string {
		t.Helper()
		return l.do("deploy", file, "--tenant", tenant, "--owner", "codex", "--plan", "pro", "--price", price, "--x402", "true",
			"--host", host, "--cpu-ms", "180", "--subrequests", "40", "--publish", "--dispatch-namespace", l.ns)
	}
	l.do("owner", "set", "codex", "--pay-to", l.payTo.Hex())
	if got := deploy("0.001"); got != "https://"+host+"/v1/records" {
		t.Errorf("deploy printed %q", got)
	}
	if got := l.do("cloudflare-deploy-dispatcher", "--script-name", l.script, "--dispatch-namespace", l.ns); got != "" {
		t.Errorf("without --execute it printed %q", got)
	}
	got := l.do("cloudflare-deploy-dispatcher", "--script-name", l.script, "--dispatch-namespace", l.ns, "--execute")
	if l.base == "" {
		l.base = got
	}
	if got != l.base {
		t.Errorf("the dispatcher is at %q, want %q", got, l.base)
	}
	hosts := []string{""}
	if l.like != nil {
		hosts = append(hosts, host)
	}
	at := func(h string) string {
		if h == "" {
			return path
		}
		return "/v1/records?limit=1"
	}
	for _, h := range hosts {
		l.challenged(h, at(h), "1000")
		l.official(h, at(h), 1000)
		l.pay(h, at(h), 1000)
	}
	l.status(tenant, 1, "active")

	// Another version, and the one before again.
	deploy("0.002")
	l.until(path, "2000")
	l.challenged("", path, "2000")
	l.pay("", path, 2000)
	l.status(tenant, 2, "active")
	l.do("rollback", tenant, "--publish", "--dispatch-namespace", l.ns)
	l.until(path, "1000")
	l.pay("", path, 1000)
	l.status(tenant, 1, "active")

	// Another dispatcher, and the one before again.
	l.do("cloudflare-deploy-dispatcher", "--script-name", l.script, "--dispatch-namespace", l.ns, "--deadline", "20s", "--execute")
	l.do("cloudflare-rollback-dispatcher", "--script-name", l.script, "--execute")
	l.challenged("", path, "1000")
	l.pay("", path, 1000)

	// Paused, sold again, and gone.
	l.do("pause", tenant, "--publish", "--dispatch-namespace", l.ns)
	l.get("", path, http.StatusServiceUnavailable)
	l.do("resume", tenant, "--publish", "--dispatch-namespace", l.ns)
	l.challenged("", path, "1000")
	l.do("rm", tenant, "--publish", "--dispatch-namespace", l.ns)
	l.get("", path, http.StatusNotFound)
	l.do("rm", tenant, "--publish", "--dispatch-namespace", l.ns, "--purge")
	l.get("", path, http.StatusNotFound)
	if l.like != nil {
		var account struct {
			Namespaces map[string]struct{ Scripts map[string]any }
			D1         map[string]any
		}
		l.like.control(t, "account", nil, &account)
		if n := len(account.Namespaces["live"].Scripts); n != 0 {
			t.Errorf("%d Workers are left", n)
		}
		want := l.chain.balance(t, l.payTo)
		if want != 4*1000+2000+2*1000 {
			t.Errorf("the seller has %d", want)
		}
	}
}

// until waits until the price is seen.
func (l *live) until(path, amount string) {
	l.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(500 * time.Millisecond) {
		h, _ := l.get("", path, http.StatusPaymentRequired)
		if r, err := x402.ParseRequired(h.Get(x402.HeaderRequired)); err == nil && r.Accepts[0].Amount == amount {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s does not cost %s after two minutes", path, amount)
		}
	}
}

// status checks what cloudflare-status says of a tenant.
func (l *live) status(tenant string, version int64, status string) {
	l.t.Helper()
	var s struct {
		Exists  bool
		Script  string
		Tenants []struct {
			Slug, Status string
			Version      int64
			Uploaded     bool
		}
	}
	out := l.do("cloudflare-status", "--dispatch-namespace", l.ns, "--json")
	if err := json.Unmarshal([]byte(out), &s); err != nil || !s.Exists || s.Script != l.script {
		l.t.Fatalf("status %s: %v", out, err)
	}
	for _, x := range s.Tenants {
		if x.Slug == tenant {
			if x.Version != version || x.Status != status || !x.Uploaded {
				l.t.Errorf("status %+v, want version %d, %s", x, version, status)
			}
			return
		}
	}
	l.t.Errorf("status has no %s: %s", tenant, fmt.Sprint(s.Tenants))
}

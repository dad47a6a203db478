package e2e

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// press is a data directory that publishes to a look-alike, and a free API
// there, whose only row says which edition it is.
type press struct {
	t    *testing.T
	like *lookalike
	env  []string
	dir  string
}

func newPress(t *testing.T) *press {
	p := &press{t: t, like: startLookalike(t, 100_000), dir: t.TempDir()}
	p.env = append(p.like.env(), "CLAWR_DATA="+p.dir, "CLAWR_PUBLIC_URL="+p.like.edge)
	p.must("cloudflare-deploy-dispatcher", "--script-name", "clawr-dispatcher", "--execute")
	return p
}

func (p *press) must(args ...string) string {
	p.t.Helper()
	out, errs, code := run(p.t, p.env, args...)
	if code != 0 {
		p.t.Fatalf("clawr %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// edition writes the file of edition n: small, or as large as a database's.
func (p *press) edition(n, rows int) string {
	p.t.Helper()
	var b strings.Builder
	b.WriteString("edition,n,name\n")
	for i := range rows {
		fmt.Fprintf(&b, "edition-%d,%d,the name of row %d in this edition\n", n, i, i)
	}
	file := filepath.Join(p.t.TempDir(), "news.csv")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return file
}

// sells checks that the edge answers with edition n.
func (p *press) sells(tenant string, n int) {
	p.t.Helper()
	want, last := fmt.Sprintf(`"edition":"edition-%d"`, n), ""
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		res, err := http.Get(p.like.edge + "/t/" + tenant + "/v1/records?limit=1")
		if err != nil {
			last = err.Error()
			continue
		}
		b, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if last = res.Status + " " + string(b); res.StatusCode == 200 && strings.Contains(last, want) {
			return
		}
	}
	p.t.Errorf("the edge answers %.300s, want edition %d", last, n)
}

// refused runs a command that must fail with a code, say what to do about it,
// and not the token.
func (p *press) refused(env []string, code string, exit int, args ...string) {
	p.t.Helper()
	out, errs, got := run(p.t, env, append(args, "--json")...)
	var e struct{ Error, Message, Fix string }
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		p.t.Errorf("clawr %s printed %q %q", strings.Join(args, " "), out, errs)
		return
	}
	if e.Error != code || got != exit || e.Fix == "" || e.Message == "" {
		p.t.Errorf("clawr %s: exit %d, %+v; want exit %d, %s", strings.Join(args, " "), got, e, exit, code)
	}
	for _, token := range []string{cfToken, cfReader, cfForeign} {
		if strings.Contains(out+errs, token) {
			p.t.Errorf("the token is in %s%s", out, errs)
		}
	}
}

// What can be wrong with an account, its token, its names and what is
// published is a clear error, and what was sold before goes on being sold.
func TestWhatCannotBePublishedLeavesWhatIsSold(t *testing.T) {
	p := newPress(t)
	p.must("deploy", p.edition(1, 1), "--tenant", "news", "--host", "news.example.com", "--publish")
	p.sells("news", 1)
	next := p.edition(2, 1)
	deploy := []string{"deploy", next, "--tenant", "news", "--host", "news.example.com", "--publish"}
	dispatcher := []string{"cloudflare-deploy-dispatcher", "--script-name", "clawr-dispatcher", "--execute", "--deadline", "20s"}
	noise := make([]byte, 700_000)
	rand.Read(noise)
	long := filepath.Join(t.TempDir(), "long.csv")
	body := "a,b\n" + strings.Repeat("x,y\n", 300_000) + "z," + base64.StdEncoding.EncodeToString(noise[:120_000]) + "\n"
	if err := os.WriteFile(long, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	wide := filepath.Join(t.TempDir(), "wide.csv")
	var names []string
	for i := range 101 {
		names = append(names, fmt.Sprintf("c%d", i))
	}
	if err := os.WriteFile(wide, []byte(strings.Join(names, ",")+"\n"+strings.Repeat("1,", 100)+"1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	for _, c := range []struct {
		name   string
		env    []string
		faults []fault
		code   string
		exit   int
		args   []string
	}{
		{"a wrong token", []string{"CLOUDFLARE_API_TOKEN=nobody's"}, nil, "cloudflare_auth", 4, deploy},
		{"no token", []string{"CLOUDFLARE_API_TOKEN="}, nil, "usage", 2, deploy},
		{"a token that may only read", []string{"CLOUDFLARE_API_TOKEN=" + cfReader}, nil, "cloudflare_auth", 4, deploy},
		{"a read-only token, the dispatcher", []string{"CLOUDFLARE_API_TOKEN=" + cfReader}, nil, "cloudflare_auth", 4, dispatcher},
		{"a token of another account", []string{"CLOUDFLARE_API_TOKEN=" + cfForeign}, nil, "cloudflare_auth", 4, deploy},
		{"no such account", []string{"CLOUDFLARE_ACCOUNT_ID=nobody"}, nil, "cloudflare_account_not_found", 5, deploy},
		{"no such namespace", []string{"CLOUDFLARE_DISPATCH_NAMESPACE=nowhere"}, nil, "cloudflare_namespace_not_found", 5, deploy},
		{"a namespace that is no name", []string{"CLOUDFLARE_DISPATCH_NAMESPACE=No/Where"}, nil, "usage", 2, deploy},
		{"no API there", []string{"CLOUDFLARE_API_BASE_URL=http://127.0.0.1:1"}, nil, "unreachable", 3, deploy},
		{"somebody else's Worker", nil, nil, "cloudflare_name_taken", 6, []string{"cloudflare-deploy-dispatcher", "--script-name", "somebody-elses", "--execute"}},
		{"another namespace's dispatcher", []string{"CLOUDFLARE_DISPATCH_NAMESPACE=second"}, nil, "cloudflare_name_taken", 6, dispatcher},
		{"another clawr's tenant", []string{"CLAWR_DATA=" + other}, nil, "cloudflare_name_taken", 6, []string{"deploy", next, "--tenant", "news", "--publish"}},
		{"another tenant's host", []string{"CLAWR_DATA=" + other}, nil, "host_taken", 6, []string{"deploy", next, "--tenant", "olds", "--host", "news.example.com", "--publish"}},
		{"another network than the dispatcher's", nil, nil, "network_unsupported", 1, append(slices.Clone(deploy), "--network", "eip155:84532")},
		{"101 columns", nil, nil, "too_many_columns", 1, []string{"deploy", wide, "--tenant", "news", "--publish"}},
		{"a row that D1 cannot take", nil, nil, "cloudflare_too_large", 1, []string{"deploy", long, "--tenant", "news", "--publish"}},
		{"too many calls", nil, []fault{{Match: "PUT .*/scripts/", Kind: "429", Times: 9}}, "cloudflare_rate_limited", 1, deploy},
		{"500 for ever", nil, []fault{{Match: "PUT .*/scripts/", Kind: "500", Times: 9}}, "cloudflare_api", 1, deploy},
		{"a page for ever", nil, []fault{{Match: "PUT .*/bulk", Kind: "html", Times: 9}}, "cloudflare_api", 1, deploy},
		{"an edge that pays natively", nil, nil, "ledger_home_conflict", 6, []string{"deploy", next, "--tenant", "news", "--price", "0.01", "--x402", "--pay-to", "0x00000000000000000000000000000000000000a1", "--publish"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.t = t
			if strings.Contains(c.name, "natively") {
				p.must("deploy", next, "--tenant", "native", "--price", "0.01", "--x402", "--pay-to", "0x00000000000000000000000000000000000000a1")
			}
			p.like.fail(t, c.faults...)
			p.refused(setenv(p.env, c.env...), c.code, c.exit, c.args...)
			p.like.fail(t)
			p.sells("news", 1)
		})
	}
	p.t = t
	// And the other way round: what the edge sells for, a node does not.
	p.must("deploy", next, "--tenant", "paid", "--price", "0.01", "--x402", "--pay-to", "0x00000000000000000000000000000000000000b2", "--publish")
	p.refused(p.env, "ledger_home_conflict", 6, "deploy", next, "--tenant", "paid2", "--price", "0.01", "--x402", "--pay-to", "0x00000000000000000000000000000000000000B2")
	// What failed above succeeds when nothing is in its way for long.
	second := 1
	p.like.fail(t, fault{Match: "PUT .*/scripts/", Kind: "429", RetryAfter: &second, Times: 1}, fault{Match: "PUT .*/scripts/", Kind: "html", Times: 1}, fault{Match: "PUT .*/bulk", Kind: "500", Times: 2})
	p.must(deploy...)
	p.sells("news", 2)
}

// What no Worker can hold is refused before anything is sent.
func TestWhatAWorkerCannotHoldIsNotSent(t *testing.T) {
	p := newPress(t)
	before := len(p.like.calls(t, 0))
	huge := strings.Repeat("x", 5<<10+1)
	p.refused(setenv(p.env, "CLAWR_FACILITATOR_API_KEY="+huge), "cloudflare_too_large", 1, "cloudflare-deploy-dispatcher", "--script-name", "clawr-dispatcher", "--execute")
	for _, line := range p.like.calls(t, before) {
		if !strings.HasPrefix(line, "GET ") {
			t.Errorf("%s was called", line)
		}
	}
}

// The connection is cut at each step of a publication, before it is done and
// after. The edge goes on selling what it sold, and the same command, run
// again, finishes.
func TestACutConnectionLeavesNothingHalfPublished(t *testing.T) {
	const worker, directory = "^PUT .*/namespaces/live/scripts/[^/]*$", "^PUT .*/bulk$"
	const database, imports, upload = "^POST .*/d1/database$", "^POST .*/import$", "^PUT /__upload/"
	for name, c := range map[string]struct {
		rows   int
		faults []fault
	}{
		"in the Worker": {1, []fault{{Match: worker, Kind: "cut"}, {Match: worker, Kind: "cut-after"}, {Match: directory, Kind: "cut"}, {Match: directory, Kind: "cut-after"}, {Match: directory, Kind: "hold", Ms: 5000}}},
		"in a database": {20_000, []fault{{Match: database, Kind: "cut"}, {Match: database, Kind: "cut-after"}, {Match: imports, Kind: "cut"}, {Match: upload, Kind: "cut"}, {Match: imports, Kind: "cut-after", Skip: 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPress(t)
			n := 1
			p.must("deploy", p.edition(n, c.rows), "--tenant", "news", "--publish")
			for _, f := range c.faults {
				what := f.Match + " " + f.Kind
				p.sells("news", n)
				file := p.edition(n+1, c.rows)
				f.Times = 3 // as often as it is tried
				p.like.fail(t, f)
				found := false // what was done although its answer was lost may be found done
				if f.Kind == "hold" {
					p.killedAt(f.Match, "deploy", file, "--tenant", "news", "--publish")
				} else {
					out, errs, code := run(t, p.env, "deploy", file, "--tenant", "news", "--publish")
					if found = code == 0 && f.Kind == "cut-after"; !found && (code != 3 || !strings.Contains(errs, "fix: ")) {
						t.Errorf("%s: exit %d\n%s%s", what, code, out, errs)
					}
				}
				p.like.fail(t)
				switch {
				case found: // so all of it was done
					p.sells("news", n+1)
				case f.Match != directory || f.Kind == "cut":
					p.sells("news", n)
				}
				p.must("deploy", file, "--tenant", "news", "--publish")
				n++
			}
			p.sells("news", n)
		})
	}
}

// The dispatcher gathers events for a second after the answer. A deployment in
// that second loses none.
func TestADeploymentLosesNoEvents(t *testing.T) {
	t.Parallel()
	p := newPress(t)
	token, err := os.ReadFile(filepath.Join(p.dir, "cloudflare", "platform-token"))
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= 3; n++ {
		p.must("deploy", p.edition(n, 1), "--tenant", "news", "--publish")
		p.sells("news", n) // and the next one follows at once
	}
	p.must("pause", "news", "--publish")
	req, err := http.NewRequest(http.MethodGet, p.like.edge+"/__platform/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var got struct {
		Events []struct{ Lifecycle string }
	}
	if err := json.NewDecoder(res.Body).Decode(&got); err != nil || len(got.Events) < 3 {
		t.Errorf("%s, %v: %+v, want the calls of 3 editions", res.Status, err, got.Events)
	}
}

// A deployment of the dispatcher that is cut anywhere is finished by the same
// command, and nothing is made twice.
func TestACutDispatcherDeploymentIsFinished(t *testing.T) {
	t.Parallel()
	p := newPress(t)
	n := 0
	for _, step := range []string{"^POST .*/dispatch/namespaces$", "^POST .*/kv/namespaces$", "^POST .*/d1/database$", "^PUT .*/workers/scripts/[^/]*$", "^POST .*/subdomain$"} {
		for _, kind := range []string{"cut", "cut-after"} {
			n++
			args := []string{"cloudflare-deploy-dispatcher", "--script-name", fmt.Sprintf("dispatcher-%d", n), "--dispatch-namespace", fmt.Sprintf("space-%d", n), "--execute"}
			p.like.fail(t, fault{Match: step, Kind: kind, Times: 3})
			_, errs, code := run(t, p.env, args...)
			if found := code == 0 && kind == "cut-after"; !found && code != 3 {
				t.Errorf("%s %s: exit %d\n%s", step, kind, code, errs)
			}
			p.like.fail(t)
			p.must(args...)
			if status := p.must("cloudflare-status", "--dispatch-namespace", args[4], "--json"); !strings.Contains(status, `"url":"`+p.like.edge+`"`) {
				t.Errorf("%s %s: it is not remembered where the dispatcher is: %s", step, kind, status)
			}
			if _, errs, _ := run(t, p.env, args...); !strings.Contains(errs, "nothing to change") {
				t.Errorf("%s %s: after it was finished there is something to do: %s", step, kind, errs)
			}
		}
	}
	var account struct {
		Scripts, Namespaces map[string]any
		KV                  map[string]struct{ Title string }
		D1                  map[string]struct{ Name string }
	}
	p.like.control(t, "account", nil, &account)
	// The first dispatcher's are there as well, and somebody else's Worker.
	if len(account.Scripts) != n+2 || len(account.Namespaces) != n+1 || len(account.KV) != n+1 || len(account.D1) != n+1 {
		t.Errorf("%d Workers, %d namespaces, %d KV namespaces and %d databases for %d dispatchers", len(account.Scripts), len(account.Namespaces), len(account.KV), len(account.D1), n+1)
	}
}

// killedAt kills clawr while the call is held back.
func (p *press) killedAt(match string, args ...string) {
	p.t.Helper()
	before := len(p.like.calls(p.t, 0))
	cmd := clawr(p.t, p.env, args...)
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	at := regexp.MustCompile(match)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if slices.ContainsFunc(p.like.calls(p.t, before), at.MatchString) {
			return
		}
	}
	p.t.Errorf("clawr %s never called %s", strings.Join(args, " "), match)
}

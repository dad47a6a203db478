package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	nouns "github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/dataset"
)

// Two isolates share one ledger: what one of them has taken the other replays,
// also after workerd was killed and started again.
func TestEdgeIsolatesShareOneLedger(t *testing.T) {
	t.Parallel()
	w := newEdgeWorld(t, nil)
	who := w.chain.account(t, 1_000_000)
	header := sign(t, who, w.list, nil)
	tx := paidOK(t, get(t, w.list, payHeader, header)).Transaction
	again := func(what string) {
		t.Helper()
		a := get(t, w.list, payHeader, header)
		if r := paidOK(t, a); r.Transaction != tx || a.Header.Get("X-Clawr-Replayed") != "true" {
			t.Errorf("%s: replayed %q with %s, want %s", what, a.Header.Get("X-Clawr-Replayed"), r.Transaction, tx)
		}
	}
	w.tell(t, "/vars", w.config.Vars, nil) // another isolate, another process
	again("another isolate")
	w.die()
	w.up(t)
	again("after a kill")
	if got := w.earned(t); got != 1000 {
		t.Errorf("earned %d, want 1000", got)
	}
}

// The platform's pages need a token with the scope.
func TestEdgePlatformNeedsATokenWithTheScope(t *testing.T) {
	t.Parallel()
	w := newEdgeWorld(t, nil)
	for _, path := range []string{"/__platform/events", "/__platform/analytics", "/__platform/analytics?window=today"} {
		for what, c := range map[string]struct {
			headers []string
			status  int
			code    string
		}{
			"no token": {nil, 401, "token_missing"}, "an unknown one": {[]string{"Authorization", "Bearer clawr_nobody"}, 401, "token_missing"}, "another scheme": {[]string{"Authorization", "Basic " + goodToken}, 401, "token_missing"},
			"another scope": {[]string{"Authorization", "Bearer " + poorToken}, 403, "scope_missing"}, "the scope": {[]string{"Authorization", "Bearer " + goodToken}, 200, ""},
			"the scope on a tenant's host": {[]string{"Authorization", "Bearer " + goodToken, "Host", "people.api.example.com"}, 200, ""},
		} {
			a := get(t, w.url+path, c.headers...)
			if a.Status != c.status || a.code() != c.code || (c.status == 401) != strings.HasPrefix(a.Header.Get("WWW-Authenticate"), "Bearer") && c.status != 403 {
				t.Errorf("%s with %s is answered %d %s, want %d", path, what, a.Status, a.Body, c.status)
			}
		}
	}
	refused(t, "a bad window", get(t, w.url+"/__platform/analytics?window=year", "Authorization", "Bearer "+goodToken), 400, "invalid_window")
	who := w.chain.account(t, 1_000_000)
	paidOK(t, get(t, w.list, payHeader, sign(t, who, w.list, nil)))
	w.edge.events(t, func(list []map[string]any) bool {
		lifecycles := map[any]bool{}
		for _, ev := range list {
			lifecycles[ev["lifecycle"]] = true
			if ev["lifecycle"] == "dispatch_success" && (ev["billedUsd"] != 0.001 || ev["billable"] != true || ev["apiId"] != "people" || ev["owner"] != "@codex" || ev["endpoint"] != "/v1/records") {
				t.Fatalf("a paid call's event is %v", ev)
			}
		}
		return lifecycles["dispatch_success"] && lifecycles["payment_challenged"]
	})
	var snapshot struct {
		HeroStats struct{ Calls, RevenueUsd float64 }
		TopApis   []struct{ APIID string }
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		a := get(t, w.url+"/__platform/analytics?window=today", "Authorization", "Bearer "+goodToken)
		if err := json.Unmarshal([]byte(a.Body), &snapshot); err != nil {
			t.Fatal(err)
		}
		if snapshot.HeroStats.Calls == 1 && len(snapshot.TopApis) == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the ranking is %s", a.Body)
		}
	}
}

// What is thrown when a tenant exceeds its limits is answered 429 with the right
// event, whatever is thrown otherwise is not told; and nobody stays broken.
func TestEdgeAnswersForTenantsThatFail(t *testing.T) {
	t.Parallel()
	w := newEdgeWorld(t, func(e *edge) {
		for slug, script := range map[string]string{
			"throws":  `export default { fetch() { throw new Error("the tenant's own secret") } }`,
			"rejects": `export default { async fetch() { return new Response("the tenant's own secret", { status: 500 }) } }`,
			"moves":   `export default { fetch(r) { return r.headers.has("x-clawr-do") ? Response.json({ canonical: "x", units: 1, etag: "" }) : new Response(null, { status: 302, headers: { Location: "/v1/records/elsewhere" } }) } }`,
			"missing": "",
		} {
			tenant, _ := edgeData(t, e.chain, slug, edgePeople, e.payTo, dataset.Options{})
			tenant.Kind = nouns.KindFunction
			if script != "" {
				e.config.Tenants[tenant.WorkerName] = &edgeTenant{Script: script}
			}
			e.entry(edgeEntry{Tenant: tenant, Revision: 1})
		}
	})
	who := w.chain.account(t, 1_000_000)
	for _, slug := range []string{"throws", "rejects", "missing"} {
		url := w.url + "/t/" + slug + "/v1/records"
		header := sign(t, who, url, nil)
		a := get(t, url, payHeader, header)
		refused(t, slug, a, 502, "tenant_worker_failure")
		if strings.Contains(a.Body, "secret") || a.receipt(t).ErrorReason != nouns.CodeNotCharged {
			t.Errorf("%s is answered %s with receipt %+v", slug, a.Body, a.receipt(t))
		}
		refused(t, slug+" again", get(t, url, payHeader, header), 402)
	}
	// A redirect is the tenant's answer; it is not followed.
	url := w.url + "/t/moves/v1/records"
	if a := get(t, url, payHeader, sign(t, who, url, nil)); a.Status != http.StatusFound || a.Header.Get("Location") != "/v1/records/elsewhere" {
		t.Errorf("a redirect is answered %d %v", a.Status, a.Header)
	}
	earned := w.earned(t)
	for _, c := range []struct{ thrown, code string }{
		{"Worker exceeded CPU time limit.", "cpu_limit"}, {"Too many subrequests.", "subrequest_limit"}, {"Worker exceeded CPU time limit.", "cpu_limit"},
	} {
		w.tell(t, "/inject", map[string]any{"name": "tenant-people-v1", "error": c.thrown, "times": 1, "work": true}, nil)
		header := sign(t, who, w.list, nil)
		a := get(t, w.list, payHeader, header)
		refused(t, c.thrown, a, 429, c.code)
		if a.receipt(t).ErrorReason != nouns.CodeNotCharged || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s is answered with %v", c.thrown, a.Header)
		}
		paidOK(t, get(t, w.list, payHeader, sign(t, who, w.list, nil)))
	}
	if got := w.earned(t) - earned; got != 3000 {
		t.Errorf("earned %d, want the 3000 of what was answered", got)
	}
	w.edge.events(t, func(list []map[string]any) bool {
		limits := 0
		for _, ev := range list {
			if ev["error"] == "cpu_limit" || ev["error"] == "subrequest_limit" {
				limits++
				if ev["status"] != 429.0 || ev["lifecycle"] != "dispatch_failure" || ev["billedUsd"] != 0.0 {
					t.Fatalf("the event of a limit is %v", ev)
				}
			}
		}
		return limits == 3
	})
}

// Each limit of each plan, and each override, is what dispatch.get is given.
func TestEdgeGivesEachLimitToDispatch(t *testing.T) {
	t.Parallel()
	type limits struct{ CPUMs, SubRequests int64 }
	want := map[string]limits{}
	w := newEdgeWorld(t, func(e *edge) {
		_, worker := edgeData(t, e.chain, "people", edgePeople, e.payTo, dataset.Options{})
		for _, plan := range []nouns.Plan{nouns.PlanFree, nouns.PlanPro, nouns.PlanBusiness, nouns.PlanEnterprise, nouns.PlanQuarantine} {
			for _, own := range []nouns.Limits{{}, {CPUMs: 180}, {SubRequests: 40}, {CPUMs: 181, SubRequests: 41}} {
				slug := fmt.Sprintf("%s-%d-%d", plan, own.CPUMs, own.SubRequests)
				tenant, _ := edgeData(t, e.chain, slug, edgePeople, e.payTo, dataset.Options{})
				tenant.Plan, tenant.Limits = plan, own
				l := tenant.Effective()
				want[tenant.WorkerName] = limits{l.CPUMs, l.SubRequests}
				e.publish(tenant, worker)
			}
		}
	})
	for name := range want {
		slug := strings.TrimSuffix(strings.TrimPrefix(name, "tenant-"), "-v1")
		if a := get(t, w.url+"/t/"+slug+"/v1/schema"); a.Status != 200 {
			t.Fatalf("%s is answered %d %s", slug, a.Status, a.Body)
		}
	}
	var seen []struct {
		Name    string
		Options struct{ Limits map[string]int64 }
	}
	w.tell(t, "/seen", nil, &seen)
	got := map[string]bool{}
	for _, s := range seen {
		l := s.Options.Limits
		if len(l) != 2 || l["cpuMs"] != want[s.Name].CPUMs || l["subRequests"] != want[s.Name].SubRequests {
			t.Errorf("%s was dispatched with %v, want %+v", s.Name, l, want[s.Name])
		}
		got[s.Name] = true
	}
	if len(got) != len(want) {
		t.Errorf("%d of %d tenants were dispatched", len(got), len(want))
	}
}

// What the control plane says of a tenant counts for paid calls at once, while
// the directory still says something else.
func TestEdgeAsksTheLedgerWhetherATenantSells(t *testing.T) {
	t.Parallel()
	w := newEdgeWorld(t, nil)
	who := w.chain.account(t, 1_000_000)
	say := func(revision int, status, home string) {
		t.Helper()
		body := fmt.Sprintf(`{"id":%q,"revision":%d,"status":%q,"ledgerHome":%q}`, edgeID("people"), revision, status, home)
		req, _ := http.NewRequestWithContext(t.Context(), "POST", w.url+"/__platform/tenants", strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+goodToken)
		res, err := edgeClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != 200 {
			t.Fatalf("%s is answered %d", body, res.StatusCode)
		}
	}
	paidOK(t, get(t, w.list, payHeader, sign(t, who, w.list, nil)))
	// The payment of a tenant that is paused meanwhile is not taken; what was paid is answered.
	held, old := sign(t, who, w.list, nil), sign(t, who, w.list, nil)
	paidOK(t, get(t, w.list, payHeader, old))
	say(2, "paused", "edge")
	refused(t, "paused", get(t, w.list, payHeader, held), 503, "tenant_paused")
	paidOK(t, get(t, w.list, payHeader, old))
	say(1, "active", "edge") // an old word changes nothing
	refused(t, "still paused", get(t, w.list, payHeader, held), 503, "tenant_paused")
	say(3, "active", "native")
	refused(t, "sold elsewhere", get(t, w.list, payHeader, held), 404, "tenant_not_found")
	say(4, "active", "edge")
	if got := w.earned(t); got != 2000 {
		t.Errorf("earned %d, want 2000", got)
	}
}

// nightly makes the long tests long.
var nightly = os.Getenv("CLAWR_NIGHTLY") != ""

// A stream of paid calls during which workerd is killed again and again: no
// charge without its answer, no answer without its charge. CLAWR_NIGHTLY makes
// it 500 calls and 100 kills.
func TestEdgeSurvivesKills(t *testing.T) {
	t.Parallel()
	calls, kills := 40, 5
	if nightly {
		calls, kills = 500, 100
	}
	w := newEdgeWorld(t, nil)
	const workers = 8
	var answered atomic.Int64
	buyers := make([]*chain.Key, workers)
	for i := range buyers {
		buyers[i] = w.chain.account(t, 1_000_000)
	}
	var wg sync.WaitGroup
	// challenged asks for a challenge until there is one, and signs what it asks.
	challenged := func(who *chain.Key, url string) string {
		for range 600 {
			if a, err := ask(t, "GET", url); err == nil {
				if header, err := payFor(t, who, a, nil); err == nil {
					return header
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("%s has no challenge", url)
		return ""
	}
	next := make(chan int)
	for i := range workers {
		wg.Go(func() {
			for n := range next {
				url := fmt.Sprintf("%s?limit=%d", w.list, 1+n%5)
				header := challenged(buyers[i], url)
				for try := 0; ; try++ {
					a, err := ask(t, "GET", url, payHeader, header)
					switch {
					case err != nil, a.Status == 503, a.Status == 429:
					case a.Status == 200 && strings.Contains(a.Body, `"data":[`):
					case a.Status == 502 || a.Status == 504:
						// The work failed in time: released, not charged, and a new payment is due.
						if a.receipt(t).ErrorReason != nouns.CodeNotCharged {
							t.Errorf("call %d: answered %d without saying that it is not charged", n, a.Status)
						}
						header = challenged(buyers[i], url)
					default:
						t.Errorf("call %d, try %d: answered %d %s", n, try, a.Status, a.Body)
						return
					}
					if err == nil && a.Status == 200 {
						break
					}
					if try > 900 {
						t.Errorf("call %d: no answer in %d tries; the last is %d %s %v", n, try, a.Status, a.Body, err)
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
				answered.Add(1)
			}
		})
	}
	stop := make(chan struct{})
	var killer sync.WaitGroup
	var killed atomic.Int64
	killer.Go(func() {
		for range kills {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(20+rand.IntN(600)) * time.Millisecond):
			}
			w.die()
			w.up(t)
			killed.Add(1)
		}
	})
	for n := range calls { // in step with the kills, so that each of them hits the stream
		for killed.Load() < int64(n*kills/calls) && !t.Failed() {
			time.Sleep(5 * time.Millisecond)
		}
		next <- n
	}
	close(next)
	wg.Wait()
	close(stop)
	killer.Wait()
	t.Logf("%d kills in %d calls", killed.Load(), calls)
	if got := killed.Load(); got < int64(kills-1) {
		t.Errorf("killed %d times, want %d", got, kills)
	}
	if got, want := w.earned(t), int64(calls)*1000; got != want {
		t.Errorf("%d calls were answered, and %d was charged, want %d", answered.Load(), got, want)
	}
	// Every charge has its event, once.
	w.edge.events(t, func(list []map[string]any) bool {
		billed, ids := 0, map[any]bool{}
		for _, ev := range list {
			if ids[ev["requestId"]] {
				t.Fatalf("an event is there twice: %v", ev)
			}
			ids[ev["requestId"]] = true
			if ev["billedUsd"] == 0.001 {
				billed++
			}
		}
		return billed == calls
	})
}

package e2e

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// With --route, the dispatcher has the name of the owner's domain instead of
// one on workers.dev; whatever is in the way of it is said before anything is
// made, and a route that leads elsewhere is left alone.
func TestARouteLeadsToTheDispatcher(t *testing.T) {
	t.Parallel()
	p := &press{t: t, like: startLookalike(t, 100_000), dir: t.TempDir()}
	p.env = append(p.like.env(), "CLAWR_DATA="+p.dir)
	dispatcher := func(name string, more ...string) []string {
		return append([]string{"cloudflare-deploy-dispatcher", "--script-name", name, "--execute"}, more...)
	}
	for _, c := range []struct {
		name, route, code string
		exit              int
		env               []string
	}{
		{"a domain that the account has not", "api.example.com/*", "cloudflare_not_found", 5, nil},
		{"a URL", "https://api.402claw.dev/*", "usage", 2, nil},
		{"a part of a host", "api.402claw.dev/paid/*", "usage", 2, nil},
		{"one path", "api.402claw.dev/", "usage", 2, nil},
		{"all hosts, and no name", "*.402claw.dev/*", "usage", 2, nil},
		{"no domain", "localhost/*", "usage", 2, nil},
		{"a token that may not edit routes", "api.402claw.dev/*", "cloudflare_auth", 4, []string{"CLOUDFLARE_API_TOKEN=" + cfRouteless}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := *p
			p.t = t
			p.refused(append(p.env, c.env...), c.code, c.exit, dispatcher("clawr-dispatcher", "--route", c.route)...)
		})
	}
	// The last of them got as far as the route, which is made when it may be.
	step := "^POST /zones/.*/workers/routes$"
	for _, kind := range []string{"cut", "cut-after"} {
		p.like.fail(t, fault{Match: step, Kind: kind, Times: 1})
		if _, errs, code := run(t, p.env, dispatcher("clawr-dispatcher", "--route", "api.402claw.dev/*")...); code != 0 && code != 3 {
			t.Errorf("%s: exit %d\n%s", kind, code, errs)
		}
	}
	p.like.fail(t)
	p.must(dispatcher("clawr-dispatcher", "--route", "api.402claw.dev/*")...)
	if _, errs, _ := run(t, p.env, dispatcher("clawr-dispatcher", "--route", "api.402claw.dev/*")...); !strings.Contains(errs, "nothing to change") {
		t.Errorf("a second run has something to do: %s", errs)
	}
	if status := p.must("cloudflare-status", "--json"); !strings.Contains(status, `"url":"https://api.402claw.dev"`) {
		t.Errorf("the status is %s", status)
	}
	p.refused(p.env, "cloudflare_name_taken", 6, dispatcher("another-dispatcher", "--route", "api.402claw.dev/*")...)
	p.must(dispatcher("clawr-dispatcher", "--route", "*.402claw.dev/*", "--public-url", p.like.edge)...)
	var account struct {
		Scripts map[string]struct{ Dev bool }
		Zones   map[string]struct {
			Routes []struct{ Pattern, Script string }
		}
	}
	p.like.control(t, "account", nil, &account)
	routes := account.Zones["z1"].Routes
	if len(routes) != 2 || routes[0].Pattern != "api.402claw.dev/*" || routes[1].Pattern != "*.402claw.dev/*" || routes[0].Script != "clawr-dispatcher" || routes[1].Script != "clawr-dispatcher" {
		t.Errorf("the zone's routes are %+v", routes)
	}
	if account.Scripts["clawr-dispatcher"].Dev {
		t.Error("the dispatcher answers on workers.dev as well")
	}

	out := p.must("deploy", p.edition(1, 1), "--tenant", "news", "--publish", "--json")
	if !strings.Contains(out, p.like.edge+"/t/news") {
		t.Errorf("what was published is not at the public URL: %s", out)
	}
	proxy, err := url.Parse(p.like.edge)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{Proxy: http.ProxyURL(proxy)}}
	res, err := client.Get("http://api.402claw.dev/t/news/v1/records?limit=1")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusOK || !strings.Contains(string(b), "edition-1") {
		t.Errorf("the edge answers %s %s", res.Status, b)
	}
}

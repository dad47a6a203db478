package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/402claw/clawr"
)

func TestDeployAndItsLife(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	d := w.paid()
	d.Hosts = []string{"gold.example.com", "au.example.com", "gold.example.com"}
	got, err := w.Client.Deploy(ctx, "gold", d)
	if err != nil {
		t.Fatal(err)
	}
	want := clawr.Manifest{Kind: clawr.KindDataset, Owner: "me", Directory: "APIs", Plan: clawr.PlanFree, Price: 1000, X402: true, PayTo: someone,
		WorkerName: "tenant-gold", Content: w.id, Rows: 3}
	if diff := cmp.Diff(want, got.Manifest); diff != "" || got.Version != 1 || got.Status != clawr.StatusActive {
		t.Errorf("version %d, %s (-want +got):\n%s", got.Version, got.Status, diff)
	}
	if got.URL != "https://au.example.com/v1/records" || strings.Join(got.Hosts, " ") != "au.example.com gold.example.com" {
		t.Errorf("URL %s, hosts %v", got.URL, got.Hosts)
	}

	d2 := w.paid()
	d2.Price = 2000
	if got, err = w.Client.Deploy(ctx, "gold", d2); err != nil || got.Version != 2 || len(got.Hosts) != 2 {
		t.Errorf("a deploy without hosts: %+v, %v; want version 2 with the hosts that it had", got, err)
	}
	if got, err = w.Client.Rollback(ctx, "gold", 0); err != nil || got.Version != 1 || got.Price != 1000 {
		t.Errorf("rollback: %+v, %v", got, err)
	}
	if got, err = w.Client.Rollback(ctx, "gold", 2); err != nil || got.Version != 2 {
		t.Errorf("rollback to 2: %+v, %v", got, err)
	}
	if _, err = w.Client.Rollback(ctx, "gold", 9); err == nil {
		t.Error("rolled back to a version that there is not")
	}
	if vs, err := w.Client.Versions(ctx, "gold"); err != nil || len(vs) != 2 || vs[0].Version != 2 {
		t.Errorf("versions: %+v, %v", vs, err)
	}

	if got, err = w.Client.Pause(ctx, "gold"); err != nil || got.Status != clawr.StatusPaused {
		t.Errorf("pause: %+v, %v", got, err)
	}
	if got, err = w.Client.Deploy(ctx, "gold", d); err != nil || got.Status != clawr.StatusPaused {
		t.Errorf("a deploy resumed a paused tenant: %+v, %v", got, err)
	}
	if got, err = w.Client.Resume(ctx, "gold"); err != nil || got.Status != clawr.StatusActive {
		t.Errorf("resume: %+v, %v", got, err)
	}

	other := w.paid()
	other.Hosts = []string{"gold.example.com"}
	_, err = w.Client.Deploy(ctx, "silver", other)
	wantCode(t, err, clawr.CodeHostTaken, "clawr rm gold")
	if _, err := w.Client.Tenant(ctx, "silver"); clawr.CodeOf(err) != clawr.CodeTenantNotFound {
		t.Errorf("a refused deploy left a tenant: %v", err)
	}
	if got, err = w.Client.Remove(ctx, "gold"); err != nil || got.Status != clawr.StatusRemoved {
		t.Errorf("remove: %+v, %v", got, err)
	}
	for name, f := range map[string]func() (Tenant, error){
		"show":   func() (Tenant, error) { return w.Client.Tenant(ctx, "gold") },
		"remove": func() (Tenant, error) { return w.Client.Remove(ctx, "gold") },
		"pause":  func() (Tenant, error) { return w.Client.Pause(ctx, "gold") },
		"resume": func() (Tenant, error) { return w.Client.Resume(ctx, "gold") },
		"back":   func() (Tenant, error) { return w.Client.Rollback(ctx, "gold", 0) },
	} {
		if _, err := f(); clawr.CodeOf(err) != clawr.CodeTenantNotFound {
			t.Errorf("%s of a removed tenant: %v, want tenant_not_found", name, err)
		}
	}
	if got, err = w.Client.Deploy(ctx, "silver", other); err != nil {
		t.Errorf("a removed tenant keeps its hosts: %v", err)
	}
	live, err := w.Client.Tenants(ctx, false)
	if err != nil || len(live) != 1 || live[0].Slug != "silver" {
		t.Errorf("list: %+v, %v", live, err)
	}
	if every, err := w.Client.Tenants(ctx, true); err != nil || len(every) != 2 {
		t.Errorf("list of all: %+v, %v", every, err)
	}
	if got, err = w.Client.Deploy(ctx, "gold", w.paid()); err != nil || got.Status != clawr.StatusActive {
		t.Errorf("a removed slug cannot be deployed again: %+v, %v", got, err)
	}
}

func TestWhoEarns(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	const a2, a3, a4 = "0x00000000000000000000000000000000000000a2", "0x00000000000000000000000000000000000000A3", "0x00000000000000000000000000000000000000a4"
	deploy := func(slug, owner, payTo, network string, x402 bool) (Tenant, error) {
		d := w.paid()
		d.Owner, d.PayTo, d.Network, d.X402 = owner, payTo, network, x402
		return w.Client.Deploy(ctx, slug, d)
	}
	_, err := deploy("gold", "codex", "", "", true)
	wantCode(t, err, clawr.CodePayToMissing, "clawr owner set codex --pay-to 0x")
	if got, err := deploy("free", "codex", a2, "", false); err != nil || got.PayTo != "" || got.Paid() {
		t.Errorf("a free API: %q, %v; want no address", got.PayTo, err)
	}
	// The request's own address, in lower case, is remembered, and so is the network.
	if got, err := deploy("gold", "codex", a3, "eip155:84532", true); err != nil || got.PayTo != strings.ToLower(a3) {
		t.Errorf("%q, %v", got.PayTo, err)
	}
	if got, err := deploy("gold", "@codex", "", "", true); err != nil || got.PayTo != strings.ToLower(a3) || got.Network != "eip155:84532" || got.Owner != "codex" {
		t.Errorf("the second deploy: %q on %q, %v", got.PayTo, got.Network, err)
	}
	// But not for another owner: that would pay the old one for the new one's data.
	_, err = deploy("gold", "rival", "", "", true)
	wantCode(t, err, clawr.CodePayToMissing, "clawr owner set rival")
	w.Handler.DefaultPayTo = a4
	if got, err := deploy("gold", "rival", "", "", true); err != nil || got.PayTo != a4 {
		t.Errorf("the node's own address: %q, %v", got.PayTo, err)
	}
	name, payTo := "Codex", a2
	if o, err := w.Client.SetOwner(ctx, "codex", SetOwner{Name: &name, PayTo: &payTo}); err != nil || o.PayTo != a2 || o.Name != "Codex" {
		t.Errorf("%+v, %v", o, err)
	}
	if got, err := deploy("silver", "codex", "", "", true); err != nil || got.PayTo != a2 {
		t.Errorf("the owner's address: %q, %v", got.PayTo, err)
	}
	other := "Codex & Co"
	if o, err := w.Client.SetOwner(ctx, "codex", SetOwner{Name: &other}); err != nil || o.PayTo != a2 || o.Name != other {
		t.Errorf("setting the name alone: %+v, %v", o, err)
	}
	if o, err := w.Client.Owner(ctx, "codex"); err != nil || o.Name != other {
		t.Errorf("%+v, %v", o, err)
	}
	if list, err := w.Client.Owners(ctx); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
}

func TestEveryRefusalNamesTheFlag(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		param  string
		code   clawr.Code
		change func(*Deploy)
	}{
		{"kind", clawr.CodeBadRequest, func(d *Deploy) { d.Kind = clawr.KindProxy }},
		{"content", clawr.CodeBadRequest, func(d *Deploy) { d.Content = "" }},
		{"content", clawr.CodeBadRequest, func(d *Deploy) { d.Content = strings.Repeat("A", 64) }},
		{"content", clawr.CodeBadRequest, func(d *Deploy) { d.Content = strings.Repeat("a", 64) }}, // not here
		{"rows", clawr.CodeBadRequest, func(d *Deploy) { d.Rows = -1 }},
		{"settle", clawr.CodeBadRequest, func(d *Deploy) { d.Settle = "later" }},
		{"plan", clawr.CodeBadPlan, func(d *Deploy) { d.Plan = "gold" }},
		{"owner", clawr.CodeBadRequest, func(d *Deploy) { d.Owner = "a/b" }},
		{"owner", clawr.CodeBadRequest, func(d *Deploy) { d.Owner = strings.Repeat("a", 65) }},
		{"directory", clawr.CodeBadRequest, func(d *Deploy) { d.Directory = strings.Repeat("ä", 65) }},
		{"directory", clawr.CodeBadRequest, func(d *Deploy) { d.Directory = "a\nb" }},
		{"description", clawr.CodeBadRequest, func(d *Deploy) { d.Description = "pay \u202e" + someone }},
		{"description", clawr.CodeBadRequest, func(d *Deploy) { d.Description = strings.Repeat("a", 2001) }},
		{"license", clawr.CodeBadRequest, func(d *Deploy) { d.License = "\x1b[2J" }},
		{"worker-name", clawr.CodeBadRequest, func(d *Deploy) { d.WorkerName = strings.Repeat("a", 129) }},
		{"tag", clawr.CodeBadRequest, func(d *Deploy) { d.Tags = []string{"1", "2", "3", "4", "5", "6"} }},
		{"tag", clawr.CodeBadRequest, func(d *Deploy) { d.Tags = []string{""} }},
		{"tag", clawr.CodeBadRequest, func(d *Deploy) { d.Tags = []string{strings.Repeat("a", 33)} }},
		{"price", clawr.CodeBadAmount, func(d *Deploy) { d.Price = 0 }},
		{"price", clawr.CodeBadAmount, func(d *Deploy) { d.Price = clawr.MaxPrice + 1 }},
		{"pay-to", clawr.CodeBadAddress, func(d *Deploy) { d.PayTo = "0x1234" }},
		{"pay-to", clawr.CodeBadAddress, func(d *Deploy) { d.PayTo = "0x0000000000000000000000000000000000000000" }},
		{"network", clawr.CodeBadNetwork, func(d *Deploy) { d.Network = "base" }},
		{"spend-day", clawr.CodeBadAmount, func(d *Deploy) { d.Spend.Daily = clawr.MaxPrice + 1 }},
		{"spend-month", clawr.CodeBadAmount, func(d *Deploy) { d.Spend.Monthly = 999 }}, // below the price
		{"cpu-ms", clawr.CodeBadRequest, func(d *Deploy) { d.Limits.CPUMs = -1 }},
		{"subrequests", clawr.CodeBadRequest, func(d *Deploy) { d.Limits.SubRequests = 10_001 }},
		{"quota-day", clawr.CodeBadRequest, func(d *Deploy) { d.Usage.Daily = -5 }},
		{"quota-month", clawr.CodeBadRequest, func(d *Deploy) { d.Usage.Monthly = 1e16 }},
		{"rate-limit-caller", clawr.CodeBadRequest, func(d *Deploy) { d.Rate.PerCaller.Requests = 5 }},
		{"rate-limit-global", clawr.CodeBadRequest, func(d *Deploy) { d.Rate.Global = clawr.Rate{Requests: 1, WindowSeconds: 1, Burst: -1} }},
		{"host", clawr.CodeBadHost, func(d *Deploy) { d.Hosts = []string{"https://x.example.com"} }},
		{"host", clawr.CodeBadHost, func(d *Deploy) { d.Hosts = make([]string, 21) }},
	} {
		d := w.paid()
		c.change(&d)
		_, err := w.Client.Deploy(t.Context(), "gold", d)
		wantCode(t, err, c.code, "")
		if e, ok := err.(*clawr.Error); !ok || e.Param != c.param || e.HTTPStatus() != http.StatusBadRequest {
			t.Errorf("%v: param %q, want %q", err, e.Param, c.param)
		}
	}
	if list, _ := w.Client.Tenants(t.Context(), true); len(list) != 0 {
		t.Errorf("refused deploys left %+v", list)
	}
}

func TestUploadIsVerified(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	body := "another segment"
	id := HashSecret(body)
	err := w.Client.PutSegment(ctx, id, strings.NewReader("something else"), 14)
	if clawr.CodeOf(err) != clawr.CodeSegmentCorrupt {
		t.Errorf("wrong bytes: %v", err)
	}
	d := w.paid()
	d.Content = id
	if _, err := w.Client.Deploy(ctx, "gold", d); err == nil {
		t.Error("deployed without its data")
	}
	if err := w.Client.PutSegment(ctx, id, strings.NewReader(body), int64(len(body))); err != nil {
		t.Error(err)
	}
	if _, err := w.Client.Deploy(ctx, "gold", d); err != nil {
		t.Error(err)
	}
	if err := w.Client.PutSegment(ctx, id, strings.NewReader("what is there is not read again"), 31); err != nil {
		t.Error(err)
	}
}

func TestURLOfATenant(t *testing.T) {
	for _, c := range []struct {
		public string
		hosts  []string
		want   string
	}{
		{"", nil, "/t/gold/v1/records"},
		{"", []string{"gold.example.com"}, "https://gold.example.com/v1/records"},
		{"http://127.0.0.1:4020", nil, "http://127.0.0.1:4020/t/gold/v1/records"},
		{"http://localhost:4020/", nil, "http://localhost:4020/t/gold/v1/records"},
		{"https://api.example.com", []string{"gold.example.com"}, "https://gold.example.com/v1/records"},
		{"https://api.example.com", nil, "https://api.example.com/t/gold/v1/records"},
	} {
		if got := tenantURL(c.public, &clawr.Tenant{Slug: "gold", Hosts: c.hosts}); got != c.want {
			t.Errorf("%q %v: %s, want %s", c.public, c.hosts, got, c.want)
		}
	}
}

func TestTheDirectoryHasTwoFormsAndReadsBoth(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	for slug, hosts := range map[string][]string{"gold": {"a.example.com", "b.example.com"}, "silver": nil, "gone": nil} {
		d := w.paid()
		d.Plan, d.Limits.CPUMs, d.Hosts = clawr.PlanPro, 180, hosts
		if _, err := w.Client.Deploy(ctx, slug, d); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Client.Remove(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	list, err := w.Client.Directory(ctx, "tenants")
	if err != nil {
		t.Fatal(err)
	}
	byName, err := w.Client.Directory(ctx, "maps")
	if err != nil {
		t.Fatal(err)
	}
	if list.Maps || !byName.Maps {
		t.Error("the forms are mixed up")
	}
	if diff := cmp.Diff(list.Entries, byName.Entries); diff != "" || len(list.Entries) != 2 {
		t.Errorf("%d entries, want 2 in both forms (-tenants +maps):\n%s", len(list.Entries), diff)
	}
	if e := list.Entries[0]; e.Slug != "gold" || e.WorkerName != "tenant-gold" || e.Limits != (clawr.Limits{CPUMs: 180, SubRequests: 50}) || len(e.Hosts) != 2 {
		t.Errorf("%+v", e)
	}
	b, _ := json.Marshal(byName)
	for _, key := range []string{`"byHost":{"a.example.com":{"slug":"gold"`, `"bySlug":{"gold":{"slug":"gold"`} {
		if !strings.Contains(string(b), key) {
			t.Errorf("%s\nlacks %s", b, key)
		}
	}

	var d Directory
	for text, want := range map[string]string{
		`{"tenants":[{"slug":"acme","workerName":"w","plan":"pro","hosts":["x.example.com"]}]}`:                           "acme w x.example.com",
		`{"byHost":{"x.example.com":{"slug":"acme","workerName":"w"}},"bySlug":{"acme":{"workerName":"w","plan":"pro"}}}`: "acme w x.example.com",
		`{"byHost":{"y.example.com":{"slug":"acme","workerName":"w"},"x.example.com":{"slug":"acme"}}}`:                   "acme  x.example.com y.example.com",
		`{"bySlug":{}}`:         "",
		`{"tenants":[]}`:        "",
		`{"bySlug":{"A b":{}}}`: "error", `{"bySlug":{"a":{"slug":"b"}}}`: "error", `{"tenants":[{"slug":"a"},{"slug":"a"}]}`: "error",
		`{"tenants":[],"bySlug":{}}`: "error", `{"byHost":{"x.example.com":{}}}`: "error", `[]`: "error",
		`{"tenants":[{"slug":"a","hosts":["x.example.com"]},{"slug":"b","hosts":["x.example.com"]}]}`: "error",
		`{"tenants":[{"slug":"a","hosts":["http://x"]}]}`:                                             "error",
	} {
		got := ""
		if err := json.Unmarshal([]byte(text), &d); err != nil {
			got = "error"
		} else {
			for _, e := range d.Entries {
				got += e.Slug + " " + e.WorkerName + " " + strings.Join(e.Hosts, " ")
			}
		}
		if got != want {
			t.Errorf("%s\n is read as %q, want %q", text, got, want)
		}
	}
}

// Whatever JSON is deployed: it is refused, or it is complete, and stays what
// it is when it is checked again.
func FuzzDeploy(f *testing.F) {
	f.Add("gold", `{"content":"`+strings.Repeat("0", 64)+`","priceUsd":"0.001","x402Enabled":true,"hosts":["a.example.com"]}`)
	f.Add("a-1", `{"content":"`+strings.Repeat("f", 64)+`","rateLimit":{"perCaller":{"requests":1,"windowSeconds":60}},"tags":["x"],"spendLimit":{"dailySpendUsd":5}}`)
	f.Add("Gold", `{"payTo":"0x1"}`)
	f.Fuzz(func(t *testing.T, slug, text string) {
		r := &request{Request: httptest.NewRequest("POST", "/", strings.NewReader(text)), w: httptest.NewRecorder()}
		var d Deploy
		err := r.decode(&d, false)
		if err == nil {
			err = d.complete(slug)
		}
		if err != nil {
			if e, ok := errors.AsType[*clawr.Error](err); !ok || e.Fix == "" || e.Message == "" || e.HTTPStatus()/100 != 4 {
				t.Errorf("refused by %#v, which shows no way on", err)
			}
			return
		}
		if d.Plan == "" || d.Owner == "" || d.Manifest.Directory == "" || d.WorkerName == "" || d.Kind != clawr.KindDataset || d.Price < 0 || d.X402 && d.Price == 0 || len(d.Content) != 64 {
			t.Errorf("taken, but not complete: %+v", d)
		}
		b, err := json.Marshal(d)
		if err != nil {
			t.Fatal(err)
		}
		var again Deploy
		if err := json.Unmarshal(b, &again); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
		if err := again.complete(slug); err != nil || !cmp.Equal(d, again) {
			t.Errorf("the second time it is %+v (%v), was %+v", again, err, d)
		}
	})
}

func FuzzDirectory(f *testing.F) {
	f.Add(`{"tenants":[{"slug":"acme","workerName":"w","plan":"pro","hosts":["x.example.com"]}]}`)
	f.Add(`{"byHost":{"x.example.com":{"slug":"acme"}},"bySlug":{"acme":{"priceUsd":"0.1"}}}`)
	f.Fuzz(func(t *testing.T, text string) {
		var d Directory
		if json.Unmarshal([]byte(text), &d) != nil {
			return
		}
		for _, maps := range []bool{false, true} {
			d.Maps = maps
			b, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			var again Directory
			if err := json.Unmarshal(b, &again); err != nil || !cmp.Equal(d, again) {
				t.Errorf("%s\nis read as %+v (%v), was %+v", b, again, err, d)
			}
		}
	})
}

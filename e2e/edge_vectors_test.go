package e2e

import (
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"

	nouns "github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/dataset"
	"github.com/402claw/clawr/x402"
)

var updateVectors = flag.Bool("update", false, "write testdata/vectors/edge from what clawr serve answers")

// edgeVector is one buyer's story: what a dispatcher is asked, and what it
// answers, charges and records.
type edgeVector struct {
	Name        string        `json:"name"`
	Facilitator *vectorDoes   `json:"facilitator,omitempty"` // nil: an honest one
	Funds       *int64        `json:"funds,omitempty"`       // of the buyer, atomic units; nil: 1000000
	Steps       []vectorStep  `json:"steps"`
	Charged     int64         `json:"charged"` // what the buyer has less in the end
	Events      []vectorEvent `json:"events"`  // of the steps, in their order
}

// vectorDoes is what the facilitator answers to one path instead; chain says
// that it really settles before.
type vectorDoes struct {
	Path   string `json:"path"`
	Chain  bool   `json:"chain,omitempty"`
	Status int    `json:"status"` // -1 cuts the connection
	Body   string `json:"body,omitempty"`
}

// vectorStep is one request. Pay is "" for none, fresh for a new payment of what
// the URL asks, same for the last one again, and fresh:WHAT for one that is
// altered as vectorChanges says; v1 in front makes it version 1's.
type vectorStep struct {
	Method  string       `json:"method"`
	Target  string       `json:"target"`
	Host    string       `json:"host,omitempty"`
	Headers [][2]string  `json:"headers,omitempty"`
	Pay     string       `json:"pay,omitempty"`
	Expect  vectorAnswer `json:"expect"`
}

// vectorAnswer is an answer without what is random, or the time's.
type vectorAnswer struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    string            `json:"body,omitempty"`
}

type vectorEvent struct {
	API       string  `json:"apiId"`
	Endpoint  string  `json:"endpoint"`
	Owner     string  `json:"owner"`
	Status    int     `json:"status"`
	Lifecycle string  `json:"lifecycle"`
	Billable  bool    `json:"billable"`
	Countable bool    `json:"countable"`
	Billed    float64 `json:"billedUsd"`
	Price     float64 `json:"priceUsd"`
	Error     string  `json:"error,omitempty"`
}

type vectorFile struct {
	About string       `json:"about"`
	Cases []edgeVector `json:"cases"`
}

// side is one of the two that must agree.
type side struct {
	name, url string
	tokens    map[string]string
	front     *front
	chain     *testChain
	payTo     string
}

// vectorTenants are on both sides: flags of clawr deploy, and the same of an
// entry of the directory.
var vectorTenants = []struct {
	slug  string
	flags []string
	edge  func(*nouns.Tenant)
	after string // a command on it, natively
}{
	{"people", []string{"--price", "0.001", "--x402", "--host", "people.api.example.com", "--description", "People & \"machines\" of <computing>"}, func(t *nouns.Tenant) {
		t.Hosts, t.Description = []string{"people.api.example.com"}, "People & \"machines\" of <computing>"
	}, ""},
	{"rated", []string{"--price", "0.001", "--x402", "--rate-limit-caller", "3/3600s"}, func(t *nouns.Tenant) { t.Rate.PerCaller = nouns.Rate{Requests: 3, WindowSeconds: 3600} }, ""},
	{"shared", []string{"--price", "0.001", "--x402", "--rate-limit-global", "2/3600s"}, func(t *nouns.Tenant) { t.Rate.Global = nouns.Rate{Requests: 2, WindowSeconds: 3600} }, ""},
	{"counted", []string{"--price", "0.001", "--x402", "--quota-day", "2"}, func(t *nouns.Tenant) { t.Usage.Daily = 2 }, ""},
	{"capped", []string{"--price", "0.001", "--x402", "--spend-day", "0.001"}, func(t *nouns.Tenant) { t.Spend.Daily = 1000 }, ""},
	{"free", nil, func(t *nouns.Tenant) { t.Price, t.X402, t.PayTo = 0, false, "" }, ""},
	{"gratis", []string{"--quota-day", "2"}, func(t *nouns.Tenant) { t.Price, t.X402, t.PayTo, t.Usage.Daily = 0, false, "", 2 }, ""},
	{"named", []string{"--price", "0.001", "--x402", "--require-payment-id"}, func(t *nouns.Tenant) { t.RequirePaymentID = true }, ""},
	{"paused", []string{"--price", "0.001", "--x402"}, func(t *nouns.Tenant) { t.Status = nouns.StatusPaused }, "pause"},
	{"removed", []string{"--price", "0.001", "--x402"}, func(t *nouns.Tenant) { t.Status = nouns.StatusRemoved }, "rm"},
}

// vectorSides starts clawr serve and the edge, with the same tenants, on one chain.
func vectorSides(t *testing.T) []*side {
	c := devChain(t)
	seller, err := chain.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	f := newFront(t, facilitate(t, c, seller.Address()))
	payTo := strings.ToLower(seller.Address().Hex())
	const deadline = "10"

	e := newEdge(t, c, seller.Address(), f.URL)
	e.config.Vars["DEADLINE_SECONDS"] = deadline
	s := &server{chain: c, dir: t.TempDir(), payTo: seller.Address()}
	s.args = []string{"serve", "--listen", "127.0.0.1:0", "--data", s.dir, "--network", c.network, "--asset", c.asset.Hex(), "--rpc-url", c.rpc, "--pay-to", payTo, "--facilitator-url", f.URL, "--deadline", deadline + "s"}
	s.up(t)
	for _, v := range vectorTenants {
		file := filepath.Join(t.TempDir(), v.slug+".csv")
		if err := os.WriteFile(file, []byte(edgePeople), 0o600); err != nil {
			t.Fatal(err)
		}
		s.deploy(t, file, v.slug, append([]string{"--plan", "pro", "--owner", "codex"}, v.flags...)...)
		if v.after != "" {
			must(t, nil, v.after, v.slug, "--data", s.dir, "-y")
		}
		var about nouns.Tenant
		v.edge(&about)
		tenant, w := edgeData(t, c, v.slug, edgePeople, seller.Address(), dataset.Options{Description: about.Description}, v.edge)
		e.publish(tenant, w)
	}
	token := func(scopes string) string {
		var v struct{ Secret string }
		if err := json.Unmarshal([]byte(must(t, nil, "token", "create", "--scope", scopes, "--data", s.dir, "--json")), &v); err != nil || v.Secret == "" {
			t.Fatalf("no token: %v", err)
		}
		return v.Secret
	}
	native := &side{name: "go", url: s.url, front: f, chain: c, payTo: payTo, tokens: map[string]string{"good": token("events:read,analytics:read"), "poor": token("payments:read")}}
	e.up(t)
	for _, v := range vectorTenants { // as deploying natively asks for it once
		get(t, e.url+"/t/"+v.slug+"/v1/records")
	}
	return []*side{native, {name: "workerd", url: e.url, front: f, chain: c, payTo: payTo, tokens: map[string]string{"good": goodToken, "poor": poorToken}}}
}

// The vectors are what clawr serve does, and the built edge does the same in
// workerd: statuses, headers, bodies, charges and events.
func TestEdgeVectors(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("..", "testdata", "vectors", "edge")
	files := map[string]*vectorFile{}
	if *updateVectors {
		files = vectorCases()
	} else {
		paths, err := filepath.Glob(filepath.Join(dir, "*.json"))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no vectors in %s: %v", dir, err)
		}
		for _, p := range paths {
			b, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			f := new(vectorFile)
			if err := json.Unmarshal(b, f); err != nil {
				t.Fatalf("%s: %v", p, err)
			}
			files[strings.TrimSuffix(filepath.Base(p), ".json")] = f
		}
	}
	sides := vectorSides(t)
	got := make([]map[string]*vectorFile, len(sides))
	var wg sync.WaitGroup
	for i, s := range sides {
		wg.Go(func() { got[i] = s.run(t, files) })
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	want := files
	if *updateVectors {
		want = got[0]
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, f := range want {
			b, _ := json.MarshalIndent(f, "", " ")
			if err := os.WriteFile(filepath.Join(dir, name+".json"), append(b, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	out := struct {
		Cases       int `json:"cases"`
		Go          int `json:"go"`
		Workerd     int `json:"workerd"`
		Differences int `json:"differences"`
	}{}
	for name, f := range want {
		for i := range f.Cases {
			out.Cases++
			same := func(a, b *edgeVector) bool { return reflect.DeepEqual(a, b) }
			w, g, e := &f.Cases[i], &got[0][name].Cases[i], &got[1][name].Cases[i]
			if same(w, g) {
				out.Go++
			} else {
				t.Errorf("%s, go: %s", w.Name, difference(w, g))
			}
			if same(w, e) {
				out.Workerd++
			} else {
				t.Errorf("%s, workerd: %s", w.Name, difference(w, e))
			}
			if !same(g, e) {
				out.Differences++
			}
		}
	}
	line, _ := json.Marshal(out)
	t.Logf("%s", line)
	if path := os.Getenv("CLAWR_VECTORS_OUT"); path != "" {
		if err := os.WriteFile(path, append(line, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out.Cases < 150 || out.Go != out.Cases || out.Workerd != out.Cases || out.Differences != 0 {
		t.Errorf("the sides do not agree: %s", line)
	}
}

// difference shows the first place where two cases are not the same.
func difference(want, got *edgeVector) string {
	show := func(v any) string { b, _ := json.Marshal(v); return string(b) }
	for i := range want.Steps {
		if !reflect.DeepEqual(want.Steps[i].Expect, got.Steps[i].Expect) {
			w, g := want.Steps[i].Expect, got.Steps[i].Expect
			for _, k := range slices.Sorted(keysOf(w.Headers, g.Headers)) {
				if w.Headers[k] != g.Headers[k] {
					return fmt.Sprintf("step %d, header %s:\n got %s\nwant %s (status %d, %d)", i+1, k, g.Headers[k], w.Headers[k], g.Status, w.Status)
				}
			}
			return fmt.Sprintf("step %d:\n got %s\nwant %s", i+1, show(g), show(w))
		}
	}
	if want.Charged != got.Charged {
		return fmt.Sprintf("charged %d, want %d", got.Charged, want.Charged)
	}
	return fmt.Sprintf("events\n got %s\nwant %s", show(got.Events), show(want.Events))
}

func keysOf(ms ...map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		seen := map[string]bool{}
		for _, m := range ms {
			for k := range m {
				if !seen[k] && !yield(k) {
					return
				}
				seen[k] = true
			}
		}
	}
}

// run asks one side everything, several buyers at a time, and gives the cases
// with its answers.
func (s *side) run(t *testing.T, files map[string]*vectorFile) map[string]*vectorFile {
	out := map[string]*vectorFile{}
	ids := map[*edgeVector][]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	room := make(chan struct{}, 6)
	for name, f := range files {
		g := &vectorFile{About: f.About, Cases: make([]edgeVector, len(f.Cases))}
		out[name] = g
		for i := range f.Cases {
			g.Cases[i] = f.Cases[i]
			g.Cases[i].Steps = slices.Clone(f.Cases[i].Steps)
			v := &g.Cases[i]
			wg.Go(func() {
				room <- struct{}{}
				defer func() { <-room }()
				list, err := s.story(t, v)
				if err != nil {
					t.Errorf("%s, %s: %v", v.Name, s.name, err)
				}
				mu.Lock()
				ids[v] = list
				mu.Unlock()
			})
		}
	}
	wg.Wait()
	s.record(t, ids)
	return out
}

// record fills in the events, once there are no more to come.
func (s *side) record(t *testing.T, ids map[*edgeVector][]string) {
	byID := map[string]vectorEvent{}
	known := -1
	for deadline := time.Now().Add(60 * time.Second); time.Now().Before(deadline); time.Sleep(3 * time.Second) {
		a := get(t, s.url+"/__platform/events?limit=2000", "Authorization", "Bearer "+s.tokens["good"])
		var got struct{ Events []json.RawMessage }
		if err := json.Unmarshal([]byte(a.Body), &got); err != nil {
			t.Errorf("%s: events: %d %s", s.name, a.Status, a.Body)
			return
		}
		for _, raw := range got.Events {
			var id struct{ RequestID string }
			var e vectorEvent
			json.Unmarshal(raw, &id)
			json.Unmarshal(raw, &e)
			byID[id.RequestID] = e
		}
		if len(byID) == known {
			break
		}
		known = len(byID)
	}
	for v, list := range ids {
		v.Events = []vectorEvent{}
		for _, id := range list {
			if e, ok := byID[id]; ok {
				v.Events = append(v.Events, e)
			}
		}
	}
}

// story lets one buyer live through his case; it gives the ids of his requests.
func (s *side) story(t *testing.T, v *edgeVector) (ids []string, err error) {
	funds := int64(1_000_000)
	if v.Funds != nil {
		funds = *v.Funds
	}
	who := s.chain.account(t, funds)
	if d := v.Facilitator; d != nil {
		body := strings.ReplaceAll(d.Body, "%NET%", s.chain.network)
		s.front.on(who.Address().Hex(), func(path string, pass func() (int, string)) (int, string) {
			if path != d.Path {
				return pass()
			}
			return settleSays(d.Chain, d.Status, body)("/settle", pass)
		})
	}
	last := ""
	for i := range v.Steps {
		st := &v.Steps[i]
		var headers []string
		for _, h := range st.Headers {
			headers = append(headers, h[0], strings.NewReplacer("{good}", s.tokens["good"], "{poor}", s.tokens["poor"]).Replace(h[1]))
		}
		if st.Host != "" {
			headers = append(headers, "Host", st.Host)
		}
		if st.Pay != "" {
			name, header, err := s.payment(t, who, st, &last)
			if err != nil {
				return ids, fmt.Errorf("step %d: %w", i+1, err)
			}
			headers = append(headers, name, header)
		}
		a, err := ask(t, st.Method, s.url+st.Target, append(headers, "Accept-Encoding", "identity")...)
		if err != nil {
			return ids, fmt.Errorf("step %d: %w", i+1, err)
		}
		if id := a.Header.Get("X-Request-Id"); id != "" {
			ids = append(ids, id)
		}
		st.Expect = s.normal(a, strings.ToLower(who.Address().Hex()))
	}
	v.Charged = funds - s.chain.balance(t, who.Address())
	return ids, nil
}

// payment is the header of a step.
func (s *side) payment(t *testing.T, who *chain.Key, st *vectorStep, last *string) (name, header string, err error) {
	name = payHeader
	how, v1 := strings.CutPrefix(st.Pay, "v1 ")
	if v1 {
		name = "X-PAYMENT"
	}
	if how == "same" {
		return name, *last, nil
	}
	target, _, _ := strings.Cut(st.Target, "#")
	var with []string
	if st.Host != "" {
		with = []string{"Host", st.Host}
	}
	_, change, _ := strings.Cut(how, ":")
	if from, ok := strings.CutPrefix(change, "from "); ok { // what another URL asks is paid
		target, change = from, ""
	}
	a, err := ask(t, "GET", s.url+target, with...)
	if err != nil {
		return "", "", err
	}
	alter := vectorChanges[change]
	if change != "" && alter == nil {
		return "", "", fmt.Errorf("there is no change %q", change)
	}
	header, err = payFor(t, who, a, func(p *x402.PaymentPayload) {
		if v1 {
			p.Version = 1
		}
		if alter != nil {
			alter(t, who, s.chain, p)
		}
	})
	*last = header
	return name, header, err
}

// vectorChanges are the ways in which payments are altered.
var vectorChanges = map[string]func(*testing.T, *chain.Key, *testChain, *x402.PaymentPayload){
	"scheme": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) { p.Accepted.Scheme = "upto" },
	"network": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Accepted.Network = "eip155:1"
	},
	"amount": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) { p.Accepted.Amount = "1" },
	"asset": func(_ *testing.T, k *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Accepted.Asset = "0x0000000000000000000000000000000000000001"
	},
	"payTo": func(_ *testing.T, k *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Accepted.PayTo = "0x0000000000000000000000000000000000000001"
	},
	"time":    func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) { p.Accepted.MaxTimeoutSeconds++ },
	"name":    func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) { p.Accepted.Extra.Name = "USD" },
	"version": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) { p.Accepted.Extra.Version = "1" },
	"unknown": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Accepted.Rest = x402.Object{{Name: "bonus", Value: []byte("1")}}
	},
	"more": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Accepted.Extra.Rest = append(p.Accepted.Extra.Rest, x402.Member{Name: "more", Value: []byte("1")})
	},
	"no quote": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) { p.Accepted.Extra.Quote = "" },
	"a foreign quote": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Accepted.Extra.Quote = strings.Repeat("A", x402.QuoteLen)
	},
	"a short quote": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Accepted.Extra.Quote = p.Accepted.Extra.Quote[:70]
	},
	"a garbled quote": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Accepted.Extra.Quote = strings.Repeat("!", x402.QuoteLen)
	},
	"builder-code": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Extensions = x402.Object{{Name: "builder-code", Value: []byte(`{"info":{"a":"me"}}`)}}
	},
	"another echo": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Extensions = x402.Object{{Name: "payment-identifier", Value: []byte(`{"info":{"required":true}}`)}}
	},
	"no extensions": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) { p.Extensions = nil },
	"an identifier": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Identify("the-one-identifier-of-it")
	},
	"a bad identifier": func(_ *testing.T, _ *chain.Key, _ *testChain, p *x402.PaymentPayload) {
		p.Extensions = x402.Object{{Name: "payment-identifier", Value: []byte(`{"info":{"required":false,"id":"short"}}`)}}
	},
	"to":           exactly(func(_ *chain.Key, e *x402.Exact) { e.To = common.HexToAddress("0x01") }, true),
	"too little":   exactly(func(_ *chain.Key, e *x402.Exact) { e.Value = x402.Uint(999) }, true),
	"too much":     exactly(func(_ *chain.Key, e *x402.Exact) { e.Value = x402.Uint(1001) }, true),
	"zero":         exactly(func(_ *chain.Key, e *x402.Exact) { e.Value = x402.Uint(0) }, true),
	"too short":    exactly(func(_ *chain.Key, e *x402.Exact) { e.ValidBefore = x402.Uint(uint64(time.Now().Unix() + 5)) }, true),
	"over":         exactly(func(_ *chain.Key, e *x402.Exact) { e.ValidBefore = x402.Uint(1_000_000) }, true),
	"not yet":      exactly(func(_ *chain.Key, e *x402.Exact) { e.ValidAfter = x402.Uint(uint64(time.Now().Unix() + 1000)) }, true),
	"nonce":        exactly(func(_ *chain.Key, e *x402.Exact) { e.Nonce[0] ^= 1 }, false),
	"purse":        exactly(func(_ *chain.Key, e *x402.Exact) { e.From[0] ^= 1 }, false),
	"high s":       exactly(func(_ *chain.Key, e *x402.Exact) { e.Signature = highS(e.Signature) }, false),
	"no signature": exactly(func(_ *chain.Key, e *x402.Exact) { clear(e.Signature) }, false),
}

func exactly(change func(*chain.Key, *x402.Exact), signed bool) func(*testing.T, *chain.Key, *testChain, *x402.PaymentPayload) {
	return func(t *testing.T, who *chain.Key, c *testChain, p *x402.PaymentPayload) {
		e, err := x402.ParseExact(p.Payload)
		if err != nil {
			t.Error(err)
			return
		}
		change(who, e)
		if signed {
			if e.Signature, err = e.Sign(key(t, who), x402.NewDomain("USDC", "2", chainID(t, c.network), c.asset)); err != nil {
				t.Error(err)
			}
		}
		p.Payload = e.JSON()
	}
}

// vectorHeaders are compared; the others belong to the connection, the time, or
// a form of the body that one side packs.
var vectorHeaders = []string{"Cache-Control", "Content-Type", "Etag", "Link", "Allow", "Retry-After", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers", "Access-Control-Allow-Headers", "Access-Control-Allow-Methods",
	"Access-Control-Max-Age", "X-Clawr-Replayed", "Www-Authenticate", "X-Content-Type-Options", "X-Ratelimit-Limit", "X-Ratelimit-Remaining", "X-Usage-Day-Limit", "X-Usage-Day-Remaining", "X-Spend-Day-Limit", "X-Spend-Day-Remaining",
	"X-Spend-Month-Limit", "X-Spend-Month-Remaining"}

var normalForms = []struct {
	of *regexp.Regexp
	is string
}{
	{regexp.MustCompile(`req_[0-9a-f]{16}`), "REQ"}, {regexp.MustCompile(`tnt_[0-9a-f]{16}`), "TENANT"}, {regexp.MustCompile(`"quote":"[A-Za-z0-9_-]{80}"`), `"quote":"QUOTE"`}, {regexp.MustCompile(`cursor=[A-Za-z0-9_-]{43}`), "cursor=CURSOR"},
	{regexp.MustCompile(`"transaction":"0x[0-9a-f]{64}"`), `"transaction":"TX"`}, {regexp.MustCompile(`ends in -?[0-9]+ s`), "ends in N s"}, {regexp.MustCompile(`the payment header cannot be read: [^"]*`), "the payment header cannot be read: WHY"},
	{regexp.MustCompile(`wait [0-9]+ s`), "wait N s"}, {regexp.MustCompile(`"(timestamp|latencyMs)":[0-9.]+`), `"$1":0`}, {regexp.MustCompile(`"generatedAt":"[^"]*"`), `"generatedAt":"NOW"`}, {regexp.MustCompile(`"updated":"[^"]*"`), `"updated":"THEN"`},
	{regexp.MustCompile(`"retryAfter":[0-9]{2,}`), `"retryAfter":LATER`}, {regexp.MustCompile(`the quote ended [0-9.]+m?s ago`), "the quote ended N ago"},
}

// dayEnd is when the UTC day of a moment ends, as who has used up a day's quota
// is told. Another time is not the one that is wanted.
func dayEnd(t time.Time) string {
	return t.UTC().Truncate(24 * time.Hour).Add(24 * time.Hour).Format(time.RFC3339)
}

// normal leaves of an answer what both sides have to agree on.
func (s *side) normal(a answer, payer string) vectorAnswer {
	now := time.Now()
	clean := func(text string) string {
		text = strings.NewReplacer(dayEnd(now), "MIDNIGHT", dayEnd(now.Add(-time.Minute)), "MIDNIGHT", strings.TrimPrefix(s.url, "http://"), "HOST", payer, "PAYER", s.payTo, "SELLER", strings.ToLower(s.chain.asset.Hex()), "ASSET").Replace(text)
		text = regexp.MustCompile(`(?i)`+payer).ReplaceAllString(text, "PAYER")
		for _, f := range normalForms {
			text = f.of.ReplaceAllString(text, f.is)
		}
		return text
	}
	out := vectorAnswer{Status: a.Status, Headers: map[string]string{}, Body: clean(a.Body)}
	for _, name := range vectorHeaders {
		if values := a.Header.Values(name); len(values) > 0 {
			out.Headers[name] = clean(strings.Join(values, ", "))
		}
	}
	if out.Headers["Cache-Control"] == "public, max-age=60" {
		out.Headers["Etag"] = "" // free pages name the time of their publication
	}
	if n := out.Headers["Retry-After"]; len(n) > 1 {
		out.Headers["Retry-After"] = "LATER"
	}
	if strings.Contains(strings.Join(a.Header.Values("Vary"), ","), "PAYMENT-SIGNATURE") {
		out.Headers["Vary"] = "PAYMENT-SIGNATURE, X-PAYMENT"
	}
	if a.Header.Get("X-Tenant-Id") != "" {
		out.Headers["X-Tenant-Id"] = "TENANT"
	}
	for _, name := range []string{x402.HeaderRequired, x402.HeaderResponse, x402.HeaderResponseV1} {
		if v := a.Header.Get(name); v != "" {
			raw, err := base64.StdEncoding.DecodeString(v)
			if err != nil {
				raw = []byte(v)
			}
			text := clean(string(raw))
			if strings.Contains(text, `"success":false`) {
				text = strings.Replace(text, `"transaction":"TX"`, `"transaction":""`, 1) // a hint, for as long as somebody has it
			}
			out.Headers[http.CanonicalHeaderKey(name)] = text
		}
	}
	return out
}

package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	nouns "github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/dataset"
	"github.com/402claw/clawr/x402"
)

// edgeBundles builds the edge's Workers once for all tests.
var edgeBundles = sync.OnceValues(func() (string, error) {
	path, err := binary() // whose directory goes when the tests are over
	if err != nil {
		return "", err
	}
	dir := filepath.Join(filepath.Dir(path), "edge")
	out, err := exec.Command("node", filepath.Join("edge", "build.mjs"), dir).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build of the edge: %w\n%s", err, out)
	}
	return dir, nil
})

// The secrets that every edge of the tests has.
const (
	quoteSecret = "71756f7465207365637265742071756f7465207365637265742071756f746520"
	callerSalt  = "63616c6c6572"
	cursorKey   = "637572736f72206b6579"
)

// edgeTenant is a tenant's Worker, as edge/serve.mjs takes it.
type edgeTenant struct {
	Manifest  string `json:"manifest,omitempty"`
	Rows      string `json:"rows,omitempty"`
	SQL       string `json:"sql,omitempty"`
	CursorKey string `json:"cursorKey,omitempty"`
	Script    string `json:"script,omitempty"`
	Database  bool   `json:"database,omitempty"` // it was filled before
	discovery any    // of its challenges
}

// edgeEntry is an entry of the directory in KV.
type edgeEntry struct {
	nouns.Tenant
	Revision   int64       `json:"revision"`
	LedgerHome string      `json:"ledgerHome,omitempty"`
	Previous   []edgeEntry `json:"previous,omitempty"`
	Discovery  any         `json:"discovery,omitempty"`
}

// edgeConfig is what edge/serve.mjs reads.
type edgeConfig struct {
	Dir       string                 `json:"dir"`
	Bundles   string                 `json:"bundles"`
	Port      int                    `json:"port"`
	Vars      map[string]string      `json:"vars"`
	Tenants   map[string]*edgeTenant `json:"tenants"`
	Directory map[string]any         `json:"directory"`
}

// edge is the built edge in workerd.
type edge struct {
	*proc
	chain   *testChain
	payTo   common.Address
	url     string
	control string
	config  edgeConfig
	file    string
}

// edgeData makes a dataset tenant and its Worker from a file's content.
func edgeData(t testing.TB, c *testChain, slug, text string, payTo common.Address, o dataset.Options, change ...func(*nouns.Tenant)) (nouns.Tenant, *edgeTenant) {
	t.Helper()
	dir := t.TempDir()
	rep, err := dataset.Ingest(t.Context(), strings.NewReader(text), slug+".csv", o, dir)
	if err != nil {
		t.Fatal(err)
	}
	seg, err := dataset.Open(rep.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer seg.Close()
	asset := c.clawrAsset()
	tenant := nouns.Tenant{ID: edgeID(slug), Slug: slug, Status: nouns.StatusActive, Version: 1, Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Manifest: nouns.Manifest{Kind: nouns.KindDataset, Owner: "codex", Directory: "APIs", Plan: nouns.PlanPro, Price: 1000, X402: true, PayTo: strings.ToLower(payTo.Hex()),
			Network: asset.Network, WorkerName: "tenant-" + slug + "-v1", Content: rep.ID, Rows: rep.Schema.Rows}}
	for _, f := range change {
		f(&tenant)
	}
	h := &dataset.Handler{Segment: seg, Facts: dataset.Facts{Price: tenant.Price, Paid: tenant.Paid(), Network: asset.Network, Asset: asset, PayTo: tenant.PayTo, Scheme: "exact", Updated: tenant.Created, BasePath: "/t/" + slug}}
	manifest, err := h.EdgeManifest()
	if err != nil {
		t.Fatal(err)
	}
	path, bazaar, err := h.Discovery()
	if err != nil {
		t.Fatal(err)
	}
	var rows, sql strings.Builder
	if err := seg.WriteRows(&rows); err != nil {
		t.Fatal(err)
	}
	if seg.EdgeLarge() {
		if err := seg.WriteD1(&sql); err != nil {
			t.Fatal(err)
		}
	}
	return tenant, &edgeTenant{Manifest: string(manifest), Rows: rows.String(), SQL: sql.String(), CursorKey: cursorKey, discovery: map[string]any{"path": path, "bazaar": bazaar}}
}

// edgeID is the id of the tests' tenant of that slug.
func edgeID(slug string) string { return "tnt_" + sha(slug)[:16] }

// clawrAsset is the chain's token as prices are paid in it.
func (c *testChain) clawrAsset() nouns.Asset {
	return nouns.Asset{Network: c.network, Address: strings.ToLower(c.asset.Hex()), Name: "USDC", Version: "2", Decimals: 6}
}

// newEdge prepares an edge that settles by the facilitators at urls.
func newEdge(t testing.TB, c *testChain, payTo common.Address, urls ...string) *edge {
	t.Helper()
	bundles, err := edgeBundles()
	if err != nil {
		t.Fatal(err)
	}
	asset, _ := json.Marshal(c.clawrAsset())
	return &edge{chain: c, payTo: payTo, file: filepath.Join(t.TempDir(), "edge.json"), config: edgeConfig{Dir: t.TempDir(), Bundles: bundles,
		Tenants: map[string]*edgeTenant{}, Directory: map[string]any{},
		Vars: map[string]string{"ASSET": string(asset), "FACILITATOR_URLS": strings.Join(urls, ","), "QUOTE_SECRETS": quoteSecret, "CALLER_SALT": callerSalt, "RPC_URL": c.rpc,
			"PLATFORM_TOKENS": fmt.Sprintf(`[{"sha256":%q,"scopes":["events:read","analytics:read","tenants:write"]},{"sha256":%q,"scopes":["payments:read"]}]`, sha(goodToken), sha(poorToken))}}}
}

// The tokens that an edge of the tests knows.
const (
	goodToken = "clawr_good"
	poorToken = "clawr_poor"
)

func sha(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// publish puts a tenant and its Worker in.
func (e *edge) publish(tenant nouns.Tenant, w *edgeTenant) {
	e.config.Tenants[tenant.WorkerName] = w
	e.entry(edgeEntry{Tenant: tenant, Revision: 1, Discovery: w.discovery})
}

func (e *edge) entry(entry edgeEntry) {
	e.config.Directory["slug:"+entry.Slug] = entry
	for _, h := range entry.Hosts {
		e.config.Directory["host:"+h] = entry
	}
}

// up starts the edge, again after a kill: on the same address, with the same
// storage.
func (e *edge) up(t testing.TB) {
	t.Helper()
	if e.proc != nil {
		_, port, _ := strings.Cut(e.addr, ":")
		e.config.Port, _ = strconv.Atoi(port)
	}
	raw, err := json.Marshal(e.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(e.file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", filepath.Join("edge", "serve.mjs"), e.file)
	var out lockedBuffer
	cmd.Stdout = &out
	e.proc = start(t, cmd)
	t.Cleanup(e.die)
	e.url = "http://" + e.addr
	e.control = ""
	for deadline := time.Now().Add(10 * time.Second); e.control == ""; time.Sleep(time.Millisecond) {
		var said struct{ Control string }
		json.Unmarshal(out.Bytes(), &said) // it may be on its way yet
		e.control = said.Control
		if time.Now().After(deadline) {
			t.Fatalf("the edge has no control: %s", out.Bytes())
		}
	}
	for _, w := range e.config.Tenants {
		if w != nil && w.SQL != "" {
			w.SQL, w.Database = "", true // its database is filled by now
		}
	}
}

// die kills workerd and what drives it, as kill -9 does.
func (e *edge) die() {
	for _, pid := range children(e.Process.Pid) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	e.kill()
}

// children are the processes whose parent is pid.
func children(pid int) (list []int) {
	dirs, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range dirs {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			n, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			list = append(list, n)
		}
	}
	return list
}

// tell asks something of the runtime around the edge.
func (e *edge) tell(t testing.TB, path string, body, into any) {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.Post(e.control+path, "application/json", bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %s %v", path, res.StatusCode, b, err)
	}
	if into != nil {
		if err := json.Unmarshal(b, into); err != nil {
			t.Fatalf("%s: %s: %v", path, b, err)
		}
	}
}

// answer is what the edge says to one request.
type answer struct {
	Status int
	Header http.Header
	Body   string
}

func (a answer) code() string {
	var v struct{ Error string }
	json.Unmarshal([]byte(a.Body), &v)
	return v.Error
}

// receipt is its PAYMENT-RESPONSE.
func (a answer) receipt(t testing.TB) *x402.SettleResponse {
	t.Helper()
	r, err := x402.ParseResponse(a.Header.Get(x402.HeaderResponse))
	if err != nil {
		t.Fatalf("%d %s: no receipt: %v", a.Status, a.Body, err)
	}
	return r
}

var edgeClient = &http.Client{Timeout: 90 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport: &http.Transport{MaxIdleConnsPerHost: 256}}

// ask sends a request with headers in pairs; an error is a connection that broke.
func ask(ctx testing.TB, method, url string, headers ...string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx.Context(), method, url, nil)
	if err != nil {
		ctx.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
		} else {
			req.Header.Add(headers[i], headers[i+1])
		}
	}
	res, err := edgeClient.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(b)}, err
}

func get(t testing.TB, url string, headers ...string) answer {
	t.Helper()
	a, err := ask(t, "GET", url, headers...)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// key is a chain's key as the protocol signs with it.
func key(t testing.TB, k *chain.Key) *ecdsa.PrivateKey {
	t.Helper()
	out, err := crypto.HexToECDSA(strings.TrimPrefix(k.Reveal(), "0x"))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sign pays what the challenge of url asks, and gives the header. change may
// alter the payment before it is encoded.
func sign(t testing.TB, who *chain.Key, url string, change func(*x402.PaymentPayload), headers ...string) string {
	t.Helper()
	header, err := payFor(t, who, get(t, url, headers...), change)
	if err != nil {
		t.Fatalf("%s: %v", url, err)
	}
	return header
}

// payFor signs a payment of what a answer asks for.
func payFor(t testing.TB, who *chain.Key, a answer, change func(*x402.PaymentPayload)) (string, error) {
	if a.Status != http.StatusPaymentRequired {
		return "", fmt.Errorf("answered %d %s, not with a challenge", a.Status, a.Body)
	}
	r, err := x402.ParseRequired(a.Header.Get(x402.HeaderRequired))
	if err != nil {
		return "", err
	}
	var nonce common.Hash
	rand.Read(nonce[:])
	p, err := x402.Pay(key(t, who), r, &r.Accepts[0], nonce, time.Now())
	if err != nil {
		return "", err
	}
	if change != nil {
		change(p)
	}
	return p.Header(), nil
}

// events waits until the edge's database has what is wanted of its events.
func (e *edge) events(t testing.TB, enough func([]map[string]any) bool) []map[string]any {
	t.Helper()
	var got struct{ Events []map[string]any }
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		a := get(t, e.url+"/__platform/events?limit=2000", "Authorization", "Bearer "+goodToken)
		if err := json.Unmarshal([]byte(a.Body), &got); err != nil || a.Status != http.StatusOK {
			t.Fatalf("%d %s: %v", a.Status, a.Body, err)
		}
		if enough(got.Events) {
			return got.Events
		}
		if time.Now().After(deadline) {
			t.Fatalf("the events after 30 s: %v", got.Events)
		}
	}
}

// shop is an edge that sells the airports by clawr's own facilitator.
func shop(t testing.TB, c *testChain, change func(*edge)) (*edge, string) {
	t.Helper()
	seller, err := chain.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	e := newEdge(t, c, seller.Address(), facilitate(t, c, seller.Address()))
	csv, err := os.ReadFile(airports)
	if err != nil {
		t.Fatal(err)
	}
	tenant, w := edgeData(t, c, "airports", string(csv), e.payTo, dataset.Options{Key: "iata"})
	tenant.Hosts = []string{"airports.api.example.com"}
	e.publish(tenant, w)
	if change != nil {
		change(e)
	}
	e.up(t)
	return e, e.url + "/t/airports/v1/records"
}

package e2e

import (
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
)

// part is one part of an upload, as a careless client might send it.
type part struct{ name, file, kind, text string }

func upload(t *testing.T, parts ...part) (kind string, body []byte) {
	t.Helper()
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	for _, p := range parts {
		h := textproto.MIMEHeader{}
		d := fmt.Sprintf(`form-data; name=%q`, p.name)
		if p.file != "" {
			d += fmt.Sprintf(`; filename=%q`, p.file)
		}
		h.Set("Content-Disposition", d)
		if p.kind != "" {
			h.Set("Content-Type", p.kind)
		}
		w, err := m.CreatePart(h)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, p.text)
	}
	m.Close()
	return m.FormDataContentType(), b.Bytes()
}

// ask sends a request to the look-alike's API, and gives its status and the
// code of its first error, 0 if it was done.
func (l *lookalike) ask(t *testing.T, token, method, path, kind string, body []byte) (status, code int, result []byte) {
	t.Helper()
	req, err := http.NewRequest(method, l.api+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var env struct {
		Success bool
		Errors  []struct{ Code int }
		Result  json.RawMessage
	}
	if err := json.Unmarshal(b, &env); err != nil {
		return res.StatusCode, -1, b
	}
	if len(env.Errors) > 0 {
		code = env.Errors[0].Code
	}
	if env.Success != (code == 0) {
		t.Errorf("%s %s: %s", method, path, b)
	}
	return res.StatusCode, code, env.Result
}

// The look-alike refuses what the real API refuses, by its codes: a test that
// passes against something lenient shows nothing.
func TestTheLookalikeIsStrict(t *testing.T) {
	l := startLookalike(t, 1200)
	const scripts = "/accounts/" + cfAccount + "/workers/scripts/mine"
	const tenants = "/accounts/" + cfAccount + "/workers/dispatch/namespaces/live/scripts/mine"
	const kv, d1 = "/accounts/" + cfAccount + "/storage/kv/namespaces", "/accounts/" + cfAccount + "/d1/database"
	made := func(path, body string) (id string) {
		_, code, result := l.ask(t, cfToken, "POST", path, "application/json", []byte(body))
		var r struct{ ID, UUID string }
		if json.Unmarshal(result, &r) != nil || code != 0 {
			t.Fatalf("POST %s %s: %d %s", path, body, code, result)
		}
		return r.ID + r.UUID
	}
	directory, database := made(kv, `{"title":"d"}`), made(d1, `{"name":"d"}`)

	for _, c := range []struct {
		name, token, method, path, body string
		status, code                    int
	}{
		{"no token", "", "GET", kv, "", 400, 9106},
		{"a wrong token", "nobody's", "GET", kv, "", 401, 10000},
		{"a read-only token writes", cfReader, "POST", kv, `{"title":"x"}`, 403, 10000},
		{"another account's token", cfForeign, "GET", kv, "", 403, 10000},
		{"no account", cfToken, "GET", "/accounts/nobody/workers/subdomain", "", 404, 7003},
		{"no endpoint", cfToken, "GET", "/accounts/" + cfAccount + "/nothing", "", 404, 7000},
		{"no Worker", cfToken, "GET", scripts + "/settings", "", 404, 10007},
		{"no service", cfToken, "GET", "/accounts/" + cfAccount + "/workers/services/none", "", 404, 10090},
		{"no tenant", cfToken, "GET", tenants + "/settings", "", 404, 10092},
		{"no namespace", cfToken, "GET", "/accounts/" + cfAccount + "/workers/dispatch/namespaces/none", "", 404, 100119},
		{"a namespace twice", cfToken, "POST", "/accounts/" + cfAccount + "/workers/dispatch/namespaces", `{"name":"live"}`, 409, 100120},
		{"a title twice", cfToken, "POST", kv, `{"title":"d"}`, 400, 10014},
		{"no KV namespace", cfToken, "PUT", kv + "/none/bulk", `[{"key":"a","value":"b"}]`, 404, 10013},
		{"no key", cfToken, "GET", kv + "/" + directory + "/values/none", "", 404, 10009},
		{"no pairs", cfToken, "PUT", kv + "/" + directory + "/bulk", `[]`, 400, 10030},
		{"10,001 pairs", cfToken, "PUT", kv + "/" + directory + "/bulk", "[" + strings.Repeat(`{"key":"a","value":"b"},`, 10_000) + `{"key":"a","value":"b"}]`, 400, 10030},
		{"a long key", cfToken, "PUT", kv + "/" + directory + "/bulk", `[{"key":"` + strings.Repeat("k", 513) + `","value":"b"}]`, 400, 10029},
		{"a short life", cfToken, "PUT", kv + "/" + directory + "/bulk", `[{"key":"a","value":"b","expiration_ttl":30}]`, 400, 10020},
		{"an unknown member of a pair", cfToken, "PUT", kv + "/" + directory + "/bulk", `[{"key":"a","value":"b","ttl":60}]`, 400, 10012},
		{"a database twice", cfToken, "POST", d1, `{"name":"d"}`, 409, 7502},
		{"no database", cfToken, "POST", d1 + "/none/query", `{"sql":"SELECT 1"}`, 404, 7404},
		{"wrong SQL", cfToken, "POST", d1 + "/" + database + "/query", `{"sql":"SELEKT 1"}`, 400, 7500},
		{"params that are no text", cfToken, "POST", d1 + "/" + database + "/query", `{"sql":"SELECT ?","params":[1]}`, 400, 7400},
		{"no MD5", cfToken, "POST", d1 + "/" + database + "/import", `{"action":"init","etag":"x"}`, 400, 7400},
		{"ingest before upload", cfToken, "POST", d1 + "/" + database + "/import", `{"action":"ingest","etag":"00000000000000000000000000000000","filename":"` + database + `.00000000000000000000000000000000.sql"}`, 400, 7400},
	} {
		if status, code, b := l.ask(t, c.token, c.method, c.path, "application/json", []byte(c.body)); status != c.status || code != c.code {
			t.Errorf("%s: %d %d %s, want %d %d", c.name, status, code, b, c.status, c.code)
		}
	}

	const esm, text = "application/javascript+module", "text/plain"
	fine := func(more string) part {
		return part{"metadata", "", "application/json", `{"main_module":"a.js","compatibility_date":"2026-07-01"` + more + `}`}
	}
	module := part{"a.js", "a.js", esm, `export class L {} export default { fetch() { return new Response("hi"); } };`}
	noise := make([]byte, 11<<20)
	rand.Read(noise)
	for _, c := range []struct {
		name  string
		parts []part
		code  int
	}{
		{"no metadata", []part{module}, 10026},
		{"metadata that is no JSON", []part{{"metadata", "", "application/json", "{"}, module}, 10026},
		{"an unknown member", []part{fine(`,"compatability_flags":[]`), module}, 10026},
		{"no main module", []part{{"metadata", "", "application/json", `{"main_module":"b.js","compatibility_date":"2026-07-01"}`}, module}, 10021},
		{"a module as Go sends files", []part{fine(""), {"a.js", "a.js", "application/octet-stream", module.text}}, 10021},
		{"a module without a type that is known", []part{fine(""), {"a.js", "a.js", "application/json", module.text}}, 10021},
		{"a name that differs", []part{fine(""), {"a.js", "b.js", esm, module.text}}, 10021},
		{"no date", []part{{"metadata", "", "application/json", `{"main_module":"a.js"}`}, module}, 10021},
		{"a date to come", []part{{"metadata", "", "application/json", `{"main_module":"a.js","compatibility_date":"2099-01-01"}`}, module}, 10021},
		{"a syntax error", []part{fine(""), {"a.js", "a.js", esm, "export default {"}}, 10021},
		{"what throws at once", []part{fine(""), {"a.js", "a.js", esm, `throw new Error("early"); export default { fetch() {} };`}}, 10021},
		{"an import that is not there", []part{fine(""), {"a.js", "a.js", esm, `import "./b.js"; export default { fetch() {} };`}}, 10021},
		{"no handler", []part{fine(""), {"a.js", "a.js", esm, "export const a = 1;"}}, 10068},
		{"over 10 MB", []part{fine(""), module, {"n.txt", "n.txt", text, hex.EncodeToString(noise)}}, 10027},
		{"nine tags", []part{fine(`,"tags":["1","2","3","4","5","6","7","8","9"]`), module}, 10021},
		{"a tag with a comma", []part{fine(`,"tags":["a,b"]`), module}, 10021},
		{"limits as a dispatch spells them", []part{fine(`,"limits":{"cpuMs":50}`), module}, 10021},
		{"an unknown binding", []part{fine(`,"bindings":[{"type":"kv","name":"X"}]`), module}, 10021},
		{"an unknown member of a binding", []part{fine(`,"bindings":[{"type":"plain_text","name":"X","text":"a","value":"b"}]`), module}, 10021},
		{"a variable without text", []part{fine(`,"bindings":[{"type":"plain_text","name":"X"}]`), module}, 10021},
		{"6 KB of variable", []part{fine(`,"bindings":[{"type":"plain_text","name":"X","text":"` + strings.Repeat("x", 6<<10) + `"}]`), module}, 10055},
		{"no such KV namespace", []part{fine(`,"bindings":[{"type":"kv_namespace","name":"X","namespace_id":"none"}]`), module}, 10041},
		{"no such database", []part{fine(`,"bindings":[{"type":"d1","name":"X","id":"none"}]`), module}, 10021},
		{"no such namespace", []part{fine(`,"bindings":[{"type":"dispatch_namespace","name":"X","namespace":"none"}]`), module}, 100119},
		{"nothing to inherit", []part{fine(`,"bindings":[{"type":"inherit","name":"X"}]`), module}, 10057},
		{"a class without migration", []part{fine(`,"bindings":[{"type":"durable_object_namespace","name":"X","class_name":"L"}]`), module}, 10061},
		{"a migration from another tag", []part{fine(`,"migrations":{"old_tag":"v1","new_tag":"v2","new_sqlite_classes":["L"]}`), module}, 10079},
		{"a class that is not exported", []part{fine(`,"bindings":[{"type":"durable_object_namespace","name":"X","class_name":"M"}],"migrations":{"new_tag":"v1","new_sqlite_classes":["M"]}`), module}, 10070},
	} {
		kind, body := upload(t, c.parts...)
		if _, code, b := l.ask(t, cfToken, "PUT", scripts+"?bindings_inherit=strict", kind, body); code != c.code {
			t.Errorf("%s: %d %s, want %d", c.name, code, b, c.code)
		}
	}
	if _, code, _ := l.ask(t, cfToken, "GET", scripts+"/settings", "", nil); code != 10007 {
		t.Errorf("something that was refused is there: %d", code)
	}

	// Secrets are kept when they are not named, and never come back.
	put := func(more string) {
		t.Helper()
		kind, body := upload(t, fine(more), module)
		if _, code, b := l.ask(t, cfToken, "PUT", scripts+"?bindings_inherit=strict", kind, body); code != 0 {
			t.Fatalf("%d %s", code, b)
		}
	}
	settings := func() string {
		_, _, b := l.ask(t, cfToken, "GET", scripts+"/settings", "", nil)
		return string(b)
	}
	put(`,"bindings":[{"type":"secret_text","name":"S","text":"hush"},{"type":"plain_text","name":"P","text":"loud"}],"migrations":{"new_tag":"v1","new_sqlite_classes":["L"]}`)
	put(`,"keep_bindings":["secret_text"],"bindings":[{"type":"durable_object_namespace","name":"O","class_name":"L"}]`)
	if s := settings(); strings.Contains(s, "hush") || !strings.Contains(s, `"S"`) || strings.Contains(s, `"P"`) || !strings.Contains(s, `"O"`) {
		t.Errorf("settings %s", s)
	}
	kind, body := upload(t, fine(`,"migrations":{"new_tag":"v1","new_sqlite_classes":["L"]}`), module)
	if _, code, _ := l.ask(t, cfToken, "PUT", scripts, kind, body); code != 10079 {
		t.Errorf("a migration that was done was done again: %d", code)
	}
	put("")
	if s := settings(); strings.Contains(s, `"S"`) {
		t.Errorf("a secret that was not kept is there: %s", s)
	}

	// What was uploaded to D1 is compared by its MD5, and a signed URL takes no token.
	sum := md5.Sum([]byte("SELECT 1;"))
	etag := hex.EncodeToString(sum[:])
	_, _, result := l.ask(t, cfToken, "POST", d1+"/"+database+"/import", "application/json", []byte(`{"action":"init","etag":"`+etag+`"}`))
	var in struct {
		URL string `json:"upload_url"`
	}
	if err := json.Unmarshal(result, &in); err != nil || in.URL == "" {
		t.Fatalf("%s: %v", result, err)
	}
	for _, c := range []struct {
		url, token, text string
		status           int
	}{{in.URL + "0", "", "SELECT 1;", 403}, {in.URL, "Bearer " + cfToken, "SELECT 1;", 400}, {in.URL, "", "SELECT 2;", 200}, {in.URL, "", "SELECT 1;", 200}} {
		req, err := http.NewRequest("PUT", c.url, strings.NewReader(c.text))
		if err != nil {
			t.Fatal(err)
		}
		if c.token != "" {
			req.Header.Set("Authorization", c.token)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		want := md5.Sum([]byte(c.text))
		if res.StatusCode != c.status || c.status == 200 && res.Header.Get("ETag") != `"`+hex.EncodeToString(want[:])+`"` {
			t.Errorf("PUT %q: %s, ETag %s", c.text, res.Status, res.Header.Get("ETag"))
		}
	}
}

// Past the limit every call is refused, reading ones too.
func TestTheLookalikeCountsCalls(t *testing.T) {
	l := startLookalike(t, 5)
	for i := range 8 {
		status, _, _ := l.ask(t, cfToken, "GET", "/user/tokens/verify", "", nil)
		if want := map[bool]int{true: 200, false: 429}[i < 5]; status != want {
			t.Errorf("call %d: %d, want %d", i+1, status, want)
		}
	}
}

package cloudflare

import (
	"bytes"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/402claw/clawr"
)

func worker() *Worker {
	return &Worker{Name: "tenant-acme-v1", Namespace: "prod", Secrets: map[string]string{"CURSOR_KEY": "abc"},
		Modules:  []Module{{"tenant.js", TypeModule, []byte("export default {}")}, {"lib/rows.ndjson", TypeText, []byte("{}\n")}},
		Metadata: Metadata{Main: "tenant.js", Compatibility: Compatibility, Keep: keptBindings, Bindings: []Binding{{Type: "d1", Name: "DB", Database: "d"}}}}
}

// The API names modules by their file names, older schemas by the names of the
// parts, and takes a part of an unknown type for a binary.
func TestPartsAreNamedAndTypedAsTheAPIWants(t *testing.T) {
	kind, body, err := worker().form()
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(kind)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	r := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		p, err := r.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		_, d, _ := mime.ParseMediaType(p.Header.Get("Content-Disposition"))
		got = append(got, strings.Join([]string{d["name"], d["filename"], p.Header.Get("Content-Type")}, " "))
		if d["name"] != "metadata" {
			continue
		}
		var m map[string]any
		if err := json.NewDecoder(p).Decode(&m); err != nil {
			t.Fatal(err)
		}
		want := []any{map[string]any{"type": "d1", "name": "DB", "id": "d"}, map[string]any{"type": "secret_text", "name": "CURSOR_KEY", "text": "abc"}}
		if !reflect.DeepEqual(m["bindings"], want) || m["main_module"] != "tenant.js" || fmt.Sprint(m["keep_bindings"]) != "[secret_text secret_key]" {
			t.Errorf("metadata %v", m)
		}
	}
	want := []string{"metadata  application/json", "tenant.js tenant.js application/javascript+module", "lib/rows.ndjson lib/rows.ndjson text/plain"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("parts %q, want %q", got, want)
	}
}

// A dispatch takes cpuMs and subRequests; an upload takes the same numbers
// under other names, and the wrong ones would be no limit at all.
func TestLimitsAreSpelledAsUploadsSpellThem(t *testing.T) {
	b, _ := json.Marshal(LimitsOf(clawr.Limits{CPUMs: 180, SubRequests: 40}))
	if string(b) != `{"cpu_ms":180,"subrequests":40}` {
		t.Errorf("%s", b)
	}
}

func TestWhatIsTooLargeIsRefusedBeforeItIsSent(t *testing.T) {
	noise := make([]byte, MaxWorker+1<<20)
	rand.Read(noise)
	for name, c := range map[string]struct {
		change func(*Worker)
		ok     bool
	}{
		"small":             {func(*Worker) {}, true},
		"11 MB that shrink": {func(w *Worker) { w.Modules[1].Content = make([]byte, 11<<20) }, true},
		"11 MB of noise":    {func(w *Worker) { w.Modules[1].Content = noise }, false},
		"a large secret":    {func(w *Worker) { w.Secrets["X"] = strings.Repeat("x", maxVariable+1) }, false},
		"a large variable": {func(w *Worker) {
			w.Metadata.Bindings = append(w.Metadata.Bindings, Binding{Type: "plain_text", Name: "X", Text: strings.Repeat("x", maxVariable+1)})
		}, false},
	} {
		w := worker()
		c.change(w)
		if err := w.check(); c.ok != (err == nil) || err != nil && clawr.CodeOf(err) != CodeTooLarge {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAShelfGivesBackWhatItKeptWithoutSecrets(t *testing.T) {
	s := Shelf{t.TempDir()}
	w := worker()
	hash, err := s.Keep(w)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Keep(w); again != hash || err != nil {
		t.Errorf("kept again as %s, %v", again, err)
	}
	got, err := s.Load(hash)
	if err != nil || got.Hash() != hash || got.Name != w.Name || len(got.Modules) != 2 || string(got.Modules[1].Content) != "{}\n" {
		t.Fatalf("%+v, %v", got, err)
	}
	filepath.Walk(s.Dir, func(path string, info os.FileInfo, _ error) error {
		if info.Mode().IsRegular() {
			if b, _ := os.ReadFile(path); bytes.Contains(b, []byte("abc")) || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v %s", path, info.Mode(), b)
			}
		}
		return nil
	})
	if err := os.WriteFile(filepath.Join(s.Dir, "bundles", hash, "tenant.js"), []byte("evil"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(hash); clawr.CodeOf(err) != clawr.CodeFile {
		t.Errorf("a changed bundle was loaded: %v", err)
	}
	if _, err := s.Load(strings.Repeat("0", 64)); clawr.CodeOf(err) != CodeMissing {
		t.Errorf("%v", err)
	}
	w.Modules[0].Name = "../../evil.js"
	if _, err := s.Keep(w); err == nil {
		t.Error("a module was written outside")
	}
}

func TestHistorySurvivesACutLine(t *testing.T) {
	s := Shelf{t.TempDir()}
	for i, bundle := range []string{"aa", "bb", "aa", "cc"} {
		if err := s.Note(Upload{At: time.Unix(int64(i), 0), Account: "acc", Script: "d", Bundle: bundle, Serves: "prod", URL: "https://" + bundle}); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(filepath.Join(s.Dir, historyName), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"at":"2026-`)
	f.Close()
	for _, c := range []struct{ now, to, want string }{{"cc", "", "aa"}, {"aa", "", "cc"}, {"cc", "b", "bb"}, {"", "", "cc"}} {
		if got, err := s.before("acc", "d", c.now, c.to); got != c.want || err != nil {
			t.Errorf("before %q, to %q: %q, %v", c.now, c.to, got, err)
		}
	}
	if _, err := s.before("acc", "d", "cc", "dd"); clawr.CodeOf(err) != CodeMissing {
		t.Errorf("%v", err)
	}
	if _, err := s.before("other", "d", "cc", ""); clawr.CodeOf(err) != CodeMissing {
		t.Errorf("another account's: %v", err)
	}
	if u, err := s.Serving("acc", "prod"); err != nil || u == nil || u.URL != "https://cc" {
		t.Errorf("%+v, %v", u, err)
	}
}

func TestBundlesAreSplitAndReadNothingElse(t *testing.T) {
	src := fstest.MapFS{
		"a.ts": {Data: []byte(`import { x } from "./lib/c"; import m from "./manifest.json"; import { connect } from "cloudflare:sockets"; export default { fetch(): Response { return new Response(x + m + connect) } };`)},
		"b.ts": {Data: []byte(`import { x } from "./lib/c"; export const y: number = x;`)}, "lib/c.ts": {Data: []byte(`export const x = 7;`)},
	}
	first, err := bundle(src, "a.ts", "b.ts")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range first {
		if m.Type == TypeModule {
			names = append(names, m.Name)
		}
	}
	if len(names) != 3 || names[0] != "a.js" || !strings.HasPrefix(names[1], "b.js") && !strings.HasPrefix(names[2], "b.js") {
		t.Errorf("modules %q", names)
	}
	if !bytes.Contains(first[0].Content, []byte("./manifest.json")) || !bytes.Contains(first[0].Content, []byte("cloudflare:sockets")) {
		t.Errorf("%s", first[0].Content)
	}
	again, err := bundle(src, "a.ts", "b.ts")
	if err != nil || !reflect.DeepEqual(first, again) {
		t.Errorf("a second build differs: %v", err)
	}
	for _, text := range []string{`import "../../../etc/passwd";`, `import "/etc/passwd";`, `import "left-pad";`, `import {`} {
		if _, err := bundle(fstest.MapFS{"a.ts": {Data: []byte(text)}}, "a.ts"); err == nil {
			t.Errorf("%s was bundled", text)
		}
	}
}

func TestImportsAreStreamedAndCompared(t *testing.T) {
	m := &Import{Content: "c0ffee", Write: func(w io.Writer) error {
		for i := range 1000 {
			if _, err := fmt.Fprintf(w, "INSERT INTO records (_row, a) VALUES (%d,'it''s; one');\n", i+1); err != nil {
				return err
			}
		}
		return nil
	}}
	for name, c := range map[string]struct {
		corrupt, lose int  // uploads that arrive wrong, or not
		known, full   bool // D1 knows the file, has the data
		end           string
		code          clawr.Code
	}{
		"fine":             {end: "complete"},
		"known already":    {known: true, end: "complete"},
		"lost twice":       {lose: 2, end: "complete"},
		"lost for ever":    {lose: 9, code: clawr.CodeUnreachable},
		"corrupt once":     {corrupt: 1, end: "complete"},
		"corrupt for ever": {corrupt: 9, code: CodeImport},
		"refused":          {end: "error", code: CodeImport},
		"begun twice":      {end: "error", full: true},
	} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex // of what follows
			polls, got := 0, ""
			mux := http.NewServeMux()
			var srv *httptest.Server
			mux.HandleFunc("PUT /up", func(w http.ResponseWriter, r *http.Request) {
				h := md5.New()
				n, _ := io.Copy(h, r.Body)
				if r.Header.Get("Authorization") != "" || r.ContentLength != n {
					t.Errorf("upload with %q, %d of %d bytes", r.Header.Get("Authorization"), n, r.ContentLength)
				}
				mu.Lock()
				defer mu.Unlock()
				if c.lose > 0 {
					c.lose--
					panic(http.ErrAbortHandler)
				}
				got = hex.EncodeToString(h.Sum(nil))
				if c.corrupt > 0 {
					c.corrupt--
					got = "00"
				}
				w.Header().Set("ETag", `"`+got+`"`)
			})
			mux.HandleFunc("POST /accounts/acc/d1/database/db/import", func(w http.ResponseWriter, r *http.Request) {
				var in map[string]string
				json.NewDecoder(r.Body).Decode(&in)
				mu.Lock()
				defer mu.Unlock()
				result := `{"success":true,"status":"active","at_bookmark":"b1"}`
				switch {
				case in["action"] == "init" && !c.known:
					result = `{"filename":"f.sql","upload_url":"` + srv.URL + `/up"}`
				case in["action"] == "ingest" && (in["filename"] != "f.sql" || in["etag"] != got):
					t.Errorf("ingest %v, uploaded %s", in, got)
				case in["action"] == "poll" && in["current_bookmark"] != "b1":
					t.Errorf("poll %v", in)
				case in["action"] == "poll":
					if polls++; polls > 2 {
						result = `{"success":true,"status":"` + c.end + `","errors":["near x: syntax error"]}`
					}
				}
				fmt.Fprintf(w, `{"success":true,"result":%s}`, result)
			})
			mux.HandleFunc("POST /accounts/acc/d1/database/db/query", func(w http.ResponseWriter, _ *http.Request) {
				row := ""
				if c.full {
					row = `{"name":"clawr_import","content":"c0ffee"}`
				}
				fmt.Fprintf(w, `{"success":true,"result":[{"results":[%s]}]}`, row)
			})
			srv = httptest.NewServer(mux)
			defer srv.Close()
			api, _ := serve(t)
			api.Base = srv.URL
			if err := api.fill(t.Context(), "db", m); clawr.CodeOf(err) != c.code && (c.code != "" || err != nil) {
				t.Errorf("%v, want %q", err, c.code)
			}
		})
	}
}

// D1 takes statements of 100 KB, so one row cannot be larger. Whoever has one
// hears which it is before anything is touched.
func TestARowThatD1CannotTakeIsNamed(t *testing.T) {
	write := func(text string) *Import {
		return &Import{Write: func(w io.Writer) error {
			_, err := io.WriteString(w, "CREATE TABLE records (a TEXT);\nINSERT INTO records (_row, a) VALUES (1,'x'),\n(2,'y');\nINSERT INTO records (_row, a) VALUES (3,'"+text+"');\n")
			return err
		}}
	}
	if _, _, err := write(strings.Repeat("it''s; ", 14_000)).measure(t.Context()); err != nil {
		t.Errorf("a row of 98 KB: %v", err)
	}
	_, _, err := write(strings.Repeat("it''s; ", 15_000)).measure(t.Context())
	if e, ok := errors.AsType[*clawr.Error](err); !ok || e.Code != CodeTooLarge || !strings.Contains(e.Message, "row 3 ") {
		t.Errorf("a row of 105 KB: %v", err)
	}
}

func TestVersionsStayUntilNobodyAsksForThem(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := &Publisher{Now: func() time.Time { return now }}
	version := func(n int64) entry {
		e, err := entryOf(clawr.Tenant{ID: "tnt_1", Slug: "acme", Status: clawr.StatusActive, Version: n, Hosts: []string{}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	var was entry
	step := func(n int64, after time.Duration, previous, gone string) {
		t.Helper()
		now = now.Add(after)
		next := version(n)
		old := p.succeed(next, was)
		numbers := func(all []entry) (s string) {
			for _, e := range all {
				s += fmt.Sprint(e.number("version"), " ")
			}
			return strings.TrimSpace(s)
		}
		if got := numbers(next.previous()); got != previous {
			t.Errorf("behind version %d are %q, want %q", n, got, previous)
		}
		if got := numbers(old); got != gone {
			t.Errorf("version %d lets go of %q, want %q", n, got, gone)
		}
		b, err := json.Marshal(next)
		if err != nil {
			t.Fatal(err)
		}
		if was, err = parseEntry(b); err != nil {
			t.Fatal(err)
		}
	}
	step(1, 0, "", "")
	step(1, time.Hour, "", "") // the same again
	step(2, time.Hour, "1", "")
	step(3, time.Minute, "2 1", "")
	step(4, time.Minute, "3 2 1", "") // four in an hour: all were paid for a moment ago
	step(2, time.Minute, "4 3 1", "") // rolled back
	step(5, 30*time.Hour, "2 4", "3 1")
	step(6, 30*time.Hour, "5 2", "4")
}

func TestTheWorkersAreSmall(t *testing.T) {
	modules, err := Dispatcher()
	if err != nil {
		t.Fatal(err)
	}
	tenant, err := Dataset()
	if err != nil {
		t.Fatal(err)
	}
	for name, all := range map[string][]Module{"dispatcher.js": modules, "tenant.js": tenant} {
		if all[0].Name != name {
			t.Errorf("the main module is %s, want %s", all[0].Name, name)
		}
		w := Worker{Modules: all}
		if n := w.compressed(); n > 60<<10 {
			t.Errorf("%s and its modules have %d bytes compressed, want at most 60 KB", name, n)
		}
	}
	n := 0
	for _, m := range modules {
		if m.Type == TypeModule {
			n++
		}
	}
	if n < 3 {
		t.Errorf("the dispatcher has %d modules, want at least 3", n)
	}
}

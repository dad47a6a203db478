package cloudflare

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/402claw/clawr"
)

// The content types of modules, from the upload API.
const (
	TypeModule    = "application/javascript+module"
	TypeText      = "text/plain"
	TypeSourceMap = "application/source-map"
)

// MaxWorker is how many bytes a Worker's modules may have, compressed.
const MaxWorker = 10 << 20

// Worker is a Worker as it is uploaded. Bindings that are secrets stand apart,
// because they are neither shown nor kept.
type Worker struct {
	Name      string
	Namespace string // dispatch namespace; "": a Worker of the account itself
	Modules   []Module
	Metadata  Metadata
	Secrets   map[string]string
}

// Module is one file of a Worker, named as others import it.
type Module struct {
	Name    string
	Type    string
	Content []byte
}

// Metadata is what the upload API is told about a Worker.
type Metadata struct {
	Main          string      `json:"main_module"`
	Bindings      []Binding   `json:"bindings"`
	Compatibility string      `json:"compatibility_date"`
	Keep          []string    `json:"keep_bindings,omitempty"`
	Limits        *Limits     `json:"limits,omitempty"`
	Tags          []string    `json:"tags,omitempty"`
	Migrations    *Migrations `json:"migrations,omitempty"`
	Observability *Observed   `json:"observability,omitempty"`
}

// Binding is one name that a Worker finds in its environment.
type Binding struct {
	Type        string `json:"type"`
	Name        string `json:"name"`
	Text        string `json:"text,omitempty"`         // plain_text, secret_text
	NamespaceID string `json:"namespace_id,omitempty"` // kv_namespace
	Database    string `json:"id,omitempty"`           // d1: newer SDKs say database_id, wrangler and the API take id
	Class       string `json:"class_name,omitempty"`   // durable_object_namespace
	Namespace   string `json:"namespace,omitempty"`    // dispatch_namespace
}

// Limits are a Worker's own. Their names differ from those that a dispatch
// takes: LimitsOf converts.
type Limits struct {
	CPUMs       int64 `json:"cpu_ms,omitempty"`
	SubRequests int64 `json:"subrequests,omitempty"`
}

// LimitsOf gives limits as the upload API spells them. A dispatch spells them
// as clawr does.
func LimitsOf(l clawr.Limits) *Limits { return &Limits{CPUMs: l.CPUMs, SubRequests: l.SubRequests} }

// Migrations declare the classes of Durable Objects. They are sent when the
// Worker's tag is not NewTag yet, and never twice.
type Migrations struct {
	OldTag string   `json:"old_tag,omitempty"`
	NewTag string   `json:"new_tag"`
	SQLite []string `json:"new_sqlite_classes,omitempty"`
}

// Observed turns the account's logs of a Worker on.
type Observed struct {
	Enabled bool `json:"enabled"`
}

// compressed is the size of the modules as the limit counts them.
func (w *Worker) compressed() int64 {
	var n counter
	z := gzip.NewWriter(&n)
	for _, m := range w.Modules {
		if m.Type != TypeSourceMap {
			z.Write(m.Content)
		}
	}
	z.Close()
	return int64(n)
}

type counter int64

func (c *counter) Write(b []byte) (int, error) { *c += counter(len(b)); return len(b), nil }

// check refuses what the API would refuse, before anything is touched.
func (w *Worker) check() error {
	if n := w.compressed(); n > MaxWorker {
		return &clawr.Error{Code: CodeTooLarge, Message: fmt.Sprintf("the Worker %s has %.1f MB compressed, at most 10 MB are possible", w.Name, float64(n)/(1<<20)),
			Fix: "publish less; the old version still serves"}
	}
	for name, text := range w.Secrets {
		if len(text) > maxVariable {
			return variableTooLarge(name, len(text))
		}
	}
	for _, b := range w.Metadata.Bindings {
		if len(b.Text) > maxVariable {
			return variableTooLarge(b.Name, len(b.Text))
		}
	}
	return nil
}

// maxVariable is how many bytes a variable or secret may have.
const maxVariable = 5 << 10

func variableTooLarge(name string, n int) error {
	return &clawr.Error{Code: CodeTooLarge, Param: strings.ToLower(name), Message: fmt.Sprintf("the variable %s has %d bytes, at most %d are possible", name, n, maxVariable), Fix: "shorten it"}
}

// Hash names what a Worker is made of, secrets and tags excepted.
func (w *Worker) Hash() string {
	h := sha256.New()
	meta := w.Metadata
	meta.Tags, meta.Migrations = nil, nil
	json.NewEncoder(h).Encode(meta)
	for _, m := range w.Modules {
		fmt.Fprintf(h, "%s\x00%s\x00%d\x00", m.Name, m.Type, len(m.Content))
		h.Write(m.Content)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// secretsHash tells whether the secrets are those of the last upload. Only
// clawr's random ones and credentials are among them, which nobody guesses
// from a hash.
func (w *Worker) secretsHash() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(w.Secrets)) {
		fmt.Fprintf(h, "%s\x00%s\x00", name, w.Secrets[name])
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// metadata is what is sent: with secrets, or with their names alone.
func (w *Worker) metadata(show bool) Metadata {
	meta := w.Metadata
	meta.Bindings = slices.Clone(meta.Bindings)
	for _, name := range slices.Sorted(maps.Keys(w.Secrets)) {
		text := w.Secrets[name]
		if !show {
			text = "(secret)"
		}
		meta.Bindings = append(meta.Bindings, Binding{Type: "secret_text", Name: name, Text: text})
	}
	return meta
}

// form is the upload: the metadata, and a part for each module, whose name and
// file name are both the module's, because schemas differ in which they mean.
func (w *Worker) form() (kind string, body []byte, err error) {
	var b bytes.Buffer
	m := multipart.NewWriter(&b)
	part := func(name, file, kind string, content []byte) {
		h := textproto.MIMEHeader{}
		disposition := fmt.Sprintf(`form-data; name="%s"`, name)
		if file != "" {
			disposition += fmt.Sprintf(`; filename="%s"`, file)
		}
		h.Set("Content-Disposition", disposition)
		h.Set("Content-Type", kind)
		p, perr := m.CreatePart(h)
		if perr == nil {
			_, perr = p.Write(content)
		}
		if err == nil {
			err = perr
		}
	}
	meta, err := json.Marshal(w.metadata(true))
	if err != nil {
		return "", nil, err
	}
	part("metadata", "", "application/json", meta)
	for _, mod := range w.Modules {
		part(mod.Name, mod.Name, mod.Type, mod.Content)
	}
	if err == nil {
		err = m.Close()
	}
	return m.FormDataContentType(), b.Bytes(), err
}

// script is where a Worker stands in the API.
func (c *Client) script(namespace, name string) string {
	if namespace == "" {
		return c.account("/workers/scripts/%s", name)
	}
	return c.account("/workers/dispatch/namespaces/%s/scripts/%s", namespace, name)
}

// upload puts a Worker there. It may be repeated.
func (c *Client) upload(ctx context.Context, w *Worker) error {
	kind, body, err := w.form()
	if err != nil {
		return err
	}
	_, err = c.do(ctx, call{method: http.MethodPut, path: c.script(w.Namespace, w.Name), query: url.Values{"bindings_inherit": {"strict"}}, kind: kind, body: body}, nil)
	return explain(err, "the Worker "+w.Name+" was not uploaded")
}

// deployed is what the API says of a Worker that is there.
type deployed struct {
	Bindings []Binding `json:"bindings"`
	Tags     []string  `json:"tags"`
}

func (d *deployed) has(tag string) bool { return d != nil && slices.Contains(d.Tags, tag) }

// tagged is the rest of the tag that begins with prefix.
func (d *deployed) tagged(prefix string) string {
	for _, t := range d.Tags {
		if rest, ok := strings.CutPrefix(t, prefix); ok {
			return rest
		}
	}
	return ""
}

func (d *deployed) binds(name string) bool {
	return d != nil && slices.ContainsFunc(d.Bindings, func(b Binding) bool { return b.Name == name })
}

// settings reads what is known of a Worker; nil if there is none.
func (c *Client) settings(ctx context.Context, namespace, name string) (*deployed, error) {
	d := new(deployed)
	found, err := c.get(ctx, c.script(namespace, name)+"/settings", nil, d)
	if err != nil {
		return nil, explain(err, "the Worker "+name+" cannot be looked up")
	}
	if !found {
		return nil, nil
	}
	return d, nil
}

// migrationTag is the last migration of a Worker of the account; "" if none.
func (c *Client) migrationTag(ctx context.Context, name string) (string, error) {
	var s struct {
		Default struct {
			Script struct {
				Tag string `json:"migration_tag"`
			} `json:"script"`
		} `json:"default_environment"`
	}
	_, err := c.get(ctx, c.account("/workers/services/%s", name), nil, &s)
	return s.Default.Script.Tag, explain(err, "the Worker "+name+" cannot be looked up")
}

// remove deletes a Worker, if it is there.
func (c *Client) remove(ctx context.Context, namespace, name string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: c.script(namespace, name), query: url.Values{"force": {"true"}}}, nil)
	if gone(err) {
		return nil
	}
	return explain(err, "the Worker "+name+" was not deleted")
}

// listed is a Worker of a namespace.
type listed struct {
	ID     string `json:"id"`
	Script struct {
		ID   string   `json:"id"`
		Tags []string `json:"tags"`
	} `json:"script"`
	Tags []string `json:"tags"`
}

func (l *listed) name() string {
	if l.ID != "" {
		return l.ID
	}
	return l.Script.ID
}

// tenants lists the Workers of a namespace that have a tag.
func (c *Client) tenants(ctx context.Context, namespace, tag string) ([]listed, error) {
	all, err := list[listed](ctx, c, c.account("/workers/dispatch/namespaces/%s/scripts", namespace), url.Values{"tags": {tag + ":yes"}})
	return all, explain(err, "the Workers of the namespace "+namespace+" cannot be listed")
}

// workersDev makes a Worker answer on the account's workers.dev subdomain, and
// gives its URL.
func (c *Client) workersDev(ctx context.Context, name string) error {
	err := c.send(ctx, http.MethodPost, c.script("", name)+"/subdomain", map[string]bool{"enabled": true, "previews_enabled": false}, nil)
	return explain(err, "the Worker "+name+" was not put on workers.dev")
}

// subdomain is the account's on workers.dev; "" if it has none yet.
func (c *Client) subdomain(ctx context.Context) (string, error) {
	var s struct {
		Subdomain string `json:"subdomain"`
	}
	_, err := c.get(ctx, c.account("/workers/subdomain"), nil, &s)
	return s.Subdomain, explain(err, "the account's workers.dev subdomain cannot be looked up")
}

// route leads requests of a pattern such as api.example.com/* to a Worker.
func (c *Client) route(ctx context.Context, pattern, name string) (zone, id string, err error) {
	host, _, _ := strings.Cut(pattern, "/")
	labels := strings.Split(strings.TrimPrefix(strings.TrimPrefix(host, "*"), "."), ".")
	for i := 0; i+1 < len(labels) && zone == ""; i++ {
		var zones []struct {
			ID string `json:"id"`
		}
		if _, err := c.do(ctx, call{method: http.MethodGet, path: "/zones", query: url.Values{"name": {strings.Join(labels[i:], ".")}, "account.id": {c.Account}}}, &zones); err != nil {
			return "", "", explain(err, "the zone of "+pattern+" cannot be looked up")
		}
		if len(zones) > 0 {
			zone = zones[0].ID
		}
	}
	if zone == "" {
		return "", "", &clawr.Error{Code: CodeMissing, Param: "route", Message: "no zone of the account is for " + host, Fix: "add the domain to the account first, or leave --route out for workers.dev"}
	}
	var routes []struct{ ID, Pattern, Script string }
	if _, err := c.do(ctx, call{method: http.MethodGet, path: "/zones/" + url.PathEscape(zone) + "/workers/routes"}, &routes); err != nil {
		return "", "", explain(err, "the routes of "+host+" cannot be listed")
	}
	for _, r := range routes {
		if r.Pattern != pattern {
			continue
		}
		if r.Script != name {
			return "", "", &clawr.Error{Code: CodeTaken, Param: "route", Message: fmt.Sprintf("the route %s leads to the Worker %s", pattern, strconv.Quote(printable(r.Script))), Fix: "remove it in the dashboard, or choose another --route"}
		}
		return zone, r.ID, nil
	}
	return zone, "", nil
}

func (c *Client) addRoute(ctx context.Context, zone, pattern, name string) error {
	err := c.send(ctx, http.MethodPost, "/zones/"+url.PathEscape(zone)+"/workers/routes", map[string]string{"pattern": pattern, "script": name}, nil)
	return explain(err, "the route "+pattern+" was not made")
}

// onWorkersDev reports whether a Worker answers on workers.dev.
func (c *Client) onWorkersDev(ctx context.Context, name string) (bool, error) {
	var s struct{ Enabled bool }
	_, err := c.get(ctx, c.script("", name)+"/subdomain", nil, &s)
	return s.Enabled, explain(err, "the address of "+name+" cannot be looked up")
}

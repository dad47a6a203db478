package cloudflare

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/402claw/clawr"
)

// Shelf keeps what was uploaded, by its hash, so that a rollback is an upload
// of what was there before. It holds no secrets.
type Shelf struct{ Dir string }

// Upload is one that happened.
type Upload struct {
	At        time.Time `json:"at"`
	Account   string    `json:"account"`
	Namespace string    `json:"namespace,omitempty"`
	Script    string    `json:"script"`
	Bundle    string    `json:"bundle"`
	URL       string    `json:"url,omitempty"`
	Serves    string    `json:"serves,omitempty"` // the namespace that a dispatcher dispatches to
	Asset     string    `json:"asset,omitempty"`  // JSON of what it is paid in
}

// kept is a Worker's index on the shelf.
type kept struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace,omitempty"`
	Metadata  Metadata          `json:"metadata"`
	Types     map[string]string `json:"types"` // of the modules, by name
	Order     []string          `json:"order"`
}

const (
	indexName   = "worker.json"
	historyName = "history.ndjson"
)

// Keep puts w on the shelf and gives its hash.
func (s Shelf) Keep(w *Worker) (string, error) {
	hash := w.Hash()
	dir := filepath.Join(s.Dir, "bundles", hash)
	if _, err := os.Stat(filepath.Join(dir, indexName)); err == nil {
		return hash, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), ".keep-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	k := kept{Name: w.Name, Namespace: w.Namespace, Metadata: w.Metadata, Types: map[string]string{}}
	k.Metadata.Tags, k.Metadata.Migrations = nil, nil
	for _, m := range w.Modules {
		k.Types[m.Name] = m.Type
		k.Order = append(k.Order, m.Name)
		if err := writeModule(tmp, m); err != nil {
			return "", err
		}
	}
	b, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(tmp, indexName), b, 0o600); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return hash, nil
}

// writeModule writes m below dir. A name that leads out of it is refused.
func writeModule(dir string, m Module) error {
	if !filepath.IsLocal(m.Name) {
		return fmt.Errorf("%q is no name for a module", m.Name)
	}
	file := filepath.Join(dir, filepath.FromSlash(m.Name))
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, m.Content, 0o600)
}

// Load takes a Worker from the shelf, if it still is what its hash says.
func (s Shelf) Load(hash string) (*Worker, error) {
	dir := filepath.Join(s.Dir, "bundles", hash)
	b, err := os.ReadFile(filepath.Join(dir, indexName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &clawr.Error{Code: CodeMissing, Param: "to", Message: "the version " + hash + " is not kept here", Fix: "clawr cloudflare-status lists those that are"}
	}
	if err != nil {
		return nil, err
	}
	var k kept
	if err := json.Unmarshal(b, &k); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	w := &Worker{Name: k.Name, Namespace: k.Namespace, Metadata: k.Metadata}
	for _, name := range k.Order {
		if !filepath.IsLocal(name) {
			return nil, fmt.Errorf("%q is no name for a module", name)
		}
		content, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return nil, err
		}
		w.Modules = append(w.Modules, Module{Name: name, Type: k.Types[name], Content: content})
	}
	if got := w.Hash(); got != hash {
		return nil, &clawr.Error{Code: clawr.CodeFile, Message: "the files of version " + hash + " were changed: they are " + got, Fix: "deploy again, or roll back to another version"}
	}
	return w, nil
}

// Note remembers an upload.
func (s Shelf) Note(u Upload) error {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(u)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.Dir, historyName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}

// History is every upload that was noted, oldest first. A line that was cut
// short is left out.
func (s Shelf) History() ([]Upload, error) {
	b, err := os.ReadFile(filepath.Join(s.Dir, historyName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Upload
	for line := range bytes.Lines(b) {
		var u Upload
		if json.Unmarshal(line, &u) == nil && u.Bundle != "" {
			all = append(all, u)
		}
	}
	return all, nil
}

// Serving is the dispatcher that was last deployed for a namespace from here;
// nil if none was.
func (s Shelf) Serving(account, namespace string) (*Upload, error) {
	all, err := s.History()
	var last *Upload
	for i := range all {
		if all[i].Account == account && all[i].Serves == namespace && namespace != "" {
			last = &all[i]
		}
	}
	return last, err
}

// before is the bundle that a Worker had before the one it has now, or the one
// that begins with to.
func (s Shelf) before(account, script, now, to string) (string, error) {
	all, err := s.History()
	if err != nil {
		return "", err
	}
	for i := len(all) - 1; i >= 0; i-- {
		u := all[i]
		if u.Account != account || u.Script != script || u.Namespace != "" {
			continue
		}
		if to != "" && strings.HasPrefix(u.Bundle, to) || to == "" && u.Bundle != now {
			return u.Bundle, nil
		}
	}
	what := "no version of " + script + " before the present one is kept here"
	if to != "" {
		what = fmt.Sprintf("no version %q of %s is kept here", to, script)
	}
	return "", &clawr.Error{Code: CodeMissing, Param: "to", Message: what, Fix: "clawr cloudflare-status lists those that are"}
}

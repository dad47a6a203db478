package cloudflare

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Plan is what would change in an account, in this order. It was made by
// looking; nothing has changed yet.
type Plan struct {
	Steps []Step `json:"steps"`
	// URL is where the result answers; empty if that is not known yet.
	URL string `json:"url,omitempty"`

	files []func(dir string) error
}

// Step is one change.
type Step struct {
	Do     string `json:"do"`               // create, upload, import, write, tell, delete, note, or keep for what is there already
	What   string `json:"what"`             // such as: KV namespace clawr-directory-prod
	Detail string `json:"detail,omitempty"` // such as: 6 modules, 31 KB compressed
	run    func(context.Context) error
}

func (s Step) String() string {
	if s.Detail == "" {
		return fmt.Sprintf("%-7s %s", s.Do, s.What)
	}
	return fmt.Sprintf("%-7s %s  (%s)", s.Do, s.What, s.Detail)
}

func (p *Plan) add(do, what, detail string, run func(context.Context) error) {
	p.Steps = append(p.Steps, Step{do, what, detail, run})
}

func (p *Plan) keep(what, detail string) { p.add("keep", what, detail, nil) }

// Changes is how many steps change anything.
func (p *Plan) Changes() (n int) {
	for _, s := range p.Steps {
		if s.run != nil {
			n++
		}
	}
	return n
}

// Apply does the steps. When one fails, those before it are done, and a new
// plan has only the others. report, if not nil, hears of each before it is
// done.
func (p *Plan) Apply(ctx context.Context, report func(Step)) error {
	for _, s := range p.Steps {
		if s.run == nil {
			continue
		}
		if report != nil {
			report(s)
		}
		if err := s.run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Write puts what would be uploaded into dir, and the plan beside it. Secrets
// are left out: their names stand in the metadata.
func (p *Plan) Write(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, f := range p.files {
		if err := f(dir); err != nil {
			return err
		}
	}
	return writeJSON(filepath.Join(dir, "plan.json"), p)
}

func writeJSON(file string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(b, '\n'), 0o600)
}

// willUpload adds the files of a Worker to what Write writes.
func (p *Plan) willUpload(w *Worker) {
	p.files = append(p.files, func(dir string) error {
		dir = filepath.Join(dir, w.Name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		for _, m := range w.Modules {
			if err := writeModule(dir, m); err != nil {
				return err
			}
		}
		return writeJSON(filepath.Join(dir, "metadata.json"), w.metadata(false))
	})
}

func (p *Plan) willWrite(name string, write func(io.Writer) error) {
	p.files = append(p.files, func(dir string) error {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		if err := write(f); err != nil {
			f.Close()
			return err
		}
		return f.Close()
	})
}

// describe says how large a Worker is and what it is bound to.
func describe(w *Worker) string {
	n := 0
	for _, m := range w.Modules {
		if m.Type != TypeSourceMap {
			n++
		}
	}
	var names []string
	for _, b := range w.metadata(false).Bindings {
		names = append(names, b.Name)
	}
	noun := "modules"
	if n == 1 {
		noun = "module"
	}
	return fmt.Sprintf("%d %s, %d KB compressed; bindings %s", n, noun, (w.compressed()+1023)/1024, strings.Join(names, " "))
}

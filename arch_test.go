package clawr_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/402claw/clawr"

// mayImport is who may import whom, of our own packages. Leaves know the
// nouns; assemblers know leaves and never each other; only main knows the
// outside world. A package that is not listed may not exist: adding one means
// adding a line here, and a reason to the commit.
var mayImport = map[string][]string{
	".":                   {},
	"web":                 {},
	"x402":                {"."},
	"meter":               {"."},
	"ledger":              {"."},
	"usage":               {"."},
	"dataset":             {"."},
	"cloudflare":          {"."},
	"blob":                {"."}, // files of datasets where all nodes reach them: main hands it to the control plane and to the cache
	"worker":              {".", "dataset"},
	"chain":               {"."},
	"chain/devchain":      {".", "chain"},
	"facilitator":         {".", "x402", "ledger"},
	"facilitator/onchain": {".", "chain", "facilitator", "ledger", "x402"}, // joins chain and facilitator for main and for tests
	"dispatch":            {".", "x402", "meter", "ledger", "usage"},
	"api":                 {".", "ledger", "usage"},
	"store":               {".", "ledger", "usage"},
	"store/storetest":     {".", "store", "ledger", "usage"},
	"buyer":               {".", "x402"},
	"cmd/clawr":           {"*"},
	"bench":               {"*"},
	"e2e":                 {"*"},
}

// pure are the packages that can be tested as functions, because they import
// none of these.
var (
	pure   = []string{".", "x402", "meter", "ledger"}
	impure = []string{"net/http", "os", "database/sql"}
)

func TestWhoImportsWhom(t *testing.T) {
	seen := map[string]bool{}
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name == "testdata" || name == "node_modules" || path != "." && strings.HasPrefix(name, ".") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		room := pkg
		for _, top := range []string{"bench", "e2e"} {
			if strings.HasPrefix(pkg, top+"/") {
				room = top
			}
		}
		allowed, ok := mayImport[room]
		if !ok {
			t.Errorf("%s: package %s is not in the table", path, pkg)
			return nil
		}
		seen[room] = true
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range f.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			if slices.Contains(pure, room) && slices.Contains(impure, name) {
				t.Errorf("%s imports %s: %s must stay free of it", path, name, room)
			}
			ours, ok := strings.CutPrefix(name, module)
			if !ok || slices.Contains(allowed, "*") {
				continue
			}
			if ours = strings.TrimPrefix(ours, "/"); ours == "" {
				ours = "."
			}
			if !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s, which %s may not", path, ours, room)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if !seen["."] || !seen["cmd/clawr"] {
		t.Errorf("the walk saw only %v", seen)
	}
}

package cloudflare

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/evanw/esbuild/pkg/api"
)

// The Workers' sources. edge/CONTRACT.md says what is made of them.
//
//go:embed edge/src
var sources embed.FS

// Compatibility is the date whose behaviour of the runtime the Workers are
// written for.
const Compatibility = "2026-07-01"

// Dispatcher builds the modules of the dispatcher Worker; the first is the
// main one.
func Dispatcher() ([]Module, error) { return build("dispatcher.ts", "ledger.ts", "platform.ts") }

// Dataset builds the modules of a dataset's Worker, without its data.
func Dataset() ([]Module, error) { return build("tenant.ts") }

// build bundles entry points, of which the first becomes the main module. What
// several share goes into modules of its own.
func build(entries ...string) ([]Module, error) {
	src, err := fs.Sub(sources, "edge/src")
	if err != nil {
		return nil, err
	}
	return bundle(src, entries...)
}

func bundle(src fs.FS, entries ...string) ([]Module, error) {
	res := api.Build(api.BuildOptions{
		EntryPoints: entries, Bundle: true, Format: api.FormatESModule, Splitting: true, Target: api.ES2022, Charset: api.CharsetUTF8,
		MinifyWhitespace: true, MinifySyntax: true, MinifyIdentifiers: true, Sourcemap: api.SourceMapLinked, SourcesContent: api.SourcesContentInclude,
		Outdir: "/out", EntryNames: "[name]", ChunkNames: "[name]-[hash]", Write: false, LogLevel: api.LogLevelSilent,
		External: []string{"cloudflare:*", "node:*", "./manifest.json", "./rows.ndjson"},
		Plugins:  []api.Plugin{embedded(src)}, AbsWorkingDir: "/",
		TsconfigRaw: `{"compilerOptions":{"target":"ES2022","useDefineForClassFields":true,"verbatimModuleSyntax":true}}`,
	})
	if len(res.Errors) > 0 {
		e := res.Errors[0]
		if e.Location != nil {
			return nil, fmt.Errorf("bundle %s:%d: %s", e.Location.File, e.Location.Line, e.Text)
		}
		return nil, errors.New("bundle: " + e.Text)
	}
	main := strings.TrimSuffix(entries[0], path.Ext(entries[0])) + ".js"
	var out []Module
	for _, f := range res.OutputFiles {
		m := Module{Name: strings.TrimPrefix(f.Path, "/out/"), Type: TypeModule, Content: f.Contents}
		if strings.HasSuffix(m.Name, ".map") {
			m.Type = TypeSourceMap
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Module) int {
		if (a.Name == main) != (b.Name == main) {
			if a.Name == main {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	if len(out) == 0 || out[0].Name != main {
		return nil, fmt.Errorf("bundle: there is no %s", main)
	}
	return out, nil
}

// embedded has esbuild read from src alone, and from no file of the machine.
func embedded(src fs.FS) api.Plugin {
	const space = "edge"
	return api.Plugin{Name: "embedded", Setup: func(b api.PluginBuild) {
		b.OnResolve(api.OnResolveOptions{Filter: `.*`}, func(a api.OnResolveArgs) (api.OnResolveResult, error) {
			if strings.HasPrefix(a.Path, "cloudflare:") || strings.HasPrefix(a.Path, "node:") || a.Path == "./manifest.json" || a.Path == "./rows.ndjson" {
				return api.OnResolveResult{Path: a.Path, External: true}, nil
			}
			name := a.Path
			if a.Kind != api.ResolveEntryPoint {
				name = path.Join(path.Dir(a.Importer), a.Path)
			}
			for _, try := range []string{name, name + ".ts", strings.TrimSuffix(name, ".js") + ".ts"} {
				if st, err := fs.Stat(src, try); err == nil && !st.IsDir() {
					return api.OnResolveResult{Path: try, Namespace: space}, nil
				}
			}
			return api.OnResolveResult{}, fmt.Errorf("%s imports %s, which is not there", a.Importer, a.Path)
		})
		b.OnLoad(api.OnLoadOptions{Filter: `.*`, Namespace: space}, func(a api.OnLoadArgs) (api.OnLoadResult, error) {
			text, err := fs.ReadFile(src, a.Path)
			contents := string(text)
			return api.OnLoadResult{Contents: &contents, Loader: api.LoaderTS}, err
		})
	}}
}

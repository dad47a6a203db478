package worker

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dataset"
)

// A buyer who reads all of a dataset by its cursors gets every row once, in the
// order of the question and of one version, though it is replaced on the way.
func TestAWalkGivesEveryRowOnceAcrossReplacements(t *testing.T) {
	cache := &dataset.Cache{Dir: t.TempDir(), Max: 3}
	defer cache.Close()
	const rows = 12_345
	content := func(version, rows int) string {
		var b strings.Builder
		b.WriteString("id,v,mod\n")
		for i := range rows {
			fmt.Fprintf(&b, "%d,%d,%d\n", i, version, i%7)
		}
		return publish(t, cache.Dir, b.String())
	}
	var published []string
	replace := func(version, rows int) *Dataset {
		published = append(published, content(version, rows))
		known := published
		return &Dataset{Segments: cache, Content: known[len(known)-1], CursorKey: []byte("0123456789abcdef"), Versions: func(v string) (string, error) {
			for _, id := range known {
				if dataset.VersionOf(id) == v {
					return id, nil
				}
			}
			return "", &clawr.Error{Code: clawr.CodeVersionGone}
		}}
	}
	for query, want := range map[string]int{"": rows, "&sort=-mod,id": rows, "&sort=mod&mod__ne=3": rows - (rows+3)/7} {
		published = nil
		live := replace(1, rows)
		seen := make([]bool, rows)
		n, last := 0, ""
		for path := "/v1/records?limit=1000&format=ndjson" + query; path != ""; {
			w := httptest.NewRecorder()
			if err := live.Serve(w, httptest.NewRequest("GET", path, nil)); err != nil {
				t.Fatalf("%s: %v", path, err)
			}
			for line := range strings.Lines(w.Body.String()) {
				var row struct{ ID, V int }
				if err := json.Unmarshal([]byte(line), &row); err != nil || row.V != 1 || seen[row.ID] {
					t.Fatalf("%s: %q comes again, or of another version: %v", path, line, err)
				}
				seen[row.ID] = true
				n++
			}
			path, _, _ = strings.Cut(strings.TrimPrefix(w.Header().Get("Link"), "<"), ">")
			if last = path; n == 2000 || n == 7000 {
				live = replace(n, rows-n) // fewer rows, under the same names
			}
		}
		if n != want || last != "" {
			t.Errorf("%q gave %d rows, want %d", query, n, want)
		}
	}
}

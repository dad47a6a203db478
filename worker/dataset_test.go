package worker

import (
	"context"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dataset"
)

func publish(t *testing.T, dir, text string) string {
	t.Helper()
	rep, err := dataset.Ingest(context.Background(), strings.NewReader(text), "x.csv", dataset.Options{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	return rep.ID
}

func TestDatasetAnswersFromSegmentsThatComeAndGo(t *testing.T) {
	cache := &dataset.Cache{Dir: t.TempDir(), Max: 2}
	defer cache.Close()
	var all []*Dataset
	for i := range 5 {
		all = append(all, &Dataset{Segments: cache, Content: publish(t, cache.Dir, fmt.Sprintf("n\n%d\n", 100+i))})
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for k := range 50 {
				i := (g + k) % len(all)
				w := httptest.NewRecorder()
				if err := all[i].Serve(w, httptest.NewRequest("GET", "/v1/records", nil)); err != nil || !strings.Contains(w.Body.String(), fmt.Sprintf(`{"n":%d}`, 100+i)) {
					t.Errorf("dataset %d gives %s, %v", i, w.Body, err)
				}
			}
		})
	}
	wg.Wait()
}

func TestDatasetIsWhatTheDispatcherWants(t *testing.T) {
	cache := &dataset.Cache{Dir: t.TempDir()}
	defer cache.Close()
	first, second := publish(t, cache.Dir, "id,n\n1,a\n2,b\n"), publish(t, cache.Dir, "id,n\n1,c\n")
	key := []byte("0123456789abcdef")
	old := &Dataset{Segments: cache, Content: first, CursorKey: key}
	now := &Dataset{Segments: cache, Content: second, CursorKey: key, Versions: func(v string) (string, error) {
		if v != dataset.VersionOf(first) {
			return "", &clawr.Error{Code: clawr.CodeVersionGone}
		}
		return first, nil
	}}
	r := httptest.NewRequest("GET", "/v1/records?limit=1", nil)
	c, units, err := old.Plan(r)
	if err != nil || units != 1 || old.ETag(c) == now.ETag(c) {
		t.Fatalf("planned as %q, %d, %v", c, units, err)
	}
	w := httptest.NewRecorder()
	old.ServeHTTP(w, r)
	body, err := old.Answer(context.Background(), c)
	if err != nil || string(body) != w.Body.String() {
		t.Errorf("served %s, answer %s, %v", w.Body, body, err)
	}
	if err := now.Check(r.Context(), httptest.NewRequest("GET", "/v1/records/2", nil)); clawr.CodeOf(err) != clawr.CodeRecordNotFound {
		t.Errorf("record 2 of the new version: %v", err)
	}
	w = httptest.NewRecorder()
	now.ServeHTTP(w, httptest.NewRequest("GET", "/v1/records?version="+dataset.VersionOf(first), nil))
	if !strings.Contains(w.Body.String(), `"b"`) {
		t.Errorf("the pinned version gives %s", w.Body)
	}
	w = httptest.NewRecorder()
	now.ServeHTTP(w, httptest.NewRequest("GET", "/v1/records?version=0123456789abcdef", nil))
	if w.Code != 410 {
		t.Errorf("an unknown version gives %d %s", w.Code, w.Body)
	}
}

func TestASegmentThatIsGoneOrDamagedIsRefused(t *testing.T) {
	cache := &dataset.Cache{Dir: t.TempDir()}
	defer cache.Close()
	d := &Dataset{Segments: cache, Content: publish(t, cache.Dir, "n\n1\n")}
	path := dataset.Path(cache.Dir, d.Content)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Plan(httptest.NewRequest("GET", "/v1/records", nil)); clawr.CodeOf(err) != clawr.CodeFile {
		t.Errorf("a missing segment gives %v", err)
	}
	b[66] ^= 4
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	d.ServeHTTP(w, httptest.NewRequest("GET", "/v1/records", nil))
	if w.Code != 500 || !strings.Contains(w.Body.String(), string(clawr.CodeSegmentCorrupt)) {
		t.Errorf("a damaged segment gives %d %s", w.Code, w.Body)
	}
	b[66] ^= 4
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Plan(httptest.NewRequest("GET", "/v1/records", nil)); err != nil {
		t.Errorf("the restored segment gives %v", err)
	}
}

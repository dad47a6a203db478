package worker

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr/dataset"
)

// A dataset that is replaced all the time answers every request, never with
// rows of two versions, and keeps no version longer than someone wants it.
func TestReplacingUnderLoadMixesNothingAndFailsNobody(t *testing.T) {
	cache := &dataset.Cache{Dir: t.TempDir(), Max: 4}
	defer cache.Close()
	version := func(n int) *Dataset {
		return &Dataset{Segments: cache, Content: publish(t, cache.Dir, "v,w\n"+strings.Repeat(fmt.Sprintf("%d,word%d\n", n, n), 300))}
	}
	replacements := 50
	if os.Getenv("CLAWR_NIGHTLY") != "" {
		replacements = 200
	}
	var live atomic.Pointer[Dataset]
	live.Store(version(0))
	// A version is wanted while a request that began with it may be under way.
	var gate sync.RWMutex
	stop := make(chan struct{})
	var served atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				gate.RLock()
				d := live.Load()
				w := httptest.NewRecorder()
				err := d.Serve(w, httptest.NewRequest("GET", "/v1/records?limit=300&sort=-v&count=exact", nil))
				gate.RUnlock()
				var body struct {
					Data []struct{ V int }
					Meta struct {
						Version string
						Count   int
					}
				}
				if err != nil || json.Unmarshal(w.Body.Bytes(), &body) != nil || len(body.Data) != 300 || body.Meta.Count != 300 {
					t.Errorf("a request failed: %v %.200s", err, w.Body)
					return
				}
				for _, r := range body.Data {
					if r.V != body.Data[0].V || body.Meta.Version != dataset.VersionOf(d.Content) {
						t.Errorf("an answer mixes %d and %d", r.V, body.Data[0].V)
						return
					}
				}
				served.Add(1)
			}
		})
	}
	before := live.Load().Content
	for n := 1; n <= replacements; n++ {
		next := version(n)
		live.Store(next)
		gate.Lock() // everyone who had the old one is done
		wanted := live.Load().Content
		gate.Unlock()
		removed, err := cache.Collect(func(id string) bool { return id == wanted }, time.Now(), 0)
		if err != nil || len(removed) != 1 || removed[0] != before {
			t.Fatalf("replacement %d removed %v, %v", n, removed, err)
		}
		before = next.Content
	}
	close(stop)
	wg.Wait()
	if served.Load() == 0 {
		t.Error("nothing was served")
	}
	if young, err := cache.Collect(func(string) bool { return false }, time.Now(), time.Hour); err != nil || len(young) != 0 {
		t.Errorf("young segments were removed: %v, %v", young, err)
	}
}

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// many is how many rows a dataset that goes into a database has here; the goal
// of a million is tried by hand: CLAWR_ROWS=1000000.
func many(t *testing.T) int {
	if n, err := strconv.Atoi(os.Getenv("CLAWR_ROWS")); err == nil && n > 0 {
		return n
	}
	return 30_000
}

// A dataset that is too large for a Worker is imported into D1 in bounded
// memory, and answers as a node does.
func TestALargeDatasetAnswersAsNatively(t *testing.T) {
	n := many(t)
	file := filepath.Join(t.TempDir(), "places.csv")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, "id,name,country,people,score,founded")
	for i := range n {
		fmt.Fprintf(w, "%d,Place number %d of all,country-%02d,%d,%d.5,%04d-%02d-%02d\n", i+1, i*7919%n, i%50, i*31%1_000_003, i%97, 1500+i%500, 1+i%12, 1+i%28)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	f.Close()

	p := newPress(t)
	flags := []string{file, "--tenant", "places", "--key", "id", "--index", "people,country", "--search", "name"}
	started := time.Now()
	cmd := clawr(t, p.env, append([]string{"deploy", "--publish"}, flags...)...)
	errs := &lockedBuffer{}
	cmd.Stderr = errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	most, tick := int64(0), time.NewTicker(50*time.Millisecond)
	defer tick.Stop()
	reading := int64(0) // what the ingestion took, which is not the publication's
	for done := false; !done; {
		select {
		case err := <-ended:
			if done = true; err != nil {
				t.Fatalf("%v\n%s", err, errs.Bytes())
			}
		case <-tick.C:
			most = max(most, anonymous(cmd.Process.Pid))
			if !strings.Contains(string(errs.Bytes()), "price ") {
				reading = most
			}
		}
	}
	size := int64(0)
	if st, err := os.Stat(file); err == nil {
		size = st.Size()
	}
	t.Logf("%d rows, %d MB of CSV, published in %s; %d MB of anonymous memory at most, %d MB of it while reading", n, size>>20, time.Since(started).Round(time.Second), most>>20, reading>>20)
	if grown := most - reading; grown > 256<<20 {
		t.Errorf("sending took %d MB more than reading", grown>>20)
	}

	c := devChain(t)
	s := serve(t, c)
	native := s.deploy(t, flags[0], "places", flags[3:]...)
	for _, q := range []string{"?limit=1", "?limit=5&people__gte=500000&sort=people", "?country=country-07&limit=3", "?country__in=country-01,country-02&sort=-people&limit=7&select=id,people",
		"?q=number+42&limit=4", "?sort=-people&limit=2", "?id=17", "?people=31", "/1234", "?score=1.5", "?sort=score", "?nonsense=1", "?limit=0", "?offset=3&limit=2"} {
		got, want := answerOf(t, p.like.edge+"/t/places/v1/records"+q), answerOf(t, native+q)
		// D1 charges for every row that it looks at: without an index it is a 400 there.
		if strings.Contains(q, "score") && n > 10_000 {
			if got.status != http.StatusBadRequest || got.error != "not_indexed" {
				t.Errorf("%s: %d %s, want not_indexed", q, got.status, got.error)
			}
			continue
		}
		if got.status != want.status || got.error != want.error || !reflect.DeepEqual(got.data, want.data) {
			t.Errorf("%s: %d %s %v, a node answers %d %s %v", q, got.status, got.error, got.data, want.status, want.error, want.data)
		}
	}
	// Pages follow each other without a gap.
	seen := map[string]bool{}
	next := "/v1/records?sort=people&limit=7&people__lt=1000"
	for next != "" {
		a := answerOf(t, p.like.edge+"/t/places"+next)
		for _, row := range a.data {
			seen[fmt.Sprint(row.(map[string]any)["id"])] = true
		}
		next = a.next
		if len(seen) > 2000 {
			t.Fatal("the pages do not end")
		}
	}
	all := answerOf(t, native+"?people__lt=1000&limit=1000")
	if len(seen) != len(all.data) || len(seen) == 0 {
		t.Errorf("the pages have %d rows, want %d", len(seen), len(all.data))
	}
}

// answered is what a query was answered.
type answered struct {
	status      int
	error, next string
	data        []any
}

func answerOf(t *testing.T, u string) (a answered) {
	t.Helper()
	if _, err := url.Parse(u); err != nil {
		t.Fatal(err)
	}
	res, err := http.Get(u)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	var body struct {
		Data  any
		Error string
		Meta  struct{ Next string }
	}
	if err := json.Unmarshal(b, &body); err != nil {
		t.Fatalf("%s: %s %.200s", u, res.Status, b)
	}
	a = answered{status: res.StatusCode, error: body.Error, next: body.Meta.Next}
	if list, ok := body.Data.([]any); ok {
		a.data = list
	} else if body.Data != nil {
		a.data = []any{body.Data}
	}
	return a
}

var rssAnon = regexp.MustCompile(`RssAnon:\s+(\d+) kB`)

// anonymous is what memory a process holds that is no file's, in bytes.
func anonymous(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	m := rssAnon.FindSubmatch(b)
	if m == nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(m[1]), 10, 64)
	return n << 10
}

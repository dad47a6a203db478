package dataset

import (
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"math/rand/v2"

	"github.com/402claw/clawr"
)

// Any byte of a segment that is changed is found when it is opened, or has no
// effect on any answer; padding is the only part that has none.
func TestNoFlippedByteIsEverServed(t *testing.T) {
	text := people + strings.Repeat("7,\"quo\"\"ted\",Zoë,1900-01-01,1e-7,true\n", 40)
	text = strings.Replace(text, "id,", "num,", 1)
	rep, err := ingestText(t, "x.csv", text, Options{})
	if err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(rep.Path)
	if err != nil {
		t.Fatal(err)
	}
	queries := []string{"/v1/records?limit=1000", "/v1/records?sort=-score,name&count=exact", "/v1/records?q=zo*&select=name,score", "/v1/records?born__gt=1900-01-01", "/v1/schema", "/v1/records?name__contains=te"}
	answers := func(s *Segment) string {
		h := &Handler{Segment: s, CursorKey: []byte("k")}
		var all strings.Builder
		for _, q := range queries {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", q, nil))
			all.Write(w.Body.Bytes())
		}
		return all.String()
	}
	want := answers(opened(t, rep))
	r := rand.New(rand.NewPCG(4, 2))
	refused, harmless := 0, 0
	dir := t.TempDir()
	for range 1000 {
		bad := append([]byte(nil), good...)
		i := r.IntN(len(bad))
		bad[i] ^= byte(1 + r.IntN(255))
		path := Path(dir, rep.ID)
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(path)
		switch {
		case err != nil:
			if refused++; clawr.CodeOf(err) != clawr.CodeSegmentCorrupt {
				t.Fatalf("byte %d flipped gives %v", i, err)
			}
		case answers(s) != want:
			t.Fatalf("byte %d flipped changes an answer", i)
		default:
			harmless++
			_ = s.Close()
		}
	}
	if refused < 500 {
		t.Errorf("%d of 1000 flipped segments were refused, %d were harmless", refused, harmless)
	}
}

func TestCutOrRenamedSegmentsAreRefused(t *testing.T) {
	rep := ingestFile(t, "unemployment.tsv", Options{})
	good, err := os.ReadFile(rep.Path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path := Path(dir, rep.ID)
	for _, n := range []int{0, 1, 7, 20, 100, len(good) / 2, len(good) - 1} {
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); clawr.CodeOf(err) != clawr.CodeSegmentCorrupt {
			t.Errorf("the first %d bytes give %v", n, err)
		}
	}
	other := filepath.Join(dir, strings.Repeat("0", 64)+".seg")
	if err := os.WriteFile(other, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(other); clawr.CodeOf(err) != clawr.CodeSegmentCorrupt {
		t.Errorf("under another name it gives %v", err)
	}
}

func TestTheCacheKeepsAFewSegmentsOpenAndVerifiesOnce(t *testing.T) {
	c := &Cache{Dir: t.TempDir(), Max: 2}
	var ids []string
	for _, text := range []string{"a\n1\n", "a\n2\n", "a\n3\n"} {
		rep, err := Ingest(context.Background(), strings.NewReader(text), "x.csv", Options{}, c.Dir)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, rep.ID)
	}
	held, err := c.Acquire(ids[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range append(ids, ids...) {
		s, err := c.Acquire(id)
		if err != nil {
			t.Fatal(err)
		}
		c.Release(s)
	}
	if len(c.open) != 2 || c.used.Len() != 2 || len(c.verified) != 3 {
		t.Errorf("%d segments are open, %d in the list, %d verified", len(c.open), c.used.Len(), len(c.verified))
	}
	if string(held.row(0)) != `{"a":1}` {
		t.Errorf("a segment in use was closed: %q", held.row(0))
	}
	c.Release(held)
	if held.data != nil {
		t.Error("a segment outside the cache stays open after its last use")
	}
	s, err := c.Acquire(ids[2])
	if err != nil {
		t.Fatal(err)
	}
	c.Forget(ids[2])
	c.Close()
	if s.data == nil || len(c.open) != 0 {
		t.Errorf("after Close %d are open, the one in use %v", len(c.open), s.data != nil)
	}
	c.Release(s)
	if s.data != nil {
		t.Error("the segment in use is never closed")
	}
}

// A file of somebody else's is taken only if all of it is what its name says.
func TestVerifyReadsAllOfIt(t *testing.T) {
	rep, err := ingestText(t, "x.csv", people, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Verify(rep.Path, rep.ID); err != nil {
		t.Fatal(err)
	}
	if err := Verify(rep.Path, strings.Repeat("0", 64)); clawr.CodeOf(err) != clawr.CodeSegmentCorrupt {
		t.Errorf("under another name: %v", err)
	}
	good, err := os.ReadFile(rep.Path)
	if err != nil {
		t.Fatal(err)
	}
	s := opened(t, rep)
	bad := filepath.Join(t.TempDir(), "bad")
	for i := range s.body { // every byte of the rows
		changed := append([]byte(nil), good...)
		at := strings.Index(string(good), string(s.body)) + i
		changed[at] ^= 1
		if err := os.WriteFile(bad, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Verify(bad, rep.ID); clawr.CodeOf(err) != clawr.CodeSegmentCorrupt {
			t.Fatalf("byte %d changed: %v", at, err)
		}
	}
	if err := Verify(filepath.Join(t.TempDir(), "none"), rep.ID); clawr.CodeOf(err) != clawr.CodeFile {
		t.Errorf("no file: %v", err)
	}
}

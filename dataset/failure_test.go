package dataset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
)

// childDir is where a child of these tests works.
const childDir = "DATASET_TEST_CHILD"

// child starts this test binary again, for one test.
func child(t *testing.T, test, dir string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.count=1")
	c.Env = append(os.Environ(), childDir+"="+dir)
	out := new(bytes.Buffer)
	c.Stdout, c.Stderr = out, out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	return c, out
}

// TestChildPublishes is the child of the next one: it publishes until it dies.
func TestChildPublishes(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("runs as a child only")
	}
	text := "a,b\n" + strings.Repeat("1,some text\n", 2000)
	for i := 0; ; i++ {
		if _, err := Ingest(context.Background(), strings.NewReader(text), "x.csv", Options{Title: fmt.Sprint(os.Getpid(), i)}, dir); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAKillWhilePublishingLeavesWholeSegmentsOnly(t *testing.T) {
	dir := t.TempDir()
	half := 0
	for round := range 8 {
		c, out := child(t, "TestChildPublishes", dir)
		for start := time.Now(); countFiles(t, dir, suffix) <= 3*round; time.Sleep(time.Millisecond) {
			if time.Since(start) > 20*time.Second {
				_ = c.Process.Kill()
				_ = c.Wait()
				t.Fatalf("the child publishes nothing: %s", out)
			}
		}
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = c.Wait()
		half += countFiles(t, dir, "")
		if err := Sweep(dir); err != nil {
			t.Fatal(err)
		}
	}
	segments := countFiles(t, dir, suffix)
	if all := countFiles(t, dir, ""); all != 0 {
		t.Errorf("after the sweep %d files are no segments", all)
	}
	paths, _ := filepath.Glob(filepath.Join(dir, "*"+suffix))
	for _, p := range paths {
		s, err := Open(p)
		if err != nil {
			t.Fatalf("%s was published and cannot be opened: %v", p, err)
		}
		if s.n != 2000 {
			t.Errorf("%s has %d rows", p, s.n)
		}
		_ = s.Close()
	}
	t.Logf("%d segments, %d left unfinished by 8 kills", segments, half)
}

// countFiles counts the files that end in suffix, or with "" those that are no
// segments.
func countFiles(t *testing.T, dir, end string) (n int) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if end != "" && strings.HasSuffix(e.Name(), end) || end == "" && !strings.HasSuffix(e.Name(), suffix) {
			n++
		}
	}
	return n
}

func TestAFullDiskIsSaid(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full here")
	}
	defer full.Close()
	_, err = ingest(context.Background(), strings.NewReader("a\n"+strings.Repeat("some text\n", 200_000)), "x.csv", Options{}, full, t.TempDir())
	e, ok := errors.AsType[*clawr.Error](err)
	if !ok || e.Code != clawr.CodeFile || !strings.Contains(e.Message, "no space left") || !strings.Contains(e.Fix, "make room") {
		t.Errorf("a full disk gives %v", err)
	}
}

// Whoever writes to the file while it is read has a dataset of neither state.
func TestAFileThatChangesWhileItIsReadIsRefused(t *testing.T) {
	type row struct {
		A int64 `parquet:"a"`
		B int64 `parquet:"b"`
	}
	rows := make([]row, 200_000)
	for i := range rows {
		rows[i] = row{rand.Int64(), rand.Int64()}
	}
	csv := []byte("a,b\n" + strings.Repeat("1,some text of a row\n", 200_000))
	for name, content := range map[string][]byte{"x.csv": csv, "x.ndjson": bytes.Repeat([]byte("{\"a\":12345678}\n"), 200_000), "x.parquet": parquetOf(t, rows)} {
		for what, change := range map[string]func(*os.File) error{
			"longer":    func(f *os.File) error { _, err := f.WriteAt([]byte("3,4\n"), int64(len(content))); return err },
			"shorter":   func(f *os.File) error { return f.Truncate(int64(len(content)) / 2) },
			"rewritten": func(f *os.File) error { _, err := f.WriteAt([]byte("9"), 4); return err },
		} {
			path := filepath.Join(t.TempDir(), name)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			before := time.Now().Add(-time.Hour) // clocks of file systems are coarse
			if err := os.Chtimes(path, before, before); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			var changed error
			done := false
			o := Options{Progress: func(int64, int64) {
				if !done {
					done, changed = true, change(f)
				}
			}}
			dir := t.TempDir()
			_, err = Ingest(context.Background(), f, name, o, dir)
			_ = f.Close()
			if code := clawr.CodeOf(err); changed != nil || !done || code != CodeFileChanged {
				t.Errorf("%s becomes %s (%v, %v) and gives %v", name, what, done, changed, err)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("%s becomes %s and leaves %v", name, what, left)
			}
		}
	}
}

func TestMixedLineEndsAreLineEnds(t *testing.T) {
	mixed := segment(t, "x.csv", "id,b\r\n1,x\n2,y\r3,\"z\r\nz\"\r\n4,w", Options{})
	plain := segment(t, "x.csv", "id,b\n1,x\n2,y\n3,\"z\r\nz\"\n4,w\n", Options{})
	if a, b := strings.Join(jsonRows(mixed), "\n"), strings.Join(jsonRows(plain), "\n"); a != b || mixed.n != 4 {
		t.Errorf("mixed ends give\n%s\nwant\n%s", a, b)
	}
	_, err := ingestText(t, "x.csv", "a,b\r\n1,2\r3,4\n5\r\n", Options{})
	if clawr.CodeOf(err) != CodeRaggedRow || !strings.Contains(err.Error(), "line 4") {
		t.Errorf("a short row after mixed ends gives %v", err)
	}
}

// A packed file that never ends is read no further than the limit, and what
// was put aside of it is gone.
func TestEndlessParquetStopsAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	endless := io.MultiReader(strings.NewReader("PAR1\x15"), zeros{})
	_, err := Ingest(context.Background(), endless, "x.parquet", Options{MaxBytes: 2 << 20}, dir)
	if clawr.CodeOf(err) != CodeFileTooLarge {
		t.Errorf("an endless file ends with %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left behind", left)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

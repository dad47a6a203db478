//go:build unix

package dataset

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/402claw/clawr"
)

// TestChildRunsOutOfRoom is the child of the next one: no file of its may have
// more than 64 KB, as on a disk with no more room than that.
func TestChildRunsOutOfRoom(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("runs as a child only")
	}
	signal.Ignore(syscall.SIGXFSZ)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 64 << 10, Max: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	text := "a,b\n" + strings.Repeat("1,some text\n", 50_000)
	_, err := Ingest(context.Background(), strings.NewReader(text), "x.csv", Options{}, dir)
	if clawr.CodeOf(err) != clawr.CodeFile || !strings.Contains(err.Error(), "could not be written: file too large") {
		t.Errorf("a segment that finds no room gives %v", err)
	}
	in := io.MultiReader(strings.NewReader("PAR1\x15"), bytes.NewReader(make([]byte, 1<<20)))
	_, err = Ingest(context.Background(), in, "x.parquet", Options{}, dir)
	if clawr.CodeOf(err) != clawr.CodeFile || !strings.Contains(err.Error(), "file too large") {
		t.Errorf("Parquet that cannot be put aside gives %v", err)
	}
}

func TestWhatFindsNoRoomLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	c, out := child(t, "TestChildRunsOutOfRoom", dir)
	if err := c.Wait(); err != nil || !strings.Contains(out.String(), "PASS") {
		t.Errorf("%v: %s", err, out)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v is left behind", left)
	}
}

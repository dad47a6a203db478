package blob_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/blob"
)

// isHash is a file format in which a file's id is the hash of its bytes.
func isHash(path, id string) error {
	b, err := os.ReadFile(path)
	if err == nil && sum(b) != id {
		err = errors.New("it is " + sum(b))
	}
	return err
}

// stores are a shared directory and a bucket, with a way to change a file
// behind the store's back.
func stores(t *testing.T, test func(t *testing.T, s blob.Store, put func(id string, b []byte))) {
	t.Run("directory", func(t *testing.T) {
		dir := t.TempDir()
		s, err := blob.Open("file://"+dir, os.Getenv)
		if err != nil {
			t.Fatal(err)
		}
		test(t, s, func(id string, b []byte) {
			path := filepath.Join(dir, id)
			os.Remove(path)
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("bucket", func(t *testing.T) {
		bucket, endpoint := newS3(t)
		s, err := blob.Open("s3://datasets/some/prefix/", bucket.env(endpoint))
		if err != nil {
			t.Fatal(err)
		}
		test(t, s, func(id string, b []byte) {
			bucket.mu.Lock()
			defer bucket.mu.Unlock()
			bucket.objects["some/prefix/"+id] = b
		})
		if len(bucket.refused) > 0 {
			t.Errorf("the bucket refused: %v", bucket.refused)
		}
	})
}

func file(t *testing.T, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "in")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What is put at one node is fetched at another, byte for byte, and nothing
// else ever is.
func TestFilesTravel(t *testing.T) {
	stores(t, func(t *testing.T, s blob.Store, put func(string, []byte)) {
		ctx := t.Context()
		if err := blob.Check(ctx, s); err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{0, 1, 70_000, 3 << 20} {
			b := make([]byte, size)
			rand.Read(b)
			id := sum(b)
			if ok, err := s.Has(ctx, id); ok || err != nil {
				t.Fatalf("it has what nobody put: %v, %v", ok, err)
			}
			if err := s.Put(ctx, id, file(t, b)); err != nil {
				t.Fatal(err)
			}
			if ok, err := s.Has(ctx, id); !ok || err != nil {
				t.Fatalf("it does not have what was put: %v, %v", ok, err)
			}
			to := filepath.Join(t.TempDir(), "new", "file")
			if err := blob.Fetch(ctx, s, id, to, isHash); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, b) {
				t.Errorf("%d bytes came back as %d, %v", size, len(got), err)
			}
		}

		missing := filepath.Join(t.TempDir(), "missing")
		err := blob.Fetch(ctx, s, strings.Repeat("a", 64), missing, isHash)
		if !errors.Is(err, fs.ErrNotExist) || clawr.CodeOf(err) != clawr.CodeFile || !strings.Contains(err.Error(), "neither on this node nor in the shared storage") {
			t.Errorf("a missing file is %v", err)
		}
		b := []byte("what it is not")
		id := sum([]byte("what it is"))
		put(id, b)
		if err := blob.Fetch(ctx, s, id, missing, isHash); clawr.CodeOf(err) != clawr.CodeSegmentCorrupt {
			t.Errorf("a wrong file is %v", err)
		}
		if left, err := os.ReadDir(filepath.Dir(missing)); err != nil || len(left) != 0 {
			t.Errorf("failures left %v, %v", left, err)
		}
	})
}

// A bucket that asks for patience gets it; one that refuses the key, or is not
// there, is told to whoever starts a node.
func TestBucketsThatFail(t *testing.T) {
	bucket, endpoint := newS3(t)
	s, err := blob.Open("s3://datasets", bucket.env(endpoint))
	if err != nil {
		t.Fatal(err)
	}
	bucket.fail = 2
	if err := s.Put(t.Context(), sum([]byte("x")), file(t, []byte("x"))); err != nil {
		t.Errorf("two busy answers: %v", err)
	}
	thief := func(k string) string {
		if k == "AWS_SECRET_ACCESS_KEY" {
			return "guessed"
		}
		return bucket.env(endpoint)(k)
	}
	if s, err = blob.Open("s3://datasets", thief); err != nil {
		t.Fatal(err)
	}
	if err := blob.Check(t.Context(), s); clawr.CodeOf(err) != clawr.CodeUnreachable {
		t.Errorf("a wrong key: %v", err)
	}
	if err := s.Put(t.Context(), sum([]byte("y")), file(t, []byte("y"))); err == nil || len(bucket.refused) < 2 {
		t.Errorf("an upload with a wrong key: %v, refused %v", err, bucket.refused)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if s, err = blob.Open("s3://datasets", bucket.env("http://127.0.0.1:1")); err != nil {
		t.Fatal(err)
	}
	if err := blob.Check(ctx, s); clawr.CodeOf(err) != clawr.CodeUnreachable {
		t.Errorf("nobody there: %v", err)
	}
}

// URLs that name no storage are said to be wrong, with an example.
func TestURLsThatNameNoStorage(t *testing.T) {
	none := func(string) string { return "" }
	keys := func(k string) string {
		return map[string]string{"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "ftp://x"}[k]
	}
	for _, tt := range []struct {
		url  string
		env  func(string) string
		want string
	}{
		{"/srv/clawr", none, "neither a directory nor a bucket"},
		{"file://srv/clawr", none, "no absolute directory"},
		{"file:srv", none, "no absolute directory"},
		{"s3://", none, "neither"},
		{"s3://user:secret@bucket", none, "neither"},
		{"s3://bucket?region=x", none, "neither"},
		{"https://bucket", none, "neither"},
		{"%", none, "not a URL"},
		{"s3://bucket", none, "no credentials"},
		{"s3://bucket", keys, "AWS_ENDPOINT_URL"},
	} {
		_, err := blob.Open(tt.url, tt.env)
		if clawr.CodeOf(err) != clawr.CodeUsage || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %q", tt.url, err, tt.want)
		}
	}
}

// A directory that is not mounted is an error, and not an empty one.
func TestADirectoryThatIsNotMounted(t *testing.T) {
	s, err := blob.Open("file://"+filepath.Join(t.TempDir(), "nothing"), os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	if err := blob.Check(t.Context(), s); clawr.CodeOf(err) != clawr.CodeUnreachable {
		t.Errorf("%v, want unreachable", err)
	}
}

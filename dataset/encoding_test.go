package dataset

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestTheEncodingIsTheOneThatIsLikedBest(t *testing.T) {
	for header, want := range map[string]coding{
		"":                            asIs,
		"gzip":                        asGzip,
		"GZIP":                        asGzip,
		"x-gzip":                      asGzip,
		"br":                          asIs,
		"gzip, deflate, br":           asGzip,
		"gzip, deflate, br, zstd":     asZstd,
		"zstd;q=0.5, gzip;q=0.8":      asGzip,
		"zstd; q=0.501,gzip ;q=0.5":   asZstd,
		"gzip;q=0":                    asIs,
		"gzip;q=0.0, zstd;q=0":        asIs,
		"*":                           asZstd,
		"*;q=0":                       asIs,
		"*;q=0.1, zstd;q=0":           asGzip,
		"identity, gzip;q=0.5":        asIs,
		"identity;q=0.2, gzip;q=0.5":  asGzip,
		"identity;q=0":                asIs,
		"gzip;q=2":                    asIs,
		"gzip;q=NaN":                  asIs,
		"gzip;q=x":                    asIs,
		"gzip;level=1;q=0.3":          asGzip,
		",, ;q=1,":                    asIs,
		strings.Repeat("gzip,", 1000): asGzip,
	} {
		if got := accepted([]string{header}).best(); got != want {
			t.Errorf("Accept-Encoding: %.40s chooses %s, want %s", header, codingNames[got], codingNames[want])
		}
	}
	if got := accepted([]string{"gzip", "zstd"}).best(); got != asZstd {
		t.Errorf("two lines choose %s, want zstd", codingNames[got])
	}
}

// unpacked is the body of a response without its coding.
func unpacked(t *testing.T, r *http.Response) []byte {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	switch r.Header.Get("Content-Encoding") {
	case "":
		return b
	case "gzip":
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err == nil {
			b, err = io.ReadAll(z)
		}
		if err != nil {
			t.Fatal(err)
		}
	case "zstd":
		z, err := zstd.NewReader(nil)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		if b, err = z.DecodeAll(b, nil); err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatalf("Content-Encoding %q", r.Header.Get("Content-Encoding"))
	}
	return b
}

// conditional answers as the dispatcher does: 304 for the plain tag.
func conditional(h *Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		canonical, _, err := h.Plan(r)
		if tag := h.ETag(canonical); err == nil && strings.Contains(strings.Join(r.Header["If-None-Match"], ","), tag) {
			w.Header().Set("Etag", tag)
			w.WriteHeader(http.StatusNotModified)
			return
		}
		h.ServeHTTP(w, r)
	})
}

func packedServer(t *testing.T, h http.Handler) func(method, target string, header ...string) *http.Response {
	s := httptest.NewServer(&Packer{Next: h})
	t.Cleanup(s.Close)
	c := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	t.Cleanup(c.CloseIdleConnections)
	return func(method, target string, header ...string) *http.Response {
		t.Helper()
		r, err := http.NewRequest(method, s.URL+target, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			r.Header.Add(header[i], header[i+1])
		}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		return resp
	}
}

func TestAPackedAnswerIsThePlainOneUnderATagOfItsOwn(t *testing.T) {
	h := numbersHandler(t)
	ask := packedServer(t, conditional(h))
	for _, target := range []string{"/v1/records", "/v1/records?format=ndjson&limit=1000", "/v1/records?format=csv", "/openapi.json"} {
		plain, err := h.Answer(context.Background(), target)
		if err != nil {
			t.Fatal(err)
		}
		tags := map[string]string{}
		for _, enc := range []string{"", "gzip", "zstd", "gzip", "zstd"} { // the later ones are kept
			r := ask("GET", target, "Accept-Encoding", enc)
			if body := unpacked(t, r); !bytes.Equal(body, plain) {
				t.Errorf("%s in %q unpacks to %d bytes that are not the plain %d", target, enc, len(body), len(plain))
			}
			if got := r.Header.Get("Content-Encoding"); got != enc {
				t.Errorf("%s is %q, want %q", target, got, enc)
			}
			if !strings.Contains(strings.Join(r.Header.Values("Vary"), ","), "Accept-Encoding") {
				t.Errorf("%s in %q has Vary %q", target, enc, r.Header.Values("Vary"))
			}
			if enc != "" && r.ContentLength <= 0 || r.ContentLength >= int64(len(plain)) && enc != "" {
				t.Errorf("%s in %s has %d bytes, the plain answer %d", target, enc, r.ContentLength, len(plain))
			}
			tag := r.Header.Get("Etag")
			if was, ok := tags[enc]; ok && was != tag {
				t.Errorf("%s in %q has the tag %s and then %s", target, enc, was, tag)
			}
			tags[enc] = tag
			head := ask("HEAD", target, "Accept-Encoding", enc)
			if head.Header.Get("Etag") != tag || head.Header.Get("Content-Encoding") != enc || enc != "" && head.ContentLength != r.ContentLength {
				t.Errorf("HEAD %s in %q says %v, GET says %v", target, enc, head.Header, r.Header)
			}
		}
		if tags[""] == tags["gzip"] || tags["gzip"] == tags["zstd"] || tags[""] == tags["zstd"] {
			t.Errorf("%s has the tags %v, want three", target, tags)
		}
		for _, c := range []struct {
			accept, match string
			want          int
			tag           string
		}{
			{"gzip", tags["gzip"], 304, tags["gzip"]},
			{"gzip, zstd", tags["gzip"], 304, tags["gzip"]},
			{"gzip", "W/" + tags["gzip"], 304, tags["gzip"]},
			{"gzip", `"other", ` + tags["gzip"] + `, "another"`, 304, tags["gzip"]},
			{"", tags[""], 304, tags[""]},
			{"gzip", tags[""], 304, tags[""]},
			{"", tags["gzip"], 200, tags[""]},
			{"gzip", tags["zstd"], 200, tags["gzip"]},
			{"gzip", `"other"`, 200, tags["gzip"]},
		} {
			r := ask("GET", target, "Accept-Encoding", c.accept, "If-None-Match", c.match)
			if r.StatusCode != c.want || r.Header.Get("Etag") != c.tag {
				t.Errorf("%s with If-None-Match %s in %q is %d %s, want %d %s", target, c.match, c.accept, r.StatusCode, r.Header.Get("Etag"), c.want, c.tag)
			}
		}
	}
}

func TestWhatIsNoLongAnswerOfADatasetIsNotPacked(t *testing.T) {
	h := numbersHandler(t)
	long := strings.Repeat("long ", 1000)
	ask := packedServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/tag":
			w.Header().Set("Etag", `"v1"`)
		case "/packed":
			w.Header().Set("Etag", h.ETag("x"))
			w.Header().Set("Content-Encoding", "br")
		case "/plain":
		default:
			h.ServeHTTP(w, r)
			return
		}
		_, _ = io.WriteString(w, long)
	}))
	for target, encoding := range map[string]string{"/tag": "", "/plain": "", "/packed": "br", "/v1/records?limit=1": "", "/v1/records?nope=1": "", "/health": ""} {
		r := ask("GET", target, "Accept-Encoding", "gzip")
		b, _ := io.ReadAll(r.Body)
		if r.Header.Get("Content-Encoding") != encoding || len(b) == 0 || strings.HasSuffix(r.Header.Get("Etag"), `-gzip"`) {
			t.Errorf("%s: %v %.20s", target, r.Header, b)
		}
	}
}

// Answers to HEAD that somebody paid for come without a body: only their length
// is known.
func TestHeadOfAPaidAnswerNamesTheForm(t *testing.T) {
	tag := (&Handler{Segment: &Segment{}}).ETag("/v1/records")
	ask := packedServer(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", tag)
		w.Header().Set("Content-Length", r.URL.Query().Get("n"))
		w.WriteHeader(200)
	}))
	for n, want := range map[string]string{"5000": "gzip", "20": ""} {
		r := ask("HEAD", "/?n="+n, "Accept-Encoding", "gzip")
		if got := r.Header.Get("Content-Encoding"); got != want || (want == "") != (r.Header.Get("Etag") == tag) {
			t.Errorf("of %s bytes HEAD says %v", n, r.Header)
		}
	}
}

func TestPackedAnswersAreKeptWithinTheirRoom(t *testing.T) {
	p := &Packer{Max: 64 << 10}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				body := []byte(strings.Repeat(fmt.Sprintf("answer %d ", i%50), 200+g%2))
				c := asGzip + coding(i%2)
				out := p.pack(body, c)
				r := &http.Response{Header: http.Header{"Content-Encoding": {codingNames[c]}}, Body: io.NopCloser(bytes.NewReader(out))}
				if got := unpacked(t, r); !bytes.Equal(got, body) {
					t.Errorf("answer %d in %s is another", i, codingNames[c])
					return
				}
			}
		})
	}
	wg.Wait()
	if p.bytes > p.Max || len(p.kept) != p.order.Len() || len(p.kept) == 0 {
		t.Errorf("%d bytes of %d, %d and %d entries", p.bytes, p.Max, len(p.kept), p.order.Len())
	}
	sum := int64(0)
	for e := p.order.Front(); e != nil; e = e.Next() {
		sum += int64(cap(e.Value.(*packed).body)) + 200
	}
	if sum != p.bytes {
		t.Errorf("%d bytes are kept and %d counted", sum, p.bytes)
	}
}

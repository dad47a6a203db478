package blob_test

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// s3 is a bucket that believes nobody: every request must bear a valid
// signature, version 4, of its whole, and every chunk of an upload one that
// follows from it. It is written from Amazon's description of the signature.
type s3 struct {
	bucket, key, secret, region string

	mu      sync.Mutex
	objects map[string][]byte
	refused []string // why
	fail    int      // so many requests are answered 503 first
	asked   int
}

func newS3(t *testing.T) (*s3, string) {
	s := &s3{bucket: "datasets", key: "AKIDEXAMPLE", secret: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", region: "eu-north-1", objects: map[string][]byte{}}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return s, srv.URL
}

func (s *s3) env(endpoint string) func(string) string {
	m := map[string]string{"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": s.key, "AWS_SECRET_ACCESS_KEY": s.secret, "AWS_REGION": s.region}
	return func(k string) string { return m[k] }
}

func (s *s3) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	say := func(status int, code string) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		if r.Method != http.MethodHead {
			b, _ := xml.Marshal(struct {
				XMLName xml.Name `xml:"Error"`
				Code    string
			}{Code: code})
			w.Write(b)
		}
	}
	if s.fail > 0 {
		s.fail--
		say(http.StatusServiceUnavailable, "SlowDown")
		return
	}
	seed, err := s.verify(r)
	if err != nil {
		s.refused = append(s.refused, err.Error())
		say(http.StatusForbidden, "SignatureDoesNotMatch")
		return
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/"+s.bucket+"/")
	if !ok {
		say(http.StatusNotFound, "NoSuchBucket")
		return
	}
	switch r.Method {
	case http.MethodPut:
		b, err := s.payload(r, seed)
		if err != nil {
			s.refused = append(s.refused, err.Error())
			say(http.StatusForbidden, "SignatureDoesNotMatch")
			return
		}
		s.objects[name] = b
		w.Header().Set("ETag", `"x"`)
	case http.MethodGet, http.MethodHead:
		b, ok := s.objects[name]
		if !ok {
			say(http.StatusNotFound, "NoSuchKey")
			return
		}
		w.Header().Set("ETag", `"x"`)
		http.ServeContent(w, r, "", time.Unix(1_700_000_000, 0), bytes.NewReader(b))
	default:
		say(http.StatusMethodNotAllowed, "MethodNotAllowed")
	}
}

// signed is what chunk signatures go on from.
type signed struct {
	key             []byte
	date, scope     string
	signature       string
	payloadIsHashed string
}

func mac(key []byte, s string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(s))
	return h.Sum(nil)
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// verify checks the signature of everything but the body.
func (s *s3) verify(r *http.Request) (*signed, error) {
	auth, ok := strings.CutPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 ")
	if !ok {
		return nil, fmt.Errorf("%s %s is not signed", r.Method, r.URL.Path)
	}
	fields := map[string]string{}
	for part := range strings.SplitSeq(auth, ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(part), "=")
		fields[k] = v
	}
	date := r.Header.Get("X-Amz-Date")
	at, err := time.Parse("20060102T150405Z", date)
	if err != nil || time.Since(at).Abs() > 15*time.Minute {
		return nil, fmt.Errorf("signed at %q", date)
	}
	scope := date[:8] + "/" + s.region + "/s3/aws4_request"
	if fields["Credential"] != s.key+"/"+scope {
		return nil, fmt.Errorf("signed for %q", fields["Credential"])
	}
	names := strings.Split(fields["SignedHeaders"], ";")
	for _, must := range []string{"host", "x-amz-date", "x-amz-content-sha256"} {
		if !slices.Contains(names, must) {
			return nil, fmt.Errorf("%s is not signed", must)
		}
	}
	var headers strings.Builder
	for _, n := range names {
		v := r.Header.Get(n)
		switch n {
		case "host":
			v = r.Host
		case "content-length":
			v = strconv.FormatInt(r.ContentLength, 10)
		}
		headers.WriteString(n + ":" + strings.Join(strings.Fields(v), " ") + "\n")
	}
	hashed := r.Header.Get("X-Amz-Content-Sha256")
	canonical := strings.Join([]string{r.Method, (&url.URL{Path: r.URL.Path}).EscapedPath(), strings.ReplaceAll(r.URL.Query().Encode(), "+", "%20"), headers.String(), fields["SignedHeaders"], hashed}, "\n")
	key := []byte("AWS4" + s.secret)
	for _, part := range []string{date[:8], s.region, "s3", "aws4_request"} {
		key = mac(key, part)
	}
	want := hex.EncodeToString(mac(key, "AWS4-HMAC-SHA256\n"+date+"\n"+scope+"\n"+sum([]byte(canonical))))
	if !hmac.Equal([]byte(want), []byte(fields["Signature"])) {
		return nil, fmt.Errorf("%s %s has a wrong signature", r.Method, r.URL.Path)
	}
	return &signed{key, date, scope, want, hashed}, nil
}

// payload reads the body that the signature promised.
func (s *s3) payload(r *http.Request, seed *signed) ([]byte, error) {
	if seed.payloadIsHashed != "STREAMING-AWS4-HMAC-SHA256-PAYLOAD" {
		b, err := io.ReadAll(r.Body)
		if err == nil && seed.payloadIsHashed != sum(b) {
			err = errors.New("the body is not what was signed")
		}
		return b, err
	}
	in := bufio.NewReader(r.Body)
	var body []byte
	for before := seed.signature; ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		size, signature, _ := strings.Cut(strings.TrimSuffix(line, "\r\n"), ";chunk-signature=")
		n, err := strconv.ParseInt(size, 16, 32)
		if err != nil {
			return nil, err
		}
		chunk := make([]byte, n)
		if _, err := io.ReadFull(in, chunk); err != nil {
			return nil, err
		}
		if end, err := in.ReadString('\n'); err != nil || end != "\r\n" {
			return nil, errors.New("a chunk has no end")
		}
		want := hex.EncodeToString(mac(seed.key, strings.Join([]string{"AWS4-HMAC-SHA256-PAYLOAD", seed.date, seed.scope, before, sum(nil), sum(chunk)}, "\n")))
		if signature != want {
			return nil, errors.New("a chunk has a wrong signature")
		}
		body, before = append(body, chunk...), want
		if n == 0 {
			if want := r.Header.Get("X-Amz-Decoded-Content-Length"); want != strconv.Itoa(len(body)) {
				return nil, fmt.Errorf("%d bytes came, %s were signed", len(body), want)
			}
			return body, nil
		}
	}
}

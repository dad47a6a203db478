package dataset

import (
	"container/list"
	"hash/maphash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// coding is how an answer is packed on its way (RFC 9110, 8.4).
type coding uint8

// The codings, the one that we like best last.
const (
	asIs coding = iota
	asGzip
	asZstd
)

var codingNames = [...]string{"identity", "gzip", "zstd"}

// acceptance is what a caller thinks of each coding, in thousandths; 0 is not
// accepted.
type acceptance [len(codingNames)]int

// accepted reads Accept-Encoding (RFC 9110, 12.5.3).
func accepted(lines []string) (a acceptance) {
	var named [len(codingNames)]bool
	others := -1
	for _, line := range lines {
		for one := range strings.SplitSeq(line, ",") {
			name, params, _ := strings.Cut(one, ";")
			q, c := quality(params), asIs
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "identity":
			case "gzip", "x-gzip":
				c = asGzip
			case "zstd":
				c = asZstd
			case "*":
				others = q
				continue
			default:
				continue
			}
			a[c], named[c] = q, true
		}
	}
	for c := range a {
		if !named[c] {
			a[c] = max(others, 0)
		}
	}
	return a
}

// best is the coding that the caller likes best, ours to choose among equals. If
// none is left it is the plain one: an answer that was paid for is given.
func (a acceptance) best() coding {
	best := asIs
	for c := range a {
		if a[c] > 0 && a[c] >= a[best] {
			best = coding(c)
		}
	}
	return best
}

// quality reads ";q=0.5" as 500. What cannot be read counts as not accepted.
func quality(params string) int {
	for p := range strings.SplitSeq(params, ";") {
		v, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(p)), "q=")
		if !ok {
			continue
		}
		f, err := strconv.ParseFloat(v, 64)
		if err != nil || !(f >= 0 && f <= 1) {
			return 0
		}
		return int(f*1000 + 0.5)
	}
	return 1000
}

// Packer answers what Next answers, with the bodies of datasets packed as the
// caller accepts it. It stands outside of all that is paid, stored and
// recomputed, which knows only plain bodies. Packed forms of what is asked for
// often are kept by their content, so that no answer of one tenant can stand
// for another's.
type Packer struct {
	Next http.Handler
	Max  int64 // bytes of packed answers that are kept; 0 = 32 MB

	mu    sync.Mutex
	kept  map[packedKey]*list.Element
	order *list.List // of *packed, the one used last in front
	bytes int64
	seed  maphash.Seed
	gzips sync.Pool
	zstd  *zstd.Encoder
}

type packedKey struct {
	hash   uint64 // with a seed that strangers do not know
	length int
	coding coding
}

type packed struct {
	key  packedKey
	body []byte
}

// packAbove is the size from which on an answer gains from being packed: below,
// it fits one packet as it is.
const packAbove = 1 << 10

// ServeHTTP implements http.Handler. A tag that names a packed form is taken for
// the plain one's by Next, if the caller still accepts that form.
func (p *Packer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	accept := accepted(r.Header["Accept-Encoding"])
	pw := &packWriter{ResponseWriter: w, want: accept.best(), head: r.Method == http.MethodHead}
	if match := r.Header["If-None-Match"]; len(match) > 0 {
		if plain, any := plainTags(match, accept); any {
			again := *r
			again.Header = r.Header.Clone()
			again.Header["If-None-Match"] = plain
			pw.matched = match
			r = &again
		}
	}
	p.Next.ServeHTTP(pw, r)
	pw.finish(p)
}

// tagOf is the plain tag in s, which may name a packed form of it. Others' tags
// are left alone.
func tagOf(s string) (plain string, c coding, ours bool) {
	s = strings.TrimPrefix(strings.TrimSpace(s), "W/")
	if len(s) < tagSize || s[0] != '"' || s[len(s)-1] != '"' || strings.Trim(s[1:tagSize-1], "0123456789abcdef") != "" {
		return "", 0, false
	}
	switch s[tagSize-1 : len(s)-1] {
	case "":
		return s, asIs, true
	case "-gzip":
		return s[:tagSize-1] + `"`, asGzip, true
	case "-zstd":
		return s[:tagSize-1] + `"`, asZstd, true
	}
	return "", 0, false
}

// plainTags gives If-None-Match with plain tags for the forms that are accepted,
// and whether any was not plain.
func plainTags(match []string, accept acceptance) (plain []string, any bool) {
	for _, line := range match {
		for one := range strings.SplitSeq(line, ",") {
			if tag, c, ours := tagOf(one); ours && c != asIs {
				if any = true; accept[c] > 0 {
					plain = append(plain, tag)
				}
				continue
			}
			plain = append(plain, strings.TrimSpace(one))
		}
	}
	return plain, any
}

// packWriter holds an answer of a dataset back until it is whole, and lets all
// others through.
type packWriter struct {
	http.ResponseWriter
	want    coding
	head    bool
	matched []string // If-None-Match as it came, if it named packed forms
	status  int
	held    bool
	body    []byte
}

// Unwrap is for http.ResponseController.
func (w *packWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *packWriter) WriteHeader(status int) {
	if w.status != 0 || status < 200 {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	w.status = status
	h := w.Header()
	tag := h["Etag"]
	if len(tag) == 1 && len(h["Content-Encoding"]) == 0 {
		if _, c, ours := tagOf(tag[0]); ours && c == asIs {
			switch status {
			case http.StatusOK:
				h.Add("Vary", "Accept-Encoding")
				w.held = w.want != asIs
			case http.StatusNotModified:
				h.Add("Vary", "Accept-Encoding")
				w.nameForm(tag[0])
			}
		}
	}
	if !w.held {
		w.ResponseWriter.WriteHeader(status)
	}
}

// nameForm puts into a 304 the form's tag that the caller asked with.
func (w *packWriter) nameForm(tag string) {
	for _, line := range w.matched {
		for one := range strings.SplitSeq(line, ",") {
			if plain, c, ours := tagOf(one); ours && plain == tag && c != asIs {
				w.Header()["Etag"] = []string{formTag(tag, c)}
				return
			}
		}
	}
}

func formTag(tag string, c coding) string { return tag[:len(tag)-1] + "-" + codingNames[c] + `"` }

// Write implements http.ResponseWriter.
func (w *packWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.held {
		w.body = append(w.body, b...)
		return len(b), nil
	}
	return w.ResponseWriter.Write(b)
}

// FlushError is for http.ResponseController: what is held back goes at once.
func (w *packWriter) FlushError() error {
	if w.held {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// finish sends what was held back.
func (w *packWriter) finish(p *Packer) {
	if !w.held {
		return
	}
	h := w.Header()
	length := len(w.body)
	if length == 0 && w.head { // the answer to HEAD may say only how long it would be
		length, _ = strconv.Atoi(h.Get("Content-Length"))
	}
	body := w.body
	if length >= packAbove {
		if len(body) > 0 {
			body = p.pack(body, w.want)
		}
		if len(w.body) == 0 || len(body) < len(w.body) {
			h["Content-Encoding"] = []string{codingNames[w.want]}
			h["Etag"] = []string{formTag(h["Etag"][0], w.want)}
			delete(h, "Content-Length")
		} else {
			body = w.body
		}
	}
	if len(body) > 0 {
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
	}
	w.ResponseWriter.WriteHeader(w.status)
	if !w.head {
		_, _ = w.ResponseWriter.Write(body)
	}
}

// pack gives body in a coding, from what is kept or anew.
func (p *Packer) pack(body []byte, c coding) []byte {
	p.mu.Lock()
	if p.kept == nil {
		p.kept, p.order, p.seed = map[packedKey]*list.Element{}, list.New(), maphash.MakeSeed()
		p.zstd, _ = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithLowerEncoderMem(true))
	}
	key := packedKey{maphash.Bytes(p.seed, body), len(body), c}
	if e := p.kept[key]; e != nil {
		p.order.MoveToFront(e)
		p.mu.Unlock()
		return e.Value.(*packed).body
	}
	p.mu.Unlock()
	var out []byte
	if c == asZstd {
		out = p.zstd.EncodeAll(body, nil)
	} else {
		out = p.gzip(body)
	}
	p.keep(&packed{key, out})
	return out
}

func (p *Packer) gzip(body []byte) []byte {
	var b bytesWriter
	z, _ := p.gzips.Get().(*gzip.Writer)
	if z == nil {
		z, _ = gzip.NewWriterLevel(io.Discard, gzip.BestSpeed)
	}
	z.Reset(&b)
	_, _ = z.Write(body) // a slice of bytes takes all
	_ = z.Close()
	p.gzips.Put(z)
	return b
}

type bytesWriter []byte

func (b *bytesWriter) Write(p []byte) (int, error) {
	*b = append(*b, p...)
	return len(p), nil
}

// keep remembers a packed answer, and forgets the ones that were not asked for
// longest when there is no more room. An answer of more than an eighth of the
// room is not kept.
func (p *Packer) keep(e *packed) {
	limit := p.Max
	if limit == 0 {
		limit = 32 << 20
	}
	const overhead = 200 // of an entry
	size := func(e *packed) int64 { return int64(cap(e.body)) + overhead }
	if size(e) > limit/8 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kept[e.key] != nil {
		return
	}
	p.kept[e.key] = p.order.PushFront(e)
	for p.bytes += size(e); p.bytes > limit; {
		old := p.order.Remove(p.order.Back()).(*packed)
		delete(p.kept, old.key)
		p.bytes -= size(old)
	}
}

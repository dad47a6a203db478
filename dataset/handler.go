package dataset

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/402claw/clawr"
)

// Facts is what a dataset's free pages say that is not in its file.
type Facts struct {
	Price    clawr.Amount // per call of a paid route
	Paid     bool         // whether calls cost money at all
	Network  string       // CAIP-2
	Asset    clawr.Asset  // what payments are made in
	PayTo    string
	Scheme   string    // exact
	Updated  time.Time // when this version was published
	BasePath string    // in front of the paths of OpenAPI, such as /t/prices
}

// Handler answers for one version of a dataset. Its answers are pure functions
// of (segment, CursorKey, canonical query): Plan gives the canonical query and
// Answer the bytes that belong to it, now or a day later.
type Handler struct {
	Segment   *Segment
	Facts     Facts
	CPU       time.Duration // of one query; 0 = no limit
	CursorKey []byte        // of the MAC of cursors; the same on every node
	// Versions, if set, gives the segments of other versions of this tenant that
	// are still kept, for version= and for cursors; done lets go of it.
	Versions func(version string) (s *Segment, done func(), err error)
}

// route is what a path asks for.
type route uint8

const (
	nothing route = iota
	records
	record
	schema
	preview
	health
	pricing
	openapi
)

const (
	recordsPath = "/v1/records"
	recordPath  = "/v1/records/"
)

// routeOf goes by the path as it was sent: %2f, //, /./, ;x and other cases
// spell no path of ours, so they lead nowhere rather than past the till.
func routeOf(escaped string) (r route, key string) {
	switch escaped {
	case recordsPath:
		return records, ""
	case "/v1/schema":
		return schema, ""
	case "/v1/preview":
		return preview, ""
	case "/health":
		return health, ""
	case "/pricing":
		return pricing, ""
	case "/openapi.json":
		return openapi, ""
	}
	if key, ok := strings.CutPrefix(escaped, recordPath); ok && key != "" && !strings.ContainsAny(key, "/;") {
		if k, err := url.PathUnescape(key); err == nil && k != "." && k != ".." {
			return record, k
		}
	}
	return nothing, ""
}

func notFound(path string) *clawr.Error {
	return &clawr.Error{Code: clawr.CodeNotFound, Message: "there is nothing at " + strconv.Quote(short(path)),
		Fix: "ask for /v1/records, /v1/records/{key}, /v1/schema, /v1/preview, /openapi.json, /pricing or /health"}
}

// Plan gives the canonical form of a request, equal for requests that ask the
// same, and the units it costs: 1 for records, 0 for what is free. It is pure
// and touches no rows. Errors of paid routes come with their units, as they
// are not told before a payment is there.
func (h *Handler) Plan(r *http.Request) (canonical string, units int64, err error) {
	p, err := h.plan(r.Method, r.URL.EscapedPath(), r.URL.RawQuery)
	defer p.done()
	if err != nil {
		return p.path, p.units(), err
	}
	return string(p.canonical(nil)), p.units(), nil
}

// planned is a request that was understood.
type planned struct {
	route   route
	path    string
	key     string
	query   *Query
	seg     *Segment
	at      page
	cursor  cursor
	release func() // of seg, if it is not the handler's own
}

var queries = sync.Pool{New: func() any { return new(Query) }}

// done lets go of what the plan holds.
func (p *planned) done() {
	if p.release != nil {
		p.release()
	}
	if p.query != nil {
		queries.Put(p.query)
	}
	p.release, p.query = nil, nil
}

func (p *planned) units() int64 {
	if p.route == records || p.route == record {
		return 1
	}
	return 0
}

// canonical appends the canonical form to b.
func (p *planned) canonical(b []byte) []byte {
	switch from := len(b); p.route {
	case records:
		b = append(b, recordsPath...)
		b = p.query.append(append(b, '?'), p.seg.schema, true)
		return bytes.TrimSuffix(b, []byte("?"))
	case record:
		b = append(appendEscaped(append(b, recordPath...), p.key), '?')
		b = bytes.TrimSuffix(p.query.append(b, p.seg.schema, true), []byte("?"))
		return append(b[:from], bytes.ReplaceAll(b[from:], []byte("+"), []byte("%20"))...)
	}
	return append(b, p.path...)
}

func (h *Handler) plan(method, path, rawQuery string) (p planned, err error) {
	p.path, p.seg = path, h.Segment
	p.route, p.key = routeOf(path)
	switch {
	case p.route == nothing:
		return p, notFound(path)
	case method != http.MethodGet && method != http.MethodHead && method != "":
		p.route = nothing
		return p, &clawr.Error{Code: clawr.CodeMethodNotAllowed, Message: short(method) + " is not possible here", Fix: "use GET"}
	case p.units() == 0:
		return p, nil
	}
	if err := h.pin(&p, rawQuery); err != nil {
		return p, err
	}
	p.query = queries.Get().(*Query)
	p.query.reset()
	if err := p.query.parse(p.seg.schema, rawQuery); err != nil {
		if e, ok := errors.AsType[*clawr.Error](err); ok {
			e.Param = strings.Clone(e.Param) // of the query, which others will use
		}
		return p, err
	}
	if p.query.Version == h.Segment.version {
		p.query.Version = ""
	}
	if p.route == record {
		return p, p.single()
	}
	p.at.offset = p.query.Offset
	return p, h.position(&p)
}

// single refuses what makes no sense for one record.
func (p *planned) single() error {
	q := p.query
	if len(q.Filters)+len(q.Words)+len(q.Sort)+q.Offset > 0 || q.Cursor != "" || q.Count || q.Format != JSON || q.Limit != defaultLimit {
		return &clawr.Error{Code: CodeUnknownParameter, Message: "a single record takes only select and version", Fix: "ask " + recordsPath + " for lists"}
	}
	return nil
}

// pin finds the segment that version= or the cursor names.
func (h *Handler) pin(p *planned, rawQuery string) error {
	want := ""
	for rest := rawQuery; rest != ""; {
		var piece string
		piece, rest, _ = strings.Cut(rest, "&")
		if v, ok := strings.CutPrefix(piece, "version="); ok && isVersion(v) {
			want = v
		}
		if token, ok := strings.CutPrefix(piece, "cursor="); ok {
			if strings.ContainsAny(token, "%+") {
				token, _ = url.QueryUnescape(token)
			}
			c, err := h.openCursor(token)
			if err != nil {
				return err
			}
			p.cursor = c
			if v := c.version.hex(); want != "" && want != string(v[:]) {
				return badCursor("it belongs to version " + string(v[:]))
			}
			if c.version == h.Segment.binary {
				want = h.Segment.version
			} else {
				v := c.version.hex()
				want = string(v[:])
			}
		}
	}
	if want == "" || want == h.Segment.version {
		return nil
	}
	gone := &clawr.Error{Code: clawr.CodeVersionGone, Param: "version", Message: "version " + want + " of the data is not kept any more",
		Fix: "begin again without version and cursor"}
	if h.Versions == nil {
		return gone
	}
	seg, done, err := h.Versions(want)
	if err != nil {
		if clawr.CodeOf(err) == clawr.CodeInternal {
			gone.Err = err
			return gone
		}
		return err
	}
	p.seg, p.release = seg, done
	return nil
}

// position finds where the page begins.
func (h *Handler) position(p *planned) error {
	q := p.query
	if q.Cursor == "" {
		return nil
	}
	c := &p.cursor // pin has opened it
	switch {
	case c.version != p.seg.binary:
		v := c.version.hex()
		return badCursor("it belongs to version " + string(v[:]))
	case c.question != q.questionHash(p.seg.schema) || int64(c.row) >= int64(p.seg.n):
		return badCursor("it belongs to another query")
	}
	p.at = page{after: c.row, resume: true}
	return nil
}

// Check says whether the record that r asks for exists: record_not_found if not.
func (h *Handler) Check(_ context.Context, r *http.Request) error {
	p, err := h.plan(r.Method, r.URL.EscapedPath(), r.URL.RawQuery)
	defer p.done()
	if err != nil || p.route != record {
		return err
	}
	_, err = p.seg.lookup(p.key)
	return err
}

// ETag is the strong validator of the answer to a canonical query: it differs
// for each version and question.
func (h *Handler) ETag(canonical string) string {
	var tag [tagSize]byte
	h.tag(&tag, []byte(canonical))
	return string(tag[:])
}

const tagSize = 34 // bytes of an ETag: 32 hex digits in quotes

func (h *Handler) tag(tag *[tagSize]byte, canonical []byte) {
	a := fnv1a(h.Segment.hash, canonical)
	b := fnv1a(fnv1a(fnv1a(fnvBasis, "again"), canonical), h.Segment.id)
	if !bytes.HasPrefix(canonical, []byte(recordsPath)) { // prices change without the data
		facts, _ := json.Marshal(h.Facts)
		a = fnv1a(a, facts)
	}
	tag[0], tag[tagSize-1] = '"', '"'
	var sum [16]byte
	binary.BigEndian.PutUint64(sum[:], a)
	binary.BigEndian.PutUint64(sum[8:], b)
	hex.Encode(tag[1:], sum[:])
}

// tagRoom is room for the ETags of many answers: a header outlives the call that
// sets it, so that its value cannot be used again, but one allocation does for
// all of them.
type tagRoom struct {
	bytes  [64][tagSize]byte
	values [64]string
	n      int
}

var tagRooms = sync.Pool{New: func() any { return new(tagRoom) }}

// tagHeader is ETag as the value of a header.
func (h *Handler) tagHeader(canonical []byte) []string {
	t := tagRooms.Get().(*tagRoom)
	if t.n == len(t.values) {
		t = new(tagRoom)
	}
	i := t.n
	t.n++
	h.tag(&t.bytes[i], canonical)
	t.values[i] = str(t.bytes[i][:])
	tagRooms.Put(t)
	return t.values[i : i+1 : i+1]
}

// Answer gives the body that Serve writes for a canonical query, byte for byte.
// It is not bounded by CPU: whoever has its canonical form has paid.
func (h *Handler) Answer(ctx context.Context, canonical string) ([]byte, error) {
	path, query, _ := strings.Cut(canonical, "?")
	p, err := h.plan(http.MethodGet, path, query)
	defer p.done()
	if err != nil {
		return nil, err
	}
	a, err := h.answer(ctx, &p, nil, 0)
	return a.body, err
}

// answered is an answer before it is written.
type answered struct {
	body  []byte
	mime  []string
	next  string // of the next page, for formats that cannot say it
	cache []string
}

// The values of headers are shared by all answers, and full, so that nobody
// can append to them.
var (
	mimeJSON     = []string{"application/json"}
	mimeNDJSON   = []string{"application/x-ndjson"}
	mimeCSV      = []string{"text/csv; charset=utf-8"}
	cachePrivate = []string{"private"}
	cachePublic  = []string{"public, max-age=60"}
)

func (h *Handler) answer(ctx context.Context, p *planned, buf []byte, cpu time.Duration) (answered, error) {
	a := answered{mime: mimeJSON, cache: cachePrivate}
	switch p.route {
	case records:
		return h.list(ctx, p, buf, cpu)
	case record:
		row, err := p.seg.lookup(p.key)
		if err != nil {
			return a, err
		}
		b := append(buf, `{"data":`...)
		b = p.seg.appendRow(b, row, p.query)
		b = append(b, `,"meta":{"version":"`...)
		a.body = append(append(b, p.seg.version...), `"}}`...)
		return a, nil
	}
	a.cache = cachePublic
	var err error
	a.body, err = h.freePage(p.route, buf)
	return a, err
}

// list answers GET /v1/records.
func (h *Handler) list(ctx context.Context, p *planned, b []byte, cpu time.Duration) (answered, error) {
	a := answered{cache: cachePrivate}
	q, s := p.query, p.seg
	e := executions.Get().(*execution)
	defer e.close()
	r, err := e.run(ctx, s, q, p.at, cpu)
	if err != nil {
		return a, err
	}
	var tmp [1024]byte
	next := tmp[:0]
	if r.more {
		next = h.nextPage(next, p, r.rows[len(r.rows)-1])
	}
	switch q.Format {
	case NDJSON:
		a.mime, a.next = mimeNDJSON, string(next)
		for _, row := range r.rows {
			b = append(s.appendRow(b, row, q), '\n')
		}
	case CSV:
		a.mime, a.next = mimeCSV, string(next)
		b = s.appendCSV(b, r.rows, q)
	default:
		a.mime = mimeJSON
		b = append(b, `{"data":[`...)
		b = s.appendRows(b, r.rows, q)
		b = append(b, `],"meta":{"version":"`...)
		b = append(b, s.version...)
		b = append(b, `","limit":`...)
		b = strconv.AppendInt(b, int64(q.Limit), 10)
		if r.count >= 0 {
			b = append(b, `,"count":`...)
			b = strconv.AppendInt(b, int64(r.count), 10)
		}
		b = append(b, `,"next":`...)
		if r.more {
			b = appendString(b, next)
		} else {
			b = append(b, "null"...)
		}
		b = append(b, `}}`...)
	}
	a.body = b
	return a, nil
}

// nextPage is the address of the page that follows.
func (h *Handler) nextPage(b []byte, p *planned, last uint32) []byte {
	b = append(b, recordsPath+"?"...)
	n := len(b)
	if b = p.query.append(b, p.seg.schema, false); len(b) > n {
		b = append(b, '&')
	}
	return h.appendCursor(append(b, "cursor="...), p.seg.binary, p.seg.schema, p.query, last)
}

// Serve answers r, or returns an error and has written nothing.
func (h *Handler) Serve(w http.ResponseWriter, r *http.Request) error {
	p, err := h.plan(r.Method, r.URL.EscapedPath(), r.URL.RawQuery)
	defer p.done()
	if err != nil {
		return err
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	a, err := h.answer(r.Context(), &p, (*buf)[:0], h.CPU)
	if err != nil {
		return err
	}
	if cap(a.body) > cap(*buf) && cap(a.body) <= maxBuffer {
		*buf = a.body
	}
	head := w.Header()
	head["Content-Type"], head["Cache-Control"] = a.mime, a.cache
	var tmp [512]byte
	head["Etag"] = h.tagHeader(p.canonical(tmp[:0]))
	if a.next != "" {
		head.Set("Link", "<"+a.next+`>; rel="next"`)
	}
	_, err = w.Write(a.body)
	return err
}

// ServeHTTP is Serve for those who have no better way to write errors.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := h.Serve(w, r); err != nil {
		WriteError(w, err)
	}
}

// WriteError answers with an error in clawr's one shape. Of an error that is
// not a *clawr.Error it says nothing.
func WriteError(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*clawr.Error](err)
	if !ok {
		e = &clawr.Error{Code: clawr.CodeInternal, Message: "the dataset failed", Fix: "try again later"}
	}
	body, _ := json.Marshal(map[string]any{"ok": false, "error": e.Code, "message": e.Message, "fix": e.Fix, "param": e.Param})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.HTTPStatus())
	_, _ = w.Write(body)
}

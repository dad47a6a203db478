package cloudflare

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/402claw/clawr"
)

// What D1 takes, from its documentation.
const (
	MaxImport    = 5 << 30 // bytes of an import file
	MaxStatement = 100_000 // bytes of one statement of it
	pollEvery    = time.Second
)

// Import is the SQL that fills a database. Write gives the same bytes each
// time it is called; they are never held in memory.
type Import struct {
	Content string // SHA-256 (hex) of what the database is made of
	Write   func(io.Writer) error
	// Progress, if set, hears how far the upload is.
	Progress func(sent, total int64)
}

// done is written behind the data. An import happens as a whole or not at
// all, so that a database with this table is complete.
const doneTable = "clawr_import"

func (m *Import) write(w io.Writer) error {
	if err := m.Write(w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "CREATE TABLE %s (content TEXT NOT NULL) STRICT;\nINSERT INTO %s (content) VALUES ('%s');\n", doneTable, doneTable, m.Content)
	return err
}

// measure is the length of the import and its MD5, which D1 knows it by.
func (m *Import) measure(ctx context.Context) (size int64, etag string, err error) {
	h := md5.New()
	var n counter
	if err := m.write(until(ctx, io.MultiWriter(h, &n, new(statements)))); err != nil {
		return 0, "", err
	}
	if n > MaxImport {
		return 0, "", &clawr.Error{Code: CodeTooLarge, Message: fmt.Sprintf("the dataset is %.1f GB as SQL, at most 5 GB can be imported", float64(n)/(1<<30)), Fix: "publish fewer rows or columns; the old version still serves"}
	}
	return int64(n), hex.EncodeToString(h.Sum(nil)), nil
}

// open reads the import from its beginning. Close ends its writer and waits
// for it.
func (m *Import) open(size int64) io.ReadCloser {
	r, w := io.Pipe()
	s := &stream{PipeReader: r, ended: make(chan struct{}), of: m, total: size}
	go func() {
		defer close(s.ended)
		w.CloseWithError(m.write(w))
	}()
	return s
}

// stream is an import that is being sent.
type stream struct {
	*io.PipeReader
	of          *Import
	ended       chan struct{}
	sent, total int64
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.PipeReader.Read(b)
	s.sent += int64(n)
	if s.of.Progress != nil {
		s.of.Progress(s.sent, s.total)
	}
	return n, err
}

func (s *stream) Close() error {
	err := s.PipeReader.Close()
	<-s.ended
	return err
}

// statements refuses a statement that D1 would refuse: one row makes it so
// large, because several rows are never put together beyond the limit.
type statements struct {
	head   []byte // its beginning
	size   int
	quoted bool
}

func (s *statements) Write(b []byte) (int, error) {
	for i := 0; i < len(b); {
		n := bytes.IndexAny(b[i:], "';")
		if n < 0 {
			n = len(b) - i
		} else {
			n++
		}
		part := b[i : i+n]
		s.head = append(s.head, part[:min(n, 4096-len(s.head))]...)
		s.size += n
		i += n
		switch end := part[n-1]; {
		case end == '\'':
			s.quoted = !s.quoted // a doubled quote ends and begins again
		case end == ';' && !s.quoted:
			s.head, s.size = s.head[:0], 0
		}
		if s.size > MaxStatement {
			where := "a row"
			if _, row, ok := bytes.Cut(s.head, []byte("VALUES (")); ok {
				if n, err := strconv.Atoi(string(row[:max(0, bytes.IndexByte(row, ','))])); err == nil {
					where = fmt.Sprintf("row %d", n)
				}
			}
			return 0, &clawr.Error{Code: CodeTooLarge, Message: fmt.Sprintf("%s is too large for D1, which takes statements up to %d bytes", where, MaxStatement),
				Fix: "shorten its texts, or leave the column out; the old version still serves"}
		}
	}
	return len(b), nil
}

// until makes a writer fail once ctx has ended.
func until(ctx context.Context, w io.Writer) io.Writer { return &ending{ctx, w} }

type ending struct {
	ctx context.Context
	w   io.Writer
}

func (e *ending) Write(b []byte) (int, error) {
	if err := e.ctx.Err(); err != nil {
		return 0, err
	}
	return e.w.Write(b)
}

// database finds a D1 database by its name; "" if there is none.
func (c *Client) database(ctx context.Context, name string) (string, error) {
	all, err := list[struct{ UUID, Name string }](ctx, c, c.account("/d1/database"), url.Values{"name": {name}})
	if err != nil {
		return "", explain(err, "the D1 databases cannot be listed")
	}
	for _, d := range all {
		if d.Name == name { // the API's filter finds what contains it, too
			return d.UUID, nil
		}
	}
	return "", nil
}

func (c *Client) createDatabase(ctx context.Context, name string) (id string, err error) {
	var d struct{ UUID string }
	err = c.create(ctx, c.account("/d1/database"), map[string]string{"name": name}, &d, func() (bool, error) {
		d.UUID, err = c.database(ctx, name)
		return d.UUID != "", err
	})
	return d.UUID, explain(err, "the D1 database "+name+" was not made")
}

func (c *Client) removeDatabase(ctx context.Context, id string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: c.account("/d1/database/%s", id)}, nil)
	if gone(err) {
		return nil
	}
	return explain(err, "a D1 database was not deleted")
}

// imported says what a database was filled with; "" while it is empty.
func (c *Client) imported(ctx context.Context, id string) (content string, err error) {
	query := func(sql string, out any) error {
		err := c.send(ctx, http.MethodPost, c.account("/d1/database/%s/query", id), map[string]string{"sql": sql}, out)
		return explain(err, "the D1 database cannot be read")
	}
	type row struct{ Name, Content string }
	var res []struct {
		Results []row `json:"results"`
	}
	first := func() (r row) {
		if len(res) > 0 && len(res[0].Results) > 0 {
			r = res[0].Results[0]
		}
		return r
	}
	if err := query("SELECT name FROM sqlite_master WHERE type = 'table' AND name = '"+doneTable+"'", &res); err != nil || first().Name == "" {
		return "", err
	}
	res = nil
	err = query("SELECT content FROM "+doneTable, &res)
	return first().Content, err
}

// imports is what the import endpoint answers: where to upload to, or how far
// an import is.
type imports struct {
	Filename  string   `json:"filename"`
	UploadURL string   `json:"upload_url"`
	Success   *bool    `json:"success"`
	Status    string   `json:"status"` // active, complete or error
	Bookmark  string   `json:"at_bookmark"`
	Error     string   `json:"error"`
	Errors    []string `json:"errors"`
}

// fill imports m into an empty database. It may be repeated: what was uploaded
// before is not uploaded again.
func (c *Client) fill(ctx context.Context, id string, m *Import) error {
	size, etag, err := m.measure(ctx)
	if err != nil {
		return err
	}
	post := func(body map[string]string) (out imports, err error) {
		err = c.send(ctx, http.MethodPost, c.account("/d1/database/%s/import", id), body, &out)
		return out, explain(err, "the dataset was not imported")
	}
	st, err := post(map[string]string{"action": "init", "etag": etag})
	if err != nil {
		return err
	}
	if st.UploadURL != "" {
		if err := c.put(ctx, st.UploadURL, m, size, etag); err != nil {
			return err
		}
		if st, err = post(map[string]string{"action": "ingest", "etag": etag, "filename": st.Filename}); err != nil {
			return err
		}
	}
	for {
		switch {
		case st.Status == "complete":
			return nil
		case st.Status == "error" || st.Success != nil && !*st.Success:
			// The same import, begun twice because an answer was lost, fails the
			// second time.
			if has, err := c.imported(ctx, id); err == nil && has == m.Content {
				return nil
			}
			return &clawr.Error{Code: CodeImport, Message: "D1 did not import the dataset: " + printable(strings.Join(append(st.Errors, st.Error), " ")),
				Fix: "run the same command again; the old version still serves"}
		}
		if err := c.sleep(ctx, pollEvery); err != nil {
			return err
		}
		if st, err = post(map[string]string{"action": "poll", "current_bookmark": st.Bookmark}); err != nil {
			return err
		}
	}
}

// put uploads an import to where init says, which is signed for this one file
// and gets no token, and compares what has arrived.
func (c *Client) put(ctx context.Context, to string, m *Import, size int64, etag string) error {
	var last error
	for try := 1; try <= attempts; try++ {
		if try > 1 {
			if err := c.sleep(ctx, time.Second); err != nil {
				return err
			}
		}
		body := m.open(size)
		req, err := http.NewRequestWithContext(ctx, http.MethodPut, to, body)
		if err != nil {
			body.Close()
			return &clawr.Error{Code: CodeImport, Message: "D1 gave no URL to upload to", Fix: "run the same command again"}
		}
		req.ContentLength = size
		res, err := c.http().Do(req)
		body.Close()
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			last = c.lost(ctx, call{method: http.MethodPut, path: "(the upload of the dataset)"}, err)
			continue
		}
		io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
		res.Body.Close()
		got := strings.Trim(strings.TrimPrefix(res.Header.Get("ETag"), "W/"), `"`)
		switch {
		case res.StatusCode/100 != 2:
			last = &failure{Method: http.MethodPut, Path: "(the upload of the dataset)", Status: res.StatusCode}
		case got != etag:
			last = &clawr.Error{Code: CodeImport, Message: "the dataset did not arrive as it was sent", Fix: "run the same command again; the old version still serves"}
		default:
			return nil
		}
		if f, ok := last.(*failure); ok && !f.passing() {
			break
		}
	}
	return explain(last, "the dataset was not uploaded")
}

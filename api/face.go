package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/402claw/clawr"
)

// maxBody bounds the JSON bodies of requests; imports and uploads have bounds
// of their own.
const maxBody = 1 << 20

// face is how handlers meet HTTP: who may call them, how they answer, and the
// one shape of errors.
type face struct {
	authorize func(*http.Request) (Principal, error)
	log       *slog.Logger
	docs      string
}

// request is what a handler is given.
type request struct {
	*http.Request
	ID string
	By Principal
	w  http.ResponseWriter
}

// route is a handler and the scope that it needs. What the handler returns is
// answered as JSON. An empty scope needs nobody: By is then the zero Principal.
type route struct {
	scope  string
	handle func(*request) (any, error)
}

type methods map[string]route

// routes is a mux that answers everything, errors too, as JSON.
func (f *face) routes(table map[string]methods) http.Handler {
	mux := http.NewServeMux()
	for path, ms := range table {
		mux.Handle(path, f.methods(ms))
	}
	mux.Handle("/", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.fail(w, r, newRequestID(w), &clawr.Error{Code: clawr.CodeNotFound, Message: "there is nothing at " + printable(r.URL.Path), Fix: "check the path"})
	}))
	return mux
}

func (f *face) methods(ms methods) http.Handler {
	var allow []string
	for m := range ms {
		allow = append(allow, m)
	}
	slices.Sort(allow)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := newRequestID(w)
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		rt, ok := ms[method]
		if !ok {
			w.Header().Set("Allow", strings.Join(allow, ", "))
			f.fail(w, r, id, &clawr.Error{Code: clawr.CodeMethodNotAllowed, Message: printable(r.Method) + " is not a method of this path", Fix: "use " + strings.Join(allow, " or ")})
			return
		}
		req := &request{Request: r, ID: id, w: w}
		if err := f.admit(req, rt.scope); err != nil {
			f.fail(w, r, id, err)
			return
		}
		v, err := rt.handle(req)
		if err != nil {
			f.fail(w, r, id, err)
			return
		}
		b, err := json.Marshal(v)
		if err != nil {
			f.fail(w, r, id, err)
			return
		}
		write(w, http.StatusOK, b)
	})
}

func (f *face) admit(r *request, scope string) error {
	if scope == "" {
		return nil
	}
	var err error
	if r.By, err = f.authorize(r.Request); err != nil {
		return err
	}
	if !r.By.Can(scope) {
		return &clawr.Error{Code: clawr.CodeScopeMissing, Message: "this needs the scope " + scope + ", which your token does not have",
			Fix: "clawr token create --scope " + scope}
	}
	return nil
}

// Problem is the one shape of errors, here and in the dispatcher.
type Problem struct {
	OK        bool       `json:"ok"`
	Error     clawr.Code `json:"error"`
	Message   string     `json:"message"`
	Fix       string     `json:"fix,omitempty"`
	Param     string     `json:"param,omitempty"`
	Docs      string     `json:"docs,omitempty"`
	RequestID string     `json:"requestId"`
}

// fail answers with err. What is not made for strangers is logged, and they
// read "internal".
func (f *face) fail(w http.ResponseWriter, r *http.Request, id string, err error) {
	e, ok := errors.AsType[*clawr.Error](err)
	if !ok || e.Code == clawr.CodeInternal {
		if f.log != nil && !errors.Is(err, context.Canceled) {
			f.log.ErrorContext(r.Context(), "control plane", "requestId", id, "path", r.URL.Path, "err", err)
		}
		e = &clawr.Error{Code: clawr.CodeInternal, Message: "internal error", Fix: "give the operator the request id " + id}
	}
	p := Problem{Error: e.Code, Message: e.Message, Fix: e.Fix, Param: e.Param, RequestID: id}
	if f.docs != "" {
		p.Docs = strings.TrimSuffix(f.docs, "/") + "/errors.md#" + string(e.Code)
	}
	status := e.HTTPStatus()
	switch {
	case status == http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="clawr"`)
	case e.Code == clawr.CodeScopeMissing:
		w.Header().Set("WWW-Authenticate", `Bearer realm="clawr", error="insufficient_scope"`)
	}
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.FormatInt(int64((e.RetryAfter+time.Second-1)/time.Second), 10))
	}
	b, _ := json.Marshal(p)
	write(w, status, b)
}

func write(w http.ResponseWriter, status int, b []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the caller is gone if it fails
}

func newRequestID(w http.ResponseWriter) string {
	id := randomID("req_")
	w.Header().Set("X-Request-Id", id)
	return id
}

// randomID is prefix and 16 hex digits.
func randomID(prefix string) string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	return prefix + hex.EncodeToString(b[:])
}

// decode reads a JSON body into v: one value, no unknown fields, at most
// maxBody. An empty body leaves v as it is if that is allowed.
func (r *request) decode(v any, mayBeEmpty bool) error {
	bad := func(why string) error {
		return &clawr.Error{Code: clawr.CodeBadRequest, Message: "the body is not what this takes: " + why, Fix: "send one JSON object with fields that this path knows"}
	}
	b, err := io.ReadAll(http.MaxBytesReader(r.w, r.Body, maxBody))
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return bodyTooLarge(tooLarge.Limit)
	}
	if err != nil {
		return bad("it ends early")
	}
	if len(bytes.TrimSpace(b)) == 0 {
		if mayBeEmpty {
			return nil
		}
		return bad("it is empty")
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		if e, ok := errors.AsType[*clawr.Error](err); ok {
			return e
		}
		return bad(printable(strings.TrimPrefix(err.Error(), "json: ")))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return bad("something follows the JSON")
	}
	return nil
}

func bodyTooLarge(limit int64) error {
	return &clawr.Error{Code: clawr.CodeBodyTooLarge, Message: fmt.Sprintf("the body is larger than %d bytes", limit), Fix: "send it in parts"}
}

// number is an integer query parameter between least and most.
func (r *request) number(name string, otherwise, least, most int) (int, error) {
	s := r.URL.Query().Get(name)
	if s == "" {
		return otherwise, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < least || n > most {
		return 0, &clawr.Error{Code: clawr.CodeBadRequest, Param: name, Message: fmt.Sprintf("%s is not a number from %d to %d", name, least, most), Fix: fmt.Sprintf("%s=%d", name, otherwise)}
	}
	return n, nil
}

// printable makes a stranger's text safe to repeat, and short.
func printable(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return strings.Map(func(r rune) rune {
		if strconv.IsPrint(r) {
			return r
		}
		return -1
	}, strings.ToValidUTF8(s, ""))
}

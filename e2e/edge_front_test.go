package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/402claw/clawr/x402"
)

// front stands before a real facilitator, and can do to its answers what
// hostile ones, and networks, do. What is to be done is said for each payer.
type front struct {
	*httptest.Server
	real  string
	mu    sync.Mutex
	hooks map[string]hook // by payer, lower case
	seen  []string        // bodies of settlements
}

// hook answers one request; pass gives what the real facilitator answers.
type hook func(path string, pass func() (int, string)) (status int, body string)

// hangUp, as a status, cuts the connection without an answer.
const hangUp = -1

func newFront(t testing.TB, real string) *front {
	f := &front{real: real, hooks: map[string]hook{}}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *front) on(payer string, h hook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hooks[strings.ToLower(payer)] = h
}

func (f *front) settlements() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.seen...)
}

func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	payer := ""
	if req, err := x402.ParseRequest(body); err == nil {
		if e, err := x402.ParseExact(req.Payload.Payload); err == nil {
			payer = e.Payer()
		}
	}
	f.mu.Lock()
	if r.URL.Path == "/settle" {
		f.seen = append(f.seen, string(body))
	}
	h := f.hooks[payer]
	f.mu.Unlock()
	pass := func() (int, string) {
		res, err := http.Post(f.real+r.URL.Path, "application/json", bytes.NewReader(body))
		if err != nil {
			return http.StatusBadGateway, err.Error()
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	if h == nil {
		h = func(_ string, pass func() (int, string)) (int, string) { return pass() }
	}
	status, answer := h(r.URL.Path, pass)
	if status == hangUp {
		panic(http.ErrAbortHandler)
	}
	if status == http.StatusTemporaryRedirect {
		w.Header().Set("Location", answer)
	}
	w.WriteHeader(status)
	io.WriteString(w, answer)
}

// settleSays answers settlements with one text, after really settling if chain;
// %TX% is then the transaction.
func settleSays(chain bool, status int, body string) hook {
	return func(path string, pass func() (int, string)) (int, string) {
		if path != "/settle" {
			return pass()
		}
		text := body
		if chain {
			_, real := pass()
			var v struct{ Transaction string }
			json.Unmarshal([]byte(real), &v)
			text = strings.ReplaceAll(text, "%TX%", v.Transaction)
		}
		return status, text
	}
}

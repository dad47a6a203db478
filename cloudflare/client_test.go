package cloudflare

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/402claw/clawr"
)

// script is a server that answers with what it is given, one after the other,
// and keeps what it was asked.
type script struct {
	t       *testing.T
	mu      sync.Mutex
	answers []answer
	asked   []string
	waited  []time.Duration
}

type answer struct {
	status int
	body   string
	header string // "Name: value"
	cut    bool   // the connection ends instead
}

// calls are what it was asked, and how many answers it has left.
func (s *script) calls() ([]string, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked), len(s.answers)
}

func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	s.mu.Lock()
	s.asked = append(s.asked, r.Method+" "+r.URL.Path)
	if len(s.answers) == 0 {
		s.mu.Unlock()
		s.t.Errorf("unexpected %s %s", r.Method, r.URL)
		return
	}
	a := s.answers[0]
	s.answers = s.answers[1:]
	s.mu.Unlock()
	if r.Header.Get("Authorization") != "Bearer s3cret-token" {
		s.t.Errorf("%s %s came with %q", r.Method, r.URL, r.Header.Get("Authorization"))
	}
	if a.cut {
		panic(http.ErrAbortHandler)
	}
	if name, v, ok := strings.Cut(a.header, ": "); ok {
		w.Header().Set(name, v)
	}
	w.WriteHeader(a.status)
	io.WriteString(w, a.body)
}

func serve(t *testing.T, answers ...answer) (*Client, *script) {
	t.Helper()
	s := &script{t: t, answers: answers}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	return &Client{Account: "acc", Token: "s3cret-token", Base: srv.URL, Sleep: func(_ context.Context, d time.Duration) error {
		s.waited = append(s.waited, d)
		return nil
	}}, s
}

const fine = `{"success":true,"errors":[],"messages":[],"result":{"id":"x"}}`

func refused(code int) string {
	return fmt.Sprintf(`{"success":false,"errors":[{"code":%d,"message":"no"}],"messages":[],"result":null}`, code)
}

func TestCallsAreRepeatedWhenTheyMaySucceed(t *testing.T) {
	for name, c := range map[string]struct {
		answers []answer
		calls   int
		code    clawr.Code
		least   time.Duration // waited in all
		most    time.Duration
	}{
		"fine":                   {[]answer{{200, fine, "", false}}, 1, "", 0, 0},
		"500 once":               {[]answer{{500, refused(10013), "", false}, {200, fine, "", false}}, 2, "", 250 * time.Millisecond, time.Second},
		"a page twice":           {[]answer{{502, "<html>", "", false}, {503, "<html>", "", false}, {200, fine, "", false}}, 3, "", 0, time.Second},
		"a page with 200":        {[]answer{{200, "<html>", "", false}, {200, fine, "", false}}, 2, "", 0, time.Second},
		"500 for ever":           {[]answer{{500, "", "", false}, {500, "", "", false}, {500, "", "", false}}, 3, CodeAPI, 0, time.Second},
		"no answer":              {[]answer{{cut: true}, {200, fine, "", false}}, 2, "", 0, time.Second},
		"no answer for ever":     {[]answer{{cut: true}, {cut: true}, {cut: true}}, 3, clawr.CodeUnreachable, 0, time.Second},
		"429 with a time":        {[]answer{{429, refused(971), "Retry-After: 7", false}, {200, fine, "", false}}, 2, "", 7 * time.Second, 8 * time.Second},
		"429 with a long time":   {[]answer{{429, refused(971), "Retry-After: 3600", false}, {200, fine, "", false}}, 2, "", time.Minute, 61 * time.Second},
		"429 without one":        {[]answer{{429, refused(971), "", false}, {200, fine, "", false}}, 2, "", time.Second, 2 * time.Second},
		"429 for ever":           {[]answer{{429, "", "", false}, {429, "", "", false}, {429, "", "", false}}, 3, CodeLimited, 2 * time.Second, 4 * time.Second},
		"a concurrent change":    {[]answer{{409, refused(apiConcurrent), "", false}, {200, fine, "", false}}, 2, "", 0, time.Second},
		"not allowed":            {[]answer{{403, refused(apiAuth), "", false}}, 1, CodeAuth, 0, 0},
		"unsuccessful with 200":  {[]answer{{200, refused(apiInvalid), "", false}}, 1, CodeInvalid, 0, 0},
		"another method's codes": {[]answer{{400, refused(99999), "", false}}, 1, CodeAPI, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			api, s := serve(t, c.answers...)
			err := explain(api.send(t.Context(), http.MethodPut, api.account("/x"), map[string]int{"a": 1}, nil), "it did not happen")
			if asked, left := s.calls(); len(asked) != c.calls || left != 0 {
				t.Errorf("%d calls, want %d: %v", len(asked), c.calls, asked)
			}
			if c.code == "" && err != nil || c.code != "" && clawr.CodeOf(err) != c.code {
				t.Errorf("error %v, want %q", err, c.code)
			}
			waited := time.Duration(0)
			for _, d := range s.waited {
				waited += d
			}
			if waited < c.least || waited > c.most {
				t.Errorf("waited %s, want %s to %s", waited, c.least, c.most)
			}
		})
	}
}

func TestErrorsHaveACodeAndAFixAndNoToken(t *testing.T) {
	for _, c := range []struct {
		status, code int
		want         clawr.Code
	}{
		{400, apiUnauthorized, CodeAuth}, {401, apiAuth, CodeAuth}, {403, apiAuth, CodeAuth}, {403, apiForbidden, CodeAuth}, {404, apiNoRoute, CodeAccount},
		{404, apiNoNamespace, CodeNamespace}, {404, apiNoTenant, CodeMissing}, {404, apiNoScript, CodeMissing}, {413, apiTooLarge, CodeTooLarge}, {400, apiTooLarge, CodeTooLarge},
		{400, apiInvalid, CodeInvalid}, {400, apiNoKept, CodeInvalid}, {400, apiClass, CodeInvalid}, {400, apiNoHandlers, CodeInvalid}, {412, apiTagPre, CodeInvalid},
		{400, apiTooMany, CodeQuota}, {400, apiQuota, CodeQuota}, {400, apiNameTaken, CodeTaken}, {400, apiTitleTaken, CodeTaken}, {403, apiNoSubdomain, CodeMissing}, {404, apiNoSubdomain, CodeMissing},
	} {
		api, _ := serve(t, answer{c.status, refused(c.code), "", false})
		err := explain(api.send(t.Context(), http.MethodPut, "/x", 1, nil), "it did not happen")
		e, ok := errors.AsType[*clawr.Error](err)
		if !ok || e.Code != c.want || e.Fix == "" || !strings.Contains(err.Error(), fmt.Sprint(c.code)) {
			t.Errorf("%d with %d became %v, want %s", c.status, c.code, err, c.want)
		}
		if strings.Contains(fmt.Sprintf("%+v %s", err, e.Fix), "s3cret") {
			t.Errorf("the token is in %v", err)
		}
	}
}

// What a stranger's answer says reaches a terminal.
func TestMessagesAreOneLineOfText(t *testing.T) {
	api, _ := serve(t, answer{400, `{"success":false,"errors":[{"code":1,"message":"a\u001b[31m\nb` + strings.Repeat("x", 5000) + `"}]}`, "", false})
	err := explain(api.send(t.Context(), http.MethodPut, "/x", 1, nil), "it did not happen")
	if s := err.Error(); strings.ContainsAny(s, "\x1b\n") || len(s) > 1200 {
		t.Errorf("%q", s)
	}
}

func TestCreatingTwiceMakesOne(t *testing.T) {
	const none, one = `{"success":true,"result":[],"result_info":{"page":1,"total_pages":1}}`, `{"success":true,"result":[{"id":"kv1","title":"d"}],"result_info":{"page":1,"total_pages":1}}`
	for name, c := range map[string]struct {
		answers []answer
		asked   string
	}{
		"made":                 {[]answer{{200, `{"success":true,"result":{"id":"kv1"}}`, "", false}}, "POST"},
		"lost, and made":       {[]answer{{cut: true}, {200, one, "", false}}, "POST GET"},
		"lost, and not made":   {[]answer{{cut: true}, {200, none, "", false}, {200, `{"success":true,"result":{"id":"kv1"}}`, "", false}}, "POST GET POST"},
		"failed, and made":     {[]answer{{500, "", "", false}, {200, one, "", false}}, "POST GET"},
		"somebody was faster":  {[]answer{{400, refused(apiTitleTaken), "", false}, {200, one, "", false}}, "POST GET"},
		"too many calls first": {[]answer{{429, "", "", false}, {200, `{"success":true,"result":{"id":"kv1"}}`, "", false}}, "POST POST"},
	} {
		t.Run(name, func(t *testing.T) {
			api, s := serve(t, c.answers...)
			id, err := api.createKV(t.Context(), "d")
			if id != "kv1" || err != nil {
				t.Errorf("%q, %v", id, err)
			}
			var methods []string
			asked, _ := s.calls()
			for _, a := range asked {
				methods = append(methods, strings.Fields(a)[0])
			}
			if got := strings.Join(methods, " "); got != c.asked {
				t.Errorf("asked %s, want %s", got, c.asked)
			}
		})
	}
}

// The real API refuses everything for five minutes after 1,200 calls in five.
func TestCallsStayBelowTheRateOfTheAPI(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &Client{}
		var at []time.Time
		for range 3000 {
			if err := c.pace(t.Context()); err != nil {
				t.Fatal(err)
			}
			at = append(at, time.Now())
		}
		for i := range at {
			if j := i + 1200; j < len(at) && at[j].Sub(at[i]) < 5*time.Minute {
				t.Fatalf("1,200 calls in %s", at[j].Sub(at[i]))
			}
		}
		if first := at[10].Sub(at[0]); first != 0 {
			t.Errorf("ten calls took %s", first)
		}
	})
}

func TestListsHaveAllPages(t *testing.T) {
	api, s := serve(t, answer{200, `{"success":true,"result":[{"id":"1","title":"a"}],"result_info":{"page":1,"total_pages":2}}`, "", false},
		answer{200, `{"success":true,"result":[{"id":"2","title":"b"}],"result_info":{"page":2,"total_pages":2}}`, "", false})
	id, err := api.kv(t.Context(), "b")
	if asked, _ := s.calls(); id != "2" || err != nil || len(asked) != 2 {
		t.Errorf("%q, %v after %v", id, err, asked)
	}
}

func TestAnEndedContextEndsTheWait(t *testing.T) {
	api, _ := serve(t, answer{429, "", "Retry-After: 60", false})
	ctx, cancel := context.WithCancel(t.Context())
	api.Sleep = func(ctx context.Context, _ time.Duration) error { cancel(); return ctx.Err() }
	if err := api.send(ctx, http.MethodPut, "/x", 1, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

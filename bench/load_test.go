package main

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// generate runs a job in this process.
func generate(t *testing.T, j job) result {
	t.Helper()
	var in, out bytes.Buffer
	if err := gob.NewEncoder(&in).Encode(j); err != nil {
		t.Fatal(err)
	}
	if err := load(&in, &out); err != nil {
		t.Fatal(err)
	}
	var r result
	if err := gob.NewDecoder(&out).Decode(&r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLoadSendsEveryRequestOnce(t *testing.T) {
	var seen [500]atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var n int
		fmt.Sscan(r.Header.Get("N"), &n)
		seen[n].Add(1)
		fmt.Fprintf(w, "answer %d %s", n, strings.Repeat("x", n*3))
	}))
	defer s.Close()
	addr := s.Listener.Addr().String()
	j := job{Addr: addr, Callers: 7, Status: 200, Contains: "answer"}
	for i := range seen {
		j.Requests = append(j.Requests, get(addr, "/", fmt.Sprintf("N: %d", i)))
	}
	r := generate(t, j)
	if r.Good != len(seen) || r.Bad != 0 {
		t.Fatalf("%+v", r)
	}
	for i := range seen {
		if n := seen[i].Load(); n != 1 {
			t.Errorf("request %d was sent %d times", i, n)
		}
	}
	if r.P50 <= 0 || r.P99 < r.P50 || r.Took < r.P50 {
		t.Errorf("the times cannot be: %+v", r)
	}
}

func TestLoadCountsWhatIsNotGood(t *testing.T) {
	var n atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 4 {
		case 0:
			w.WriteHeader(http.StatusPaymentRequired)
		case 1:
			fmt.Fprint(w, "something else")
			return
		}
		fmt.Fprint(w, "good")
	}))
	defer s.Close()
	addr := s.Listener.Addr().String()
	j := job{Addr: addr, Callers: 2, Status: 200, Contains: "good"}
	for range 100 {
		j.Requests = append(j.Requests, get(addr, "/"))
	}
	if r := generate(t, j); r.Good != 50 || r.Bad != 50 || r.FirstBad == "" {
		t.Errorf("%+v, want 50 good and 50 bad", r)
	}
}

func TestLoadRepeatsForAWhile(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(402) }))
	defer s.Close()
	addr := s.Listener.Addr().String()
	r := generate(t, job{Addr: addr, Callers: 2, Requests: [][]byte{get(addr, "/")}, Repeat: 50 * time.Millisecond, Status: 402})
	if r.Good < 2 || r.Bad != 0 || r.Took < 50*time.Millisecond || r.Took > 5*time.Second {
		t.Errorf("%+v", r)
	}
}

func TestRatioIsTheMedianOfTheRounds(t *testing.T) {
	of := func(rates ...int) (list []measure) {
		for _, r := range rates {
			list = append(list, measure{result: result{Good: r, Took: time.Second}})
		}
		return list
	}
	// The machine was three times as slow in the second round, for both.
	c := comparison{ours: of(600, 200, 900), theirs: of(200, 60, 100)}
	if got := c.ratio(); got < 3.32 || got > 3.34 {
		t.Errorf("ratio %v, want 200/60", got)
	}
	if got := median([]float64{4, 1, 3, 2}); got != 2.5 {
		t.Errorf("median %v, want 2.5", got)
	}
	if got := median(nil); got != 0 {
		t.Errorf("median of nothing is %v", got)
	}
}

func TestFrozenAnswerIsServedAsItIs(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Payment-Required", "abc")
		w.WriteHeader(402)
		fmt.Fprint(w, "pay")
	}))
	defer s.Close()
	f, err := freeze(t.Context(), s.URL)
	if err != nil {
		t.Fatal(err)
	}
	again := httptest.NewRecorder()
	f.ServeHTTP(again, httptest.NewRequest("GET", "/", nil))
	if again.Code != 402 || again.Body.String() != "pay" || again.Header().Get("Payment-Required") != "abc" || again.Header().Get("Content-Length") != "3" {
		t.Errorf("%d %v %s", again.Code, again.Header(), again.Body)
	}
	s.Config.Handler = http.NotFoundHandler()
	if _, err := freeze(t.Context(), s.URL); err == nil {
		t.Error("an answer that is no challenge was taken")
	}
}

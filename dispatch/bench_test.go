package dispatch_test

import (
	"context"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/usage"
)

// discard is a sink for events that costs nothing, behind the real recorder.
type discard struct{}

func (discard) Record(context.Context, []usage.Event) error { return nil }

// reused is a ResponseWriter that costs nothing: what is measured is ours.
type reused struct{ h http.Header }

func (r *reused) Header() http.Header         { return r.h }
func (r *reused) Write(b []byte) (int, error) { return len(b), nil }
func (r *reused) WriteHeader(int)             {}

// bare is a worker's free page as an http.Handler without a dispatcher.
type constant struct{ body []byte }

func (c *constant) Plan(r *http.Request) (string, int64, error) {
	if strings.HasPrefix(r.URL.Path, "/v1/records") {
		return r.URL.Path, 1, nil
	}
	return r.URL.Path, 0, nil
}
func (c *constant) Check(context.Context, *http.Request) error { return nil }
func (c *constant) Serve(w http.ResponseWriter, _ *http.Request) error {
	h := w.Header()
	h["Content-Type"], h["Cache-Control"], h["Etag"] = jsonType, cache, tag
	_, err := w.Write(c.body)
	return err
}
func (c *constant) ServeHTTP(w http.ResponseWriter, r *http.Request) { _ = c.Serve(w, r) }

func (c *constant) Open(context.Context, *clawr.Tenant) (dispatch.Worker, error) { return c, nil }

var jsonType, cache, tag = []string{"application/json"}, []string{"public"}, []string{`"x"`}

func benchmarkServe(b *testing.B, h http.Handler, r *http.Request, rec *usage.Recorder) {
	w := &reused{h: make(http.Header, 8)}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		clear(w.h)
		h.ServeHTTP(w, r)
		if n++; rec != nil && n%1000 == 0 {
			_ = rec.Flush(b.Context())
		}
	}
}

// A free call of a tenant without limits, beside its bare handler: the goal is
// 5 µs and 5 allocations more.
func BenchmarkFree(b *testing.B) {
	w := newWorld(b)
	page := &constant{body: []byte(`{"status":"ok"}`)}
	w.d.Workers, w.d.Failpoint, w.d.Now = page, nil, nil
	rec := &usage.Recorder{Sink: discard{}}
	w.d.Usage = rec
	b.Run("bare", func(b *testing.B) { benchmarkServe(b, page, request{path: "/health"}.http(), nil) })
	b.Run("by host", func(b *testing.B) {
		benchmarkServe(b, w.d, request{host: "acme.example.com", path: "/health"}.http(), rec)
	})
	b.Run("by path", func(b *testing.B) { benchmarkServe(b, w.d, request{path: "/t/acme/health"}.http(), rec) })
}

// A challenge, beside a constant answer of the same size: the goal over
// net/http is 60 % of its requests a second.
func BenchmarkChallenge(b *testing.B) {
	w := newWorld(b)
	page := &constant{}
	w.d.Workers, w.d.Failpoint, w.d.Now = page, nil, nil
	rec := &usage.Recorder{Sink: discard{}}
	w.d.Usage = rec
	b.Run("alone", func(b *testing.B) { benchmarkServe(b, w.d, request{}.http(), rec) })
	a := w.send(request{})
	header, size := a.Header().Get("PAYMENT-REQUIRED"), a.Body.Bytes()
	same := http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("PAYMENT-REQUIRED", header)
		rw.Header().Set("Content-Type", "application/json")
		rw.Header().Set("Cache-Control", "no-store")
		rw.WriteHeader(402)
		_, _ = rw.Write(size)
	})
	for name, h := range map[string]http.Handler{"constant over net-http": same, "over net-http": w.d} {
		b.Run(name, func(b *testing.B) {
			server := httptest.NewServer(h)
			defer server.Close()
			client := server.Client()
			client.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					res, err := client.Get(server.URL + "/t/acme/v1/records?limit=1")
					if err != nil {
						b.Fatal(err)
					}
					buf := make([]byte, 4096)
					for {
						if _, err := res.Body.Read(buf); err != nil {
							break
						}
					}
					res.Body.Close()
				}
			})
			_ = rec.Flush(b.Context())
		})
	}
}

// A paid call from T1 to the answer, on SQLite, with a till for a chain.
func BenchmarkPaid(b *testing.B) {
	w := newWorld(b)
	w.d.Usage = &usage.Recorder{Sink: discard{}}
	k := key(b)
	var qs []*http.Request
	for b.Loop() {
		b.StopTimer()
		if len(qs) == 0 {
			for range 64 {
				q := request{pay: w.signed(k, w.get("").required()).Header()}
				qs = append(qs, q.http())
			}
		}
		r := qs[0]
		qs = qs[1:]
		b.StartTimer()
		if rec := w.record(r); rec.Code != 200 {
			b.Fatalf("%d %s", rec.Code, rec.Body)
		}
	}
}

// A replay: the same header again.
func BenchmarkReplay(b *testing.B) {
	w := newWorld(b)
	q := w.payment(request{})
	w.send(q).is(200, "")
	r := q.http()
	if _, err := base64.StdEncoding.DecodeString(q.pay); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		w.pass(1e9) // its budget of replays
		if rec := w.record(r); rec.Code != 200 {
			b.Fatalf("%d %s", rec.Code, rec.Body)
		}
	}
}

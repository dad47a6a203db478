package dispatch_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// However the work fails, the payment was never submitted: it is released, its
// counters are given back, and the caller knows both.
func TestAWorkerThatFailsIsNotPaid(t *testing.T) {
	var left chan struct{} // what a worker hangs on, until the test ends
	for name, c := range map[string]struct {
		serve  func(http.ResponseWriter, *http.Request) error
		status int
		code   clawr.Code
	}{
		"an error": {func(http.ResponseWriter, *http.Request) error { return errors.New("secret") }, 502, clawr.CodeWorkerFailure},
		"a broken file": {func(http.ResponseWriter, *http.Request) error {
			return &clawr.Error{Code: clawr.CodeFile, Message: "secret"}
		}, 502, clawr.CodeWorkerFailure},
		"an error after a part of the answer": {func(w http.ResponseWriter, _ *http.Request) error {
			io.WriteString(w, "secret")
			return errors.New("secret")
		}, 502, clawr.CodeWorkerFailure},
		"an error with headers": {func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("X-Secret", "secret")
			return errors.New("secret")
		}, 502, clawr.CodeWorkerFailure},
		"a panic":           {func(http.ResponseWriter, *http.Request) error { panic("secret") }, 502, clawr.CodeWorkerFailure},
		"an abort":          {func(http.ResponseWriter, *http.Request) error { panic(http.ErrAbortHandler) }, 502, clawr.CodeWorkerFailure},
		"a nil dereference": {func(http.ResponseWriter, *http.Request) error { var p *int; *p = 1; return nil }, 502, clawr.CodeWorkerFailure},
		"status 500": {func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(500)
			io.WriteString(w, "secret")
			return nil
		}, 502, clawr.CodeWorkerFailure},
		"status 404":          {func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(404); return nil }, 502, clawr.CodeWorkerFailure},
		"status 402":          {func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(402); return nil }, 502, clawr.CodeWorkerFailure},
		"early hints and 500": {func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(103); w.WriteHeader(500); return nil }, 502, clawr.CodeWorkerFailure},
		"too large":           {func(w http.ResponseWriter, _ *http.Request) error { _, err := w.Write(make([]byte, 2000)); return err }, 502, clawr.CodeWorkerFailure},
		"too large, in parts, and unnoticed": {func(w http.ResponseWriter, _ *http.Request) error {
			for range 20 {
				w.Write(make([]byte, 100))
			}
			return nil
		}, 502, clawr.CodeWorkerFailure},
		"too slow": {func(_ http.ResponseWriter, r *http.Request) error { <-r.Context().Done(); return r.Context().Err() }, 504, clawr.CodeWorkerTimeout},
		"hanging":  {func(http.ResponseWriter, *http.Request) error { <-left; return nil }, 504, clawr.CodeWorkerTimeout},
		"gone":     {func(http.ResponseWriter, *http.Request) error { runtime.Goexit(); return nil }, 502, clawr.CodeWorkerFailure},
		"cpu limit": {func(http.ResponseWriter, *http.Request) error {
			return &clawr.Error{Code: clawr.CodeCPULimit, Message: "too much"}
		}, 429, clawr.CodeCPULimit},
		"its own refusal": {func(http.ResponseWriter, *http.Request) error { return &clawr.Error{Code: "its_own", Message: "no"} }, 400, "its_own"},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				left = make(chan struct{})
				defer close(left)
				w.d.MaxAnswer = 1000
				w.deploy(clawr.Tenant{Slug: "capped", Manifest: clawr.Manifest{Price: price, X402: true, Spend: clawr.Caps{Daily: 10 * price}, Usage: clawr.Quota{Daily: 10}}})
				w.shop.once(c.serve)
				q := w.payment(request{path: "/t/capped/v1/records"})
				a := w.send(q).is(c.status, c.code).has("PAYMENT-REQUIRED", "", "X-Secret", "", "ETag", "")
				if r := a.receipt(); r.Success || r.ErrorReason != clawr.CodeNotCharged || r.Transaction != "" {
					t.Errorf("PAYMENT-RESPONSE %+v", r)
				}
				if strings.Contains(a.Body.String(), "secret") {
					t.Errorf("told: %s", a.Body)
				}
				row := w.state(q, ledger.Failed, ledger.Released)
				if row.ErrorCode != c.code {
					t.Errorf("released because of %s", row.ErrorCode)
				}
				for _, counter := range row.Counters {
					if got, err := w.db.Counters(t.Context(), counter.Scope); err != nil || len(got) != 1 || got[0].Used != 0 {
						t.Errorf("counter %+v, %v", got, err)
					}
				}
				if e := w.event(a); e.Lifecycle != usage.Failure || e.Status != c.status || e.Billable || e.Error != string(c.code) || e.PaymentID != row.ID {
					t.Errorf("event %+v", e)
				}
				w.sold(0, 1)
				// The authorization is given up; the next one is served.
				w.send(q).is(402, c.code).required()
				w.send(w.payment(request{path: "/t/capped/v1/records"})).is(200, "")
			})
		})
	}
}

// A tenant's worker names its own errors, and may not write into a challenge
// with their names.
func TestAWorkersCodeDoesNotGetIntoAChallenge(t *testing.T) {
	w := newWorld(t)
	evil := clawr.Code(`x"},"accepts":[{"payTo":"0xevil"}],"y":"`)
	w.shop.once(func(http.ResponseWriter, *http.Request) error { return &clawr.Error{Code: evil, Message: evilText} })
	q := w.payment(request{})
	w.send(q).is(400, evil) // as JSON has it
	a := w.send(q).is(402, clawr.CodePaymentRejected)
	if r := a.required(); r.Accepts[0].PayTo != payTo || strings.Contains(a.Body.String(), "0xevil") {
		t.Errorf("%+v\n%s", r, a.Body)
	}
}

const evilText = "\"}\r\nSet-Cookie: a=b"

func TestWorkersThatHangHoldTheirPlaces(t *testing.T) { bubble(t, hangingWorkers) }

func hangingWorkers(t *testing.T, w *world) {
	w.d.MaxFlight = 1
	left, gone := make(chan struct{}), make(chan struct{})
	w.shop.once(func(http.ResponseWriter, *http.Request) error { <-left; close(gone); return nil })
	w.send(w.payment(request{})).is(504, clawr.CodeWorkerTimeout)
	q := w.payment(request{})
	w.send(q).is(503, clawr.CodeOverloaded)
	close(left)
	<-gone
	for w.send(q).Code == 503 {
		time.Sleep(time.Millisecond)
	}
	w.send(q).is(200, "")
}

// The answer that was bought is the worker's, to the byte and the header.
func TestAnswersAreStoredAsTheyWere(t *testing.T) {
	w := newWorld(t)
	w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction}})
	for name, serve := range map[string]func(http.ResponseWriter, *http.Request) error{
		"nothing": func(http.ResponseWriter, *http.Request) error { return nil },
		"no body": func(w http.ResponseWriter, _ *http.Request) error { w.WriteHeader(204); return nil },
		"redirect": func(w http.ResponseWriter, _ *http.Request) error {
			w.Header().Set("Location", "/x")
			w.WriteHeader(302)
			return nil
		},
		"hints": func(w http.ResponseWriter, _ *http.Request) error {
			w.WriteHeader(103)
			_, err := io.WriteString(w, "x")
			return err
		},
		"bytes": func(w http.ResponseWriter, _ *http.Request) error {
			_, err := w.Write([]byte{0, 1, 0xff, '"'})
			return err
		},
		"in parts": func(w http.ResponseWriter, _ *http.Request) error {
			io.WriteString(w, "a")
			io.WriteString(w, "b")
			return nil
		},
		"two of it": func(w http.ResponseWriter, _ *http.Request) error {
			w.Header()["Link"] = []string{"<1>", "<2>"}
			io.WriteString(w, "x")
			return nil
		},
		"the body": func(w http.ResponseWriter, r *http.Request) error { _, err := io.Copy(w, r.Body); return err },
	} {
		w.shop.once(serve)
		q := w.payment(request{method: "POST", path: "/t/fn/v1/run?" + strings.ReplaceAll(name, " ", "+"), body: "posted"})
		a, b := w.send(q), w.send(q)
		b.has("X-Clawr-Replayed", "true")
		b.Header().Del("X-Clawr-Replayed")
		for _, h := range []http.Header{a.Header(), b.Header()} {
			h.Del("X-Request-Id")
		}
		if a.Code >= 400 || a.Code != b.Code || a.Body.String() != b.Body.String() || len(a.Header()) != len(b.Header()) {
			t.Errorf("%s: %d %v %q, resent %d %v %q", name, a.Code, a.Header(), a.Body, b.Code, b.Header(), b.Body)
		}
		for k, v := range a.Header() {
			if strings.Join(v, "|") != strings.Join(b.Header()[k], "|") {
				t.Errorf("%s: %s is %v, resent %v", name, k, v, b.Header()[k])
			}
		}
	}
}

// An answer is kept for a day, and for as long as its payment may be charged.
func TestAnswersAreKeptLongEnough(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		for life, kept := range map[time.Duration]time.Duration{time.Minute: 24 * time.Hour, 48 * time.Hour: 49 * time.Hour} {
			q := w.forge(request{}, func(f *forged) { f.auth.ValidBefore = x402.Uint(uint64(w.now().Add(life).Unix())) })
			w.send(q).is(200, "")
			a, err := w.db.Answer(t.Context(), w.row(q).ID)
			w.ok(err)
			if got := a.Expires.Sub(w.now()); got < kept || got > kept+time.Second {
				t.Errorf("the answer to a payment of %s is kept for %s, want %s", life, got, kept)
			}
		}
	})
}

// A dataset's answers are not stored as bytes. If they cannot be made again as
// they were, nothing is sent that was not bought.
func TestAnAnswerThatCannotBeMadeAgainIsNotReplacedByAnother(t *testing.T) {
	w := newWorld(t)
	w.shop.once(func(w http.ResponseWriter, _ *http.Request) error {
		_, err := io.WriteString(w, "not what Answer says")
		return err
	})
	q := w.payment(request{})
	w.send(q).is(200, "")
	a := w.send(q).is(503, clawr.CodeSettlementPending).has("PAYMENT-REQUIRED", "")
	if r := a.receipt(); r.Transaction != w.row(q).Tx || r.Success {
		t.Errorf("PAYMENT-RESPONSE %+v", r)
	}
	if !strings.Contains(w.log.String(), "cannot be recomputed") || !strings.Contains(w.log.String(), `"level":"ERROR"`) {
		t.Errorf("nobody was told: %s", w.log)
	}
}

// A free answer that breaks off must not look whole.
func TestAFreeAnswerThatBreaksOffIsCutShort(t *testing.T) {
	w := newWorld(t)
	server := httptest.NewUnstartedServer(w.d)
	server.Start()
	defer server.Close()
	for name, fail := range map[string]func(){"error": nil, "panic": func() { panic("secret") }, "abort": func() { panic(http.ErrAbortHandler) }} {
		w.shop.once(func(rw http.ResponseWriter, _ *http.Request) error {
			io.WriteString(rw, "part")
			http.NewResponseController(rw).Flush()
			if fail != nil {
				fail()
			}
			return errors.New("secret")
		})
		res, err := server.Client().Get(server.URL + "/t/acme/v1/free")
		w.ok(err)
		b, err := io.ReadAll(res.Body)
		if err == nil {
			t.Errorf("%s: %s %q looks whole", name, res.Status, b)
		}
		res.Body.Close()
		all := w.events()
		if e := all[len(all)-1]; e.Lifecycle != usage.Failure || e.Error == "" || e.Status != 200 || e.BytesOut != 4 {
			t.Errorf("%s: event %+v", name, e)
		}
	}
}

// A panic of ours is answered, logged and counted, and nothing more is said.
func TestAPanicOfOursIsAnInternalError(t *testing.T) {
	w := newWorld(t)
	w.till.judge = nil
	w.at("verify.after", func() { panic("secret") })
	a := w.send(w.payment(request{})).is(500, clawr.CodeInternal)
	if strings.Contains(a.Body.String(), "secret") || !strings.Contains(w.log.String(), "secret") {
		t.Errorf("told %s, logged %s", a.Body, w.log)
	}
	if e := w.event(a); e.Lifecycle != usage.Failure || e.Status != 500 {
		t.Errorf("event %+v", e)
	}
	w.untouched()
	// In the middle of a paid call it costs nobody anything: the payment is not
	// submitted, and the same header is served once the lease is over.
	q := w.payment(request{})
	w.at("worker.after", func() { panic("secret") })
	w.send(q).is(500, clawr.CodeInternal).has("PAYMENT-REQUIRED", "")
	w.state(q, ledger.Running, ledger.Held)
	w.pass(15 * time.Second)
	w.send(q).is(200, "")
	w.sold(1, 2)
}

func TestMissesHaveABudget(t *testing.T) { bubble(t, misses) }

func misses(t *testing.T, w *world) {
	limited := 0
	for i := range 25 {
		// Another wallet each time: the address counts too.
		a := w.send(w.payment(request{path: "/t/acme/v1/records/missing" + string(rune('a'+i))}))
		if a.Code == 429 {
			a.is(429, clawr.CodeRateLimited).has("Retry-After", "*")
			limited++
		} else {
			a.is(404, clawr.CodeRecordNotFound)
		}
	}
	if limited != 5 {
		t.Errorf("%d of 25 questions after keys that do not exist were refused, want 5", limited)
	}
	w.send(w.payment(request{from: "198.51.100.9", path: "/t/acme/v1/records/missing"})).is(404, clawr.CodeRecordNotFound)
	w.send(w.payment(request{path: "/t/acme/v1/records/there"})).is(200, "")
	w.sold(1, 1)
}

package dispatch_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// Every status of the product's table: the code, its headers, what the error
// advises, and the one event that is kept of it.
func TestStatusesHeadersAndEvents(t *testing.T) {
	notCharged := []string{"PAYMENT-REQUIRED", "", "PAYMENT-RESPONSE", ""}
	for name, c := range map[string]struct {
		do        func(w *world) *answer
		status    int
		code      clawr.Code
		headers   []string
		retry     string // advice; "-" none
		lifecycle usage.Lifecycle
		countable bool
		billed    clawr.Amount
		noEvent   bool
	}{
		"free": {do: func(w *world) *answer { return w.get("/t/acme/v1/free") }, status: 200, retry: "-", lifecycle: usage.Success, countable: true, headers: notCharged},
		"free, with a payment": {do: func(w *world) *answer { return w.send(request{path: "/t/acme/v1/free", pay: w.payment(request{}).pay}) },
			status: 200, retry: "-", lifecycle: usage.Success, countable: true, headers: notCharged},
		"paid": {do: func(w *world) *answer { return w.send(w.payment(request{})) }, status: 200, retry: "-", lifecycle: usage.Success, countable: true, billed: price,
			headers: []string{"PAYMENT-RESPONSE", "*", "Cache-Control", "private", "ETag", "*", "Content-Type", "application/json"}},
		"several units": {do: func(w *world) *answer { return w.send(w.payment(request{path: "/t/acme/v1/bulk?n=3"})) }, status: 200, retry: "-",
			lifecycle: usage.Success, countable: true, billed: 3 * price},
		"replayed": {do: func(w *world) *answer { q := w.payment(request{}); w.send(q); return w.send(q) }, status: 200, retry: "-", lifecycle: usage.Replayed,
			headers: []string{"X-Clawr-Replayed", "true", "PAYMENT-RESPONSE", "*"}},
		"not modified": {do: func(w *world) *answer {
			tag := w.send(w.payment(request{})).Header().Get("ETag")
			return w.send(request{header: http.Header{"If-None-Match": {`"x", W/` + tag}}})
		}, status: 304, retry: "-", lifecycle: usage.Success, countable: true, headers: []string{"ETag", "*", "PAYMENT-REQUIRED", ""}},
		"any tag": {do: func(w *world) *answer { return w.send(request{header: http.Header{"If-None-Match": {"*"}}}) }, status: 402, code: clawr.CodeMissingPayment,
			retry: "new_payment", lifecycle: usage.Challenged},
		"challenge": {do: func(w *world) *answer { return w.get("") }, status: 402, code: clawr.CodeMissingPayment, retry: "new_payment", lifecycle: usage.Challenged,
			headers: []string{"PAYMENT-REQUIRED", "*", "Cache-Control", "no-store", "PAYMENT-RESPONSE", ""}},
		"challenge before any validation": {do: func(w *world) *answer { return w.get("/t/acme/v1/records?bad=1") }, status: 402, code: clawr.CodeMissingPayment,
			retry: "new_payment", lifecycle: usage.Challenged},
		"refused payment": {do: func(w *world) *answer {
			return w.send(w.forge(request{}, func(f *forged) { f.auth.Value = x402.Uint(1) }))
		}, status: 402,
			code: x402.ReasonValue, retry: "new_payment", lifecycle: usage.Invalid, headers: []string{"PAYMENT-REQUIRED", "*"}},
		"refused settlement": {do: func(w *world) *answer { w.till.next((*till).refuse); return w.send(w.payment(request{})) }, status: 402, code: x402.ReasonBalance,
			retry: "new_payment", lifecycle: usage.SettleFailed, headers: []string{"PAYMENT-REQUIRED", "*", "PAYMENT-RESPONSE", "*"}},
		"malformed": {do: func(w *world) *answer { return w.send(request{pay: "?"}) }, status: 400, code: clawr.CodeBadHeader, retry: "never", lifecycle: usage.Invalid, headers: notCharged},
		"bad query": {do: func(w *world) *answer {
			return w.send(request{path: "/t/acme/v1/records?bad=1", pay: w.payment(request{}).pay})
		}, status: 400, code: "unknown_parameter", retry: "never", lifecycle: usage.Invalid, headers: notCharged},
		"nothing there": {do: func(w *world) *answer { return w.get("/t/acme/v1/nothing") }, status: 404, code: clawr.CodeNotFound, retry: "never", lifecycle: usage.Invalid},
		"no tenant":     {do: func(w *world) *answer { return w.get("/t/nobody/v1/records") }, status: 404, code: clawr.CodeTenantNotFound, retry: "never", noEvent: true},
		"no record": {do: func(w *world) *answer { return w.send(w.payment(request{path: "/t/acme/v1/records/missing"})) }, status: 404, code: clawr.CodeRecordNotFound,
			retry: "never", lifecycle: usage.Invalid, headers: notCharged},
		"wrong method": {do: func(w *world) *answer { return w.send(request{method: "PATCH"}) }, status: 405, code: clawr.CodeMethodNotAllowed, retry: "never",
			lifecycle: usage.Invalid, headers: []string{"Allow", "GET, HEAD, OPTIONS"}},
		"bound elsewhere": {do: func(w *world) *answer {
			q := w.payment(request{})
			w.send(q)
			return w.send(request{path: "/t/acme/v1/records?limit=9", pay: q.pay})
		}, status: 409, code: clawr.CodeBoundElsewhere, retry: "never", lifecycle: usage.Invalid, headers: notCharged},
		"already used": {do: func(w *world) *answer { q := w.payment(request{}); w.send(q); return w.send(w.stolenFrom(q)) }, status: 409, code: clawr.CodeAlreadyUsed,
			retry: "new_payment", lifecycle: usage.Invalid, headers: notCharged},
		"version gone": {do: func(w *world) *answer {
			q := w.payment(request{})
			w.send(q)
			w.d.Book = forgetful{w.d.Book}
			return w.send(q)
		}, status: 410,
			code: clawr.CodeVersionGone, retry: "new_payment", lifecycle: usage.Invalid},
		"body too large": {do: func(w *world) *answer {
			w.d.MaxBody = 10
			return w.send(w.payment(request{method: "POST", path: "/t/fn/v1/run", body: "eleven bytes"}))
		}, status: 413, code: clawr.CodeBodyTooLarge, retry: "never", lifecycle: usage.Invalid, headers: notCharged},
		"free body too large": {do: func(w *world) *answer {
			w.d.MaxBody = 10
			return w.send(request{method: "POST", path: "/t/fn/v1/free", body: "eleven bytes"})
		},
			status: 413, code: clawr.CodeBodyTooLarge, retry: "never", lifecycle: usage.Invalid},
		"chunked body too large": {do: func(w *world) *answer {
			w.d.MaxBody = 10
			q := request{method: "POST", path: "/t/fn/v1/free", body: "eleven bytes", chunked: true}
			return w.send(q)
		}, status: 413, code: clawr.CodeBodyTooLarge, retry: "never", lifecycle: usage.Invalid},
		"chunked paid body too large": {do: func(w *world) *answer {
			w.d.MaxBody = 10
			return w.send(w.payment(request{method: "POST", path: "/t/fn/v1/run", body: "eleven bytes", chunked: true}))
		}, status: 413, code: clawr.CodeBodyTooLarge, retry: "never", lifecycle: usage.Invalid, headers: notCharged},
		"header too large": {do: func(w *world) *answer { return w.send(request{pay: strings.Repeat("A", 17<<10)}) }, status: 431, code: clawr.CodeHeadersTooLarge,
			retry: "never", lifecycle: usage.Invalid},
		"caller's rate": {do: func(w *world) *answer { w.get("/t/rate/v1/free"); return w.get("/t/rate/v1/free") }, status: 429, code: clawr.CodeRateLimited, retry: "after",
			lifecycle: usage.RateLimited, headers: []string{"Retry-After", "60", "X-RateLimit-Limit", "1", "X-RateLimit-Remaining", "0", "X-RateLimit-Reset", "60"}},
		"quota of free calls": {do: func(w *world) *answer {
			w.get("/t/quota/v1/free")
			w.get("/t/quota/v1/free")
			return w.get("/t/quota/v1/free")
		}, status: 429,
			code: clawr.CodeQuotaExceeded, retry: "after", lifecycle: usage.Quota,
			headers: []string{"Retry-After", "*", "X-Usage-Day-Limit", "2", "X-Usage-Day-Remaining", "0", "X-Usage-Day-Reset", "*"}},
		"quota of paid calls": {do: func(w *world) *answer {
			k := key(w)
			var a *answer
			for range 3 {
				q := request{path: "/t/quota/v1/records"}
				q.pay = w.signed(k, w.send(q).required()).Header()
				a = w.send(q)
			}
			return a
		}, status: 429, code: clawr.CodeQuotaExceeded, retry: "after", lifecycle: usage.Quota, headers: []string{"Retry-After", "*", "X-Usage-Day-Remaining", "0", "PAYMENT-REQUIRED", ""}},
		"spend cap": {do: func(w *world) *answer {
			k := key(w)
			var a *answer
			for range 2 {
				q := request{path: "/t/cap/v1/records"}
				q.pay = w.signed(k, w.send(q).required()).Header()
				a = w.send(q)
			}
			return a
		}, status: 429, code: clawr.CodeCapExceeded, retry: "after", lifecycle: usage.SpendCap,
			headers: []string{"Retry-After", "*", "X-Spend-Day-Limit", "0.0015", "X-Spend-Day-Remaining", "0.0005", "X-Spend-Day-Reset", "*", "PAYMENT-REQUIRED", ""}},
		"cpu limit": {do: func(w *world) *answer {
			w.shop.once(func(http.ResponseWriter, *http.Request) error {
				return &clawr.Error{Code: clawr.CodeCPULimit, Message: "the query took too long", Fix: "ask for less"}
			})
			return w.send(w.payment(request{}))
		}, status: 429, code: clawr.CodeCPULimit, retry: "never", lifecycle: usage.Failure, countable: true, headers: []string{"PAYMENT-REQUIRED", "", "PAYMENT-RESPONSE", "*"}},
		"worker failed": {do: func(w *world) *answer {
			w.shop.once(func(http.ResponseWriter, *http.Request) error { return errors.New("secret of the worker") })
			return w.send(w.payment(request{}))
		}, status: 502, code: clawr.CodeWorkerFailure, retry: "after", lifecycle: usage.Failure, countable: true, headers: []string{"PAYMENT-REQUIRED", "", "PAYMENT-RESPONSE", "*"}},
		"free worker failed": {do: func(w *world) *answer {
			w.shop.once(func(http.ResponseWriter, *http.Request) error { return errors.New("secret of the worker") })
			return w.get("/t/acme/v1/free")
		}, status: 502, code: clawr.CodeWorkerFailure, retry: "after", lifecycle: usage.Failure, countable: true, headers: notCharged},
		"plan panics": {do: func(w *world) *answer { return w.get("/t/acme/v1/panic") }, status: 502, code: clawr.CodeWorkerFailure, retry: "after", lifecycle: usage.Failure, countable: true},
		"pending": {do: func(w *world) *answer { w.till.next((*till).broadcast); return w.send(w.payment(request{})) }, status: 503, code: clawr.CodeSettlementPending,
			retry: "same_payment", lifecycle: usage.Unsettled, countable: true, headers: []string{"Retry-After", "2", "PAYMENT-RESPONSE", "*", "PAYMENT-REQUIRED", ""}},
		"pending, resent": {do: func(w *world) *answer {
			w.till.next((*till).broadcast, (*till).broadcast)
			q := w.payment(request{})
			w.send(q)
			return w.send(q)
		}, status: 503, code: clawr.CodeSettlementPending, retry: "same_payment", lifecycle: usage.Unsettled, headers: []string{"PAYMENT-RESPONSE", "*"}},
		"facilitator down": {do: func(w *world) *answer {
			w.till.judge = func(*x402.PaymentPayload) (x402.VerifyResponse, error, bool) {
				return x402.VerifyResponse{}, errors.New("down"), true
			}
			return w.send(w.payment(request{}))
		}, status: 503, code: clawr.CodeFacilitatorDown, retry: "same_payment", lifecycle: usage.Failure, headers: []string{"Retry-After", "2", "PAYMENT-REQUIRED", "", "PAYMENT-RESPONSE", ""}},
		"no facilitator": {do: func(w *world) *answer { w.d.Payments = nil; return w.get("") }, status: 503, code: clawr.CodeFacilitatorDown, retry: "after", lifecycle: usage.Failure},
		"no book": {do: func(w *world) *answer { q := w.payment(request{}); w.d.Book = broken{w.d.Book}; return w.send(q) }, status: 503, code: clawr.CodeFacilitatorDown,
			retry: "same_payment", lifecycle: usage.Failure, headers: []string{"Retry-After", "2", "PAYMENT-REQUIRED", ""}},
		"paused": {do: func(w *world) *answer { w.status("acme", clawr.StatusPaused); return w.get("") }, status: 503, code: clawr.CodeTenantPaused, retry: "after",
			lifecycle: usage.Failure, headers: []string{"Retry-After", "60"}},
		"overloaded": {do: func(w *world) *answer {
			w.d.MaxFlight = 1
			q := w.payment(request{path: "/t/acme/v1/records?n=2"})
			var a *answer
			w.at("t1.after", func() { a = w.send(q) })
			w.send(w.payment(request{})).is(200, "")
			if w.row(q) != nil {
				w.Error("shed after it was reserved")
			}
			w.send(q).is(200, "")
			return a
		}, status: 503, code: clawr.CodeOverloaded, retry: "same_payment", lifecycle: usage.Failure, headers: []string{"Retry-After", "1", "PAYMENT-REQUIRED", "", "PAYMENT-RESPONSE", ""}},
		"worker hangs": {do: func(w *world) *answer {
			w.d.Deadline = 300 * time.Millisecond
			w.shop.once(func(_ http.ResponseWriter, r *http.Request) error { <-r.Context().Done(); return r.Context().Err() })
			return w.send(w.payment(request{}))
		}, status: 504, code: clawr.CodeWorkerTimeout, retry: "after", lifecycle: usage.Failure, countable: true, headers: []string{"PAYMENT-REQUIRED", "", "PAYMENT-RESPONSE", "*"}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				limits := func(slug string, m clawr.Manifest) {
					m.Price, m.X402 = price, true
					w.deploy(clawr.Tenant{Slug: slug, Manifest: m})
				}
				limits("rate", clawr.Manifest{Rate: clawr.Rates{PerCaller: clawr.Rate{Requests: 1, WindowSeconds: 60}}})
				limits("quota", clawr.Manifest{Usage: clawr.Quota{Daily: 2, Monthly: 100}})
				limits("cap", clawr.Manifest{Spend: clawr.Caps{Daily: 1500}})
				w.deploy(clawr.Tenant{Slug: "fn", Manifest: clawr.Manifest{Kind: clawr.KindFunction}})
				a := c.do(w).is(c.status, c.code).has(c.headers...)
				a.has("X-Request-Id", "*")
				if !c.noEvent {
					a.has("X-Tenant-Id", "*")
				}
				if strings.Contains(a.Body.String(), "secret") {
					t.Errorf("the worker's words were told: %s", a.Body)
				}
				if c.status >= 400 {
					a.has("Content-Length", fmt.Sprint(a.Body.Len()), "Content-Type", "application/json", "Cache-Control", "no-store")
					checkProblem(t, a, c.retry)
				}
				if c.noEvent {
					if n := len(w.events()); n != 0 {
						t.Errorf("%d events", n)
					}
					return
				}
				e := w.event(a)
				if e.Lifecycle != c.lifecycle || e.Countable != c.countable || e.Billed != c.billed || e.Billable != (c.billed > 0) {
					t.Errorf("event %s countable=%v billed %s billable=%v, want %s %v %s", e.Lifecycle, e.Countable, e.Billed, e.Billable, c.lifecycle, c.countable, c.billed)
				}
				wantStatus := c.status
				if e.Lifecycle == usage.Unsettled && c.countable {
					wantStatus = 200 // what the answer will be, once it is settled
				}
				if e.Status != wantStatus || e.Error != string(c.code) && e.Lifecycle != usage.Unsettled {
					t.Errorf("event of status %d, error %q", e.Status, e.Error)
				}
				if e.TenantID == "" || e.API == "" || e.Owner != "@ann" || e.Directory != "APIs" || len(e.Caller) != 16 || !strings.HasPrefix(e.Endpoint, "/v1/") || e.Time.IsZero() {
					t.Errorf("event %+v", e)
				}
			})
		})
	}
}

// checkProblem checks the one shape of errors, of which a 402 is one too.
func checkProblem(t *testing.T, a *answer, retry string) {
	t.Helper()
	var p struct {
		OK                             *bool
		Error, Message, Fix, RequestID string
		Clawr                          struct{ Retry string }
	}
	if err := json.Unmarshal(a.Body.Bytes(), &p); err != nil {
		t.Fatalf("%v: %s", err, a.Body)
	}
	if p.OK == nil || *p.OK || p.Error == "" || p.Message == "" || p.RequestID != a.Header().Get("X-Request-Id") || p.Clawr.Retry != retry {
		t.Errorf("%s, want advice %q", a.Body, retry)
	}
}

// broken is a book that cannot be read.
type broken struct{ bookOf }

func (broken) Find(context.Context, ledger.Key) (*ledger.Payment, error) {
	return nil, errors.New("the disk is full")
}

// forgetful is a book whose answers are not kept.
type forgetful struct{ bookOf }

func (forgetful) Answer(context.Context, string) (*ledger.Answer, error) { return nil, nil }

func TestWhatIsLeftIsSaidOnEveryAnswer(t *testing.T) {
	bubble(t, whatIsLeft)
}

func whatIsLeft(t *testing.T, w *world) {
	w.deploy(clawr.Tenant{Slug: "all", Manifest: clawr.Manifest{Price: price, X402: true, Usage: clawr.Quota{Daily: 5, Monthly: 50}, Spend: clawr.Caps{Daily: 2500, Monthly: 50_000},
		Rate: clawr.Rates{PerCaller: clawr.Rate{Requests: 100, WindowSeconds: 60}, Global: clawr.Rate{Requests: 50, WindowSeconds: 60}}}})
	free := w.get("/t/all/v1/free")
	free.has("X-RateLimit-Limit", "50", "X-RateLimit-Remaining", "49", "X-RateLimit-Reset", "2", "X-Usage-Day-Limit", "5", "X-Usage-Day-Remaining", "4",
		"X-Usage-Month-Limit", "50", "X-Usage-Month-Remaining", "49", "X-Spend-Day-Limit", "")
	challenge := w.get("/t/all/v1/records").is(402, clawr.CodeMissingPayment)
	challenge.has("X-RateLimit-Remaining", "48", "X-Usage-Day-Limit", "") // a challenge takes from no quota
	q := request{path: "/t/all/v1/records"}
	q.pay = w.signed(key(t), challenge.required()).Header()
	w.send(q).is(200, "").has("X-Usage-Day-Remaining", "4", "X-Spend-Day-Limit", "0.0025", "X-Spend-Day-Remaining", "0.0015", "X-Spend-Month-Remaining", "0.049", "X-Spend-Day-Reset", "*")
	w.send(q).is(200, "").has("X-Clawr-Replayed", "true", "X-Usage-Day-Remaining", "") // a replay from none
}

// bookOf lets a test break one method of a book.
type bookOf interface {
	Find(context.Context, ledger.Key) (*ledger.Payment, error)
	Answer(ctx context.Context, paymentID string) (*ledger.Answer, error)
	Reserve(ctx context.Context, p ledger.Payment, owner string, lease time.Duration) (ledger.Payment, error)
	Done(ctx context.Context, id string, epoch int64, a ledger.Answer, ev usage.Event) error
	Release(ctx context.Context, id string, epoch int64, why clawr.Code, ev usage.Event) error
}

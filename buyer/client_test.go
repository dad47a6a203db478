package buyer

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

const shop = "http://shop.test/v1/records?limit=1"

// unpaidReason is a refusal of the challenge's form.
func again(s *seller, reason string) func(http.ResponseWriter, *http.Request, int) {
	return func(w http.ResponseWriter, r *http.Request, _ int) { s.challenge(w, r, reason) }
}

// TestAnswersToAPayment is the table of what a server may answer to a payment
// and what a buyer makes of it. In none of them does it sign twice.
func TestAnswersToAPayment(t *testing.T) {
	status := func(code int, body string) func(http.ResponseWriter, *http.Request, int) {
		return func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(code); io.WriteString(w, body) }
	}
	first := func(bad func(http.ResponseWriter, *http.Request, int), times int) func(http.ResponseWriter, *http.Request, int) {
		return func(w http.ResponseWriter, r *http.Request, n int) {
			if n < times {
				bad(w, r, n)
				return
			}
			settled(w, "the answer")
		}
	}
	with := func(name, value string, f func(http.ResponseWriter, *http.Request, int)) func(http.ResponseWriter, *http.Request, int) {
		return func(w http.ResponseWriter, r *http.Request, n int) { w.Header().Set(name, value); f(w, r, n) }
	}
	reason := func(code int, reason string) func(http.ResponseWriter, *http.Request, int) {
		return func(w http.ResponseWriter, _ *http.Request, _ int) { refuse(w, code, reason) }
	}
	cut := func(w http.ResponseWriter, _ *http.Request, _ int) { abort(w) }
	tests := []struct {
		name string
		paid func(http.ResponseWriter, *http.Request, int)
		sent int        // requests with the payment; 0: more than one
		want clawr.Code // "" for the answer
		says string     // in the error
	}{
		{"answers", first(nil, 0), 1, "", ""},
		{"loses the reply", first(cut, 1), 2, "", ""},
		{"loses every reply", cut, 0, clawr.CodePaymentUnknown, "may be charged until"},
		{"503, then answers", first(status(503, ""), 3), 4, "", ""},
		{"503 with Retry-After, then answers", first(with("Retry-After", "7", status(503, "")), 1), 2, "", ""},
		{"503 for ever", status(503, `{"error":"settlement_pending","message":"wait"}`), 0, clawr.CodePaymentUnknown, "settlement_pending"},
		{"503 for the next hours", with("Retry-After", "7200", status(503, "")), 1, clawr.CodePaymentUnknown, "503"},
		{"500, then answers", first(status(500, "oops"), 1), 2, "", ""},
		{"502 without a word, then answers", first(status(502, ""), 1), 2, "", ""},
		{"502 not charged", reason(502, "not_charged"), 1, clawr.CodeWorkerFailure, "not charged, says the server"},
		{"504 not charged", reason(504, "not_charged"), 1, clawr.CodeWorkerTimeout, "not_charged"},
		{"500 settlement_pending, then answers", first(reason(500, "settlement_pending"), 1), 2, "", ""},
		{"402 settlement_pending, then answers", first(reason(402, "settlement_pending"), 1), 2, "", ""},
		{"200 settlement_pending, then answers", first(reason(200, "settlement_pending"), 1), 2, "", ""},
		{"202 settlement_pending, then answers", first(reason(202, "settlement_pending"), 2), 3, "", ""},
		{"402 after a payment", nil, 1, clawr.CodePaymentRejected, "invalid_exact_evm_signature"},
		{"402 with the reason in the receipt", reason(402, "invalid_exact_evm_insufficient_balance"), 1, clawr.CodePaymentRejected, "insufficient_balance"},
		{"402 nonce used", reason(402, "invalid_exact_evm_nonce_already_used"), 1, clawr.CodePaymentUnknown, "it was charged"},
		{"412", status(412, ""), 1, clawr.CodePaymentRejected, "412"},
		{"400", status(400, `{"error":"bad_query","message":"no such column"}`), 1, CodeServer, "no such column"},
		{"401", status(401, ""), 1, clawr.CodeTokenMissing, "401"},
		{"404", status(404, `{"error":"record_not_found"}`), 1, clawr.CodeNotFound, "record_not_found"},
		{"409 of the identifier", status(409, `{"error":"conflict"}`), 1, clawr.CodeConflict, "409"},
		{"409 of the payment", status(409, `{"error":"payment_bound_elsewhere"}`), 1, clawr.CodePaymentRejected, "bound_elsewhere"},
		{"410", status(410, ""), 1, clawr.CodeVersionGone, "410"},
		{"429, then answers", first(with("Retry-After", "2", status(429, "")), 2), 3, "", ""},
		{"429 until tomorrow", with("Retry-After", "50000", status(429, "")), 1, clawr.CodeRateLimited, "429"},
		{"429 without a time", status(429, ""), 1, clawr.CodeRateLimited, "429"},
		{"408, then answers", first(status(408, ""), 1), 2, "", ""},
		{"a redirect elsewhere", with("Location", "http://evil.test/", status(307, "")), 1, CodeServer, "307"},
		{"a redirect nearby", with("Location", "/elsewhere", status(302, "")), 1, CodeServer, "302"},
		{"200 without a receipt", status(200, "the answer"), 1, "", ""},
		{"200 with a receipt of garbage", with("Payment-Response", "!!", status(200, "the answer")), 1, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSeller(t, tt.paid)
				if tt.paid == nil {
					s.paid = again(s, "invalid_exact_evm_signature")
				}
				w := wallet(t, t.TempDir())
				var out bytes.Buffer
				c := &Client{Wallet: w, Transport: s}
				began := time.Now()
				res, err := c.Do(t.Context(), Request{URL: shop, Out: &out})
				if tt.want == "" {
					if err != nil || res.Status != 200 || !res.Paid || res.Resumed || out.String() != "the answer" {
						t.Fatalf("got %+v, %q, %v", res, out.String(), err)
					}
				} else if clawr.CodeOf(err) != tt.want || !strings.Contains(err.Error(), tt.says) {
					t.Fatalf("got %v, want %s saying %q", err, tt.want, tt.says)
				}
				if tt.want != "" && out.Len() > 0 {
					t.Errorf("wrote %q", out.String())
				}
				if len(s.auths) != 1 || len(s.headers) != 1 {
					t.Errorf("%d authorizations in %d headers, want one", len(s.auths), len(s.headers))
				}
				if tt.sent != 0 && s.sent != tt.sent || tt.sent == 0 && s.sent < 2 {
					t.Errorf("the payment was sent %d times, want %d", s.sent, tt.sent)
				}
				if took := time.Since(began); took > defaultTimeout+time.Second {
					t.Errorf("it took %s, at most %s are allowed", took, defaultTimeout)
				}
				open, err := w.Open()
				if err != nil || (len(open) == 0) != (tt.want == "") {
					t.Errorf("%d open payments (%v) after %q", len(open), err, tt.want)
				}
				if n, _ := w.Spent(t.Context()); n != usd("0.001") {
					t.Errorf("%v is counted, want 0.001", n)
				}
				if tt.want == "" {
					return
				}
				// Whatever it was, the next call of the same sends the same payment.
				s.paid = first(nil, 0)
				again, err := OpenWallet(w.Dir(), "")
				if err != nil {
					t.Fatal(err)
				}
				res, err = (&Client{Wallet: again, Transport: s}).Do(t.Context(), Request{URL: shop, Out: &out})
				if err != nil || !res.Resumed || out.String() != "the answer" || len(s.headers) != 1 || s.unpaid != 1 {
					t.Errorf("after a restart: %+v, %v, %q, %d headers, %d unpaid calls", res, err, out.String(), len(s.headers), s.unpaid)
				}
			})
		})
	}
}

func TestAFreeAnswerCostsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		free := roundTrip(func(r *http.Request) (*http.Response, error) {
			return answer(r, 200, nil, "hello "+r.Method), nil
		})
		var out bytes.Buffer
		c := &Client{Wallet: Keyless(t.TempDir()), Transport: free}
		res, err := c.Do(t.Context(), Request{URL: shop, Out: &out})
		if err != nil || res.Paid || res.Payment != nil || out.String() != "hello GET" {
			t.Errorf("%+v %v %q", res, err, out.String())
		}
		if q, status, err := c.Quote(t.Context(), Request{URL: shop}); q != nil || status != 200 || err != nil {
			t.Errorf("quote: %v %d %v", q, status, err)
		}
	})
}

func TestRefusalsOfAnUnpaidCall(t *testing.T) {
	tests := []struct {
		status int
		want   clawr.Code
	}{{400, CodeServer}, {401, clawr.CodeTokenMissing}, {403, clawr.CodeScopeMissing}, {404, clawr.CodeNotFound}, {409, clawr.CodeConflict}, {429, clawr.CodeRateLimited}, {500, CodeServer}, {503, CodeServer}}
	for _, tt := range tests {
		rt := roundTrip(func(r *http.Request) (*http.Response, error) {
			return answer(r, tt.status, nil, `{"error":"quote_over_limit","message":"\u001b[31mred\u0007"}`), nil
		})
		c := &Client{Wallet: Keyless(t.TempDir()), Transport: rt}
		_, err := c.Do(t.Context(), Request{URL: shop})
		if clawr.CodeOf(err) != tt.want || strings.ContainsAny(err.Error(), "\x1b\x07") {
			t.Errorf("%d: %q, want %s", tt.status, err, tt.want)
		}
	}
	down := roundTrip(func(*http.Request) (*http.Response, error) { return nil, io.ErrUnexpectedEOF })
	c := &Client{Wallet: Keyless(t.TempDir()), Transport: down}
	if _, err := c.Do(t.Context(), Request{URL: shop}); clawr.CodeOf(err) != clawr.CodeUnreachable {
		t.Errorf("no server: %v, want %s", err, clawr.CodeUnreachable)
	}
	s := newSeller(t, nil)
	c.Transport = s
	if _, err := c.Do(t.Context(), Request{URL: shop}); clawr.CodeOf(err) != CodeNoWallet {
		t.Errorf("no wallet: %v, want %s", err, CodeNoWallet)
	}
}

func TestLimitsRefuseBeforeSigning(t *testing.T) {
	amount := func(s string) *clawr.Amount { a := usd(s); return &a }
	tests := []struct {
		name    string
		price   string
		r       Request
		yes     bool // somebody says yes when asked
		want    clawr.Code
		message string
		fix     string
	}{
		{"within the wallet's", "0.10", Request{}, false, "", "", ""},
		{"over the wallet's", "0.100001", Request{}, false, clawr.CodeQuoteOverLimit, "this call costs $0.100001, your limit is $0.10. Nothing was signed.", "--max 0.100001 --confirm"},
		{"over --max", "0.001", Request{Max: amount("0.0001")}, false, clawr.CodeQuoteOverLimit, "costs $0.001, your limit is $0.0001", "--max 0.001 --confirm"},
		{"over --max of nothing", "0.000001", Request{Max: amount("0")}, false, clawr.CodeQuoteOverLimit, "your limit is $0.00", ""},
		{"the transcript's", "5", Request{Max: amount("0.002")}, false, clawr.CodeQuoteOverLimit, "this call costs $5.00, your limit is $0.002. Nothing was signed.", "clawr pay 'http://shop.test/v1/records?limit=1' --max 5 --confirm, after clawr wallet limits --per-day 5"},
		{"--max above the wallet's is not enough", "0.5", Request{Max: amount("0.5")}, false, clawr.CodeQuoteOverLimit, "your limit is $0.10", "--max 0.5 --confirm"},
		{"--max with --confirm", "0.5", Request{Max: amount("0.5"), Confirm: true}, false, "", "", ""},
		{"--confirm of less", "0.5", Request{Max: amount("0.4"), Confirm: true}, false, clawr.CodeQuoteOverLimit, "your limit is $0.40", ""},
		{"the day's limit stands", "1.000001", Request{Max: amount("2"), Confirm: true}, false, clawr.CodeQuoteOverLimit, "your limit of $1.00 a day", "clawr wallet limits --per-day 1.000001"},
		{"somebody says yes", "0.5", Request{}, true, "", "", ""},
		{"nobody is asked over --max", "0.5", Request{Max: amount("0.05")}, true, clawr.CodeQuoteOverLimit, "your limit is $0.05", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newSeller(t, func(w http.ResponseWriter, _ *http.Request, _ int) { settled(w, "x") })
			s.price = int64(usd(tt.price))
			w := wallet(t, t.TempDir())
			c := &Client{Wallet: w, Transport: s}
			if tt.yes {
				c.Confirm = func(*Quote, clawr.Amount) bool { return true }
			}
			tt.r.URL = shop
			_, err := c.Do(t.Context(), tt.r)
			if tt.want == "" {
				if err != nil || s.sent != 1 {
					t.Errorf("%v, sent %d", err, s.sent)
				}
				return
			}
			e, _ := err.(*clawr.Error)
			if e == nil || e.Code != tt.want || !strings.Contains(e.Message, tt.message) || !strings.Contains(e.Fix, tt.fix) {
				t.Errorf("got %#v", err)
			}
			if open, _ := w.Open(); len(open) > 0 || s.sent > 0 {
				t.Errorf("%d payments were written down, %d sent", len(open), s.sent)
			}
			if n, _ := w.Spent(t.Context()); n != 0 {
				t.Errorf("%v counts as spent", n)
			}
		})
	}
}

func TestVersion1IsPaidInItsOwnWay(t *testing.T) {
	s := newSeller(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.Header.Get(x402.HeaderSignature) != "" {
			t.Error("a version 1 server was sent PAYMENT-SIGNATURE")
		}
		resp := x402.SettleResponse{Success: true, Transaction: tx, Network: "base-sepolia"}
		w.Header()[x402.HeaderResponseV1] = []string{resp.Header()}
		io.WriteString(w, "old")
	})
	s.v1 = true
	var out bytes.Buffer
	c := &Client{Wallet: wallet(t, t.TempDir()), Transport: s}
	res, err := c.Do(t.Context(), Request{URL: shop, Out: &out})
	if err != nil || out.String() != "old" || res.Payment.Transaction != tx {
		t.Errorf("%+v %v", res, err)
	}
}

func TestEveryMethodAndBodyIsSentAgainUnchanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"} {
			body := "body of " + method
			var seen []string
			s := newSeller(t, func(w http.ResponseWriter, r *http.Request, n int) {
				b, _ := io.ReadAll(r.Body)
				seen = append(seen, r.Method+" "+string(b)+" "+r.Header.Get("X-Mine"))
				if n == 0 {
					abort(w)
				}
				settled(w, "ok")
			})
			c := &Client{Wallet: wallet(t, t.TempDir()), Transport: s}
			_, err := c.Do(t.Context(), Request{Method: strings.ToLower(method), URL: shop, Body: []byte(body), Header: http.Header{"X-Mine": {"1"}}})
			want := method + " " + body + " 1"
			if err != nil || len(seen) != 2 || seen[0] != want || seen[1] != want {
				t.Errorf("%s: %v %q", method, err, seen)
			}
		}
	})
}

func TestTheIdentifierNamesTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		offered := func(required bool) func(*x402.PaymentRequired) {
			return func(p *x402.PaymentRequired) {
				p.Extensions = x402.Object{{Name: "other", Value: []byte(`{"info":{"x":1}}`)}, {Name: identifier, Value: fmt.Appendf(nil, `{"info":{"required":%v},"schema":{"type":"object"}}`, required)}}
			}
		}
		down := func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(503) }
		s := newSeller(t, down)
		s.change = offered(true)
		w := wallet(t, t.TempDir())
		c := &Client{Wallet: w, Transport: s}
		for i, id := range []string{"call-number-0001", "call-number-0002", "", "call-number-0001"} {
			if _, err := c.Do(t.Context(), Request{URL: shop, ID: id, Timeout: time.Second}); clawr.CodeOf(err) != clawr.CodePaymentUnknown {
				t.Fatalf("%d: %v", i, err)
			}
		}
		if len(s.auths) != 3 {
			t.Errorf("%d authorizations for three different calls", len(s.auths))
		}
		var ids []string
		for header := range s.headers {
			p, err := x402.ParsePayment(header)
			if err != nil {
				t.Fatal(err)
			}
			id, err := p.Identifier()
			if err != nil || id == "" || p.Extensions.Find("other") == nil {
				t.Errorf("identifier %q (%v), extensions %v", id, err, p.Extensions)
			}
			if err := x402.CheckEcho(s.required(httpRequest(shop)).Extensions, p.Extensions, nil); err != nil {
				t.Errorf("the echo: %v", err)
			}
			ids = append(ids, id)
		}
		if all := strings.Join(ids, " "); !strings.Contains(all, "call-number-0001") || !strings.Contains(all, "call-number-0002") {
			t.Errorf("identifiers %v", ids)
		}
	})
}

func TestBadRequestsAreUsageErrors(t *testing.T) {
	for _, r := range []Request{{URL: ""}, {URL: "shop.test/x"}, {URL: "ftp://shop.test/"}, {URL: "http://me:secret@shop.test/"}, {URL: shop, Method: "GE T"}, {URL: shop, Method: "CONNECT"},
		{URL: shop, Header: http.Header{"payment-signature": {"x"}}}, {URL: shop, Header: http.Header{"X-Payment": {"x"}}}, {URL: shop, ID: "short"}, {URL: shop, Confirm: true}} {
		c := &Client{Wallet: Keyless(t.TempDir()), Transport: roundTrip(func(*http.Request) (*http.Response, error) {
			t.Errorf("%+v was sent", r)
			return nil, io.EOF
		})}
		if _, err := c.Do(t.Context(), r); clawr.CodeOf(err) != clawr.CodeUsage || strings.Contains(fmt.Sprint(err), "secret") {
			t.Errorf("%+v: %v, want %s", r, err, clawr.CodeUsage)
		}
	}
}

// roundTrip is a server in a function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func answer(r *http.Request, status int, h http.Header, body string) *http.Response {
	if h == nil {
		h = http.Header{}
	}
	return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}
}

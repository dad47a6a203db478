package buyer

import (
	"bytes"
	"context"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// These tests use real sockets, for what only they can do wrong.

func serve(t *testing.T, h http.Handler) *httptest.Server {
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv
}

// cutAfter answers with n bytes of body, promises more, and closes.
func cutAfter(t testing.TB, w http.ResponseWriter, body string, n int) {
	conn, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	buf.WriteString("HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body[:n])
	buf.Flush()
}

func TestAnAnswerThatIsCutGoesOnWhereItStopped(t *testing.T) {
	t.Parallel()
	body := strings.Repeat("0123456789", 5000)
	s := newSeller(t, func(w http.ResponseWriter, _ *http.Request, n int) {
		switch n {
		case 0:
			cutAfter(t, w, body, 0)
		case 1:
			cutAfter(t, w, body, 12345)
		case 2:
			cutAfter(t, w, body, 7000) // less than there was already
		default:
			settled(w, body)
		}
	})
	srv := serve(t, s)
	var out bytes.Buffer
	w := wallet(t, t.TempDir())
	res, err := (&Client{Wallet: w}).Do(t.Context(), Request{URL: srv.URL + "/x", Out: &out})
	if err != nil || out.String() != body || res.Bytes != int64(len(body)) || len(s.auths) != 1 || s.sent != 4 {
		t.Errorf("%v: %d of %d bytes, %d payments in %d requests", err, out.Len(), len(body), len(s.auths), s.sent)
	}
}

func TestAnAnswerThatChangesMidwayIsNotMixed(t *testing.T) {
	s := newSeller(t, func(w http.ResponseWriter, _ *http.Request, n int) {
		if n == 0 {
			cutAfter(t, w, "first version of it", 10)
			return
		}
		settled(w, "second version of it")
	})
	srv := serve(t, s)
	var out bytes.Buffer
	w := wallet(t, t.TempDir())
	_, err := (&Client{Wallet: w}).Do(t.Context(), Request{URL: srv.URL, Out: &out})
	if clawr.CodeOf(err) != clawr.CodePaymentUnknown || !strings.Contains(err.Error(), "changed") || out.String() != "first vers" {
		t.Errorf("%v, %q", err, out.String())
	}
	out.Reset()
	if res, err := (&Client{Wallet: w}).Do(t.Context(), Request{URL: srv.URL, Out: &out}); err != nil || !res.Resumed || out.String() != "second version of it" {
		t.Errorf("again: %v %q", err, out.String())
	}
}

func TestAServerThatIsGoneBeforeItIsPaidCostsNothing(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newSeller(t, nil)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		s.ServeHTTP(w, r)
	})}
	go srv.Serve(ln)
	closing := &closeAfter{do: func() { srv.Close() }, Wallet: wallet(t, t.TempDir())}
	c := &Client{Wallet: closing.Wallet, Chain: closing}
	_, err = c.Do(t.Context(), Request{URL: "http://" + ln.Addr().String() + "/x", Timeout: 700 * time.Millisecond})
	if clawr.CodeOf(err) != clawr.CodeUnreachable || !strings.Contains(err.Error(), "nothing was charged") {
		t.Errorf("got %v, want %s", err, clawr.CodeUnreachable)
	}
	open, _ := closing.Open()
	if n, _ := closing.Spent(t.Context()); n != 0 || len(open) != 0 {
		t.Errorf("%v counts, %d are open, for a payment that was never sent", n, len(open))
	}
}

// closeAfter is a chain that ends the server when the balance is asked: after
// the challenge, before the payment.
type closeAfter struct {
	fakeChain
	*Wallet
	do func()
}

func (c *closeAfter) Network() string { return usdc.Network }
func (c *closeAfter) Balance(ctx context.Context, _, _ string) (*big.Int, error) {
	c.do()
	c.fakeChain.balance, c.fakeChain.final = 1<<30, time.Now
	return c.fakeChain.Balance(ctx, "", "")
}

func TestHeadersAreBounded(t *testing.T) {
	huge := strings.Repeat("x", 100<<10)
	for name, h := range map[string]http.HandlerFunc{
		"one header": func(w http.ResponseWriter, r *http.Request) { w.Header().Set("X-Big", huge); w.WriteHeader(402) },
		"the challenge": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Payment-Required", huge)
			w.WriteHeader(402)
		},
		"many headers": func(w http.ResponseWriter, r *http.Request) {
			for i := range 5000 {
				w.Header().Add("X-"+strconv.Itoa(i), strings.Repeat("y", 20))
			}
			w.WriteHeader(402)
		},
	} {
		srv := serve(t, h)
		w := wallet(t, t.TempDir())
		_, err := (&Client{Wallet: w}).Do(t.Context(), Request{URL: srv.URL})
		if clawr.CodeOf(err) != clawr.CodeUnreachable || len(err.Error()) > 1000 {
			t.Errorf("%s: %v, want %s", name, err, clawr.CodeUnreachable)
		}
	}
	for name, h := range map[string]http.HandlerFunc{
		"20 KB": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Payment-Required", huge[:20<<10])
			w.WriteHeader(402)
		},
		"two of them": func(w http.ResponseWriter, r *http.Request) {
			w.Header()["Payment-Required"] = []string{"e30=", "e30="}
			w.WriteHeader(402)
		},
		"an endless body":   func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(402); io.Copy(w, endless{}) },
		"nothing":           func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(402) },
		"a body of garbage": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(402); io.WriteString(w, "\x1b[31m{") },
	} {
		srv := serve(t, h)
		w := wallet(t, t.TempDir())
		_, err := (&Client{Wallet: w}).Do(t.Context(), Request{URL: srv.URL})
		if clawr.CodeOf(err) != CodeBadQuote || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: %v, want %s", name, err, CodeBadQuote)
		}
		srv.CloseClientConnections()
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) { return len(b), nil }

func TestRedirectsNeverCarryAPayment(t *testing.T) {
	var leaked int
	evil := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(x402.HeaderSignature)+r.Header.Get("X-Api-Key") != "" {
			leaked++
		}
	}))
	s := newSeller(t, nil)
	s.paid = func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Path == "/turns" {
			http.Redirect(w, r, evil.URL, http.StatusTemporaryRedirect)
			return
		}
		settled(w, r.Method+" "+r.URL.String())
	}
	mux := http.NewServeMux()
	mux.Handle("/", s)
	mux.Handle("/old", http.RedirectHandler("/new?x=1", http.StatusMovedPermanently))
	mux.Handle("/away", http.RedirectHandler(evil.URL+"/?secret=1", http.StatusFound))
	mux.Handle("/round", http.RedirectHandler("/round", http.StatusFound))
	srv := serve(t, mux)
	tests := []struct {
		method, path string
		want         string // the answer, or
		code         clawr.Code
	}{
		{"GET", "/old", "GET /new?x=1", ""},
		{"POST", "/old", "", ""}, // a 301 to a POST is an answer like any other
		{"GET", "/away", "", CodeServer},
		{"GET", "/round", "", CodeServer},
		{"GET", "/turns", "", CodeServer},
	}
	for _, tt := range tests {
		var out bytes.Buffer
		w := wallet(t, t.TempDir())
		res, err := (&Client{Wallet: w}).Do(t.Context(), Request{Method: tt.method, URL: srv.URL + tt.path, Header: http.Header{"X-Api-Key": {"k"}}, Out: &out})
		switch {
		case tt.code != "":
			if clawr.CodeOf(err) != tt.code {
				t.Errorf("%s: %v, want %s", tt.path, err, tt.code)
			}
		case tt.want != "":
			if err != nil || out.String() != tt.want || res.Payment.URL != srv.URL+"/new?x=1" {
				t.Errorf("%s: %q %v", tt.path, out.String(), err)
			}
		default:
			if err != nil || res.Status != 301 {
				t.Errorf("%s %s: %+v %v", tt.method, tt.path, res, err)
			}
		}
	}
	if leaked > 0 {
		t.Errorf("a payment or a secret header went to another origin %d times", leaked)
	}
}

func TestAnInterruptedCallIsUnknownAndResumes(t *testing.T) {
	hold := make(chan struct{})
	s := newSeller(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 0 {
			hold <- struct{}{}
			<-r.Context().Done()
			return
		}
		settled(w, "the answer")
	})
	srv := serve(t, s)
	w := wallet(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-hold; cancel() }()
	if _, err := (&Client{Wallet: w}).Do(ctx, Request{URL: srv.URL}); clawr.CodeOf(err) != clawr.CodePaymentUnknown {
		t.Fatalf("got %v, want %s", err, clawr.CodePaymentUnknown)
	}
	res, err := (&Client{Wallet: w}).Do(t.Context(), Request{URL: srv.URL})
	if err != nil || !res.Resumed || len(s.auths) != 1 {
		t.Errorf("%+v %v, %d payments", res, err, len(s.auths))
	}
}

func TestEqualCallsAtOnceArePaidOneAfterTheOther(t *testing.T) {
	var at, most int
	s := newSeller(t, nil)
	s.paid = func(w http.ResponseWriter, r *http.Request, _ int) {
		s.mu.Lock()
		at++
		most = max(most, at)
		s.mu.Unlock()
		time.Sleep(5 * time.Millisecond)
		s.mu.Lock()
		at--
		s.mu.Unlock()
		settled(w, "ok")
	}
	srv := serve(t, s)
	w := wallet(t, t.TempDir())
	errs := make(chan error, 8)
	for range 8 {
		go func() {
			_, err := (&Client{Wallet: w}).Do(context.Background(), Request{URL: srv.URL})
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if most != 1 || len(s.auths) != 8 {
		t.Errorf("%d at once, %d payments, want 1 and 8", most, len(s.auths))
	}
}

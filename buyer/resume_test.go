package buyer

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// TestAnOpenPaymentEndsByProofOnly takes a payment whose outcome is unknown or
// that was refused, lets time pass, and calls again: with and without a chain
// to ask.
func TestAnOpenPaymentEndsByProofOnly(t *testing.T) {
	down := func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(503) }
	refusing := func(w http.ResponseWriter, _ *http.Request, _ int) {
		refuse(w, 402, "invalid_exact_evm_payload_authorization_valid_before")
	}
	selling := func(w http.ResponseWriter, _ *http.Request, _ int) { settled(w, "the answer") }
	tests := []struct {
		name        string
		first, then func(http.ResponseWriter, *http.Request, int)
		after       time.Duration
		chain       bool
		used        bool
		want        clawr.Code
		says        string
		signs       int    // authorizations in all
		spent       string // counted in the end
	}{
		{"unknown, at once, no chain", down, down, 0, false, false, clawr.CodePaymentUnknown, "it may be charged until", 1, "0.001"},
		{"unknown, long after, no chain", down, down, time.Hour, false, false, clawr.CodePaymentUnknown, "likely not charged, but only --rpc-url can prove it", 1, "0.001"},
		{"unknown, then refused, at once", down, refusing, 0, false, false, clawr.CodePaymentRejected, "not charged, says the server", 1, "0.001"},
		{"unknown, then refused, long after", down, refusing, time.Hour, false, false, clawr.CodePaymentRejected, "likely not charged", 1, "0.001"},
		{"refused, at once", refusing, refusing, 0, false, false, clawr.CodePaymentRejected, "not charged, says the server", 1, "0.001"},
		{"refused, before the margin", refusing, refusing, 5 * time.Minute, false, false, clawr.CodePaymentRejected, "not charged, says the server", 1, "0.001"},
		{"refused, long after", refusing, refusing, time.Hour, false, false, clawr.CodePaymentRejected, "likely not charged", 1, "0.001"},
		{"the answer comes a day later", down, selling, 23 * time.Hour, false, false, "", "", 1, "0.001"},
		{"unknown, at once, unused on the chain", down, down, 0, true, false, clawr.CodePaymentUnknown, "it may be charged until", 1, "0.001"},
		{"unknown, long after, unused on the chain", down, selling2(t), time.Hour, true, false, "", "", 2, "0.001"},
		{"refused, long after, unused on the chain", refusing, selling2(t), time.Hour, true, false, "", "", 2, "0.001"},
		{"unknown, long after, used on the chain", down, down, time.Hour, true, true, clawr.CodePaymentUnknown, "it was charged", 1, "0.001"},
		{"refused, long after, used on the chain", refusing, refusing, time.Hour, true, true, clawr.CodePaymentUnknown, "it was charged", 1, "0.001"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSeller(t, tt.first)
				w := wallet(t, t.TempDir())
				var node Chain
				if tt.chain {
					node = &fakeChain{network: usdc.Network, balance: 1 << 20, used: func(string) bool { return tt.used }, final: time.Now}
				}
				if _, err := (&Client{Wallet: w, Transport: s}).Do(t.Context(), Request{URL: shop, Timeout: time.Second}); err == nil {
					t.Fatal("the first call was answered")
				}
				time.Sleep(tt.after)
				s.paid = tt.then
				var n notes
				var out bytes.Buffer
				res, err := (&Client{Wallet: w, Transport: s, Chain: node, Note: n.note}).Do(t.Context(), Request{URL: shop, Timeout: time.Second, Out: &out})
				if tt.want == "" {
					if err != nil || out.String() != "the answer" || res.Resumed != (tt.signs == 1) {
						t.Fatalf("%+v %v\n%s", res, err, n.b.String())
					}
				} else if clawr.CodeOf(err) != tt.want || !strings.Contains(err.Error(), tt.says) {
					t.Fatalf("got %v, want %s saying %q", err, tt.want, tt.says)
				}
				if len(s.auths) != tt.signs {
					t.Errorf("%d payments were signed, want %d", len(s.auths), tt.signs)
				}
				if spent, _ := w.Spent(t.Context()); spent != usd(tt.spent) && tt.after < 20*time.Hour {
					t.Errorf("%v counts, want %s", spent, tt.spent)
				}
			})
		})
	}
}

// selling2 refuses the first payment it ever saw, and sells for another.
func selling2(*testing.T) func(http.ResponseWriter, *http.Request, int) {
	first := ""
	return func(w http.ResponseWriter, r *http.Request, _ int) {
		if h := r.Header.Get(x402.HeaderSignature); first == "" || h == first {
			first = h
			refuse(w, 402, "invalid_exact_evm_payload_authorization_valid_before")
			return
		}
		settled(w, "the answer")
	}
}

func TestALikelyEndLetsTheNextCallPay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeller(t, selling2(t))
		w := wallet(t, t.TempDir())
		c := &Client{Wallet: w, Transport: s}
		for i, want := range []clawr.Code{clawr.CodePaymentRejected, clawr.CodePaymentRejected} {
			if _, err := c.Do(t.Context(), Request{URL: shop}); clawr.CodeOf(err) != want {
				t.Fatalf("%d: %v", i, err)
			}
			time.Sleep(time.Hour)
		}
		if _, err := c.Do(t.Context(), Request{URL: shop}); err != nil || len(s.auths) != 2 {
			t.Errorf("%v, %d payments", err, len(s.auths))
		}
		past, err := w.Receipts(10)
		if err != nil || len(past) != 2 || past[0].Outcome != Paid || past[1].Outcome != Expired {
			t.Errorf("receipts %+v %v", past, err)
		}
		if past[0].Header != "" || past[0].Transaction != tx || past[0].Status != 200 {
			t.Errorf("the receipt %+v", past[0])
		}
	})
}

func TestNewGivesUpTheOldPaymentAndCountsBoth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeller(t, selling2(t))
		w := wallet(t, t.TempDir())
		c := &Client{Wallet: w, Transport: s}
		if _, err := c.Do(t.Context(), Request{URL: shop}); clawr.CodeOf(err) != clawr.CodePaymentRejected {
			t.Fatal(err)
		}
		if _, err := c.Do(t.Context(), Request{URL: shop, New: true}); err != nil {
			t.Fatal(err)
		}
		if n, _ := w.Spent(t.Context()); n != usd("0.002") || len(s.auths) != 2 {
			t.Errorf("%v counts for %d payments", n, len(s.auths))
		}
		past, err := w.Receipts(10)
		if err != nil || len(past) != 2 || past[0].Outcome != Abandoned && past[1].Outcome != Abandoned {
			t.Errorf("receipts %+v %v", past, err)
		}
	})
}

func TestProveClosesWhatTheChainSaysIsDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeller(t, func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(503) })
		w := wallet(t, t.TempDir())
		var nonces []string
		for _, path := range []string{"a", "b", "c"} {
			if path == "c" {
				s.life = 3600
			}
			_, err := (&Client{Wallet: w, Transport: s}).Do(t.Context(), Request{URL: "http://shop.test/" + path, Timeout: time.Second})
			if clawr.CodeOf(err) != clawr.CodePaymentUnknown {
				t.Fatal(err)
			}
		}
		open, err := w.Open()
		if err != nil || len(open) != 3 {
			t.Fatalf("%d open, %v", len(open), err)
		}
		for _, p := range open {
			nonces = append(nonces, p.Nonce)
		}
		node := &fakeChain{network: usdc.Network, used: func(n string) bool { return n == nonces[0] }, final: time.Now}
		c := &Client{Wallet: w, Chain: node}
		if closed, err := c.Prove(t.Context()); len(closed) != 0 || err != nil {
			t.Errorf("before anything expired: %v %v", closed, err)
		}
		time.Sleep(10 * time.Minute)
		node.network = "eip155:1"
		if closed, err := c.Prove(t.Context()); len(closed) != 0 || err != nil {
			t.Errorf("by another chain: %v %v", closed, err)
		}
		node.network, node.err = usdc.Network, errors.New("broken")
		if closed, err := c.Prove(t.Context()); len(closed) != 0 || err == nil {
			t.Errorf("by a broken node: %v %v", closed, err)
		}
		node.err, node.behind = nil, true
		closed, err := c.Prove(t.Context())
		if err != nil || len(closed) != 1 || closed[0].Nonce != nonces[1] || closed[0].Outcome != NotCharged {
			t.Errorf("closed %+v %v, want the one that is expired and unused", closed, err)
		}
		if n, _ := w.Spent(t.Context()); n != usd("0.002") {
			t.Errorf("%v counts, want 0.002", n)
		}
	})
}

func TestTheBalanceIsCheckedBeforeSigning(t *testing.T) {
	s := newSeller(t, func(w http.ResponseWriter, _ *http.Request, _ int) { settled(w, "ok") })
	w := wallet(t, t.TempDir())
	node := &fakeChain{network: usdc.Network, balance: 999, final: time.Now}
	c := &Client{Wallet: w, Transport: s, Chain: node}
	_, err := c.Do(t.Context(), Request{URL: shop})
	if clawr.CodeOf(err) != CodeBalance || !strings.Contains(err.Error(), "999 units") || s.sent != 0 {
		t.Errorf("%v, sent %d", err, s.sent)
	}
	node.balance = 1000
	if _, err := c.Do(t.Context(), Request{URL: shop}); err != nil {
		t.Error(err)
	}
}

func TestADamagedJournalStopsThePayment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeller(t, func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(503) })
		w := wallet(t, t.TempDir())
		c := &Client{Wallet: w, Transport: s}
		c.Do(t.Context(), Request{URL: shop, Timeout: time.Second})
		files, _ := filepath.Glob(filepath.Join(w.Dir(), openFolder, "*.json"))
		if len(files) != 1 {
			t.Fatalf("files %v", files)
		}
		info, err := os.Stat(files[0])
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the journal's mode is %v, %v", info.Mode(), err)
		}
		good, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		p, err := decodePayment(good)
		if err != nil {
			t.Fatal(err)
		}
		change := func(f func(*Payment)) []byte {
			q := *p
			f(&q)
			b, _ := q.encode()
			return b
		}
		for i, bad := range [][]byte{nil, []byte("{}"), good[:len(good)/2], append(bytes.Clone(good), good...),
			change(func(p *Payment) { p.Nonce = "0x" + strings.Repeat("0", 64) }),
			change(func(p *Payment) { p.ValidBefore++ }),
			change(func(p *Payment) { p.Atomic++ }),
			change(func(p *Payment) { p.PayTo = usdc.Address }),
			change(func(p *Payment) { p.Payer = usdc.Address }),
			change(func(p *Payment) { p.Network = "eip155:1" }),
			change(func(p *Payment) { p.URL = "file:///etc/passwd" }),
			change(func(p *Payment) { p.HeaderName = "Authorization" }),
			change(func(p *Payment) { p.Call = strings.Repeat("0", 32) }),
			change(func(p *Payment) { p.ID = "pay_../../x" }),
			change(func(p *Payment) { p.Outcome = Paid }),
		} {
			if err := os.WriteFile(files[0], bad, 0o600); err != nil {
				t.Fatal(err)
			}
			sent := s.sent
			if _, err := c.Do(t.Context(), Request{URL: shop, Timeout: time.Second}); clawr.CodeOf(err) != CodeBadWallet || s.sent != sent || len(s.auths) != 1 {
				t.Errorf("%d: %v, %d sent, %d signed", i, err, s.sent-sent, len(s.auths))
			}
			if _, err := w.Open(); clawr.CodeOf(err) != CodeBadWallet {
				t.Errorf("%d: list: %v", i, err)
			}
		}
	})
}

func TestAnAnswerThatCannotBeWrittenIsFetchedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSeller(t, func(w http.ResponseWriter, _ *http.Request, _ int) { settled(w, "the answer") })
		w := wallet(t, t.TempDir())
		c := &Client{Wallet: w, Transport: s}
		full := errors.New("no space left")
		_, err := c.Do(t.Context(), Request{URL: shop, Out: writeFunc(func([]byte) (int, error) { return 3, full })})
		if clawr.CodeOf(err) != clawr.CodeFile || !errors.Is(err, full) || s.sent != 1 {
			t.Fatalf("%v, sent %d", err, s.sent)
		}
		var out bytes.Buffer
		res, err := c.Do(t.Context(), Request{URL: shop, Out: &out})
		if err != nil || !res.Resumed || out.String() != "the answer" || len(s.auths) != 1 {
			t.Errorf("%+v %v %q", res, err, out.String())
		}
	})
}

type writeFunc func([]byte) (int, error)

func (f writeFunc) Write(b []byte) (int, error) { return f(b) }

func TestAPaymentSurvivesItsFile(t *testing.T) {
	w := wallet(t, t.TempDir())
	id, call := newID("pay_"), callName(0)
	p, err := w.open(t.Context(), id, call, 1000, signed(t, w, id, call, 1000))
	if err != nil {
		t.Fatal(err)
	}
	p.Refused = &Refusal{Status: 402, Reason: "x", At: p.Created}
	if err := w.save(p); err != nil {
		t.Fatal(err)
	}
	got, err := w.find(call)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(p, got); d != "" {
		t.Errorf("written and read again (-written +read):\n%s", d)
	}
}

// FuzzJournal has anybody write a file of open/. What is accepted must say in
// its header what it says in its fields, and come out as it went in.
func FuzzJournal(f *testing.F) {
	w := wallet(f, f.TempDir())
	id, call := newID("pay_"), callName(0)
	p, err := w.open(f.Context(), id, call, 1000, signed(f, w, id, call, 1000))
	if err != nil {
		f.Fatal(err)
	}
	b, err := p.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"id":"pay_00000000000000000000000000000000"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePayment(b)
		if err != nil {
			return
		}
		out, err := p.encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodePayment(out)
		if err != nil || !cmp.Equal(p, again) {
			t.Fatalf("%v\n%s", err, cmp.Diff(p, again))
		}
	})
}

// FuzzAnswer has a stranger write the answer to a payment.
func FuzzAnswer(f *testing.F) {
	r := x402.SettleResponse{Success: false, ErrorReason: "settlement_pending", Transaction: tx, Network: usdc.Network}
	f.Add(402, r.Header(), "", "1", []byte(`{"error":"x","message":"y"}`))
	f.Add(200, "", "e30=", "Wed, 21 Oct 2015 07:28:00 GMT", []byte(`{"error":{"message":1}}`))
	f.Add(503, "!", "!", "99999999999999999999", []byte("\x1b[2J"))
	f.Fuzz(func(t *testing.T, status int, receipt, challenge, after string, body []byte) {
		rep := &reply{status: status, header: http.Header{x402.HeaderResponse: {receipt}, x402.HeaderRequired: {challenge}, "Retry-After": {after}}, read: body}
		if body == nil {
			rep.read = []byte{}
		}
		v := rep.judge()
		if v.answered && v.refused || v.after < 0 || v.after > maxRetryAfter || v.transaction != "" && len(v.transaction) != 66 {
			t.Errorf("%+v", v)
		}
		if strings.ContainsAny(v.String(), "\x1b\r\n\x00") || len(v.String()) > 2000 {
			t.Errorf("%q", v.String())
		}
		if d := backoff(status&15, v); d < 0 || d > 2*maxRetryAfter {
			t.Errorf("backoff %s", d)
		}
	})
}

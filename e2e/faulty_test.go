package e2e

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/e2e/anvil"
)

// faults answer a settlement; forward hands it to the facilitator.
var faults = map[string]func(w http.ResponseWriter, forward func() (int, []byte)){
	"slow": func(w http.ResponseWriter, forward func() (int, []byte)) {
		time.Sleep(4 * time.Second)
		pass(w, forward)
	},
	"cut before":     func(http.ResponseWriter, func() (int, []byte)) { panic(http.ErrAbortHandler) },
	"cut after send": func(_ http.ResponseWriter, forward func() (int, []byte)) { forward(); panic(http.ErrAbortHandler) },
	"429":            func(w http.ResponseWriter, _ func() (int, []byte)) { w.WriteHeader(429) },
	"500":            func(w http.ResponseWriter, _ func() (int, []byte)) { w.WriteHeader(500) },
	"502 after send": func(w http.ResponseWriter, forward func() (int, []byte)) { forward(); w.WriteHeader(502) },
	"202":            func(w http.ResponseWriter, forward func() (int, []byte)) { forward(); w.WriteHeader(202) },
	"wrong hash": func(w http.ResponseWriter, forward func() (int, []byte)) {
		forward()
		io.WriteString(w, `{"success":true,"transaction":"0x`+strings.Repeat("ab", 32)+`","network":"eip155:84532"}`)
	},
	"without a transaction": func(w http.ResponseWriter, forward func() (int, []byte)) {
		forward()
		io.WriteString(w, `{"success":true,"transaction":"","network":"eip155:84532"}`)
	},
	"pending by 500": func(w http.ResponseWriter, forward func() (int, []byte)) {
		forward()
		w.WriteHeader(500)
		io.WriteString(w, `{"success":false,"errorReason":"settlement_pending","transaction":"0x`+strings.Repeat("cd", 32)+`","network":"eip155:84532"}`)
	},
	"pending by a payment id": func(w http.ResponseWriter, forward func() (int, []byte)) {
		forward()
		io.WriteString(w, `{"success":false,"paymentId":"p1","status":"pending"}`)
	},
}

func pass(w http.ResponseWriter, forward func() (int, []byte)) {
	status, body := forward()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(body)
}

// Whatever stands between a server and its facilitator, a buyer who sends his
// payment again is charged once and gets his answer, and is never asked for
// another payment.
func TestAFaultyWayToTheFacilitator(t *testing.T) {
	c := anvilChain(t, anvil.Options{LikeBaseSepolia: true})
	for name, fault := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seller, err := chain.NewKey()
			if err != nil {
				t.Fatal(err)
			}
			upstream := facilitate(t, c, seller.Address())
			var once sync.Once
			proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				forward := func() (int, []byte) {
					res, err := http.Post(upstream+r.URL.Path, "application/json", bytes.NewReader(body))
					if err != nil {
						return 502, nil
					}
					defer res.Body.Close()
					b, _ := io.ReadAll(res.Body)
					return res.StatusCode, b
				}
				do := pass
				if r.URL.Path == "/settle" {
					once.Do(func() { do = fault })
				}
				do(w, forward)
			}))
			t.Cleanup(proxy.Close)
			s := serveBy(t, c, seller, proxy.URL)
			url := s.deploy(t, airports, "airports", "--price", "0.001", "--x402") + "?limit=1"
			private, err := crypto.HexToECDSA(c.account(t, 1_000_000).Reveal()[2:])
			if err != nil {
				t.Fatal(err)
			}
			client := &http.Client{Timeout: time.Minute}
			p, err := buy(t.Context(), client, url, private)
			if err != nil {
				t.Fatal(err)
			}
			for end := time.Now().Add(2 * time.Minute); p.status != http.StatusOK && time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
				if err := p.send(client, url); err != nil || p.status != http.StatusOK && p.status != http.StatusServiceUnavailable {
					t.Fatalf("%v, answered %d: %s", err, p.status, p.body)
				}
			}
			if got := c.balance(t, seller.Address()); p.status != http.StatusOK || got != 1000 || !strings.Contains(p.body, `"data":[{`) {
				t.Errorf("answered %d, the seller has %d: %s", p.status, got, p.body)
			}
		})
	}
}

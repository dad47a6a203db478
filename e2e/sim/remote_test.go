package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/x402"
)

// remotes are the facilitators of others, as an http.RoundTripper that knows
// them by host. A payment that they were sent they may submit whenever they
// like, whatever they said.
type remotes struct {
	dice   dice
	chain  *chain
	ctx    context.Context // of the simulation
	work   sync.WaitGroup
	calls  sync.Map
	honest atomic.Bool
	wrong  *counts
	quote  atomic.Bool // one was sent a quote
}

// how a facilitator answers POST /settle, and what it does beside.
type manner struct {
	name   string
	weight int
	submit bool // it submits the payment first
	wait   bool // … and waits for its block
	late   bool // it submits it long after it has answered
	other  bool // somebody else's transaction carries the payment out
	answer func(r *rand.Rand, hash string) (int, string)
}

func says(status int, format string, args ...any) func(*rand.Rand, string) (int, string) {
	return func(*rand.Rand, string) (int, string) { return status, fmt.Sprintf(format, args...) }
}

func success(_ *rand.Rand, hash string) (int, string) {
	return 200, fmt.Sprintf(`{"success":true,"transaction":%q,"network":%q}`, hash, usdc.Network)
}

func pending(status int) func(*rand.Rand, string) (int, string) {
	return func(_ *rand.Rand, hash string) (int, string) {
		return status, fmt.Sprintf(`{"success":false,"errorReason":"settlement_pending","transaction":%q,"network":%q}`, hash, usdc.Network)
	}
}

func invented(r *rand.Rand, _ string) (int, string) {
	return success(r, hashOf("invented", r.Uint64()))
}

const refused = `{"success":false,"errorReason":"insufficient_funds","transaction":"","network":"eip155:84532"}`

// manners are the ways in which facilitators settle. The first is how they should.
var manners = []manner{
	{name: "settles", weight: 20, submit: true, wait: true, answer: success},
	{name: "settles by another's transaction", weight: 4, submit: true, wait: true, other: true, answer: success},
	{name: "success before the block", weight: 4, submit: true, answer: success},
	{name: "success, and does nothing", weight: 3, answer: success},
	{name: "success, and submits late", weight: 3, late: true, answer: success},
	{name: "wrong hash", weight: 4, submit: true, answer: invented},
	{name: "wrong hash, and does nothing", weight: 3, answer: invented},
	{name: "success without a transaction", weight: 4, submit: true, answer: says(200, `{"success":true,"transaction":"","network":"eip155:84532"}`)},
	{name: "success on another network", weight: 2, submit: true, answer: says(200, `{"success":true,"transaction":"%s","network":"eip155:1"}`, hashOf("elsewhere"))},
	{name: "pending", weight: 4, submit: true, answer: pending(200)},
	{name: "pending, and does nothing", weight: 2, answer: pending(200)},
	{name: "CDP's pending", weight: 4, submit: true, answer: pending(500)},
	{name: "Circle's pending", weight: 4, submit: true, answer: says(200, `{"success":false,"paymentId":"pay_1","status":"pending","statusUrl":"/payments/pay_1"}`)},
	{name: "Circle's pending, submitted late", weight: 2, late: true, answer: says(200, `{"success":false,"paymentId":"pay_1","status":"pending"}`)},
	{name: "202", weight: 4, submit: true, answer: says(202, `{}`)},
	{name: "202, and does nothing", weight: 2, answer: says(202, ``)},
	{name: "refuses", weight: 3, answer: says(200, refused)},
	{name: "refuses, and submits", weight: 4, submit: true, answer: says(200, refused)},
	{name: "refuses, and submits late", weight: 4, late: true, answer: says(402, refused)},
	{name: "429", weight: 3, answer: says(429, `slow down`)},
	{name: "500", weight: 3, answer: says(500, `oops`)},
	{name: "500, and submits", weight: 3, submit: true, answer: says(500, `{"error":"internal"}`)},
	{name: "502, and submits late", weight: 2, late: true, answer: says(502, `<html>bad gateway</html>`)},
	{name: "503", weight: 2, answer: says(503, ``)},
	{name: "cut before", weight: 3},
	{name: "cut after send", weight: 5, submit: true},
	{name: "hangs", weight: 3, answer: says(-1, ``)},
	{name: "hangs, and submits", weight: 3, submit: true, answer: says(-1, ``)},
	{name: "garbage", weight: 2, submit: true, answer: says(200, `<html>`)},
	{name: "half an answer", weight: 2, submit: true, answer: says(200, `{"success":tru`)},
	{name: "a word for a boolean", weight: 2, submit: true, answer: says(200, `{"success":"true","transaction":"x"}`)},
	{name: "too much", weight: 1, submit: true, answer: func(*rand.Rand, string) (int, string) { return 200, strings.Repeat(" ", x402.MaxBody+9) }},
}

func pick(r *rand.Rand) *manner {
	sum := 0
	for i := range manners {
		sum += manners[i].weight
	}
	n := r.IntN(sum)
	for i := range manners {
		if n -= manners[i].weight; n < 0 {
			return &manners[i]
		}
	}
	return &manners[0]
}

var errCut = errors.New("connection reset by peer")

func (f *remotes) RoundTrip(req *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return nil, err
	}
	req.Body.Close()
	if bytes.Contains(body, []byte(`"quote"`)) {
		f.quote.Store(true)
	}
	q, err := x402.ParseRequest(body)
	if err != nil {
		return respond(400, err.Error()), nil
	}
	t, err := transferOf(&q.Payload)
	if err != nil {
		return respond(400, err.Error()), nil
	}
	v, _ := f.calls.LoadOrStore(req.URL.Host+req.URL.Path+t.Nonce.Hex(), new(atomic.Int64))
	r := f.dice.at(req.URL.Host, req.URL.Path, t.Nonce, v.(*atomic.Int64).Add(1))
	if req.URL.Path == "/verify" {
		return f.verify(req.Context(), r, t)
	}
	return f.settle(req.Context(), r, t)
}

func respond(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
}

// verify mostly says what is so. It submits nothing: a facilitator that takes
// the money of what it was only asked to judge is beyond what a seller can see.
func (f *remotes) verify(ctx context.Context, r *rand.Rand, t facilitator.Transfer) (*http.Response, error) {
	valid := fmt.Sprintf(`{"isValid":true,"payer":%q}`, t.Payer.Hex())
	p := r.IntN(100)
	if f.honest.Load() {
		p = 99
	}
	switch {
	case p < 3:
		return nil, errCut
	case p < 6:
		return respond(503, ""), nil
	case p < 8:
		f.wrong.add("verify hangs")
		return nil, sleep(ctx, 90*time.Second)
	case p < 12:
		if err := sleep(ctx, time.Duration(r.IntN(6000))*time.Millisecond); err != nil {
			return nil, err
		}
	case p < 14:
		return respond(200, `{"isValid":"true"}`), nil
	case p < 16:
		return respond(200, `{"isValid":true,"payer":"0x00000000000000000000000000000000000000cc"}`), nil
	case p < 20:
		f.wrong.add("verify refuses")
		return respond(200, fmt.Sprintf(`{"isValid":false,"invalidReason":"insufficient_funds","payer":%q}`, t.Payer.Hex())), nil
	}
	return respond(200, valid), nil
}

func (f *remotes) settle(ctx context.Context, r *rand.Rand, t facilitator.Transfer) (*http.Response, error) {
	m := pick(r)
	before, after := 0, 0 // seconds
	if one(r, 20) {
		before = r.IntN(90)
	}
	if one(r, 20) {
		after = r.IntN(90)
	}
	if f.honest.Load() {
		m, before, after = &manners[0], 0, 0
	}
	f.wrong.add(m.name)
	// What it does goes on when nobody waits for its answer any more.
	type said struct {
		status int
		body   string
		cut    bool
	}
	answered := make(chan said, 1)
	f.work.Go(func() {
		if sleep(f.ctx, time.Duration(before)*time.Second) != nil {
			return
		}
		hash := hashOf("tx", "facilitator", t.Payer, t.Nonce)
		if m.submit {
			by := "facilitator"
			if m.other {
				by = "somebody"
			}
			f.chain.submit(t, by)
		}
		for range 20 {
			if _, ok := f.chain.paid(key{t.Payer, t.Nonce}); !m.wait || ok {
				break
			}
			if sleep(f.ctx, time.Second) != nil {
				return
			}
		}
		if sleep(f.ctx, time.Duration(after)*time.Second) != nil {
			return
		}
		if m.answer == nil {
			answered <- said{cut: true}
			return
		}
		status, body := m.answer(r, hash)
		if status > 0 {
			answered <- said{status: status, body: body}
		}
		if m.late && sleep(f.ctx, time.Duration(r.IntN(120))*time.Second) == nil {
			f.chain.submit(t, "facilitator")
		}
	})
	select {
	case a := <-answered:
		if a.cut {
			return nil, errCut
		}
		return respond(a.status, a.body), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

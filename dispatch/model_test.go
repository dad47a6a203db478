package dispatch_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// model is what the buyer of one payment may believe, in the words of the
// invariants. It knows nothing of how the dispatcher works.
type model struct {
	bought  string // the path that it was first presented with; "" never
	content string // of the version that its quote promises
	body    string // the answer, once it was given: I2
	ended   bool   // it was said to be not charged, with proof
}

// A random life of a few payments: sends, resends, other requests and other
// holders with the same payment, every outcome of a settlement, the owner's
// death at any point, deploys, pauses, time and the recovery. After every step
// the invariants hold:
//
//	I1  an authorization has one row, and is charged once at most
//	I2  it buys the result of one request, to the byte, for its holder
//	I3  a 200 is given for what the chain shows
//	I10 one event counts for each answer that was paid for
//	I13 what was charged is answered, whatever happened to tenant and node
//	I14 no 402 while the authorization may be charged
func TestInvariantsOfRandomLives(t *testing.T) {
	w := newWorld(t)
	w.d.Deadline = 2 * time.Second
	life := 0
	rapid.Check(t, func(rt *rapid.T) {
		life++
		w.till.mu.Lock()
		w.till.script = nil
		w.till.mu.Unlock()
		m := &machine{world: w, rt: rt, slug: fmt.Sprintf("life-%d", life), moved: len(w.till.transfers()), start: w.now()}
		m.deploy()
		for range rapid.IntRange(1, 2).Draw(rt, "payments") {
			m.newPayment()
		}
		rt.Repeat(map[string]func(*rapid.T){
			"send":           m.send,
			"other request":  m.otherRequest,
			"other holder":   m.otherHolder,
			"deploy":         func(*rapid.T) { m.deploy() },
			"pause":          m.pause,
			"remove":         m.remove,
			"time":           m.time,
			"recover":        func(*rapid.T) { m.round(m.d) },
			"restart":        func(*rapid.T) { m.again() },
			"another buyer":  func(*rapid.T) { m.newPayment() },
			"the chain goes": m.settleSomewhere,
			"":               m.check,
		})
		m.end()
	})
}

type machine struct {
	*world
	rt       *rapid.T
	slug     string
	version  int
	removed  bool
	payments []*live
	moved    int // transfers of earlier lives
	start    time.Time
}

type live struct {
	model
	q request
}

func (m *machine) Fatalf(format string, args ...any) { m.rt.Helper(); m.rt.Fatalf(format, args...) }

func (m *machine) deploy() {
	m.version++
	m.removed = false
	m.world.deploy(clawr.Tenant{Slug: m.slug, Manifest: clawr.Manifest{Content: fmt.Sprint("content ", m.version), Price: price, X402: true}})
}

func (m *machine) path(n int) string { return fmt.Sprintf("/t/%s/v1/records?n=%d", m.slug, n) }

func (m *machine) newPayment() {
	a := m.get(m.path(0))
	if a.Code != 402 {
		return // paused or removed
	}
	k := key(m)
	p := &live{q: request{pay: m.signed(k, a.required()).Header()}}
	p.content = fmt.Sprint("content ", m.version)
	m.payments = append(m.payments, p)
}

func (m *machine) pick(rt *rapid.T) *live {
	if len(m.payments) == 0 {
		rt.Skip("nobody pays")
	}
	return rapid.SampledFrom(m.payments).Draw(rt, "payment")
}

// send presents a payment for its request, or for its first one, while the
// settlement and the work do whatever they like and the owner may die.
func (m *machine) send(rt *rapid.T) {
	p := m.pick(rt)
	path := p.bought
	if path == "" {
		path = m.path(rapid.IntRange(0, 2).Draw(rt, "request"))
	}
	m.present(rt, p, path)
}

// otherRequest presents it for something else, which it may not buy unless it
// is the first that it is presented for.
func (m *machine) otherRequest(rt *rapid.T) {
	p := m.pick(rt)
	m.present(rt, p, m.path(rapid.IntRange(0, 3).Draw(rt, "request")))
}

func (m *machine) present(rt *rapid.T, p *live, path string) {
	script := map[string]outcome{"pays": (*till).pay, "in no block": (*till).broadcast, "reply lost": (*till).lost, "not submitted": (*till).down,
		"no money": (*till).refuseHeld, "silent": (*till).unknown}
	names := []string{"pays", "pays", "in no block", "reply lost", "not submitted", "no money", "silent"}
	m.till.mu.Lock()
	m.till.script = []outcome{script[rapid.SampledFrom(names).Draw(rt, "settlement")]}
	m.till.mu.Unlock()
	switch rapid.SampledFrom([]string{"", "", "", "fails", "panics"}).Draw(rt, "work") {
	case "fails":
		m.shop.once(func(http.ResponseWriter, *http.Request) error { return io.ErrUnexpectedEOF })
	case "panics":
		m.shop.once(func(http.ResponseWriter, *http.Request) error { panic("no luck") })
	default:
		m.shop.once(nil)
	}
	q := p.q
	q.path = path
	point := rapid.SampledFrom([]string{"", "", "", "verify.after", "t1.after", "worker.after", "t2.after", "settle.after", "respond.before"}).Draw(rt, "death")
	if point == "" {
		m.judge(p, path, m.world.send(q))
		return
	}
	died, ended := false, make(chan *answer, 1)
	m.at(point, func() { died = true; runtime.Goexit() })
	go func() {
		var a *answer
		defer func() { ended <- a }()
		a = m.world.send(q)
	}()
	a := <-ended
	m.at(point, nil)
	if died {
		m.noteRow(p, path)
		m.again()
		return
	}
	m.judge(p, path, a)
}

// noteRow remembers what a payment was bound to, if it was.
func (m *machine) noteRow(p *live, path string) *ledger.Payment {
	row := m.row(p.q)
	if row != nil && p.bought == "" {
		p.bought = path
	}
	return row
}

// judge holds an answer against what the buyer may believe.
func (m *machine) judge(p *live, path string, a *answer) {
	m.rt.Helper()
	first := p.bought == ""
	row := m.noteRow(p, path)
	if row == nil && a.Code == 200 {
		m.Fatalf("I1: sold without a row")
	}
	if !first && path != p.bought && a.Code != 409 {
		m.Fatalf("I2: a payment for %s was answered at %s with %d %s", p.bought, path, a.Code, a.Body)
	}
	switch a.Code {
	case 200:
		_, onChain := m.till.evidence(row.Key)
		if row.Money != ledger.Mined || !onChain || row.Tx != a.receipt().Transaction {
			m.Fatalf("I3: a 200 for a payment that is %s (on the chain: %v)", row.Money, onChain)
		}
		if !strings.Contains(a.Body.String(), p.content) || !strings.Contains(a.Body.String(), strings.TrimPrefix(path, "/t/"+m.slug)) {
			m.Fatalf("I2: bought %s of %s, got %s", p.bought, p.content, a.Body)
		}
		if p.ended {
			m.Fatalf("charged after it was said not to be")
		}
		if p.body != "" && p.body != a.Body.String() {
			m.Fatalf("I2: two answers: %s, %s", p.body, a.Body)
		}
		p.body = a.Body.String()
	case 402, 502, 504:
		if row == nil {
			return // refused before it was reserved
		}
		if row.Money != ledger.Released && row.Money != ledger.Dead {
			m.Fatalf("I14: %d %s while the payment is %s", a.Code, a.Body, row.Money)
		}
		p.ended = true
	case 409:
		if path == p.bought {
			m.Fatalf("the holder was refused his own: %s", a.Body)
		}
	case 404, 503:
		if a.Header().Get("PAYMENT-REQUIRED") != "" {
			m.Fatalf("a %d that asks for another payment", a.Code)
		}
		if a.Code == 404 && row != nil && row.Money != ledger.Released && row.Money != ledger.Dead {
			m.Fatalf("I13: 404 while the payment is %s", row.Money)
		}
	default:
		m.Fatalf("%d %s", a.Code, a.Body)
	}
}

func (t *till) evidence(k ledger.Key) (ledger.Evidence, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.chain[k]
	return e, ok
}

// refuseHeld finds the payer's account empty, if it was not submitted yet.
func (t *till) refuseHeld(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	if p.Money != ledger.Held {
		return t.broadcast(ctx, p)
	}
	return t.refuse(ctx, p)
}

func (m *machine) otherHolder(rt *rapid.T) {
	p := m.pick(rt)
	row := m.row(p.q)
	if row == nil {
		rt.Skip("not public")
	}
	forged, err := x402.ParsePayment(p.q.pay)
	m.ok(err)
	forged.Accepted.Extra.Quote = rapid.SampledFrom([]string{"", flip(forged.Accepted.Extra.Quote, 44)}).Draw(rt, "quote")
	a := m.world.send(request{path: p.bought, pay: forged.Header()})
	if a.Code != 409 || strings.Contains(a.Body.String(), "content") {
		m.Fatalf("a thief got %d %s", a.Code, a.Body)
	}
}

func (m *machine) pause(rt *rapid.T) {
	if m.removed {
		rt.Skip("removed")
	}
	m.status(m.slug, rapid.SampledFrom([]clawr.Status{clawr.StatusPaused, clawr.StatusActive, clawr.StatusActive}).Draw(rt, "status"))
}

func (m *machine) remove(rt *rapid.T) {
	if m.removed || rapid.IntRange(0, 3).Draw(rt, "not really") > 0 {
		rt.Skip("not really")
	}
	m.removed = true
	m.status(m.slug, clawr.StatusRemoved)
}

func (m *machine) time(rt *rapid.T) {
	m.pass(time.Duration(rapid.SampledFrom([]int{1, 3, 10, 40, 200}).Draw(rt, "seconds")) * time.Second)
}

func (m *machine) again() {
	deadline := m.d.Deadline
	m.restart()
	m.d.Deadline = deadline
}

// settleSomewhere: what was submitted may be mined without anybody asking.
func (m *machine) settleSomewhere(rt *rapid.T) {
	p := m.pick(rt)
	row := m.row(p.q)
	if row == nil || row.Money != ledger.Signed {
		rt.Skip("not submitted")
	}
	m.till.mu.Lock()
	defer m.till.mu.Unlock()
	s, err := m.db.Settlement(context.WithoutCancel(m.Context()), row.Key)
	m.ok(err)
	if s == nil || s.Batch == nil { // somebody else's facilitator sent it
		s = &ledger.Settlement{Batch: &ledger.Batch{Txs: []ledger.Tx{{Hash: "0x" + random(32)}}}}
	}
	m.till.transfer(*row, *s)
}

// check is what holds at any moment.
func (m *machine) check(*rapid.T) {
	for _, p := range m.payments {
		row := m.row(p.q)
		if row == nil {
			continue
		}
		transfers := 0
		for _, k := range m.till.transfers()[m.moved:] {
			if k == row.Key {
				transfers++
			}
		}
		if transfers > 1 {
			m.Fatalf("I1: charged %d times", transfers)
		}
		if transfers == 1 && (row.Money == ledger.Released || row.Money == ledger.Dead) {
			m.Fatalf("charged, and the book says %s", row.Money)
		}
		if row.Work != ledger.Done && (row.Money == ledger.Signed || row.Money == ledger.Mined) {
			m.Fatalf("I3: submitted before the answer was stored")
		}
	}
}

// end lets everything come to rest, and settles accounts.
func (m *machine) end() {
	m.shop.once(nil)
	m.till.mu.Lock()
	m.till.script = nil
	m.till.mu.Unlock()
	if m.removed {
		m.deploy()
	}
	m.status(m.slug, clawr.StatusActive)
	m.again()
	m.pass(3 * time.Minute) // the janitor's
	m.round(m.d)
	m.check(nil)
	events := m.eventsSince(m.start)
	for _, p := range m.payments {
		row := m.row(p.q)
		if row == nil {
			continue
		}
		_, charged := m.till.evidence(row.Key)
		billed, counted := clawr.Amount(0), 0
		for _, e := range events {
			if e.PaymentID == row.ID {
				billed += e.Billed
				if e.Countable && e.Status < 400 {
					counted++
				}
			}
		}
		q := p.q
		q.path = p.bought
		a := m.world.send(q)
		m.judge(p, p.bought, a)
		switch {
		case charged && a.Code != 200:
			m.Fatalf("I13: charged, and answered with %d %s (%s, %s)", a.Code, a.Body, row.Work, row.Money)
		case charged && (counted != 1 || billed != price):
			m.Fatalf("I10: %d events count for one answer, %s is billed", counted, billed)
		case !charged && billed != 0:
			m.Fatalf("%s is billed for nothing", billed)
		case !charged && a.Code != 402 && a.Code != 200:
			m.Fatalf("not charged, and in the end %d %s (%s, %s)", a.Code, a.Body, row.Work, row.Money)
		}
	}
}

package sim

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/dispatch"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/meter"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

const (
	price = 1000
	payTo = "0x00000000000000000000000000000000000000a1"
)

// counts says how often everything happened.
type counts struct {
	mu sync.Mutex
	m  map[string]int
}

func (c *counts) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[string]int{}
	}
	c.m[name]++
}

// result is what one life showed.
type result struct {
	payments, charged int
	fresh402          int // 402s to an authorization that was charged, before or after
	twice             int // things that were paid for twice
	unserved          int // charged, and no answer to be had
	faults            []string
	virtual           time.Duration
}

// world is one life.
type world struct {
	seed     uint64
	dice     dice
	wrong    *counts
	db       *store.DB
	chain    *chain
	node     *node
	remotes  *remotes
	dispatch *dispatch.Dispatcher
	buying   []*purchase
	client   *facilitator.Client
	serving  sync.WaitGroup // requests, also those that nobody waits for
	others   sync.WaitGroup
	mu       sync.Mutex
	res      result
}

func (w *world) breaks(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.res.faults = append(w.res.faults, fmt.Sprintf(format, args...))
}

// shops are the APIs on sale, one for each policy.
var shops = map[string]ledger.Policy{"before": ledger.SettleBeforeResponse, "first": ledger.SettleFirst, "async": ledger.Async}

// template is a book with an API on sale for each policy, from which every life's is copied.
func template(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clawr.db")
	db, err := store.Open(t.Context(), store.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	for slug, policy := range shops {
		_, err = db.Deploy(t.Context(), clawr.Tenant{Slug: slug, Manifest: clawr.Manifest{Kind: clawr.KindDataset, Owner: "ann", Directory: "APIs",
			Plan: clawr.PlanEnterprise, Price: price, X402: true, PayTo: payTo, Network: usdc.Network, Settle: string(policy)}}, "test")
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// shop sells the path that was asked for.
type shop struct{}

func (shop) Open(context.Context, *clawr.Tenant) (dispatch.Worker, error) { return goods{}, nil }

type goods struct{}

func (goods) Plan(r *http.Request) (string, int64, error) { return r.URL.RequestURI(), 1, nil }
func (goods) Check(context.Context, *http.Request) error  { return nil }
func (goods) Serve(w http.ResponseWriter, r *http.Request) error {
	_, err := fmt.Fprintf(w, `{"asked":%q}`, r.URL.RequestURI())
	return err
}
func (goods) Answer(_ context.Context, canonical string) ([]byte, error) {
	return fmt.Appendf(nil, `{"asked":%q}`, canonical), nil
}

// newWorld has a dispatcher on a copy of the template, with one to three
// facilitators that it may send payments to.
func newWorld(seed uint64, book string, wrong *counts) (*world, error) {
	w := &world{seed: seed, dice: dice(seed), wrong: wrong}
	log := slog.New(slog.DiscardHandler)
	db, err := store.Open(context.Background(), store.Options{Path: book, Log: log, Fatal: func(err error) { w.breaks("book: %v", err) }})
	if err != nil {
		return nil, err
	}
	if err := db.Damage(); err != nil { // it would sell nothing, and nothing would go wrong
		return nil, errors.Join(err, db.Close())
	}
	w.db = db
	w.chain = newChain(w.dice)
	w.node = &node{chain: w.chain, wrong: wrong}
	w.remotes = &remotes{dice: w.dice, chain: w.chain, wrong: wrong}
	r := w.dice.at("world")
	c := &facilitator.Client{Network: usdc.Network, Chain: w.node, Book: db, Log: log, HTTP: &http.Client{Transport: w.remotes}}
	for i := range 1 + r.IntN(3) {
		c.Remotes = append(c.Remotes, facilitator.Remote{URL: fmt.Sprintf("https://facilitator%d.example", i)})
	}
	w.client = c
	quotes, err := x402.NewQuotes([]byte("0123456789abcdef0123456789abcdef"))
	if err != nil {
		return nil, err
	}
	w.dispatch = &dispatch.Dispatcher{Directory: &dispatch.Directory{}, Tenants: db, Workers: shop{}, Book: db, Recovery: db, Charged: db, Queue: db, Payments: c, Quotas: db,
		Limiter: new(meter.Limiter), Usage: discard{}, Exposure: ledger.Exposure{Credit: price, Payer: 2 * price, Total: 5 * price}, Log: log, Asset: usdc, Quotes: quotes, Salt: []byte("salt"), Node: "node-1",
		Deadline: []time.Duration{5 * time.Second, 10 * time.Second, 30 * time.Second}[r.IntN(3)]}
	tenants, err := db.Tenants(context.Background())
	if err != nil {
		return nil, err
	}
	w.dispatch.Directory.Load(tenants)
	for i := range 2 + r.IntN(4) {
		p := &purchase{w: w, r: w.dice.at("purchase", i), shop: []string{"before", "before", "first", "async"}[r.IntN(4)]}
		p.path = fmt.Sprintf("/t/%s/v1/records?n=%d", p.shop, i)
		if p.key, err = keyOf(p.r); err != nil {
			return nil, err
		}
		if one(p.r, 3) { // has the money for nothing
			w.chain.poor[p.who()] = 0
		}
		w.buying = append(w.buying, p)
	}
	return w, nil
}

type discard struct{}

func (discard) Record(usage.Event) {}

// live lets everybody act, until all have what they want or have had enough
// and the book has nothing open.
func (w *world) live() result {
	began := time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	w.remotes.ctx = ctx
	watcher := &facilitator.Watcher{Network: usdc.Network, Assets: []clawr.Asset{usdc}, Chain: w.node, Book: w.db, Cursors: w.db, Log: w.dispatch.Log}
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{w.dispatch.Run, w.client.Run, watcher.Run} {
		running.Go(func() { _ = run(ctx) })
	}
	running.Go(func() {
		for sleep(ctx, blockTime) == nil {
			w.chain.mine()
		}
	})
	var buyers sync.WaitGroup
	for _, p := range w.buying {
		buyers.Go(func() { p.buy(ctx) })
	}
	buyers.Wait()
	w.others.Wait()
	w.node.honest.Store(true)
	w.remotes.honest.Store(true)
	w.chain.quiet()
	_ = sleep(ctx, 2*finality*blockTime)
	for end := time.Now().Add(time.Hour); !w.settled(ctx); {
		if time.Now().After(end) {
			w.breaks("open after an hour: %s", w.open(ctx))
			break
		}
		_ = sleep(ctx, 10*time.Second)
	}
	w.judge(ctx)
	w.serving.Wait()
	cancel()
	running.Wait()
	w.remotes.work.Wait()
	if err := w.db.Close(); err != nil {
		w.breaks("close the book: %v", err)
	}
	w.res.virtual = time.Since(began)
	return w.res
}

func (w *world) settled(ctx context.Context) bool { return w.chain.idle() && w.open(ctx) == "" }

func (w *world) open(ctx context.Context) string {
	rows, err := w.db.Payments(ctx, store.PaymentFilter{})
	if err != nil {
		return err.Error()
	}
	var list []string
	for _, r := range rows {
		if r.Money == ledger.Held || r.Money == ledger.Signed || r.Money == ledger.Mined {
			list = append(list, fmt.Sprintf("%s %s %s", r.Nonce, r.Work, r.Money))
		}
	}
	return strings.Join(list, ", ")
}

// judge holds the chain, the book and what the buyers saw against each other.
// Those who were charged come back for their answer.
func (w *world) judge(ctx context.Context) {
	booked := int64(0)
	rows, err := w.db.Payments(ctx, store.PaymentFilter{})
	if err != nil {
		w.breaks("%v", err)
	}
	ids := map[string]string{}
	states, policies := map[string]ledger.Money{}, map[string]ledger.Policy{}
	for _, r := range rows {
		ids[r.Nonce] = r.ID
		states[r.Nonce], policies[r.Nonce] = r.Money, r.Policy
		_, charged := w.chain.paid(key{common.HexToAddress(r.Payer), common.HexToHash(r.Nonce)})
		if charged != (r.Money == ledger.Mined || r.Money == ledger.Final) {
			w.breaks("%s is %s, charged: %v", r.Nonce, r.Money, charged)
		}
		if r.Money == ledger.Mined || r.Money == ledger.Final {
			booked += r.Amount
		}
		if r.Money == ledger.Dead && r.Proof == "" {
			w.breaks("%s is dead without proof", r.Nonce)
		}
	}
	if earned := w.chain.earned(common.HexToAddress(payTo)); earned != booked {
		w.breaks("the book has %d units, the chain %d", booked, earned)
	}
	if w.remotes.quote.Load() {
		w.breaks("a facilitator was sent a quote")
	}
	for _, p := range w.buying {
		charges := 0
		for _, a := range p.auths {
			w.res.payments++
			if a.served && !w.chain.ever(a.key(p)) && policies[a.nonce.Hex()] != ledger.Async {
				w.breaks("%s was never charged, and has its answer", a.nonce.Hex())
			}
			if _, charged := w.chain.paid(a.key(p)); !charged {
				continue
			}
			charges++
			w.res.charged++
			if len(a.refused) > 0 {
				w.res.fresh402++
				w.breaks("%s was charged, and answered 402: %s", a.nonce.Hex(), a.refused[0])
			}
			got := p.ask(ctx, p.path, a.payload.Header(), time.Minute)
			if p.left && w.owed(ctx, ids[a.nonce.Hex()]) && got != nil && got.status == http.StatusBadGateway {
				w.wrong.add("a refund is due")
				continue
			}
			if got == nil || got.status != http.StatusOK || !strings.Contains(got.body, p.path[strings.Index(p.path, "/v1"):]) {
				w.res.unserved++
				w.breaks("%s was charged (%s), and its buyer gets %+v", a.nonce.Hex(), states[a.nonce.Hex()], got)
			}
		}
		if charges > 1 {
			w.res.twice++
			w.breaks("%v was charged %d times", p, charges)
		}
	}
}

// owed reports whether a refund is due for a payment: it was settled first, and
// nobody came back for the answer.
func (w *world) owed(ctx context.Context, id string) bool {
	r, err := w.db.Refund(ctx, id)
	return err == nil && r != nil && r.Amount == price
}

// keyOf makes a key of the dice.
func keyOf(r *rand.Rand) (*ecdsa.PrivateKey, error) {
	var b [32]byte
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	b[0] &= 0x7f
	return crypto.ToECDSA(b[:])
}

package main

import (
	"context"
	"hash/fnv"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/x402"
)

// How often waiting payments are looked at without news, from which age on
// what nobody submitted is picked up without news, by others than the one who
// was to hear of it, and how much of it at once.
const (
	lookEvery = time.Second
	unheard   = 2 * time.Second
	unwanted  = 6 * time.Second
	pickUp    = 256
	carriers  = 4096
)

// shared settles the payments of a node whose signers other nodes have too. Of
// each signer one of them leads, and makes all its transactions. Who leads any
// settles with those that he leads; the others hand their payments over
// through the book: they wait for the row to move, and a leader hears of it.
// The news are hints that may be lost; rows that nobody moves are found by
// looking.
type shared struct {
	*facilitator.Facilitator
	db      *store.DB
	signers []string // as the book names them
	leaders map[string]*store.Leader
	log     *slog.Logger
	// carry brings another node's payment to its end; set before Run.
	carry func(context.Context, ledger.Payment)

	open, moved *teller // news that wait to be told

	mu       sync.Mutex
	waiting  map[string][]chan ledger.Payment // by payment id
	carrying map[string]bool                  // by payment id
}

func newShared(db *store.DB, f *facilitator.Facilitator, log *slog.Logger) *shared {
	s := &shared{Facilitator: f, db: db, leaders: map[string]*store.Leader{}, log: log,
		open: newTeller(), moved: newTeller(), waiting: map[string][]chan ledger.Payment{}, carrying: map[string]bool{}}
	var all []*store.Leader
	for _, w := range append([]facilitator.Sender{f.Chain}, f.Signers...) {
		signer := strings.ToLower(w.Signer().Hex())
		l := db.Leader(f.Network, signer)
		s.signers, s.leaders[signer], all = append(s.signers, signer), l, append(all, l)
	}
	book := db.Led(all...)
	f.Book, f.Ends = book, book
	f.Leads = s.leads
	return s
}

// leads reports whether this node leads a signer.
func (s *shared) leads(signer string) bool {
	l := s.leaders[signer]
	return l != nil && l.Leads()
}

// led are the signers that this node leads.
func (s *shared) led() (list []string) {
	for _, signer := range s.signers {
		if s.leads(signer) {
			list = append(list, signer)
		}
	}
	return list
}

// able are the signers that this node leads and that can pay for gas; all that
// it leads if no signer can, so that somebody says so.
func (s *shared) able() []string {
	led := s.led()
	funded := slices.DeleteFunc(slices.Clone(s.signers), func(signer string) bool { return s.Short(signer) })
	if len(funded) == 0 {
		return led
	}
	return slices.DeleteFunc(led, func(signer string) bool { return !slices.Contains(funded, signer) })
}

// yields reports whether this node leaves a signer to others: the account has
// no ether, no other that it leads has any, and one has that somebody else
// leads. Who settles with that one looks after what this one has signed, too;
// and what is handed over comes to somebody who can do it.
func (s *shared) yields(ctx context.Context, signer string) bool {
	s.CheckFunds(ctx, signer)
	if !s.Short(signer) || len(s.able()) > 0 || !slices.ContainsFunc(s.signers, func(other string) bool { return !s.Short(other) }) {
		return false
	}
	if s.leads(signer) {
		s.log.ErrorContext(ctx, "a signer has no ether: another node takes it over, and settles with its own", "signer", signer)
	}
	return true
}

// signerOf is whose leader a payment is handed to: the same, whoever asks, so
// that two leaders do not both take it. Who has no ether is handed nothing.
func (s *shared) signerOf(id string) string {
	h := fnv.New32a()
	h.Write([]byte(id))
	list := slices.DeleteFunc(slices.Clone(s.signers), func(signer string) bool { return s.Short(signer) })
	if len(list) == 0 {
		list = s.signers
	}
	return list[int(h.Sum32()%uint32(len(list)))]
}

// Settle settles p here if this node leads a signer that can pay for gas, and
// else waits until a leader has done it.
func (s *shared) Settle(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	if able := s.able(); len(able) > 0 {
		out, err := s.Facilitator.Settle(ctx, p)
		if err == nil || slices.Equal(able, s.able()) {
			return out, err
		}
		// It was another's turn meanwhile, or the money is gone, and nothing was
		// submitted.
	}
	return s.wait(ctx, p)
}

// wait has the leader settle p, and tells how it ended. What is not known at
// the end of ctx may be charged yet: the leader may have it in hand.
func (s *shared) wait(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	rows, forget := s.await(p.ID)
	defer forget()
	s.open.add(p.ID)
	for {
		if out, ended := outcome(&p); ended {
			return out, nil
		}
		if p.Money == ledger.Held && len(s.able()) > 0 {
			return s.Facilitator.Settle(ctx, p)
		}
		select {
		case p = <-rows:
		case <-ctx.Done():
			return s.underway(ctx, p), nil
		}
	}
}

// outcome is how a payment ended, if it did.
func outcome(p *ledger.Payment) (ledger.Outcome, bool) {
	switch p.Money {
	case ledger.Mined, ledger.Final:
		return ledger.Outcome{State: ledger.Settled, Evidence: p.Evidence}, true
	case ledger.Released, ledger.Dead:
		return ledger.Outcome{State: ledger.NotCharged, Reason: p.ErrorCode, Message: p.Proof}, true
	}
	return ledger.Outcome{}, false
}

// underway is what is known of a payment that has not ended: its transaction,
// if it has one.
func (s *shared) underway(ctx context.Context, p ledger.Payment) ledger.Outcome {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if now, err := s.db.Payment(ctx, p.ID); err == nil && now != nil {
		if out, ended := outcome(now); ended {
			return out
		}
	}
	out := ledger.Outcome{Reason: x402.ReasonPending, Message: "the node that settles has it in hand"}
	if st, err := s.db.Settlement(ctx, p.Key); err == nil && st != nil && st.Batch != nil && len(st.Batch.Txs) > 0 {
		out.State, out.Tx = ledger.Broadcast, st.Batch.Txs[len(st.Batch.Txs)-1].Hash
	}
	return out
}

// await subscribes to a payment's row. The channel keeps the latest only.
func (s *shared) await(id string) (rows chan ledger.Payment, forget func()) {
	rows = make(chan ledger.Payment, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.waiting[id] = append(s.waiting[id], rows)
	return rows, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		list := s.waiting[id]
		for i, c := range list {
			if c == rows {
				list = append(list[:i:i], list[i+1:]...)
				break
			}
		}
		if s.waiting[id] = list; len(list) == 0 {
			delete(s.waiting, id)
		}
	}
}

// Run stands for leader, hears news and tells them, until ctx ends.
func (s *shared) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.Facilitator.Run(ctx) })
	for signer, l := range s.leaders {
		g.Go(func() error {
			return l.Run(ctx, func() bool { return s.yields(ctx, signer) }, func() { s.elected(ctx) })
		})
	}
	g.Go(func() error { return s.open.run(ctx, s.handOver) })
	g.Go(func() error {
		return s.moved.run(ctx, func(ctx context.Context, ids []string) { s.tell(ctx, "", ids) })
	})
	carried := make(chan ledger.Payment, pickUp)
	g.Go(func() error { return s.carryAll(ctx, carried) })
	g.Go(func() error { return s.look(ctx, carried) })
	g.Go(func() error {
		s.db.Hear(ctx, func(n store.News) { s.heard(ctx, n, carried) })
		return nil
	})
	return g.Wait()
}

// elected begins a term: what the one before left signed is broadcast again.
// It is not waited for; Run does the same every few seconds.
func (s *shared) elected(ctx context.Context) {
	if err := s.Facilitator.Recover(ctx); err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "open batches not recovered", "err", err)
	}
}

// handOver tells leaders of payments that they are to settle.
func (s *shared) handOver(ctx context.Context, ids []string) {
	shares := map[string][]string{}
	for _, id := range ids {
		signer := s.signerOf(id)
		shares[signer] = append(shares[signer], id)
	}
	for signer, ids := range shares {
		s.tell(ctx, signer, ids)
	}
}

func (s *shared) tell(ctx context.Context, signer string, ids []string) {
	if err := s.db.Tell(ctx, store.News{Signer: signer, IDs: ids}); err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "other nodes not told; they will look by themselves", "payments", len(ids), "err", err)
	}
}

// heard acts on news: a leader carries what is to be settled, and everybody
// looks at what he waits for.
func (s *shared) heard(ctx context.Context, n store.News, carried chan<- ledger.Payment) {
	if n.Signer == "" {
		s.deliver(ctx, s.waitedFor(n.IDs))
		return
	}
	if !s.leads(n.Signer) {
		return
	}
	rows, err := s.db.PaymentsByID(ctx, n.IDs)
	if err != nil {
		s.log.WarnContext(ctx, "payments of other nodes not read", "err", err)
		return
	}
	s.take(ctx, rows, carried)
}

// take hands rows that nobody here is at to the carriers.
func (s *shared) take(ctx context.Context, rows []ledger.Payment, carried chan<- ledger.Payment) {
	for _, p := range rows {
		first := p.Policy == ledger.SettleFirst && p.Work == ledger.Pending
		if p.Money != ledger.Held || p.Work != ledger.Done && !first {
			continue
		}
		s.mu.Lock()
		busy := s.carrying[p.ID]
		s.carrying[p.ID] = true
		s.mu.Unlock()
		if busy {
			continue
		}
		select {
		case carried <- p:
		case <-ctx.Done():
			return
		}
	}
}

// carryAll brings what is taken to its end, and says so.
func (s *shared) carryAll(ctx context.Context, carried <-chan ledger.Payment) error {
	var g errgroup.Group
	g.SetLimit(carriers)
	defer g.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case p := <-carried:
			g.Go(func() error {
				s.carry(ctx, p)
				s.mu.Lock()
				delete(s.carrying, p.ID)
				s.mu.Unlock()
				s.moved.add(p.ID)
				return nil
			})
		}
	}
}

// look is what finds everything if all news are lost.
func (s *shared) look(ctx context.Context, carried chan<- ledger.Payment) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		s.deliver(ctx, s.waitedFor(nil))
		if len(s.able()) == 0 {
			continue // what it took it would hand to others again
		}
		s.mu.Lock()
		limit := pickUp + len(s.carrying)
		s.mu.Unlock()
		now := time.Now()
		rows, err := s.db.Unsubmitted(ctx, now.Add(-unheard), limit)
		if err != nil {
			if ctx.Err() == nil {
				s.log.WarnContext(ctx, "payments of other nodes not read", "err", err)
			}
			continue
		}
		s.take(ctx, s.ours(rows, now), carried)
	}
}

// ours are those of rows that were handed to a signer that this node leads, or
// that its leader, who may not be there, has left alone.
func (s *shared) ours(rows []ledger.Payment, now time.Time) []ledger.Payment {
	return slices.DeleteFunc(rows, func(p ledger.Payment) bool {
		return !s.leads(s.signerOf(p.ID)) && now.Sub(p.Updated) < unwanted
	})
}

// waitedFor are those of ids that somebody here waits for; nil means all.
func (s *shared) waitedFor(ids []string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	if ids == nil {
		for id := range s.waiting {
			list = append(list, id)
		}
		return list
	}
	for _, id := range ids {
		if len(s.waiting[id]) > 0 {
			list = append(list, id)
		}
	}
	return list
}

// deliver reads rows and gives them to whoever waits for them.
func (s *shared) deliver(ctx context.Context, ids []string) {
	rows, err := s.db.PaymentsByID(ctx, ids)
	if err != nil && ctx.Err() == nil {
		s.log.WarnContext(ctx, "payments that are waited for not read", "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range rows {
		for _, c := range s.waiting[p.ID] {
			select { // an older one that nobody took makes room
			case <-c:
			default:
			}
			c <- p
		}
	}
}

// teller collects ids while the last ones are being told.
type teller struct {
	mu   sync.Mutex
	ids  []string
	some chan struct{}
}

func newTeller() *teller { return &teller{some: make(chan struct{}, 1)} }

func (t *teller) add(id string) {
	t.mu.Lock()
	t.ids = append(t.ids, id)
	t.mu.Unlock()
	select {
	case t.some <- struct{}{}:
	default:
	}
}

func (t *teller) run(ctx context.Context, tell func(context.Context, []string)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.some:
		}
		t.mu.Lock()
		ids := t.ids
		t.ids = nil
		t.mu.Unlock()
		tell(ctx, ids)
	}
}

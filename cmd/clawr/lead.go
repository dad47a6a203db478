package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/x402"
)

// How often waiting payments are looked at without news, from which age on
// what nobody submitted is picked up without news, and how much of it at once.
const (
	lookEvery = time.Second
	unheard   = 2 * time.Second
	pickUp    = 256
	carriers  = 4096
)

// shared settles the payments of a node whose signer other nodes have too. One
// of them leads and makes all transactions; the others hand their payments over
// through the book: they wait for the row to move, and the leader hears of it.
// The news are hints that may be lost; rows that nobody moves are found by
// looking.
type shared struct {
	*facilitator.Facilitator
	db     *store.DB
	leader *store.Leader
	signer string // as the book names it
	log    *slog.Logger
	// carry brings another node's payment to its end; set before Run.
	carry func(context.Context, ledger.Payment)

	open, moved *teller // news that wait to be told

	mu       sync.Mutex
	waiting  map[string][]chan ledger.Payment // by payment id
	carrying map[string]bool                  // by payment id
}

func newShared(db *store.DB, f *facilitator.Facilitator, signer string, log *slog.Logger) *shared {
	s := &shared{Facilitator: f, db: db, leader: db.Leader(f.Network, signer), signer: signer, log: log,
		open: newTeller(), moved: newTeller(), waiting: map[string][]chan ledger.Payment{}, carrying: map[string]bool{}}
	f.Book = s.leader.Book()
	f.Leads = func(string) bool { return s.leader.Leads() }
	return s
}

// Settle settles p here if this node leads, and else waits until the leader
// has done it.
func (s *shared) Settle(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	if s.leader.Leads() {
		out, err := s.Facilitator.Settle(ctx, p)
		if err == nil || s.leader.Leads() {
			return out, err
		}
		// It was another's turn meanwhile, and nothing was submitted.
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
		if p.Money == ledger.Held && s.leader.Leads() {
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
	g.Go(func() error { return s.leader.Run(ctx, func() { s.elected(ctx) }) })
	g.Go(func() error { return s.open.run(ctx, s.tell(s.signer)) })
	g.Go(func() error { return s.moved.run(ctx, s.tell("")) })
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

func (s *shared) tell(signer string) func(context.Context, []string) {
	return func(ctx context.Context, ids []string) {
		if err := s.db.Tell(ctx, store.News{Signer: signer, IDs: ids}); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "other nodes not told; they will look by themselves", "payments", len(ids), "err", err)
		}
	}
}

// heard acts on news: the leader carries what is to be settled, and everybody
// looks at what he waits for.
func (s *shared) heard(ctx context.Context, n store.News, carried chan<- ledger.Payment) {
	if n.Signer == "" {
		s.deliver(ctx, s.waitedFor(n.IDs))
		return
	}
	if n.Signer != s.signer || !s.leader.Leads() {
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
		if !s.leader.Leads() {
			continue
		}
		s.mu.Lock()
		limit := pickUp + len(s.carrying)
		s.mu.Unlock()
		rows, err := s.db.Unsubmitted(ctx, time.Now().Add(-unheard), limit)
		if err != nil {
			if ctx.Err() == nil {
				s.log.WarnContext(ctx, "payments of other nodes not read", "err", err)
			}
			continue
		}
		s.take(ctx, rows, carried)
	}
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

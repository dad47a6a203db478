package facilitator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// How often Run looks at what is under way, and how long it leaves alone what
// a call is waiting for.
const (
	runEvery    = time.Second // the head's age, and so HeadTime's, stays below headAge
	rebroadcast = 3           // of runEvery: the pace at which open batches are sent again
	settleTime  = 3 * time.Second
	recoverTime = 10 * time.Second
)

// Start checks what would make every payment fail, with errors for the one who
// starts it: the signer's money, and a chain that is older than the book. Then
// it recovers what an earlier process left.
func (f *Facilitator) Start(ctx context.Context) error {
	for _, a := range f.Assets {
		if a.Name == "" || a.Version == "" {
			return &clawr.Error{Code: clawr.CodeUsage, Param: "asset", Message: "the asset " + a.Address + " has no EIP-712 name or version", Fix: "give --asset the address of an EIP-3009 token"}
		}
		if a.Network != f.Network {
			return &clawr.Error{Code: clawr.CodeUsage, Param: "asset", Message: "the asset " + a.Address + " is on " + a.Network + ", the facilitator on " + f.Network, Fix: "run one facilitator for each network"}
		}
	}
	if err := f.solvent(ctx); err != nil {
		if e, ok := errors.AsType[*clawr.Error](errors.Unwrap(err)); ok {
			return e
		}
		return err
	}
	if _, err := f.clock.fresh(ctx, f.Chain, f.now()); err != nil {
		return err
	}
	for _, s := range f.settlers() {
		if s.money.short() {
			f.log().WarnContext(ctx, "a signer has not enough ether to pay for gas, and signs nothing", "signer", s.address)
		}
		open, err := f.Book.OpenBatches(ctx, f.Network, s.address)
		if err != nil {
			return err
		}
		if err := s.behind(ctx, open); err != nil {
			return err
		}
	}
	return f.Recover(ctx)
}

// Recover broadcasts every open batch of its signers again, also of those that
// have no more money, and books those that are in a block, if this process
// leads the signer. It waits for them for a few seconds; Run keeps on looking.
func (f *Facilitator) Recover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTime)
	defer cancel()
	// All at once: one that is stuck must not keep the others waiting.
	var work sync.WaitGroup
	defer work.Wait()
	for _, s := range f.settlers() {
		if !s.leads() {
			continue
		}
		open, err := f.Book.OpenBatches(ctx, f.Network, s.address)
		if err != nil {
			return err
		}
		for _, b := range open {
			if s.flies(b.ID) {
				continue
			}
			fl, err := f.board(ctx, &b)
			if err != nil {
				f.log().WarnContext(ctx, "batch not recovered", "batch", b.ID, "err", err)
				continue
			}
			work.Go(func() {
				defer fl.leave()
				select {
				case <-fl.done:
				case <-time.After(settleTime):
				case <-ctx.Done():
				}
			})
		}
	}
	return nil
}

// flies reports whether a batch is seen to here.
func (s *settler) flies(batchID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flights[batchID] != nil
}

// readSettlement reads the payment that a settlement keeps.
func (f *Facilitator) readSettlement(s *ledger.Settlement) (*payment, error) {
	p, err := x402.ParsePayload(s.Payload)
	if err != nil {
		return nil, err
	}
	asset := f.asset(s.Asset)
	if asset == nil { // not allowed any more, and signed all the same
		asset = &clawr.Asset{Network: s.Network, Address: s.Asset, Name: p.Accepted.Extra.Name, Version: p.Accepted.Extra.Version}
	}
	terms := p.Accepted
	if p.Version == 1 {
		terms = x402.Requirements{Scheme: x402.SchemeExact, Network: s.Network, Amount: strconv.FormatInt(s.Amount, 10), Asset: s.Asset, PayTo: s.PayTo,
			Extra: x402.Extra{Name: asset.Name, Version: asset.Version}}
	}
	return readPayment(p, &terms, asset, time.Time{})
}

// Run keeps the head's time fresh and sees open batches through until ctx
// ends, also those that no call waits for any more. It returns nil when
// everything that it began has come to rest; what calls wait for goes on.
func (f *Facilitator) Run(ctx context.Context) error {
	f.running.Store(true)
	defer f.running.Store(false)
	tick := time.NewTicker(runEvery)
	defer tick.Stop()
	var work sync.WaitGroup
	defer work.Wait()
	busy := make(chan struct{}, 1)
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := f.clock.ask(ctx, f.Chain, f.now()); err != nil && ctx.Err() == nil {
			f.log().WarnContext(ctx, "the chain's head is not known", "err", err)
		}
		if n%rebroadcast != 0 {
			continue
		}
		select {
		case busy <- struct{}{}:
			work.Go(func() {
				defer func() { <-busy }()
				if err := f.Recover(ctx); err != nil && ctx.Err() == nil {
					f.log().WarnContext(ctx, "open batches cannot be read", "err", err)
				}
			})
		default: // the last one is not through
		}
	}
}

// Reconcile finds out from the chain alone, by payer and nonce, how a payment
// that was submitted has ended, and books that.
func (f *Facilitator) Reconcile(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	r, err := fromRow(p, f.asset(p.Asset))
	if err != nil {
		return ledger.Outcome{}, err
	}
	a, err := f.read(r.Payload, &r.Requirements, time.Time{}, true)
	if err != nil {
		return ledger.Outcome{}, err
	}
	return f.ended(ctx, a, r, p.Tx, x402.ReasonPending, "the payment is being settled"), nil
}

// ended is the outcome of a payment that nobody's transaction of ours carries
// any more: evidence, or proof that there never will be any, or unknown with
// the reason that made us ask.
func (f *Facilitator) ended(ctx context.Context, a *payment, r Request, tx string, reason clawr.Code, why string) ledger.Outcome {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), bookTimeout)
	defer cancel()
	out := unknown(tx, reason, why)
	v, err := look(ctx, f.Chain, a.transfer, r.created)
	if err != nil {
		f.log().WarnContext(ctx, "a payment's end is not known", "payer", a.Payer, "nonce", a.Nonce, "err", err)
		return out
	}
	if !r.submitted {
		return neverSubmitted(&f.warned, f.log(), a, v, reason, why)
	}
	switch {
	case v.use == Paid:
		if err := f.Ends.Paid(ctx, a.Key, v.Evidence); err != nil && !errors.Is(err, ledger.ErrFenced) {
			f.log().ErrorContext(ctx, "paid, but not booked", "payer", a.Payer, "nonce", a.Nonce, "tx", v.Tx, "err", err)
			return unknown(v.Tx, x402.ReasonPending, "the book does not answer")
		}
		return settled(v.Evidence)
	case v.proof != "":
		if err := f.Ends.Dead(ctx, a.Key, v.proof); err != nil && !errors.Is(err, ledger.ErrFenced) {
			f.log().ErrorContext(ctx, "dead, but not booked", "payer", a.Payer, "nonce", a.Nonce, "err", err)
			return out
		}
		return notCharged(reason, v.proof)
	case v.doubt != nil:
		f.log().WarnContext(ctx, "whether a payment is dead is not known", "payer", a.Payer, "nonce", a.Nonce, "err", v.doubt)
	}
	return out
}

// neverSubmitted judges an authorization that the chain knows before we sent
// it. If it paid our payee, it may have bought something from another of the
// payee's servers: the answer is withheld, and no other payment asked for.
func neverSubmitted(warned *keySet, log *slog.Logger, a *payment, v verdict, reason clawr.Code, why string) ledger.Outcome {
	switch v.use {
	case Cancelled, Elsewhere:
		return notCharged(reason, why)
	case Unused:
		if !v.used {
			return notCharged(reason, why)
		}
	}
	if warned.add(a.Key) {
		log.Error("an authorization was consumed before it was submitted here: see whether another server sells for the same payTo",
			"payer", a.Payer, "nonce", a.Nonce, "pay_to", a.payTo, "tx", v.Tx)
	}
	return ledger.Outcome{State: ledger.Unknown, Evidence: ledger.Evidence{Tx: v.Tx}, Reason: x402.ReasonNonceUsed,
		Message: "the authorization was consumed before it was submitted here"}
}

// keySet remembers authorizations that the operator was told about, so that
// asking again every few seconds does not tell them again.
type keySet struct {
	mu sync.Mutex
	m  map[ledger.Key]bool
}

func (s *keySet) add(k ledger.Key) (added bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[k] {
		return false
	}
	if s.m == nil || len(s.m) >= 1024 {
		s.m = make(map[ledger.Key]bool)
	}
	s.m[k] = true
	return true
}

// verdict is what the chain shows of an authorization.
type verdict struct {
	use   Use
	used  bool // the token says that the nonce is used or cancelled
	proof string
	doubt error // why one that is over has no proof
	ledger.Evidence
}

// look asks the chain what became of t, which was first heard of at a moment.
// The proof is set if t can never be charged: it is cancelled, or used for
// something else, in a finalized block; or a finalized block is younger than
// its window, and it is unused, in that block and at the head.
func look(ctx context.Context, w Witness, t Transfer, since time.Time) (verdict, error) {
	// The finalized block first, so that the head is not older.
	final, err := w.Finalized(ctx)
	if err != nil {
		return verdict{}, err
	}
	used, err := w.Used(ctx, t, nil)
	if err != nil {
		return verdict{}, err
	}
	v := verdict{used: used}
	if !used {
		if final.Time.Unix() <= t.ValidBefore {
			return v, nil
		}
		// The head that was asked may lag behind the finalized block: providers
		// are many nodes, each as far as it is. Only that block's own state is
		// as old as its time.
		switch was, err := w.Used(ctx, t, &final); {
		case err != nil:
			v.doubt = fmt.Errorf("the authorization at the finalized block %d: %w", final.Number, err)
		case was:
			return v, fmt.Errorf("the node says that the authorization is used in the finalized block %d, and unused at its head", final.Number)
		default:
			v.proof = proof("expired unused", final, "")
		}
		return v, nil
	}
	found, err := w.Find(ctx, t, since.Add(-time.Minute))
	if err != nil {
		return v, err
	}
	v.use, v.Evidence = found.Use, found.Evidence
	if (v.use == Cancelled || v.use == Elsewhere) && found.BlockNumber <= final.Number {
		v.proof = proof(map[Use]string{Cancelled: "cancelled", Elsewhere: "nonce used for another transfer"}[v.use], final, found.Tx)
	}
	return v, nil
}

// proof is what the book keeps of why a payment can never be charged.
func proof(why string, final Block, tx string) string {
	b, _ := json.Marshal(struct {
		Why       string `json:"why"`
		Tx        string `json:"tx,omitempty"`
		Finalized int64  `json:"finalized"`
		Hash      string `json:"hash"`
		Time      int64  `json:"time"`
	}{why, tx, final.Number, final.Hash.Hex(), final.Time.Unix()})
	return string(b)
}

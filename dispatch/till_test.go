package dispatch_test

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/x402"
)

// till is a facilitator without a chain: it verifies with x402.Verify, keeps
// accounts of its own for a chain, and moves the book as the real one does, in
// the same order. What it does next can be scripted.
type till struct {
	book *store.DB
	now  func() time.Time

	mu       sync.Mutex // the signer's queue: one settlement at a time
	chain    map[ledger.Key]ledger.Evidence
	moved    []ledger.Key     // every transfer, in order
	balance  map[string]int64 // by payer; who is not listed is rich
	head     time.Time
	verifies int
	settles  int
	script   []outcome // of the settlements to come; then pay
	judge    func(*x402.PaymentPayload) (x402.VerifyResponse, error, bool)
}

// outcome settles a payment in one of the ways that there are.
type outcome func(*till, context.Context, ledger.Payment) (ledger.Outcome, error)

func newTill(db *store.DB, now func() time.Time) *till {
	return &till{book: db, now: now, chain: map[ledger.Key]ledger.Evidence{}, balance: map[string]int64{}}
}

// next scripts the settlements that follow.
func (t *till) next(o ...outcome) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.script = append(t.script, o...)
}

func (t *till) transfers() []ledger.Key {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.moved)
}

func (t *till) HeadTime() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.head
}

func (t *till) Verify(_ context.Context, p *x402.PaymentPayload, r x402.Requirements) (x402.VerifyResponse, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.verifies++
	if p.Accepted.Extra.Quote != "" || r.Extra.Quote != "" {
		return x402.VerifyResponse{}, errors.New("a facilitator was sent the quote")
	}
	if t.judge != nil {
		if v, err, ok := t.judge(p); ok {
			return v, err
		}
	}
	e, err := x402.Verify(p, &r, x402.Check{Now: t.now(), Token: &usdc})
	if err != nil {
		return x402.VerifyResponse{InvalidReason: clawr.CodeOf(err)}, nil
	}
	v := x402.VerifyResponse{Payer: e.Payer()}
	amount, _ := e.Value.Int64()
	switch {
	case t.used(ledger.Key{Network: r.Network, Asset: r.Asset, Payer: e.Payer(), Nonce: e.Nonce.Hex()}):
		v.InvalidReason = x402.ReasonNonceUsed
	case !t.can(e.Payer(), amount):
		v.InvalidReason = x402.ReasonBalance
	default:
		v.IsValid = true
	}
	return v, nil
}

func (t *till) used(k ledger.Key) bool { _, ok := t.chain[k]; return ok }

func (t *till) can(payer string, amount int64) bool {
	has, listed := t.balance[payer]
	return !listed || has >= amount
}

func (t *till) Settle(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settles++
	switch p.Money {
	case ledger.Mined, ledger.Final:
		return ledger.Outcome{State: ledger.Settled, Evidence: p.Evidence}, nil
	case ledger.Released, ledger.Dead:
		return ledger.Outcome{State: ledger.NotCharged, Reason: p.ErrorCode}, nil
	}
	do := (*till).pay
	if len(t.script) > 0 {
		do, t.script = t.script[0], t.script[1:]
	}
	return do(t, ctx, p)
}

// pay settles, or carries on with what was begun.
func (t *till) pay(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	s, end, err := t.open(ctx, p)
	if end != nil || err != nil {
		return *end, err
	}
	return t.mine(ctx, p, s)
}

// broadcast signs and sends, and no block takes it.
func (t *till) broadcast(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	s, end, err := t.open(ctx, p)
	if end != nil || err != nil {
		return *end, err
	}
	return ledger.Outcome{State: ledger.Broadcast, Evidence: ledger.Evidence{Tx: s.Batch.Txs[0].Hash}, Reason: x402.ReasonPending}, nil
}

// lost charges the payer, and the reply does not arrive.
func (t *till) lost(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	s, end, err := t.open(ctx, p)
	if end != nil || err != nil {
		return *end, err
	}
	t.transfer(p, s)
	return ledger.Outcome{State: ledger.Unknown, Reason: x402.ReasonPending}, nil
}

// unknown hands the payment to somebody else's facilitator, who says nothing.
func (t *till) unknown(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	if p.Money == ledger.Held {
		if err := t.book.Submit(ctx, p.ID, p.Epoch, "https://facilitator.example"); err != nil {
			return ledger.Outcome{}, err
		}
	}
	return ledger.Outcome{State: ledger.Unknown}, nil
}

// refuse finds in the preflight that the payer has no money any more.
func (t *till) refuse(context.Context, ledger.Payment) (ledger.Outcome, error) {
	return ledger.Outcome{State: ledger.NotCharged, Reason: x402.ReasonBalance}, nil
}

// dead submits, and then there is proof that it can never be charged.
func (t *till) dead(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	if _, end, err := t.open(ctx, p); end != nil || err != nil {
		return *end, err
	}
	if err := t.book.Dead(ctx, p.Key, "expired unused"); err != nil {
		return ledger.Outcome{State: ledger.Unknown}, nil
	}
	return ledger.Outcome{State: ledger.NotCharged, Reason: x402.ReasonValidBefore}, nil
}

// down submits nothing.
func (t *till) down(context.Context, ledger.Payment) (ledger.Outcome, error) {
	return ledger.Outcome{}, errors.New("the node does not answer")
}

// open gives the live batch of p, signed and in the book; or how p has ended.
func (t *till) open(ctx context.Context, p ledger.Payment) (ledger.Settlement, *ledger.Outcome, error) {
	s, err := t.book.OpenSettlement(ctx, ledger.Settlement{Key: p.Key, PayTo: p.PayTo, Amount: p.Amount, ValidBefore: p.ValidBefore, Payload: p.Payload, RequestedBy: "self"})
	if err != nil {
		return s, new(ledger.Outcome), err
	}
	submitted := p.Money == ledger.Signed || s.Batch != nil
	switch e, used := t.chain[p.Key]; {
	case s.Item == ledger.ItemPaid:
		return s, &ledger.Outcome{State: ledger.Settled, Evidence: s.Evidence}, nil
	case used && s.Batch == nil: // by somebody else's facilitator
		if err := t.book.Paid(ctx, p.Key, e); err != nil {
			return s, &ledger.Outcome{State: ledger.Unknown, Reason: x402.ReasonNonceUsed}, nil
		}
		return s, &ledger.Outcome{State: ledger.Settled, Evidence: e}, nil
	case s.Batch != nil:
		return s, nil, nil
	case !submitted && (!t.can(p.Payer, p.Amount) || t.now().Unix() >= p.ValidBefore):
		return s, &ledger.Outcome{State: ledger.NotCharged, Reason: x402.ReasonBalance}, nil
	}
	nonce, err := t.book.NextNonce(ctx, p.Network, signer)
	if err != nil {
		return s, new(ledger.Outcome), err
	}
	b := ledger.Batch{ID: "bat_" + random(8), Network: p.Network, Signer: signer, Nonce: nonce, CalldataSHA256: random(32), State: ledger.BatchSigned,
		Settlements: []string{s.ID}, Txs: []ledger.Tx{{Hash: "0x" + random(32), Attempt: 1, Raw: []byte{2}, MaxFee: "1", Tip: "1"}}}
	if err := t.book.Sign(ctx, b); err != nil {
		return s, new(ledger.Outcome), err
	}
	s.Batch = &b
	return s, nil, nil
}

const signer = "0x00000000000000000000000000000000000000f1"

func (t *till) mine(ctx context.Context, p ledger.Payment, s ledger.Settlement) (ledger.Outcome, error) {
	e := t.transfer(p, s)
	err := t.book.Mined(ctx, s.Batch.ID, e.Tx, e.BlockNumber, e.BlockHash, []ledger.ItemResult{{SettlementID: s.ID, Outcome: ledger.ItemPaid, Evidence: e}})
	if err != nil {
		return ledger.Outcome{State: ledger.Broadcast, Evidence: ledger.Evidence{Tx: e.Tx}}, nil
	}
	return ledger.Outcome{State: ledger.Settled, Evidence: e}, nil
}

// transfer is what the chain does, once for each authorization.
func (t *till) transfer(p ledger.Payment, s ledger.Settlement) ledger.Evidence {
	if e, ok := t.chain[p.Key]; ok {
		return e
	}
	e := ledger.Evidence{Tx: s.Batch.Txs[0].Hash, BlockNumber: int64(len(t.moved) + 1), BlockHash: "0x" + random(32)}
	t.chain[p.Key] = e
	t.moved = append(t.moved, p.Key)
	if has, listed := t.balance[p.Payer]; listed {
		t.balance[p.Payer] = has - p.Amount
	}
	return e
}

func random(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}

package facilitator_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

func calldata(signature string, args ...common.Hash) []byte {
	out := crypto.Keccak256([]byte(signature))[:4]
	for _, a := range args {
		out = append(out, a[:]...)
	}
	return out
}

func TestAPaymentIsVerifiedSettledAndBooked(t *testing.T) {
	w := newWorld(t)
	p := w.payment()
	v, err := w.fac.Verify(t.Context(), p, w.terms())
	if err != nil || !v.IsValid || v.Payer != x402.Lower(w.payer.Address()) {
		t.Fatalf("verify: %+v, %v", v, err)
	}
	row := w.reserved(p)
	var points []string
	for _, point := range []string{"preflight", "t3.before", "t3.after", "broadcast.before", "broadcast.after", "mined.before", "mined.after"} {
		w.at(point, func() {
			points = append(points, point)
			money := w.row(row.Key).Money
			signed := point != "preflight" && point != "t3.before"
			if paid := point == "mined.after"; paid && money != ledger.Mined || !paid && signed && money != ledger.Signed || !signed && money != ledger.Held {
				t.Errorf("at %s the payment is %s", point, money)
			}
		})
	}
	want(t, w.settle(row), ledger.Settled, "")
	if len(points) != 7 {
		t.Errorf("reached %v", points)
	}
	if got := w.units(w.payTo); got != 1000 {
		t.Errorf("the shop has %d units, want 1000", got)
	}
	after := w.row(row.Key)
	if after.Money != ledger.Mined || after.Tx == "" || after.BatchID == "" {
		t.Errorf("booked as %+v", after)
	}
	again := w.settle(row) // as it was read before: stale
	if again.Evidence != after.Evidence {
		t.Errorf("asked again: %+v, booked: %+v", again.Evidence, after.Evidence)
	}
	want(t, w.settle(*after), ledger.Settled, "")
	if w.spent() != 1 {
		t.Errorf("%d transactions, want 1", w.spent())
	}
	if head := w.fac.HeadTime(); head.IsZero() || w.now().Sub(head) > 20*time.Second {
		t.Errorf("head time %v", head)
	}
}

func TestOneAuthorizationIsSettledOnceHoweverManyAsk(t *testing.T) {
	w := newWorld(t)
	row := w.reserved(w.payment())
	var wg sync.WaitGroup
	outs := make([]ledger.Outcome, 20)
	for i := range outs {
		wg.Go(func() {
			out, err := w.fac.Settle(t.Context(), row)
			if err != nil {
				t.Error(err)
			}
			outs[i] = out
		})
	}
	wg.Wait()
	for _, out := range outs {
		if out.State != ledger.Settled || out.Evidence != outs[0].Evidence {
			t.Errorf("outcome %+v, the first was %+v", out, outs[0])
		}
	}
	if w.spent() != 1 || w.units(w.payTo) != 1000 {
		t.Errorf("%d transactions moved %d units", w.spent(), w.units(w.payTo))
	}
}

func TestManyPaymentsAtOnceGetNoncesWithoutGaps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fac.Batch = 1 // as on a chain without Multicall3
	const n = 60    // more than may be in flight
	var rows []ledger.Payment
	for range n {
		rows = append(rows, w.reserved(w.payment()))
	}
	var wg sync.WaitGroup
	for _, row := range rows {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if out, err := w.fac.Settle(ctx, row); err != nil || out.State != ledger.Settled {
				t.Errorf("%+v, %v", out, err)
			}
		})
	}
	wg.Wait()
	if w.spent() != n || w.units(w.payTo) != n*1000 {
		t.Errorf("%d transactions moved %d units, want %d and %d", w.spent(), w.units(w.payTo), n, n*1000)
	}
}

// The balance moves between verification and settlement: nothing is signed,
// and there is no charge.
func TestMustPass4BalanceMovesBetweenVerifyAndSettle(t *testing.T) {
	w := newWorld(t)
	p := w.payment()
	if v, err := w.fac.Verify(t.Context(), p, w.terms()); err != nil || !v.IsValid {
		t.Fatalf("%+v, %v", v, err)
	}
	row := w.reserved(p)
	w.drain(1_000_000)
	want(t, w.settle(row), ledger.NotCharged, x402.ReasonBalance)
	if got := w.row(row.Key).Money; got != ledger.Held || w.spent() != 0 {
		t.Errorf("the payment is %s after %d transactions", got, w.spent())
	}
	poor := newWorld(t)
	poor.drain(1_000_000)
	v, err := poor.fac.Verify(t.Context(), poor.payment(), poor.terms())
	if err != nil || v.IsValid || v.InvalidReason != x402.ReasonBalance {
		t.Errorf("an unfunded payer is %+v, %v", v, err)
	}
}

// drain moves the payer's money away.
func (w *world) drain(units int64) {
	w.Helper()
	w.call(w.payer, w.asset.Address, "transfer(address,uint256)", addressOf("0x00000000000000000000000000000000000000aa"), number(units))
}

// A transaction that reverts is no proof of anything: somebody may settle the
// authorization yet. Only time is proof.
func TestARevertedPaymentIsUnknownUntilItIsDead(t *testing.T) {
	w := newWorld(t)
	row := w.reserved(w.payment())
	w.at("t3.after", func() { w.drain(1_000_000) }) // after the last look, before the block
	want(t, w.settle(row), ledger.Broadcast, x402.ReasonTransactionFailed)
	p := w.row(row.Key)
	if p.Money != ledger.Signed {
		t.Fatalf("the payment is %s", p.Money)
	}
	want(t, w.settle(*p), ledger.Broadcast, "") // too soon for another try
	w.ahead.Add(35)
	want(t, w.settle(*p), ledger.Broadcast, x402.ReasonBalance)
	if w.spent() != 1 {
		t.Errorf("%d transactions, want 1: the payer still has no money", w.spent())
	}
	w.ahead.Add(120)
	want(t, w.settle(*p), ledger.NotCharged, "")
	if p = w.row(row.Key); p.Money != ledger.Dead || p.Proof == "" {
		t.Errorf("the payment is %s with proof %q", p.Money, p.Proof)
	}
	want(t, w.settle(*p), ledger.NotCharged, "")
	if w.units(w.payTo) != 0 {
		t.Error("the shop was paid")
	}
}

func TestARevertedPaymentIsTriedAgainWhenItCanSucceed(t *testing.T) {
	w := newWorld(t)
	row := w.reserved(w.payment())
	w.at("t3.after", func() { w.drain(1_000_000) })
	want(t, w.settle(row), ledger.Broadcast, x402.ReasonTransactionFailed)
	w.fund(w.payer, 1000)
	w.ahead.Add(35)
	want(t, w.settle(*w.row(row.Key)), ledger.Settled, "")
	if got := w.row(row.Key); got.Money != ledger.Mined || w.units(w.payTo) != 1000 || w.spent() != 2 {
		t.Errorf("%s, %d units, %d transactions", got.Money, w.units(w.payTo), w.spent())
	}
}

// Somebody who saw our transaction submits the authorization first: ours
// reverts, and the payment is paid all the same.
func TestAThirdPartysTransactionPays(t *testing.T) {
	w := newWorld(t)
	p := w.payment()
	row := w.reserved(p)
	var theirs string
	w.at("t3.after", func() { theirs = w.submitAs(w.stranger(), p) })
	out := w.settle(row)
	want(t, out, ledger.Settled, "")
	if out.Tx != theirs {
		t.Errorf("paid by %s, want the stranger's %s", out.Tx, theirs)
	}
	if got := w.row(row.Key); got.Money != ledger.Mined || got.Tx != theirs || w.units(w.payTo) != 1000 {
		t.Errorf("booked %s by %s, the shop has %d", got.Money, got.Tx, w.units(w.payTo))
	}
}

// An authorization that was consumed before we submitted it may have bought
// something from another server: no answer, and no new payment either.
func TestAnAuthorizationConsumedBeforehandIsNoPayment(t *testing.T) {
	w := newWorld(t)
	p := w.payment()
	row := w.reserved(p)
	tx := w.submitAs(w.stranger(), p)
	out := w.settle(row)
	want(t, out, ledger.Unknown, x402.ReasonNonceUsed)
	if out.Tx != tx || w.row(row.Key).Money != ledger.Held || w.spent() != 0 {
		t.Errorf("outcome %+v, payment %s, %d transactions", out, w.row(row.Key).Money, w.spent())
	}
	v, err := w.fac.Verify(t.Context(), p, w.terms())
	if err != nil || v.IsValid || v.InvalidReason != x402.ReasonNonceUsed {
		t.Errorf("verify: %+v, %v", v, err)
	}
}

func TestACancelledAuthorizationIsNotCharged(t *testing.T) {
	w := newWorld(t)
	a := w.authorization()
	row := w.reserved(w.signed(a, w.terms()))
	w.cancel(a)
	want(t, w.settle(row), ledger.NotCharged, x402.ReasonNonceUsed)
	// and after it was submitted: with proof
	a = w.authorization()
	row = w.reserved(w.signed(a, w.terms()))
	w.at("t3.after", func() { w.cancel(a) })
	out := w.settle(row)
	want(t, out, ledger.NotCharged, "")
	if p := w.row(row.Key); p.Money != ledger.Dead || p.Proof == "" {
		t.Errorf("the payment is %s with proof %q", p.Money, p.Proof)
	}
}

// stranger is an account with ether, which the pool knows of too: a moment
// after the block it may not.
func (w *world) stranger() *chain.Key {
	w.Helper()
	k := w.key()
	w.fund(k, 0)
	to := k.Address()
	for range 100 {
		_, err := w.node.Transact(context.WithoutCancel(w.Context()), k, chain.Call{To: &to, Gas: 21_000})
		if err == nil {
			return k
		}
		if clawr.CodeOf(err) != clawr.CodeUnfunded {
			w.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	w.Fatal("the pool does not see the stranger's ether")
	return nil
}

// submitAs has k carry p out.
func (w *world) submitAs(k *chain.Key, p *x402.PaymentPayload) string {
	w.Helper()
	e, err := x402.ParseExact(p.Payload)
	w.ok(err)
	value, _ := e.Value.Int64()
	before, _ := e.ValidBefore.Int64()
	asset := common.HexToAddress(w.asset.Address)
	r, err := w.node.Transact(context.WithoutCancel(w.Context()), k, chain.Call{To: &asset, Gas: 200_000, Data: chain.Transfer{Asset: asset, Payer: e.From, PayTo: e.To,
		Amount: value, ValidBefore: before, Nonce: e.Nonce, Signature: e.Signature}.Calldata()})
	w.ok(err)
	return strings.ToLower(r.Tx.Hex())
}

// cancel has the payer take a back.
func (w *world) cancel(a x402.Authorization) {
	w.Helper()
	inner := crypto.Keccak256(crypto.Keccak256([]byte("CancelAuthorization(address authorizer,bytes32 nonce)")), common.LeftPadBytes(a.From[:], 32), a.Nonce[:])
	id, _ := x402.ChainID(w.asset.Network)
	d := x402.NewDomain(w.asset.Name, w.asset.Version, id, common.HexToAddress(w.asset.Address))
	sig, err := w.payer.SignHash(crypto.Keccak256([]byte{0x19, 1}, d[:], inner))
	w.ok(err)
	w.call(w.stranger(), w.asset.Address, "cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)", address(a.From), a.Nonce,
		number(int64(sig[64])), common.Hash(sig[:32]), common.Hash(sig[32:64]))
}

func TestSettleRefusesWhatWasNotReserved(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*ledger.Payment){
		"amount": func(p *ledger.Payment) { p.Amount++ },
		"payee":  func(p *ledger.Payment) { p.PayTo = x402.Lower(w.payer.Address()) },
		"payer":  func(p *ledger.Payment) { p.Payer = w.payTo },
		"nonce":  func(p *ledger.Payment) { p.Nonce = "0x00" },
		"asset":  func(p *ledger.Payment) { p.Asset = w.payTo },
		"quote": func(p *ledger.Payment) {
			q, _ := x402.ParsePayload(p.Payload)
			q.Accepted.Extra.Quote = "secret"
			p.Payload = q.JSON()
		},
		"payload": func(p *ledger.Payment) { p.Payload = []byte(`{`) },
	} {
		row := w.reserved(w.payment())
		change(&row)
		if out, err := w.fac.Settle(t.Context(), row); err == nil {
			t.Errorf("%s changed: %+v, want an error", name, out)
		}
		row.Money = ledger.Signed
		if out, err := w.fac.Settle(t.Context(), row); err != nil || out.State != ledger.Unknown {
			t.Errorf("%s changed, submitted: %+v, %v, want unknown", name, out, err)
		}
	}
	if w.spent() != 0 {
		t.Errorf("%d transactions were made", w.spent())
	}
}

// A payer can sign one nonce for two transfers. The second is refused, and
// neither is taken for the other.
func TestOneNonceForTwoTransfersIsOneSettlement(t *testing.T) {
	w := newWorld(t)
	other := x402.Lower(w.key().Address())
	w.fac.AllowPayTo = nil
	a := w.authorization()
	b := a
	b.To, b.Value = common.HexToAddress(other), x402.Uint(1)
	terms := w.terms()
	terms.PayTo, terms.Amount = other, "1"
	row := w.reserved(w.signed(a, w.terms()))
	out, err := w.fac.SettleFor(t.Context(), request(w.signed(b, terms)))
	if err == nil && out.State == ledger.Settled && w.row(row.Key).Money != ledger.Held {
		t.Fatalf("the payment of 1000 is %s by a transfer of 1 to somebody else", w.row(row.Key).Money)
	}
	out = w.settle(row)
	if w.row(row.Key).Money == ledger.Mined && w.units(w.payTo) != 1000 {
		t.Fatalf("the payment is mined (%+v), and the shop has %d", out, w.units(w.payTo))
	}
}

func TestTheSignerWithoutGasSignsNothing(t *testing.T) {
	w := newWorld(t)
	row := w.reserved(w.payment())
	w.node.Key = w.key() // an account without ether
	f := w.facilitator()
	if err := f.Start(t.Context()); clawr.CodeOf(err) != clawr.CodeUnfunded {
		t.Errorf("start: %v, want %s", err, clawr.CodeUnfunded)
	}
	out, err := f.Settle(t.Context(), row)
	if e, ok := errors.AsType[*clawr.Error](err); !ok || e.HTTPStatus() != 503 {
		t.Errorf("settle: %+v, %v, want a 503", out, err)
	}
	if v, err := f.Verify(t.Context(), w.payment(), w.terms()); err == nil {
		t.Errorf("verify: %+v, want an error before the work is done", v)
	}
	if got := w.row(row.Key).Money; got != ledger.Held {
		t.Errorf("the payment is %s", got)
	}
	w.fund(w.node.Key, 0)
	w.ahead.Add(3)
	if out, err := f.Settle(t.Context(), row); err != nil || out.State != ledger.Settled {
		t.Errorf("after it was funded: %+v, %v", out, err)
	}
}

// What was submitted comes to its end, whatever is allowed by then.
func TestASubmittedPaymentEndsThoughItIsNotAllowedAnyMore(t *testing.T) {
	w := newWorld(t)
	p := w.payment()
	row := w.reserved(p)
	w.ok(w.db.Submit(t.Context(), row.ID, row.Epoch, "https://gone.example"))
	w.submitAs(w.stranger(), p)
	w.fac.Assets, w.fac.AllowPayTo = nil, func(string) bool { return false }
	want(t, w.settle(*w.row(row.Key)), ledger.Settled, "")
}

// Two processes may share a signer: the book gives each nonce to one of them.
func TestTwoFacilitatorsShareASigner(t *testing.T) {
	w := newWorld(t)
	other := w.facilitator()
	w.fac.Batch, other.Batch = 1, 1
	w.ok(other.Start(t.Context()))
	var wg sync.WaitGroup
	const n = 10
	for i := range n {
		row := w.reserved(w.payment())
		f := w.fac
		if i%2 == 1 {
			f = other
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if out, err := f.Settle(ctx, row); err != nil || out.State != ledger.Settled {
				t.Errorf("%+v, %v", out, err)
			}
		})
	}
	wg.Wait()
	if w.spent() != n || w.units(w.payTo) != n*1000 {
		t.Errorf("%d transactions moved %d units", w.spent(), w.units(w.payTo))
	}
}

package dispatch_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// rich is room for everything that tests sell under async.
var rich = ledger.Exposure{Payer: 1 << 40, Credit: 1 << 40, Total: 1 << 40}

// policies are tenants of each policy, by slug.
func (w *world) policies() {
	w.Helper()
	w.d.Exposure = rich
	w.deploy(clawr.Tenant{Slug: "async", Manifest: clawr.Manifest{Settle: "async"}})
	w.deploy(clawr.Tenant{Slug: "first", Manifest: clawr.Manifest{Settle: "settle_first"}})
}

// pathOf is what the tests buy of the tenant with this policy.
func pathOf(p ledger.Policy) string {
	return map[ledger.Policy]string{ledger.SettleBeforeResponse: "/t/acme", ledger.SettleFirst: "/t/first", ledger.Async: "/t/async"}[p] + "/v1/records?limit=1"
}

// lead brings q's payment along moves, as the dispatcher, the facilitator and
// the watcher make them, and leaves it where they end.
func (w *world) lead(q request, policy ledger.Policy, moves []ledger.Move) *ledger.Payment {
	w.Helper()
	ctx := context.WithoutCancel(w.Context())
	w.crash("t1.after", q) // reserved, and nobody works on it
	row := w.row(q)
	if row.Policy != policy {
		w.Fatalf("reserved under %s, want %s", row.Policy, policy)
	}
	block := ledger.Evidence{Tx: "0x" + random(32), BlockNumber: 1, BlockHash: "0x" + random(32)}
	ev := w.answerEvent(row)
	for _, m := range moves {
		w.ok(map[ledger.Move]func() error{
			ledger.MoveDone: func() error {
				return w.db.Done(ctx, row.ID, row.Epoch, ledger.Answer{Status: 200, Headers: [][2]string{{"Content-Type", "application/json"}}, Body: []byte("stored"), SHA256: hashOf("stored"), Len: 6, Expires: w.now().Add(time.Hour)}, ev)
			},
			ledger.MoveStart:   func() error { return w.db.Start(ctx, row.ID, row.Epoch) },
			ledger.MoveFail:    func() error { return w.db.Fail(ctx, row.ID, row.Epoch, clawr.CodeWorkerFailure, ev) },
			ledger.MoveRelease: func() error { return w.db.Release(ctx, row.ID, row.Epoch, clawr.CodeWorkerFailure, ev) },
			ledger.MoveSubmit:  func() error { return w.db.Submit(ctx, row.ID, row.Epoch, "https://facilitator.example") },
			ledger.MovePaid:    func() error { return w.db.Paid(ctx, row.Key, block) },
			ledger.MoveFinal:   func() error { return w.db.Final(ctx, row.Key, block.BlockHash) },
			ledger.MoveUnmine:  func() error { return w.db.Unmine(ctx, row.Key, block.BlockHash) },
			ledger.MoveDead:    func() error { return w.db.Dead(ctx, row.Key, "proof") },
		}[m]())
	}
	return w.row(q)
}

// TestWhatTheClientMayBeTold presents a payment in every state that one can be
// in, under every policy, while somebody else has its lease and its
// settlement goes on, and wants money.md's "What the client may be told".
func TestWhatTheClientMayBeTold(t *testing.T) {
	type told struct {
		status int
		code   clawr.Code
		retry  string // Retry-After
		reason clawr.Code
		tx     bool // PAYMENT-RESPONSE names the transaction
	}
	var (
		fresh    = told{status: 402}
		working  = told{503, clawr.CodeSettlementPending, "1", clawr.CodeSettlementPending, false}
		settling = told{503, clawr.CodeSettlementPending, "2", clawr.CodeSettlementPending, true}
		stored   = told{status: 200, tx: true}
		ahead    = told{status: 200} // delivered before it is charged
		owed     = told{502, clawr.CodeRefundDue, "", "", true}
	)
	type state struct {
		work  ledger.Work
		money ledger.Money
	}
	const (
		done, start, fail, release      = ledger.MoveDone, ledger.MoveStart, ledger.MoveFail, ledger.MoveRelease
		submit, paid, final, lost, dead = ledger.MoveSubmit, ledger.MovePaid, ledger.MoveFinal, ledger.MoveUnmine, ledger.MoveDead
	)
	type way struct {
		moves []ledger.Move
		told  told
	}
	after := func(t told, moves ...ledger.Move) way { return way{moves, t} }
	table := map[ledger.Policy]map[state]way{
		ledger.SettleBeforeResponse: {
			{ledger.Running, ledger.Held}:    after(working),
			{ledger.Failed, ledger.Released}: after(fresh, release),
			{ledger.Done, ledger.Held}:       after(told{503, clawr.CodeSettlementPending, "2", clawr.CodeSettlementPending, false}, done),
			{ledger.Done, ledger.Released}:   after(fresh, done, release),
			{ledger.Done, ledger.Signed}:     after(settling, done, submit),
			{ledger.Done, ledger.Mined}:      after(stored, done, submit, paid),
			{ledger.Done, ledger.Final}:      after(stored, done, submit, paid, final),
			{ledger.Done, ledger.Dead}:       after(fresh, done, submit, dead),
		},
		ledger.Async: {
			{ledger.Running, ledger.Held}:    after(working),
			{ledger.Failed, ledger.Released}: after(fresh, release),
			{ledger.Done, ledger.Held}:       after(ahead, done),
			{ledger.Done, ledger.Released}:   after(ahead, done, release),
			{ledger.Done, ledger.Signed}:     after(ahead, done, submit),
			{ledger.Done, ledger.Mined}:      after(stored, done, submit, paid),
			{ledger.Done, ledger.Final}:      after(stored, done, submit, paid, final),
			{ledger.Done, ledger.Dead}:       after(ahead, done, submit, dead),
		},
		ledger.SettleFirst: {
			{ledger.Pending, ledger.Held}:    after(working),
			{ledger.Failed, ledger.Released}: after(fresh, release),
			{ledger.Pending, ledger.Signed}:  after(settling, submit),
			{ledger.Pending, ledger.Mined}:   after(told{503, clawr.CodeSettlementPending, "1", clawr.CodeSettlementPending, true}, submit, paid),
			{ledger.Pending, ledger.Final}:   after(told{503, clawr.CodeSettlementPending, "1", clawr.CodeSettlementPending, true}, submit, paid, final),
			{ledger.Pending, ledger.Dead}:    after(fresh, submit, dead),
			{ledger.Running, ledger.Signed}:  after(settling, submit, paid, start, lost),
			{ledger.Running, ledger.Mined}:   after(told{503, clawr.CodeSettlementPending, "1", clawr.CodeSettlementPending, true}, submit, paid, start),
			{ledger.Running, ledger.Final}:   after(told{503, clawr.CodeSettlementPending, "1", clawr.CodeSettlementPending, true}, submit, paid, start, final),
			{ledger.Running, ledger.Dead}:    after(fresh, submit, paid, start, lost, dead),
			{ledger.Done, ledger.Signed}:     after(settling, submit, paid, start, done, lost),
			{ledger.Done, ledger.Mined}:      after(stored, submit, paid, start, done),
			{ledger.Done, ledger.Final}:      after(stored, submit, paid, start, done, final),
			{ledger.Done, ledger.Dead}:       after(fresh, submit, paid, start, done, lost, dead),
			{ledger.Failed, ledger.Signed}:   after(owed, submit, paid, start, fail, lost),
			{ledger.Failed, ledger.Mined}:    after(owed, submit, paid, start, fail),
			{ledger.Failed, ledger.Final}:    after(owed, submit, paid, start, fail, final),
			{ledger.Failed, ledger.Dead}:     after(fresh, submit, paid, start, fail, lost, dead),
		},
	}
	// No state is left out: these are all that the machine can reach.
	for policy, ways := range table {
		for s := range reachable(policy) {
			if _, ok := ways[state{s.Work, s.Money}]; !ok {
				t.Errorf("nothing says what is told of %s, %s, %s", policy, s.Work, s.Money)
			}
		}
	}
	w := newWorld(t)
	w.policies()
	serial := 0
	for policy, ways := range table {
		for at, way := range ways {
			t.Run(fmt.Sprintf("%s/%s/%s", policy, at.work, at.money), func(t *testing.T) {
				w.TB = t
				serial++
				q := w.payment(request{path: fmt.Sprintf("%s&n=%d", pathOf(policy), serial)})
				row := w.lead(q, policy, way.moves)
				w.state(q, at.work, at.money)
				if row.LeaseUntil.After(w.now()) {
					t.Fatal("the lease should be over")
				}
				if at.work == ledger.Pending || at.work == ledger.Running {
					_ = w.db.Renew(context.WithoutCancel(t.Context()), row.ID, row.Epoch, time.Minute) // somebody has it
				}
				w.d.Deadline = 400 * time.Millisecond
				w.d.Exposure = rich
				w.till.mu.Lock()
				w.till.script = []outcome{(*till).asked, (*till).asked, (*till).asked}
				w.till.mu.Unlock()
				runs := w.shop.total()
				a := w.send(q)
				want := way.told
				if want.status == 402 {
					if a.Code != 402 || len(a.required().Accepts) == 0 {
						t.Fatalf("%d %s", a.Code, a.Body)
					}
				} else {
					a.is(want.status, want.code).has("PAYMENT-REQUIRED", "", "Retry-After", want.retry)
					r := a.receipt()
					if r.ErrorReason != want.reason || r.Success != (want.status == 200 || want.code == clawr.CodeRefundDue) || (r.Transaction != "") != want.tx {
						t.Errorf("PAYMENT-RESPONSE %+v", r)
					}
				}
				if want.status == 200 && a.Body.String() != "stored" || want.status != 200 && strings.Contains(a.Body.String(), "stored") {
					t.Errorf("answered %s", a.Body)
				}
				if w.shop.total() != runs {
					t.Error("it was worked on")
				}
				// For another request it is 409 in every state.
				other := q
				other.path += "&other=1"
				w.send(other).is(409, clawr.CodeBoundElsewhere).has("PAYMENT-REQUIRED", "")
				w.state(q, at.work, at.money)
			})
		}
	}
}

// reachable are all states that ledger.Step leads to from a reservation.
func reachable(policy ledger.Policy) map[ledger.State]bool {
	first, _ := ledger.Step(ledger.State{}, ledger.Event{Move: ledger.MoveReserve, Policy: policy})
	seen := map[ledger.State]bool{first: true}
	for queue := []ledger.State{first}; len(queue) > 0; queue = queue[1:] {
		for _, m := range ledger.Moves() {
			next, err := ledger.Step(queue[0], ledger.Event{Move: m, Epoch: 1, Expired: true})
			if err == nil && next.Epoch == 1 && !seen[next] {
				seen[next] = true
				queue = append(queue, next)
			}
		}
	}
	return seen
}

func hashOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// answerEvent is an event as the dispatcher writes it with row's answer.
func (w *world) answerEvent(row *ledger.Payment) usage.Event {
	return usage.Event{Time: w.now(), RequestID: "req_" + random(8), TenantID: row.TenantID, API: "acme", Endpoint: row.Route, Status: 200, Price: price, Units: 1,
		Lifecycle: usage.Unsettled, Countable: true}
}

// asked knows of the transaction, and nothing more.
func (t *till) asked(_ context.Context, p ledger.Payment) (ledger.Outcome, error) {
	if p.Money == ledger.Held {
		return t.down(context.Background(), p)
	}
	return ledger.Outcome{State: ledger.Broadcast, Evidence: ledger.Evidence{Tx: "0x" + random(32)}, Reason: x402.ReasonPending}, nil
}

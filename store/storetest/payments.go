package storetest

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
	"github.com/google/go-cmp/cmp"
)

// paidCall follows one payment from the reservation to the mined batch.
func paidCall(f *fixture) {
	want := f.payment()
	want.Counters = []ledger.Counter{{Scope: "spend", Window: 60, Cost: 1000, Cap: 1500, Code: clawr.CodeCapExceeded}}
	p, err := f.Reserve(f.ctx(), want, "node-1", lease)
	f.ok(err)
	if p.Work != ledger.Running || p.Money != ledger.Held || p.Epoch != 1 || p.Owner != "node-1" || p.Counters[0].Used != 1000 || !p.LeaseUntil.After(p.Created) {
		f.Errorf("reserved as %+v", p)
	}
	row, err := f.Find(f.ctx(), p.Key)
	f.ok(err)
	p.Counters[0].Used = 0 // not the row's
	if diff := cmp.Diff(&p, row); diff != "" {
		f.Errorf("Find after Reserve (-reserved +found):\n%s", diff)
	}

	f.ok(f.Done(f.ctx(), p.ID, 1, answer(), event(p)))
	f.state(p, ledger.Done, ledger.Held)
	got, err := f.Answer(f.ctx(), p.ID)
	f.ok(err)
	if a := answer(); cmp.Diff(&a, got) != "" {
		f.Errorf("answer (-stored +read):\n%s", cmp.Diff(&a, got))
	}
	pending := event(p)
	pending.Lifecycle = usage.Unsettled
	if diff := cmp.Diff(pending, f.events()[pending.RequestID]); diff != "" {
		f.Errorf("event after T2 (-want +got):\n%s", diff)
	}

	s := f.settlement(p.Key)
	b := f.batch(s)
	f.ok(f.Sign(f.ctx(), b))
	if p := f.state(p, ledger.Done, ledger.Signed); p.BatchID != b.ID || p.Facilitator != "self" {
		f.Errorf("signed in batch %q by %q", p.BatchID, p.Facilitator)
	}
	open, err := f.OpenBatches(f.ctx(), home, signer)
	f.ok(err)
	if len(open) != 1 || !bytes.Equal(open[0].Txs[0].Raw, b.Txs[0].Raw) {
		f.Errorf("open batches: %+v", open)
	}

	f.ok(f.mine(b, ledger.ItemPaid))
	if p := f.state(p, ledger.Done, ledger.Mined); p.Evidence != evidence(b.Txs[0].Hash) {
		f.Errorf("evidence %+v", p.Evidence)
	}
	paid := pending
	paid.Lifecycle, paid.Billed, paid.Billable = usage.Success, 1000, true
	if diff := cmp.Diff(paid, f.events()[paid.RequestID]); diff != "" {
		f.Errorf("event after mining (-want +got):\n%s", diff)
	}
	if s := f.settlement(p.Key); s.Item != ledger.ItemPaid || s.Batch.State != ledger.BatchMined || s.Evidence != evidence(b.Txs[0].Hash) {
		f.Errorf("settlement after mining: %+v", s)
	}
	open, err = f.OpenBatches(f.ctx(), home, signer)
	f.ok(err)
	if len(open) != 0 {
		f.Errorf("still open: %+v", open)
	}
}

// conflict is the row that stood in the way, nil if err is no conflict.
func conflict(err error) *ledger.Payment {
	if c, ok := errors.AsType[*ledger.Conflict](err); ok {
		return c.Payment
	}
	return nil
}

func oneRowPerAuthorization(f *fixture) {
	first := f.payment()
	first.ClientRef = "order-1"
	p, err := f.Reserve(f.ctx(), first, "node", lease)
	f.ok(err)

	again, err := f.Reserve(f.ctx(), first, "node", lease)
	f.ok(err)
	if again.ID != p.ID || again.Epoch != 1 {
		f.Errorf("the same reservation again: %+v", again)
	}
	twin := f.payment()
	twin.Key = first.Key
	_, err = f.Reserve(f.ctx(), twin, "node", lease)
	if c := conflict(err); c == nil || c.ID != p.ID {
		f.Errorf("a second payment of one authorization: %v", err)
	}
	other := f.payment()
	other.ID, other.Key = first.ID, first.Key // the same authorization for another request
	_, err = f.Reserve(f.ctx(), other, "node", lease)
	if c := conflict(err); c == nil || c.Fingerprint != first.Fingerprint {
		f.Errorf("one authorization for two requests: %v", err)
	}
	ref := f.payment()
	ref.ClientRef = "order-1"
	_, err = f.Reserve(f.ctx(), ref, "node", lease)
	if c := conflict(err); c == nil || c.ID != p.ID {
		f.Errorf("a payment identifier used twice: %v", err)
	}
	ref.Payer = signer // another buyer may call its order the same
	_, err = f.Reserve(f.ctx(), ref, "node", lease)
	f.ok(err)
	for _, k := range []func(*ledger.Key){
		func(k *ledger.Key) { k.Network = "eip155:1" },
		func(k *ledger.Key) { k.Asset = seller },
		func(k *ledger.Key) { k.Payer = seller },
	} {
		elsewhere := f.payment()
		elsewhere.Key = first.Key
		k(&elsewhere.Key)
		if _, err := f.Reserve(f.ctx(), elsewhere, "node", lease); err != nil {
			f.Errorf("the same nonce under another key: %v", err)
		}
	}
	if p, err := f.Find(f.ctx(), ledger.Key{Network: home, Asset: asset, Payer: buyer, Nonce: "0x"}); p != nil || err != nil {
		f.Errorf("found %v, %v", p, err)
	}
	if p, err := f.Payment(f.ctx(), "pay_none"); p != nil || err != nil {
		f.Errorf("found %v, %v", p, err)
	}
	if a, err := f.Answer(f.ctx(), p.ID); a != nil || err != nil {
		f.Errorf("answer before T2: %v, %v", a, err)
	}
}

// malformedPayments must fail on the schema's own checks, not be refused
// quietly, and leave nothing.
func malformedPayments(f *fixture) {
	counter := ledger.Counter{Scope: "spend", Cost: 1, Cap: 10}
	for name, spoil := range map[string]func(*ledger.Payment){
		"upper-case payer":   func(p *ledger.Payment) { p.Payer = "0x00000000000000000000000000000000000000CC" },
		"short nonce":        func(p *ledger.Payment) { p.Nonce = "0x12" },
		"upper-case nonce":   func(p *ledger.Payment) { p.Nonce = "0x" + strings.Repeat("A", 64) },
		"no amount":          func(p *ledger.Payment) { p.Amount = 0 },
		"window upside down": func(p *ledger.Payment) { p.ValidAfter = p.ValidBefore },
		"unknown scheme":     func(p *ledger.Payment) { p.Scheme = "barter" },
		"unknown policy":     func(p *ledger.Payment) { p.Policy = "later" },
		"unknown version":    func(p *ledger.Payment) { p.Version = 99 },
		"unknown tenant":     func(p *ledger.Payment) { p.TenantID = "tnt_none" },
		"negative cost":      func(p *ledger.Payment) { p.Counters = []ledger.Counter{{Scope: "spend", Cost: -5, Cap: 10}} },
		"absurd cap":         func(p *ledger.Payment) { p.Counters = []ledger.Counter{{Scope: "spend", Cost: 1, Cap: math.MaxInt64}} },
	} {
		p := f.payment()
		p.Counters = []ledger.Counter{counter}
		spoil(&p)
		if _, err := f.Reserve(f.ctx(), p, "node", lease); err == nil || conflict(err) != nil {
			f.Errorf("%s: %v", name, err)
		}
		if row, err := f.Payment(f.ctx(), p.ID); row != nil || err != nil {
			f.Errorf("%s left %+v, %v", name, row, err)
		}
	}
	if used, err := f.Counters(f.ctx(), "spend"); len(used) != 0 || err != nil {
		f.Errorf("malformed payments took %+v, %v", used, err)
	}
}

func countersAreAllOrNothing(f *fixture) {
	day := ledger.Counter{Scope: "spend-day", Window: 86400, Cost: 400, Cap: 1000, Code: clawr.CodeCapExceeded}
	calls := ledger.Counter{Scope: "quota-day", Window: 86400, Cost: 1, Cap: 10, Code: clawr.CodeQuotaExceeded}
	used := func(scope string) int64 {
		list, err := f.Counters(f.ctx(), scope)
		f.ok(err)
		if len(list) == 0 {
			return 0
		}
		return list[0].Used
	}
	var last ledger.Payment
	for want := range int64(2) {
		p := f.payment()
		p.Counters = []ledger.Counter{day, calls}
		got, err := f.Reserve(f.ctx(), p, "node", lease)
		f.ok(err)
		if got.Counters[0].Used != 400*(want+1) || got.Counters[1].Used != want+1 {
			f.Errorf("used after reservation %d: %+v", want+1, got.Counters)
		}
		last = got
	}
	p := f.payment()
	p.Counters = []ledger.Counter{calls, day}
	_, err := f.Reserve(f.ctx(), p, "node", lease)
	full, ok := errors.AsType[*ledger.Exceeded](err)
	if !ok || full.Code() != clawr.CodeCapExceeded || full.Counter.Used != 800 || full.Counter.Cap != 1000 {
		f.Errorf("over the cap: %v", err)
	}
	if used("spend-day") != 800 || used("quota-day") != 2 {
		f.Errorf("a refused reservation took: %d, %d", used("spend-day"), used("quota-day"))
	}
	if row, err := f.Find(f.ctx(), p.Key); row != nil || err != nil {
		f.Errorf("a refused reservation left its row: %+v, %v", row, err)
	}
	p.Counters[1].Cost = 200 // exactly full
	_, err = f.Reserve(f.ctx(), p, "node", lease)
	f.ok(err)
	if used("spend-day") != 1000 {
		f.Errorf("used %d, want all of it", used("spend-day"))
	}

	f.ok(f.Release(f.ctx(), last.ID, 1, clawr.CodeWorkerFailure, event(last)))
	if used("spend-day") != 600 || used("quota-day") != 2 {
		f.Errorf("after a release: %d, %d", used("spend-day"), used("quota-day"))
	}
	if err := f.Release(f.ctx(), last.ID, 1, clawr.CodeWorkerFailure, event(last)); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("released twice: %v", err)
	}
	if used("spend-day") != 600 {
		f.Errorf("given back twice: %d", used("spend-day"))
	}

	// Free calls take by themselves. A cap that was lowered meanwhile holds at once.
	lowered := day
	lowered.Cap, lowered.Cost = 500, 1
	if _, err := f.Take(f.ctx(), []ledger.Counter{calls, lowered}); !errors.As(err, &full) || full.Counter.Used != 600 || full.Counter.Scope != "spend-day" {
		f.Errorf("take over a lowered cap: %v", err)
	}
	never := ledger.Counter{Scope: "never", Cost: 2, Cap: 1}
	if _, err := f.Take(f.ctx(), []ledger.Counter{never}); !errors.As(err, &full) || full.Counter.Used != 0 {
		f.Errorf("more than the cap at once: %v", err)
	}
	taken, err := f.Take(f.ctx(), []ledger.Counter{calls, day})
	f.ok(err)
	if taken[0].Used != 3 || taken[1].Used != 1000 {
		f.Errorf("taken: %+v", taken)
	}
	f.ok(f.Return(f.ctx(), taken))
	f.ok(f.Return(f.ctx(), []ledger.Counter{{Scope: "gone", Window: 1, Cost: 5}}))
	if used("spend-day") != 600 || used("quota-day") != 2 || used("never") != 0 {
		f.Errorf("after returning: %d, %d, %d", used("spend-day"), used("quota-day"), used("never"))
	}
	if none, err := f.Take(f.ctx(), nil); len(none) != 0 || err != nil {
		f.Errorf("took nothing: %v, %v", none, err)
	}
}

func leasesAndFences(f *fixture) {
	p, err := f.Reserve(f.ctx(), f.payment(), "node-1", lease)
	f.ok(err)
	if _, err := f.TakeOver(f.ctx(), p.ID, 1, "node-2", lease); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("taken over under a living lease: %v", err)
	}
	f.ok(f.Renew(f.ctx(), p.ID, 1, expired))
	if n, err := f.Janitor(f.ctx(), time.Hour); n != 0 || err != nil {
		f.Errorf("the janitor did not wait: %d, %v", n, err)
	}
	taken, err := f.TakeOver(f.ctx(), p.ID, 1, "node-2", lease)
	f.ok(err)
	if taken.Epoch != 2 || taken.Owner != "node-2" || taken.Fingerprint != p.Fingerprint || !taken.LeaseUntil.After(p.Created) {
		f.Errorf("taken over as %+v", taken)
	}
	for name, err := range map[string]error{
		"done":      f.Done(f.ctx(), p.ID, 1, answer(), event(p)),
		"release":   f.Release(f.ctx(), p.ID, 1, clawr.CodeWorkerFailure, event(p)),
		"renew":     f.Renew(f.ctx(), p.ID, 1, lease),
		"submit":    f.Submit(f.ctx(), p.ID, 1, "https://facilitator.example.com"),
		"take over": second(f.TakeOver(f.ctx(), p.ID, 1, "node-1", lease)),
	} {
		if !errors.Is(err, ledger.ErrFenced) {
			f.Errorf("%s by the one who was fenced: %v", name, err)
		}
	}
	if len(f.events()) != 0 {
		f.Errorf("fenced writers left events: %v", f.events())
	}
	f.ok(f.Done(f.ctx(), p.ID, 2, answer(), event(p)))
	f.ok(f.Submit(f.ctx(), p.ID, 2, "https://facilitator.example.com"))
	if p := f.state(p, ledger.Done, ledger.Signed); p.Facilitator != "https://facilitator.example.com" {
		f.Errorf("facilitator %q", p.Facilitator)
	}

	// The janitor takes what nobody finishes, and gives back what it took.
	var lost []ledger.Payment
	for range 150 { // more than one of its rounds
		q := f.payment()
		q.Counters = []ledger.Counter{{Scope: "lost", Cost: 1, Cap: 200}}
		q, err := f.Reserve(f.ctx(), q, "node-1", expired)
		f.ok(err)
		lost = append(lost, q)
	}
	kept, done := f.reserved(), f.answered()
	if n, err := f.Janitor(f.ctx(), 0); n != len(lost) || err != nil {
		f.Errorf("the janitor released %d of %d: %v", n, len(lost), err)
	}
	f.state(lost[0], ledger.Failed, ledger.Released)
	f.state(kept, ledger.Running, ledger.Held)
	f.state(done, ledger.Done, ledger.Held)
	if c, err := f.Counters(f.ctx(), "lost"); err != nil || c[0].Used != 0 {
		f.Errorf("counters after the janitor: %+v, %v", c, err)
	}

	f.ok(f.VoidLeases(f.ctx()))
	_, err = f.TakeOver(f.ctx(), kept.ID, 1, "after a restart", lease)
	if f.sole && err != nil || !f.sole && !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("take over after VoidLeases: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func eventsFollowTheMoney(f *fixture) {
	one := func(id string) usage.Event { return f.events()["req_"+id[4:]] }
	check := func(what string, p ledger.Payment, l usage.Lifecycle, billed clawr.Amount, code string) {
		f.Helper()
		e := one(p.ID)
		if e.Lifecycle != l || e.Billed != billed || e.Billable != (billed > 0) || e.Error != code || e.PaymentID != p.ID {
			f.Errorf("%s: %+v", what, e)
		}
	}
	worker := f.reserved()
	failure := event(worker)
	failure.Lifecycle, failure.Error, failure.Status, failure.Billed, failure.Billable = usage.Failure, "tenant_worker_failure", 502, 1000, true
	f.ok(f.Release(f.ctx(), worker.ID, 1, clawr.CodeWorkerFailure, failure))
	check("worker failed", worker, usage.Failure, 0, "tenant_worker_failure")

	preflight := f.answered()
	failure = event(preflight)
	failure.RequestID = "req_resend" // by whom it is released does not matter
	failure.Lifecycle, failure.Error, failure.Countable = usage.SettleFailed, "settlement_failed", false
	f.ok(f.Release(f.ctx(), preflight.ID, 1, clawr.CodeSettlementFailed, failure))
	check("preflight failed", preflight, usage.SettleFailed, 0, "settlement_failed")
	if p := f.state(preflight, ledger.Done, ledger.Released); p.ErrorCode != clawr.CodeSettlementFailed {
		f.Errorf("error code %q", p.ErrorCode)
	}

	quiet := f.reserved()
	f.ok(f.Release(f.ctx(), quiet.ID, 1, clawr.CodeWorkerFailure, usage.Event{}))

	remote := f.answered()
	f.ok(f.Submit(f.ctx(), remote.ID, 1, "https://facilitator.example.com"))
	check("submitted", remote, usage.Unsettled, 0, "")
	e := evidence("0x" + hash("remote"))
	f.ok(f.Paid(f.ctx(), remote.Key, e))
	f.ok(f.Paid(f.ctx(), remote.Key, e))
	check("paid", remote, usage.Success, 1000, "")
	other := e
	other.BlockHash = "0x" + hash("another block")
	if err := f.Paid(f.ctx(), remote.Key, other); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("paid in two blocks: %v", err)
	}
	if err := f.Unmine(f.ctx(), remote.Key, other.BlockHash); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("another block was lost: %v", err)
	}
	f.ok(f.Unmine(f.ctx(), remote.Key, e.BlockHash))
	check("reorganised", remote, usage.Unsettled, 0, "")
	f.ok(f.Paid(f.ctx(), remote.Key, other))
	f.ok(f.Final(f.ctx(), remote.Key, other.BlockHash))
	f.ok(f.Paid(f.ctx(), remote.Key, other))
	check("final", remote, usage.Success, 1000, "")
	if err := f.Dead(f.ctx(), remote.Key, "never"); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("final, then dead: %v", err)
	}

	dead := f.payment()
	dead.Counters = []ledger.Counter{{Scope: "dead", Cost: 1000, Cap: 1000}}
	dead, err := f.Reserve(f.ctx(), dead, "node", lease)
	f.ok(err)
	f.ok(f.Done(f.ctx(), dead.ID, 1, answer(), event(dead)))
	f.ok(f.Submit(f.ctx(), dead.ID, 1, "https://facilitator.example.com"))
	if err := f.Dead(f.ctx(), dead.Key, ""); err == nil {
		f.Error("dead without proof")
	}
	f.ok(f.Dead(f.ctx(), dead.Key, "finalized block 9 at 2000000100, unused"))
	check("dead", dead, usage.SettleFailed, 0, "settlement_failed")
	if c, err := f.Counters(f.ctx(), "dead"); err != nil || c[0].Used != 0 {
		f.Errorf("a dead payment kept its counters: %+v, %v", c, err)
	}
	if err := f.Paid(f.ctx(), dead.Key, e); !errors.Is(err, ledger.ErrFenced) {
		f.Errorf("dead, then paid: %v", err)
	}

	async := f.payment()
	async.Policy, async.Exposure = ledger.Async, ledger.Exposure{Payer: 1000, Credit: 1000, Total: 1000}
	async, err = f.Reserve(f.ctx(), async, "node", lease)
	f.ok(err)
	f.ok(f.Done(f.ctx(), async.ID, 1, answer(), event(async)))
	check("async, delivered", async, usage.Success, 1000, "")

	// A caller that did not wait had its request recorded; the answer overwrites it.
	early := f.reserved()
	gone := event(early)
	gone.PaymentID, gone.Lifecycle, gone.Status = "", usage.Failure, 503
	f.ok(f.Record(f.ctx(), []usage.Event{gone}))
	f.ok(f.Done(f.ctx(), early.ID, 1, answer(), event(early)))
	check("recorded before", early, usage.Unsettled, 0, "")
	// Another payment's event is not.
	thief := f.reserved()
	stolen := event(early)
	if err := f.Done(f.ctx(), thief.ID, 1, answer(), stolen); err == nil {
		f.Error("two payments share one event")
	}
	f.state(thief, ledger.Running, ledger.Held)
	if err := f.Done(f.ctx(), thief.ID, 1, answer(), usage.Event{}); err == nil {
		f.Error("an answer without an event")
	}
	if n := len(f.events()); n != 6 {
		f.Errorf("%d events, want 6: %v", n, f.events())
	}
}

func answersComeBack(f *fixture) {
	for name, a := range map[string]ledger.Answer{
		"bytes":     answer(),
		"recompute": {Status: 200, Ref: "/v1/records?limit=10", SHA256: hash("x"), Len: 1 << 40, Expires: answer().Expires},
		"empty":     {Status: 204, Body: []byte{}, SHA256: hash(""), Expires: answer().Expires},
		"binary":    {Status: 200, Body: []byte{0, 1, 255, '\'', 0}, SHA256: hash("b"), Len: 5, Expires: answer().Expires},
	} {
		p := f.reserved()
		f.ok(f.Done(f.ctx(), p.ID, 1, a, event(p)))
		got, err := f.Answer(f.ctx(), p.ID)
		f.ok(err)
		if a.Headers == nil {
			a.Headers = [][2]string{}
		}
		if diff := cmp.Diff(&a, got); diff != "" {
			f.Errorf("%s (-stored +read):\n%s", name, diff)
		}
	}
	p := f.reserved()
	bad := answer()
	bad.Status = 42
	if err := f.Done(f.ctx(), p.ID, 1, bad, event(p)); err == nil {
		f.Error("status 42 was stored")
	}
	f.state(p, ledger.Running, ledger.Held)
	if _, there := f.events()[event(p).RequestID]; there {
		f.Error("a failed T2 left its event")
	}
}

func openPaymentsFirstToExpireFirst(f *fixture) {
	f.reserved()                    // still at work
	late := f.answered()            // answered, to be submitted
	early, batch := f.signed()      // submitted
	mined, minedBatch := f.signed() // settled
	f.ok(f.mine(minedBatch, ledger.ItemPaid))
	f.state(mined, ledger.Done, ledger.Mined)
	soon := f.payment()
	soon.ValidBefore = 1_000
	soon, err := f.Reserve(f.ctx(), soon, "node", lease)
	f.ok(err)
	f.ok(f.Done(f.ctx(), soon.ID, 1, answer(), event(soon)))
	list, err := f.OpenPayments(f.ctx(), 10)
	f.ok(err)
	var ids []string
	for _, p := range list {
		ids = append(ids, p.ID)
	}
	if want := []string{soon.ID, late.ID, early.ID}; !slices.Equal(ids, want) {
		f.Errorf("open payments %v, want %v (batch %s)", ids, want, batch.ID)
	}
	if list, err := f.OpenPayments(f.ctx(), 1); err != nil || len(list) != 1 || list[0].ID != soon.ID {
		f.Errorf("the most urgent one: %+v, %v", list, err)
	}

	for filter, want := range map[store.PaymentFilter]int{
		{}:                       5,
		{Limit: 2}:               2,
		{Tenant: f.tenant.ID}:    5,
		{Tenant: "tnt_none"}:     0,
		{Money: ledger.Held}:     3,
		{Money: ledger.Released}: 0,
		{Payer: buyer, Money: ledger.Mined, Tenant: f.tenant.ID}: 1,
		{Payer: seller}:        0,
		{Before: soon.Created}: 4,
	} {
		list, err := f.Payments(f.ctx(), filter)
		f.ok(err)
		if len(list) != want {
			f.Errorf("%+v found %d payments, want %d", filter, len(list), want)
		}
		if !slices.IsSortedFunc(list, func(a, b ledger.Payment) int { return b.Created.Compare(a.Created) }) {
			f.Errorf("%+v: not newest first", filter)
		}
	}
}

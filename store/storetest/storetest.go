// Package storetest is the contract that both engines of package store keep.
package storetest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/usage"
)

// Run runs the whole contract. open gives each test a database of its own,
// empty, and closes it when the test ends.
func Run(t *testing.T, open func(t *testing.T) *store.DB) {
	for _, test := range []struct {
		name string
		run  func(*fixture)
	}{
		{"PaidCall", paidCall},
		{"OneRowPerAuthorization", oneRowPerAuthorization},
		{"MalformedPayments", malformedPayments},
		{"CountersAreAllOrNothing", countersAreAllOrNothing},
		{"LeasesAndFences", leasesAndFences},
		{"EventsFollowTheMoney", eventsFollowTheMoney},
		{"AnswersComeBack", answersComeBack},
		{"OpenPaymentsFirstToExpireFirst", openPaymentsFirstToExpireFirst},
		{"SettlementsAreAskedOnce", settlementsAreAskedOnce},
		{"SignIsAllOrNothing", signIsAllOrNothing},
		{"SettlementsOpenWithTheirBatch", settlementsOpenWithTheirBatch},
		{"FeeBumpsAreStoredFirst", feeBumpsAreStoredFirst},
		{"MinedBatchesAreBookedOnce", minedBatchesAreBookedOnce},
		{"Reorganisations", reorganisations},
		{"SettleFirst", settleFirst},
		{"BlocksAreLostAndFinal", blocksAreLostAndFinal},
		{"UsesAreOfExactlyTheTransfer", usesAreOfExactlyTheTransfer},
		{"ABatchIsBookedAtOnce", aBatchIsBookedAtOnce},
		{"LargeBlocksAreFinalInParts", largeBlocksAreFinalInParts},
		{"OpenPaymentsAreHeld", openPaymentsAreHeld},
		{"CursorsMove", cursorsMove},
		{"OwedAfterTheLease", owedAfterTheLease},
		{"RefundsAreSignedOnce", refundsAreSignedOnce},
		{"RefundHistories", refundHistories},
		{"NewPayersStartAtZero", newPayersStartAtZero},
		{"ExposureFollowsTheMoney", exposureFollowsTheMoney},
		{"ExposureHolds", exposureHolds},
		{"BacklogIsListedOldestFirst", backlogIsListedOldestFirst},
		{"ImportsCountOnce", importsCountOnce},
		{"EventsInOrderOfArrival", eventsInOrderOfArrival},
		{"OneOfManyPresentations", oneOfManyPresentations},
		{"TwoTenantsOnePayTo", twoTenantsOnePayTo},
		{"CapsHold", capsHold},
		{"LeasesAreDebited", leasesAreDebited},
		{"LeasesHoldTheCap", leasesHoldTheCap},
		{"SharedBuckets", sharedBuckets},
		{"NodesAreCounted", nodesAreCounted},
		{"WhoeverIsFirst", whoeverIsFirst},
		{"SoldOrSettledElsewhere", soldOrSettledElsewhere},
		{"CallersLeave", callersLeave},
		{"EveryMove", everyMove},
		{"RandomHistories", randomHistories},
		{"CallsHaveNoncesToo", callsHaveNoncesToo},
		{"AVoucherIsOneCharge", aVoucherIsOneCharge},
		{"VouchersGoOneByOne", vouchersGoOneByOne},
		{"OneOfManyVouchers", oneOfManyVouchers},
		{"AHoldKeepsOthersOut", aHoldKeepsOthersOut},
		{"ARefundIsSignedInItsHold", aRefundIsSignedInItsHold},
		{"TheChainIsBelieved", theChainIsBelieved},
		{"LostVouchersComeWithTheNext", lostVouchersComeWithTheNext},
		{"ChannelsNeverOwe", channelsNeverOwe},
		{"OldVouchersExpire", oldVouchersExpire},
		{"DeploysAreVersions", deploysAreVersions},
		{"StatusAndRollback", statusAndRollback},
		{"NeededVersions", neededVersions},
		{"HostsHaveOneTenant", hostsHaveOneTenant},
		{"ConcurrentDeploys", concurrentDeploys},
		{"WatchTells", watchTells},
		{"OwnersAndTokens", ownersAndTokens},
		{"AuditChainUnderConcurrency", concurrentAudit},
		{"SecretsAreShared", secretsAreShared},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			db := open(t)
			test.run(&fixture{T: t, DB: db, sole: db.SoleOwner()})
		})
	}
}

// fixture is a database with what most tests need.
type fixture struct {
	*testing.T
	*store.DB
	tenant clawr.Tenant
	sole   bool // no other process can use the database
	serial atomic.Int64
}

// Addresses that mean nothing.
const (
	asset  = "0x00000000000000000000000000000000000000aa"
	seller = "0x00000000000000000000000000000000000000bb"
	buyer  = "0x00000000000000000000000000000000000000cc"
	signer = "0x00000000000000000000000000000000000000dd"
	home   = "eip155:31337"
)

const lease = time.Minute

// expired is a lease that is over when it begins.
const expired = -time.Second

func (f *fixture) ctx() context.Context { return f.Context() }

// ok fails the test on an error.
func (f *fixture) ok(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

func hash(v ...any) string {
	sum := sha256.Sum256(fmt.Append(nil, v...))
	return hex.EncodeToString(sum[:])
}

// deploy publishes one tenant, the same for all who ask.
func (f *fixture) deploy() clawr.Tenant {
	f.Helper()
	if f.tenant.ID == "" {
		t, err := f.Deploy(f.ctx(), clawr.Tenant{Slug: "acme", Manifest: manifest()}, "test")
		f.ok(err)
		f.tenant = t
	}
	return f.tenant
}

func manifest() clawr.Manifest {
	return clawr.Manifest{Kind: clawr.KindDataset, Owner: "ann", Directory: "APIs", Plan: clawr.PlanFree, Price: 1000, X402: true, PayTo: seller, Network: home}
}

// payment is a new authorization that nobody has seen.
func (f *fixture) payment() ledger.Payment {
	f.Helper()
	t := f.deploy()
	n := f.serial.Add(1)
	return ledger.Payment{
		ID: fmt.Sprintf("pay_%016x", n), TenantID: t.ID, Version: t.Version, Route: "/v1/records", Scheme: "exact",
		Key:   ledger.Key{Network: home, Asset: asset, Payer: buyer, Nonce: fmt.Sprintf("0x%064x", n)},
		PayTo: seller, Amount: 1000, ValidAfter: 1, ValidBefore: 2_000_000_000 + n,
		Fingerprint: hash("fingerprint", n), Payload: []byte(`{"x402Version":2}`), PayloadSHA256: hash("payload"), SignatureSHA256: hash("signature", n),
		QuoteSHA256: hash("quote", n), Policy: ledger.SettleBeforeResponse,
	}
}

// reserved is a payment whose work runs under a lease.
func (f *fixture) reserved() ledger.Payment {
	f.Helper()
	p, err := f.Reserve(f.ctx(), f.payment(), f.Node(), lease)
	f.ok(err)
	return p
}

// answered is a payment whose answer is stored.
func (f *fixture) answered() ledger.Payment {
	f.Helper()
	p := f.reserved()
	f.ok(f.Done(f.ctx(), p.ID, p.Epoch, answer(), event(p)))
	return f.reload(p)
}

// signed is a payment that a batch of our own facilitator carries.
func (f *fixture) signed() (ledger.Payment, ledger.Batch) {
	f.Helper()
	p := f.answered()
	b := f.batch(f.settlement(p.Key))
	f.ok(f.Sign(f.ctx(), b))
	return f.reload(p), b
}

func answer() ledger.Answer {
	body := []byte(`{"data":[]}`)
	return ledger.Answer{Status: 200, Headers: [][2]string{{"Content-Type", "application/json"}, {"ETag", `"1"`}}, Body: body,
		SHA256: hash(string(body)), Len: int64(len(body)), Expires: time.UnixMicro(1_900_000_000_000_000).UTC()}
}

// event is what the dispatcher knows when the work of p is done. Each payment
// has a second of its own.
func event(p ledger.Payment) usage.Event {
	n, err := strconv.ParseInt(p.ID[4:], 16, 64)
	if err != nil {
		panic(err)
	}
	return usage.Event{Time: time.Unix(1_700_000_000+n, 0).UTC(), RequestID: "req_" + p.ID[4:], TenantID: p.TenantID, PaymentID: p.ID, API: "acme",
		Endpoint: p.Route, Owner: "@ann", Directory: "APIs", Caller: "c0ffee", Status: 200, Latency: 1500 * time.Microsecond, Price: 1000, Units: 1,
		BytesOut: 11, Lifecycle: usage.Success, Countable: true}
}

// settlement asks the facilitator's book to settle an authorization.
func (f *fixture) settlement(k ledger.Key) ledger.Settlement {
	f.Helper()
	s, err := f.OpenSettlement(f.ctx(), ledger.Settlement{Key: k, PayTo: seller, Amount: 1000, ValidBefore: 2_000_000_000, Payload: []byte(`{}`), RequestedBy: "self"})
	f.ok(err)
	return s
}

// batch is a new batch of settlements, on the signer's next nonce.
func (f *fixture) batch(list ...ledger.Settlement) ledger.Batch {
	f.Helper()
	nonce, err := f.NextNonce(f.ctx(), home, signer)
	f.ok(err)
	n := f.serial.Add(1)
	b := ledger.Batch{ID: fmt.Sprintf("bat_%016x", n), Network: home, Signer: signer, Nonce: nonce, CalldataSHA256: hash("calldata", n), State: ledger.BatchSigned,
		Txs: []ledger.Tx{{Hash: "0x" + hash("tx", n), Attempt: 1, Raw: []byte{2, 0xf8, byte(n)}, MaxFee: "1000000000", Tip: "1000000"}}}
	for _, s := range list {
		b.Settlements = append(b.Settlements, s.ID)
	}
	return b
}

// evidence is what the chain shows of something mined in this transaction.
func evidence(tx string) ledger.Evidence {
	return ledger.Evidence{Tx: tx, BlockNumber: 7, BlockHash: "0x" + hash("block 7"), LogIndex: 3}
}

func (f *fixture) mine(b ledger.Batch, outcomes ...ledger.ItemOutcome) error {
	var results []ledger.ItemResult
	for i, o := range outcomes {
		r := ledger.ItemResult{SettlementID: b.Settlements[i], Outcome: o}
		if o != ledger.ItemReverted {
			r.Evidence = evidence(b.Txs[0].Hash)
		}
		results = append(results, r)
	}
	e := evidence(b.Txs[0].Hash)
	return f.Mined(f.ctx(), b.ID, e.Tx, e.BlockNumber, e.BlockHash, results)
}

// reload reads p again.
func (f *fixture) reload(p ledger.Payment) ledger.Payment {
	f.Helper()
	row, err := f.Payment(f.ctx(), p.ID)
	f.ok(err)
	if row == nil {
		f.Fatalf("payment %s is gone", p.ID)
	}
	return *row
}

// state fails the test unless p is where it should be.
func (f *fixture) state(p ledger.Payment, work ledger.Work, money ledger.Money) ledger.Payment {
	f.Helper()
	p = f.reload(p)
	if p.Work != work || p.Money != money {
		f.Fatalf("%s is %s, %s, want %s, %s", p.ID, p.Work, p.Money, work, money)
	}
	return p
}

// events maps every event by its request id.
func (f *fixture) events() map[string]usage.Event {
	f.Helper()
	list, err := f.Events(f.ctx(), 10_000)
	f.ok(err)
	all := map[string]usage.Event{}
	for _, e := range list {
		if _, twice := all[e.RequestID]; twice {
			f.Errorf("the event of %s is there twice", e.RequestID)
		}
		all[e.RequestID] = e
	}
	return all
}

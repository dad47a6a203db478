package store_test

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
	"github.com/402claw/clawr/store/storetest"
	"github.com/402claw/clawr/usage"
)

// childEnv tells a copy of the test program to be a process that dies: its
// value is "file or URL|failpoint", or "file or URL|stream".
const childEnv = "CLAWR_STORE_CHILD"

func TestMain(m *testing.M) {
	if c := os.Getenv(childEnv); c != "" {
		child(c)
	}
	os.Exit(storetest.Main(m))
}

// child lives until somebody kills it: itself at the failpoint, or the parent.
func child(env string) {
	source, how, _ := strings.Cut(env, "|")
	o := store.Options{Path: source}
	if strings.HasPrefix(source, "postgres:") {
		o = store.Options{URL: source}
	}
	o.Failpoint = func(name string) {
		if name == how {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	ctx := context.Background()
	db, err := store.Open(ctx, o)
	if err != nil {
		fatal(err)
	}
	tenant, err := db.Deploy(ctx, clawr.Tenant{Slug: "acme", Manifest: clawr.Manifest{Owner: "ann"}}, "ann")
	if err != nil {
		fatal(err)
	}
	if strings.HasPrefix(how, "repa") {
		fatal(repaid(ctx, db, payment(tenant.ID, 1, ledger.SettleFirst)))
	}
	if how != "stream" {
		fatal(live(ctx, db, payment(tenant.ID, 1, ledger.SettleBeforeResponse)))
	}
	var serial atomic.Int64
	for range 8 {
		go func() {
			for {
				p := payment(tenant.ID, int(serial.Add(1)), ledger.SettleBeforeResponse)
				if _, err := db.Reserve(ctx, p, "child", time.Minute); err != nil {
					fatal(err)
				}
				fmt.Printf("T1 %s\n", p.ID)
				if err := db.Done(ctx, p.ID, 1, stored, callEvent(p)); err != nil {
					fatal(err)
				}
				fmt.Printf("T2 %s\n", p.ID)
			}
		}()
	}
	select {}
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "child:", err)
	os.Exit(3)
}

var stored = ledger.Answer{Status: 200, Ref: "/v1/records", SHA256: strings.Repeat("a", 64), Expires: time.UnixMicro(2_000_000_000_000_000)}

func callEvent(p ledger.Payment) usage.Event {
	return usage.Event{Time: time.UnixMicro(1_700_000_000_000_000), RequestID: "req_" + p.ID[4:], API: "acme", TenantID: p.TenantID, Price: 1000, Lifecycle: usage.Success, Countable: true}
}

const signer = "0x00000000000000000000000000000000000000dd"

// live carries a payment on from wherever it is until it is mined, as the
// process that finds it after a crash would.
func live(ctx context.Context, db *store.DB, p ledger.Payment) error {
	row, err := db.Find(ctx, p.Key)
	if err != nil {
		return err
	}
	if row == nil {
		r, err := db.Reserve(ctx, p, "node", -time.Second) // a lease that nobody needs to wait for
		if err != nil {
			return err
		}
		row = &r
	}
	if row.Work == ledger.Running {
		if row.Owner == "node" && row.Epoch == 1 && os.Getenv(childEnv) == "" {
			r, err := db.TakeOver(ctx, row.ID, row.Epoch, "survivor", time.Minute)
			if err != nil {
				return err
			}
			row = &r
		}
		if err := db.Done(ctx, row.ID, row.Epoch, stored, callEvent(*row)); err != nil {
			return err
		}
	}
	s, err := db.OpenSettlement(ctx, ledger.Settlement{Key: row.Key, PayTo: row.PayTo, Amount: row.Amount, ValidBefore: row.ValidBefore, Payload: row.Payload})
	if err != nil {
		return err
	}
	if s.Batch == nil {
		nonce, err := db.NextNonce(ctx, row.Network, signer)
		if err != nil {
			return err
		}
		b := ledger.Batch{ID: "bat_" + row.ID, Network: row.Network, Signer: signer, Nonce: nonce, Settlements: []string{s.ID}, Txs: []ledger.Tx{{Hash: "0x" + row.ID, Attempt: 1, Raw: []byte("raw")}}}
		if err := db.Sign(ctx, b); err != nil {
			return err
		}
		s.Batch = &b
	}
	tx := s.Batch.Txs[0].Hash
	return db.Mined(ctx, s.Batch.ID, tx, 7, "0xb", []ledger.ItemResult{{SettlementID: s.ID, Outcome: ledger.ItemPaid, Evidence: ledger.Evidence{Tx: tx, BlockNumber: 7, BlockHash: "0xb"}}})
}

func spawn(t *testing.T, o store.Options, how string) *exec.Cmd {
	t.Helper()
	program, err := os.Executable()
	must(t, err)
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), childEnv+"="+o.Path+o.URL+"|"+how)
	return cmd
}

// killed has a process die at a failpoint, on a database of its own, and opens
// what it leaves.
func killed(t *testing.T, o store.Options, failpoint string) *store.DB {
	t.Helper()
	if o.Path != "" {
		o.Path = t.TempDir() + "/clawr.db"
	} else {
		o.URL = storetest.Postgres(t)
	}
	out, err := spawn(t, o, failpoint).CombinedOutput()
	if err == nil || !strings.Contains(err.Error(), "killed") {
		t.Fatalf("the child ended with %v: %s", err, out)
	}
	return open(t, o)
}

// TestKilledAtEachBoundary kills a process at every boundary of the money path
// and looks at what is left; then another one finishes the payment.
func TestKilledAtEachBoundary(t *testing.T) {
	type left struct {
		work    ledger.Work // empty: no row
		money   ledger.Money
		answer  bool
		event   usage.Lifecycle
		batches int
	}
	atWork := left{work: ledger.Running, money: ledger.Held}
	answered := left{work: ledger.Done, money: ledger.Held, answer: true, event: usage.Unsettled}
	signed := left{work: ledger.Done, money: ledger.Signed, answer: true, event: usage.Unsettled, batches: 1}
	mined := left{work: ledger.Done, money: ledger.Mined, answer: true, event: usage.Success}
	onBoth(t, func(t *testing.T, o store.Options, raw *sql.DB) {
		for failpoint, want := range map[string]left{
			"t1.before": {}, "t1.after": atWork, "t2.before": atWork, "t2.after": answered,
			"t3.before": answered, "t3.after": signed, "mined.before": signed, "mined.after": mined,
		} {
			t.Run(failpoint, func(t *testing.T) {
				db := killed(t, o, failpoint)
				list, err := db.Payments(t.Context(), store.PaymentFilter{})
				must(t, err)
				tenants, err := db.Tenants(t.Context())
				must(t, err)
				p := payment(tenants[0].ID, 1, ledger.SettleBeforeResponse)
				got := left{}
				if len(list) > 0 {
					a, err := db.Answer(t.Context(), p.ID)
					must(t, err)
					got.work, got.money, got.answer = list[0].Work, list[0].Money, a != nil
				}
				events, err := db.Events(t.Context(), 10)
				must(t, err)
				if len(events) > 0 {
					got.event = events[0].Lifecycle
				}
				batches, err := db.OpenBatches(t.Context(), p.Network, signer)
				must(t, err)
				got.batches = len(batches)
				if got != want {
					t.Errorf("killed at %s, left %+v, want %+v", failpoint, got, want)
				}
				must(t, live(t.Context(), db, p))
				row, err := db.Payment(t.Context(), p.ID)
				must(t, err)
				if row == nil || row.Money != ledger.Mined {
					t.Errorf("another process could not finish it: %+v", row)
				}
				events, err = db.Events(t.Context(), 10)
				must(t, err)
				if len(events) != 1 || events[0].Billed != 1000 {
					t.Errorf("events at the end: %+v", events)
				}
				if c, err := db.Counters(t.Context(), "spend"); err != nil || len(c) != 1 || c[0].Used != 1 {
					t.Errorf("counters at the end: %+v, %v", c, err)
				}
			})
		}
	})
}

// TestKilledAtARandomMoment kills a process that takes payments as fast as it
// can: every write that it acknowledged must be there.
func TestKilledAtARandomMoment(t *testing.T) {
	onBoth(t, func(t *testing.T, o store.Options, raw *sql.DB) {
		open(t, o).Close()
		cmd := spawn(t, o, "stream")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		pipe, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		var mu sync.Mutex
		acknowledged := map[string][]string{}
		enough := make(chan struct{})
		read := make(chan struct{})
		go func() {
			defer close(read)
			n := 0
			for lines := bufio.NewScanner(pipe); lines.Scan(); n++ {
				step, id, _ := strings.Cut(lines.Text(), " ")
				mu.Lock()
				acknowledged[step] = append(acknowledged[step], id)
				mu.Unlock()
				if n == 300 {
					close(enough)
				}
			}
		}()
		select {
		case <-enough:
		case <-read:
			t.Fatalf("the child ended: %s", stderr.Bytes())
		case <-time.After(60 * time.Second):
			t.Error("the child is too slow")
		}
		must(t, cmd.Process.Kill())
		<-read
		_ = cmd.Wait()

		db := open(t, o)
		for step, ids := range acknowledged {
			for _, id := range ids {
				p, err := db.Payment(t.Context(), id)
				must(t, err)
				if p == nil || step == "T2" && p.Work != ledger.Done {
					t.Fatalf("%s of %s was acknowledged, and the row is %+v", step, id, p)
				}
				a, err := db.Answer(t.Context(), id)
				must(t, err)
				if (a != nil) != (p.Work == ledger.Done) {
					t.Fatalf("%s is %s, and its answer is %v", id, p.Work, a)
				}
			}
		}
		t.Logf("%d reservations and %d answers were acknowledged", len(acknowledged["T1"]), len(acknowledged["T2"]))
		var rows, events, used int
		must(t, raw.QueryRowContext(t.Context(), `SELECT COUNT(*), (SELECT COUNT(*) FROM usage_events), (SELECT used FROM counters) FROM payments`).Scan(&rows, &events, &used))
		var answers int
		must(t, raw.QueryRowContext(t.Context(), `SELECT COUNT(*) FROM payment_responses`).Scan(&answers))
		if rows != used || events != answers || rows < len(acknowledged["T1"]) {
			t.Errorf("%d rows and %d used, %d events and %d answers", rows, used, events, answers)
		}
	})
}

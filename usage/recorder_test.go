package usage

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// memory is a Sink that keeps events, and fails when it is told to.
type memory struct {
	mu     sync.Mutex
	kept   []Event
	ids    map[string]bool
	down   bool
	poison string // a request id that it cannot take
	calls  int
}

func (m *memory) Record(ctx context.Context, es []Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.down {
		return errors.New("down")
	}
	for _, e := range es {
		if m.poison != "" && e.RequestID == m.poison {
			return errors.New("poison")
		}
	}
	for _, e := range es {
		if m.ids == nil {
			m.ids = map[string]bool{}
		}
		if !m.ids[e.RequestID] {
			m.ids[e.RequestID] = true
			m.kept = append(m.kept, e)
		}
	}
	return nil
}

func (m *memory) set(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

func (m *memory) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.kept)
}

func call(i int) Event {
	return Event{Time: time.UnixMilli(int64(i)), RequestID: fmt.Sprint("req_", i), API: "a", Endpoint: "/x", Caller: "c", Lifecycle: Success, Status: 200, Countable: true}
}

func challenge(i int, api string) Event {
	return Event{Time: time.UnixMilli(int64(i)), RequestID: fmt.Sprint("chl_", i), TenantID: "t-" + api, API: api, Endpoint: "/x", Caller: fmt.Sprint(i), Lifecycle: Challenged,
		Status: 402, Latency: time.Duration(i) * time.Millisecond, Price: 1000, BytesOut: 5}
}

func TestEventsAreKeptWithinASecondAndOnStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := new(memory)
		r := &Recorder{Sink: m}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		for i := range 2500 {
			r.Record(call(i))
		}
		time.Sleep(time.Second)
		if m.len() != 2500 {
			t.Errorf("%d of 2500 events are kept after a second", m.len())
		}
		r.Record(call(2500))
		stop()
		if err := <-done; err != nil || m.len() != 2501 {
			t.Errorf("after the stop %d of 2501 events are kept: %v", m.len(), err)
		}
		for i, e := range m.kept {
			if e != call(i) {
				t.Fatalf("event %d is %+v", i, e)
			}
		}
	})
}

func TestAFailingSinkLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &memory{down: true}
		r := &Recorder{Sink: m}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		for i := range 5000 {
			r.Record(call(i))
		}
		time.Sleep(time.Minute)
		m.mu.Lock()
		if m.calls > 100 {
			t.Errorf("a sink that is down was asked %d times in a minute", m.calls)
		}
		m.down = false
		m.mu.Unlock()
		time.Sleep(30 * time.Second)
		if m.len() != 5000 {
			t.Errorf("%d of 5000 events are kept when the sink is back", m.len())
		}
		m.set(true)
		r.Record(call(5000))
		stop()
		if err := <-done; err == nil {
			t.Error("Run ends without an error though an event is lost")
		}
	})
}

func TestOnePoisonedEventHoldsUpNoOthers(t *testing.T) {
	m := &memory{poison: "req_3"}
	r := &Recorder{Sink: m}
	for i := range 1000 {
		r.Record(call(i))
	}
	for range 100 {
		_ = r.Flush(t.Context())
	}
	if m.len() != 999 || r.Stats().Waiting != 1 {
		t.Errorf("%d of the 999 good events are kept, %d wait", m.len(), r.Stats().Waiting)
	}
}

func TestMemoryIsBoundedAndLossIsCounted(t *testing.T) {
	m := &memory{down: true}
	r := &Recorder{Sink: m, Max: 100}
	for i := range 60 {
		r.Record(call(i))
	}
	_ = r.Flush(t.Context())
	for i := 60; i < 250; i++ {
		r.Record(call(i))
	}
	for i := range 40 {
		r.Record(challenge(i, "a")) // no room: counted, not lost
	}
	if s := r.Stats(); s != (RecorderStats{Recorded: 290, Merged: 40, Dropped: 150, Waiting: 101}) {
		t.Errorf("%+v", s)
	}
	m.set(false)
	for range 10 {
		_ = r.Flush(t.Context())
	}
	if m.len() != 101 || r.Stats().Waiting != 0 {
		t.Errorf("%d events kept, want the first 100 and one aggregate; %d wait", m.len(), r.Stats().Waiting)
	}
}

func TestAFloodOfChallengesIsCounted(t *testing.T) {
	m := new(memory)
	r := &Recorder{Sink: m, Listed: 10}
	for i := range 1000 {
		r.Record(challenge(i, "ab"[i%2:i%2+1]))
		r.Record(call(i))
	}
	if err := r.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	listed, merged, calls := 0, map[string]Event{}, 0
	for _, e := range m.kept {
		switch {
		case e.Countable:
			calls++
		case e.Caller == Aggregate:
			merged[e.API] = e
		default:
			listed++
		}
	}
	if calls != 1000 || listed != 10 || len(merged) != 2 {
		t.Fatalf("%d calls, %d challenges listed, %d aggregates; want 1000, 10 and 2", calls, listed, len(merged))
	}
	a := merged["a"] // stands for challenges 10, 12, … 998
	id := a.RequestID
	a.RequestID = ""
	want := Event{Time: time.UnixMilli(998), TenantID: "t-a", API: "a", Endpoint: "*", Caller: "*", Lifecycle: Challenged, Status: 402,
		Latency: 504 * time.Millisecond, Price: 1000, Units: 495, BytesOut: 5 * 495}
	if a != want || len(id) != 20 || a.Requests() != 495 {
		t.Errorf("aggregate\n got %+v (%s)\nwant %+v", a, id, want)
	}
	r.Record(challenge(5000, "a"))
	if err := r.Flush(t.Context()); err != nil || m.kept[len(m.kept)-1] != challenge(5000, "a") {
		t.Error("after the flood challenges are not listed again")
	}
}

// Whatever happens, every request is kept, waiting or counted as dropped.
func TestNoRequestIsUnaccountedFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := new(memory)
		r := &Recorder{Sink: m, Max: rapid.IntRange(1, 30).Draw(t, "max"), Listed: rapid.IntRange(1, 10).Draw(t, "listed")}
		n := 0
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				m.down = !m.down
			case 1:
				_ = r.Flush(context.Background())
			default:
				for range rapid.IntRange(1, 10).Draw(t, "burst") {
					if rapid.Bool().Draw(t, "challenge") {
						r.Record(challenge(n, rapid.SampledFrom([]string{"a", "b"}).Draw(t, "api")))
					} else {
						r.Record(call(n))
					}
					n++
				}
			}
			if w := r.Stats().Waiting; w > r.Max+2 {
				t.Fatalf("%d events in memory, Max is %d and there are two aggregates at most", w, r.Max)
			}
		}
		m.down = false
		for range 200 {
			_ = r.Flush(context.Background())
		}
		kept := int64(0)
		for _, e := range m.kept {
			kept += e.Requests()
		}
		if s := r.Stats(); s.Waiting != 0 || kept+s.Dropped != int64(n) || s.Recorded != int64(n) {
			t.Fatalf("%d requests: %d kept, %+v", n, kept, s)
		}
	})
}

func TestRecordIsSafeWhileFlushing(t *testing.T) {
	m := new(memory)
	r := &Recorder{Sink: m}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 1000 {
				r.Record(call(g*1000 + i))
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			_ = r.Flush(t.Context())
		}
	})
	wg.Wait()
	if err := r.Flush(t.Context()); err != nil || m.len() != 4000 {
		t.Errorf("%d of 4000 kept: %v", m.len(), err)
	}
}

func BenchmarkRecord(b *testing.B) {
	r := &Recorder{Sink: new(memory), Max: 1 << 30}
	e := call(1)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		r.Record(e)
		if n++; n%10000 == 0 {
			r.mu.Lock()
			r.queue = r.queue[:0]
			r.mu.Unlock()
		}
	}
}

func BenchmarkRecordFlood(b *testing.B) {
	r := &Recorder{Sink: new(memory), Listed: 1}
	e := challenge(1, "a")
	b.ReportAllocs()
	for b.Loop() {
		r.Record(e)
	}
}

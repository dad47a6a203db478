package storetest

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/402claw/clawr/usage"
	"github.com/google/go-cmp/cmp"
)

func importsCountOnce(f *fixture) {
	at := event(f.payment()).Time
	foreign := func(api, id string) usage.Event {
		return usage.Event{Time: at, RequestID: id, API: api, Endpoint: "/" + api, Owner: "@unknown", Directory: "Uncategorized", Caller: "anonymous", Status: 200, Price: 5, Billed: 5, Lifecycle: usage.Success, Billable: true, Countable: true}
	}
	p := f.answered()
	ours := event(p)
	list := []usage.Event{foreign("a", "1"), foreign("b", "1"), foreign("a", "1"), foreign("acme", ours.RequestID)}
	list[2].Price = 9
	list[1].PaymentID = "pay_of_somebody_else"
	n, err := f.ImportEvents(f.ctx(), list)
	f.ok(err)
	if n != 2 {
		f.Errorf("%d of 4 events were new, want 2", n)
	}
	n, err = f.ImportEvents(f.ctx(), list)
	f.ok(err)
	if n != 0 {
		f.Errorf("the same import again added %d", n)
	}
	f.ok(f.Record(f.ctx(), []usage.Event{foreign("a", "1"), foreign("a", "2")}))
	got, err := f.Events(f.ctx(), 100)
	f.ok(err)
	if len(got) != 4 || got[0].RequestID != ours.RequestID || got[0].PaymentID != p.ID || got[1].Price != 5 || got[2].PaymentID != "" || got[3].RequestID != "2" {
		f.Errorf("events: %+v", got)
	}
	if last, err := f.Events(f.ctx(), 2); err != nil || cmp.Diff(got[2:], last) != "" {
		f.Errorf("the last two: %+v, %v", last, err)
	}
	if diff := cmp.Diff(list[0], got[1]); diff != "" {
		f.Errorf("an event (-imported +read):\n%s", diff)
	}
}

// eventsInOrderOfArrival keeps more events than fit one write, whose times run
// backwards.
func eventsInOrderOfArrival(f *fixture) {
	const n = 1200
	start := time.UnixMicro(1_700_000_000_000_000).UTC()
	var list []usage.Event
	for i := range n {
		list = append(list, usage.Event{Time: start.Add(-time.Duration(i) * time.Second), RequestID: fmt.Sprintf("req_%d", i), API: "a", Lifecycle: usage.Success})
	}
	f.ok(f.Record(f.ctx(), list))
	for _, window := range []struct {
		name     string
		from, to time.Time
		want     []usage.Event
	}{
		{"all", time.Time{}, time.Time{}, list},
		{"from", start.Add(-9 * time.Second), time.Time{}, list[:10]},
		{"to", time.Time{}, start.Add(-1189 * time.Second), list[1190:]},
		{"between", start.Add(-19 * time.Second), start.Add(-9 * time.Second), list[10:20]},
		{"none", start.Add(time.Second), start.Add(time.Hour), nil},
	} {
		var got []usage.Event
		f.ok(f.EachEvent(f.ctx(), window.from, window.to, func(e usage.Event) error {
			got = append(got, e)
			return nil
		}))
		if !slices.Equal(got, window.want) {
			f.Errorf("%s: %d events, want %d, or not in order of arrival", window.name, len(got), len(window.want))
		}
	}
	stop := errors.New("enough")
	seen := 0
	err := f.EachEvent(f.ctx(), time.Time{}, time.Time{}, func(usage.Event) error {
		if seen++; seen == 3 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) || seen != 3 {
		f.Errorf("stopped after %d events with %v", seen, err)
	}
	last, err := f.Events(f.ctx(), 2)
	f.ok(err)
	if diff := cmp.Diff(list[n-2:], last); diff != "" {
		f.Errorf("the last two, newest last (-want +got):\n%s", diff)
	}
}

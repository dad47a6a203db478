package meter

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/402claw/clawr"
)

func TestWindowsAreUTC(t *testing.T) {
	for _, c := range []struct{ now, day, month string }{
		{"2026-03-31T23:59:59.999Z", "2026-03-31T00:00:00Z", "2026-03-01T00:00:00Z"},
		{"2026-04-01T00:00:00Z", "2026-04-01T00:00:00Z", "2026-04-01T00:00:00Z"},
		{"2026-04-01T01:30:00+02:00", "2026-03-31T00:00:00Z", "2026-03-01T00:00:00Z"},
		{"2028-02-29T12:00:00Z", "2028-02-29T00:00:00Z", "2028-02-01T00:00:00Z"},
	} {
		now, err := time.Parse(time.RFC3339, c.now)
		if err != nil {
			t.Fatal(err)
		}
		if got := DayStart(now).Format(time.RFC3339); got != c.day {
			t.Errorf("day of %s starts %s, want %s", c.now, got, c.day)
		}
		if got := MonthStart(now).Format(time.RFC3339); got != c.month {
			t.Errorf("month of %s starts %s, want %s", c.now, got, c.month)
		}
	}
}

func TestCountersOfACall(t *testing.T) {
	tenant := &clawr.Tenant{ID: "tnt_1", Manifest: clawr.Manifest{
		Usage: clawr.Quota{Daily: 100, Monthly: 1000}, Spend: clawr.Caps{Daily: 5_000_000, Monthly: 50_000_000}}}
	show := func(ws []Window) string {
		var b strings.Builder
		for _, w := range ws {
			fmt.Fprintf(&b, "%s %s..%s %d/%d %s\n", w.Scope, w.Start.Format(time.DateOnly), w.End.Format(time.DateOnly), w.Cost, w.Cap, w.Code)
		}
		return b.String()
	}
	want := `usage-day/tnt_1/0xa 2026-03-31..2026-04-01 1/100 usage_quota_exceeded
usage-month/tnt_1/0xa 2026-03-01..2026-04-01 1/1000 usage_quota_exceeded
spend-day/tnt_1/0xa 2026-03-31..2026-04-01 3000/5000000 cap_exceeded
spend-month/tnt_1/0xa 2026-03-01..2026-04-01 3000/50000000 cap_exceeded
`
	if got := show(Counters(tenant, "0xa", 1000, 3, noon)); got != want {
		t.Errorf("paid call of 3 units:\n%swant:\n%s", got, want)
	}
	if got := show(Counters(tenant, "0xa", 0, 0, noon)); got != strings.Join(strings.SplitAfter(want, "\n")[:2], "") {
		t.Errorf("free call:\n%swant only the quotas", got)
	}
	spendOnly := &clawr.Tenant{ID: "t", Manifest: clawr.Manifest{Spend: clawr.Caps{Daily: 5}}}
	if ws := Counters(spendOnly, "c", math.MaxInt64, math.MaxInt64, noon); len(ws) != 1 || ws[0].Cost+(1<<62) < 0 || ws[0].Cost <= ws[0].Cap {
		t.Errorf("a cost beyond 63 bits: %+v, want one that no cap allows and no sum overflows", ws)
	}
	if ws := Counters(spendOnly, "c", 5, 0, noon); ws != nil {
		t.Errorf("free call with a spend cap: %+v, want none", ws)
	}
}

func TestWindowHeadersAndRefusals(t *testing.T) {
	tenant := &clawr.Tenant{ID: "t", Manifest: clawr.Manifest{
		Usage: clawr.Quota{Daily: 10, Monthly: 20}, Spend: clawr.Caps{Daily: 1_500_000, Monthly: 2_000_000}}}
	used := []int64{4, 21, 1_499_500, 1_000_000}
	got := map[string]string{}
	ws := Counters(tenant, "c", 1000, 1, noon)
	for i, w := range ws {
		w.Headers(used[i], noon.Add(time.Millisecond), func(k, v string) { got[k] = v })
	}
	for k, v := range map[string]string{
		"X-Usage-Day-Limit": "10", "X-Usage-Day-Remaining": "6", "X-Usage-Day-Reset": "43200",
		"X-Usage-Month-Limit": "20", "X-Usage-Month-Remaining": "0", "X-Usage-Month-Reset": "43200",
		"X-Spend-Day-Limit": "1.5", "X-Spend-Day-Remaining": "0.0005", "X-Spend-Day-Reset": "43200",
		"X-Spend-Month-Limit": "2", "X-Spend-Month-Remaining": "1", "X-Spend-Month-Reset": "43200",
	} {
		if got[k] != v {
			t.Errorf("%s: %q, want %q", k, got[k], v)
		}
	}
	if len(got) != 12 {
		t.Errorf("%d headers, want 12: %v", len(got), got)
	}
	for i, want := range []string{
		"usage_quota_exceeded: all of the 10 requests that you may make here today are used",
		"usage_quota_exceeded: all of the 20 requests that you may make here this month are used",
		"cap_exceeded: this call costs $0.001, and $0.0005 of the $1.5 that you may spend here today is left",
		"cap_exceeded: this call costs $0.001, and $1 of the $2 that you may spend here this month is left",
	} {
		err := ws[i].Err(used[i], noon)
		if err.Error() != want {
			t.Errorf("refusal: %q\nwant %q", err, want)
		}
		if e := err.(*clawr.Error); e.RetryAfter != 12*time.Hour || e.HTTPStatus() != 429 {
			t.Errorf("%s: status %d, retry after %s", e.Code, e.HTTPStatus(), e.RetryAfter)
		}
	}
	over := Counters(&clawr.Tenant{Manifest: clawr.Manifest{Spend: clawr.Caps{Daily: 10}}}, "c", 1000, 1, noon)[0]
	if e := over.Err(0, noon).(*clawr.Error); e.RetryAfter != 0 {
		t.Errorf("a call above the whole cap is told to wait %s", e.RetryAfter)
	}
}

func TestEveryMomentIsInItsWindows(t *testing.T) {
	tenant := &clawr.Tenant{Manifest: clawr.Manifest{Usage: clawr.Quota{Daily: 1, Monthly: 1}}}
	rapid.Check(t, func(t *rapid.T) {
		now := time.UnixMicro(rapid.Int64Range(0, 4e15).Draw(t, "now"))
		for _, w := range Counters(tenant, "c", 0, 0, now) {
			if w.Start.After(now) || !w.End.After(now) {
				t.Fatalf("%s is not in %s..%s", now.UTC(), w.Start, w.End)
			}
			next := Counters(tenant, "c", 0, 0, w.End)
			if (w.Name == UsageDay && !next[0].Start.Equal(w.End)) || (w.Name == UsageMonth && !next[1].Start.Equal(w.End)) {
				t.Fatalf("%s ends at %s, and the next does not begin there", w.Name, w.End)
			}
		}
	})
}

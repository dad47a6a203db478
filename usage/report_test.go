package usage

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/402claw/clawr"
)

func TestVectors(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no vectors", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var v struct {
			Now       time.Time
			Top       int
			Events    json.RawMessage
			Snapshots []map[string]any
		}
		if err := json.Unmarshal(b, &v); err != nil {
			t.Fatal(file, err)
		}
		for _, want := range v.Snapshots {
			r := NewReport(Window(want["window"].(string)), v.Now)
			if _, err := Parse(bytes.NewReader(v.Events), func(e Event) error { r.Add(e); return nil }); err != nil {
				t.Fatal(file, err)
			}
			if diff := cmp.Diff(want, generic(t, r.Snapshot(v.Top))); diff != "" {
				t.Errorf("%s, %s (-want +got):\n%s", file, want["window"], diff)
			}
		}
	}
}

func generic(t testing.TB, v any) map[string]any {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestScoreByHand(t *testing.T) {
	for _, c := range []struct {
		in   Inputs
		want float64
	}{
		{Inputs{}, 10 - 20*0.18*6}, // 120·0.18 = 21.6, cut to 20
		{Inputs{Calls: 9, UniqueCallers: 9, RevenueUSD: 0.09, TopCallerShare: 1.0 / 9, MaxHourShare: 1.0 / 9}, 95},   // 40 + 25 + 20 + 10
		{Inputs{Calls: 99, UniqueCallers: 99, RevenueUSD: 0.99, ErrorRatePct: 10}, 80 + 50 + 40 + 3},                 //
		{Inputs{Calls: 99, UniqueCallers: 99, RevenueUSD: 0.99, ErrorRatePct: 10, P95LatencyMs: 1100}, 173 - 4},      //
		{Inputs{Calls: 99, UniqueCallers: 99, RevenueUSD: 0.99, ErrorRatePct: 90, P95LatencyMs: 99_999}, 170 - 15},   //
		{Inputs{Calls: 99, UniqueCallers: 9, TopCallerShare: 0.55, MaxHourShare: 0.5}, 80 + 20 + 10 - 10.69 - 8 - 7}, // 120·(0.18 − 9/99) = 10.6909…
		{Inputs{Calls: 99, UniqueCallers: 9, TopCallerShare: 1, MaxHourShare: 1}, 110 - 10.69 - 25 - 20},
	} {
		want := math.Round(c.want*100) / 100
		if c.in == (Inputs{}) {
			want = -10
		}
		if got := Score(c.in); got != want {
			t.Errorf("%+v scores %v, want %v", c.in, got, want)
		}
	}
}

// slow is product.md's report over a slice, written a second time in another
// way: every figure from the list of events, exact rationals, no sums kept.
func slow(all []Event, w Window, now time.Time, top int) Snapshot {
	in := slices.DeleteFunc(slices.Clone(all), func(e Event) bool {
		days := int(now.Truncate(24*time.Hour).Sub(e.Time.Truncate(24*time.Hour)) / (24 * time.Hour))
		return !e.Countable || e.Time.After(now) || w == Today && days > 0 || w == Week && days > 6
	})
	s := Snapshot{Window: w, GeneratedAt: Time(now), Range: Range{End: Time(now)}, Debug: &Debug{int64(len(all)), int64(len(in))}}
	if w != Overall {
		from := now.Truncate(24 * time.Hour)
		if w == Week {
			from = from.Add(-144 * time.Hour)
		}
		s.Range.Start = (*Time)(&from)
	}
	group := func(key func(Event) string) (names []string, by map[string][]Event) {
		by = map[string][]Event{}
		for _, e := range in {
			if by[key(e)] == nil {
				names = append(names, key(e))
			}
			by[key(e)] = append(by[key(e)], e)
		}
		return names, by
	}
	distinct := func(es []Event, key func(Event) string) int64 {
		set := map[string]bool{}
		for _, e := range es {
			set[key(e)] = true
		}
		return int64(len(set))
	}
	mode := func(es []Event, key func(Event) string) (most int64) {
		for _, e := range es {
			n := int64(0)
			for _, f := range es {
				if key(f) == key(e) {
					n++
				}
			}
			most = max(most, n)
		}
		return most
	}
	round := func(r *big.Rat, places int) float64 { // half up, of what is not negative
		scale := new(big.Rat).SetInt64(int64(math.Pow10(places)))
		x := new(big.Rat).Add(new(big.Rat).Mul(r, scale), big.NewRat(1, 2))
		whole := new(big.Int).Div(x.Num(), x.Denom())
		f, _ := new(big.Rat).Quo(new(big.Rat).SetInt(whole), scale).Float64()
		return f
	}
	sum := func(es []Event, of func(Event) clawr.Amount) *big.Rat {
		r := new(big.Rat)
		for _, e := range es {
			r.Add(r, big.NewRat(int64(of(e)), 1_000_000))
		}
		return r
	}
	billed := func(e Event) clawr.Amount { return e.Billed }
	caller := func(e Event) string { return e.Caller }
	names, by := group(func(e Event) string { return e.API })
	for _, name := range names {
		es := by[name]
		n := int64(len(es))
		a := API{APIID: name, TenantID: es[0].TenantID, Endpoint: es[0].Endpoint, Owner: es[0].Owner, Directory: es[0].Directory, Calls: n}
		a.RevenueUSD = round(sum(es, billed), 2)
		a.PriceUSD = round(new(big.Rat).Quo(sum(es, func(e Event) clawr.Amount { return e.Price }), big.NewRat(n, 1)), 5)
		a.UniqueCallers = distinct(es, caller)
		topCaller := mode(es, caller)
		hour := mode(es, func(e Event) string { return e.Time.Format("2006-01-02T15") })
		var lat []int
		total := new(big.Rat)
		for _, e := range es {
			if e.Status >= 500 || e.Status == 408 || e.Status == 429 || e.Error != "" {
				a.Errors++
			}
			if e.Latency > 0 {
				lat = append(lat, int(e.Latency/time.Microsecond))
				total.Add(total, big.NewRat(int64(e.Latency/time.Microsecond), 1000))
			}
		}
		p95 := 0
		if len(lat) > 0 {
			sort.Ints(lat)
			for i, l := range lat { // the first that 95 % do not exceed
				if (i+1)*100 >= 95*len(lat) {
					p95 = l
					break
				}
			}
			a.AvgLatencyMs = int64(round(total.Quo(total, big.NewRat(int64(len(lat)), 1)), 0))
			a.P95LatencyMs = int64(round(big.NewRat(int64(p95), 1000), 0))
		}
		a.ErrorRatePct = round(big.NewRat(100*a.Errors, n), 2)
		a.UptimePct = round(big.NewRat(100*(n-a.Errors), n), 2)
		a.TopCallerShare, a.MaxHourShare, a.DiversityRatio = round(big.NewRat(topCaller, n), 4), round(big.NewRat(hour, n), 4), round(big.NewRat(a.UniqueCallers, n), 4)
		rev, _ := sum(es, billed).Float64()
		cut := func(x, m float64) float64 { return math.Max(0, math.Min(m, x)) }
		f := func(a int64) float64 { return float64(a) / float64(n) }
		a.Score = math.Floor(100*(40*math.Log10(float64(n)+1)+25*math.Log10(100*rev+1)+20*math.Log10(float64(a.UniqueCallers)+1)+math.Max(0, 10-0.7*100*f(a.Errors))-
			cut(120*(0.18-f(a.UniqueCallers)), 20)-cut(80*(f(topCaller)-0.45), 25)-cut(70*(f(hour)-0.4), 20)-cut((float64(p95)/1000-800)/75, 15))+0.5) / 100
		s.All = append(s.All, a)
		s.Hero.Calls += n
		s.Hero.RevenueUSD += a.RevenueUSD
	}
	s.Hero.RevenueUSD = math.Round(s.Hero.RevenueUSD*100) / 100
	sort.SliceStable(s.All, func(i, j int) bool {
		a, b := s.All[i], s.All[j]
		switch {
		case a.Score != b.Score:
			return a.Score > b.Score
		case a.Calls != b.Calls:
			return a.Calls > b.Calls
		case a.RevenueUSD != b.RevenueUSD:
			return a.RevenueUSD > b.RevenueUSD
		case a.ErrorRatePct != b.ErrorRatePct:
			return a.ErrorRatePct < b.ErrorRatePct
		}
		return a.Endpoint < b.Endpoint
	})
	for i, a := range s.All {
		if i < top {
			a.Rank = i + 1
			s.Top = append(s.Top, a)
		}
	}
	names, by = group(func(e Event) string { return e.Directory })
	for _, name := range names {
		es := by[name]
		s.Directories = append(s.Directories, Directory{Directory: name, Calls: int64(len(es)), RevenueUSD: round(sum(es, billed), 2),
			APIs: distinct(es, func(e Event) string { return e.API }), UniqueCallers: distinct(es, caller)})
	}
	sort.SliceStable(s.Directories, func(i, j int) bool {
		a, b := s.Directories[i], s.Directories[j]
		switch {
		case a.Calls != b.Calls:
			return a.Calls > b.Calls
		case a.RevenueUSD != b.RevenueUSD:
			return a.RevenueUSD > b.RevenueUSD
		}
		return a.Directory < b.Directory
	})
	s.Hero.ActiveAgents, s.Hero.PublishedAPIs, s.Hero.Directories = distinct(in, caller), int64(len(s.All)), int64(len(s.Directories))
	return s
}

func TestReportEqualsTheSlowReference(t *testing.T) {
	now := time.Date(2023, 11, 22, 13, 14, 15, 160e6, time.UTC) // the events run from 14 to 25 November
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfN(events(), 0, 60).Draw(t, "events")
		few := rapid.IntRange(1, 5).Draw(t, "names") // so that names meet
		short := func(s string) string { return string("abcde"[int(s[len(s)-1])%few]) }
		for i := range all {
			e := &all[i]
			e.API, e.Caller, e.Directory, e.Endpoint = short(e.API), short(e.Caller), short(e.Directory), "/"+short(e.Endpoint)
		}
		top := rapid.IntRange(0, 6).Draw(t, "top")
		for _, w := range Windows() {
			r := NewReport(w, now)
			for _, e := range all {
				r.Add(e)
			}
			want, got := shown(slow(all, w, now, top)), shown(r.Snapshot(top))
			if want != got {
				t.Fatalf("%s:\n got %s\nwant %s", w, got, want)
			}
		}
	})
}

func shown(s Snapshot) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return strings.ReplaceAll(string(b), ":null", ":[]")
}

func TestOrderAmongEquals(t *testing.T) {
	at := time.Date(2026, 2, 13, 10, 0, 0, 0, time.UTC)
	r := NewReport(Overall, at)
	for i, api := range []string{"late", "b", "a", "b2"} {
		endpoint := map[string]string{"late": "/z", "a": "/a", "b": "/b", "b2": "/b"}[api]
		r.Add(Event{Time: at, API: api, Endpoint: endpoint, Caller: "c", Directory: fmt.Sprint("d", 9-i), Countable: true, Status: 200})
	}
	s := r.Snapshot(3)
	var apis, dirs []string
	for _, a := range s.All {
		apis = append(apis, a.APIID)
	}
	for _, d := range s.Directories {
		dirs = append(dirs, d.Directory)
	}
	if got := strings.Join(apis, " "); got != "a b b2 late" {
		t.Errorf("APIs of one score come as %s, want them by endpoint, then by arrival", got)
	}
	if got := strings.Join(dirs, " "); got != "d6 d7 d8 d9" {
		t.Errorf("directories come as %s, want them by name", got)
	}
	if len(s.Top) != 3 || s.Top[2].Rank != 3 || s.All[0].Rank != 0 {
		t.Errorf("top: %+v", s.Top)
	}
	if p := s.Public(); p.Debug != nil || s.Debug == nil {
		t.Error("the public shape has debug counts, or took them from the operator's")
	}
}

func TestAnEmptyReportHasItsShape(t *testing.T) {
	b, _ := json.Marshal(NewReport(Overall, time.Unix(0, 0)).Snapshot(25))
	want := `{"window":"overall","generatedAt":"1970-01-01T00:00:00.000Z","range":{"startAt":null,"endAt":"1970-01-01T00:00:00.000Z"},` +
		`"heroStats":{"activeAgents":0,"publishedApis":0,"directories":0,"calls":0,"revenueUsd":0},"topApis":[],"allApis":[],"directories":[],` +
		`"debug":{"eventsReceived":0,"eventsConsidered":0}}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	for _, bad := range []string{"", "month", "Today", "today "} {
		if _, err := ParseWindow(bad); clawr.CodeOf(err) != clawr.CodeBadWindow {
			t.Errorf("window %q: %v, want invalid_window", bad, err)
		}
	}
}

func BenchmarkReport(b *testing.B) {
	at := time.Date(2026, 2, 13, 10, 0, 0, 0, time.UTC)
	r := NewReport(Overall, at)
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		r.Add(Event{Time: at.Add(-time.Duration(i%100) * time.Hour), API: "gold", Caller: "abc"[i%3 : i%3+1], Status: 200, Countable: true, Billed: 1000,
			Latency: time.Duration(i%5000) * time.Microsecond})
	}
}

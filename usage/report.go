package usage

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/402claw/clawr"
)

// Window is a stretch of time that a Report covers.
type Window string

// The windows, in UTC: today from 00:00, the week from 00:00 six days ago,
// and everything; all of them end now.
const (
	Today   Window = "today"
	Week    Window = "week"
	Overall Window = "overall"
)

// Windows are all of them.
func Windows() []Window { return []Window{Today, Week, Overall} }

// ParseWindow refuses what is not a window.
func ParseWindow(s string) (Window, error) {
	if slices.Contains(Windows(), Window(s)) {
		return Window(s), nil
	}
	return "", &clawr.Error{Code: clawr.CodeBadWindow, Param: "window", Message: fmt.Sprintf("there is no window %q", s), Fix: "use today, week or overall"}
}

// Start is when w began if it ends at now; the zero time for overall.
func (w Window) Start(now time.Time) time.Time {
	if w == Overall {
		return time.Time{}
	}
	y, m, d := now.UTC().Date()
	if w == Week {
		d -= 6
	}
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
}

// Report adds up events into the figures and the ranking of product.md, for
// one window that ends at Now. Only countable events count, and none from the
// future. It is exact, and its memory grows with the APIs, their callers and
// their distinct latencies, not with the number of events.
//
// Add every event once, in order of arrival: what an API is called, and who
// comes first among equals, is decided by the first event.
type Report struct {
	window   Window
	start    time.Time
	now      time.Time
	apis     map[string]*apiSum
	order    []*apiSum
	dirs     map[string]*dirSum
	dirOrder []*dirSum
	callers  map[string]struct{}

	received, considered int64
}

type apiSum struct {
	first     Event // names it
	calls     int64
	revenue   clawr.Amount
	price     clawr.Amount // sum over the calls
	errors    int64
	callers   map[string]int64
	hours     map[int64]int64
	latencies map[time.Duration]int64 // those above 0
}

type dirSum struct {
	name    string
	calls   int64
	revenue clawr.Amount
	apis    map[string]struct{}
	callers map[string]struct{}
}

// NewReport is an empty report of w, ending at now, to the millisecond.
func NewReport(w Window, now time.Time) *Report {
	now = time.UnixMilli(now.UnixMilli()).UTC()
	return &Report{window: w, now: now, start: w.Start(now),
		apis: make(map[string]*apiSum), dirs: make(map[string]*dirSum), callers: make(map[string]struct{})}
}

// Add takes one event into account.
func (r *Report) Add(e Event) {
	r.received += e.Requests()
	at := time.UnixMilli(e.Time.UnixMilli())
	if !e.Countable || at.After(r.now) || r.window != Overall && at.Before(r.start) {
		return
	}
	r.considered++
	r.callers[e.Caller] = struct{}{}
	r.api(&e).add(&e)
	r.directory(e.Directory).add(&e)
}

func (r *Report) api(e *Event) *apiSum {
	a := r.apis[e.API]
	if a == nil {
		a = &apiSum{first: *e, callers: make(map[string]int64), hours: make(map[int64]int64), latencies: make(map[time.Duration]int64)}
		r.apis[e.API] = a
		r.order = append(r.order, a)
	}
	return a
}

func (r *Report) directory(name string) *dirSum {
	d := r.dirs[name]
	if d == nil {
		d = &dirSum{name: name, apis: make(map[string]struct{}), callers: make(map[string]struct{})}
		r.dirs[name] = d
		r.dirOrder = append(r.dirOrder, d)
	}
	return d
}

func (a *apiSum) add(e *Event) {
	a.calls++
	a.revenue += e.Billed
	a.price += e.Price
	if e.Failed() {
		a.errors++
	}
	a.callers[e.Caller]++
	a.hours[floorDiv(e.Time.UnixMilli(), int64(time.Hour/time.Millisecond))]++
	if us := e.Latency.Truncate(time.Microsecond); us > 0 {
		a.latencies[us]++
	}
}

func (d *dirSum) add(e *Event) {
	d.calls++
	d.revenue += e.Billed
	d.apis[e.API] = struct{}{}
	d.callers[e.Caller] = struct{}{}
}

// API is the figures of one API in a window.
type API struct {
	Rank           int     `json:"rank,omitempty"` // from 1, among the top
	APIID          string  `json:"apiId"`
	TenantID       string  `json:"tenantId,omitempty"`
	Endpoint       string  `json:"endpoint"`
	Owner          string  `json:"owner"`
	Directory      string  `json:"directory"`
	PriceUSD       float64 `json:"priceUsd"` // mean, 5 places
	Calls          int64   `json:"calls"`
	RevenueUSD     float64 `json:"revenueUsd"` // 2 places
	UniqueCallers  int64   `json:"uniqueCallers"`
	AvgLatencyMs   int64   `json:"avgLatencyMs"` // over latencies above 0
	P95LatencyMs   int64   `json:"p95LatencyMs"` // nearest rank, over latencies above 0
	Errors         int64   `json:"errors"`
	ErrorRatePct   float64 `json:"errorRatePct"`   // 2 places
	UptimePct      float64 `json:"uptimePct"`      // 2 places
	TopCallerShare float64 `json:"topCallerShare"` // 4 places
	MaxHourShare   float64 `json:"maxHourShare"`   // 4 places
	DiversityRatio float64 `json:"diversityRatio"` // 4 places
	Score          float64 `json:"score"`          // 2 places

	cents int64 // RevenueUSD, exactly
}

// Directory is the figures of one category, over its events.
type Directory struct {
	Directory     string  `json:"directory"`
	Calls         int64   `json:"calls"`
	RevenueUSD    float64 `json:"revenueUsd"` // 2 places
	APIs          int64   `json:"apis"`
	UniqueCallers int64   `json:"uniqueCallers"`

	cents int64
}

// Snapshot is a window's report as it is shown.
type Snapshot struct {
	Window      Window      `json:"window"`
	GeneratedAt Time        `json:"generatedAt"`
	Range       Range       `json:"range"`
	Hero        Hero        `json:"heroStats"`
	Top         []API       `json:"topApis"`
	All         []API       `json:"allApis"`
	Directories []Directory `json:"directories"`
	Debug       *Debug      `json:"debug,omitempty"`
}

// Range is the time that a snapshot covers, both ends included. Start is nil
// for overall.
type Range struct {
	Start *Time `json:"startAt"`
	End   Time  `json:"endAt"`
}

// Hero is the totals of a snapshot.
type Hero struct {
	ActiveAgents  int64   `json:"activeAgents"`
	PublishedAPIs int64   `json:"publishedApis"`
	Directories   int64   `json:"directories"`
	Calls         int64   `json:"calls"`
	RevenueUSD    float64 `json:"revenueUsd"`
}

// Debug says how many events there were, and how many of them counted here.
type Debug struct {
	Received   int64 `json:"eventsReceived"`
	Considered int64 `json:"eventsConsidered"`
}

// Snapshot is what has been added so far, with the first top APIs ranked.
func (r *Report) Snapshot(top int) Snapshot {
	s := Snapshot{Window: r.window, GeneratedAt: Time(r.now), Range: Range{End: Time(r.now)},
		All: make([]API, 0, len(r.order)), Directories: make([]Directory, 0, len(r.dirOrder)),
		Debug: &Debug{Received: r.received, Considered: r.considered}}
	if r.window != Overall {
		start := Time(r.start)
		s.Range.Start = &start
	}
	cents := int64(0)
	for _, a := range r.order {
		api := a.figures()
		s.All = append(s.All, api)
		s.Hero.Calls += api.Calls
		cents += api.cents
	}
	// What is compared is what is shown; the sort is stable, so that equals
	// stay in order of arrival.
	slices.SortStableFunc(s.All, func(a, b API) int {
		return cmp.Or(cmp.Compare(b.Score, a.Score), cmp.Compare(b.Calls, a.Calls), cmp.Compare(b.cents, a.cents),
			cmp.Compare(a.ErrorRatePct, b.ErrorRatePct), cmp.Compare(a.Endpoint, b.Endpoint))
	})
	s.Top = slices.Clone(s.All[:min(max(top, 0), len(s.All))])
	for i := range s.Top {
		s.Top[i].Rank = i + 1
	}
	for _, d := range r.dirOrder {
		s.Directories = append(s.Directories, d.figures())
	}
	slices.SortStableFunc(s.Directories, func(a, b Directory) int {
		return cmp.Or(cmp.Compare(b.Calls, a.Calls), cmp.Compare(b.cents, a.cents), cmp.Compare(a.Directory, b.Directory))
	})
	s.Hero.ActiveAgents = int64(len(r.callers))
	s.Hero.PublishedAPIs = int64(len(s.All))
	s.Hero.Directories = int64(len(s.Directories))
	s.Hero.RevenueUSD = float64(cents) / 100
	return s
}

// Public is s without what only the operator sees.
func (s Snapshot) Public() Snapshot {
	s.Debug = nil
	return s
}

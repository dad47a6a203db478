package api

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/402claw/clawr/usage"
)

// Platform answers /__platform/* on the public listener: the last events and
// the ranking, to tokens with the scope.
type Platform struct {
	Events    Events
	Authorize func(*http.Request) (Principal, error)
	Public    bool                        // analytics need no token, and leave out debug counts for those without one
	Flush     func(context.Context) error // as the Handler's
	Docs      string
	Log       *slog.Logger // nil: none
	Now       func() time.Time

	mux   http.Handler
	cache reportCache
}

// NewPlatform gives p its routes and returns it.
func NewPlatform(p *Platform) *Platform {
	if p.Now == nil {
		p.Now = time.Now
	}
	scope := AnalyticsRead
	if p.Public {
		scope = ""
	}
	f := &face{authorize: p.Authorize, log: p.Log, docs: p.Docs}
	p.mux = f.routes(map[string]methods{
		"/__platform/events":    {"GET": {EventsRead, p.events}},
		"/__platform/analytics": {"GET": {scope, p.analytics}},
	})
	return p
}

func (p *Platform) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.mux.ServeHTTP(w, r) }

func (p *Platform) flush(ctx context.Context) error {
	if p.Flush == nil {
		return nil
	}
	return p.Flush(ctx)
}

type platformEvents struct {
	OK        bool          `json:"ok"`
	RequestID string        `json:"requestId"`
	Returned  int           `json:"returned"`
	Events    []usage.Event `json:"events"` // newest last
}

func (p *Platform) events(r *request) (any, error) {
	limit, err := r.number("limit", 100, 1, 2000)
	if err != nil {
		return nil, err
	}
	if err := p.flush(r.Context()); err != nil {
		return nil, err
	}
	list, err := p.Events.Events(r.Context(), limit)
	return platformEvents{true, r.ID, len(list), orEmpty(list)}, err
}

type platformSnapshot struct {
	OK        bool   `json:"ok"`
	RequestID string `json:"requestId"`
	usage.Snapshot
}

type platformReports struct {
	OK        bool   `json:"ok"`
	RequestID string `json:"requestId"`
	Reports
}

func (p *Platform) analytics(r *request) (any, error) {
	q, err := parseReportQuery(r.URL.Query(), 100)
	if err != nil {
		return nil, err
	}
	reports, err := p.cache.get(r.Context(), p)
	if err != nil {
		return nil, err
	}
	// With a setting that makes them public, a token still shows everything.
	public := p.Public
	if public && r.Header.Get("Authorization") != "" {
		by, err := p.Authorize(r.Request)
		public = err != nil || !by.Can(AnalyticsRead)
	}
	show := func(w usage.Window) usage.Snapshot {
		s := reports[w].Snapshot(q.top)
		if public {
			s = s.Public()
		}
		return s
	}
	if len(q.windows) == 1 {
		return platformSnapshot{true, r.ID, show(q.windows[0])}, nil
	}
	out := platformReports{true, r.ID, Reports{Windows: make(map[usage.Window]usage.Snapshot)}}
	for _, w := range usage.Windows() {
		s := show(w)
		out.GeneratedAt, out.Windows[w] = s.GeneratedAt, s
	}
	return out, nil
}

// freshness is how old an answer of /__platform/analytics may be. It is on the
// public listener and reads all events: however often it is asked, they are
// read by one request at a time, and once in so long.
const freshness = time.Second

// reportCache keeps the last reports. They are not added to after they are
// made, and so may be read by many.
type reportCache struct {
	mu      sync.Mutex
	at      time.Time
	reports map[usage.Window]*usage.Report
}

func (c *reportCache) get(ctx context.Context, p *Platform) (map[usage.Window]*usage.Report, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := p.Now()
	if c.reports != nil && now.Sub(c.at) < freshness && !now.Before(c.at) {
		return c.reports, nil
	}
	if err := p.flush(ctx); err != nil {
		return nil, err
	}
	reports, err := report(ctx, p.Events, usage.Windows(), p.Now())
	if err != nil {
		return nil, err
	}
	c.at, c.reports = p.Now(), reports
	return reports, nil
}

package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/usage"
)

// defaultImport bounds the body of one import.
const defaultImport = 32 << 20

type eventList struct {
	Events []usage.Event `json:"events"` // newest last
}

// Imported says what became of imported events.
type Imported struct {
	usage.Parsed
	Added int `json:"added"` // the others were known already
}

func (h *Handler) flush(ctx context.Context) error {
	if h.Flush == nil {
		return nil
	}
	return h.Flush(ctx)
}

func (h *Handler) listEvents(r *request) (any, error) {
	limit, err := r.number("limit", 100, 1, 2000)
	if err != nil {
		return nil, err
	}
	if err := h.flush(r.Context()); err != nil {
		return nil, err
	}
	list, err := h.Events.Events(r.Context(), limit)
	return eventList{orEmpty(list)}, err
}

// importEvents reads everything before it keeps anything: a body with an
// error in it changes nothing.
func (h *Handler) importEvents(r *request) (any, error) {
	limit := h.MaxImport
	if limit <= 0 {
		limit = defaultImport
	}
	var list []usage.Event
	p, err := usage.Parse(http.MaxBytesReader(r.w, r.Body, limit), func(e usage.Event) error {
		list = append(list, e)
		return nil
	})
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, bodyTooLarge(tooLarge.Limit)
	}
	if err != nil {
		return nil, err
	}
	added, err := h.Events.ImportEvents(r.Context(), list)
	return Imported{p, added}, err
}

// Reports is the snapshots of several windows.
type Reports struct {
	GeneratedAt usage.Time                      `json:"generatedAt"`
	Windows     map[usage.Window]usage.Snapshot `json:"windows"`
}

// reportQuery is what /v1/analytics and /__platform/analytics are asked.
type reportQuery struct {
	windows []usage.Window // nil: all
	top     int
	now     time.Time // zero: now
}

func parseReportQuery(q url.Values, most int) (reportQuery, error) {
	out := reportQuery{top: 25}
	r := request{Request: &http.Request{URL: &url.URL{RawQuery: q.Encode()}}}
	var err error
	if out.top, err = r.number("top", 25, 1, most); err != nil {
		return out, err
	}
	if q.Has("window") {
		w, err := usage.ParseWindow(strings.ToLower(q.Get("window")))
		if err != nil {
			return out, err
		}
		out.windows = []usage.Window{w}
	}
	if s := q.Get("now"); s != "" {
		if out.now, err = time.Parse(time.RFC3339, s); err != nil || out.now.Year() < 1970 || out.now.Year() > 9998 {
			return out, refuse(clawr.CodeBadRequest, "now", "now is not a time", "--now 2026-01-31T12:00:00Z")
		}
	}
	return out, nil
}

// report streams all events once into a report for each window.
func report(ctx context.Context, events Events, windows []usage.Window, now time.Time) (map[usage.Window]*usage.Report, error) {
	reports := make(map[usage.Window]*usage.Report, len(windows))
	for _, w := range windows {
		reports[w] = usage.NewReport(w, now)
	}
	err := events.EachEvent(ctx, time.Time{}, time.Time{}, func(e usage.Event) error {
		for _, r := range reports {
			r.Add(e)
		}
		return nil
	})
	return reports, err
}

// analytics answers with one snapshot if a window is asked for, and with all
// of them otherwise.
func (h *Handler) analytics(r *request) (any, error) {
	q, err := parseReportQuery(r.URL.Query(), 10_000)
	if err != nil {
		return nil, err
	}
	if err := h.flush(r.Context()); err != nil {
		return nil, err
	}
	if q.now.IsZero() {
		q.now = h.now()
	}
	one := len(q.windows) == 1
	if !one {
		q.windows = usage.Windows()
	}
	reports, err := report(r.Context(), h.Events, q.windows, q.now)
	if err != nil {
		return nil, err
	}
	if one {
		return reports[q.windows[0]].Snapshot(q.top), nil
	}
	return all(reports, q.top), nil
}

func all(reports map[usage.Window]*usage.Report, top int) Reports {
	out := Reports{Windows: make(map[usage.Window]usage.Snapshot, len(reports))}
	for w, r := range reports {
		s := r.Snapshot(top)
		out.GeneratedAt, out.Windows[w] = s.GeneratedAt, s
	}
	return out
}

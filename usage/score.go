package usage

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"time"
)

// figures rounds what was added up, and only for show: the score is computed
// from unrounded inputs.
func (a *apiSum) figures() API {
	unique := int64(len(a.callers))
	topCaller, maxHour := largest(a.callers), largest(a.hours)
	avg, p95 := latency(a.latencies)
	return API{
		APIID: a.first.API, TenantID: a.first.TenantID, Endpoint: a.first.Endpoint, Owner: a.first.Owner, Directory: a.first.Directory,
		PriceUSD:       decimal(int64(a.price), 10*a.calls, 5),
		Calls:          a.calls,
		RevenueUSD:     decimal(int64(a.revenue), 10_000, 2),
		UniqueCallers:  unique,
		AvgLatencyMs:   avg,
		P95LatencyMs:   roundDiv(p95.Microseconds(), 1000),
		Errors:         a.errors,
		ErrorRatePct:   decimal(10_000*a.errors, a.calls, 2),
		UptimePct:      decimal(10_000*(a.calls-a.errors), a.calls, 2),
		TopCallerShare: decimal(10_000*topCaller, a.calls, 4),
		MaxHourShare:   decimal(10_000*maxHour, a.calls, 4),
		DiversityRatio: decimal(10_000*unique, a.calls, 4),
		Score: Score(Inputs{Calls: a.calls, RevenueUSD: float64(a.revenue) / 1e6, UniqueCallers: unique,
			ErrorRatePct: 100 * float64(a.errors) / float64(a.calls), TopCallerShare: float64(topCaller) / float64(a.calls),
			MaxHourShare: float64(maxHour) / float64(a.calls), P95LatencyMs: float64(p95.Microseconds()) / 1000}),
		cents: roundDiv(int64(a.revenue), 10_000),
	}
}

func (d *dirSum) figures() Directory {
	return Directory{Directory: d.name, Calls: d.calls, RevenueUSD: decimal(int64(d.revenue), 10_000, 2),
		APIs: int64(len(d.apis)), UniqueCallers: int64(len(d.callers)), cents: roundDiv(int64(d.revenue), 10_000)}
}

// Inputs are what an API's score is made of, unrounded.
type Inputs struct {
	Calls          int64
	RevenueUSD     float64
	UniqueCallers  int64
	ErrorRatePct   float64
	TopCallerShare float64
	MaxHourShare   float64
	P95LatencyMs   float64
}

// Score is product.md's formula, rounded half up to 2 places: calls, revenue
// and callers count by their magnitude, quality adds, and what looks like one
// caller's, one hour's or a slow API's traffic takes away.
func Score(in Inputs) float64 {
	diversity := 0.0
	if in.Calls > 0 {
		diversity = float64(in.UniqueCallers) / float64(in.Calls)
	}
	s := 40*math.Log10(float64(in.Calls)+1) +
		25*math.Log10(100*in.RevenueUSD+1) +
		20*math.Log10(float64(in.UniqueCallers)+1) +
		max(0, 10-0.7*in.ErrorRatePct) -
		clamp(120*(0.18-diversity), 20) -
		clamp(80*(in.TopCallerShare-0.45), 25) -
		clamp(70*(in.MaxHourShare-0.40), 20) -
		clamp((in.P95LatencyMs-800)/75, 15)
	return math.Floor(s*100+0.5) / 100
}

func clamp(x, most float64) float64 { return min(max(x, 0), most) }

// latency is the mean of the latencies in whole ms, and the smallest that is
// no less than 95 % of them; both 0 if there are none.
func latency(counts map[time.Duration]int64) (avg int64, p95 time.Duration) {
	var n, sum int64
	for d, c := range counts {
		n += c
		sum += c * d.Microseconds()
	}
	if n == 0 {
		return 0, 0
	}
	rank := (95*n + 99) / 100
	for _, d := range slices.Sorted(maps.Keys(counts)) {
		if rank -= counts[d]; rank <= 0 {
			p95 = d
			break
		}
	}
	return roundDiv(sum, 1000*n), p95
}

func largest[K comparable](counts map[K]int64) int64 {
	var most int64
	for _, n := range counts {
		most = max(most, n)
	}
	return most
}

// decimal is num/den rounded half up to an integer and read as that many
// units of the last of places: exact, where floating point would turn a tie
// one way or the other.
func decimal(num, den int64, places int) float64 {
	return float64(roundDiv(num, den)) / math.Pow10(places)
}

// roundDiv is num/den rounded half up, for den > 0.
func roundDiv(num, den int64) int64 {
	q := floorDiv(num, den)
	if num-q*den >= den-(num-q*den) {
		q++
	}
	return q
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// Time is a time.Time that JSON shows in UTC with exactly three decimal
// places, as JavaScript's toISOString does.
type Time time.Time

// MarshalJSON writes 2026-02-13T00:00:00.000Z.
func (t Time) MarshalJSON() ([]byte, error) {
	return json.Marshal(time.Time(t).UTC().Format("2006-01-02T15:04:05.000Z"))
}

// UnmarshalJSON reads RFC 3339.
func (t *Time) UnmarshalJSON(b []byte) error { return (*time.Time)(t).UnmarshalJSON(b) }

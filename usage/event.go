// Package usage keeps what happened: one Event per request, reports over them,
// and the ranking of APIs.
package usage

import (
	"time"

	"github.com/402claw/clawr"
)

// Lifecycle says how a request ended.
type Lifecycle string

// The lifecycles of product.md.
const (
	Challenged   Lifecycle = "payment_challenged"
	Invalid      Lifecycle = "payment_invalid"
	SpendCap     Lifecycle = "spend_cap_exceeded"
	RateLimited  Lifecycle = "rate_limited"
	Quota        Lifecycle = "usage_quota_exceeded"
	SettleFailed Lifecycle = "settlement_failed"
	Unsettled    Lifecycle = "settlement_pending"
	Success      Lifecycle = "dispatch_success"
	Failure      Lifecycle = "dispatch_failure"
	Replayed     Lifecycle = "replayed"
)

// Event is what one request was: its log line, its metric and its row in the
// analytics. Caller is a hash, never an address or a key.
type Event struct {
	Time      time.Time
	RequestID string // req_ + 16 hex
	TenantID  string
	PaymentID string // the payments row, for paid calls
	API       string // slug
	Endpoint  string // the path that the tenant sees
	Owner     string // "@name"
	Directory string
	Caller    string
	Status    int
	Latency   time.Duration
	Billed    clawr.Amount
	Price     clawr.Amount
	Units     int64
	BytesOut  int64
	Lifecycle Lifecycle
	Billable  bool
	Countable bool
	Error     string // a code; empty when all went well
}

// Aggregate is the Endpoint and the Caller of an event that stands for many:
// see Recorder.
const Aggregate = "*"

// Requests is how many requests e stands for: one, or the Units of an
// aggregate.
func (e *Event) Requests() int64 {
	if e.Caller == Aggregate && e.Endpoint == Aggregate && !e.Countable {
		return max(e.Units, 1)
	}
	return 1
}

// Failed reports whether e counts as an error of its API: a status of 500 or
// more, 408 or 429, or an error that it names.
func (e *Event) Failed() bool {
	return e.Status >= 500 || e.Status == 408 || e.Status == 429 || e.Error != ""
}

package usage

import (
	"bytes"
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/402claw/clawr"
)

// wire is an Event as product.md names its fields.
type wire struct {
	Timestamp int64       `json:"timestamp"` // ms
	RequestID string      `json:"requestId"`
	TenantID  string      `json:"tenantId"`
	PaymentID string      `json:"paymentId,omitempty"`
	APIID     string      `json:"apiId"`
	Endpoint  string      `json:"endpoint"`
	Owner     string      `json:"owner"`
	Directory string      `json:"directory"`
	CallerID  string      `json:"callerId"`
	Status    int         `json:"status"`
	LatencyMs json.Number `json:"latencyMs"` // to the microsecond
	BilledUSD json.Number `json:"billedUsd"`
	PriceUSD  json.Number `json:"priceUsd"`
	Units     int64       `json:"units,omitempty"`
	BytesOut  int64       `json:"bytesOut,omitempty"`
	Lifecycle Lifecycle   `json:"lifecycle,omitempty"`
	Billable  bool        `json:"billable"`
	Countable bool        `json:"countable"`
	Error     string      `json:"error,omitempty"`
}

// MarshalJSON writes e with product.md's names: its time in whole
// milliseconds, its latency in milliseconds to three places, and money as
// plain decimal numbers of US dollars.
func (e Event) MarshalJSON() ([]byte, error) {
	return json.Marshal(wire{e.Time.UnixMilli(), e.RequestID, e.TenantID, e.PaymentID, e.API, e.Endpoint, e.Owner, e.Directory, e.Caller,
		e.Status, millis(e.Latency), json.Number(e.Billed.String()), json.Number(e.Price.String()), e.Units, e.BytesOut,
		e.Lifecycle, e.Billable, e.Countable, e.Error})
}

// UnmarshalJSON reads an event as Parse does, but takes one without an api:
// clawr's own of a request that was for nobody.
func (e *Event) UnmarshalJSON(b []byte) error {
	got, ok := normalize(b)
	if !ok {
		return badEvents("an event has no time")
	}
	*e = got
	return nil
}

// millis writes d, which is not negative, in milliseconds.
func millis(d time.Duration) json.Number {
	return json.Number(strconv.FormatFloat(float64(max(d, 0)/time.Microsecond)/1000, 'f', -1, 64))
}

// normalize makes an event of a JSON object, by the aliases and defaults of
// product.md. It is false for what has no time; whoever asks looks for the api.
func normalize(raw []byte) (Event, bool) {
	var f fields
	if json.Unmarshal(raw, &f) != nil || f == nil {
		return Event{}, false
	}
	at, ok := f.time("timestamp", "ts", "occurredAt")
	if !ok {
		return Event{}, false
	}
	e := Event{
		Time:      at,
		RequestID: f.text("requestId", "traceId", "id"),
		TenantID:  f.text("tenantId"),
		API:       f.text("apiId", "api", "endpoint", "path", "route"),
		Endpoint:  f.text("endpoint", "path", "route"),
		Owner:     or(f.text("owner", "publisher", "creator"), "@unknown"),
		Directory: or(f.text("directory", "category"), "Uncategorized"),
		Caller:    or(f.text("callerId", "agentId", "buyerId", "wallet"), "anonymous"),
		PaymentID: f.text("paymentId"),
		Status:    int(f.integer(200, "status", "statusCode")),
		Latency:   f.latency("latencyMs", "durationMs"),
		Lifecycle: Lifecycle(f.text("lifecycle")),
		Units:     max(f.integer(0, "units"), 0),
		BytesOut:  max(f.integer(0, "bytesOut"), 0),
		Error:     f.failure(),
	}
	if e.Endpoint == "" && e.API != "" {
		e.Endpoint = "/" + strings.TrimPrefix(e.API, "/")
	}
	e.Price = f.money(0, "priceUsd", "unitPriceUsd")
	e.Billed = f.money(e.Price, "billedUsd", "revenueUsd", "amountUsd")
	e.Billable = f.yes("billable") || e.Billed > 0
	e.Countable = f.yes("countable")
	if _, given := f["countable"]; !given {
		e.Countable = e.Status != 402
	}
	return e, true
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// fields is a JSON object whose names are matched exactly. Each reader takes
// the first of its names that holds something it can use.
type fields map[string]json.RawMessage

func (f fields) text(names ...string) string {
	for _, name := range names {
		if s := clean(literal(f[name])); s != "" {
			return s
		}
	}
	return ""
}

func (f fields) yes(name string) bool { return string(f[name]) == "true" }

// failure is what an event says went wrong: a code, or only that it did.
func (f fields) failure() string {
	if f.yes("error") {
		return or(f.text("errorCode"), "error")
	}
	return f.text("error", "errorCode")
}

func (f fields) integer(otherwise int64, names ...string) int64 {
	for _, name := range names {
		if v, err := strconv.ParseFloat(literal(f[name]), 64); err == nil && math.Abs(v) < 1<<53 {
			return int64(math.Floor(v))
		}
	}
	return otherwise
}

// latency is milliseconds, to the microsecond; what is above 0 stays above 0.
func (f fields) latency(names ...string) time.Duration {
	for _, name := range names {
		if v, err := strconv.ParseFloat(literal(f[name]), 64); err == nil && v >= 0 && v < 1e12 {
			us := math.Floor(v*1000 + 0.5)
			if v > 0 {
				us = max(us, 1)
			}
			return time.Duration(us) * time.Microsecond
		}
	}
	return 0
}

func (f fields) money(otherwise clawr.Amount, names ...string) clawr.Amount {
	for _, name := range names {
		if a, ok := micros(literal(f[name])); ok {
			return a
		}
	}
	return otherwise
}

func (f fields) time(names ...string) (time.Time, bool) {
	for _, name := range names {
		if at, ok := instant(f[name]); ok {
			return at, true
		}
	}
	return time.Time{}, false
}

// literal is the text of a JSON string or number, and "" of anything else.
func literal(raw json.RawMessage) string {
	raw = bytes.TrimSpace(raw)
	switch {
	case len(raw) == 0:
		return ""
	case raw[0] == '"':
		var s string
		if json.Unmarshal(raw, &s) != nil {
			return ""
		}
		return strings.TrimSpace(s)
	case raw[0] == '-' || raw[0] >= '0' && raw[0] <= '9':
		return string(raw)
	}
	return ""
}

// clean makes a stranger's text fit to be stored and shown: no control
// characters, not even those that turn the direction of what follows, and at
// most 512 bytes.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) > 512 {
		s = strings.ToValidUTF8(s[:512], "")
	}
	return strings.TrimSpace(s)
}

// instant reads a time: a number of milliseconds since 1970, or ISO 8601, UTC
// if it names no zone. Times are kept to the millisecond, and have four-digit
// years.
func instant(raw json.RawMessage) (time.Time, bool) {
	s := literal(raw)
	if s == "" {
		return time.Time{}, false
	}
	if raw[0] != '"' {
		v, err := strconv.ParseFloat(s, 64)
		const year0, year10000 = -62167219200000, 253402300800000
		if err != nil || v < year0 || v >= year10000 {
			return time.Time{}, false
		}
		return time.UnixMilli(int64(math.Floor(v))).UTC(), true
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05Z07", "2006-01-02T15:04:05",
		"2006-01-02T15:04Z07:00", "2006-01-02T15:04", time.DateOnly, "2006-01-02 15:04:05Z07:00", time.DateTime} {
		if at, err := time.Parse(layout, s); err == nil {
			at = at.UTC()
			if at.Year() < 0 || at.Year() > 9999 {
				return time.Time{}, false
			}
			return time.UnixMilli(at.UnixMilli()).UTC(), true
		}
	}
	return time.Time{}, false
}

// micros reads a decimal number of US dollars, with or without a $ and an
// exponent, exactly; what is finer than a micro-USD is rounded half up. It is
// false for what is negative, no number, or above 1e12 USD.
func micros(s string) (clawr.Amount, bool) {
	mantissa, exponent, scientific := strings.Cut(strings.ToLower(strings.TrimPrefix(s, "$")), "e")
	exp := 0
	if scientific {
		var err error
		if exp, err = strconv.Atoi(exponent); err != nil || exp < -1000 || exp > 1000 {
			return 0, false
		}
	}
	whole, frac, _ := strings.Cut(strings.TrimPrefix(mantissa, "+"), ".")
	digits := whole + frac
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	// The decimal point of the amount in micro-USD stands after digits[:point].
	point := len(whole) + exp + 6
	if zeros := len(digits) - len(strings.TrimLeft(digits, "0")); zeros > 0 {
		digits, point = digits[zeros:], point-zeros
	}
	if digits == "" || point < 0 {
		return 0, true
	}
	if point > 18 {
		return 0, false
	}
	if len(digits) <= point {
		digits += strings.Repeat("0", point+1-len(digits))
	}
	n, err := strconv.ParseInt("0"+digits[:point], 10, 64)
	if err != nil {
		return 0, false
	}
	if digits[point] >= '5' {
		n++
	}
	return clawr.Amount(n), true
}

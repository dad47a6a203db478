package meter

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/402claw/clawr"
)

// The windows of a caller at a tenant.
const (
	UsageDay   = "usage-day"
	UsageMonth = "usage-month"
	SpendDay   = "spend-day"
	SpendMonth = "spend-month"
)

// Window is one exact limit on what a caller may ask of a tenant in a UTC day
// or month: the call may proceed while used + Cost <= Cap. Whoever counts does
// so in one conditional statement, keyed by Scope and Start.
type Window struct {
	Name  string // one of the four above
	Scope string // Name/tenant id/caller
	Start time.Time
	End   time.Time
	Cost  int64 // requests, or µUSD
	Cap   int64 // requests, or µUSD
	Code  clawr.Code
}

// DayStart is the beginning of the UTC day of now.
func DayStart(now time.Time) time.Time {
	y, m, d := now.UTC().Date()
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
}

// MonthStart is the beginning of the UTC month of now.
func MonthStart(now time.Time) time.Time {
	y, m, _ := now.UTC().Date()
	return time.Date(y, m, 1, 0, 0, 0, 0, time.UTC)
}

// Counters are the windows that a call takes from. A call counts as one
// request whatever it asks for, and spends units·price; one that costs nothing
// takes from no spend cap. A tenant without limits has none, and asking costs
// no allocation.
func Counters(t *clawr.Tenant, caller string, price clawr.Amount, units int64, now time.Time) []Window {
	spend := cost(price, units)
	caps := t.Spend
	if spend == 0 {
		caps = clawr.Caps{}
	}
	if t.Usage == (clawr.Quota{}) && caps == (clawr.Caps{}) {
		return nil
	}
	day, month := DayStart(now), MonthStart(now)
	all := [...]Window{
		{UsageDay, "", day, day.AddDate(0, 0, 1), 1, t.Usage.Daily, clawr.CodeQuotaExceeded},
		{UsageMonth, "", month, month.AddDate(0, 1, 0), 1, t.Usage.Monthly, clawr.CodeQuotaExceeded},
		{SpendDay, "", day, day.AddDate(0, 0, 1), spend, int64(caps.Daily), clawr.CodeCapExceeded},
		{SpendMonth, "", month, month.AddDate(0, 1, 0), spend, int64(caps.Monthly), clawr.CodeCapExceeded},
	}
	var ws []Window
	for _, w := range all {
		if w.Cap > 0 {
			w.Scope = w.Name + "/" + t.ID + "/" + caller
			ws = append(ws, w)
		}
	}
	return ws
}

// cost is price·units in µUSD. What would be too much for any cap is cut to
// 2^60, so that adding it to what is used cannot overflow.
func cost(price clawr.Amount, units int64) int64 {
	if price <= 0 || units <= 0 {
		return 0
	}
	if units > (1<<60)/int64(price) {
		return 1 << 60
	}
	return int64(price) * units
}

// Headers gives a window's X-Usage-Day-Limit, -Remaining and -Reset (or
// X-Usage-Month-…, X-Spend-Day-…, X-Spend-Month-…) to set, when used has been
// taken from it. Spend is in decimal US dollars; Reset is the whole seconds
// until the window ends.
func (w Window) Headers(used int64, now time.Time, set func(name, value string)) {
	prefix := w.prefix()
	set(prefix+"Limit", w.format(w.Cap))
	set(prefix+"Remaining", w.format(max(w.Cap-used, 0)))
	set(prefix+"Reset", strconv.FormatInt(Seconds(w.End.Sub(now)), 10))
}

// Err is what the caller is told when w has refused it with used taken. Its
// RetryAfter ends with the window.
func (w Window) Err(used int64, now time.Time) error {
	period := "today"
	if strings.HasSuffix(w.Name, "month") {
		period = "this month"
	}
	e := &clawr.Error{Code: w.Code, RetryAfter: w.End.Sub(now),
		Fix: "try again after " + w.End.Format(time.RFC3339) + ", when the window ends; nothing was charged"}
	if w.spend() {
		e.Message = fmt.Sprintf("this call costs $%s, and $%s of the $%s that you may spend here %s is left",
			w.format(w.Cost), w.format(max(w.Cap-used, 0)), w.format(w.Cap), period)
	} else {
		e.Message = fmt.Sprintf("all of the %s requests that you may make here %s are used", w.format(w.Cap), period)
	}
	if w.Cost > w.Cap {
		e.RetryAfter, e.Fix = 0, "the call costs more than this API lets a caller spend; ask for less; nothing was charged"
	}
	return e
}

func (w Window) prefix() string {
	switch w.Name {
	case UsageDay:
		return "X-Usage-Day-"
	case UsageMonth:
		return "X-Usage-Month-"
	case SpendDay:
		return "X-Spend-Day-"
	}
	return "X-Spend-Month-"
}

func (w Window) spend() bool { return w.Name == SpendDay || w.Name == SpendMonth }

func (w Window) format(n int64) string {
	if w.spend() {
		return clawr.Amount(n).String()
	}
	return strconv.FormatInt(n, 10)
}

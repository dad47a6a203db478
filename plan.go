package clawr

import "fmt"

// Plan is a tenant's tier, which fixes its limits.
type Plan string

// The plans, from product.md.
const (
	PlanFree       Plan = "free"
	PlanPro        Plan = "pro"
	PlanBusiness   Plan = "business"
	PlanEnterprise Plan = "enterprise"
	PlanQuarantine Plan = "quarantine"
)

// Limits bound the work of one call. Cloudflare's dispatch takes the same two
// numbers under the same names.
type Limits struct {
	CPUMs       int64 `json:"cpuMs,omitempty"`       // CPU time, milliseconds
	SubRequests int64 `json:"subRequests,omitempty"` // outbound calls
}

// Limits are the plan's own; an unknown plan has those of quarantine.
func (p Plan) Limits() Limits {
	switch p {
	case PlanFree:
		return Limits{50, 10}
	case PlanPro:
		return Limits{200, 50}
	case PlanBusiness:
		return Limits{350, 100}
	case PlanEnterprise:
		return Limits{600, 250}
	}
	return Limits{25, 3}
}

// CheckPlan refuses what is not a plan.
func CheckPlan(p Plan) error {
	switch p {
	case PlanFree, PlanPro, PlanBusiness, PlanEnterprise, PlanQuarantine:
		return nil
	}
	return &Error{Code: CodeBadPlan, Param: "plan", Message: fmt.Sprintf("there is no plan %q", p), Fix: "--plan free, pro, business, enterprise or quarantine"}
}

package clawr

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Kind says what does a tenant's work.
type Kind string

// The kinds. Only datasets can be deployed so far; the others keep their name.
const (
	KindDataset  Kind = "dataset"
	KindProxy    Kind = "proxy"
	KindFunction Kind = "function"
)

// Status says whether a tenant is served.
type Status string

// A paused tenant answers 503 and keeps its payments' answers; a removed one
// answers 404 to everything but the payments that it was given.
const (
	StatusActive  Status = "active"
	StatusPaused  Status = "paused"
	StatusRemoved Status = "removed"
)

// Tenant is one published API: who it is, and the version that is on sale.
type Tenant struct {
	ID      string   `json:"id"` // tnt_ + 16 hex, never reused
	Slug    string   `json:"slug"`
	Status  Status   `json:"status"`
	Hosts   []string `json:"hosts"`
	Version int64    `json:"version"` // of the manifest below; 1 is the first
	// Created is when the version was deployed.
	Created time.Time `json:"createdAt"`
	Manifest
}

// Manifest is everything a version fixes. A payment names the version that it
// bought, so a manifest never changes; an update is a new version.
type Manifest struct {
	Kind        Kind     `json:"kind"`
	Owner       string   `json:"owner"`     // user id; "@"+Owner in events
	Directory   string   `json:"directory"` // its category; "APIs" by default
	Description string   `json:"description,omitempty"`
	License     string   `json:"license,omitempty"`
	Tags        []string `json:"tags,omitempty"`
	Plan        Plan     `json:"plan"`
	Limits      Limits   `json:"limits"` // overrides; zero fields are the plan's
	Price       Amount   `json:"priceUsd"`
	X402        bool     `json:"x402Enabled"`
	PayTo       string   `json:"payTo,omitempty"`   // lower-case 0x hex; empty while X402 is false
	Network     string   `json:"network,omitempty"` // CAIP-2; empty: the serving node's
	Rate        Rates    `json:"rateLimit"`
	Usage       Quota    `json:"usageLimit"`
	Spend       Caps     `json:"spendLimit"`
	WorkerName  string   `json:"workerName"`
	Settle      string   `json:"settle,omitempty"` // a ledger.Policy; empty: settle_before_response
	// Schemes are how it may be paid: exact always, and batch-settlement if it
	// is among them. Empty: exact alone.
	Schemes []string `json:"schemes,omitempty"`
	// Home says who sells it, and so keeps the book of its PayTo: an address
	// has one book. Empty: the nodes.
	Home Home `json:"ledgerHome,omitempty"`
	// RequirePaymentID refuses payments that do not name themselves in the
	// extension payment-identifier.
	RequirePaymentID bool `json:"requirePaymentId,omitempty"`
	// Content is the SHA-256 (64 hex) of what does the work: a dataset's
	// segment file, DIR/segments/{Content}.seg.
	Content string `json:"content,omitempty"`
	Rows    int64  `json:"rows,omitempty"`
}

// Home is where a tenant is sold.
type Home string

// HomeEdge is Cloudflare: the nodes answer 404 for such a tenant.
const HomeEdge Home = "edge"

// Paid reports whether calls to paid routes of m cost money.
func (m *Manifest) Paid() bool { return m.X402 && m.Price > 0 }

// CheckSchemes refuses schemes that nothing can be sold by. exact is always
// among them: every client knows it.
func CheckSchemes(schemes []string) error {
	for i, s := range schemes {
		if s != "exact" && s != "batch-settlement" || slices.Contains(schemes[:i], s) {
			return &Error{Code: CodeUsage, Param: "schemes", Message: fmt.Sprintf("%q is not a scheme, or is there twice", s), Fix: "--schemes exact,batch-settlement"}
		}
	}
	if len(schemes) > 0 && !slices.Contains(schemes, "exact") {
		return &Error{Code: CodeUsage, Param: "schemes", Message: "exact is not among the schemes, and most clients know no other", Fix: "--schemes exact,batch-settlement"}
	}
	return nil
}

// Effective is the plan's limits with the manifest's overrides.
func (m *Manifest) Effective() Limits {
	l := m.Plan.Limits()
	if m.Limits.CPUMs > 0 {
		l.CPUMs = m.Limits.CPUMs
	}
	if m.Limits.SubRequests > 0 {
		l.SubRequests = m.Limits.SubRequests
	}
	return l
}

// Rate is a number of requests in a window, and how many may come at once.
type Rate struct {
	Requests      int64 `json:"requests"`
	WindowSeconds int64 `json:"windowSeconds"`
	Burst         int64 `json:"burst,omitempty"` // 0: Requests
}

// IsZero reports whether r limits nothing.
func (r Rate) IsZero() bool { return r.Requests <= 0 || r.WindowSeconds <= 0 }

// ParseRate reads "100/60s" (requests per window; s, m or h, seconds if none).
func ParseRate(s string) (Rate, error) {
	bad := &Error{Code: CodeUsage, Message: fmt.Sprintf("%q is not a rate", s), Fix: "write requests/window, such as 100/60s"}
	var r Rate
	n, w, ok := strings.Cut(s, "/")
	if !ok {
		return Rate{}, bad
	}
	if w != "" && strings.Trim(w, "0123456789") == "" {
		w += "s"
	}
	d, err := time.ParseDuration(w)
	if err != nil || d < time.Second || d%time.Second != 0 || d > 24*time.Hour {
		return Rate{}, bad
	}
	if _, err := fmt.Sscanf(n, "%d", &r.Requests); err != nil || fmt.Sprint(r.Requests) != n || r.Requests <= 0 || r.Requests > 1e9 {
		return Rate{}, bad
	}
	r.WindowSeconds = int64(d / time.Second)
	return r, nil
}

// Rates bound how fast calls may come; zero rates bound nothing.
type Rates struct {
	PerCaller Rate `json:"perCaller"`
	Global    Rate `json:"global"`
}

// Quota bounds how many calls a caller may make of a tenant in a UTC day and
// month; 0 is no bound.
type Quota struct {
	Daily   int64 `json:"dailyRequests"`
	Monthly int64 `json:"monthlyRequests"`
}

// Caps bound what a caller may spend at a tenant in a UTC day and month; 0 is
// no bound.
type Caps struct {
	Daily   Amount `json:"dailySpendUsd"`
	Monthly Amount `json:"monthlySpendUsd"`
}

// MarshalJSON writes an Amount as a decimal string of US dollars.
func (a Amount) MarshalJSON() ([]byte, error) { return json.Marshal(a.String()) }

// UnmarshalJSON reads a decimal string, or a JSON number written plainly.
func (a *Amount) UnmarshalJSON(b []byte) error {
	v, err := ParseAmount(strings.Trim(string(b), `"`))
	if err != nil {
		return err
	}
	*a = v
	return nil
}

var (
	slugForm    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	notSlug     = regexp.MustCompile(`[^a-z0-9]+`)
	hostForm    = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]*[a-z0-9]$`)
	addressForm = regexp.MustCompile(`^0[xX][0-9a-fA-F]{40}$`)
	networkForm = regexp.MustCompile(`^eip155:[1-9][0-9]{0,18}$`)
)

// CheckSlug refuses what is not a slug and suggests one; it never rewrites.
func CheckSlug(s string) error {
	if slugForm.MatchString(s) {
		return nil
	}
	fix := "use lower-case letters, digits and inner hyphens, at most 63"
	if good := strings.Trim(notSlug.ReplaceAllString(strings.ToLower(s), "-"), "-"); good != "" {
		fix = "--tenant " + strings.TrimRight(good[:min(len(good), 63)], "-")
	}
	return &Error{Code: CodeBadSlug, Param: "tenant", Message: fmt.Sprintf("%q is not a slug: lower-case letters, digits and inner hyphens, 1 to 63", s), Fix: fix}
}

// CheckHost refuses what is not a lower-case DNS name of at least two labels.
func CheckHost(s string) error {
	if hostForm.MatchString(s) && len(s) <= 253 {
		return nil
	}
	fix := "use a name such as acme.api.example.com, without scheme, port or path"
	if l := strings.ToLower(s); l != s && hostForm.MatchString(l) {
		fix = "--host " + l
	}
	return &Error{Code: CodeBadHost, Param: "host", Message: fmt.Sprintf("%q is not a host name", s), Fix: fix}
}

// CheckAddress returns the lower-case form of an EVM address other than zero.
func CheckAddress(s string) (string, error) {
	if !addressForm.MatchString(s) || strings.Trim(s[2:], "0") == "" {
		return "", &Error{Code: CodeBadAddress, Message: fmt.Sprintf("%q is not an address", s), Fix: "use 0x and 40 hexadecimal digits, not all zero"}
	}
	return "0x" + strings.ToLower(s[2:]), nil
}

// CheckNetwork refuses what is not a CAIP-2 name of an EVM network.
func CheckNetwork(s string) error {
	if networkForm.MatchString(s) {
		return nil
	}
	return &Error{Code: CodeBadNetwork, Param: "network", Message: fmt.Sprintf("%q is not an EVM network", s), Fix: "use eip155:N, such as eip155:8453 for Base or eip155:84532 for Base Sepolia"}
}

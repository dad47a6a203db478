// Package api is the control plane: tenants, owners, tokens, events, reports
// and payments over HTTP, as a Handler and the Client that speaks to it, and
// the few things of it that the public listener shows, as Platform.
package api

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
)

// Tenants keeps the directory. Every change is one transaction, and by is
// noted as whoever made it.
type Tenants interface {
	// Tenants are all of them with the version on sale, paused and removed ones too.
	Tenants(context.Context) ([]clawr.Tenant, error)
	// Versions are all of one tenant's, newest first.
	Versions(ctx context.Context, slug string) ([]clawr.Tenant, error)
	// Deploy makes t.Manifest the version on sale, and t.Hosts, unless nil, the
	// tenant's hosts.
	Deploy(ctx context.Context, t clawr.Tenant, by string) (clawr.Tenant, error)
	SetStatus(ctx context.Context, slug string, status clawr.Status, by string) (clawr.Tenant, error)
	// Rollback puts version to on sale, the one before if to is 0.
	Rollback(ctx context.Context, slug string, to int64, by string) (clawr.Tenant, error)
}

// Owner is somebody who publishes.
type Owner struct {
	ID      string    `json:"id"` // as in a manifest's owner, without "@"
	Name    string    `json:"name"`
	PayTo   string    `json:"payTo"` // lower-case address that their APIs earn for, unless one says otherwise; may be empty
	Created time.Time `json:"createdAt"`
}

// Owners keeps who publishes; by is noted as whoever changed it.
type Owners interface {
	SetOwner(ctx context.Context, id, name, payTo, by string) error
	// Owner is a clawr.CodeNotFound error for one that is not known.
	Owner(ctx context.Context, id string) (Owner, error)
	Owners(context.Context) ([]Owner, error)
}

// Tokens keeps tokens, by the hashes of their secrets; by is noted as whoever
// made or revoked one.
type Tokens interface {
	CreateToken(ctx context.Context, t Token, by string) error
	Tokens(context.Context) ([]Token, error)
	RevokeToken(ctx context.Context, id, by string) error
}

// Events keeps usage events.
type Events interface {
	// Events are the last to arrive, newest last.
	Events(ctx context.Context, limit int) ([]usage.Event, error)
	// EachEvent calls fn in order of arrival. A zero time is no bound.
	EachEvent(ctx context.Context, from, to time.Time, fn func(usage.Event) error) error
	// ImportEvents keeps the first of each (api, request id), and counts the new ones.
	ImportEvents(context.Context, []usage.Event) (added int, err error)
}

// PaymentFilter selects payments; zero fields select all.
type PaymentFilter struct {
	Tenant string // a tenant's id
	Payer  string // lower-case address
	Money  ledger.Money
	Before time.Time // created before
	// BeforeID, with Before, also selects those created at that very moment with
	// a later id: the page after the payment with this id.
	BeforeID string
	Refund   ledger.RefundState // only those with a refund in this state
	Limit    int
}

// Payments shows the book.
type Payments interface {
	// Payments are the newest first.
	Payments(context.Context, PaymentFilter) ([]ledger.Payment, error)
	// Payment is nil, or a clawr.CodeNotFound error, for one that is not known.
	Payment(ctx context.Context, id string) (*ledger.Payment, error)
	// Answer is nil if none is stored.
	Answer(ctx context.Context, paymentID string) (*ledger.Answer, error)
	// History is what happened to a payment, in order.
	History(context.Context, *ledger.Payment) ([]Step, error)
}

// Segments keeps the immutable files of datasets, by the SHA-256 (hex) of
// their bytes.
type Segments interface {
	Has(ctx context.Context, sha256 string) (bool, error)
	// Put keeps what r gives if it has that hash, and nothing otherwise.
	Put(ctx context.Context, sha256 string, r io.Reader) error
}

// Handler is the control plane. Authorize says who asks; all other fields are
// what is asked about.
type Handler struct {
	Tenants  Tenants
	Owners   Owners
	Tokens   Tokens
	Events   Events
	Payments Payments
	Channels Channels
	Refunds  Refunds
	Segments Segments // nil: there are none to check or upload
	Upkeep   Upkeep
	// Reconciler asks the chain; nil: this process knows none.
	Reconciler Reconciler
	// Authorize says who asks, or refuses with clawr.CodeTokenMissing.
	Authorize func(*http.Request) (Principal, error)
	// Flush, if not nil, brings events that wait in memory to Events, so that
	// a report has what just happened.
	Flush func(context.Context) error

	DefaultPayTo string        // earns where neither tenant nor owner has an address; may be empty
	PublicURL    string        // where callers reach this node; may be empty
	Assets       []clawr.Asset // known tokens, in which amounts are shown in USD
	MaxImport    int64         // bytes of one import of events; 0: 32 MB
	Docs         string        // base URL of the documentation; may be empty
	Log          *slog.Logger  // nil: none
	Now          func() time.Time

	mux http.Handler
}

// NewHandler gives h its routes and returns it.
func NewHandler(h *Handler) *Handler {
	h.mux = h.face().routes(map[string]methods{
		"/v1/tenants":                 {"GET": {TenantsRead, h.listTenants}},
		"/v1/tenants/{slug}":          {"GET": {TenantsRead, h.showTenant}, "DELETE": {TenantsWrite, h.removeTenant}},
		"/v1/tenants/{slug}/versions": {"GET": {TenantsRead, h.versions}},
		"/v1/tenants/{slug}/deploys":  {"POST": {TenantsWrite, h.deploy}},
		"/v1/tenants/{slug}/pause":    {"POST": {TenantsWrite, h.pause}},
		"/v1/tenants/{slug}/resume":   {"POST": {TenantsWrite, h.resume}},
		"/v1/tenants/{slug}/rollback": {"POST": {TenantsWrite, h.rollback}},
		"/v1/owners":                  {"GET": {TenantsRead, h.listOwners}},
		"/v1/owners/{id}":             {"GET": {TenantsRead, h.showOwner}, "PUT": {TenantsWrite, h.setOwner}},
		"/v1/tokens":                  {"GET": {TokensWrite, h.listTokens}, "POST": {TokensWrite, h.createToken}},
		"/v1/tokens/{id}":             {"DELETE": {TokensWrite, h.revokeToken}},
		"/v1/events":                  {"GET": {EventsRead, h.listEvents}, "POST": {EventsWrite, h.importEvents}},
		"/v1/analytics":               {"GET": {AnalyticsRead, h.analytics}},
		"/v1/payments":                {"GET": {PaymentsRead, h.listPayments}},
		"/v1/payments/{id}":           {"GET": {PaymentsRead, h.showPayment}},
		"/v1/payments/{id}/reconcile": {"POST": {PaymentsRead, h.reconcilePayment}},
		"/v1/payments/{id}/refund":    {"GET": {PaymentsRead, h.showRefund}, "POST": {FacilitatorSettle, h.repay}},
		"/v1/refunds":                 {"GET": {PaymentsRead, h.listRefunds}},
		"/v1/reconcile":               {"POST": {PaymentsRead, h.compare}},
		"/v1/channels":                {"GET": {PaymentsRead, h.listChannels}},
		"/v1/channels/claim":          {"POST": {FacilitatorSettle, h.claimChannels}},
		"/v1/backups":                 {"POST": {TokensWrite, h.backup}},
		"/v1/check":                   {"POST": {TokensWrite, h.check}},
		"/v1/directory":               {"GET": {TenantsRead, h.directory}},
		"/v1/segments/{sha256}":       {"PUT": {TenantsWrite, h.putSegment}},
	})
	return h
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) { h.mux.ServeHTTP(w, r) }

func (h *Handler) face() *face { return &face{authorize: h.Authorize, log: h.Log, docs: h.Docs} }

func (h *Handler) now() time.Time {
	if h.Now != nil {
		return h.Now()
	}
	return time.Now()
}

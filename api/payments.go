package api

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// Payment is a row of the book as it is shown: without the payload, the
// signature and the quote, which are worth money.
type Payment struct {
	ID          string           `json:"id"`
	TenantID    string           `json:"tenantId"`
	Tenant      string           `json:"tenant"` // its slug
	Version     int64            `json:"version"`
	Route       string           `json:"route"`
	Scheme      string           `json:"scheme"`
	Network     string           `json:"network"`
	Asset       string           `json:"asset"`
	Payer       string           `json:"payer"`
	Nonce       string           `json:"nonce"`
	PayTo       string           `json:"payTo"`
	Amount      string           `json:"amount"`              // atomic units
	AmountUSD   string           `json:"amountUsd,omitempty"` // if the token is known here
	ValidBefore time.Time        `json:"validBefore"`
	Policy      ledger.Policy    `json:"policy"`
	Work        ledger.Work      `json:"work"`
	Money       ledger.Money     `json:"money"`
	Facilitator string           `json:"facilitator"`
	BatchID     string           `json:"batchId,omitempty"`
	Transaction string           `json:"transaction,omitempty"`
	BlockNumber int64            `json:"blockNumber,omitempty"`
	BlockHash   string           `json:"blockHash,omitempty"`
	LogIndex    int64            `json:"logIndex,omitempty"`
	Proof       string           `json:"proof,omitempty"`
	Error       clawr.Code       `json:"error,omitempty"`
	Refund      *Refund          `json:"refund,omitempty"` // what is owed for it, or was
	Created     time.Time        `json:"createdAt"`
	Updated     time.Time        `json:"updatedAt"`
	Answer      *Answer          `json:"answer,omitempty"` // of one payment only
	Counters    []ledger.Counter `json:"counters,omitempty"`
	History     []Step           `json:"history,omitempty"`
}

// Answer is what is known of a stored answer without its bytes.
type Answer struct {
	Status  int       `json:"status"`
	Bytes   int64     `json:"bytes"`
	SHA256  string    `json:"sha256"`
	Expires time.Time `json:"expiresAt"`
}

type paymentList struct {
	Payments []Payment `json:"payments"` // newest first
}

var refundStates = []ledger.RefundState{ledger.RefundDue, ledger.RefundSigned, ledger.RefundFinal}

var moneys = []ledger.Money{ledger.Held, ledger.Released, ledger.Signed, ledger.Mined, ledger.Final, ledger.Dead}

func (h *Handler) listPayments(r *request) (any, error) {
	q := r.URL.Query()
	limit, err := r.number("limit", 100, 1, 1000)
	if err != nil {
		return nil, err
	}
	f := PaymentFilter{Money: ledger.Money(q.Get("money")), Limit: limit}
	if f.Money != "" && !slices.Contains(moneys, f.Money) {
		return nil, refuse(clawr.CodeBadRequest, "money", fmt.Sprintf("%q is no state of money", printable(string(f.Money))), "--money held, released, signed, mined, final or dead")
	}
	if f.Refund = ledger.RefundState(q.Get("refund")); f.Refund != "" && !slices.Contains(refundStates, f.Refund) {
		return nil, refuse(clawr.CodeBadRequest, "refund", fmt.Sprintf("%q is no state of a refund", printable(string(f.Refund))), "--refund due, signed or final")
	}
	if s := q.Get("payer"); s != "" {
		if f.Payer, err = clawr.CheckAddress(s); err != nil {
			return nil, refuse(clawr.CodeBadAddress, "payer", fmt.Sprintf("%q is not an address", printable(s)), "--payer with 0x and 40 hexadecimal digits")
		}
	}
	if s := q.Get("before"); s != "" {
		if f.Before, err = time.Parse(time.RFC3339, s); err != nil {
			return nil, refuse(clawr.CodeBadRequest, "before", "before is not a time", "--before 2026-01-31T12:00:00Z")
		}
	}
	if f.BeforeID = q.Get("beforeId"); f.BeforeID != "" && f.Before.IsZero() {
		return nil, refuse(clawr.CodeBadRequest, "beforeId", "beforeId needs before", "--before 2026-01-31T12:00:00Z")
	}
	if slug := q.Get("tenant"); slug != "" {
		t, err := h.find(r.Context(), slug)
		if err != nil {
			return nil, err
		}
		if t == nil {
			return nil, noTenant(slug)
		}
		f.Tenant = t.ID
	}
	list, err := h.Payments.Payments(r.Context(), f)
	if err != nil {
		return nil, err
	}
	slugs, err := h.slugs(r)
	if err != nil {
		return nil, err
	}
	ids := make([]string, len(list))
	for i := range list {
		ids[i] = list[i].ID
	}
	refunds, err := h.refunds(r.Context(), ids...)
	if err != nil {
		return nil, err
	}
	out := paymentList{Payments: make([]Payment, 0, len(list))}
	for i := range list {
		p := h.payment(&list[i], slugs)
		p.Refund = refunds[p.ID]
		out.Payments = append(out.Payments, p)
	}
	return out, nil
}

func (h *Handler) showPayment(r *request) (any, error) {
	id := r.PathValue("id")
	p, err := h.Payments.Payment(r.Context(), id)
	if clawr.CodeOf(err) == clawr.CodeNotFound || err == nil && p == nil {
		return nil, refuse(clawr.CodeNotFound, "payment", fmt.Sprintf("no payment %q", printable(id)), "clawr payments list shows them")
	}
	if err != nil {
		return nil, err
	}
	slugs, err := h.slugs(r)
	if err != nil {
		return nil, err
	}
	out := h.payment(p, slugs)
	a, err := h.Payments.Answer(r.Context(), id)
	if err != nil {
		return nil, err
	}
	if a != nil {
		out.Answer = &Answer{a.Status, a.Len, a.SHA256, a.Expires.UTC()}
	}
	refunds, err := h.refunds(r.Context(), id)
	if err != nil {
		return nil, err
	}
	out.Refund = refunds[id]
	out.Counters = p.Counters
	out.History, err = h.Payments.History(r.Context(), p)
	return out, err
}

// slugs are the tenants' by their ids, of removed ones too.
func (h *Handler) slugs(r *request) (map[string]string, error) {
	list, err := h.Tenants.Tenants(r.Context())
	out := make(map[string]string, len(list))
	for _, t := range list {
		out[t.ID] = t.Slug
	}
	return out, err
}

func (h *Handler) payment(p *ledger.Payment, slugs map[string]string) Payment {
	out := Payment{
		ID: p.ID, TenantID: p.TenantID, Tenant: slugs[p.TenantID], Version: p.Version, Route: p.Route, Scheme: p.Scheme,
		Network: p.Network, Asset: p.Asset, Payer: p.Payer, Nonce: p.Nonce, PayTo: p.PayTo, Amount: strconv.FormatInt(p.Amount, 10),
		ValidBefore: time.Unix(p.ValidBefore, 0).UTC(), Policy: p.Policy, Work: p.Work, Money: p.Money, Facilitator: p.Facilitator,
		BatchID: p.BatchID, Transaction: p.Tx, BlockNumber: p.BlockNumber, BlockHash: p.BlockHash, LogIndex: p.LogIndex,
		Proof: p.Proof, Error: p.ErrorCode, Created: p.Created.UTC(), Updated: p.Updated.UTC(),
	}
	for _, a := range h.Assets {
		if a.Network == p.Network && strings.EqualFold(a.Address, p.Asset) {
			out.AmountUSD = clawr.AmountOf(p.Amount, a.Decimals).String()
		}
	}
	return out
}

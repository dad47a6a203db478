package api

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// Refunds pays back what was charged and not delivered.
type Refunds interface {
	// Refunds are those of the given payments, by their ids.
	Refunds(ctx context.Context, paymentIDs ...string) (map[string]ledger.Refund, error)
	// OpenRefunds are those that are not final, oldest first.
	OpenRefunds(ctx context.Context, limit int) ([]ledger.Refund, error)
	// Repay checks what the seller signed to pay r back until a moment, in unix
	// seconds, stores it and has it settled. Nothing is stored with an error.
	Repay(ctx context.Context, r ledger.Refund, validBefore int64, signature []byte, by string) error
}

// Refund is what is owed for a payment, and how far it is paid back.
type Refund struct {
	Payment     string             `json:"payment"`
	Network     string             `json:"network"`
	Asset       string             `json:"asset"`
	From        string             `json:"from"` // who was paid, and pays
	To          string             `json:"to"`
	Amount      string             `json:"amount"`              // atomic units
	AmountUSD   string             `json:"amountUsd,omitempty"` // if the token is known here
	Reason      clawr.Code         `json:"reason"`
	State       ledger.RefundState `json:"state"` // due, signed or final
	Payable     bool               `json:"payable"`
	Charged     string             `json:"chargedNonce"` // of the authorization that was charged
	Nonce       string             `json:"nonce"`        // of the one that pays it back, whoever signs it
	ValidBefore time.Time          `json:"validBefore,omitzero"`
	Transaction string             `json:"transaction,omitempty"`
	BlockNumber int64              `json:"blockNumber,omitempty"`
	BlockHash   string             `json:"blockHash,omitempty"`
	LogIndex    int64              `json:"logIndex,omitempty"`
	Proof       string             `json:"proof,omitempty"` // why what was signed will never be charged
	Token       *clawr.Asset       `json:"token,omitempty"` // what is signed for; none: it is not settled here
	Created     time.Time          `json:"createdAt"`
	Updated     time.Time          `json:"updatedAt"`
}

func (h *Handler) refund(r *ledger.Refund) *Refund {
	out := &Refund{Payment: r.PaymentID, Network: r.Payment.Network, Asset: r.Payment.Asset, From: r.From, To: r.Payment.Payer, Amount: strconv.FormatInt(r.Amount, 10), Reason: r.Reason,
		State: r.State, Payable: r.Payable(), Charged: r.Payment.Nonce, Nonce: ledger.RefundNonce(r.Payment), Transaction: r.Tx, BlockNumber: r.BlockNumber, BlockHash: r.BlockHash, LogIndex: r.LogIndex,
		Proof: r.Proof, Created: r.Created.UTC(), Updated: r.Updated.UTC()}
	if r.ValidBefore > 0 {
		out.ValidBefore = time.Unix(r.ValidBefore, 0).UTC()
	}
	for i, a := range h.Assets {
		if a.Network == out.Network && strings.EqualFold(a.Address, out.Asset) {
			out.Token, out.AmountUSD = &h.Assets[i], clawr.AmountOf(r.Amount, a.Decimals).String()
		}
	}
	return out
}

// refunds are those of payments that are shown.
func (h *Handler) refunds(ctx context.Context, payments ...string) (map[string]*Refund, error) {
	out := map[string]*Refund{}
	if h.Refunds == nil || len(payments) == 0 {
		return out, nil
	}
	list, err := h.Refunds.Refunds(ctx, payments...)
	for id, r := range list {
		out[id] = h.refund(&r)
	}
	return out, err
}

type refundList struct {
	Refunds []Refund `json:"refunds"` // oldest first
}

func (h *Handler) listRefunds(r *request) (any, error) {
	limit, err := r.number("limit", 100, 1, 1000)
	if err != nil {
		return nil, err
	}
	out := refundList{Refunds: []Refund{}}
	list, err := h.Refunds.OpenRefunds(r.Context(), limit)
	for i := range list {
		out.Refunds = append(out.Refunds, *h.refund(&list[i]))
	}
	return out, err
}

// repayment is the body of POST /v1/payments/{id}/refund. Who pays whom, how
// much and under which nonce is the book's to say.
type repayment struct {
	ValidBefore int64  `json:"validBefore"` // unix seconds
	Signature   string `json:"signature"`   // 0x and 130 hexadecimal digits
}

// repay takes a signature for a refund. What is signed already, or paid, is
// given as it is: asking twice is asking once.
func (h *Handler) repay(r *request) (any, error) {
	id := r.PathValue("id")
	var in repayment
	if err := r.decode(&in, false); err != nil {
		return nil, err
	}
	sig, ok := signature(in.Signature)
	if !ok {
		return nil, refuse(clawr.CodeBadRequest, "signature", "signature is not 0x and 130 hexadecimal digits", "clawr payments refund signs it")
	}
	f, err := h.owed(r.Context(), id)
	if err != nil {
		return nil, err
	}
	if f.Payable() {
		if err := h.Refunds.Repay(r.Context(), *f, in.ValidBefore, sig, r.By.Name); err != nil {
			return nil, err
		}
		if f, err = h.owed(r.Context(), id); err != nil {
			return nil, err
		}
	}
	return h.refund(f), nil
}

func (h *Handler) showRefund(r *request) (any, error) {
	f, err := h.owed(r.Context(), r.PathValue("id"))
	if err != nil {
		return nil, err
	}
	return h.refund(f), nil
}

// owed is the refund of a payment, an error if there is no such payment, or if
// nothing is owed for it.
func (h *Handler) owed(ctx context.Context, id string) (*ledger.Refund, error) {
	list, err := h.Refunds.Refunds(ctx, id)
	if err != nil {
		return nil, err
	}
	if f, ok := list[id]; ok {
		return &f, nil
	}
	p, err := h.Payments.Payment(ctx, id)
	switch {
	case clawr.CodeOf(err) == clawr.CodeNotFound || err == nil && p == nil:
		return nil, refuse(clawr.CodeNotFound, "payment", fmt.Sprintf("no payment %q", printable(id)), "clawr payments list shows them")
	case err != nil:
		return nil, err
	}
	return nil, &clawr.Error{Code: clawr.CodeConflict, Status: http.StatusConflict, Param: "payment", Message: fmt.Sprintf("no refund is due for %s: its work is %s, its money %s", id, p.Work, p.Money),
		Fix: "clawr payments show " + id}
}

// signature reads 65 bytes.
func signature(s string) ([]byte, bool) {
	digits, ok := strings.CutPrefix(s, "0x")
	out, err := hex.DecodeString(digits)
	return out, ok && err == nil && len(out) == 65
}

// OpenRefunds lists refunds that are not final, oldest first.
func (c *Client) OpenRefunds(ctx context.Context, limit int) ([]Refund, error) {
	var out refundList
	err := c.get(ctx, "/v1/refunds", url.Values{"limit": {strconv.Itoa(limit)}}, &out)
	return out.Refunds, err
}

// Refund is what is owed for one payment.
func (c *Client) Refund(ctx context.Context, payment string) (out Refund, err error) {
	err = c.get(ctx, at("/v1/payments/", payment, "/refund"), nil, &out)
	return out, err
}

// Repay sends the seller's signature for a refund.
func (c *Client) Repay(ctx context.Context, payment string, validBefore int64, signature []byte) (out Refund, err error) {
	err = c.send(ctx, http.MethodPost, at("/v1/payments/", payment, "/refund"), repayment{validBefore, fmt.Sprintf("0x%x", signature)}, &out)
	return out, err
}

package api

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
)

// Channels shows the channels that buyers pay from by voucher.
type Channels interface {
	// Channels are those that were used last first; payer may be empty.
	Channels(ctx context.Context, payer string, limit int) ([]ledger.Channel, error)
	// Claim claims now what is due in all channels, and sends it to its
	// receivers. It tells how many channels it claimed.
	Claim(context.Context) (claimed int, err error)
}

// Channel is a channel as it is shown: without the voucher that it is claimed
// with. Amounts are atomic units.
type Channel struct {
	ID         string       `json:"id"`
	Network    string       `json:"network"`
	Asset      string       `json:"asset"`
	Payer      string       `json:"payer"`
	PayTo      string       `json:"payTo"`
	Balance    string       `json:"balance"`
	Charged    string       `json:"charged"`
	Signed     string       `json:"signed"`
	Claimed    string       `json:"claimed"`
	Unclaimed  string       `json:"unclaimed"`
	DueUSD     clawr.Amount `json:"unclaimedUsd,omitempty"` // of a known token
	Forfeited  string       `json:"forfeited"`              // withdrawn before it was claimed
	Withdrawal string       `json:"withdrawal"`
	WithdrawAt time.Time    `json:"withdrawAt,omitzero"` // when the payer began it
	Since      time.Time    `json:"unclaimedSince,omitzero"`
	Synced     time.Time    `json:"synced"` // when the chain was asked
	Updated    time.Time    `json:"updated"`
}

func (h *Handler) channel(ch *ledger.Channel) Channel {
	units := func(n int64) string { return strconv.FormatInt(n, 10) }
	out := Channel{ID: ch.ID, Network: ch.Network, Asset: ch.Asset, Payer: ch.Payer, PayTo: ch.PayTo, Balance: units(ch.Balance), Charged: units(ch.Charged), Signed: units(ch.Signed),
		Claimed: units(ch.Claimed), Unclaimed: units(ch.Due()), Forfeited: units(ch.Forfeited), Withdrawal: units(ch.Withdrawal), Since: utc(ch.Unclaimed), Synced: utc(ch.Synced), Updated: utc(ch.Updated)}
	if ch.WithdrawAt > 0 {
		out.WithdrawAt = time.Unix(ch.WithdrawAt, 0).UTC()
	}
	for _, a := range h.Assets {
		if a.Network == ch.Network && a.Address == ch.Asset {
			out.DueUSD = clawr.AmountOf(ch.Due(), a.Decimals)
		}
	}
	return out
}

func utc(t time.Time) time.Time {
	if t.Unix() <= 0 {
		return time.Time{}
	}
	return t.UTC()
}

type channelList struct {
	Channels []Channel `json:"channels"`
}

func (h *Handler) listChannels(r *request) (any, error) {
	limit, err := r.number("limit", 100, 1, 1000)
	if err != nil {
		return nil, err
	}
	payer := ""
	if s := r.URL.Query().Get("payer"); s != "" {
		if payer, err = clawr.CheckAddress(s); err != nil {
			return nil, refuse(clawr.CodeBadAddress, "payer", fmt.Sprintf("%q is not an address", printable(s)), "--payer with 0x and 40 hexadecimal digits")
		}
	}
	list, err := h.Channels.Channels(r.Context(), payer, limit)
	if err != nil {
		return nil, err
	}
	out := channelList{Channels: make([]Channel, 0, len(list))}
	for i := range list {
		out.Channels = append(out.Channels, h.channel(&list[i]))
	}
	return out, nil
}

type claimed struct {
	Claimed int `json:"claimed"` // channels
}

func (h *Handler) claimChannels(r *request) (any, error) {
	n, err := h.Channels.Claim(r.Context())
	return claimed{n}, err
}

// Channels lists the channels that buyers pay from, those that were used last
// first; payer may be empty.
func (c *Client) Channels(ctx context.Context, payer string, limit int) ([]Channel, error) {
	q := url.Values{}
	if payer != "" {
		q.Set("payer", payer)
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	var out channelList
	err := c.get(ctx, "/v1/channels", q, &out)
	return out.Channels, err
}

// Claim claims now what is due in all channels, and tells in how many.
func (c *Client) Claim(ctx context.Context) (int, error) {
	var out claimed
	err := c.do(ctx, http.MethodPost, "/v1/channels/claim", nil, nil, 0, &out)
	return out.Claimed, err
}

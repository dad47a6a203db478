package buyer

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// channelFolder holds a wallet's channels, one file each: what is signed and
// what it counts against the limits change together, by one rename.
const channelFolder = "channels"

// maxOpenVouchers bounds the calls of one channel whose outcome is not known.
const maxOpenVouchers = 8

// Channel is one payment channel as its payer knows it. Amounts are the token's
// units. Charged <= Signed, always: Signed is the most that the seller can ever
// claim, whatever it does, and it goes up by at most the price of a call for
// each call.
type Channel struct {
	ID      string          `json:"id"` // 0x + 64 hex: the hash of Config
	Network string          `json:"network"`
	Asset   string          `json:"asset"`
	PayTo   string          `json:"payTo"`
	Payer   string          `json:"payer"`
	Config  json.RawMessage `json:"config"`
	Token   Token           `json:"token"`
	Created time.Time       `json:"created"`
	// Method and URL are those of the last call: where a refund is asked for.
	Method string `json:"method"`
	URL    string `json:"url"`

	Balance int64 `json:"balance,string"` // deposited, less what came back; without a node as far as the seller says
	Charged int64 `json:"charged,string"` // for all answers so far
	Signed  int64 `json:"signed,string"`  // by the highest voucher ever

	// Deposit is one that was signed and is not known to be made.
	Deposit *PendingDeposit `json:"deposit,omitempty"`
	// Open are the vouchers of calls whose outcome is not known.
	Open []Payment `json:"open,omitempty"`

	Withdrawal int64     `json:"withdrawal,string"` // that was begun; 0: none
	WithdrawAt time.Time `json:"withdrawAt,omitzero"`
	Closed     bool      `json:"closed,omitempty"` // what was left is back: nothing is paid from it unasked

	// What counts against the limit of each UTC day: deposits when they are
	// signed, and how far vouchers went up.
	Deposited map[string]clawr.Amount `json:"depositedUsd,omitempty"`
	Drawn     map[string]clawr.Amount `json:"drawnUsd,omitempty"`

	config x402.ChannelConfig
	domain x402.Domain
	head   time.Time // of the block that it was read in; zero: it was not
}

// Token is what a channel holds.
type Token struct {
	Name     string `json:"name"` // EIP-712
	Version  string `json:"version"`
	Decimals int    `json:"decimals"`
}

// PendingDeposit is a deposit of which it is not known whether it was made. The
// signature is good with any voucher, so that it is sent again with the next one.
type PendingDeposit struct {
	Amount      int64        `json:"amount,string"`
	USD         clawr.Amount `json:"amountUsd"`
	Day         string       `json:"day"` // that it counts on
	Salt        common.Hash  `json:"salt"`
	ValidBefore int64        `json:"validBefore"` // unix seconds
	Signature   []byte       `json:"signature"`
	// Tried says that it was refused when it was sent again: it is taken for
	// made, until a voucher on top of it is refused.
	Tried bool `json:"tried,omitempty"`
}

// Left is what can still be bought for.
func (ch *Channel) Left() int64 { return max(ch.Balance-ch.Charged, 0) }

// USD is units of the channel's token in micro-USD, rounded up.
func (ch *Channel) USD(units int64) clawr.Amount {
	a, ok := ceil(units, ch.Token.Decimals)
	if !ok {
		return clawr.MaxPrice
	}
	return a
}

// Delay is how long the seller has before a withdrawal is done.
func (ch *Channel) Delay() time.Duration { return time.Duration(ch.config.WithdrawDelay) * time.Second }

// newChannel is the channel that q is paid from, before anything is in it.
func newChannel(config x402.ChannelConfig, q *Quote, now time.Time) *Channel {
	chain, _ := x402.ChainID(q.Asset.Network)
	ch := &Channel{Network: q.Asset.Network, Asset: q.Asset.Address, PayTo: x402.Lower(config.Receiver), Payer: x402.Lower(config.Payer),
		Token: Token{q.Asset.Name, q.Asset.Version, q.Asset.Decimals}, Created: now.UTC().Truncate(time.Second), config: config, domain: x402.ChannelDomain(chain)}
	ch.ID = config.ID(ch.domain).Hex()
	ch.Config = (&x402.ChannelPayload{Config: config}).ConfigJSON()
	ch.Closed = true
	return ch
}

// decodeChannel reads a channel's file. What it returns agrees with itself: the
// id is its config's, and every open header is one of its vouchers.
func decodeChannel(b []byte) (*Channel, error) {
	ch := new(Channel)
	if err := strict(b, ch); err != nil {
		return nil, err
	}
	chain, ok := x402.ChainID(ch.Network)
	if !ok {
		return nil, errors.New("its network is not eip155:N")
	}
	var err error
	if ch.config, err = x402.ParseChannelConfig(ch.Config); err != nil {
		return nil, err
	}
	ch.domain = x402.ChannelDomain(chain)
	c := &ch.config
	if c.ID(ch.domain).Hex() != ch.ID || x402.Lower(c.Payer) != ch.Payer || x402.Lower(c.Receiver) != ch.PayTo || !strings.EqualFold(c.Token.Hex(), ch.Asset) {
		return nil, errors.New("it is not the channel of its config")
	}
	if ch.Charged < 0 || ch.Charged > ch.Signed || ch.Balance < 0 || ch.Withdrawal < 0 || ch.Token.Decimals < 0 || ch.Token.Decimals > 36 {
		return nil, fmt.Errorf("%d charged, %d signed and a balance of %d cannot be", ch.Charged, ch.Signed, ch.Balance)
	}
	if d := ch.Deposit; d != nil && (d.Amount <= 0 || len(d.Signature) != 65) {
		return nil, errors.New("its deposit is not one")
	}
	for _, days := range []map[string]clawr.Amount{ch.Deposited, ch.Drawn} {
		if err := (&spend{Days: days}).check(); err != nil {
			return nil, err
		}
	}
	for i := range ch.Open {
		if err := ch.checkOpen(&ch.Open[i]); err != nil {
			return nil, fmt.Errorf("voucher %s: %w", clean(ch.Open[i].ID, 40), err)
		}
	}
	return ch, nil
}

// checkOpen holds an open voucher's header against what its fields say.
func (ch *Channel) checkOpen(p *Payment) error {
	paid, err := x402.ParsePayment(p.Header)
	if err != nil {
		return err
	}
	v, err := x402.ParseChannel(paid.Payload, ch.domain)
	if err != nil {
		return err
	}
	if v.Voucher.Channel.Hex() != ch.ID || v.Voucher.MaxClaimable != p.Max || p.Max > ch.Signed || p.Max > p.Start+p.Atomic || p.Atomic <= 0 ||
		!isID(p.ID, "pay_") || !isID(p.Call, "") || p.HeaderName != x402.HeaderSignature {
		return errors.New("its header is of another payment")
	}
	return nil
}

// of is the open voucher of a call, or nil.
func (ch *Channel) of(call string) *Payment {
	for i := range ch.Open {
		if ch.Open[i].Call == call {
			return &ch.Open[i]
		}
	}
	return nil
}

// drop takes a call's voucher off the list.
func (ch *Channel) drop(call string) {
	ch.Open = slices.DeleteFunc(ch.Open, func(p Payment) bool { return p.Call == call })
}

// clone is a copy that changes by itself.
func (ch *Channel) clone() *Channel {
	c := *ch
	c.Open = slices.Clone(ch.Open)
	c.Deposited, c.Drawn = maps.Clone(ch.Deposited), maps.Clone(ch.Drawn)
	if ch.Deposit != nil {
		d := *ch.Deposit
		c.Deposit = &d
	}
	return &c
}

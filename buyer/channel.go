package buyer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
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

func (w *Wallet) channelPath(id string) string { return w.path(channelFolder, id+".json") }

// lockChannel makes the caller the only one that draws on a channel, until
// unlock: a voucher goes up from what the one before it was charged.
func (w *Wallet) lockChannel(ctx context.Context, id string) (unlock func(), err error) {
	return lockFile(ctx, w.path(lockFolder, id))
}

// Channel is the channel with this id, or nil. One that cannot be read is an
// error: nobody knows then what was signed.
func (w *Wallet) Channel(id string) (*Channel, error) {
	path := w.channelPath(id)
	b, err := readFile(path)
	if b == nil || err != nil {
		return nil, err
	}
	ch, err := decodeChannel(b)
	if err == nil && ch.ID != id {
		err = errors.New("it is another channel's")
	}
	if err != nil {
		return nil, damaged(path, err)
	}
	return ch, nil
}

// Channels are all of the wallet's, oldest first. One damaged file fails them
// all: what it holds counts against the limits.
func (w *Wallet) Channels() ([]Channel, error) {
	names, err := list(w.path(channelFolder))
	if err != nil {
		return nil, err
	}
	var out []Channel
	for _, name := range names {
		ch, err := w.Channel(strings.TrimSuffix(name, ".json"))
		if err != nil {
			return nil, err
		}
		if ch != nil {
			out = append(out, *ch)
		}
	}
	slices.SortFunc(out, func(a, b Channel) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return out, nil
}

// FindChannel is the only channel whose id begins with prefix, with or without
// 0x.
func (w *Wallet) FindChannel(prefix string) (*Channel, error) {
	all, err := w.Channels()
	if err != nil {
		return nil, err
	}
	want := "0x" + strings.TrimPrefix(strings.ToLower(prefix), "0x")
	var found []*Channel
	for i := range all {
		if len(want) > 2 && strings.HasPrefix(all[i].ID, want) {
			found = append(found, &all[i])
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return nil, &clawr.Error{Code: clawr.CodeNotFound, Message: fmt.Sprintf("%d of the wallet's channels begin with %q", len(found), clean(prefix, 70)), Fix: "clawr channels list"}
}

// saveChannel writes ch down. The days that nobody asks for any more go.
func (w *Wallet) saveChannel(ch *Channel) error {
	oldest := dayOf(w.now().AddDate(0, 0, -keepDays))
	for _, days := range []map[string]clawr.Amount{ch.Deposited, ch.Drawn} {
		for day := range days {
			if day < oldest {
				delete(days, day)
			}
		}
	}
	b, err := ch.encode()
	if err != nil {
		return err
	}
	return writeFile(w.channelPath(ch.ID), b)
}

func (ch *Channel) encode() ([]byte, error) {
	b, err := json.MarshalIndent(ch, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode channel %s: %w", ch.ID, err)
	}
	return append(b, '\n'), nil
}

// today is what channels count on a day: what was deposited, and what vouchers
// were signed for.
func (w *Wallet) today(day string) (deposited, drawn clawr.Amount, err error) {
	all, err := w.Channels()
	for i := range all {
		deposited += all[i].Deposited[day]
		drawn += all[i].Drawn[day]
	}
	return deposited, drawn, err
}

// record writes ch down, which counts deposit and rise more than what stands on
// the disk, if the limit of the day has room for both: everything that was paid
// and deposited on a day is within it, and so is everything that was bought.
func (w *Wallet) record(ctx context.Context, ch *Channel, deposit, rise clawr.Amount, l Limits) error {
	day := dayOf(w.now())
	return w.withSpend(ctx, func(s *spend) error {
		deposited, drawn, err := w.today(day)
		if err != nil {
			return err
		}
		if deposit > 0 {
			if err := within(s.Days[day]+deposited, deposit, l, "this deposit is"); err != nil {
				return err
			}
		}
		if rise > 0 {
			if err := within(s.Days[day]+drawn, rise, l, "this call costs"); err != nil {
				return err
			}
		}
		count(&ch.Deposited, day, deposit)
		count(&ch.Drawn, day, rise)
		return w.saveChannel(ch)
	}, nil)
}

func count(days *map[string]clawr.Amount, day string, n clawr.Amount) {
	if n == 0 {
		return
	}
	if *days == nil {
		*days = map[string]clawr.Amount{}
	}
	(*days)[day] += n
}

// uncount takes back what was counted for something that is proven not done.
func uncount(days map[string]clawr.Amount, day string, n clawr.Amount) {
	if days[day] -= n; days[day] <= 0 {
		delete(days, day)
	}
}

// clone is a copy that changes by itself.
func (ch *Channel) clone() *Channel {
	c := *ch
	c.Open = slices.Clone(ch.Open)
	c.Deposited, c.Drawn = copyDays(ch.Deposited), copyDays(ch.Drawn)
	if ch.Deposit != nil {
		d := *ch.Deposit
		c.Deposit = &d
	}
	return &c
}

func copyDays(in map[string]clawr.Amount) map[string]clawr.Amount {
	out := make(map[string]clawr.Amount, len(in))
	for k, v := range in {
		out[k] = v
	}
	return out
}

// Draw is one line of a channel's log: an answer, and what it was charged.
type Draw struct {
	At          time.Time    `json:"at"`
	Method      string       `json:"method"`
	URL         string       `json:"url"`
	Amount      clawr.Amount `json:"amountUsd"`
	Charged     int64        `json:"charged,string"` // of the channel afterwards
	Status      int          `json:"status"`
	Deposit     int64        `json:"deposit,string"` // that came with it; 0: none
	Transaction string       `json:"transaction,omitempty"`
}

// log notes an answer. It is for people: what is owed stands in the channel, so
// that nothing waits for the disk here, and a lost line is no harm.
func (w *Wallet) log(ch *Channel, d Draw) error {
	b, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode draw: %w", err)
	}
	path := w.path(channelFolder, ch.ID+".log")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fileError(path, err)
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return fileError(path, err)
	}
	return nil
}

// Draws are the last n lines of a channel's log, newest first.
func (w *Wallet) Draws(id string, n int) ([]Draw, error) {
	path := w.path(channelFolder, id+".log")
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fileError(path, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxFile {
		f.Seek(-maxFile, io.SeekEnd)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fileError(path, err)
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	slices.Reverse(lines)
	var out []Draw
	for _, line := range lines {
		var d Draw
		if len(out) < n && json.Unmarshal(line, &d) == nil {
			out = append(out, d)
		}
	}
	return out, nil
}

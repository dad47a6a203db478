package ledger

import (
	"fmt"
	"time"

	"github.com/402claw/clawr"
)

// Channel is one row of channels: what the chain last said of a payment
// channel, and what its payer has signed and been charged since. Amounts are
// atomic units. I9: Claimed <= Charged <= Signed <= Balance, always.
type Channel struct {
	ID      string // 0x + 64 hex, lower-case: the hash of Config
	Network string // CAIP-2
	Asset   string
	Payer   string
	PayTo   string
	Config  []byte // the channel's config as JSON, which ID is the hash of

	// What the chain said at Synced.
	Balance     int64 // deposited, less what was refunded and withdrawn
	Claimed     int64
	Withdrawal  int64 // that the payer has begun; 0: none
	WithdrawAt  int64 // unix seconds at which it began
	RefundNonce uint64
	Synced      time.Time

	Charged   int64     // for answers that were delivered, ever
	Signed    int64     // what the newest voucher that bought something allows
	Allowed   int64     // by Signature; more than Signed only after the payer withdrew
	Signature []byte    // of that voucher; nil: there is none
	Forfeited int64     // charged, and withdrawn before it was claimed: lost
	Unclaimed time.Time // since when something is charged and not claimed; zero: nothing is

	Reserved int64     // for a call that is in work and must not be done twice
	Holder   string    // the process that does it
	Lease    time.Time // until then nobody else may
	Epoch    int64     // fences the holder: every hold names the one that it has
	Updated  time.Time
}

// Room is what vouchers may draw on in all. A withdrawal that has begun is the
// payer's already: what it takes cannot be claimed once it is final.
func (c *Channel) Room() int64 { return c.Balance - c.Withdrawal }

// Due is what was charged and not claimed yet.
func (c *Channel) Due() int64 { return c.Charged - c.Claimed }

// Voucher is one row of vouchers: one increment of a channel, the one request
// that it bought, and the answer. It is written with the charge, in one
// transaction, so that there is none that was not charged.
type Voucher struct {
	ID           string // pay_ + 16 hex
	Channel      string
	MaxClaimable int64 // cumulative; with Channel it is the voucher's key
	Amount       int64 // this increment
	Signature    []byte
	TenantID     string
	Version      int64
	Route        string
	// Fingerprint, SignatureSHA256, QuoteSHA256 and ClientAddrHash say who may
	// have the answer, as a Payment's do.
	Fingerprint     string
	SignatureSHA256 string
	QuoteSHA256     string
	ClientAddrHash  string
	Counters        []Counter // taken with the charge
	Epoch           int64     // of the hold that it ends; 0: there was none
	Created         time.Time
}

// Receiver is who channels pay, in an asset; both lower-case.
type Receiver struct{ Address, Asset string }

// ChannelBehind says why a voucher was not charged, with the channel as it is:
// another one was faster, or its base is not what was charged.
type ChannelBehind struct{ Channel Channel }

func (e *ChannelBehind) Error() string {
	return fmt.Sprintf("ledger: channel %s has charged %d of %d, %d reserved", e.Channel.ID, e.Channel.Charged, e.Channel.Balance, e.Channel.Reserved)
}

// Code is what the caller is told.
func (e *ChannelBehind) Code() clawr.Code { return clawr.CodeConflict }

// Payment is v as the row of payments that it would be: its work is done, and it
// waits for no transaction.
func (v *Voucher) Payment(k Key) Payment {
	return Payment{ID: v.ID, TenantID: v.TenantID, Version: v.Version, Route: v.Route, Scheme: "batch-settlement", Key: k, Amount: v.Amount,
		Fingerprint: v.Fingerprint, SignatureSHA256: v.SignatureSHA256, QuoteSHA256: v.QuoteSHA256, ClientAddrHash: v.ClientAddrHash,
		Policy: Async, Work: Done, Money: Held, Created: v.Created, Updated: v.Created}
}

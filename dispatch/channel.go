package dispatch

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/usage"
	"github.com/402claw/clawr/x402"
)

// Channels keeps payment channels and what their vouchers bought. Each method
// is one transaction.
type Channels interface {
	// Channel is a channel as it is kept, nil if it is not.
	Channel(ctx context.Context, id string) (*ledger.Channel, error)
	// SyncChannel writes down what the chain says, and gives the channel.
	SyncChannel(context.Context, ledger.Channel) (ledger.Channel, error)
	// Voucher is what a voucher bought, nil if nothing.
	Voucher(ctx context.Context, channel string, maxClaimable int64) (*ledger.Voucher, *ledger.Answer, error)
	// Charge books the charge, the answer, the event and the counters of a
	// voucher, or nothing: *ledger.ChannelBehind, *ledger.Exceeded.
	Charge(ctx context.Context, v ledger.Voucher, a ledger.Answer, ev usage.Event) (ledger.Channel, []ledger.Counter, error)
	// DueChannels are those with something to claim, the longest waiting first.
	DueChannels(ctx context.Context, network string, limit int) ([]ledger.Channel, error)
}

// Holds reserves a channel for a call that must not be done twice.
type Holds interface {
	HoldChannel(ctx context.Context, id string, base, amount int64, holder string, lease time.Duration) (epoch int64, err error)
	ReleaseChannel(ctx context.Context, id string, epoch int64) error
}

// Vault moves the money of channels on the chain.
type Vault interface {
	// SettleChannel makes deposits and claims, and pays receivers out;
	// asking twice is asking once. An error means that nothing was submitted.
	SettleChannel(context.Context, *x402.PaymentPayload, x402.Requirements) (x402.SettleResponse, error)
	// RefundChannel is SettleChannel of a refund, which is signed only while hold
	// is there. Then hold is of another epoch.
	RefundChannel(ctx context.Context, p *x402.PaymentPayload, r x402.Requirements, hold *ledger.Hold) (x402.SettleResponse, error)
	// Deposited is how a deposit stands that was ever submitted: made, or
	// settlement_pending while it may be made yet. nil: it was not submitted, or
	// proof says that it never will be made.
	Deposited(context.Context, *x402.ChannelPayload) (*x402.SettleResponse, error)
	// Moving reports whether a transaction that names a channel is signed and in
	// no block yet.
	Moving(context.Context, x402.ChannelConfig) (bool, error)
	// ReadChannel is what the chain says of a channel: Balance, Claimed,
	// Withdrawal, WithdrawAt, RefundNonce and Synced.
	ReadChannel(ctx context.Context, id common.Hash) (ledger.Channel, error)
}

// Authorizer is the key that answers for claims and refunds: it is named in
// every channel, so it must not change while any of them has something due.
type Authorizer interface {
	Address() common.Address
	SignHash(digest []byte) ([]byte, error)
}

// Receivers lists those for whom something was claimed on a network.
type Receivers interface {
	ClaimedFor(ctx context.Context, network string) ([]ledger.Receiver, error)
}

// Till is everything that selling for vouchers takes. WithdrawDelay is how long
// a payer who withdraws has to wait, in seconds; 0: the shortest there is.
type Till struct {
	Channels      Channels
	Holds         Holds
	Vault         Vault
	Authorizer    Authorizer
	WithdrawDelay uint64
	// ClaimAbove is the due amount, in atomic units, from which a channel is
	// claimed at once; 0: a million, a dollar of USDC.
	ClaimAbove int64
	// Receivers, if not nil, remembers for whom money was claimed: some of it may
	// not have been sent when a process ended.
	Receivers Receivers

	busy   channelLocks
	unsent unsent
	idle   idleHolds
	named  sync.Once
	name   []byte // see authorizer
}

// authorizer is the Authorizer's address in JSON. Whoever gets it does not
// change it.
func (t *Till) authorizer() []byte {
	t.named.Do(func() { t.name = strconv.AppendQuote(nil, t.Authorizer.Address().Hex()) })
	return t.name
}

func (t *Till) delay() uint64 {
	if t.WithdrawDelay > 0 {
		return t.WithdrawDelay
	}
	return x402.MinWithdrawDelay
}

// fresh is how long what the chain said of a channel is believed: a third of
// the time that a withdrawal takes, between 30 s and 5 min (the SDK's bounds).
func (t *Till) fresh() time.Duration {
	return min(max(time.Duration(t.delay())*time.Second/3, 30*time.Second), 5*time.Minute)
}

// quarter is how old a debt, or money that was not sent, may become: a quarter
// of the time that a withdrawal takes.
func (t *Till) quarter() time.Duration { return time.Duration(t.delay()) * time.Second / 4 }

// channelLocks lets one call at a time draw on a channel in this process. It
// only saves work: the book decides.
type channelLocks struct {
	mu   sync.Mutex
	held map[common.Hash]chan struct{}
}

// lock waits for the channel until ctx ends.
func (l *channelLocks) lock(ctx context.Context, id common.Hash) (unlock func(), ok bool) {
	for {
		l.mu.Lock()
		wait, taken := l.held[id]
		if !taken {
			done := make(chan struct{})
			if l.held == nil {
				l.held = map[common.Hash]chan struct{}{}
			}
			l.held[id] = done
			l.mu.Unlock()
			return func() {
				l.mu.Lock()
				delete(l.held, id)
				l.mu.Unlock()
				close(done)
			}, true
		}
		l.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, false
		}
	}
}

// minDeposit is how many calls a first deposit should pay for: the SDK's default.
const minDeposit = 10

// channelTerms are terms for paying by voucher.
func (d *Dispatcher) channelTerms(e *entry, exact x402.Requirements) x402.Requirements {
	r := exact
	r.Scheme = x402.SchemeChannel
	amount, _ := strconv.ParseInt(exact.Amount, 10, 64)
	quoted := func(s string) []byte { return strconv.AppendQuote(nil, s) }
	r.Extra.Rest = x402.Object{
		{Name: "receiverAuthorizer", Value: d.Till.authorizer()},
		{Name: "withdrawDelay", Value: strconv.AppendUint(nil, d.Till.delay(), 10)},
	}
	if amount <= maxDeposit/minDeposit {
		r.Extra.Rest = append(r.Extra.Rest, x402.Member{Name: "minDeposit", Value: quoted(strconv.FormatInt(amount*minDeposit, 10))})
	}
	return r
}

const maxDeposit = 1 << 62

// sellsByVoucher reports whether e's calls may be paid by vouchers here.
func (d *Dispatcher) sellsByVoucher(e *entry) bool {
	return d.Till != nil && e.channels
}

// parseChannel takes the scheme's part of a payment by channel apart.
func (d *Dispatcher) parseChannel(p *payment) error {
	d.hashed.Do(func() {
		if id, ok := x402.ChainID(d.Asset.Network); ok {
			d.domain = x402.ChannelDomain(id)
		}
	})
	if p.Accepted.Network != d.Asset.Network || d.domain == (x402.Domain{}) {
		return errors.New("payments by channel are on " + d.Asset.Network)
	}
	p.domain = d.domain
	c, err := x402.ParseChannel(p.Payload, p.domain)
	if err != nil {
		return err
	}
	if c.Kind != x402.ChannelDeposit && c.Kind != x402.ChannelVoucher && c.Kind != x402.ChannelRefund {
		return errors.New("buyers send deposits, vouchers and refunds")
	}
	p.channel = c
	p.signature = hashHex(c.Voucher.Signature)
	p.channelID = c.Voucher.Channel.Hex()
	var max common.Hash
	binary.BigEndian.PutUint64(max[24:], uint64(c.Voucher.MaxClaimable))
	nonce := crypto.Keccak256Hash(c.Voucher.Channel[:], max[:])
	p.key = ledger.Key{Network: p.Accepted.Network, Asset: x402.Lower(c.Config.Token), Payer: x402.Lower(c.Config.Payer), Nonce: nonce.Hex()}
	return nil
}

// byVoucher answers a call that is paid by voucher: by what the voucher bought,
// if it has, and else by charging it. All of it holds the channel, because a
// voucher goes up from what the one before it was charged.
func (d *Dispatcher) byVoucher(c *call, p *payment) error {
	if d.Till == nil {
		return &clawr.Error{Code: clawr.CodeFacilitatorDown, Message: "this node takes no payments by channel", Fix: "pay with another entry of accepts"}
	}
	if p.channel.Kind == x402.ChannelDeposit {
		c.brings = p
	}
	ctx, cancel := d.detached(c)
	defer cancel()
	// Only who can sign for a channel may keep its other calls waiting.
	// A channel that names no key is signed for by its payer, and that may be a
	// contract, which can take back what it said before it is claimed.
	if !p.channel.Voucher.SignedBy(p.channel.Config.PayerAuthorizer, p.domain) {
		if c.e == nil {
			return errNoTenant
		}
		p.forged = true
		return d.buy(c, p)
	}
	d.reached("voucher.received")
	unlock, ok := d.Till.busy.lock(ctx, p.channel.Voucher.Channel)
	if !ok {
		return busy()
	}
	defer unlock()
	var err error
	if c.kept, err = d.Till.Channels.Channel(ctx, p.channelID); err != nil {
		return lookupFailed(err)
	}
	// A voucher above what was charged has bought nothing yet.
	if p.channel.Kind != x402.ChannelRefund && c.kept != nil && p.channel.Voucher.MaxClaimable <= c.kept.Charged+c.kept.Forfeited {
		v, answer, err := d.Till.Channels.Voucher(ctx, p.channelID, p.channel.Voucher.MaxClaimable)
		switch {
		case err != nil:
			return lookupFailed(err)
		case v != nil:
			// Somebody else's, or of a client that has lost count: it cannot be charged
			// again, so that it is told where the channel stands.
			if row := v.Payment(p.key); d.mayHave(c, p, &row) {
				return d.bought(c, p, v, answer)
			}
		}
	}
	switch {
	case c.e == nil:
		return errNoTenant
	case d.Closed != nil:
		return d.Closed
	}
	return d.buy(c, p)
}

// bought answers with what a voucher has bought, whoever may have it.
func (d *Dispatcher) bought(c *call, p *payment, v *ledger.Voucher, answer *ledger.Answer) error {
	row := v.Payment(p.key)
	c.stored = answer
	c.extra = chargedExtra(v.Amount, c.kept)
	return d.standing(c, p, &row)
}

// chargedExtra is what a receipt says of a voucher's charge.
func chargedExtra(amount int64, ch *ledger.Channel) x402.Object {
	return x402.Object{
		{Name: "chargedAmount", Value: quotedInt(amount)},
		{Name: "channelState", Value: channelState(ch)},
	}
}

func quotedInt(n int64) []byte { return strconv.AppendQuote(nil, strconv.FormatInt(n, 10)) }

// channelState is a channel as the protocol shows it.
func channelState(ch *ledger.Channel) []byte {
	b := make([]byte, 0, 256)
	b = strconv.AppendQuote(append(b, `{"channelId":`...), ch.ID)
	b = strconv.AppendInt(append(b, `,"balance":"`...), ch.Balance, 10)
	b = strconv.AppendInt(append(b, `","totalClaimed":"`...), ch.Claimed, 10)
	b = strconv.AppendInt(append(b, `","withdrawRequestedAt":`...), ch.WithdrawAt, 10)
	b = strconv.AppendUint(append(b, `,"refundNonce":"`...), ch.RefundNonce, 10)
	b = strconv.AppendInt(append(b, `","chargedCumulativeAmount":"`...), ch.Charged, 10)
	return append(b, `"}`...)
}

// corrected are terms with where the channel stands, and the proof of it: the
// newest voucher. So a client that has lost count, or was overtaken, goes on.
func corrected(r x402.Requirements, ch *ledger.Channel) x402.Requirements {
	r.Extra.Rest = append(x402.Object(nil), r.Extra.Rest...)
	r.Extra.Rest = append(r.Extra.Rest, x402.Member{Name: "channelState", Value: channelState(ch)})
	if ch.Signature != nil {
		v, _ := json.Marshal(struct {
			Max string `json:"signedMaxClaimable"`
			Sig string `json:"signature"`
		}{strconv.FormatInt(ch.Allowed, 10), "0x" + common.Bytes2Hex(ch.Signature)})
		r.Extra.Rest = append(r.Extra.Rest, x402.Member{Name: "voucherState", Value: v})
	}
	return r
}

// correction is the JSON of a challenge that says where the channel of a voucher
// stands, appended to b.
func (d *Dispatcher) correction(b []byte, c *call, reason clawr.Code, url, quote string) ([]byte, error) {
	exact, err := d.terms(c.e, c.units)
	if err != nil {
		return nil, err
	}
	exact.Extra.Quote = quote
	channel := corrected(d.channelTerms(c.e, exact), c.corrected)
	required := x402.PaymentRequired{Version: x402.Version, Error: string(reason), Accepts: []x402.Requirements{exact, channel},
		Resource: x402.ResourceInfo{URL: url, Description: clip(c.e.Description, maxDescription), MimeType: "application/json"}, Extensions: c.e.extensions}
	raw, err := base64.StdEncoding.DecodeString(required.Header())
	return append(b, raw...), err
}

// behind refuses a voucher that does not go up from where its channel stands.
func (d *Dispatcher) behind(c *call, p *payment, ch *ledger.Channel) error {
	c.corrected = ch
	return d.refuse(c, x402.ReasonCumulativeMismatch, "the voucher does not go up from what the channel was charged")
}

// busy says that the same voucher may be good in a moment.
func busy() error {
	return &clawr.Error{Code: x402.ReasonChannelBusy, Status: http.StatusServiceUnavailable, Message: "another call draws on this channel", Fix: "send the same payment again", RetryAfter: time.Second}
}

// checkVoucher checks everything about a payment by channel that needs no
// chain.
func (d *Dispatcher) checkVoucher(p *payment, e *entry, terms *x402.Requirements) *clawr.Error {
	if _, err := x402.Match([]x402.Requirements{*terms}, p.PaymentPayload); err != nil {
		return asRefusal(err)
	}
	if err := x402.CheckEcho(e.extensions, p.Extensions, nil); err != nil {
		return asRefusal(err)
	}
	if err := p.channel.Matches(terms); err != nil {
		return asRefusal(err)
	}
	if p.forged {
		message := "the voucher is not signed by the channel's payer"
		if p.channel.Config.PayerAuthorizer == (common.Address{}) {
			message = "vouchers are signed by a key here: open a channel that names one as its payerAuthorizer"
		}
		return &clawr.Error{Code: x402.ReasonVoucherSignature, Status: http.StatusPaymentRequired, Message: message}
	}
	return nil
}

// asked is whether the chain has to be asked about a channel: what is known of
// it is old.
func (d *Dispatcher) asked(ch *ledger.Channel) bool {
	return ch == nil || d.now().Sub(ch.Synced) > d.Till.fresh()
}

// sync reads the channel of p from the chain, and writes it down.
func (d *Dispatcher) sync(ctx context.Context, p *payment) (*ledger.Channel, error) {
	seen, err := d.Till.Vault.ReadChannel(ctx, p.channel.Voucher.Channel)
	if err != nil {
		return nil, err
	}
	seen.ID, seen.Network, seen.Asset, seen.Payer = p.channelID, p.key.Network, p.key.Asset, p.key.Payer
	seen.PayTo = x402.Lower(p.channel.Config.Receiver)
	seen.Config = p.channel.ConfigJSON()
	kept, err := d.Till.Channels.SyncChannel(ctx, seen)
	if err == nil {
		d.noticed(&kept)
	}
	return &kept, err
}

// noticed marks, for the tests that kill here, that the book knows of a
// withdrawal from now on.
func (d *Dispatcher) noticed(ch *ledger.Channel) {
	if ch.WithdrawAt > 0 {
		d.reached("withdrawal.noticed")
	}
}

// voucher charges a new voucher: a deposit that comes with it first, then the
// work, then the charge and the answer in one transaction. Until that, nothing
// has happened, and the same voucher may be sent again.
func (d *Dispatcher) voucher(c *call, p *payment, e *entry, exact x402.Requirements) error {
	terms := d.channelTerms(e, exact)
	if refusal := d.checkVoucher(p, e, &terms); refusal != nil {
		return d.refuse(c, refusal.Code, refusal.Message)
	}
	c.ev.Caller = d.callers.hash(d.Salt, payerCaller, p.key.Payer)
	if p.channel.Kind == x402.ChannelRefund {
		return d.refund(c, p, terms)
	}
	if err := d.check(c); err != nil {
		return err
	}
	if err := d.readBody(c); err != nil {
		return err
	}
	leave, err := d.enter(c.e)
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := d.detached(c)
	defer cancel()
	amount, _ := strconv.ParseInt(terms.Amount, 10, 64)
	v := p.channel.Voucher
	base := v.MaxClaimable - amount
	if c.kept != nil && c.kept.Signature != nil && c.kept.Forfeited == 0 && base != c.kept.Charged {
		return d.behind(c, p, c.kept) // before anything is deposited for it
	}
	ch, err := d.funded(ctx, c, p, terms)
	if ch == nil || err != nil {
		return err
	}
	switch {
	case ch.Forfeited > 0 || v.MaxClaimable > ch.Room():
		return d.refuse(c, x402.ReasonCumulativeBalance, "the channel does not hold what the voucher allows")
	case ch.Signature == nil && base >= ch.Claimed: // the payer alone knows what was charged
	case base != ch.Charged:
		return d.behind(c, p, ch)
	}
	return d.charge(ctx, c, p, e, amount)
}

// charge does the work and books it.
//
// Work that may be done twice is reserved only in this process, by the lock on
// the channel, and that is enough: the charge, the answer, its event and the
// newest voucher are one conditional commit, which comes before the first byte
// of the answer. A crash before it has charged nobody and served nobody, and the
// same voucher buys the call again; a crash after it has the answer, which the
// same voucher fetches. Of two nodes that work for one channel at once one
// commit finds the channel where its voucher begins, and the other serves
// nothing. What must not be done twice is reserved in the book first, as every
// exact payment is, and its charge names the epoch of that hold.
func (d *Dispatcher) charge(ctx context.Context, c *call, p *payment, e *entry, amount int64) error {
	v := p.channel.Voucher
	ws, counters := c.windows(e, c.ev.Caller, e.Price)
	row := ledger.Voucher{ID: d.newID("pay_"), Channel: p.channelID, MaxClaimable: v.MaxClaimable, Amount: amount, Signature: v.Signature,
		TenantID: e.ID, Version: e.Version, Route: c.ev.Endpoint, Fingerprint: c.fingerprint(e, c.canonical), SignatureSHA256: p.signature,
		QuoteSHA256: p.quoteSHA, ClientAddrHash: d.callers.hash(d.Salt, addrCaller, c.addr), Counters: counters}
	if !idempotent(c.Method) {
		d.reached("hold.before")
		epoch, err := d.Till.Holds.HoldChannel(ctx, row.Channel, v.MaxClaimable-amount, amount, d.Node, d.deadline())
		if b, ok := errors.AsType[*ledger.ChannelBehind](err); ok {
			return d.overtaken(ctx, c, p, &b.Channel, v.MaxClaimable-amount)
		}
		if err != nil {
			return unavailable(err)
		}
		d.reached("hold.after")
		row.Epoch = epoch
		defer func() {
			if !c.booked {
				d.Till.Holds.ReleaseChannel(context.WithoutCancel(ctx), row.Channel, epoch)
			}
		}()
	}
	d.reached("worker.before")
	answer, err := d.work(ctx, c)
	d.reached("worker.after")
	pay := row.Payment(p.key)
	c.paidEvent(e, &pay)
	c.ev.Countable, c.ev.Billable = true, false
	if err != nil {
		c.receipt = &x402.SettleResponse{ErrorReason: clawr.CodeNotCharged, Network: p.key.Network, Payer: p.key.Payer}
		return err
	}
	answer.Expires = d.now().Add(24 * time.Hour)
	c.ev.Status, c.ev.BytesOut, c.ev.Latency = answer.Status, answer.Len, d.now().Sub(c.start)
	ch, used, err := d.Till.Channels.Charge(ctx, row, *answer, c.ev)
	if err != nil {
		if b, ok := errors.AsType[*ledger.ChannelBehind](err); ok {
			return d.overtaken(ctx, c, p, &b.Channel, v.MaxClaimable-amount)
		}
		if _, ok := errors.AsType[*ledger.Exceeded](err); ok {
			return c.exceeded(ws, err)
		}
		d.Log.ErrorContext(ctx, "a voucher was not charged", "channel", row.Channel, "err", err)
		return lookupFailed(err)
	}
	c.booked = true
	d.reached("charge.after")
	c.left(ws, used)
	c.extra = chargedExtra(amount, &ch)
	return d.respond(c, e, &pay, answer)
}

package x402

import (
	"strconv"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
)

// The reasons of SchemeChannel on EVM chains, as the reference SDK
// (@x402/evm 2.27, batch-settlement/errors.ts) spells them.
const (
	ReasonChannelScheme        clawr.Code = "invalid_batch_settlement_evm_scheme"
	ReasonChannelNetwork       clawr.Code = "invalid_batch_settlement_evm_network_mismatch"
	ReasonChannelDomain        clawr.Code = "invalid_batch_settlement_evm_missing_eip712_domain"
	ReasonChannelPayload       clawr.Code = "invalid_batch_settlement_evm_payload_type"
	ReasonChannelID            clawr.Code = "invalid_batch_settlement_evm_channel_id_mismatch"
	ReasonChannelIDForm        clawr.Code = "invalid_batch_settlement_evm_channel_id_invalid"
	ReasonChannelNotFound      clawr.Code = "invalid_batch_settlement_evm_channel_not_found"
	ReasonChannelMissing       clawr.Code = "invalid_batch_settlement_evm_missing_channel"
	ReasonChannelBusy          clawr.Code = "invalid_batch_settlement_evm_channel_busy"
	ReasonChannelToken         clawr.Code = "invalid_batch_settlement_evm_token_mismatch"
	ReasonChannelReceiver      clawr.Code = "invalid_batch_settlement_evm_receiver_mismatch"
	ReasonChannelAuthorizer    clawr.Code = "invalid_batch_settlement_evm_receiver_authorizer_mismatch"
	ReasonChannelDelay         clawr.Code = "invalid_batch_settlement_evm_withdraw_delay_mismatch"
	ReasonChannelDelayRange    clawr.Code = "invalid_batch_settlement_evm_withdraw_delay_out_of_range"
	ReasonVoucherSignature     clawr.Code = "invalid_batch_settlement_evm_voucher_signature"
	ReasonCumulativeMismatch   clawr.Code = "invalid_batch_settlement_evm_cumulative_amount_mismatch"
	ReasonCumulativeBelow      clawr.Code = "invalid_batch_settlement_evm_cumulative_below_claimed"
	ReasonCumulativeBalance    clawr.Code = "invalid_batch_settlement_evm_cumulative_exceeds_balance"
	ReasonDepositBalance       clawr.Code = "invalid_batch_settlement_evm_insufficient_balance"
	ReasonDepositBelowMin      clawr.Code = "invalid_batch_settlement_evm_deposit_below_min_deposit"
	ReasonDepositAuthorization clawr.Code = "invalid_batch_settlement_evm_erc3009_authorization_required"
	ReasonDepositSignature     clawr.Code = "invalid_batch_settlement_evm_receive_authorization_signature"
	ReasonDepositValidBefore   clawr.Code = "invalid_batch_settlement_evm_payload_authorization_valid_before"
	ReasonDepositValidAfter    clawr.Code = "invalid_batch_settlement_evm_payload_authorization_valid_after"
	ReasonDepositSimulation    clawr.Code = "invalid_batch_settlement_evm_deposit_simulation_failed"
	ReasonDepositTransaction   clawr.Code = "invalid_batch_settlement_evm_deposit_transaction_failed"
	ReasonClaimSimulation      clawr.Code = "invalid_batch_settlement_evm_claim_simulation_failed"
	ReasonClaimTransaction     clawr.Code = "invalid_batch_settlement_evm_claim_transaction_failed"
	ReasonChannelSettle        clawr.Code = "invalid_batch_settlement_evm_settle_transaction_failed"
	ReasonNothingToSettle      clawr.Code = "invalid_batch_settlement_evm_nothing_to_settle"
	ReasonRefundPayload        clawr.Code = "invalid_batch_settlement_evm_refund_payload"
	ReasonRefundSimulation     clawr.Code = "invalid_batch_settlement_evm_refund_simulation_failed"
	ReasonRefundTransaction    clawr.Code = "invalid_batch_settlement_evm_refund_transaction_failed"
	ReasonRefundNoBalance      clawr.Code = "invalid_batch_settlement_evm_refund_no_balance"
	ReasonRefundAmount         clawr.Code = "invalid_batch_settlement_evm_refund_amount_invalid"
	ReasonChannelState         clawr.Code = "invalid_batch_settlement_evm_verification_state_unavailable"
	ReasonChannelRead          clawr.Code = "invalid_batch_settlement_evm_rpc_read_failed"
	ReasonAuthorizerMissing    clawr.Code = "invalid_batch_settlement_evm_authorizer_not_configured"
	ReasonAuthorizerAddress    clawr.Code = "invalid_batch_settlement_evm_authorizer_address_mismatch"
	ReasonChargeExceedsSigned  clawr.Code = "invalid_batch_settlement_evm_charge_exceeds_signed_cumulative"
)

// ChannelKind is what a payload of SchemeChannel does.
type ChannelKind string

// A buyer sends the first three; a server sends claim, settle and a completed
// refund to a facilitator.
const (
	ChannelDeposit ChannelKind = "deposit"
	ChannelVoucher ChannelKind = "voucher"
	ChannelRefund  ChannelKind = "refund"
	ChannelClaim   ChannelKind = "claim"
	ChannelSettle  ChannelKind = "settle"
)

// ChannelPayload is the content of a payment by SchemeChannel. Which fields
// are set depends on Kind.
type ChannelPayload struct {
	Kind    ChannelKind
	Config  ChannelConfig // deposit, voucher, refund
	Voucher Voucher       // likewise
	Deposit *Deposit      // deposit
	// Amount is what a refund gives back; 0: everything that is left.
	Amount int64

	// What the server adds before it asks a facilitator: for refund and claim.
	RefundNonce         uint64
	Completed           bool // a refund has amount, nonce and claims
	Claims              []Claim
	ClaimAuthorization  []byte // the receiverAuthorizer's; empty: the facilitator's own
	RefundAuthorization []byte

	Receiver, Token common.Address // settle
}

// maxClaims bounds the claims of one transaction: at 20,000 gas each, less
// than half of what a block of Base may have for one transaction.
const maxClaims = 300

// ParseChannel reads the scheme's part of a payment. The channel's id is
// compared with its config in domain d, so that nobody has to later.
func ParseChannel(payload []byte, d Domain) (*ChannelPayload, error) {
	f := open("payload", payload)
	p := &ChannelPayload{Kind: ChannelKind(f.optional("type"))}
	bad := func(why string) (*ChannelPayload, error) { return nil, refuse(ReasonChannelPayload, "%s", why) }
	if f.err != nil {
		return bad(f.err.Error())
	}
	switch p.Kind {
	case ChannelClaim:
		err := p.readClaims(f, d)
		return p, err
	case ChannelSettle:
		var ok, ok2 bool
		p.Receiver, ok = parseAddress(f.required("receiver"))
		p.Token, ok2 = parseAddress(f.required("token"))
		if f.err != nil || !ok || !ok2 {
			return bad("a settle payload names receiver and token by address")
		}
		return p, nil
	case ChannelDeposit, ChannelVoucher, ChannelRefund:
	default:
		return bad("the payload is neither deposit, voucher nor refund")
	}
	var err error
	if p.Config, err = readConfig(f.take("channelConfig")); err != nil {
		return nil, err
	}
	if p.Voucher, err = readVoucher(f.take("voucher")); err != nil {
		return nil, err
	}
	if p.Config.ID(d) != p.Voucher.Channel {
		return p, refuse(ReasonChannelID, "the channel's id is not that of its config")
	}
	switch p.Kind {
	case ChannelDeposit:
		p.Deposit, err = readDeposit(f.take("deposit"))
	case ChannelRefund:
		err = p.readRefund(f, d)
	}
	return p, err
}

func readConfig(raw []byte) (c ChannelConfig, err error) {
	f := open("channelConfig", raw)
	for _, a := range []struct {
		name string
		to   *common.Address
	}{{"payer", &c.Payer}, {"payerAuthorizer", &c.PayerAuthorizer}, {"receiver", &c.Receiver}, {"receiverAuthorizer", &c.ReceiverAuthorizer}, {"token", &c.Token}} {
		var ok bool
		if *a.to, ok = parseAddress(f.required(a.name)); !ok {
			f.fail(a.name, "is not an address")
		}
	}
	delay := f.integer("withdrawDelay")
	if !parseHex(c.Salt[:], f.required("salt")) {
		f.fail("salt", "is not 0x and 64 hexadecimal digits")
	}
	if f.err != nil {
		return c, refuse(ReasonChannelPayload, "%v", f.err)
	}
	if delay < MinWithdrawDelay || delay > MaxWithdrawDelay {
		return c, refuse(ReasonChannelDelayRange, "the withdraw delay is %d s, it must be %d to %d", delay, MinWithdrawDelay, MaxWithdrawDelay)
	}
	c.WithdrawDelay = uint64(delay)
	return c, nil
}

func readVoucher(raw []byte) (v Voucher, err error) {
	f := open("voucher", raw)
	id, max, sig := f.required("channelId"), f.required("maxClaimableAmount"), f.required("signature")
	if f.err != nil {
		return v, refuse(ReasonChannelPayload, "%v", f.err)
	}
	if !parseHex(v.Channel[:], id) {
		return v, refuse(ReasonChannelIDForm, "the channel's id is not 0x and 64 hexadecimal digits")
	}
	var ok bool
	if v.MaxClaimable, ok = amount(max); !ok {
		return v, refuse(ReasonCumulativeMismatch, "maxClaimableAmount is not a plain decimal number of 63 bits")
	}
	if v.Signature = readSignature(sig); v.Signature == nil {
		return v, refuse(ReasonVoucherSignature, "the voucher's signature is not hexadecimal")
	}
	return v, nil
}

func readDeposit(raw []byte) (*Deposit, error) {
	f := open("deposit", raw)
	units := f.required("amount")
	authorization := f.take("authorization")
	if f.err != nil {
		return nil, refuse(ReasonChannelPayload, "%v", f.err)
	}
	p := new(Deposit)
	var ok bool
	if p.Amount, ok = Units(units); !ok {
		return nil, refuse(ReasonDepositBelowMin, "the deposit is not a positive number of atomic units")
	}
	f = open("authorization", authorization)
	inner := f.take("erc3009Authorization")
	if f.err != nil || inner == nil {
		return nil, refuse(ReasonDepositAuthorization, "the deposit carries no erc3009Authorization")
	}
	f = open("erc3009Authorization", inner)
	after, before, salt, sig := f.required("validAfter"), f.required("validBefore"), f.required("salt"), f.required("signature")
	if f.err != nil {
		return nil, refuse(ReasonDepositAuthorization, "%v", f.err)
	}
	if p.ValidAfter, ok = ParseUint(after); !ok {
		return nil, refuse(ReasonDepositValidAfter, "validAfter is not a plain decimal number")
	}
	if p.ValidBefore, ok = ParseUint(before); !ok {
		return nil, refuse(ReasonDepositValidBefore, "validBefore is not a plain decimal number")
	}
	if !parseHex(p.Salt[:], salt) {
		return nil, refuse(ReasonDepositAuthorization, "salt is not 0x and 64 hexadecimal digits")
	}
	if p.Signature = readSignature(sig); p.Signature == nil {
		return nil, refuse(ReasonDepositSignature, "the deposit's signature is not hexadecimal")
	}
	return p, nil
}

func (p *ChannelPayload) readRefund(f *fields, d Domain) error {
	if raw := f.take("amount"); raw != nil {
		var ok bool
		if kind(raw) == '"' {
			p.Amount, ok = Units(text(raw))
		}
		if !ok {
			return refuse(ReasonRefundAmount, "the amount is not a positive number of atomic units")
		}
	}
	nonce := f.optional("refundNonce")
	if nonce == "" {
		return nil
	}
	n, ok := amount(nonce)
	if !ok || p.Amount == 0 {
		return refuse(ReasonRefundPayload, "a completed refund has amount, refundNonce and claims")
	}
	p.RefundNonce, p.Completed = uint64(n), true
	if sig := f.optional("refundAuthorizerSignature"); sig != "" {
		if p.RefundAuthorization = readSignature(sig); p.RefundAuthorization == nil {
			return refuse(ReasonRefundPayload, "refundAuthorizerSignature is not hexadecimal")
		}
	}
	return p.readClaims(f, d)
}

// readClaims reads the claims of a claim payload or of a completed refund.
func (p *ChannelPayload) readClaims(f *fields, d Domain) error {
	list := f.entries("claims")
	if sig := f.optional("claimAuthorizerSignature"); sig != "" {
		if p.ClaimAuthorization = readSignature(sig); p.ClaimAuthorization == nil {
			f.fail("claimAuthorizerSignature", "is not hexadecimal")
		}
	}
	if f.err != nil {
		return refuse(ReasonChannelPayload, "%v", f.err)
	}
	if len(list) > maxClaims || len(list) == 0 && p.Kind == ChannelClaim {
		return refuse(ReasonChannelPayload, "there are %d claims, at least 1 and at most %d are settled at once", len(list), maxClaims)
	}
	for _, raw := range list {
		c, err := readClaim(raw, d)
		if err != nil {
			return err
		}
		p.Claims = append(p.Claims, c)
	}
	return nil
}

func readClaim(raw []byte, d Domain) (c Claim, err error) {
	f := open("claim", raw)
	voucher, sig, total := f.take("voucher"), f.required("signature"), f.required("totalClaimed")
	v := open("voucher", voucher)
	config, max := v.take("channel"), v.required("maxClaimableAmount")
	if f.err != nil || v.err != nil {
		return c, refuse(ReasonChannelPayload, "a claim has voucher {channel, maxClaimableAmount}, signature and totalClaimed")
	}
	if c.Config, err = readConfig(config); err != nil {
		return c, err
	}
	var ok, ok2 bool
	c.Voucher.MaxClaimable, ok = amount(max)
	c.Total, ok2 = amount(total)
	c.Voucher.Signature = readSignature(sig)
	if !ok || !ok2 || c.Voucher.Signature == nil || c.Total > c.Voucher.MaxClaimable {
		return c, refuse(ReasonChannelPayload, "a claim's totalClaimed is at most its maxClaimableAmount, both plain decimal numbers")
	}
	c.Voucher.Channel = c.Config.ID(d)
	return c, nil
}

// amount reads atomic units, zero included.
func amount(s string) (int64, bool) {
	u, ok := ParseUint(s)
	if !ok {
		return 0, false
	}
	return u.Int64()
}

// readSignature is the bytes of a signature, nil if s is not hexadecimal.
func readSignature(s string) []byte {
	if len(s) < 4 || len(s)%2 != 0 {
		return nil
	}
	b := make([]byte, len(s)/2-1)
	if !parseHex(b, s) {
		return nil
	}
	return b
}

// Matches compares a buyer's channel with what r asks for. Its errors are
// refusals, in the SDK's order.
func (p *ChannelPayload) Matches(r *Requirements) error {
	same := func(a common.Address, s string) bool {
		b, ok := parseAddress(s)
		return ok && a == b
	}
	if !same(p.Config.Receiver, r.PayTo) {
		return refuse(ReasonChannelReceiver, "the channel pays %s", Lower(p.Config.Receiver))
	}
	authorizer := r.Extra.Rest.Find("receiverAuthorizer")
	if kind(authorizer) != '"' || !same(p.Config.ReceiverAuthorizer, text(authorizer)) || p.Config.ReceiverAuthorizer == (common.Address{}) {
		return refuse(ReasonChannelAuthorizer, "the channel's receiverAuthorizer is not the one that is asked for")
	}
	if !same(p.Config.Token, r.Asset) {
		return refuse(ReasonChannelToken, "the channel is in another token")
	}
	if delay := r.Extra.Rest.Find("withdrawDelay"); delay != nil && string(delay) != strconv.FormatUint(p.Config.WithdrawDelay, 10) {
		return refuse(ReasonChannelDelay, "the channel's withdrawDelay is not the one that is asked for")
	}
	return nil
}

// ConfigJSON is the channel's config as JSON, which ParseChannelConfig reads.
func (p *ChannelPayload) ConfigJSON() []byte {
	b := &builder{}
	b.config(&p.Config)
	return b.b
}

// ParseChannelConfig reads what ConfigJSON wrote.
func ParseChannelConfig(raw []byte) (ChannelConfig, error) {
	if err := checkJSON(raw); err != nil {
		return ChannelConfig{}, err
	}
	return readConfig(raw)
}

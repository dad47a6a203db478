package x402

import (
	"encoding/hex"
	"strconv"
)

// JSON is p as the scheme's part of a payment.
func (p *ChannelPayload) JSON() []byte {
	b := &builder{b: make([]byte, 0, 1024)}
	b.open()
	b.string("type", string(p.Kind))
	switch p.Kind {
	case ChannelSettle:
		b.string("receiver", p.Receiver.Hex())
		b.string("token", p.Token.Hex())
	case ChannelClaim:
		b.claims(p.Claims)
	default:
		b.name("channelConfig")
		b.config(&p.Config)
		b.name("voucher")
		b.open()
		b.string("channelId", p.Voucher.Channel.Hex())
		b.units("maxClaimableAmount", p.Voucher.MaxClaimable)
		b.hex("signature", p.Voucher.Signature)
		b.close()
	}
	if p.Kind == ChannelDeposit {
		b.name("deposit")
		b.deposit(p.Deposit)
	}
	if p.Amount > 0 {
		b.units("amount", p.Amount)
	}
	if p.Completed {
		b.string("refundNonce", strconv.FormatUint(p.RefundNonce, 10))
		b.claims(p.Claims)
	}
	b.hex("refundAuthorizerSignature", p.RefundAuthorization)
	b.hex("claimAuthorizerSignature", p.ClaimAuthorization)
	b.close()
	return b.b
}

// units writes an amount as the protocol does: decimal, in a string.
func (b *builder) units(name string, n int64) { b.string(name, strconv.FormatInt(n, 10)) }

// hex writes the member only if v is not empty.
func (b *builder) hex(name string, v []byte) {
	if len(v) > 0 {
		b.string(name, "0x"+hex.EncodeToString(v))
	}
}

func (b *builder) config(c *ChannelConfig) {
	b.open()
	b.string("payer", c.Payer.Hex())
	b.string("payerAuthorizer", c.PayerAuthorizer.Hex())
	b.string("receiver", c.Receiver.Hex())
	b.string("receiverAuthorizer", c.ReceiverAuthorizer.Hex())
	b.string("token", c.Token.Hex())
	b.int("withdrawDelay", int64(c.WithdrawDelay))
	b.string("salt", c.Salt.Hex())
	b.close()
}

func (b *builder) deposit(p *Deposit) {
	b.open()
	b.units("amount", p.Amount)
	b.name("authorization")
	b.open()
	b.name("erc3009Authorization")
	b.open()
	b.string("validAfter", p.ValidAfter.String())
	b.string("validBefore", p.ValidBefore.String())
	b.string("salt", p.Salt.Hex())
	b.hex("signature", p.Signature)
	b.close()
	b.close()
	b.close()
}

func (b *builder) claims(list []Claim) {
	b.name("claims")
	b.b = append(b.b, '[')
	for i := range list {
		c := &list[i]
		if i > 0 {
			b.b = append(b.b, ',')
		}
		b.open()
		b.name("voucher")
		b.open()
		b.name("channel")
		b.config(&c.Config)
		b.units("maxClaimableAmount", c.Voucher.MaxClaimable)
		b.close()
		b.hex("signature", c.Voucher.Signature)
		b.units("totalClaimed", c.Total)
		b.close()
	}
	b.b = append(b.b, ']')
	b.comma = true
}

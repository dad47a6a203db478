package x402

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"pgregory.net/rapid"

	"github.com/402claw/clawr"
)

type channelVector struct {
	Name, Key, VoucherKey, Network, ChannelID, Digest, Reason string
	Payload                                                   json.RawMessage
}

func channelVectors(t *testing.T) (v struct{ Buyers, Servers, Bad []channelVector }) {
	t.Helper()
	vectors(t, "channels", &v)
	return v
}

func channelDomain(t *testing.T, network string) Domain {
	t.Helper()
	id, ok := ChainID(network)
	if !ok {
		t.Fatalf("%q is no network", network)
	}
	return ChannelDomain(id)
}

// What the official client sends is read, means what it says, and could have
// been signed and written by us.
func TestVectorsOfBuyersWithChannels(t *testing.T) {
	for _, c := range channelVectors(t).Buyers {
		t.Run(c.Name, func(t *testing.T) {
			d := channelDomain(t, c.Network)
			sent, err := ParsePayload(c.Payload)
			if err != nil {
				t.Fatal(err)
			}
			p, err := ParseChannel(sent.Payload, d)
			if err != nil {
				t.Fatal(err)
			}
			if p.Voucher.Channel.Hex() != c.ChannelID || p.Voucher.Digest(d).Hex() != c.Digest {
				t.Errorf("channel %s, digest %s, want %s, %s", p.Voucher.Channel, p.Voucher.Digest(d), c.ChannelID, c.Digest)
			}
			if !p.Voucher.SignedBy(p.Config.VoucherSigner(), d) {
				t.Error("the voucher is not signed by the channel's signer")
			}
			if !sameJSON(t, bytes.ToLower(p.JSON()), bytes.ToLower(sent.Payload)) { // addresses have a checksum, or not
				t.Errorf("written again it is\n%s\nwant\n%s", p.JSON(), sent.Payload)
			}
			key, err := crypto.HexToECDSA(c.VoucherKey[2:])
			if err != nil {
				t.Fatal(err)
			}
			again := p.Voucher
			if err := again.Sign(key, d); err != nil || !bytes.Equal(again.Signature, p.Voucher.Signature) {
				t.Errorf("signed by us it is %x, %v; want %x", again.Signature, err, p.Voucher.Signature)
			}
			if p.Kind != ChannelDeposit {
				return
			}
			a := &sent.Accepted
			chain, _ := ChainID(c.Network)
			token := NewDomain(a.Extra.Name, a.Extra.Version, chain, p.Config.Token)
			if who, ok := Recover(p.Deposit.Digest(token, p.Config.Payer, p.Voucher.Channel), p.Deposit.Signature); !ok || who != p.Config.Payer {
				t.Errorf("the deposit is signed by %s, want %s", who, p.Config.Payer)
			}
			if key, err = crypto.HexToECDSA(c.Key[2:]); err != nil {
				t.Fatal(err)
			}
			deposit := *p.Deposit
			if err := deposit.Sign(key, token, p.Voucher.Channel); err != nil || !bytes.Equal(deposit.Signature, p.Deposit.Signature) {
				t.Errorf("signed by us the deposit is %x, %v; want %x", deposit.Signature, err, p.Deposit.Signature)
			}
		})
	}
}

// What the official server signs to claim and to refund is what we would sign.
func TestVectorsOfServersWithChannels(t *testing.T) {
	for _, c := range channelVectors(t).Servers {
		t.Run(c.Name, func(t *testing.T) {
			d := channelDomain(t, c.Network)
			p, err := ParseChannel(c.Payload, d)
			if err != nil {
				t.Fatal(err)
			}
			if !sameJSON(t, p.JSON(), c.Payload) {
				t.Errorf("written again it is\n%s\nwant\n%s", p.JSON(), c.Payload)
			}
			key, err := crypto.HexToECDSA(c.Key[2:])
			if err != nil {
				t.Fatal(err)
			}
			who := crypto.PubkeyToAddress(key.PublicKey)
			if p.Kind == ChannelClaim {
				if got, ok := Recover(ClaimDigest(d, p.Claims), p.ClaimAuthorization); !ok || got != who {
					t.Errorf("the claims are signed by %s, want %s", got, who)
				}
				for _, one := range p.Claims {
					if !one.Voucher.SignedBy(one.Config.VoucherSigner(), d) {
						t.Errorf("the voucher of %s is not its payer's", one.Voucher.Channel)
					}
				}
			}
			if p.Kind == ChannelRefund {
				if got, ok := Recover(RefundDigest(d, p.Voucher.Channel, p.RefundNonce, p.Amount), p.RefundAuthorization); !ok || got != who {
					t.Errorf("the refund is signed by %s, want %s", got, who)
				}
			}
		})
	}
}

func TestBadChannelPayloadsAreRefusedByName(t *testing.T) {
	for _, c := range channelVectors(t).Bad {
		t.Run(c.Name, func(t *testing.T) {
			_, err := ParseChannel(c.Payload, channelDomain(t, c.Network))
			if clawr.CodeOf(err) != clawr.Code(c.Reason) {
				t.Errorf("%v, want %s", err, c.Reason)
			}
		})
	}
}

// A voucher is for one channel, one amount and one chain.
func TestAVoucherIsForNothingElse(t *testing.T) {
	key, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	who := crypto.PubkeyToAddress(key.PublicKey)
	rapid.Check(t, func(t *rapid.T) {
		chain := rapid.Uint64Range(1, 1<<40).Draw(t, "chain")
		c := ChannelConfig{Payer: who, Receiver: common.Address(rapid.SliceOfN(rapid.Byte(), 20, 20).Draw(t, "receiver")),
			Token: common.HexToAddress("0x01"), WithdrawDelay: rapid.Uint64Range(MinWithdrawDelay, MaxWithdrawDelay).Draw(t, "delay"),
			Salt: common.Hash(rapid.SliceOfN(rapid.Byte(), 32, 32).Draw(t, "salt"))}
		d := ChannelDomain(chain)
		v := Voucher{Channel: c.ID(d), MaxClaimable: rapid.Int64Min(0).Draw(t, "amount")}
		if err := v.Sign(key, d); err != nil || !v.SignedBy(who, d) {
			t.Fatalf("its signer's voucher is refused: %v", err)
		}
		other := c
		other.WithdrawDelay ^= 1
		for what, bad := range map[string]bool{
			"another chain":   v.SignedBy(who, ChannelDomain(chain+1)),
			"another amount":  (&Voucher{v.Channel, v.MaxClaimable ^ 1, v.Signature}).SignedBy(who, d),
			"another channel": (&Voucher{other.ID(d), v.MaxClaimable, v.Signature}).SignedBy(who, d),
			"another signer":  v.SignedBy(c.Receiver, d),
		} {
			if bad {
				t.Errorf("it holds for %s", what)
			}
		}
	})
}

func FuzzParseChannel(f *testing.F) {
	f.Add([]byte(`{"type":"settle","receiver":"0x209693Bc6afc0C5328bA36FaF03C514EF312287C","token":"0x209693Bc6afc0C5328bA36FaF03C514EF312287C"}`))
	f.Add([]byte(`{"type":"voucher","channelConfig":{"payer":"0x209693Bc6afc0C5328bA36FaF03C514EF312287C","withdrawDelay":900},"voucher":{"maxClaimableAmount":"1"}}`))
	f.Add([]byte(`{"type":"claim","claims":[{"voucher":{"channel":{}},"signature":"0x00","totalClaimed":"1"}]}`))
	f.Add([]byte(`{"type":"refund","amount":"1","refundNonce":"0","claims":[]}`))
	d := ChannelDomain(84532)
	f.Fuzz(func(t *testing.T, raw []byte) {
		if checkJSON(raw) != nil {
			return
		}
		p, err := ParseChannel(raw, d)
		if err != nil {
			if code := string(clawr.CodeOf(err)); !strings.HasPrefix(code, "invalid_batch_settlement_evm_") {
				t.Errorf("%v is no reason of the scheme", err)
			}
			return
		}
		again, err := ParseChannel(p.JSON(), d)
		if err != nil || !bytes.Equal(again.JSON(), p.JSON()) {
			t.Errorf("%s\nread again: %v", p.JSON(), err)
		}
	})
}

package x402

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/binary"
	"fmt"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
)

// SchemeChannel is the scheme in which a payer deposits once and then signs a
// cumulative voucher for each call (scheme_batch_settlement_evm.md).
const SchemeChannel = "batch-settlement"

// The contracts of SchemeChannel, at the same address on every chain that has
// them, and the bounds of a channel's withdrawDelay in seconds.
var (
	ChannelsAddress  = common.HexToAddress("0x4020074e9dF2ce1deE5A9C1b5c3f541D02a10003")
	CollectorAddress = common.HexToAddress("0x4020806089470a89826cB9fB1f4059150b550004") // of deposits by EIP-3009
)

// The bounds of a channel's withdrawDelay, in seconds.
const (
	MinWithdrawDelay = 15 * 60
	MaxWithdrawDelay = 30 * 24 * 60 * 60
)

// ChannelConfig is what a channel is: it never changes, and its hash is the
// channel's id. PayerAuthorizer is the key that signs vouchers; if it is zero,
// the payer does, which may be a contract.
type ChannelConfig struct {
	Payer, PayerAuthorizer       common.Address
	Receiver, ReceiverAuthorizer common.Address
	Token                        common.Address
	WithdrawDelay                uint64 // seconds
	Salt                         common.Hash
}

// ChannelDomain is the EIP-712 domain of channels on a chain.
func ChannelDomain(chainID uint64) Domain {
	return NewDomain("x402 Batch Settlement", "1", chainID, ChannelsAddress)
}

// The type hashes of SchemeChannel.
var (
	channelType    = crypto.Keccak256Hash([]byte("ChannelConfig(address payer,address payerAuthorizer,address receiver,address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"))
	voucherType    = crypto.Keccak256Hash([]byte("Voucher(bytes32 channelId,uint128 maxClaimableAmount)"))
	refundType     = crypto.Keccak256Hash([]byte("Refund(bytes32 channelId,uint256 nonce,uint128 amount)"))
	claimEntryType = crypto.Keccak256Hash([]byte("ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"))
	claimBatchType = crypto.Keccak256Hash([]byte("ClaimBatch(ClaimEntry[] claims)ClaimEntry(bytes32 channelId,uint128 maxClaimableAmount,uint128 totalClaimed)"))
	receiveType    = crypto.Keccak256Hash([]byte("ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"))
)

// hash is keccak256(0x1901 ‖ d ‖ keccak256(kind ‖ words)).
func (d Domain) hash(kind common.Hash, words ...common.Hash) common.Hash {
	b := make([]byte, 0, 32*(len(words)+1))
	b = append(b, kind[:]...)
	for i := range words {
		b = append(b, words[i][:]...)
	}
	message := crypto.Keccak256Hash(b)
	var t [2 + 2*32]byte
	t[0], t[1] = 0x19, 0x01
	copy(t[2:], d[:])
	copy(t[34:], message[:])
	return crypto.Keccak256Hash(t[:])
}

func addressWord(a common.Address) common.Hash { return common.BytesToHash(a[:]) }

func intWord(n uint64) (w common.Hash) {
	binary.BigEndian.PutUint64(w[24:], n)
	return w
}

// ID is the channel's id in domain d, see ChannelDomain.
func (c *ChannelConfig) ID(d Domain) common.Hash {
	words := c.words()
	return d.hash(channelType, words[:]...)
}

func (c *ChannelConfig) words() [7]common.Hash {
	return [7]common.Hash{addressWord(c.Payer), addressWord(c.PayerAuthorizer), addressWord(c.Receiver),
		addressWord(c.ReceiverAuthorizer), addressWord(c.Token), intWord(c.WithdrawDelay), c.Salt}
}

// NamedIn reports whether a transaction's bytes name the channel, as every call
// of the contract does that moves its money: by its config, word for word.
func (c *ChannelConfig) NamedIn(raw []byte) bool {
	words := c.words()
	b := make([]byte, 0, len(words)*32)
	for i := range words {
		b = append(b, words[i][:]...)
	}
	return bytes.Contains(raw, b)
}

// VoucherSigner is whose key must have signed the channel's vouchers; the
// payer, which may be a contract, if no other was named.
func (c *ChannelConfig) VoucherSigner() common.Address {
	if c.PayerAuthorizer != (common.Address{}) {
		return c.PayerAuthorizer
	}
	return c.Payer
}

// Voucher allows the receiver of a channel to claim up to MaxClaimable atomic
// units in all, everything claimed before included.
type Voucher struct {
	Channel      common.Hash
	MaxClaimable int64
	Signature    []byte
}

// Digest is what the channel's VoucherSigner signs.
func (v *Voucher) Digest(d Domain) common.Hash {
	return d.hash(voucherType, v.Channel, intWord(uint64(v.MaxClaimable)))
}

// Sign signs v in domain d with the key of the channel's VoucherSigner.
func (v *Voucher) Sign(key *ecdsa.PrivateKey, d Domain) (err error) {
	v.Signature, err = signDigest(key, v.Digest(d))
	return err
}

// SignedBy reports whether who, an account without code, signed v.
func (v *Voucher) SignedBy(who common.Address, d Domain) bool {
	got, ok := Recover(v.Digest(d), v.Signature)
	return ok && got == who
}

// RefundDigest is what a receiverAuthorizer signs to give amount back.
func RefundDigest(d Domain, channel common.Hash, nonce uint64, amount int64) common.Hash {
	return d.hash(refundType, channel, intWord(nonce), intWord(uint64(amount)))
}

// Claim brings a channel's total up to Total, by a voucher for at least that.
type Claim struct {
	Config  ChannelConfig
	Voucher Voucher
	Total   int64 // totalClaimed afterwards; at most Voucher.MaxClaimable
}

// ClaimDigest is what the receiverAuthorizer of all claims signs.
func ClaimDigest(d Domain, claims []Claim) common.Hash {
	all := make([]byte, 0, 32*len(claims))
	for i := range claims {
		c := &claims[i]
		entry := crypto.Keccak256(claimEntryType[:], c.Voucher.Channel[:], word(c.Voucher.MaxClaimable), word(c.Total))
		all = append(all, entry...)
	}
	return d.hash(claimBatchType, crypto.Keccak256Hash(all))
}

func word(n int64) []byte { w := intWord(uint64(n)); return w[:] }

// Deposit is an EIP-3009 authorization that puts Amount into a channel. It is
// made out to the collector, and its nonce names the channel.
type Deposit struct {
	Amount      int64
	ValidAfter  Uint256
	ValidBefore Uint256 // unix seconds
	Salt        common.Hash
	Signature   []byte
}

// Nonce is the nonce of the deposit's authorization, by which the chain knows it.
func (p *Deposit) Nonce(channel common.Hash) common.Hash {
	return crypto.Keccak256Hash(channel[:], p.Salt[:])
}

// Digest is what the payer signs in the domain of the token.
func (p *Deposit) Digest(token Domain, payer common.Address, channel common.Hash) common.Hash {
	return token.hash(receiveType, addressWord(payer), addressWord(CollectorAddress), intWord(uint64(p.Amount)),
		common.Hash(p.ValidAfter), common.Hash(p.ValidBefore), p.Nonce(channel))
}

// Sign signs p in the domain of the token.
func (p *Deposit) Sign(key *ecdsa.PrivateKey, token Domain, channel common.Hash) (err error) {
	p.Signature, err = signDigest(key, p.Digest(token, crypto.PubkeyToAddress(key.PublicKey), channel))
	return err
}

func signDigest(key *ecdsa.PrivateKey, digest common.Hash) ([]byte, error) {
	sig, err := crypto.Sign(digest[:], key)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	sig[64] += 27
	return sig, nil
}

package devchain

import (
	"bytes"
	"math/big"
	"testing"
	"time"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/x402"
	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"pgregory.net/rapid"
)

// shop is a chain with a payer, a receiver and an authorizer of channels, and a
// relay that sends their transactions.
type shop struct {
	t          testing.TB
	c          *Chain
	cl         *chain.Client
	d          x402.Domain
	payer      *chain.Key
	receiver   *chain.Key
	authorizer *chain.Key
	relay      *chain.Key
	clock      *clock
}

func newShop(t testing.TB) *shop {
	s := &shop{t: t, clock: new(clock)}
	s.clock.unix.Store(time.Now().Unix())
	s.c, s.cl = open(t, Options{Now: s.clock.now})
	s.d = x402.ChannelDomain(uint64(s.c.ChainID()))
	s.payer, s.receiver, s.authorizer, s.relay = fund(t, s.c, key(t)), key(t), key(t), fund(t, s.c, key(t))
	return s
}

func (s *shop) token() common.Address { return common.HexToAddress(s.c.Asset().Address) }

func (s *shop) config(salt byte) chain.ChannelConfig {
	return chain.ChannelConfig{Payer: s.payer.Address(), PayerAuthorizer: s.payer.Address(), Receiver: s.receiver.Address(),
		ReceiverAuthorizer: s.authorizer.Address(), Token: s.token(), WithdrawDelay: x402.MinWithdrawDelay, Salt: common.Hash{salt}}
}

func (s *shop) id(c chain.ChannelConfig) common.Hash {
	config := x402.ChannelConfig(c)
	return config.ID(s.d)
}

func (s *shop) deposit(c chain.ChannelConfig, amount int64) []byte {
	s.t.Helper()
	p := x402.Deposit{Amount: amount, ValidBefore: x402.Uint(uint64(s.clock.now().Unix() + 3600)), Salt: common.BigToHash(big.NewInt(time.Now().UnixNano()))}
	token := x402.NewDomain(s.c.Asset().Name, s.c.Asset().Version, uint64(s.c.ChainID()), s.token())
	if err := p.Sign(keyOf(s.t.(*testing.T), s.payer), token, s.id(c)); err != nil {
		s.t.Fatal(err)
	}
	return chain.ChannelDeposit{Config: c, Amount: amount, ValidAfter: common.Hash(p.ValidAfter), ValidBefore: common.Hash(p.ValidBefore),
		Salt: p.Salt, Signature: p.Signature}.Calldata()
}

func (s *shop) claim(by *chain.Key, c chain.ChannelConfig, max, total int64) chain.ChannelClaim {
	s.t.Helper()
	v := x402.Voucher{Channel: s.id(c), MaxClaimable: max}
	if err := v.Sign(keyOf(s.t.(*testing.T), by), s.d); err != nil {
		s.t.Fatal(err)
	}
	return chain.ChannelClaim{Config: c, Max: max, Total: total, Signature: v.Signature}
}

func (s *shop) claims(by *chain.Key, list ...chain.ChannelClaim) []byte {
	s.t.Helper()
	all := make([]x402.Claim, len(list))
	for i, c := range list {
		all[i] = x402.Claim{Config: x402.ChannelConfig(c.Config), Voucher: x402.Voucher{Channel: s.id(c.Config), MaxClaimable: c.Max}, Total: c.Total}
	}
	digest := x402.ClaimDigest(s.d, all)
	sig, err := by.SignHash(digest[:])
	if err != nil {
		s.t.Fatal(err)
	}
	return chain.ClaimCalldata(list, sig)
}

func (s *shop) refund(by *chain.Key, c chain.ChannelConfig, amount int64, nonce uint64) []byte {
	s.t.Helper()
	digest := x402.RefundDigest(s.d, s.id(c), nonce, amount)
	sig, err := by.SignHash(digest[:])
	if err != nil {
		s.t.Fatal(err)
	}
	return chain.RefundCalldata(c, amount, nonce, sig)
}

// send makes a call of the channels; must says that it has to succeed.
func (s *shop) send(by *chain.Key, data []byte) (*chain.Receipt, error) {
	to := common.HexToAddress(chain.ChannelsAddress)
	return s.cl.Transact(s.t.Context(), by, chain.Call{To: &to, Data: data})
}

func (s *shop) must(by *chain.Key, data []byte) *chain.Receipt {
	s.t.Helper()
	r, err := s.send(by, data)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

func (s *shop) state(c chain.ChannelConfig) chain.ChannelState {
	s.t.Helper()
	got, err := s.cl.ChannelStates(s.t.Context(), s.id(c))
	if err != nil {
		s.t.Fatal(err)
	}
	return got[0]
}

func (s *shop) balance(who common.Address) int64 {
	s.t.Helper()
	n, err := s.cl.TokenBalance(s.t.Context(), s.token(), who)
	if err != nil {
		s.t.Fatal(err)
	}
	return n.Int64()
}

// advance lets the chain's time pass, which shows in the next block.
func (s *shop) advance(d time.Duration) { s.clock.unix.Add(int64(d / time.Second)) }

func TestAChannelFromDepositToRefund(t *testing.T) {
	s := newShop(t)
	c := s.config(1)
	had := s.balance(s.payer.Address())
	s.must(s.relay, s.deposit(c, 10_000))
	s.must(s.relay, s.deposit(c, 5_000)) // a top-up
	if got := s.state(c); got != (chain.ChannelState{Balance: 15_000}) {
		t.Fatalf("after two deposits: %+v", got)
	}
	s.must(s.relay, s.claims(s.authorizer, s.claim(s.payer, c, 4_000, 3_500)))
	s.must(s.relay, s.claims(s.authorizer, s.claim(s.payer, c, 4_000, 3_500))) // twice is once
	if got := s.state(c); got != (chain.ChannelState{Balance: 15_000, TotalClaimed: 3_500}) {
		t.Fatalf("after a claim: %+v", got)
	}
	s.must(s.relay, chain.SettleCalldata(c.Receiver, c.Token))
	s.must(s.relay, chain.SettleCalldata(c.Receiver, c.Token))
	if got := s.balance(c.Receiver); got != 3_500 {
		t.Errorf("the receiver has %d, want 3500", got)
	}
	if claimed, settled, err := s.cl.Claimed(t.Context(), c.Receiver, c.Token); err != nil || claimed != 3_500 || settled != 3_500 {
		t.Errorf("claimed %d, settled %d, %v", claimed, settled, err)
	}
	s.must(s.relay, s.refund(s.authorizer, c, 1_000, 0))
	if got := s.state(c); got != (chain.ChannelState{Balance: 14_000, TotalClaimed: 3_500, RefundNonce: 1}) {
		t.Errorf("after a partial refund: %+v", got)
	}
	// Claim and refund of everything that is left, in one transaction.
	s.must(s.relay, chain.ChannelsMulticall(s.claims(s.authorizer, s.claim(s.payer, c, 4_000, 4_000)), s.refund(s.authorizer, c, 1<<40, 1)))
	if got := s.state(c); got != (chain.ChannelState{Balance: 4_000, TotalClaimed: 4_000, RefundNonce: 2}) {
		t.Errorf("after all was refunded: %+v", got)
	}
	if got := s.balance(s.payer.Address()); got != had-4_000 {
		t.Errorf("the payer has %d, want %d", got, had-4_000)
	}
	if got := s.balance(common.HexToAddress(chain.ChannelsAddress)); got != 500 {
		t.Errorf("the channels hold %d, want what is claimed and not settled, 500", got)
	}
}

func TestAWithdrawalTakesItsDelay(t *testing.T) {
	s := newShop(t)
	c := s.config(1)
	s.must(s.relay, s.deposit(c, 10_000))
	if _, err := s.send(s.relay, chain.WithdrawCalldata(c, 1_000)); err == nil {
		t.Error("a stranger began a withdrawal")
	}
	s.must(s.payer, chain.WithdrawCalldata(c, 9_000))
	got := s.state(c)
	if got.Withdrawal != 9_000 || got.WithdrawAt == 0 {
		t.Fatalf("after it began: %+v", got)
	}
	if _, err := s.send(s.payer, chain.FinalizeCalldata(c)); err == nil {
		t.Error("it ended at once")
	}
	// The receiver claims meanwhile, and a refund makes the withdrawal smaller.
	s.must(s.relay, s.claims(s.authorizer, s.claim(s.payer, c, 3_000, 3_000)))
	s.must(s.relay, s.refund(s.authorizer, c, 500, 0))
	if got := s.state(c); got.Withdrawal != 8_500 || got.Balance != 9_500 {
		t.Errorf("after a refund: %+v", got)
	}
	s.advance((x402.MinWithdrawDelay + 5) * time.Second)
	had := s.balance(s.payer.Address())
	s.must(s.payer, chain.FinalizeCalldata(c))
	if got := s.balance(s.payer.Address()) - had; got != 6_500 { // 9500 less the 3000 that were claimed
		t.Errorf("%d were withdrawn, want 6500", got)
	}
	if got := s.state(c); got != (chain.ChannelState{Balance: 3_000, TotalClaimed: 3_000, RefundNonce: 1}) {
		t.Errorf("afterwards: %+v", got)
	}
	if _, err := s.send(s.relay, s.claims(s.authorizer, s.claim(s.payer, c, 5_000, 5_000))); err == nil {
		t.Error("a voucher was claimed after its money had been withdrawn")
	}
}

func TestChannelsRefuse(t *testing.T) {
	s := newShop(t)
	c, other := s.config(1), s.config(2)
	stranger := key(t)
	s.must(s.relay, s.deposit(c, 10_000))
	s.must(s.relay, s.deposit(other, 10_000))
	short, nobody := c, c
	short.WithdrawDelay, nobody.ReceiverAuthorizer = 1, common.Address{}
	moved := chain.ChannelDeposit{}
	used := s.deposit(c, 1_000)
	s.must(s.relay, used)
	highS := s.claim(s.payer, c, 3_000, 3_000)
	highS.Signature = otherS(highS.Signature)
	wrong := s.claim(s.payer, c, 3_000, 3_000)
	wrong.Config = other // signed for c
	foreign := s.claim(s.payer, other, 100, 100)
	foreign.Config.ReceiverAuthorizer = stranger.Address()
	for name, data := range map[string][]byte{
		"a deposit with the signature of none":            moved.Calldata(),
		"a deposit used twice":                            used,
		"a delay that is too short":                       s.deposit(short, 1_000),
		"a channel without authorizer":                    s.deposit(nobody, 1_000),
		"a deposit of more than the payer has":            s.deposit(c, 1<<50),
		"a claim above the voucher":                       s.claims(s.authorizer, s.claim(s.payer, c, 3_000, 3_001)),
		"a claim above the balance":                       s.claims(s.authorizer, s.claim(s.payer, c, 20_000, 20_000)),
		"a voucher by a stranger":                         s.claims(s.authorizer, s.claim(stranger, c, 3_000, 3_000)),
		"a voucher for another channel":                   s.claims(s.authorizer, wrong),
		"a voucher with a high s":                         s.claims(s.authorizer, highS),
		"a claim that a stranger answers for":             s.claims(stranger, s.claim(s.payer, c, 3_000, 3_000)),
		"a claim that nobody answers for":                 chain.ClaimCalldata([]chain.ChannelClaim{s.claim(s.payer, c, 3_000, 3_000)}, nil),
		"claims of two authorizers":                       s.claims(s.authorizer, s.claim(s.payer, c, 3_000, 3_000), foreign),
		"no claims":                                       s.claims(s.authorizer),
		"a refund that a stranger answers for":            s.refund(stranger, c, 100, 0),
		"a refund for a later nonce":                      s.refund(s.authorizer, c, 100, 1),
		"a refund of nothing":                             s.refund(s.authorizer, c, 0, 0),
		"a good claim together with a refund that is not": chain.ChannelsMulticall(s.claims(s.authorizer, s.claim(s.payer, c, 3_000, 3_000)), s.refund(s.authorizer, c, 100, 7)),
	} {
		if r, err := s.send(s.relay, data); err == nil {
			t.Errorf("%s: it went through in %s", name, r.Tx)
		}
	}
	if got := s.state(c); got != (chain.ChannelState{Balance: 11_000}) {
		t.Errorf("after all that: %+v", got)
	}
}

// otherS is the second spelling of a signature, which tokens and we refuse.
func otherS(sig []byte) []byte {
	s := new(big.Int).Sub(crypto.S256().Params().N, new(big.Int).SetBytes(sig[32:64]))
	out := append(bytes.Clone(sig[:32]), common.LeftPadBytes(s.Bytes(), 32)...)
	return append(out, 27+28-sig[64])
}

// A payer without another authorizer may be a contract: then it is asked.
func TestAContractSignsItsOwnVouchers(t *testing.T) {
	s := newShop(t)
	wallet, err := Deploy(t.Context(), s.cl, s.relay, artifact(t, "ContractWallet"), common.LeftPadBytes(s.payer.Address().Bytes(), 32)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.c.Fund(t.Context(), wallet, nil, 50_000); err != nil {
		t.Fatal(err)
	}
	c := s.config(9)
	c.Payer, c.PayerAuthorizer = wallet, common.Address{}
	p := x402.Deposit{Amount: 10_000, ValidBefore: x402.Uint(uint64(s.clock.now().Unix() + 3600)), Salt: common.Hash{1}}
	digest := p.Digest(x402.NewDomain(s.c.Asset().Name, s.c.Asset().Version, uint64(s.c.ChainID()), s.token()), wallet, s.id(c))
	if p.Signature, err = s.payer.SignHash(digest[:]); err != nil {
		t.Fatal(err)
	}
	s.must(s.relay, chain.ChannelDeposit{Config: c, Amount: 10_000, ValidBefore: common.Hash(p.ValidBefore), Salt: p.Salt, Signature: p.Signature}.Calldata())
	s.must(s.relay, s.claims(s.authorizer, s.claim(s.payer, c, 2_000, 1_500)))
	if got := s.state(c); got.TotalClaimed != 1_500 {
		t.Errorf("%+v", got)
	}
	if _, err := s.send(s.relay, s.claims(s.authorizer, s.claim(s.authorizer, c, 3_000, 3_000))); err == nil {
		t.Error("a stranger's voucher was claimed from a contract")
	}
}

// Claims are why channels are cheap: at most 28,000 gas each at a hundred.
func TestAHundredClaimsCostLittleGas(t *testing.T) {
	s := newShop(t)
	list := make([]chain.ChannelClaim, 100)
	for i := range list {
		c := s.config(byte(i + 1))
		s.must(s.relay, s.deposit(c, 10_000))
		list[i] = s.claim(s.payer, c, 1_000, 900)
	}
	r := s.must(s.relay, s.claims(s.authorizer, list...))
	each := r.GasUsed / uint64(len(list))
	t.Logf("%d gas a channel", each)
	if each > 28_000 {
		t.Errorf("a claim costs %d gas, want at most 28000", each)
	}
}

// Whatever is called in whatever order, the channels hold exactly what they owe.
func TestChannelsOweWhatTheyHold(t *testing.T) {
	s := newShop(t)
	n := byte(0)
	rapid.Check(t, func(r *rapid.T) {
		n += 2
		list := []chain.ChannelConfig{s.config(n), s.config(n + 1)}
		held := common.HexToAddress(chain.ChannelsAddress)
		before := s.balance(held)
		for range rapid.IntRange(1, 12).Draw(r, "steps") {
			c := list[rapid.IntRange(0, 1).Draw(r, "channel")]
			at := s.state(c)
			amount := rapid.Int64Range(1, 5_000).Draw(r, "amount")
			switch rapid.IntRange(0, 5).Draw(r, "call") {
			case 0, 1:
				s.send(s.relay, s.deposit(c, amount))
			case 2:
				s.send(s.relay, s.claims(s.authorizer, s.claim(s.payer, c, at.TotalClaimed+amount, at.TotalClaimed+amount)))
			case 3:
				s.send(s.relay, s.refund(s.authorizer, c, amount, at.RefundNonce))
			case 4:
				s.send(s.payer, chain.WithdrawCalldata(c, amount))
				s.advance((x402.MinWithdrawDelay + 5) * time.Second)
				s.send(s.payer, chain.FinalizeCalldata(c))
			case 5:
				s.send(s.relay, chain.SettleCalldata(c.Receiver, c.Token))
			}
		}
		s.send(s.relay, chain.SettleCalldata(list[0].Receiver, list[0].Token))
		owed := int64(0)
		for _, c := range list {
			at := s.state(c)
			if at.TotalClaimed > at.Balance {
				r.Fatalf("more was claimed than there is: %+v", at)
			}
			owed += at.Balance - at.TotalClaimed
		}
		if got := s.balance(held) - before; got != owed {
			r.Fatalf("they hold %d, and owe %d", got, owed)
		}
	})
}

// The hand-written encoding and selectors are those of the compiled contract,
// and the hashes that Go computes are the contract's.
func TestChannelCalldataIsTheABI(t *testing.T) {
	s := newShop(t)
	a, err := Channels()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := abi.JSON(bytes.NewReader(a.ABI))
	if err != nil {
		t.Fatal(err)
	}
	c := s.config(3)
	claims := []chain.ChannelClaim{s.claim(s.payer, c, 10, 9), {Config: s.config(4), Max: 7, Total: 7, Signature: bytes.Repeat([]byte{5}, 97)}}
	for name, data := range map[string][]byte{
		"deposit": s.deposit(c, 5), "claimWithSignature": s.claims(s.authorizer, claims...), "settle": chain.SettleCalldata(c.Receiver, c.Token),
		"refundWithSignature": s.refund(s.authorizer, c, 5, 6), "initiateWithdraw": chain.WithdrawCalldata(c, 5), "finalizeWithdraw": chain.FinalizeCalldata(c),
		"multicall": chain.ChannelsMulticall([]byte{1, 2, 3}, s.deposit(c, 5)),
	} {
		m := parsed.Methods[name]
		if !bytes.Equal(m.ID, data[:4]) {
			t.Errorf("%s has selector %x, not %x", name, m.ID, data[:4])
		}
		args, err := m.Inputs.Unpack(data[4:])
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if again, err := m.Inputs.Pack(args...); err != nil || !bytes.Equal(again, data[4:]) {
			t.Errorf("%s: the ABI would have it\n%x\nnot\n%x (%v)", name, again, data[4:], err)
		}
	}
	for name, want := range map[string]common.Hash{"getVoucherDigest": (&x402.Voucher{Channel: s.id(c), MaxClaimable: 77}).Digest(s.d)} {
		data, err := parsed.Pack(name, [32]byte(s.id(c)), big.NewInt(77))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.cl.View(t.Context(), common.HexToAddress(chain.ChannelsAddress), data); err != nil || common.BytesToHash(got) != want {
			t.Errorf("%s is %x, %v; want %s", name, got, err, want)
		}
	}
}

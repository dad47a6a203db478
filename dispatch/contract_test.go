package dispatch_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"math/big"
	"os"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/chain/devchain"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// walletOf deploys a contract that takes its owner's signatures (ERC-1271), of
// 65 bytes, as many wallets do, and gives it units.
func (c *onChain) walletOf(owner *ecdsa.PrivateKey, units int64) common.Address {
	c.Helper()
	b, err := os.ReadFile("../chain/devchain/contracts/ContractWallet.json")
	c.ok(err)
	a, err := devchain.ParseArtifact(b)
	c.ok(err)
	deployer, err := chain.NewKey()
	c.ok(err)
	c.ok(c.chain.Fund(c.Context(), deployer.Address(), big.NewInt(1e18), 0))
	at, err := devchain.Deploy(c.Context(), c.node.Client, deployer, a, common.LeftPadBytes(crypto.PubkeyToAddress(owner.PublicKey).Bytes(), 32)...)
	c.ok(err)
	c.ok(c.chain.Fund(c.Context(), at, nil, units))
	return at
}

// from is a payment of payer's for the records, signed by k.
func (c *onChain) from(payer common.Address, k *ecdsa.PrivateKey) request {
	c.Helper()
	required := c.get(records).is(402, clawr.CodeMissingPayment).required()
	r := required.Accepts[0]
	e := x402.Exact{Authorization: x402.Authorization{From: payer, To: common.HexToAddress(r.PayTo), Value: x402.Uint(price),
		ValidBefore: x402.Uint(uint64(c.now().Unix()) + uint64(r.MaxTimeoutSeconds))}}
	rand.Read(e.Nonce[:])
	id, _ := x402.ChainID(r.Network)
	digest := e.Digest(x402.NewDomain(r.Extra.Name, r.Extra.Version, id, common.HexToAddress(r.Asset)))
	var err error
	e.Signature, err = crypto.Sign(digest[:], k)
	c.ok(err)
	e.Signature[64] += 27
	sent := &x402.PaymentPayload{Version: 2, Accepted: r, Payload: e.JSON()}
	return request{path: records, pay: sent.Header()}
}

// A contract may take 65 bytes as well as any other number: they are no key's of
// the payer's, and so its code is asked, as any facilitator would. Its payment
// is settled first.
func TestAContractPaysWithSixtyFiveBytes(t *testing.T) {
	c := newChainWorld(t)
	owner := key(t)
	wallet := c.walletOf(owner, 3*price)
	q := c.from(wallet, owner)
	c.send(q).is(200, "")
	if row := c.state(q, ledger.Done, ledger.Mined); row.Policy != ledger.SettleFirst || row.Payer != x402.Lower(wallet) {
		t.Errorf("settled %s for %s", row.Policy, row.Payer)
	}
	c.send(q).is(200, "").has("X-Clawr-Replayed", "true")
	if got := c.units(payTo); got != price {
		t.Errorf("the owner has %d units, want %d", got, price)
	}
	// Another's signature the contract does not take, and nor does an account.
	c.send(c.from(wallet, key(t))).is(402, x402.ReasonSignature)
	c.send(c.from(crypto.PubkeyToAddress(key(t).PublicKey), owner)).is(402, x402.ReasonSignature)
	if got := c.units(payTo); got != price {
		t.Errorf("the owner has %d units, want %d", got, price)
	}
}

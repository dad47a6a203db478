// Package onchain is a facilitator's view of a chain: it makes a
// facilitator.Chain of a node's client and the key that pays for gas. It stands
// between two rooms that must not know each other, so that the programs and
// the tests that join them do it the same way.
package onchain

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// Node is a client of a chain and the key that signs transactions there.
type Node struct {
	*chain.Client
	Key *chain.Key
	// Quorum decides what moved and what is final; nil: Client alone does.
	Quorum *chain.Quorum
}

// Signer is the account that pays for gas.
func (n *Node) Signer() common.Address { return n.Key.Address() }

// Probe foretells t in one round trip.
func (n *Node) Probe(ctx context.Context, t facilitator.Transfer, gas uint64) (facilitator.Probe, error) {
	ps, err := n.ProbeAll(ctx, []facilitator.Transfer{t}, gas)
	if err != nil {
		return facilitator.Probe{}, err
	}
	return ps[0], ps[0].Err
}

// ProbeAll foretells ts one after the other, in one round trip, as enough
// providers say.
func (n *Node) ProbeAll(ctx context.Context, ts []facilitator.Transfer, gas uint64) ([]facilitator.Probe, error) {
	ps, err := n.quorum().ProbeAll(ctx, n.Key.Address(), chainTransfers(ts), gas)
	if err != nil {
		return nil, err
	}
	out := make([]facilitator.Probe, len(ps))
	for i, p := range ps {
		out[i] = probe(p)
	}
	return out, nil
}

func chainTransfers(ts []facilitator.Transfer) []chain.Transfer {
	out := make([]chain.Transfer, len(ts))
	for i, t := range ts {
		out[i] = chain.Transfer(t)
	}
	return out
}

func probe(p chain.Probe) facilitator.Probe {
	out := facilitator.Probe{Contract: p.Contract, Used: p.Used, Gas: p.Gas, Err: p.Err}
	if p.Rejection != nil {
		out.Message = p.Rejection.Message
		switch p.Rejection.Reason {
		case chain.NonceUsed:
			out.Refusal = x402.ReasonNonceUsed
		case chain.Balance:
			out.Refusal = x402.ReasonBalance
		default:
			out.Refusal = x402.ReasonSimulation
		}
	}
	return out
}

// HasCode reports whether an account has code, as enough providers say.
func (n *Node) HasCode(ctx context.Context, who common.Address) (bool, error) {
	return n.quorum().HasCode(ctx, who)
}

// ValidSignature asks a payer with code by ERC-1271.
func (n *Node) ValidSignature(ctx context.Context, payer common.Address, digest common.Hash, signature []byte, gas uint64) (bool, error) {
	return n.quorum().IsValidSignature(ctx, payer, digest, signature, gas)
}

// Nonce is the account's next nonce, after what the node's pool holds.
func (n *Node) Nonce(ctx context.Context) (int64, error) {
	nonce, err := n.quorum().Nonce(ctx, n.Key.Address())
	return int64(nonce), err
}

// FinalNonce is the first nonce that no finalized block has used.
func (n *Node) FinalNonce(ctx context.Context) (int64, error) {
	nonce, err := n.quorum().FinalNonce(ctx, n.Key.Address())
	return int64(nonce), err
}

// Batches reports whether the chain has Multicall3.
func (n *Node) Batches(ctx context.Context) (bool, error) {
	return n.quorum().HasCode(ctx, common.HexToAddress(chain.MulticallAddress))
}

// Sign makes one transaction of ts at the fees of the moment: of one, a call
// of the token; of many, a call of Multicall3.
func (n *Node) Sign(ctx context.Context, nonce int64, gas uint64, ts []facilitator.Transfer) (ledger.Tx, string, error) {
	fees, err := n.quorum().Fees(ctx)
	if err != nil {
		return ledger.Tx{}, "", err
	}
	call := chain.Call{Gas: gas}
	if len(ts) == 1 {
		t := chain.Transfer(ts[0])
		call.To, call.Data = &t.Asset, t.Calldata()
	} else {
		to := common.HexToAddress(chain.MulticallAddress)
		call.To, call.Data = &to, chain.Aggregate(chainTransfers(ts))
	}
	tx, err := chain.Sign(n.Key, n.Client.ChainID(), uint64(nonce), fees, call)
	if err != nil {
		return ledger.Tx{}, "", err
	}
	sum := sha256.Sum256(call.Data)
	return attempt(tx, 1, fees), hex.EncodeToString(sum[:]), nil
}

func attempt(tx chain.Tx, number int64, fees chain.Fees) ledger.Tx {
	return ledger.Tx{Hash: lower(tx.Hash), Attempt: number, Raw: tx.Raw, MaxFee: fees.Max.String(), Tip: fees.Tip.String()}
}

// Replace signs last again with higher fees: those of the moment, or what a
// pool wants for replacing last, whichever is more.
func (n *Node) Replace(ctx context.Context, last ledger.Tx) (ledger.Tx, error) {
	fees, err := n.quorum().Fees(ctx)
	if err != nil {
		return ledger.Tx{}, err
	}
	most, ok := new(big.Int).SetString(last.MaxFee, 10)
	tip, also := new(big.Int).SetString(last.Tip, 10)
	if !ok || !also {
		return ledger.Tx{}, fmt.Errorf("the fees of %s are %q and %q", last.Hash, last.MaxFee, last.Tip)
	}
	fees = fees.Over(chain.Fees{Max: most, Tip: tip})
	tx, err := chain.Replace(n.Key, last.Raw, fees)
	if err != nil {
		return ledger.Tx{}, err
	}
	return attempt(tx, last.Attempt+1, fees), nil
}

// Submit broadcasts tx and waits for its receipt until ctx ends.
func (n *Node) Submit(ctx context.Context, tx ledger.Tx, ts []facilitator.Transfer) (*facilitator.Receipt, error) {
	wait := 30 * time.Second
	if until, ok := ctx.Deadline(); ok {
		wait = time.Until(until)
	}
	signed := chain.Tx{Hash: common.HexToHash(tx.Hash), Raw: tx.Raw}
	if n.Quorum != nil && n.Quorum.Size() > 1 {
		r, err := n.Quorum.Submit(ctx, signed, wait)
		return n.receipt(ctx, r, ts), err
	}
	r, _, err := n.Client.Submit(ctx, signed, wait)
	return n.receipt(ctx, r, ts), err
}

// Affords is an error with code signer_unfunded if the account is too poor.
func (n *Node) Affords(ctx context.Context, gas uint64) error {
	fees, err := n.quorum().Fees(ctx)
	if err != nil {
		return err
	}
	return n.quorum().NeedFunds(ctx, n.Key.Address(), new(big.Int).Mul(fees.Max, new(big.Int).SetUint64(gas)))
}

// Head is the newest block.
func (n *Node) Head(ctx context.Context) (facilitator.Block, error) {
	return block(n.quorum().Head(ctx))
}

// Finalized is the newest block that cannot be undone.
func (n *Node) Finalized(ctx context.Context) (facilitator.Block, error) {
	return block(n.quorum().Finalized(ctx))
}

func block(b chain.Block, err error) (facilitator.Block, error) {
	return blockOf(b), err
}

// Used reports whether the nonce of t was used or cancelled, at a block or, if
// that is nil, at the head.
func (n *Node) Used(ctx context.Context, t facilitator.Transfer, at *facilitator.Block) (bool, error) {
	if at != nil {
		return n.quorum().AuthorizationStateAt(ctx, t.Asset, t.Payer, t.Nonce, at.Hash)
	}
	return n.quorum().AuthorizationState(ctx, t.Asset, t.Payer, t.Nonce)
}

// Receipt is what a mined transaction did with each of ts.
func (n *Node) Receipt(ctx context.Context, tx string, ts []facilitator.Transfer) (*facilitator.Receipt, error) {
	r, err := n.quorum().Receipt(ctx, common.HexToHash(tx))
	return n.receipt(ctx, r, ts), err
}

func (n *Node) receipt(_ context.Context, r *chain.Receipt, ts []facilitator.Transfer) *facilitator.Receipt {
	if r == nil {
		return nil
	}
	out := &facilitator.Receipt{Tx: lower(r.Tx), BlockNumber: r.Block, BlockHash: lower(r.Hash), Time: r.Time, OK: r.OK, GasUsed: r.GasUsed}
	for _, f := range r.FindAll(chainTransfers(ts)) {
		out.Found = append(out.Found, finding(r, f))
	}
	return out
}

func finding(r *chain.Receipt, f chain.Finding) facilitator.Finding {
	out := facilitator.Finding{Use: use(f.Use), Time: r.Time}
	if f.Use == chain.Unused {
		return out
	}
	out.Evidence = ledger.Evidence{Tx: lower(r.Tx), BlockNumber: r.Block, BlockHash: lower(r.Hash)}
	if f.Evidence != nil {
		out.LogIndex = f.Evidence.LogIndex
	}
	return out
}

func use(u chain.Use) facilitator.Use {
	switch u {
	case chain.Paid:
		return facilitator.Paid
	case chain.Elsewhere:
		return facilitator.Elsewhere
	case chain.Cancelled:
		return facilitator.Cancelled
	}
	return facilitator.Unused
}

// Find searches from the last block before since.
func (n *Node) Find(ctx context.Context, t facilitator.Transfer, since time.Time) (facilitator.Finding, error) {
	r, _, err := n.quorum().Search(ctx, chain.Transfer(t), since)
	if r == nil || err != nil {
		return facilitator.Finding{}, err
	}
	return finding(r, r.Find(chain.Transfer(t))), nil
}

func lower(h common.Hash) string { return strings.ToLower(h.Hex()) }

var _ facilitator.Chain = (*Node)(nil)

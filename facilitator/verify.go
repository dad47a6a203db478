package facilitator

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// payment is a payment that has been read: it is for a token and a payee that
// are allowed, and for what its requirements ask.
type payment struct {
	ledger.Key
	exact    *x402.Exact
	transfer Transfer
	digest   common.Hash
	payTo    string // lower case
	// foreign says that the signature is no account's: if it is one at all, a
	// contract at the payer's address has to say so.
	foreign bool
}

// Verify reports whether r's payment would settle now. It is free of effects.
// Errors say that it could not be judged, and never that it is invalid.
//
// With a mirror it needs no round trip once the payer is known: that the payer
// has no code and enough money, and that the nonce is unused, is known as of
// the newest block. Nothing is refused on the mirror's word alone. The token
// itself is asked before the transaction is signed (preflight): a payment that
// it would refuse for a reason of its own is found there, and not charged.
func (f *Facilitator) Verify(ctx context.Context, p *x402.PaymentPayload, r x402.Requirements) (x402.VerifyResponse, error) {
	now, err := f.time(ctx)
	if err != nil {
		return x402.VerifyResponse{}, down("the chain cannot be asked just now", err)
	}
	a, err := f.read(p, &r, now, false)
	if err == nil {
		err = f.foretell(ctx, a)
	}
	if err == nil {
		if err = f.solvent(ctx); err != nil {
			return x402.VerifyResponse{}, err
		}
		return x402.VerifyResponse{IsValid: true, Payer: a.Payer}, nil
	}
	if e, ok := refusal(err); ok {
		return x402.VerifyResponse{InvalidReason: e.Code, InvalidMessage: e.Message, Payer: payer(p)}, nil
	}
	return x402.VerifyResponse{}, err
}

// read checks everything about p that needs no chain, in the SDK's order. Its
// errors are refusals. A zero now leaves the window for later. What was
// submitted already is read even if it would not be allowed any more: it has to
// come to its end.
func (f *Facilitator) read(p *x402.PaymentPayload, r *x402.Requirements, now time.Time, submitted bool) (*payment, error) {
	if r.Scheme != x402.SchemeExact || p.Accepted.Scheme != x402.SchemeExact {
		return nil, refuse(x402.ReasonScheme, "only the scheme exact is settled here")
	}
	if r.Network != f.Network {
		return nil, refuse(x402.ReasonNetwork, "only payments on "+f.Network+" are settled here")
	}
	asset := f.asset(r.Asset)
	if asset == nil && submitted {
		asset = &clawr.Asset{Network: r.Network, Address: r.Asset, Name: r.Extra.Name, Version: r.Extra.Version}
	}
	if asset == nil {
		return nil, refuse(ReasonAsset, "the asset is not one that is settled here")
	}
	a, err := readPayment(p.RememberedIn(&f.signers), r, asset, now)
	if err != nil {
		return nil, err
	}
	if f.AllowPayTo != nil && !submitted && !f.AllowPayTo(a.payTo) {
		return nil, refuse(ReasonPayTo, "payments to "+a.payTo+" are not settled here")
	}
	return a, nil
}

func (f *Facilitator) asset(address string) *clawr.Asset {
	for i := range f.Assets {
		if strings.EqualFold(f.Assets[i].Address, address) {
			return &f.Assets[i]
		}
	}
	return nil
}

// readPayment applies x402.Verify to p at now; if that is zero, at the one
// moment at which its window is open if it ever is: when it opens.
func readPayment(p *x402.PaymentPayload, r *x402.Requirements, asset *clawr.Asset, now time.Time) (*payment, error) {
	check := x402.Check{Token: asset, Now: now}
	if e, err := x402.ParseExact(p.Payload); err == nil {
		if bytes.HasSuffix(e.Signature, wrapper) {
			return nil, refuse(x402.ReasonFactory, "signatures of contracts that are not deployed (EIP-6492) are not taken")
		}
		opens, _ := e.ValidAfter.Int64()
		if closes, ok := e.ValidBefore.Int64(); !ok || closes > maxTime {
			return nil, refuse(x402.ReasonValidBefore, "the authorization has no end")
		}
		if opens > maxTime {
			return nil, refuse(x402.ReasonValidAfter, "the authorization is not valid yet")
		}
		if now.IsZero() {
			check.Now = time.Unix(opens, 0)
		}
	}
	e, err := x402.Verify(p, r, check)
	foreign := false
	if v, ok := refusal(err); ok && v.Code == x402.ReasonSignature && e != nil {
		foreign, check.Contract = true, true
		e, err = x402.Verify(p, r, check)
	}
	if err != nil {
		return nil, err
	}
	amount, _ := e.Value.Int64() // x402.Verify has compared it with a price that fits
	after, _ := e.ValidAfter.Int64()
	before, _ := e.ValidBefore.Int64()
	chainID, _ := x402.ChainID(r.Network)
	token := common.HexToAddress(asset.Address)
	return &payment{
		Key:   ledger.Key{Network: r.Network, Asset: x402.Lower(token), Payer: e.Payer(), Nonce: e.Nonce.Hex()},
		exact: e, payTo: x402.Lower(e.To), foreign: foreign,
		digest: e.Digest(x402.NewDomain(asset.Name, asset.Version, chainID, token)),
		transfer: Transfer{Asset: token, Payer: e.From, PayTo: e.To, Amount: amount, ValidAfter: after, ValidBefore: before,
			Nonce: e.Nonce, Signature: e.Signature},
	}, nil
}

// wrapper ends an EIP-6492 signature, and nothing that anybody else makes.
var wrapper = bytes.Repeat([]byte{0x64, 0x92}, 16)

// maxTime is the year 36812: later times are taken for mistakes, so that sums
// with them cannot overflow.
const maxTime = 1 << 40

// window refuses a payment that the chain would not take at now, or only for
// a few more seconds.
func (a *payment) window(now time.Time) error {
	slack := int64(x402.MinSlack / time.Second)
	if left := a.transfer.ValidBefore - now.Unix(); left < slack {
		return refuse(x402.ReasonValidBefore, fmt.Sprintf("the authorization ends in %d s, it must last %d s", left, slack))
	}
	if a.transfer.ValidAfter > now.Unix() {
		return refuse(x402.ReasonValidAfter, "the authorization is not valid yet")
	}
	return nil
}

// errConsumed is the refusal of an authorization that was used or cancelled.
var errConsumed = refuse(x402.ReasonNonceUsed, "the authorization was used or cancelled")

// time is the later of the local clock and the newest block's time.
func (f *Facilitator) time(ctx context.Context) (time.Time, error) {
	now := f.now()
	if f.Mirror != nil {
		if head, ok := f.Mirror.Head(now); ok {
			f.clock.saw(head.Time)
			if head.Time.After(now) {
				now = head.Time
			}
			return now, nil
		}
	}
	return f.clock.fresh(ctx, f.Chain, now)
}

// foretell judges a payment by the mirror, with what the payer has promised
// already taken off. Where the mirror cannot say yes, the chain is asked: its
// newest block may be younger than what was followed.
func (f *Facilitator) foretell(ctx context.Context, a *payment) error {
	if f.Mirror == nil || a.foreign {
		return f.judge(ctx, a)
	}
	r, err := f.Mirror.look(ctx, &a.transfer, f.now())
	if err != nil || r.Contract {
		return f.judge(ctx, a)
	}
	if !r.Used && f.promised.room(a, r.Balance, f.now()) {
		return nil
	}
	held := int64(0)
	if f.Holds != nil {
		if held, err = f.Holds.Held(ctx, a.Network, a.Asset, a.Payer); err != nil {
			return down("the book cannot be read just now", err)
		}
		f.promised.learn(a, held, f.now())
	}
	if !r.Used && r.Balance-held >= a.transfer.Amount {
		f.promised.add(a)
		return nil
	}
	if err := f.judge(ctx, a); err != nil {
		return err
	}
	f.Mirror.drop(&a.transfer) // whatever it said, it is not so any more
	if held == 0 {
		return nil
	}
	now, err := f.Mirror.Chain.Account(ctx, a.transfer.Asset, a.transfer.Payer, a.transfer.Nonce, Block{})
	switch {
	case err != nil:
		return down("the chain cannot be asked just now", err)
	case now.Balance-held < a.transfer.Amount:
		return refuse(x402.ReasonBalance, fmt.Sprintf("the payer has %d units, and %d of them are promised to other payments", now.Balance, held))
	}
	return nil
}

// judge asks the chain whether the payer's signature holds and the transfer
// would go through, with the gas that a transaction gets. Refusals are
// verdicts, other errors are the node's silence.
func (f *Facilitator) judge(ctx context.Context, a *payment) error {
	probe, err := f.Chain.Probe(ctx, a.transfer, f.gas(a.foreign))
	if clawr.CodeOf(err) == clawr.CodeNoContract {
		return refuse(x402.ReasonNoContract, "there is no EIP-3009 token at the asset's address")
	}
	if err != nil {
		return down("the chain cannot be asked just now", err)
	}
	if err := f.signature(ctx, a, probe); err != nil {
		return err
	}
	if probe.Used {
		return errConsumed
	}
	if probe.Refusal != "" {
		return refuse(probe.Refusal, probe.Message)
	}
	return nil
}

// signature applies the rule of tokens that know contracts: code at the payer
// means that the code decides and never a key, also for accounts that have
// both (EIP-7702); no code means that a key must have signed.
func (f *Facilitator) signature(ctx context.Context, a *payment, probe Probe) error {
	ok := !a.foreign
	if probe.Contract {
		if probe.Used { // the token believed it once, whatever the code says today
			return nil
		}
		var err error
		if ok, err = f.Chain.ValidSignature(ctx, a.transfer.Payer, a.digest, a.transfer.Signature, f.gas(true)); err != nil {
			return down("the chain cannot be asked just now", err)
		}
	}
	if !ok {
		return refuse(x402.ReasonSignature, "the signature is not the payer's for this authorization")
	}
	return nil
}

// fromRow rebuilds the request of a payments row: what its buyer accepted. A
// row of version 1 has no such terms but its own.
func fromRow(p ledger.Payment, asset *clawr.Asset) (Request, error) {
	bad := func(why string, err error) (Request, error) {
		return Request{}, &clawr.Error{Code: clawr.CodeInternal, Message: "payment " + p.ID + ": " + why, Err: err}
	}
	payload, err := x402.ParsePayload(p.Payload)
	if err != nil {
		return bad("its payload cannot be read", err)
	}
	if payload.Version == 1 && asset != nil {
		payload = payload.ForFacilitator(&x402.Requirements{Scheme: p.Scheme, Network: p.Network, Amount: strconv.FormatInt(p.Amount, 10),
			Asset: p.Asset, PayTo: p.PayTo, MaxTimeoutSeconds: 60, Extra: x402.Extra{Name: asset.Name, Version: asset.Version}})
	}
	terms := payload.Accepted
	if terms.Extra.Quote != "" {
		return bad("its payload has the quote, which nobody may be sent", nil)
	}
	e, err := x402.ParseExact(payload.Payload)
	if err != nil {
		return bad("its authorization cannot be read", err)
	}
	amount, ok := e.Value.Int64()
	if !ok || amount != p.Amount || x402.Lower(e.To) != p.PayTo || e.Payer() != p.Payer || e.Nonce.Hex() != p.Nonce ||
		terms.Network != p.Network || !strings.EqualFold(terms.Asset, p.Asset) {
		return bad("its payload is not what was reserved", nil)
	}
	return Request{Payload: payload, Requirements: terms, RequestedBy: "self", submitted: p.Money == ledger.Signed, created: p.Created}, nil
}

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/x402"
)

// voucherReport is the last line of stdout.
type voucherReport struct {
	PerS  float64 `json:"voucher_per_s"`
	Ratio float64 `json:"voucher_ratio"`
	P99Ms float64 `json:"voucher_p99_ms"`
	Gas   uint64  `json:"claims_gas_per_channel_100"`
}

// channelsAtOnce is how many channels are paid from at a time, a call each.
const channelsAtOnce = 64

// vouchers compares calls that are paid by voucher: clawr serve on SQLite with
// express and the official facilitator. Every call has a voucher of its own,
// signed beforehand, and each channel is paid from by one caller, because a
// voucher goes up from the one before it. With the argument "ours" clawr alone
// is measured, and its profile shown.
func vouchers(ctx context.Context, args []string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	w, err := newWorld(ctx, 100)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	alone := len(args) > 0 && args[0] == "ours"
	var out voucherReport
	if !alone {
		if out.Gas, err = w.claimGas(ctx); err != nil {
			return err
		}
	}
	ours, err := w.voucherShop(ctx)
	if err != nil {
		return err
	}
	c, err := w.voucherRounds(ctx, w.channels("clawr", ours, records), alone)
	if err != nil {
		return err
	}
	peer := "TypeScript"
	if alone {
		peer = "itself"
	}
	table("a call paid by voucher, 64 channels", versus(peer), c.row(channelsAtOnce))
	table("processor time of a call, µs", "clawr\tload generator\t"+peer, fmt.Sprintf("%.0f\t%.0f\t%.0f", 1000*of(c.ours, cpu), 1000*of(c.ours, generator), 1000*of(c.theirs, cpu)))
	out.PerS, out.Ratio = round(of(c.ours, rate)), round(c.ratio())
	out.P99Ms = round(of(c.ours, p99))
	if err := w.profile(ctx, "a call paid by voucher", func(flags ...string) (*process, error) { return w.voucherShop(ctx, flags...) },
		func(p *process) *side { return w.channels("clawr", p, records) }); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// voucherRounds compares ours with the official stack, or measures it alone.
func (w *world) voucherRounds(ctx context.Context, ours *side, alone bool) (*comparison, error) {
	if alone {
		n, err := ours.calibrate(ctx, time.Second)
		if err != nil {
			return nil, err
		}
		var c comparison
		for range rounds {
			m, err := ours.shoot(ctx, n)
			if err != nil {
				return nil, err
			}
			c.ours, c.theirs = append(c.ours, m), append(c.theirs, m)
		}
		return &c, nil
	}
	facilitator, err := w.tsFacilitator(ctx)
	if err != nil {
		return nil, err
	}
	seller, err := newSeller()
	if err != nil {
		return nil, err
	}
	theirs, err := w.run(ctx, script(w.root, "express-server.mjs", "FACILITATOR_URL=http://"+facilitator.addr, "NETWORK="+w.network(), "ASSET="+w.asset.Hex(),
		"PAY_TO="+seller.Hex(), fmt.Sprintf("AMOUNT=%d", price), "SCHEME=batch-settlement"))
	if err != nil {
		return nil, err
	}
	c, err := compare(ctx, rounds, time.Second, ours, w.channels("TypeScript", theirs, "/data"))
	return &c, err
}

// voucherShop is clawr, selling for vouchers to a seller of its own.
func (w *world) voucherShop(ctx context.Context, flags ...string) (*process, error) {
	seller, err := newSeller()
	if err != nil {
		return nil, err
	}
	return w.serveAs(ctx, seller, []string{"--schemes", "exact,batch-settlement"}, nil, flags...)
}

// lane is one channel and what was charged from it.
type lane struct {
	key     *ecdsa.PrivateKey
	config  x402.ChannelConfig
	id      common.Hash
	charged int64
}

// terms finds the offer to be paid by voucher.
func voucherTerms(ctx context.Context, client *http.Client, addr, path string) (*x402.Requirements, error) {
	required, err := ask(ctx, client, addr, path)
	if err != nil {
		return nil, err
	}
	for i := range required.Accepts {
		if required.Accepts[i].Scheme == x402.SchemeChannel {
			return &required.Accepts[i], nil
		}
	}
	return nil, fmt.Errorf("%s%s offers nothing by voucher", addr, path)
}

// channels is a side that is paid from channels, one of each of the first
// payers, which are opened before the first round by a call that brings the
// deposit.
func (w *world) channels(name string, p *process, path string) *side {
	client := &http.Client{Transport: &http.Transport{}}
	chainID, _ := x402.ChainID(w.network())
	d := x402.ChannelDomain(chainID)
	var lanes []*lane
	jobs := func(ctx context.Context, n int) (job, error) {
		terms, err := voucherTerms(ctx, client, p.addr, path)
		if err != nil {
			return job{}, err
		}
		for i := len(lanes); i < channelsAtOnce; i++ {
			l, err := w.openChannel(ctx, client, d, w.payers[i], terms, p.addr, path)
			if err != nil {
				return job{}, err
			}
			lanes = append(lanes, l)
		}
		each := max(n/len(lanes), 1)
		list := make([][]byte, each*len(lanes))
		for i := range list {
			l := lanes[i%len(lanes)]
			l.charged += price
			v := &x402.ChannelPayload{Kind: x402.ChannelVoucher, Config: l.config, Voucher: x402.Voucher{Channel: l.id, MaxClaimable: l.charged}}
			if err := v.Voucher.Sign(l.key, d); err != nil {
				return job{}, err
			}
			sent := &x402.PaymentPayload{Version: x402.Version, Accepted: *terms, Payload: v.JSON()}
			list[i] = get(p.addr, path, "PAYMENT-SIGNATURE: "+sent.Header())
		}
		return job{Addr: p.addr, Callers: len(lanes), Lanes: true, Requests: list, Status: 200, Contains: `"data"`}, nil
	}
	return &side{name: name, procs: []*process{p}, jobs: jobs, most: 20_000}
}

// openChannel makes one call with a deposit.
func (w *world) openChannel(ctx context.Context, client *http.Client, d x402.Domain, who *payer, terms *x402.Requirements, addr, path string) (*lane, error) {
	authorizer, err := strconv.Unquote(string(terms.Extra.Rest.Find("receiverAuthorizer")))
	if err != nil {
		return nil, err
	}
	l := &lane{key: who.key, config: x402.ChannelConfig{Payer: who.address, PayerAuthorizer: who.address, Receiver: common.HexToAddress(terms.PayTo),
		ReceiverAuthorizer: common.HexToAddress(authorizer), Token: w.asset, WithdrawDelay: x402.MinWithdrawDelay}, charged: price}
	l.id = l.config.ID(d)
	p, err := w.deposit(l.config, l.key, d, funds/4, l.charged)
	if err != nil {
		return nil, err
	}
	sent := &x402.PaymentPayload{Version: x402.Version, Accepted: *terms, Payload: p.JSON()}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("PAYMENT-SIGNATURE", sent.Header())
	res, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("a deposit was answered %s %s %s", res.Status, body, res.Header.Get("PAYMENT-REQUIRED"))
	}
	return l, nil
}

// deposit is a payload that brings amount, and a voucher for max.
func (w *world) deposit(config x402.ChannelConfig, key *ecdsa.PrivateKey, d x402.Domain, amount, max int64) (*x402.ChannelPayload, error) {
	p := &x402.ChannelPayload{Kind: x402.ChannelDeposit, Config: config, Voucher: x402.Voucher{Channel: config.ID(d), MaxClaimable: max},
		Deposit: &x402.Deposit{Amount: amount, ValidBefore: x402.Uint(uint64(time.Now().Unix() + 90))}}
	rand.Read(p.Deposit.Salt[:])
	chainID, _ := x402.ChainID(w.network())
	token := x402.NewDomain(w.node.Asset.Name, w.node.Asset.Version, chainID, w.asset)
	if err := p.Voucher.Sign(key, d); err != nil {
		return nil, err
	}
	return p, p.Deposit.Sign(key, token, p.Voucher.Channel)
}

// claimGas is what a channel costs of a transaction that claims from 100.
func (w *world) claimGas(ctx context.Context) (uint64, error) {
	relay, err := chain.NewKey()
	if err != nil {
		return 0, err
	}
	if err := w.node.SetBalance(ctx, relay.Address(), new(big.Int).Exp(big.NewInt(10), big.NewInt(21), nil)); err != nil {
		return 0, err
	}
	chainID, _ := x402.ChainID(w.network())
	d := x402.ChannelDomain(chainID)
	to := common.HexToAddress(chain.ChannelsAddress)
	var claims []x402.Claim
	var list []chain.ChannelClaim
	for _, p := range w.payers {
		config := x402.ChannelConfig{Payer: p.address, PayerAuthorizer: p.address, Receiver: crypto.PubkeyToAddress(p.key.PublicKey), ReceiverAuthorizer: relay.Address(),
			Token: w.asset, WithdrawDelay: x402.MinWithdrawDelay, Salt: common.Hash{1}}
		config.Receiver = relay.Address()
		pay, err := w.deposit(config, p.key, d, 10*price, price)
		if err != nil {
			return 0, err
		}
		call := chain.ChannelDeposit{Config: chain.ChannelConfig(config), Amount: pay.Deposit.Amount, ValidAfter: common.Hash(pay.Deposit.ValidAfter),
			ValidBefore: common.Hash(pay.Deposit.ValidBefore), Salt: pay.Deposit.Salt, Signature: pay.Deposit.Signature}
		if _, err := w.node.Client.Transact(ctx, relay, chain.Call{To: &to, Data: call.Calldata(), Gas: 400_000}); err != nil {
			return 0, fmt.Errorf("deposit: %w", err)
		}
		claims = append(claims, x402.Claim{Config: config, Voucher: pay.Voucher, Total: price})
		list = append(list, chain.ChannelClaim{Config: chain.ChannelConfig(config), Max: price, Total: price, Signature: pay.Voucher.Signature})
	}
	digest := x402.ClaimDigest(d, claims)
	sig, err := relay.SignHash(digest[:])
	if err != nil {
		return 0, err
	}
	r, err := w.node.Client.Transact(ctx, relay, chain.Call{To: &to, Data: chain.ClaimCalldata(list, sig), Gas: 10_000_000})
	if err != nil {
		return 0, fmt.Errorf("claim: %w", err)
	}
	return r.GasUsed / uint64(len(list)), nil
}

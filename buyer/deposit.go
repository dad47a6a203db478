package buyer

import (
	"crypto/rand"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// How much is put into a channel that nobody said anything about: what the
// server asks for, or else five calls (the reference client's multiple), but
// not more than a hundred calls, nor than five times the limit per call.
const (
	depositCalls    = 5
	maxDepositCalls = 100
)

// channelOffer makes q, which is all right otherwise, one that is paid from a
// channel, or says why it is not.
func (c *Client) channelOffer(q *Quote, version int) (no string, err error) {
	const scheme = `scheme "batch-settlement" `
	if version != x402.Version {
		return scheme + "is not for version 1", nil
	}
	rest := q.offer.Extra.Rest
	config := x402.ChannelConfig{Payer: common.HexToAddress(c.Wallet.Address()), Receiver: common.HexToAddress(q.PayTo),
		Token: common.HexToAddress(q.Asset.Address), WithdrawDelay: x402.MinWithdrawDelay}
	config.PayerAuthorizer = config.Payer
	authorizer, quoted := strconv.Unquote(string(rest.Find("receiverAuthorizer")))
	config.ReceiverAuthorizer = common.HexToAddress(authorizer)
	if quoted != nil || !isAddress(authorizer) || config.ReceiverAuthorizer == (common.Address{}) {
		return scheme + "has no receiverAuthorizer", nil
	}
	if delay := rest.Find("withdrawDelay"); delay != nil {
		if config.WithdrawDelay, err = strconv.ParseUint(string(delay), 10, 40); err != nil {
			return scheme + "has a withdrawDelay that is not a number", nil
		}
	}
	if config.WithdrawDelay < x402.MinWithdrawDelay || config.WithdrawDelay > x402.MaxWithdrawDelay {
		return fmt.Sprintf("%shas a withdrawDelay of %d seconds", scheme, config.WithdrawDelay), nil
	}
	chain, _ := x402.ChainID(q.Asset.Network)
	id := config.ID(x402.ChannelDomain(chain)).Hex()
	ch, err := c.Wallet.Channel(id)
	if err != nil {
		return "", err
	}
	if c.Scheme == "" && (ch == nil || ch.Closed || ch.Withdrawal > 0) {
		return scheme + "takes a deposit, which --scheme batch-settlement makes", nil
	}
	if hint, err := strconv.Unquote(string(rest.Find("minDeposit"))); err == nil {
		if n, ok := x402.Units(hint); ok && n >= q.Atomic {
			q.hint = n
		}
	}
	q.Channel, q.config = id, config
	// What a correction added is for us, and not part of what is offered.
	q.offer.Extra.Rest = nil
	for _, m := range rest {
		if m.Name != "channelState" && m.Name != "voucherState" {
			q.offer.Extra.Rest = append(q.offer.Extra.Rest, m)
		}
	}
	return "", nil
}

// size is how much to deposit so that the channel holds need more, in units.
// out is what went out of the account today.
func (c *Client) size(cl *call, q *Quote, need int64, out clawr.Amount, l Limits) (units int64, usd clawr.Amount, err error) {
	priced := func(units int64) (clawr.Amount, error) {
		usd, ok := ceil(units, q.Asset.Decimals)
		if !ok {
			return 0, &clawr.Error{Code: clawr.CodeQuoteOverLimit, Message: "the deposit would be more than " + Dollars(clawr.MaxPrice) + ". Nothing was signed.", Fix: "--deposit USD"}
		}
		return usd, nil
	}
	if cl.Deposit != nil {
		if units, err = cl.Deposit.Atomic(q.Asset.Decimals); err != nil {
			return 0, 0, err
		}
		if units < need {
			atLeast, err := priced(need)
			if err != nil {
				return 0, 0, err
			}
			return 0, 0, &clawr.Error{Code: clawr.CodeQuoteOverLimit, Param: "deposit",
				Message: fmt.Sprintf("the channel needs a deposit of %s at least for this call, and --deposit is %s. Nothing was signed.", Dollars(atLeast), Dollars(*cl.Deposit)),
				Fix:     fmt.Sprintf("%s --deposit %s", cl.Again, atLeast)}
		}
		usd, err = priced(units)
		return units, usd, err
	}
	limit := l.PerCall
	if cl.Max != nil && (*cl.Max <= limit || cl.Confirm) {
		limit = *cl.Max
	}
	limit = max(limit, q.Amount) // somebody at the terminal said yes
	units = q.hint
	if units == 0 {
		units = times(q.Atomic, depositCalls)
	}
	units = min(units, times(q.Atomic, maxDepositCalls), q.fit(min(limit, clawr.MaxPrice/depositCalls)*depositCalls), q.fit(max(l.PerDay-out, 0)))
	units = max(units, need)
	usd, err = priced(units)
	return units, usd, err
}

// fit is the most units that usd buys.
func (q *Quote) fit(usd clawr.Amount) int64 {
	n := new(big.Int).Mul(big.NewInt(int64(usd)), new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(q.Asset.Decimals)), nil))
	if n.Quo(n, big.NewInt(1_000_000)); !n.IsInt64() {
		return math.MaxInt64
	}
	return n.Int64()
}

// times is n*k, or the largest number.
func times(n, k int64) int64 {
	if n > math.MaxInt64/k {
		return math.MaxInt64
	}
	return n * k
}

// newDeposit signs a deposit into ch. Whoever has it can make it until it ends,
// but only into this channel.
func (c *Client) newDeposit(ch *Channel, q *Quote, units int64, usd clawr.Amount) (*PendingDeposit, error) {
	now := c.now()
	d := &x402.Deposit{Amount: units, ValidBefore: x402.Uint(uint64(now.Add(q.Lifetime).Unix()))}
	rand.Read(d.Salt[:]) // never fails: it ends the process instead
	chain, _ := x402.ChainID(ch.Network)
	token := x402.NewDomain(ch.Token.Name, ch.Token.Version, chain, ch.config.Token)
	if err := d.Sign(c.Wallet.key, token, ch.config.ID(ch.domain)); err != nil {
		return nil, err
	}
	return &PendingDeposit{Amount: units, USD: usd, Day: dayOf(c.Wallet.now()), Salt: d.Salt, ValidBefore: now.Add(q.Lifetime).Unix(), Signature: d.Signature}, nil
}

// wire is d as it is sent.
func (d *PendingDeposit) wire() *x402.Deposit {
	return &x402.Deposit{Amount: d.Amount, ValidBefore: x402.Uint(uint64(d.ValidBefore)), Salt: d.Salt, Signature: d.Signature}
}

// depositSlack is how long a deposit must stay good to be worth sending again.
const depositSlack = 10 * time.Second

// again reports whether d may be sent again.
func (d *PendingDeposit) again(now time.Time) bool {
	return !d.Tried && now.Add(depositSlack).Unix() < d.ValidBefore
}

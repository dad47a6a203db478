package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/buyer"
)

func newChannels(e *env) *cobra.Command {
	cmd := group("channels", "The wallet's payment channels: what is left in them, and how it comes back",
		e.channelsList(), e.channelsShow(), e.channelsRefund(), e.channelsWithdraw())
	cmd.Long = `The payment channels that clawr pay --scheme batch-settlement opened. What is
deposited in one can only go to its seller, as far as signed vouchers allow, or
come back: by refund, at once, if the seller answers; by withdraw, after the
channel's delay and without the seller. CHANNEL is an id, or how it begins.`
	return cmd
}

// publicChannel is a channel as it is shown: without what is signed, which
// whoever has it can fetch answers with.
type publicChannel struct {
	ID         string       `json:"id"`
	State      string       `json:"state"` // open, withdrawing or closed
	Network    string       `json:"network"`
	Asset      string       `json:"asset"`
	Payer      string       `json:"payer"`
	PayTo      string       `json:"payTo"`
	URL        string       `json:"url"`
	Balance    string       `json:"balance"` // units, as all amounts without Usd
	Charged    string       `json:"charged"`
	Signed     string       `json:"signed"`
	Left       string       `json:"left"`
	LeftUSD    clawr.Amount `json:"leftUsd"`
	Deposit    string       `json:"depositPending"`
	Withdrawal string       `json:"withdrawal"`
	Due        time.Time    `json:"withdrawDue,omitzero"`
	DelayS     int64        `json:"withdrawDelaySeconds"`
	Unknown    int          `json:"callsWithoutOutcome"`
	Opened     time.Time    `json:"opened"`
}

func asPublic(ch *buyer.Channel) publicChannel {
	units := func(n int64) string { return fmt.Sprint(n) }
	p := publicChannel{ID: ch.ID, State: "open", Network: ch.Network, Asset: ch.Asset, Payer: ch.Payer, PayTo: ch.PayTo, URL: ch.URL, Balance: units(ch.Balance), Charged: units(ch.Charged),
		Signed: units(ch.Signed), Left: units(ch.Left()), LeftUSD: ch.USD(ch.Left()), Deposit: "0", Withdrawal: units(ch.Withdrawal),
		DelayS: int64(ch.Delay() / time.Second), Unknown: len(ch.Open), Opened: ch.Created}
	if ch.Deposit != nil {
		p.Deposit = units(ch.Deposit.Amount)
	}
	switch {
	case ch.Withdrawal > 0:
		p.State, p.Due = "withdrawing", ch.WithdrawAt.Add(ch.Delay())
	case ch.Closed:
		p.State = "closed"
	}
	return p
}

// channelsClient is a client of the wallet, which asks node if a URL is given,
// and what closes it.
func (e *env) channelsClient(ctx context.Context, rpcURL string) (*buyer.Client, func(), error) {
	w, err := e.wallet()
	if err != nil {
		return nil, nil, err
	}
	m := marketFlags{rpcURL: rpcURL}
	node, err := m.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	if node == nil {
		return e.payWith(w, nil), func() {}, nil
	}
	return e.payWith(w, node), node.Close, nil
}

// channelClient is that, and the channel whose id begins with prefix.
func (e *env) channelClient(ctx context.Context, rpcURL, prefix string) (*buyer.Client, *buyer.Channel, func(), error) {
	c, done, err := e.channelsClient(ctx, rpcURL)
	if err != nil {
		return nil, nil, nil, err
	}
	ch, err := c.Wallet.FindChannel(prefix)
	if err != nil {
		done()
		return nil, nil, nil, err
	}
	return c, ch, done, nil
}

func rpcFlag(cmd *cobra.Command, to *string) {
	cmd.Flags().StringVar(to, "rpc-url", "", "`URL` of a node: what a channel holds is read from the chain")
}

func (e *env) channelsList() *cobra.Command {
	var rpcURL string
	cmd := &cobra.Command{
		Use: "list", Short: "List the wallet's channels, oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, done, err := e.channelsClient(cmd.Context(), rpcURL)
			if err != nil {
				return err
			}
			defer done()
			all, err := c.Wallet.Channels()
			if err != nil {
				return err
			}
			list := []publicChannel{}
			for i := range all {
				ch, err := c.Look(cmd.Context(), all[i].ID)
				if err != nil {
					return err
				}
				list = append(list, asPublic(ch))
			}
			return e.print(map[string]any{"channels": list}, func(w io.Writer) error {
				var rows [][]string
				for i := range list {
					p, ch := &list[i], &all[i]
					rows = append(rows, []string{short(p.ID), p.State, p.Network, short(p.PayTo), "$" + p.LeftUSD.String(), p.Balance, p.Charged, p.Signed, dash(strings.TrimPrefix(p.Deposit, "0")), stamp(ch.Created)})
				}
				return table(w, "CHANNEL STATE NETWORK SELLER LEFT BALANCE CHARGED SIGNED PENDING OPENED", rows)
			})
		},
	}
	rpcFlag(cmd, &rpcURL)
	return cmd
}

func (e *env) channelsShow() *cobra.Command {
	var rpcURL string
	var calls int
	cmd := &cobra.Command{
		Use: "show CHANNEL", Short: "Show a channel, its calls without an outcome, and its last answers", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ch, done, err := e.channelClient(cmd.Context(), rpcURL, args[0])
			if err != nil {
				return err
			}
			defer done()
			if ch, err = c.Look(cmd.Context(), ch.ID); err != nil {
				return err
			}
			draws, err := c.Wallet.Draws(ch.ID, max(calls, 0))
			if err != nil {
				return err
			}
			return e.print(struct {
				publicChannel
				Open  []buyer.Payment `json:"open"`
				Draws []buyer.Draw    `json:"answers"`
			}{asPublic(ch), publicPayments(ch.Open), draws}, func(w io.Writer) error { return channelText(w, ch, draws) })
		},
	}
	rpcFlag(cmd, &rpcURL)
	cmd.Flags().IntVar(&calls, "calls", 10, "how many `answers` to show")
	return cmd
}

// channelText is a channel for people.
func channelText(w io.Writer, ch *buyer.Channel, draws []buyer.Draw) error {
	p := asPublic(ch)
	usd := func(units int64) string { return fmt.Sprintf("%s (%d units)", buyer.Dollars(ch.USD(units)), units) }
	pending, withdrawal := "", ""
	if d := ch.Deposit; d != nil {
		pending = fmt.Sprintf("%s, may be made until %s", usd(d.Amount), stamp(time.Unix(d.ValidBefore, 0)))
	}
	if ch.Withdrawal > 0 {
		withdrawal = fmt.Sprintf("%s, due %s", usd(ch.Withdrawal), stamp(p.Due))
	}
	err := facts(w, "channel", ch.ID, "state", p.State, "network", ch.Network, "token", fmt.Sprintf("%s (%s)", ch.Token.Name, ch.Asset), "payer", ch.Payer, "seller", ch.PayTo,
		"left", usd(ch.Left()), "balance", usd(ch.Balance), "charged", usd(ch.Charged), "signed", usd(ch.Signed)+", the most that can be claimed", "deposit", pending, "withdrawal", withdrawal,
		"delay", ch.Delay().String(), "opened", stamp(ch.Created), "last call", ch.Method+" "+ch.URL)
	if err != nil {
		return err
	}
	for _, o := range ch.Open {
		fmt.Fprintf(w, "\nunknown  %s  %s %s %s  # the same clawr pay sends the same voucher again\n", stamp(o.Created), buyer.Dollars(o.Amount), o.Method, o.URL)
	}
	if len(draws) == 0 {
		return nil
	}
	var rows [][]string
	for _, d := range draws {
		deposit := "-"
		if d.Deposit > 0 {
			deposit = usd(d.Deposit)
		}
		rows = append(rows, []string{stamp(d.At), buyer.Dollars(d.Amount), fmt.Sprint(d.Charged), fmt.Sprint(d.Status), deposit, dash(short(d.Transaction)), d.Method + " " + d.URL})
	}
	fmt.Fprintln(w)
	return table(w, "TIME PRICE CHARGED STATUS DEPOSIT TRANSACTION CALL", rows)
}

func (e *env) channelsRefund() *cobra.Command {
	var rpcURL, amount, url string
	cmd := &cobra.Command{
		Use: "refund CHANNEL", Short: "Ask the seller to give back what is left", Args: cobra.ExactArgs(1),
		Long: `Ask the seller to give back what is left in a channel. It costs nothing, and
signs nothing that was not signed before. With --rpc-url it is done when the
chain shows it; without, as the seller says. If the seller refuses or is gone,
clawr channels withdraw does without it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ch, done, err := e.channelClient(cmd.Context(), rpcURL, args[0])
			if err != nil {
				return err
			}
			defer done()
			var units int64
			if amount != "" {
				usd, err := clawr.ParseAmount(amount)
				if err != nil {
					return withParam(err, "amount")
				}
				if units, err = usd.Atomic(ch.Token.Decimals); err != nil {
					return withParam(err, "amount")
				}
			}
			r, err := c.Refund(cmd.Context(), ch.ID, units, url)
			if err != nil {
				return err
			}
			back := max(ch.Balance-r.Channel.Balance, 0)
			return e.print(map[string]any{"ok": true, "refunded": fmt.Sprint(back), "refundedUsd": ch.USD(back), "transaction": r.Transaction, "proven": r.Proven, "channel": asPublic(r.Channel)}, func(w io.Writer) error {
				says := ""
				if !r.Proven {
					says = ", says the seller"
				}
				_, err := fmt.Fprintf(w, "%s came back%s · tx %s · %s left\n", buyer.Dollars(ch.USD(back)), says, cmp.Or(r.Transaction, "-"), buyer.Dollars(ch.USD(r.Channel.Left())))
				return err
			})
		},
	}
	rpcFlag(cmd, &rpcURL)
	cmd.Flags().StringVar(&amount, "amount", "", "`USD` to get back (default: all that is left)")
	cmd.Flags().StringVar(&url, "url", "", "`URL` of something that the channel pays for (default: the last call)")
	return cmd
}

func (e *env) channelsWithdraw() *cobra.Command {
	var rpcURL string
	cmd := &cobra.Command{
		Use: "withdraw CHANNEL", Short: "Take what is left out without the seller: once to begin, and once when it is due", Args: cobra.ExactArgs(1),
		Long: `Take what is left out of a channel without its seller, by two transactions of
the wallet's own, which needs a little ether for them. The first begins it, and
the same command ends it when the channel's delay is over; meanwhile the seller
can still claim what was charged. What calls on their way may be charged stays.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, ch, done, err := e.channelClient(cmd.Context(), rpcURL, args[0])
			if err != nil {
				return err
			}
			defer done()
			wd, err := c.Withdraw(cmd.Context(), ch.ID)
			if err != nil {
				return err
			}
			return e.print(map[string]any{"ok": true, "step": wd.Step, "amount": fmt.Sprint(wd.Amount), "amountUsd": ch.USD(wd.Amount), "due": stamp(wd.Due), "transaction": wd.Transaction, "channel": asPublic(wd.Channel)}, func(w io.Writer) error {
				usd := buyer.Dollars(ch.USD(wd.Amount))
				line := fmt.Sprintf("%s came back · tx %s", usd, wd.Transaction)
				switch wd.Step {
				case buyer.WithdrawBegun:
					line = fmt.Sprintf("the withdrawal of %s has begun · tx %s · run the same after %s", usd, wd.Transaction, stamp(wd.Due))
				case buyer.WithdrawWaiting:
					line = fmt.Sprintf("the withdrawal of %s is due %s", usd, stamp(wd.Due))
				}
				_, err := fmt.Fprintln(w, line)
				return err
			})
		},
	}
	rpcFlag(cmd, &rpcURL)
	return cmd
}

package main

import (
	"context"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/buyer"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/chain/devchain"
)

func newWallet(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use: "wallet", Short: "The buyer's key, its limits and what it paid",
		Long: `The wallet that clawr pay pays from: a key in DIR/wallet that only you can read,
limits per call and per day, open payments and receipts. CLAWR_WALLET_KEY
stands in for the key; the limits hold all the same.`,
	}
	cmd.AddCommand(newWalletCreate(e), newWalletShow(e), newWalletFund(e), newWalletLimits(e))
	return cmd
}

func newWalletCreate(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "create", Short: "Make a new random key", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := buyer.CreateWallet(cmd.Context(), e.walletDir())
			if err != nil {
				return err
			}
			l, err := w.Limits()
			if err != nil {
				return err
			}
			e.note("limits   %s per call, %s per day; clawr wallet limits changes them", buyer.Dollars(l.PerCall), buyer.Dollars(l.PerDay))
			e.note("key      in %s: back it up, whoever has it has the money", w.Dir())
			return e.print(map[string]any{"ok": true, "address": w.Address(), "dir": w.Dir()}, func(out io.Writer) error {
				_, err := fmt.Fprintln(out, w.Address())
				return err
			})
		},
	}
}

func newWalletShow(e *env) *cobra.Command {
	var m marketFlags
	var reveal bool
	var receipts int
	cmd := &cobra.Command{
		Use: "show", Short: "Show address, limits, spending, open payments, receipts and balance", Args: cobra.NoArgs,
		Long: `Show the wallet. With --rpc-url its balance too; then open payments that the
chain proves not charged are closed, and given back to the day's limit.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := buyer.OpenWallet(e.walletDir(), e.getenv("CLAWR_WALLET_KEY"))
			if err != nil {
				return err
			}
			return e.showWallet(cmd.Context(), w, &m, reveal, receipts)
		},
	}
	m.bind(cmd)
	cmd.Flags().BoolVar(&reveal, "reveal", false, "print the private key")
	cmd.Flags().IntVar(&receipts, "receipts", 5, "how many `receipts` to show")
	return cmd
}

// showWallet prints all that is known of w.
func (e *env) showWallet(ctx context.Context, w *buyer.Wallet, m *marketFlags, reveal bool, receipts int) error {
	node, err := m.dial(ctx)
	if err != nil {
		return err
	}
	if node != nil {
		defer node.Close()
		closed, err := e.payWith(w, node).Prove(ctx)
		if err != nil {
			return err
		}
		for _, p := range closed {
			e.note("not charged, and given back: %s to %s (%s)", buyer.Dollars(p.Amount), p.PayTo, p.Proof)
		}
	}
	l, err := w.Limits()
	if err != nil {
		return err
	}
	spent, err := w.Spent(ctx)
	if err != nil {
		return err
	}
	open, err := w.Open()
	if err != nil {
		return err
	}
	past, err := w.Receipts(max(receipts, 0))
	if err != nil {
		return err
	}
	channels, err := w.Channels()
	if err != nil {
		return err
	}
	shown := []publicChannel{}
	for i := range channels {
		shown = append(shown, asPublic(&channels[i]))
	}
	v := map[string]any{"ok": true, "address": w.Address(), "dir": w.Dir(), "limits": l, "spentTodayUsd": spent, "open": publicPayments(open), "channels": shown, "receipts": publicPayments(past)}
	if reveal {
		v["privateKey"] = w.Reveal()
	}
	if node != nil {
		b, err := balance(ctx, w, node, m)
		if err != nil {
			return err
		}
		v["balance"] = b
	}
	return e.print(v, func(out io.Writer) error { return walletText(out, v, l, spent, open, past) })
}

// walletText is the wallet for people.
func walletText(out io.Writer, v map[string]any, l buyer.Limits, spent clawr.Amount, open, past []buyer.Payment) error {
	fmt.Fprintf(out, "address  %s\n", v["address"])
	if b, ok := v["balance"].(tokenBalance); ok {
		fmt.Fprintf(out, "balance  $%s (%s units of %s) on %s\n", b.USD, b.Units, b.Asset, b.Network)
	}
	fmt.Fprintf(out, "limits   %s per call, %s per day, %s spent today\n", buyer.Dollars(l.PerCall), buyer.Dollars(l.PerDay), buyer.Dollars(spent))
	if key, ok := v["privateKey"]; ok {
		fmt.Fprintf(out, "key      %s\n", key)
	}
	for _, c := range v["channels"].([]publicChannel) {
		fmt.Fprintf(out, "channel  %s  $%s left, %s  %s\n", short(c.ID), c.LeftUSD, c.State, c.URL)
	}
	for _, p := range open {
		fmt.Fprintf(out, "open     %s  %-8s %s %s  until %s\n", p.Created.Format(time.RFC3339), buyer.Dollars(p.Amount), p.Method, p.URL, p.Expires().Format("15:04:05"))
	}
	for _, p := range past {
		fmt.Fprintf(out, "%-8s %s  %-8s %s %s  %s\n", p.Outcome, p.Created.Format(time.RFC3339), buyer.Dollars(p.Amount), p.Method, p.URL, p.Transaction)
	}
	return nil
}

// publicPayments are payments without the header, which whoever has it can
// fetch the answer with.
func publicPayments(in []buyer.Payment) []buyer.Payment {
	out := make([]buyer.Payment, len(in))
	for i, p := range in {
		p.Header, p.HeaderName = "", ""
		out[i] = p
	}
	return out
}

// tokenBalance is what a wallet holds.
type tokenBalance struct {
	Network string `json:"network"`
	Asset   string `json:"asset"`
	Units   string `json:"units"` // the token's own
	USD     string `json:"usd"`
}

// balance asks the node what w holds of the token that m names, or of the one
// that everybody uses there.
func balance(ctx context.Context, w *buyer.Wallet, node *chain.Client, m *marketFlags) (tokenBalance, error) {
	t, err := m.terms()
	if err != nil {
		return tokenBalance{}, err
	}
	address := devchain.TokenAddress
	if known, ok := buyer.KnownAsset(node.Network(), ""); ok {
		address = known.Address
	}
	if len(t.Assets) > 0 {
		address = t.Assets[0]
	}
	asset, err := node.Asset(ctx, common.HexToAddress(address))
	if err != nil {
		return tokenBalance{}, withParam(err, "asset")
	}
	units, err := node.TokenBalance(ctx, common.HexToAddress(address), common.HexToAddress(w.Address()))
	if err != nil {
		return tokenBalance{}, err
	}
	usd := "more than can be counted"
	if micro := scale(units, asset.Decimals); micro.IsInt64() {
		usd = clawr.Amount(micro.Int64()).String()
	}
	return tokenBalance{Network: node.Network(), Asset: address, Units: units.String(), USD: usd}, nil
}

// scale is units of a token with the given decimals in micro-USD, rounded down.
func scale(units *big.Int, decimals int) *big.Int {
	n := new(big.Int).Mul(units, big.NewInt(1_000_000))
	return n.Quo(n, new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(decimals)), nil))
}

func newWalletFund(e *env) *cobra.Command {
	var url, amount string
	cmd := &cobra.Command{
		Use: "fund", Short: "Get test money on a development chain, or learn how to fund the wallet", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, err := buyer.OpenWallet(e.walletDir(), e.getenv("CLAWR_WALLET_KEY"))
			if err != nil {
				return err
			}
			if url == "" {
				return e.print(map[string]any{"ok": true, "address": w.Address(), "funded": false}, func(out io.Writer) error {
					_, err := fmt.Fprintf(out, `Send USDC to %s on the network that you want to pay on.
It needs no ETH: whoever sells pays for the transaction.
  Base           any exchange or wallet that sends USDC on Base
  Base Sepolia   https://faucet.circle.com (test USDC, free)
  clawr dev      clawr wallet fund --rpc-url URL, with the URL that clawr dev printed
`, w.Address())
					return err
				})
			}
			usd, err := clawr.ParseAmount(amount)
			if err != nil {
				return withParam(err, "amount")
			}
			units, err := usd.Atomic(6)
			if err != nil {
				return withParam(err, "amount")
			}
			if err := fund(cmd.Context(), url, w.Address(), units); err != nil {
				return err
			}
			return e.print(map[string]any{"ok": true, "address": w.Address(), "funded": true, "amountUsd": usd}, func(out io.Writer) error {
				_, err := fmt.Fprintf(out, "gave %s test USDC to %s\n", buyer.Dollars(usd), w.Address())
				return err
			})
		},
	}
	cmd.Flags().StringVar(&url, "rpc-url", "", "`URL` of a development chain with a faucet")
	cmd.Flags().StringVar(&amount, "amount", "100", "test `USDC` to give")
	return cmd
}

func newWalletLimits(e *env) *cobra.Command {
	var perCall, perDay string
	cmd := &cobra.Command{
		Use: "limits", Short: "Show or change what may be spent per call and per UTC day", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := buyer.Keyless(e.walletDir())
			l, err := w.Limits()
			if err != nil {
				return err
			}
			for flag, v := range map[string]struct {
				in string
				to *clawr.Amount
			}{"per-call": {perCall, &l.PerCall}, "per-day": {perDay, &l.PerDay}} {
				if v.in == "" {
					continue
				}
				if *v.to, err = clawr.ParseAmount(v.in); err != nil {
					return withParam(err, flag)
				}
			}
			if perCall != "" || perDay != "" {
				if err := w.SetLimits(l); err != nil {
					return err
				}
			}
			return e.print(map[string]any{"ok": true, "perCallUsd": l.PerCall, "perDayUsd": l.PerDay}, func(out io.Writer) error {
				_, err := fmt.Fprintf(out, "%s per call, %s per day\n", buyer.Dollars(l.PerCall), buyer.Dollars(l.PerDay))
				return err
			})
		},
	}
	cmd.Flags().StringVar(&perCall, "per-call", "", "`USD` that one call may cost")
	cmd.Flags().StringVar(&perDay, "per-day", "", "`USD` that may be spent per UTC day")
	return cmd
}

package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/ledger"
)

func newPayments(e *env) *cobra.Command {
	return group("payments", "Show who paid what, and where the money is", e.paymentsList(), e.paymentsShow(), e.paymentsReconcile(), e.paymentsExport(), e.paymentsRefund(), e.paymentsChannels(), e.paymentsClaim())
}

func (e *env) paymentsList() *cobra.Command {
	var q api.PaymentQuery
	cmd := &cobra.Command{
		Use: "list", Short: "List payments, newest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkLimit(q.Limit); err != nil {
				return err
			}
			if err := checkMoney(q.Money); err != nil {
				return err
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				list, err := ctl.Payments(ctx, q)
				if err != nil {
					return err
				}
				return e.print(struct {
					Payments []api.Payment `json:"payments"`
				}{list}, func(w io.Writer) error {
					var rows [][]string
					for i := range list {
						p := &list[i]
						rows = append(rows, []string{p.ID, stamp(p.Created), dash(p.Tenant), amount(p), short(p.Payer), string(p.Work), string(p.Money), dash(short(p.Transaction)), dash(refundState(p.Refund)), dash(string(p.Error))})
					}
					return table(w, "PAYMENT TIME TENANT AMOUNT PAYER WORK MONEY TRANSACTION REFUND ERROR", rows)
				})
			})
		},
	}
	fl := cmd.Flags()
	selectPayments(fl, &q)
	fl.IntVar(&q.Limit, "limit", 100, "how many, at most 1000")
	return cmd
}

// selectPayments adds the flags that say which payments are meant.
func selectPayments(fl *pflag.FlagSet, q *api.PaymentQuery) {
	fl.StringVar(&q.Tenant, "tenant", "", "only to this `slug`")
	fl.StringVar(&q.Payer, "payer", "", "only by this `address`")
	fl.StringVar(&q.Money, "money", "", "only those whose money is held, released, signed, mined, final or dead")
	fl.StringVar(&q.Refund, "refund", "", "only those with a refund that is due, signed or final")
}

func checkMoney(state string) error {
	states := []ledger.Money{"", ledger.Held, ledger.Released, ledger.Signed, ledger.Mined, ledger.Final, ledger.Dead}
	if slices.Contains(states, ledger.Money(state)) {
		return nil
	}
	return &clawr.Error{Code: clawr.CodeUsage, Param: "money", Message: fmt.Sprintf("--money %q is no state", state), Fix: "--money held, released, signed, mined, final or dead"}
}

func checkLimit(n int) error {
	if n >= 1 && n <= 1000 {
		return nil
	}
	return &clawr.Error{Code: clawr.CodeUsage, Param: "limit", Message: fmt.Sprintf("--limit %d is not between 1 and 1000", n), Fix: "--limit 100"}
}

// amount is what was paid, in USD if the token is known.
func amount(p *api.Payment) string {
	if p.AmountUSD != "" {
		return "$" + p.AmountUSD
	}
	return p.Amount + " units"
}

func (e *env) paymentsShow() *cobra.Command {
	return &cobra.Command{
		Use: "show PAYMENT", Short: "Show one payment", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				p, err := ctl.Payment(ctx, args[0])
				if err != nil {
					return err
				}
				return e.print(p, func(w io.Writer) error {
					if err := showPayment(w, &p); err != nil {
						return err
					}
					return showHistory(w, p.History)
				})
			})
		},
	}
}

func showPayment(w io.Writer, p *api.Payment) error {
	answer, block, refund, repaid := "", "", "", ""
	if r := p.Refund; r != nil {
		refund, repaid = fmt.Sprintf("%s, %s units to %s", refundState(r), r.Amount, r.To), r.Transaction
	}
	if p.Answer != nil {
		answer = fmt.Sprintf("%d, %s, kept until %s", p.Answer.Status, byteSize(p.Answer.Bytes), stamp(p.Answer.Expires))
	}
	if p.BlockHash != "" {
		block = fmt.Sprintf("%d (%s)", p.BlockNumber, p.BlockHash)
	}
	return facts(w,
		"payment", p.ID, "tenant", fmt.Sprintf("%s version %d", dash(p.Tenant), p.Version), "route", p.Route, "amount", fmt.Sprintf("%s (%s units of %s)", amount(p), p.Amount, p.Asset),
		"network", p.Network, "payer", p.Payer, "nonce", p.Nonce, "pay to", p.PayTo, "valid until", stamp(p.ValidBefore), "policy", string(p.Policy),
		"work", string(p.Work), "money", string(p.Money), "facilitator", p.Facilitator, "batch", p.BatchID, "transaction", p.Transaction, "block", block,
		"proof", p.Proof, "error", string(p.Error), "answer", answer, "refund", refund, "refunded by", repaid, "reserved", stamp(p.Created), "updated", stamp(p.Updated))
}

// showHistory writes what happened to a payment, in order.
func showHistory(w io.Writer, steps []api.Step) error {
	if len(steps) == 0 {
		return nil
	}
	var rows [][]string
	for _, s := range steps {
		rows = append(rows, []string{dash(stamp(s.At)), s.What, s.Detail})
	}
	fmt.Fprintln(w)
	return table(w, "TIME WHAT DETAIL", rows)
}

func (e *env) paymentsChannels() *cobra.Command {
	var payer string
	var limit int
	cmd := &cobra.Command{
		Use: "channels", Short: "List the channels that buyers pay from by voucher, and what of them is not claimed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkLimit(limit); err != nil {
				return err
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				list, err := ctl.Channels(ctx, payer, limit)
				if err != nil {
					return err
				}
				return e.print(map[string]any{"channels": list}, func(w io.Writer) error {
					var rows [][]string
					for i := range list {
						ch := &list[i]
						rows = append(rows, []string{short(ch.ID), short(ch.Payer), short(ch.PayTo), ch.Balance, ch.Charged, ch.Signed, ch.Claimed, ch.Unclaimed, dash(stamp(ch.Since)), dash(stamp(ch.WithdrawAt)), stamp(ch.Updated)})
					}
					return table(w, "CHANNEL PAYER PAY-TO BALANCE CHARGED SIGNED CLAIMED UNCLAIMED SINCE WITHDRAWAL USED", rows)
				})
			})
		},
	}
	cmd.Flags().StringVar(&payer, "payer", "", "only of this `address`")
	cmd.Flags().IntVar(&limit, "limit", 100, "how many, at most 1000")
	return cmd
}

func (e *env) paymentsClaim() *cobra.Command {
	return &cobra.Command{
		Use: "claim", Short: "Claim now what buyers' vouchers allow, which clawr serve does by itself in time", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				n, err := ctl.Claim(ctx)
				if err != nil {
					return err
				}
				return e.print(map[string]any{"ok": true, "claimed": n}, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "claimed from %d channels\n", n)
					return err
				})
			})
		},
	}
}

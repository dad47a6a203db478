package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/facilitator"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/x402"
)

// refundFlags are what `clawr payments refund` is told.
type refundFlags struct {
	allDue, dryRun bool
	keyFile        string
	wait           time.Duration
}

func (e *env) paymentsRefund() *cobra.Command {
	f := &refundFlags{}
	cmd := &cobra.Command{
		Use: "refund [PAYMENT…]", Short: "Pay back what was charged and not delivered",
		Long: `Pay back payments that were charged and could not be delivered: sign, with the
key of the address that was paid (CLAWR_PAY_TO_KEY or --pay-to-key-file), an
authorization of exactly the amount to whoever paid, which the server stores,
settles and sees through; its own account pays for gas. The key stays here.

A payment is paid back once, however often this is run: the authorization's nonce
follows from the payment. What is signed and did not get on is shown, and
is not signed again before the chain proves that it was not used in time.`,
		Example: `  clawr payments list --refund due
  clawr payments refund --all-due --dry-run
  clawr payments refund pay_0123456789abcdef`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) > 0) == f.allDue {
				return &clawr.Error{Code: clawr.CodeUsage, Message: "name payments, or give --all-due", Fix: "clawr payments refund pay_… or --all-due"}
			}
			key, err := e.payToKey(f)
			if err != nil {
				return err
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error { return e.payBack(ctx, ctl, args, key, f) })
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&f.allDue, "all-due", false, "all that is due, and was paid to the key's address; nothing is fine, too")
	fl.BoolVar(&f.dryRun, "dry-run", false, "show what would be paid back, and sign nothing")
	fl.StringVar(&f.keyFile, "pay-to-key-file", "", "`file` with the key of the address that was paid (or CLAWR_PAY_TO_KEY)")
	fl.DurationVar(&f.wait, "wait", time.Minute, "how long to wait for the chain to show it")
	return cmd
}

// payToKey is the seller's key; nil if a dry run has none.
func (e *env) payToKey(f *refundFlags) (*chain.Key, error) {
	secret, err := e.secretFromEnvOrFile("CLAWR_PAY_TO_KEY", f.keyFile, "pay-to-key-file")
	if err != nil || secret == "" && f.dryRun {
		return nil, err
	}
	if secret == "" {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "pay-to-key-file", Message: "a refund is signed with the key of the address that was paid", Fix: "set CLAWR_PAY_TO_KEY, or give --pay-to-key-file FILE; --dry-run needs none"}
	}
	k, err := chain.ParseKey(secret)
	return k, withParam(err, "pay-to-key-file")
}

// payBack signs what is to be paid back, and waits until the chain shows it.
func (e *env) payBack(ctx context.Context, ctl *controller, ids []string, key *chain.Key, f *refundFlags) error {
	list, err := e.owed(ctx, ctl, ids, key, f.allDue)
	if err != nil {
		return err
	}
	if f.dryRun {
		return e.showRefunds(list, true)
	}
	signed := 0
	for i := range list {
		if !list[i].Payable {
			continue
		}
		now, serr := signRefund(ctx, ctl, key, &list[i])
		if list[i] = now; serr == nil {
			signed++
			continue
		}
		if err == nil {
			err = serr
		} else { // one that cannot be paid does not hold up the others
			e.note("not signed: %v", serr)
		}
	}
	if err != nil && signed == 0 {
		return err
	}
	if serr := awaitRefunds(ctx, ctl, list, f.wait); err == nil {
		err = serr
	}
	if err != nil && e.json {
		return err
	}
	return errors.Join(e.showRefunds(list, false), err)
}

// owed are the refunds that are meant.
func (e *env) owed(ctx context.Context, ctl *controller, ids []string, key *chain.Key, all bool) (list []api.Refund, err error) {
	if all {
		open, err := ctl.OpenRefunds(ctx, 1000)
		if err != nil {
			return nil, err
		}
		others := 0
		for _, r := range open {
			switch {
			case !r.Payable:
			case key != nil && r.From != keyName(key):
				others++
			default:
				list = append(list, r)
			}
		}
		if others > 0 {
			e.note("%d more are due from other addresses: run it again with their keys", others)
		}
		if len(list) == 0 {
			from := ""
			if key != nil {
				from = " from " + keyName(key)
			}
			e.note("no refund is due%s", from)
		}
		return list, nil
	}
	for _, id := range ids {
		r, err := ctl.Refund(ctx, id)
		if err != nil {
			return nil, err
		}
		if key != nil && r.From != keyName(key) {
			return nil, &clawr.Error{Code: clawr.CodeConflict, Param: "pay-to-key-file", Message: fmt.Sprintf("%s was paid to %s, and the key is that of %s", id, r.From, keyName(key)), Fix: "set CLAWR_PAY_TO_KEY to the key of " + r.From}
		}
		list = append(list, r)
	}
	return list, nil
}

func keyName(key *chain.Key) string { return x402.Lower(key.Address()) }

// signRefund signs r and hands it to the server. What is signed is made here
// of what is owed: a server can have nothing else signed but what it shows.
func signRefund(ctx context.Context, ctl *controller, key *chain.Key, r *api.Refund) (api.Refund, error) {
	units, err := strconv.ParseInt(r.Amount, 10, 64)
	if err != nil || units <= 0 {
		return *r, fmt.Errorf("the server says that %q units are owed for %s", r.Amount, r.Payment)
	}
	if r.Token == nil {
		return *r, &clawr.Error{Code: clawr.CodeWrongChain, Param: "payment", Message: fmt.Sprintf("%s was paid with %s on %s, which is not settled here", r.Payment, r.Asset, r.Network),
			Fix: fmt.Sprintf("run it while clawr serve --network %s --asset %s has the data directory", r.Network, r.Asset)}
	}
	owed := &ledger.Refund{PaymentID: r.Payment, Payment: ledger.Key{Network: r.Network, Asset: r.Asset, Payer: r.To, Nonce: r.Charged}, From: r.From, Amount: units}
	until := clock()().Add(refundValid).Unix()
	digest, ok := facilitator.RepaymentDigest(facilitator.Repayment(owed, *r.Token, until))
	if !ok {
		return *r, &clawr.Error{Code: clawr.CodeBadNetwork, Message: fmt.Sprintf("%q is no network of an EVM", r.Network), Fix: "clawr payments show " + r.Payment}
	}
	sig, err := key.SignHash(digest[:])
	if err != nil {
		return *r, err
	}
	out, err := ctl.Repay(ctx, r.Payment, until, sig)
	if err != nil {
		return *r, err
	}
	return out, nil
}

// awaitRefunds waits until the chain shows what was signed.
func awaitRefunds(ctx context.Context, ctl *controller, list []api.Refund, wait time.Duration) error {
	deadline := time.Now().Add(wait)
	for {
		waiting, last := 0, ""
		for i := range list {
			r := &list[i]
			if r.State != ledger.RefundSigned || r.Transaction != "" || r.Proof != "" {
				continue
			}
			now, err := ctl.Refund(ctx, r.Payment)
			if err != nil {
				return err
			}
			if *r = now; now.State == ledger.RefundSigned && now.Transaction == "" && now.Proof == "" {
				waiting, last = waiting+1, r.Payment
			}
		}
		if waiting == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return &clawr.Error{Code: clawr.CodePaymentUnknown, Message: fmt.Sprintf("%d refunds are signed, and the chain does not show them yet; clawr serve goes on with them", waiting), Fix: "clawr payments show " + last}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (e *env) showRefunds(list []api.Refund, dry bool) error {
	if list == nil {
		list = []api.Refund{}
	}
	return e.print(struct {
		OK      bool         `json:"ok"`
		DryRun  bool         `json:"dryRun,omitempty"`
		Refunds []api.Refund `json:"refunds"`
	}{true, dry, list}, func(w io.Writer) error {
		var rows [][]string
		for i := range list {
			r := &list[i]
			amount := r.Amount + " units"
			if r.AmountUSD != "" {
				amount = "$" + r.AmountUSD
			}
			rows = append(rows, []string{r.Payment, amount, short(r.From), short(r.To), refundState(r), dash(r.Transaction), string(r.Reason)})
		}
		return table(w, "PAYMENT AMOUNT FROM TO REFUND TRANSACTION REASON", rows)
	})
}

// refundState is how far r is, in a word; "" if there is none.
func refundState(r *api.Refund) string {
	switch {
	case r == nil:
		return ""
	case r.State == ledger.RefundSigned && r.Proof != "":
		return "over"
	case r.State == ledger.RefundSigned && r.Transaction != "":
		return "mined"
	}
	return string(r.State)
}

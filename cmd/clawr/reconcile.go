package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
)

// reconciler asks n's chain what n's book should say.
type reconciler struct {
	node  *node
	chain *chain.Client
}

// reconciler is nil where nobody knows the chain.
func (n *node) reconciler() api.Reconciler {
	if n.set == nil || n.set.chain == nil {
		return nil
	}
	return &reconciler{n, n.set.chain}
}

// Reconcile asks the chain alone if we settle; a remote facilitator is sent
// the same payment again, which is safe, and the chain is asked then.
func (r *reconciler) Reconcile(ctx context.Context, p ledger.Payment) (ledger.Outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if p.Money == ledger.Mined || p.Money == ledger.Final {
		p.Money = ledger.Signed // nothing that the book knows is to answer for the chain
	}
	switch {
	case r.node.settler != nil:
		return r.node.settler.Reconcile(ctx, p)
	case r.node.payments != nil:
		return r.node.payments.Settle(ctx, p)
	}
	return ledger.Outcome{}, &clawr.Error{Code: clawr.CodeFacilitatorDown, Message: "nobody here settles", Fix: "run it while clawr serve has the data directory"}
}

// Compare looks at every address that the book has payments to, from before
// the first of them on.
func (r *reconciler) Compare(ctx context.Context) ([]api.Account, error) {
	sellers, err := r.node.db.Sellers(ctx)
	if err != nil {
		return nil, err
	}
	var list []api.Account
	for _, s := range sellers {
		if s.Network != r.chain.Network() {
			continue // another chain's: nobody here to ask
		}
		a, err := compare(ctx, r.node.db, r.chain, s)
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}

// place is a log of the chain.
type place struct {
	tx    string
	index int64
}

// compare holds the charges to one address against the transfers to it.
func compare(ctx context.Context, db *store.DB, c *chain.Client, s store.Seller) (api.Account, error) {
	a := api.Account{Network: s.Network, Asset: s.Asset, PayTo: s.PayTo, Differences: []api.Difference{}}
	asset, payTo := common.HexToAddress(s.Asset), common.HexToAddress(s.PayTo)
	from, err := c.Since(ctx, s.Since.Add(-time.Minute))
	if err != nil {
		return a, err
	}
	moved, upTo, err := c.Transfers(ctx, asset, payTo, from)
	if err != nil {
		return a, err
	}
	// The book after the chain: what it had charged by then is in the logs.
	charges, err := db.Charges(ctx, s.Network, s.Asset, s.PayTo)
	if err != nil {
		return a, err
	}
	a.FromBlock, a.ToBlock, a.Transfers = from, upTo, len(moved)
	shown := make(map[place]chain.Moved, len(moved))
	for _, m := range moved {
		shown[place{m.Tx, m.LogIndex}] = m
		a.Shown += m.Amount
	}
	for _, p := range charges {
		if p.BlockNumber > upTo {
			continue // mined since
		}
		a.Payments++
		a.Booked += p.Amount
		at := place{p.Tx, p.LogIndex}
		m, ok := shown[at]
		delete(shown, at)
		d := api.Difference{Payment: p.ID, Payer: p.Payer, Nonce: p.Nonce, Transaction: p.Tx, LogIndex: p.LogIndex, Booked: p.Amount, Shown: m.Amount}
		switch {
		case !ok:
			d.Kind = api.NotOnChain
		case m.Amount != p.Amount:
			d.Kind = api.Amounts
		default:
			continue
		}
		a.Differences = append(a.Differences, d)
	}
	for _, m := range moved { // in the chain's order
		if _, left := shown[place{m.Tx, m.LogIndex}]; !left {
			continue
		}
		d, err := unbooked(ctx, db, c, s, m)
		if err != nil {
			return a, err
		}
		a.Differences = append(a.Differences, d)
	}
	a.Drift = a.Shown - a.Booked
	for _, d := range a.Differences {
		a.Explained += d.Shown - d.Booked
	}
	err = compareRefunds(ctx, db, c, s, &a)
	return a, err
}

// compareRefunds holds what the book says was paid back against what the chain
// shows of the authorizations that pay it, of those too that the book takes for
// unpaid.
func compareRefunds(ctx context.Context, db *store.DB, c *chain.Client, s store.Seller, a *api.Account) error {
	list, err := db.RefundsOf(ctx, s.Network, s.Asset, s.PayTo)
	if err != nil {
		return err
	}
	for i := range list {
		r := &list[i]
		if r.BlockNumber > a.ToBlock {
			continue // mined since
		}
		k := r.Key()
		t := chain.Transfer{Asset: common.HexToAddress(k.Asset), Payer: common.HexToAddress(k.Payer), PayTo: common.HexToAddress(r.Payment.Payer), Amount: r.Amount, Nonce: common.HexToHash(k.Nonce)}
		d := api.Difference{Kind: api.RefundNotOnChain, Payment: r.PaymentID, Payer: k.Payer, Nonce: k.Nonce, Transaction: r.Tx, LogIndex: r.LogIndex}
		var found chain.Finding
		if r.Tx != "" {
			a.Refunds++
			a.Refunded += r.Amount
			d.Booked = r.Amount
			found, err = c.Evidence(ctx, common.HexToHash(r.Tx), t)
		} else {
			found, err = c.FindEvidence(ctx, t, a.FromBlock)
		}
		if err != nil {
			return err
		}
		shown := found.Use == chain.Paid && found.Evidence.Block <= a.ToBlock
		if shown {
			a.Returned += r.Amount
			d.Shown = r.Amount
		}
		if shown && r.Tx == "" {
			d.Kind, d.Transaction, d.LogIndex = api.RefundNotBooked, strings.ToLower(found.Tx.Hex()), found.Evidence.LogIndex
		}
		if d.Shown != d.Booked {
			a.Differences = append(a.Differences, d)
		}
	}
	return nil
}

// unbooked says what a transfer is that the book has no charge for.
func unbooked(ctx context.Context, db *store.DB, c *chain.Client, s store.Seller, m chain.Moved) (api.Difference, error) {
	d := api.Difference{Kind: api.NotOurs, Payer: strings.ToLower(m.From.Hex()), Transaction: m.Tx, LogIndex: m.LogIndex, Shown: m.Amount}
	r, err := c.Receipt(ctx, common.HexToHash(m.Tx))
	if err != nil {
		return d, err
	}
	if r == nil {
		return d, errors.New("a transaction left the chain while it was looked at; ask again")
	}
	for _, got := range r.Received(common.HexToAddress(s.Asset), common.HexToAddress(s.PayTo)) {
		if got.LogIndex != m.LogIndex {
			continue
		}
		d.Kind, d.Nonce = api.NotBooked, strings.ToLower(got.Nonce.Hex())
		p, err := db.Find(ctx, ledger.Key{Network: s.Network, Asset: s.Asset, Payer: d.Payer, Nonce: d.Nonce})
		if err != nil {
			return d, err
		}
		if p != nil {
			d.Payment = p.ID
		}
	}
	return d, nil
}

func (e *env) paymentsReconcile() *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use: "reconcile [PAYMENT]", Short: "Ask the chain what became of a payment, or hold the whole book against it", Args: cobra.MaximumNArgs(1),
		Long: `Ask the chain, by payer and nonce, what became of a payment that may have been
submitted, and book that. With --all every such payment is asked about, and then
what the book says was charged, and paid back, is held against the transfers that
the chain shows: they agree to the unit, or each difference is named and the
command fails.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == all {
				return &clawr.Error{Code: clawr.CodeUsage, Message: "name one payment, or give --all", Fix: "clawr payments reconcile pay_… or --all"}
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				if all {
					return e.reconcileAll(ctx, ctl)
				}
				r, err := ctl.Reconcile(ctx, args[0])
				if err != nil {
					return err
				}
				return e.print(r, func(w io.Writer) error {
					return facts(w, "payment", r.Payment.ID, "outcome", r.Outcome, "reason", string(r.Reason), "money", string(r.Payment.Money),
						"transaction", r.Payment.Transaction, "proof", r.Payment.Proof)
				})
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every payment that may have been submitted, and the ledger against the chain")
	return cmd
}

// reconcileAll prints the comparison and fails if the two do not agree.
func (e *env) reconcileAll(ctx context.Context, ctl *controller) error {
	asked := map[string]string{}
	err := eachPayment(ctx, ctl, api.PaymentQuery{Money: string(ledger.Signed)}, func(p *api.Payment) error {
		r, err := ctl.Reconcile(ctx, p.ID)
		asked[p.ID] = r.Outcome
		return err
	})
	if err != nil {
		return err
	}
	accounts, err := ctl.Compare(ctx)
	if err != nil {
		return err
	}
	drift, named := int64(0), 0
	for _, a := range accounts {
		drift += a.Drift - a.Explained
		named += len(a.Differences)
	}
	err = e.print(struct {
		Asked    map[string]string `json:"asked"`
		Accounts []api.Account     `json:"accounts"`
	}{asked, accounts}, func(w io.Writer) error { return showAccounts(w, accounts) })
	if err != nil {
		return err
	}
	switch {
	case drift != 0:
		return &clawr.Error{Code: clawr.CodeConflict, Message: fmt.Sprintf("the book and the chain differ by %d units that no payment or transfer explains", drift), Fix: "clawr db check"}
	case named > 0:
		return &clawr.Error{Code: clawr.CodeConflict, Message: fmt.Sprintf("the book and the chain differ in %d payments or transfers", named), Fix: "look at each; not_ours is income that no call earned"}
	}
	return nil
}

func showAccounts(w io.Writer, accounts []api.Account) error {
	var rows, named [][]string
	for _, a := range accounts {
		rows = append(rows, []string{short(a.PayTo), short(a.Asset), fmt.Sprint(a.Payments), fmt.Sprint(a.Booked), fmt.Sprint(a.Transfers), fmt.Sprint(a.Shown), fmt.Sprint(a.Drift), fmt.Sprint(a.Refunds), fmt.Sprint(a.Refunded), fmt.Sprint(a.Returned), fmt.Sprintf("%d–%d", a.FromBlock, a.ToBlock)})
		for _, d := range a.Differences {
			named = append(named, []string{d.Kind, dash(d.Payment), short(d.Payer), dash(short(d.Nonce)), d.Transaction, fmt.Sprint(d.LogIndex), fmt.Sprint(d.Booked), fmt.Sprint(d.Shown)})
		}
	}
	if err := table(w, "PAY-TO TOKEN PAYMENTS BOOKED TRANSFERS SHOWN DRIFT REFUNDS REFUNDED RETURNED BLOCKS", rows); err != nil || len(named) == 0 {
		return err
	}
	fmt.Fprintln(w)
	return table(w, "DIFFERENCE PAYMENT PAYER NONCE TRANSACTION LOG BOOKED SHOWN", named)
}

// eachPayment calls fn with every payment that q selects, newest first.
func eachPayment(ctx context.Context, ctl *controller, q api.PaymentQuery, fn func(*api.Payment) error) error {
	q.Limit = 1000
	for {
		list, err := ctl.Payments(ctx, q)
		if err != nil {
			return err
		}
		for i := range list {
			if err := fn(&list[i]); err != nil {
				return err
			}
		}
		if len(list) < q.Limit {
			return nil
		}
		last := list[len(list)-1]
		q.Before, q.BeforeID = last.Created, last.ID
	}
}

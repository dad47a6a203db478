package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
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

func newDB(e *env) *cobra.Command {
	return group("db", "Look after the database: migrate, back up, restore, check", e.dbMigrate(), e.dbBackup(), e.dbRestore(), e.dbCheck())
}

func databaseFlag(cmd *cobra.Command, url *string) {
	cmd.Flags().StringVar(url, "database-url", "", "Postgres `URL`, instead of the data directory's SQLite file")
}

func (e *env) dbMigrate() *cobra.Command {
	url := ""
	cmd := &cobra.Command{
		Use: "migrate", Short: "Bring the database's schema up to date", Args: cobra.NoArgs,
		Long: `Bring the database's schema up to date. clawr serve does the same when it
starts; this is for whoever wants it done before. There is no way back: back up first.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := e.own(cmd.Context(), &settings{databaseURL: url})
			if err != nil {
				return err
			}
			defer n.close()
			if err := n.db.Damage(); err != nil {
				return err
			}
			version, err := n.db.SchemaVersion(cmd.Context())
			if err != nil {
				return err
			}
			return e.print(struct {
				Version int64 `json:"version"`
			}{version}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "schema %d\n", version)
				return err
			})
		},
	}
	databaseFlag(cmd, &url)
	return cmd
}

func (e *env) dbBackup() *cobra.Command {
	url := ""
	cmd := &cobra.Command{
		Use: "backup FILE", Short: "Copy the database to a new file, also while it is in use", Args: cobra.ExactArgs(1),
		Long: `Copy the database to a new file, all of one moment, also while clawr serve uses
it, and check the copy. The files in segments/ never change: copy them as they are.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if url != "" {
				return &clawr.Error{Code: clawr.CodeUsage, Param: "database-url", Message: "a Postgres database is copied by its own program", Fix: `pg_dump --format=custom --file=clawr.dump "$DATABASE_URL"`}
			}
			path, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				b, err := ctl.Backup(ctx, path)
				if err != nil {
					return err
				}
				return e.print(b, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "%s  %s\n", b.File, byteSize(b.Bytes))
					return err
				})
			})
		},
	}
	databaseFlag(cmd, &url)
	return cmd
}

func (e *env) dbRestore() *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore FILE", Short: "Put a backup in the place of the database", Args: cobra.ExactArgs(1),
		Long: `Put a backup in the place of the data directory's database, which is kept beside
it. Payments since the backup are not in it: clawr db check --repair --rpc-url URL
books those that the chain shows, so that no buyer is asked to pay twice.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			unlock, err := lockDir(e.data)
			if err != nil {
				return err
			}
			defer unlock()
			kept, err := store.Restore(cmd.Context(), args[0], filepath.Join(e.data, dbName), api.Operator().Name, time.Now())
			if err != nil {
				return err
			}
			e.note("restored; now: clawr db check --repair --rpc-url URL --data %s", e.data)
			return e.print(struct {
				Kept string `json:"kept,omitempty"`
			}{kept}, func(w io.Writer) error {
				if kept != "" {
					_, err = fmt.Fprintln(w, kept)
				}
				return err
			})
		},
	}
	return cmd
}

// checkFlags are what `clawr db check` is told.
type checkFlags struct {
	databaseURL, rpc string
	assets           []string
	repair           bool
}

func (e *env) dbCheck() *cobra.Command {
	f := &checkFlags{}
	cmd := &cobra.Command{
		Use: "check", Short: "Check the database: file, invariants, audit chain, standby", Args: cobra.NoArgs,
		Long: `Check that the file is as it was left and has every commit that was
acknowledged, that every invariant of the ledger holds, that the audit chain has
no gap, and on Postgres that a synchronous standby has every payment.

With --repair and no clawr running, take a file for right that was restored or
has lost commits, and book what the chain shows and the book has lost: a buyer who
was charged is then never asked to pay again, and is owed a refund.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.repair {
				return e.repair(cmd.Context(), f)
			}
			if f.rpc != "" {
				return &clawr.Error{Code: clawr.CodeUsage, Param: "rpc-url", Message: "--rpc-url is for --repair", Fix: "clawr payments reconcile --all holds the ledger against the chain"}
			}
			if f.databaseURL != "" {
				n, err := e.own(cmd.Context(), &settings{databaseURL: f.databaseURL})
				if err != nil {
					return err
				}
				defer n.close()
				return e.showCheck(cmd.Context(), n.controller(), nil)
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error { return e.showCheck(ctx, ctl, nil) })
		},
	}
	fl := cmd.Flags()
	databaseFlag(cmd, &f.databaseURL)
	fl.BoolVar(&f.repair, "repair", false, "take the file for right, and book what the chain shows and the book has lost")
	fl.StringVar(&f.rpc, "rpc-url", "", "`URL` of a node of the chain, for --repair")
	fl.StringSliceVar(&f.assets, "asset", nil, "`address` of a token, for --repair (repeatable; default: those of the payments that are left)")
	return cmd
}

// rebuilt is a payment that the chain gave back.
type rebuilt struct {
	api.Difference
	PayTo string `json:"payTo"`
	Did   string `json:"did"`
}

// showCheck prints the findings and fails if one of them does.
func (e *env) showCheck(ctx context.Context, ctl *controller, again []rebuilt) error {
	list, err := ctl.Check(ctx)
	if err != nil {
		return err
	}
	failed := 0
	for _, f := range list {
		if f.State == string(store.Failed) {
			failed++
		}
	}
	err = e.print(struct {
		OK       bool          `json:"ok"`
		Findings []api.Finding `json:"findings"`
		Rebuilt  []rebuilt     `json:"rebuilt,omitempty"`
	}{failed == 0, list, again}, func(w io.Writer) error {
		var rows [][]string
		for _, r := range again {
			rows = append(rows, []string{"rebuilt", short(r.Payer), fmt.Sprintf("%d units in %s: %s", r.Shown, r.Transaction, r.Did)})
		}
		for _, f := range list {
			rows = append(rows, []string{f.State, f.Name, strings.TrimSuffix(f.What+": "+f.Detail, ": ")})
		}
		return table(w, "STATE CHECK DETAIL", rows)
	})
	if err == nil && failed > 0 {
		err = &clawr.Error{Code: clawr.CodeConflict, Message: fmt.Sprintf("%d checks failed", failed), Fix: "clawr db restore BACKUP, or clawr db check --repair --rpc-url URL, which is right if only the guard fails and another program checkpointed clawr.db"}
	}
	return err
}

// repair takes the database for right and gives it back what the chain shows.
func (e *env) repair(ctx context.Context, f *checkFlags) error {
	if f.rpc == "" {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "rpc-url", Message: "a repair asks the chain what was charged", Fix: "--repair --rpc-url URL of a node of the chain"}
	}
	c, err := chain.Dial(ctx, f.rpc)
	if err != nil {
		return err
	}
	defer c.Close()
	unlock, err := lockDir(e.data)
	if err != nil {
		return err
	}
	n, err := openNode(ctx, e, &settings{databaseURL: f.databaseURL, repair: true}, unlock)
	if err != nil {
		unlock()
		return err
	}
	defer n.close()
	again, err := rebuild(ctx, n.db, c, f.assets)
	if err != nil {
		return err
	}
	return e.showCheck(ctx, n.controller(), again)
}

// rebuild books every transfer to a seller that the book has no charge for.
func rebuild(ctx context.Context, db *store.DB, c *chain.Client, assets []string) ([]rebuilt, error) {
	sellers, err := sellersOf(ctx, db, c.Network(), assets)
	if err != nil {
		return nil, err
	}
	var list []rebuilt
	for _, s := range sellers {
		a, err := compare(ctx, db, c, s)
		if err != nil {
			return nil, err
		}
		for _, d := range a.Differences {
			if d.Kind != api.NotBooked {
				continue
			}
			r, err := c.Receipt(ctx, common.HexToHash(d.Transaction))
			if err != nil {
				return list, err
			}
			if r == nil {
				continue // a reorganisation: what is in no block was not charged
			}
			e := ledger.Evidence{Tx: d.Transaction, BlockNumber: r.Block, BlockHash: strings.ToLower(r.Hash.Hex()), LogIndex: d.LogIndex}
			did, err := db.Rebuild(ctx, ledger.Key{Network: s.Network, Asset: s.Asset, Payer: d.Payer, Nonce: d.Nonce}, s.PayTo, d.Shown, e, api.Operator().Name)
			if err != nil {
				return list, err
			}
			if did != "" {
				list = append(list, rebuilt{d, s.PayTo, did})
			}
		}
	}
	return list, nil
}

// sellersOf are the addresses that the book has payments to, and those that
// tenants sell for: of them the book may have lost every payment.
func sellersOf(ctx context.Context, db *store.DB, network string, assets []string) ([]store.Seller, error) {
	all, err := db.Sellers(ctx)
	if err != nil {
		return nil, err
	}
	var list []store.Seller
	known, tokens := map[[2]string]bool{}, map[string]bool{}
	for _, s := range all {
		if s.Network == network {
			list = append(list, s)
			known[[2]string{s.Asset, s.PayTo}], tokens[s.Asset] = true, true
		}
	}
	for _, a := range assets {
		address, err := clawr.CheckAddress(a)
		if err != nil {
			return nil, withParam(err, "asset")
		}
		tokens[strings.ToLower(address)] = true
	}
	tenants, err := db.Tenants(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range tenants {
		for token := range tokens {
			if at := [2]string{token, t.PayTo}; t.PayTo != "" && !known[at] {
				known[at] = true
				list = append(list, store.Seller{Network: network, Asset: token, PayTo: t.PayTo, Since: t.Created})
			}
		}
	}
	return list, nil
}

package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
)

func newOwner(e *env) *cobra.Command {
	return group("owner", "Say who publishes, and where their money goes", e.ownerSet(), e.ownerShow(), e.ownerList())
}

func (e *env) ownerSet() *cobra.Command {
	var name, payTo string
	cmd := &cobra.Command{
		Use: "set ID", Short: "Add an owner, or change one", Args: cobra.ExactArgs(1),
		Long: `Add an owner or change one's profile. The address is what the owner's APIs earn
for when they are deployed from now on; those on sale keep theirs.`,
		Example: "  clawr owner set codex --pay-to 0x…",
		RunE: func(cmd *cobra.Command, args []string) error {
			var s api.SetOwner
			if cmd.Flags().Changed("name") {
				s.Name = &name
			}
			if cmd.Flags().Changed("pay-to") {
				s.PayTo = &payTo
				if _, err := clawr.CheckAddress(payTo); payTo != "" && err != nil {
					return withParam(err, "pay-to")
				}
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				o, err := ctl.SetOwner(ctx, args[0], s)
				if err != nil {
					return err
				}
				return e.print(o, func(w io.Writer) error { return showOwner(w, &o) })
			})
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name for people")
	cmd.Flags().StringVar(&payTo, "pay-to", "", "`address` that earns")
	return cmd
}

func (e *env) ownerShow() *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Show an owner", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				o, err := ctl.Owner(ctx, args[0])
				if err != nil {
					return err
				}
				return e.print(o, func(w io.Writer) error { return showOwner(w, &o) })
			})
		},
	}
}

func showOwner(w io.Writer, o *api.Owner) error {
	return facts(w, "owner", o.ID, "name", o.Name, "pay to", dash(o.PayTo), "since", stamp(o.Created))
}

func (e *env) ownerList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the owners", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				list, err := ctl.Owners(ctx)
				if err != nil {
					return err
				}
				return e.print(struct {
					Owners []api.Owner `json:"owners"`
				}{list}, func(w io.Writer) error {
					var rows [][]string
					for _, o := range list {
						rows = append(rows, []string{o.ID, dash(o.Name), dash(o.PayTo)})
					}
					return table(w, "OWNER NAME PAY-TO", rows)
				})
			})
		},
	}
}

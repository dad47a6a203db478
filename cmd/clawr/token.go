package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
)

func newToken(e *env) *cobra.Command {
	return group("token", "Make and end tokens for the control plane and /__platform", e.tokenCreate(), e.tokenList(), e.tokenRevoke())
}

func (e *env) tokenCreate() *cobra.Command {
	var scopes []string
	var expires time.Duration
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token and print its secret, once", Args: cobra.NoArgs,
		Long:    "Make a token. Its secret is printed on stdout and kept nowhere. Scopes:\n  " + strings.Join(api.Scopes(), "\n  "),
		Example: "  clawr token create --scope analytics:read --scope events:read --expires 720h > token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(scopes) == 0 {
				return &clawr.Error{Code: clawr.CodeUsage, Param: "scope", Message: "a token needs a scope", Fix: "--scope " + strings.Join(api.Scopes(), ", --scope ")}
			}
			if cmd.Flags().Changed("expires") && (expires < time.Second || expires%time.Second != 0) {
				return &clawr.Error{Code: clawr.CodeUsage, Param: "expires", Message: fmt.Sprintf("--expires %s is not a number of seconds, minutes or hours", expires), Fix: "--expires 720h"}
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				made, err := ctl.CreateToken(ctx, api.NewTokenRequest{Scopes: scopes, ExpiresIn: int64(expires / time.Second)})
				if err != nil {
					return err
				}
				e.note("token %s for %s; its secret is shown this once", made.ID, strings.Join(made.Scopes, ", "))
				return e.print(made, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, made.Secret)
					return err
				})
			})
		},
	}
	cmd.Flags().StringSliceVar(&scopes, "scope", nil, "`scope` that it has (repeatable)")
	cmd.Flags().DurationVar(&expires, "expires", 0, "how long it lasts (default: until it is revoked)")
	return cmd
}

func (e *env) tokenList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tokens", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				list, err := ctl.Tokens(ctx)
				if err != nil {
					return err
				}
				return e.print(struct {
					Tokens []api.Token `json:"tokens"`
				}{list}, func(w io.Writer) error {
					var rows [][]string
					for _, t := range list {
						state := "in use"
						switch {
						case !t.Revoked.IsZero():
							state = "revoked"
						case !t.Expires.IsZero() && !t.Expires.After(time.Now()):
							state = "expired"
						}
						rows = append(rows, []string{t.ID, t.Prefix + "…", state, strings.Join(t.Scopes, ","), stamp(t.Created), dash(stamp(t.Expires))})
					}
					return table(w, "TOKEN SECRET STATE SCOPES CREATED EXPIRES", rows)
				})
			})
		},
	}
}

func (e *env) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke TOKEN", Short: "End a token at once", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				if err := ctl.RevokeToken(ctx, args[0]); err != nil {
					return err
				}
				return e.print(struct {
					ID      string `json:"id"`
					Revoked bool   `json:"revoked"`
				}{args[0], true}, func(w io.Writer) error {
					_, err := fmt.Fprintln(w, args[0], "revoked")
					return err
				})
			})
		},
	}
}

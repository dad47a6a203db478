package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
)

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	var names []string
	for _, s := range subs {
		names = append(names, s.Name())
	}
	cmd := &cobra.Command{
		Use: use, Short: short,
		RunE: func(_ *cobra.Command, args []string) error {
			message := "clawr " + use + " needs to know what"
			if len(args) > 0 {
				message = fmt.Sprintf("clawr %s has no command %q", use, args[0])
			}
			return &clawr.Error{Code: clawr.CodeUsage, Message: message, Fix: "clawr " + use + " " + strings.Join(names, ", or ")}
		},
	}
	cmd.AddCommand(subs...)
	return cmd
}

// managed runs fn with the control plane that the command line means.
func (e *env) managed(ctx context.Context, fn func(context.Context, *controller) error) error {
	ctl, err := e.openControl(ctx)
	if err != nil {
		return err
	}
	defer ctl.close()
	return fn(ctx, ctl)
}

// table writes rows under a head, in columns.
func table(w io.Writer, head string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, strings.ReplaceAll(head, " ", "\t"))
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

// facts writes names and values, one a line; without a value a name is left out.
func facts(w io.Writer, pairs ...string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			fmt.Fprintf(t, "%s\t%s\n", pairs[i], pairs[i+1])
		}
	}
	return t.Flush()
}

// stamp writes a time for people, and nothing for none.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}

// short is the beginning of a long hash or address.
func short(s string) string {
	if len(s) <= 14 {
		return s
	}
	return s[:8] + "…" + s[len(s)-4:]
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printJSON writes v as JSON whether or not that is asked for.
func (e *env) printJSON(v any) error {
	enc := json.NewEncoder(e.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

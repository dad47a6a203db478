package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
)

func (e *env) paymentsExport() *cobra.Command {
	var q api.PaymentQuery
	format, out := "csv", ""
	cmd := &cobra.Command{
		Use: "export", Short: "Write every payment as CSV or NDJSON, newest first", Args: cobra.NoArgs,
		Long: `Write every payment, without what is worth money (payloads, signatures, quotes).
CSV is for spreadsheets: a cell that one would take for a formula begins with an
apostrophe. NDJSON (also --json) has one object a line, as clawr payments show.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if e.json && !cmd.Flags().Changed("format") {
				format = "ndjson"
			}
			if format != "csv" && format != "ndjson" {
				return &clawr.Error{Code: clawr.CodeUsage, Param: "format", Message: fmt.Sprintf("--format %q is neither csv nor ndjson", format), Fix: "--format csv"}
			}
			if err := checkMoney(q.Money); err != nil {
				return err
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				return e.export(ctx, ctl, q, format, out)
			})
		},
	}
	fl := cmd.Flags()
	selectPayments(fl, &q)
	fl.StringVar(&format, "format", "csv", "csv or ndjson")
	fl.StringVarP(&out, "out", "o", "", "`file` to write instead of standard output")
	return cmd
}

// export writes to a file as a whole or not at all.
func (e *env) export(ctx context.Context, ctl *controller, q api.PaymentQuery, format, out string) error {
	write := func(w io.Writer) error {
		if format == "csv" {
			return exportCSV(ctx, ctl, q, w)
		}
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return eachPayment(ctx, ctl, q, func(p *api.Payment) error { return enc.Encode(p) })
	}
	if out == "" {
		return write(e.stdout)
	}
	f, err := os.CreateTemp(dirOf(out), ".export-")
	if err == nil {
		err = write(f)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = os.Rename(f.Name(), out)
		}
		if err != nil {
			os.Remove(f.Name())
		}
	}
	if _, ours := err.(*clawr.Error); err == nil || ours {
		return err
	}
	return &clawr.Error{Code: clawr.CodeFile, Param: "out", Message: "the export cannot be written", Fix: "--out FILE in a directory that you may write to", Err: err}
}

func dirOf(path string) string {
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		return path[:i+1]
	}
	return "."
}

// exported are the columns of a CSV export.
var exported = []struct {
	name string
	of   func(*api.Payment) string
}{
	{"id", func(p *api.Payment) string { return p.ID }},
	{"created_at", func(p *api.Payment) string { return p.Created.UTC().Format(time.RFC3339Nano) }},
	{"updated_at", func(p *api.Payment) string { return p.Updated.UTC().Format(time.RFC3339Nano) }},
	{"tenant", func(p *api.Payment) string { return p.Tenant }},
	{"version", func(p *api.Payment) string { return strconv.FormatInt(p.Version, 10) }},
	{"route", func(p *api.Payment) string { return p.Route }},
	{"network", func(p *api.Payment) string { return p.Network }},
	{"asset", func(p *api.Payment) string { return p.Asset }},
	{"payer", func(p *api.Payment) string { return p.Payer }},
	{"nonce", func(p *api.Payment) string { return p.Nonce }},
	{"pay_to", func(p *api.Payment) string { return p.PayTo }},
	{"amount_units", func(p *api.Payment) string { return p.Amount }},
	{"amount_usd", func(p *api.Payment) string { return p.AmountUSD }},
	{"policy", func(p *api.Payment) string { return string(p.Policy) }},
	{"work", func(p *api.Payment) string { return string(p.Work) }},
	{"money", func(p *api.Payment) string { return string(p.Money) }},
	{"transaction", func(p *api.Payment) string { return p.Transaction }},
	{"block", func(p *api.Payment) string { return number(p.BlockNumber) }},
	{"proof", func(p *api.Payment) string { return p.Proof }},
	{"error", func(p *api.Payment) string { return string(p.Error) }},
	{"refund", func(p *api.Payment) string { return refundState(p.Refund) }},
	{"refund_units", func(p *api.Payment) string { return ofRefund(p, func(r *api.Refund) string { return r.Amount }) }},
	{"refund_transaction", func(p *api.Payment) string { return ofRefund(p, func(r *api.Refund) string { return r.Transaction }) }},
}

func ofRefund(p *api.Payment, of func(*api.Refund) string) string {
	if p.Refund == nil {
		return ""
	}
	return of(p.Refund)
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func exportCSV(ctx context.Context, ctl *controller, q api.PaymentQuery, w io.Writer) error {
	out := csv.NewWriter(w)
	row := make([]string, len(exported))
	for i, c := range exported {
		row[i] = c.name
	}
	if err := out.Write(row); err != nil {
		return err
	}
	err := eachPayment(ctx, ctl, q, func(p *api.Payment) error {
		for i, c := range exported {
			row[i] = cell(c.of(p))
		}
		return out.Write(row)
	})
	out.Flush()
	if err == nil {
		err = out.Error()
	}
	return err
}

// cell is s as no spreadsheet takes it for a formula: routes and slugs are
// chosen by others (https://owasp.org/www-community/attacks/CSV_Injection).
func cell(s string) string {
	s = strings.ReplaceAll(s, "\x00", "")
	if first, _ := utf8.DecodeRuneInString(s); s != "" && strings.ContainsRune("=+-@\t\r\n＝＋－＠", first) {
		return "'" + s
	}
	return s
}

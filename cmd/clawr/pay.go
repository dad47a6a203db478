package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/buyer"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/x402"
)

// maxShown is how much of an answer --json puts into its one object.
const maxShown = 16 << 20

// payFlags are what `clawr pay` is told.
type payFlags struct {
	method, body, output string
	headers              []string
	max, id              string
	scheme, deposit      string
	times                int
	confirm, dryRun      bool
	anew                 bool
	timeout              time.Duration
	wallet               string // --data, if it was given
	marketFlags
}

// marketFlags say what is paid in, and which node is asked about it.
type marketFlags struct {
	rpcURL   string
	networks []string
	assets   []string
}

func newPay(e *env) *cobra.Command {
	f := &payFlags{}
	cmd := &cobra.Command{
		Use:   "pay URL",
		Short: "Buy one answer",
		Long: `Make one HTTP call and pay for it if it costs something and that is within the
wallet's limits. The answer's body goes to stdout, notes to stderr.

At most one payment is signed. It is written down before it is sent; after a
lost reply or a 503 the same payment is sent again, also by the next clawr pay
of the same call. Another one is not signed while it may still be charged.

With --scheme batch-settlement the call is paid from a channel: one deposit, and
then a signed voucher for each call, without a transaction. A channel that is
open is used by itself afterwards; clawr channels shows what is left in it and
gets it back.

Exit codes: 7 refused by your own limits, nothing signed · 8 payment rejected,
not charged · 9 outcome unknown: the same command sends the same payment again.`,
		Example: "  clawr pay https://api.example.com/v1/records --max 0.01\n  clawr pay -d '{\"q\":\"x\"}' https://api.example.com/search\n  clawr pay --dry-run https://api.example.com/v1/records",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("data") {
				f.wallet = e.data
			}
			return e.pay(cmd.Context(), args[0], f)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.method, "request", "X", "", "`method` (default GET, or POST with a body)")
	fl.StringVarP(&f.body, "body", "d", "", "`text` to send, @FILE for a file's, @- for standard input's")
	fl.StringArrayVarP(&f.headers, "header", "H", nil, "`'Name: value'` to send (repeatable)")
	fl.StringVarP(&f.output, "output", "o", "", "`file` for the answer's body instead of stdout")
	fl.StringVar(&f.max, "max", "", "`USD` that this call may cost (default: the wallet's limit; more than that needs --confirm)")
	fl.BoolVar(&f.confirm, "confirm", false, "allow --max above the wallet's limit per call")
	fl.StringVar(&f.id, "id", "", "payment identifier: names this call, 16 to 128 of A-Z a-z 0-9 _ -")
	fl.StringVar(&f.scheme, "scheme", "", "pay by this `scheme` and no other: exact, or batch-settlement, which opens a channel (default: from channels that are open, else exact)")
	fl.StringVar(&f.deposit, "deposit", "", "`USD` to deposit when the channel has to be filled (implies --scheme batch-settlement; default: what the server asks for, within your limits)")
	fl.IntVar(&f.times, "times", 1, "make the call `N` times, one after the other, each paid for by itself")
	fl.BoolVar(&f.dryRun, "dry-run", false, "say what it costs and what would be signed, and sign nothing")
	fl.BoolVar(&f.anew, "new", false, "sign a new payment though an earlier one for this call may still be charged")
	fl.DurationVar(&f.timeout, "timeout", 2*time.Minute, "how long to send a payment again before giving up")
	f.marketFlags.bind(cmd)
	return cmd
}

func (m *marketFlags) bind(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&m.rpcURL, "rpc-url", "", "`URL` of a node: the balance is checked before, and what happened proven after")
	fl.StringSliceVar(&m.networks, "network", nil, "CAIP-2 `name` to pay on, and no other (repeatable)")
	fl.StringSliceVar(&m.assets, "asset", nil, "`address` of the token to pay in as dollars, and no other (repeatable)")
}

// terms are the flags, checked.
func (m *marketFlags) terms() (buyer.Terms, error) {
	t := buyer.Terms{Networks: m.networks}
	for _, n := range m.networks {
		if err := clawr.CheckNetwork(n); err != nil {
			return t, err
		}
	}
	for _, a := range m.assets {
		address, err := clawr.CheckAddress(a)
		if err != nil {
			return t, withParam(err, "asset")
		}
		t.Assets = append(t.Assets, address)
	}
	return t, nil
}

// dial connects to the node that is asked, if one is.
func (m *marketFlags) dial(ctx context.Context) (*chain.Client, error) {
	if m.rpcURL == "" {
		return nil, nil
	}
	return chain.Dial(ctx, m.rpcURL)
}

// walletDir is where a data directory keeps its wallet.
func (e *env) walletDir() string { return filepath.Join(e.data, "wallet") }

// wallet is the wallet of CLAWR_WALLET_KEY or of the data directory. Without
// either it is one that cannot sign: prices can be asked, and free calls made.
func (e *env) wallet() (*buyer.Wallet, error) {
	w, err := buyer.OpenWallet(e.walletDir(), strings.TrimSpace(e.getenv("CLAWR_WALLET_KEY")))
	if clawr.CodeOf(err) == buyer.CodeNoWallet {
		return buyer.Keyless(e.walletDir()), nil
	}
	return w, err
}

// payWith is a client that pays from w and asks node, if there is one.
func (e *env) payWith(w *buyer.Wallet, node *chain.Client) *buyer.Client {
	c := &buyer.Client{Wallet: w, Note: e.note}
	if node != nil {
		c.Chain = nodeChain{node}
		c.Vault = nodeVault{node, w}
	}
	return c
}

// pay makes one call.
func (e *env) pay(ctx context.Context, url string, f *payFlags) error {
	r, err := e.request(url, f)
	if err != nil {
		return err
	}
	terms, err := f.terms()
	if err != nil {
		return err
	}
	w, err := e.wallet()
	if err != nil {
		return err
	}
	node, err := f.dial(ctx)
	if err != nil {
		return err
	}
	c := e.payWith(w, node)
	c.Terms = terms
	c.Scheme = f.scheme
	if node != nil {
		defer node.Close()
	}
	c.Confirm = e.askToPay()
	if f.dryRun {
		return e.quote(ctx, c, r)
	}
	for range f.times {
		if err := e.buy(ctx, c, r, f); err != nil {
			return err
		}
	}
	return nil
}

// buy makes the call once.
func (e *env) buy(ctx context.Context, c *buyer.Client, r buyer.Request, f *payFlags) error {
	out, err := e.answer(f.output)
	if err != nil {
		return err
	}
	defer out.drop()
	r.Out = out
	res, err := c.Do(ctx, r)
	if err != nil {
		return err
	}
	if err := out.keep(); err != nil {
		return err
	}
	return e.bought(res, out)
}

// bought says what was bought. An answer that was paid for and is not a good
// one is printed like any other, and then it is an error.
func (e *env) bought(res *buyer.Result, out *answer) error {
	if p := res.Payment; p != nil {
		e.note("paid %s to %s%s%s", buyer.Dollars(p.Amount), p.PayTo, moneyNote(res), map[bool]string{true: " · a stored answer"}[res.Replayed])
	}
	if e.json {
		if err := e.print(purchase(res, out), nil); err != nil {
			return err
		}
	}
	if res.Status >= 400 {
		return &clawr.Error{Code: buyer.CodeServer, Message: fmt.Sprintf("the call was paid for and answered %d", res.Status), Fix: "read the answer"}
	}
	return nil
}

// moneyNote says how the money goes: by a transaction, or out of a channel.
func moneyNote(res *buyer.Result) string {
	p := res.Payment
	tx := " · tx " + p.Transaction
	ch := res.Channel
	switch {
	case ch != nil && p.Deposit > 0:
		return fmt.Sprintf(" · deposited %s%s · %s left in channel %s", buyer.Dollars(ch.USD(p.Deposit)), tx, buyer.Dollars(ch.USD(ch.Left())), short(ch.ID))
	case ch != nil:
		return fmt.Sprintf(" · %s left in channel %s", buyer.Dollars(ch.USD(ch.Left())), short(ch.ID))
	case p.Transaction == "":
		return " · the server named no transaction"
	}
	return tx
}

// purchase is what --json prints.
func purchase(res *buyer.Result, out *answer) map[string]any {
	m := map[string]any{"ok": res.Status < 400, "status": res.Status, "paid": res.Paid, "replayed": res.Replayed, "resumed": res.Resumed, "bytes": res.Bytes}
	if p := res.Payment; p != nil {
		for name, v := range map[string]any{"amountUsd": p.Amount, "amount": fmt.Sprint(p.Atomic), "network": p.Network, "asset": p.Asset, "payTo": p.PayTo, "payer": p.Payer,
			"transaction": p.Transaction, "payment": p.ID} {
			m[name] = v
		}
		if ch := res.Channel; ch != nil {
			m["channel"], m["deposit"] = ch.ID, fmt.Sprint(p.Deposit)
			m["charged"], m["left"] = fmt.Sprint(ch.Charged), fmt.Sprint(ch.Left())
		}
	}
	b := out.shown.Bytes()
	switch {
	case out.path != "":
		m["bodyFile"] = out.path
	case len(b) > 0 && json.Valid(b):
		m["body"] = json.RawMessage(b)
	case utf8.Valid(b):
		m["body"] = string(b)
	default:
		m["bodyBase64"] = base64.StdEncoding.EncodeToString(b)
	}
	return m
}

// quote says what a call costs.
func (e *env) quote(ctx context.Context, c *buyer.Client, r buyer.Request) error {
	c.Confirm = nil
	q, status, err := c.Quote(ctx, r)
	if err != nil {
		return err
	}
	if q == nil {
		return e.print(map[string]any{"ok": true, "status": status, "free": true}, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "free (status %d)\n", status)
			return err
		})
	}
	over := ""
	if err := c.Within(q, r); clawr.CodeOf(err) == clawr.CodeQuoteOverLimit {
		over = strings.TrimPrefix(err.Error(), string(clawr.CodeQuoteOverLimit)+": ")
	} else if err != nil {
		return err
	}
	m := map[string]any{"ok": true, "status": status, "free": false, "amountUsd": q.Amount, "amount": fmt.Sprint(q.Atomic), "network": q.Asset.Network, "asset": q.Asset.Address,
		"tokenName": q.Asset.Name, "payTo": q.PayTo, "payer": c.Wallet.Address(), "validSeconds": int64(q.Lifetime / time.Second), "overLimit": over != "", "description": q.Description}
	if q.Channel != "" {
		m["channel"] = q.Channel
	}
	return e.print(m, func(w io.Writer) error {
		fmt.Fprintf(w, "price    %s\n", buyer.Dollars(q.Amount))
		if q.Channel != "" {
			fmt.Fprintf(w, "by       a voucher of channel %s\n", q.Channel)
		}
		fmt.Fprintf(w, "signs    %d units of %s (%s) on %s\n", q.Atomic, q.Asset.Name, q.Asset.Address, q.Asset.Network)
		fmt.Fprintf(w, "to       %s, valid for %s\n", q.PayTo, q.Lifetime)
		if over != "" {
			e.note("%s", over)
		}
		return nil
	})
}

// request is the call that url and f mean.
func (e *env) request(url string, f *payFlags) (r buyer.Request, err error) {
	r = buyer.Request{Method: f.method, URL: url, ID: f.id, Confirm: f.confirm, New: f.anew, Timeout: f.timeout, Header: http.Header{}, Again: repeat(url, f)}
	if f.timeout <= 0 {
		return r, &clawr.Error{Code: clawr.CodeUsage, Param: "timeout", Message: "--timeout is not above 0", Fix: "--timeout 2m"}
	}
	if f.deposit != "" {
		units, err := clawr.ParseAmount(f.deposit)
		if err != nil {
			return r, withParam(err, "deposit")
		}
		r.Deposit = &units
		f.scheme = cmp.Or(f.scheme, x402.SchemeChannel)
	}
	switch {
	case f.scheme != "" && f.scheme != x402.SchemeExact && f.scheme != x402.SchemeChannel, f.scheme == x402.SchemeExact && f.deposit != "":
		return r, &clawr.Error{Code: clawr.CodeUsage, Param: "scheme", Message: fmt.Sprintf("--scheme %s cannot be paid by, or needs no deposit", f.scheme), Fix: "--scheme exact, or --scheme batch-settlement"}
	case f.times < 1 || f.times > 1 && f.output != "":
		return r, &clawr.Error{Code: clawr.CodeUsage, Param: "times", Message: "--times is a number above 0, and goes without -o", Fix: "--times 10"}
	}
	if f.max != "" {
		max, err := clawr.ParseAmount(f.max)
		if err != nil {
			return r, withParam(err, "max")
		}
		r.Max = &max
	}
	for _, h := range f.headers {
		name, value, ok := strings.Cut(h, ":")
		if name = strings.TrimSpace(name); !ok || name == "" {
			return r, &clawr.Error{Code: clawr.CodeUsage, Param: "header", Message: fmt.Sprintf("%q is not a header", h), Fix: "-H 'Name: value'"}
		}
		r.Header.Add(name, strings.TrimSpace(value))
	}
	if f.body == "" {
		return r, nil
	}
	if r.Body, err = e.body(f.body); err != nil {
		return r, err
	}
	if r.Method == "" {
		r.Method = http.MethodPost
	}
	if r.Header.Get("Content-Type") == "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if json.Valid(r.Body) {
			r.Header.Set("Content-Type", "application/json")
		}
	}
	return r, nil
}

// maxRequestBody bounds what is sent: it is held in memory to be sent again.
const maxRequestBody = 64 << 20

// body is what -d means.
func (e *env) body(s string) ([]byte, error) {
	path, ok := strings.CutPrefix(s, "@")
	if !ok {
		return []byte(s), nil
	}
	in := e.stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, &clawr.Error{Code: clawr.CodeFile, Param: "body", Message: "the body cannot be read", Fix: "-d @FILE", Err: err}
		}
		defer file.Close()
		in = file
	}
	b, err := io.ReadAll(io.LimitReader(in, maxRequestBody+1))
	if err != nil {
		return nil, &clawr.Error{Code: clawr.CodeFile, Param: "body", Message: "the body cannot be read", Fix: "-d @FILE", Err: err}
	}
	if len(b) > maxRequestBody {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "body", Message: fmt.Sprintf("the body is larger than %d bytes", maxRequestBody), Fix: "send less"}
	}
	return b, nil
}

// repeat is the command that makes the same call again, for errors to name.
// It must find the same wallet: another does not know what is open, and would
// pay anew. Headers may be secret, so of them only the need is shown.
func repeat(url string, f *payFlags) string {
	args := []string{"clawr", "pay", shellWord(url)}
	add := func(flag, value string) {
		if value != "" {
			args = append(args, flag, shellWord(value))
		}
	}
	add("-X", f.method)
	if len(f.body) <= 200 {
		add("-d", f.body)
	} else {
		args = append(args, "-d", "…")
	}
	if len(f.headers) > 0 {
		args = append(args, "-H", "…")
	}
	add("--id", f.id)
	add("--scheme", f.scheme)
	add("--deposit", f.deposit)
	add("--rpc-url", f.rpcURL)
	add("--network", strings.Join(f.networks, ","))
	add("--asset", strings.Join(f.assets, ","))
	add("-o", f.output)
	add("--data", f.wallet)
	return strings.Join(args, " ")
}

func shellWord(s string) string {
	if s != "" && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("@%+=:,./_-", r)
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// askToPay asks a person whether to pay more than the wallet's limit; nil if
// nobody is there to ask.
func (e *env) askToPay() func(*buyer.Quote, clawr.Amount) bool {
	in, ok := e.stdin.(*os.File)
	errs, ok2 := e.stderr.(*os.File)
	if !ok || !ok2 || e.noInput || e.json || !term.IsTerminal(int(in.Fd())) || !term.IsTerminal(int(errs.Fd())) {
		return nil
	}
	return func(q *buyer.Quote, limit clawr.Amount) bool {
		fmt.Fprintf(e.stderr, "this call costs %s to %s, your limit is %s. Pay it? [y/N] ", buyer.Dollars(q.Amount), q.PayTo, buyer.Dollars(limit))
		line, _ := bufio.NewReader(e.stdin).ReadString('\n')
		line = strings.ToLower(strings.TrimSpace(line))
		return line == "y" || line == "yes"
	}
}

// answer is where an answer's body goes: a file, which appears whole or not at
// all, stdout, or what --json prints.
type answer struct {
	io.Writer
	path  string
	file  *os.File
	shown bytes.Buffer
}

func (e *env) answer(path string) (*answer, error) {
	a := &answer{path: path}
	switch {
	case path == "" && e.json:
		a.Writer = capped{&a.shown}
	case path == "" || path == "-":
		a.Writer, a.path = e.stdout, ""
	default:
		f, err := os.CreateTemp(filepath.Dir(path), ".clawr-*")
		if err != nil {
			return nil, &clawr.Error{Code: clawr.CodeFile, Param: "output", Message: "the answer cannot be written to " + path, Fix: "-o FILE in a directory that you may write to", Err: err}
		}
		a.Writer, a.file = f, f
	}
	return a, nil
}

// keep puts a file's answer in its place.
func (a *answer) keep() error {
	if a.file == nil {
		return nil
	}
	err := errors.Join(a.file.Chmod(0o644), a.file.Close())
	if err == nil {
		err = os.Rename(a.file.Name(), a.path)
	}
	if err != nil {
		return &clawr.Error{Code: clawr.CodeFile, Param: "output", Message: "the answer is complete, but could not be put in its place; it is in " + a.file.Name(), Fix: "mv " + shellWord(a.file.Name()) + " " + shellWord(a.path), Err: err}
	}
	a.file = nil
	return nil
}

// drop removes what was not kept.
func (a *answer) drop() {
	if a.file != nil && !errors.Is(a.file.Close(), fs.ErrClosed) {
		os.Remove(a.file.Name())
	}
}

// capped keeps as much as one JSON object can reasonably hold.
type capped struct{ b *bytes.Buffer }

func (c capped) Write(p []byte) (int, error) {
	if c.b.Len()+len(p) > maxShown {
		return 0, fmt.Errorf("the answer is larger than the %d bytes that --json shows; use -o FILE", maxShown)
	}
	return c.b.Write(p)
}

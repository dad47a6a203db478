package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/buyer"
	"github.com/402claw/clawr/chain/devchain"
	"github.com/402claw/clawr/dataset"
	"github.com/402claw/clawr/x402"
)

// sample is what `clawr dev` sells if it is given nothing. See sample/README.md.
//
//go:embed sample/airports.csv
var sample []byte

const sampleName = "airports.csv"

// devFlags are what `clawr dev` is told.
type devFlags struct {
	serveFlags
	price, tenant string
	exit          bool
	blockTime     time.Duration
	sepolia       bool
}

func newDev(e *env) *cobra.Command {
	f := &devFlags{}
	cmd := &cobra.Command{
		Use:   "dev [FILE]",
		Short: "Sell a file on this machine: chain, facilitator, dispatcher and a test buyer",
		Long: `Run everything on this machine: a development chain with a test USDC, the
facilitator, the dispatcher, and a buyer with test money that makes one call.
Then serve until Ctrl-C. Without a file it sells a list of US airports.`,
		Example: "  clawr dev data.csv\n  clawr dev --exit --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file := ""
			if len(args) == 1 {
				file = args[0]
			}
			if f.exit && !cmd.Flags().Changed("listen") {
				f.listen = "127.0.0.1:0" // nobody needs to find it
			}
			return e.dev(cmd.Context(), file, f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.listen, "listen", "127.0.0.1:4020", "loopback `address` that callers reach")
	fl.StringVar(&f.admin, "admin-listen", "127.0.0.1:0", "loopback `address` of control plane and facilitator")
	fl.StringVar(&f.price, "price", "0.001", "`USD` per call")
	fl.StringVar(&f.tenant, "tenant", "", "`slug` of the API (default: the file's name, if that is one)")
	fl.BoolVar(&f.exit, "exit", false, "end after the first paid call")
	fl.DurationVar(&f.blockTime, "block-time", 0, "time between blocks (0: mine at once)")
	fl.BoolVar(&f.sepolia, "like-base-sepolia", false, "a chain that the official client takes for Base Sepolia")
	f.deadline = 30 * time.Second
	return cmd
}

// testMoney is what the test buyer gets, and may spend in a day: 100 USDC.
const testMoney clawr.Amount = 100_000_000

// demo is what the first paid call showed.
type demo struct {
	URL         string       `json:"url"`
	Challenge   int          `json:"challenge"`
	Paid        int          `json:"paid"`
	Transaction string       `json:"transaction"`
	Rows        int64        `json:"rows"`
	PayTo       string       `json:"payTo"`
	EarnedUSD   clawr.Amount `json:"earnedUsd"`
}

// dev runs everything here. Bad input is found before anything is started.
func (e *env) dev(ctx context.Context, file string, f *devFlags) error {
	price, err := clawr.ParseAmount(f.price)
	if err == nil && (price <= 0 || price > clawr.MaxPrice) {
		err = &clawr.Error{Code: clawr.CodeBadAmount, Message: "a price is above 0", Fix: "--price 0.001"}
	}
	if err != nil {
		return withParam(err, "price")
	}
	in, size, slug, err := e.devInput(ctx, file, f.tenant)
	if err != nil {
		return err
	}
	defer in.Close()
	ln, err := listen(f.listen, "listen")
	if err != nil {
		return err
	}
	defer ln.Close()
	admin, err := listen(f.admin, "admin-listen")
	if err != nil {
		return err
	}
	defer admin.Close()
	for _, l := range []net.Listener{ln, admin} {
		if !isLoopback(l.Addr()) {
			return &clawr.Error{Code: clawr.CodeUsage, Param: "listen", Message: "clawr dev is for this machine alone", Fix: "listen on 127.0.0.1; clawr serve is for others"}
		}
	}
	unlock, err := lockDir(e.data)
	if err != nil {
		return err
	}
	stop := func() { unlock() }
	defer func() { stop() }()

	c, err := devchain.Open(devchain.Options{Dir: filepath.Join(e.data, chainDir), BlockTime: f.blockTime, LikeBaseSepolia: f.sepolia,
		Log: slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: e.level()}))})
	if err != nil {
		return err
	}
	defer c.Close()
	if f.sepolia {
		e.note("note: %s", sepoliaWarning)
	}
	head, _ := c.Head()
	e.note("✓ chain        %s, test USDC, block %d  %s", c.Network(), head, c.URL())
	set, payTo, err := e.devSettings(ctx, c, f)
	if err != nil {
		return err
	}
	n, err := openNode(ctx, e, set, unlock)
	if err != nil {
		return err
	}
	stop = n.close
	tenant, err := e.devDeploy(ctx, n, in, size, file, slug, price, payTo)
	if err != nil {
		return err
	}

	run, cancel := context.WithCancel(ctx)
	defer cancel()
	g, run := errgroup.WithContext(run)
	if err := n.start(run, g, ln, admin); err != nil {
		return err
	}
	e.note("✓ facilitator  http://%s/facilitator  (admin listener)", admin.Addr())
	e.note("✓ data         %s · %s rows · $%s/call", filepath.Base(nameOr(file)), thousands(tenant.Rows), tenant.Price)
	d, err := e.buyOnce(run, c, fmt.Sprintf("http://%s/t/%s/v1/records?limit=1", ln.Addr(), slug), payTo)
	if err != nil {
		cancel()
		return errors.Join(err, g.Wait())
	}
	d.Rows = tenant.Rows
	e.note("  API  http://%s/t/%s/v1/records", ln.Addr(), slug)
	if e.json || f.exit {
		if err := e.print(d, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, d.Transaction)
			return err
		}); err != nil {
			cancel()
			return errors.Join(err, g.Wait())
		}
	}
	if f.exit {
		cancel()
		return g.Wait()
	}
	e.note("  listening on %s; Ctrl-C ends it. Buy another: clawr pay 'http://%s/t/%s/v1/records?limit=1' --rpc-url %s --data %s", ln.Addr(), ln.Addr(), slug, c.URL(), e.data)
	return g.Wait()
}

func nameOr(file string) string {
	if file == "" {
		return sampleName
	}
	return file
}

// devInput opens what is to be sold and names it.
func (e *env) devInput(ctx context.Context, file, tenant string) (in io.ReadCloser, size int64, slug string, err error) {
	if slug = tenant; slug != "" {
		err = clawr.CheckSlug(slug)
	} else {
		slug, err = slugOf(nameOr(file))
	}
	if err != nil {
		return nil, 0, "", err
	}
	if file == "" {
		return io.NopCloser(bytes.NewReader(sample)), int64(len(sample)), slug, nil
	}
	in, size, err = e.openFile(ctx, file)
	return in, size, slug, err
}

// devDeploy publishes in, as `clawr deploy` would.
func (e *env) devDeploy(ctx context.Context, n *node, in io.Reader, size int64, file, slug string, price clawr.Amount, payTo string) (clawr.Tenant, error) {
	dir, _, err := e.stage(false)
	if err != nil {
		return clawr.Tenant{}, err
	}
	report, err := e.read(ctx, in, nameOr(file), size, dataset.Options{}, dir)
	if err != nil {
		return clawr.Tenant{}, err
	}
	t, err := n.controller().Deploy(ctx, slug, api.Deploy{Manifest: clawr.Manifest{Kind: clawr.KindDataset, Owner: "me", Directory: "APIs", Plan: clawr.PlanPro, Price: price, X402: true,
		PayTo: payTo, Content: report.ID, Rows: report.Schema.Rows}})
	return t.Tenant, err
}

// buyOnce shows what a call costs, pays for it with test money, and says what
// was earned by it.
func (e *env) buyOnce(ctx context.Context, c *devchain.Chain, url, payTo string) (*demo, error) {
	d := &demo{URL: url, PayTo: payTo}
	res, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, 1000))
	res.Body.Close()
	if err != nil {
		return nil, err
	}
	d.Challenge = res.StatusCode
	if d.Challenge != http.StatusPaymentRequired {
		return nil, fmt.Errorf("the unpaid call was answered %s: %s", res.Status, body)
	}
	required, err := x402.ParseRequired(res.Header.Get(x402.HeaderRequired))
	if err != nil {
		return nil, fmt.Errorf("the unpaid call was answered %d without a challenge: %w", res.StatusCode, err)
	}
	e.note("  unpaid call  %d %s · %s atomic USDC to %s", d.Challenge, required.Error, required.Accepts[0].Amount, required.Accepts[0].PayTo)

	client, err := c.Client(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	asset, to := common.HexToAddress(c.Asset().Address), common.HexToAddress(payTo)
	before, err := client.TokenBalance(ctx, asset, to)
	if err != nil {
		return nil, err
	}
	price, ok := x402.Units(required.Accepts[0].Amount)
	if !ok {
		return nil, fmt.Errorf("the price is %q", required.Accepts[0].Amount)
	}
	wallet, err := e.devWallet(ctx, c, price)
	if err != nil {
		return nil, err
	}
	most := clawr.AmountOf(price, c.Asset().Decimals)
	got, err := e.payWith(wallet, client).Do(ctx, buyer.Request{URL: url, Out: io.Discard, Max: &most, Confirm: true})
	if err != nil {
		return nil, err
	}
	d.Paid = got.Status
	if got.Payment != nil {
		d.Transaction = got.Payment.Transaction
	}
	after, err := client.TokenBalance(ctx, asset, to)
	if err != nil {
		return nil, err
	}
	d.EarnedUSD = clawr.AmountOf(new(big.Int).Sub(after, before).Int64(), c.Asset().Decimals)
	e.note("  paid call    %d · tx %s", d.Paid, d.Transaction)
	e.note("  earned       $%s by %s", d.EarnedUSD, payTo)
	return d, nil
}

// devWallet is the test buyer, with money for calls of that many units. It is
// the wallet of the data directory, so that clawr pay there has money too.
func (e *env) devWallet(ctx context.Context, c *devchain.Chain, price int64) (*buyer.Wallet, error) {
	dir := e.walletDir()
	w, err := buyer.OpenWallet(dir, "")
	if clawr.CodeOf(err) == buyer.CodeNoWallet {
		if w, err = buyer.CreateWallet(ctx, dir); err == nil {
			// It is test money: only a mistake in a loop needs stopping.
			limits := buyer.DefaultLimits()
			limits.PerDay = max(testMoney, 10*clawr.AmountOf(price, c.Asset().Decimals))
			err = w.SetLimits(limits)
		}
	}
	if err != nil {
		return nil, err
	}
	client, err := c.Client(ctx)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	who := common.HexToAddress(w.Address())
	have, err := client.TokenBalance(ctx, common.HexToAddress(c.Asset().Address), who)
	if err != nil {
		return nil, err
	}
	give := max(int64(testMoney), 10*price)
	if have.Cmp(big.NewInt(max(1_000_000, price))) < 0 {
		if err := c.Fund(ctx, who, nil, give); err != nil {
			return nil, err
		}
		e.note("✓ buyer        %s funded with %s test USDC", w.Address(), clawr.AmountOf(give, c.Asset().Decimals))
	}
	return w, nil
}

// Command clawr turns data into paid APIs: it publishes them, serves them,
// takes the payments, settles them, and buys from others.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/buyer"
	"github.com/402claw/clawr/cloudflare"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	e := &env{args: os.Args[1:], stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv}
	os.Exit(run(ctx, e))
}

// commands is the command table. Each constructor takes the environment that
// it reads from and writes to, so that a test can be the environment.
var commands = []func(*env) *cobra.Command{
	newDev, newServe, newDeploy, newExplain,
	newList, newShow, newPause, newResume, newRollback, newRemove, newExportDirectory,
	newOwner, newToken, newEvents, newStats, newPayments, newDB,
	newDeployDispatcher, newDeployTenant, newRollbackDispatcher, newCloudflareStatus,
	newPay, newWallet, newChannels, newFacilitator, newChain, newVersion,
}

// run executes one command line and returns the process's exit code.
func run(ctx context.Context, e *env) int {
	root := newRoot(e)
	root.SetArgs(joinBools(root, e.args))
	root.SetContext(ctx)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	return e.fail(cmd, err)
}

func newRoot(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:   "clawr",
		Short: "Turn data into paid APIs",
		Long: `clawr turns data into paid APIs: one command publishes, every call is paid over
HTTP 402 (x402 v2, USDC).

  clawr dev data.csv                 everything on this machine, with a test buyer
  clawr deploy data.csv --tenant acme --price 0.001 --x402
  clawr pay https://…/v1/records     buy one answer

Every flag can be given as CLAWR_NAME in the environment.`,
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return e.bind(cmd) },
	}
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	e.globalFlags(root.PersistentFlags())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &clawr.Error{Code: clawr.CodeUsage, Message: err.Error(), Fix: cmd.CommandPath() + " --help"}
	})
	for _, c := range commands {
		root.AddCommand(c(e))
	}
	addProfile(root, "serve")
	addProfile(root, "facilitator", "serve")
	return root
}

// joinBools joins "--x402 true" into "--x402=true" for boolean flags, which
// pflag would otherwise read as a flag and an argument.
func joinBools(root *cobra.Command, args []string) []string {
	cmd, _, err := root.Find(args)
	if err != nil {
		return args
	}
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			return append(out, args[i:]...)
		}
		if name, ok := strings.CutPrefix(a, "--"); ok && i+1 < len(args) && isBool(cmd, name) &&
			slices.Contains([]string{"true", "false"}, args[i+1]) {
			a += "=" + args[i+1]
			i++
		}
		out = append(out, a)
	}
	return out
}

func isBool(cmd *cobra.Command, name string) bool {
	f := cmd.Flags().Lookup(name)
	if f == nil {
		f = cmd.InheritedFlags().Lookup(name)
	}
	return f != nil && f.Value.Type() == "bool"
}

// Exit codes, from product.md.
const (
	exitFailure  = 1
	exitUsage    = 2
	exitConnect  = 3
	exitAuth     = 4
	exitNotFound = 5
	exitConflict = 6
	exitRefused  = 7
	exitRejected = 8
	exitUnknown  = 9
)

func exitCode(err error) int {
	switch clawr.CodeOf(err) {
	case clawr.CodeUsage, clawr.CodeBadAmount, clawr.CodeBadSlug, clawr.CodeBadHost, clawr.CodeBadAddress,
		clawr.CodeBadNetwork, clawr.CodeBadPlan, clawr.CodeBadRequest, clawr.CodeBadWindow, clawr.CodePayToMissing:
		return exitUsage
	case clawr.CodeUnreachable, clawr.CodeFacilitatorDown:
		return exitConnect
	case clawr.CodeTokenMissing, clawr.CodeScopeMissing, cloudflare.CodeAuth:
		return exitAuth
	case clawr.CodeNotFound, clawr.CodeTenantNotFound, clawr.CodeRecordNotFound, cloudflare.CodeAccount, cloudflare.CodeNamespace, cloudflare.CodeMissing:
		return exitNotFound
	case clawr.CodeHostTaken, clawr.CodeConflict, clawr.CodeLedgerHome, clawr.CodeLocked, buyer.CodeChannel, cloudflare.CodeTaken:
		return exitConflict
	case clawr.CodeQuoteOverLimit, buyer.CodeQuoteRefused:
		return exitRefused
	case clawr.CodePaymentRejected:
		return exitRejected
	case clawr.CodePaymentUnknown:
		return exitUnknown
	}
	return exitFailure
}

// fail says what went wrong on stderr (with --json as one object on stdout)
// and returns the exit code.
func (e *env) fail(cmd *cobra.Command, err error) int {
	ce, ok := errors.AsType[*clawr.Error](err)
	if !ok {
		ce = &clawr.Error{Code: clawr.CodeInternal, Message: err.Error()}
		if strings.HasPrefix(err.Error(), "unknown command") || isArgsError(err) {
			ce = &clawr.Error{Code: clawr.CodeUsage, Message: err.Error(), Fix: cmd.CommandPath() + " --help"}
		}
	}
	message := ce.Message
	if ce.Err != nil {
		message = strings.TrimPrefix(message+": "+ce.Err.Error(), ": ")
	}
	if e.json {
		b, _ := json.Marshal(map[string]any{"ok": false, "error": ce.Code, "message": message, "fix": ce.Fix, "param": ce.Param})
		fmt.Fprintln(e.stdout, string(b))
	} else {
		fmt.Fprintf(e.stderr, "error: %s: %s\n", ce.Code, message)
		if ce.Fix != "" {
			fmt.Fprintf(e.stderr, "  fix: %s\n", ce.Fix)
		}
	}
	return exitCode(ce)
}

// isArgsError recognises cobra's own complaints about positional arguments.
func isArgsError(err error) bool {
	s := err.Error()
	return strings.Contains(s, "arg(s)") || strings.HasPrefix(s, "required flag(s)")
}

// env is the outside world, as far as commands may see it, and the values of
// the global flags.
type env struct {
	args           []string
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string

	json, quiet, verbose, noColor, noInput, yes bool
	data, server, tokenFile                     string
}

func (e *env) globalFlags(f *pflag.FlagSet) {
	f.BoolVar(&e.json, "json", false, "print the result as JSON on stdout")
	f.BoolVarP(&e.quiet, "quiet", "q", false, "no notes or progress on stderr")
	f.BoolVarP(&e.verbose, "verbose", "v", false, "say more on stderr")
	f.BoolVar(&e.noColor, "no-color", false, "no colors (also NO_COLOR)")
	f.BoolVar(&e.noInput, "no-input", false, "never prompt")
	f.BoolVarP(&e.yes, "yes", "y", false, "answer yes to questions")
	f.StringVar(&e.data, "data", "", "data `directory` (default $XDG_DATA_HOME/clawr or ~/.local/share/clawr)")
	f.StringVar(&e.server, "server", "", "control plane `URL` to act on instead of the data directory")
	f.StringVar(&e.tokenFile, "token-file", "", "`file` with the token for --server")
}

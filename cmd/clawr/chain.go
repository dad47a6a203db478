package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/chain/devchain"
)

// chainDir is where a data directory keeps its development chain.
const chainDir = "chain"

// sepoliaWarning is said whenever a chain looks like the real testnet.
const sepoliaWarning = "this chain looks like Base Sepolia (eip155:84532): signatures made here are valid there, so only keys made for this data directory are used, and it listens on loopback alone"

func newChain(e *env) *cobra.Command {
	cmd := &cobra.Command{Use: "chain", Short: "The development chain: a whole EVM chain with a test USDC and a faucet"}
	cmd.AddCommand(newChainServe(e), newChainStatus(e), newChainFaucet(e))
	return cmd
}

func newChainServe(e *env) *cobra.Command {
	opt := devchain.Options{}
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the development chain of the data directory", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opt.BlockTime < 0 {
				return &clawr.Error{Code: clawr.CodeUsage, Param: "block-time", Message: "--block-time is negative", Fix: "--block-time 2s, or 0 to mine at once"}
			}
			opt.Dir = filepath.Join(e.data, chainDir)
			opt.Log = slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: e.level()}))
			c, err := devchain.Open(opt)
			if err != nil {
				return err
			}
			defer c.Close()
			if opt.LikeBaseSepolia {
				e.note("note: %s", sepoliaWarning)
			}
			if err := e.print(chainInfo(c), func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s\n", c.URL())
				return err
			}); err != nil {
				return err
			}
			e.note("chain    %s · token %s", c.Network(), c.Asset().Address)
			e.note("listening on %s", c.URL()[len("http://"):])
			return c.Serve(cmd.Context())
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&opt.Listen, "listen", "127.0.0.1:8545", "`address` of the JSON-RPC")
	fl.DurationVar(&opt.BlockTime, "block-time", 0, "time between blocks (0: mine at once)")
	fl.Int64Var(&opt.ChainID, "chain-id", 0, "chain id (default 31337)")
	fl.BoolVar(&opt.LikeBaseSepolia, "like-base-sepolia", false, "chain id 84532 with the token at Base Sepolia's USDC address")
	return cmd
}

// chainInfo is what somebody who wants to use c needs to know.
func chainInfo(c *devchain.Chain) map[string]any {
	return map[string]any{"rpcUrl": c.URL(), "network": c.Network(), "asset": c.Asset().Address, "chainId": c.ChainID()}
}

func newChainStatus(e *env) *cobra.Command {
	var url string
	cmd := &cobra.Command{
		Use: "status", Short: "Say where a chain is", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := chain.Dial(cmd.Context(), url)
			if err != nil {
				return err
			}
			defer c.Close()
			head, err := c.Head(cmd.Context())
			if err != nil {
				return err
			}
			ahead := time.Until(head.Time).Round(time.Second)
			return e.print(map[string]any{"network": c.Network(), "block": head.Number, "time": head.Time.UTC().Format(time.RFC3339), "aheadSeconds": int64(ahead / time.Second)},
				func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "%s  block %d  %s\n", c.Network(), head.Number, head.Time.UTC().Format(time.RFC3339))
					return err
				})
		},
	}
	cmd.Flags().StringVar(&url, "rpc-url", "http://127.0.0.1:8545", "`URL` of the chain")
	return cmd
}

func newChainFaucet(e *env) *cobra.Command {
	var url, amount string
	cmd := &cobra.Command{
		Use: "faucet ADDRESS", Short: "Give test USDC and gas money to an address on a development chain", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := clawr.CheckAddress(args[0])
			if err != nil {
				return err
			}
			usd, err := clawr.ParseAmount(amount)
			if err != nil {
				return withParam(err, "amount")
			}
			units, err := usd.Atomic(6)
			if err != nil {
				return withParam(err, "amount")
			}
			if err := fund(cmd.Context(), url, to, units); err != nil {
				return err
			}
			return e.print(map[string]any{"ok": true, "to": to, "amountUsd": usd}, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "gave %s test USDC and 1 test ETH to %s\n", usd, to)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&url, "rpc-url", "http://127.0.0.1:8545", "`URL` of the chain")
	cmd.Flags().StringVar(&amount, "amount", "100", "test `USDC` to give")
	return cmd
}

// fund gives units of the token and 1 ETH to an address, as the chain's faucet.
func fund(ctx context.Context, url, to string, units int64) error {
	return devchain.Fund(ctx, url, common.HexToAddress(to), big.NewInt(1e18), units)
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/params"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/blob"
	"github.com/402claw/clawr/chain"
	"github.com/402claw/clawr/chain/devchain"
	"github.com/402claw/clawr/ledger"
)

// settings are what a serving node knows of the world: the chain that it is
// paid on, who settles, and where it is reached.
type settings struct {
	chain       *chain.Client // whichever provider answers
	quorum      *chain.Quorum // what decides about money; nil: chain alone
	asset       clawr.Asset
	keys        []*chain.Key // settle here, the first one first; none: the remote facilitators do
	remotes     []string
	apiKey      string // for the remote facilitators
	payTo       string // where neither tenant nor owner has one; may be empty
	databaseURL string
	repair      bool       // take a database for right that is not as it was left
	blobs       blob.Store // the dataset files of all nodes; nil: the data directory has them
	publicURL   string
	openReports bool // analytics need no token
	exposure    ledger.Exposure
	deadline    time.Duration
	inFlight    int64 // paid calls in work at a time; 0: defaultInFlight
}

// gasOfTransfer is what the signer must be able to pay for before a node
// starts: one transfer at the fees of the moment.
const gasOfTransfer = 150_000

// settings checks the flags against each other and against the chain. It
// touches nothing on this machine.
func (e *env) settings(ctx context.Context, f *serveFlags, log *slog.Logger) (*settings, error) {
	s := &settings{databaseURL: f.databaseURL, publicURL: strings.TrimSuffix(f.publicURL, "/"), openReports: f.publicAnalytics, deadline: f.deadline}
	need := func(flag, value, example string) error {
		if value != "" {
			return nil
		}
		return &clawr.Error{Code: clawr.CodeUsage, Param: flag, Message: "--" + flag + " is missing", Fix: "--" + flag + " " + example + " (clawr dev needs none of this)"}
	}
	for _, n := range [][3]string{{"network", f.network, "eip155:84532"}, {"asset", f.asset, "0x036CbD53842c5426634e7929541eC2318f3dCF7e"}, {"rpc-url", strings.Join(f.rpc, ""), "https://sepolia.base.org"}} {
		if err := need(n[0], n[1], n[2]); err != nil {
			return nil, err
		}
	}
	if err := clawr.CheckNetwork(f.network); err != nil {
		return nil, err
	}
	asset, err := clawr.CheckAddress(f.asset)
	if err != nil {
		return nil, withParam(err, "asset")
	}
	if f.payTo != "" {
		if s.payTo, err = clawr.CheckAddress(f.payTo); err != nil {
			return nil, withParam(err, "pay-to")
		}
	}
	if s.inFlight = f.inFlight; s.inFlight < 0 {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "max-in-flight", Message: "--max-in-flight is below 0", Fix: "--max-in-flight 4096"}
	}
	if f.deadline < 2*time.Second || f.deadline > 10*time.Minute {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "deadline", Message: "--deadline is not between 2s and 10m", Fix: "--deadline 30s"}
	}
	for _, u := range f.rpc {
		if err := checkURL("rpc-url", u); err != nil {
			return nil, err
		}
	}
	if err := checkURL("public-url", f.publicURL); err != nil {
		return nil, err
	}
	if err := e.settler(f, s); err != nil {
		return nil, err
	}
	if f.blobURL != "" {
		if s.blobs, err = blob.Open(f.blobURL, e.getenv); err != nil {
			return nil, err
		}
		if err := blob.Check(ctx, s.blobs); err != nil {
			return nil, err
		}
	}
	if s.chain, err = chain.DialAny(ctx, f.rpc); err != nil {
		return nil, err
	}
	if err := s.chain.Expect(f.network); err != nil {
		return nil, err
	}
	if s.quorum, err = chain.DialQuorum(ctx, f.network, f.rpc); err != nil {
		return nil, err
	}
	if s.asset, err = s.quorum.Asset(ctx, common.HexToAddress(asset)); err != nil {
		return nil, err
	}
	if err := anyFunded(ctx, s.chain, s.keys); err != nil {
		return nil, err
	}
	s.exposure, err = f.exposure(s.asset.Decimals)
	return s, err
}

// exposure reads the caps of async in the token's units.
func (f *serveFlags) exposure(decimals int) (x ledger.Exposure, err error) {
	for _, c := range []struct {
		flag, usd string
		to        *int64
	}{{"async-payer-cap", f.asyncPayer, &x.Payer}, {"async-total-cap", f.asyncTotal, &x.Total}, {"async-credit", f.asyncCredit, &x.Credit}} {
		if c.usd == "" { // no server that sells
			continue
		}
		a, err := clawr.ParseAmount(c.usd)
		if err != nil {
			return x, withParam(err, c.flag)
		}
		if a == 0 {
			continue
		}
		if *c.to, err = a.Atomic(decimals); err != nil {
			return x, withParam(err, c.flag)
		}
	}
	if x.Credit > x.Payer || x.Payer > x.Total {
		return x, &clawr.Error{Code: clawr.CodeUsage, Param: "async-payer-cap", Message: "the async caps are in the wrong order: credit, one payer's, all payers'",
			Fix: "--async-credit 0 --async-payer-cap " + defaultAsyncPayer + " --async-total-cap " + defaultAsyncTotal}
	}
	return x, nil
}

// settler finds who settles: this process with its key, or others.
func (e *env) settler(f *serveFlags, s *settings) error {
	for _, u := range f.facilitators {
		if err := checkURL("facilitator-url", u); err != nil {
			return err
		}
		s.remotes = append(s.remotes, strings.TrimSuffix(u, "/"))
	}
	if len(s.remotes) > 0 {
		s.apiKey = e.getenv("CLAWR_FACILITATOR_API_KEY")
		return nil
	}
	var err error
	s.keys, err = e.facilitatorKeys(f.keyFiles)
	return err
}

// facilitatorKeys are the keys that settle: of the files, or of the
// environment, with commas between them.
func (e *env) facilitatorKeys(files []string) ([]*chain.Key, error) {
	if len(files) == 0 {
		files = []string{""}
	}
	var keys []*chain.Key
	for _, file := range files {
		secret, err := e.secretFromEnvOrFile("CLAWR_FACILITATOR_KEY", file, "facilitator-key-file")
		if err != nil {
			return nil, err
		}
		for _, one := range strings.FieldsFunc(secret, func(r rune) bool { return r == ',' || unicode.IsSpace(r) }) {
			k, err := chain.ParseKey(one)
			if err != nil {
				return nil, err
			}
			if slices.ContainsFunc(keys, func(other *chain.Key) bool { return other.Address() == k.Address() }) {
				return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "facilitator-key-file", Message: "the key of " + k.Address().Hex() + " is given twice", Fix: "give each key once"}
			}
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Param: "facilitator-key-file", Message: "nobody settles: there is neither a facilitator URL nor a key",
			Fix: "set CLAWR_FACILITATOR_KEY to a funded key, or give --facilitator-url URL"}
	}
	return keys, nil
}

// anyFunded refuses keys of which none can pay for a settlement. One that
// cannot may have transactions to see through.
func anyFunded(ctx context.Context, c *chain.Client, keys []*chain.Key) (err error) {
	for _, k := range keys {
		if err = funded(ctx, c, k); err == nil {
			return nil
		}
	}
	return err
}

// funded refuses a key that cannot pay for a settlement.
func funded(ctx context.Context, c *chain.Client, key *chain.Key) error {
	fees, err := c.Fees(ctx)
	if err != nil {
		return err
	}
	return c.NeedFunds(ctx, key.Address(), new(big.Int).Mul(fees.Max, big.NewInt(gasOfTransfer)))
}

func checkURL(flag, v string) error {
	if v == "" {
		return nil
	}
	u, err := url.Parse(v)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return &clawr.Error{Code: clawr.CodeUsage, Param: flag, Message: fmt.Sprintf("--%s %q is not an http or https URL", flag, v), Fix: "--" + flag + " https://host"}
	}
	return nil
}

// devSettings are those of clawr dev: everything is here, with keys that were
// made for this data directory.
func (e *env) devSettings(ctx context.Context, c *devchain.Chain, f *devFlags) (*settings, string, error) {
	s := &settings{asset: c.Asset(), deadline: f.deadline, openReports: true}
	var err error
	if s.exposure, err = (&serveFlags{asyncPayer: defaultAsyncPayer, asyncTotal: defaultAsyncTotal}).exposure(s.asset.Decimals); err != nil {
		return nil, "", err
	}
	if s.chain, err = c.Client(ctx); err != nil {
		return nil, "", err
	}
	key, err := c.Key("facilitator")
	if err != nil {
		return nil, "", err
	}
	s.keys = []*chain.Key{key}
	if err := funded(ctx, s.chain, key); clawr.CodeOf(err) == clawr.CodeUnfunded {
		err = c.Fund(ctx, key.Address(), new(big.Int).Mul(big.NewInt(10), big.NewInt(params.Ether)), 0)
		if err != nil {
			return nil, "", err
		}
	} else if err != nil {
		return nil, "", err
	}
	seller, err := c.Key("seller")
	if err != nil {
		return nil, "", err
	}
	s.payTo = strings.ToLower(seller.Address().Hex())
	return s, s.payTo, nil
}

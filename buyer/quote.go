package buyer

import (
	"cmp"
	"context"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/x402"
)

// Quote is one way to pay for a call that this wallet takes.
type Quote struct {
	Amount      clawr.Amount // micro-USD, rounded up
	Atomic      int64        // the token's units: what is signed
	Asset       clawr.Asset
	PayTo       string        // lower case
	Lifetime    time.Duration // of the signature: what the server allows, at most an hour
	Description string        // the server's, cleaned
	// Channel is the id of the payment channel that the call is paid from by a
	// voucher; empty for an exact payment.
	Channel string

	url      *url.URL // where it is for
	offer    x402.Requirements
	required *x402.PaymentRequired
	config   x402.ChannelConfig // of Channel
	hint     int64              // what the server would have deposited first, in units; 0: it does not say
}

// Terms are what a Client pays in, beside what everybody knows.
type Terms struct {
	// Networks, if any, are the only ones that are paid on (CAIP-2).
	Networks []string
	// Assets, if any, are the addresses of the only tokens that are paid in.
	// They count as dollars, known or not; how many decimals an unknown one has
	// comes from the chain.
	Assets []string
	// Scheme is the only one that is paid by: exact, or batch-settlement, for
	// which channels are opened. Empty pays from channels that are open, and
	// else exactly: no money is locked up unasked.
	Scheme string
}

// readChallenge takes the challenge out of a 402: the header of version 2, or
// else the body of version 1.
func readChallenge(headers []string, body []byte) (*x402.PaymentRequired, error) {
	var req *x402.PaymentRequired
	var err error
	switch len(headers) {
	case 0:
		req, err = x402.ParseRequiredBody(body)
	case 1:
		req, err = x402.ParseRequired(headers[0])
	default:
		err = fmt.Errorf("there are %d PAYMENT-REQUIRED headers", len(headers))
	}
	if err != nil {
		return nil, &clawr.Error{Code: CodeBadQuote, Message: "the server asks for a payment, but not in a way that can be read: " + clean(err.Error(), 200),
			Fix: "tell whoever runs the API; nothing was signed"}
	}
	return req, nil
}

// choose takes the first offer that c may pay, in the server's order, those
// that are paid from a channel before the others. host is what the server was
// called.
func (c *Client) choose(ctx context.Context, req *x402.PaymentRequired, u *url.URL, host string) (*Quote, error) {
	if err := sameOrigin(req.Resource.URL, u, host); err != nil {
		return nil, err
	}
	var why []string
	var first *Quote
	for i := range req.Accepts {
		q, no, err := c.consider(ctx, &req.Accepts[i])
		if err != nil {
			return nil, err
		}
		if no == "" && q.offer.Scheme == x402.SchemeChannel {
			no, err = c.channelOffer(q, req.Version)
			if err != nil {
				return nil, err
			}
		}
		if no == "" {
			q.required, q.url = req, u
			q.Description = clean(req.Resource.Description, 200)
			if q.Channel != "" {
				return q, nil
			}
			first = cmp.Or(first, q)
		}
		if no = clean(no, 200); no != "" && len(why) < 3 && !slices.Contains(why, no) {
			why = append(why, no)
		}
	}
	if first != nil {
		return first, nil
	}
	return nil, &clawr.Error{Code: CodeQuoteRefused, Param: "asset",
		Message: "the server offers no way to pay that this wallet takes: " + strings.Join(why, "; ") + ". Nothing was signed.",
		Fix:     "--network and --asset say what may be paid in, with --rpc-url of that network"}
}

// consider is a quote for o, or why it cannot be paid. err is for what is not
// o's fault.
func (c *Client) consider(ctx context.Context, o *x402.Requirements) (q *Quote, no string, err error) {
	_, evm := x402.ChainID(o.Network)
	method := string(o.Extra.Rest.Find("assetTransferMethod"))
	switch {
	case o.Scheme != x402.SchemeExact && o.Scheme != x402.SchemeChannel:
		return nil, fmt.Sprintf("scheme %q is not exact", clean(o.Scheme, 20)), nil
	case c.Scheme != "" && o.Scheme != c.Scheme:
		return nil, fmt.Sprintf("scheme %q is not --scheme %s", o.Scheme, c.Scheme), nil
	case !evm:
		return nil, fmt.Sprintf("network %q is not eip155:N", clean(o.Network, 40)), nil
	case len(c.Networks) > 0 && !slices.Contains(c.Networks, o.Network):
		return nil, o.Network + " is not --network", nil
	case c.Chain != nil && o.Network != c.Chain.Network():
		return nil, fmt.Sprintf("%s is not %s, the network of --rpc-url", o.Network, c.Chain.Network()), nil
	case method != "" && method != `"eip3009"`:
		return nil, "transfer method " + clean(method, 20) + " is not eip3009", nil
	case !isAddress(o.Asset) || !isAddress(o.PayTo) || common.HexToAddress(o.PayTo) == (common.Address{}):
		return nil, "asset or payTo is not an address", nil
	case strings.EqualFold(o.PayTo, o.Asset):
		return nil, "payTo is the token itself", nil
	}
	units, ok := x402.Units(o.Amount)
	if !ok {
		return nil, fmt.Sprintf("amount %q is not a positive whole number below 2^63", clean(o.Amount, 30)), nil
	}
	asset, no, err := c.asset(ctx, o)
	if no != "" || err != nil {
		return nil, no, err
	}
	usd, ok := ceil(units, asset.Decimals)
	if !ok {
		return nil, fmt.Sprintf("%d units with %d decimals are more than %s", units, asset.Decimals, Dollars(clawr.MaxPrice)), nil
	}
	life := min(time.Duration(min(o.MaxTimeoutSeconds, int64(maxLifetime/time.Second)))*time.Second, maxLifetime)
	return &Quote{Amount: usd, Atomic: units, Asset: asset, PayTo: strings.ToLower(o.PayTo), Lifetime: life, offer: *o}, "", nil
}

// asset is the token that o is paid in, if it may be, with the domain that is
// signed for.
func (c *Client) asset(ctx context.Context, o *x402.Requirements) (a clawr.Asset, no string, err error) {
	address := strings.ToLower(o.Asset)
	a, isKnown := KnownAsset(o.Network, address)
	if !c.allows(o.Network, address, isKnown) {
		return a, fmt.Sprintf("the token %s on %s is not one that this wallet knows as dollars", address, o.Network), nil
	}
	switch {
	case isKnown:
	case c.Chain != nil:
		if a, err = c.Chain.Asset(ctx, address); err != nil {
			return a, "", err
		}
		a.Network, a.Address = o.Network, address
	case development(o.Network):
		a = clawr.Asset{Network: o.Network, Address: address, Name: o.Extra.Name, Version: o.Extra.Version, Decimals: 6}
	default:
		return a, fmt.Sprintf("how many decimals the token %s has is not known without --rpc-url", address), nil
	}
	if a.Decimals < 0 || a.Decimals > 36 {
		return a, fmt.Sprintf("the token %s has %d decimals", address, a.Decimals), nil
	}
	if o.Extra.Name != "" && o.Extra.Name != a.Name || o.Extra.Version != "" && o.Extra.Version != a.Version {
		return a, fmt.Sprintf("the token %s is %q version %q, not %q version %q", address, clean(a.Name, 40), clean(a.Version, 10), clean(o.Extra.Name, 40), clean(o.Extra.Version, 10)), nil
	}
	if a.Name == "" || a.Version == "" {
		return a, "the token's EIP-712 name and version are not given", nil
	}
	return a, "", nil
}

// allows reports whether a token may be paid in at all.
func (c *Client) allows(network, address string, isKnown bool) bool {
	if len(c.Assets) == 0 {
		return isKnown || development(network)
	}
	return slices.ContainsFunc(c.Assets, func(a string) bool { return strings.EqualFold(a, address) })
}

// sameOrigin refuses a challenge for something on another server: its price
// would buy whoever passes it on what they asked for. http and https of one
// host are one origin here, since a server behind a proxy that ends TLS often
// does not know that it is there.
func sameOrigin(resource string, u *url.URL, host string) error {
	r, err := url.Parse(resource)
	if err == nil && (r.Scheme == "http" || r.Scheme == "https") && authority(r.Scheme, r.Host) == authority(u.Scheme, host) {
		return nil
	}
	return &clawr.Error{Code: CodeQuoteRefused, Param: "url",
		Message: fmt.Sprintf("%s asks to be paid for something elsewhere: %s. Nothing was signed.", host, clean(resource, 100)),
		Fix:     "buy from that server itself, if you trust it"}
}

// authority is host without the port that goes without saying.
func authority(scheme, host string) string {
	host = strings.ToLower(host)
	for _, name := range []string{"localhost", "127.0.0.1", "[::1]"} {
		if rest, ok := strings.CutPrefix(host, name); ok && (rest == "" || rest[0] == ':') {
			host = "localhost" + rest // this machine, whatever it is called
		}
	}
	switch scheme {
	case "http":
		host = strings.TrimSuffix(host, ":80")
	case "https":
		host = strings.TrimSuffix(host, ":443")
	}
	return host
}

// ceil is units of a token in micro-USD, rounded up, so that a price below the
// smallest amount still counts; ok is false above the largest price.
func ceil(units int64, decimals int) (usd clawr.Amount, ok bool) {
	n := big.NewInt(units)
	n.Mul(n, big.NewInt(1_000_000))
	one := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(decimals)), nil)
	n.Add(n, one).Sub(n, big.NewInt(1)).Quo(n, one)
	if !n.IsInt64() || n.Int64() > int64(clawr.MaxPrice) {
		return 0, false
	}
	return clawr.Amount(n.Int64()), true
}

func isAddress(s string) bool { return strings.HasPrefix(s, "0x") && common.IsHexAddress(s) }

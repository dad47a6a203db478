package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"syscall"
	"time"

	"github.com/402claw/clawr"
)

// The codes of addresses that a publisher may not have clawr ask.
const (
	CodeAddressNotPublic clawr.Code = "address_not_public"
	CodeBadURL           clawr.Code = "invalid_url"
)

// Guard makes HTTP clients that reach only public addresses, whatever a
// stranger's URL, its redirects or his name server say. The address is checked
// when a connection is made, after the name was resolved for it, so there is no
// second look-up that could say something else. The zero value is useful.
type Guard struct {
	// Allow are networks that may be reached although they are not public.
	Allow []netip.Prefix
	// Resolver, if set, resolves names in place of the system's.
	Resolver *net.Resolver
}

// notPublic are the special-purpose networks of IANA's registries that
// netip.Addr has no method for.
var notPublic = [...]netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.31.196.0/24"), netip.MustParsePrefix("192.52.193.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"), netip.MustParsePrefix("192.175.48.0/24"), netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("2001::/23"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("2620:4f:8000::/48"), netip.MustParsePrefix("3fff::/20"),
}

var unicast6 = netip.MustParsePrefix("2000::/3") // all that IANA has given out

// Public reports whether an address is one of the public Internet's.
func Public(a netip.Addr) bool {
	if a.Zone() != "" {
		return false
	}
	if a = a.Unmap(); !a.IsGlobalUnicast() || a.IsPrivate() || a.Is6() && !unicast6.Contains(a) {
		return false
	}
	for _, p := range notPublic {
		if p.Contains(a) {
			return false
		}
	}
	return true
}

// check refuses a connection to an address that is not public.
func (g *Guard) check(network, address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || network != "tcp4" && network != "tcp6" {
		return notAllowed(address)
	}
	if Public(ap.Addr()) {
		return nil
	}
	for _, p := range g.Allow {
		if p.Contains(ap.Addr().Unmap()) {
			return nil
		}
	}
	return notAllowed(address)
}

func notAllowed(address string) error {
	return &clawr.Error{Code: CodeAddressNotPublic, Message: address + " is not a public address", Fix: "give a URL on the public Internet, or download the file and deploy that"}
}

// Transport is for clients that must not reach anything private. It asks no
// proxy, as that would make the connections in its place.
func (g *Guard) Transport() *http.Transport {
	d := &net.Dialer{Timeout: 10 * time.Second, Resolver: g.Resolver, ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
		return g.check(network, address)
	}}
	return &http.Transport{DialContext: d.DialContext, ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second, MaxIdleConns: 100, IdleConnTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10}
}

// maxRedirects is how often a URL may point to another.
const maxRedirects = 5

// Client follows a few redirects, each as guarded as the first address.
func (g *Guard) Client() *http.Client {
	return &http.Client{Transport: g.Transport(), CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return &clawr.Error{Code: CodeBadURL, Message: fmt.Sprintf("more than %d redirects", maxRedirects), Fix: "give the last address"}
		}
		if via[0].URL.Scheme == "https" && r.URL.Scheme != "https" {
			return &clawr.Error{Code: CodeBadURL, Message: "the redirect leaves https", Fix: "give the last address"}
		}
		return checkURL(r.URL)
	}}
}

func checkURL(u *url.URL) error {
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return &clawr.Error{Code: CodeBadURL, Message: fmt.Sprintf("%q is not a scheme that can be fetched", u.Scheme), Fix: "use an https:// URL"}
	case u.Hostname() == "":
		return &clawr.Error{Code: CodeBadURL, Message: "the URL has no host", Fix: "use an https:// URL"}
	case u.User != nil:
		return &clawr.Error{Code: CodeBadURL, Message: "the URL contains a user name", Fix: "download the file and deploy that"}
	}
	return nil
}

// Fetch opens the file behind a URL, for dataset.Ingest; name is the last part
// of its path. The caller closes body.
func (g *Guard) Fetch(ctx context.Context, target string) (body io.ReadCloser, name string, err error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, "", &clawr.Error{Code: CodeBadURL, Message: "the URL cannot be read", Fix: "use an https:// URL", Err: err}
	}
	if err := checkURL(u); err != nil {
		return nil, "", err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, "", &clawr.Error{Code: CodeBadURL, Message: "the URL cannot be used", Fix: "use an https:// URL", Err: err}
	}
	client := g.Client()
	resp, err := client.Do(r)
	if err != nil {
		client.CloseIdleConnections()
		if e, ok := errors.AsType[*clawr.Error](err); ok {
			return nil, "", e
		}
		return nil, "", &clawr.Error{Code: clawr.CodeUnreachable, Message: "the URL cannot be fetched", Fix: "check the address and that it answers", Err: err}
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		client.CloseIdleConnections()
		return nil, "", &clawr.Error{Code: clawr.CodeUnreachable, Message: "the URL answers " + resp.Status, Fix: "give the address of the file itself"}
	}
	return &fetched{resp.Body, client}, path.Base(resp.Request.URL.Path), nil
}

// fetched lets go of the connection with the body.
type fetched struct {
	io.ReadCloser
	client *http.Client
}

func (f *fetched) Close() error {
	err := f.ReadCloser.Close()
	f.client.CloseIdleConnections()
	return err
}

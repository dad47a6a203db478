package chain

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/402claw/clawr"
	"github.com/ethereum/go-ethereum/rpc"
)

// DialAny is a client of whichever of several providers answers: the first, and
// when that one fails the next. It is for what decides nothing about money.
func DialAny(ctx context.Context, urls []string) (*Client, error) {
	if len(urls) == 1 {
		return Dial(ctx, urls[0])
	}
	f := &failover{next: newTransport()}
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			return nil, &clawr.Error{Code: clawr.CodeUsage, Message: "the RPC URL is not an http or https URL", Param: "rpc-url",
				Fix: "give one such as https://sepolia.base.org or http://127.0.0.1:8545"}
		}
		f.urls = append(f.urls, u)
	}
	c, err := rpc.DialOptions(ctx, urls[0], rpc.WithHTTPClient(&http.Client{Transport: f}))
	if err != nil {
		return nil, err
	}
	return New(ctx, c, urls[0])
}

// failover sends each request to the provider that answered last, and to the
// others if that one does not answer.
type failover struct {
	next  http.RoundTripper
	urls  []*url.URL
	which atomic.Int64
}

// tryTime is how long one provider may take while there are others. It is
// longer than eth_sendRawTransactionSync's own limit on most chains.
const tryTime = 4 * time.Second

func (f *failover) RoundTrip(r *http.Request) (*http.Response, error) {
	first := f.which.Load()
	for i := range f.urls {
		at := (int(first) + i) % len(f.urls)
		body := r.Body
		if r.GetBody != nil {
			var err error
			if body, err = r.GetBody(); err != nil {
				return nil, err
			}
		}
		last := i == len(f.urls)-1
		ctx, cancel := r.Context(), context.CancelFunc(func() {})
		if !last {
			ctx, cancel = context.WithTimeout(ctx, tryTime)
		}
		one := r.Clone(ctx)
		one.URL, one.Host, one.Body = f.urls[at], f.urls[at].Host, body
		res, err := f.next.RoundTrip(one)
		if err == nil && res.StatusCode != http.StatusTooManyRequests && res.StatusCode < 500 || last || r.Context().Err() != nil {
			if err != nil {
				cancel()
				return nil, err
			}
			f.which.Store(int64(at))
			res.Body = &endingBody{res.Body, cancel}
			return res, nil
		}
		if err == nil {
			res.Body.Close()
		}
		cancel()
	}
	panic("chain: failover without a provider")
}

// endingBody ends the context of its request when it is closed.
type endingBody struct {
	io.ReadCloser
	cancel context.CancelFunc
}

func (b *endingBody) Close() error {
	defer b.cancel()
	return b.ReadCloser.Close()
}

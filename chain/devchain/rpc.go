package devchain

import (
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/rpc"
)

// Bounds of the JSON-RPC server.
const (
	maxBody          = 1 << 20  // bytes of a request
	maxBatch         = 100      // calls in a batch
	maxBatchResponse = 16 << 20 // bytes of a batch's answer
)

// serveRPC builds the server; open starts it.
func (c *Chain) serveRPC() error {
	c.rpc = rpc.NewServer()
	c.rpc.SetBatchLimits(maxBatch, maxBatchResponse)
	c.rpc.SetHTTPBodyLimit(maxBody)
	for name, api := range map[string]any{"eth": &ethAPI{c}, "net": &netAPI{c}, "web3": &web3API{}, "clawr": &clawrAPI{c}} {
		if err := c.rpc.RegisterName(name, api); err != nil {
			return err
		}
	}
	c.http = &http.Server{Handler: &door{rpc: c.rpc, remote: c.opt.AllowRemote}, ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout: 30 * time.Second, WriteTimeout: 90 * time.Second, IdleTimeout: 60 * time.Second, MaxHeaderBytes: 32 << 10}
	return nil
}

// door lets in programs on this machine and pages served from it. A page from
// elsewhere is kept out by its Origin, and one whose name was made to resolve
// to loopback by its Host.
type door struct {
	rpc    http.Handler
	remote bool // any Host: the operator has opened the chain to a network
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !d.remote && !isLoopback(r.Host) {
		http.Error(w, "this chain answers to loopback names only", http.StatusForbidden)
		return
	}
	h := w.Header()
	h.Set("Vary", "Origin")
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || !isLoopback(u.Host) {
			http.Error(w, "this chain answers to pages from loopback only", http.StatusForbidden)
			return
		}
		h.Set("Access-Control-Allow-Origin", origin)
		h.Set("Access-Control-Allow-Methods", "POST, OPTIONS")
		h.Set("Access-Control-Allow-Headers", "Content-Type")
		h.Set("Access-Control-Max-Age", "600")
	}
	switch r.Method {
	case http.MethodOptions:
		w.WriteHeader(http.StatusNoContent)
	case http.MethodPost:
		d.rpc.ServeHTTP(w, r)
	default:
		h.Set("Allow", "POST, OPTIONS")
		http.Error(w, "send a JSON-RPC request by POST", http.StatusMethodNotAllowed)
	}
}

// isLoopback reports whether hostport, with or without a port, names this
// machine and nothing else. Names are not resolved.
func isLoopback(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = strings.Trim(hostport, "[]")
	}
	host = strings.ToLower(host)
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

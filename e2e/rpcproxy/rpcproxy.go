// Package rpcproxy stands between clawr and a node's JSON-RPC, for the tests
// that want a provider which lies, lags or is silent. Without rules it changes
// nothing and counts what is asked. What it cannot read it answers with 400 and
// keeps as an error: clawr must not send such a thing.
package rpcproxy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Proxy is a running proxy, from Start to Close.
type Proxy struct {
	URL string

	upstream string
	client   *http.Client
	server   *http.Server
	served   sync.WaitGroup

	mu    sync.Mutex
	rules map[string]Rule
	door  func(http.ResponseWriter, *http.Request) bool
	trips int64
	calls map[string]int64
	errs  []error
}

// Rule answers a call. ask asks the node, with these or other parameters; its
// error, and the rule's, is a JSON-RPC error if it is an *Error.
type Rule func(params []json.RawMessage, ask func(params ...any) (json.RawMessage, error)) (json.RawMessage, error)

// Error is a JSON-RPC error.
type Error struct {
	Code    int             `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data,omitempty"`
}

func (e *Error) Error() string { return fmt.Sprintf("%d %s", e.Code, e.Message) }

// Start listens on loopback for a node at the URL upstream.
func Start(upstream string) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{URL: "http://" + ln.Addr().String(), upstream: upstream, rules: map[string]Rule{}, calls: map[string]int64{},
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}, Timeout: time.Minute}}
	p.server = &http.Server{Handler: p, ReadHeaderTimeout: 5 * time.Second}
	p.served.Go(func() { p.server.Serve(ln) })
	return p, nil
}

// Close ends it, and gives what it could not read.
func (p *Proxy) Close() []error {
	p.server.Close()
	p.served.Wait()
	p.client.CloseIdleConnections()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.errs
}

// On has a method answered by a rule; nil takes the rule away.
func (p *Proxy) On(method string, r Rule) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r == nil {
		delete(p.rules, method)
		return
	}
	p.rules[method] = r
}

// Door is asked about every round trip: false means that it has answered, or
// taken the connection. nil takes it away.
func (p *Proxy) Door(open func(http.ResponseWriter, *http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.door = open
}

// Down cuts every connection without an answer.
func Down(w http.ResponseWriter, _ *http.Request) bool { panic(http.ErrAbortHandler) }

// Silent never answers.
func Silent(_ http.ResponseWriter, r *http.Request) bool {
	<-r.Context().Done()
	return false
}

// Trips is the number of round trips, and Calls that of calls of a method.
func (p *Proxy) Trips() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trips
}

// Calls is the number of calls of a method.
func (p *Proxy) Calls(method string) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[method]
}

// call is one JSON-RPC request.
type call struct {
	Version string            `json:"jsonrpc"`
	ID      json.RawMessage   `json:"id"`
	Method  string            `json:"method"`
	Params  []json.RawMessage `json:"params"`
}

// reply is its answer.
type reply struct {
	Version string          `json:"jsonrpc"`
	ID      json.RawMessage `json:"id"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *Error          `json:"error,omitempty"`
}

// ServeHTTP takes a call, or a batch of them.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.trips++
	door := p.door
	p.mu.Unlock()
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
	if err != nil {
		return
	}
	if door != nil && !door(w, r) {
		return
	}
	var batch []call
	whole := bytes.HasPrefix(bytes.TrimSpace(body), []byte("["))
	if whole {
		err = json.Unmarshal(body, &batch)
	} else {
		batch = make([]call, 1)
		err = json.Unmarshal(body, &batch[0])
	}
	for _, c := range batch {
		if err == nil && (c.Version != "2.0" || c.Method == "" || len(c.ID) == 0) {
			err = fmt.Errorf("not a call: %s", body)
		}
	}
	if err != nil || len(batch) == 0 || r.Method != http.MethodPost {
		p.mu.Lock()
		p.errs = append(p.errs, fmt.Errorf("%s %.200s: %v", r.Method, body, err))
		p.mu.Unlock()
		http.Error(w, "not JSON-RPC", http.StatusBadRequest)
		return
	}
	replies := make([]reply, len(batch))
	for i, c := range batch {
		if replies[i], err = p.answer(c); err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if whole {
		json.NewEncoder(w).Encode(replies)
		return
	}
	json.NewEncoder(w).Encode(replies[0])
}

// answer gives the reply to one call. An error is the proxy's own.
func (p *Proxy) answer(c call) (reply, error) {
	p.mu.Lock()
	p.calls[c.Method]++
	rule := p.rules[c.Method]
	p.mu.Unlock()
	out := reply{Version: "2.0", ID: c.ID}
	ask := func(params ...any) (json.RawMessage, error) { return p.ask(c.Method, params) }
	given := make([]any, len(c.Params))
	for i := range c.Params {
		given[i] = c.Params[i]
	}
	var err error
	if rule == nil {
		out.Result, err = ask(given...)
	} else {
		out.Result, err = rule(c.Params, func(params ...any) (json.RawMessage, error) {
			if params == nil {
				params = given
			}
			return ask(params...)
		})
	}
	if e, ok := err.(*Error); ok {
		out.Result, out.Error = nil, e
		return out, nil
	}
	if out.Result == nil {
		out.Result = json.RawMessage("null")
	}
	return out, err
}

// ask asks the node.
func (p *Proxy) ask(method string, params []any) (json.RawMessage, error) {
	if params == nil {
		params = []any{}
	}
	body, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
	if err != nil {
		return nil, err
	}
	res, err := p.client.Post(p.upstream, "application/json", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var r reply
	if err := json.NewDecoder(res.Body).Decode(&r); err != nil {
		return nil, err
	}
	if r.Error != nil {
		return nil, r.Error
	}
	return r.Result, nil
}

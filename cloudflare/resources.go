package cloudflare

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"

	"github.com/402claw/clawr"
)

// gone reports whether err says that there is no such thing.
func gone(err error) bool {
	f, ok := errors.AsType[*failure](err)
	return ok && f.missing()
}

// namespace reports whether a dispatch namespace is there.
func (c *Client) namespace(ctx context.Context, name string) (bool, error) {
	found, err := c.get(ctx, c.account("/workers/dispatch/namespaces/%s", name), nil, nil)
	return found, explain(err, "the dispatch namespace "+name+" cannot be looked up")
}

// needNamespace refuses a namespace that is not there.
func (c *Client) needNamespace(ctx context.Context, name string) error {
	found, err := c.namespace(ctx, name)
	if err == nil && !found {
		err = &clawr.Error{Code: CodeNamespace, Param: "dispatch-namespace", Message: "there is no dispatch namespace " + name,
			Fix: "clawr cloudflare-deploy-dispatcher --script-name clawr-dispatcher --dispatch-namespace " + name + " --execute makes it"}
	}
	return err
}

// create posts what is not idempotent: if the answer was lost, look says
// whether it was done all the same.
func (c *Client) create(ctx context.Context, path string, in, out any, look func() (bool, error)) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		_, err = c.do(ctx, call{method: http.MethodPost, path: path, kind: "application/json", body: b, once: true}, out)
		f, ok := errors.AsType[*failure](err)
		if !ok || !f.passing() && !f.has(apiNameTaken, apiTitleTaken) {
			return err
		}
		if done, lerr := look(); done || lerr != nil {
			return lerr
		}
		if try == attempts || !f.passing() {
			return err
		}
	}
}

func (c *Client) createNamespace(ctx context.Context, name string) error {
	err := c.create(ctx, c.account("/workers/dispatch/namespaces"), map[string]string{"name": name}, nil, func() (bool, error) { return c.namespace(ctx, name) })
	return explain(err, "the dispatch namespace "+name+" was not made")
}

// kv finds a KV namespace by its title; "" if there is none.
func (c *Client) kv(ctx context.Context, title string) (string, error) {
	all, err := list[struct{ ID, Title string }](ctx, c, c.account("/storage/kv/namespaces"), nil)
	if err != nil {
		return "", explain(err, "the KV namespaces cannot be listed")
	}
	for _, n := range all {
		if n.Title == title {
			return n.ID, nil
		}
	}
	return "", nil
}

func (c *Client) createKV(ctx context.Context, title string) (id string, err error) {
	var n struct{ ID string }
	err = c.create(ctx, c.account("/storage/kv/namespaces"), map[string]string{"title": title}, &n, func() (bool, error) {
		n.ID, err = c.kv(ctx, title)
		return n.ID != "", err
	})
	return n.ID, explain(err, "the KV namespace "+title+" was not made")
}

// kvValue reads one value; nil if there is none.
func (c *Client) kvValue(ctx context.Context, id, key string) ([]byte, error) {
	var v []byte
	_, err := c.do(ctx, call{method: http.MethodGet, path: c.account("/storage/kv/namespaces/%s/values/%s", id, key), raw: true}, &v)
	if gone(err) {
		return nil, nil
	}
	return v, explain(err, "the directory cannot be read")
}

// pair is a key with its value.
type pair struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	TTL   int64  `json:"expiration_ttl,omitempty"` // seconds; 0: for ever
}

// kvWrite writes pairs in one request: all of them are seen, or none, as far
// as one place sees them.
func (c *Client) kvWrite(ctx context.Context, id string, pairs []pair) error {
	err := c.send(ctx, http.MethodPut, c.account("/storage/kv/namespaces/%s/bulk", id), pairs, nil)
	return explain(err, "the directory was not written")
}

func (c *Client) kvDelete(ctx context.Context, id string, keys []string) error {
	err := c.send(ctx, http.MethodPost, c.account("/storage/kv/namespaces/%s/bulk/delete", id), keys, nil)
	return explain(err, "keys were not removed from the directory")
}

// kvKeys lists the keys that begin with prefix.
func (c *Client) kvKeys(ctx context.Context, id, prefix string) ([]string, error) {
	var keys []string
	cursor := ""
	for {
		q := url.Values{"prefix": {prefix}, "limit": {"1000"}}
		if cursor != "" {
			q.Set("cursor", cursor)
		}
		var some []struct{ Name string }
		env, err := c.do(ctx, call{method: http.MethodGet, path: c.account("/storage/kv/namespaces/%s/keys", id), query: q}, &some)
		if err != nil {
			return nil, explain(err, "the directory cannot be listed")
		}
		for _, k := range some {
			keys = append(keys, k.Name)
		}
		if cursor = env.ResultInfo.Cursor; cursor == "" {
			return keys, nil
		}
	}
}

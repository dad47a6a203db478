package cloudflare

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/402claw/clawr"
)

// entry is what stands in the directory about a tenant: what clawr.Tenant
// says, and the members of Marks. It is handled as a map, so that what another
// version of clawr wrote there is kept.
type entry map[string]any

func (e entry) text(name string) string { s, _ := e[name].(string); return s }

func (e entry) number(name string) int64 {
	n, _ := e[name].(json.Number)
	v, _ := n.Int64()
	return v
}

func (e entry) previous() (all []entry) {
	list, _ := e["previous"].([]any)
	for _, v := range list {
		if m, ok := v.(map[string]any); ok {
			all = append(all, m)
		}
	}
	return all
}

func (e entry) hosts() (all []string) {
	list, _ := e["hosts"].([]any)
	for _, v := range list {
		if s, ok := v.(string); ok {
			all = append(all, s)
		}
	}
	return all
}

func parseEntry(b []byte) (entry, error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var e entry
	if err := dec.Decode(&e); err != nil {
		return nil, &clawr.Error{Code: CodeTaken, Message: "the directory has something in this place that is not clawr's", Fix: "use another --dispatch-namespace", Err: err}
	}
	return e, nil
}

// entryOf is a tenant's own part of an entry, and how it is asked, if that is
// known.
func entryOf(t clawr.Tenant, discovery any) (entry, error) {
	t.WorkerName = WorkerName(&t)
	b, err := json.Marshal(struct {
		clawr.Tenant
		Discovery any `json:"discovery,omitempty"`
	}{t, discovery})
	if err != nil {
		return nil, err
	}
	return parseEntry(b)
}

// same compares entries but for their revisions.
func (e entry) same(o entry) bool {
	strip := func(e entry) string {
		c := entry{}
		for k, v := range e {
			if k != "revision" {
				c[k] = v
			}
		}
		b, _ := json.Marshal(c) // keys in order
		return string(b)
	}
	return e != nil && o != nil && strip(e) == strip(o)
}

func slugKey(slug string) string { return "slug:" + slug }
func hostKey(host string) string { return "host:" + host }

// read gives what the directory says under a key; nil if nothing.
func (p *Publisher) read(ctx context.Context, kv *resource, key string) (entry, error) {
	if p.API == nil || kv.id == "" {
		return nil, nil
	}
	b, err := p.API.kvValue(ctx, kv.id, key)
	if err != nil || b == nil {
		return nil, err
	}
	return parseEntry(b)
}

// succeed gives now its place behind was: what was sold before can be asked
// for still. It returns the versions that cannot be any more.
func (p *Publisher) succeed(now, was entry) (old []entry) {
	previous := []any{}
	var all []entry
	if was != nil {
		if was.number("version") != now.number("version") {
			last := entry{}
			for k, v := range was {
				if k != "previous" && k != "revision" && k != "hosts" && k != "discovery" {
					last[k] = v
				}
			}
			last["until"] = json.Number(fmt.Sprint(p.Now().UnixMilli()))
			all = append(all, last)
		}
		all = append(all, was.previous()...)
	}
	for _, e := range all {
		switch {
		case e.number("version") == now.number("version"):
		case len(previous) < keepLast || p.Now().Sub(time.UnixMilli(e.number("until"))) < keepFor:
			previous = append(previous, map[string]any(e))
		default:
			old = append(old, e)
		}
	}
	now["previous"] = previous
	return old
}

// planEntry plans that the directory says now, and the ledger knows it. What
// takes calls away is told to the ledger first, because the directory lags.
func (p *Publisher) planEntry(ctx context.Context, plan *Plan, kv *resource, now, was entry, edge Edge, away bool) error {
	slug := now.text("slug")
	plan.willWrite("directory.json", func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetEscapeHTML(false)
		return enc.Encode(map[string]any{slugKey(slug): now})
	})
	wanted := now.hosts()
	if now.text("status") == string(clawr.StatusRemoved) {
		wanted = nil
	}
	complete := true
	for _, h := range wanted {
		e, err := p.read(ctx, kv, hostKey(h))
		if err != nil {
			return err
		}
		complete = complete && now.same(e)
	}
	var stale []string
	for _, h := range was.hosts() {
		if slices.Contains(wanted, h) {
			continue
		}
		if e, err := p.read(ctx, kv, hostKey(h)); err != nil {
			return err
		} else if e != nil && e.text("id") == now.text("id") {
			stale = append(stale, hostKey(h))
		}
	}
	changes := !now.same(was) || !complete
	revision := max(was.number("revision")+1, p.Now().UnixMilli())
	if !changes {
		revision = was.number("revision")
	}
	now["revision"] = json.Number(fmt.Sprint(revision))
	tell := func() {
		if edge.URL != "" {
			plan.add("tell", "the ledger at "+edge.URL, now.text("status"), func(ctx context.Context) error {
				return p.tell(ctx, edge, State{now.text("id"), slug, revision, clawr.Status(now.text("status")), now.text("ledgerHome")})
			})
		}
	}
	if away {
		tell()
	}
	keys := []string{slugKey(slug)}
	for _, h := range wanted {
		keys = append(keys, hostKey(h))
	}
	what := "directory " + strings.Join(keys, " ")
	if changes {
		plan.add("write", what, fmt.Sprintf("version %d, %s", now.number("version"), now.text("status")), func(ctx context.Context) error {
			value, err := json.Marshal(now)
			if err != nil {
				return err
			}
			var pairs []pair
			for _, k := range keys {
				pairs = append(pairs, pair{Key: k, Value: string(value)})
			}
			if now.text("status") == string(clawr.StatusRemoved) {
				pairs[0].TTL = int64(keepFor / time.Second)
			}
			return p.API.kvWrite(ctx, kv.id, pairs)
		})
	} else {
		plan.keep(what, fmt.Sprintf("version %d, %s", now.number("version"), now.text("status")))
	}
	if len(stale) > 0 {
		plan.add("delete", "directory "+strings.Join(stale, " "), "", func(ctx context.Context) error { return p.API.kvDelete(ctx, kv.id, stale) })
	}
	tell() // after the directory, for those who remember what it said
	return nil
}
